package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	verifyReaders   = 4                // builds that are read at once
	verifyPending   = 100              // builds whose results are awaited, also of those that are not read now
	verifyPage      = 1000             // sites or builds of one page
	verifySaveEvery = 10 * time.Second // how often the state is kept in the store
	verifyBuffer    = 256 << 10        // bytes of one read, and of the burst of a rate
	verifyStopWait  = 10 * time.Second // how long a run that is stopped may take to keep its state
	verifyMaxFailed = 5                // builds in a row that the store fails to return before verify stops
)

// verifyPauses are the waits before a build is read again.
var verifyPauses = []time.Duration{time.Second, 3 * time.Second}

// verifyOptions are the options that decide what a run does. A run that was stopped is only
// resumed with the same.
type verifyOptions struct {
	Sites []string  `json:"sites,omitempty"` // sorted globs; empty: all sites
	Since verifyAge `json:"since,omitzero"`  // only builds that are no older; 0: all
	Fill  bool      `json:"fill,omitempty"`  // keep missing digests
}

// verifyAge is a duration that is a text in JSON: 48h0m0s.
type verifyAge time.Duration

// MarshalText implements encoding.TextMarshaler.
func (a verifyAge) MarshalText() ([]byte, error) { return []byte(time.Duration(a).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *verifyAge) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	*a = verifyAge(d)
	return err
}

// partial reports whether the run leaves out builds.
func (o verifyOptions) partial() bool { return len(o.Sites) > 0 || o.Since != 0 }

// status returns the name under which the store keeps the state of the run. A run of a part does
// not replace the result of the latest whole one.
func (o verifyOptions) status() string {
	if o.partial() {
		return verifyStatusOfPart
	}
	return verifyStatus
}

func (o verifyOptions) equal(other verifyOptions) bool {
	return slices.Equal(o.Sites, other.Sites) && o.Since == other.Since && o.Fill == other.Fill
}

// verifier compares the builds of a store with the digests that the store keeps. It reads the
// sites in the order of their ids, and the builds of a site from the newest to the oldest.
type verifier struct {
	store    verifiable
	options  verifyOptions
	matches  func(site string) bool // nil: options.Sites are ids
	limiter  *rate.Limiter          // of the bytes that are read; nil: no limit
	readOnly bool                   // write nothing to the store
	pauses   []time.Duration
	stopWait time.Duration
	wait     func(ctx context.Context, d time.Duration) (goesOn bool)
	perPage  int           // sites or builds of a page
	readers  chan struct{} // has a value for each build that is being read
	large    chan struct{} // has a value while a large build is read, if there is a limiter
	report   *verifyReport
	reading  atomic.Int64 // bytes that were read, also of builds without a result yet

	readBefore int64 // bytes that the run had read before it was resumed

	mu     sync.Mutex // guards the fields below
	state  verifyState
	safe   verifyState // the state before the failures in a row: what is kept in the store
	failed int         // failures of the store in a row
	total  verifyTotal
}

// newVerifier returns a verifier that reads at most bytesPerSecond; 0 is no limit.
func newVerifier(store verifiable, options verifyOptions, bytesPerSecond int64, report *verifyReport) *verifier {
	v := &verifier{store: store, options: options, pauses: verifyPauses, stopWait: verifyStopWait, perPage: verifyPage,
		wait: pause, readers: make(chan struct{}, verifyReaders), large: make(chan struct{}, 1), report: report}
	if bytesPerSecond > 0 {
		v.limiter = rate.NewLimiter(rate.Limit(bytesPerSecond), verifyBuffer)
	}
	return v
}

// verifiable is a store that verify supports.
type verifiable interface {
	Backend
	VersionPager
	ArtifactStater
	DigestKeeper
	SiteLister
}

// errVerifyOutput wraps an error of the output.
var errVerifyOutput = errors.New("cannot write the output")

// errInterrupted: ctx ended before the run did.
var errInterrupted = errors.New("interrupted")

// run verifies until the end, until ctx ends, or until the store fails. It returns nil if it
// came to the end. Each finding goes to the report as soon as it is known, and the state to the
// store.
func (v *verifier) run(ctx context.Context) error {
	working, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	v.mu.Lock()
	v.safe = v.state
	from := v.state
	v.mu.Unlock()
	wg.Go(func() { v.count(working, from) })
	wg.Go(func() { v.saveRegularly(working) })
	var err error
	if from.isNew() && len(v.options.Sites) == 0 {
		err = v.foreign(working, "")
	}
	if err == nil {
		err = v.eachSite(working, from.Position, v.site)
	}
	if err != nil && ctx.Err() != nil {
		err = errInterrupted
	}
	cancel()
	wg.Wait()
	v.mu.Lock()
	for _, s := range []*verifyState{&v.state, &v.safe} {
		if s.Finished, s.Complete = time.Now().UTC(), err == nil; err != nil {
			s.Error = oneLine(err)
		}
	}
	if err == nil {
		v.safe = v.state
	}
	v.mu.Unlock()
	v.save()
	return err
}

