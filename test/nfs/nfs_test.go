//go:build integration || torture

package nfs

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pagewright/storage/test/history"
	"pagewright/storage/test/vm"
)

// The contract of Backend, every sentence, and 8 processes that append 50
// entries each, on the mount.
func TestContractOnNFS(t *testing.T) {
	eachProtocol(t, func(t *testing.T, p protocol) {
		began := time.Now()
		n := p.connect(t, 1, map[string]string{"/bin/conformance": conformance})
		out, err := n.clients[0].Run(t.Context(), "mkdir /mnt/store/tmp && cd / && export TMPDIR=/mnt/store/tmp && "+
			"/bin/conformance -test.v -test.run '^(TestNFS|TestDigestsNFS|TestAppendToAnyLog)$' && /bin/conformance -test.v -test.run '"+appends+"'")
		if err != nil {
			t.Errorf("%s\n%s", err, out)
		}
		passed, skipped := strings.Count(out, "--- PASS"), strings.Count(out, "--- SKIP")
		if passed < 20 || skipped > 0 || !strings.Contains(out, "400 entries") {
			t.Errorf("%d passed, %d skipped:\n%s", passed, skipped, out)
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, "processes x") {
				t.Log(strings.TrimSpace(line))
			}
		}
		table.Add("contract, 8 processes x 50 appends", p.name, fmt.Sprintf("%d tests passed, %d skipped", passed, skipped), 0, time.Since(began).Round(time.Second))
	})
}

// Services in two machines that mount one export write to the same builds and logs:
// nothing is lost or torn. Each sees at once what the other acknowledged, also
// if it has just seen that it was not there. Then the server loses its power
// under the load and comes back.
func TestTwoServicesOnNFS(t *testing.T) {
	eachProtocol(t, func(t *testing.T, p protocol) {
		began := time.Now()
		n := p.connect(t, 2, map[string]string{vm.ServicePath: service})
		drivers := n.serve(t)
		load(t.Context(), drivers, 4, loadPerWorker)
		violations := n.judge(t, drivers)
		all, done, refused, unknown := drivers[0].History.Count()
		table.Add("two services, two machines", p.name,
			fmt.Sprintf("%d operations, %d acknowledged, %d refused, %d unknown", all, done, refused, unknown), violations, time.Since(began).Round(time.Second))
		if unknown > 0 {
			t.Errorf("%d requests failed on a store in good order:\n%s", unknown, n.clients[0].ServiceLog(t.Context(), port))
		}

		n.visibility(t, drivers)

		began = time.Now()
		n.serverDies(t, drivers)
		violations = n.judge(t, drivers)
		all2, done2, _, unknown := drivers[0].History.Count()
		table.Add("server killed under load", p.name,
			fmt.Sprintf("%d operations, %d acknowledged, %d unknown", all2-all, done2-done, unknown), violations, time.Since(began).Round(time.Second))
	})
}

// visibility measures how soon one service shows what the other acknowledged.
func (n *network) visibility(t *testing.T, drivers []*history.Driver) {
	t.Helper()
	a, b := drivers[0], drivers[1]
	ctx := t.Context()
	var created, replaced, listed []time.Duration
	for range 2 { // one of them with a digest: the site has some before b looks for one
		if status := a.Do(ctx, history.Put, "seen/first", 1000); status != 201 {
			t.Fatalf("status %d", status)
		}
	}
	digests := 0
	for i := range visibilityRounds {
		key := fmt.Sprintf("seen/build-%d", i)
		_, build, _ := strings.Cut(key, "/")
		if _, _, err := b.Fetch(ctx, "seen", build); err == nil {
			t.Fatal("it is there before it was sent")
		}
		if _, err := b.Listed(ctx, "seen"); err != nil {
			t.Fatal(err)
		}
		is := func(size int64) func() bool {
			return func() bool { _, got, err := b.Fetch(ctx, "seen", build); return err == nil && got == size }
		}
		do := func(kind history.Kind, size int) {
			if status := a.Do(ctx, kind, key, size); status != 201 {
				t.Fatalf("status %d\n%s", status, n.clients[0].ServiceLog(ctx, port))
			}
		}
		headIs := func(size int64) { // at once, since it is what conditions are judged by
			t.Helper()
			r, err := http.Head(b.URL + "/sites/seen/artifacts/" + build)
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			if r.StatusCode != 200 || r.ContentLength != size {
				t.Errorf("round %d: HEAD says %d, %d bytes, want %d", i, r.StatusCode, r.ContentLength, size)
			}
			if r.Header.Get("Repr-Digest") != "" {
				digests++
			}
		}
		do(history.Put, 1000)
		created = append(created, eventually(t, "a new build is seen", is(1000)))
		headIs(1000)
		do(history.Put, 2000)
		headIs(2000)
		replaced = append(replaced, eventually(t, "a replacement is seen", is(2000)))
		do(history.Append, 0)
		listed = append(listed, eventually(t, "a log entry is listed", func() bool {
			l, err := b.Listed(ctx, "seen")
			return err == nil && l[build] == 1
		}))
	}
	if digests != visibilityRounds { // one of two uploads sends it
		t.Errorf("HEAD shows %d digests of %d builds and %d replacements, want every other", digests, visibilityRounds, visibilityRounds)
	}
	for what, took := range map[string][]time.Duration{"new build": created, "replacement": replaced, "log entry": listed} {
		table.Add("seen by the other service: "+what, n.name,
			fmt.Sprintf("%d rounds, at most %s", len(took), slices.Max(took).Round(time.Millisecond)), 0, "")
	}
}

