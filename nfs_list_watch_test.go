package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watchedStore is a store that watches site s, which has the builds a, b and c.
type watchedStore struct {
	*nfs
	t         *testing.T
	site      string // path of the site
	artifacts string // and of its artifacts
}

func newWatchedStore(t *testing.T) watchedStore {
	t.Helper()
	base := t.TempDir()
	w := watchedStore{openTestNFS(t, base), t, filepath.Join(base, sitesDir, "s"), filepath.Join(base, sitesDir, "s", artifactsDir)}
	if !isLocalDir(t, base) {
		t.Skip("the directory for tests is on a file system that is not watched")
	}
	w.lists.watches.sizeFrom = 1
	for _, id := range []string{"a", "b", "c"} {
		mustStore(t, w, "s", id, []byte(id))
	}
	w.watch()
	return w
}

func isLocalDir(t *testing.T, path string) bool {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	return isLocal(int64(st.Type))
}

// watch lists the site until it is watched.
func (w watchedStore) watch() {
	w.t.Helper()
	for range 3 {
		w.wantFresh("before")
		mustStore(w.t, w, "s", "c", []byte("c"))
	}
	w.wantFresh("before")
	if ix := w.index(); ix == nil || ix.watch == nil || ix.watch.lost {
		w.t.Fatal("the site is not watched")
	}
}

func (w watchedStore) index() *siteIndex {
	ix, _ := w.lists.sites.Peek("s")
	return ix
}

func (w watchedStore) path(build string) string {
	return filepath.Join(w.artifacts, build+artifactSuffix)
}

// wantFresh fails unless the list is that of a process that has just started.
func (w watchedStore) wantFresh(after string) {
	w.t.Helper()
	want, got := listText(w.t, openTestNFS(w.t, w.base)), listText(w.t, w.nfs)
	if !slices.Equal(got, want) {
		w.t.Fatalf("after %s: listed are\n%q, and in the directory are\n%q", after, got, want)
	}
}

// listText is all versions of site s.
func listText(t *testing.T, n *nfs) (text []string) {
	t.Helper()
	versions, err := n.ListVersions("s")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range versions {
		text = append(text, fmt.Sprint(v.BuildID, " ", v.SizeBytes, " ", v.CreatedAt.UnixNano(), " ", len(v.Logs)))
	}
	return text
}

func (w watchedStore) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// put writes a file beside dir and renames it into the directory of artifacts, as another
// process would.
func (w watchedStore) put(name string, data string) {
	w.t.Helper()
	temp := filepath.Join(w.site, "outside")
	w.must(os.WriteFile(temp, []byte(data), 0o644))
	w.must(os.Rename(temp, filepath.Join(w.artifacts, name)))
}

