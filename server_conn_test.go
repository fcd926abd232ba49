package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"
)

// dial opens a connection that the test reads and writes by hand.
func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	return c.(*net.TCPConn)
}

// readStatus is the status of the next answer, 0 if the connection ended.
func readStatus(c net.Conn) int {
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func TestStalledUploadIsDropped(t *testing.T) {
	s := startServer(t, "STALL_TIMEOUT=1s")
	for _, c := range []struct{ name, header, sent string }{
		{"before the body", "Content-Length: 3000000\r\n\r\n", ""},
		{"small", "Content-Length: 1000\r\n\r\n", "abc"},
		{"large", "Content-Length: 3000000\r\n\r\n", strings.Repeat("x", 100_000)},
		{"large, past the low-water mark", "Content-Length: 9000000\r\n\r\n", strings.Repeat("x", 5_000_000)},
		{"chunked", "Transfer-Encoding: chunked\r\n\r\n", "200000\r\n" + strings.Repeat("x", 100_000)},
		{"between chunks", "Transfer-Encoding: chunked\r\n\r\n", "3\r\nabc\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conn := dial(t, s.addr)
			if _, err := io.WriteString(conn, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n"+c.header+c.sent); err != nil {
				t.Fatal(err)
			}
			if got := readStatus(conn); got != 408 {
				t.Errorf("answered %d, want 408", got)
			}
		})
	}
	t.Cleanup(func() {
		if files := filesBelow(t, s.dir); len(files) > 0 {
			t.Errorf("left behind: %v", files)
		}
	})
}

// TestTricklingUploadIsDropped: less than 4 KiB in each stall timeout is a
// stall, however regularly it comes.
func TestTricklingUploadIsDropped(t *testing.T) {
	s := startServer(t, "STALL_TIMEOUT=1s")
	conn := dial(t, s.addr)
	_, _ = io.WriteString(conn, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: 3000000\r\n\r\n")
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for tick := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
				_, _ = conn.Write([]byte("x"))
			}
		}
	}()
	if got := readStatus(conn); got != 408 {
		t.Errorf("answered %d, want 408", got)
	}
}

// TestSlowUploadIsNotDropped: a client that makes progress may take as long as
// it needs, twice the stall timeout here, also if it sends less in that time than
// the kernel collects before it wakes the reader of a large body.
func TestSlowUploadIsNotDropped(t *testing.T) {
	t.Parallel()
	const stall, step, pause = 4 * time.Second, 5_000, 200 * time.Millisecond
	if step*int(stall/pause) >= lowWater {
		t.Fatal("the client is too fast for what is tested")
	}
	s := startServer(t, "STALL_TIMEOUT="+stall.String(), "HEADER_TIMEOUT=4s", "IDLE_TIMEOUT=4s")
	body := randomBytes(3_000_000)
	for _, chunked := range []bool{false, true} {
		t.Run(fmt.Sprint("chunked ", chunked), func(t *testing.T) {
			t.Parallel()
			conn := dial(t, s.addr)
			path := fmt.Sprintf("/sites/a/artifacts/slow-%v", chunked)
			head, tail, text := fmt.Sprintf("Content-Length: %d", len(body)), "", body
			if chunked {
				head, tail, text = "Transfer-Encoding: chunked", "\r\n0\r\n\r\n", append(fmt.Appendf(nil, "%x\r\n", len(body)), body...)
			}
			_, _ = io.WriteString(conn, "PUT "+path+" HTTP/1.1\r\nHost: h\r\n"+head+"\r\n\r\n")
			rest := text
			for start := time.Now(); time.Since(start) < 2*stall+pause; time.Sleep(pause) { // the pace is what is tested
				if _, err := conn.Write(rest[:step]); err != nil {
					t.Fatal(err)
				}
				rest = rest[step:]
			}
			if _, err := conn.Write(rest); err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(conn, tail)
			if got := readStatus(conn); got != 201 {
				t.Fatalf("answered %d, want 201", got)
			}
			if r := s.get(t, 200, path); !bytes.Equal(r.body, body) {
				t.Error("other bytes came back")
			}
		})
	}
}

