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
	base, err := filepath.EvalSymlinks(base)
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(base))
	if err != nil {
		if require {
			return fmt.Errorf("cannot tell whether %q is a mount point: %w", base, err)
		}
		log.Warn("cannot read the table of mounts", "error", err)
		return nil
	}
	var mount *mountinfo.Info // the deepest, and the latest of those
	for _, m := range mounts {
		if mount == nil || len(m.Mountpoint) >= len(mount.Mountpoint) {
			mount = m
		}
	}
	if require && (mount == nil || mount.Mountpoint != base) {
		return errors.New("is not a mount point, and PAGEWRIGHT_NFS_REQUIRE_MOUNT is true")
	}
	if mount != nil && strings.HasPrefix(mount.FSType, "nfs") {
		for _, w := range nfsOptionWarnings(mount.VFSOptions) {
			log.Warn("NFS mount option", "path", mount.Mountpoint, "type", mount.FSType, "problem", w)
		}
	}
	return nil
}

// here fails with ErrUnavailable if the base is gone, or is not the mount point
// any more that it was when the service started: what is not found then is not
// known to be absent, and what is written would go to the disk below. It does
// not ask the NFS server (statx(2); before Linux 5.8 no mount point is seen).
func (n *nfs) here() error {
	mountPoint, err := isMountPoint(n.base)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case err == nil && n.mountPoint && !mountPoint:
		return fmt.Errorf("%w: %q is not a mount point any more", ErrUnavailable, n.base)
	}
	return nil // of other errors, what is done next tells more
}

func isMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	err := uninterrupted(func() error {
		return unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
	})
	if err != nil {
		return false, diskError("stat", path, err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// nfsOptionWarnings tells which of the options of an NFS mount, as
// /proc/self/mountinfo has them, weaken the promise of the store (nfs(5)).
func nfsOptionWarnings(options string) []string {
	var warnings []string
	opts := strings.Split(options, ",")
	warn := func(option, why string) {
		if slices.Contains(opts, option) {
			warnings = append(warnings, option+": "+why)
		}
	}
	warn("nolock", "locks are local to this host, appends of other hosts to a log can be lost")
	warn("local_lock=all", "locks are local to this host, appends of other hosts to a log can be lost")
	warn("local_lock=posix", "locks are local to this host, appends of other hosts to a log can be lost")
	warn("soft", "a write can fail or be lost while the server restarts; mount with hard")
	warn("softerr", "a write can fail or be lost while the server restarts; mount with hard")
	return warnings
}
