//go:build integration || torture

package soak

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pagewright/storage/test/service"
)

const (
	hostileAddr = "127.0.0.2"
	closed      = "connection closed before the answer"
	hostileSite = "hostile"
	lockedSite  = "locked"

	behaved     = 3                      // clients that behave
	tries       = 20                     // an operation of theirs succeeds within so many
	patience    = 100 * time.Millisecond // between them
	answerTime  = 10 * time.Second       // an answer comes within: a budget has its callers wait for half of that
	settleTime  = 2 * time.Second        // in which the hostile clients take what they can
	keptMemory  = 48 << 20               // bytes above idle that may stay: what Go keeps for the next time
	keptFiles   = 4                      // descriptors that may
	openFiles   = 2048                   // that the service may have; a quarter of them are connections
	largeBuild  = 64 << 20
	hostileLog  = 2 << 20
	hostileLogs = 8
)

// hostile are clients of one address that try to hold every budget, and others
// that behave.
type hostile struct {
	t    *testing.T
	s    *service.Service
	base string // "": the store is no directory
	ctx  context.Context
	all  sync.WaitGroup

	counts sync.Map // what happened: *atomic.Int64 by name

	mu      sync.Mutex
	builds  map[string][]byte   // acknowledged, by name; nil: deleted
	entries map[string][]string // acknowledged, by name of the build
	slowest map[string]time.Duration
}

// role is a way to hold a budget, and how many connections do it at once.
type role struct {
	name  string
	conns int
	one   func(h *hostile, c *hostileConn, i int)
}

var rolesOnDirectory = []role{
	{"trickled upload", 24, (*hostile).trickleUpload},
	{"trickled entry", 40, (*hostile).trickleEntry},
	{"slow list", 40, (*hostile).slowList},
	{"slow download", 10, (*hostile).slowDownload},
	{"append to a locked site", 300, (*hostile).appendLocked},
	{"idle", openFiles / 4, (*hostile).idle},
}

var rolesOnS3 = []role{
	{"unfinished part", 80, (*hostile).unfinishedPart},
	{"trickled entry", 40, (*hostile).trickleEntry},
	{"slow list", 40, (*hostile).slowList},
	{"slow download", 40, (*hostile).slowDownload},
	{"idle", openFiles / 4, (*hostile).idle},
}

// Clients of one address hold all that they can of each budget. Others are served
// meanwhile: an operation of theirs may be answered 503 with Retry-After, and
// succeeds within a bounded number of tries. In the end memory and descriptors
// return, and what was acknowledged is there.
func TestHostileClients(t *testing.T) {
	base, profiler := service.SharedDir(t), freeAddress(t)
	s := service.Start(t, service.Options{Bin: service.Build(t), Base: base,
		Wrap: limitFiles,
		Env:  []string{"MAX_UPLOADS=16", "STALL_TIMEOUT=3s", "PPROF_LISTEN=" + profiler}})
	h := newHostile(t, s, base)
	h.run(profiler, rolesOnDirectory)
	service.Until(t, "no temporary file to be left", func() bool { return len(service.Temps(t, base)) == 0 })
}

// The same on an object store, where uploads hold buffers of parts.
func TestHostileClientsOnS3(t *testing.T) {
	if hostileTime < time.Minute {
		t.Skip("in the long form only: a part is held for half a minute")
	}
	profiler := freeAddress(t)
	o := service.OnS3(service.Build(t), service.StartS3(t))
	o.Wrap = limitFiles
	o.Env = append(o.Env, "STALL_TIMEOUT=3s", "PPROF_LISTEN="+profiler)
	newHostile(t, service.Start(t, o), "").run(profiler, rolesOnS3)
}

// limitFiles gives the service openFiles descriptors.
var limitFiles = []string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, openFiles), "sh"}

func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newHostile(t *testing.T, s *service.Service, base string) *hostile {
	return &hostile{t: t, s: s, base: base, builds: map[string][]byte{}, entries: map[string][]string{}, slowest: map[string]time.Duration{}}
}

