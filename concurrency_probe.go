package main

import (
	"cmp"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// probeWait is how long get waits by default.
const probeWait = 2 * time.Second

// cachedProbe runs a probe of the store that may block for as long as an NFS mount hangs. It
// runs one probe at a time, bounds the wait of its callers, and caches the result. It is
// safe for concurrent use.
type cachedProbe[T any] struct {
	probe func() (T, error)
	wait  time.Duration // how long get waits; 0: probeWait

	mu      sync.Mutex
	value   T
	err     error
	at      time.Time     // when the last probe ended
	since   time.Time     // when the running probe began
	running chan struct{} // closed when the running probe ends; nil: none runs
}

// errNoResponse is the ErrUnavailable of a probe that has not ended.
type errNoResponse struct {
	waited time.Duration
	last   error // of the previous probe; nil: it succeeded, or this is the first one
}

func (e *errNoResponse) Error() string {
	text := fmt.Sprintf("%v: the store has not responded for %v", ErrUnavailable, e.waited.Round(time.Second))
	if e.last != nil {
		text += "; the previous probe failed: " + e.last.Error()
	}
	return text
}

func (*errNoResponse) Unwrap() error { return ErrUnavailable }

// get returns the result of the running probe, or else a cached result that is younger than
// age, or else the result of a new probe. If that takes too long it returns errNoResponse.
func (p *cachedProbe[T]) get(age time.Duration) (T, error) {
	return p.await(age, cmp.Or(p.wait, probeWait))
}

// await is get for a caller that waits until the probe has run for longest.
func (p *cachedProbe[T]) await(age, longest time.Duration) (T, error) {
	p.mu.Lock()
	if p.running == nil {
		if !p.at.IsZero() && time.Since(p.at) < age {
			defer p.mu.Unlock()
			return p.value, p.err
		}
		p.running, p.since = make(chan struct{}), time.Now()
		go p.run(p.running)
	}
	running, since, last := p.running, p.since, p.err
	p.mu.Unlock()

	timer := time.NewTimer(longest - time.Since(since))
	defer timer.Stop()
	select {
	case <-running:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.value, p.err
	case <-timer.C:
		var none T
		return none, &errNoResponse{time.Since(since), last}
	}
}

func (p *cachedProbe[T]) run(done chan struct{}) {
	var value T
	var err error
	defer func() {
		// No handler recovers panics of this goroutine: one would end the process.
		if cause := recover(); cause != nil {
			err = fmt.Errorf("the store probe panicked: %v\n%s", cause, debug.Stack())
		}
		p.mu.Lock()
		p.value, p.err, p.at, p.running = value, err, time.Now(), nil
		p.mu.Unlock()
		close(done)
	}()
	value, err = p.probe()
}
