package main

import (
	"bytes"
	"strconv"
	"testing"
)

// A build that is replaced between the look and the read is sent whole, as the
// old one or the new one, with the length and the tag of the one that is sent.
func TestBuildReplacedBetweenLookAndRead(t *testing.T) {
	m := newMemBucket()
	store := openMem(m)
	s, _ := startBackend(t, store)
	const path = "/sites/s/artifacts/b"
	key := store.artifactKey("s", "b")
	old, rival := body(3000, 1), body(2000, 2)
	f := func(name string, rivals, status int, want []byte, h ...string) {
		t.Helper()
		mustStore(t, store, "s", "b", old)
		stored := 0
		m.mu.Lock()
		m.fault = func(op, k string) (bool, error) {
			if op == "get" && k == key && stored < rivals {
				stored++
				m.objects[key] = memObject{objectInfo{key: key, etag: `"rival-` + strconv.Itoa(stored) + `"`, size: int64(len(rival))}, rival}
			}
			return false, nil
		}
		m.mu.Unlock()
		r, err := s.try(request{"GET", path, nil, header(h...)})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if r.status != status {
			t.Fatalf("%s: answered %d, want %d", name, r.status, status)
		}
		if status >= 400 {
			return
		}
		tag := `"rival-` + strconv.Itoa(stored) + `"`
		if !bytes.Equal(r.body, want) || r.length != int64(len(want)) || r.header.Get("ETag") != tag {
			t.Errorf("%s: %d bytes came, announced were %d with the tag %s; want %d with the tag %s",
				name, len(r.body), r.length, r.header.Get("ETag"), len(want), tag)
		}
	}
	f("once", 1, 200, rival)
	f("twice", 2, 200, rival)
	f("all the time", 3, 503, nil)
	f("a range", 1, 206, rival[1000:2000], "Range", "bytes=1000-2999")
	f("a range that only the old one has", 1, 416, nil, "Range", "bytes=2500-")
}

// A build that was opened and is not sent after all is closed.
func TestRefusedDownloadIsClosed(t *testing.T) {
	p := &panicky{nfs: openTestNFS(t, t.TempDir())}
	s, _ := startBackend(t, p)
	s.put(t, 201, "/sites/a/artifacts/b", randomBytes(1<<20))
	s.get(t, 412, "/sites/a/artifacts/b", "If-Match", `"x"`)
	if n := p.opened.Load(); n != 0 {
		t.Errorf("%d files are left open", n)
	}
}

// A build that is answered out of memory has ranges like any other.
func TestRangesOfASmallBuild(t *testing.T) {
	s := startServer(t)
	s.put(t, 201, "/sites/a/artifacts/b", "0123456789")
	for value, want := range map[string]string{"bytes=0-0": "0", "bytes=3-5": "345", "bytes=7-": "789", "bytes=-2": "89"} {
		if r := s.get(t, 206, "/sites/a/artifacts/b", "Range", value); string(r.body) != want {
			t.Errorf("%s: %q, want %q", value, r.body, want)
		}
	}
}
