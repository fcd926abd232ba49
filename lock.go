package main

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockName is the file in the directory of a site whose bytes are locked. It is
// never replaced nor removed: a lock on a file that lost its name guards nothing.
const lockName = ".lock"

// lockWaiters is how many threads of this process may wait for locks. No
// goroutine takes a second lock while it holds one, so a queue of strangers in
// front of a waiter moves on.
const lockWaiters = 64

const (
	lockReadWait = 5 * time.Second       // how long a reader waits for a lock
	lockPoll     = 50 * time.Millisecond // how often who waits asks at least, where it has to
)

// buildLock is a lock on one build of a site, held against every process on
// every host that shares the store: an open file description lock (fcntl(2)),
// which NFSv4 carries to the server. It ends with the process.
type buildLock struct {
	f *os.File
}

// lockBuild locks the artifact or the log of a build (dir tells which), and
// waits for it. A shared lock excludes exclusive ones only. Where the mount has
// no locks it fails with ErrUnsupported.
//
// Each call opens the lock file for itself, because the lock belongs to the
// open file: so it also excludes other goroutines. A shared lock opens it for
// reading, which lets an NFSv4 server delegate the file: then shared locks cost
// no round trip.
func (n *nfs) lockBuild(siteID, dir, buildID string, exclusive bool) (*buildLock, error) {
	flags, kind := n.lockFlags(exclusive)
	f, err := n.openLock(siteID, flags)
	if err != nil {
		return nil, err
	}
	region := lockRegion(dir, buildID)
	err = lockFile(f, unix.F_OFD_SETLK, kind, region)
	if isLocked(err) {
		// Waiting takes a thread of the process. A few wait in the kernel, all
		// others wait for them here.
		if dir == logsDir {
			n.disk.metrics.conflicts.Inc()
		}
		turn := &n.lockTurns[(region^lockRegion(siteID, ""))%lockWaiters]
		turn.Lock()
		err = n.waitForLock(f, kind, region)
		turn.Unlock()
	}
	if err == nil {
		return &buildLock{f}, nil
	}
	f.Close()
	return nil, lockError(f.Name(), err)
}

// openLock opens the lock file of a site, and makes it if it is absent. An NFSv3
// client remembers that writing was denied while the export was read-only, for as
// long as the file does not change. So a denial is asked about again: to set the
// mode to what it is has the client forget that, or fails with the true cause.
func (n *nfs) openLock(siteID string, flags int) (*os.File, error) {
	f, err := n.disk.openLockFile(n.base, flags, sitesDir, siteID)
	if !n.remote || !errors.Is(err, unix.EACCES) {
		return f, err
	}
	switch cause := n.disk.setSameMode(n.sitePath(siteID, ""), lockName); {
	case errors.Is(cause, ErrDenied): // it is another user's
		return nil, err
	case cause != nil:
		return nil, cause
	}
	return n.disk.openLockFile(n.base, flags, sitesDir, siteID)
}

// waitForLock waits for a lock that somebody else holds. An NFS client that waits
// asks again after a second or more, unless the server calls it back, which NFSv4.0
// and many firewalls do not let it (nfs4_retry_setlk, and statd of NFSv3): so there
// we ask ourselves.
func (n *nfs) waitForLock(f *os.File, kind int16, region int64) error {
	if !n.remote {
		return lockFile(f, unix.F_OFD_SETLKW, kind, region)
	}
	for wait := time.Millisecond; ; wait = min(2*wait, lockPoll) {
		if err := lockFile(f, unix.F_OFD_SETLK, kind, region); !isLocked(err) {
			return err
		}
		time.Sleep(wait)
	}
}

// lockToRead takes the shared lock of a build in order to look for its file. It
// waits for lockReadWait at most, and makes nothing: where there is no lock
// file, nobody has ever locked, and that is fs.ErrNotExist.
func (n *nfs) lockToRead(siteID, dir, buildID string) (*buildLock, error) {
	flags, kind := n.lockFlags(false)
	site, err := n.openBuilds(siteID, "") // brings an NFS client up to date
	if err != nil {
		return nil, err
	}
	site.Close()
	f, err := n.disk.openFile(n.sitePath(siteID, lockName), flags)
	if err != nil {
		return nil, err
	}
	region := lockRegion(dir, buildID)
	end := time.Now().Add(lockReadWait)
	for wait := time.Millisecond; ; wait = min(2*wait, lockPoll) {
		err = lockFile(f, unix.F_OFD_SETLK, kind, region)
		if err == nil {
			return &buildLock{f}, nil
		}
		if !isLocked(err) {
			break
		}
		if time.Now().After(end) {
			f.Close()
			return nil, fmt.Errorf("%w: %q is being replaced, and its lock was not free for %s", ErrUnavailable, buildID, lockReadWait)
		}
		time.Sleep(wait)
	}
	f.Close()
	return nil, lockError(f.Name(), err)
}