// TestWatchedListFollowsChanges: the next list shows each change, and looks at the changed
// file alone where the events say which one that is.
func TestWatchedListFollowsChanges(t *testing.T) {
	for _, c := range []struct {
		what   string
		all    bool // the directory is read again
		change func(w watchedStore) error
	}{
		{"nothing", false, func(w watchedStore) error { return nil }},
		{"an upload", false, func(w watchedStore) error { return w.StoreArtifact("s", "new", strings.NewReader("new")) }},
		{"a replacement", false, func(w watchedStore) error { return w.StoreArtifact("s", "a", strings.NewReader("other")) }},
		{"a replacement of the same size", false, func(w watchedStore) error { return w.StoreArtifact("s", "a", strings.NewReader("x")) }},
		{"a delete", false, func(w watchedStore) error { return w.DeleteArtifact("s", "a", Precondition{}) }},
		{"a log entry", false, func(w watchedStore) error { return w.WriteLog("s", entry("1", "a", testTime)) }},
		{"an upload of another process", false, func(w watchedStore) error {
			_, err := openTestNFS(w.t, w.base).StoreArtifactIf("s", "new", strings.NewReader("new"), Precondition{})
			return err
		}},
		{"mv of a file into it", false, func(w watchedStore) error { w.put("b.tar.gz", "by hand"); return nil }},
		{"mv of a file out of it", false, func(w watchedStore) error { return os.Rename(w.path("a"), filepath.Join(w.site, "outside")) }},
		{"mv within it", false, func(w watchedStore) error { return os.Rename(w.path("a"), w.path("b")) }},
		{"an exchange", false, func(w watchedStore) error {
			return errors.Join(os.WriteFile(w.path("a"), []byte("longer"), 0o644),
				unix.Renameat2(unix.AT_FDCWD, w.path("a"), unix.AT_FDCWD, w.path("b"), unix.RENAME_EXCHANGE))
		}},
		{"rm", false, func(w watchedStore) error { return os.Remove(w.path("b")) }},
		{"ln", false, func(w watchedStore) error { return os.Link(w.path("a"), w.path("d")) }},
		{"ln -s", false, func(w watchedStore) error { return os.Symlink("a.tar.gz", w.path("d")) }},
		{"a directory in its place", false, func(w watchedStore) error { return errors.Join(os.Remove(w.path("a")), os.Mkdir(w.path("a"), 0o755)) }},
		{"touch", false, func(w watchedStore) error { return os.Chtimes(w.path("a"), testTime, testTime) }},
		{"touch -m", false, func(w watchedStore) error { return os.Chtimes(w.path("a"), time.Time{}, testTime) }},
		{"chmod", false, func(w watchedStore) error { return os.Chmod(w.path("a"), 0o600) }},
		{"truncate", false, func(w watchedStore) error { return os.Truncate(w.path("a"), 100) }},
		{"a write in place", false, func(w watchedStore) error { return os.WriteFile(w.path("a"), []byte("longer"), 0o644) }},
		{"a write by mmap", false, func(w watchedStore) error { return writeMapped(w.path("a")) }},
		{"an interim name alone", false, func(w watchedStore) error {
			return os.Rename(w.path("a"), filepath.Join(w.artifacts, interimName("a"+artifactSuffix)))
		}},
		{"an interim name as well", false, func(w watchedStore) error {
			return os.Link(w.path("a"), filepath.Join(w.artifacts, interimName("a"+artifactSuffix)))
		}},
		{"names of others", false, func(w watchedStore) error { w.put("x.zip", "x"); w.put(".nfs1", "x"); return nil }},
		{"chmod of the directory", false, func(w watchedStore) error { return os.Chmod(w.artifacts, 0o700) }},
		{"rm -r and upload", true, func(w watchedStore) error {
			return errors.Join(os.RemoveAll(w.artifacts), w.StoreArtifact("s", "z", strings.NewReader("z")))
		}},
		{"rm -r", true, func(w watchedStore) error { return os.RemoveAll(w.artifacts) }},
		{"rm -r of the site", true, func(w watchedStore) error { return os.RemoveAll(w.site) }},
		{"a file in place of the directory", true, func(w watchedStore) error {
			return errors.Join(os.RemoveAll(w.artifacts), os.WriteFile(w.artifacts, nil, 0o644))
		}},
		{"another site in its place", true, func(w watchedStore) error {
			other := filepath.Join(w.base, "other", artifactsDir)
			return errors.Join(os.MkdirAll(other, 0o755), os.WriteFile(filepath.Join(other, "z"+artifactSuffix), nil, 0o644),
				os.Rename(w.site, w.site+"-old"), os.Rename(filepath.Dir(other), w.site))
		}},
		{"another site in its place, and back", true, func(w watchedStore) error {
			other := filepath.Join(w.base, "other")
			if err := errors.Join(os.MkdirAll(filepath.Join(other, artifactsDir), 0o755), unix.Renameat2(unix.AT_FDCWD, w.site, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)); err != nil {
				return err
			}
			w.wantFresh("the exchange")
			return errors.Join(os.Remove(filepath.Join(other, artifactsDir, "a"+artifactSuffix)),
				unix.Renameat2(unix.AT_FDCWD, w.site, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE))
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newWatchedStore(t)
			before := w.index().artifacts.round
			w.must(c.change(w))
			w.wantFresh(c.what)
			after := before // of a site of which nothing is known
			if ix := w.index(); ix != nil {
				after = ix.artifacts.round
			}
			if w.index() != nil && (after != before) != c.all {
				t.Errorf("the directory was read %d times, want it read: %v", after-before, c.all)
			}
			w.wantFresh("another list")
			mustStore(t, w, "other", "b", []byte("x"))
			if c.what == "a file in place of the directory" {
				return
			}
			mustStore(t, w, "s", "last", []byte("last"))
			w.wantFresh("an upload at the end")
		})
	}
}

// writeMapped writes to a file through shared memory, after which its time is new.
func writeMapped(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	data[0]++
	return unix.Munmap(data)
}

