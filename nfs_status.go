package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const maxStatus = 16 << 20 // bytes

// WriteStatus implements StatusKeeper.
func (n *nfs) WriteStatus(name string, data []byte) error {
	if n.readOnly {
		return ErrReadOnly
	}
	if len(data) > maxStatus {
		return fmt.Errorf("%w: the status %q has %d bytes", ErrTooLarge, name, len(data))
	}
	if err := n.checkMounted(); err != nil {
		return err
	}
	dir, err := n.disk.ensureDir(n.base, statusDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return n.disk.replaceIn(dir, name+statusSuffix, data, 0)
}

// ReadStatus implements StatusKeeper.
func (n *nfs) ReadStatus(name string) ([]byte, error) {
	dir, err := n.disk.openDir(n.base + "/" + statusDir)
	if err != nil {
		return nil, n.notFound(err)
	}
	defer dir.Close()
	data, _, err := readFile(dir, name+statusSuffix, maxStatus)
	switch {
	case err == nil && data == nil:
		err = fmt.Errorf("%w: %q is not a file of at most %d bytes", ErrDamaged, dir.Name()+"/"+name+statusSuffix, maxStatus)
	case errors.Is(err, unix.ELOOP), errors.Is(err, ErrOccupied): // a symbolic link, a socket
		err = fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	return data, n.notFound(err)
}

// checkOwner fails if this process runs as root, and the store belongs to another user: that user
// could not replace files, or create any in directories, that this process creates.
func (n *nfs) checkOwner() error {
	if os.Geteuid() != 0 {
		return nil
	}
	root, err := n.openRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return diskError("stat", root.Name(), err)
	}
	if st.Uid != 0 {
		return fmt.Errorf("%q belongs to user %d: run this as that user, which is the one of the service", root.Name(), st.Uid)
	}
	return nil
}

// StoreTime implements ClockTeller.
func (n *nfs) StoreTime() (time.Time, error) {
	root, err := n.openRoot()
	if err != nil {
		return time.Time{}, err
	}
	defer root.Close()
	return n.disk.clock(root)
}
