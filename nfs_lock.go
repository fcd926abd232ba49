package main

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockWait       = 5 * time.Second       // how long to wait for a lock
	lockPollFirst  = time.Millisecond      // first pause between attempts on a local file system; it doubles
	lockPollLocal  = 10 * time.Millisecond // longest pause on a local file system
	lockPollRemote = 50 * time.Millisecond // longest pause on NFS; the first one there is lockPollLocal, since each attempt is a request

	// Callers of this process that may wait at once. Reads, changes and log entries are
	// counted separately, so that none of them blocks the others.
	maxBuildWaiters = 64      // for one build
	maxSiteWaiters  = 128     // for all builds of one site
	maxWaiters      = 1 << 20 // for all sites: in practice no limit, since other limits apply first
)

// buildLock is a lock on one build, or on the labels of a site. It excludes every process on every host that shares the
// store. It is an open file description lock (fcntl(2)), which NFSv4 sends to the server.
// It is released when the process ends.
type buildLock struct {
	f *os.File
}

// lockBuild locks the artifact or the log of a build, depending on dir, and waits for the
// lock as waitForLock does. It fails with ErrUnsupported if the mount has no locks. A
// shared lock excludes only exclusive locks.
//
// The lock belongs to the open file. So each call opens the lock file again: that way the
// lock also excludes other goroutines. For a shared lock, the file is opened read-only. An
// NFSv4 server can then delegate the file, and further shared locks cost no round trip.
func (n *nfs) lockBuild(siteID, dir, buildID string, exclusive bool) (*buildLock, error) {
	flags, kind := n.lockFlags(exclusive)
	f, err := n.openLock(siteID, flags)
	if err != nil {
		return nil, err
	}
	region := lockRegion(dir, buildID)
	err = lockFile(f, unix.F_OFD_SETLK, kind, region)
	if isLocked(err) {
		if dir == logsDir {
			n.disk.metrics.conflicts.Inc()
		}
		return n.waitForLock(f, kind, region, "changes", siteID, buildID)
	}
	return gotLock(f, err)
}

// lockLabels takes the exclusive lock of the labels of a site, to change one of them. It waits
// for the lock as waitForLock does.
func (n *nfs) lockLabels(siteID, label string) (*buildLock, error) {
	flags, kind := n.lockFlags(true)
	f, err := n.openLock(siteID, flags)
	if err != nil {
		return nil, err
	}
	return n.lockOrWait(f, kind, lockRegion(labelsDir, label), "labels", siteID, label)
}

// addArtifact adds the exclusive lock of an artifact to the lock l of the labels of its site, and
// waits for it as waitForLock does. If it fails, it has released l.
func (n *nfs) addArtifact(l *buildLock, siteID, buildID string) error {
	_, err := n.lockOrWait(l.f, unix.F_WRLCK, lockRegion(artifactsDir, buildID), "labels", siteID, buildID)
	return err
}

// openLock opens the lock file of a site, and creates it if it is missing. If an export was
// read-only, an NFSv3 client remembers that writes to the file are denied, and forgets it
// only when the file changes. So after EACCES this sets the mode of the file to its current
// value. That either clears the cache of the client, or fails with the real cause.
func (n *nfs) openLock(siteID string, flags int) (*os.File, error) {
	f, err := n.disk.openLockFile(n.base, flags, sitesDir, siteID)
	if !n.remote || !errors.Is(err, unix.EACCES) {
		return f, err
	}
	switch cause := n.disk.setSameMode(n.sitePath(siteID, ""), lockName); {
	case errors.Is(cause, ErrDenied): // another user owns the file
		return nil, err
	case cause != nil:
		return nil, cause
	}
	return n.disk.openLockFile(n.base, flags, sitesDir, siteID)
}

// lockToRead takes the shared lock of a build for find, and waits for it as waitForLock
// does. It does not create files. It fails with fs.ErrNotExist if there is no lock file,
// because then nobody holds a lock.
func (n *nfs) lockToRead(siteID, dir, buildID string) (*buildLock, error) {
	flags, kind := n.lockFlags(false)
	site, err := n.openBuilds(siteID, "") // revalidates the cache of an NFS client
	if err != nil {
		return nil, err
	}
	site.Close()
	f, err := n.disk.openFile(n.sitePath(siteID, lockName), flags)
	if err != nil {
		return nil, err
	}
	return n.lockOrWait(f, kind, lockRegion(dir, buildID), "reads", siteID, buildID)
}

// lockOrWait locks a region of f if it is free, or waits for it as waitForLock does.
func (n *nfs) lockOrWait(f *os.File, kind int16, region int64, what, siteID, buildID string) (*buildLock, error) {
	err := lockFile(f, unix.F_OFD_SETLK, kind, region)
	if isLocked(err) {
		return n.waitForLock(f, kind, region, what, siteID, buildID)
	}
	return gotLock(f, err)
}

