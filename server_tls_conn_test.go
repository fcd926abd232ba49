package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestHandshakeTimeout: a handshake has the time of a header, however it goes on. It is
// counted as failed if anything has arrived.
func TestHandshakeTimeout(t *testing.T) {
	s, ca, _ := startTLS(t, "HEADER_TIMEOUT=2s")
	hello := clientHello(t, ca.trust())
	for _, c := range []struct {
		name   string
		send   func(c net.Conn)
		failed float64
	}{
		{"nothing", func(net.Conn) {}, 0},
		{"half of the first message", func(c net.Conn) { _, _ = c.Write(hello[:len(hello)/2]) }, 1},
		{"the first message, and no more", func(c net.Conn) { _, _ = c.Write(hello) }, 1},
		{"one byte after another", func(c net.Conn) {
			for _, b := range hello { // for longer than the timeout: the pace is what is tested
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		}, 1},
	} {
		before := scrape(t, s)["pagewright_tls_handshake_errors_total"]
		conn := dial(t, s.addr)
		go c.send(conn)
		got, _ := io.ReadAll(conn) // until it is closed
		if bytes.Contains(got, []byte("HTTP/1.1")) {
			t.Errorf("%s: the response is %q", c.name, got)
		}
		if n := scrape(t, s)["pagewright_tls_handshake_errors_total"] - before; n != c.failed {
			t.Errorf("%s: %v errors are counted, want %v", c.name, n, c.failed)
		}
	}
}

// clientHello returns the first message of a handshake.
func clientHello(t *testing.T, config *tls.Config) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	go func() { _ = tls.Client(near, config).Handshake() }()
	buf := make([]byte, 16<<10)
	n, err := far.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// TestHandshakeIsEvicted: a connection whose handshake has not ended makes room for another,
// like one that has sent nothing, and one that has sent requests does not.
func TestHandshakeIsEvicted(t *testing.T) {
	ca, dir := newTestCA(t, "ca"), newTLSDir(t)
	dir.write(ca.issue("server"))
	files := dir.open()
	hello := clientHello(t, ca.trust())
	for name, sent := range map[string][]byte{"nothing": nil, "a part of the first message": hello[:100], "the first message": hello} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &crowd{}
			s.testServer, _ = startTuned(t, func(_ *service, l *listener) { s.l, l.max = l, 2; overTLS(files)(l) })
			kept := dialTLS(t, s.addr, ca.trust())
			if got := askStatus(kept, askHealth); got != 200 {
				t.Fatalf("status %d", got)
			}
			waiting := dial(t, s.addr)
			_, _ = waiting.Write(sent)
			s.settles(t, 2, 2)
			eventually(t, "the handshake is old enough", func() bool { return oldest(s.l) > freshPatience })
			if got := askStatus(dialTLS(t, s.addr, ca.trust()), askHealth); got != 200 {
				t.Errorf("a third connection: status %d", got)
			}
			_, _ = io.Copy(io.Discard, waiting) // ends
			if got := askStatus(kept, askHealth); got != 200 {
				t.Errorf("the connection that was kept: status %d", got)
			}
			s.settles(t, 2, 2)
		})
	}
}

// TestOldestHandshakeIsEvicted: a handshake does not become younger by sending a byte now and
// then.
func TestOldestHandshakeIsEvicted(t *testing.T) {
	ca, dir := newTestCA(t, "ca"), newTLSDir(t)
	dir.write(ca.issue("server"))
	hello := clientHello(t, ca.trust())
	s := &crowd{}
	s.testServer, _ = startTuned(t, func(_ *service, l *listener) { s.l, l.max = l, 2; overTLS(dir.open())(l) })
	first := dial(t, s.addr)
	_, _ = first.Write(hello[:10])
	s.settles(t, 1, 1)
	second := dial(t, s.addr)
	_, _ = second.Write(hello[:10])
	s.settles(t, 2, 2)
	_, _ = first.Write(hello[10:20])
	eventually(t, "it is read", func() bool { return !s.anyQueued() })
	s.settles(t, 2, 2)
	eventually(t, "the handshakes are old enough", func() bool { return oldest(s.l) > freshPatience })
	if got := askStatus(dialTLS(t, s.addr, ca.trust()), askHealth); got != 200 {
		t.Errorf("a third connection: status %d", got)
	}
	if n, err := first.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the first one is not closed: %d, %v", n, err)
	}
	s.settles(t, 2, 2)
}

