package main

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
)

// copySite copies one site.
type copySite struct {
	*copyRun
	id string

	mu   sync.Mutex
	same map[string]string // by build: the artifacts of both sides that were found to be the same
	bad  map[string]string // by build: the artifacts of both sides of which the first cannot be copied
	logs map[string]string // by build: the log of the source of which nothing can be copied any more

	labels map[string]string // by label: the builds of both sides that it named when it could not be moved
}

// buildWork is a build of the source that the target does not have as it is.
type buildWork struct {
	from     *listedBuild
	to       *listedBuild // nil: the target has none
	artifact bool         // it is to be copied, or compared
	log      bool
	fromLog  func(buildID string) (*openedLog, error)
	toLog    func(buildID string) (*openedLog, error)
	toHasLog bool // otherwise the log is not looked for
}

// labelWork is a label of the source that the target does not have as it is.
type labelWork struct {
	label Label
	old   *Label // nil: the target has none
}

// siteWork is what is left to do.
type siteWork struct {
	builds []*buildWork
	labels []labelWork
}

// site copies a site. Its errors end the run.
func (c *copyRun) site(ctx context.Context, id string) error {
	s := &copySite{copyRun: c, id: id, same: map[string]string{}, bad: map[string]string{}, logs: map[string]string{}, labels: map[string]string{}}
	for pass := 1; ; pass++ {
		work, err := s.compare(ctx, pass == 1)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return s.skip(err)
		case len(work.builds)+len(work.labels) == 0:
			return nil
		case c.options.DryRun:
			return s.plan(ctx, work)
		case pass == copyPasses:
			return s.giveUp(work)
		}
		if err := s.do(ctx, work); err != nil {
			return err
		}
	}
}

// skip reports a site that cannot be listed.
func (s *copySite) skip(err error) error {
	stop := s.countFailure(err)
	if err := s.report.add(copyEvent{Type: copySiteType, Site: s.id, Result: copyFailed, Detail: oneLine(err)}); err != nil {
		return err
	}
	return stop
}

// giveUp reports what changes faster than it is copied.
func (s *copySite) giveUp(work *siteWork) error {
	const text = "it changed each time that it was copied"
	for _, w := range work.builds {
		kind := copyBuildType
		if !w.artifact {
			kind = copyLogType
		}
		if err := s.report.add(copyEvent{Type: kind, Site: s.id, Build: w.from.id, Result: copyFailed, Detail: text}); err != nil {
			return err
		}
	}
	for _, w := range work.labels {
		if err := s.report.add(copyEvent{Type: copyLabelType, Site: s.id, Build: w.label.BuildID, Label: w.label.Name, Result: copyFailed, Detail: text}); err != nil {
			return err
		}
	}
	return nil
}

// plan reports what would be done.
func (s *copySite) plan(ctx context.Context, work *siteWork) error {
	for _, w := range work.builds {
		e := copyEvent{Type: copyBuildType, Site: s.id, Build: w.from.id, Bytes: w.from.size}
		switch {
		case !w.artifact:
		case w.to.artifact() == "":
			e.Result = planCopy
		case w.from.size != w.to.size || w.from.sum.known() && w.to.sum.known():
			e.Result, e.Detail = copyConflict, otherBytes(w.from.size, w.to.size)
			if s.options.Replace {
				e.Result = planReplace
			}
		default:
			e.Result = planCompare
		}
		if e.Result != "" {
			if err := s.report.add(e); err != nil {
				return err
			}
		}
		if w.log && e.Result != copyConflict {
			if err := s.log(ctx, w); err != nil {
				return err
			}
		}
	}
	for _, w := range work.labels {
		if err := s.report.add(copyEvent{Type: copyLabelType, Site: s.id, Build: w.label.BuildID, Label: w.label.Name, Result: planMove}); err != nil {
			return err
		}
	}
	return nil
}

// do copies what is left. On a target whose builds have the time of their arrival, one after the
// other.
func (s *copySite) do(ctx context.Context, work *siteWork) error {
	_, datesBuilds := s.to.(ArrivalTeller)
	g, working := errgroup.WithContext(ctx)
	g.SetLimit(copyParallel)
	var err error
	for _, w := range work.builds {
		if err = working.Err(); err != nil {
			break
		}
		if w.artifact && !datesBuilds {
			if err = s.artifact(working, w); err != nil {
				break
			}
		}
		g.Go(func() error {
			if w.artifact && datesBuilds {
				if err := s.artifact(working, w); err != nil {
					return err
				}
			}
			return s.log(working, w)
		})
	}
	if failed := g.Wait(); failed != nil {
		return failed // the cause: it may have ended the others
	}
	if err != nil {
		return err
	}
	for _, w := range work.labels {
		if err := s.label(ctx, w); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// compare lists both sides and returns what differs, and can be copied. first: no pass was before.
func (s *copySite) compare(ctx context.Context, first bool) (*siteWork, error) {
	from, err := s.list(ctx, s.from)
	if err != nil {
		return nil, fmt.Errorf("cannot list the source: %w", err)
	}
	to, err := s.list(ctx, s.to)
	if err != nil {
		return nil, fmt.Errorf("cannot list the target: %w", err)
	}
	older, err := s.older(ctx, from, to)
	if err != nil {
		return nil, fmt.Errorf("cannot tell when a build arrived in the source: %w", err)
	}
	if err := s.lookUpDigests(ctx, from, to, older); err != nil {
		return nil, fmt.Errorf("cannot look up digests: %w", err)
	}
	work := &siteWork{}
	for _, b := range from.builds {
		t := to.byID[b.id]
		w := &buildWork{from: b, to: t, fromLog: from.openLog, toLog: to.openLog, toHasLog: t.hasLog()}
		w.artifact = b.etag != "" && !older[b.id] && !s.isDone(b, t)
		w.log = b.hasLog() && !(older[b.id] && t == nil) && s.bad[b.id] == "" && !s.isLogDone(b, t)
		if w.artifact || w.log {
			work.builds = append(work.builds, w)
		}
		if first {
			s.report.see(b, older[b.id], w.artifact)
			if !w.artifact {
				s.passed.Add(b.size)
			}
		}
	}
	if first {
		s.report.seeSite(from, to)
	}
	work.labels = s.compareLabels(from.labels, to.labels)
	return work, nil
}

// isDone reports whether both artifacts are the same, or the first cannot be copied.
func (s *copySite) isDone(b, t *listedBuild) bool {
	pair := b.artifact() + " " + t.artifact()
	switch {
	case s.bad[b.id] == pair:
		return true
	case t.artifact() == "" || b.size != t.size:
		return false
	case b.sum.known() && t.sum.known():
		return b.sum == t.sum
	}
	return s.same[b.id] == pair
}

// isLogDone reports whether both logs say the same, or nothing more can be copied: the target may
// have entries of its own.
func (s *copySite) isLogDone(b, t *listedBuild) bool {
	if b.logsError == "" && b.log() == t.log() {
		return true
	}
	return s.logs[b.id] == b.log()
}