// update changes the state under the lock. The result is safe to resume from unless the store
// has failed since the last success.
func (v *verifier) update(change func(s *verifyState)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change(&v.state)
	if v.failed == 0 {
		v.safe = v.state
	}
}

// oldest returns the time before which builds are not verified.
func (v *verifier) oldest() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.options.Since == 0 {
		return time.Time{}
	}
	return v.state.Started.Add(-time.Duration(v.options.Since))
}

// site verifies a site from cursor on.
func (v *verifier) site(ctx context.Context, site, cursor string) error {
	found, err := v.eachPage(ctx, site, cursor, func(versions []*Version) error { return v.page(ctx, site, versions) })
	found = found || cursor != ""
	switch {
	case err != nil && (ctx.Err() != nil || errors.Is(err, errVerifyOutput) || errors.Is(err, errVerifyStops)):
		return err
	case err != nil:
		err = v.skipSite(site, err)
	case found:
		err = v.foreign(ctx, site)
	}
	if err != nil {
		return err
	}
	v.update(func(s *verifyState) {
		if found {
			s.Counts.Sites++
		}
		s.Position = verifyPosition{After: site}
	})
	return nil
}

// skipSite reports a site whose builds cannot be listed.
func (v *verifier) skipSite(site string, err error) error {
	stop := v.countFailure(err)
	if err := v.add(verifyFinding{Site: site, Result: resultSkipped, Detail: "cannot list the builds: " + oneLine(err)}); err != nil {
		return err
	}
	return stop
}

// foreign reports what the service did not write in a site, or beside the sites if site is empty.
func (v *verifier) foreign(ctx context.Context, site string) error {
	lister, ok := v.store.(ForeignLister)
	if !ok {
		return nil
	}
	var stop error
	err := lister.ForeignFiles(site, func(name, what string) error {
		if stop = ctx.Err(); stop == nil {
			stop = v.add(verifyFinding{Site: site, Result: resultForeign, File: name, Detail: what})
		}
		return stop
	})
	switch {
	case stop != nil:
		return stop
	case err != nil && !errors.Is(err, ErrNotFound):
		return v.add(verifyFinding{Site: site, Result: resultSkipped, Detail: "cannot look for foreign files: " + oneLine(err)})
	}
	return nil
}

// page verifies the builds of a page, verifyReaders at once, and reports them in their order.
func (v *verifier) page(ctx context.Context, site string, versions []*Version) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	queue := make(chan chan checkedBuild, verifyPending)
	wg.Go(func() {
		defer close(queue)
		var order readOrder
		for _, b := range versions {
			select {
			case v.readers <- struct{}{}:
			case <-ctx.Done():
				return
			}
			result := make(chan checkedBuild, 1)
			var turn *readTurn
			if v.oneByOne(b.SizeBytes) {
				turn = order.add()
			}
			wg.Go(func() {
				defer func() { <-v.readers }()
				result <- v.check(ctx, site, b, turn)
			})
			select {
			case queue <- result:
			case <-ctx.Done():
				return
			}
		}
	})
	for _, b := range versions {
		select {
		case result, more := <-queue:
			if !more {
				return ctx.Err()
			}
			if err := v.take(site, b, <-result); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// take counts and reports the result of a build, and moves the position behind it.
func (v *verifier) take(site string, b *Version, r checkedBuild) error {
	if r.stopped != nil {
		return r.stopped
	}
	stop := v.countFailure(r.failure)
	if b.LogsError != "" {
		if err := v.add(verifyFinding{Site: site, Build: b.BuildID, Result: resultDamagedLog, Detail: b.LogsError}); err != nil {
			return err
		}
	}
	if r.Result != "" {
		r.Site, r.Build = site, b.BuildID
		if err := v.add(r.verifyFinding); err != nil {
			return err
		}
	}
	v.update(func(s *verifyState) {
		s.Counts.Bytes += r.read
		s.Passed.Builds++
		s.Passed.Bytes += b.SizeBytes
		if r.rebound {
			s.Counts.Rebound++
		}
		s.Position = verifyPosition{Site: site, Cursor: formatCursor(b.place())}
	})
	return stop
}

// errVerifyStops is wrapped by the error of a run that the store ended.
var errVerifyStops = errors.New("stopped")

// countFailure counts the failures of the store in a row; nil is a success. It returns an error
// if there are too many. A resumed run begins before these failures.
func (v *verifier) countFailure(err error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err == nil {
		v.failed = 0
	} else if v.failed++; v.failed >= verifyMaxFailed {
		return fmt.Errorf("%w, because the store failed %d times in a row: %w", errVerifyStops, v.failed, err)
	}
	return nil
}
