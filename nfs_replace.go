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

// How a file gets its name, and is found under it, on a store that replicas
// share over NFS.
//
// rename(2) over a file that this host has open, or is looking up, is not one
// step there. The client first renames the old file to .nfsXXXX and then the new
// one into place (nfs_rename and nfs_sillyrename in the kernel's fs/nfs): two
// calls, each of which the server makes durable. In between the name does not
// exist, and if the power fails then, it never will. Nor has a rename a state
// that the server could check: a client that was cut off, and lost its lock to
// another one, sends what it had begun when it is back, and so moves away what
// the other one put there. So on NFS a replacement is
//
//	lock      the build, exclusively, against every other change of it
//	link      the sealed temp to .new-{name}
//	alive     the lock is still ours
//	rename    the old file from its name to .old-{name}
//	rename    .new-{name} to the name
//	alive
//	rename    .old-{name} to .out-{name}
//	remove    .out-{name}, when the file is seen to be under its name
//
// None of these replaces a file that counts, so each is one step, and at each
// moment the file is where everybody can compute it:
//
//	the name           is the file if it is there. What is beside it was left by
//	                   a replacement that was cut. The next replacement takes its
//	                   place, or the sweep removes it when it is old
//	else .new-{name}   is the file: a replacement was cut
//	else .old-{name}   is the file: a rename of the old file came late, after
//	                   another client had replaced it
//	else .out-{name}   is the file: the same, and that client was cut before it saw
//
// Readers serve the file from there. A change first renames it to its name, under
// the lock, and so does the sweep. Only under the shared lock is it known that the
// file is in none of these places: without it, a replacement may have renamed one
// while another was looked for. A delete removes the name last, or the deleted
// file would come back.
//
// A file that is new gets its name by link(2), which fails if the name exists, so
// that a late one replaces nothing. Where a mount has no links, rename(2) is used.
//
// A local file system replaces a name in one step. There nothing is renamed
// twice, and these names are only found where a store was copied from NFS.

const (
	interimPrefix = ".new-"
	formerPrefix  = ".old-"
	removedPrefix = ".out-"
)

// interimName is the name beside name under which its replacement stands for a
// moment. No id begins with a dot, so it is never taken for a build.
func interimName(name string) string { return interimPrefix + name }

// formerName is the same of the file that is replaced.
func formerName(name string) string { return formerPrefix + name }

// removedName is the same of the file that was replaced, before it is removed.
func removedName(name string) string { return removedPrefix + name }

// otherNames are where the file of name is if it is not under its name, in the
// order in which they count.
func otherNames(name string) [3]string {
	return [...]string{interimName(name), formerName(name), removedName(name)}
}

// isInterimName reports whether name is one of otherNames, and of which file.
func isInterimName(name string) (of string, ok bool) {
	for _, prefix := range [...]string{interimPrefix, formerPrefix, removedPrefix} {
		if of, ok := strings.CutPrefix(name, prefix); ok {
			return of, true
		}
	}
	return "", false
}

// finishReplacement puts the file of a replacement that was cut under its name. The caller
// holds the exclusive lock of the file.
func (n *nfs) finishReplacement(dir *os.File, name string) error {
	if n.remote { // only an open brings the client up to date
		fresh, err := n.disk.openDir(dir.Name())
		if err != nil {
			return err
		}
		fresh.Close()
	}
	var st unix.Stat_t
	if err := statAt(dir, name, &st); !errors.Is(err, fs.ErrNotExist) {
		return err
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
		return err
	}
	return nil
}

