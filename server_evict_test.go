package main

import (
	"bufio"
	"container/list"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// crowd is a service that takes few connections, and its listener.
type crowd struct {
	*testServer
	l *listener
}

func startCrowd(t *testing.T, max int, vars ...string) *crowd {
	t.Helper()
	c := &crowd{}
	c.testServer, _ = startTuned(t, func(_ *service, l *listener) { c.l, l.max = l, max }, vars...)
	return c
}

// idle counts the connections that wait for a request.
func (c *crowd) idle() (n int) {
	c.l.idle.mu.Lock()
	defer c.l.idle.mu.Unlock()
	for _, of := range []*list.List{&c.l.idle.fresh, &c.l.idle.kept} {
		for e := of.Front(); e != nil; e = e.Next() {
			if e.Value.(*conn).state.Load() == connIdle {
				n++
			}
		}
	}
	return n
}

// settles waits until so many connections are open, and so many of them idle.
func (c *crowd) settles(t *testing.T, open, idle int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d connections, %d of them idle", open, idle), func() bool {
		return c.l.connections() == open && c.idle() == idle
	})
}

// handClient is a connection that the test reads and writes by hand.
type handClient struct {
	net.Conn
	r *bufio.Reader
}

// from connects from an address of the loopback.
func (c *crowd) from(t *testing.T, address string) *handClient {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	conn, err := d.Dial("tcp", c.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(60 * time.Second))
	return &handClient{conn, bufio.NewReader(conn)}
}

// answer sends text and reads the answer to it, nil if the connection ends.
func (c *handClient) answer(text string) *http.Response {
	_, _ = io.WriteString(c, text)
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return nil
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(strings.NewReader(string(body)))
	return resp
}

// status is the status of answer, 0 if the connection ends.
func (c *handClient) status(text string) int {
	if resp := c.answer(text); resp != nil {
		return resp.StatusCode
	}
	return 0
}

const (
	askHealth   = "GET /health HTTP/1.1\r\nHost: h\r\n\r\n"
	half        = "GET /health HTTP/1.1\r\nHo" // a request that has begun
	otherHalf   = "st: h\r\n\r\n"
	here        = "127.0.0.1"
	there       = "127.0.0.2"
	smallPut    = "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx"
	metricsOnce = "GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
)

// TestTheLongestIdleMakesRoom: at the limit a new connection takes the place of the
// one that has waited for a request for longest.
func TestTheLongestIdleMakesRoom(t *testing.T) {
	s := startCrowd(t, 3)
	all := make([]*handClient, 3)
	for i := range all {
		all[i] = s.from(t, here)
		if got := all[i].status(askHealth); got != 200 {
			t.Fatalf("answered %d", got)
		}
		s.settles(t, i+1, i+1)
	}
	if got := all[0].status(askHealth); got != 200 { // so the second is idle for longest
		t.Fatalf("answered %d", got)
	}
	s.settles(t, 3, 3)
	for n, oldest := range []int{1, 2, 0} {
		late := s.from(t, here)
		if got := late.status(askHealth); got != 200 {
			t.Fatalf("a new connection: answered %d", got)
		}
		if got := all[oldest].status(""); got != 0 {
			t.Errorf("the one that was idle for longest was kept: %d", got)
		}
		s.settles(t, 3, 3)
		if n == 0 {
			continue
		}
		if got := late.status(askHealth); got != 200 { // it is the last in the order again
			t.Errorf("the new connection was not kept: %d", got)
		}
		s.settles(t, 3, 3)
	}
	s.waitForLog(t, "closing the longest idle connection")
	if n := strings.Count(s.log.String(), "closing the longest idle connection"); n != 1 {
		t.Errorf("the log says so %d times", n)
	}
	resp := s.from(t, here).answer(metricsOnce)
	body, _ := io.ReadAll(resp.Body)
	if want := `pagewright_http_connections_evicted_total{reason="idle"} 4`; !strings.Contains(string(body), want) {
		t.Errorf("the metrics lack %s", want)
	}
}

