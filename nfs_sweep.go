package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sweepNames   = 1024           // directory entries that a sweep reads at once
	sweepDigests = 4 * sweepNames // digests that it compares with the artifacts at once
)

// sweepTemps removes files left by crashes once they are older than maxAge. It runs at
// once and then periodically, until ctx ends. Any number of processes may sweep at once.
//
// It removes temporary files, interim files if the file also has its name, digests without
// an artifact, the directories of doctor, and on NFS the .nfs files of clients that died. If
// it removes the file of a running upload, the upload fails when it commits. If another host
// still reads a removed .nfs file, that download is cut off. If an interim file is all that
// is left of a build, it gets the name of the build (nfs_replace.go).
func (n *nfs) sweepTemps(ctx context.Context, maxAge time.Duration) {
	every := time.NewTicker(max(time.Second, min(maxAge/4, time.Hour)))
	defer every.Stop()
	for {
		removed, err := n.sweepOnce(ctx, maxAge)
		if removed > 0 {
			n.log.Info("removed files left by crashes", "count", removed)
		}
		if err != nil && ctx.Err() == nil {
			n.log.Warn("cannot complete the sweep for files left by crashes", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// sweepOnce sweeps the whole store once and returns the number of removed files. It goes on
// with the next directory if one cannot be swept.
func (n *nfs) sweepOnce(ctx context.Context, maxAge time.Duration) (int, error) {
	root, err := n.openRoot()
	if err != nil {
		return 0, err
	}
	defer root.Close()
	// Use the store's clock: temporary files may belong to running uploads on other hosts,
	// and the clock of this host may be wrong.
	now, err := n.disk.clock(root)
	if err != nil {
		return 0, err
	}
	before := now.Add(-maxAge)
	removed := 0
	var errs []error
	sweep := func(path string, f func(dir *os.File) (int, error)) {
		dir, err := n.disk.openDir(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return
		}
		if err == nil {
			var some int
			some, err = f(dir)
			removed += some
			dir.Close()
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	temps := func(dir *os.File) (int, error) {
		return n.sweepDir(dir, func(name string) (bool, error) { return n.sweepTemp(dir, name, before) })
	}
	for _, name := range []string{"", sitesDir, statusDir} {
		sweep(filepath.Join(n.base, name), temps)
	}
	// If root is the base, there are no sites yet, and no path exists.
	err = eachName(root, func(site string) error {
		for _, name := range []string{artifactsDir, logsDir, digestsDir, labelsDir} {
			if err := ctx.Err(); err != nil {
				return err
			}
			sweep(n.sitePath(site, name), func(dir *os.File) (int, error) {
				return n.sweepDir(dir, func(file string) (bool, error) { return n.sweepFile(dir, site, name, file, before) })
			})
		}
		sweep(n.sitePath(site, digestsDir), func(dir *os.File) (int, error) { return n.sweepDigestDir(dir, site, before) })
		return nil
	})
	return removed, errors.Join(append(errs, err)...)
}

// sweepDir calls sweep with each name in dir and returns the number of removed files. It
// ignores files that vanish meanwhile, goes on after other errors, and returns the first.
func (n *nfs) sweepDir(dir *os.File, sweep func(name string) (bool, error)) (removed int, first error) {
	err := eachName(dir, func(name string) error {
		gone, err := sweep(name)
		if gone {
			removed++
			n.disk.metrics.tempsSwept.Inc()
		}
		if first == nil {
			first = ignoreNotExist(err)
		}
		return nil
	})
	return removed, cmp.Or(first, err)
}

// sweepFile sweeps one file in a directory of a site.
func (n *nfs) sweepFile(dir *os.File, siteID, kind, name string, before time.Time) (removed bool, err error) {
	if of, ok := isInterimName(name); ok {
		if !isSiteFile(name, kind) {
			return false, nil
		}
		return n.sweepInterim(dir, siteID, kind, strings.TrimSuffix(of, suffixOf(kind)), name, before)
	}
	if n.remote && isSillyName(name) {
		return n.sweepSilly(dir, name, before)
	}
	return n.sweepTemp(dir, name, before)
}

// sweepTemp removes name in dir if it is a temporary file or a directory of doctor that
// was last modified before that time.
func (n *nfs) sweepTemp(dir *os.File, name string, before time.Time) (removed bool, err error) {
	if !isTempName(name) {
		return false, nil
	}
	var st unix.Stat_t
	if err := statAt(dir, name, &st); err != nil || !time.Unix(st.Mtim.Unix()).Before(before) {
		return false, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = n.disk.unlink(dir, name)
	case unix.S_IFDIR:
		if err = n.removeCheckDir(dir, name); errors.Is(err, unix.ENOTEMPTY) {
			return false, nil // it contains files that are not doctor's
		}
	default:
		return false, nil
	}
	return err == nil, err
}

// removeCheckDir removes the directory of a doctor that was killed, with the files that
// doctor creates. It fails if the directory contains anything else.
func (n *nfs) removeCheckDir(parent *os.File, name string) error {
	dir, err := n.disk.openDir(parent.Name() + "/" + name)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = eachName(dir, func(name string) error {
		if slices.Contains(checkNames, name) || isTempName(name) {
			return n.disk.remove(dir, name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return n.disk.removeDir(parent, name)
}

// isSillyName reports whether name is one that an NFS client gives to a file that was
// removed while it was open (fs/nfs/unlink.c: .nfs, then inode and counter in hexadecimal).
// If the client dies, the file stays.
func isSillyName(name string) bool {
	hex, ok := strings.CutPrefix(name, ".nfs")
	return ok && len(hex) == 24 && strings.Trim(hex, "0123456789abcdef") == ""
}

// sweepSilly removes a .nfs file that got its name before that time: a rename sets the
// change time. If this host has the file open, it stays (EBUSY).
func (n *nfs) sweepSilly(dir *os.File, name string, before time.Time) (removed bool, err error) {
	var st unix.Stat_t
	if err := statAt(dir, name, &st); err != nil || !time.Unix(st.Ctim.Unix()).Before(before) {
		return false, err
	}
	err = n.disk.unlink(dir, name)
	if errors.Is(err, unix.EBUSY) {
		return false, nil
	}
	return err == nil, err
}

// sweepInterim renames an interim file to its own name if that is missing. Otherwise it
// removes the interim file if it was written before that time. It skips a build that is
// locked; the next sweep looks at it again. The lock of a label excludes all
// moves of labels of the site.
func (n *nfs) sweepInterim(dir *os.File, siteID, kind, id, interim string, before time.Time) (removed bool, err error) {
	lock, err := n.tryLock(siteID, kind, id)
	if lock == nil {
		return false, err
	}
	defer lock.release()
	name := fileName(kind, id)
	if _, err := n.finishReplacement(dir, name); err != nil {
		return false, err
	}
	var st unix.Stat_t
	err = statAt(dir, interim, &st)
	if err == nil && time.Unix(st.Mtim.Unix()).Before(before) {
		if err = lock.alive(); err == nil {
			err = n.removeAside(dir, name, interim)
			removed = err == nil
		}
	}
	if ignoreNotExist(err) != nil {
		return removed, err
	}
	return removed, n.disk.syncDir(dir)
}

// sweepDigestDir removes the digests in dir that have no artifact, if they got there before
// that time: a copy of the store may bring the digests first.
func (n *nfs) sweepDigestDir(dir *os.File, siteID string, before time.Time) (removed int, err error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return 0, diskError("seek in directory", dir.Name(), errors.Unwrap(err))
	}
	for {
		names, err := dir.Readdirnames(sweepDigests)
		if err == io.EOF {
			return removed, nil
		}
		if err != nil {
			return removed, diskError("read directory", dir.Name(), err)
		}
		// After the digests: an upload places its artifact before its digest.
		orphans, err := n.withoutArtifacts(siteID, names)
		if err != nil {
			return removed, err
		}
		for buildID := range orphans {
			gone, err := n.sweepDigest(dir, siteID, buildID, before)
			if ignoreNotExist(err) != nil {
				return removed, err
			}
			if gone {
				removed++
				n.disk.metrics.tempsSwept.Inc()
			}
		}
	}
}

// withoutArtifacts returns the builds that have a digest in names, but no artifact.
func (n *nfs) withoutArtifacts(siteID string, names []string) (map[string]bool, error) {
	orphans := make(map[string]bool, len(names))
	for _, name := range names {
		if buildID, ok := buildOfFile(name, digestSuffix); ok {
			orphans[buildID] = true
		}
	}
	if len(orphans) == 0 {
		return nil, nil
	}
	artifacts, err := n.openBuilds(siteID, artifactsDir)
	if err != nil {
		return orphans, ignoreNotExist(err)
	}
	defer artifacts.Close()
	return orphans, eachName(artifacts, func(name string) error {
		if of, ok := isInterimName(name); ok {
			name = of
		}
		delete(orphans, strings.TrimSuffix(name, artifactSuffix))
		return nil
	})
}

// sweepDigest removes the digest of a build if it got its name before that time and there
// is no artifact. It skips a build that is locked.
func (n *nfs) sweepDigest(dir *os.File, siteID, buildID string, before time.Time) (removed bool, err error) {
	var st unix.Stat_t
	name := fileName(digestsDir, buildID)
	if err := statAt(dir, name, &st); err != nil || !time.Unix(st.Ctim.Unix()).Before(before) {
		return false, err
	}
	lock, err := n.tryLock(siteID, artifactsDir, buildID)
	if lock == nil {
		return false, err
	}
	defer lock.release()
	artifacts, err := n.openBuilds(siteID, artifactsDir)
	if err == nil {
		var exists bool
		exists, err = n.finishReplacement(artifacts, fileName(artifactsDir, buildID))
		artifacts.Close()
		if exists {
			return false, err
		}
	}
	if ignoreNotExist(err) != nil {
		return false, err
	}
	// Not below a mount that disappeared; and what was missing may be so for that reason.
	if err := cmp.Or(n.checkMounted(), lock.alive()); err != nil {
		return false, err
	}
	err = n.disk.unlink(dir, name)
	return err == nil, err
}

// eachName calls f with each name in dir until f fails.
func eachName(dir *os.File, f func(name string) error) error {
	for {
		names, err := dir.Readdirnames(sweepNames)
		for _, name := range names {
			if err := f(name); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return diskError("read directory", dir.Name(), err)
		}
	}
}
