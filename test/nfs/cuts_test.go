//go:build integration || torture

package nfs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pagewright/storage/test/history"
	"pagewright/storage/test/vm"
)

// A Linux client that renames over a file which its host has open, or is looking
// up, renames the old file away first: for the time between two requests the
// name is missing on the server. So some of the cuts come exactly then: the
// server sees that the name is missing and takes its links down, which is what
// the client sees of a cut.

// The build that is replaced, appended to, downloaded and listed all the time,
// and never deleted.
const (
	hotSite  = "hot"
	hotBuild = "build"
	hotKey   = hotSite + "/" + hotBuild
	hotSize  = 1 << 20
)

// Where the server has it.
const (
	hotFile = "/srv/disk/export/sites/hot/artifacts/build.tar.gz"
	hotLog  = "/srv/disk/export/sites/hot/logs/build.json"
)

// cut is one way to lose power.
type cut struct {
	name    string
	clients []int  // that lose it
	server  int    // order: 0 keeps its power, 1 loses it before the clients, 2 after them
	gap     string // the cut comes when this file is missing; "": at a random moment
}

var (
	bothAtGap       = cut{"client and server with the build missing", []int{0, 1}, 2, hotFile}
	bothAtLogGap    = cut{"client and server with the log missing", []int{0, 1}, 2, hotLog}
	bothServerFirst = cut{"server and client", []int{0, 1}, 1, ""}
	bothClientFirst = cut{"client and server", []int{0, 1}, 2, ""}
	serverAtGap     = cut{"server with the build missing", nil, 1, hotFile}
	serverAtLogGap  = cut{"server with the log missing", nil, 1, hotLog}
	serverAlone     = cut{"server", nil, 1, ""}
	clientsAtGap    = cut{"clients with the build missing", []int{0, 1}, 0, hotFile}
	clientsAtLogGap = cut{"clients with the log missing", []int{0, 1}, 0, hotLog}
	clientsAlone    = cut{"clients", []int{0, 1}, 0, ""}
	oneAtGap        = cut{"one of two clients with the build missing", []int{0}, 0, hotFile}
	oneAtLogGap     = cut{"one of two clients with the log missing", []int{0}, 0, hotLog}
	oneAlone        = cut{"one of two clients", []int{0}, 0, ""}
	oneAndServer    = cut{"one of two clients and server", []int{0}, 2, ""}
	oneServerGap    = cut{"one of two clients and server with the build missing", []int{0}, 1, hotFile}
)

// Machines lose their power under a load of everything that writes and reads.
// After each cut the files are as the promise has it, and both services say the
// same.
func TestPowerCutsOnNFS(t *testing.T) {
	for i, p := range protocols {
		cuts := cutsPerProtocol[i]
		if len(cuts) == 0 {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			c := newCutter(t, p, service)
			defer c.report(t, p.name) // also of a run that cannot go on
			for _, how := range cuts {
				c.cut(t, how)
				if len(c.violations) > 0 { // each later cut would find the same again
					break
				}
			}
			failAll(t, c.violations)
		})
	}
}

// failAll reports violations, if not too many to read.
func failAll(t *testing.T, violations []string) {
	t.Helper()
	for _, v := range violations[:min(20, len(violations))] {
		t.Error(v)
	}
	if more := len(violations) - 20; more > 0 {
		t.Errorf("and %d more", more)
	}
}

// cutter takes a network through cuts, and keeps what it found.
type cutter struct {
	*network
	seed    uint64
	rng     *rand.Rand
	began   time.Time
	drivers []*history.Driver
	entries atomic.Int64 // acknowledged in the log of the hot build
	reads   atomic.Int64 // downloads and lists that were judged

	cuts, gaps, unknown, placed, temps, silly int

	mu         sync.Mutex
	violations []string
}

func newCutter(t *testing.T, p protocol, program string) *cutter {
	t.Helper()
	c := &cutter{seed: rand.Uint64(), began: time.Now()}
	t.Logf("seed %d", c.seed)
	c.rng = rand.New(rand.NewPCG(c.seed, 0))
	c.network = p.connect(t, 2, map[string]string{vm.ServicePath: program})
	c.drivers = c.serve(t)
	d := c.drivers[0]
	for _, kind := range []history.Kind{history.Put, history.Append} {
		if status := d.Do(t.Context(), kind, hotKey, hotSize); status != 201 {
			t.Fatalf("status %d\n%s", status, c.clients[0].ServiceLog(t.Context(), port))
		}
	}
	c.entries.Store(1)
	for i := range c.drivers {
		c.prepare(t, i)
	}
	return c
}

// prepare makes a client ready for the load, after its service was started.
func (c *cutter) prepare(t *testing.T, i int) {
	t.Helper()
	c.drivers[i].Linger = true
	run(t, c.clients[i], "%s", smallBuffers)
	keepOpen(t, c.clients[i], hotLog)
}

