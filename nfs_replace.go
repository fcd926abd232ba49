package main

import (
	"errors"
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
// exist, and if the power fails then, it never will. So on NFS a replacement
//
//	lock        the build, exclusively, against every other change of it
//	rename      the sealed temp to .new-{name}: replaces nothing that counts
//	rename      .new-{name} to the name
//
// and at each moment the old file or the new one is under a name that everybody
// can compute:
//
//	the name is there     it is the file. A .new- beside it is an upload that was
//	                      never finished: the next one replaces it, the sweep
//	                      removes it when it is old
//	only .new- is there   it is the file. Who reads serves it; who changes the
//	                      file first renames it into place, under the lock, and
//	                      so does the sweep
//
// That neither is there is only known under the shared lock: without it, a
// replacement may have renamed one while the other was looked for. A delete
// removes .new- first, or the deleted file would come back. A rename that
// arrives late, from a host that lost its lock, finds no .new-.
//
// A local file system replaces a name in one step. There nothing is renamed
// twice, and .new- is only found where a store was copied from NFS.

const interimPrefix = ".new-"

// interimName is the name beside name under which its replacement stands for a
// moment. No id begins with a dot, so it is never taken for a build.
func interimName(name string) string { return interimPrefix + name }

// change is a change of one artifact on a condition.
type change struct {
	dir             *os.File // of the artifacts
	siteID, buildID string
	cond            Precondition
	temp            *tempFile // the new artifact; nil: it is removed
}

// changeIf calls do if the condition of c holds. It takes the lock of the
// build: exclusively to look and then change, shared where there is nothing to
// look at and the change is one step, so that a change never falls between the
// look and the change of another. do is called with whether there is a lock.
func (n *nfs) changeIf(c change, do func(c change, locked bool) error) error {
	look := !c.cond.IsZero()
	coarse := c.temp != nil && c.temp.coarse
	exclusive := look || n.remote || coarse
	lock, err := n.lockBuild(c.siteID, artifactsDir, c.buildID, exclusive)
	if errors.Is(err, ErrUnsupported) && !look {
		return do(c, false) // nobody can look here, so nobody is misled
	}
	if err != nil {
		return err
	}
	defer lock.release()
	if exclusive {
		if err := n.settle(c.dir, fileName(artifactsDir, c.buildID)); err != nil {
			return err
		}
	}
	if look {
		info, err := n.describe(c.dir.Name() + "/" + fileName(artifactsDir, c.buildID))
		if err := checkOf(c.cond, info, n.notFound(err)); err != nil {
			return err
		}
	}
	if exclusive {
		if err := lock.alive(); err != nil {
			return err
		}
	}
	return do(c, true)
}

// settle puts the file of a replacement that was cut under its name. The caller
// holds the exclusive lock of the file.
func (n *nfs) settle(dir *os.File, name string) error {
	if n.remote { // only an open brings the client up to date
		fresh, err := n.disk.openDir(dir.Name())
		if err != nil {
			return err
		}
		fresh.Close()
	}
	var st unix.Stat_t
	err := statAt(dir, name, &st)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = statAt(dir, interimName(name), &st)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := n.disk.renameTo(dir, interimName(name), name); err != nil {
		return err
	}
	n.log.Info("finished a replacement that was cut", "file", dir.Name()+"/"+name)
	return nil
}

// place puts the sealed temp in the place of the build if cond holds.
func (n *nfs) place(temp *tempFile, siteID, buildID string, cond Precondition) error {
	// The store may have gone while the body came.
	if err := n.here(); err != nil {
		return err
	}
	c := change{dir: temp.dir, siteID: siteID, buildID: buildID, cond: cond, temp: temp}
	if !cond.CreateOnly() {
		return n.changeIf(c, n.replaceFile)
	}
	c.cond = Precondition{} // link(2) fails if the name exists, so no check is needed
	err := n.changeIf(c, n.createFile)
	if errors.Is(err, fs.ErrExist) {
		return errExists
	}
	return err
}

func (n *nfs) createFile(c change, locked bool) error {
	name := fileName(artifactsDir, c.buildID)
	if !n.remote {
		var st unix.Stat_t
		if err := statAt(c.dir, interimName(name), &st); !errors.Is(err, fs.ErrNotExist) {
			if err == nil {
				err = fs.ErrExist // with or without its name
			}
			return err
		}
	}
	return c.temp.create(name)
}

func (n *nfs) replaceFile(c change, locked bool) error {
	name := fileName(artifactsDir, c.buildID)
	if c.temp.coarse && locked {
		var st unix.Stat_t
		err := statAt(c.dir, name, &st)
		if err == nil {
			err = c.temp.stampAfter(st.Mtim)
		}
		if unlessGone(err) != nil {
			return err
		}
	}
	return n.putInPlace(c.temp, name, locked)
}

// putInPlace puts the sealed temp under name, over what is there. locked: the
// caller holds the lock of the file, on NFS exclusively, and has settled it.
func (n *nfs) putInPlace(temp *tempFile, name string, locked bool) error {
	if n.remote && locked {
		var st unix.Stat_t
		err := statAt(temp.dir, name, &st)
		if err == nil {
			return temp.replaceByInterim(name)
		}
		if unlessGone(err) != nil {
			return err
		}
	}
	return temp.replace(name)
}

func (n *nfs) deleteFile(c change, _ bool) error {
	name := fileName(artifactsDir, c.buildID)
	if err := n.disk.remove(c.dir, interimName(name)); err != nil {
		return err
	}
	return n.disk.remove(c.dir, name)
}

// find calls open with the path of the artifact or the log of a build, by its
// directory. If open returns fs.ErrNotExist it is called again with wherever
// else the file can be; the error of find is fs.ErrNotExist only if the file is
// nowhere. Where another process may be replacing it, find waits for the shared
// lock, at most lockReadWait (ErrUnavailable). It makes nothing.
func (n *nfs) find(siteID, dir, buildID string, open func(path string) error) error {
	name := fileName(dir, buildID)
	site := n.sitePath(siteID, dir)
	path, interim := site+"/"+name, site+"/"+interimName(name)
	err := open(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !n.remote {
		var st unix.Stat_t
		if n.disk.statPath(interim, &st) != nil {
			return err
		}
	}
	// An NFS client may remember that the file was missing. Opening the
	// directory revalidates that memory, stat(2) does not.
	if err := n.refresh(siteID, dir); err != nil {
		return err // without the directory there is no file
	}
	if err := open(path); !errors.Is(err, fs.ErrNotExist) {
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
	if err := open(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = open(interim)
	if errors.Is(err, fs.ErrNotExist) && lock != nil {
		if lost := lock.alive(); lost != nil {
			return lost
		}
	}
	return err
}

// refresh brings an NFS client up to date about what is in a directory of a site.
func (n *nfs) refresh(siteID, dir string) error {
	d, err := n.openBuilds(siteID, dir)
	if err != nil {
		return err
	}
	return d.Close()
}

// replaceByInterim is replace where a rename over a file is two steps. The
// caller holds the exclusive lock of name, and name is there.
func (t *tempFile) replaceByInterim(name string) error {
	interim := interimName(name)
	if err := t.rename(interim); err != nil {
		return err
	}
	t.name, t.placed = interim, true // no temp any more: discard leaves it alone
	err := t.rename(name)
	if err != nil && t.isAt(interim) {
		// It is still ours. Without its name the interim file is the build:
		// then it must stay.
		var st unix.Stat_t
		if statAt(t.dir, name, &st) == nil {
			if err := t.disk.remove(t.dir, interim); err != nil {
				t.disk.log.Warn("an unfinished replacement stays until it is swept", "error", err)
			}
		}
	}
	return err
}

// isInterimName reports whether name is an interim one, and of which file.
func isInterimName(name string) (of string, ok bool) { return strings.CutPrefix(name, interimPrefix) }