// serverDies takes the server's power away under load and gives it back.
func (n *network) serverDies(t *testing.T, drivers []*history.Driver) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		load(ctx, drivers, 4, 0)
	}()
	_, before, _, _ := drivers[0].History.Count()
	more := func(than int) func() bool {
		return func() bool { _, done, _, _ := drivers[0].History.Count(); return done > than+20 }
	}
	eventually(t, "the load", more(before))
	n.server.Cut()
	for _, d := range drivers {
		took := eventually(t, "/ready says that the store is away", func() bool { return ready(t, d).status == 503 })
		t.Logf("/ready was 503 %s after the server died", took.Round(time.Millisecond))
	}
	n.startServer(t)
	for _, d := range drivers {
		took := eventually(t, "/ready says that the store is back", func() bool { return ready(t, d).status == 200 })
		t.Logf("/ready was 200 %s after the server was back", took.Round(time.Millisecond))
	}
	_, before, _, _ = drivers[0].History.Count()
	eventually(t, "the load after the server is back", more(before))
	cancel()
	<-loaded
	// What was cut off here may still be on its way to the store.
	for _, d := range drivers {
		if err := d.RetryAppends(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// Full, read-only, stale: each is told as what it is, and gets well by itself.
func TestNFSInTrouble(t *testing.T) {
	eachProtocol(t, func(t *testing.T, p protocol) {
		began := time.Now()
		n := p.connect(t, 1, map[string]string{vm.ServicePath: service})
		drivers := n.serve(t, "MIN_FREE_SPACE=0") // the server is to say that it is full
		d, ctx := drivers[0], t.Context()
		const key = "trouble/build"
		expect := func(what string, kind history.Kind, size, want int) {
			t.Helper()
			if got := d.Do(ctx, kind, key, size); got != want {
				t.Errorf("%s: status %d, want %d\n%s", what, got, want, n.clients[0].ServiceLog(ctx, port))
			}
		}
		whole := func(what string, size int64) {
			t.Helper()
			if _, got, err := d.Fetch(ctx, "trouble", "build"); err != nil || got != size {
				t.Errorf("%s: the build has %d bytes, %v; want %d", what, got, err, size)
			}
		}
		writes := func(what string, want bool) {
			t.Helper()
			eventually(t, what+": /ready", func() bool { r := ready(t, d); return r.status == 200 && r.Writes == want })
		}
		expect("well", history.Put, 1000, 201)
		writes("well", true)

		run(t, n.server, "dd if=/dev/zero of=/srv/disk/filler bs=1M 2>/dev/null; dd if=/dev/zero of=/srv/disk/filler2 bs=4k 2>/dev/null; sync")
		expect("full", history.Put, 3<<20, 507)
		expect("full, a small one", history.Put, 40_000, 507)
		whole("full", 1000)
		writes("full", false)
		run(t, n.server, "rm /srv/disk/filler*")
		writes("space again", true)
		expect("space again", history.Put, 3000, 201)

		run(t, n.server, "exportfs -o ro,fsid=0,no_root_squash,no_subtree_check,sync,insecure '*:/srv/disk/export' && exportfs -f")
		expect("read-only", history.Put, 2000, 503)
		expect("read-only", history.Append, 0, 503)
		expect("read-only", history.Delete, 0, 503)
		whole("read-only", 3000)
		writes("read-only", false)
		run(t, n.server, "exportfs -o rw,fsid=0,no_root_squash,no_subtree_check,sync,insecure '*:/srv/disk/export' && exportfs -f")
		writes("writable again", true)
		expect("writable again", history.Put, 2000, 201)

		// The store is put aside and another takes its place: every handle that the
		// client holds is stale.
		run(t, n.server, "cp -a /srv/disk/export/sites /srv/disk/copy && rm -r /srv/disk/export/sites && mv /srv/disk/copy /srv/disk/export/sites")
		whole("stale", 2000)
		expect("stale", history.Put, 4000, 201)
		expect("stale", history.Append, 0, 201)
		violations := n.judge(t, drivers)
		table.Add("full, read-only, stale", p.name, "507, 503, recovered", violations, time.Since(began).Round(time.Second))
	})
}
