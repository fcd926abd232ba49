package main

import (
	"context"
	"fmt"
	"time"
)

// showProgress writes progress lines until ctx ends.
func (v *verifier) showProgress(ctx context.Context) {
	v.report.watchProgress(ctx, v.sample, func(first, recent, now progressSample) {
		v.report.progress("verify", v.progress(first, recent, now))
	})
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
	bytes := int64(-1)
	if total.known {
		bytes = total.Bytes
	}
	return fmt.Sprintf("%s, %d bad", progressText(fmt.Sprintf("%d builds, %s", builds, formatSize(now.passed)), bytes, first, recent, now), bad)
}
