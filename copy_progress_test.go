package main

import (
	"testing"
	"time"
)

func TestCopyProgressLine(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	c := newCopyRun(nil, nil, copyOptions{}, 0, &copyReport{counts: copyCounts{Copied: 2, Replaced: 1, Same: 4}})
	c.read.Store(90 << 20)
	c.passed.Store(40 << 20)
	c.moving.Store(10 << 20)
	now := c.sample(start.Add(10 * time.Second))
	zero := progressSample{at: start}
	if got, want := c.progress(zero, zero, now), "7 builds, 50 MiB, 9.0 MiB/s, counting, 3 copied"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	c.total.Store(200 << 20)
	if got, want := c.progress(zero, zero, now), "25% of 200 MiB, 9.0 MiB/s, 30s left, 3 copied"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
