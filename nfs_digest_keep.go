package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// KeepDigest implements DigestKeeper. Without locks (ErrUnsupported), a change of the build
// at the same time leaves the digest unknown.
func (n *nfs) KeepDigest(siteID, buildID string, of ArtifactInfo, sum Digest) error {
	switch {
	case n.digests == nil:
		return errNoDigests
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
	if err := n.contradicts(siteID, buildID, sum); errors.Is(err, errOtherDigest) {
		return err
	}
	// First, also without the lock: if the digest cannot be kept, it need not be computed again.
	_, _ = n.rememberDigest(siteID, buildID, of, sum)
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
	if err := n.contradicts(siteID, buildID, sum); err != nil {
		return err
	}
	st, err := n.rememberDigest(siteID, buildID, of, sum)
	if err != nil {
		return err
	}
	return n.writeDigest(siteID, buildID, &st, sum, lock)
}

// contradicts returns an error if the store keeps a digest of other bytes than sum under the id of
// the build, or a damaged one. It may show that the artifact was changed by something else than
// the service: it must not be replaced by the digest of the bytes that are there now.
func (n *nfs) contradicts(siteID, buildID string, sum Digest) error {
	kept, err := n.KeptDigest(siteID, buildID)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err == nil && kept.SHA256 != sum:
		return errOtherDigest
	}
	return err
}

// rememberDigest remembers sum as the digest of the artifact of the build, and returns its
// attributes. It fails with ErrPrecondition if that is not the artifact that of describes.
func (n *nfs) rememberDigest(siteID, buildID string, of ArtifactInfo, sum Digest) (st unix.Stat_t, err error) {
	path := n.filePath(siteID, artifactsDir, buildID)
	if err := n.stat(path, &st); err != nil {
		return st, n.notFound(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || infoOf(&st).ETag != of.ETag {
		return st, fmt.Errorf("%w: the artifact was replaced", ErrPrecondition)
	}
	n.digests.add(&st, foundDigest{sum: sum})
	n.digests.found.Remove(listedID(siteID, buildID, boundToFile(&st)))
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
	if err := d.writeSealed(st); err != nil {
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
		return KeptDigest{}, errNoDigests
	}
	dir, err := n.openFresh(siteID, digestsDir)
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
// is bound to, so it reads only the files of the digests, and only those that it has not read.
func (n *nfs) ListDigests(siteID string, versions []*Version) ([]Digest, error) {
	sums := make([]Digest, len(versions))
	if n.digests == nil {
		return sums, nil
	}
	var unread []int
	for i, v := range versions {
		if v.SizeBytes == 0 { // it has only a log
			continue
		}
		if found, ok := n.digests.found.Get(listedID(siteID, v.BuildID, boundToVersion(v))); ok {
			sums[i] = found.sum
		} else {
			unread = append(unread, i)
		}
	}
	if len(unread) == 0 {
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
	err = n.lists.parallel(len(unread), func(i int) error {
		sums[unread[i]] = n.listedDigest(dir, siteID, versions[unread[i]])
		return nil
	})
	return sums, err
}

func boundToVersion(v *Version) boundTo {
	return boundTo{size: v.SizeBytes, mtime: unix.NsecToTimespec(v.CreatedAt.UnixNano())}
}

// listedDigest returns the digest of the artifact of v from dir, and remembers it if it is
// known.
func (n *nfs) listedDigest(dir *os.File, siteID string, v *Version) Digest {
	at := boundToVersion(v)
	if isCoarse(at.mtime) {
		info, err := n.StatArtifact(siteID, v.BuildID)
		if err == nil && info.Size == v.SizeBytes && info.ModTime.Equal(v.CreatedAt) {
			return info.SHA256
		}
		return Digest{}
	}
	b, sum, err := readDigestAt(dir, v.BuildID)
	n.logUnread(siteID, v.BuildID, err)
	if err != nil || b != at {
		return Digest{}
	}
	n.digests.found.Add(listedID(siteID, v.BuildID, at), foundDigest{sum: sum})
	return sum
}
