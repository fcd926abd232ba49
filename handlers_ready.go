package main

import (
	"context"
	"errors"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	// probeKeep is how long the result of a probe is good for.
	probeKeep = 2 * time.Second
	// watchInterval is how often the store is probed if nobody asks, unless the store has an
	// interval of its own.
	watchInterval = 5 * time.Second
)

// getHealth reports that the process responds. It does not touch the store, so
// that a store in trouble does not get every replica killed.
func getHealth(*fasthttp.RequestCtx) (response, error) {
	r := jsonResponse(fasthttp.StatusOK, struct {
		Status string    `json:"status"`
		Time   time.Time `json:"time"`
	}{"healthy", time.Now().UTC()})
	r.cacheControl = noStore
	return r, nil
}

// getReady reports whether requests should be sent here: the store can be read, writing was
// not denied from the start, and the service is not shutting down. The response names the
// kind of a failure; the rest is for the service log.
func (a *api) getReady(*fasthttp.RequestCtx) (response, error) {
	if a.stopping() {
		return response{}, overloaded(refusedShutdown, "shutting down")
	}
	found, err := a.readiness()
	if err == nil && a.neverAllowed(found) {
		err = found.WriteError
	}
	if err != nil {
		return response{}, &operationError{err: err, status: fasthttp.StatusServiceUnavailable}
	}
	reason := ""
	switch {
	case a.cfg.ReadOnly:
		reason = readOnlyReason
	case found.WriteError != nil:
		reason = classify(found.WriteError).err.Error()
	}
	r := jsonResponse(fasthttp.StatusOK, struct {
		Status string `json:"status"`
		Writes bool   `json:"writes"`
		Reason string `json:"reason,omitempty"`
	}{"ready", reason == "", reason})
	r.cacheControl = noStore
	return r, nil
}

// readiness returns the result of a probe that is younger than probeKeep.
func (a *api) readiness() (Readiness, error) {
	if a.ready == nil {
		return Readiness{}, nil
	}
	return a.ready.get(probeKeep)
}

// neverAllowed reports whether the store denies writes, and has done so since the start:
// the owner, the mode or the credentials of this replica are wrong. A roll-out should stop
// then. A store that denies them later, is full or is read-only can still be read.
func (a *api) neverAllowed(found Readiness) bool {
	return errors.Is(found.WriteError, ErrDenied) && !a.wrote.Load()
}

// probeOf returns the probe of a store, which notes whether writes have ever worked.
func (a *api) probeOf(p Prober) func() (Readiness, error) {
	probe := timed(a.metrics, callProbe, p.Probe)
	return func() (Readiness, error) {
		found, err := probe()
		if err == nil && found.WriteError == nil {
			a.wrote.Store(true)
		}
		return found, err
	}
}

// probeInterval returns how often watchStore probes the store.
func (a *api) probeInterval() time.Duration {
	if p, ok := a.backend.(interface{ probeInterval() time.Duration }); ok {
		return p.probeInterval()
	}
	return watchInterval
}

// watchStore probes the store until ctx ends, and logs when it is lost and when it is back,
// also while nobody asks for /ready.
func (a *api) watchStore(ctx context.Context, interval time.Duration) {
	if a.ready == nil {
		return
	}
	store := outage{log: a.log, begins: "store lost", end: "store is back", lasted: "lost_ms"}
	writes := outage{log: a.log, begins: "store not writable", end: "store is writable again", lasted: "not_writable_ms"}
	a.ready.watch(ctx, interval, func(found Readiness, err error) {
		now := time.Now()
		store.observe(now, err)
		if err == nil { // otherwise the probe did not test writes
			writes.observe(now, found.WriteError)
		}
	})
}
