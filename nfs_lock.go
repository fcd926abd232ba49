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
	lockWait       = 5 * time.Second       // how long a lock is waited for
	lockPollFirst  = time.Millisecond      // who waits asks again after so long, and then less often
	lockPollLocal  = 10 * time.Millisecond // down to once in this time
	lockPollRemote = 50 * time.Millisecond // or in this, where each is a request to a server; never more often than lockPollLocal

	// Callers that wait in this process. Readers, changes, and entries of a log are
	// counted apart, so that none of them keeps out the others.
	maxBuildWaiters = 64      // for one build
	maxSiteWaiters  = 128     // for the builds of one site
	maxWaiters      = 1 << 20 // for all: no limit, requests are limited elsewhere
)

// buildLock is a lock on one build of a site, held against every process on
// every host that shares the store: an open file description lock (fcntl(2)),
// which NFSv4 carries to the server. It ends with the process.
type buildLock struct {
	f *os.File
}

// lockBuild locks the artifact or the log of a build (dir tells which), and
// waits for it as waitForLock does. A shared lock excludes exclusive ones only.
// Where the mount has no locks it fails with ErrUnsupported.
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
		if dir == logsDir {
			n.disk.metrics.conflicts.Inc()
		}
		return n.waitForLock(f, kind, region, "changes", siteID, buildID)
	}
	return gotLock(f, err)
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

// lockToRead takes the shared lock of a build in order to look for its file, and
// waits for it as waitForLock does. It makes nothing: where there is no lock file,
// nobody has ever locked, and that is fs.ErrNotExist.
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
	err = lockFile(f, unix.F_OFD_SETLK, kind, region)
	if isLocked(err) {
		return n.waitForLock(f, kind, region, "reads", siteID, buildID)
	}
	return gotLock(f, err)
}

// waitForLock waits for a lock that somebody else holds, at most n.lockWait
// (ErrUnavailable). If too many wait already it fails at once (ErrBusy). It asks
// again and again instead of waiting in the kernel, which would hold a thread and
// has no bound; an NFS client does no better, and only once a second or less
// (nfs4_retry_setlk, and statd of NFSv3).
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
			return nil, fmt.Errorf("%w: build %q of site %q, for %s", ErrLocked, buildID, siteID, n.lockWait)
		}
		// By chance, so that no process always comes too late, and the more often the
		// longer it has waited.
		wait = max(min(wait, left/50), shortest)
		time.Sleep(min(wait/2+rand.N(wait), left))
		if err := lockFile(f, unix.F_OFD_SETLK, kind, region); !isLocked(err) {
			return gotLock(f, err)
		}
	}
}

// waitPlace takes a place among the callers that wait for a lock of a build in
// order to do what, or fails with ErrBusy.
func (n *nfs) waitPlace(what, siteID, buildID string) (*grant, error) {
	key := what + " " + siteID
	place, err := n.waiting.acquire(budgetRequest{n: 1, caps: []keyCap{{key, maxSiteWaiters}, {key + "/" + buildID, maxBuildWaiters}}})
	if err != nil {
		return nil, fmt.Errorf("%w: too many requests wait for the lock of build %q of site %q, or for other locks of this site", err, buildID, siteID)
	}
	return place, nil
}

// gotLock is the lock on f, or closes f if err says that there is none.
func gotLock(f *os.File, err error) (*buildLock, error) {
	if err != nil {
		f.Close()
		return nil, lockError(f.Name(), err)
	}
	return &buildLock{f}, nil
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
		return fmt.Errorf("%w: this mount has no file locks: cannot lock %q: %w", ErrUnsupported, path, err)
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
	return retryEINTR(func() error {
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
		return errors.New("locks do not exclude each other: concurrent appends to a log can be lost")
	default:
		return diskError("lock", other.Name(), err)
	}
	if err := try(other, unix.F_WRLCK, 2); err != nil {
		return fmt.Errorf("a lock on one byte also locks other bytes: %w", diskError("lock", other.Name(), err))
	}
	return nil
}
