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

// A durable write makes these system calls in this order. The order matters:
//
//	open(dir, O_DIRECTORY)            before the write, so that no write-back error
//	                                  of the directory is missed
//	openat(dir, temp, O_CREAT|O_EXCL) a random name: two writers never share it
//	write, splice ...
//	utimensat(dir, temp)              the service sets the time itself, in nanoseconds:
//	                                  kernel timestamps advance only every 10 ms or so,
//	                                  and a file that reuses an inode within that time
//	                                  could get the ETag of the old one. The time is
//	                                  that of the store's clock, not of this host's
//	fsync(temp)                       not retried: after a failure the kernel may drop
//	                                  the dirty pages, and then the next fsync succeeds
//	close(temp)                       checked: NFS reports ENOSPC and EDQUOT here
//	renameat or linkat(temp, name)    the change becomes visible
//	fsync(dir)                        the change is durable; now it is acknowledged
//
// On NFS, a rename over a file that this host has open takes the server two steps.
// Between them the name does not exist: see nfs_replace.go.
//
// A build and its digest (nfs_digest.go) take these steps together: both files share the
// fsync, then the build is renamed, then the digest, then both directories are fsynced.
//
// If this process created a directory, or does not know whether it is durable, it fsyncs
// the parent before it acknowledges a change in the directory. Concurrent writes may share
// fsync(temp) and fsync(dir) (disk_fsync.go).
// Sources: fsync(2), rename(2), open(2) "NFS", and "Can Applications Recover
// from fsync Failures?" (USENIX ATC 2020).

const (
	tempPrefix = ".tmp-" // no id begins with a dot, so a temporary file is never listed or fetched
	tempRandom = 26      // base32 characters after the prefix (crypto/rand.Text)
	knownDirs  = 16384   // directories remembered as durable

	// fineTime is where coarse timestamps begin: if a file system stores times in steps of
	// fineTime or more, two files may get the same time.
	fineTime = time.Millisecond
	// maxClockDiff is a tolerance: if the clocks of the store and of this host differ by
	// more, files get the time of the store instead of the time of this host.
	maxClockDiff = time.Second
)

