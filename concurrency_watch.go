package main

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

const (
	// lostAfter is how long a probe runs until the store counts as lost. A busy store may
	// take longer than get waits.
	lostAfter = 10 * time.Second
	// outagePause is the minimum time between two lines about the start of an outage.
	outagePause = time.Minute
)

// watch calls report with a result of the probe at once, and again after each interval, until
// ctx ends. A result that another caller of get caused counts as long as it is younger than
// half of the interval. While a probe hangs, watch starts no other one.
func (p *cachedProbe[T]) watch(ctx context.Context, interval time.Duration, report func(T, error)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		value, err := p.await(interval/2, lostAfter) // a probe that fails slowly must not go unnoticed
		if ctx.Err() != nil {
			return
		}
		report(value, err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// outage writes a line to the service log when a failure begins, and one when it is over. If
// the failure comes and goes, it writes about one such pair of lines in each outagePause. It
// is not safe for concurrent use.
type outage struct {
	log         *slog.Logger
	begins, end string // the messages
	lasted      string // the member of the end line that has the duration

	since  time.Time // when the failure was first seen; zero: no failure now
	logged time.Time // when the latest start line was written
	open   bool      // the latest start line is about the current failure
	silent bool      // the latest start line has no cause, because the probe had not ended
}

// observe notes the result of a probe at the time now.
func (o *outage) observe(now time.Time, err error) {
	if err == nil {
		if o.open {
			o.log.Info(o.end, o.lasted, now.Sub(o.since).Milliseconds())
		}
		o.since, o.open = time.Time{}, false
		return
	}
	var hangs *errNoResponse
	silent := errors.As(err, &hangs)
	if silent && hangs.waited < lostAfter {
		return
	}
	if o.since.IsZero() {
		o.since = now
		if silent {
			o.since = now.Add(-hangs.waited)
		}
	}
	if o.open && (silent || !o.silent) || !o.open && !o.logged.IsZero() && now.Sub(o.logged) < outagePause {
		return
	}
	o.log.Error(o.begins, "kind", errorKind(err), "cause", err.Error())
	o.logged, o.open, o.silent = now, true, silent
}

// pause waits, and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
