package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"
)

const (
	prunePage      = 1000 // sites or builds of one page
	pruneBatch     = 100  // builds that are removed with one call
	pruneTries     = 3    // of a site whose list or log changes while it is read
	pruneMaxFailed = 5    // sites that the store fails to return, or batches that it fails to remove, in a row before a run stops
	pruneRetryWait = time.Second
	maxRest        = 10 * time.Second // between two batches or sites
)

// prunable is a store that prune supports. It may also be an ArrivalTeller, a ClockTeller, a
// StatusKeeper and a Leaser.
type prunable interface {
	Backend
	VersionPager
	SiteLister
	LabelKeeper
	VersionDeleter
}

// pruner removes the builds that the rules do not keep, site by site.
type pruner struct {
	store   prunable
	rules   *retention
	matches func(site string) bool // all by default
	apply   bool                   // otherwise nothing is removed
	force   bool                   // see forced
	gentle  bool                   // leave the store at least half of the time to others
	report  pruneReport

	retryWait time.Duration // before the store is asked again for what it failed to do

	now    func() time.Time // the time by the store's clock
	state  pruneState
	failed int // sites in a row that the store did not return

	failedBatches int // in a row
}

func newPruner(store prunable, rules *retention, report pruneReport) *pruner {
	return &pruner{store: store, rules: rules, report: report, retryWait: pruneRetryWait, matches: func(string) bool { return true }}
}

// pruneReport gets what a pruner decides and does. Its errors end the run.
type pruneReport interface {
	// build is called for each build of a site: at once if it is kept, or would be removed, and
	// otherwise when the store has removed it, or has not.
	build(site string, b buildResult) error
	// site is called when a site is done, or is skipped.
	site(s siteResult) error
}

// pruneCounts counts what a run saw and did.
type pruneCounts struct {
	Sites        int64 `json:"sites"`         // all, with those that are skipped or have no rule
	NoRule       int64 `json:"no_rule"`       // sites without a rule, whose builds are not counted
	SkippedSites int64 `json:"skipped_sites"` // for any reason
	Builds       int64 `json:"builds"`        // of the sites with a plan, skipped or not
	Bytes        int64 `json:"bytes"`
	Remove       int64 `json:"remove"` // builds that the plans of sites that are not skipped remove
	RemoveBytes  int64 `json:"remove_bytes"`
	Removed      int64 `json:"removed"` // of them, what was removed
	RemovedBytes int64 `json:"removed_bytes"`
	Changed      int64 `json:"changed"`  // not removed, since they changed after the plan
	Labelled     int64 `json:"labelled"` // not removed, since they got a label after the plan
	Failed       int64 `json:"failed"`   // not removed, since the store failed
}

// errPruneOutput wraps an error of the report.
var errPruneOutput = errors.New("cannot write the output")

// errPruneInterrupted: ctx ended before the run did.
var errPruneInterrupted = errors.New("interrupted")

// errPruneStops is wrapped by the error of a run that the store ended.
var errPruneStops = errors.New("stopped")

// run prunes all sites that match. It returns nil if it came to the end; p.state has the result
// in any case. It stops between two batches when ctx ends.
func (p *pruner) run(ctx context.Context) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("prune panicked: %v\n%s", cause, debug.Stack())
		}
		p.state.Finished, p.state.Complete = time.Now().UTC(), err == nil
		if err != nil {
			p.state.Error = oneLine(err)
		}
	}()
	p.failed, p.state = 0, pruneState{Started: time.Now().UTC(), Skipped: []skippedSites{}}
	if p.now, err = p.clock(); err != nil {
		return fmt.Errorf("cannot read the clock of the store: %w", err)
	}
	after := ""
	for {
		sites, err := p.store.ListSites("", after, prunePage, p.matches)
		if err != nil {
			return fmt.Errorf("cannot list the sites: %w", err)
		}
		for _, site := range sites {
			if ctx.Err() != nil {
				return errPruneInterrupted
			}
			if err := p.site(ctx, site); err != nil {
				return err
			}
		}
		if len(sites) < prunePage {
			return nil
		}
		after = sites[len(sites)-1]
	}
}

// clock returns the clock by which builds are young or old. If the store has a clock of its own,
// it is read once, and the slower one counts. Without apply nothing depends on it, and reading it
// may write a file.
func (p *pruner) clock() (func() time.Time, error) {
	teller, ok := p.store.(ClockTeller)
	if !ok || !p.apply {
		return time.Now, nil
	}
	at, err := teller.StoreTime()
	behind := max(0, time.Since(at))
	return func() time.Time { return time.Now().Add(-behind) }, err
}

// result returns the result of a run that has ended with err.
func (p *pruner) result(err error) string {
	switch {
	case errors.Is(err, errPruneInterrupted):
		return pruneStopped
	case err != nil:
		return pruneFailed
	case p.state.Counts.Failed > 0, slices.ContainsFunc(p.state.Skipped, func(s skippedSites) bool { return s.Reason.isFault() }):
		return pruneIncomplete
	}
	return pruneOK
}
