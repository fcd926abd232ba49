package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeLabels is a store over a directory that has the labels of a test, and counts how often it
// is asked for a label or a build.
type fakeLabels struct {
	*nfs
	mu     sync.Mutex
	labels []Label
	looks  []string
	onGet  func(calls int) // called before the label is returned
}

func (f *fakeLabels) looked(at string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks = append(f.looks, at)
	return len(f.looks)
}

func (f *fakeLabels) take() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := strings.Join(f.looks, " ")
	f.looks = nil
	return seen
}

func (f *fakeLabels) GetLabel(_, label string) (Label, error) {
	if n := f.looked("label"); f.onGet != nil {
		f.onGet(n)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.labels {
		if l.Name == label {
			return l, nil
		}
	}
	return Label{}, ErrNotFound
}

func (f *fakeLabels) ListLabels(string) ([]Label, error) { return f.labels, nil }

func (f *fakeLabels) StatArtifact(siteID, buildID string) (ArtifactInfo, error) {
	f.looked("stat")
	return f.nfs.StatArtifact(siteID, buildID)
}

func (f *fakeLabels) FetchArtifact(siteID, buildID string) (io.ReadCloser, error) {
	f.looked("fetch")
	return f.nfs.FetchArtifact(siteID, buildID)
}

// TestDownloadByLabel: the response is that of the build, but for Content-Location and
// Cache-Control.
func TestDownloadByLabel(t *testing.T) {
	for _, vars := range [][]string{nil, {"APPEND_ONLY=true", "BUILD_CACHE_CONTROL=public, max-age=31536000, immutable"}} {
		s := startServer(t, vars...)
		for i, size := range []int{10, 20_000, 300_000} {
			id := fmt.Sprint("v", i)
			build, byLabel, data := "/sites/s/artifacts/"+id, "/sites/s/labels/live/artifact", randomBytes(size)
			etag := s.put(t, 201, build, data, "Repr-Digest", sha256Field(data)).header.Get("ETag")
			mustPut(t, s, "/sites/s/labels/live", move(id))
			modified := s.modified(t, build)
			for _, h := range [][]string{
				nil,
				{"Range", "bytes=2-5"}, {"Range", "bytes=-3"}, {"Range", "bytes=9-"}, {"Range", "bytes=99999999-"}, {"Range", "bytes=1-2,4-5"},
				{"Range", "bytes=2-5", "If-Range", etag}, {"Range", "bytes=2-5", "If-Range", `"x"`},
				{"If-None-Match", etag}, {"If-None-Match", "W/" + etag}, {"If-None-Match", `"a", ` + etag}, {"If-None-Match", "*"},
				{"If-None-Match", `"x"`}, {"If-None-Match", "x"}, {"If-None-Match", etag, "Range", "bytes=2-5"},
				{"If-Match", etag}, {"If-Match", `"x"`}, {"If-Match", `"x"`, "If-None-Match", etag}, {"If-Match", etag, "If-None-Match", etag}, {"If-Match", "x"},
				{"If-Modified-Since", modified}, {"If-Modified-Since", "Mon, 01 Jan 2001 00:00:00 GMT"},
				{"If-Unmodified-Since", modified}, {"If-Unmodified-Since", "Mon, 01 Jan 2001 00:00:00 GMT", "If-None-Match", etag},
			} {
				for _, method := range []string{"GET", "HEAD"} {
					want, err := s.try(request{method, build, nil, header(h...)})
					if err != nil {
						t.Fatal(err)
					}
					got := s.do(t, want.status, request{method, byLabel, nil, header(h...)})
					location, caching := "", "no-store"
					if got.status < 400 {
						location, caching = build, "no-cache"
					}
					if got.header.Get("Content-Location") != location || got.header.Get("Cache-Control") != caching || string(got.body) != string(want.body) {
						t.Errorf("%s %v: %d %v, %d bytes of %d", method, h, got.status, got.header, len(got.body), len(want.body))
					}
					for _, name := range []string{"Content-Location", "Cache-Control", "Date", "X-Request-Id"} {
						got.header.Del(name)
						want.header.Del(name)
					}
					if got.status == 304 { // of the label alone: what RFC 9110 requires
						if got.header.Get("ETag") != etag {
							t.Errorf("%s %v: 304 %v", method, h, got.header)
						}
						continue
					}
					if !maps.EqualFunc(got.header, want.header, slices.Equal) {
						t.Errorf("%s %v: %v, want %v", method, h, got.header, want.header)
					}
				}
			}
		}
		s.get(t, 404, "/sites/s/labels/none/artifact")
		s.get(t, 404, "/sites/none/labels/live/artifact")
		s.get(t, 400, "/sites/s/labels/live/artifact?redirect=7")
		s.do(t, 405, request{"PUT", "/sites/s/labels/live/artifact", "x", nil})
	}
}

// TestPollByLabel: who polls gets a 304 until the label moves, and again when it moves back.
func TestPollByLabel(t *testing.T) {
	s := startServer(t)
	const live, byLabel = "/sites/s/labels/live", "/sites/s/labels/live/artifact"
	s.put(t, 201, "/sites/s/artifacts/v1", "one")
	s.put(t, 201, "/sites/s/artifacts/v2", "two")
	s.put(t, 201, live, move("v1"))
	one := s.get(t, 200, byLabel).header.Get("ETag")
	s.get(t, 304, byLabel, "If-None-Match", one)
	s.put(t, 200, live, move("v2"))
	two := s.get(t, 200, byLabel, "If-None-Match", one)
	if string(two.body) != "two" || two.header.Get("Content-Location") != "/sites/s/artifacts/v2" {
		t.Errorf("after the move: %s %v", two.body, two.header)
	}
	s.get(t, 304, byLabel, "If-None-Match", two.header.Get("ETag"))
	s.get(t, 304, byLabel, "If-None-Match", one+", "+two.header.Get("ETag"))
	s.put(t, 200, live, move("v1"))
	s.get(t, 304, byLabel, "If-None-Match", one)
	s.get(t, 200, byLabel, "If-None-Match", two.header.Get("ETag"))
	s.do(t, 204, request{"DELETE", live, nil, nil})
	s.get(t, 404, byLabel, "If-None-Match", one)
}

// TestLooksOfDownloadsByLabel: how often the store is asked.
func TestLooksOfDownloadsByLabel(t *testing.T) {
	store := &fakeLabels{nfs: openTestNFS(t, t.TempDir())}
	mustStore(t, store.nfs, "s", "v1", []byte("one"))
	info, err := store.nfs.StatArtifact("s", "v1")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	store.labels = []Label{
		{Name: "live", BuildID: "v1", BuildETag: info.ETag, ChangedAt: at},
		{Name: "stale", BuildID: "v1", BuildETag: `"stale"`, ChangedAt: at}, // the store was restored
		{Name: "old", BuildID: "v1", ChangedAt: at},
		{Name: "gone", BuildID: "v0", BuildETag: `"v0"`, ChangedAt: at},
	}
	s, svc := startBackend(t, store)
	for _, c := range []struct {
		label  string
		header []string
		status int
		looks  string
	}{
		{"live", nil, 200, "label fetch"},
		{"live", []string{"Range", "bytes=1-"}, 206, "label fetch"},
		{"live", []string{"If-None-Match", info.ETag}, 304, "label"},
		{"live", []string{"If-None-Match", "W/" + info.ETag}, 304, "label"},
		{"live", []string{"If-None-Match", info.ETag, "If-Modified-Since", "Mon, 01 Jan 2001 00:00:00 GMT"}, 304, "label"},
		{"live", []string{"If-None-Match", "*"}, 304, "label stat"},
		{"live", []string{"If-None-Match", `"x"`}, 200, "label stat fetch"},
		{"live", []string{"If-None-Match", info.ETag, "If-Match", info.ETag}, 304, "label stat"},
		{"stale", []string{"If-None-Match", info.ETag}, 304, "label stat"},
		{"stale", []string{"If-None-Match", `"stale"`}, 304, "label"},
		{"old", []string{"If-None-Match", info.ETag}, 304, "label stat"},
		{"old", []string{"If-None-Match", `""`}, 200, "label stat fetch"},
		{"none", nil, 404, "label"},
		{"none", []string{"If-None-Match", info.ETag}, 404, "label"},
		{"gone", nil, 404, "label fetch label fetch"},
	} {
		s.get(t, c.status, "/sites/s/labels/"+c.label+"/artifact", c.header...)
		if got := store.take(); got != c.looks {
			t.Errorf("%s %v: it looked at %q, want %q", c.label, c.header, got, c.looks)
		}
	}
	nothingIsHeld(t, svc)
}

// TestLabelMovesMeanwhile: the build vanishes between the look at the label and the read.
func TestLabelMovesMeanwhile(t *testing.T) {
	store := &fakeLabels{nfs: openTestNFS(t, t.TempDir())}
	mustStore(t, store.nfs, "s", "v2", []byte("two"))
	store.labels = []Label{{Name: "live", BuildID: "v1", BuildETag: `"v1"`, ChangedAt: testTime}}
	store.onGet = func(calls int) {
		if calls > 1 { // the label has moved, and its old build was deleted
			store.mu.Lock()
			defer store.mu.Unlock()
			store.labels = []Label{{Name: "live", BuildID: "v2", BuildETag: `"v2"`, ChangedAt: testTime}}
		}
	}
	s, svc := startBackend(t, store)
	got := s.get(t, 200, "/sites/s/labels/live/artifact")
	if string(got.body) != "two" || got.header.Get("Content-Location") != "/sites/s/artifacts/v2" || store.take() != "label fetch label fetch" {
		t.Errorf("%s, %v", got.body, got.header)
	}
	// Whoever deletes the label meanwhile gets its 404.
	store.labels = []Label{{Name: "live", BuildID: "v1", ChangedAt: testTime}}
	store.onGet = func(calls int) {
		if calls > 1 {
			store.mu.Lock()
			defer store.mu.Unlock()
			store.labels = nil
		}
	}
	if got := s.get(t, 404, "/sites/s/labels/live/artifact"); !strings.Contains(string(got.body), "cannot read the label: not found") {
		t.Errorf("%s", got.body)
	}
	nothingIsHeld(t, svc)
}

// labelledBucket is a store in a bucket with one label of every site.
type labelledBucket struct {
	*objectStore
	label *Label
}

func (b labelledBucket) GetLabel(string, string) (Label, error)        { return *b.label, nil }
func (b labelledBucket) ListLabels(string) ([]Label, error)            { return []Label{*b.label}, nil }
func (b labelledBucket) DeleteLabel(_, _ string, _ Precondition) error { return nil }
func (b labelledBucket) MoveLabel(string, LabelMove) (Label, bool, error) {
	return *b.label, false, nil
}

// TestDownloadByLabelOfABucket: through the service, and with redirects to the store.
func TestDownloadByLabelOfABucket(t *testing.T) {
	const build, byLabel = "/sites/s/artifacts/v1", "/sites/s/labels/live/artifact"
	for _, redirects := range []bool{false, true} {
		label := &Label{Name: "live", BuildID: "v1", ChangedAt: testTime}
		store := labelledBucket{newObjectStore(signedBucket{newMemBucket()}, "", quiet()), label}
		s, svc := startBackend(t, store, "STORAGE_BACKEND=s3", fmt.Sprint("DOWNLOAD_REDIRECT=", redirects))
		label.BuildETag = s.put(t, 201, build, "one").header.Get("ETag")
		for _, h := range [][]string{nil, {"Range", "bytes=1-"}, {"Range", "bytes=-1"}, {"If-None-Match", label.BuildETag}, {"If-Match", `"x"`}, {"If-None-Match", "*"}, {"Range", "bytes=9-"}} {
			for _, under := range []string{"", "?redirect=false"} {
				want, err := s.try(request{"GET", build + under, nil, header(h...)})
				if err != nil {
					t.Fatal(err)
				}
				got := s.get(t, want.status, byLabel+under, h...)
				location, caching := map[bool]string{true: build}[got.status < 307], map[bool]string{true: "no-cache", false: "no-store"}[got.status < 307]
				if string(got.body) != string(want.body) || got.header.Get("Content-Location") != location || got.header.Get("Cache-Control") != caching ||
					got.header.Get("Location") != want.header.Get("Location") || got.header.Get("Content-Range") != want.header.Get("Content-Range") {
					t.Errorf("redirects %t, %v: %d %v %q, want %v %q", redirects, h, got.status, got.header, got.body, want.header, want.body)
				}
			}
		}
		if got := s.do(t, 200, request{"HEAD", byLabel, nil, nil}); got.length != 3 || got.header.Get("Content-Location") != build {
			t.Errorf("HEAD: %v", got.header)
		}
		nothingIsHeld(t, svc)
	}
}
