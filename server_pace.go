package main

import "time"

// pace holds the client of a body to a minimum rate in each minute. It counts only the
// time in which the service waits for the client: a store that hangs is not the client's
// fault. That time is measured only while the client is watched: at the beginning of a
// body, and from when it falls behind until it has caught up. So it costs a fast client
// nothing.
type pace struct {
	rate    int64 // bytes a second; 0: any
	minute  time.Duration
	need    int64     // bytes of a minute
	since   time.Time // when this minute began
	got     int64     // bytes of this minute
	waited  time.Duration
	watched bool
}

func newPace(rate int64, minute time.Duration, now time.Time) pace {
	need := int64(float64(rate) * minute.Seconds())
	return pace{rate: rate, minute: minute, need: need, since: now, watched: rate > 0}
}

// judge decides whether the client is watched, and begins the next minute. It reports
// whether the client is watched.
func (p *pace) judge(now time.Time) bool {
	if p.rate == 0 {
		return false
	}
	if elapsed := now.Sub(p.since); p.got > 0 && float64(p.got)*p.minute.Seconds() >= float64(p.need)*elapsed.Seconds() {
		p.watched = false
		if elapsed >= p.minute {
			p.since, p.got, p.waited = now, 0, 0
		}
		return false
	}
	p.watched = true
	return true
}

// wait adds the time since start.
func (p *pace) wait(start time.Time) { p.waited += time.Since(start) }

// failed reports whether the service waited for the client for a minute in which it
// sent too little. If it sent enough, the next minute begins.
func (p *pace) failed() bool {
	if !p.watched || p.waited < p.minute {
		return false
	}
	if p.got < p.need {
		return true
	}
	p.since, p.got, p.waited = time.Now(), 0, 0
	return false
}

// patience returns how long to wait before failed is called again, at most d.
func (p *pace) patience(d time.Duration) time.Duration {
	if p.rate == 0 {
		return d
	}
	if !p.watched {
		return min(d, p.minute)
	}
	return min(d, max(p.minute-p.waited, time.Millisecond))
}
