package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestPruneWhenReadsFail: a site whose builds cannot be read is skipped, whatever force says; a
// store that is down ends the run.
func TestPruneWhenReadsFail(t *testing.T) {
	times := func(n int, err error) func() error {
		return func() error {
			if n--; n < 0 {
				return nil
			}
			return err
		}
	}
	for _, c := range []struct {
		name   string
		sites  int
		fault  func(s *failingStore)
		result string
		skip   skipReason // of the first site
		seen   int        // sites
	}{
		{"the list, twice", 1, func(s *failingStore) { s.listing = times(2, ErrUnavailable) }, pruneOK, skipNone, 1},
		{"the list", 2, func(s *failingStore) { s.listing = times(pruneTries, ErrUnavailable) }, pruneIncomplete, skipIncompleteList, 2},
		{"the list, of each site", 7, func(s *failingStore) { s.listing = times(1000, ErrUnavailable) }, pruneFailed, skipIncompleteList, pruneMaxFailed},
		{"the arrival", 1, func(s *failingStore) { s.arriving = times(1000, ErrUnavailable) }, pruneIncomplete, skipIncompleteList, 1},
		{"the arrival of a build that is gone", 1, func(s *failingStore) { s.arriving = times(1000, ErrNotFound) }, pruneOK, skipNone, 1},
		{"a panic", 2, func(s *failingStore) { s.listing = func() error { panic("x") } }, pruneFailed, skipNone, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var builds []agedBuild
			for site := range c.sites {
				for day := range 3 {
					builds = append(builds, agedBuild{name: fmt.Sprintf("s%d/b%d", site, day+1), days: day + 1})
				}
			}
			s := &failingStore{nfs: openTestNFS(t, storeAged(t, builds...))}
			c.fault(s)
			p, r := applyTo(t, s, keepTwo)
			p.force = true
			err := p.run(t.Context())
			if len(r.sites) != c.seen || p.result(err) != c.result || (err != nil) != (c.result == pruneFailed) || p.state.Complete != (err == nil) || (p.state.Error == "") != (err == nil) {
				t.Fatalf("%d sites, %v; %+v", len(r.sites), err, p.state)
			}
			if c.seen > 0 && r.sites[0].Skip != c.skip {
				t.Errorf("the first site is %+v", r.sites[0])
			}
			if c.name == "the arrival of a build that is gone" != (p.state.Counts.Removed == 0) && c.skip == skipNone && c.seen > 0 {
				t.Errorf("removed: %+v", p.state.Counts)
			}
		})
	}
}

// TestPruneStopsBetweenBatches: a batch that has begun is finished and reported.
func TestPruneStopsBetweenBatches(t *testing.T) {
	s := &failingStore{nfs: openTestNFS(t, storeAged(t, shop(2+2*pruneBatch)...))}
	ctx, cancel := context.WithCancel(t.Context())
	s.deleting = func([]VersionDeletion) ([]error, bool) { cancel(); return nil, false }
	p, _ := applyTo(t, s, keepTwo)
	err := p.run(ctx)
	if c := p.state.Counts; !errors.Is(err, errPruneInterrupted) || p.result(err) != pruneStopped || c.Removed != pruneBatch || s.deletes != 1 || p.state.Complete {
		t.Errorf("%v, %d calls, %+v", err, s.deletes, p.state)
	}
}

// TestPruneOfManyBuilds: pages and batches that are full, and those that are not.
func TestPruneOfManyBuilds(t *testing.T) {
	base := storeAged(t, shop(2+pruneBatch)...)
	p, _ := applyTo(t, openTestNFS(t, base), keepTwo)
	if err := p.run(t.Context()); err != nil || p.state.Counts.Removed != pruneBatch || buildsOf(t, base) != "shop/b1+~ shop/b2+~" {
		t.Errorf("%v, %+v", err, p.state.Counts)
	}
}

// skewedStore is a store whose clock differs from that of this host.
type skewedStore struct {
	*nfs
	ahead time.Duration
	err   error
}

func (s *skewedStore) StoreTime() (time.Time, error) { return time.Now().Add(s.ahead), s.err }

// TestPruneByTheSlowerClock: a clock that is fast makes no build old.
func TestPruneByTheSlowerClock(t *testing.T) {
	for ahead, removed := range map[time.Duration]int64{0: 3, 1000 * time.Hour: 3, -15 * 24 * time.Hour: 2, -1000 * time.Hour: 0} {
		s := &skewedStore{nfs: openTestNFS(t, storeAged(t, shop(4)...)), ahead: ahead}
		p, _ := applyTo(t, s, `{"sites":["*"],"keep_within":"5d","labels":"optional"}`)
		p.apply = true
		if err := p.run(t.Context()); err != nil || p.state.Counts.Removed != removed {
			t.Errorf("a store that is %v ahead: %v, %+v", ahead, err, p.state.Counts)
		}
	}
	s := &skewedStore{nfs: openTestNFS(t, storeAged(t, shop(4)...)), err: ErrUnavailable}
	p, _ := applyTo(t, s, keepTwo)
	if err := p.run(t.Context()); !errors.Is(err, ErrUnavailable) || p.state.Counts.Removed != 0 {
		t.Errorf("without a clock: %v, %+v", err, p.state.Counts)
	}
}