// keepOpen has somebody on a client hold a file open at most moments until
// /tmp/stop is made there, as many lists would: few can be afforded here.
func keepOpen(t *testing.T, m *vm.Machine, file string) {
	t.Helper()
	run(t, m, "rm -f /tmp/stop; (while [ ! -e /tmp/stop ]; do sleep 0.2 <%s%s || sleep 0.1; done) >/dev/null 2>&1 </dev/null &",
		mount, strings.TrimPrefix(file, "/srv/disk/export"))
}

// slowDialer connects a client that downloads slowly. The kernel here sizes the
// buffers of qemu by the length of a segment, which is long on loopback.
var slowDialer = net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
	c.Control(func(fd uintptr) {
		err = errors.Join(syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10),
			syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 536))
	})
	return err
}}

// smallBuffers makes a slow download keep its file open, by keeping it from
// being in buffers as a whole.
const smallBuffers = "echo 4096 65536 65536 >/proc/sys/net/ipv4/tcp_wmem"

func (c *cutter) fault(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.violations = append(c.violations, fmt.Sprintf(format, args...))
}

// cut puts the load on, cuts the power, gives it back and judges.
func (c *cutter) cut(t *testing.T, how cut) {
	t.Helper()
	began, times := time.Now(), ""
	mark := func(what string) { times += fmt.Sprintf(", %s %.1f", what, time.Since(began).Seconds()) }
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	loaded := make(chan struct{})
	_, before, _, _ := c.drivers[0].History.Count()
	go func() {
		defer close(loaded)
		c.load(ctx)
	}()
	eventually(t, "the load", func() bool { _, done, _, _ := c.drivers[0].History.Count(); return done > before+10 })
	mark("load")
	links := c.links()
	if how.gap != "" {
		c.gaps++
		gapCtx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if out, err := c.server.Run(gapCtx, "guest gap "+links+" "+how.gap); err != nil {
			t.Fatalf("no moment found at which %s is missing: %v\n%s", how.gap, err, out)
		}
	} else {
		time.Sleep(time.Duration(c.rng.Int64N(int64(2 * time.Second))))
	}
	stop()
	if how.server == 1 {
		c.server.Cut()
	}
	for _, i := range how.clients {
		c.clients[i].Cut()
	}
	if how.server == 2 {
		c.server.Cut()
	}
	_, _, _, unknown := c.drivers[0].History.Count()
	c.cuts++
	mark("cut")

	switch {
	case how.server != 0:
		c.startServer(t)
		if len(how.clients) == len(c.clients) { // nobody has locks to get back
			run(t, c.server, "echo Y >/proc/fs/nfsd/v4_end_grace")
		}
	case how.gap != "":
		run(t, c.server, "guest links %s up", links)
	}
	if len(how.clients) == len(c.clients) { // else the other one is writing still
		inv := c.scan(t)
		c.placed += inv.Placed
		c.temps += inv.Temps
		c.silly += inv.Silly
	}
	mark("server")
	if len(how.clients) > 0 {
		c.startClients(t, how.clients...)
	}
	mark("clients")
	for _, i := range how.clients {
		d := history.NewDriver(startService(t, c.clients[i]), c.drivers[i].History, patience)
		c.drivers[i] = d
		c.prepare(t, i)
	}
	mark("services")
	select {
	case <-loaded: // also what the others had begun before the cut
	case <-time.After(2 * patience):
		t.Fatal("requests hang after the power is back")
	}
	for _, d := range c.drivers {
		eventually(t, "/ready", func() bool { return ready(t, d).status == 200 })
	}
	mark("ready")
	c.unknown += unknown
	found := c.judge(t)
	t.Logf("cut %d: %s: %d unknown, %d violations; seconds%s, judged %.1f", c.cuts, how.name, unknown, found, times[1:], time.Since(began).Seconds())
}

// links are the names of the server's links.
func (c *cutter) links() string {
	var names []string
	for i := range c.clients {
		names = append(names, fmt.Sprintf("eth%d", i+1))
	}
	return strings.Join(names, ",")
}

// judge compares the store with what was acknowledged, while no client writes,
// and gives the number of violations found since the last time.
func (c *cutter) judge(t *testing.T) int {
	t.Helper()
	h := c.drivers[0].History
	note := func(where string, found []string) {
		for _, v := range found {
			c.fault("cut %d, %s: %s", c.cuts, where, v)
		}
	}
	before := len(c.violations)
	note("files", h.Judge(c.scan(t), history.Latest))
	for i, d := range c.drivers {
		if err := d.RetryAppends(t.Context()); err != nil {
			t.Fatalf("%v\n%s", err, c.clients[i].ServiceLog(t.Context(), port))
		}
	}
	inv := c.scan(t)
	note("files after the retries", h.Judge(inv, history.Latest))
	note("creates", h.JudgeCreates())
	note("labelled builds", h.JudgeProtected())
	for i, d := range c.drivers {
		front, err := d.JudgeFront(t.Context(), inv)
		if err != nil {
			front = append(front, err.Error())
		}
		note(fmt.Sprintf("service %d", i), front)
	}
	h.Settle(inv)
	return len(c.violations) - before
}

