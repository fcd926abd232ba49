package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// sizedStore is a directory of total bytes.
type sizedStore struct {
	*nfs
	total  int64
	blocks bool // count what is allocated, as statfs(2) does, not what is written
}

func (s *sizedStore) Space() (Space, error) {
	for {
		if space, err := s.count(); !errors.Is(err, fs.ErrNotExist) { // else a file was renamed meanwhile
			return space, err
		}
	}
}

func (s *sizedStore) count() (Space, error) {
	left := s.total
	err := filepath.WalkDir(s.base, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		switch {
		case err != nil:
		case s.blocks:
			left -= info.Sys().(*syscall.Stat_t).Blocks * 512
		default:
			left -= info.Size()
		}
		return err
	})
	return Space{FreeBytes: uint64(max(left, 0)), TotalBytes: uint64(s.total)}, err
}

func startSized(t *testing.T, total int64, vars ...string) *testServer {
	t.Helper()
	return startOn(t, &sizedStore{total: total}, vars...)
}

// startOn serves store over a new directory.
func startOn(t *testing.T, store *sizedStore, vars ...string) *testServer {
	t.Helper()
	var err error
	if store.nfs, err = openNFS(t.TempDir(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	s, _ := startBackend(t, store, vars...)
	s.dir = store.base
	return s
}

func TestTheReserveIsKeptToTheByte(t *testing.T) {
	s := startSized(t, 1_000_000, "MIN_FREE_SPACE=300000")
	r := s.put(t, 507, "/sites/a/artifacts/b", randomBytes(700_001))
	if r.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	s.put(t, 507, "/sites/a/artifacts/b", unsized(randomBytes(700_001)))
	s.get(t, 404, "/sites/a/artifacts/b")
	s.put(t, 201, "/sites/a/artifacts/b", randomBytes(700_000))

	// Full: nothing more is stored, and all else goes on.
	s.put(t, 507, "/sites/a/artifacts/c", "x")
	s.put(t, 507, "/sites/a/artifacts/c", unsized([]byte("x")))
	if r := s.get(t, 200, "/sites/a/artifacts/b"); len(r.body) != 700_000 {
		t.Errorf("read %d bytes", len(r.body))
	}
	s.post(t, 201, "/sites/a/logs", `{"build_id":"b","action":"deploy","status":"ok"}`)
	s.get(t, 200, "/sites/a/versions")
	s.ready(t)
	s.do(t, 204, request{"DELETE", "/sites/a/artifacts/b", nil, nil})
	s.put(t, 201, "/sites/a/artifacts/c", "x")
}

// stored waits until an upload of body has its space: what has arrived of
// another counts twice until that one has been told.
func stored(t *testing.T, s *testServer, body []byte) {
	t.Helper()
	eventually(t, "the space is there", func() bool {
		return statusOr(s.try(request{"PUT", "/sites/a/artifacts/b", body, nil})) == 201
	})
}

func TestUploadsUnderWayHaveTheirSpace(t *testing.T) {
	s := startSized(t, 1_000_000, "MIN_FREE_SPACE=100000", "STALL_TIMEOUT=1h")
	r, w := io.Pipe()
	done := make(chan any, 1)
	go func() { done <- statusOr(s.try(request{"PUT", "/sites/a/artifacts/slow", sized{r, 600_000}, nil})) }()
	_, _ = w.Write(randomBytes(1000))
	waitForTemp(t, s)
	s.put(t, 507, "/sites/a/artifacts/b", randomBytes(300_001)) // 599,000 bytes are promised
	stored(t, s, randomBytes(300_000))
	s.put(t, 507, "/sites/a/artifacts/c", "x")
	_, _ = w.Write(randomBytes(599_000))
	w.Close()
	if got := <-done; got != 201 {
		t.Errorf("the upload under way: %v", got)
	}
	s.put(t, 507, "/sites/a/artifacts/c", "x")
}

// admitted reports whether an upload of size bytes would be let in now.
func admitted(t *testing.T, s *testServer, size int64) bool {
	t.Helper()
	c := dialHere(t, s)
	defer c.Close()
	fmt.Fprintf(c, "PUT /sites/a/artifacts/asked HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", size)
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, " 100 ") && !strings.Contains(line, " 507 ") {
		t.Fatalf("answered %q, %v", line, err)
	}
	return strings.Contains(line, " 100 ")
}

// What is allocated ahead of the bytes is not missing twice.
func TestUploadsUnderWayHaveTheirSpaceOnce(t *testing.T) {
	s := startOn(t, &sizedStore{total: 10 << 20, blocks: true}, "MIN_FREE_SPACE=1MiB", "STALL_TIMEOUT=1h", "MIN_UPLOAD_RATE=0")
	r, w := io.Pipe()
	done := make(chan any, 1)
	go func() { done <- statusOr(s.try(request{"PUT", "/sites/a/artifacts/slow", sized{r, 5 << 19}, nil})) }()
	defer w.Close()
	// The byte that fasthttp reads, two whole moves, and what the client may buffer; with
	// less to come than sets the low-water mark. Else a move waits for the stall timeout.
	const begun = 1 + 2*moveSize + 64<<10
	_, _ = w.Write(randomBytes(begun))
	// 2 MiB are there, the rest is kept ahead of them, and 1 MiB is kept free.
	// What the third move has written counts twice until it ends.
	const room, twice = 13 << 19, 128 << 10
	eventually(t, "the window has grown", func() bool { return !admitted(t, s, room+1) })
	eventually(t, "all else is free", func() bool { return admitted(t, s, room-twice) })
	stored(t, s, randomBytes(room-twice))
	s.put(t, 507, "/sites/a/artifacts/c", randomBytes(twice+1))
	_, _ = w.Write(randomBytes(5<<19 - begun))
	w.Close()
	if got := <-done; got != 201 {
		t.Errorf("the upload under way: %v", got)
	}
	s.put(t, 507, "/sites/a/artifacts/c", randomBytes(twice+1))
}

// An upload that announces nearly all there is, and sends a byte, leaves the
// space to others. When it comes after all it does not fit, and nothing stays.
func TestAnnouncingTakesNoSpace(t *testing.T) {
	const announced = 18 << 20
	s := startOn(t, &sizedStore{total: 20 << 20, blocks: true}, "MIN_FREE_SPACE=1MiB")
	r, w := io.Pipe()
	done := make(chan any, 1)
	go func() {
		done <- statusOr(s.try(request{"PUT", "/sites/a/artifacts/slow", sized{r, announced}, nil}))
		r.Close()
	}()
	_, _ = w.Write([]byte("x"))
	waitForTemp(t, s)
	s.put(t, 201, "/sites/a/artifacts/b", randomBytes(14<<20))
	s.put(t, 507, "/sites/a/artifacts/c", randomBytes(announced)) // but who announces what is not there is refused
	_, _ = w.Write(randomBytes(announced - 1))
	w.Close()
	if got := <-done; got != 507 {
		t.Errorf("an upload that does not fit: %v", got)
	}
	if files := filesBelow(t, s.dir); len(files) != 1 {
		t.Errorf("the store holds %q", files)
	}
	s.put(t, 201, "/sites/a/artifacts/c", randomBytes(4<<20)) // its space is free again
}

func TestAnUploadThatFailedGivesItsSpaceBack(t *testing.T) {
	s := startSized(t, 1_000_000, "MIN_FREE_SPACE=1")
	r, w := io.Pipe()
	done := make(chan any, 1)
	go func() { done <- statusOr(s.try(request{"PUT", "/sites/a/artifacts/gone", sized{r, 900_000}, nil})) }()
	_, _ = w.Write(randomBytes(1000))
	waitForTemp(t, s)
	s.put(t, 507, "/sites/a/artifacts/b", randomBytes(200_000))
	w.CloseWithError(io.ErrUnexpectedEOF)
	<-done
	eventually(t, "the space is free again", func() bool {
		got := statusOr(s.try(request{"PUT", "/sites/a/artifacts/b", randomBytes(200_000), nil}))
		return got == 201
	})
}

func TestExpectIsRefusedBeforeTheBodyIfThereIsNoSpace(t *testing.T) {
	s := startSized(t, 1_000_000, "MIN_FREE_SPACE=500000")
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: x\r\nContent-Length: 500001\r\nExpect: 100-continue\r\n\r\n")
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, "507") {
		t.Errorf("answered %q, %v", line, err)
	}
}