func TestSlowHeaderIsDropped(t *testing.T) {
	t.Parallel()
	s := startServer(t, "HEADER_TIMEOUT=4s")
	conn := dial(t, s.addr)
	_, _ = io.WriteString(conn, "GET /health HTTP/1.1\r\nHost:")
	if got := readStatus(conn); got != 408 {
		t.Errorf("answered %d, want 408", got)
	}
	quiet := dial(t, s.addr)
	if n, err := quiet.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a connection without a request: %d bytes, %v", n, err)
	}
}

func TestIdleConnectionIsClosed(t *testing.T) {
	s := startServer(t, "IDLE_TIMEOUT=1s")
	conn := dial(t, s.addr)
	_, _ = io.WriteString(conn, "GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
	answer, err := io.ReadAll(conn) // until it is closed
	if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) {
		t.Errorf("%q, %v", answer, err)
	}
}

// TestStalledDownloadIsDropped: a client that takes nothing is cut, one that
// takes a little at a time gets all of it: here over several deadlines with next
// to nothing sent in each. That the kernel takes nothing at all from the file
// while the client still takes what is on its way does not happen reliably on the
// loopback: TestSendOnce has that case.
func TestStalledDownloadIsDropped(t *testing.T) {
	t.Parallel()
	s := startServer(t, "STALL_TIMEOUT=3s")
	body := randomBytes(24 << 20)
	s.put(t, 201, "/sites/a/artifacts/b", body)
	const get = "GET /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n\r\n"

	ask := func() *net.TCPConn {
		c := dial(t, s.addr)
		_ = c.SetReadBuffer(256 << 10) // one that grew opens its window only after megabytes
		_, _ = io.WriteString(c, get)
		return c
	}
	stalled := ask()
	var slow sync.WaitGroup
	for _, pace := range []struct{ atOnce, step, steps int }{{0, 400_000, 100}, {12 << 20, 2_000, 250}} {
		c := ask()
		slow.Go(func() {
			resp, err := http.ReadResponse(bufio.NewReaderSize(c, 64<<10), nil)
			if err != nil {
				t.Error(err)
				return
			}
			got := make([]byte, pace.atOnce, len(body))
			_, err = io.ReadFull(resp.Body, got)
			// The sleep is the pace, which is what is tested.
			for buf := make([]byte, pace.step); err == nil && len(got) < pace.atOnce+pace.steps*pace.step; time.Sleep(50 * time.Millisecond) {
				var n int
				n, err = io.ReadFull(resp.Body, buf)
				got = append(got, buf[:n]...)
			}
			rest, _ := io.ReadAll(resp.Body)
			if got = append(got, rest...); !bytes.Equal(got, body) {
				t.Errorf("a client that takes %d bytes at a time got %d of %d", pace.step, len(got), len(body))
			}
		})
	}
	slow.Wait()
	eventually(t, "the stalled client is cut", func() bool { return strings.Contains(s.log.String(), `"cut":"the client stalled"`) })
	if n, _ := io.Copy(io.Discard, stalled); n >= int64(len(body)) {
		t.Errorf("the stalled client got all of it, %d bytes", n)
	}
}

// brokenFile is a store that moves every body into a file that takes nothing,
// but for its first byte, which arrives with the header.
type brokenFile struct {
	Backend
	file  *os.File
	begun func(*conn) // called with nothing buffered in front of the socket
}

func (b brokenFile) StoreArtifactIf(_, _ string, reader io.Reader, _ Precondition) (ArtifactInfo, error) {
	if _, err := reader.Read(make([]byte, 1)); err != nil {
		return ArtifactInfo{}, err
	}
	b.begun(reader.(*requestBody).conn)
	for {
		if _, err := reader.(FileMover).MoveTo(b.file, moveSize); err == io.EOF {
			return ArtifactInfo{}, nil
		} else if err != nil {
			return ArtifactInfo{}, diskError("write", "the file", err)
		}
	}
}

func (brokenFile) DeleteArtifact(string, string, Precondition) error { return ErrUnsupported }

// brokenPipe fails as a file whose server went away: with EPIPE.
func brokenPipe(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	t.Cleanup(func() { w.Close() })
	return w
}

// unconnected fails with ENOTCONN.
func unconnected(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "unconnected")
	t.Cleanup(func() { f.Close() })
	return f
}

// wasReset fails with ECONNRESET, once.
func wasReset(t *testing.T) *os.File {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	one := dial(t, l.Addr().String())
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = other.(*net.TCPConn).SetLinger(0)
	other.Close()
	f, err := one.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	eventually(t, "the reset has come", func() bool { return hasFailed(f.Fd()) })
	return f
}

