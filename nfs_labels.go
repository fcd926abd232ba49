package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The labels of a site, in files of their own:
//
//	{base}/sites/{site}/labels/{label}.json
//
// A label is moved or deleted under an exclusive lock on all bytes of the lock file of the
// site. So it excludes every change of every build of the site, and every other move. Whoever
// deletes or replaces a build reads the labels under the lock of the build, which may be a
// shared one: the labels cannot change meanwhile. The lock is held until a move is durable.
// Otherwise the build that the label named before could be deleted durably, and a power cut
// could undo the move.
//
// On NFS a label is replaced in the steps of nfs_replace.go, and readers find it in the same way.

// MoveLabel implements LabelKeeper.
func (n *nfs) MoveLabel(siteID string, move LabelMove) (l Label, created bool, err error) {
	if err := n.checkMounted(); err != nil {
		return Label{}, false, err
	}
	artifacts, err := n.openBuilds(siteID, artifactsDir)
	if err != nil {
		return Label{}, false, n.notFound(err) // no lock file is created either
	}
	defer artifacts.Close()
	lock, err := n.lockSite(siteID, move.Label)
	if err != nil {
		return Label{}, false, err
	}
	defer lock.release()
	if err := n.checkMounted(); err != nil { // the directory may be below a mount that disappeared
		return Label{}, false, err
	}
	build, err := n.buildToLabel(artifacts, siteID, move.BuildID)
	if err != nil {
		return Label{}, false, err
	}
	old, err := n.labelToChange(siteID, move.Label)
	exists := err == nil
	if err := checkCondition(move.Cond, *old.info(), err); err != nil {
		return Label{}, false, err
	}
	if !exists {
		if err := n.checkRoom(siteID); err != nil {
			return Label{}, false, err
		}
	}
	dir, err := n.disk.ensureDir(n.base, sitesDir, siteID, labelsDir)
	if err != nil {
		return Label{}, false, err
	}
	defer dir.Close()
	if exists && old.BuildID == move.BuildID {
		// Another process may have moved it without an fsync so far.
		return old, false, n.disk.syncDir(dir)
	}
	l = old.moved(move.Label, move.BuildID, build.ETag, move.By, n.disk.now())
	return l, !exists, n.writeLabel(dir, l, lock)
}

// buildToLabel returns the attributes of a build, or ErrNotFound. The caller holds the lock of
// the site.
func (n *nfs) buildToLabel(artifacts *os.File, siteID, buildID string) (ArtifactInfo, error) {
	if _, err := n.finishReplacement(artifacts, fileName(artifactsDir, buildID)); err != nil {
		return ArtifactInfo{}, err
	}
	f, err := n.describe(n.filePath(siteID, artifactsDir, buildID))
	return f.info, n.notFound(err)
}

// labelToChange returns the label under its own name, or ErrNotFound. The caller holds the lock
// of the site.
func (n *nfs) labelToChange(siteID, label string) (Label, error) {
	dir, err := n.openLabels(siteID)
	if err != nil {
		return Label{}, n.notFound(err)
	}
	defer dir.Close()
	if _, err := n.finishReplacement(dir, fileName(labelsDir, label)); err != nil {
		return Label{}, err
	}
	l, err := readLabel(dir, fileName(labelsDir, label), label)
	return l, n.notFound(err)
}

// checkRoom fails with errTooManyLabels if the site can have no more labels.
func (n *nfs) checkRoom(siteID string) error {
	labels, err := n.labelNames(siteID)
	if err == nil && len(labels) >= maxLabels {
		return errTooManyLabels
	}
	return err
}

// writeLabel durably replaces the label l in dir, unless the lock of the site was lost.
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
	return temp.syncDir()
}

