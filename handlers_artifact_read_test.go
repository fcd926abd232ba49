package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"
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

// The answer for the new build has nothing of the one that it replaced, also if the
// store notices first that the range is not in it.
func TestHeaderOfABuildThatIsReplaced(t *testing.T) {
	m := newMemBucket()
	store := openMem(m)
	s, _ := startBackend(t, store)
	key := store.artifactKey("s", "b")
	for _, c := range []struct {
		name   string
		header []string // OLD is the tag of the old build
		fault  error
		status int
		want   string // Content-Range
	}{
		{"all instead of a part", []string{"Range", "bytes=0-99", "If-Range", "OLD"}, nil, 200, ""},
		{"not modified", []string{"Range", "bytes=0-99", "If-None-Match", `"rival"`}, nil, 304, ""},
		{"not the one", []string{"Range", "bytes=0-99", "If-Match", "OLD"}, nil, 412, ""},
		{"no such range", []string{"Range", "bytes=-10", "If-Match", "*"}, errRange, 206, "bytes 1990-1999/2000"},
	} {
		old := mustStoreIf(t, store, "s", "b", body(3000, 1), Precondition{})
		for i := range c.header {
			c.header[i] = strings.ReplaceAll(c.header[i], "OLD", old.ETag)
		}
		replaced := false
		m.mu.Lock()
		m.fault = func(op, k string) (bool, error) {
			if op != "get" || k != key || replaced {
				return false, nil
			}
			replaced = true
			m.objects[key] = memObject{objectInfo{key: key, etag: `"rival"`, size: 2000}, body(2000, 2)}
			return false, c.fault
		}
		m.mu.Unlock()
		r := s.get(t, c.status, "/sites/s/artifacts/b", c.header...)
		if got := r.header.Get("Content-Range"); got != c.want {
			t.Errorf("%s: Content-Range: %s", c.name, got)
		}
		if got := r.header.Get("ETag"); got == old.ETag || c.status < 400 && got != `"rival"` || c.status >= 400 && got != "" {
			t.Errorf("%s: ETag: %s", c.name, got)
		}
	}
}

// closesBadly is a store that notices only after the call that a range is behind the
// end, and whose readers fail to close.
type closesBadly struct{ *memBucket }

func (b closesBadly) get(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	r, info, err := b.memBucket.get(ctx, key, etag, offset, length)
	return struct {
		io.Reader
		io.Closer
	}{r, closeFunc(func() error { return errors.New("by the test") })}, info, err
}

type closeFunc func() error

func (f closeFunc) Close() error { return f() }

// An answer stays what it is if the reader that it does not need fails to close.
func TestRangeBehindTheEndStays416(t *testing.T) {
	store := newObjectStore(closesBadly{newMemBucket()}, "", quiet())
	s, _ := startBackend(t, assumeCapable(store))
	s.put(t, 201, "/sites/s/artifacts/b", body(100, 1))
	if r := s.get(t, 416, "/sites/s/artifacts/b", "Range", "bytes=100-"); r.header.Get("Content-Range") != "bytes */100" {
		t.Errorf("the answer has %v", r.header)
	}
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
			r = &received{}
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
	eventually(t, "it is counted", func() bool { return svc.api.metrics.cut.Get() == 1 })
	eventually(t, "the access log says why", func() bool { return strings.Contains(s.log.String(), `"cut":"the store`) })
}

// source is a store whose builds are what it opens.
type source struct {
	Backend
	open func() io.ReadCloser
}

func (b source) FetchArtifact(string, string) (io.ReadCloser, error) { return b.open(), nil }

// withInfo is a reader with a length that may not be that of what it yields.
type withInfo struct {
	io.ReadCloser
	size int64
}

func (a withInfo) Info() ArtifactInfo {
	return ArtifactInfo{Size: a.size, ETag: `"1"`, ModTime: testTime}
}

// failsOnce yields its bytes, one error with the last of them, and after that io.EOF.
type failsOnce struct {
	io.Reader
	err error
}

func (f *failsOnce) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err == io.EOF {
		err = cmp.Or(f.err, io.EOF)
		f.err = nil
	}
	return n, err
}

func (f *failsOnce) Close() error { return nil }

// yields opens n bytes that end with err.
func yields(n int, err error) func() io.ReadCloser {
	return func() io.ReadCloser { return &failsOnce{iotest.DataErrReader(bytes.NewReader(body(n, 1))), err} }
}

// ofSize is what open opens, announced as size bytes.
func ofSize(size int64, open func() io.ReadCloser) func() io.ReadCloser {
	return func() io.ReadCloser { return withInfo{open(), size} }
}

// unreadable is an open file of that size of which no byte can be read: the memory
// of this process at address 0 (proc_pid_mem(5)), which fails with EIO.
func unreadable(t *testing.T, size int64) func() io.ReadCloser {
	return func() io.ReadCloser {
		f, err := os.Open("/proc/self/mem")
		if err != nil {
			t.Fatal(err)
		}
		return &artifactFile{f, withInfo{size: size}.Info()}
	}
}

