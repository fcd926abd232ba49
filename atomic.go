package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
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

// disk is the one door to the file system: nothing else in this package
// creates, links, renames or removes. It is safe for concurrent use; the files
// it hands out are not.
type disk struct {
	base        string // no symbolic link below it is followed; empty: none anywhere
	openat2     bool   // the kernel has openat2(2)
	ownClock    bool   // the file system stamps files with the clock of this host
	log         *slog.Logger
	durable     *lru.Cache[string, uint64] // inode of each directory known to survive a power cut
	warnDirSync sync.Once
	noDirSync   atomic.Bool
	warnClock   sync.Once
	clockDiff   atomic.Pointer[clockDiff]
	hooks
	copyBuffers sync.Pool
	lastStamp   atomic.Pointer[timeStamp]
	fsyncs      fsyncGroup
	metrics     *storeMetrics
}

// hooks let tests do what another host does in between; nil: nothing.
type hooks struct {
	renamed           func() // after a rename
	linking, removing func() // before a link, or a removal
}

func newDisk(log *slog.Logger) *disk {
	durable, err := lru.New[string, uint64](knownDirs)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	d := &disk{log: log, durable: durable, metrics: newStoreMetrics(), openat2: canOpenat2()}
	d.fsyncs.shared = func(files int) { d.metrics.commit.Update(float64(files)) }
	d.copyBuffers.New = func() any { return new([copySize]byte) }
	return d
}

