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
	minGroupSize = 24                     // syncs at once from which sharing costs less than it waits
	slowRound    = 100 * time.Millisecond // a shared sync that takes longer waits for the data of others
	slowPause    = time.Second            // after which it is tried again
)

// fsyncGroup makes writes durable: each by fsync(2) of its own or, when many wait at
// once, those of many files by one syncfs(2), which a journalling file system
// answers with one commit, and those of one directory by one fsync(2). The order
// of atomic.go stays: a shared sync only starts after those who share it have
// asked for it.
//
// What syncfs has against it, and what is done about it:
//   - It succeeds without syncing on most FUSE mounts, on a network file system
//     it is not cheaper, and without a journal it may leave out an inode. So it is
//     used on xfs and on ext4 with a journal alone, and there on files of the
//     store's own device.
//   - Before Linux 5.8 it does not tell of write-back errors. Not used there.
//   - It tells of an error once, to whoever asks next, and not who it belongs to.
//     So an error fails all that was begun before it was told: failures counts
//     them, and who syncs compares it with what it was before the first write.
//   - It succeeds on a file system that an error made read-only, or whose journal
//     has ended (before Linux 6.13 on ext4), and before 5.17 it ignores what the
//     journal says. The rename or link fails there, without which nothing is
//     acknowledged.
//   - It waits for all dirty data, also of others: not used while a large file is
//     being written, nor for slowPause after it took long.
type fsyncGroup struct {
	root     *os.File // of the store, open from the start, so that no error is older; nil: nothing is shared
	dev      uint64
	waiting  atomic.Int32 // syncs of written files and of their directories under way
	large    atomic.Int32 // large files being written
	failures atomic.Uint64
	pause    atomic.Int64 // until when no syncfs is shared, in nanoseconds since the epoch
	files    batcher[struct{}, error]
	dirs     batcher[*os.File, error] // by inode
	shared   func(files int)          // told of each shared syncfs; nil: nobody is

	fsyncHook func(*os.File) error // called in place of fsync(2); set by tests only
}

// share allows that syncs on the file system of root be shared, if it is one on
// which that is known to be right. It keeps root open, or closes it.
func (s *fsyncGroup) share(root *os.File, fsType int64) {
	var st unix.Stat_t
	if !kernelAtLeast(5, 8) || unix.Fstat(int(root.Fd()), &st) != nil || !journals(fsType, st.Dev) {
		root.Close()
		return
	}
	s.root, s.dev = root, st.Dev
}

// journals reports whether the file system of that type on device dev is known to
// have a journal.
func journals(fsType int64, dev uint64) bool {
	task := ""
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev)))
	if err == nil {
		text, _ := os.ReadFile("/sys/fs/ext4/" + path.Base(device) + "/journal_task")
		task = string(text)
	}
	return hasJournal(fsType, task)
}

// hasJournal is the decision of journals. task is what /sys/fs/ext4/DEVICE/journal_task
// has: the number of the process that commits, 0 seen from a container, or <none>
// without a journal; empty: it cannot be read. The type of ext4 is that of ext2
// too, so the type alone does not decide.
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

// sync makes the file f durable, which is on device dev. since is what failures
// was before the work that is to be durable began.
func (s *fsyncGroup) sync(f *os.File, dev, since uint64) error {
	if s.root == nil || dev != s.dev {
		return s.fsync(f)
	}
	waiting := s.waiting.Add(1)
	defer s.waiting.Add(-1)
	var err error
	if waiting < minGroupSize || s.large.Load() > 0 || time.Now().UnixNano() < s.pause.Load() {
		err = s.count(s.fsync(f))
	} else {
		err, _ = s.files.submit("", struct{}{}, s.syncAll)
	}
	return s.judge(err, since)
}

// syncDir makes what was done in dir durable, as sync does.
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

func (s *fsyncGroup) syncAll(who []struct{}) error {
	if s.shared != nil {
		s.shared(len(who))
	}
	start := time.Now()
	err := retryEINTR(func() error { return unix.Syncfs(int(s.root.Fd())) })
	if time.Since(start) > slowRound {
		s.pause.Store(time.Now().Add(slowPause).UnixNano())
	}
	return s.count(err)
}

// count counts the failure of a sync.
func (s *fsyncGroup) count(err error) error {
	if err != nil {
		s.failures.Add(1)
	}
	return err
}

// judge is err, or the error that another sync since then was told of: it may
// have been ours.
func (s *fsyncGroup) judge(err error, since uint64) error {
	if err == nil && s.failures.Load() != since {
		return unix.EIO
	}
	return err
}

// fsync is fsync(2), of a file or of a directory. All fsyncs of the store pass here.
func (s *fsyncGroup) fsync(f *os.File) error {
	if s.fsyncHook != nil {
		return s.fsyncHook(f)
	}
	return retryEINTR(func() error { return unix.Fsync(int(f.Fd())) })
}

// kernelAtLeast reports whether the kernel is of that version or a later one.
func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	return unix.Uname(&u) == nil && releaseAtLeast(unix.ByteSliceToString(u.Release[:]), major, minor)
}

// releaseAtLeast reports whether release, as uname(2) has it (6.12.48-amd64,
// 5.15.0-91-generic, 6.1-rc3), is of that version or a later one. What it cannot
// read is of none.
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
