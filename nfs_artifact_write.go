package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// change is a conditional change of one artifact.
type change struct {
	dir             *os.File // of the artifacts of the site
	siteID, buildID string
	cond            Precondition
	temp            *tempFile  // the new artifact; nil removes the artifact
	digest          *newDigest // of temp; nil: it has none
	create          bool       // it replaces nothing, so that labels do not matter
	protected       error      // set by changeIf: why an artifact that is there must stay; of its labels
}

// changeIf calls do if the condition of c holds. It holds the lock of the build: an
// exclusive lock if it has to check before the change, or if the change takes several
// steps, as that of a build with a digest does; otherwise a shared lock. So no other change
// falls between check and change. do gets the lock, which is nil if the mount has no locks.
func (n *nfs) changeIf(c change, do func(c change, lock *buildLock) error) error {
	conditional := !c.cond.IsZero()
	coarse := c.temp != nil && c.temp.coarse
	exclusive := conditional || n.remote || coarse || c.digest != nil
	lock, err := n.lockBuild(c.siteID, artifactsDir, c.buildID, exclusive)
	if errors.Is(err, ErrUnsupported) && !conditional {
		exclusive, err = false, nil // without locks nobody can check a condition, so no check is invalidated
	}
	if err != nil {
		return err
	}
	defer lock.release()
	if exclusive {
		exists, err := n.finishReplacement(c.dir, fileName(artifactsDir, c.buildID))
		if err != nil {
			return err
		}
		if c.temp == nil {
			c.cond.Outcome.set(outcomeOf(exists, outcomeDeleted, outcomeAbsent))
		} else {
			c.cond.Outcome.set(outcomeOf(exists, outcomeReplaced, outcomeCreated))
		}
	}
	if conditional {
		f, err := n.describe(c.dir.Name() + "/" + fileName(artifactsDir, c.buildID))
		if err := checkCondition(c.cond, f.info, n.notFound(err)); err != nil {
			return err
		}
	}
	if !c.create {
		c.protected = n.checkUnlabelled(c)
	}
	if exclusive {
		if err := lock.alive(); err != nil {
			return err
		}
	}
	return do(c, lock)
}

// place commits the sealed temp as the build, with digest, if cond holds.
func (n *nfs) place(temp *tempFile, digest *newDigest, siteID, buildID string, cond Precondition) error {
	// The store may have gone away during the upload.
	if err := n.checkMounted(); err != nil {
		return err
	}
	c := change{dir: temp.dir, siteID: siteID, buildID: buildID, cond: cond, temp: temp, digest: digest}
	if !cond.CreateOnly() {
		return n.changeIf(c, n.replaceFile)
	}
	c.create, c.cond = true, Precondition{Outcome: cond.Outcome} // link(2) fails if the name exists, so no check is needed
	err := n.changeIf(c, n.createFile)
	if errors.Is(err, fs.ErrExist) {
		var st unix.Stat_t
		if name := fileName(artifactsDir, buildID); statAt(temp.dir, name, &st) == nil && isDirMode(st.Mode) {
			return notAFile(temp.dir.Name() + "/" + name)
		}
		return errExists
	}
	return err
}

func (n *nfs) createFile(c change, lock *buildLock) error {
	name := fileName(artifactsDir, c.buildID)
	if !n.remote {
		for _, at := range otherNames(name) {
			var st unix.Stat_t
			if err := statAt(c.dir, at, &st); !errors.Is(err, fs.ErrNotExist) {
				if err == nil {
					err = fs.ErrExist // the build exists under this name
				}
				return err
			}
		}
	}
	if err := c.digest.bind(c.temp); err != nil {
		return err
	}
	if err := c.temp.create(name); err != nil {
		return err
	}
	c.cond.Outcome.set(outcomeCreated)
	if lock != nil && n.remote {
		if err := lock.alive(); err != nil { // if lost, a delayed link may have fallen between two steps of another client
			return err
		}
	}
	return n.placeDigest(c, lock)
}

// placeDigest gives the build, which was just placed, its digest. If it has none, it removes
// that of the build which it replaced.
func (n *nfs) placeDigest(c change, lock *buildLock) error {
	if c.digest.digest().known() {
		return c.digest.place(lock)
	}
	n.dropDigest(c.siteID, c.buildID)
	return nil
}

