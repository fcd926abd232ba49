package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// turns lets the calls that several processes make to one bucket happen one at a time, in an
// order that its caller chooses.
type turns struct {
	mu      sync.Mutex
	waiting []*turn
	dead    map[string]bool // processes whose calls all fail
}

// turn is a call that waits.
type turn struct {
	process, op, key string
	verdict          chan turnVerdict
}

func (t *turn) String() string { return t.process + " " + t.op + " " + t.key }

// turnVerdict is what happens to a call.
type turnVerdict string

const (
	does    turnVerdict = ""
	lost    turnVerdict = "reply lost" // the call is carried out, but fails for the process
	refused turnVerdict = "refused"    // the call is not carried out, and fails
	late    turnVerdict = "carried out later"
	dies    turnVerdict = "process dies before"
	diedNow turnVerdict = "process dies after"
	paused  turnVerdict = "paused" // before the call, all processes are stopped for longer than markLife
)

// turnBucket is the bucket as one process sees it.
type turnBucket struct {
	*memBucket
	turns   *turns
	process string
}

// call waits for the turnVerdict on a call, and carries it out.
func (b turnBucket) call(ctx context.Context, op, key string, do func() error) error {
	v := b.turns.wait(ctx, b.process, op, key)
	switch v {
	case does:
		return do()
	case lost, diedNow:
		_ = do()
	case late:
		go func() {
			if b.turns.wait(context.Background(), b.process+", late:", op, key) == does {
				_ = do()
			}
		}()
	}
	return fmt.Errorf("%w: %s", ErrUnavailable, v)
}

func (s *turns) wait(ctx context.Context, process, op, key string) turnVerdict {
	t := &turn{process, op, key, make(chan turnVerdict)}
	s.mu.Lock()
	dead := s.dead[process]
	if !dead {
		s.waiting = append(s.waiting, t)
	}
	s.mu.Unlock()
	if dead {
		return refused
	}
	defer func() {
		s.mu.Lock()
		s.waiting = slices.DeleteFunc(s.waiting, func(o *turn) bool { return o == t })
		s.mu.Unlock()
	}()
	select {
	case v, ok := <-t.verdict:
		if !ok {
			return refused
		}
		return v
	case <-ctx.Done():
		return refused
	}
}

// now returns the calls that wait, in an order that does not depend on the run. Those of dead
// processes fail.
func (s *turns) now() []*turn {
	synctest.Wait()
	s.mu.Lock()
	sorted := slices.Clone(s.waiting)
	dead := func(t *turn) bool { return s.dead[t.process] }
	failed := slices.ContainsFunc(sorted, dead)
	for _, t := range sorted {
		if dead(t) {
			close(t.verdict)
		}
	}
	s.mu.Unlock()
	if failed {
		return s.now()
	}
	slices.SortFunc(sorted, func(a, b *turn) int {
		return cmp.Or(strings.Compare(a.process, b.process), strings.Compare(a.op, b.op), strings.Compare(a.key, b.key))
	})
	return sorted
}

func (b turnBucket) put(ctx context.Context, key string, body io.Reader, size int64, opts putOptions) (info objectInfo, err error) {
	data, err := io.ReadAll(body)
	if err == nil {
		err = opts.allowed()
	}
	if err != nil {
		return objectInfo{}, err
	}
	opts.mayCommit = nil
	err = b.call(ctx, "put", key, func() (err error) {
		info, err = b.memBucket.put(context.Background(), key, bytes.NewReader(data), size, opts)
		return err
	})
	return info, err
}

func (b turnBucket) get(ctx context.Context, key, etag string, offset, length int64) (r io.ReadCloser, info objectInfo, err error) {
	err = b.call(ctx, "get", key, func() (err error) {
		r, info, err = b.memBucket.get(context.Background(), key, etag, offset, length)
		return err
	})
	return r, info, err
}

func (b turnBucket) stat(ctx context.Context, key string) (info objectInfo, err error) {
	err = b.call(ctx, "stat", key, func() (err error) {
		info, err = b.memBucket.stat(context.Background(), key)
		return err
	})
	return info, err
}

func (b turnBucket) remove(ctx context.Context, key, etag string) error {
	return b.call(ctx, "remove", key, func() error { return b.memBucket.remove(context.Background(), key, etag) })
}

func (b turnBucket) list(ctx context.Context, prefix string, page func([]objectInfo) error) error {
	var all []objectInfo
	err := b.call(ctx, "list", prefix, func() error {
		return b.memBucket.list(context.Background(), prefix, func(p []objectInfo) error {
			all = append(all, p...)
			return nil
		})
	})
	if err == nil && len(all) > 0 {
		err = page(all)
	}
	return err
}

