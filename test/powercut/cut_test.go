//go:build integration || torture

package powercut

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pagewright/storage/test/history"
	"pagewright/storage/test/vm"
)

// roundsPerDisk bounds how full a disk gets.
const roundsPerDisk = 6

// The machine loses its power at random moments under a load of everything that
// writes. After each boot the files are as the promise has it, the service
// finds the same, and what the cut left behind is swept.
func TestPowerCuts(t *testing.T) {
	for _, s := range systems {
		t.Run(s.name, func(t *testing.T) {
			c := &cutter{system: s, began: time.Now(), seed: rand.Uint64()}
			t.Logf("seed %d", c.seed)
			c.rng = rand.New(rand.NewPCG(c.seed, 0))
			for c.cuts < cutsPerSystem {
				c.life(t, min(roundsPerDisk, cutsPerSystem-c.cuts))
			}
			table.Add("power cuts", s.name, c.cuts, c.ops, c.done, c.unknown, c.temps, c.violations, time.Since(c.began).Round(time.Second))
			t.Logf("%d builds were pruned; %d runs of prune ended before a cut", c.pruned, c.prunes)
			if c.pruned == 0 {
				t.Error("no build was pruned")
			}
			if c.unknown == 0 {
				t.Error("no request was in flight at any cut: nothing was tried")
			}
		})
	}
}

type cutter struct {
	system
	seed  uint64
	rng   *rand.Rand
	began time.Time

	cuts, ops, done, unknown, temps, violations int

	prunes, pruned int // runs that ended; builds that were removed
}

// life takes one disk through rounds of load and power cut.
func (c *cutter) life(t *testing.T, rounds int) {
	disk := c.newDisk(t)
	h := &history.History{}
	for round := range rounds {
		m := c.boot(t, service, vm.RawDrive(disk, false))
		d := history.NewDriver("", h, 30*time.Second)
		c.check(t, m, d, round)
		c.cut(t, m, d)
	}
	m := c.boot(t, service, vm.RawDrive(disk, false))
	c.check(t, m, history.NewDriver("", h, 30*time.Second), rounds)
	c.pruned += h.Pruned(scan(t, m))
	m.Cut()
	all, done, _, _ := h.Count()
	c.ops += all
	c.done += done
	c.report(t, "creates", h.JudgeCreates())
	c.report(t, "labelled builds", h.JudgeProtected())
}

// check judges what the machine finds after a cut, and starts the service.
func (c *cutter) check(t *testing.T, m *vm.Machine, d *history.Driver, round int) {
	inv := scan(t, m)
	c.temps += inv.Temps
	c.report(t, fmt.Sprintf("round %d, files", round), d.History.Judge(inv, history.Latest))
	// Make the temps as old as the sweep wants them: the machine's clock goes
	// on while its power is off, and nobody waits here.
	run(t, m, "find %s -name '.tmp-*' -exec touch -d @$(($(date +%%s)-3600)) {} +", base)
	d.URL = serve(t, m)
	settleDown(t, "the sweep of old temps", func() bool { return scan(t, m).Temps == 0 })
	if err := d.RetryAppends(t.Context()); err != nil {
		t.Fatal(err)
	}
	inv = scan(t, m)
	c.report(t, fmt.Sprintf("round %d, after the retries", round), d.History.Judge(inv, history.Latest))
	d.Fresh = true
	front, err := d.JudgeFront(t.Context(), inv)
	if err != nil {
		t.Fatalf("%v\n%s", err, m.ServiceLog(t.Context(), port))
	}
	c.report(t, fmt.Sprintf("round %d, service", round), front)
	d.History.Settle(inv)
}

// cut cuts the power at a random moment of the load.
func (c *cutter) cut(t *testing.T, m *vm.Machine, d *history.Driver) {
	ctx, cancel := context.WithCancel(t.Context())
	loaded, pruning := make(chan struct{}), make(chan struct{})
	seed, moment := c.rng.Uint64(), 200*time.Millisecond+time.Duration(c.rng.Int64N(int64(3*time.Second)))
	go func() {
		defer close(loaded)
		c.prunes += loadAll(ctx, t, m, d, "cut", workers[c.cuts%len(workers)], seed, func() { close(pruning) })
	}()
	<-pruning
	time.Sleep(moment)
	_, _, _, inFlight := d.History.Count()
	m.Cut()
	cancel()
	<-loaded
	c.unknown += inFlight
	c.cuts++
}

func (c *cutter) report(t *testing.T, where string, violations []string) {
	t.Helper()
	c.violations += len(violations)
	if len(violations) > 0 {
		t.Errorf("%s, seed %d: %d violations:\n%s", where, c.seed, len(violations), strings.Join(violations, "\n"))
	}
}
