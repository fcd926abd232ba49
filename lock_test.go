package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// free tells whether a lock could be had at once.
func free(t *testing.T, base, site, dir, build string, kind int16) bool {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(base, sitesDir, site, lockName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	switch err := lockFile(f, unix.F_OFD_SETLK, kind, lockRegion(dir, build)); err {
	case nil:
		return true
	case unix.EAGAIN, unix.EACCES:
		return false
	default:
		t.Fatal(err)
		return false
	}
}

func TestLocks(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	f := func(exclusive bool, dir, build string, sharedFree, exclusiveFree bool) {
		t.Helper()
		lock, err := n.lockBuild("s", artifactsDir, "b", exclusive)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.release()
		if err := lock.alive(); err != nil {
			t.Errorf("a lock that is held is not alive: %v", err)
		}
		if got := free(t, base, "s", dir, build, unix.F_RDLCK); got != sharedFree {
			t.Errorf("beside a lock (exclusive: %v) a shared one of %s/%s is free: %v", exclusive, dir, build, got)
		}
		if got := free(t, base, "s", dir, build, unix.F_WRLCK); got != exclusiveFree {
			t.Errorf("beside a lock (exclusive: %v) an exclusive one of %s/%s is free: %v", exclusive, dir, build, got)
		}
		lock.release()
		if !free(t, base, "s", dir, build, unix.F_WRLCK) {
			t.Error("a released lock is still held")
		}
	}
	f(true, artifactsDir, "b", false, false)
	f(false, artifactsDir, "b", true, false)
	f(true, artifactsDir, "b2", true, true)
	f(true, logsDir, "b", true, true)
}

func TestLostLockIsNotAlive(t *testing.T) {
	lock, err := openTestNFS(t, t.TempDir()).lockBuild("s", logsDir, "b", true)
	if err != nil {
		t.Fatal(err)
	}
	lock.release()
	wantError(t, lock.alive(), ErrUnavailable)
}

// Waiters get their turn, one at a time, whatever process they are of.
func TestLockWaiters(t *testing.T) {
	base := t.TempDir()
	stores := []*nfs{openTestNFS(t, base), openTestNFS(t, base)}
	const waiters = 2 * maxBuildWaiters
	done := make(chan error, waiters)
	var inside atomic.Int64
	for i := range waiters {
		go func() {
			lock, err := stores[i%2].lockBuild("s", logsDir, "b", true)
			if err == nil {
				if now := inside.Add(1); now != 1 {
					t.Errorf("%d are inside", now)
				}
				inside.Add(-1)
				lock.release()
			}
			done <- err
		}()
	}
	for range waiters {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// The lock file is one and the same for ever.
func TestLockFileStays(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	path := filepath.Join(base, sitesDir, "s", lockName)
	mustStore(t, n, "s", "b", []byte("x"))
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	mustLog(t, n, "s", entry("1", "b", testTime))
	if err := n.DeleteArtifact("s", "b", Precondition{}); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(path)
	if err != nil || !os.SameFile(before, after) || after.Size() != 0 {
		t.Errorf("the lock file changed: %v, %v", after, err)
	}
}

// Looking at a site, or deleting from it, does not make it.
func TestUnknownSiteIsNotMade(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	if err := n.DeleteArtifact("s", "b", Precondition{}); err != nil {
		t.Error(err)
	}
	wantError(t, n.DeleteArtifact("s", "b", exists), ErrPrecondition)
	_, err := n.FetchArtifact("s", "b")
	wantError(t, err, ErrNotFound)
	if _, err := n.ListVersions("s"); err != nil {
		t.Error(err)
	}
	wantFiles(t, base)
}

// On a local store a change of a build waits for whoever looks and then changes,
// and one on a condition waits for every other change too.
func TestChangesWaitForTheLockOfTheBuild(t *testing.T) {
	const (
		waits   = true
		goesOn  = false
		content = "new"
	)
	store := func(cond func(ArtifactInfo) Precondition) func(*nfs, ArtifactInfo) error {
		return func(n *nfs, old ArtifactInfo) error {
			_, err := n.StoreArtifactIf("s", "b", strings.NewReader(content), cond(old))
			return err
		}
	}
	remove := func(cond func(ArtifactInfo) Precondition) func(*nfs, ArtifactInfo) error {
		return func(n *nfs, old ArtifactInfo) error { return n.DeleteArtifact("s", "b", cond(old)) }
	}
	none := func(ArtifactInfo) Precondition { return Precondition{} }
	its := func(old ArtifactInfo) Precondition { return ifMatch(old.ETag) }
	since := func(old ArtifactInfo) Precondition { return Precondition{IfUnmodifiedSince: old.ModTime} }
	create := func(ArtifactInfo) Precondition { return createOnly }
	for _, c := range []struct {
		name              string
		change            func(*nfs, ArtifactInfo) error
		creates           bool // nothing is there before
		shared, exclusive bool // whether it waits for a lock of that kind
		after             string
	}{
		{"upload", store(none), false, goesOn, waits, content},
		{"upload with If-Match", store(its), false, waits, waits, content},
		{"upload with If-Unmodified-Since", store(since), false, waits, waits, content},
		{"create only", store(create), true, goesOn, waits, content},
		{"delete", remove(none), false, goesOn, waits, ""},
		{"delete with If-Match", remove(its), false, waits, waits, ""},
	} {
		for _, exclusive := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, exclusive %v", c.name, exclusive), func(t *testing.T) {
				t.Parallel()
				base := t.TempDir()
				ours, theirs := openTestNFS(t, base), openTestNFS(t, base)
				mustStore(t, theirs, "s", "other", []byte("x"))
				before := ""
				var old ArtifactInfo
				if !c.creates {
					before = "old"
					old = mustStoreIf(t, theirs, "s", "b", []byte(before), Precondition{})
				}
				lock, err := theirs.lockBuild("s", artifactsDir, "b", exclusive)
				if err != nil {
					t.Fatal(err)
				}
				defer lock.release()
				done := make(chan error, 1)
				go func() { done <- c.change(ours, old) }()
				if mustWait := exclusive && c.exclusive || !exclusive && c.shared; mustWait {
					select {
					case err := <-done:
						t.Fatalf("it did not wait: %v", err)
					case <-time.After(300 * time.Millisecond): // far longer than it takes without a lock
					}
					wantContentOf(t, theirs, before)
					lock.release()
				}
				select {
				case err := <-done:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(30 * time.Second):
					t.Fatal("it waits for ever")
				}
				wantContentOf(t, theirs, c.after)
			})
		}
	}
}

// wantContentOf fails unless build b of site s is want; empty: it is not there.
func wantContentOf(t *testing.T, n *nfs, want string) {
	t.Helper()
	if want != "" {
		wantBytes(t, n, "s", "b", []byte(want))
		return
	}
	_, err := n.FetchArtifact("s", "b")
	wantError(t, err, ErrNotFound)
}
