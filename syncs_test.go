package main

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A pipe cannot be fsynced (EINVAL), and a shared sync of files does not touch
// the file: so what came of it tells which of the two was done.
func TestSyncsAreSharedOnlyWhereThatIsRight(t *testing.T) {
	_, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	dir := openDirectory(t)
	for _, test := range []struct {
		name   string
		change func(s *syncs)
		dir    *os.File // to be synced as a directory; nil: the pipe as a file
		want   error
		shared int    // files of one syncfs
		failed uint64 // failures counted
	}{
		{"many wait", func(*syncs) {}, nil, nil, 1, 0},
		{"few wait", func(s *syncs) { s.waiting.Add(-1) }, nil, unix.EINVAL, 0, 1},
		{"a large upload is under way", func(s *syncs) { s.large.Add(1) }, nil, unix.EINVAL, 0, 1},
		{"the last one was slow", func(s *syncs) { s.pause.Store(time.Now().Add(time.Hour).UnixNano()) }, nil, unix.EINVAL, 0, 1},
		{"a file of another file system", func(s *syncs) { s.dev++ }, nil, unix.EINVAL, 0, 0},
		{"nothing is shared here", func(s *syncs) { s.root = nil }, nil, unix.EINVAL, 0, 0},
		{"an error was told to another", func(s *syncs) { s.failures.Add(1) }, nil, unix.EIO, 1, 1},
		{"the shared sync fails", func(s *syncs) { s.root.Close() }, nil, unix.EBADF, 1, 1},
		{"directory", func(*syncs) {}, dir, nil, 0, 0},
		{"directory: an error was told to another", func(s *syncs) { s.failures.Add(1) }, dir, unix.EIO, 0, 1},
		{"directory: few wait, and another was told", func(s *syncs) { s.waiting.Add(-1); s.failures.Add(1) }, dir, unix.EIO, 0, 1},
		{"directory: the sync fails", func(*syncs) {}, pipe, unix.EINVAL, 0, 1},
		{"directory: few wait, and it fails", func(s *syncs) { s.waiting.Add(-1) }, pipe, unix.EINVAL, 0, 1},
		{"directory: of another file system", func(s *syncs) { s.dev++ }, pipe, unix.EINVAL, 0, 0},
	} {
		shared := 0
		s := &syncs{shared: func(files int) { shared = files }}
		s.share(openDirectory(t), unix.XFS_SUPER_MAGIC)
		if s.root == nil {
			t.Fatal("a kernel before 5.8: nothing to test here")
		}
		dev := s.dev
		s.waiting.Add(shareFrom - 1)
		test.change(s)
		var err error
		if test.dir != nil {
			err = s.syncDir(test.dir, dev, 0)
		} else {
			err = s.sync(pipe, dev, 0)
		}
		if failed := s.failures.Load(); !errors.Is(err, test.want) || shared != test.shared || failed != test.failed {
			t.Errorf("%s: %v, %d shared, %d failed; want %v, %d, %d", test.name, err, shared, failed, test.want, test.shared, test.failed)
		}
	}
}

// Those who wait for one directory share a sync; nobody waits for another one's.
func TestSyncsOfOneDirectoryAreShared(t *testing.T) {
	s := &syncs{}
	s.share(openDirectory(t), unix.XFS_SUPER_MAGIC)
	s.waiting.Add(shareFrom)
	one, other := openDirectory(t), openDirectory(t)
	key := strconv.FormatUint(inode(one), 36)
	holding, release := make(chan struct{}), make(chan struct{})
	var held sync.WaitGroup
	held.Go(func() {
		s.dirs.do(key, one, func([]*os.File) error { close(holding); <-release; return nil })
	})
	<-holding
	for range 3 {
		held.Go(func() {
			if err := s.syncDir(one, s.dev, 0); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "three wait for the next sync", func() bool {
		s.dirs.mu.Lock()
		defer s.dirs.mu.Unlock()
		next := s.dirs.queues[key].next
		return next != nil && len(next.items) == 3
	})
	if err := s.syncDir(other, s.dev, 0); err != nil { // hangs if it waits for the one that is held
		t.Error(err)
	}
	close(release)
	held.Wait()
}

func TestFileSystemsWithAJournal(t *testing.T) {
	for fsType, want := range map[int64]bool{
		unix.XFS_SUPER_MAGIC: true, unix.NFS_SUPER_MAGIC: false, unix.FUSE_SUPER_MAGIC: false, unix.TMPFS_MAGIC: false,
		unix.OVERLAYFS_SUPER_MAGIC: false, unix.EXT4_SUPER_MAGIC: false, // of a device that there is not
	} {
		if got := journals(fsType, 0); got != want {
			t.Errorf("type %#x: %v", fsType, got)
		}
	}
}

func openDirectory(t *testing.T) *os.File {
	t.Helper()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

func TestLargeFilesAreCountedWhileTheyAreWritten(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	dir, err := n.disk.ensureDir(n.base, sitesDir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, end := range []func(*tempFile) error{
		func(temp *tempFile) error { _, err := temp.seal(); return err },
		func(temp *tempFile) error { temp.discard(); return nil },
	} {
		temp, err := n.disk.createTemp(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := temp.ReadFrom(bytes.NewReader(make([]byte, 2*reserveMin))); err != nil {
			t.Fatal(err)
		}
		if got := n.disk.syncs.large.Load(); got != 1 {
			t.Errorf("%d large files, not 1", got)
		}
		if err := end(temp); err != nil {
			t.Fatal(err)
		}
		temp.discard()
		if got := n.disk.syncs.large.Load(); got != 0 {
			t.Errorf("%d large files, not 0", got)
		}
	}
}
