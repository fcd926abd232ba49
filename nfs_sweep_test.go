package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// leave creates a file as a crash leaves it, last modified a while ago.
func leave(t *testing.T, age time.Duration, path ...string) string {
	t.Helper()
	name := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("part"), 0o644); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-age)
	if err := os.Chtimes(name, at, at); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestSweep(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	old := []string{
		leave(t, 25*time.Hour, base, aTempName()),
		leave(t, 25*time.Hour, base, sitesDir, aTempName()),
		leave(t, 25*time.Hour, base, sitesDir, "s1", artifactsDir, aTempName()),
		leave(t, 300*24*time.Hour, base, sitesDir, "s1", logsDir, aTempName()),
		leave(t, 25*time.Hour, base, sitesDir, "s2", logsDir, aTempName()),
		leave(t, 25*time.Hour, base, sitesDir, "s1", artifactsDir, ".new-b"+artifactSuffix),
		leave(t, 25*time.Hour, base, sitesDir, "s1", logsDir, ".new-b"+logSuffix),
		leave(t, 25*time.Hour, base, sitesDir, "s1", labelsDir, aTempName()),
		leave(t, 25*time.Hour, base, sitesDir, "s1", labelsDir, ".new-live"+labelSuffix),
	}
	for range 3000 { // more than one reading of a directory
		old = append(old, leave(t, 25*time.Hour, base, sitesDir, "s3", artifactsDir, aTempName()))
	}
	for _, at := range []string{base, filepath.Join(base, sitesDir)} { // a doctor that was killed
		dir := filepath.Join(at, aTempName())
		for _, name := range append(checkNames, aTempName()) {
			leave(t, 25*time.Hour, dir, name)
		}
		age(t, dir, 25*time.Hour)
		old = append(old, dir)
	}
	silly := ".nfs" + strings.Repeat("0a", 12)
	strangers := filepath.Join(base, aTempName())
	leave(t, 25*time.Hour, strangers, "notes")
	age(t, strangers, 25*time.Hour)
	kept := []string{
		filepath.Join(strangers, "notes"),
		leave(t, 23*time.Hour, base, aTempName()),
		leave(t, 0, base, sitesDir, "s1", artifactsDir, aTempName()),
		leave(t, -time.Hour, base, sitesDir, "s1", logsDir, aTempName()),
		leave(t, 25*time.Hour, base, tempPrefix+"notes"),
		leave(t, 25*time.Hour, base, sitesDir, "s1", artifactsDir, tempPrefix+"notes"),
		leave(t, 25*time.Hour, base, sitesDir, "s1", artifactsDir, aTempName()+"X"),
		leave(t, 25*time.Hour, base, sitesDir, "s1", artifactsDir, strings.ToLower(aTempName())),
		leave(t, 25*time.Hour, base, ".new-b"+artifactSuffix),
		leave(t, 25*time.Hour, base, sitesDir, "s1", artifactsDir, ".new-b"+logSuffix),
		leave(t, 25*time.Hour, base, sitesDir, "s1", artifactsDir, ".new-"),
		leave(t, 25*time.Hour, base, sitesDir, "s1", artifactsDir, silly), // no NFS here
		leave(t, 25*time.Hour, base, sitesDir, "s1", artifactsDir, "b2"+artifactSuffix),
		leave(t, 23*time.Hour, base, sitesDir, "s1", artifactsDir, ".new-b2"+artifactSuffix),
		leave(t, 25*time.Hour, base, sitesDir, "s1", artifactsDir, "b"+artifactSuffix),
		leave(t, 25*time.Hour, base, sitesDir, "s1", logsDir, "b"+logSuffix),
		leave(t, 25*time.Hour, base, sitesDir, "s1", labelsDir, "live"+labelSuffix),
		leave(t, 25*time.Hour, base, sitesDir, "s1", labelsDir, ".new-Live"+labelSuffix),
		leave(t, 25*time.Hour, base, statusDir, "prune"+leaseSuffix),
		leave(t, 25*time.Hour, base, sitesDir, "s1", lockName),
		leave(t, 25*time.Hour, base, sitesDir, "s1", aTempName()), // not where we put any
		leave(t, 25*time.Hour, base, sitesDir, "file"),
		leave(t, 25*time.Hour, base, "file"),
	}
	removed, err := n.sweepOnce(context.Background(), 24*time.Hour)
	if err != nil || removed != len(old) || n.disk.metrics.tempsSwept.Get() != uint64(len(old)) {
		t.Errorf("removed %d of %d, %v", removed, len(old), err)
	}
	for _, name := range old {
		if _, err := os.Lstat(name); err == nil {
			t.Errorf("%q stays", name)
		}
	}
	for _, name := range kept {
		if _, err := os.Lstat(name); err != nil {
			t.Errorf("%q went: %v", name, err)
		}
	}
	if removed, err = n.sweepOnce(context.Background(), 24*time.Hour); err != nil || removed != 0 {
		t.Errorf("a second sweep removed %d, %v", removed, err)
	}
}

