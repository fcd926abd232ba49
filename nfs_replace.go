package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// How a file is replaced and found in a store that replicas share over NFS.
//
// On NFS, rename(2) over a file that this host has open or is looking up is not atomic. The
// client first renames the old file to .nfsXXXX, then the new one to its name (nfs_rename
// and nfs_sillyrename in the kernel's fs/nfs). The server makes each of the two calls
// durable. Between the two calls the name does not exist, and it stays missing if the power
// fails then.
//
// The other danger is a delayed rename. If a client is cut off, another client may get its
// lock. When the first client is back, it still sends its pending calls. The server cannot
// detect that, so such a rename can move the other client's file away.
//
// So on NFS a replacement takes these steps:
//
//	lock      the build, exclusively, against all other changes
//	link      the sealed temporary file to .new-{name}
//	alive     check that the lock is still held
//	rename    the old file from {name} to .old-{name}
//	rename    .new-{name} to {name}
//	alive
//	rename    .old-{name} to .out-{name}
//	remove    .out-{name}, after checking that {name} exists
//
// No step replaces a file that is still needed, so each step is atomic. At every moment,
// the current file is the one at the first of these names that exists:
//
//	{name}        the normal case. Files at the other names are leftovers of an interrupted
//	              replacement: the next replacement or, later, the sweep removes them
//	.new-{name}   a replacement was interrupted
//	.old-{name}   a client replaced the file, then a delayed rename of another client moved
//	              the new file here
//	.out-{name}   the same, but then the first client moved the new file here, and was
//	              interrupted before it could rename the file back to {name}
//
// A reader opens the file at the first of these names that exists. Before it concludes that
// none exists, it takes the shared lock: otherwise a replacement may rename the file while
// the reader tries the names. Changes and the sweep hold the exclusive lock. They first
// rename the file back to {name} if that is missing. A delete removes {name} last:
// otherwise a leftover would become the build if the delete is interrupted.
//
// If {name} does not exist, the new file gets that name by link(2). link(2) fails if the
// name exists by then, so a delayed link cannot replace a file. If the mount has no hard
// links, rename(2) is used.
//
// A local file system replaces a file in one step. It has files at .new-, .old- or .out-
// names only if the store was copied from NFS.

const (
	interimPrefix = ".new-"
	formerPrefix  = ".old-"
	removedPrefix = ".out-"
)

// interimName returns the name of a new file while it replaces name. No id begins with a
// dot, so it is never the name of a build.
func interimName(name string) string { return interimPrefix + name }

// formerName returns the name of the old file while name is replaced.
func formerName(name string) string { return formerPrefix + name }

// removedName returns the name of the old file before it is removed.
func removedName(name string) string { return removedPrefix + name }

// otherNames returns the names that the file can have if name is missing, by priority.
func otherNames(name string) [3]string {
	return [...]string{interimName(name), formerName(name), removedName(name)}
}

// isInterimName reports whether name is one of the otherNames of some file, and returns the
// name of that file.
func isInterimName(name string) (of string, ok bool) {
	for _, prefix := range [...]string{interimPrefix, formerPrefix, removedPrefix} {
		if of, ok := strings.CutPrefix(name, prefix); ok {
			return of, true
		}
	}
	return "", false
}

// finishReplacement completes an interrupted replacement: if name is missing, it renames
// the first of its otherNames that exists to name. It reports whether name exists then. The
// caller holds the exclusive lock of the file.
func (n *nfs) finishReplacement(dir *os.File, name string) (exists bool, err error) {
	if n.remote { // only open(2) revalidates the cache of the client
		fresh, err := n.disk.openDir(dir.Name())
		if err != nil {
			return false, err
		}
		fresh.Close()
	}
	var st unix.Stat_t
	if err := statAt(dir, name, &st); !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	for _, at := range otherNames(name) {
		err := statAt(dir, at, &st)
		if errors.Is(err, fs.ErrNotExist) || err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if err == nil {
			err = n.disk.renameTo(dir, at, name)
		}
		if err == nil {
			n.log.Info("completed an interrupted replacement", "file", dir.Name()+"/"+name)
		}
		return err == nil, err
	}
	return false, nil
}

// putInPlace commits the sealed temp as name, and replaces an existing file. lock is the
// lock of the file, or nil if the mount has no locks. On NFS the lock is exclusive, and the
// caller has called finishReplacement.
func (n *nfs) putInPlace(temp *tempFile, name string, lock *buildLock) error {
	if !n.remote || lock == nil {
		return temp.replace(name)
	}
	var st unix.Stat_t
	err := statAt(temp.dir, name, &st)
	switch {
	case err == nil && isDirMode(st.Mode): // the steps below could rename a directory, but not remove it
		return notAFile(temp.dir.Name() + "/" + name)
	case err == nil:
		return n.replaceInSteps(temp, name, lock)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	err = temp.create(name)
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: another host created %q at the same time", ErrUnavailable, name)
	case errors.Is(err, ErrUnsupported):
		return temp.replace(name)
	}
	return err
}

// replaceInSteps replaces the existing file name in the steps described above. The caller
// holds the exclusive lock. discard removes the temporary name afterwards.
func (n *nfs) replaceInSteps(temp *tempFile, name string, lock *buildLock) error {
	dir, interim, former := temp.dir, interimName(name), formerName(name)
	if err := n.linkInterim(temp, name, lock); err != nil {
		return err
	}
	err := lock.alive()
	if err == nil {
		// If name is missing, a delayed rename of another client moved it.
		err = ignoreNotExist(n.disk.renameTo(dir, name, former))
	}
	if err != nil {
		n.giveUp(temp, name, lock)
		return err
	}
	if err := n.disk.renameTo(dir, interim, name); err != nil && !temp.isAt(name) {
		// Delayed renames of other clients may have moved our file to name and then further.
		if !errors.Is(err, fs.ErrNotExist) || lock.alive() != nil {
			return err
		}
		if _, failed := n.finishReplacement(dir, name); failed != nil || !temp.isAt(name) {
			return err
		}
	}
	if err := lock.alive(); err != nil {
		return err
	}
	return n.removeAside(dir, name, former)
}

