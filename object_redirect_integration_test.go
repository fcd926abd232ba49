//go:build integration

package main

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// With DOWNLOAD_REDIRECT clients get the bytes from the store.
func TestRealStoresRedirect(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		const path = "/sites/redirected/artifacts/b+1"
		server := s.with(map[string]string{"PAGEWRIGHT_DOWNLOAD_REDIRECT": "true"}).frontDoor(t)
		data := body(100_000, 1)
		server.get(t, 404, path)
		tag := server.put(t, 201, path, data).header.Get("ETag")
		if r := server.get(t, 200, path+"?redirect=false"); !bytes.Equal(r.body, data) {
			t.Error("the service sent other bytes")
		}
		server.do(t, 200, request{"HEAD", path, nil, nil})
		server.get(t, 304, path, "If-None-Match", tag)
		server.get(t, 412, path, "If-Match", `"another"`)
		if s.cannotSign {
			if r := server.get(t, 200, path); !bytes.Equal(r.body, data) {
				t.Error("other bytes were sent where no URL can be signed")
			}
			eventually(t, "the log says why", func() bool {
				return strings.Contains(server.log.String(), "cannot sign a download URL")
			})
			return
		}
		r := server.get(t, 307, path)
		location := r.header.Get("Location")
		if !strings.HasPrefix(location, s.server.url()) || r.header.Get("Cache-Control") != "no-store" || len(r.body) != 0 {
			t.Errorf("307 with %v and %d bytes", r.header, len(r.body))
		}
		for _, c := range []struct {
			value  string
			status int
			want   []byte
		}{{"", 200, data}, {"bytes=10-19", 206, data[10:20]}} {
			req, err := http.NewRequest(http.MethodGet, location, nil)
			if err != nil {
				t.Fatal(err)
			}
			if c.value != "" {
				req.Header.Set("Range", c.value)
			}
			resp, err := patientClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != c.status || !bytes.Equal(got, c.want) {
				t.Errorf("the store answered %d with %d bytes to Range %q, %v", resp.StatusCode, len(got), c.value, err)
			}
		}
	})
}

// On every real store doctor reports no failure and leaves nothing behind.
func TestRealStoresDoctor(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		b := s.open(t, "").(*objectStore)
		out, err := runDoctor(s.environ("")...)
		if err != nil || strings.Contains(out, "FAIL") || strings.Count(out, "\n") < 10 {
			t.Errorf("%v:\n%s", err, out)
		}
		t.Logf("\n%s", out)
		if err := b.bucket.list(t.Context(), "", func(page []objectInfo) error {
			if len(page) > 0 {
				t.Errorf("left behind: %v", page)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		s.server.kill()
		if out, err := runDoctor(s.environ("")...); err == nil || !strings.Contains(out, "FAIL write an object") {
			t.Errorf("for a store that is down: %v\n%s", err, out)
		}
	})
}
