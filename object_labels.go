package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"time"
)

// A label is an object, {site}/labels/{label}.json. A move has these steps, so that no build is
// deleted while a label names it, although an object store has no locks:
//
//  1. It sets Next to the build, on the condition that the label has not changed.
//  2. It checks that no delete of the build is under way (object_deleting.go), and then that the
//     build exists. The order matters: a delete that has not seen Next has a mark that this move
//     sees, or has ended.
//  3. It sets BuildID and clears Next, on the condition that the label has not changed since 1.
//
// Deletes treat BuildID and Next as labelled. So a move that is interrupted protects one build
// too many, until the label is moved again or deleted. A new label has an empty BuildID until
// step 3: GetLabel and ListLabels do not show it.

const (
	// moveTimeout bounds a move, which begins anew whenever a concurrent one changed the label.
	moveTimeout = 30 * time.Second
	// movePatience is how long a move waits for another one to end before it takes its place. If
	// they did not wait, two moves could prevent each other for a long time.
	movePatience = time.Second
)

var _ LabelKeeper = (*objectStore)(nil)

// labelObject is a label as the store has it.
type labelObject struct {
	Label
	etag string // of the object, not of the label
}

// shown reports whether the label exists for clients: not while its first move is under way. A
// nil *labelObject is a label without an object.
func (o *labelObject) shown() bool { return o != nil && o.BuildID != "" }

// current returns what a Precondition on the label compares.
func (o *labelObject) current() *ArtifactInfo {
	if !o.shown() {
		return nil
	}
	return o.info()
}

func (s *objectStore) labelsPrefix(siteID string) string {
	return s.sitePrefix(siteID) + labelsDir + "/"
}

func (s *objectStore) labelKey(siteID, label string) string {
	return s.labelsPrefix(siteID) + label + labelSuffix
}

// MoveLabel implements LabelKeeper.
func (s *objectStore) MoveLabel(siteID string, move LabelMove) (Label, bool, error) {
	if err := s.requireCapability(conditionalPut); err != nil {
		return Label{}, false, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), moveTimeout)
	defer cancel()
	for wait := appendBackoff; ; wait = min(2*wait, appendMaxWait) {
		l, created, err := s.tryMove(ctx, siteID, move)
		if !errors.Is(err, errConflict) {
			return l, created, err
		}
		select {
		case <-ctx.Done():
			return Label{}, false, fmt.Errorf("%w: cannot move the label %q within %s: %v", ErrUnavailable, move.Label, moveTimeout, err)
		case <-time.After(mathrand.N(wait)):
		}
	}
}

// tryMove moves the label, or fails with errConflict if it was changed meanwhile.
func (s *objectStore) tryMove(ctx context.Context, siteID string, move LabelMove) (l Label, created bool, err error) {
	old, err := s.readIdle(ctx, siteID, move.Label)
	if err != nil {
		return Label{}, false, err
	}
	if err := move.Cond.Check(old.current()); err != nil {
		return Label{}, false, err
	}
	etag, err := s.statBuild(ctx, siteID, move.BuildID) // before anything is written
	if err != nil {
		return Label{}, false, err
	}
	if old.shown() && old.BuildID == move.BuildID {
		move.Cond.Outcome.set(outcomeSame)
		if old.BuildETag != etag {
			old.BuildETag = etag
			_, err = s.writeLabel(ctx, siteID, &old.Label, putOptions{ifMatch: old.etag})
		}
		return old.Label, false, err
	}
	next, err := s.writeNext(ctx, siteID, old, move)
	if err != nil {
		return Label{}, false, err
	}
	etag, err = s.checkMove(ctx, siteID, move, old == nil)
	if err == nil {
		l, err = next.moved(move.Label, move.BuildID, etag, move.By, time.Now()), nil
		_, err = s.writeLabel(ctx, siteID, &l, putOptions{ifMatch: next.etag})
	}
	if err != nil {
		s.abandonMove(siteID, next)
		return Label{}, false, err
	}
	return l, !old.shown(), nil
}

// readIdle returns the label, or nil if it has no object. If another move of it seems to be under
// way, it waits for movePatience.
func (s *objectStore) readIdle(ctx context.Context, siteID, label string) (*labelObject, error) {
	for seen := ""; ; {
		o, err := s.readLabel(ctx, siteID, label)
		if err != nil || o == nil || o.Next == "" || o.etag == seen {
			return o, err
		}
		seen = o.etag
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: other moves of the label %q do not end", ErrUnavailable, label)
		case <-time.After(movePatience):
		}
	}
}

