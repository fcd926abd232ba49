package main

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	shareFrom = 24                     // syncs at once from which sharing costs less than it waits
	slowSync  = 300 * time.Microsecond // for each who shares one: if it takes longer, sharing does not pay
	slowPause = time.Second            // after which it is tried again
)

// syncs makes writes durable: each by fsync(2) of its own or, when many wait at
// once, all of them by one syncfs(2), which a journalling file system answers
// with one commit. The rest of the order of atomic.go is the same: a shared
// sync only starts after those who share it have asked for it.
//
// What syncfs has against it, and what is done about it:
//   - It succeeds without syncing on most FUSE mounts, and on a network file
//     system it is not cheaper. So it is used on ext4 and xfs alone, and there on
//     files of the store's own device.
//   - Before Linux 5.8 it does not tell of write-back errors. Not used there.
//   - It tells of an error once, to whoever asks next, and not who it belongs to.
//     So an error fails all that was begun before it was told: failures counts
//     them, and who syncs compares it with what it was before the first write.
//   - It succeeds on a file system that an error made read-only, or whose journal
//     has ended (before Linux 6.13 on ext4), and before 5.17 it ignores what the
//     journal says. fsync(2) does not: one of the root follows each syncfs.
//   - It waits for all dirty data, also of others: not used while a large file is
//     being written, nor for slowPause after it took long. Where the disk is slow
//     and not the CPU, many fsyncs at once share commits of the journal as well
//     and overlap better.
type syncs struct {
	root     *os.File // of the store, open from the start, so that no error is older; nil: nothing is shared
	dev      uint64
	waiting  atomic.Int32 // in sync now
	large    atomic.Int32 // large files being written
	failures atomic.Uint64
	pause    atomic.Int64 // until when nothing is shared, in nanoseconds since the epoch
	rounds   group[struct{}, error]
	shared   func(files int) // told of each round; nil: nobody is
}

// share allows that syncs of files on the file system of root be shared, if it is
// one on which that is known to be right. It keeps root open, or closes it.
func (s *syncs) share(root *os.File, fsType int64) {
	var st unix.Stat_t
	if fsType != unix.EXT4_SUPER_MAGIC && fsType != unix.XFS_SUPER_MAGIC || !kernelAtLeast(5, 8) || unix.Fstat(int(root.Fd()), &st) != nil {
		root.Close()
		return
	}
	s.root, s.dev = root, st.Dev
}

// sync makes f durable, which is a file or directory on device dev. since is
// what failures was before the work that is to be durable began.
func (s *syncs) sync(f *os.File, dev, since uint64) error {
	waiting := s.waiting.Add(1)
	defer s.waiting.Add(-1)
	if s.root == nil || dev != s.dev || waiting < shareFrom || s.large.Load() > 0 || time.Now().UnixNano() < s.pause.Load() {
		return uninterrupted(func() error { return unix.Fsync(int(f.Fd())) })
	}
	err, _ := s.rounds.do("", struct{}{}, s.syncAll)
	if err == nil && s.failures.Load() != since {
		err = unix.EIO // it was told to the round before, and may have been ours
	}
	return err
}

func (s *syncs) syncAll(who []struct{}) error {
	if s.shared != nil {
		s.shared(len(who))
	}
	start := time.Now()
	err := uninterrupted(func() error { return unix.Syncfs(int(s.root.Fd())) })
	if err == nil {
		err = uninterrupted(func() error { return unix.Fsync(int(s.root.Fd())) })
	}
	if err != nil {
		s.failures.Add(1)
	}
	if time.Since(start) > slowSync*time.Duration(len(who)) {
		s.pause.Store(time.Now().Add(slowPause).UnixNano())
	}
	return err
}

// kernelAtLeast tells whether the kernel is of that version or a later one.
func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	parts := strings.SplitN(unix.ByteSliceToString(u.Release[:]), ".", 3)
	if len(parts) < 2 {
		return false
	}
	x, err1 := strconv.Atoi(parts[0])
	y, err2 := strconv.Atoi(strings.TrimRight(parts[1], "-+abcdefghijklmnopqrstuvwxyz"))
	return err1 == nil && err2 == nil && (x > major || x == major && y >= minor)
}
