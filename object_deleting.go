package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// A delete of a build has these steps, which match those of the move of a label:
//
//  1. It writes a mark, {site}/deleting/{build}/{id}, under an id of its own.
//  2. It reads the labels of the site, and stops if one of them protects the build.
//  3. It removes the build, within deleteWithin of the start by its own clock, or gives up.
//  4. It removes its mark, unless it does not know whether the store is still removing the build.
//
// A move that comes too late for step 2 sees the mark, and fails, or finds that the build is gone.
// If a delete is interrupted, its mark stays. It counts for markLife by the clock of the store,
// which is much longer than the delete could go on. Each delete has a mark of its own, so deletes
// do not wait for each other, and none can remove the mark of another.
//
// The end of a context ends the retries of an SDK and the wait for a response. It does not recall
// a request that was sent: the store may carry it out later. Then the mark stays as well. What
// remains possible is that a first attempt, whose connection broke, is carried out after a retry
// of the SDK was answered and the build was uploaded and labelled again.

const (
	deleteWithin  = 60 * time.Second // from before its mark is written, for all that a delete removes
	markLife      = 10 * time.Minute // for how long a mark counts
	deleteBatch   = 100              // builds that share one look at the labels
	deleteWorkers = 16               // builds of a batch that are worked on at once
)

var _ VersionDeleter = (*objectStore)(nil)

// DeleteArtifact implements ConditionalStorer.
func (s *objectStore) DeleteArtifact(siteID, buildID string, cond Precondition) error {
	ctx, cancel := context.WithTimeout(context.Background(), deleteWithin)
	defer cancel()
	d := newRemoval(ctx, s, siteID)
	builds := []VersionDeletion{{BuildID: buildID, Artifact: cond}}
	return d.run(builds, func(b VersionDeletion) error {
		digest, err := d.removeArtifact(b)
		if err != nil || s.digests == nil {
			return err
		}
		if err := s.digests.remove(context.Background(), siteID, buildID, digest); err != nil {
			s.digests.warn("cannot remove the digest of a build that was deleted", s.digestKey(siteID, buildID), err)
		}
		return nil
	})[0]
}

// DeleteVersions implements VersionDeleter. It fails with ErrUnsupported for all builds if one
// of them has a condition, and the store ignores conditions of deletes.
func (s *objectStore) DeleteVersions(siteID string, builds []VersionDeletion) []error {
	var errs []error
	for len(builds) > 0 {
		batch := builds[:min(deleteBatch, len(builds))]
		builds = builds[len(batch):]
		errs = append(errs, s.deleteVersions(siteID, batch)...)
	}
	return errs
}

func (s *objectStore) deleteVersions(siteID string, builds []VersionDeletion) []error {
	ctx, cancel := context.WithTimeout(context.Background(), deleteWithin)
	defer cancel()
	d := newRemoval(ctx, s, siteID)
	return d.run(builds, d.removeVersion)
}

// removal removes builds of a site.
type removal struct {
	s      *objectStore
	siteID string
	id     string          // of its marks
	ctx    context.Context // ends deleteWithin after the start
}

func newRemoval(ctx context.Context, s *objectStore, siteID string) *removal {
	return &removal{s: s, siteID: siteID, id: rand.Text(), ctx: ctx}
}

// run calls remove for each of builds that no label protects, while its mark is there. It returns
// the error of each.
func (d *removal) run(builds []VersionDeletion, remove func(VersionDeletion) error) []error {
	if slices.ContainsFunc(builds, func(b VersionDeletion) bool { return !b.Artifact.IsZero() || b.LogTag != "" }) {
		if err := d.s.requireCapability(conditionalRemove); err != nil {
			return slices.Repeat([]error{err}, len(builds))
		}
	}
	errs := make([]error, len(builds))
	each := func(do func(i int)) {
		var g errgroup.Group
		g.SetLimit(deleteWorkers)
		for i := range builds {
			g.Go(func() error { do(i); return nil })
		}
		_ = g.Wait()
	}
	each(func(i int) {
		errs[i] = d.mark(builds[i].BuildID)
	})
	labels, err := d.s.readLabels(d.ctx, d.siteID) // after the last mark
	each(func(i int) {
		if errs[i] == nil {
			errs[i] = err
		}
		if errs[i] == nil {
			errs[i] = checkUnlabelled(builds[i].BuildID, labels)
		}
		if errs[i] == nil {
			errs[i] = remove(builds[i])
			if errors.Is(errs[i], ErrUnavailable) { // the store may still be removing the build
				return
			}
		}
		// If this fails, no label can be moved to the build until the mark no longer counts.
		_ = d.s.remove(context.Background(), d.markKey(builds[i].BuildID), "")
	})
	return errs
}

// mark writes the mark of a build. It repeats that if the store reports a conflict, although no
// other process writes this object: versitygw may fail to make its folder while another delete
// removes it.
func (d *removal) mark(buildID string) (err error) {
	for range removeTries {
		_, err = d.s.put(d.ctx, d.markKey(buildID), []byte("{}\n"), putOptions{contentType: logType})
		if !errors.Is(err, errConflict) {
			return err
		}
	}
	return fmt.Errorf("%w: %v", ErrUnavailable, err)
}

