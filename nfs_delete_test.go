package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDeletesNFS(t *testing.T) {
	base := t.TempDir()
	testDeletes(t, func(t *testing.T) Backend { return openTestNFS(t, base) })
}

func TestDeletesRemoteNFS(t *testing.T) {
	base := t.TempDir()
	testDeletes(t, func(t *testing.T) Backend { return openRemote(t, base) })
}

// openWithBuilds opens a store with a site that has two builds with digests and logs, and two
// that have only one of these.
func openWithBuilds(t *testing.T) (n *nfs, all []VersionDeletion) {
	t.Helper()
	n = openTestNFS(t, t.TempDir())
	n.useDigests()
	storeWithLog(t, n, "s", "a", 1)
	storeWithLog(t, n, "s", "b", 2)
	mustStore(t, n, "s", "artifact", []byte("x"))
	mustLog(t, n, "s", entry("1", "log", testTime))
	for _, id := range []string{"a", "b", "artifact", "log"} {
		all = append(all, VersionDeletion{BuildID: id})
	}
	return n, all
}

// Each directory is synced once for all builds, and no log is removed before the artifacts are
// durably gone. The directories and the lock file stay.
func TestDeletesAreSyncedOnceInOrder(t *testing.T) {
	n, all := openWithBuilds(t)
	lock := filepath.Join(n.base, sitesDir, "s", lockName)
	before, err := os.Stat(lock)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	n.disk.fsyncs.fsyncHook = func(f *os.File) error {
		kind := filepath.Base(f.Name())
		got = append(got, kind)
		for _, dir := range []string{artifactsDir, digestsDir, logsDir} {
			if files, err := os.ReadDir(n.sitePath("s", dir)); err != nil || len(files) > 0 != (dir == logsDir && kind != logsDir) {
				t.Errorf("when %s is synced, %s has %v, %v", kind, dir, files, err)
			}
		}
		return f.Sync()
	}
	if errs := n.DeleteVersions("s", all); !slices.Equal(errs, make([]error, len(all))) {
		t.Fatal(errs)
	}
	if want := []string{artifactsDir, digestsDir, logsDir}; !slices.Equal(got, want) {
		t.Errorf("synced are %q, want %q", got, want)
	}
	after, err := os.Stat(lock)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the lock file: %v", err)
	}
	wantFiles(t, filepath.Join(n.base, sitesDir, "s"), lockName, artifactsDir, digestsDir, logsDir)
}

// What is not synced is not acknowledged, and can be deleted again.
func TestDeleteThatIsNotSynced(t *testing.T) {
	for _, dir := range []string{artifactsDir, digestsDir, logsDir} {
		n, all := openWithBuilds(t)
		all = append(all, VersionDeletion{BuildID: "refused", Artifact: exists})
		n.disk.fsyncs.fsyncHook = func(f *os.File) error {
			if filepath.Base(f.Name()) == dir {
				return unix.EIO
			}
			return f.Sync()
		}
		for i, err := range n.DeleteVersions("s", all) {
			want := error(unix.EIO)
			if i == len(all)-1 {
				want = ErrPrecondition
			}
			if !errors.Is(err, want) {
				t.Errorf("%s: build %s: %v, want %v", dir, all[i].BuildID, err, want)
			}
		}
		logs, err := os.ReadDir(n.sitePath("s", logsDir))
		if kept := len(logs) == 3; err != nil || kept != (dir != logsDir) {
			t.Errorf("%s: %d logs are left, %v", dir, len(logs), err)
		}
		n.disk.fsyncs.fsyncHook = nil
		if errs := n.DeleteVersions("s", all[:4]); !slices.Equal(errs, make([]error, 4)) {
			t.Error(errs)
		}
	}
}

// All names of the files are removed, and a build or log that has only an interim name counts.
func TestDeleteOfInterimNames(t *testing.T) {
	for _, open := range []func(t testing.TB, base string) *nfs{openTestNFS, openRemote} {
		n := open(t, t.TempDir())
		for _, dir := range []string{artifactsDir, logsDir} {
			name := fileName(dir, "b")
			leave(t, 0, n.sitePath("s", dir), name)
			for _, other := range otherNames(name) {
				leave(t, 0, n.sitePath("s", dir), other)
			}
			leave(t, 0, n.sitePath("s", dir), interimName(fileName(dir, "c")))
		}
		for _, d := range []VersionDeletion{
			{BuildID: "c", Artifact: Precondition{Absent: true}},
			{BuildID: "c", LogTag: noLogTag},
			{BuildID: "c", Artifact: ifMatch(`"x"`)},
		} {
			wantError(t, deleteVersion(n, "s", d), ErrPrecondition)
		}
		errs := n.DeleteVersions("s", []VersionDeletion{{BuildID: "b"}, {BuildID: "c", Artifact: exists}})
		if !slices.Equal(errs, make([]error, 2)) {
			t.Error(errs)
		}
		wantFiles(t, n.sitePath("s", artifactsDir))
		wantFiles(t, n.sitePath("s", logsDir))
	}
}