// DeleteLabel implements LabelKeeper.
func (n *nfs) DeleteLabel(siteID, label string, cond Precondition) error {
	if err := n.checkMounted(); err != nil {
		return err
	}
	dir, err := n.openLabels(siteID)
	if errors.Is(err, fs.ErrNotExist) {
		return checkCondition(cond, ArtifactInfo{}, n.notFound(err))
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	lock, err := n.lockSite(siteID, label)
	if err != nil {
		return err
	}
	defer lock.release()
	if err := n.checkMounted(); err != nil { // the directory may be below a mount that disappeared
		return err
	}
	if !cond.IsZero() {
		l, err := n.labelToChange(siteID, label)
		if err := checkCondition(cond, *l.info(), err); err != nil {
			return err
		}
	}
	if err := lock.alive(); err != nil {
		return err
	}
	if err := n.deleteFile(dir, fileName(labelsDir, label), cond.Outcome); err != nil {
		return err
	}
	// Also if the label was missing: another process may have removed it without an fsync.
	return n.disk.syncDir(dir)
}

// GetLabel implements LabelKeeper.
func (n *nfs) GetLabel(siteID, label string) (l Label, err error) {
	err = n.find(siteID, labelsDir, label, func(path string) error {
		dir, err := n.disk.openDir(n.sitePath(siteID, labelsDir))
		if err != nil {
			return err
		}
		defer dir.Close()
		l, err = readLabel(dir, strings.TrimPrefix(path, dir.Name()+"/"), label)
		return err
	})
	return l, n.notFound(err)
}

// ListLabels implements LabelKeeper.
func (n *nfs) ListLabels(siteID string) ([]Label, error) {
	return n.listLabels(siteID, func(label string) (Label, error) { return n.GetLabel(siteID, label) })
}

// checkUnlabelled fails with a labelledError if a label protects the build, and with its error
// if a label cannot be read. The caller holds a lock of the build.
func (n *nfs) checkUnlabelled(siteID, buildID string) error {
	labels, err := n.listLabels(siteID, func(label string) (Label, error) { return n.readStill(siteID, label) })
	if err != nil {
		return err
	}
	return checkUnlabelled(buildID, labels)
}

// listLabels returns the labels of a site that read returns, in the order of their names.
func (n *nfs) listLabels(siteID string, read func(label string) (Label, error)) (labels []Label, err error) {
	names, err := n.labelNames(siteID)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		l, err := read(name)
		if errors.Is(err, ErrNotFound) { // it was deleted meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		labels = append(labels, l)
	}
	return labels, nil
}

// readStill reads a label while a lock on any byte excludes moves. Only a sweep may rename the
// file meanwhile, from one of its other names to its own.
func (n *nfs) readStill(siteID, label string) (l Label, err error) {
	dir, err := n.openLabels(siteID)
	if err != nil {
		return Label{}, n.notFound(err)
	}
	defer dir.Close()
	name := fileName(labelsDir, label)
	others := otherNames(name)
	for _, at := range []string{name, others[0], others[1], others[2], name} {
		if l, err = readLabel(dir, at, label); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return l, n.notFound(err)
}

// labelNames returns the sorted names of the labels of a site.
func (n *nfs) labelNames(siteID string) (labels []string, err error) {
	dir, err := n.openLabels(siteID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, n.checkMounted()
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	err = eachName(dir, func(name string) error {
		if of, ok := isInterimName(name); ok {
			name = of
		}
		if label, ok := strings.CutSuffix(name, labelSuffix); ok && checkLabel(label) == nil {
			labels = append(labels, label)
		}
		return nil
	})
	slices.Sort(labels)
	return slices.Compact(labels), err
}

// openLabels opens the directory of the labels of a site, or fails with fs.ErrNotExist. It sees
// what another replica just created.
func (n *nfs) openLabels(siteID string) (*os.File, error) { return n.openBuilds(siteID, labelsDir) }

// readLabel reads a label from the file name in dir. It fails with errLabelDamaged if that is
// not a file of the service.
func readLabel(dir *os.File, name, label string) (Label, error) {
	data, _, err := readFile(dir, name, maxLabelFile)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, ErrOccupied) { // a symbolic link, a socket
		return Label{}, fmt.Errorf("%w: %v", errLabelDamaged, err)
	}
	if err != nil {
		return Label{}, err
	}
	return parseLabel(label, data)
}