// removeVersion removes the artifact, the digest and the log of a build.
func (d *removal) removeVersion(b VersionDeletion) error {
	if err := d.checkLogTag(b); err != nil {
		return err
	}
	var artifact Outcome
	outcome := b.Artifact.Outcome
	b.Artifact.Outcome = &artifact
	digest, err := d.removeArtifact(b)
	if err != nil {
		return err
	}
	if d.s.digests != nil {
		err = d.s.digests.remove(d.ctx, d.siteID, b.BuildID, digest)
	} else {
		err = ignoreMissing(d.s.remove(d.ctx, d.s.digestKey(d.siteID, b.BuildID), ""))
	}
	if err != nil {
		return err
	}
	err = d.removeLog(b)
	_, ok := d.s.bucket.(absenceReporter)
	switch absent := errors.Is(err, ErrNotFound); {
	case artifact == outcomeDeleted, ok && err == nil:
		outcome.set(outcomeDeleted)
	case artifact == outcomeAbsent && absent:
		outcome.set(outcomeAbsent)
	}
	return ignoreMissing(err)
}

// removeLog removes the log that b wants to be removed. It may fail with ErrNotFound if there is
// none.
func (d *removal) removeLog(b VersionDeletion) error {
	if b.LogTag == noLogTag {
		return ErrNotFound
	}
	return d.s.remove(d.ctx, d.logKey(b), b.LogTag)
}

func (d *removal) logKey(b VersionDeletion) string {
	return d.s.logsPrefix(d.siteID) + b.BuildID + logSuffix
}

// checkLogTag fails with ErrPrecondition unless the log is the one that b wants to be removed.
func (d *removal) checkLogTag(b VersionDeletion) error {
	if b.LogTag == "" {
		return nil
	}
	log, err := d.s.statIfExists(d.ctx, d.logKey(b))
	if err != nil {
		return err
	}
	tag := noLogTag
	if log != nil {
		tag = log.etag
	}
	if tag != b.LogTag {
		return fmt.Errorf("%w: the log of %q has changed", ErrPrecondition, b.BuildID)
	}
	return nil
}

// removeArtifact removes the artifact if the condition of b holds. digest is the value of
// digestKey that it had, or empty if that is not known.
func (d *removal) removeArtifact(b VersionDeletion) (digest string, err error) {
	s, cond, key := d.s, b.Artifact, d.s.artifactKey(d.siteID, b.BuildID)
	if cond.IsZero() {
		err := s.remove(d.ctx, key, "")
		switch _, ok := s.bucket.(absenceReporter); {
		case errors.Is(err, ErrNotFound):
			cond.Outcome.set(outcomeAbsent)
		case ok:
			cond.Outcome.set(outcomeDeleted)
		}
		return "", ignoreMissing(err)
	}
	err = s.removeIf(d.ctx, key, cond, func() (*ArtifactInfo, string, error) {
		o, err := s.statIfExists(d.ctx, key)
		if o != nil {
			digest = o.digest
		}
		return o.info(), o.etagOf(), err
	})
	return digest, err
}

// removeIf removes the object under key if cond holds for what current returns: a description of
// what clients see, nil if that is nothing, and the ETag of the object.
func (s *objectStore) removeIf(ctx context.Context, key string, cond Precondition, current func() (*ArtifactInfo, string, error)) error {
	for try := range removeTries {
		info, etag, err := current()
		if err != nil {
			return err
		}
		err = cond.Check(info)
		if err != nil && info == nil && try > 0 {
			// Deleted by a concurrent request, for which 204 would be wrong, or by an
			// attempt of the SDK whose reply was lost, for which 412 would be.
			return fmt.Errorf("%w: %q was deleted, by this request or by a concurrent one", ErrUnavailable, key)
		}
		cond.Outcome.set(outcomeOf(info != nil, outcomeDeleted, outcomeAbsent))
		if err != nil || info == nil {
			return err
		}
		err = s.requireCapability(conditionalRemove)
		if err == nil {
			err = s.remove(ctx, key, etag)
		}
		if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrPrecondition) && !errors.Is(err, errConflict) {
			return err
		}
	}
	return fmt.Errorf("%w: cannot delete %q: it was replaced during each of %d attempts", ErrUnavailable, key, removeTries)
}

// remove removes an object, if etag is not empty only the one with that ETag.
func (s *objectStore) remove(ctx context.Context, key, etag string) error {
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) { // ctx may not know yet, in a process that was stopped
		return fmt.Errorf("%w: too late to delete %q", ErrUnavailable, key)
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if err := s.checkBucket(s.bucket.remove(ctx, key, etag)); err != nil {
		return fmt.Errorf("cannot delete %q: %w", key, err)
	}
	return nil
}

// ignoreMissing returns err, or nil if that says that there is no such object.
func ignoreMissing(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

func (d *removal) markKey(buildID string) string {
	return d.s.marksPrefix(d.siteID, buildID) + d.id
}

func (s *objectStore) marksPrefix(siteID, buildID string) string {
	return s.sitePrefix(siteID) + deletingDir + "/" + buildID + "/"
}

// checkNotBeingDeleted fails with errBeingDeleted if a delete that has not seen the label of move,
// whose Next was written before, may be about to remove the build. It removes the marks of
// interrupted deletes.
func (s *objectStore) checkNotBeingDeleted(ctx context.Context, siteID string, move LabelMove) error {
	var marks []objectInfo
	prefix := s.marksPrefix(siteID, move.BuildID)
	listCtx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err := s.bucket.list(listCtx, prefix, func(page []objectInfo) error {
		marks = append(marks, page...)
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot list %q: %w", prefix, err)
	}
	if len(marks) == 0 {
		return nil
	}
	label, err := s.statIfExists(ctx, s.labelKey(siteID, move.Label)) // just written: it has the time of the store
	if err != nil {
		return err
	}
	if label == nil {
		return errConflict
	}
	for _, m := range marks {
		if label.modTime.Sub(m.modTime) < markLife {
			return fmt.Errorf("%w: %s", errBeingDeleted, strings.TrimPrefix(m.key, s.prefix))
		}
	}
	for _, m := range marks {
		_ = s.remove(ctx, m.key, "")
	}
	return nil
}
