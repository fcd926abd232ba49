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

// checkMount looks at the mount that base is on. With require, a base that is
// not itself a mount point is refused: else a missing mount would mean that
// builds fill the root disk, and are gone from sight when the mount comes back.
// Options that weaken the promise of the store are warned of.
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
		log.Warn("NFS mount option", "path", mount.Mountpoint, "type", mount.FSType, "problem", w.Error())
	}
	return nil
}

// mountInfo is a mount; the zero value is none.
type mountInfo struct{ mountinfo.Info }

// errNoMounts: the table of mounts cannot be read.
var errNoMounts = errors.New("cannot determine whether it is a mount point")

// mountOf is the mount that base is on.
func mountOf(base string) (mount mountInfo, err error) {
	base, err = filepath.EvalSymlinks(base)
	if err != nil {
		return mount, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(base))
	if err != nil {
		return mount, fmt.Errorf("%w: %w", errNoMounts, err)
	}
	for _, m := range mounts { // the deepest, and the latest of those
		if len(m.Mountpoint) >= len(mount.Mountpoint) {
			mount.Info = *m
		}
	}
	return mount, nil
}

// isOf tells that base itself is the mount point.
func (m mountInfo) isOf(base string) bool {
	base, err := filepath.EvalSymlinks(base)
	return err == nil && m.Mountpoint == base
}

// mountWarning is a mount option that weakens the promise of the store.
type mountWarning struct {
	option, why string
	noLocks     bool // hosts do not exclude each other
}

func (w mountWarning) Error() string { return w.option + ": " + w.why }

// warnings returns the options of the mount that weaken the promise of the store.
func (m mountInfo) warnings() []mountWarning {
	if !strings.HasPrefix(m.FSType, "nfs") {
		return nil
	}
	return nfsOptionWarnings(m.VFSOptions)
}

// checkMounted fails with ErrUnavailable if the base is gone, is not the mount point
// any more that it was when the service started, or is on another kind of file
// system: what is not found then is not known to be absent, and what is written
// would go to the disk below, or without what that kind needs. Unless something
// was mounted, it does not ask the NFS server (statx(2); before Linux 5.8 no
// mount point is seen).
func (n *nfs) checkMounted() error {
	at, err := n.lookAt(n.base)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case err != nil:
		return nil // what is done next fails with more detail
	case n.mountPoint && !at.mountPoint:
		return fmt.Errorf("%w: %q is no longer a mount point", ErrUnavailable, n.base)
	case at.dev != n.dev.Load():
		return n.remounted(at.dev)
	}
	return nil
}

// checkSameMount fails with ErrUnavailable if a file that was found is not of the store,
// but lies below a mount that went away, or on one that came. It costs nothing
// for a file on the device of the base; others may be on a mount below it.
func (n *nfs) checkSameMount(st *unix.Stat_t) error {
	if st.Dev == n.dev.Load() {
		return nil
	}
	return n.checkMounted()
}

// remounted judges another device at the base. It serves if it is of the kind that
// the service was started on, and a local file system only if it is the same one.
func (n *nfs) remounted(dev uint64) error {
	var st unix.Statfs_t
	if err := retryEINTR(func() error { return unix.Statfs(n.base, &st) }); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, diskError("statfs", n.base, err))
	}
	kind := kindOfFS(int64(st.Type))
	if kind != n.kind {
		return fmt.Errorf("%w: %q is now on %s, but was on %s when the service started; unmount it, or restart the service",
			ErrUnavailable, n.base, kind, n.kind)
	}
	if kind == fsLocal && st.Fsid != n.fsid {
		return fmt.Errorf("%w: %q is now on another file system than when the service started; unmount it, or restart the service",
			ErrUnavailable, n.base)
	}
	n.disk.durable.Purge()
	n.dev.Store(dev)
	return nil
}

// baseState is what is known of the base without asking its file system.
type baseState struct {
	mountPoint bool
	dev        uint64
}

func lookAtBase(path string) (baseState, error) {
	var st unix.Statx_t
	err := retryEINTR(func() error {
		return unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
	})
	if err != nil {
		return baseState{}, diskError("stat", path, err)
	}
	return baseState{st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, unix.Mkdev(st.Dev_major, st.Dev_minor)}, nil
}

// fsKind is a kind of file system: what may be cached of it, whose clock it has,
// and how a name is replaced.
type fsKind string

const (
	fsNFS   fsKind = "NFS"
	fsLocal fsKind = "a local file system"
	fsOther fsKind = "another kind of file system" // FUSE, SMB, overlay ...
)

// kindOfFS is the kind of a file system of that type (statfs(2)).
func kindOfFS(fsType int64) fsKind {
	switch {
	case fsType == unix.NFS_SUPER_MAGIC:
		return fsNFS
	case isLocal(fsType):
		return fsLocal
	}
	return fsOther
}

// nfsOptionWarnings returns which of the options of an NFS mount, as
// /proc/self/mountinfo has them, weaken the promise of the store (nfs(5)).
func nfsOptionWarnings(options string) []mountWarning {
	const (
		local = "locks are local to this host: log entries of other hosts can be lost, and a build can seem absent while another host replaces it"
		soft  = "a write can fail or be lost while the server restarts; mount with hard"
	)
	var warnings []mountWarning
	opts := strings.Split(options, ",")
	for _, w := range []mountWarning{
		{"nolock", local, true},
		{"local_lock=all", local, true},
		{"local_lock=posix", local, true},
		{"nocto", "changes by other hosts stay invisible for a while", false},
		{"soft", soft, false},
		{"softerr", soft, false},
	} {
		if slices.Contains(opts, w.option) {
			warnings = append(warnings, w)
		}
	}
	return warnings
}