// TestAConnectionInUseIsNotEvicted: with all in use, from the first byte of a
// request to the last of its answer, a new one is refused and told so.
func TestAConnectionInUseIsNotEvicted(t *testing.T) {
	s := startCrowd(t, 4)
	s.testServer.put(t, 201, "/sites/a/artifacts/large", make([]byte, 64<<20))
	testClient.CloseIdleConnections()
	s.settles(t, 0, 0)
	header, body, answer, unread := s.from(t, here), s.from(t, here), s.from(t, here), s.from(t, here)
	_, _ = io.WriteString(header, "G")
	_, _ = io.WriteString(body, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nx")
	_, _ = io.WriteString(answer, "GET /sites/a/artifacts/large HTTP/1.1\r\nHost: h\r\n\r\n")
	_, _ = io.WriteString(unread, "POST /sites/../logs HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nx") // is drained
	if _, err := answer.r.Peek(1); err != nil {
		t.Fatal(err)
	}
	if got := unread.status(""); got != 400 {
		t.Fatalf("answered %d", got)
	}
	s.settles(t, 4, 0)
	resp := s.from(t, here).answer(askHealth)
	if resp == nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || resp.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("the fifth connection: %v", resp)
	}
	if text, _ := io.ReadAll(resp.Body); string(text) != `{"status":"error","error":"too many connections"}`+"\n" {
		t.Errorf("answered %s", text)
	}
	for _, c := range []struct {
		*handClient
		rest string
		want int
	}{{header, askHealth[1:], 200}, {body, "y", 201}, {answer, "", 200}, {unread, strings.Repeat("x", 999) + askHealth, 200}} {
		if got := c.status(c.rest); got != c.want {
			t.Errorf("one in use was answered %d, want %d", got, c.want)
		}
	}
	s.settles(t, 4, 4)
	resp = s.from(t, here).answer(metricsOnce)
	metrics, _ := io.ReadAll(resp.Body)
	if want := `pagewright_http_connections_refused_total{reason="limit"} 1`; !strings.Contains(string(metrics), want) {
		t.Errorf("the metrics lack %s", want)
	}
}

// TestWhatArrivesAfterTheEvictionIsNotServed: a request is served, or its connection
// is closed for another, and never both.
func TestWhatArrivesAfterTheEvictionIsNotServed(t *testing.T) {
	s := startCrowd(t, 3)
	for name, begin := range map[string]string{"fresh": "", "kept": askHealth} {
		t.Run(name, func(t *testing.T) {
			c := s.from(t, here)
			if begin != "" && c.status(begin) != 200 {
				t.Fatal("not answered")
			}
			s.settles(t, 1, 1)
			if s.l.idle.takeOldest() == nil { // and it is not closed yet
				t.Fatal("it is not idle")
			}
			if got := c.status(smallPut); got != 0 {
				t.Errorf("answered %d", got)
			}
			s.settles(t, 0, 0)
			if files := filesBelow(t, s.dir); len(files) > 0 {
				t.Errorf("stored: %v", files)
			}
		})
	}
}

// TestAPipelinedRequestIsNotEvicted: a connection is not idle while a part of its
// next request, which came with the one before, is read already.
func TestAPipelinedRequestIsNotEvicted(t *testing.T) {
	const many = 20 // one may not have come to wait for the rest yet
	s := startCrowd(t, many)
	var all []*handClient
	for range many {
		c := s.from(t, here)
		if got := c.status(askHealth + half); got != 200 {
			t.Fatalf("answered %d", got)
		}
		all = append(all, c)
	}
	s.settles(t, many, 0)
	if got := s.from(t, here).status(askHealth); got != 503 {
		t.Errorf("another was answered %d, want 503", got)
	}
	for _, c := range all {
		if got := c.status(otherHalf); got != 200 {
			t.Errorf("the second request was answered %d", got)
		}
	}
}

// TestOrderOfEviction: what is silent since it was opened goes first, but is given
// time for its request to arrive.
func TestOrderOfEviction(t *testing.T) {
	const old, recent = 2 * freshPatience, freshPatience / 100
	type idle struct {
		name  string
		fresh bool
		age   time.Duration
	}
	for _, c := range []struct {
		conns []idle // in the order in which they became idle
		want  string
	}{
		{nil, ""},
		{[]idle{{"a", false, old}, {"b", false, old}}, "ab"},
		{[]idle{{"a", false, old}, {"b", true, old}, {"c", true, old}}, "bca"},
		{[]idle{{"a", true, recent}, {"b", false, old}}, "ba"},
		{[]idle{{"a", true, recent}, {"b", true, recent}}, "ab"},
		{[]idle{{"a", true, old}, {"b", true, recent}, {"c", false, old}, {"d", false, old}}, "acdb"},
	} {
		i, names := &idleConns{}, map[*conn]string{}
		for _, one := range c.conns {
			conn := &conn{TCPConn: new(net.TCPConn), fresh: one.fresh, accepted: time.Now().Add(-one.age)}
			names[conn] = one.name
			if !i.add(conn) {
				t.Fatal("not idle")
			}
		}
		got := ""
		for conn := i.takeOldest(); conn != nil; conn = i.takeOldest() {
			got += names[conn]
			if i.add(conn) {
				t.Error("one that is over is idle again")
			}
		}
		if got != c.want || i.fresh.Len()+i.kept.Len() > 0 {
			t.Errorf("%v: closed are %s, want %s; %d are left", c.conns, got, c.want, i.fresh.Len()+i.kept.Len())
		}
	}
}

