package main

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mtimeGranularity is the age below which the time of a file or directory is "racy"
// (as in git's racy index): the clocks of file systems stand still for up to 2
// seconds, and a change within such an instant leaves the time equal. The age is
// measured by the monotonic clock of this process since it first saw the time, or by
// the store's own clock. The wall clock of this host says nothing about it.
const mtimeGranularity = 2 * time.Second

// fileID identifies a file or directory and its state. The writes of this service
// give every file a new inode and a time in nanoseconds; the change time of the
// kernel is for changes by others.
type fileID struct {
	ino                uint64
	size, mtime, ctime int64
}

func idOf(st *unix.Stat_t) fileID {
	return fileID{st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
}

// stableAt reports whether every change of the file after the store's clock reads
// now gives it another id.
func (id fileID) stableAt(now int64) bool {
	return max(id.mtime, id.ctime)+int64(mtimeGranularity) <= now
}

// sighting is an id with what is known of its age.
type sighting struct {
	id     fileID
	since  time.Duration // when id was first seen, by listings.clock
	stable bool          // id was old enough when what it identifies was read
}

// see notes that id was seen at the time seen. What it identifies is read from start
// on, when the store's clock reads at least storeTime.
func (s *sighting) see(id fileID, seen, start time.Duration, storeTime int64) {
	if s.id != id || s.since == 0 {
		s.id, s.since = id, seen
	}
	s.stable = start-s.since >= mtimeGranularity || id.stableAt(storeTime)
}

// watchedDir is what is known of the files in one directory of a site. V is what was
// read of a file. The directory is read again when its id changes. Each file is then
// checked again, but not before it is needed.
type watchedDir[V any] struct {
	kind string // as artifactsDir
	sighting
	round int32                  // the number of readings
	files map[string]*dirFile[V] // by build
}

// dirFile is what is known of a file in a watchedDir.
type dirFile[V any] struct {
	value   V
	listed  int32 // the round in which the name was last there
	checked int32 // the round in which value was last known to hold
}

func newWatchedDir[V any](kind string) watchedDir[V] {
	return watchedDir[V]{kind: kind, files: make(map[string]*dirFile[V])}
}

// unchanged reports whether the directory, which has this id now, need not be read again.
func (w *watchedDir[V]) unchanged(id fileID) bool { return w.id == id && w.stable }

// reading is the builds of which a directory has a file, or may have one.
type reading[V any] struct {
	builds []string
	files  []*dirFile[V]   // of builds
	unsure map[string]bool // those of builds whose file may be there, or not
	came   []string        // those of builds that were not there before
	gone   []string        // builds whose file was there before
}

// read reads the names in dir, which has this id and may be nil. What was known of
// the files stays, until the caller has looked at them, or removes them.
func (w *watchedDir[V]) read(s *siteScan, dir *os.File, id fileID) (r reading[V], err error) {
	w.see(id, s.seen, s.start, s.storeTime)
	r.builds, r.unsure, err = s.readNames(w.kind, dir, id)
	if err != nil {
		return r, err
	}
	if err := s.run.sized(len(r.builds) - len(w.files)); err != nil {
		return r, err
	}
	if s.n.remote && dir != nil {
		for build := range w.files {
			r.unsure[build] = true // unless it is listed
		}
	}
	r.builds = withUnsure(r.builds, r.unsure)
	r.files = make([]*dirFile[V], len(r.builds))
	w.round++
	for i, build := range r.builds {
		f := w.files[build]
		if f == nil {
			f = new(dirFile[V])
			w.files[strings.Clone(build)] = f // build is part of a file name, and longer
			r.came = append(r.came, build)
		}
		f.listed = w.round
		r.files[i] = f
	}
	// Counting is not enough: a name that is replaced meanwhile can be read twice.
	for build, f := range w.files {
		if f.listed != w.round {
			r.gone = append(r.gone, build)
		}
	}
	return r, nil
}

// openWatched opens a directory of a site and returns its id. An absent one is
// nil (which can be closed) and the zero fileID, and so is something else in its place.
func (s *siteScan) openWatched(name string) (*os.File, fileID, error) {
	dir, err := s.n.openBuilds(s.site, name)
	if errors.Is(err, ErrOccupied) && !errors.Is(err, ErrUnavailable) {
		if s.skipped == nil || err.Error() != s.skipped.Error() { // both directories have the error of the site
			s.n.floods.add(name, slog.LevelWarn, "skipping a path that is not a directory", "site", s.site, "error", err)
		}
		s.skipped = err
		return nil, fileID{}, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fileID{}, nil
	}
	if err != nil {
		return nil, fileID{}, err
	}
	id, err := dirID(dir)
	if err != nil {
		dir.Close()
		return nil, fileID{}, err
	}
	return dir, id, nil
}

// dirID returns the id of an open directory.
func dirID(dir *os.File) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return fileID{}, diskError("stat", dir.Name(), err)
	}
	return idOf(&st), nil
}

