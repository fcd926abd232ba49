package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// loseLocks makes every exclusive lock of site s look lost once it is held: a FIFO at the
// name of the lock file can be locked, but not read at an offset.
func loseLocks(t *testing.T, n *nfs) {
	t.Helper()
	lock := filepath.Join(n.base, sitesDir, "s", lockName)
	if err := errors.Join(os.Remove(lock), unix.Mkfifo(lock, 0o644)); err != nil {
		t.Fatal(err)
	}
	held, err := n.lockBuild("s", logsDir, "b", true)
	if err != nil {
		t.Fatal(err)
	}
	defer held.release()
	wantError(t, held.alive(), unix.ESPIPE) // the fault is in alive, and in nothing before it
}

// A lock that was lost while the change was prepared ends the change: the client gets
// 503, and the store is unchanged.
func TestLostLockEndsTheChange(t *testing.T) {
	for _, test := range []struct {
		name string
		req  request
	}{
		{"replace on a condition", putOf("/sites/s/artifacts/b", "new", "If-Match", "*")},
		{"replace if it is of that time", putOf("/sites/s/artifacts/b", "new", "If-Unmodified-Since", "Fri, 31 Dec 2100 00:00:00 GMT")},
		{"delete on a condition", request{"DELETE", "/sites/s/artifacts/b", nil, header("If-Match", "*")}},
		{"log entry", postOf("s", "2")},
		{"first entry of a log", request{"POST", "/sites/s/logs", `{"build_id":"other","action":"deploy","status":"ok"}`, nil}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := openTestNFS(t, t.TempDir())
			s, _ := startBackend(t, n)
			s.put(t, 201, "/sites/s/artifacts/b", "old")
			s.do(t, 201, postOf("s", "1"))
			loseLocks(t, n)
			r := s.do(t, 503, test.req)
			if !strings.Contains(s.log.String(), "lost the lock") {
				t.Errorf("the cause is not in the log: %s", r.body)
			}
			site := filepath.Join(n.base, sitesDir, "s")
			for _, dir := range []string{artifactsDir, logsDir} {
				want := map[string]string{artifactsDir: "[b=3]", logsDir: "[b=1]"}[dir]
				if got := contentOf(filepath.Join(site, dir)); got != want {
					t.Errorf("%s then has %s, not %s", dir, got, want)
				}
			}
			wantBytes(t, n, "s", "b", []byte("old"))
		})
	}
}

// A replacement in several steps takes an exclusive lock even without a condition, and
// fails if it is lost.
func TestLostLockEndsAReplacementInSteps(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("old"))
	loseLocks(t, n)
	dir := mustOpenBuilds(t, n)
	c := change{dir: dir, siteID: "s", buildID: "b", temp: &tempFile{coarse: true}}
	err := n.changeIf(c, func(change, *buildLock) error { t.Error("it is made"); return nil })
	wantError(t, err, ErrUnavailable)
}

// On NFS, alive must ask the server and not the page cache of this host.
func TestLockFileOfARemoteStoreIsReadDirectly(t *testing.T) {
	for _, remote := range []bool{false, true} {
		for _, exclusive := range []bool{false, true} {
			n := openTestNFS(t, t.TempDir())
			n.remote = remote
			lock, err := n.lockBuild("s", logsDir, "b", exclusive)
			if errors.Is(err, unix.EINVAL) && remote {
				t.Skip("the file system of the test has no O_DIRECT")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer lock.release()
			flags, err := unix.FcntlInt(lock.f.Fd(), unix.F_GETFL, 0)
			if err != nil {
				t.Fatal(err)
			}
			if direct := flags&unix.O_DIRECT != 0; direct != remote {
				t.Errorf("remote %v, exclusive %v: O_DIRECT is %v", remote, exclusive, direct)
			}
		}
	}
}

// A reader that lost the shared lock does not report a build as missing.
func TestLostLockEndsALook(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("old"))
	mustLog(t, n, "s", entry("1", "b", testTime)) // makes the lock file
	loseLocks(t, n)
	held, err := n.lockBuild("s", logsDir, "other", true) // an open for reading alone would wait for this one
	if err != nil {
		t.Fatal(err)
	}
	defer held.release()
	if err := os.WriteFile(filepath.Join(n.sitePath("s", artifactsDir), ".new-b"+artifactSuffix), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	err = n.find("s", artifactsDir, "b", func(string) error { return fs.ErrNotExist })
	wantError(t, err, ErrUnavailable)
}

// A sweep that lost the lock leaves the interim file, which may be in use.
func TestLostLockEndsASweep(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("old"))
	mustLog(t, n, "s", entry("1", "b", testTime)) // makes the lock file
	loseLocks(t, n)
	held, err := n.lockBuild("s", logsDir, "other", true) // an open for reading alone would wait for this one
	if err != nil {
		t.Fatal(err)
	}
	defer held.release()
	dir := n.sitePath("s", artifactsDir)
	leave(t, 2*time.Hour, dir, ".new-b"+artifactSuffix)
	removed, err := n.sweepOnce(context.Background(), time.Hour)
	if removed != 0 {
		t.Errorf("%d files are removed", removed)
	}
	wantError(t, err, ErrUnavailable)
	wantFiles(t, dir, ".new-b"+artifactSuffix, "b"+artifactSuffix)
}
