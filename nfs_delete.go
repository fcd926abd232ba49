package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// DeleteVersions implements VersionDeleter. It removes each artifact with its digest under the
// lock of the build, and then each log under the lock of the log. It syncs each directory once
// for all builds, and that of the artifacts before it removes a log. So a power cut never leaves
// an artifact whose log is gone; it may leave a log whose artifact is gone.
func (n *nfs) DeleteVersions(siteID string, builds []VersionDeletion) []error {
	d := deleteRun{n: n, siteID: siteID, builds: builds, errs: make([]error, len(builds))}
	if err := d.run(); err != nil { // the error of all others
		d.each(func(VersionDeletion) error { return err })
	}
	return d.errs
}

// deleteRun is a call of DeleteVersions.
type deleteRun struct {
	n         *nfs
	siteID    string
	builds    []VersionDeletion
	errs      []error  // of builds
	artifacts *os.File // the directory
	logs      *os.File // nil: there is none
}

// each calls do with the builds that have no error so far, and reports whether any of them
// still has none.
func (d *deleteRun) each(do func(b VersionDeletion) error) (any bool) {
	for i, b := range d.builds {
		if d.errs[i] == nil {
			d.errs[i] = do(b)
			any = any || d.errs[i] == nil
		}
	}
	return any
}

func (d *deleteRun) run() error {
	n := d.n
	if n.readOnly {
		return ErrReadOnly
	}
	if err := n.checkMounted(); err != nil {
		return err
	}
	if !d.each(d.checkLog) {
		return nil
	}
	exists, err := d.open()
	if err != nil {
		return err
	}
	defer d.artifacts.Close()
	defer d.logs.Close()
	if err := n.checkMounted(); err != nil { // what is missing, or there, may be so below a mount that disappeared
		return err
	}
	if !exists {
		d.each(func(b VersionDeletion) error {
			b.Artifact.Outcome.set(outcomeAbsent)
			return b.Artifact.Check(nil)
		})
		return nil
	}
	if !d.each(d.deleteArtifact) {
		return nil
	}
	if err := d.syncArtifacts(); err != nil {
		return err
	}
	if d.logs == nil || !d.each(d.deleteLog) {
		return nil
	}
	return n.disk.syncDir(d.logs)
}

// open opens the directories of the site. exists is false if the site has neither. If it has
// only logs, open creates the other: changeIf needs it.
func (d *deleteRun) open() (exists bool, err error) {
	n := d.n
	if d.logs, err = n.openBuilds(d.siteID, logsDir); ignoreNotExist(err) != nil {
		return false, err
	}
	d.artifacts, err = n.openBuilds(d.siteID, artifactsDir)
	if errors.Is(err, fs.ErrNotExist) {
		if d.logs == nil {
			return false, nil
		}
		d.artifacts, err = n.disk.ensureDir(n.base, sitesDir, d.siteID, artifactsDir)
	}
	if err != nil {
		d.logs.Close()
	}
	return true, err
}

// checkLog compares the log with the LogTag before anything is removed, without the lock.
func (d *deleteRun) checkLog(b VersionDeletion) error {
	if b.LogTag == "" {
		return nil
	}
	var st unix.Stat_t
	err := d.n.find(d.siteID, logsDir, b.BuildID, func(path string) error { return d.n.stat(path, &st) })
	return checkLogTag(b.LogTag, &st, err)
}

// deleteArtifact removes the artifact and its digest.
func (d *deleteRun) deleteArtifact(b VersionDeletion) error {
	c := change{dir: d.artifacts, siteID: d.siteID, buildID: b.BuildID, cond: b.Artifact}
	return d.n.deleteWhenOld(c, func(c change, _ *buildLock) error {
		if err := d.n.deleteArtifact(c); err != nil {
			return err
		}
		return d.n.removeDigest(c.siteID, c.buildID)
	})
}

// syncArtifacts makes what deleteArtifact did durable. It also does so if nothing was there:
// another process may have removed it without an fsync so far.
func (d *deleteRun) syncArtifacts() error {
	if err := d.n.disk.syncDir(d.artifacts); err != nil {
		return err
	}
	digests, err := d.n.openFresh(d.siteID, digestsDir)
	if err != nil {
		return ignoreNotExist(err)
	}
	defer digests.Close()
	return d.n.disk.syncDir(digests)
}

// deleteLog removes the log. If the condition is that there is no artifact, it holds both
// locks: one may have been stored since deleteArtifact.
func (d *deleteRun) deleteLog(b VersionDeletion) error {
	if !b.Artifact.Absent {
		return d.n.deleteLog(d.logs, d.siteID, b)
	}
	c := change{dir: d.artifacts, siteID: d.siteID, buildID: b.BuildID, cond: b.Artifact}
	return d.n.changeIf(c, func(change, *buildLock) error { return d.n.deleteLog(d.logs, d.siteID, b) })
}

// deleteLog removes the log of a build from dir, whatever it contains, unless it no longer has
// the LogTag. An entry that is appended at the same time is in the log before, or begins a new
// log.
func (n *nfs) deleteLog(dir *os.File, siteID string, b VersionDeletion) error {
	lock, err := n.lockBuild(siteID, logsDir, b.BuildID, true)
	switch {
	case err == nil:
		defer lock.release()
	case b.LogTag != "" || !errors.Is(err, ErrUnsupported): // without locks nobody can append
		return err
	}
	name := fileName(logsDir, b.BuildID)
	exists, err := n.finishReplacement(dir, name)
	if err != nil {
		return err
	}
	if b.LogTag != "" {
		var st unix.Stat_t
		err := n.stat(dir.Name()+"/"+name, &st)
		if err := checkLogTag(b.LogTag, &st, err); err != nil {
			return err
		}
	}
	if lock != nil {
		if err := lock.alive(); err != nil {
			return err
		}
	}
	if exists {
		b.Artifact.Outcome.set(outcomeDeleted)
	}
	return n.deleteFile(dir, name, nil)
}

// logTagOf returns the logTag of a log. Every append changes it: the log grows, and is a new
// file with a new time.
func logTagOf(id fileID) string { return fileTag(id.ino, uint64(id.size), uint64(id.mtime)) }

// checkLogTag returns errLogTag unless tag is that of the log that a stat described as st and
// err. It returns err if that is neither nil nor fs.ErrNotExist.
func checkLogTag(tag string, st *unix.Stat_t, err error) error {
	now := noLogTag
	switch {
	case err == nil:
		now = logTagOf(idOf(st))
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if now != tag {
		return errLogTag
	}
	return nil
}

// errLogTag: the log is not the one that the plan of a deletion saw.
var errLogTag = fmt.Errorf("%w: the log has changed", ErrPrecondition)

// ArrivedAt implements ArrivalTeller. A copy can keep the modification time, but no program
// can set the change time. That a change of the mode or the owner sets it too only makes the
// build younger.
func (n *nfs) ArrivedAt(siteID, buildID string) (time.Time, error) {
	var st unix.Stat_t
	for _, kind := range []string{artifactsDir, logsDir} {
		err := n.find(siteID, kind, buildID, func(path string) error {
			if err := n.stat(path, &st); err != nil {
				return err
			}
			if st.Mode&unix.S_IFMT != unix.S_IFREG && kind == artifactsDir { // as in lists
				return notAFile(path)
			}
			return nil
		})
		if err = n.notFound(err); !errors.Is(err, ErrNotFound) {
			return time.Unix(0, max(st.Mtim.Nano(), st.Ctim.Nano())).UTC(), err
		}
	}
	return time.Time{}, fmt.Errorf("%w: build %q of site %q", ErrNotFound, buildID, siteID)
}