// maxReadings is how many times a directory is read that changes while it is read.
const maxReadings = 3

// readNames reads the names in a directory of the site, which may be nil: the
// builds whose file is there, and those of which the names do not show whether it
// is: an interim name was there without its file, or the file was there at an
// earlier reading. On NFS a replacement takes a name away for a moment, and a
// directory is not read in one step: so it is read again if it is not as it was
// when it was opened.
func (s *siteScan) readNames(kind string, dir *os.File, opened fileID) (builds []string, unsure map[string]bool, err error) {
	unsure = make(map[string]bool)
	if dir == nil {
		return nil, unsure, nil
	}
	suffix := suffixOf(kind)
	for try := 1; ; try++ {
		all, err := dir.Readdirnames(-1)
		if err != nil {
			return nil, nil, diskError("read directory", dir.Name(), err)
		}
		for _, build := range builds {
			unsure[build] = true
		}
		builds = make([]string, 0, len(all))
		for _, name := range all {
			if of, ok := isInterimName(name); ok {
				if build, ok := buildOfFile(of, suffix); ok {
					unsure[build] = true
				}
			} else if build, ok := buildOfFile(name, suffix); ok {
				builds = append(builds, build)
			}
		}
		if len(unsure) > 0 {
			for _, build := range builds {
				delete(unsure, build)
			}
		}
		if !s.n.remote || try == maxReadings {
			return builds, unsure, nil
		}
		now, err := s.idNow(kind, dir)
		if err != nil || now == opened {
			return builds, unsure, err
		}
		opened = now
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return nil, nil, diskError("seek in directory", dir.Name(), errors.Unwrap(err))
		}
	}
}

// idNow returns the id of the open directory as the NFS server has it now.
func (s *siteScan) idNow(kind string, dir *os.File) (fileID, error) {
	if err := s.n.refresh(s.site, kind); err != nil {
		return fileID{}, err
	}
	return dirID(dir)
}

// withUnsure returns builds and those of unsure that are not among them. What is
// among them it removes from unsure.
func withUnsure(builds []string, unsure map[string]bool) []string {
	if len(unsure) == 0 {
		return builds
	}
	for _, build := range builds {
		delete(unsure, build)
	}
	for build := range unsure {
		builds = append(builds, build)
	}
	return builds
}

// openBuilds opens the artifacts or the logs of a site. On NFS the client may
// remember that one of the directories on the way was missing; opening the one
// above, from the top, makes it ask again.
func (n *nfs) openBuilds(siteID, dir string) (*os.File, error) {
	path := n.sitePath(siteID, dir)
	f, err := n.disk.openDir(path)
	if !errors.Is(err, fs.ErrNotExist) || !n.remote {
		return f, err
	}
	above := n.base
	for _, name := range []string{"", sitesDir, siteID} {
		above = filepath.Join(above, name)
		d, err := n.disk.openDir(above)
		if err != nil {
			return nil, err
		}
		d.Close()
	}
	return n.disk.openDir(path)
}