// tryLock takes the exclusive lock of a build if it is free. The lock is nil if
// it is not, or if this mount has no locks.
func (n *nfs) tryLock(siteID, dir, buildID string) (*buildLock, error) {
	flags, kind := n.lockFlags(true)
	f, err := n.openLock(siteID, flags)
	if err != nil {
		return nil, err
	}
	err = lockFile(f, unix.F_OFD_SETLK, kind, lockRegion(dir, buildID))
	if err == nil {
		return &buildLock{f}, nil
	}
	f.Close()
	if isLocked(err) {
		return nil, nil
	}
	if err = lockError(f.Name(), err); errors.Is(err, ErrUnsupported) {
		return nil, nil
	}
	return nil, err
}

// lockFlags are the flags with which a lock file is opened, and the kind of lock.
func (n *nfs) lockFlags(exclusive bool) (flags int, kind int16) {
	flags, kind = unix.O_RDONLY, unix.F_RDLCK
	if exclusive {
		flags, kind = unix.O_RDWR, unix.F_WRLCK
	}
	if n.remote {
		flags |= unix.O_DIRECT // so that alive asks the server, not the page cache
	}
	return flags, kind
}

// isLocked reports whether err says that somebody else holds the lock.
func isLocked(err error) bool { return err == unix.EAGAIN || err == unix.EACCES }

// lockError is the error of a lock that could not be taken. ENOLCK is not "no
// locks here": an NFS server or its lock manager says so for a while, when it
// restarts or has no memory (fcntl(2)). A change without the lock would then
// fall between the look and the change of another.
func lockError(path string, err error) error {
	switch err {
	case unix.ENOLCK:
		return fmt.Errorf("%w: %w", ErrUnavailable, diskError("lock", path, err))
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL:
		return fmt.Errorf("%w: no file locks on this mount: cannot lock %q: %w", ErrUnsupported, path, err)
	}
	return diskError("lock", path, err)
}

// release gives the lock up, by closing the file. A second call does nothing.
func (l *buildLock) release() { l.f.Close() }

// alive fails if the lock was lost: an NFS client that was cut off for longer
// than the server's lease loses its locks, and is told so by the next read or
// write through the descriptor that held one. Who holds the lock calls it last
// before the change that the lock guards, and abandons the change on an error.
func (l *buildLock) alive() error {
	var b [1]byte // the file is empty, and the answer is its end
	_, err := l.f.ReadAt(b[:], 0)
	if err == nil || err == io.EOF {
		return nil
	}
	return fmt.Errorf("%w: lost the lock: %w", ErrUnavailable, diskError("read", l.f.Name(), errors.Unwrap(err)))
}

// lockRegion is the byte of the lock file that stands for a build. Two builds
// that share one only wait for each other.
func lockRegion(dir, buildID string) int64 {
	h := fnv.New64a()
	io.WriteString(h, dir)
	io.WriteString(h, "/")
	io.WriteString(h, buildID)
	return int64(h.Sum64() >> 2)
}

func lockFile(f *os.File, cmd int, kind int16, region int64) error {
	return uninterrupted(func() error {
		return unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: region, Len: 1})
	})
}

// lockWorks tells whether a lock of one open file keeps another one out, as it
// has to also between hosts.
func lockWorks(one, other *os.File) error {
	try := func(f *os.File, kind int16, region int64) error {
		return lockFile(f, unix.F_OFD_SETLK, kind, region)
	}
	if err := try(one, unix.F_WRLCK, 1); err != nil {
		return diskError("lock", one.Name(), err)
	}
	switch err := try(other, unix.F_RDLCK, 1); err {
	case unix.EAGAIN, unix.EACCES:
	case nil:
		return errors.New("a lock keeps nobody out: appends to a log can be lost")
	default:
		return diskError("lock", other.Name(), err)
	}
	if err := try(other, unix.F_WRLCK, 2); err != nil {
		return fmt.Errorf("a lock on one byte keeps out of others: %w", diskError("lock", other.Name(), err))
	}
	return nil
}
