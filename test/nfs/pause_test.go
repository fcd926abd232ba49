//go:build torture

package nfs

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// A client stands still for longer than the server's lease while both replace
// the same build: the server gives its locks to the other. When it goes on,
// what it had begun does no harm.
func TestPausedClientOnNFS(t *testing.T) {
	const rounds, pause = 4, 25 * time.Second // the lease is 10 s
	c := newCutter(t, protocols[0], service)
	for round := range rounds {
		ctx, stop := context.WithCancel(t.Context())
		loaded := make(chan struct{})
		_, before, _, _ := c.drivers[0].History.Count()
		go func() {
			defer close(loaded)
			c.load(ctx)
		}()
		more := func(than int) func() bool {
			return func() bool { _, done, _, _ := c.drivers[0].History.Count(); return done > than+10 }
		}
		eventually(t, "the load", more(before))
		if round%2 == 1 { // with a name missing; the links come back at once
			if out, err := c.server.Run(t.Context(), "guest gap "+c.links()+" "+hotFile); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		if err := c.clients[0].Pause(); err != nil {
			t.Fatal(err)
		}
		if round%2 == 1 {
			run(t, c.server, "guest links %s up", c.links())
		}
		_, before, _, _ = c.drivers[0].History.Count()
		time.Sleep(pause)
		_, meanwhile, _, _ := c.drivers[0].History.Count()
		if err := c.clients[0].Resume(); err != nil {
			t.Fatal(err)
		}
		_, resumed, _, _ := c.drivers[0].History.Count()
		eventually(t, "the load after the pause", more(resumed))
		stop()
		select {
		case <-loaded:
		case <-time.After(2 * patience):
			t.Fatal("requests hang after the pause")
		}
		for _, d := range c.drivers {
			eventually(t, "/ready", func() bool { return ready(t, d).status == 200 })
		}
		found := c.judge(t)
		t.Logf("round %d: %d acknowledged by the other in the pause, %d violations", round, meanwhile-before, found)
	}
	all, done, refused, unknown := c.drivers[0].History.Count()
	table.Add("one of two clients paused for longer than the lease", c.name, fmt.Sprintf("%d pauses, %d operations, %d acknowledged, %d refused, %d unknown, %d reads judged",
		rounds, all, done, refused, unknown, c.reads.Load()), len(c.violations), time.Since(c.began).Round(time.Second))
	failAll(t, c.violations)
}
