package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// builds carries out the plan of a site, batch by batch, and reports each build.
func (p *pruner) builds(ctx context.Context, site pruneSite, plan sitePlan, result *siteResult) error {
	var batch []int
	for i, v := range plan.Verdicts {
		if v.removes() && p.apply {
			if batch = append(batch, i); len(batch) < pruneBatch {
				continue
			}
			if err := p.removeBatch(ctx, site, plan, batch, result); err != nil {
				return err
			}
			batch = batch[:0]
			continue
		}
		action := pruneKeep
		if v.removes() {
			action = pruneRemove
		}
		if err := p.reportBuild(site, plan, i, action, nil); err != nil {
			return err
		}
	}
	return p.removeBatch(ctx, site, plan, batch, result)
}

func (p *pruner) reportBuild(site pruneSite, plan sitePlan, i int, action string, cause error) error {
	b := &site.Builds[i]
	r := buildResult{Build: b.ID, CreatedAt: b.CreatedAt, Age: p.now().Sub(b.CreatedAt), Bytes: b.Size, Action: action, Reason: plan.why(plan.Verdicts[i], b.ID)}
	if cause != nil {
		r.Detail = oneLine(cause)
	}
	if err := p.report.build(site.ID, r); err != nil {
		return fmt.Errorf("%w: %w", errPruneOutput, err)
	}
	return nil
}

// removeBatch removes builds, and reports and counts what became of them.
func (p *pruner) removeBatch(ctx context.Context, site pruneSite, plan sitePlan, batch []int, result *siteResult) error {
	if len(batch) == 0 {
		return nil
	}
	start := time.Now()
	var stop error
	failed := 0
	c := &p.state.Counts
	for k, err := range p.remove(ctx, site, batch) {
		action := pruneRemoved
		switch bytes := site.Builds[batch[k]].Size; {
		case err == nil:
			result.Removed.Builds++
			result.Removed.Bytes += bytes
			c.Removed++
			c.RemovedBytes += bytes
		case errors.Is(err, ErrPrecondition):
			action = pruneChanged
			c.Changed++
		case errors.Is(err, errLabelled):
			action = pruneLabelled
			c.Labelled++
		default:
			action = pruneNot
			c.Failed++
			failed++
			stop = err
		}
		if err := p.reportBuild(site, plan, batch[k], action, err); err != nil {
			return err
		}
	}
	if failed < len(batch) {
		p.failedBatches = 0
	} else {
		p.failedBatches++
	}
	switch {
	case stop != nil && (p.failedBatches >= pruneMaxFailed || isFinal(stop)):
		return fmt.Errorf("%w: %w", errPruneStops, stop)
	case !p.rest(ctx, start):
		return errPruneInterrupted
	}
	return nil
}

// isFinal reports whether the store would fail with the same error again, for any build.
func isFinal(err error) bool {
	return errors.Is(err, ErrUnsupported) || errors.Is(err, ErrDenied) || errors.Is(err, ErrReadOnly)
}

// mayPass reports whether another try can succeed.
func mayPass(err error) bool {
	return err != nil && !isFinal(err) && !errors.Is(err, ErrPrecondition) && !errors.Is(err, errLabelled) && !errors.Is(err, ErrDamaged)
}

// remove removes builds if they are as the plan saw them, and returns an error for each.
func (p *pruner) remove(ctx context.Context, site pruneSite, batch []int) []error {
	deletions := make([]VersionDeletion, len(batch))
	for k, i := range batch {
		deletions[k] = site.Builds[i].deletion()
	}
	errs := p.store.DeleteVersions(site.ID, deletions)
	if !slices.ContainsFunc(errs, mayPass) || !pause(ctx, p.retryWait) {
		return errs
	}
	for k, d := range deletions {
		if !mayPass(errs[k]) {
			continue
		}
		if errs[k] = p.removeAgain(site.ID, d); mayPass(errs[k]) {
			break // nor the others, most likely
		}
	}
	return errs
}

// deletion returns the request to remove the build as the plan saw it.
func (b *pruneBuild) deletion() VersionDeletion {
	d := VersionDeletion{BuildID: b.ID, LogTag: b.LogTag, Artifact: Precondition{Absent: true}}
	if b.HasArtifact {
		d.Artifact = Precondition{IfMatch: &ETagList{Tags: []string{b.ETag}}}
	}
	return d
}

// removeAgain removes a build after an error: its artifact may be gone already.
func (p *pruner) removeAgain(site string, d VersionDeletion) error {
	err := p.store.DeleteVersions(site, []VersionDeletion{d})[0]
	if errors.Is(err, ErrPrecondition) && !d.Artifact.Absent {
		d.Artifact = Precondition{Absent: true}
		if p.store.DeleteVersions(site, []VersionDeletion{d})[0] == nil {
			return nil
		}
	}
	return err
}
