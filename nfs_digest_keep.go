package main

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// KeepDigest implements DigestKeeper. Without locks (ErrUnsupported), a change of the build
// at the same time leaves the digest unknown.
func (n *nfs) KeepDigest(siteID, buildID string, of ArtifactInfo, sum Digest) error {
	switch {
	case n.digests == nil:
		return fmt.Errorf("%w: digests are off", ErrUnsupported)
	case n.readOnly:
		return ErrReadOnly
	}
	if err := n.checkMounted(); err != nil {
		return err
	}
	artifacts, err := n.openBuilds(siteID, artifactsDir)
	if err != nil {
		return n.notFound(err)
	}
	defer artifacts.Close()
	path := n.filePath(siteID, artifactsDir, buildID)
	// First, also without the lock: if the digest cannot be kept, it need not be computed again.
	_, _ = n.rememberDigest(path, of, sum)
	lock, err := n.lockBuild(siteID, artifactsDir, buildID, true)
	switch {
	case err == nil:
		defer lock.release()
		if _, err := n.finishReplacement(artifacts, fileName(artifactsDir, buildID)); err != nil {
			return err
		}
	case !errors.Is(err, ErrUnsupported):
		return err
	}
	st, err := n.rememberDigest(path, of, sum)
	if err != nil {
		return err
	}
	return n.writeDigest(siteID, buildID, &st, sum, lock)
}

// rememberDigest remembers sum as the digest of the artifact at path, and returns its
// attributes. It fails with ErrPrecondition if that is not the artifact that of describes.
func (n *nfs) rememberDigest(path string, of ArtifactInfo, sum Digest) (st unix.Stat_t, err error) {
	if err := n.stat(path, &st); err != nil {
		return st, n.notFound(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || infoOf(&st).ETag != of.ETag {
		return st, fmt.Errorf("%w: the artifact was replaced", ErrPrecondition)
	}
	n.digests.add(&st, foundDigest{sum: sum})
	n.small.forget(path)
	return st, nil
}

// writeDigest durably replaces the digest of the artifact that st describes. lock is the lock
// of the build, or nil if the mount has no locks.
func (n *nfs) writeDigest(siteID, buildID string, st *unix.Stat_t, sum Digest, lock *buildLock) error {
	d, err := n.openNewDigest(siteID, buildID)
	if err != nil {
		return err
	}
	defer d.close()
	d.sum = sum
	if err := d.write(st); err != nil {
		return err
	}
	if err := sealFinished(d.temp); err != nil {
		return err
	}
	if err := d.alive(lock); err != nil {
		return err
	}
	if err := d.commit(); err != nil {
		return err
	}
	return d.syncDir()
}

// KeptDigest implements DigestKeeper.
func (n *nfs) KeptDigest(siteID, buildID string) (KeptDigest, error) {
	if n.digests == nil {
		return KeptDigest{}, fmt.Errorf("%w: digests are off", ErrUnsupported)
	}
	dir, err := n.openFreshDigests(siteID)
	if err != nil {
		return KeptDigest{}, n.notFound(err)
	}
	defer dir.Close()
	b, sum, err := readDigestAt(dir, buildID)
	if err != nil {
		return KeptDigest{}, n.notFound(err)
	}
	return b.kept(sum), nil
}

// ListDigests implements DigestKeeper. A version has the size and the time that its digest
// is bound to, so it reads only the files of the digests.
func (n *nfs) ListDigests(siteID string, versions []*Version) ([]Digest, error) {
	sums := make([]Digest, len(versions))
	if n.digests == nil {
		return sums, nil
	}
	dir, err := n.openDigests(siteID)
	if errors.Is(err, fs.ErrNotExist) {
		return sums, n.checkMounted()
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	err = n.lists.parallel(len(versions), func(i int) error {
		v := versions[i]
		if v.SizeBytes == 0 { // it has only a log
			return nil
		}
		at := boundTo{size: v.SizeBytes, mtime: unix.NsecToTimespec(v.CreatedAt.UnixNano())}
		if isCoarse(at.mtime) {
			info, err := n.StatArtifact(siteID, v.BuildID)
			if err == nil && info.Size == v.SizeBytes && info.ModTime.Equal(v.CreatedAt) {
				sums[i] = info.SHA256
			}
			return nil
		}
		b, sum, err := readDigestAt(dir, v.BuildID)
		if err == nil && b == at {
			sums[i] = sum
		}
		n.logUnread(siteID, v.BuildID, err)
		return nil
	})
	return sums, err
}