// ensureDir opens the directory names[0]/names[1]/... below base, making what
// is absent, and returns it when all of it is durable. base itself is never
// made: absent, it is a mount that is missing.
func (d *disk) ensureDir(base string, names ...string) (*os.File, error) {
	path := filepath.Join(base, filepath.Join(names...))
	if dir, err := d.openDir(path); err == nil {
		if ino, known := d.durable.Get(path); known && ino == inode(dir) {
			return dir, nil
		}
		dir.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	parent, err := d.openDir(base)
	if err != nil {
		return nil, err
	}
	path = base
	for _, name := range names {
		path = filepath.Join(path, name)
		dir, err := d.makeDir(parent, name, path)
		parent.Close()
		if err != nil {
			return nil, err
		}
		parent = dir
	}
	return parent, nil
}

// makeDir makes name in parent unless it is there, makes it durable unless it
// is known to be, and opens it. Another process may have made it a moment ago
// and not have synced it yet, so "it exists" is not enough.
func (d *disk) makeDir(parent *os.File, name, path string) (*os.File, error) {
	err := retryEINTR(func() error { return unix.Mkdirat(int(parent.Fd()), name, 0o777) })
	if err != nil && err != unix.EEXIST {
		return nil, diskError("make directory", path, err)
	}
	fd, err := openFd(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err == unix.ENOTDIR {
		if link := d.firstIn(path, isLinkMode); link != "" {
			return nil, &linkError{link}
		}
	}
	if err != nil {
		return nil, d.openError(path, err)
	}
	dir := os.NewFile(uintptr(fd), path)
	ino := inode(dir)
	if have, known := d.durable.Get(path); known && have == ino {
		return dir, nil
	}
	if err := d.syncDir(parent); err != nil {
		dir.Close()
		return nil, err
	}
	d.durable.Add(path, ino)
	return dir, nil
}

// syncDir makes what was done in dir durable. A file system that cannot sync a
// directory (some FUSE and SMB mounts: EINVAL, ENOTSUP) is tolerated and told
// once: there the promise is the mount's, not ours.
func (d *disk) syncDir(dir *os.File) error {
	start := time.Now()
	err := d.fsyncs.fsync(dir)
	d.metrics.dirSync.UpdateDuration(start)
	return d.dirSynced(dir, err)
}

// dirSynced judges what came of syncing dir.
func (d *disk) dirSynced(dir *os.File, err error) error {
	if err == unix.EINVAL || err == unix.ENOTSUP {
		d.warnDirSync.Do(func() {
			d.noDirSync.Store(true)
			d.log.Error("this file system cannot fsync a directory: an acknowledged write may be lost in a power cut",
				"path", dir.Name(), "cause", err)
		})
		return nil
	}
	if err != nil {
		return diskError("fsync directory", dir.Name(), err)
	}
	return nil
}

// unlink removes name in dir; an absent one is fs.ErrNotExist. It is durable
// after syncDir.
func (d *disk) unlink(dir *os.File, name string) error {
	if err := d.unlinkAt(dir, name); err != nil {
		return diskError("remove", dir.Name()+"/"+name, err)
	}
	return nil
}

// unlinkAt is unlinkat(2), with its error as it is.
func (d *disk) unlinkAt(dir *os.File, name string) error {
	if d.removing != nil {
		d.removing()
	}
	return retryEINTR(func() error { return unix.Unlinkat(int(dir.Fd()), name, 0) })
}

// remove is unlink, to which an absent file is a success.
func (d *disk) remove(dir *os.File, name string) error {
	if err := d.unlinkAt(dir, name); err != nil && err != unix.ENOENT {
		return diskError("remove", dir.Name()+"/"+name, err)
	}
	return nil
}

// renameTo renames from to a name in dir that is free, as far as the caller
// knows. It is durable after syncDir.
func (d *disk) renameTo(dir *os.File, from, to string) error {
	start := time.Now()
	err := retryEINTR(func() error { return unix.Renameat(int(dir.Fd()), from, int(dir.Fd()), to) })
	if err != nil {
		return diskError("rename", dir.Name()+"/"+from, err)
	}
	d.metrics.rename.UpdateDuration(start)
	if d.renamed != nil {
		d.renamed()
	}
	return nil
}

// linkTo gives the file at from a second name in dir. If that name exists it
// fails with fs.ErrExist, where there are no links with ErrUnsupported.
func (d *disk) linkTo(dir *os.File, from, to string) error {
	if d.linking != nil {
		d.linking()
	}
	start := time.Now()
	err := retryEINTR(func() error { return unix.Linkat(int(dir.Fd()), from, int(dir.Fd()), to, 0) })
	d.metrics.link.UpdateDuration(start)
	switch err {
	case nil:
		return nil
	case unix.EPERM, unix.EOPNOTSUPP, unix.ENOSYS:
		return fmt.Errorf("%w: %w", ErrUnsupported, diskError("link", dir.Name()+"/"+from, err))
	}
	return diskError("link", dir.Name()+"/"+from, err)
}

// setSameMode sets the mode of a file in the directory at path to what it is.
func (d *disk) setSameMode(path, name string) error {
	dir, err := d.openDir(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := statAt(dir, name, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &linkError{path + name}
	}
	err = retryEINTR(func() error { return unix.Fchmodat(int(dir.Fd()), name, st.Mode&0o7777, 0) })
	if err != nil {
		return diskError("set the mode of", path+name, err)
	}
	return nil
}

// removeDir removes the empty directory name in parent.
func (d *disk) removeDir(parent *os.File, name string) error {
	err := retryEINTR(func() error { return unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR) })
	if err != nil {
		return diskError("remove directory", parent.Name()+"/"+name, err)
	}
	return nil
}

// openLockFile opens the lock file of the directory names[0]/names[1]/... below
// base, making what is absent. Nothing is ever written to it.
func (d *disk) openLockFile(base string, flags int, names ...string) (*os.File, error) {
	path := filepath.Join(base, filepath.Join(names...), lockName)
	f, err := d.openFile(path, flags)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	dir, err := d.ensureDir(base, names...)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	f, err = openAt(int(dir.Fd()), lockName, flags|unix.O_CREAT|unix.O_NOFOLLOW, path)
	if err != nil {
		return nil, err
	}
	if err := d.syncDir(dir); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

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
	dirfd := int(t.dir.Fd())
	start := time.Now()
	err := retryEINTR(func() error { return unix.Renameat(dirfd, t.name, dirfd, name) })
	t.disk.metrics.rename.UpdateDuration(start)
	if t.disk.renamed != nil {
		t.disk.renamed()
	}
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
	dirfd := int(t.dir.Fd())
	if t.disk.linking != nil {
		t.disk.linking()
	}
	start := time.Now()
	err := retryEINTR(func() error { return unix.Linkat(dirfd, t.name, dirfd, name, 0) })
	t.disk.metrics.link.UpdateDuration(start)
	switch {
	case err == nil, t.isAt(name): // it was done, and the reply was lost (open(2), "NFS")
		if err := t.disk.remove(t.dir, t.name); err != nil {
			t.disk.log.Warn("a temporary file stays until it is swept", "error", err)
		}
		t.committed = true
		return nil
	case err == unix.EPERM, err == unix.EOPNOTSUPP, err == unix.ENOSYS: // no hard links here
		err = retryEINTR(func() error {
			return unix.Renameat2(dirfd, t.name, dirfd, name, unix.RENAME_NOREPLACE)
		})
		t.committed = err == nil
		if err == unix.EINVAL || err == unix.ENOSYS {
			return fmt.Errorf("%w: neither link(2) nor RENAME_NOREPLACE works for %q", ErrUnsupported, t.path)
		}
	}
	if err != nil {
		return diskError("link", t.path, err)
	}
	return nil
}

// discard removes the file unless it was put in its place. A temp that cannot
// be removed is left to the sweep.
func (t *tempFile) discard() {
	t.setLarge(false)
	if t.f != nil {
		t.f.Close()
		t.f = nil
	}
	if t.committed {
		return
	}
	if err := t.disk.remove(t.dir, t.name); err != nil {
		t.disk.log.Warn("a temporary file stays until it is swept", "error", err)
	}
}
