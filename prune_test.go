package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
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
		{"the labels, of each site", 7, func(s *failingStore) { s.labels = times(1000, ErrUnavailable) }, pruneFailed, skipUnreadableLabel, pruneMaxFailed},
		{"a damaged label, of each site", 7, func(s *failingStore) { s.labels = times(1000, errLabelDamaged) }, pruneIncomplete, skipUnreadableLabel, 7},
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
	for ahead, removed := range map[time.Duration]int64{0: 2, 1000 * time.Hour: 2, -time.Hour: 0, -1000 * time.Hour: 0} {
		s := &skewedStore{nfs: openTestNFS(t, storeAged(t, shop(4)...)), ahead: ahead}
		p, _ := applyTo(t, s, `{"sites":["*"],"keep_within":"25d","labels":"optional"}`)
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

// TestPruneOfObjects: in a bucket, with the requests that it takes.
func TestPruneOfObjects(t *testing.T) {
	const n = prunePage + 30
	m := newMemBucket()
	s := openMem(m)
	for i := range n {
		build := fmt.Sprintf("b%05d", i)
		mustStore(t, s, "shop", build, []byte("bytes"))
		noError(t, s.WriteLog("shop", LogEntry{ID: "1", BuildID: build, Action: "build", Status: "ok", Timestamp: time.Now().UTC()}))
	}
	_, _, err := s.MoveLabel("shop", LabelMove{Label: "live", BuildID: "b00003"})
	noError(t, err)
	calls := map[string]int{}
	var mu sync.Mutex
	m.fault = func(op, _ string) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		calls[op]++
		return false, nil
	}
	arrived := time.Now()
	eventually(t, "the builds are older than now", func() bool { return time.Since(arrived) > 20*time.Millisecond })
	p, _ := applyTo(t, openMem(m), `{"sites":["*"],"keep_last":2}`)
	p.apply = false
	noError(t, p.run(t.Context()))
	t.Logf("plan: %v, %+v", calls, p.state.Counts)
	if c := p.state.Counts; c.Remove != n-3 || c.Removed != 0 || calls["put"]+calls["remove"] > 0 {
		t.Errorf("the plan: %+v, %v", c, calls)
	}
	clear(calls)
	p.apply = true
	start := time.Now()
	noError(t, p.run(t.Context()))
	t.Logf("apply: %v in %v, %+v", calls, time.Since(start), p.state.Counts)
	left, err := s.ListVersions("shop")
	noError(t, err)
	if c := p.state.Counts; c.Removed != n-3 || c.Failed+c.Changed+c.Labelled != 0 || len(left) != 3 {
		t.Errorf("%+v, %d left", c, len(left))
	}
	for _, v := range left {
		if len(v.Logs) != 1 || v.SizeBytes == 0 {
			t.Errorf("left is %+v", v)
		}
	}
}