// TestNoClientKeepsMoreThanHalf: with all in use, the newest of a client with more
// than half are cut for the connections of others, and no more than that.
func TestNoClientKeepsMoreThanHalf(t *testing.T) {
	s := startCrowd(t, 4)
	open := func(address string) *handClient {
		c := s.from(t, address)
		_, _ = io.WriteString(c, half)
		return c
	}
	var own []*handClient
	for i := range 4 {
		own = append(own, open(here))
		s.settles(t, i+1, 0)
	}
	if got := s.from(t, here).status(askHealth); got != 503 {
		t.Errorf("a fifth of its own was answered %d", got)
	}
	var others []*handClient
	for i := range 2 {
		others = append(others, open(there))
		if got := own[3-i].status(""); got != 0 {
			t.Errorf("its newest was answered %d", got)
		}
		s.settles(t, 4, 0)
	}
	if got := s.from(t, there).status(askHealth); got != 503 {
		t.Errorf("one past half of the others was answered %d", got)
	}
	for _, c := range append(own[:2], others...) {
		if got := c.status(otherHalf); got != 200 {
			t.Errorf("one in use was answered %d", got)
		}
		c.Close()
	}
	s.settles(t, 0, 0)
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if len(s.l.clients) != 0 || s.l.largest != "" || s.l.ending != 0 || s.l.idle.kept.Len()+s.l.idle.fresh.Len() != 0 {
		t.Errorf("connections that are gone are kept: %v, largest %q, %d are ending", s.l.clients, s.l.largest, s.l.ending)
	}
}

// TestConnectionsThatDoNotEndAreFew: a connection that was cut may wait for a store
// that hangs. Past a few of these, new ones are refused again.
func TestConnectionsThatDoNotEndAreFew(t *testing.T) {
	release := make(chan struct{})
	var hung sync.WaitGroup
	s := &crowd{}
	s.testServer, _ = startTuned(t, func(svc *service, l *listener) {
		s.l, l.max, l.rejecting = l, 4, make(chan struct{}, 1)
		routes := svc.server.handler.serve
		svc.server.handler.serve = func(ctx *fasthttp.RequestCtx) {
			if string(ctx.Path()) == "/hangs" {
				hung.Done()
				<-release
			}
			routes(ctx)
		}
	})
	free := sync.OnceFunc(func() { close(release) })
	t.Cleanup(free)
	hung.Add(4)
	for range 4 {
		_, _ = io.WriteString(s.from(t, here), "GET /hangs HTTP/1.1\r\nHost: h\r\n\r\n")
	}
	hung.Wait()
	one := s.from(t, there)
	_, _ = io.WriteString(one, half)
	s.settles(t, 5, 0)
	if got := s.from(t, there).status(askHealth); got != 503 {
		t.Errorf("answered %d", got)
	}
	if got := one.status(otherHalf); got != 200 {
		t.Errorf("the one that was let in was answered %d", got)
	}
	free()
	eventually(t, "the one that was cut has ended", func() bool {
		s.l.mu.Lock()
		defer s.l.mu.Unlock()
		return s.l.ending == 0 && len(s.l.open) <= 4
	})
}

// TestARequestThatHasArrivedIsNotEvicted: also if nobody has read it yet.
func TestARequestThatHasArrivedIsNotEvicted(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var idle idleConns
	wait := func() (*net.TCPConn, *conn) {
		client := dial(t, l.Addr().String())
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { accepted.Close() })
		c := &conn{TCPConn: accepted.(*net.TCPConn)}
		if !idle.add(c) {
			t.Fatal("it does not wait")
		}
		return client, c
	}
	client, asks := wait()
	if _, err := io.WriteString(client, "G"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the byte has arrived", func() bool { return asks.queued() == 1 })
	_, silent := wait()
	if got := idle.takeOldest(); got != silent {
		t.Error("not the silent one was taken")
	}
	if got := idle.takeOldest(); got != nil {
		t.Error("the one that asks was taken")
	}
}
