package main

import (
	"context"
	"fmt"
	"time"
)

// showProgress writes progress lines until ctx ends.
func (c *copyRun) showProgress(ctx context.Context) {
	c.report.watchProgress(ctx, c.sample, func(first, recent, now progressSample) {
		c.report.progress("copy", c.progress(first, recent, now))
	})
}

func (c *copyRun) sample(now time.Time) progressSample {
	return progressSample{now, c.read.Load(), c.passed.Load() + max(0, c.moving.Load())}
}

// progress returns a progress line: share, rate and time left at now.
func (c *copyRun) progress(first, recent, now progressSample) string {
	n := c.report.now()
	done := fmt.Sprintf("%d builds, %s", n.Copied+n.Replaced+n.Same, formatSize(now.passed))
	return fmt.Sprintf("%s, %d copied", progressText(done, c.total.Load(), first, recent, now), n.Copied+n.Replaced)
}
