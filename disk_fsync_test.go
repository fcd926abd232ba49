package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A pipe cannot be fsynced (EINVAL), and a shared sync of files does not touch the file.
// So the result shows which of the two was done.
func TestSyncsAreSharedOnlyWhereThatIsRight(t *testing.T) {
	_, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	dir := openDirectory(t)
	for _, test := range []struct {
		name   string
		change func(s *fsyncGroup)
		dir    *os.File // to be synced as a directory; nil: the pipe as a file
		want   error
		shared int    // files of one syncfs
		failed uint64 // failures counted
	}{
		{"many wait", func(*fsyncGroup) {}, nil, nil, 1, 0},
		{"few wait", func(s *fsyncGroup) { s.waiting.Add(-1) }, nil, unix.EINVAL, 0, 1},
		{"a large upload is under way", func(s *fsyncGroup) { s.large.Add(1) }, nil, unix.EINVAL, 0, 1},
		{"the last one was slow", func(s *fsyncGroup) { s.pause.Store(time.Now().Add(time.Hour).UnixNano()) }, nil, unix.EINVAL, 0, 1},
		{"a file of another file system", func(s *fsyncGroup) { s.dev++ }, nil, unix.EINVAL, 0, 0},
		{"nothing is shared here", func(s *fsyncGroup) { s.root = nil }, nil, unix.EINVAL, 0, 0},
		{"another sync reported an error", func(s *fsyncGroup) { s.failures.Add(1) }, nil, unix.EIO, 1, 1},
		{"the shared sync fails", func(s *fsyncGroup) { s.root.Close() }, nil, unix.EBADF, 1, 1},
		{"directory", func(*fsyncGroup) {}, dir, nil, 0, 0},
		{"directory: another sync reported an error", func(s *fsyncGroup) { s.failures.Add(1) }, dir, unix.EIO, 0, 1},
		{"directory: few wait, and another sync failed", func(s *fsyncGroup) { s.waiting.Add(-1); s.failures.Add(1) }, dir, unix.EIO, 0, 1},
		{"directory: the sync fails", func(*fsyncGroup) {}, pipe, unix.EINVAL, 0, 1},
		{"directory: few wait, and it fails", func(s *fsyncGroup) { s.waiting.Add(-1) }, pipe, unix.EINVAL, 0, 1},
		{"directory: of another file system", func(s *fsyncGroup) { s.dev++ }, pipe, unix.EINVAL, 0, 0},
	} {
		shared := 0
		s := &fsyncGroup{shared: func(files int) { shared = files }}
		s.share(openDirectory(t), unix.XFS_SUPER_MAGIC)
		if s.root == nil {
			t.Fatal("a kernel before 5.8: nothing to test here")
		}
		dev := s.dev
		s.waiting.Add(minGroupSize - 1)
		test.change(s)
		var err error
		if test.dir != nil {
			err = s.syncDir(test.dir, dev, 0)
		} else {
			err = s.sync(dev, 0, pipe)
		}
		if failed := s.failures.Load(); !errors.Is(err, test.want) || shared != test.shared || failed != test.failed {
			t.Errorf("%s: %v, %d shared, %d failed; want %v, %d, %d", test.name, err, shared, failed, test.want, test.shared, test.failed)
		}
	}
}

// Callers that wait for the same directory share a sync, and do not wait for another
// directory.
func TestSyncsOfOneDirectoryAreShared(t *testing.T) {
	s := &fsyncGroup{}
	s.share(openDirectory(t), unix.XFS_SUPER_MAGIC)
	s.waiting.Add(minGroupSize)
	one, other := openDirectory(t), openDirectory(t)
	key := strconv.FormatUint(inode(one), 36)
	holding, release := make(chan struct{}), make(chan struct{})
	var held sync.WaitGroup
	held.Go(func() {
		s.dirs.submit(key, one, func([]*os.File) error { close(holding); <-release; return nil })
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
	for _, test := range []struct {
		fsType int64
		task   string // of journal_task
		want   bool
	}{
		{unix.XFS_SUPER_MAGIC, "", true},
		{unix.EXT4_SUPER_MAGIC, "217\n", true},
		{unix.EXT4_SUPER_MAGIC, "217", true},
		{unix.EXT4_SUPER_MAGIC, "0\n", true}, // in a container
		{unix.EXT4_SUPER_MAGIC, "<none>\n", false},
		{unix.EXT4_SUPER_MAGIC, "<none>", false},
		{unix.EXT4_SUPER_MAGIC, "", false}, // ext2, a device without a name, no /sys
		{unix.EXT4_SUPER_MAGIC, "\n", false},
		{unix.EXT4_SUPER_MAGIC, "something new\n", false},
		{unix.NFS_SUPER_MAGIC, "217\n", false},
		{unix.FUSE_SUPER_MAGIC, "217\n", false},
		{unix.TMPFS_MAGIC, "217\n", false},
		{unix.OVERLAYFS_SUPER_MAGIC, "217\n", false},
		{unix.BTRFS_SUPER_MAGIC, "217\n", false},
	} {
		if got := hasJournal(test.fsType, test.task); got != test.want {
			t.Errorf("type %#x, journal_task %q: %v", test.fsType, test.task, got)
		}
	}
	if journals(unix.EXT4_SUPER_MAGIC, 0) { // no device has this number
		t.Error("ext4 on no device has a journal")
	}
}

// journals finds the right device of a real ext4.
func TestJournalOfThisFileSystem(t *testing.T) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	dir := t.TempDir()
	if err := errors.Join(unix.Statfs(dir, &fs), unix.Stat(dir, &st)); err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob("/sys/fs/ext4/*/journal_task")
	if fs.Type != unix.EXT4_SUPER_MAGIC || err != nil || len(tasks) != 1 {
		t.Skip("the answer is only known where the test is on the one ext4 of the machine")
	}
	text, err := os.ReadFile(tasks[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, want := journals(int64(fs.Type), st.Dev), !strings.HasPrefix(string(text), "<none>"); got != want {
		t.Errorf("a journal: %v, not %v", got, want)
	}
}

func TestKernelRelease(t *testing.T) {
	f := func(release string, want bool) {
		t.Helper()
		if got := releaseAtLeast(release, 5, 8); got != want {
			t.Errorf("%q is 5.8 or later: %v", release, got)
		}
	}
	f("5.8.0", true)
	f("5.8", true)
	f("5.10.0-30-amd64", true)
	f("5.15.0-91-generic", true)
	f("5.15.153.1-microsoft-standard-WSL2", true)
	f("6.0.0", true)
	f("6.1-rc3", true)
	f("6.12.48+deb13-amd64", true)
	f("10.0.1", true)
	f("5.7.19", false)
	f("5.4.0-200-generic", false)
	f("5.4.8", false)
	f("5.0.0", false)
	f("4.19.0-27-amd64", false)
	f("4.18.0-553.el8_10.x86_64", false)
	f("4.9", false)
	f("3.10.0-1160.el7.x86_64", false)
	f("", false)
	f("6", false)
	f("6.", false)
	f(".8", false)
	f("6.x", false)
	f("v6.1", false)
	f("Linux", false)
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
		if got := n.disk.fsyncs.large.Load(); got != 1 {
			t.Errorf("%d large files, not 1", got)
		}
		if err := end(temp); err != nil {
			t.Fatal(err)
		}
		temp.discard()
		if got := n.disk.fsyncs.large.Load(); got != 0 {
			t.Errorf("%d large files, not 0", got)
		}
	}
}