// anyQueued reports whether bytes of a client wait to be read.
func (c *crowd) anyQueued() bool {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	for conn := range c.l.open {
		if isQueued(conn) {
			return true
		}
	}
	return false
}

// oldest returns the age of the oldest connection that has sent no request.
func oldest(l *listener) (age time.Duration) {
	l.idle.mu.Lock()
	defer l.idle.mu.Unlock()
	for e := l.idle.fresh.Front(); e != nil; e = e.Next() {
		age = max(age, time.Since(e.Value.(*conn).accepted))
	}
	return age
}

// TestStallsOverTLS: a client that stops in its body is refused, and one that stops reading
// is cut, as without TLS.
func TestStallsOverTLS(t *testing.T) {
	t.Parallel()
	s, ca, _ := startTLS(t, "STALL_TIMEOUT=1s")
	s.put(t, 201, "/sites/large/artifacts/b", randomBytes(24<<20))
	stopped := dialTLS(t, s.addr, ca.trust())
	_, _ = io.WriteString(stopped, "GET /sites/large/artifacts/b HTTP/1.1\r\nHost: h\r\n\r\n")
	for _, c := range []struct{ name, header, sent string }{
		{"before the body", "Content-Length: 3000000", ""},
		{"small", "Content-Length: 1000", "abc"},
		{"large", "Content-Length: 3000000", strings.Repeat("x", 100_000)},
		{"chunked", "Transfer-Encoding: chunked", "200000\r\n" + strings.Repeat("x", 100_000)},
		{"between chunks", "Transfer-Encoding: chunked", "3\r\nabc\r\n"},
	} {
		conn := dialTLS(t, s.addr, ca.trust())
		_, _ = io.WriteString(conn, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n"+c.header+"\r\n\r\n"+c.sent)
		if got := readStatus(conn); got != 408 {
			t.Errorf("%s: status %d, want 408", c.name, got)
		}
	}
	s.waitForLog(t, `"cut":"the client stalled"`)
	if files := filesBelow(t, filepath.Join(s.dir, "sites", "a")); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}

// pacedConn sends a few bytes at a time.
type pacedConn struct {
	net.Conn
	step  int
	pause time.Duration
	paced bool // else at once
}

func (c *pacedConn) Write(p []byte) (total int, err error) {
	for total < len(p) && err == nil {
		n, step := 0, len(p)-total
		if c.paced {
			step = min(step, c.step)
			time.Sleep(c.pause) // the pace is what is tested
		}
		n, err = c.Conn.Write(p[total : total+step])
		total += n
	}
	return total, err
}

// TestSlowUploadOverTLS: one record takes a slow client longer than the stall timeout. The
// bytes of the connection count, not those that are decrypted.
func TestSlowUploadOverTLS(t *testing.T) {
	t.Parallel()
	s, ca, _ := startTLS(t, "STALL_TIMEOUT=2s", "HEADER_TIMEOUT=2s")
	body := randomBytes(45_000)
	for name, expect := range map[string]string{"header": "", "none": "", "expect": "Expect: 100-continue\r\n"} {
		t.Run("with the body: "+name, func(t *testing.T) {
			t.Parallel()
			slow := &pacedConn{Conn: dial(t, s.addr), step: 1000, pause: 200 * time.Millisecond}
			conn := tls.Client(slow, ca.trust())
			head := fmt.Sprintf("PUT /sites/a/artifacts/%s HTTP/1.1\r\nHost: h\r\n%sContent-Length: %d\r\n\r\n", name, expect, len(body))
			text := append([]byte(head), body...)
			if name != "header" { // else it is in one record with the first bytes of the body
				_, _ = io.WriteString(conn, head)
				text = body
			} else if err := conn.Handshake(); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(conn)
			if expect != "" {
				if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 100 {
					t.Fatal(resp, err)
				}
			}
			slow.paced = true
			if _, err := conn.Write(text); err != nil {
				t.Fatal(err)
			}
			if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 201 {
				t.Fatal(resp, err)
			}
			if r := s.get(t, 200, "/sites/a/artifacts/"+name); !bytes.Equal(r.body, body) {
				t.Error("other bytes came back")
			}
		})
	}
}

// TestSlowDownloadOverTLS: write deadlines fire in the middle of records, and the download
// goes on, since the client reads.
func TestSlowDownloadOverTLS(t *testing.T) {
	t.Parallel()
	s, ca, _ := startTLS(t, "STALL_TIMEOUT=1s")
	body := randomBytes(16 << 20)
	s.put(t, 201, "/sites/a/artifacts/b", body)
	tcp := dial(t, s.addr)
	_ = tcp.SetReadBuffer(64 << 10)
	conn := tls.Client(tcp, ca.trust())
	_, _ = io.WriteString(conn, "GET /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 0, len(body))
	for buf := make([]byte, 10_000); err == nil && len(got) < 120*len(buf); time.Sleep(50 * time.Millisecond) { // the pace is what is tested
		var n int
		n, err = io.ReadFull(resp.Body, buf)
		got = append(got, buf[:n]...)
	}
	rest, _ := io.ReadAll(resp.Body)
	if got = append(got, rest...); !bytes.Equal(got, body) {
		t.Errorf("%d bytes came of %d, %v", len(got), len(body), err)
	}
}

// TestCutBodiesOverTLS: a body that ends early is not stored, whatever ends it.
func TestCutBodiesOverTLS(t *testing.T) {
	s, ca, _ := startTLS(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, body := range []string{
			"Content-Length: 1000\r\n\r\nhalf", "Content-Length: 3000000\r\n\r\n" + strings.Repeat("x", 2_000_000),
			"Content-Length: 1000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
			"Transfer-Encoding: chunked\r\n\r\n4\r\nha", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
		} {
			for name, end := range map[string]func(tcp *net.TCPConn, c *tls.Conn){
				"close_notify": func(_ *net.TCPConn, c *tls.Conn) { _ = c.CloseWrite() },
				"FIN":          func(tcp *net.TCPConn, _ *tls.Conn) { _ = tcp.CloseWrite() },
				"both":         func(_ *net.TCPConn, c *tls.Conn) { _ = c.Close() },
				"RST":          func(tcp *net.TCPConn, _ *tls.Conn) { _ = tcp.SetLinger(0); tcp.Close() },
				"half a record": func(tcp *net.TCPConn, _ *tls.Conn) {
					_, _ = tcp.Write([]byte{23, 3, 3, 1, 0, 1, 2, 3})
					_ = tcp.CloseWrite()
				},
				"a record that was changed": func(tcp *net.TCPConn, _ *tls.Conn) {
					_, _ = tcp.Write(append([]byte{23, 3, 3, 0, 100}, make([]byte, 100)...))
				},
			} {
				config := ca.trust()
				config.MaxVersion = version
				tcp := dial(t, s.addr)
				c := tls.Client(tcp, config)
				if _, err := io.WriteString(c, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n"+body); err != nil {
					t.Fatal(err)
				}
				end(tcp, c)
				if got := readStatus(c); got != 0 && got != 400 {
					t.Errorf("%x, %.40q, %s: status %d", version, body, name, got)
				}
				tcp.Close()
			}
		}
	}
	eventually(t, "all of them end", func() bool { return scrape(t, s)["pagewright_http_connections"] <= 1 })
	if files := filesBelow(t, s.dir); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}

// TestWholeBodyBeforeCloseNotify: the end of what a client sends does not cut a body that
// is whole.
func TestWholeBodyBeforeCloseNotify(t *testing.T) {
	s, ca, _ := startTLS(t)
	body := string(randomBytes(111_000)) // fasthttp reads the last record without a buffer of its own
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, head := range []string{"Content-Length: 111000\r\n\r\n" + body, "Transfer-Encoding: chunked\r\n\r\n1b198\r\n" + body + "\r\n0\r\n\r\n"} {
			for _, close := range []string{"", "Connection: close\r\n"} {
				config := ca.trust()
				config.MaxVersion = version
				held := &heldConn{Conn: dial(t, s.addr)}
				c := tls.Client(held, config)
				if err := c.Handshake(); err != nil {
					t.Fatal(err)
				}
				held.hold = true // so that the alert arrives together with the body
				_, _ = io.WriteString(c, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n"+close+head)
				_ = c.CloseWrite()
				_ = held.SetDeadline(time.Now().Add(time.Minute)) // CloseWrite ends the one for writes
				_, _ = held.Conn.Write(held.text)
				if got := readStatus(c); got != 201 {
					t.Errorf("%x, %.30q, %q: status %d, want 201", version, head, close, got)
				}
			}
		}
	}
}

// TestResponseAfterCloseNotify: a client that ends its side while it reads gets the whole
// response. To close a socket with bytes unread, here the alert, would reset the connection,
// and discard what was not sent yet.
func TestResponseAfterCloseNotify(t *testing.T) {
	s, ca, _ := startTLS(t)
	body := randomBytes(24 << 20) // more than fits into the buffers of the sockets
	s.put(t, 201, "/sites/a/artifacts/b", body)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := ca.trust()
		config.MaxVersion = version
		c := dialTLS(t, s.addr, config)
		s.log.reset()
		_, _ = io.WriteString(c, "GET /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		got := make([]byte, 0, len(body))
		for buf := make([]byte, 256<<10); err == nil && !strings.Contains(s.log.String(), `"bytes_out":25165824`); time.Sleep(5 * time.Millisecond) { // slower than the service sends
			var n int
			n, err = io.ReadFull(resp.Body, buf)
			got = append(got, buf[:n]...)
		}
		eventually(t, "the service has closed the connection", func() bool { return scrape(t, s)["pagewright_http_connections"] == 1 })
		rest, err := io.ReadAll(resp.Body)
		if got = append(got, rest...); !bytes.Equal(got, body) {
			t.Errorf("%x: %d bytes came, %d of them after the end, %v", version, len(got), len(rest), err)
		}
	}
}

// heldConn collects what is written.
type heldConn struct {
	net.Conn
	hold bool
	text []byte
}

func (c *heldConn) Write(p []byte) (int, error) {
	if !c.hold {
		return c.Conn.Write(p)
	}
	c.text = append(c.text, p...)
	return len(p), nil
}

// recordAlert is the type of an alert: visible in TLS 1.2 only.
const recordAlert = 21

// recordTypes returns the types of the TLS records in text.
func recordTypes(text []byte) (types []byte) {
	for len(text) >= 5 {
		types = append(types, text[0])
		text = text[min(len(text), 5+int(text[3])<<8+int(text[4])):]
	}
	return types
}

// teeConn keeps what is read.
type teeConn struct {
	net.Conn
	text []byte
}

func (c *teeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.text = append(c.text, p[:n]...)
	return n, err
}

// TestCloseNotify: every way to end a connection on purpose ends with the alert, after the
// whole response: else a client cannot tell it from one that an attacker has cut.
func TestCloseNotify(t *testing.T) {
	for _, c := range []struct {
		name, text string
		end        func(s *testServer, c net.Conn)
		status     int
	}{
		{"asked for", "GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", func(*testServer, net.Conn) {}, 200},
		{"idle", askHealth, func(*testServer, net.Conn) {}, 200},
		{"shutdown", askHealth, func(s *testServer, _ net.Conn) { go func() { _ = s.stop() }() }, 200},
		{"shutdown after no request", "", func(s *testServer, _ net.Conn) { go func() { _ = s.stop() }() }, 0},
		{"refused while it sends", "PUT /sites/../artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: 3000000\r\n\r\nx", func(*testServer, net.Conn) {}, 400},
		{"malformed", "GET\r\n\r\n", func(*testServer, net.Conn) {}, 400},
		{"large", "GET /sites/a/artifacts/large HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", func(*testServer, net.Conn) {}, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			idle := "120s"
			if c.name == "idle" {
				idle = "1s"
			}
			s, ca, _ := startTLS(t, "IDLE_TIMEOUT="+idle)
			s.put(t, 201, "/sites/a/artifacts/large", randomBytes(8<<20))
			config := ca.trust()
			config.MaxVersion = tls.VersionTLS12
			tee := &teeConn{Conn: dial(t, s.addr)}
			conn := tls.Client(tee, config)
			if err := conn.Handshake(); err != nil {
				t.Fatal(err)
			}
			if c.text != "" {
				_, _ = io.WriteString(conn, c.text)
				r := bufio.NewReader(conn)
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != c.status {
					t.Errorf("status %d, want %d, %v", resp.StatusCode, c.status, err)
				}
			}
			c.end(s, conn)
			_, err := io.Copy(io.Discard, conn) // until it is closed
			if types := recordTypes(tee.text); err != nil || types[len(types)-1] != recordAlert {
				t.Errorf("the connection ends with %v, and records of the types %v", err, types[max(0, len(types)-5):])
			}
		})
	}
}

// TestEvictedWithCloseNotify: an idle connection that makes room for another ends with the
// alert too.
func TestEvictedWithCloseNotify(t *testing.T) {
	ca, dir := newTestCA(t, "ca"), newTLSDir(t)
	dir.write(ca.issue("server"))
	s := &crowd{}
	s.testServer, _ = startTuned(t, func(_ *service, l *listener) { s.l, l.max = l, 1; overTLS(dir.open())(l) })
	config := ca.trust()
	config.MaxVersion = tls.VersionTLS12
	tee := &teeConn{Conn: dial(t, s.addr)}
	idle := tls.Client(tee, config)
	if got := askStatus(idle, askHealth); got != 200 {
		t.Fatalf("status %d", got)
	}
	s.settles(t, 1, 1)
	if got := askStatus(dialTLS(t, s.addr, config), askHealth); got != 200 {
		t.Errorf("the second connection: status %d", got)
	}
	_, err := io.Copy(io.Discard, idle)
	if types := recordTypes(tee.text); err != nil || types[len(types)-1] != recordAlert {
		t.Errorf("the connection ends with %v, and records of the types %v", err, types)
	}
}

// fillBuffer sends what is no TLS until the buffer of the socket stays full.
func fillBuffer(t *testing.T, c *conn) {
	t.Helper()
	full := 0
	eventually(t, "the buffer stays full", func() bool {
		if _, err := c.sendNow(make([]byte, 64<<10)); err == nil {
			full = 0
		} else {
			full++
		}
		return full > 20
	})
}

// TestCloseNotifyDoesNotBlock: the goroutine that shuts down closes connections, and must
// not wait for a client that reads nothing, not even if a write is in progress.
func TestCloseNotifyDoesNotBlock(t *testing.T) {
	ca, dir := newTestCA(t, "ca"), newTLSDir(t)
	dir.write(ca.issue("server"))
	for _, writing := range []bool{false, true} {
		c, _ := tlsPair(t, dir.open(), ca.trust())
		fillBuffer(t, c)
		if writing {
			go func() { _, _ = c.Write([]byte("x")) }()
			eventually(t, "the write blocks", func() bool { return isHeld(&c.tls.socket.writing) })
		}
		done := make(chan struct{})
		go func() { c.tls.closeNotify(false); close(done) }()
		select {
		case <-done:
		case <-time.After(30 * time.Second): // the stall timeout is a minute
			t.Fatalf("while a write is in progress %v: closeNotify blocks", writing)
		}
		_ = c.TCPConn.Close()
	}
}

// TestCloseNotifyWaitsForRoom: the goroutine that served a connection waits a little, so that
// the alert does not get lost behind a response that is still being sent.
func TestCloseNotifyWaitsForRoom(t *testing.T) {
	ca, dir := newTestCA(t, "ca"), newTLSDir(t)
	dir.write(ca.issue("server"))
	config := ca.trust()
	config.MaxVersion = tls.VersionTLS12
	c, client := tlsPair(t, dir.open(), config)
	fillBuffer(t, c)
	done := make(chan struct{})
	go func() { defer close(done); c.tls.closeNotify(true); _ = c.TCPConn.Close() }()
	eventually(t, "the alert waits", func() bool { return isHeld(&c.tls.socket.writing) })
	got, _ := io.ReadAll(client.NetConn())
	<-done
	if tail := got[max(0, len(got)-40):]; !bytes.Contains(tail, []byte{recordAlert, 3, 3, 0}) {
		t.Errorf("the connection ends with %x", tail)
	}
}

func isHeld(mu *sync.Mutex) bool {
	if !mu.TryLock() {
		return true
	}
	mu.Unlock()
	return false
}

// TestRevokedOverTLS: a budget ends a body and a response.
func TestRevokedOverTLS(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	mustStore(t, n, "a", "b", randomBytes(24<<20))
	ca, dir := newTestCA(t, "ca"), newTLSDir(t)
	dir.write(ca.issue("server"))
	requests := make(chan held, 9)
	s := startHeld(t, n, func(h held) { requests <- h }, overTLS(dir.open()))
	s.dir = n.base

	upload := dialTLS(t, s.addr, ca.trust())
	_, _ = io.WriteString(upload, "PUT /sites/a/artifacts/c HTTP/1.1\r\nHost: h\r\nContent-Length: 3000000\r\n\r\n"+strings.Repeat("x", 100_000))
	h := <-requests
	waitForTemp(t, s)
	eventually(t, "all that was sent is read", func() bool { return !isQueued(h.c) })
	h.c.revokeBody(h.token)
	if got := readStatus(upload); got != 503 {
		t.Errorf("the upload: status %d, want 503", got)
	}

	download := dialTLS(t, s.addr, ca.trust())
	_, _ = io.WriteString(download, "GET /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n\r\n")
	h = <-requests
	eventually(t, "the response waits for its reader", func() bool { return h.c.unsent() > 0 })
	h.c.revokeResponse(h.token)
	s.waitForLog(t, `"cut":"other clients needed the capacity"`)
	if got, _ := io.Copy(io.Discard, download); got >= 24<<20 {
		t.Errorf("all of it came, %d bytes", got)
	}
}

// TestDescriptorsAfterTLS: whatever ends a connection, none stays open.
func TestDescriptorsAfterTLS(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // or the finalizers of package net would close what is left open
	s, ca, _ := startTLS(t, "HEADER_TIMEOUT=1s")
	hello := clientHello(t, ca.trust())
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	s.get(t, 200, "/health")
	s.https.CloseIdleConnections()
	eventually(t, "no connection is open", func() bool { return scrape(t, s)["pagewright_http_connections"] == 1 })
	before := open() // with the connection of the scrape
	for range 20 {
		for _, text := range [][]byte{nil, hello, hello[:10], []byte("GET / HTTP/1.1\r\n\r\n"), []byte("\x15\x03\x03\x00\x02\x02\x28")} {
			c := dial(t, s.addr)
			_, _ = c.Write(text)
			go func() { _, _ = io.Copy(io.Discard, c); c.Close() }()
		}
		c := dialTLS(t, s.addr, ca.trust())
		askStatus(c, askHealth)
		c.Close()
	}
	eventually(t, "the descriptors are closed", func() bool { return open() <= before })
}

// TestFailedHandshakeIsDrained: a client to which an alert is sent may still be sending, and
// a reset must not overtake the alert. One that has left is not waited for.
func TestFailedHandshakeIsDrained(t *testing.T) {
	ca, other, dir := newTestCA(t, "ca"), newTestCA(t, "other"), newTLSDir(t)
	dir.write(ca.issue("server"))
	dir.writeCAs(ca)
	files := dir.open()
	stranger := other.client("stranger")
	for _, c := range []struct {
		name   string
		client func(tcp *net.TCPConn)
		want   bool
	}{
		{"a certificate of another CA", func(tcp *net.TCPConn) {
			config := ca.trust()
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger, nil }
			_ = tls.Client(tcp, config).Handshake()
		}, true},
		{"an old version", func(tcp *net.TCPConn) {
			config := ca.trust()
			config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS10
			_ = tls.Client(tcp, config).Handshake()
		}, true},
		{"garbage", func(tcp *net.TCPConn) { _, _ = io.WriteString(tcp, "garbage") }, true},
		{"a server that is not trusted", func(tcp *net.TCPConn) { _ = tls.Client(tcp, other.trust()).Handshake() }, false},
		{"nothing", func(tcp *net.TCPConn) { tcp.Close() }, false},
		{"a part", func(tcp *net.TCPConn) { _, _ = tcp.Write([]byte{22, 3, 1}); tcp.Close() }, false},
	} {
		l, addr := listenTLS(t, files)
		tcp := dial(t, addr)
		go c.client(tcp)
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		served := accepted.(*conn)
		if n, err := served.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%s: %d bytes, %v", c.name, n, err)
		}
		if got := served.linger.Load(); got != c.want {
			t.Errorf("%s: drained %v, want %v", c.name, got, c.want)
		}
		_ = served.close()
	}
}