// linkInterim links the sealed temp to the interim name of name. First it removes a
// leftover of an interrupted replacement, which may exist under the interim name. That is
// safe, because name exists.
func (n *nfs) linkInterim(temp *tempFile, name string, lock *buildLock) error {
	interim := interimName(name)
	err := n.disk.linkTo(temp.dir, temp.name, interim)
	if errors.Is(err, fs.ErrExist) && !temp.isAt(interim) {
		if err := lock.alive(); err != nil { // without the lock, the interim file may belong to another host
			return err
		}
		if err := n.disk.remove(temp.dir, interim); err != nil {
			return err
		}
		err = n.disk.linkTo(temp.dir, temp.name, interim)
	}
	if errors.Is(err, fs.ErrExist) && temp.isAt(interim) { // the reply was lost
		return nil
	}
	if errors.Is(err, ErrUnsupported) {
		if err = temp.rename(interim); err == nil {
			temp.committed = true // the temporary name is gone
		}
	}
	return err
}

// giveUp removes the interim file of an abandoned replacement. It keeps the file if name is
// missing, because the file is then the build, and if the lock was lost, because the file
// may then belong to another host.
func (n *nfs) giveUp(temp *tempFile, name string, lock *buildLock) {
	var st unix.Stat_t
	interim := interimName(name)
	if lock.alive() != nil || !temp.isAt(interim) || statAt(temp.dir, name, &st) != nil {
		return
	}
	if err := n.disk.remove(temp.dir, interim); err != nil {
		n.log.Warn("cannot remove an unfinished replacement; a later sweep will retry", "error", err)
	}
}

// removeAside removes a leftover file. The parameter at is its name, one of the otherNames
// of name. The caller holds the exclusive lock. A delayed rename of another host may move
// the current file from name to its former name, before or after removeAside moves the
// leftover. In both cases removeAside renames the current file back to name. It fails if
// name is missing at the end. If it cannot remove the leftover, it logs that, and a later
// sweep removes the leftover.
func (n *nfs) removeAside(dir *os.File, name, at string) error {
	removed := removedName(name)
	if at != removed {
		err := n.disk.renameTo(dir, at, removed)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.log.Warn("cannot remove a replaced file; a later sweep will retry", "error", err)
			removed = ""
		}
	}
	if _, err := n.finishReplacement(dir, name); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := statAt(dir, name, &st); err != nil {
		return fmt.Errorf("%w: a delayed request from another host moved the file: %v", ErrUnavailable, err)
	}
	if removed != "" {
		if err := n.disk.remove(dir, removed); err != nil {
			n.log.Warn("cannot remove a replaced file; a later sweep will retry", "error", err)
		}
	}
	return nil
}

// find calls open with the path of the artifact or the log of a build, or of a label, depending
// on dir. If open returns fs.ErrNotExist, find tries the other paths that the file can have. It
// returns fs.ErrNotExist only if the file is at none of them. If another process may be
// replacing the file, find waits for the shared lock, and fails with ErrLocked after
// n.lockWait. It does not create files.
func (n *nfs) find(siteID, dir, buildID string, open func(path string) error) error {
	err := open(n.filePath(siteID, dir, buildID))
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	name, site := fileName(dir, buildID), n.sitePath(siteID, dir)+"/"
	elsewhere := otherNames(name)
	if !n.remote {
		if exists, statErr := n.anyExists(site, elsewhere); statErr != nil || !exists {
			return cmp.Or(statErr, err)
		}
	}
	// An NFS client may have cached that the file is missing. Opening the directory
	// revalidates that; stat(2) does not.
	if err := n.refresh(siteID, dir); err != nil {
		return err // without the directory there is no file
	}
	if err := open(site + name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	lock, err := n.lockToRead(siteID, dir, buildID)
	switch {
	case err == nil:
		defer lock.release()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrUnsupported):
		// Nobody holds a lock, so nobody is replacing the file in steps.
	default:
		return err
	}
	if err := n.refresh(siteID, dir); err != nil {
		return err
	}
	// Try name again at the end: the lock does not stop a delayed rename of another host.
	for _, at := range []string{name, elsewhere[0], elsewhere[1], elsewhere[2], name} {
		if err = open(site + at); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if lock != nil {
		if lost := lock.alive(); lost != nil {
			return lost
		}
	}
	return err
}

// anyExists reports whether one of the names exists in the directory dir, a path that ends
// with a slash. It follows symbolic links in dir; find does not follow them when it opens
// the file.
func (n *nfs) anyExists(dir string, names [3]string) (bool, error) {
	for _, name := range names {
		path := dir + name
		var st unix.Stat_t
		err := retryEINTR(func() error { return unix.Fstatat(unix.AT_FDCWD, path, &st, unix.AT_SYMLINK_NOFOLLOW) })
		if err == nil {
			return true, nil
		}
		if err != unix.ENOENT {
			return false, diskError("stat", path, err)
		}
	}
	return false, nil
}

// refresh revalidates the NFS client's cache of a directory of a site.
func (n *nfs) refresh(siteID, dir string) error {
	d, err := n.openBuilds(siteID, dir)
	if err != nil {
		return err
	}
	return d.Close()
}
