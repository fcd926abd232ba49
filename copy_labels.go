package main

import (
	"context"
	"errors"
)

// compareLabels returns the labels that the target does not have as the source has them.
func (s *copySite) compareLabels(from, to []Label) (work []labelWork) {
	olds := map[string]*Label{}
	for i := range to {
		olds[to[i].Name] = &to[i]
	}
	for _, l := range from {
		old := olds[l.Name]
		if old != nil && old.BuildID == l.BuildID || s.labels[l.Name] == labelPair(l, old) {
			continue
		}
		work = append(work, labelWork{l, old})
	}
	return work
}

// labelPair is what both sides say about a label.
func labelPair(l Label, old *Label) string {
	if old == nil {
		return l.BuildID + " "
	}
	return l.BuildID + " " + old.BuildID
}

// label moves a label of the target, if it has the same build. Its errors end the run.
func (s *copySite) label(ctx context.Context, w labelWork) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e := copyEvent{Type: copyLabelType, Site: s.id, Build: w.label.BuildID, Label: w.label.Name, Result: copyMoved}
	var err error
	if s.bad[w.label.BuildID] != "" {
		e.Result, e.Detail = copyMissing, "the target does not have the build of the source"
	} else {
		err = s.retry(ctx, func() error { return s.moveLabel(w) })
	}
	var failure error
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
	case errors.Is(err, ErrNotFound):
		e.Result, e.Detail = copyMissing, "the target does not have the build"
	case errors.Is(err, ErrPrecondition):
		e.Result, e.Detail = copyConflict, "the label was moved in the target meanwhile"
	default:
		e.Result, e.Detail, failure = copyFailed, oneLine(err), err
	}
	if e.Result != copyMoved {
		s.labels[w.label.Name] = labelPair(w.label, w.old)
	}
	stop := s.countFailure(failure)
	if err := s.report.add(e); err != nil {
		return err
	}
	return stop
}

// moveLabel moves a label of the target. A new one is first moved to the build that it named
// before in the source, so that it can be rolled back.
func (s *copySite) moveLabel(w labelWork) error {
	move := LabelMove{Label: w.label.Name, BuildID: w.label.BuildID, By: w.label.By, Cond: Precondition{Absent: true}}
	if w.old != nil {
		move.Cond = Precondition{IfMatch: &ETagList{Tags: []string{w.old.ETag()}}}
	} else if p := w.label.Previous; p != "" && p != w.label.BuildID && s.bad[p] == "" {
		before := move
		before.BuildID = p
		l, _, err := s.to.MoveLabel(s.id, before)
		switch {
		case err == nil:
			move.Cond = Precondition{IfMatch: &ETagList{Tags: []string{l.ETag()}}}
		case !errors.Is(err, ErrNotFound): // the target does not have that build
			return err
		}
	}
	_, _, err := s.to.MoveLabel(s.id, move)
	return err
}
