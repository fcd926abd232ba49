package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	copyPage      = 1000      // sites or builds of one page
	copyPasses    = 4         // over a site: each compares, and all but the last copy what differs
	copyParallel  = 4         // builds or logs that are copied at once
	copyBuffer    = 256 << 10 // bytes of one read, and of the burst of a rate
	copyMaxFailed = 5         // failures of a store in a row before a run stops
)

// copyPauses are the waits before a store is asked again for what it failed to do.
var copyPauses = []time.Duration{time.Second, 3 * time.Second, 10 * time.Second}

// copyable is a store that copy supports. It may also be an ArrivalTeller: then it gives a build
// the time that its reader has (Dated).
type copyable interface {
	Backend
	ConditionalStorer
	ArtifactStater
	VersionPager
	SiteLister
	LabelKeeper
	DigestKeeper
	LogAppender
}

// copyOptions decide what a run does.
type copyOptions struct {
	Sites   []string      // globs; empty: all
	Since   time.Duration // leave out builds that arrived earlier; 0: none
	Replace bool          // builds of the target that have other bytes
	DryRun  bool
}

// copyRun copies the sites of a store to another, and never deletes anything there. It can be
// repeated after any end: it copies only what is missing.
//
// Of each site it lists both sides, copies what differs, the oldest build first, and each
// before its log, and lists again, until the lists say the same. So the last list is the check of
// the result, and finds what the source got meanwhile. Labels come last.
type copyRun struct {
	from, to copyable
	options  copyOptions
	matches  func(site string) bool
	limiter  *rate.Limiter // of the bytes that are read; nil: no limit
	report   *copyReport
	pauses   []time.Duration
	start    time.Time

	read   atomic.Int64 // bytes
	moving atomic.Int64 // bytes that were read of builds that are not done
	passed atomic.Int64 // bytes of builds that are done
	total  atomic.Int64 // bytes of all builds; -1: not counted yet

	mu     sync.Mutex // guards failed
	failed int        // failures of a store in a row
}

// newCopyRun returns a run that reads at most bytesPerSecond; 0 is no limit.
func newCopyRun(from, to copyable, options copyOptions, bytesPerSecond int64, report *copyReport) *copyRun {
	c := &copyRun{from: from, to: to, options: options, report: report, pauses: copyPauses, start: time.Now(),
		matches: func(string) bool { return true }}
	if bytesPerSecond > 0 {
		c.limiter = rate.NewLimiter(rate.Limit(bytesPerSecond), copyBuffer)
	}
	c.total.Store(-1)
	return c
}

// errCopyOutput wraps an error of the output.
var errCopyOutput = errors.New("cannot write the output")

// errCopyInterrupted: ctx ended before the run did.
var errCopyInterrupted = errors.New("interrupted")

// errCopyStops is wrapped by the error of a run that a store ended.
var errCopyStops = errors.New("stopped")

// run copies all sites that match. It returns nil if it came to the end; the report has what it
// found.
func (c *copyRun) run(ctx context.Context) error {
	counting, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end()
	wg.Go(func() { c.count(counting) })
	err := c.eachSite(ctx, c.site)
	if err != nil && ctx.Err() != nil && !errors.Is(err, errCopyOutput) {
		return errCopyInterrupted
	}
	return err
}

// eachSite calls do with each site that matches, in their order.
func (c *copyRun) eachSite(ctx context.Context, do func(ctx context.Context, site string) error) error {
	for after := ""; ; {
		var sites []string
		err := c.retry(ctx, func() (err error) {
			sites, err = c.from.ListSites("", after, copyPage, c.matches)
			return err
		})
		if err != nil {
			return fmt.Errorf("cannot list the sites of the source: %w", err)
		}
		for _, site := range sites {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := do(ctx, site); err != nil {
				return err
			}
		}
		if len(sites) < copyPage {
			return ctx.Err()
		}
		after = sites[len(sites)-1]
	}
}

// count finds out how much there is, for the progress line.
func (c *copyRun) count(ctx context.Context) {
	var total int64
	err := c.eachSite(ctx, func(ctx context.Context, site string) error {
		return c.eachPage(ctx, c.from, site, VersionQuery{}, func(page *VersionPage) error {
			for _, v := range page.Versions {
				total += v.SizeBytes
			}
			return nil
		})
	})
	if err == nil { // otherwise the run itself reports why
		c.total.Store(total)
	}
}

// eachPage calls do with each page of a site.
func (c *copyRun) eachPage(ctx context.Context, store copyable, site string, q VersionQuery, do func(page *VersionPage) error) error {
	for q.Limit = copyPage; ; {
		var page *VersionPage
		err := c.retry(ctx, func() (err error) {
			page, err = store.ListVersionsPage(site, q)
			return err
		})
		if err == nil {
			err = do(page)
		}
		if err != nil {
			return err
		}
		if q.Cursor = page.NextCursor; q.Cursor == "" || ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// retry calls f again while it fails with an error that may pass.
func (c *copyRun) retry(ctx context.Context, f func() error) error {
	for _, wait := range c.pauses {
		if err := f(); err == nil || isLasting(err) || !pause(ctx, wait) {
			return err
		}
	}
	return f()
}

// isLasting reports whether err is that of a store which does not do what is asked until somebody
// changes it.
func isLasting(err error) bool {
	for _, lasting := range []error{ErrDenied, ErrUnsupported, ErrReadOnly, ErrNoSpace} {
		if errors.Is(err, lasting) {
			return true
		}
	}
	return false
}

// countFailure counts failures of a store in a row; nil is a success. It returns an error if the
// run must stop.
func (c *copyRun) countFailure(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.failed = 0
		return nil
	case isLasting(err):
		return fmt.Errorf("%w: %w", errCopyStops, err)
	}
	if c.failed++; c.failed >= copyMaxFailed {
		return fmt.Errorf("%w, because a store failed %d times in a row: %w", errCopyStops, c.failed, err)
	}
	return nil
}
