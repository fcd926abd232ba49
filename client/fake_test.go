package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fake is a service, and a store to which it may redirect, in memory. Time is that of a
// synctest bubble: a command that waits for minutes takes no time.
type fake struct {
	t     *testing.T
	hosts map[string]*fakeHost
	env   []string
	ctx   context.Context
}

const (
	serviceHost = "service.test"
	storeHost   = "store.test"
)

// withFake runs a test with a service and a store.
func withFake(t *testing.T, test func(f *fake)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{t: t, hosts: map[string]*fakeHost{}, env: []string{"PAGEWRIGHT_URL=http://" + serviceHost + "/base"}, ctx: t.Context()}
		for _, name := range []string{serviceHost, storeHost} {
			f.hosts[name] = newFakeHost(t, name)
		}
		test(f)
	})
}

// fakeHost serves requests over pipes.
type fakeHost struct {
	name   string
	server *http.Server
	conns  chan net.Conn
	closed chan struct{}

	mu     sync.Mutex
	seen   []*http.Request
	handle func(n int, w http.ResponseWriter, r *http.Request) // n counts the requests of the method, from 1
	down   bool
}

func newFakeHost(t *testing.T, name string) *fakeHost {
	h := &fakeHost{name: name, conns: make(chan net.Conn), closed: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	h.server = &http.Server{Handler: h, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan struct{})
	go func() { defer close(done); h.server.Serve(h) }()
	t.Cleanup(func() { cancel(); h.server.Close(); <-done })
	return h
}

// Accept, Close and Addr implement net.Listener.
func (h *fakeHost) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *fakeHost) Close() error {
	select {
	case <-h.closed:
	default:
		close(h.closed)
	}
	return nil
}

func (h *fakeHost) Addr() net.Addr { return &net.UnixAddr{Name: h.name, Net: "pipe"} }

func (h *fakeHost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	h.seen = append(h.seen, r)
	n, handle := 0, h.handle
	for _, s := range h.seen {
		if s.Method == r.Method {
			n++
		}
	}
	h.mu.Unlock()
	handle(n, w, r)
}

// requests returns a line for each request so far: the method and the path, and those of the
// header fields that are there.
func (h *fakeHost) requests(fields ...string) (lines []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.seen {
		line := r.Method + " " + r.URL.RequestURI()
		for _, field := range fields {
			if value := r.Header.Get(field); value != "" {
				line += " " + field + "=" + value
			}
		}
		lines = append(lines, line)
	}
	return lines
}

// dial connects a client to a host by its address.
func (f *fake) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	name, _, _ := net.SplitHostPort(addr)
	h := f.hosts[name]
	if h == nil || h.down {
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	select {
	case h.conns <- there:
		return here, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// lockedBuffer is standard error, to which a progress line may be written at any time.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// result is what a command left.
type result struct {
	stdout, stderr string
	status         int
	err            error
}

// run runs a command: its name has one word or two.
func (f *fake) run(name string, args ...string) (r result) {
	f.t.Helper()
	var stdout bytes.Buffer
	stderr := &lockedBuffer{}
	i := slices.IndexFunc(Commands, func(c Command) bool { return c.Name == name })
	if i < 0 {
		f.t.Fatalf("no command %q", name)
	}
	c, err := newCall(Commands[i], args, IO{Environ: f.env, Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: stderr, Version: "test"})
	if err == nil {
		transport := newTransport(nil)
		transport.Proxy, transport.DialContext = nil, f.dial
		c.service.http.Transport = transport
		defer transport.CloseIdleConnections()
		if err = Commands[i].run(f.ctx, c); err != nil {
			err = final(f.ctx, err)
		}
	}
	r = result{stdout: stdout.String(), stderr: stderr.String(), err: err}
	if e, ok := errors.AsType[*Error](err); ok {
		r.status = e.Status
	} else if err != nil {
		r.status = exitFailure
	}
	return r
}

// want fails the test unless the command ended with that status.
func (r result) want(t *testing.T, status int) result {
	t.Helper()
	if r.status != status {
		t.Fatalf("exit status %d, want %d: %v\nstdout: %.200q\nstderr: %s", r.status, status, r.err, r.stdout, r.stderr)
	}
	return r
}

// fakeBuild is a build that a service can serve.
type fakeBuild struct {
	data     []byte
	etag     string
	noDigest bool
}

// randomBuild returns a build with random bytes.
func randomBuild(size int, etag string) fakeBuild {
	data := make([]byte, size)
	source := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", etag))))
	source.Read(data)
	return fakeBuild{data: data, etag: etag}
}

func (b fakeBuild) digest() string {
	sum := sha256.Sum256(b.data)
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

// serve responds as the service does.
func (b fakeBuild) serve(w http.ResponseWriter, r *http.Request) {
	if b.etag != "" {
		w.Header().Set("Etag", b.etag)
	}
	if !b.noDigest {
		w.Header().Set("Repr-Digest", b.digest())
	}
	w.Header().Set("Content-Type", "application/gzip")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b.data))
}

// cutAfter returns a writer of a response that breaks the connection after n bytes of the body.
func cutAfter(w http.ResponseWriter, n int) http.ResponseWriter {
	return &cutWriter{w, n, func() { panic(http.ErrAbortHandler) }}
}

// stallAfter returns a writer of a response that sends nothing after n bytes of the body.
func stallAfter(w http.ResponseWriter, r *http.Request, n int) http.ResponseWriter {
	return &cutWriter{w, n, func() { <-r.Context().Done(); panic(http.ErrAbortHandler) }}
}

type cutWriter struct {
	http.ResponseWriter
	left int
	end  func()
}

func (w *cutWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	if _, err := w.ResponseWriter.Write(p[:n]); err != nil {
		panic(http.ErrAbortHandler)
	}
	if w.left -= n; w.left == 0 {
		http.NewResponseController(w.ResponseWriter).Flush()
		w.end()
	}
	return n, nil
}

// ReadFrom hides that of the writer.
func (w *cutWriter) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{w}, r)
}

// handler serves the same for all requests.
func handler(h http.HandlerFunc) func(int, http.ResponseWriter, *http.Request) {
	return func(_ int, w http.ResponseWriter, r *http.Request) { h(w, r) }
}

func itoa(n int) string { return fmt.Sprint(n) }