// bucketRace is an experiment: processes that each do one thing at once to the objects of a bucket.
type bucketRace struct {
	start     func(m *memBucket) // puts objects into the bucket
	processes map[string]func(s *objectStore) error
	kinds     []turnVerdict        // of faults
	check     func(*raceRun) error // of each state of the bucket
	end       func(*raceRun) error // when all processes have ended
	// told, which end may use, compares the results of the processes with the bucket.
	told func(r *raceRun, st siteState, ok func(process string) bool) error
	open func(b bucket) *objectStore
}

// raceRun is one run of a race.
type raceRun struct {
	race    *bucketRace
	m       *memBucket
	results map[string]error // of the processes that have ended and did not die
	trace   []string         // the calls, in their order
	faults  int
}

// explore runs a race in all orders of the calls, with at most faults faults. It returns how often
// it ran.
//
// With the race detector, it runs it in samples of them only: "make test" explores them without.
func (r *bucketRace) explore(t *testing.T, faults int) (runs int) {
	t.Helper()
	if raceDetector() {
		r.sample(t, faults, 5*samples)
		return 5 * samples
	}
	for path := []int{}; ; path[len(path)-1]++ {
		made, options := r.runIn(t, faults, func(step, options int) int {
			if step < len(path) {
				return path[step]
			}
			return 0
		})
		runs++
		for len(made) > 0 && made[len(made)-1] == options[len(made)-1]-1 {
			made = made[:len(made)-1]
		}
		if path = made; len(path) == 0 {
			return runs
		}
	}
}

// raceDetector reports whether the test was built with the race detector.
var raceDetector = sync.OnceValue(func() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
})

// sample runs a race in random orders of the calls, with at most faults faults.
func (r *bucketRace) sample(t *testing.T, faults, runs int) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	for range runs {
		r.runIn(t, faults, func(_, options int) int { return random.IntN(options) })
	}
}

// runIn runs a race once, and fails the test with its trace if it finds an error.
func (r *bucketRace) runIn(t *testing.T, faults int, choose func(step, options int) int) (made, options []int) {
	t.Helper()
	var err error
	var trace []string
	synctest.Test(t, func(t *testing.T) { made, options, trace, err = r.runOnce(faults, choose) })
	if err != nil {
		t.Fatalf("%v, after\n\t%s", err, strings.Join(trace, "\n\t"))
	}
	return made, options
}

// runOnce makes the choice at each step that choose returns. It returns all choices, and how many
// there were to choose from at each step.
func (r *bucketRace) runOnce(faults int, choose func(step, options int) int) (made, options []int, trace []string, err error) {
	m := newMemBucket()
	r.start(m)
	n := &raceRun{race: r, m: m, results: map[string]error{}}
	s := &turns{dead: map[string]bool{}}
	var mu sync.Mutex
	left := len(r.processes)
	for name, do := range r.processes {
		go func() {
			err := do(r.open(turnBucket{m, s, name}))
			mu.Lock()
			defer mu.Unlock()
			left--
			s.mu.Lock()
			defer s.mu.Unlock()
			if !s.dead[name] {
				n.results[name] = err
			}
		}()
	}
	running := func() int { mu.Lock(); defer mu.Unlock(); return left }
	for wakes := 0; ; {
		waiting := s.now()
		if err == nil && r.check != nil {
			err = r.check(n)
		}
		if len(waiting) < running() && wakes < 2 {
			wakes++
			time.Sleep(appendMaxWait) // wakes those that wait for another process, too early
			waiting = s.now()
		}
		if len(waiting) == 0 {
			if running() == 0 {
				break
			}
			time.Sleep(time.Second)
			continue
		}
		choices := len(waiting)
		if n.faults < faults {
			choices *= 1 + len(r.kinds)
		}
		choice := choose(len(made), choices)
		made, options = append(made, choice), append(options, choices)
		t, v := waiting[choice%len(waiting)], does
		if i := choice / len(waiting); i > 0 {
			v = r.kinds[i-1]
			n.faults++
		}
		n.trace = append(n.trace, strings.TrimSpace(fmt.Sprintf("%v %s", t, v)))
		if v == paused {
			time.Sleep(markLife + time.Minute)
			continue
		}
		if v == dies || v == diedNow {
			s.mu.Lock()
			s.dead[t.process] = true
			s.mu.Unlock()
		}
		t.verdict <- v
		if len(n.trace) > 500 {
			err = fmt.Errorf("it does not end")
			s.mu.Lock()
			for name := range r.processes {
				s.dead[name] = true
			}
			s.mu.Unlock()
			time.Sleep(time.Hour)
			break
		}
	}
	if err == nil {
		err = r.end(n)
	}
	return made, options, n.trace, err
}
