package main

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

// What is written by hand reads as what it was made of.
func TestVersionsAreWrittenAsJSON(t *testing.T) {
	at := time.Date(2026, 2, 3, 4, 5, 6, 700, time.UTC)
	texts := []string{"plain", "", `"quoted" \ back`, "line\nbreak\x00\x1f\x7f", "größer <b>&amp;</b> \u2028 😀"}
	written := func(site string, page *VersionPage, metadata bool) []byte {
		t.Helper()
		page.seal()
		var l listWriter
		if err := l.versions(site, page, metadata); err != nil {
			t.Fatal(err)
		}
		return l.b
	}
	page := &VersionPage{NextCursor: "next"}
	for i, s := range texts {
		page.Versions = append(page.Versions, &Version{BuildID: "b" + strings.Repeat("x", i), SizeBytes: int64(i) << 40,
			CreatedAt: at.Add(time.Duration(i) * time.Second), LogsError: s,
			Logs: []LogEntry{{Action: s, Status: s + "!", Timestamp: at, Metadata: json.RawMessage(`{"n":12345678901234567890}`)}, {Timestamp: at}}[:i%3]})
	}
	for _, metadata := range []bool{false, true} {
		got := written("site", page, metadata)
		var read struct {
			SiteID   string `json:"site_id"`
			Count    int
			Versions []struct {
				BuildID   string    `json:"build_id"`
				SizeBytes int64     `json:"size_bytes"`
				CreatedAt time.Time `json:"created_at"`
				Logs      []LogEntry
				LogsError string `json:"logs_error"`
			}
			NextCursor string `json:"next_cursor"`
		}
		d := json.NewDecoder(strings.NewReader(string(got)))
		d.DisallowUnknownFields()
		if err := d.Decode(&read); err != nil {
			t.Fatalf("%v: %s", err, got)
		}
		if read.SiteID != "site" || read.Count != len(texts) || read.NextCursor != "next" || len(read.Versions) != len(texts) {
			t.Errorf("read as %+v", read)
		}
		for i, v := range read.Versions {
			want := page.Versions[i]
			logs := append([]LogEntry{}, want.Logs...)
			if !metadata {
				for j := range logs {
					logs[j].Metadata = nil
				}
			}
			if v.BuildID != want.BuildID || v.SizeBytes != want.SizeBytes || !v.CreatedAt.Equal(want.CreatedAt) ||
				v.LogsError != want.LogsError || !reflect.DeepEqual(v.Logs, logs) {
				t.Errorf("metadata %v: %+v is read as %+v", metadata, want, v)
			}
		}
		if n, want := int64(len(got)), sizeOfList("site", page, metadata); n != want {
			t.Errorf("%d bytes, %d were announced", n, want)
		}
	}
	if got := string(written("s", &VersionPage{}, false)); got != `{"site_id":"s","count":0,"versions":[]}`+"\n" {
		t.Error(got)
	}
}

func TestTagOfWhole(t *testing.T) {
	f := func(etag string, metadata bool, want string) {
		t.Helper()
		if got := tagOfWhole(etag, VersionQuery{Metadata: metadata}); got != want {
			t.Errorf("%s, metadata %v: %q, want %q", etag, metadata, got, want)
		}
	}
	of := func(next string, metadata bool) string {
		return pageETag(&VersionPage{pageSeal: pageSeal{Tag: "abc"}, NextCursor: next}, VersionQuery{Metadata: metadata})
	}
	f(of("", false), false, "abc")
	f(of("", true), true, "abc")
	f("W/"+of("", true), true, "abc")
	f(of("", true), false, "")
	f(of("", false), true, "")
	f(of("next", false), false, "")
	f(of("next", true), true, "")
	f(`"1-abc"`, false, "") // of an older format
	f(`"abc"`, false, "")
	f(`""`, false, "")
}
