package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
	"unique"
)

// What became of a build.
const (
	pruneKeep     = "keep"
	pruneRemove   = "remove" // it would be removed: without apply
	pruneRemoved  = "removed"
	pruneChanged  = "changed"  // not removed: it, or its log, is no longer what the plan saw
	pruneLabelled = "labelled" // not removed: it got a label after the plan
	pruneNot      = "failed"   // not removed: the store failed
)

// buildResult is what became of a build, and why.
type buildResult struct {
	Build     string
	CreatedAt time.Time
	Age       time.Duration
	Bytes     int64
	Action    string
	Reason    string // of the plan
	Detail    string // why it was not removed
}

// siteResult is what became of a site.
type siteResult struct {
	Site    string
	Rule    string // its place in the file; empty: no rule, so that everything is kept
	Skip    skipReason
	Forced  bool   // builds were removed in spite of Skip
	Detail  string // of Skip
	Kept    tally  // by the plan
	Remove  tally  // by the plan
	Removed tally
}

// site prunes a site. Its errors end the run.
func (p *pruner) site(ctx context.Context, id string) error {
	start := time.Now()
	p.state.Counts.Sites++
	result := siteResult{Site: id}
	rule := p.rules.ruleFor(id)
	if rule == nil {
		p.state.Counts.NoRule++
		return p.done(result)
	}
	result.Rule = rule.place
	site, plan, err := p.plan(ctx, id)
	switch {
	case ctx.Err() != nil:
		return errPruneInterrupted
	case err == nil, errors.Is(err, ErrDamaged): // the store is there
		p.failed = 0
	default:
		p.failed++
	}
	c := &p.state.Counts
	result.Skip, result.Detail, result.Kept, result.Remove = plan.Skip, plan.SkipText, plan.Kept, plan.Remove
	c.Builds += int64(plan.Kept.Builds + plan.Remove.Builds)
	c.Bytes += plan.Kept.Bytes + plan.Remove.Bytes
	if result.Forced = p.force && plan.Skip.canForce(); plan.Skip == skipNone || result.Forced {
		c.Remove += int64(plan.Remove.Builds)
		c.RemoveBytes += plan.Remove.Bytes
		err = p.builds(ctx, site, plan, &result)
	} else {
		p.skip(id, plan.Skip)
		if p.failed >= pruneMaxFailed {
			err = fmt.Errorf("%w, because the store failed %d times in a row: %w", errPruneStops, p.failed, err)
		} else {
			err = nil
		}
	}
	if reported := p.done(result); reported != nil {
		return reported
	}
	if err == nil && !p.rest(ctx, start) {
		return errPruneInterrupted
	}
	return err
}

// skipReasons are all reasons.
var skipReasons = []skipReason{skipNoLabel, skipMissingBuild, skipUnreadableLabel, skipUnreadableLog, skipIncompleteList, skipPercent}

// skip counts a site that is skipped.
func (p *pruner) skip(id string, reason skipReason) {
	p.state.Counts.SkippedSites++
	i := slices.IndexFunc(p.state.Skipped, func(s skippedSites) bool { return s.Reason == reason })
	if i < 0 {
		i = len(p.state.Skipped)
		p.state.Skipped = append(p.state.Skipped, skippedSites{Reason: reason, Sites: []string{}})
	}
	s := &p.state.Skipped[i]
	if s.Count++; len(s.Sites) < maxSkippedNames {
		s.Sites = append(s.Sites, id)
	}
}

func (p *pruner) done(result siteResult) error {
	if err := p.report.site(result); err != nil {
		return fmt.Errorf("%w: %w", errPruneOutput, err)
	}
	return nil
}

// rest leaves the store to others, for as long as prune has used it since a time. It reports
// whether ctx goes on.
func (p *pruner) rest(ctx context.Context, since time.Time) bool {
	if p.gentle {
		return pause(ctx, min(time.Since(since), maxRest))
	}
	return ctx.Err() == nil
}

// plan reads a site and returns its plan. If a build or log changes meanwhile, it reads the site
// again. err is the cause of skipIncompleteList and skipUnreadableLabel.
func (p *pruner) plan(ctx context.Context, id string) (site pruneSite, plan sitePlan, err error) {
	for try := 1; ; try++ {
		now := p.now()
		skip := skipUnreadableLabel
		site = pruneSite{ID: id, ArrivedAt: p.arrivedAt(id)}
		site.Labels, err = p.store.ListLabels(id) // before the builds: then a label has its build in the list
		if err == nil {
			skip = skipIncompleteList
			site.Builds, err = p.list(ctx, id, try == pruneTries)
		}
		if err == nil {
			plan, err = planSite(p.rules, site, now)
		}
		switch {
		case err == nil:
			return site, plan, nil
		case try == pruneTries, errors.Is(err, ErrDamaged), ctx.Err() != nil:
			return site, sitePlan{Skip: skip, SkipText: oneLine(err)}, err
		}
	}
}

// arrivedAt returns the function that the plan asks for the arrival of builds.
func (p *pruner) arrivedAt(site string) func(buildID string) (time.Time, error) {
	teller, ok := p.store.(ArrivalTeller)
	if !ok { // CreatedAt is when they arrived
		return func(string) (time.Time, error) { return time.Time{}, nil }
	}
	return func(buildID string) (time.Time, error) { return teller.ArrivedAt(site, buildID) }
}

// list returns all builds of a site. last: a log that cannot be read is that of a build whose
// status is not known, otherwise an error.
func (p *pruner) list(ctx context.Context, site string, last bool) (builds []pruneBuild, err error) {
	q := VersionQuery{Limit: prunePage, Tags: true}
	for {
		page, err := p.store.ListVersionsPage(site, q)
		if err != nil {
			return nil, err
		}
		for _, v := range page.Versions {
			if v.logTag == "" {
				return nil, fmt.Errorf("%w: the list has no tags", ErrUnsupported)
			}
			b := pruneBuild{ID: v.BuildID, Size: v.SizeBytes, CreatedAt: v.CreatedAt, HasArtifact: v.etag != "", Empty: v.etag != "" && v.SizeBytes == 0, UnknownLog: v.LogsError != "", ETag: v.etag, LogTag: v.logTag, ArrivedAt: v.arrivedAt}
			if !b.UnknownLog {
				err = b.readLog(page, v)
				if b.UnknownLog = err != nil; err != nil && !last {
					return nil, err
				}
			}
			builds = append(builds, b)
		}
		if q.Cursor = page.NextCursor; q.Cursor == "" || ctx.Err() != nil {
			return builds, ctx.Err()
		}
	}
}

// readLog sets what the latest entry of the log of v, a version of page, says.
func (b *pruneBuild) readLog(page *VersionPage, v *Version) error {
	err := page.eachEntry(v, false, func(e *LogEntry) error {
		b.Status, b.LoggedAt = e.Status, e.Timestamp
		return nil
	})
	if err != nil {
		return fmt.Errorf("the log of build %q: %w", v.BuildID, page.unread(v, err))
	}
	b.Status = unique.Make(b.Status).Value() // it can be a part of the whole log
	return nil
}