// cutOnce asks for path on a connection of its own, calls begun when the header of
// the answer is there, and returns the bytes of the body that came before it was cut.
func cutOnce(t *testing.T, s *testServer, path string, begun func()) int64 {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	r, err := c.Get("http://" + s.addr + path)
	if err != nil { // it was cut before the header left
		return 0
	}
	defer r.Body.Close()
	if begun != nil {
		begun()
	}
	n, err := io.Copy(io.Discard, r.Body)
	if r.StatusCode != 200 || err == nil {
		t.Errorf("answered %d, and the body ends after %d bytes with %v; want it cut", r.StatusCode, n, err)
	}
	return n
}

// lineOfGet is the line of the access log for the first GET of path.
func lineOfGet(t *testing.T, s *testServer, path string) (line struct {
	Bytes_Out int64
	Cut       string
}) {
	t.Helper()
	eventually(t, "the request is logged", func() bool {
		for text := range strings.Lines(s.log.String()) {
			if strings.Contains(text, `"method":"GET","path":"`+path+`"`) {
				return json.Unmarshal([]byte(text), &line) == nil
			}
		}
		return false
	})
	return line
}

// A download whose source ends early, or fails, is cut, and the operator sees it.
func TestDownloadWhoseSourceFails(t *testing.T) {
	const path = "/sites/s/artifacts/b"
	eio, gone := errors.New("input/output error"), fmt.Errorf("%w: by the test", ErrUnavailable)
	for _, c := range []struct {
		name        string
		open        func() io.ReadCloser
		kind, cause string
		sent        int64 // bytes of the body that the client gets, at least
	}{
		{"a file that cannot be read", unreadable(t, 1<<20), "internal", "/proc/self/mem", 0},
		{"a stream that fails", ofSize(1<<20, yields(300_000, gone)), "unavailable", "by the test", 280_000},
		{"a stream that fails with its last bytes", ofSize(300_000, yields(300_000, gone)), "unavailable", "by the test", 200_000},
		{"a stream that fails at once", ofSize(1<<20, yields(0, gone)), "unavailable", "by the test", 0},
		{"a stream that ends early", ofSize(1<<20, yields(300_000, nil)), "internal", "748576 bytes early", 280_000},
		{"a stream of unknown length that fails", yields(300_000, gone), "unavailable", "by the test", 280_000},
		{"a stream of unknown length that fails at once", yields(0, eio), "internal", "input/output", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, svc := startBackend(t, source{openTestNFS(t, t.TempDir()), c.open})
			s.do(t, 200, request{"HEAD", path, nil, nil})
			if n := svc.api.metrics.cut.Get() + svc.api.metrics.failures(callFetch, c.kind).Get(); n != 0 {
				t.Errorf("HEAD counts %d", n)
			}
			wantCut(t, s, svc, path, c.kind, c.cause, cutOnce(t, s, path, nil), c.sent)
		})
	}
}

// wantCut checks what is known of a download that its source cut: the client has got
// n bytes, and at least so many were to come.
func wantCut(t *testing.T, s *testServer, svc *service, path, kind, cause string, n, least int64) {
	t.Helper()
	line := lineOfGet(t, s, path)
	framing := n / 100 // of chunks
	if n < least || line.Bytes_Out < n || line.Bytes_Out > n+framing {
		t.Errorf("the client got %d bytes, at least %d should come, logged are %d", n, least, line.Bytes_Out)
	}
	if line.Cut != "the store failed" {
		t.Errorf("the access log says of the cause %q", line.Cut)
	}
	warned := false
	for text := range strings.Lines(s.log.String()) {
		warned = warned || strings.Contains(text, `"level":"WARN"`) && strings.Contains(text, `"msg":"a download was aborted by a store error"`) &&
			strings.Contains(text, `"site":"s","build":"b","request_id":"`) && strings.Contains(text, cause)
	}
	if !warned {
		t.Errorf("no warning names %q:\n%s", cause, s.log)
	}
	if got := svc.api.metrics.cut.Get(); got != 1 {
		t.Errorf("%d cut answers are counted", got)
	}
	if got := svc.api.metrics.failures(callFetch, kind).Get(); got != 1 {
		t.Errorf("%d errors of the kind %s are counted", got, kind)
	}
	nothingIsHeld(t, svc)
}

