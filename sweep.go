package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// sweepNames is how many names of a directory are held in memory by a sweep.
const sweepNames = 1024

// sweepTemps removes temporary files older than maxAge, which crashes leave
// behind: at once and then now and again, until ctx ends. Any number of
// processes may do so at once. An upload whose temporary file was removed fails
// when it would be put in its place.
func (n *nfs) sweepTemps(ctx context.Context, maxAge time.Duration) {
	every := time.NewTicker(max(time.Second, min(maxAge/4, time.Hour)))
	defer every.Stop()
	for {
		removed, err := n.sweepOnce(ctx, maxAge)
		if removed > 0 {
			n.log.Info("removed temporary files that a crash left", "count", removed)
		}
		if err != nil && ctx.Err() == nil {
			n.log.Warn("cannot look for temporary files that a crash left", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// sweepOnce sweeps the whole store and tells how many files it removed. One
// directory that cannot be swept does not keep it from the others.
func (n *nfs) sweepOnce(ctx context.Context, maxAge time.Duration) (int, error) {
	root, err := n.openRoot()
	if err != nil {
		return 0, err
	}
	defer root.Close()
	// Not this host's clock: it may be wrong, and the temporary files be those
	// of uploads on other hosts.
	now, err := n.disk.clock(root)
	if err != nil {
		return 0, err
	}
	before := now.Add(-maxAge)
	removed := 0
	var errs []error
	sweep := func(names ...string) {
		dir, err := n.disk.openDir(filepath.Join(append([]string{n.base}, names...)...))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return
		}
		if err == nil {
			var some int
			some, err = n.sweepDir(dir, before)
			removed += some
			dir.Close()
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	sweep()
	sweep(sitesDir)
	// As long as root is the base, none of its names is one of a site.
	err = eachName(root, func(site string) error {
		for _, name := range []string{artifactsDir, logsDir} {
			if err := ctx.Err(); err != nil {
				return err
			}
			sweep(sitesDir, site, name)
		}
		return nil
	})
	return removed, errors.Join(append(errs, err)...)
}

// sweepDir removes the temporary files in dir that were last written to before
// a time.
func (n *nfs) sweepDir(dir *os.File, before time.Time) (removed int, err error) {
	err = eachName(dir, func(name string) error {
		if !isTempName(name) {
			return nil
		}
		var st unix.Stat_t
		if err := statAt(dir, name, &st); err != nil {
			return unlessGone(err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG || !time.Unix(st.Mtim.Unix()).Before(before) {
			return nil
		}
		if err := n.disk.unlink(dir, name); err != nil {
			return unlessGone(err)
		}
		removed++
		n.disk.metrics.tempsSwept.Inc()
		return nil
	})
	return removed, err
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