// The tag of a log in a list is the one that a delete compares, whatever is there.
func TestTagsOfStrangeLogs(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	logs := n.sitePath("s", logsDir)
	leave(t, 0, logs, "damaged"+logSuffix)
	leave(t, 25*time.Hour, logs, "old"+logSuffix)
	if err := errors.Join(os.WriteFile(filepath.Join(logs, "empty"+logSuffix), nil, 0o644),
		unix.Mkfifo(filepath.Join(logs, "fifo"+logSuffix), 0o644),
		os.Symlink("damaged"+logSuffix, filepath.Join(logs, "link"+logSuffix)),
		os.Mkdir(filepath.Join(logs, "directory"+logSuffix), 0o755)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for id, want := range map[string]error{"damaged": nil, "old": nil, "empty": nil, "fifo": nil, "link": nil, "directory": ErrOccupied} {
			d := VersionDeletion{BuildID: id, LogTag: logTagNow(t, n, "s", id)}
			if err := deleteVersion(n, "s", d); !errors.Is(err, want) {
				t.Errorf("%s with the tag %s: %v, want %v", id, d.LogTag, err, want)
			}
		}
	}
	wantFiles(t, logs, "directory"+logSuffix)
}

// A store that may not be changed, or that went away, keeps all.
func TestDeleteVersionsOfAStoreThatMustNotChange(t *testing.T) {
	n, all := openWithBuilds(t)
	all[0].Artifact, all[1].LogTag = exists, "old" // not looked at
	n.readOnly = true
	for _, err := range n.DeleteVersions("s", all) {
		wantError(t, err, ErrReadOnly)
	}
	_, _, err := n.TryLease("x", time.Hour)
	wantError(t, err, ErrReadOnly)
	n.readOnly = false
	if err := os.Rename(n.base, n.base+"-away"); err != nil {
		t.Fatal(err)
	}
	for _, err := range n.DeleteVersions("s", all) {
		wantError(t, err, ErrUnavailable)
	}
	_, err = n.ArrivedAt("s", "a")
	wantError(t, err, ErrUnavailable)
	if err := os.Rename(n.base+"-away", n.base); err != nil {
		t.Fatal(err)
	}
	loseLocks(t, n)
	for _, err := range n.DeleteVersions("s", []VersionDeletion{{BuildID: "a", Artifact: exists}, {BuildID: "log", Artifact: Precondition{Absent: true}}}) {
		wantError(t, err, ErrUnavailable)
	}
	wantBuilds(t, func() deleteStore { return n }, "s", "a+log", "artifact", "b+log", "log-artifact+log")
}

// A delete waits for the lock of the artifact and for that of the log, for a limited time.
func TestDeleteVersionsWaitsForLocks(t *testing.T) {
	n, all := openWithBuilds(t)
	n.lockWait = 10 * time.Millisecond
	for _, dir := range []string{artifactsDir, logsDir} {
		held, err := n.lockBuild("s", dir, "a", true)
		if err != nil {
			t.Fatal(err)
		}
		errs := n.DeleteVersions("s", all[:1])
		held.release()
		wantError(t, errs[0], ErrLocked)
	}
	wantBuilds(t, func() deleteStore { return n }, "s", "a-artifact+log", "artifact", "b+log", "log-artifact+log")
}

// The arrival is the later of the two times, of a regular file.
func TestArrivedAtOfADirectory(t *testing.T) {
	n, _ := openWithBuilds(t)
	path := n.filePath("s", artifactsDir, "a")
	set := func(at time.Time) time.Time {
		t.Helper()
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		arrived, err := n.ArrivedAt("s", "a")
		if err != nil {
			t.Fatal(err)
		}
		return arrived
	}
	if since := time.Since(set(testTime)); since.Abs() > time.Minute {
		t.Errorf("a copy that kept its time arrived %s ago", since)
	}
	if ahead := time.Now().Add(48 * time.Hour).Truncate(time.Second).UTC(); !set(ahead).Equal(ahead) {
		t.Error("a time ahead of the clock does not count")
	}
	if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o644)); err != nil {
		t.Fatal(err)
	}
	if arrived, err := n.ArrivedAt("s", "a"); err != nil || time.Since(arrived).Abs() > time.Minute {
		t.Errorf("with a FIFO instead of the artifact: %s, %v", arrived, err)
	}
	if err := os.Rename(n.filePath("s", artifactsDir, "b"), filepath.Join(n.sitePath("s", artifactsDir), interimName(fileName(artifactsDir, "b")))); err != nil {
		t.Fatal(err)
	}
	logged, err := n.ArrivedAt("s", "log")
	if arrived, err2 := n.ArrivedAt("s", "b"); err != nil || err2 != nil || !arrived.After(logged) {
		t.Errorf("with an interim name: %s, %v, the log: %s, %v", arrived, err2, logged, err)
	}
}