// putInPlace puts the sealed temp under name, over what is there. lock is that of
// the file, on NFS exclusive and with the file settled; nil: this mount has none.
func (n *nfs) putInPlace(temp *tempFile, name string, lock *buildLock) error {
	if !n.remote || lock == nil {
		return temp.replace(name)
	}
	var st unix.Stat_t
	err := statAt(temp.dir, name, &st)
	switch {
	case err == nil && isDirMode(st.Mode): // it could be renamed away, and then not removed
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

// replaceInSteps is tempFile.replace where a rename over a file is two steps. name
// is there, and the caller holds its exclusive lock. Whatever happens, discard
// removes the temporary name.
func (n *nfs) replaceInSteps(temp *tempFile, name string, lock *buildLock) error {
	dir, interim, former := temp.dir, interimName(name), formerName(name)
	if err := n.linkInterim(temp, name, lock); err != nil {
		return err
	}
	err := lock.alive()
	if err == nil {
		// Absent: a late rename of another client took it.
		err = ignoreNotExist(n.disk.renameTo(dir, name, former))
	}
	if err != nil {
		n.giveUp(temp, name, lock)
		return err
	}
	if err := n.disk.renameTo(dir, interim, name); err != nil && !temp.isAt(name) {
		// A late rename may have put it in its place, and another one may have
		// taken it away again.
		if !errors.Is(err, fs.ErrNotExist) || lock.alive() != nil || n.finishReplacement(dir, name) != nil || !temp.isAt(name) {
			return err
		}
	}
	if err := lock.alive(); err != nil {
		return err
	}
	return n.removeAside(dir, name, former)
}

// linkInterim gives the sealed temp the interim name of name as well. What a
// replacement that was cut left there is removed first: name is there.
func (n *nfs) linkInterim(temp *tempFile, name string, lock *buildLock) error {
	interim := interimName(name)
	err := n.disk.linkTo(temp.dir, temp.name, interim)
	if errors.Is(err, fs.ErrExist) && !temp.isAt(interim) {
		if err := lock.alive(); err != nil { // it may be another's
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
			temp.committed = true // it has no temporary name any more
		}
	}
	return err
}

// giveUp removes the interim file of a replacement that goes no further, unless
// it is the build, or may be another's.
func (n *nfs) giveUp(temp *tempFile, name string, lock *buildLock) {
	var st unix.Stat_t
	interim := interimName(name)
	if lock.alive() != nil || !temp.isAt(interim) || statAt(temp.dir, name, &st) != nil {
		return
	}
	if err := n.disk.remove(temp.dir, interim); err != nil {
		n.log.Warn("cannot remove an unfinished replacement; a later sweep will", "error", err)
	}
}

// removeAside removes the file at one of otherNames beside name. The caller holds
// the exclusive lock. A late rename of another host may move the file from its name
// to the former one meanwhile, before or after the former file is taken from there:
// whichever of the two it is goes back. It fails if the file is not under its name
// in the end; what cannot be removed is only logged, and left to the sweep.
func (n *nfs) removeAside(dir *os.File, name, at string) error {
	removed := removedName(name)
	if at != removed {
		err := n.disk.renameTo(dir, at, removed)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.log.Warn("cannot remove a replaced file; a later sweep will", "error", err)
			removed = ""
		}
	}
	if err := n.finishReplacement(dir, name); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := statAt(dir, name, &st); err != nil {
		return fmt.Errorf("%w: a delayed request of another host moved the file away: %v", ErrUnavailable, err)
	}
	if removed != "" {
		if err := n.disk.remove(dir, removed); err != nil {
			n.log.Warn("cannot remove a replaced file; a later sweep will", "error", err)
		}
	}
	return nil
}

// find calls open with the path of the artifact or the log of a build, by its
// directory. If open returns fs.ErrNotExist it is called again with wherever
// else the file can be; the error of find is fs.ErrNotExist only if the file is
// nowhere. Where another process may be replacing it, find waits for the shared
// lock, at most lockWait (ErrUnavailable). It makes nothing.
func (n *nfs) find(siteID, dir, buildID string, open func(path string) error) error {
	err := open(n.filePath(siteID, dir, buildID))
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	name, site := fileName(dir, buildID), n.sitePath(siteID, dir)+"/"
	elsewhere := otherNames(name)
	if !n.remote {
		if there, failed := n.anyThere(site, elsewhere); failed != nil || !there {
			return cmp.Or(failed, err)
		}
	}
	// An NFS client may remember that the file was missing. Opening the
	// directory revalidates that memory, stat(2) does not.
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
		// Nobody has locked here, so nobody is replacing.
	default:
		return err
	}
	if err := n.refresh(siteID, dir); err != nil {
		return err
	}
	// The name last again: a late rename of another host needs no lock.
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

// anyThere reports whether there is a file of one of the names in a directory.
// What is there is opened safely afterwards.
func (n *nfs) anyThere(dir string, names [3]string) (bool, error) {
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

// refresh brings an NFS client up to date about what is in a directory of a site.
func (n *nfs) refresh(siteID, dir string) error {
	d, err := n.openBuilds(siteID, dir)
	if err != nil {
		return err
	}
	return d.Close()
}