func (c *cutter) report(t *testing.T, on string) {
	all, done, refused, _ := c.drivers[0].History.Count()
	table.Add("power cuts", on, fmt.Sprintf("%d cuts (%d with the name missing), %d operations, %d acknowledged, %d refused, %d in flight at a cut, %d reads judged; left: %d replacements in place of the file, %d temps, %d .nfs",
		c.cuts, c.gaps, all, done, refused, c.unknown, c.reads.Load(), c.placed, c.temps, c.silly),
		len(c.violations), time.Since(c.began).Round(time.Second))
	if c.unknown == 0 {
		t.Error("no request was in flight at any cut: nothing was tried")
	}
}

// load writes and reads through every service until ctx ends, and returns when
// all that it began has an answer or lost its connection.
func (c *cutter) load(ctx context.Context) {
	var g sync.WaitGroup
	for i, d := range c.drivers {
		seed := c.rng.Uint64()
		g.Go(func() { d.MixAll(ctx, "cut", 2, 0, seed) })
		each := func(do func()) {
			g.Go(func() {
				for ctx.Err() == nil {
					do()
				}
			})
		}
		begun := context.WithoutCancel(ctx)
		n := 0
		each(func() {
			if n++; n%2 == 0 {
				d.Do(begun, history.Put, hotKey, hotSize)
			} else if d.Do(begun, history.Append, hotKey, 0) == 201 {
				c.entries.Add(1)
			}
		})
		each(func() {
			if d.Do(begun, history.Create, hotKey, 100) == 201 {
				c.fault("cut %d: created %s, which was there", c.cuts, hotKey)
			}
			c.list(ctx, d)
		})
		for range 2 {
			each(func() { sip(ctx, d.URL, "/sites/"+hotSite+"/artifacts/"+hotBuild, time.Second) })
		}
		if i == 0 {
			each(func() { c.read(ctx, d) })
		}
	}
	g.Wait()
}

// list lists the hot site: the build and its acknowledged entries must be there.
func (c *cutter) list(ctx context.Context, d *history.Driver) {
	least := int(c.entries.Load())
	listed, err := d.Listed(ctx, hotSite)
	if err != nil {
		pause(ctx)
		return
	}
	c.reads.Add(1)
	if n, ok := listed[hotBuild]; !ok || n < least {
		c.fault("cut %d: the list has %d entries of the hot build (listed: %v), %d were acknowledged", c.cuts, n, ok, least)
	}
}

// read downloads the hot build, which must be there and whole.
func (c *cutter) read(ctx context.Context, d *history.Driver) {
	_, _, err := d.Fetch(ctx, hotSite, hotBuild)
	if err == nil {
		c.reads.Add(1)
		return
	}
	if text := err.Error(); slices.ContainsFunc([]string{"404", "torn", "goes on"}, func(s string) bool { return strings.Contains(text, s) }) {
		c.fault("cut %d: download: %v", c.cuts, err)
	}
	pause(ctx)
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
}

// sip downloads slowly for a time, and then hangs up.
func sip(ctx context.Context, url, path string, lasts time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, lasts)
	defer cancel()
	conn, err := slowDialer.DialContext(ctx, "tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		pause(ctx)
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: test\r\n\r\n", path)
	conn.SetReadDeadline(time.Now().Add(lasts))
	for b := make([]byte, 512); ctx.Err() == nil; pause(ctx) {
		if _, err := conn.Read(b); err != nil {
			return
		}
	}
}

// The proof is worth what it catches: a service that replaces a build on the
// mount by a rename alone loses it.
func TestPlainRenameOnNFSIsCaught(t *testing.T) {
	for _, how := range plainRenameCuts {
		t.Run(strings.ReplaceAll(how.name, " ", "_"), func(t *testing.T) {
			c := newCutter(t, protocols[0], plainRename.BuildFor(t))
			c.cut(t, how)
			c.report(t, "NFSv4.2, variant: "+plainRename.Name)
			lost := slices.ContainsFunc(c.violations, func(v string) bool { return strings.Contains(v, hotKey) })
			if !lost {
				t.Errorf("not caught: the proof proves nothing: %q", c.violations)
			}
			t.Logf("the first of %d violations: %q", len(c.violations), c.violations[:min(3, len(c.violations))])
		})
	}
}
