package main

import (
	"context"
	"fmt"
	"time"
)

const (
	progressOnTerminal = time.Second
	progressInLog      = 10 * time.Second
	rateOver           = 10 * time.Second // the rate is that of the last 10 s
)

// progressSample is what was done at a time.
type progressSample struct {
	at     time.Time
	read   int64 // bytes
	passed int64 // bytes, also of builds that are not read
}

// showProgress writes progress lines until ctx ends.
func (v *verifier) showProgress(ctx context.Context) {
	every := progressInLog
	if v.report.terminal {
		every = progressOnTerminal
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	first := v.sample(time.Now())
	recent := []progressSample{first}
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			recent = append(recent, v.sample(now))
			for len(recent) > 2 && now.Sub(recent[1].at) >= rateOver {
				recent = recent[1:]
			}
			v.report.progress(v.progress(first, recent[0], recent[len(recent)-1]))
		}
	}
}

func (v *verifier) sample(now time.Time) progressSample {
	v.mu.Lock()
	defer v.mu.Unlock()
	read := v.reading.Load()
	// With what was read of builds that are not done. If one is read again, it counts twice.
	return progressSample{now, read, v.state.Passed.Bytes + max(0, read-(v.state.Counts.Bytes-v.readBefore))}
}

// progress returns a progress line: share, rate and time left at now.
func (v *verifier) progress(first, recent, now progressSample) string {
	v.mu.Lock()
	builds, total, bad := v.state.Passed.Builds, v.total, v.state.Counts.Corrupt+v.state.Counts.Changed+v.state.Counts.DamagedDigests
	v.mu.Unlock()
	rate := float64(now.read-recent.read) / now.at.Sub(recent.at).Seconds()
	done := fmt.Sprintf("%d builds, %s", builds, formatSize(now.passed))
	left := "counting"
	if total.known {
		share := 1.0
		if total.Bytes > 0 {
			share = min(1, float64(now.passed)/float64(total.Bytes))
		}
		done = fmt.Sprintf("%.0f%% of %s", 100*share, formatSize(total.Bytes))
		left = "time left unknown"
		if moved := now.passed - first.passed; moved > 0 {
			seconds := float64(max(0, total.Bytes-now.passed)) * now.at.Sub(first.at).Seconds() / float64(moved)
			left = formatLeft(seconds) + " left"
		}
	}
	return fmt.Sprintf("%s, %s/s, %s, %d bad", done, formatSize(int64(rate)), left, bad)
}

// formatLeft returns a time in seconds in two units at most.
func formatLeft(seconds float64) string {
	const limit = 100 * 24 * 3600
	if seconds > limit {
		return "over 100 days"
	}
	d := time.Duration(seconds * float64(time.Second)).Round(time.Second)
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return d.String()
}