func TestConnectionsOfOneAddress(t *testing.T) {
	s := startServer(t, "MAX_CONNS_PER_IP=3")
	held := []net.Conn{}
	for range 3 {
		c := dialHere(t, s)
		held = append(held, c)
		fmt.Fprintf(c, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
		if line, _ := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, "200") {
			t.Fatalf("answered %q", line)
		}
	}
	for range 5 {
		c := dialHere(t, s)
		fmt.Fprintf(c, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n%s", strings.Repeat("x", 100_000))
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		if r.StatusCode != 429 || r.Header.Get("Retry-After") == "" || r.Header.Get("Date") == "" || r.Header.Get("X-Request-Id") == "" || r.Header.Get("Cache-Control") != "no-store" || err != nil || !strings.Contains(string(body), `"status":"error"`) {
			t.Errorf("answered %d %v %q %v", r.StatusCode, r.Header, body, err)
		}
	}
	held[0].Close()
	eventually(t, "the place of a closed connection is free", func() bool {
		c := dialHere(t, s)
		fmt.Fprintf(c, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		all, _ := io.ReadAll(c)
		c.Close()
		return strings.Contains(string(all), "pagewright_http_connections_refused_total") &&
			strings.Contains(string(all), "pagewright_http_connections 3\n") &&
			strings.Contains(string(all), "pagewright_http_connections_limit ")
	})
}

func dialHere(t *testing.T, s *testServer) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

func TestReadyFailsBeforeTheDrain(t *testing.T) {
	t.Parallel()
	s := startServer(t, "SHUTDOWN_DELAY=6s")
	s.put(t, 201, "/sites/a/artifacts/a", "early")
	s.ready(t)
	stopped := make(chan error, 1)
	begin := time.Now()
	go func() { stopped <- s.stop() }()
	eventually(t, "/ready fails", func() bool { return statusOr(s.try(request{"GET", "/ready", nil, nil})) == 503 })
	// All else is served as before: new connections, uploads, reads.
	s.put(t, 201, "/sites/a/artifacts/b", "late")
	s.get(t, 200, "/sites/a/artifacts/b")
	s.get(t, 200, "/health")
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	s.waitForLog(t, `"msg":"requests refused","reason":"shutdown","status":503`)
	if took := time.Since(begin); took < 6*time.Second {
		t.Errorf("it stopped after %v", took)
	}
}

func TestSampleOfTheAccessLog(t *testing.T) {
	s := startServer(t, "ACCESS_LOG_SAMPLE=5")
	for range 20 {
		s.get(t, 200, "/openapi.yaml")
	}
	_ = s.stop()
	if n := strings.Count(s.log.String(), `"path":"/openapi.yaml"`); n != 4 {
		t.Errorf("%d of 20 requests were logged", n)
	}
	s = startServer(t, "ACCESS_LOG=false")
	s.get(t, 200, "/openapi.yaml")
	_ = s.stop()
	if strings.Contains(s.log.String(), "/openapi.yaml") {
		t.Error("a request was logged")
	}
}

func TestProfilerHasAnAddressOfItsOwn(t *testing.T) {
	address := freeAddr(t)
	s := startServer(t, "PPROF_LISTEN="+address)
	s.get(t, 404, "/debug/pprof/")
	r, err := http.Get("http://" + address + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, _ := io.ReadAll(r.Body)
	if r.StatusCode != 200 || !strings.Contains(string(body), "goroutine profile") {
		t.Errorf("answered %d: %.200s", r.StatusCode, body)
	}
}

func TestReserveOfManyUploads(t *testing.T) {
	s := startSized(t, 10_000_000, "MIN_FREE_SPACE=2000000")
	var wg sync.WaitGroup
	var mu sync.Mutex
	statuses := map[any]int{}
	for i := range 40 {
		wg.Go(func() {
			got := statusOr(s.try(request{"PUT", fmt.Sprintf("/sites/a/artifacts/b%d", i), randomBytes(500_000), nil}))
			mu.Lock()
			defer mu.Unlock()
			statuses[got]++
		})
	}
	wg.Wait()
	// 16 fit. While one is received it can count twice, so it may be fewer, until
	// all are in.
	if statuses[201]+statuses[507] != 40 || statuses[201] > 16 {
		t.Errorf("answers: %v", statuses)
	}
	for i := statuses[201]; i < 16; i++ {
		s.put(t, 201, fmt.Sprintf("/sites/a/artifacts/c%d", i), randomBytes(500_000))
	}
	s.put(t, 507, "/sites/a/artifacts/d", "x")
}

// sizeless is a directory that does not know how large it is.
type sizeless struct{ *nfs }

func (sizeless) Space() (Space, error) { return Space{}, nil }

// TestAStoreOfUnknownSizeIsNotFull: zeros mean that the store does not know.
func TestAStoreOfUnknownSizeIsNotFull(t *testing.T) {
	s, svc := startBackend(t, sizeless{openTestNFS(t, t.TempDir())})
	if svc.freeSpace == nil {
		t.Fatal("no space is kept free")
	}
	for i, b := range []any{"x", unsized([]byte("x")), randomBytes(3 << 20), unsized(randomBytes(3 << 20))} {
		s.put(t, 201, fmt.Sprint("/sites/a/artifacts/b", i), b)
	}
	raw := "PUT /sites/a/artifacts/c HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
	if got := exchangeRaw(t, s.addr, raw); got != "100 201" {
		t.Errorf("Expect: answered %q", got)
	}
	// A client that announces a lot takes nothing from the others.
	for range 3 {
		c, err := svc.freeSpace.admit(math.MaxInt64)
		if err != nil {
			t.Fatal(err)
		}
		defer c.release()
	}
	s.put(t, 201, "/sites/a/artifacts/d", "x")
}

// TestTheReserveOfHugeNumbers: a sum that is larger than an int64 is no room.
func TestTheReserveOfHugeNumbers(t *testing.T) {
	const large = 1 << 50
	free := uint64(100 << 30)
	f := func(min int64, total uint64) *freeSpace {
		space := &cachedProbe[Space]{}
		r := &freeSpace{min: min, space: space}
		space.probe = r.watch(func() (Space, error) { return Space{FreeBytes: free, TotalBytes: total}, nil })
		return r
	}
	refused := func(r *freeSpace, sizes ...int64) {
		t.Helper()
		for _, size := range sizes {
			before := r.reserved
			if c, err := r.admit(size); !errors.Is(err, ErrNoSpace) {
				t.Errorf("%d bytes: %v; reserved are %d", size, err, r.reserved)
				c.release()
			} else if r.reserved != before {
				t.Errorf("%d bytes that were refused reserve %d", size, r.reserved-before)
			}
		}
	}
	r := f(32<<20, large)
	one, err := r.admit(90 << 30)
	if err != nil {
		t.Fatal(err)
	}
	refused(r, 100<<30, math.MaxInt64, math.MaxInt64-1, math.MaxInt64-1<<20, 1<<62)
	free = 32 << 20 // another replica filled it
	r.at = time.Time{}
	refused(r, 0, 1, 60<<30, 1<<62, math.MaxInt64-1<<20, math.MaxInt64)
	one.release()
	if _, err := r.admit(0); err != nil {
		t.Error(err)
	}
	refused(r, 1)

	free = 0 // full, and not unknown
	refused(f(1, large), 0, 1, math.MaxInt64)

	free = math.MaxUint64
	r = f(math.MaxInt64, math.MaxUint64)
	refused(r, 1, math.MaxInt64)
	r = f(1, math.MaxUint64)
	for range 4 {
		if _, err := r.admit(1 << 58); err != nil {
			t.Error(err)
		}
	}
	refused(r, 1<<60, math.MaxInt64)
}

func TestALengthPastAllSpaceIsRefused(t *testing.T) {
	s := startSized(t, 1_000_000, "MIN_FREE_SPACE=1")
	const put = "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: 9223372036854775807\r\n"
	for _, raw := range []string{put + "\r\nx", put + "Expect: 100-continue\r\n\r\n"} {
		if got := exchangeRaw(t, s.addr, raw); got != "507" {
			t.Errorf("%q: answered %q", raw, got)
		}
	}
	s.put(t, 201, "/sites/a/artifacts/b", "x")
}