// hasFailed reports whether a TCP socket was closed by an error.
func hasFailed(fd uintptr) bool {
	_, err := unix.Getpeername(int(fd))
	return err == unix.ENOTCONN
}

// TestFileErrorIsTheStores: an error of the file that has the name of one of a
// socket is not answered as the client's.
func TestFileErrorIsTheStores(t *testing.T) {
	for _, c := range []struct {
		name string
		file func(*testing.T) *os.File
	}{{"EPIPE", brokenPipe}, {"ENOTCONN", unconnected}, {"ECONNRESET", wasReset}} {
		for _, size := range []int{1000, 3 << 20} { // copied, and spliced
			for _, half := range []bool{false, true} {
				begun := make(chan struct{})
				s, _ := startBackend(t, brokenFile{file: c.file(t), begun: func(*conn) { close(begun) }})
				conn := dial(t, s.addr)
				fmt.Fprintf(conn, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\nx", size)
				go func() {
					<-begun
					_, _ = conn.Write(make([]byte, size-1))
					if half {
						_ = conn.CloseWrite() // and is still there for the answer
					}
				}()
				if got := readStatus(conn); got != 503 {
					t.Errorf("%s, %d bytes, half closed %v: answered %d, want 503", c.name, size, half, got)
				}
			}
		}
	}
}

// TestClientsErrorIsNotTheStores: a client that leaves in the middle of a body
// is not counted as an error of the store. A file that fails as well is.
func TestClientsErrorIsNotTheStores(t *testing.T) {
	for _, c := range []struct {
		name       string
		end, reset bool
		broken     bool
		kind       string
	}{
		{"reset", false, true, false, "client"},
		{"end", true, false, false, "client"},
		{"end, then reset", true, true, false, "client"},
		{"reset, and the file fails", false, true, true, "unavailable"},
		{"end, then reset, and the file fails", true, true, true, "unavailable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file, err := os.Create(filepath.Join(t.TempDir(), "file"))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			if c.broken {
				file = brokenPipe(t)
			}
			var s *testServer
			var client *net.TCPConn
			s, _ = startBackend(t, brokenFile{file: file, begun: func(server *conn) {
				_, _ = client.Write(make([]byte, 100_000))
				if c.end {
					_ = client.CloseWrite()
				}
				if !c.reset {
					return
				}
				_ = client.SetLinger(0)
				client.Close()
				raw, err := server.SyscallConn()
				if err != nil {
					t.Error(err)
				}
				eventually(t, "the reset has come", func() (failed bool) {
					_ = raw.Control(func(fd uintptr) { failed = hasFailed(fd) })
					return failed
				})
			}})
			client = dial(t, s.addr)
			fmt.Fprintf(client, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\nx", 3<<20)
			var line string
			eventually(t, "the upload has ended", func() bool {
				all := string(s.get(t, 200, "/metrics").body)
				line = ""
				for l := range strings.Lines(all) {
					if strings.HasPrefix(l, `pagewright_backend_errors_total{operation="store"`) && !strings.HasSuffix(l, " 0\n") {
						line += l
					}
				}
				return line != ""
			})
			if want := fmt.Sprintf("pagewright_backend_errors_total{operation=\"store\",kind=%q} 1\n", c.kind); line != want {
				t.Errorf("counted is %q, want %q", line, want)
			}
		})
	}
}