// run lets the roles loose for hostileTime.
func (h *hostile) run(profiler string, roles []role) {
	t := h.t
	h.prepare()
	ctx, cancel := context.WithTimeout(t.Context(), hostileTime)
	defer cancel()
	h.ctx = ctx
	memory, err := h.s.Memory("VmRSS")
	if err != nil {
		t.Fatal(err)
	}
	files := h.files()
	unlock := h.lock()
	for _, r := range roles {
		for i := range r.conns {
			h.all.Go(func() { h.play(r, i) })
		}
	}
	h.pause(settleTime)
	for n := range behaved {
		h.all.Go(func() { h.behave(n) })
	}
	h.all.Wait()
	unlock()
	peak, err := h.s.Memory("VmHWM")
	if err != nil {
		t.Fatal(err)
	}
	after := h.memoryReturns(profiler, memory)
	service.Until(t, "the descriptors to be closed", func() bool { return h.files() <= files+keptFiles })
	h.checkAll()
	h.report()
	t.Logf("memory %d MiB, at most %d, then %d; descriptors %d, then %d", memory>>20, peak>>20, after>>20, files, h.files())
	served := int64(0)
	for _, op := range []string{"put", "get", "append", "list", "delete"} {
		n := h.count(op).Load()
		served += n
		if n == 0 {
			t.Errorf("nobody was served a %s", op)
		}
	}
	if n := h.count(closed).Load(); n > behaved+served/100 {
		t.Errorf("%d requests of %d had their connection closed", n, served)
	}
}

func (h *hostile) count(name string) *atomic.Int64 {
	n, _ := h.counts.LoadOrStore(name, new(atomic.Int64))
	return n.(*atomic.Int64)
}

func (h *hostile) report() {
	var lines []string
	h.counts.Range(func(name, n any) bool {
		line := fmt.Sprintf("%s %d", name, n.(*atomic.Int64).Load())
		if d := h.slowest[name.(string)]; d > 0 {
			line += fmt.Sprintf(" (slowest %v)", d.Round(time.Millisecond))
		}
		lines = append(lines, line)
		return true
	})
	slices.Sort(lines)
	h.t.Logf("%v:\n%s", hostileTime, strings.Join(lines, "\n"))
}

func (h *hostile) files() int {
	n, _, err := h.s.Descriptors()
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// prepare stores what the hostile clients read, and uses the service once.
func (h *hostile) prepare() {
	large := bytes.Repeat([]byte("0123456789abcdef"), largeBuild>>4)
	client := service.Client(1)
	defer client.CloseIdleConnections()
	if err := h.put(client, hostileSite, "large", large); err != nil {
		h.t.Fatal(err)
	}
	entry := `{"build_id":"b%d","action":"a","status":"s","metadata":{"x":"` + strings.Repeat("m", 1<<19) + `"}}`
	for i := range hostileLogs {
		for range hostileLog >> 19 {
			if err := h.post(client, hostileSite, fmt.Sprintf(entry, i), ""); err != nil {
				h.t.Fatal(err)
			}
		}
	}
	if err := h.post(client, lockedSite, `{"build_id":"b","action":"a","status":"s"}`, ""); err != nil {
		h.t.Fatal(err)
	}
	for _, op := range h.operations(client, "warm", 0) {
		if err := op.do(); err != nil {
			h.t.Fatal(op.name, ": ", err)
		}
	}
}

// lock takes a shared lock of all of the locked site, as another process would.
func (h *hostile) lock() (unlock func()) {
	if h.base == "" {
		return func() {}
	}
	f, err := os.OpenFile(filepath.Join(h.base, "sites", lockedSite, ".lock"), os.O_RDWR, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}); err != nil {
		h.t.Fatal(err)
	}
	return func() { f.Close() }
}

// memoryReturns polls until the memory is near what it was. The runtime collects
// every two minutes at the latest, and the profiler is asked to do so now.
func (h *hostile) memoryReturns(profiler string, before int64) (after int64) {
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Second) {
		res, err := http.Get("http://" + profiler + "/debug/pprof/heap?gc=1")
		if err != nil {
			h.t.Fatal(err)
		}
		res.Body.Close()
		if after, err = h.s.Memory("VmRSS"); err != nil {
			h.t.Fatal(err)
		}
		if after-before < keptMemory {
			break
		}
		if time.Now().After(end) {
			h.t.Errorf("memory is still %d MiB above what it was", (after-before)>>20)
			break
		}
	}
	http.DefaultClient.CloseIdleConnections()
	return after
}

// hostileConn is a connection from the hostile address.
type hostileConn struct {
	net.Conn
	in *bufio.Reader
}

// play plays a role over and over, each time on a new connection.
func (h *hostile) play(r role, i int) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(hostileAddr)}, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 8<<10) })
	}}
	for h.ctx.Err() == nil {
		conn, err := d.DialContext(h.ctx, "tcp", h.s.Addr)
		if err != nil {
			h.pause(time.Second)
			continue
		}
		stop := context.AfterFunc(h.ctx, func() { conn.Close() })
		h.count("hostile: " + r.name + ", begun").Add(1)
		r.one(h, &hostileConn{conn, bufio.NewReaderSize(conn, 1<<10)}, i)
		stop()
		conn.Close()
		if h.ctx.Err() != nil {
			h.count("hostile: " + r.name + ", held to the end").Add(1)
		}
		h.pause(time.Second)
	}
}

