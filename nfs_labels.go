package main

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
)

// The labels of a site, in files of their own:
//
//	{base}/sites/{site}/labels/{label}.json
//
// A label is moved or deleted under the lock of the labels of the site, and the exclusive locks of
// the artifacts that it names before and after. Whoever replaces or deletes a build reads the labels
// under the lock of its artifact, which may be a shared one: no label can begin or cease to name
// this build meanwhile. A move holds its locks until it is durable. Otherwise the build that the
// label named before could be deleted durably, and a power cut could undo the move. Changes of
// other builds do not wait for it, nor it for them: on a busy site some build is always locked.
// Nobody who holds the lock of an artifact waits for that of the labels, so these waits end.
//
// Before it writes the label it syncs the directory of the build: whoever stored the build may not
// have done so yet, and a power cut must not take a build that has a label.
//
// On NFS a label is replaced in the steps of nfs_replace.go, and readers find it in the same way.

// MoveLabel implements LabelKeeper.
func (n *nfs) MoveLabel(siteID string, move LabelMove) (l Label, created bool, err error) {
	if err := n.checkMounted(); err != nil {
		return Label{}, false, err
	}
	artifacts, err := n.openBuilds(siteID, artifactsDir)
	if err != nil {
		return Label{}, false, n.notFound(err) // before the lock: its file would be created
	}
	defer artifacts.Close()
	lock, err := n.lockLabels(siteID, move.Label)
	if err != nil {
		return Label{}, false, err
	}
	defer lock.release()
	if err := n.checkMounted(); err != nil { // the directory may be below a mount that disappeared
		return Label{}, false, err
	}
	if err := n.addArtifact(lock, siteID, move.BuildID); err != nil {
		return Label{}, false, err
	}
	build, err := n.buildToLabel(artifacts, siteID, move.BuildID)
	if err != nil {
		return Label{}, false, err
	}
	old, err := n.labelToMove(siteID, move.Label)
	exists := err == nil
	if err := checkCondition(move.Cond, *old.info(), err); err != nil {
		return Label{}, false, err
	}
	dir, err := n.disk.ensureDir(n.base, sitesDir, siteID, labelsDir)
	if err != nil {
		return Label{}, false, err
	}
	defer dir.Close()
	if exists && old.BuildID == move.BuildID {
		move.Cond.Outcome.set(outcomeSame)
		if old.BuildETag != build.ETag {
			old.BuildETag = build.ETag
			return old, false, n.writeLabel(dir, old, lock)
		}
		// Another process may have moved it without an fsync so far.
		return old, false, n.disk.syncDir(dir)
	}
	if exists {
		if err := n.addArtifact(lock, siteID, old.BuildID); err != nil {
			return Label{}, false, err
		}
	} else {
		if labels, err := labelNames(dir); err != nil || len(labels) >= maxLabels {
			return Label{}, false, cmp.Or(err, errTooManyLabels)
		}
	}
	if err := n.disk.syncDir(artifacts); err != nil {
		return Label{}, false, err
	}
	move.Cond.Outcome.set(outcomeOf(exists, outcomeMoved, outcomeCreated))
	l = old.moved(move.Label, move.BuildID, build.ETag, move.By, n.disk.now())
	return l, !exists, n.writeLabel(dir, l, lock)
}

// buildToLabel describes a build, or fails with ErrNotFound. The caller holds the
// exclusive lock of the artifact.
func (n *nfs) buildToLabel(artifacts *os.File, siteID, buildID string) (ArtifactInfo, error) {
	if _, err := n.finishReplacement(artifacts, fileName(artifactsDir, buildID)); err != nil {
		return ArtifactInfo{}, err
	}
	f, err := n.describe(n.filePath(siteID, artifactsDir, buildID))
	return f.info, n.notFound(err)
}

// labelToMove returns the label, which it gives its own name, or fails with ErrNotFound. The
// caller holds the lock of the labels.
func (n *nfs) labelToMove(siteID, label string) (l Label, err error) {
	dir, err := n.openFresh(siteID, labelsDir)
	if err == nil {
		defer dir.Close()
		_, err = n.finishReplacement(dir, fileName(labelsDir, label))
	}
	if err == nil {
		l, err = n.labelAt(n.filePath(siteID, labelsDir, label), label)
	}
	return l, n.notFound(err)
}

// writeLabel durably writes l to dir, unless the lock was lost.
func (n *nfs) writeLabel(dir *os.File, l Label, lock *buildLock) error {
	temp, err := n.disk.createTemp(dir)
	if err != nil {
		return err
	}
	defer temp.discard()
	if _, err := temp.Write(formatLabel(l)); err != nil {
		return err
	}
	if _, err := temp.seal(); err != nil {
		return err
	}
	if err := lock.alive(); err != nil {
		return err
	}
	if err := n.putInPlace(temp, fileName(labelsDir, l.Name), lock); err != nil {
		return err
	}
	if err := lock.alive(); err != nil { // if lost, another host may have deleted the build
		return err
	}
	return temp.syncDir()
}

// DeleteLabel implements LabelKeeper.
func (n *nfs) DeleteLabel(siteID, label string, cond Precondition) error {
	if err := n.checkMounted(); err != nil {
		return err
	}
	dir, err := n.openFresh(siteID, labelsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return checkCondition(cond, ArtifactInfo{}, n.notFound(err))
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	lock, err := n.lockLabels(siteID, label)
	if err != nil {
		return err
	}
	defer lock.release()
	if err := n.checkMounted(); err != nil { // the directory may be below a mount that disappeared
		return err
	}
	l, err := n.labelToMove(siteID, label)
	if !cond.IsZero() {
		if err := checkCondition(cond, *l.info(), err); err != nil {
			return err
		}
	}
	if err == nil { // a damaged label names no build
		if err := n.addArtifact(lock, siteID, l.BuildID); err != nil {
			return err
		}
	}
	cond.Outcome.set(outcomeOf(!errors.Is(err, ErrNotFound), outcomeDeleted, outcomeAbsent))
	if err := lock.alive(); err != nil {
		return err
	}
	if err := n.deleteFile(dir, fileName(labelsDir, label), nil); err != nil {
		return err
	}
	// Also if the label was missing: another process may have removed it without an fsync.
	return n.disk.syncDir(dir)
}