// A file that becomes shorter while it is sent cuts the download. What is logged as
// sent is what the client got.
func TestFileThatIsShortenedWhileItIsSent(t *testing.T) {
	const path, size, left = "/sites/s/artifacts/b", 128 << 20, 96 << 20 // more than sockets hold
	n := openTestNFS(t, t.TempDir())
	s, svc := startBackend(t, n)
	s.put(t, 201, path, randomBytes(100<<10))
	file := n.filePath("s", artifactsDir, "b")
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	got := cutOnce(t, s, path, func() {
		if err := os.Truncate(file, left); err != nil {
			t.Error(err)
		}
	})
	if got != left || lineOfGet(t, s, path).Bytes_Out != got {
		t.Errorf("the client got %d bytes of the %d that are left", got, left)
	}
	wantCut(t, s, svc, path, "internal", file, got, left)
}

// A small part of a file is read before it is answered: its error has a status, and
// no header that describes a part of the build.
func TestSmallPartThatCannotBeRead(t *testing.T) {
	s, svc := startBackend(t, source{openTestNFS(t, t.TempDir()), unreadable(t, 1<<20)})
	failed := s.get(t, 500, "/sites/s/artifacts/b", "Range", "bytes=100-299")
	for _, name := range []string{"ETag", "Last-Modified", "Accept-Ranges", "Content-Range", "Content-Disposition"} {
		if v := failed.header.Get(name); v != "" {
			t.Errorf("the error has %s: %s", name, v)
		}
	}
	if n := svc.api.metrics.failures(callFetch, "internal").Get(); n != 1 {
		t.Errorf("%d errors are counted", n)
	}
	large := openTestNFS(t, t.TempDir())
	s, _ = startBackend(t, large)
	data := randomBytes(100 << 10)
	s.put(t, 201, "/sites/s/artifacts/b", data)
	for _, c := range []struct{ from, to int }{{0, 0}, {100, 299}, {5000, 5000 + smallSize - 1}, {5000, 5000 + smallSize}, {99 << 10, 100<<10 - 1}} {
		r := s.get(t, 206, "/sites/s/artifacts/b", "Range", fmt.Sprintf("bytes=%d-%d", c.from, c.to))
		if !bytes.Equal(r.body, data[c.from:c.to+1]) {
			t.Errorf("%d to %d: other bytes came", c.from, c.to)
		}
	}
}

// A client that leaves, or reads nothing, is no error of the store.
func TestClientThatCutsADownload(t *testing.T) {
	const path, size = "/sites/s/artifacts/b", 128 << 20
	large := func(t *testing.T) Backend {
		n := openTestNFS(t, t.TempDir())
		mustStore(t, n, "s", "b", randomBytes(100<<10))
		if err := os.Truncate(n.filePath("s", artifactsDir, "b"), size); err != nil {
			t.Fatal(err)
		}
		return n
	}
	endless := func(t *testing.T) Backend {
		return source{openTestNFS(t, t.TempDir()), ofSize(size, func() io.ReadCloser { return io.NopCloser(zeros{}) })}
	}
	for _, c := range []struct {
		name  string
		store func(t *testing.T) Backend
		end   func(c *net.TCPConn)
	}{
		{"it closes, of a file", large, func(c *net.TCPConn) { c.Close() }},
		{"it resets, of a file", large, func(c *net.TCPConn) { c.SetLinger(0); c.Close() }},
		{"it stalls, of a file", large, nil},
		{"it closes, of a stream", endless, func(c *net.TCPConn) { c.Close() }},
		{"it resets, of a stream", endless, func(c *net.TCPConn) { c.SetLinger(0); c.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, svc := startBackend(t, c.store(t), "STALL_TIMEOUT=1s")
			client, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			fmt.Fprintf(client, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
			if _, err := io.ReadFull(client, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			if c.end != nil {
				c.end(client.(*net.TCPConn))
			}
			line := lineOfGet(t, s, path)
			if line.Cut == "" || line.Bytes_Out >= size {
				t.Errorf("logged is %+v", line)
			}
			if strings.Contains(s.log.String(), "WARN") {
				t.Errorf("a warning:\n%s", s.log)
			}
			if cut, failed := svc.api.metrics.cut.Get(), svc.api.metrics.failures(callFetch, "internal").Get(); cut != 1 || failed != 0 {
				t.Errorf("%d cut answers and %d errors of the store are counted", cut, failed)
			}
		})
	}
}

// zeros has no end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// The error of a file that is sent is classified as that of one that is opened.
func TestReadError(t *testing.T) {
	for _, c := range []struct {
		errno unix.Errno
		kind  string
	}{{unix.ESTALE, "unavailable"}, {unix.ETIMEDOUT, "unavailable"}, {unix.EACCES, "denied"}, {unix.EIO, "internal"}} {
		err := readError("/a/file", &net.OpError{Op: "readfrom", Err: os.NewSyscallError("sendfile", c.errno)})
		if errorKind(err) != c.kind || !strings.HasSuffix(err.Error(), `cannot read "/a/file": `+c.errno.Error()) {
			t.Errorf("%v: %v is %s", c.errno, err, errorKind(err))
		}
	}
}
