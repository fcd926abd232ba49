package main

import (
	"cmp"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// probeWait is how long who asks waits for the answer, unless a lookup says other.
const probeWait = 2 * time.Second

// cachedProbe asks something of the store that can block in the kernel for as long
// as an NFS mount hangs: so there is one question at a time, nobody waits for it
// longer than wait, and an answer can serve more than one who asks. It is
// safe for concurrent use.
type cachedProbe[T any] struct {
	probe func() (T, error)
	wait  time.Duration // 0: probeWait

	mu      sync.Mutex
	value   T
	err     error
	at      time.Time     // when the last question was answered
	since   time.Time     // when the one in flight began
	running chan struct{} // closed when it ends; nil: none is in flight
}

// get returns an answer that is not older than age, or that of the question in
// flight.
func (l *cachedProbe[T]) get(age time.Duration) (T, error) {
	l.mu.Lock()
	if l.running == nil {
		if !l.at.IsZero() && time.Since(l.at) < age {
			defer l.mu.Unlock()
			return l.value, l.err
		}
		l.running, l.since = make(chan struct{}), time.Now()
		go l.run(l.running)
	}
	running, since := l.running, l.since
	l.mu.Unlock()

	timer := time.NewTimer(cmp.Or(l.wait, probeWait) - time.Since(since))
	defer timer.Stop()
	select {
	case <-running:
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.value, l.err
	case <-timer.C:
		var none T
		return none, fmt.Errorf("%w: no answer for %v", ErrUnavailable, time.Since(since).Round(time.Second))
	}
}

func (l *cachedProbe[T]) run(done chan struct{}) {
	var found T
	var err error
	defer func() {
		// No handler is above this goroutine: a panic would end the process.
		if cause := recover(); cause != nil {
			err = fmt.Errorf("the probe of the store panicked: %v\n%s", cause, debug.Stack())
		}
		l.mu.Lock()
		l.value, l.err, l.at, l.running = found, err, time.Now(), nil
		l.mu.Unlock()
		close(done)
	}()
	found, err = l.probe()
}