func (n *nfs) replaceFile(c change, lock *buildLock) error {
	if c.protected != nil {
		if err := n.createFile(c, lock); !errors.Is(err, fs.ErrExist) {
			return err
		}
		return c.protected
	}
	name := fileName(artifactsDir, c.buildID)
	if c.temp.coarse && lock != nil {
		var st unix.Stat_t
		err := statAt(c.dir, name, &st)
		if err == nil {
			err = c.temp.stampAfter(st.Mtim)
		}
		if ignoreNotExist(err) != nil {
			return err
		}
	}
	if err := c.digest.bind(c.temp); err != nil {
		return err
	}
	if err := n.putInPlace(c.temp, name, lock); err != nil {
		return err
	}
	return n.placeDigest(c, lock)
}

// deleteBuild removes the artifact, then its digest.
func (n *nfs) deleteBuild(c change, _ *buildLock) error {
	if err := n.deleteArtifact(c); err != nil {
		return err
	}
	n.dropDigest(c.siteID, c.buildID)
	return nil
}

// deleteArtifact removes the artifact. It fails with errTooYoung.
func (n *nfs) deleteArtifact(c change) error {
	if c.protected != nil {
		return c.protected
	}
	name := fileName(artifactsDir, c.buildID)
	if n.youngFor(c.dir, name) > 0 { // it was replaced meanwhile
		return errTooYoung
	}
	return n.deleteFile(c.dir, name, c.cond.Outcome)
}

// deleteFile removes all names of the file name in dir, its own last. Meanwhile a delayed
// rename of another host may move the file from its own name to its former name.
func (n *nfs) deleteFile(dir *os.File, name string, o *Outcome) error {
	outcome := outcomeAbsent
	others := otherNames(name)
	for _, at := range slices.Backward(others[:]) { // in reverse: otherwise a name of lower priority would become the build
		err := n.disk.unlink(dir, at)
		if ignoreNotExist(err) != nil {
			return err
		}
		if err == nil {
			outcome = outcomeDeleted
		}
	}
	err := n.disk.unlink(dir, name)
	if !n.remote {
		o.set(outcomeOf(err == nil, outcomeDeleted, outcome))
		return ignoreNotExist(err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return n.disk.remove(dir, formerName(name))
	}
	return err
}

// errTooYoung: a build on a store with coarse timestamps cannot be deleted yet.
var errTooYoung = fmt.Errorf("%w: the build's timestamp is ahead of the clock of the store", ErrUnavailable)

// maxCoarseWait is how long a DELETE waits until the build is old enough.
const maxCoarseWait = 2 * coarseClockDiff

// youngFor returns how long name must not be deleted yet, because a later build of that name
// could get its ETag, and the digest that is bound to it. With coarse timestamps it could get
// the same inode and the same time, until the clock has passed that time by one step.
// Replacements in quick succession put the time ahead of the clock (tempFile.stampAfter).
func (n *nfs) youngFor(dir *os.File, name string) time.Duration {
	var st unix.Stat_t
	if statAt(dir, name, &st) != nil || !isCoarse(st.Mtim) {
		return 0
	}
	return coarseClockDiff - n.disk.now().Sub(time.Unix(st.Mtim.Unix()))
}

// deleteWhenOld calls do, which deletes the build of c, once it is old enough, waiting for that
// without the lock. It fails with errTooYoung after maxCoarseWait.
func (n *nfs) deleteWhenOld(c change, do func(c change, lock *buildLock) error) error {
	for end := time.Now().Add(maxCoarseWait); ; {
		if left := n.youngFor(c.dir, fileName(artifactsDir, c.buildID)); left > 0 {
			if time.Now().Add(left).After(end) {
				return errTooYoung
			}
			time.Sleep(left)
		}
		if err := n.changeIf(c, do); !errors.Is(err, errTooYoung) {
			return err
		}
	}
}

// check checks cond against the current build, without a lock. It does not look up the digest.
func (n *nfs) check(siteID, buildID string, cond Precondition) error {
	var info ArtifactInfo
	err := n.find(siteID, artifactsDir, buildID, func(path string) error {
		f, err := n.describe(path)
		info = f.info
		return err
	})
	return checkCondition(cond, info, n.notFound(err))
}
