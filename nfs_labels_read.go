package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// GetLabel implements LabelKeeper.
func (n *nfs) GetLabel(siteID, label string) (l Label, err error) {
	err = n.find(siteID, labelsDir, label, func(path string) error {
		l, err = n.labelAt(path, label)
		return err
	})
	return l, n.notFound(err)
}

// ListLabels implements LabelKeeper.
func (n *nfs) ListLabels(siteID string) ([]Label, error) {
	dir, err := n.openFresh(siteID, labelsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, n.checkMounted()
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return labelsIn(dir, func(label string) (Label, error) { return n.GetLabel(siteID, label) })
}

// checkUnlabelled fails with a labelledError if a label protects the build of c, and with its
// error if a label cannot be read. The caller holds a lock of the build.
func (n *nfs) checkUnlabelled(c change) error {
	dir, err := n.openFresh(c.siteID, labelsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return n.checkMounted()
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := n.checkUnlabelledIn(dir, c.buildID); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := statAt(c.dir, fileName(artifactsDir, c.buildID), &st); err != nil {
		return ignoreNotExist(err)
	}
	// If the label was moved away from the build, or deleted, whoever did it may have ended
	// before the fsync. A power cut must not bring the label back after the build is gone.
	return n.disk.syncDir(dir)
}

// checkReplaceable fails early as checkUnlabelled will do under the lock, so that no body is
// read in vain. It may miss what another replica just did.
func (n *nfs) checkReplaceable(siteID, buildID string) error {
	dir, err := n.disk.openDir(n.sitePath(siteID, labelsDir))
	if err != nil {
		return nil
	}
	defer dir.Close()
	labelled := n.checkUnlabelledIn(dir, buildID)
	if labelled != nil {
		if _, err := n.StatArtifact(siteID, buildID); errors.Is(err, ErrNotFound) {
			return nil
		}
	}
	return labelled
}

// checkUnlabelledIn is checkUnlabelled with the labels in dir.
func (n *nfs) checkUnlabelledIn(dir *os.File, buildID string) error {
	labels, err := labelsIn(dir, func(label string) (Label, error) { return n.labelIn(dir, label) })
	return cmp.Or(err, checkUnlabelled(buildID, labels))
}

// labelIn reads a label in dir while nobody moves it. A sweep may rename the file meanwhile, to
// its own name.
func (n *nfs) labelIn(dir *os.File, label string) (l Label, err error) {
	name := fileName(labelsDir, label)
	others := otherNames(name)
	for _, at := range []string{name, others[0], others[1], others[2], name} {
		if l, err = n.labelAt(dir.Name()+"/"+at, label); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return l, n.notFound(err)
}

// labelsIn returns the labels in dir, in the order of their names. It calls read for each, and
// skips those that were deleted meanwhile (fs.ErrNotExist).
func labelsIn(dir *os.File, read func(label string) (Label, error)) ([]Label, error) {
	names, err := labelNames(dir)
	if err != nil {
		return nil, err
	}
	labels := make([]Label, 0, len(names))
	for _, name := range names {
		switch l, err := read(name); {
		case err == nil:
			labels = append(labels, l)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return labels, nil
}

// labelNames returns the names of the labels in dir, in order.
func labelNames(dir *os.File) (labels []string, err error) {
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

// labelAt reads a label from the file at path. It fails with errLabelDamaged if something else
// is there.
func (n *nfs) labelAt(path, label string) (Label, error) {
	if f := unchanged(n.small.labels, path); f != nil {
		return *f.label, nil
	}
	fd, err := n.disk.openPathRead(path)
	if isLink(err, path) || err == unix.ENXIO { // the latter for a socket
		return Label{}, notALabel(label)
	}
	if err != nil {
		return Label{}, n.disk.openError(path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Label{}, diskError("stat", path, err)
	}
	if err := n.checkSameMount(&st); err != nil {
		return Label{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxLabelFile {
		return Label{}, notALabel(label)
	}
	data, err := readAll(fd, path, st.Size)
	if errors.Is(err, io.ErrUnexpectedEOF) { // it was cut meanwhile
		return Label{}, notALabel(label)
	}
	if err != nil {
		return Label{}, err
	}
	l, err := parseLabel(label, data)
	if err != nil {
		return Label{}, fmt.Errorf("cannot read %q: %w", path, err)
	}
	f := smallFileOf(&st)
	f.label = &l
	n.small.keep(n.small.labels, path, f)
	return l, nil
}

// notALabel returns the error of what is not the file of a label.
func notALabel(label string) error {
	return &damagedLabel{label, fmt.Sprintf("it is not a file of at most %d bytes", maxLabelFile)}
}
