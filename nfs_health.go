package main

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Space implements SpaceTeller.
func (n *nfs) Space() (Space, error) {
	if err := n.checkMounted(); err != nil {
		return Space{}, err
	}
	var st unix.Statfs_t
	if err := retryEINTR(func() error { return unix.Statfs(n.base, &st) }); err != nil {
		return Space{}, diskError("statfs", n.base, err)
	}
	block := uint64(st.Bsize)
	return Space{st.Bavail * block, st.Blocks * block, st.Ffree, st.Files}, nil
}

// Probe implements Prober. It reads the directory of the sites and, unless the service is
// read-only, checks that it is writable. Then it writes and fsyncs a file, in the base if
// possible: a change in the directory of the sites would invalidate the caches of other NFS
// clients.
func (n *nfs) Probe() (Readiness, error) {
	if err := n.checkMounted(); err != nil {
		return Readiness{}, err
	}
	dir, err := n.openRoot()
	if err != nil {
		return Readiness{}, err
	}
	defer dir.Close()
	if _, err := dir.Readdirnames(1); err != nil && err != io.EOF {
		return Readiness{}, diskError("read directory", dir.Name(), errors.Unwrap(err))
	}
	if n.readOnly {
		return Readiness{}, nil
	}
	if err := n.probeWrites(dir); err != nil {
		if errors.Is(err, ErrUnavailable) || errors.Is(err, unix.EIO) {
			return Readiness{}, err
		}
		return Readiness{WriteError: err}, nil
	}
	return Readiness{}, nil
}

func (n *nfs) probeWrites(root *os.File) error {
	err := retryEINTR(func() error {
		return unix.Faccessat(int(root.Fd()), ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS)
	})
	if err != nil {
		return n.whyDenied(root, diskError("write to", root.Name(), err))
	}
	base, err := n.disk.openDir(n.base)
	if err == nil {
		err = n.probeWrite(base)
		base.Close()
	}
	if errors.Is(err, ErrDenied) {
		return n.probeWrite(root)
	}
	return err
}

// whyDenied returns the real cause of denied, the error of a write to dir. For an export
// that is read-only an NFS server denies access (nfsd_access in the kernel), and the client
// does not send the request. A change of the mode does reach the server, which then reports
// that the export is read-only. whyDenied sets the mode to its current value only.
func (n *nfs) whyDenied(dir *os.File, denied error) error {
	if !n.remote || !errors.Is(denied, ErrDenied) {
		return denied
	}
	if err := n.disk.setSameDirMode(dir); errors.Is(err, ErrReadOnly) {
		return err
	}
	return denied
}

func (n *nfs) probeWrite(dir *os.File) error {
	temp, err := n.disk.createTemp(dir)
	if err != nil {
		return err
	}
	defer temp.discard()
	if _, err := temp.Write([]byte("probe\n")); err != nil {
		return err
	}
	_, err = temp.seal()
	return err
}
