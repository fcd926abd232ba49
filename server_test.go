package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// testServer is the real program, run in this process on a free port.
type testServer struct {
	addr string
	dir  string // the store, for the nfs backend
	log  *lockedBuffer
	stop func() error // SIGTERM; returns what run returned

	https *http.Client // nil: the service speaks no TLS

	// What the store does otherwise than a file system.
	seconds    bool // it tells times in whole seconds
	noDeleteIf bool // it cannot delete on a condition
}

// tick waits until what is stored next is newer than what is there.
func (s *testServer) tick() {
	for then := time.Now().Unix(); s.seconds && time.Now().Unix() == then; {
		time.Sleep(10 * time.Millisecond)
	}
	if s.seconds {
		time.Sleep(50 * time.Millisecond) // the clock that dates files is some milliseconds behind this one
	}
}

// lockedBuffer collects the log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newLog returns a logger that writes each line to w before it returns.
func newLog(cfg *Config, w io.Writer) *slog.Logger {
	return slog.New(&logHandler{lineHandler(cfg, w), lineHandler(cfg, w), &accessLog{w, cfg}, nil})
}

// startServer runs the program with vars (NAME=value, without the prefix) over
// those of a store in a new directory, until the test ends.
func startServer(t testing.TB, vars ...string) *testServer {
	t.Helper()
	s := &testServer{dir: t.TempDir(), log: &lockedBuffer{}}
	env := map[string]string{"PORT": "0", "LISTEN": "127.0.0.1", "NFS_BASE_PATH": s.dir, "LOG_LEVEL": "debug"}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	s.dir = env["NFS_BASE_PATH"]
	environ := []string{}
	for name := range maps.Keys(env) {
		environ = append(environ, envPrefix+name+"="+env[name])
	}
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, nil, environ, io.Discard, w)
		w.CloseWithError(fmt.Errorf("run: %w", err))
		done <- err
	}()
	addr, read := make(chan string, 1), make(chan struct{})
	go func() { defer close(read); s.readLog(r, addr) }()
	select {
	case s.addr = <-addr:
	case err := <-done:
		cancel()
		t.Fatalf("the service did not start: %v\n%s", err, s.log)
	case <-time.After(30 * time.Second):
		t.Fatal("the service did not start in time")
	}
	s.stop = sync.OnceValue(func() error { cancel(); <-read; return <-done })
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("the service ended with %v", err)
		}
		if t.Failed() {
			out := s.log.String()
			t.Logf("log of the service:\n%s", out[max(0, len(out)-4000):])
		}
	})
	return s
}

// waitForLog waits until the log has a text: its lines are written later than the
// answers are.
func (s *testServer) waitForLog(t testing.TB, text string) {
	t.Helper()
	eventually(t, "the log says "+text, func() bool { return strings.Contains(s.log.String(), text) })
}

func (s *testServer) readLog(r io.Reader, addr chan<- string) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		s.log.Write(append(lines.Bytes(), '\n'))
		var line struct{ Msg, Address string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
			addr <- line.Address
		}
	}
	_, _ = io.Copy(s.log, r)
}

// request is one request and what must come of it.
type request struct {
	method, path string
	body         any // string, []byte or io.Reader; nil: none
	header       http.Header
}

// header is an http.Header of name, value, name, value ...
func header(kv ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

// received is a response whose body was read whole.
type received struct {
	status int
	header http.Header
	body   []byte
	length int64 // Content-Length; -1: none
}

// try sends r and returns the answer, or why there is none.
func (s *testServer) try(r request) (*received, error) {
	var body io.Reader
	switch b := r.body.(type) {
	case string:
		body = strings.NewReader(b)
	case []byte:
		body = bytes.NewReader(b)
	case io.Reader:
		body = b
	}
	client, scheme := testClient, "http://"
	if s.https != nil {
		client, scheme = s.https, "https://"
	}
	req, err := http.NewRequest(r.method, scheme+s.addr+r.path, body)
	if err != nil {
		return nil, err
	}
	if b, ok := r.body.(Sized); ok {
		req.ContentLength = b.Size()
	}
	maps.Copy(req.Header, r.header)
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	return &received{resp.StatusCode, resp.Header, b, resp.ContentLength}, nil
}

// testClient follows no redirects and decodes nothing. Its timeout is for answers
// that never come, or never end: the test that asked fails, and not all of them.
var testClient = &http.Client{
	Timeout:       2 * time.Minute,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 128},
}

// do sends r and fails the test unless the answer has the status.
func (s *testServer) do(t testing.TB, status int, r request) *received {
	t.Helper()
	resp, err := s.try(r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.method, r.path, err)
	}
	if resp.status != status {
		t.Fatalf("%s %s: status %d, want %d: %.300s", r.method, r.path, resp.status, status, resp.body)
	}
	return resp
}

// within is do for an answer that must come in time.
func (s *testServer) within(t testing.TB, limit time.Duration, status int, r request) *received {
	t.Helper()
	type answer struct {
		resp *received
		err  error
	}
	came := make(chan answer, 1)
	go func() {
		resp, err := s.try(r)
		came <- answer{resp, err}
	}()
	select {
	case a := <-came:
		if a.err != nil || a.resp.status != status {
			t.Fatalf("%s %s: %v, want %d", r.method, r.path, statusOr(a.resp, a.err), status)
		}
		return a.resp
	case <-time.After(limit):
		t.Fatalf("%s %s: no answer in %v", r.method, r.path, limit)
		return nil
	}
}

func (s *testServer) get(t testing.TB, status int, path string, h ...string) *received {
	t.Helper()
	return s.do(t, status, request{"GET", path, nil, header(h...)})
}

func (s *testServer) put(t testing.TB, status int, path string, body any, h ...string) *received {
	t.Helper()
	return s.do(t, status, request{"PUT", path, body, header(h...)})
}

func (s *testServer) post(t testing.TB, status int, path string, body any, h ...string) *received {
	t.Helper()
	return s.do(t, status, request{"POST", path, body, header(h...)})
}

// ready waits until the service says that it is: a probe that a busy disk holds
// up for too long says otherwise.
func (s *testServer) ready(t testing.TB) {
	t.Helper()
	eventually(t, "/ready is 200", func() bool { return statusOr(s.try(request{"GET", "/ready", nil, nil})) == 200 })
}

// into reads the body as JSON.
func (r *received) into(t testing.TB, v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(r.body))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		t.Fatalf("the answer is not JSON: %v: %.300s", err, r.body)
	}
}

// eventually fails the test unless ok becomes true in time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// freeAddr is an address on the loopback that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