// Digests whose build is gone are removed once they are old enough; those of a build that has
// an interim name, or is locked, stay.
func TestSweepOfDigests(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	n.useDigests()
	for _, id := range []string{"kept", "interim", "gone", "locked", "log"} {
		if _, err := n.StoreArtifactIf("s", id, hashedBody([]byte(id)), Precondition{}); err != nil {
			t.Fatal(err)
		}
	}
	mustLog(t, n, "s", LogEntry{ID: "1", BuildID: "log", Action: "a", Status: "s", Timestamp: time.Now()})
	artifact := func(id string) string { return n.filePath("s", artifactsDir, id) }
	if err := errors.Join(os.Rename(artifact("interim"), filepath.Dir(artifact("interim"))+"/"+formerName("interim"+artifactSuffix)),
		os.Remove(artifact("gone")), os.Remove(artifact("locked")), os.Remove(artifact("log"))); err != nil {
		t.Fatal(err)
	}
	digests := filepath.Join(base, sitesDir, "s", digestsDir)
	temps := []string{
		leave(t, 25*time.Hour, digests, aTempName()),
		leave(t, 25*time.Hour, base, statusDir, aTempName()),
	}
	leave(t, 25*time.Hour, digests, "notes")
	leave(t, 25*time.Hour, base, sitesDir, "orphans", digestsDir, "b"+digestSuffix) // never had artifacts
	lock, err := n.lockBuild("s", artifactsDir, "locked", true)
	if err != nil {
		t.Fatal(err)
	}
	sweep := func(maxAge time.Duration, want int, then string) {
		t.Helper()
		removed, err := n.sweepOnce(context.Background(), maxAge)
		if err != nil || removed != want || contentOf(digests) != then {
			t.Errorf("removed %d, want %d, %v; there is %s, want %s", removed, want, err, contentOf(digests), then)
		}
	}
	sweep(time.Hour, len(temps), "[gone.sha256 interim.sha256 kept.sha256 locked.sha256 log.sha256 notes]")
	waitForStoreClock(t, n)
	sweep(0, 3, "[interim.sha256 kept.sha256 locked.sha256 notes]")
	lock.release()
	sweep(0, 1, "[interim.sha256 kept.sha256 notes]")
	sweep(0, 0, "[interim.sha256 kept.sha256 notes]")
	wantBytes(t, n, "s", "interim", []byte("interim"))
}

