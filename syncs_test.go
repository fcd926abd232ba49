package main

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A pipe cannot be fsynced (EINVAL), and a shared sync does not touch the file:
// so what came of it tells which of the two was done.
func TestSyncsAreSharedOnlyWhereThatIsRight(t *testing.T) {
	_, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	f := func(name string, want error, change func(s *syncs)) {
		t.Helper()
		root, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		s := &syncs{}
		s.share(root, unix.EXT4_SUPER_MAGIC)
		if s.root == nil {
			t.Fatal("a kernel before 5.8: nothing to test here")
		}
		dev, since := s.dev, s.failures.Load()
		s.waiting.Add(shareFrom)
		change(s)
		if err := s.sync(pipe, dev, since); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	f("many wait", nil, func(*syncs) {})
	f("few wait", unix.EINVAL, func(s *syncs) { s.waiting.Add(-2) })
	f("a large upload is under way", unix.EINVAL, func(s *syncs) { s.large.Add(1) })
	f("a file of another file system", unix.EINVAL, func(s *syncs) { s.dev++ })
	f("the last one was slow", unix.EINVAL, func(s *syncs) { s.pause.Store(time.Now().Add(time.Hour).UnixNano()) })
	f("an error was told to another", unix.EIO, func(s *syncs) { s.failures.Add(1) })
	f("the sync fails", unix.EBADF, func(s *syncs) { s.root.Close() })

	dir := func(name string, want error, change func(s *syncs)) {
		t.Helper()
		root, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		s := &syncs{root: root}
		var st unix.Stat_t
		if err := unix.Fstat(int(pipe.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		s.dev = st.Dev
		s.waiting.Add(shareFrom)
		since := s.failures.Load()
		change(s)
		if err := s.syncDir(pipe, st.Dev, since); !errors.Is(err, want) {
			t.Errorf("directory: %s: %v, want %v", name, err, want)
		}
		counted := s.failures.Load() - since
		if shared := s.shares(s.waiting.Load()+1, st.Dev); shared != (counted > 0) {
			t.Errorf("directory: %s: %d failures counted", name, counted)
		}
	}
	dir("shared, and it fails", unix.EINVAL, func(*syncs) {})
	dir("few wait", unix.EINVAL, func(s *syncs) { s.waiting.Add(-2) })
	dir("of another file system", unix.EINVAL, func(s *syncs) { s.dev++ })
	dir("nothing is shared", unix.EINVAL, func(s *syncs) { s.root = nil })

	for _, fsType := range []int64{unix.NFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC} {
		root, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		s := &syncs{}
		if s.share(root, fsType); s.root != nil {
			t.Errorf("shared on a file system of type %#x", fsType)
		}
	}
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
