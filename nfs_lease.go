package main

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const leaseSuffix = ".lock"

// TryLease implements Leaser. The lease is the lock of a file beside the results of
// maintenance, {base}/status/{name}.lock, which is never removed. The kernel or the NFS server
// ends it with the process. On a mount without locks everybody gets the lease: it only saves
// work.
func (n *nfs) TryLease(name string, ttl time.Duration) (release func(), ok bool, err error) {
	if n.readOnly {
		return nil, false, ErrReadOnly
	}
	if err := n.checkMounted(); err != nil {
		return nil, false, err
	}
	flags, kind := n.lockFlags(true)
	f, err := n.disk.openOrCreate(n.base, flags|unix.O_NONBLOCK, name+leaseSuffix, statusDir)
	if err != nil {
		return nil, false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, false, diskError("stat", f.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, false, notAFile(f.Name())
	}
	err = lockFile(f, unix.F_OFD_SETLK, kind, 0)
	if isLocked(err) {
		f.Close()
		return nil, false, nil
	}
	if err != nil {
		err = lockError(f.Name(), err)
		if f.Close(); !errors.Is(err, ErrUnsupported) {
			return nil, false, err
		}
		return func() {}, true, nil
	}
	end := sync.OnceFunc(func() { f.Close() })
	expiry := time.AfterFunc(ttl, end)
	return func() { expiry.Stop(); end() }, true, nil
}