// waitForLock waits up to n.lockWait for a lock that is held elsewhere, then fails with
// ErrLocked. If too many callers are already waiting, it fails at once with ErrBusy. It
// polls, because a wait in the kernel would block a thread and has no time limit. On NFS
// the kernel would poll too, at most once a second (nfs4_retry_setlk; lockd for NFSv3).
func (n *nfs) waitForLock(f *os.File, kind int16, region int64, what, siteID, buildID string) (*buildLock, error) {
	place, err := n.waitPlace(what, siteID, buildID)
	if err != nil {
		f.Close()
		return nil, err
	}
	defer place.release()
	shortest, longest := lockPollFirst, lockPollLocal
	if n.remote {
		shortest, longest = lockPollLocal, lockPollRemote
	}
	end := time.Now().Add(n.lockWait)
	for wait := shortest; ; wait = min(2*wait, longest) {
		left := time.Until(end)
		if left <= 0 {
			f.Close()
			return nil, fmt.Errorf("%w: gave up on %q of site %q after %s", ErrLocked, buildID, siteID, n.lockWait)
		}
		// The pause is random, so that no process always loses. Pauses get shorter near
		// the end of the wait, which favours the callers that have waited longest.
		wait = max(min(wait, left/50), shortest)
		time.Sleep(min(wait/2+rand.N(wait), left))
		if err := lockFile(f, unix.F_OFD_SETLK, kind, region); !isLocked(err) {
			return gotLock(f, err)
		}
	}
}

// waitPlace takes a slot for a caller that waits for the lock of a build, or fails with
// ErrBusy. The parameter what is the kind of caller: changes, reads, entries or labels.
func (n *nfs) waitPlace(what, siteID, buildID string) (*grant, error) {
	key := what + " " + siteID
	place, err := n.waiting.acquire(budgetRequest{n: 1, caps: []keyCap{{key, maxSiteWaiters}, {key + "/" + buildID, maxBuildWaiters}}})
	if err != nil {
		return nil, fmt.Errorf("%w: the queue for the lock of %q, or for all locks of site %q, is full", err, buildID, siteID)
	}
	return place, nil
}

// gotLock returns the lock on f. If err is not nil it closes f and returns an error.
func gotLock(f *os.File, err error) (*buildLock, error) {
	if err != nil {
		f.Close()
		return nil, lockError(f.Name(), err)
	}
	return &buildLock{f}, nil
}

// tryLock takes the exclusive lock of a build if it is free. It returns nil if the lock is
// taken, or if the mount has no locks.
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

// lockFlags returns the flags for opening a lock file, and the kind of lock.
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

// isLocked reports whether err means that the lock is held elsewhere.
func isLocked(err error) bool { return err == unix.EAGAIN || err == unix.EACCES }

// lockError returns the error for a lock that could not be taken. ENOLCK does not mean that
// the mount has no locks: an NFS server or its lock manager returns it temporarily, while
// it restarts or is out of memory (fcntl(2)). Continuing without the lock would be unsafe:
// this change could happen between another writer's check and its change.
func lockError(path string, err error) error {
	switch err {
	case unix.ENOLCK:
		return fmt.Errorf("%w: %w", ErrUnavailable, diskError("lock", path, err))
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL:
		return fmt.Errorf("%w: the mount does not support file locks: cannot lock %q: %w", ErrUnsupported, path, err)
	}
	return diskError("lock", path, err)
}

// release releases the lock by closing the file. A second call does nothing, nor does that of
// a nil lock.
func (l *buildLock) release() {
	if l != nil {
		l.f.Close()
	}
}

// alive returns an error if the lock was lost. An NFS client loses its locks when it is cut
// off for longer than the server's lease. It learns about that from the next read or write
// on the lock's descriptor. The holder calls alive right before the change that the lock
// protects, and abandons the change on an error.
func (l *buildLock) alive() error {
	var b [1]byte // the file is empty: the read returns io.EOF
	_, err := l.f.ReadAt(b[:], 0)
	if err == nil || err == io.EOF {
		return nil
	}
	return fmt.Errorf("%w: lost the lock: %w", ErrUnavailable, diskError("read", l.f.Name(), errors.Unwrap(err)))
}

// lockRegion returns the byte of the lock file to lock for a build. Two builds may get the
// same byte. That is harmless: they wait for each other. All labels have one byte.
func lockRegion(dir, buildID string) int64 {
	if dir == labelsDir {
		buildID = ""
	}
	h := fnv.New64a()
	io.WriteString(h, dir)
	io.WriteString(h, "/")
	io.WriteString(h, buildID)
	return int64(h.Sum64() >> 2)
}

func lockFile(f *os.File, cmd int, kind int16, region int64) error {
	lock := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: region, Len: 1}
	return retryEINTR(func() error { return unix.FcntlFlock(f.Fd(), cmd, &lock) })
}

// lockWorks returns nil if a lock taken through the file one excludes a lock taken through
// the file other on the same byte, and on no other byte. Otherwise it returns an error.
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
		return errors.New("locks do not exclude each other: concurrent appends to a log can be lost")
	default:
		return diskError("lock", other.Name(), err)
	}
	if err := try(other, unix.F_WRLCK, 2); err != nil {
		return fmt.Errorf("a lock on one byte also locks other bytes: %w", diskError("lock", other.Name(), err))
	}
	return nil
}