// TestRestOfARefusedBody: a client that is refused, and goes on sending a body
// too small to be worth a new connection, has a bounded time for the rest.
func TestRestOfARefusedBody(t *testing.T) {
	t.Parallel()
	s := startServer(t) // with a stall timeout of 30 s
	s.put(t, 201, "/sites/a/artifacts/b", "x")
	conn := dial(t, s.addr)
	_, _ = io.WriteString(conn, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nIf-None-Match: *\r\nContent-Length: 100000\r\n\r\nx")
	answer := bufio.NewReader(conn)
	resp, err := http.ReadResponse(answer, nil)
	if err != nil || resp.StatusCode != 412 {
		t.Fatalf("answered %v, %v", resp, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	ended := make(chan struct{})
	go func() {
		_, _ = answer.ReadByte()
		close(ended)
	}()
	limit := time.After(15 * time.Second)
	for {
		select {
		case <-ended:
			return
		case <-limit:
			t.Fatal("the connection is still open after 15 s")
		case <-time.After(100 * time.Millisecond):
			_, _ = io.WriteString(conn, "x")
		}
	}
}

// TestSendOnce: a write deadline that fires is the client's fault only if hardly
// a byte was sent since the one before, and the socket's buffer did not empty
// either.
func TestSendOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer := dial(t, l.Addr().String())
	_ = peer.SetReadBuffer(4 << 10)
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	c := &conn{TCPConn: accepted.(*net.TCPConn), l: &listener{stall: time.Minute}}
	// The peer reads nothing: once its buffer is full, ours stays as it is.
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := c.TCPConn.Write(make([]byte, 16<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the socket takes all: %v", err)
	}
	unsent := int64(0)
	eventually(t, "the buffer stays as it is", func() bool {
		before := unsent
		unsent = c.unsent()
		time.Sleep(20 * time.Millisecond)
		return unsent == before && unsent > 2*stallBytes
	})
	fired := fmt.Errorf("write: %w", os.ErrDeadlineExceeded)
	for _, test := range []struct {
		name    string
		backlog int64 // when the deadline before fired; 0: none did
		sent    int64
		err     error // of the write
		want    error
		after   int64 // backlog
	}{
		{"all was sent", unsent, 10, nil, nil, 0},
		{"the client is gone", unsent, 10, io.ErrClosedPipe, io.ErrClosedPipe, 0},
		{"the first deadline", 0, 0, fired, nil, unsent},
		{"the second, and nothing moved", unsent, 0, fired, errStalled, unsent},
		{"the second, and too little moved", unsent + stallBytes - 1, 0, fired, errStalled, unsent},
		{"the second, and the buffer emptied", unsent + stallBytes, 0, fired, nil, unsent},
		{"the second, and too little was sent", unsent, stallBytes - 1, fired, errStalled, unsent},
		{"the second, and enough was sent", unsent, stallBytes, fired, nil, unsent},
		{"the second, and both together are enough", unsent + 96, stallBytes - 96, fired, nil, unsent},
		{"the second, and the buffer filled", unsent - stallBytes, stallBytes + 10, fired, nil, unsent},
	} {
		c.backlog = test.backlog
		n, err := c.sendOnce(func() (int64, error) { return test.sent, test.err })
		if n != test.sent || !errors.Is(err, test.want) || (test.want == nil) != (err == nil) || c.backlog != test.after {
			t.Errorf("%s: %d, %v, backlog %d; want %d, %v, backlog %d", test.name, n, err, c.backlog, test.sent, test.want, test.after)
		}
	}
}

// TestLastBytesAreNotWaitedFor: the kernel collects bytes before it wakes the
// reader of a large body, but not those at its end, which may be too few for that.
func TestLastBytesAreNotWaitedFor(t *testing.T) {
	t.Parallel()
	s := startServer(t) // with a stall timeout of 30 s
	const size, last = 4 << 20, 100 << 10
	body := randomBytes(size)
	conn := dial(t, s.addr)
	_, _ = fmt.Fprintf(conn, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", size)
	_, _ = conn.Write(body[:size-last])
	temp := func() (size int64) {
		for _, file := range filesBelow(t, s.dir) {
			if st, err := os.Stat(filepath.Join(s.dir, file)); err == nil {
				size = max(size, st.Size())
			}
		}
		return size
	}
	eventually(t, "all but the last bytes are written", func() bool { return temp() == size-last })
	_, _ = conn.Write(body[size-last:])
	_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
	if got := readStatus(conn); got != 201 {
		t.Errorf("answered %d, want 201 (0: nothing within 15 s)", got)
	}
}

// fullFile is a store that moves every body into a file on a full disk, from its
// first byte on.
type fullFile struct {
	Backend
	file *os.File
}

func (b fullFile) StoreArtifactIf(_, _ string, reader io.Reader, _ Precondition) (ArtifactInfo, error) {
	if _, err := reader.(FileMover).MoveTo(b.file, moveSize); err != nil {
		return ArtifactInfo{}, diskError("write", "the file", err)
	}
	return ArtifactInfo{}, nil
}

func (fullFile) DeleteArtifact(string, string, Precondition) error { return ErrUnsupported }

// The bytes of a body that come with the header are written before any is
// spliced: an error of that write is the file's, too.
func TestFullFileIsNotTheClientsFault(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	s, _ := startBackend(t, fullFile{file: full})
	for _, size := range []int{1000, 3 << 20} { // copied, and spliced
		conn := dial(t, s.addr)
		fmt.Fprintf(conn, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\nx", size)
		if got := readStatus(conn); got != 507 {
			t.Errorf("%d bytes: answered %d, want 507", size, got)
		}
	}
}

// held is a request that is being served, as a budget knows it.
type held struct {
	c     *conn
	token uint64
}

// startHeld serves b and tells began of each request before it is handled.
func startHeld(t *testing.T, b Backend, began func(held), tune ...func(*listener)) *testServer {
	t.Helper()
	cfg, _, err := parseConfig([]string{"PAGEWRIGHT_PORT=0", "PAGEWRIGHT_LISTEN=127.0.0.1", "PAGEWRIGHT_STALL_TIMEOUT=60s"})
	if err != nil {
		t.Fatal(err)
	}
	s := &testServer{log: &lockedBuffer{}}
	svc := newService(cfg, b, newLog(cfg, s.log))
	next := svc.server.handler.serve
	svc.server.handler.serve = func(ctx *fasthttp.RequestCtx) {
		c := ctx.Conn().(*conn)
		began(held{c, c.hold()})
		next(ctx)
	}
	l, err := svc.listen()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tune {
		f(l)
	}
	s.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// A body that is revoked ends with 503 wherever it is, and leaves nothing.
func TestRevokedBody(t *testing.T) {
	for _, c := range []struct{ name, header, sent string }{
		{"copied", "Content-Length: 1000", "abc"},
		{"spliced", "Content-Length: 3000000", strings.Repeat("x", 100_000)},
		{"spliced, past the low-water mark", "Content-Length: 9000000", strings.Repeat("x", 5_000_000)},
		{"chunked", "Transfer-Encoding: chunked", "200000\r\n" + strings.Repeat("x", 100_000)},
		{"between chunks", "Transfer-Encoding: chunked", "3\r\nabc\r\n"},
		{"in the length of a chunk", "Transfer-Encoding: chunked", "3\r\nabc\r\n5"},
		{"in the end of a chunk", "Transfer-Encoding: chunked", "3\r\nabc\r"},
		{"before the trailer", "Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n"},
	} {
		for _, early := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, before the body %v", c.name, early), func(t *testing.T) {
				n := openTestNFS(t, t.TempDir())
				requests := make(chan held, 9)
				s := startHeld(t, n, func(h held) {
					if early {
						h.c.revokeBody(h.token)
					}
					requests <- h
				})
				s.dir = n.base
				client := dial(t, s.addr)
				_, _ = io.WriteString(client, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n"+c.header+"\r\n\r\n"+c.sent)
				h := <-requests
				if !early {
					waitForTemp(t, s)
					eventually(t, "all that was sent is read", func() bool { return !isQueued(h.c) })
					h.c.revokeBody(h.token)
				}
				resp, err := http.ReadResponse(bufio.NewReader(client), nil)
				if err != nil {
					t.Fatal(err)
				}
				text, _ := io.ReadAll(resp.Body)
				if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(string(text), "other clients are waiting") {
					t.Errorf("answered %d %q", resp.StatusCode, text)
				}
				if files := filesBelow(t, n.base); len(files) > 0 {
					t.Errorf("left behind: %v", files)
				}
				want := `pagewright_backend_errors_total{operation="store",kind="busy"} 1`
				if all := string(s.get(t, 200, "/metrics").body); !strings.Contains(all, want) {
					t.Errorf("not counted: %s", want)
				}
			})
		}
	}
}

// revokedLate stores, and is revoked when it has read all of the body.
type revokedLate struct {
	*nfs
	stored func()
}

func (r revokedLate) StoreArtifactIf(siteID, buildID string, reader io.Reader, cond Precondition) (ArtifactInfo, error) {
	info, err := r.nfs.StoreArtifactIf(siteID, buildID, reader, cond)
	r.stored()
	return info, err
}

// A token that is too old, and one whose body has been read, end nothing: not
// the request, and not the next one on the connection.
func TestRevokedTooLate(t *testing.T) {
	requests := make(chan held, 9)
	var now held // of the one connection
	s := startHeld(t, revokedLate{openTestNFS(t, t.TempDir()), func() { now.c.revokeBody(now.token) }}, func(h held) {
		now = h
		requests <- h
	})
	body := randomBytes(300_000)
	head := fmt.Sprintf("PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", len(body))
	client := dial(t, s.addr)
	answers := bufio.NewReader(client)
	answer := func(want int) {
		t.Helper()
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, _ = io.Copy(io.Discard, resp.Body); resp.StatusCode != want {
			t.Fatalf("answered %d, want %d", resp.StatusCode, want)
		}
	}
	_, _ = io.WriteString(client, head+string(body))
	old := <-requests
	answer(201)
	revoke := func() {
		old.c.revokeBody(old.token)
		old.c.revokeResponse(old.token)
	}
	revoke() // between two requests
	_, _ = io.WriteString(client, head[:20])
	eventually(t, "the header is being read", func() bool { return !isQueued(old.c) })
	revoke()
	_, _ = io.WriteString(client, head[20:]+string(body[:1000]))
	h := <-requests
	if h.c != old.c {
		t.Fatal("another connection")
	}
	revoke()
	_, _ = client.Write(body[1000:])
	answer(201)

	// And at any other time.
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				revoke()
			}
		}
	}()
	for range 200 {
		_, _ = io.WriteString(client, head+string(body))
		<-requests
		answer(201)
	}
	close(stop)
	<-stopped
}

// isQueued reports whether bytes of the client's wait to be read.
func isQueued(c *conn) bool {
	queued := 0
	raw, err := c.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { queued, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	}
	return queued > 0
}

// An answer that is revoked ends soon though nobody reads it, by whatever way it
// is sent. The next one on a connection is not hit.
func TestRevokedAnswer(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	body := randomBytes(24 << 20)
	mustStore(t, n, "a", "b", body)
	mustStore(t, n, "a", "small", body[:10])
	const cut = `"cut":"other clients needed the capacity"`
	for _, b := range []Backend{n, fourMethods{n}} { // sendfile, and copies
		requests := make(chan held, 9)
		s := startHeld(t, b, func(h held) { requests <- h })
		client := dial(t, s.addr)
		_, _ = io.WriteString(client, "GET /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n\r\n")
		h := <-requests
		eventually(t, "the answer waits for its reader", func() bool { return h.c.unsent() > 0 })
		h.c.revokeResponse(h.token)
		eventually(t, "the answer is cut", func() bool { return strings.Contains(s.log.String(), cut) })
		if got, _ := io.Copy(io.Discard, client); got >= int64(len(body)) {
			t.Errorf("all of it came, %d bytes", got)
		}

		client = dial(t, s.addr)
		answers := bufio.NewReader(client)
		for _, size := range []int{10, 24 << 20, 24 << 20} {
			name := "b"
			if size == 10 {
				name = "small"
			}
			_ = client.SetReadDeadline(time.Now().Add(20 * time.Second)) // less than the stall timeout, with which all would end
			_, _ = io.WriteString(client, "GET /sites/a/artifacts/"+name+" HTTP/1.1\r\nHost: h\r\n\r\n")
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := io.ReadAll(resp.Body); len(got) != size {
				t.Errorf("%d bytes came of %d", len(got), size)
			}
			h = <-requests
			h.c.revokeResponse(h.token)
		}
	}
}

func TestReadDeadlineIsTheLastOneSet(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	future := time.Now().Add(time.Minute)
	for _, c := range []struct {
		name   string
		set    []time.Time
		inBody bool
		timely bool
	}{
		{"one", []time.Time{future}, false, true},
		{"later than that of the socket", []time.Time{past, future}, false, true},
		{"later, twice", []time.Time{past, future, future.Add(time.Minute)}, false, true},
		{"sooner", []time.Time{future, past}, false, false},
		{"sooner again", []time.Time{past, future, past}, false, false},
		{"that of the socket, in a body", []time.Time{past, future}, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := dial(t, l.Addr().String())
			accepted, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer accepted.Close()
			if _, err := client.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			conn := &conn{TCPConn: accepted.(*net.TCPConn), inBody: c.inBody}
			for _, until := range c.set {
				if err := conn.SetReadDeadline(until); err != nil {
					t.Fatal(err)
				}
			}
			n, err := conn.readSocket(make([]byte, 1))
			if timely := n == 1 && err == nil; timely != c.timely || !timely && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%d, %v", n, err)
			}
		})
	}
}
