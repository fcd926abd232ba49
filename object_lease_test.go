package main

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// tryLease calls TryLease, which must succeed, for an hour. The release is nil if another process
// holds the lease.
func tryLease(t *testing.T, s Leaser) (release func()) {
	t.Helper()
	release, ok, err := s.TryLease("prune", time.Hour)
	if err != nil || ok != (release != nil) {
		t.Fatal(ok, release != nil, err)
	}
	return release
}

func wantLease(t *testing.T, s Leaser, what string, want bool) (release func()) {
	t.Helper()
	if release = tryLease(t, s); (release != nil) != want {
		t.Errorf("%s: got the lease: %v", what, release != nil)
	}
	return release
}

func TestObjectLease(t *testing.T) {
	m := newMemBucket()
	m.silent, m.ahead = true, -24*time.Hour // the clock of the service has no part in it
	one, two := openMem(m), openMem(m)
	first := wantLease(t, one, "the first", true)
	wantLease(t, two, "held by another process", false)
	wantLease(t, one, "held by this process", false)
	if _, ok, err := two.TryLease("other", time.Hour); !ok || err != nil {
		t.Error("another lease:", ok, err)
	}
	first()
	second := wantLease(t, two, "after release", true)
	first()
	wantLease(t, one, "after a second release", false)
	m.ahead += 59 * time.Minute
	wantLease(t, one, "before it ends", false)
	if _, ok, err := one.TryLease("prune", time.Minute); ok || err != nil {
		t.Error("it ends after the time of its holder:", ok, err)
	}
	m.ahead += 2 * time.Minute
	third := wantLease(t, one, "after its time", true)
	second()
	wantLease(t, two, "after release of the one that had ended", false)
	third()
	if o := m.objects[one.statusKey("prune.lease")]; !strings.HasSuffix(string(o.data), `,"seconds":0}`+"\n") {
		t.Errorf("the object of the lease is %s", o.data)
	}
	if len(m.objects) != 2 {
		t.Errorf("%d objects are left", len(m.objects))
	}
	wantLease(t, two, "in the end", true)
}

// Of many that try at once, one gets the lease, also if it must take over another one.
func TestObjectLeaseAtOnce(t *testing.T) {
	m := newMemBucket()
	for range 20 {
		var got atomic.Int32
		var g sync.WaitGroup
		for range 8 {
			s := assumeCapable(openMem(m))
			g.Go(func() {
				if _, ok, err := s.TryLease("prune", time.Hour); err != nil {
					t.Error(err)
				} else if ok {
					got.Add(1)
				}
			})
		}
		g.Wait()
		if n := got.Load(); n != 1 {
			t.Fatalf("%d got the lease", n)
		}
		m.ahead += 2 * time.Hour
	}
}

// A lost reply of a write is found out: the lease that was taken is not thought to be held by
// another process.
func TestObjectLeaseAfterALostReply(t *testing.T) {
	m := newMemBucket()
	s := assumeCapable(openMem(m))
	for _, what := range []string{"create", "take over"} {
		lost := 0
		m.fault = func(op, key string) (bool, error) {
			if op == "put" && strings.HasSuffix(key, ".lease.json") && lost == 0 {
				lost++
				return true, ErrUnavailable
			}
			return false, nil
		}
		release := wantLease(t, s, what, true)
		if wantLease(t, s, what+", again", false); lost != 1 {
			t.Error("no reply was lost")
		}
		release()
	}
}

func TestObjectLeaseFails(t *testing.T) {
	m := newMemBucket()
	s := assumeCapable(openMem(m))
	wantLease(t, s, "the first", true)
	for _, op := range []string{"get", "put", "stat"} {
		m.silent = true
		m.fault = func(o, _ string) (bool, error) {
			if o == op {
				return false, ErrUnavailable
			}
			return false, nil
		}
		_, ok, err := s.TryLease("prune", time.Hour)
		if wantError(t, err, ErrUnavailable); ok {
			t.Error(op, "fails: got the lease")
		}
	}
	m.fault = nil
	key := s.statusKey("prune.lease")
	for _, damaged := range []string{"", "{", "[]", strings.Repeat(" ", maxLeaseSize) + `{"seconds":1}`} { // ends after the time of the next holder
		o := m.objects[key]
		o.data, o.size, o.modTime = []byte(damaged), int64(len(damaged)), time.Now()
		m.objects[key] = o
		wantLease(t, s, "damaged", false)
		m.ahead = 2 * time.Hour
		wantLease(t, s, "damaged and old", true)
		m.ahead = 0
	}
	blind := newMemBucket()
	blind.blind = func(putOptions) bool { return true }
	for range 2 {
		wantLease(t, openMem(blind), "without conditions", true)()
	}
	s.readOnly = true
	_, _, err := s.TryLease("prune", time.Hour)
	wantError(t, err, ErrReadOnly)
}