// TestUnreadBodyOverTLS: the time in which the rest of a refused body is read away is not
// extended, as without TLS.
func TestUnreadBodyOverTLS(t *testing.T) {
	t.Parallel()
	s, ca, _ := startTLS(t, "STALL_TIMEOUT=1s")
	c := dialTLS(t, s.addr, ca.trust())
	const size, step = 200_000, 10_000 // of the body: few enough to read them away
	_, _ = fmt.Fprintf(c, "POST /sites/../logs HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\nx", size+1)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 400 {
		t.Fatal(resp, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	for sent := 0; sent < size; sent += step {
		_, _ = c.Write(make([]byte, step))
		time.Sleep(150 * time.Millisecond) // the pace is what is tested
	}
	_, _ = io.WriteString(c, askHealth)
	if resp, err := http.ReadResponse(r, nil); err == nil {
		t.Errorf("the next request: status %d", resp.StatusCode)
	}
}

// TestCloseDuringHandshake: the goroutine that shuts down closes connections that are in
// their handshake. The race detector watches.
func TestCloseDuringHandshake(t *testing.T) {
	ca, dir := newTestCA(t, "ca"), newTLSDir(t)
	dir.write(ca.issue("server"))
	l, addr := listenTLS(t, dir.open())
	for range 50 {
		client := dial(t, addr)
		go func() { _ = tls.Client(client, ca.trust()).Handshake() }()
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := accepted.Read(make([]byte, 1))
			done <- err
		}()
		for over := false; !over; { // as fasthttp calls it for each connection that it finds idle
			_ = accepted.(*conn).Close()
			select {
			case err := <-done:
				over = true
				if err == nil {
					t.Error("a read succeeds")
				}
			default:
			}
		}
		_ = accepted.(*conn).close()
		client.Close()
	}
}
