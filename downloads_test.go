package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
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
	f("without a look", 1, 200, rival)
	f("once", 1, 200, rival, "If-Match", "*")
	f("twice", 2, 200, rival, "If-Match", "*")
	f("all the time", 3, 503, nil, "If-Match", "*")
	f("a range", 1, 206, rival[1000:2000], "Range", "bytes=1000-2999")
	f("a range that only the old one has", 1, 416, nil, "Range", "bytes=2500-")
	f("the last bytes", 1, 206, rival[1990:], "Range", "bytes=-10")
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

// hogDownloads begins n downloads of path as another client, of which it reads the
// headers and no more.
func hogDownloads(t *testing.T, s *testServer, path string, n int) (answers []*http.Response) {
	t.Helper()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	client := &http.Client{Transport: &http.Transport{DialContext: from.DialContext}}
	for range n {
		r, err := client.Get("http://" + s.addr + path)
		if err != nil || r.StatusCode != 200 {
			t.Fatal(r, err)
		}
		t.Cleanup(func() { r.Body.Close() })
		answers = append(answers, r)
	}
	return answers
}

// The downloads that pass through the service have a bounded memory. Who reads
// nothing of what it asked for keeps nobody else from reading.
func TestDownloadsShareTheirMemory(t *testing.T) {
	const path, size = "/sites/s/artifacts/b", 32 << 20 // more than sockets hold
	s, svc := startBackend(t, openMem(newMemBucket()))
	data := bytes.Repeat(body(size/8, 1), 8)
	s.put(t, 201, path, data)
	svc.downloads.limit = 3 * downloadMemory
	hog := hogDownloads(t, s, path, 3)
	eventually(t, "all memory is taken", func() bool { return svc.downloads.inUse() == svc.downloads.limit })
	s.do(t, 200, request{"HEAD", path, nil, nil}) // needs none
	s.get(t, 200, "/sites/s/versions")
	if got := s.get(t, 200, path); !bytes.Equal(got.body, data) {
		t.Errorf("%d bytes came of %d", len(got.body), size)
	}
	for i, r := range hog {
		n, err := io.Copy(io.Discard, r.Body)
		if cut := err != nil; cut != (i == 2) || !cut && n != size {
			t.Errorf("download %d of who held all: %d bytes, %v", i, n, err)
		}
	}
	nothingIsHeld(t, svc)
}

// Without memory in time the answer is 503, and while it is waited for the store
// stays open to others.
func TestDownloadWaitsForMemory(t *testing.T) {
	const path = "/sites/s/artifacts/b"
	s, svc := startBackend(t, openMem(newMemBucket()))
	s.put(t, 201, path, "build")
	all := mustTake(t, svc.downloads, "", svc.downloads.limit) // in nobody's name: it is not ended
	svc.reads.limit = 1
	svc.downloads.wait = time.Minute
	waiting := make(chan int, 1)
	go func() {
		r, err := s.try(request{"GET", path, nil, nil})
		if err != nil {
			t.Error(err)
			r = &response{}
		}
		waiting <- r.status
	}()
	eventually(t, "it waits", func() bool {
		svc.downloads.mu.Lock()
		defer svc.downloads.mu.Unlock()
		return len(svc.downloads.queue) == 1
	})
	etag := s.do(t, 200, request{"HEAD", path, nil, nil}).header.Get("ETag")
	all.release()
	if got := <-waiting; got != 200 {
		t.Errorf("who waited: %d", got)
	}
	all = mustTake(t, svc.downloads, "", svc.downloads.limit)
	svc.downloads.wait = 20 * time.Millisecond
	if r := s.get(t, 503, path); r.header.Get("Retry-After") == "" {
		t.Errorf("refused with %v", r.header)
	}
	all.release()
	for _, c := range []struct {
		status int
		header http.Header
	}{{304, header("If-None-Match", etag)}, {416, header("Range", "bytes=99-")}, {200, nil}} {
		s.do(t, c.status, request{"GET", path, nil, c.header})
	}
	nothingIsHeld(t, svc)
}

// failingBucket is a bucket whose artifacts end with an error.
type failingBucket struct{ *memBucket }

func (b failingBucket) get(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	body, info, err := b.memBucket.get(ctx, key, etag, offset, length)
	if err == nil && strings.HasSuffix(key, artifactSuffix) {
		body = io.NopCloser(io.MultiReader(io.LimitReader(body, 100), errorReader{ErrUnavailable}))
	}
	return body, info, err
}

type errorReader struct{ error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.error }

// A download that the store cuts is counted, and the access log says why.
func TestDownloadThatTheStoreCuts(t *testing.T) {
	s, svc := startBackend(t, newObjectStore(failingBucket{newMemBucket()}, "", quiet()), "ACCESS_LOG=true")
	s.put(t, 201, "/sites/s/artifacts/b", body(1000, 1))
	if err := getOnce(s, "/sites/s/artifacts/b"); err == nil {
		t.Error("it came whole")
	}
	eventually(t, "it is counted", func() bool { return svc.metrics.cut.Get() == 1 })
	eventually(t, "the access log says why", func() bool { return strings.Contains(s.log.String(), `"cut":"the store`) })
}
