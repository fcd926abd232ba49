package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// On NFS every change of a build excludes all others and checks the current state. On a
// local file system an unconditional change is one step and does neither.
func TestChangesLock(t *testing.T) {
	put := func(cond Precondition) func(n *nfs) error {
		return func(n *nfs) error {
			_, err := n.StoreArtifactIf("s", "b", strings.NewReader("new"), cond)
			if errors.Is(err, ErrPrecondition) && cond.CreateOnly() {
				err = nil
			}
			return err
		}
	}
	for _, c := range []struct {
		name          string
		do            func(n *nfs) error
		remote, local bool // waits for a shared lock
	}{
		{"replace", put(Precondition{}), true, false},
		{"replace if it matches", put(Precondition{IfMatch: &ETagList{Any: true}}), true, true},
		{"create", func(n *nfs) error {
			_, err := n.StoreArtifactIf("s", "fresh", strings.NewReader("new"), createOnly)
			return err
		}, true, false},
		{"delete", func(n *nfs) error { return n.DeleteArtifact("s", "b", Precondition{}) }, true, false},
		{"delete if it matches", func(n *nfs) error { return n.DeleteArtifact("s", "b", Precondition{IfMatch: &ETagList{Any: true}}) }, true, true},
	} {
		for _, remote := range []bool{true, false} {
			for _, exclusive := range []bool{true, false} {
				n := openTestNFS(t, t.TempDir())
				n.remote = remote
				mustStore(t, n, "s", "b", []byte("x"))
				build := "b"
				if c.name == "create" {
					build = "fresh"
				}
				lock, err := n.lockBuild("s", artifactsDir, build, exclusive)
				if err != nil {
					t.Fatal(err)
				}
				waits := exclusive || remote && c.remote || !remote && c.local
				done := make(chan error, 1)
				go func() { done <- c.do(n) }()
				var early bool
				if waits {
					select {
					case err = <-done:
						early = true
					case <-time.After(50 * time.Millisecond):
					}
				} else { // it must come without the lock
					err, early = <-done, true
				}
				lock.release()
				if !early {
					err = <-done
				}
				if early == waits || err != nil {
					t.Errorf("%s, remote %v, beside a lock (exclusive %v): done at once %v: %v", c.name, remote, exclusive, early, err)
				}
			}
		}
	}
}

// A delayed rename moves a build away while it is deleted. The build does not come back.
func TestDeleteBesideALateRename(t *testing.T) {
	const name = "b" + artifactSuffix
	for at := range 4 { // after so many removals
		n := openRemote(t, t.TempDir())
		mustStore(t, n, "s", "b", []byte("x"))
		artifacts := n.sitePath("s", artifactsDir)
		count := 0
		n.disk.removing = func() {
			if count++; count == at+1 {
				_ = os.Rename(filepath.Join(artifacts, name), filepath.Join(artifacts, formerName(name)))
			}
		}
		if err := n.DeleteArtifact("s", "b", Precondition{}); err != nil {
			t.Errorf("after removal %d: %v", at, err)
		}
		_, err := n.FetchArtifact("s", "b")
		wantError(t, err, ErrNotFound)
		wantFiles(t, artifacts)
	}
}

// A FIFO at the name of a build does not block a create.
func TestCreateBesideAFIFO(t *testing.T) {
	d, dir := openTestDir(t)
	if err := unix.Mkfifo(filepath.Join(dir.Name(), "target"), 0o644); err != nil {
		t.Fatal(err)
	}
	temp := sealed(t, d, dir, "ours")
	wantError(t, temp.create("target"), fs.ErrExist)
	temp.discard()
}

// If a backup made a hard link to the temporary file, a create that failed is not taken
// for one that succeeded.
func TestCreateBesideAHardLinkBackup(t *testing.T) {
	d, dir := openTestDir(t)
	temp := sealed(t, d, dir, "ours")
	if err := errors.Join(os.Link(temp.path, filepath.Join(dir.Name(), "backup")),
		os.WriteFile(filepath.Join(dir.Name(), "target"), []byte("theirs"), 0o644)); err != nil {
		t.Fatal(err)
	}
	wantError(t, temp.create("target"), fs.ErrExist)
	temp.discard()
	wantContent(t, filepath.Join(dir.Name(), "target"), "theirs")
}

// If the interim file of a build cannot be removed, the build is not removed either: the
// interim file would become the build.
func TestDeleteBesideAnInterimFileThatStays(t *testing.T) {
	for _, prefix := range []string{".new-", ".old-"} {
		for _, remote := range []bool{true, false} {
			n := openTestNFS(t, t.TempDir())
			n.remote = remote
			mustStore(t, n, "s", "b", []byte("old"))
			stuck := filepath.Join(n.sitePath("s", artifactsDir), prefix+"b"+artifactSuffix)
			if err := os.Mkdir(stuck, 0o755); err != nil { // unlink(2) does not remove it
				t.Fatal(err)
			}
			if err := n.DeleteArtifact("s", "b", Precondition{}); err == nil {
				t.Errorf("%s, remote %v: the delete succeeded", prefix, remote)
			}
			wantBytes(t, n, "s", "b", []byte("old"))
		}
	}
}

// copying is a body during which an interim file appears in the store, as when the store
// is being copied from NFS.
type copying struct {
	t    *testing.T
	path string
	read bool
}

func (c *copying) Read(p []byte) (int, error) {
	if c.read {
		return 0, io.EOF
	}
	c.read = true
	if err := os.WriteFile(c.path, []byte("copied"), 0o644); err != nil {
		c.t.Error(err)
	}
	return copy(p, "new"), nil
}

// A create also checks for an interim file at the end, and on a local file system.
func TestCreateBesideAnInterimFile(t *testing.T) {
	for _, prefix := range []string{".new-", ".old-"} {
		for _, remote := range []bool{true, false} {
			n := openTestNFS(t, t.TempDir())
			n.remote = remote
			path := filepath.Join(n.sitePath("s", artifactsDir), prefix+"b"+artifactSuffix)
			_, err := n.StoreArtifactIf("s", "b", &copying{t: t, path: path}, createOnly)
			wantError(t, err, ErrPrecondition)
			wantBytes(t, n, "s", "b", []byte("copied"))
		}
	}
}

// A create whose lock was lost is not acknowledged: its link may have fallen between two
// steps of another host.
func TestLostLockEndsACreate(t *testing.T) {
	n := openRemote(t, t.TempDir())
	mustStore(t, n, "s", "other", []byte("x"))
	dir := mustOpenBuilds(t, n)
	lock, err := n.lockBuild("s", artifactsDir, "b", true)
	if err != nil {
		t.Fatal(err)
	}
	temp := sealed(t, n.disk, dir, "new")
	defer temp.discard()
	n.disk.linking = lock.release
	wantError(t, n.createFile(change{dir: dir, siteID: "s", buildID: "b", temp: temp}, lock), ErrUnavailable)
}
