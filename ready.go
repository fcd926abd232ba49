package main

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	probeWait = 2 * time.Second // how long an answer waits for the probe
	probeKeep = 2 * time.Second // how long the result of a probe is good for
)

// readiness probes the store for /ready. A probe of a hung NFS mount blocks in
// the kernel for as long as the mount hangs, so there is one at a time, and
// nobody waits for it longer than probeWait. It is safe for concurrent use.
type readiness struct {
	probe func() (Readiness, error)

	mu      sync.Mutex
	found   Readiness
	err     error
	at      time.Time     // when the last probe ended
	since   time.Time     // when the one in flight began
	running chan struct{} // closed when it ends; nil: none is in flight
}

// look tells what the last probe found, a new one if that is too old.
func (r *readiness) look() (Readiness, error) {
	r.mu.Lock()
	if r.running == nil {
		if !r.at.IsZero() && time.Since(r.at) < probeKeep {
			defer r.mu.Unlock()
			return r.found, r.err
		}
		r.running, r.since = make(chan struct{}), time.Now()
		go r.run(r.running)
	}
	running, since := r.running, r.since
	r.mu.Unlock()

	timer := time.NewTimer(probeWait - time.Since(since))
	defer timer.Stop()
	select {
	case <-running:
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.found, r.err
	case <-timer.C:
		return Readiness{}, fmt.Errorf("%w: no answer for %v", ErrUnavailable, time.Since(since).Round(time.Second))
	}
}

func (r *readiness) run(done chan struct{}) {
	found, err := Readiness{}, errors.New("the probe panicked")
	defer func() {
		r.mu.Lock()
		r.found, r.err, r.at, r.running = found, err, time.Now(), nil
		r.mu.Unlock()
		close(done)
	}()
	found, err = r.probe()
}

// getHealth tells that the process answers. It does not touch the store, so
// that a store in trouble does not get every replica killed.
func (s *service) getHealth(ctx *fasthttp.RequestCtx) {
	answer(ctx, fasthttp.StatusOK, struct {
		Status string    `json:"status"`
		Time   time.Time `json:"time"`
	}{"healthy", time.Now().UTC()})
}

// getReady tells whether requests should be sent here: the store can be read
// and the service is not shutting down.
func (s *service) getReady(ctx *fasthttp.RequestCtx) {
	if s.stopping.Load() {
		refuse(ctx, fasthttp.StatusServiceUnavailable, "shutting down")
		return
	}
	found := Readiness{}
	if s.ready != nil {
		var err error
		if found, err = s.ready.look(); err != nil {
			s.fail(ctx, "read the store", "", "", err)
			ctx.SetStatusCode(fasthttp.StatusServiceUnavailable)
			return
		}
	}
	answer(ctx, fasthttp.StatusOK, struct {
		Status string `json:"status"`
		Writes bool   `json:"writes"`
		Reason string `json:"reason,omitempty"`
	}{"ready", found.WriteError == "", found.WriteError})
}