// More digests than the sweep looks at at once are swept too, and only those without a build.
func TestSweepOfManyDigests(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	for _, dir := range []string{artifactsDir, digestsDir} {
		if err := os.MkdirAll(n.sitePath("s", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	touch := func(dir, id string) {
		if err := os.WriteFile(n.filePath("s", dir, id), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	orphans := map[string]bool{}
	for i := range sweepDigests + sweepDigests/8 {
		id := fmt.Sprint("b", i)
		touch(digestsDir, id)
		if i%16 == 0 {
			orphans[id] = true
		} else {
			touch(artifactsDir, id)
		}
	}
	waitForStoreClock(t, n)
	if removed, err := n.sweepOnce(context.Background(), 0); err != nil || removed != len(orphans) {
		t.Errorf("removed %d of %d, %v", removed, len(orphans), err)
	}
	for i := range sweepDigests + sweepDigests/8 {
		id := fmt.Sprint("b", i)
		if _, err := os.Lstat(n.filePath("s", digestsDir, id)); (err != nil) != orphans[id] {
			t.Fatalf("%s, an orphan: %v: %v", id, orphans[id], err)
		}
	}
}

// waitForStoreClock waits until the clock of the store has passed the time of all files.
func waitForStoreClock(t *testing.T, n *nfs) {
	t.Helper()
	root, err := n.openRoot()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	first, err := n.disk.clock(root)
	for now := first; err == nil && !now.After(first); {
		now, err = n.disk.clock(root)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A file that cannot be removed is reported, and the sweep goes on with the others.
func TestSweepGoesOnAfterAnError(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	for i := range 20 {
		leave(t, 25*time.Hour, base, sitesDir, fmt.Sprint("s", i), artifactsDir, aTempName())
		leave(t, 25*time.Hour, base, aTempName())
	}
	stuck := filepath.Join(base, aTempName(), checkName)
	if err := os.MkdirAll(filepath.Join(stuck, "a directory"), 0o755); err != nil { // doctor makes a file of this name
		t.Fatal(err)
	}
	age(t, filepath.Dir(stuck), 25*time.Hour)
	if err := os.Symlink(t.TempDir(), filepath.Join(base, sitesDir, "link")); err != nil {
		t.Fatal(err)
	}
	removed, err := n.sweepOnce(context.Background(), 24*time.Hour)
	if removed != 40 || err == nil || !strings.Contains(err.Error(), stuck) || !errors.Is(err, ErrDenied) {
		t.Errorf("removed %d of 40, %v", removed, err)
	}
}

// aTempName returns a name that createTemp could give.
func aTempName() string { return tempPrefix + rand.Text() }

func age(t *testing.T, path string, age time.Duration) {
	t.Helper()
	at := time.Now().Add(-age)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// On NFS a .nfs file is removed if its change time is old, whatever its modification
// time.
func TestSweepOfSillyNames(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	n.remote = true
	dir := filepath.Join(base, sitesDir, "s", artifactsDir)
	silly := leave(t, 100*24*time.Hour, dir, ".nfs00000000000a00000000000f")
	kept := []string{
		leave(t, 100*24*time.Hour, dir, ".nfs00000000000a00000000000"),
		leave(t, 100*24*time.Hour, dir, ".nfs00000000000a00000000000F"),
		leave(t, 100*24*time.Hour, base, ".nfs00000000000a00000000000f"),
	}
	for _, s := range []struct {
		maxAge  time.Duration
		removed int
	}{{time.Hour, 0}, {-time.Hour, 1}} {
		if removed, err := n.sweepOnce(context.Background(), s.maxAge); err != nil || removed != s.removed {
			t.Errorf("max age %s: removed %d, want %d: %v", s.maxAge, removed, s.removed, err)
		}
	}
	if _, err := os.Lstat(silly); err == nil {
		t.Errorf("%q stays", silly)
	}
	for _, name := range kept {
		if _, err := os.Lstat(name); err != nil {
			t.Errorf("%q went: %v", name, err)
		}
	}
}

func TestSweepOfAnEmptyStore(t *testing.T) {
	base := t.TempDir()
	if removed, err := openTestNFS(t, base).sweepOnce(context.Background(), time.Hour); err != nil || removed != 0 {
		t.Errorf("removed %d, %v", removed, err)
	}
	wantFiles(t, base)
}

// sweeper is a body during which its own temporary file is swept.
type sweeper struct {
	t    *testing.T
	n    *nfs
	read bool
}

func (s *sweeper) Read(p []byte) (int, error) {
	if s.read {
		if removed, err := s.n.sweepOnce(context.Background(), -time.Hour); err != nil || removed != 1 {
			s.t.Errorf("removed %d, %v", removed, err)
		}
	}
	s.read = !s.read
	if s.read {
		return copy(p, "new"), nil
	}
	return 0, io.EOF
}

func TestSweptUploadFails(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	for _, cond := range []Precondition{{}, createOnly, {IfNoneMatch: &ETagList{Tags: []string{`"x"`}}}} {
		_, err := n.StoreArtifactIf("s", "b", &sweeper{t: t, n: n}, cond)
		wantError(t, err, fs.ErrNotExist)
	}
	wantFiles(t, filepath.Join(base, sitesDir, "s", artifactsDir))
	mustStore(t, n, "s", "b", []byte("old"))
	_, err := n.StoreArtifactIf("s", "b", &sweeper{t: t, n: n}, Precondition{})
	wantError(t, err, fs.ErrNotExist)
	wantBytes(t, n, "s", "b", []byte("old"))
}

func TestSweepGoesOnUntilTheEnd(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		n.sweepTemps(ctx, 2*time.Second) // older than what leave is about to make old
		close(done)
	}()
	deadline := time.Now().Add(20 * time.Second)
	for range 2 { // the first is swept at the start, or by the next turn; the second by a later one
		name := leave(t, time.Hour, base, aTempName())
		for {
			if _, err := os.Lstat(name); err != nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%q stays", name)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	cancel()
	<-done
}

// On a local store, .nfs files belong to clients to which this host exports it. They may
// have them open, so the sweep keeps them, however old they are.
func TestSweepLeavesTheSillyNamesOfALocalStore(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	dir := n.sitePath("s", artifactsDir)
	leave(t, 100*24*time.Hour, dir, ".nfs00000000000a00000000000f")
	if removed, err := n.sweepOnce(context.Background(), -time.Hour); err != nil || removed != 0 {
		t.Errorf("removed %d, %v", removed, err)
	}
	wantFiles(t, dir, ".nfs00000000000a00000000000f")
}

// An interim file stays while a reader holds the lock of the build. If it cannot be
// renamed to its name it is not removed: it is the build.
func TestSweepOfAnInterimFileWithoutItsName(t *testing.T) {
	n := openRemote(t, t.TempDir())
	mustStore(t, n, "s", "other", []byte("x")) // makes the site
	artifacts := n.sitePath("s", artifactsDir)
	leave(t, 2*time.Hour, artifacts, ".new-b"+artifactSuffix)
	reader, err := n.lockBuild("s", artifactsDir, "b", false)
	if err != nil {
		t.Fatal(err)
	}
	sweep := func(want ...string) {
		t.Helper()
		if _, err := n.sweepOnce(context.Background(), time.Hour); err != nil {
			t.Error(err)
		}
		wantFiles(t, artifacts, append(want, "other"+artifactSuffix)...)
	}
	sweep(".new-b" + artifactSuffix)
	reader.release()

	dir := mustOpenBuilds(t, n)
	if err := os.Rename(artifacts, artifacts+".moved"); err != nil { // settle looks at the directory again
		t.Fatal(err)
	}
	removed, err := n.sweepInterim(dir, "s", artifactsDir, "b", interimName(fileName(artifactsDir, "b")), time.Now().Add(-time.Hour))
	if removed {
		t.Error("the build is removed")
	}
	wantError(t, err, fs.ErrNotExist)
	if err := os.Rename(artifacts+".moved", artifacts); err != nil {
		t.Fatal(err)
	}
	sweep("b" + artifactSuffix)
}

// The build is not lost if a delayed rename moves it to its former name while the sweep
// removes a leftover there.
func TestSweepBesideALateRename(t *testing.T) {
	const name = "b" + artifactSuffix
	n := openRemote(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("build"))
	artifacts := n.sitePath("s", artifactsDir)
	leave(t, 2*time.Hour, artifacts, formerName(name))
	late := false
	n.disk.removing = func() {
		if _, err := os.Lstat(filepath.Join(artifacts, name)); err == nil {
			late = os.Rename(filepath.Join(artifacts, name), filepath.Join(artifacts, formerName(name))) == nil
		}
	}
	dir := mustOpenBuilds(t, n)
	if _, err := n.sweepInterim(dir, "s", artifactsDir, "b", formerName(name), time.Now().Add(-time.Hour)); err != nil {
		t.Error(err)
	}
	n.disk.removing = nil
	if !late {
		t.Error("nothing was removed")
	}
	wantBytes(t, n, "s", "b", []byte("build"))
}

// mustOpenBuilds opens the directory of the artifacts of site s until the test ends.
func mustOpenBuilds(t *testing.T, n *nfs) *os.File {
	t.Helper()
	dir, err := n.openBuilds("s", artifactsDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

// mustLock locks the artifact of build b of site s exclusively until the test ends.
func mustLock(t *testing.T, n *nfs) *buildLock {
	t.Helper()
	lock, err := n.lockBuild("s", artifactsDir, "b", true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lock.release)
	return lock
}
