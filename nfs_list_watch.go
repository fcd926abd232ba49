package main

import (
	"encoding/binary"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How a list learns which artifacts of a large site changed, without a stat of all of them:
// inotify(7), on the directory of the artifacts.
//
// A list shows every change that was acknowledged before it was requested, because
//
//   - the kernel queues the event inside the system call that makes the change (fsnotify_move,
//     fsnotify_link, fsnotify_delete in fs/namei.c; fsnotify_change in fs/attr.c). If the call
//     has returned, the event is in the queue. This is why a library that reads the queue in
//     a goroutine does not fit: its channel may not have the event yet.
//   - the watch is on the inode, so changes by other processes, in other containers and through
//     bind mounts have events too. Changes by other hosts have none: only file systems that
//     isLocal knows are watched.
//   - add runs before the names are read that the events keep up to date. A change is in what
//     is read, or it has an event, or both.
//   - a list first opens the directory by its path, then drains the queue, and then looks at
//     the changed files. Events that come later are for the next list.
//   - if events may be missing, the list reads the directory and looks at all files, as
//     without a watch, and adds a new watch first: the queue overflowed, the watch is gone, the
//     path leads to another directory, or the time of the directory changed without an event.
//
// The inode of a watched directory cannot become another directory: as long as the watch
// exists it keeps the inode, and IN_IGNORED is queued before the inode is free.
//
// A file that somebody writes in place, which this service never does, has an event when it is
// written and, for mmap(2), when it is closed. Only writes through another name (a hard link, or
// open_by_handle_at(2), as an NFS server on this host may use it) have none.

// watchMask selects the events. Writes to temporary files have events as well. The kernel
// merges those of one upload, unless another event comes between.
const watchMask = unix.IN_CREATE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE |
	unix.IN_ATTRIB | unix.IN_MODIFY | unix.IN_CLOSE_WRITE

const (
	watchedSite  = largeSite  // builds from which a site is watched; listCacheBytes bounds the number of such sites
	maxChanged   = 8192       // changed builds that are noted, of all sites together
	eventsBuffer = 16 << 10   // bytes
	casefold     = 0x40000000 // FS_CASEFOLD_FL of linux/fs.h
)

// dirWatches is an inotify instance. It is safe for concurrent use.
type dirWatches struct {
	sizeFrom int                                                        // watchedSite
	limit    int                                                        // maxChanged
	addWatch func(fd int, path string, mask uint32) (wd int, err error) // inotify_add_watch(2)
	warn     sync.Once
	start    time.Time

	mu      sync.Mutex
	fd      int                 // -1 until the first watch
	watches map[int32]*dirWatch // by watch descriptor
	noted   int                 // builds in all of them
	buf     []byte
}

// dirWatch is the watch of one directory. The fields below ino are guarded by dirWatches.mu.
type dirWatch struct {
	wd       int32
	dev, ino uint64

	changed map[string]time.Duration // builds, and when their last event was read
	any     bool                     // an event came since the last list
	lost    bool                     // events may be missing, for good: the next reading needs a new watch
}

func newDirWatches() *dirWatches {
	return &dirWatches{sizeFrom: watchedSite, limit: maxChanged, addWatch: unix.InotifyAddWatch, start: time.Now(),
		fd: -1, watches: make(map[int32]*dirWatch)}
}

// updateArtifacts updates the cached state of the artifacts. dir has this id and may be nil.
// It was opened after the list was requested.
func (s *siteScan) updateArtifacts(dir *os.File, id fileID) error {
	w, known := s.n.lists.watches, &s.ix.artifacts
	if s.ix.watch == nil && known.unchanged(id) {
		return nil
	}
	if builds, ok := w.changes(s.ix.watch, dir, id != known.id); ok {
		known.see(id, s.seen, s.start, s.storeTime)
		return s.checkArtifacts(dir, builds)
	}
	if s.ix.watch != nil {
		s.n.log.Debug("events of a directory may be missing; looking at all of its files", "site", s.site)
		w.remove(s.ix.watch)
		s.ix.watch = nil
	}
	if !s.n.remote && len(known.files) >= w.sizeFrom {
		s.ix.watch = w.add(dir, s.n.log)
	}
	return s.readArtifacts(dir, id)
}

// checkArtifacts looks at the artifacts of builds, each of which may have changed, appeared or
// gone.
func (s *siteScan) checkArtifacts(dir *os.File, builds []string) error {
	if err := s.run.sized(len(builds)); err != nil {
		return err
	}
	files := s.ix.artifacts.files
	for _, build := range builds {
		st, err := s.statArtifact(dir, build, false)
		if err == nil && st.Mode == 0 { // it may be at an interim name
			st, err = s.statArtifact(dir, build, true)
		}
		if err != nil {
			return err
		}
		now, f := builtAt{st.Size, st.Mtim.Nano()}, files[build]
		switch {
		case st.Mode&unix.S_IFMT != unix.S_IFREG:
			if f == nil {
				continue
			}
			delete(files, build)
		case f == nil:
			files[build] = &dirFile[builtAt]{value: now}
		case f.value == now:
			continue
		default:
			f.value = now
		}
		s.ix.move(build)
	}
	return nil
}

// add watches dir, which may be nil. It returns nil if it cannot.
func (w *dirWatches) add(dir *os.File, log *slog.Logger) *dirWatch {
	var st unix.Stat_t
	if dir == nil || !hasEvents(dir) || unix.Fstat(int(dir.Fd()), &st) != nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	wd, err := w.addLocked(dir)
	if err != nil { // EMFILE, ENOSPC: the limits of inotify(7); EPERM, EACCES: seccomp, SELinux; ENOENT: no /proc
		w.warn.Do(func() {
			log.Warn("cannot watch a directory; lists of large sites take more CPU", "path", dir.Name(), "error", err)
		})
		return nil
	}
	if w.watches[wd] != nil {
		return nil // before Linux 4.18, which does not know IN_MASK_CREATE
	}
	d := &dirWatch{wd: wd, dev: st.Dev, ino: st.Ino, changed: make(map[string]time.Duration)}
	w.watches[wd] = d
	return d
}

// addLocked creates the watch, and the instance if necessary. It fails if the directory is
// already watched under the path of another site.
func (w *dirWatches) addLocked(dir *os.File) (int32, error) {
	if w.fd < 0 {
		fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
		if err != nil {
			return 0, os.NewSyscallError("inotify_init1", err)
		}
		w.fd, w.buf = fd, make([]byte, eventsBuffer)
		runtime.AddCleanup(w, func(fd int) { unix.Close(fd) }, fd)
	}
	// Not by the path of the directory: there may be another one by now.
	wd, err := w.addWatch(w.fd, "/proc/self/fd/"+strconv.Itoa(int(dir.Fd())), watchMask|unix.IN_ONLYDIR|unix.IN_MASK_CREATE)
	return int32(wd), os.NewSyscallError("inotify_add_watch", err)
}

// hasEvents reports whether every change in dir has an event with the name that a reading of
// dir shows. That is so if no other host changes dir, and names in it are case-sensitive
// (not chattr(1), +F).
func hasEvents(dir *os.File) bool {
	var st unix.Statfs_t
	if retryEINTR(func() error { return unix.Fstatfs(int(dir.Fd()), &st) }) != nil || !isLocal(int64(st.Type)) {
		return false
	}
	flags, err := unix.IoctlGetUint32(int(dir.Fd()), unix.FS_IOC_GETFLAGS)
	return err != nil || flags&casefold == 0
}

// remove ends a watch, which may be nil. Events of it that are still queued are ignored.
func (w *dirWatches) remove(d *dirWatch) {
	if d == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lose(d)
	delete(w.watches, d.wd)
	_, _ = unix.InotifyRmWatch(w.fd, uint32(d.wd)) // EINVAL: the kernel removed it
}

// changes returns the builds that may have changed since the last call. ok is false if it
// cannot know. newID says that the id of the directory changed since the last list.
//
// A build is returned again for a while: the kernel may queue an event just before others see
// the change (unlink before Linux 5.17, commit a37d9a17f099).
func (w *dirWatches) changes(d *dirWatch, dir *os.File, newID bool) (builds []string, ok bool) {
	var st unix.Stat_t
	if d == nil || dir == nil || unix.Fstat(int(dir.Fd()), &st) != nil || st.Dev != d.dev || st.Ino != d.ino {
		return nil, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Since(w.start)
	w.drain(now)
	if d.lost || newID && !d.any {
		return nil, false
	}
	d.any = false
	for build, at := range d.changed {
		builds = append(builds, build)
		if now-at >= mtimeGranularity {
			delete(d.changed, build)
			w.noted--
		}
	}
	return builds, true
}

// drain notes all events in the queue. The caller holds mu.
func (w *dirWatches) drain(now time.Duration) {
	for {
		n, err := unix.Read(w.fd, w.buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return
		case err != nil || n <= 0:
			w.loseAll()
			return
		}
		for b := w.buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			word := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
			end := unix.SizeofInotifyEvent + int(word(12))
			w.note(int32(word(0)), word(4), unix.ByteSliceToString(b[unix.SizeofInotifyEvent:end]), now)
			b = b[end:]
		}
	}
}

// note notes one event. The caller holds mu.
func (w *dirWatches) note(wd int32, mask uint32, name string, now time.Duration) {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		w.loseAll()
		return
	}
	d := w.watches[wd]
	if d == nil || d.lost {
		return
	}
	d.any = true
	if mask&unix.IN_IGNORED != 0 {
		w.lose(d)
		return
	}
	if of, ok := isInterimName(name); ok {
		name = of
	}
	build, ok := buildOfFile(name, artifactSuffix)
	if !ok {
		return
	}
	if _, known := d.changed[build]; !known {
		if w.noted >= w.limit { // as if the queue had overflowed
			w.loseAll()
			return
		}
		w.noted++
	}
	d.changed[build] = now
}

// lose gives up a watch: its events are not complete. The caller holds mu.
func (w *dirWatches) lose(d *dirWatch) {
	w.noted -= len(d.changed)
	d.changed, d.lost = nil, true
}

// loseAll gives up all watches. The caller holds mu.
func (w *dirWatches) loseAll() {
	for _, d := range w.watches {
		w.lose(d)
	}
}