// isTempName reports whether createTemp could have created name.
func isTempName(name string) bool {
	random, ok := strings.CutPrefix(name, tempPrefix)
	return ok && len(random) == tempRandom && strings.Trim(random, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// tempFile is a file with a temporary name in its final directory. One goroutine uses
// it: it writes the file, seals it, and commits it with replace or create. A deferred
// discard removes the file unless it was committed.
type tempFile struct {
	disk *disk
	dir  *os.File
	f    *os.File // nil once sealed
	name string
	path string
	at   time.Time   // the modification time that seal sets; zero: that of the store's clock
	stat unix.Stat_t // set by seal

	size         int64 // bytes written
	preallocated int64 // bytes preallocated; -1: the file system cannot preallocate
	flushed      int64 // bytes whose write-back was started
	committed    bool
	coarse       bool   // the file system's timestamps have steps of fineTime or more
	large        bool   // counted in disk.fsyncs.large
	since        uint64 // disk.fsyncs.failures when the file was created
}

// createTemp creates an empty file with a random name in dir. The caller must keep dir open
// while it uses the file, and close dir afterwards.
func (d *disk) createTemp(dir *os.File) (*tempFile, error) {
	name := tempPrefix + rand.Text()
	path := filepath.Join(dir.Name(), name)
	since, before := d.fsyncs.failures.Load(), time.Now()
	f, err := openAt(int(dir.Fd()), name, d.tempAccess()|unix.O_CREAT|unix.O_EXCL, path)
	if err != nil {
		return nil, err
	}
	if !d.ownClock {
		d.compareClocks(f, before, time.Now())
	}
	return &tempFile{disk: d, dir: dir, f: f, name: name, path: path, since: since}, nil
}

// tempAccess returns O_RDWR where a temporary file can also be read: on a local file system,
// for a body that is hashed (server_body_hash.go). On NFS it is O_WRONLY: to an open for
// reading and writing, a server may give a write delegation (RFC 8881, section 10.4; Linux
// since 6.6). The client would keep it after the close, so that the first read of another
// replica had to wait for its recall, and could even keep the modification time to itself
// (Linux since 6.11, with delegated timestamps), which is part of the ETag.
func (d *disk) tempAccess() int {
	if d.readBack {
		return unix.O_RDWR
	}
	return unix.O_WRONLY
}

// seal ends the writing: it makes the file durable under its temporary name, closes it,
// and returns its attributes.
func (t *tempFile) seal() (unix.Stat_t, error) {
	if err := t.finish(); err != nil {
		return t.stat, err
	}
	return t.stat, sealFinished(t)
}

// finish is the first half of seal: it sets the time of the file, whose content is
// complete, and reads its attributes.
func (t *tempFile) finish() error {
	at := t.at
	if at.IsZero() {
		at = t.disk.now()
	}
	if err := t.stamp(at); err != nil {
		return err
	}
	if err := unix.Fstat(int(t.f.Fd()), &t.stat); err != nil {
		return diskError("stat", t.path, err)
	}
	t.coarse = isCoarse(t.stat.Mtim)
	return nil
}

// sealFinished is the second half of seal, for t and other finished files, which share one
// sync. t is the oldest of them.
func sealFinished(t *tempFile, others ...*tempFile) error {
	files := make([]*os.File, 1, 2)
	files[0] = t.f
	for _, o := range others {
		files = append(files, o.f)
	}
	if err := t.sync(files...); err != nil {
		return err
	}
	t.disk.lastStamp.Store(&timeStamp{t.stat.Ctim.Nano(), time.Now()})
	if err := t.closeSealed(); err != nil {
		return err
	}
	for _, o := range others {
		if err := o.closeSealed(); err != nil {
			return err
		}
	}
	return nil
}

func (t *tempFile) closeSealed() error {
	t.setLarge(false)
	f := t.f
	t.f = nil
	if err := f.Close(); err != nil {
		return diskError("close", t.path, err)
	}
	return nil
}

// sync makes the content of files durable: open descriptors of this file and of younger
// ones.
func (t *tempFile) sync(files ...*os.File) error {
	start := time.Now()
	err := t.disk.fsyncs.sync(t.stat.Dev, t.since, files...)
	t.disk.metrics.fsync.UpdateDuration(start)
	if err != nil {
		return diskError("fsync", t.path, err)
	}
	return nil
}

// syncDir makes the new name of the file durable.
func (t *tempFile) syncDir() error {
	start := time.Now()
	err := t.disk.fsyncs.syncDir(t.dir, t.stat.Dev, t.since)
	t.disk.metrics.dirSync.UpdateDuration(start)
	return t.disk.dirSynced(t.dir, err)
}

// setLarge records whether this file is large and still being written. During that time
// files do not share a syncfs(2), so that no small file waits for its data.
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

// replace commits the sealed file as name, and replaces an existing file. The change is
// durable after t.syncDir.
func (t *tempFile) replace(name string) error {
	if err := t.rename(name); err != nil {
		return err
	}
	t.committed = true
	return nil
}

// rename renames the sealed file, and replaces an existing file.
func (t *tempFile) rename(name string) error {
	err := t.disk.renameAt(t.dir, t.name, name)
	// If the reply of an NFS server was lost, the client sends the request again, and the
	// server finds no source. The rename succeeded if our file has the new name; otherwise
	// a sweep removed the temporary file.
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

// isAt reports whether name refers to the sealed file. Comparing the inode numbers is not
// enough: after a sweep removed the file, another file may have the same number.
func (t *tempFile) isAt(name string) bool {
	if dir, err := t.disk.openDir(t.dir.Name()); err == nil { // revalidates the cache of an NFS client
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

// create commits the sealed file as name, unless name exists (fs.ErrExist). The change
// is durable after t.syncDir.
func (t *tempFile) create(name string) error {
	err := t.disk.linkTo(t.dir, t.name, name)
	if err == nil || t.isAt(name) { // the reply of an NFS server may be lost (open(2), "NFS")
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
		t.disk.log.Warn("cannot remove a temporary file; a later sweep will retry", "error", err)
	}
}