// TestWatchedListLooksAtChangesOnly: after a change the list looks at the changed file, and
// at no other.
func TestWatchedListLooksAtChangesOnly(t *testing.T) {
	w := newWatchedStore(t)
	w.index().artifacts.files["a"].value.size = 12345 // which is wrong, but stays unless a is looked at
	w.index().changed()
	mustStore(t, w, "s", "b", []byte("other"))
	text := listText(t, w.nfs)
	if !slices.ContainsFunc(text, func(line string) bool { return strings.HasPrefix(line, "a 12345 ") }) {
		t.Errorf("all were looked at: %q", text)
	}
	mustStore(t, w, "s", "a", []byte("other"))
	w.wantFresh("a change")
}

// TestWatchThatLosesEvents: if events are lost, or there is no watch, the list looks at all.
func TestWatchThatLosesEvents(t *testing.T) {
	for _, c := range []struct {
		what string
		lose func(w watchedStore)
	}{
		{"the queue overflows", func(w watchedStore) {
			text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
			w.must(err)
			size, err := strconv.Atoi(strings.TrimSpace(string(text)))
			w.must(err)
			for i := range size + 2 { // two in turn: equal events that follow each other are one
				w.must(os.Chmod(w.path([]string{"a", "c"}[i%2]), 0o600))
			}
			w.must(os.Remove(w.path("b")))
		}},
		{"too many builds change", func(w watchedStore) {
			w.lists.watches.limit = 2
			for i := range 5 {
				w.put(fmt.Sprint("new", i, artifactSuffix), "x")
			}
			w.must(os.Remove(w.path("b")))
		}},
		{"the kernel removes the watch", func(w watchedStore) {
			_, err := unix.InotifyRmWatch(w.lists.watches.fd, uint32(w.index().watch.wd))
			w.must(err)
			w.must(os.Remove(w.path("b")))
		}},
		{"the instance fails", func(w watchedStore) {
			w.must(os.Chmod(w.path("c"), 0o600))
			w.lists.watches.drain(0) // an event that is known does not hide those that are lost
			w.must(os.Remove(w.path("b")))
			null, err := os.Open("/dev/null") // read returns 0
			w.must(err)
			defer null.Close()
			w.must(unix.Dup3(int(null.Fd()), w.lists.watches.fd, unix.O_CLOEXEC))
		}},
		{"a directory changes without an event", func(w watchedStore) {
			w.must(os.Remove(w.path("b")))
			buf := make([]byte, eventsBuffer)
			_, err := unix.Read(w.lists.watches.fd, buf)
			w.must(err)
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newWatchedStore(t)
			w.index().artifacts.files["a"].value.size = 12345 // wrong unless all are looked at
			w.index().changed()
			c.lose(w)
			w.wantFresh(c.what)
			if w.lists.watches.noted > w.lists.watches.limit {
				t.Errorf("%d builds are noted", w.lists.watches.noted)
			}
			mustStore(t, w, "s", "last", []byte("last"))
			w.wantFresh("an upload at the end")
		})
	}
}

