package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// checkMount checks the mount that base is on, and logs options that weaken the guarantees
// of the store. With require, base must be a mount point. Otherwise, while a mount is
// missing, builds would fill the root disk, and the mount would hide them once it is back.
func checkMount(base string, require bool, log *slog.Logger) error {
	mount, err := mountOf(base)
	if errors.Is(err, errNoMounts) && !require {
		log.Warn("cannot read the mount table", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	if require && !mount.isOf(base) {
		return errors.New("is not a mount point, and PAGEWRIGHT_NFS_REQUIRE_MOUNT is true")
	}
	for _, w := range mount.warnings() {
		log.Warn("the mount weakens the guarantees of the store", "path", mount.Mountpoint, "type", mount.FSType, "problem", w.Error())
	}
	return nil
}

// mountInfo describes a mount. The zero value is no mount.
type mountInfo struct{ mountinfo.Info }

// errNoMounts means that the mount table cannot be read.
var errNoMounts = errors.New("cannot determine whether it is a mount point")

// mountOf returns the mount that base is on.
func mountOf(base string) (mount mountInfo, err error) {
	base, err = filepath.EvalSymlinks(base)
	if err != nil {
		return mount, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(base))
	if err != nil {
		return mount, fmt.Errorf("%w: %w", errNoMounts, err)
	}
	for _, m := range mounts { // the deepest mount point counts, and the last mount on it
		if len(m.Mountpoint) >= len(mount.Mountpoint) {
			mount.Info = *m
		}
	}
	return mount, nil
}

// isOf reports whether base is the mount point of m.
func (m mountInfo) isOf(base string) bool {
	base, err := filepath.EvalSymlinks(base)
	return err == nil && m.Mountpoint == base
}

// mountWarning describes a mount option, or a kind of file system, that weakens the
// guarantees of the store.
type mountWarning struct {
	of          string // "mount option" or "file system"
	option, why string
	noLocks     bool // locks do not work between hosts
}

func (w mountWarning) Error() string { return w.option + ": " + w.why }

// warnings returns what about the mount weakens the guarantees of the store.
func (m mountInfo) warnings() []mountWarning {
	switch {
	case strings.HasPrefix(m.FSType, "nfs"):
		return nfsOptionWarnings(m.VFSOptions)
	case m.FSType == "tmpfs", m.FSType == "ramfs":
		return []mountWarning{{"file system", m.FSType, "not durable: it is memory, so a restart of the host loses every build and log", false}}
	}
	return nil
}

// checkMounted returns ErrUnavailable if base is gone, is no longer the mount point that it
// was when the service started, or is on another kind of file system. Then a missing file
// may still exist in the store, and a write would go to the disk below the mount, or would
// lack what that kind of file system needs. It sends no request to the NFS server unless
// something was mounted (statx(2); before Linux 5.8 it cannot detect mount points).
func (n *nfs) checkMounted() error {
	at, err := n.statBase(n.base)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case err != nil:
		return nil // the next operation fails with more detail
	case n.mountPoint && !at.mountPoint:
		return fmt.Errorf("%w: %q is no longer a mount point", ErrUnavailable, n.base)
	case at.dev != n.dev.Load():
		return n.remounted(at.dev)
	}
	return nil
}

// checkSameMount returns ErrUnavailable if an open file does not belong to the store,
// because a mount disappeared or appeared. It makes no system call for a file on the device
// of base. Files on other devices are allowed: they may be on a mount below base.
func (n *nfs) checkSameMount(st *unix.Stat_t) error {
	if st.Dev == n.dev.Load() {
		return nil
	}
	return n.checkMounted()
}

// remounted checks a new device at base. It accepts the same kind of file system as at the
// start; a local one must also have the same fsid.
func (n *nfs) remounted(dev uint64) error {
	var st unix.Statfs_t
	if err := retryEINTR(func() error { return unix.Statfs(n.base, &st) }); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, diskError("statfs", n.base, err))
	}
	kind := kindOfFS(int64(st.Type))
	if kind != n.kind {
		return fmt.Errorf("%w: %q is now on %s, but was on %s when the service started; unmount the new file system or restart the service",
			ErrUnavailable, n.base, kind, n.kind)
	}
	if kind == fsLocal && st.Fsid != n.fsid {
		return fmt.Errorf("%w: %q is now on a different file system than when the service started; unmount the new one or restart the service",
			ErrUnavailable, n.base)
	}
	n.disk.durable.Purge()
	n.dev.Store(dev)
	return nil
}

// baseState is what the kernel knows about base without asking the file system.
type baseState struct {
	mountPoint bool
	dev        uint64
}

func statBase(path string) (baseState, error) {
	var st unix.Statx_t
	err := retryEINTR(func() error {
		return unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
	})
	if err != nil {
		return baseState{}, diskError("stat", path, err)
	}
	return baseState{st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, unix.Mkdev(st.Dev_major, st.Dev_minor)}, nil
}

// fsKind is a kind of file system. It decides what may be cached, whose clock sets the
// times, and how a file is replaced.
type fsKind string

const (
	fsNFS   fsKind = "NFS"
	fsLocal fsKind = "a local file system"
	fsOther fsKind = "another kind of file system" // FUSE, SMB, overlay ...
)

// kindOfFS returns the kind of a file system type (statfs(2)).
func kindOfFS(fsType int64) fsKind {
	switch {
	case fsType == unix.NFS_SUPER_MAGIC:
		return fsNFS
	case isLocal(fsType):
		return fsLocal
	}
	return fsOther
}

// nfsOptionWarnings returns the options of an NFS mount that weaken the guarantees of the
// store (nfs(5)). options has the format of /proc/self/mountinfo.
func nfsOptionWarnings(options string) []mountWarning {
	const (
		of    = "mount option"
		local = "locks are local to this host: log entries of other hosts can be lost, and a build can seem absent while another host replaces it"
		soft  = "a write can fail or be lost while the server restarts; use the mount option hard"
	)
	var warnings []mountWarning
	opts := strings.Split(options, ",")
	for _, w := range []mountWarning{
		{of, "nolock", local, true},
		{of, "local_lock=all", local, true},
		{of, "local_lock=posix", local, true},
		{of, "nocto", "changes by other hosts stay invisible for a while", false},
		{of, "soft", soft, false},
		{of, "softerr", soft, false},
	} {
		if slices.Contains(opts, w.option) {
			warnings = append(warnings, w)
		}
	}
	return warnings
}
