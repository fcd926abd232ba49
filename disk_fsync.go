package main

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	minGroupSize = 24                     // with this many concurrent syncs or more, sharing saves more time than it costs
	slowRound    = 100 * time.Millisecond // a syncfs that takes longer probably waits for the data of others
	slowPause    = time.Second            // after a slow syncfs, none is used for this long
)

// fsyncGroup makes writes durable. A write normally gets an fsync(2) of its own. When many
// writes wait at the same time, one syncfs(2) serves many files; it costs a journalling
// file system a single commit. Likewise, one fsync(2) serves all changes of a directory.
// The order in atomic.go still holds: a shared sync starts only after all callers that
// share it have requested it.
//
// syncfs has these problems:
//   - On most FUSE mounts it succeeds without syncing, on a network file system it is not
//     cheaper, and without a journal it may miss an inode. So it is used only on xfs and
//     on ext4 with a journal, and there only for files on the device of the store.
//   - Before Linux 5.8 it does not report write-back errors. It is not used there.
//   - It reports an error once, to the next caller, and does not say which file the error
//     belongs to. So every write that began before that fails: the field failures counts
//     the errors, and each sync compares it with its value from before the first write.
//   - It succeeds on a file system that is read-only after an error, or whose journal has
//     aborted (on ext4, before Linux 6.13). Before 5.17 it also ignores the error of the
//     journal. In these cases the rename or link that follows fails, so the write is not
//     acknowledged.
//   - It waits for all dirty data, including that of others. So it is not used while a
//     large file is being written, and not for slowPause after a slow call.
type fsyncGroup struct {
	root     *os.File // of the store, opened at the start so that it sees every later error; nil: syncs are not shared
	dev      uint64
	waiting  atomic.Int32 // running syncs of files and of their directories
	large    atomic.Int32 // large files being written
	failures atomic.Uint64
	pause    atomic.Int64 // no syncfs until this time, in nanoseconds since the epoch
	files    batcher[struct{}, error]
	dirs     batcher[*os.File, error] // keyed by inode
	shared   func(files int)          // called for each shared syncfs; may be nil

	fsyncHook func(*os.File) error // replaces fsync(2); set by tests only
}

// share enables shared syncs if they are known to be safe on the file system of root. It
// takes ownership of root, and closes it if shared syncs stay disabled.
func (s *fsyncGroup) share(root *os.File, fsType int64) {
	var st unix.Stat_t
	if !kernelAtLeast(5, 8) || unix.Fstat(int(root.Fd()), &st) != nil || !journals(fsType, st.Dev) {
		root.Close()
		return
	}
	s.root, s.dev = root, st.Dev
}

// journals reports whether the file system of type fsType on device dev is known to have a
// journal.
func journals(fsType int64, dev uint64) bool {
	task := ""
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev)))
	if err == nil {
		text, _ := os.ReadFile("/sys/fs/ext4/" + path.Base(device) + "/journal_task")
		task = string(text)
	}
	return hasJournal(fsType, task)
}

// hasJournal is journals without the system calls. task is the content of
// /sys/fs/ext4/DEVICE/journal_task: the id of the process that commits the journal (in a
// container it may be 0), or <none> if there is no journal. task is empty if the file
// cannot be read. ext2 has the same type as ext4, so the type alone is not enough.
func hasJournal(fsType int64, task string) bool {
	switch fsType {
	case unix.XFS_SUPER_MAGIC:
		return true
	case unix.EXT4_SUPER_MAGIC:
		_, err := strconv.Atoi(strings.TrimSpace(task))
		return err == nil
	}
	return false
}

// sync makes files on device dev durable. since is the value of failures before the first
// write to any of them.
func (s *fsyncGroup) sync(dev, since uint64, files ...*os.File) error {
	if s.root == nil || dev != s.dev {
		return s.fsyncAll(files)
	}
	waiting := s.waiting.Add(1)
	defer s.waiting.Add(-1)
	var err error
	if waiting < minGroupSize || s.large.Load() > 0 || time.Now().UnixNano() < s.pause.Load() {
		err = s.count(s.fsyncAll(files))
	} else {
		err, _ = s.files.submit("", struct{}{}, s.syncAll)
	}
	return s.judge(err, since)
}

// syncDir is like sync, for the changes in the directory dir.
func (s *fsyncGroup) syncDir(dir *os.File, dev, since uint64) error {
	if s.root == nil || dev != s.dev {
		return s.fsync(dir)
	}
	waiting := s.waiting.Add(1)
	defer s.waiting.Add(-1)
	var err error
	if ino := inode(dir); waiting < minGroupSize || ino == 0 {
		err = s.count(s.fsync(dir))
	} else {
		err, _ = s.dirs.submit(strconv.FormatUint(ino, 36), dir, func(dirs []*os.File) error {
			return s.count(s.fsync(dirs[0]))
		})
	}
	return s.judge(err, since)
}

// syncAll serves a batch of waiting files with one syncfs(2).
func (s *fsyncGroup) syncAll(files []struct{}) error {
	if s.shared != nil {
		s.shared(len(files))
	}
	start := time.Now()
	err := retryEINTR(func() error { return unix.Syncfs(int(s.root.Fd())) })
	if time.Since(start) > slowRound {
		s.pause.Store(time.Now().Add(slowPause).UnixNano())
	}
	return s.count(err)
}

// count counts err if it is not nil, and returns it.
func (s *fsyncGroup) count(err error) error {
	if err != nil {
		s.failures.Add(1)
	}
	return err
}

// judge returns err. If err is nil but another sync has failed since the write began, it
// returns EIO, because that error may belong to this write.
func (s *fsyncGroup) judge(err error, since uint64) error {
	if err == nil && s.failures.Load() != since {
		return unix.EIO
	}
	return err
}

// fsync is fsync(2) of a file or a directory. All fsyncs of the store go through it.
func (s *fsyncGroup) fsync(f *os.File) error {
	if s.fsyncHook != nil {
		return s.fsyncHook(f)
	}
	return retryEINTR(func() error { return unix.Fsync(int(f.Fd())) })
}

// fsyncAll is fsync of each of files. The write-back of all starts first, so that a journalling
// file system needs a single commit.
func (s *fsyncGroup) fsyncAll(files []*os.File) error {
	for _, f := range files[1:] {
		_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE) // fsync reports every error
	}
	for _, f := range files {
		if err := s.fsync(f); err != nil {
			return err
		}
	}
	return nil
}

// kernelAtLeast reports whether the kernel has at least that version.
func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	return unix.Uname(&u) == nil && releaseAtLeast(unix.ByteSliceToString(u.Release[:]), major, minor)
}

// releaseAtLeast reports whether release, in the format of uname(2) (6.12.48-amd64,
// 5.15.0-91-generic, 6.1-rc3), is at least that version. It returns false if it cannot
// parse release.
func releaseAtLeast(release string, major, minor int) bool {
	first, rest, ok := strings.Cut(release, ".")
	if !ok {
		return false
	}
	if end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
		rest = rest[:end]
	}
	x, err1 := strconv.Atoi(first)
	y, err2 := strconv.Atoi(rest)
	return err1 == nil && err2 == nil && (x > major || x == major && y >= minor)
}
