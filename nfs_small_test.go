package main

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Each request checks the cached small artifacts, so that changes by other processes are
// seen.
func TestKeptSmallArtifactsFollowOtherProcesses(t *testing.T) {
	base := t.TempDir()
	ours, theirs := openTestNFS(t, base), openTestNFS(t, base)
	ours.small = newSmallFiles(true)
	f := func(want string) {
		t.Helper()
		for range 3 {
			r, err := ours.FetchArtifact("s", "b")
			if want == "" {
				if !errors.Is(err, ErrNotFound) {
					t.Fatalf("a deleted build: %v", err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || string(got) != want {
				t.Fatalf("%.20q, not %.20q: %v", got, want, err)
			}
			_, inMemory := r.(MemoryReader)
			if small := len(want) <= smallSize; inMemory != small {
				t.Errorf("%d bytes: in memory %v", len(want), inMemory)
			}
			info, err := ours.StatArtifact("s", "b")
			if err != nil || info != r.(ArtifactReader).Info() {
				t.Errorf("stat says %v, the reader %v: %v", info, r.(ArtifactReader).Info(), err)
			}
			r.Close()
		}
	}
	for _, content := range []string{"first", "other", strings.Repeat("x", smallSize), strings.Repeat("y", smallSize+1), "small again", ""} {
		if content == "" {
			if err := theirs.DeleteArtifact("s", "b", Precondition{}); err != nil {
				t.Fatal(err)
			}
		} else if err := theirs.StoreArtifact("s", "b", strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		f(content)
	}
}

// Small artifacts are cached only where one stat(2) shows every change.
func TestSmallArtifactsAreKeptOnLocalFileSystemsOnly(t *testing.T) {
	for fsType, want := range map[int64]bool{
		unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true, unix.TMPFS_MAGIC: true,
		unix.NFS_SUPER_MAGIC: false, unix.FUSE_SUPER_MAGIC: false, unix.SMB2_SUPER_MAGIC: false, unix.OVERLAYFS_SUPER_MAGIC: false,
	} {
		local := kindOfFS(fsType) == fsLocal
		if local != want {
			t.Errorf("type %#x is local: %v", fsType, local)
		}
		n := openTestNFS(t, t.TempDir())
		n.small = newSmallFiles(local)
		mustStore(t, n, "s", "b", []byte("x"))
		wantBytes(t, n, "s", "b", []byte("x"))
		if kept := n.small.get(n.sitePath("s", artifactsDir)+"/"+fileName(artifactsDir, "b")) != nil; kept != want {
			t.Errorf("type %#x: a small artifact is kept: %v", fsType, kept)
		}
	}
}

// A file that was written to in place, with its modification time restored, is seen as
// changed by its change time, which no program can set.
func TestKeptSmallArtifactIsNotServedForOtherContent(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	n.small = newSmallFiles(true)
	mustStore(t, n, "s", "b", []byte("one"))
	wantBytes(t, n, "s", "b", []byte("one"))
	path := n.sitePath("s", artifactsDir) + "/" + fileName(artifactsDir, "b")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	kept := n.small.get(path)
	if kept == nil {
		t.Fatal("it is not kept")
	}
	eventually(t, "the change time moves", func() bool { // a clock of the kernel may stand still for 10 ms
		if err := errors.Join(os.WriteFile(path, []byte("two"), 0o644), os.Chtimes(path, before.ModTime(), before.ModTime())); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Ino != kept.ino || st.Mtim != kept.mtim {
			t.Fatalf("more than the content changed: %+v", st)
		}
		return st.Ctim != kept.ctim
	})
	wantBytes(t, n, "s", "b", []byte("two"))
}

// On NFS attributes are not cached either: stat(2) does not show that another host
// replaced or deleted the build.
func TestStatsAreCachedOnLocalFileSystemsOnly(t *testing.T) {
	for _, local := range []bool{true, false} {
		n := openTestNFS(t, t.TempDir())
		n.remote, n.small = !local, newSmallFiles(local)
		mustStore(t, n, "s", "b", []byte("x"))
		if _, err := n.StatArtifact("s", "b"); err != nil {
			t.Fatal(err)
		}
		if kept := n.small.info(n.sitePath("s", artifactsDir)+"/"+fileName(artifactsDir, "b")) != nil; kept != local {
			t.Errorf("local %v: attributes are cached: %v", local, kept)
		}
	}
}

// Each request checks the cached attributes, so that replacements and deletes by other
// processes are seen.
func TestCachedStatsFollowOtherProcesses(t *testing.T) {
	base := t.TempDir()
	ours, theirs := openTestNFS(t, base), openTestNFS(t, base)
	ours.small = newSmallFiles(true)
	for _, content := range []string{"first", "other", strings.Repeat("x", smallSize+1), strings.Repeat("y", smallSize+1)} {
		want := mustStoreIf(t, theirs, "s", "b", []byte(content), Precondition{})
		for range 2 {
			if info, err := ours.StatArtifact("s", "b"); err != nil || info != want {
				t.Errorf("stat says %+v, the upload %+v: %v", info, want, err)
			}
		}
	}
	if err := theirs.DeleteArtifact("s", "b", Precondition{}); err != nil {
		t.Fatal(err)
	}
	_, err := ours.StatArtifact("s", "b")
	wantError(t, err, ErrNotFound)
}
