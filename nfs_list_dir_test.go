package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// An id is stable when every later change gives another id: two seconds after its
// times, by the clock of the store.
func TestStableAt(t *testing.T) {
	const second = int64(time.Second)
	f := func(mtime, ctime, now int64, want bool) {
		t.Helper()
		if got := (fileID{mtime: mtime, ctime: ctime}).stableAt(now); got != want {
			t.Errorf("modified at %d, changed at %d, read at %d: stable %v", mtime, ctime, now, got)
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

// A directory is read again unless it is as it was, and was stable when it was read.
func TestDirectoryIsReadAgainUnlessStable(t *testing.T) {
	const start = time.Minute // by the clock of the process
	wall := time.Now()        // by that of the store
	was := fileID{ino: 1, mtime: wall.UnixNano(), ctime: wall.UnixNano()}
	other := was
	other.ctime++
	f := func(name string, before sighting, id fileID, now, store time.Duration, read, stable bool) {
		t.Helper()
		w := watchedDir[builtAt]{sighting: before}
		if got := !w.unchanged(id); got != read {
			t.Errorf("%s: read %v, want %v", name, got, read)
		}
		if read {
			w.see(id, start+now+time.Millisecond, start+now, wall.Add(store).UnixNano())
		}
		if w.stable != stable || w.id != id {
			t.Errorf("%s: stable %v, want %v", name, w.stable, stable)
		}
	}
	known := func(stable bool) sighting { return sighting{id: was, since: start, stable: stable} }
	f("new", sighting{}, was, 0, 0, true, false)
	f("new, and old by the store's clock", sighting{}, was, 0, mtimeGranularity, true, true)
	f("new, and nearly so", sighting{}, was, 0, mtimeGranularity-1, true, false)
	f("seen just now", known(false), was, mtimeGranularity-1, 0, true, false)
	f("seen long ago", known(false), was, mtimeGranularity, 0, true, true)
	f("stable", known(true), was, time.Hour, 0, false, true)
	f("stable, and another now", known(true), other, time.Hour, 0, true, false)
	f("absent, and new", sighting{}, fileID{}, 0, mtimeGranularity, true, true)
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
		dir, opened, err := (&siteScan{n: n, site: "s"}).openWatched(artifactsDir)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		before(dir)
		opened.ctime-- // it was opened before the last change
		ids, unsure, err = s.readNames(artifactsDir, dir, opened)
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