// TestSiteThatCannotBeWatched: the site is listed as without watches, and the service log has
// the reason once.
func TestSiteThatCannotBeWatched(t *testing.T) {
	base := t.TempDir()
	var log bytes.Buffer
	n, err := openNFS(base, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	w := watchedStore{n, t, filepath.Join(base, sitesDir, "s"), filepath.Join(base, sitesDir, "s", artifactsDir)}
	n.lists.watches.sizeFrom = 1
	n.lists.watches.addWatch = func(int, string, uint32) (int, error) { return -1, unix.ENOSPC }
	for i := range 10 {
		mustStore(t, n, "s", fmt.Sprint("b", i%5), []byte("x"))
		w.wantFresh("an upload")
		if w.index().watch != nil {
			t.Fatal("the site is watched")
		}
	}
	if got := strings.Count(log.String(), "cannot watch a directory"); got != 1 || !strings.Contains(log.String(), "no space left") {
		t.Errorf("the log says it %d times:\n%s", got, &log)
	}
}

// TestWatchIsAddedBeforeTheReading: a change just before the watch has no event, so the reading
// must come after it.
func TestWatchIsAddedBeforeTheReading(t *testing.T) {
	w := newWatchedStore(t)
	w.lists.drop(w.lists.take("s"))
	w.wantFresh("a first list, without a watch")
	w.lists.watches.addWatch = func(fd int, path string, mask uint32) (int, error) {
		w.must(os.Remove(w.path("b")))
		return unix.InotifyAddWatch(fd, path, mask)
	}
	mustStore(t, w, "s", "d", []byte("x"))
	listText(t, w.nfs)
	if w.index().watch == nil {
		t.Fatal("the site is not watched")
	}
	mustStore(t, w, "s", "e", []byte("x")) // an event of something else
	w.wantFresh("an upload")
}

// TestWhatIsNotWatched: file systems that other hosts can change, or that report changes too
// late.
func TestWhatIsNotWatched(t *testing.T) {
	for path, want := range map[string]bool{t.TempDir(): isLocalDir(t, t.TempDir()), "/proc": false, "/sys": false} {
		dir, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if got := hasEvents(dir); got != want {
			t.Errorf("%s has events: %v", path, got)
		}
	}
	w := newWatchedStore(t)
	w.lists.drop(w.lists.take("s"))
	w.remote = true
	for range 3 {
		w.wantFresh("an upload")
		mustStore(t, w, "s", "b", []byte("x"))
	}
	if w.index().watch != nil {
		t.Error("a directory on NFS is watched")
	}
}

// TestDirectoryOfTwoSites: a second path of a watched directory is listed without a watch, and
// the first keeps its own.
func TestDirectoryOfTwoSites(t *testing.T) {
	w := newWatchedStore(t)
	dir, err := w.disk.openDir(w.artifacts)
	w.must(err)
	defer dir.Close()
	if d := w.lists.watches.add(dir, w.log); d != nil {
		t.Error("the directory is watched twice")
	}
	mustStore(t, w, "s", "d", []byte("x"))
	w.wantFresh("an upload")
}

// TestForgottenSiteIsNotWatched: the watch of a site ends when the site is forgotten.
func TestForgottenSiteIsNotWatched(t *testing.T) {
	for what, forget := range map[string]func(l *listings){
		"evicted": func(l *listings) { l.mu.Lock(); l.evict(0); l.mu.Unlock() },
		"dropped": func(l *listings) { l.drop(l.take("s")) },
	} {
		w := newWatchedStore(t)
		l := w.lists
		forget(l)
		_, err := unix.InotifyRmWatch(l.watches.fd, 1)
		if len(l.watches.watches) != 0 || l.watches.noted != 0 || err != unix.EINVAL {
			t.Errorf("%s: %d watches and %d builds are left, %v", what, len(l.watches.watches), l.watches.noted, err)
		}
		w.watch()
	}
}

// TestSmallSitesAreNotWatched: nor is there an instance of inotify without a large site.
func TestSmallSitesAreNotWatched(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	for range 5 {
		mustStore(t, n, "s", "b", []byte("x"))
		listText(t, n)
	}
	if ix, _ := n.lists.sites.Peek("s"); ix.watch != nil || n.lists.watches.fd >= 0 {
		t.Error("a site of one build is watched")
	}
}

// TestChangedBuildsAreForgotten: what is noted of changes does not grow, and is looked at
// again for a while.
func TestChangedBuildsAreForgotten(t *testing.T) {
	w := newWatchedStore(t)
	mustStore(t, w, "s", "b", []byte("x"))
	w.wantFresh("an upload")
	watches := w.lists.watches
	if watches.noted == 0 || watches.noted != len(w.index().watch.changed) {
		t.Errorf("%d builds are noted, of %d", watches.noted, len(w.index().watch.changed))
	}
	watches.start = watches.start.Add(-2 * mtimeGranularity) // time passes
	w.wantFresh("time")
	if watches.noted != 0 || len(w.index().watch.changed) != 0 {
		t.Errorf("%d builds are still noted", watches.noted)
	}
}

// TestWatchedListHasWhatWasAcknowledged: writers and lists of several processes go on at once,
// and each list has what its writer was promised.
func TestWatchedListHasWhatWasAcknowledged(t *testing.T) {
	w := newWatchedStore(t)
	two := openTestNFS(t, w.base)
	two.lists.watches.sizeFrom = 1
	stores := []*nfs{w.nfs, two}
	var g sync.WaitGroup
	for writer := range 6 {
		g.Go(func() {
			id := fmt.Sprint("w", writer)
			for i := range 60 {
				if err := stores[writer%2].StoreArtifact("s", id, strings.NewReader(strings.Repeat("x", i+1))); err != nil {
					t.Error(err)
					return
				}
				versions, err := stores[(writer+i)%2].ListVersions("s")
				if err != nil {
					t.Error(err)
					return
				}
				at := slices.IndexFunc(versions, func(v *Version) bool { return v.BuildID == id })
				if at < 0 || versions[at].SizeBytes != int64(i+1) {
					t.Errorf("upload %d of %s is not listed", i, id)
					return
				}
			}
		})
	}
	g.Wait()
	w.wantFresh("all")
}

// TestWatchedListAfterRandomChanges: after changes in any order, by this process, another one
// and by hand, a list is the one of a process that has just started.
func TestWatchedListAfterRandomChanges(t *testing.T) {
	w := newWatchedStore(t)
	two := openTestNFS(t, w.base)
	two.lists.watches.sizeFrom = 1
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	id := func() string { return fmt.Sprint("b", r.IntN(8)) }
	body := func() string { return strings.Repeat("x", r.IntN(50)) }
	outside := filepath.Join(w.site, "outside")
	names := func(build string) string {
		return filepath.Join(w.artifacts, []string{"", "", "", interimPrefix, formerPrefix, removedPrefix}[r.IntN(6)]+build+artifactSuffix)
	}
	// alone returns such a name of a file without other names: a write in place has an event
	// for the name by which the file was opened only.
	alone := func() string {
		var st unix.Stat_t
		name := names(id())
		if unix.Lstat(name, &st) == nil && st.Nlink > 1 {
			return filepath.Join(w.site, "none of them")
		}
		return name
	}
	changes := []func() error{
		func() error { return w.StoreArtifact("s", id(), strings.NewReader(body())) },
		func() error { return two.StoreArtifact("s", id(), strings.NewReader(body())) },
		func() error { return w.DeleteArtifact("s", id(), Precondition{}) },
		func() error { return two.DeleteArtifact("s", id(), Precondition{}) },
		func() error { return w.WriteLog("s", entry(fmt.Sprint(r.Int()), id(), testTime)) },
		func() error { return os.WriteFile(alone(), []byte(body()), 0o644) },
		func() error { return os.Rename(names(id()), names(id())) },
		func() error { return os.Rename(names(id()), outside) },
		func() error { return os.Rename(outside, names(id())) },
		func() error { return os.Link(names(id()), names(id())) },
		func() error { return os.Symlink("nowhere/x", names(id())) },
		func() error { return os.Mkdir(names(id()), 0o755) },
		func() error { return os.Remove(names(id())) },
		func() error { return os.Truncate(alone(), r.Int64N(50)) },
		func() error { return os.Chmod(names(id()), 0o600) },
		func() error { return os.Chtimes(alone(), time.Time{}, time.Unix(r.Int64N(1<<30), 0)) },
		func() error {
			if r.IntN(4) > 0 {
				return nil
			}
			return os.RemoveAll(w.artifacts)
		},
		func() error {
			if r.IntN(4) > 0 {
				return nil
			}
			old := filepath.Join(w.base, "old")
			if os.Rename(old, filepath.Join(w.base, "older")) == nil {
				return errors.Join(os.Rename(w.site, old), os.Rename(filepath.Join(w.base, "older"), w.site))
			}
			return os.Rename(w.site, old)
		},
		func() error { w.lists.watches.limit = 3 + r.IntN(20); return nil },
	}
	watched := 0
	for i := range 800 {
		for _, n := range []*nfs{w.nfs, two} { // time passes, so that no build is looked at for the changes of earlier steps
			n.lists.watches.start = n.lists.watches.start.Add(-2 * mtimeGranularity)
		}
		for range 1 + r.IntN(3) {
			_ = changes[r.IntN(len(changes))]() // many have nothing to change
		}
		w.wantFresh(fmt.Sprintf("step %d of seed %d", i, seed))
		if r.IntN(2) == 0 {
			w.wantFresh(fmt.Sprintf("the second list of step %d of seed %d", i, seed))
			listText(t, two)
		}
		if ix := w.index(); ix != nil && ix.watch != nil && !ix.watch.lost {
			watched++
		}
	}
	if watched < 250 {
		t.Errorf("the site was watched in %d steps", watched)
	}
}
