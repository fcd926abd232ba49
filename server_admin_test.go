package main

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// startAdmin runs the program with an admin address, which it returns as a server.
func startAdmin(t *testing.T, vars ...string) (api, admin *testServer) {
	t.Helper()
	address := freeAddr(t)
	api = startServer(t, append(vars, "ADMIN_LISTEN="+address)...)
	return api, &testServer{addr: address, log: api.log}
}

// fresh sends a request on a connection of its own and returns the status.
func (s *testServer) fresh(t *testing.T, path string) int {
	t.Helper()
	c := dial(t, s.addr)
	defer c.Close()
	_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", path)
	return readStatus(c)
}

func TestWhatTheAdminAddressServes(t *testing.T) {
	api, admin := startAdmin(t)
	api.ready(t)
	for _, c := range []struct {
		method, path   string
		onAdmin, onAPI int
	}{
		{"GET", "/health", 200, 200},
		{"HEAD", "/health", 200, 200},
		{"GET", "/ready", 200, 200},
		{"GET", "/metrics", 200, 404},
		{"GET", "/openapi.yaml", 404, 200},
		{"GET", "/sites/a/versions", 404, 200},
		{"PUT", "/sites/a/artifacts/b", 404, 400},
		{"GET", "/sites//versions", 404, 400},
		{"GET", "/debug/pprof/", 404, 404},
		{"POST", "/health", 405, 405},
	} {
		admin.do(t, c.onAdmin, request{c.method, c.path, nil, nil})
		api.do(t, c.onAPI, request{c.method, c.path, nil, nil})
	}
	eventually(t, "requests of both are counted", func() bool {
		return scrape(t, admin)[`pagewright_http_requests_total{route="health",method="GET",status="200"}`] == 2
	})
	if got := scrape(t, admin)["pagewright_http_connections"]; got != 1 {
		t.Errorf("%v connections of the API are counted, want 1", got)
	}
	eventually(t, "requests are logged", func() bool { return strings.Contains(api.log.String(), `"path":"/openapi.yaml","status":404`) })
	// Nothing listens on this port: it is the admin address that is asked.
	if _, err := runWith([]string{"healthcheck"}, "PORT=1", "ADMIN_LISTEN="+admin.addr); err != nil {
		t.Error(err)
	}
}

// TestTheAdminAddressAnswersWithoutDescriptors: the API's connections have all
// descriptors, and none is idle.
func TestTheAdminAddressAnswersWithoutDescriptors(t *testing.T) {
	address := freeAddr(t)
	s, waitFor := startLimited(t, 1000, "ADMIN_LISTEN="+address)
	if err := unix.Prlimit(s.pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 40, Max: 40}, nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range connect(t, s.addr, 60) {
		_, _ = io.WriteString(c, half)
	}
	waitFor("too many open files")
	admin := &testServer{addr: address}
	for i := range 3 * adminSpares { // each is kept for the next
		if got := admin.fresh(t, "/health"); got != 200 {
			t.Fatalf("/health for the time %d: %d", i, got)
		}
	}
	if got := admin.fresh(t, "/metrics"); got != 200 {
		t.Errorf("/metrics: %d", got)
	}
	if got := admin.fresh(t, "/ready"); got != 200 && got != 503 { // its probe opens files
		t.Errorf("/ready: %d", got)
	}
}

// TestTheAdminAddressHasRoom: who keeps connections to it idle does not keep others out.
func TestTheAdminAddressHasRoom(t *testing.T) {
	_, admin := startAdmin(t)
	connect(t, admin.addr, 2*adminConnections)
	eventually(t, "they are idle", func() bool { return admin.fresh(t, "/health") == 200 })
	for range 3 {
		if got := admin.fresh(t, "/health"); got != 200 {
			t.Fatalf("answered %d", got)
		}
	}
}

// TestTheAdminAddressAnswersUntilTheEnd: during a shutdown it says that there is
// one, when the API takes no connections any more.
func TestTheAdminAddressAnswersUntilTheEnd(t *testing.T) {
	api, admin := startAdmin(t)
	r, w := io.Pipe()
	answered := make(chan any, 1)
	go func() { answered <- statusOr(api.try(request{"PUT", "/sites/a/artifacts/b", r, nil})) }()
	_, _ = w.Write([]byte("be"))
	waitForTemp(t, api)
	stopped := make(chan error, 1)
	go func() { stopped <- api.stop() }()
	waitForClosed(t, api)
	for path, want := range map[string]int{"/health": 200, "/ready": 503, "/metrics": 200} {
		if got := admin.fresh(t, path); got != want {
			t.Errorf("%s is answered %d, want %d", path, got, want)
		}
	}
	if scrape(t, admin)["pagewright_stopping"] != 1 {
		t.Error("the metrics do not tell of the shutdown")
	}
	_, _ = w.Write([]byte("gun"))
	w.Close()
	if got := <-answered; got != 201 {
		t.Errorf("the upload in flight: %v", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", admin.addr); err == nil {
		c.Close()
		t.Error("it takes connections after the end")
	}
}

// TestTheAdminAddressIsNotTheAPIs: all connections of the API and all places of its
// requests are taken, and neither is missing on the admin address.
func TestTheAdminAddressIsNotTheAPIs(t *testing.T) {
	h := hanging{release: make(chan struct{})}
	cfg, _, err := parseConfig([]string{"PAGEWRIGHT_PORT=0", "PAGEWRIGHT_LISTEN=127.0.0.1", "PAGEWRIGHT_ADMIN_LISTEN=" + freeAddr(t)})
	if err != nil {
		t.Fatal(err)
	}
	svc := newService(cfg, h, quiet())
	l, err := svc.listen()
	if err != nil {
		t.Fatal(err)
	}
	l.max = maxReads
	serveUntilTheEnd(t, svc, l, func() { close(h.release) })
	stopAdmin, err := svc.serveAdmin()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stopAdmin)
	for range maxReads {
		c := dial(t, l.Addr().String())
		_, _ = io.WriteString(c, "GET /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n\r\n")
	}
	eventually(t, "every place is taken", func() bool { return svc.reads.inUse() == maxReads })
	api, admin := &testServer{addr: l.Addr().String()}, &testServer{addr: cfg.AdminListen}
	for path, want := range map[string]int{"/health": 200, "/metrics": 200, "/ready": 503} {
		if got := api.fresh(t, path); got != 503 {
			t.Errorf("the API has room: %s is answered %d", path, got)
		}
		if got := admin.fresh(t, path); got != want {
			t.Errorf("%s is answered %d, want %d", path, got, want)
		}
	}
}
