package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// waitForClosed waits until the service takes no new connections.
func waitForClosed(t *testing.T, s *testServer) {
	t.Helper()
	eventually(t, "no new connections", func() bool {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
}

func TestShutdownLetsRequestsFinish(t *testing.T) {
	s := startServer(t)
	r, w := io.Pipe()
	answered := make(chan any, 1)
	go func() { answered <- statusOr(s.try(request{"PUT", "/sites/a/artifacts/b", r, nil})) }()
	_, _ = w.Write([]byte("be"))
	waitForTemp(t, s)
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	waitForClosed(t, s)
	_, _ = w.Write([]byte("gun"))
	w.Close()
	if got := <-answered; got != 201 {
		t.Errorf("the upload in flight: %v", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if got := strings.Join(filesBelow(t, s.dir), " "); got != "sites/a/artifacts/b.tar.gz" {
		t.Errorf("the store holds %s", got)
	}
}

func TestShutdownCutsWhatOutlivesTheGrace(t *testing.T) {
	s := startServer(t, "SHUTDOWN_GRACE=200ms")
	r, w := io.Pipe()
	defer w.Close()
	answered := make(chan error, 1)
	go func() {
		resp, err := s.try(request{"PUT", "/sites/a/artifacts/b", r, nil})
		if err == nil && resp.status == 201 {
			err = errors.New("stored")
		}
		answered <- err
	}()
	_, _ = w.Write([]byte("begin"))
	waitForTemp(t, s)
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	w.Close()
	if err := <-answered; err != nil && err.Error() == "stored" {
		t.Error("an upload that was cut was acknowledged")
	}
	if files := filesBelow(t, s.dir); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}

// TestShutdownLetsRefusalsBeRead: a client that was refused while it sends is
// not cut by a shutdown before it could read why.
func TestShutdownLetsRefusalsBeRead(t *testing.T) {
	s := startServer(t)
	c := dial(t, s.addr)
	_, _ = io.WriteString(c, "PUT /sites/../artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: 30000000\r\n\r\nx")
	answer := bufio.NewReader(c)
	if _, err := answer.Peek(1); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	eventually(t, "no new connections", func() bool {
		_, _ = c.Write([]byte("x")) // a client that is silent for 2 s counts as gone
		n, err := net.Dial("tcp", s.addr)
		if err == nil {
			n.Close()
		}
		return err != nil
	})
	for range 200 {
		if _, err := c.Write(make([]byte, 50_000)); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.CloseWrite()
	if resp, err := http.ReadResponse(answer, nil); err != nil || resp.StatusCode != 400 {
		t.Errorf("%v, %v", resp, err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if strings.Contains(s.log.String(), "aborted requests") {
		t.Error("it was cut")
	}
}

func waitForTemp(t *testing.T, s *testServer) {
	t.Helper()
	eventually(t, "the upload has begun", func() bool {
		return strings.Contains(strings.Join(filesBelow(t, s.dir), " "), artifactsDir+"/"+tempPrefix)
	})
}

// fourMethods is a backend that has nothing but the four methods.
type fourMethods struct{ Backend }

// panicking panics when it lists.
type panicking struct{ Backend }

func (panicking) ListVersions(string) ([]*Version, error) { panic("a bug") }

// startBackend serves a backend of the test's own, with vars as startServer has them.
func startBackend(t testing.TB, b Backend, vars ...string) (*testServer, *service) {
	t.Helper()
	s := &testServer{log: &lockedBuffer{}}
	environ := []string{"PAGEWRIGHT_PORT=0", "PAGEWRIGHT_LISTEN=127.0.0.1"}
	for _, v := range vars {
		environ = append(environ, envPrefix+v)
	}
	cfg, _, err := parseConfig(environ)
	if err != nil {
		t.Fatal(err)
	}
	svc := newService(cfg, b, newLog(cfg, s.log))
	l, err := svc.listen()
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	serveUntilTheEnd(t, svc, l, func() {})
	return s, svc
}

// serveUntilTheEnd serves svc on l until the test ends, which calls before first.
func serveUntilTheEnd(t testing.TB, svc *service, l *listener, before func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.serve(ctx, l) }()
	t.Cleanup(func() {
		before()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestPanicIsAnAnswerAndALine(t *testing.T) {
	s, _ := startBackend(t, panicking{})
	r := s.get(t, 500, "/sites/a/versions")
	if got := strings.TrimSpace(string(r.body)); got != `{"status":"error","error":"internal error"}` {
		t.Errorf("answered %s", got)
	}
	for _, want := range []string{"a handler panicked", "a bug", "server_shutdown_test.go"} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("the log lacks %q", want)
		}
	}
	s.get(t, 200, "/health")
	s.get(t, 500, "/sites/a/versions") // the place among the calls was given back
}

// TestBackendOfFourMethods: a backend that has only the four methods works, and
// what needs more is answered 501.
func TestBackendOfFourMethods(t *testing.T) {
	n, err := openNFS(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s, _ := startBackend(t, fourMethods{n})
	const path = "/sites/a/artifacts/b"
	s.put(t, 201, path, "body")
	if r := s.get(t, 200, path); string(r.body) != "body" {
		t.Errorf("got %q", r.body)
	}
	s.post(t, 201, "/sites/a/logs", `{"build_id":"b","action":"a","status":"s"}`)
	s.post(t, 201, "/sites/a/logs", `{"build_id":"c","action":"a","status":"s"}`)
	if v := s.versions(t, "/sites/a/versions?limit=1"); v.Count != 1 || v.Next_Cursor == "" {
		t.Errorf("versions: %+v", v)
	}
	tag := s.get(t, 200, "/sites/a/versions").header.Get("ETag")
	s.get(t, 304, "/sites/a/versions", "If-None-Match", tag)
	s.ready(t)
	s.put(t, 501, path, "other", "If-None-Match", "*")
	s.do(t, 501, request{"DELETE", path, nil, nil})
}

// hanging is a store whose probe does not come back.
type hanging struct {
	Backend
	release chan struct{}
}

func (h hanging) Probe() (Readiness, error) { <-h.release; return Readiness{}, nil }

func (h hanging) FetchArtifact(string, string) (io.ReadCloser, error) {
	<-h.release
	return nil, ErrNotFound
}

// TestHungStore: /ready answers 503 in bounded time, and calls past the bound
// are refused instead of blocked.
func TestHungStore(t *testing.T) {
	const limit = 30 * time.Second // the service waits for 2 s
	h := hanging{release: make(chan struct{})}
	s, svc := startBackend(t, h)
	release := sync.OnceFunc(func() { close(h.release) })
	t.Cleanup(release) // or the service cannot stop
	for range 3 {
		s.within(t, limit, 503, request{"GET", "/ready", nil, nil})
	}
	done := make(chan any, maxReads)
	for range maxReads {
		go func() { done <- statusOr(s.try(request{"GET", "/sites/a/artifacts/b", nil, nil})) }()
	}
	eventually(t, "every place is taken", func() bool { return svc.reads.inUse() == maxReads })
	if r := s.within(t, limit, 503, request{"GET", "/sites/a/artifacts/b", nil, nil}); r.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if got := scrape(t, s)[`pagewright_http_requests_refused_total{reason="store_calls"}`]; got != 1 {
		t.Errorf("%v requests count as refused", got)
	}
	s.waitForLog(t, `"msg":"requests refused","reason":"store_calls","status":503`)
	s.get(t, 200, "/health")
	release()
	for range maxReads {
		if got := <-done; got != 404 {
			t.Fatalf("a call that hung ended with %v", got)
		}
	}
	eventually(t, "ready again", func() bool {
		r, err := s.try(request{"GET", "/ready", nil, nil})
		return err == nil && r.status == 200
	})
}

// startTuned serves a directory after tune has changed the service and its
// listener, for what no variable sets. The test must call stop.
func startTuned(t *testing.T, tune func(*service, *listener), vars ...string) (s *testServer, stop func() error) {
	t.Helper()
	s = &testServer{log: &lockedBuffer{}, dir: t.TempDir()}
	environ := []string{"PAGEWRIGHT_PORT=0", "PAGEWRIGHT_LISTEN=127.0.0.1"}
	for _, v := range vars {
		environ = append(environ, envPrefix+v)
	}
	cfg, _, err := parseConfig(environ)
	if err != nil {
		t.Fatal(err)
	}
	lines := newLogQueue(s.log)
	svc := newService(cfg, openTestNFS(t, s.dir), newBufferedLog(cfg, lines))
	l, err := svc.listen()
	if err != nil {
		t.Fatal(err)
	}
	tune(svc, l)
	s.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.serve(ctx, l) }()
	stop = sync.OnceValue(func() error { cancel(); defer lines.close(logCloseWait); return <-done })
	t.Cleanup(func() { _ = stop() })
	return s, stop
}

// TestShutdownClosesIdleConnections: a connection that waits for a request is
// closed at once, also if the body of its last request was left unread.
func TestShutdownClosesIdleConnections(t *testing.T) {
	s, stop := startTuned(t, func(*service, *listener) {}, "SHUTDOWN_GRACE=20s")
	for range 20 { // each of which lingered for 2 s, one after another
		c := dial(t, s.addr)
		for _, size := range []int{100_000, 1000} { // the second tells that the connection was kept
			_, _ = fmt.Fprintf(c, "POST /sites/../logs HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size))
			if got := readStatus(c); got != 400 {
				t.Fatalf("answered %d", got)
			}
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if strings.Contains(s.log.String(), "aborted requests") {
		t.Error("they were aborted at the end of the grace period")
	}
}

// TestShutdownIsBounded: whatever clients and the store do, a shutdown does not
// last longer than the delay, the grace and the 5 s in which cut requests end.
func TestShutdownIsBounded(t *testing.T) {
	const (
		most  = cutWait + time.Second // no delay, and the grace
		slack = 10 * time.Second      // of a busy machine; the faults take longer
		many  = 20
	)
	refused := func(size int) string {
		return fmt.Sprintf("POST /sites/../logs HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", size)
	}
	// endless sends single bytes for as long as the connection lasts.
	endless := func(c net.Conn) {
		go func() {
			for _, err := c.Write([]byte("x")); err == nil; _, err = c.Write([]byte("x")) {
				time.Sleep(20 * time.Millisecond)
			}
		}()
	}
	type server struct {
		*testServer
		hung    chan struct{} // a handler hangs
		release chan struct{}
	}
	for _, c := range []struct {
		name  string
		begin func(t *testing.T, s *server)
		want  error
	}{
		{"refused, and sending on", func(t *testing.T, s *server) {
			for range many {
				c := dial(t, s.addr)
				_, _ = io.WriteString(c, refused(1<<30)+"x")
				if got := readStatus(c); got != 400 {
					t.Fatalf("answered %d", got)
				}
				endless(c)
			}
		}, nil},
		{"a header that trickles", func(t *testing.T, s *server) {
			for range many {
				c := dial(t, s.addr)
				_, _ = io.WriteString(c, "GET /health HTTP/1.1\r\nX-Long: ")
				endless(c)
			}
		}, nil},
		{"a body that trickles", func(t *testing.T, s *server) {
			c := dial(t, s.addr)
			_, _ = io.WriteString(c, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nx")
			waitForTemp(t, s.testServer)
			endless(c)
		}, nil},
		{"an answer that is not read", func(t *testing.T, s *server) {
			s.put(t, 201, "/sites/a/artifacts/b", make([]byte, 64<<20))
			c := dial(t, s.addr)
			_, _ = io.WriteString(c, "GET /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n\r\n")
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}, nil},
		{"a store that hangs", func(t *testing.T, s *server) {
			_, _ = io.WriteString(dial(t, s.addr), "GET /hangs HTTP/1.1\r\nHost: h\r\n\r\n")
			<-s.hung
		}, errHangs},
		{"a store that hangs in a call that has the socket", func(t *testing.T, s *server) {
			_, _ = io.WriteString(dial(t, s.addr), "GET /hangs-with-the-socket HTTP/1.1\r\nHost: h\r\n\r\n")
			<-s.hung
		}, errHangs},
		{"a log that hangs", func(t *testing.T, s *server) {
			s.log.mu.Lock()
			t.Cleanup(s.log.mu.Unlock)
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := &server{hung: make(chan struct{}), release: make(chan struct{})}
			var stop func() error
			s.testServer, stop = startTuned(t, func(svc *service, _ *listener) {
				routes := svc.server.handler.serve
				svc.server.handler.serve = func(ctx *fasthttp.RequestCtx) {
					switch string(ctx.Path()) {
					default:
						routes(ctx)
					case "/hangs":
						close(s.hung)
						<-s.release
					case "/hangs-with-the-socket": // as sendfile(2) of a file on a mount that hangs
						raw, err := ctx.Conn().(*conn).SyscallConn()
						if err != nil {
							panic(err)
						}
						_ = raw.Write(func(uintptr) bool { close(s.hung); <-s.release; return true })
					}
				}
			}, "SHUTDOWN_GRACE=1s")
			t.Cleanup(func() { close(s.release) })
			c.begin(t, s)
			stopped := make(chan error, 1)
			go func() { stopped <- stop() }()
			select {
			case err := <-stopped:
				if !errors.Is(err, c.want) {
					t.Errorf("ended with %v, want %v", err, c.want)
				}
			case <-time.After(most + slack):
				t.Errorf("the shutdown lasts longer than %v", most+slack)
			}
		})
	}
}
