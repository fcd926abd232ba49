package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A durable write is this list of system calls, and no other order will do:
//
//	open(dir, O_DIRECTORY)            before the work, so that the write-back
//	                                  error of the directory cannot be missed
//	openat(dir, temp, O_CREAT|O_EXCL) a random name: two writers never share it
//	write, splice ...
//	utimensat(dir, temp)              a time in nanoseconds of our own: the
//	                                  kernel's stands still for up to 10 ms, in
//	                                  which an inode may be freed and taken again.
//	                                  It is the store's time, not this host's
//	fsync(temp)                       once: after a failure the kernel may drop
//	                                  the dirty pages and the next fsync lies
//	close(temp)                       checked: NFS reports ENOSPC and EDQUOT here
//	renameat or linkat(temp, name)    the change becomes visible
//	fsync(dir)                        and durable; only now it is acknowledged
//
// On NFS a rename over a file that this host has open is two steps for the
// server, and between them the name does not exist: see nfs_replace.go.
//
// A directory that was made, or whose making was not seen to be durable by this
// process, has its parent fsynced before anything in it is acknowledged. The two
// fsyncs of a temp may be shared with others (disk_fsync.go).
// Sources: fsync(2), rename(2), open(2) "NFS", and "Can Applications Recover
// from fsync Failures?" (USENIX ATC 2020).

const (
	tempPrefix = ".tmp-" // no id begins with a dot, so no temp is ever listed or fetched
	tempRandom = 26      // characters of base32 behind it (crypto/rand.Text)
	knownDirs  = 16384   // directories remembered as durable

	// fineTime is the largest step of a file system's times that is fine enough
	// to tell two files apart by them.
	fineTime = time.Millisecond
	// maxClockDiff is how far the store's clock may be from this host's before
	// files are stamped with the store's.
	maxClockDiff = time.Second
)