func (h *hostile) pause(d time.Duration) {
	select {
	case <-h.ctx.Done():
	case <-time.After(d):
	}
}

// trickle sends a body faster than the stall rule and the minimum rate ask for,
// and no faster than that, until it is refused or the run ends.
func (h *hostile) trickle(c *hostileConn, head string) {
	if _, err := io.WriteString(c, head); err != nil {
		return
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		c.in.Peek(1)
	}()
	piece := bytes.Repeat([]byte("m"), 2<<10)
	for {
		if _, err := c.Write(piece); err != nil {
			return
		}
		select {
		case <-answered:
			return
		case <-h.ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

func (h *hostile) trickleUpload(c *hostileConn, i int) {
	h.trickle(c, fmt.Sprintf("PUT /sites/%s/artifacts/t%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n", hostileSite, i))
}

// unfinishedPart sends nearly all of a part at once.
func (h *hostile) unfinishedPart(c *hostileConn, i int) {
	h.trickle(c, fmt.Sprintf("PUT /sites/%s/artifacts/t%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n%s",
		hostileSite, i, strings.Repeat("m", 8<<20-100<<10)))
}

func (h *hostile) trickleEntry(c *hostileConn, i int) {
	h.trickle(c, fmt.Sprintf("POST /sites/%s/logs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"+
		`{"build_id":"t%d","action":"a","status":"s","metadata":{"x":"`, hostileSite, 1<<20, i))
}

// sip reads an answer no faster than it must.
func (h *hostile) sip(c *hostileConn, path string) {
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	buf := make([]byte, 4<<10)
	for {
		if _, err := io.ReadFull(c.in, buf); err != nil {
			return
		}
		h.pause(time.Second)
	}
}

func (h *hostile) slowList(c *hostileConn, _ int) {
	h.sip(c, "/sites/"+hostileSite+"/versions?metadata=true")
}

func (h *hostile) slowDownload(c *hostileConn, _ int) {
	h.sip(c, "/sites/"+hostileSite+"/artifacts/large")
}

func (h *hostile) appendLocked(c *hostileConn, i int) {
	const entry = `{"build_id":"b","action":"a","status":"s"}`
	fmt.Fprintf(c, "POST /sites/%s/logs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", lockedSite, len(entry), entry)
	c.in.ReadByte()
}

// idle makes a request, so that the connection counts as one that is idle.
func (h *hostile) idle(c *hostileConn, _ int) {
	io.WriteString(c, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
	io.Copy(io.Discard, c.in) // until it is closed
}

// operation is what a client that behaves does.
type operation struct {
	name string
	do   func() error
}

// behave does one operation after another, each until it succeeds.
func (h *hostile) behave(n int) {
	for i := 0; h.ctx.Err() == nil; i++ {
		client := service.Client(1) // a new connection for each round
		client.Timeout = answerTime
		for _, op := range h.operations(client, fmt.Sprint("w", n), i) {
			if !h.insist(op) {
				return
			}
		}
		client.CloseIdleConnections()
	}
}

// insist repeats an operation that is answered 503, and reports whether it succeeded.
func (h *hostile) insist(op operation) bool {
	start := time.Now()
	var err error
	for range tries {
		if err = op.do(); err == nil {
			h.count(op.name).Add(1)
			h.mu.Lock()
			h.slowest[op.name] = max(h.slowest[op.name], time.Since(start))
			h.mu.Unlock()
			return true
		}
		var busy busyError
		switch {
		case errors.As(err, &busy):
			h.count(op.name + " answered 503").Add(1)
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
			// A connection that sends nothing for a second is closed for others,
			// and on a busy machine a client may be as slow as that.
			h.count(closed).Add(1)
		default:
			return h.failed(op, start, err)
		}
		time.Sleep(patience)
	}
	return h.failed(op, start, err)
}

func (h *hostile) failed(op operation, start time.Time, err error) bool {
	h.count(op.name + " failed").Add(1)
	h.t.Errorf("%s, after %v: %v", op.name, time.Since(start).Round(time.Millisecond), err)
	return false
}

// operations are those of round i of a client that behaves, in the site of its name.
func (h *hostile) operations(client *http.Client, site string, i int) []operation {
	name := fmt.Sprintf("b%d", i%10)
	key := site + "/" + name
	data := bytes.Repeat(fmt.Appendf(nil, "%s %d.", key, i), 1+i*997%20000)
	id := fmt.Sprintf("%s-%d", site, i)
	ops := []operation{
		{"put", func() error { return h.put(client, site, name, data) }},
		{"get", func() error { return h.get(client, key, data) }},
		{"append", func() error {
			err := h.post(client, site, fmt.Sprintf(`{"build_id":%q,"action":"a","status":%q}`, name, id), id)
			if err == nil {
				h.mu.Lock()
				h.entries[key] = append(h.entries[key], id)
				h.mu.Unlock()
			}
			return err
		}},
		{"list", func() error { return h.list(client, site) }},
	}
	if i%5 == 0 {
		ops = append(ops, operation{"delete", func() error { return h.remove(client, key) }})
	}
	return ops
}

// busyError is an answer of 503 with Retry-After.
type busyError struct{ error }

// answer checks the status of an answer and returns its body. A request is sent
// again by the client itself where its connection had been closed when it was idle.
func (h *hostile) answer(client *http.Client, method, url string, body []byte, id string, want int) ([]byte, error) {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header["X-Idempotency-Key"] = nil // not sent; it marks the request as one that may be
	if id != "" {
		req.Header.Set("Idempotency-Key", id)
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return nil, err
	case res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") != "":
		return nil, busyError{fmt.Errorf("503: %.200s", data)}
	case res.StatusCode != want:
		return nil, fmt.Errorf("status %d, not %d: %.200s", res.StatusCode, want, data)
	}
	return data, nil
}

func (h *hostile) put(client *http.Client, site, name string, data []byte) error {
	_, err := h.answer(client, "PUT", h.s.URL(site, name), data, "", http.StatusCreated)
	if err == nil && site != hostileSite {
		h.mu.Lock()
		h.builds[site+"/"+name] = data
		h.mu.Unlock()
	}
	return err
}

func (h *hostile) post(client *http.Client, site, entry, id string) error {
	_, err := h.answer(client, "POST", "http://"+h.s.Addr+"/sites/"+site+"/logs", []byte(entry), id, http.StatusCreated)
	return err
}

func (h *hostile) get(client *http.Client, key string, want []byte) error {
	site, name := split(key)
	status := http.StatusOK
	if want == nil {
		status = http.StatusNotFound
	}
	got, err := h.answer(client, "GET", h.s.URL(site, name), nil, "", status)
	if err == nil && want != nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%s: other bytes than were sent", key)
	}
	return err
}

func (h *hostile) remove(client *http.Client, key string) error {
	site, name := split(key)
	_, err := h.answer(client, "DELETE", h.s.URL(site, name), nil, "", http.StatusNoContent)
	if err == nil {
		h.mu.Lock()
		h.builds[key] = nil
		h.mu.Unlock()
	}
	return err
}

// list checks that a list has all builds and entries that were acknowledged.
func (h *hostile) list(client *http.Client, site string) error {
	data, err := h.answer(client, "GET", "http://"+h.s.Addr+"/sites/"+site+"/versions", nil, "", http.StatusOK)
	if err != nil {
		return err
	}
	var answer struct{ Versions []version }
	if err := json.Unmarshal(data, &answer); err != nil {
		return err
	}
	listed := map[string]version{}
	for _, v := range answer.Versions {
		listed[v.BuildID] = v
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, data := range h.builds {
		if s, name := split(key); s == site && listed[name].SizeBytes != int64(len(data)) {
			return fmt.Errorf("%s is listed with %d bytes, not %d", key, listed[name].SizeBytes, len(data))
		}
	}
	for key, ids := range h.entries {
		s, name := split(key)
		if s != site {
			continue
		}
		there := map[string]int{}
		for _, e := range listed[name].Logs {
			there[e.Status]++
		}
		for _, id := range ids {
			if there[id] != 1 {
				return fmt.Errorf("%s: entry %s is listed %d times", key, id, there[id])
			}
		}
	}
	return nil
}

// checkAll checks all that was acknowledged.
func (h *hostile) checkAll() {
	client := service.Client(1)
	defer client.CloseIdleConnections()
	for key, data := range h.builds {
		if err := h.get(client, key, data); err != nil {
			h.t.Errorf("in the end: %v", err)
		}
	}
	for n := range behaved {
		if err := h.list(client, fmt.Sprint("w", n)); err != nil {
			h.t.Errorf("in the end: %v", err)
		}
	}
}
