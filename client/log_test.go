package client

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

// An entry is sent with one key, however often that takes.
func TestLog(t *testing.T) {
	withFake(t, func(f *fake) {
		entries := map[string]string{}
		serve := func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			key := r.Header.Get("Idempotency-Key")
			if old, ok := entries[key]; ok && old != string(body) || key == "" {
				fail(w, 422, "another entry has this key")
				return
			}
			entries[key] = string(body)
			w.WriteHeader(http.StatusCreated)
			json.NewEncoder(w).Encode(map[string]string{"status": "success", "entry_id": "E1"})
		}
		f.hosts[serviceHost].handle = faulty(serve, lost, lostBefore, unavailable, lost)
		r := f.run("log", "shop", "v1", "deploy", "ok", "--metadata", ` {"n":1.50, "html":"<a>"}`, "--json").want(t, 0)
		if r.stdout != `{"build_id":"v1","entry_id":"E1","site_id":"shop"}`+"\n" {
			t.Errorf("stdout is %s", r.stdout)
		}
		if len(entries) != 1 {
			t.Errorf("%d entries", len(entries))
		}
		for _, body := range entries {
			if !strings.Contains(body, `"html":"<a>"`) {
				t.Errorf("the service got %s", body)
			}
			var e logEntry
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.BuildID != "v1" || e.Action != "deploy" || e.Status != "ok" {
				t.Errorf("the service got %s, %v", body, err)
			}
			var m struct {
				N    json.Number
				HTML string
			}
			if err := json.Unmarshal(e.Metadata, &m); err != nil || m.N != "1.50" || m.HTML != "<a>" {
				t.Errorf("the service got the metadata %s, %v", e.Metadata, err)
			}
		}
		if r := f.run("log", "shop", "v1", "deploy", "failed").want(t, 0); r.stdout != "shop/v1: deploy failed\n" {
			t.Errorf("stdout is %s", r.stdout)
		}
		before := len(f.hosts[serviceHost].requests())
		for _, args := range [][]string{
			{"shop", "v1", "deploy"}, {"shop", "v1", "", "ok"}, {"shop", "v1", "deploy", ""}, {"shop", "", "deploy", "ok"},
			{"shop", "v1", "a", "b", "--metadata", ""}, {"shop", "v1", "a", "b", "--metadata", "[1]"},
			{"shop", "v1", "a", "b", "--metadata", "null"}, {"shop", "v1", "a", "b", "--metadata", "{"}, {"shop", "v1", "a", "b", "--metadata", "{}{}"},
		} {
			f.run("log", args...).want(t, exitUsage)
		}
		if n := len(f.hosts[serviceHost].requests()); n != before {
			t.Errorf("%d requests", n-before)
		}
	})
}