// isTempName reports whether name is one that createTemp gives.
func isTempName(name string) bool {
	random, ok := strings.CutPrefix(name, tempPrefix)
	return ok && len(random) == tempRandom && strings.Trim(random, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// tempFile is a file under a temporary name in the directory it will stay in.
// It is used by one goroutine: written, sealed, then put in its place by
// replace or create; discard, deferred, removes it unless it was.
type tempFile struct {
	disk *disk
	dir  *os.File
	f    *os.File // nil once sealed
	name string
	path string
	stat unix.Stat_t // as sealed

	size         int64 // bytes written
	preallocated int64 // bytes preallocated; -1: this file system cannot
	flushed      int64 // bytes whose write-back was started
	committed    bool
	coarse       bool   // this file system keeps times in steps larger than fineTime
	large        bool   // counted in disk.syncs.large
	since        uint64 // disk.syncs.failures when it was made
}

// createTemp makes an empty file under a random name in dir, which stays the
// caller's to close, after the temp is done with.
func (d *disk) createTemp(dir *os.File) (*tempFile, error) {
	name := tempPrefix + rand.Text()
	path := filepath.Join(dir.Name(), name)
	since, before := d.fsyncs.failures.Load(), time.Now()
	f, err := openAt(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, path)
	if err != nil {
		return nil, err
	}
	if !d.ownClock {
		d.compareClocks(f, before, time.Now())
	}
	return &tempFile{disk: d, dir: dir, f: f, name: name, path: path, since: since}, nil
}

// seal ends the writing: what was written is durable under the temporary name.
// It returns what was written.
func (t *tempFile) seal() (unix.Stat_t, error) {
	if err := t.stamp(t.disk.now()); err != nil {
		return t.stat, err
	}
	if err := unix.Fstat(int(t.f.Fd()), &t.stat); err != nil {
		return t.stat, diskError("stat", t.path, err)
	}
	t.coarse = isCoarse(t.stat.Mtim)
	if err := t.sync(t.f); err != nil {
		return t.stat, err
	}
	t.setLarge(false)
	t.disk.lastStamp.Store(&timeStamp{t.stat.Ctim.Nano(), time.Now()})
	f := t.f
	t.f = nil
	if err := f.Close(); err != nil {
		return t.stat, diskError("close", t.path, err)
	}
	return t.stat, nil
}

// sync makes what is in the file durable; f is open on it.
func (t *tempFile) sync(f *os.File) error {
	start := time.Now()
	err := t.disk.fsyncs.sync(f, t.stat.Dev, t.since)
	t.disk.metrics.fsync.UpdateDuration(start)
	if err != nil {
		return diskError("fsync", t.path, err)
	}
	return nil
}

// syncDir makes the new name of the file durable: the syncDir of its directory.
func (t *tempFile) syncDir() error {
	start := time.Now()
	err := t.disk.fsyncs.syncDir(t.dir, t.stat.Dev, t.since)
	t.disk.metrics.dirSync.UpdateDuration(start)
	return t.disk.dirSynced(t.dir, err)
}

// setLarge tells whether a large file is in the making, for which no small one
// is to wait.
func (t *tempFile) setLarge(large bool) {
	if large == t.large {
		return
	}
	t.large = large
	if large {
		t.disk.fsyncs.large.Add(1)
	} else {
		t.disk.fsyncs.large.Add(-1)
	}
}

// replace puts the sealed file in its place, over what is there. It is durable
// after t.syncDir.
func (t *tempFile) replace(name string) error {
	if err := t.rename(name); err != nil {
		return err
	}
	t.committed = true
	return nil
}

// rename gives the sealed file another name, over what has it.
func (t *tempFile) rename(name string) error {
	err := t.disk.renameAt(t.dir, t.name, name)
	// An NFS server whose reply was lost is asked again and finds no source: the
	// rename was done if our file is there. Otherwise the temp was swept.
	if err == unix.ENOENT && t.isAt(name) {
		err = nil
	}
	if err == unix.EISDIR {
		return notAFile(t.dir.Name() + "/" + name)
	}
	if err != nil {
		return diskError("rename", t.path, err)
	}
	return nil
}

// isAt reports whether name is the sealed file. The inode alone does not say so:
// that of a swept temp is free, and another writer may have got it.
func (t *tempFile) isAt(name string) bool {
	if dir, err := t.disk.openDir(t.dir.Name()); err == nil { // brings an NFS client up to date
		dir.Close()
	}
	fd, err := openRead(int(t.dir.Fd()), name)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Dev == t.stat.Dev && st.Ino == t.stat.Ino &&
		st.Size == t.stat.Size && st.Mtim == t.stat.Mtim
}

// create puts the sealed file in its place unless something is there
// (fs.ErrExist). It is durable after t.syncDir.
func (t *tempFile) create(name string) error {
	err := t.disk.linkTo(t.dir, t.name, name)
	if err == nil || t.isAt(name) { // the link was made, but the reply was lost (open(2), "NFS")
		t.remove()
		t.committed = true
		return nil
	}
	if !errors.Is(err, ErrUnsupported) {
		return err
	}
	dirfd := int(t.dir.Fd())
	err = retryEINTR(func() error {
		return unix.Renameat2(dirfd, t.name, dirfd, name, unix.RENAME_NOREPLACE)
	})
	switch err {
	case nil:
		t.committed = true
		return nil
	case unix.EINVAL, unix.ENOSYS:
		return fmt.Errorf("%w: neither link(2) nor RENAME_NOREPLACE works for %q", ErrUnsupported, t.path)
	}
	return diskError("rename", t.path, err)
}

// discard removes the file unless it was committed.
func (t *tempFile) discard() {
	t.setLarge(false)
	if t.f != nil {
		t.f.Close()
		t.f = nil
	}
	if !t.committed {
		t.remove()
	}
}

// remove removes the temporary name. If that fails, the name is left to the sweep.
func (t *tempFile) remove() {
	if err := t.disk.remove(t.dir, t.name); err != nil {
		t.disk.log.Warn("cannot remove a temporary file; a later sweep will", "error", err)
	}
}
