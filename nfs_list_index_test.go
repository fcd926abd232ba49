package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// A file or directory has settled when whatever changes it later gives it other
// times: two seconds after its own, by the clock of the store.
func TestSettledAt(t *testing.T) {
	const second = int64(time.Second)
	f := func(mtime, ctime, then int64, want bool) {
		t.Helper()
		if got := (fileID{mtime: mtime, ctime: ctime}).settledAt(then); got != want {
			t.Errorf("modified at %d, changed at %d, read at %d: settled %v", mtime, ctime, then, got)
		}
	}
	f(10*second, 10*second, 10*second, false)
	f(10*second, 10*second, 12*second-1, false)
	f(10*second, 10*second, 12*second, true)
	f(5*second, 10*second, 12*second-1, false)
	f(10*second, 5*second, 12*second-1, false)
	f(10*second, 5*second, 12*second, true)
	f(0, 10*second, 12*second, true)
}

// A directory is read again unless it is as it was and had settled when it was
// read.
func TestMustRead(t *testing.T) {
	start := time.Now()
	at := func(d time.Duration) time.Time { return start.Add(d) }
	was := fileID{ino: 1, mtime: start.UnixNano(), ctime: start.UnixNano()}
	other := was
	other.ctime++
	// Without the store's clock, then is 0: only what the process saw counts.
	f := func(name string, d watchedDir, id fileID, now, then time.Duration, read, settled bool) {
		t.Helper()
		s := &siteScan{now: at(now), seen: at(now + time.Millisecond), then: at(then).UnixNano()}
		if got := s.mustRead(&d, id); got != read || d.settled != settled || d.id != id {
			t.Errorf("%s: read %v, settled %v; want %v, %v", name, got, d.settled, read, settled)
		}
	}
	known := func(settled bool) watchedDir { return watchedDir{id: was, since: start, settled: settled} }
	f("new", watchedDir{}, was, 0, 0, true, false)
	f("new, and old by the store's clock", watchedDir{}, was, 0, settleTime, true, true)
	f("new, and nearly so", watchedDir{}, was, 0, settleTime-1, true, false)
	f("seen just now", known(false), was, settleTime-1, 0, true, false)
	f("seen long ago", known(false), was, settleTime, 0, true, true)
	f("settled", known(true), was, time.Hour, 0, false, true)
	f("settled, and another now", known(true), other, time.Hour, 0, true, false)
	f("absent, and new", watchedDir{}, fileID{}, 0, settleTime, true, true)
}

// The same holds of a log: one that was read too early is read again.
func TestLogSettles(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	putLog(t, base, "b", testTime, entry("1", "b", testTime))
	dir, _, err := n.openWatched("s", logsDir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	load := func(b *siteBuild, then int64) bool {
		t.Helper()
		s := &siteScan{n: n, ix: newSiteIndex(), then: then, logs: dir, run: &listRun{listLimits: &n.lists.limits}}
		if err := s.loadOne(b); err != nil || b.log == nil || b.log.count != 1 {
			t.Fatalf("read is %+v, %v", b.log, err)
		}
		return b.settled
	}
	b := &siteBuild{id: "b", hasLog: true}
	if load(b, 0) {
		t.Error("a log is settled at once")
	}
	changed := max(b.logID.mtime, b.logID.ctime)
	for since, want := range map[time.Duration]bool{0: false, settleTime - 1: false, settleTime: true} {
		if got := load(&siteBuild{id: "b", hasLog: true}, changed+int64(since)); got != want {
			t.Errorf("read %v after its change, by the store's clock: settled %v", since, got)
		}
	}
	b.logSince = time.Now().Add(-settleTime)
	if !load(b, 0) {
		t.Error("a log that has long been the same is not settled")
	}
}

// On NFS a directory that has changed since it was opened is read again, and
// what only one of the readings has is not forgotten.
func TestChangedDirectoryIsReadAgain(t *testing.T) {
	n := openRemote(t, t.TempDir())
	for _, id := range []string{"a", "b", "c"} {
		mustStore(t, n, "s", id, []byte("x"))
	}
	s := &siteScan{n: n, site: "s", ix: newSiteIndex(), run: &listRun{listLimits: &n.lists.limits}}
	read := func(before func(dir *os.File)) (ids []string, unsure map[string]bool) {
		t.Helper()
		dir, opened, err := n.openWatched("s", artifactsDir)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		before(dir)
		opened.ctime-- // it was opened before the last change
		ids, unsure, err = s.readBuilds(artifactsDir, dir, opened)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(ids)
		return ids, unsure
	}
	ids, unsure := read(func(dir *os.File) { _, _ = dir.Readdirnames(-1) }) // the first reading is at its end
	if !slices.Equal(ids, []string{"a", "b", "c"}) || len(unsure) != 0 {
		t.Errorf("found %v, unsure %v", ids, unsure)
	}
	var gone string
	ids, unsure = read(func(dir *os.File) { // the first reading still has what goes now
		names, err := dir.Readdirnames(1)
		if err != nil {
			t.Fatal(err)
		}
		gone = "a"
		if names[0] == "a"+artifactSuffix {
			gone = "b"
		}
		if err := os.Remove(filepath.Join(dir.Name(), gone+artifactSuffix)); err != nil {
			t.Fatal(err)
		}
	})
	if len(ids) != 2 || slices.Contains(ids, gone) || !unsure[gone] || len(unsure) != 1 {
		t.Errorf("found %v, unsure %v; %s went", ids, unsure, gone)
	}
}