// statBuild returns the ETag of a build that a label is to name.
func (s *objectStore) statBuild(ctx context.Context, siteID, buildID string) (etag string, err error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	key := s.artifactKey(siteID, buildID)
	info, err := s.stat(ctx, key)
	if err != nil {
		return "", fmt.Errorf("cannot stat %q: %w", key, err)
	}
	return info.etag, nil
}

// writeNext is step 1 of a move of the label old, which is nil if there is none.
func (s *objectStore) writeNext(ctx context.Context, siteID string, old *labelObject, move LabelMove) (*labelObject, error) {
	next, opts := labelObject{}, putOptions{absent: old == nil}
	if old == nil {
		if err := s.checkLabelCount(ctx, siteID, maxLabels-1); err != nil {
			return nil, err
		}
		next.Label = Label{Name: move.Label, ChangedAt: time.Now()}
	} else {
		next, opts.ifMatch = *old, old.etag
	}
	next.Next = move.BuildID
	etag, err := s.writeLabel(ctx, siteID, &next.Label, opts)
	next.etag = etag
	return &next, err
}

// checkMove is step 2 of a move. It returns the ETag of the build.
func (s *objectStore) checkMove(ctx context.Context, siteID string, move LabelMove, isNew bool) (etag string, err error) {
	if isNew { // again: of several new labels, the last ones to be written see all others
		if err := s.checkLabelCount(ctx, siteID, maxLabels); err != nil {
			return "", err
		}
	}
	if err := s.checkNotBeingDeleted(ctx, siteID, move); err != nil {
		return "", err
	}
	return s.statBuild(ctx, siteID, move.BuildID)
}

// abandonMove undoes step 1 of a move, unless the label has changed since. What it cannot undo
// protects one build too many: so errors do not matter. If a label was to be created, and the
// store ignores conditions of deletes, it stays: it may have been moved by another request.
func (s *objectStore) abandonMove(siteID string, next *labelObject) {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	if next.BuildID != "" {
		l := next.Label
		l.Next = ""
		_, _ = s.writeLabel(ctx, siteID, &l, putOptions{ifMatch: next.etag})
	} else if s.requireCapability(conditionalRemove) == nil {
		_ = s.remove(ctx, s.labelKey(siteID, next.Name), next.etag)
	}
}

// writeLabel stores l with a new WriteID, on the condition in opts. If the condition does not
// hold, it fails with errConflict. If the reply was lost, it finds out whether l was stored.
func (s *objectStore) writeLabel(ctx context.Context, siteID string, l *Label, opts putOptions) (etag string, err error) {
	l.WriteID = rand.Text()
	data := formatLabel(*l)
	key := s.labelKey(siteID, l.Name)
	opts.contentType = logType
	info, err := s.put(ctx, key, data, opts)
	conflict := errors.Is(err, ErrPrecondition) || errors.Is(err, errConflict)
	if err == nil || !conflict && !errors.Is(err, ErrUnavailable) {
		return info.etag, err
	}
	stored, readErr := s.readLabel(ctx, siteID, l.Name)
	switch {
	case readErr == nil && stored != nil && stored.WriteID == l.WriteID:
		return stored.etag, nil
	case conflict && readErr == nil:
		return "", fmt.Errorf("%w: cannot write %q: %v", errConflict, key, err)
	}
	// Not %w of err: an ErrPrecondition may be due to our own put.
	return "", fmt.Errorf("%w: cannot tell whether %q was written: %v", ErrUnavailable, key, err)
}

func (s *objectStore) put(ctx context.Context, key string, data []byte, opts putOptions) (objectInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	info, err := s.bucket.put(ctx, key, bytes.NewReader(data), int64(len(data)), opts)
	if err != nil {
		return objectInfo{}, fmt.Errorf("cannot write %q: %w", key, s.checkBucket(err))
	}
	return info, nil
}

// checkLabelCount fails with errTooManyLabels if the site has more than limit labels, those whose
// first move is under way or was interrupted included.
func (s *objectStore) checkLabelCount(ctx context.Context, siteID string, limit int) error {
	names, err := s.labelNames(ctx, siteID)
	if err == nil && len(names) > limit {
		err = errTooManyLabels
	}
	return err
}

// DeleteLabel implements LabelKeeper.
func (s *objectStore) DeleteLabel(siteID, label string, cond Precondition) error {
	ctx, key := context.Background(), s.labelKey(siteID, label)
	if cond.IsZero() {
		return ignoreMissing(s.remove(ctx, key, ""))
	}
	return s.removeIf(ctx, key, cond, func() (*ArtifactInfo, string, error) {
		o, err := s.readLabel(ctx, siteID, label)
		if err != nil || o == nil {
			return nil, "", err
		}
		return o.current(), o.etag, nil
	})
}
