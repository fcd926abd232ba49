package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// putLog puts a log with these entries in place of a build's, as another
// process would, with a time of its own choosing.
func putLog(t testing.TB, base, build string, at time.Time, entries ...LogEntry) {
	t.Helper()
	log, err := appendLog(nil, entries)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(logPath(t, base)), build+logSuffix)
	temp := path + ".new"
	if err := os.WriteFile(temp, log, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(temp, at, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, path); err != nil {
		t.Fatal(err)
	}
}

// briefly is a version as "build:size:entries".
func briefly(v *Version) string {
	return fmt.Sprintf("%s:%d:%s%s", v.BuildID, v.SizeBytes, strings.Join(idsOf(v.Logs), "+"), strings.Replace(v.LogsError, "the log is ", "!", 1))
}

func wantList(t *testing.T, n *nfs, want ...string) {
	t.Helper()
	for _, metadata := range []bool{false, true} {
		page, err := listPage(n, "s", VersionQuery{Metadata: metadata})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, v := range page.Versions {
			got = append(got, briefly(v))
			if v.SizeBytes == 0 {
				continue // it has no artifact
			}
			if info, err := n.StatArtifact("s", v.BuildID); err != nil || !v.CreatedAt.Equal(info.ModTime) {
				t.Errorf("%s is listed as of %s, and there is %+v, %v", v.BuildID, v.CreatedAt, info, err)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("listed are %q, want %q", got, want)
		}
		if !slices.IsSortedFunc(page.Versions, compareVersions) {
			t.Error("the list is not in order")
		}
	}
}

// One site, one change after the other, by this process and by another: the next list
// of each of them shows it.
func TestListFollowsChanges(t *testing.T) {
	base := t.TempDir()
	one, two := openTestNFS(t, base), openTestNFS(t, base)
	path := logPath(t, base)
	artifacts := filepath.Join(base, sitesDir, "s", artifactsDir)
	f := func(what string, change func(), want ...string) {
		t.Helper()
		change()
		if t.Failed() {
			t.Fatalf("after: %s", what)
		}
		wantList(t, one, want...)
		wantList(t, two, want...)
		wantList(t, one, want...)
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	f("nothing", func() {})
	f("a log", func() { mustLog(t, one, "s", entry("1", "b", testTime)) }, "b:0:1")
	f("an entry", func() { mustLog(t, two, "s", entry("2", "b", testTime)) }, "b:0:1+2")
	f("an artifact", func() { mustStore(t, two, "s", "b", []byte("abc")) }, "b:3:1+2")
	f("a replacement", func() { mustStore(t, one, "s", "b", []byte("abcd")) }, "b:4:1+2")
	f("a replacement of the same size", func() { mustStore(t, two, "s", "b", []byte("dcba")) }, "b:4:1+2")
	f("another", func() { mustStore(t, one, "s", "c", []byte("a")) }, "b:4:1+2", "c:1:")
	f("a delete", func() { do(two.DeleteArtifact("s", "b", Precondition{})) }, "b:0:1+2", "c:1:")
	f("a delete of what has no log", func() { do(two.DeleteArtifact("s", "c", Precondition{})) }, "b:0:1+2")
	f("names that are none of ours", func() {
		leave(t, 0, artifacts, tempPrefix+"x")
		leave(t, 0, artifacts, tempPrefix+"x"+artifactSuffix)
		leave(t, 0, artifacts, ".nfs0001"+artifactSuffix)
		leave(t, 0, artifacts, "a b"+artifactSuffix)
		leave(t, 0, artifacts, "x.zip")
		leave(t, 0, artifacts, artifactSuffix)
		leave(t, 0, artifacts, "dir"+artifactSuffix, "file")
		leave(t, 0, filepath.Dir(path), tempPrefix+"x"+logSuffix)
		leave(t, 0, filepath.Dir(path), strings.Repeat("x", maxIDLen+1)+logSuffix)
	}, "b:0:1+2")
	f("damage", func() { do(os.WriteFile(path+".new", []byte("{"), 0o644)); do(os.Rename(path+".new", path)) }, "b:0:!damaged")
	f("repaired", func() { putLog(t, base, "b", testTime, entry("3", "b", testTime)) }, "b:0:3")
	f("too large", func() {
		do(os.WriteFile(path+".new", nil, 0o644))
		do(os.Truncate(path+".new", maxLogRead+1))
		do(os.Rename(path+".new", path))
	}, "b:0:the log has reached its size limit")
	f("removed by hand", func() { do(os.Remove(path)) })
	f("a site that goes", func() { do(os.RemoveAll(filepath.Join(base, sitesDir, "s"))) })
	f("and comes again", func() { mustLog(t, two, "s", entry("9", "z", testTime)) }, "z:0:9")
}

// waitStable lists site s until nothing is read any more.
func waitStable(t testing.TB, n *nfs) *VersionPage {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		before, err := n.ListVersionsPage("s", VersionQuery{})
		if err != nil {
			t.Fatal(err)
		}
		now, err := n.ListVersionsPage("s", VersionQuery{})
		if err != nil {
			t.Fatal(err)
		}
		if ix, _ := n.lists.sites.Peek("s"); before == now && ix.artifacts.stable && ix.logs.stable {
			young := false
			for _, f := range ix.logs.files {
				young = young || !f.value.stable
			}
			if !young {
				return now
			}
			// A log that was read a moment after its directory is read again when that changes.
			stranger := filepath.Join(n.sitePath("s", logsDir), ".stranger")
			if err := errors.Join(os.WriteFile(stranger, nil, 0o644), os.Remove(stranger)); err != nil {
				t.Fatal(err)
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the list does not become stable")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A log replaced by one of the same size and time, again and again between
// lists, is never missed: neither while its directory is new to the process nor
// after it has long known it.
func TestChangeWithinTheClocksGranularity(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	mustStore(t, n, "s", "b", []byte("x"))
	f := func(rounds int) {
		for i := range rounds {
			id := fmt.Sprintf("%05d", i)
			putLog(t, base, "b", testTime, entry(id, "b", testTime))
			wantList(t, n, "b:1:"+id)
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	f(300)
	waitStable(t, n)
	f(300)
}

// A list that is stable is answered from memory, and still sees every change.
func TestUnchangedListIsNotReadAgain(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	for i := range 50 {
		putLog(t, base, fmt.Sprint("b", i), testTime, entry("1", "b", testTime))
	}
	mustStore(t, n, "s", "b0", []byte("x"))
	before := waitStable(t, n)
	mustLog(t, openTestNFS(t, base), "s", entry("2", "b7", testTime))
	after, err := n.ListVersionsPage("s", VersionQuery{})
	if err != nil {
		t.Fatal(err)
	}
	if before.Tag == after.Tag || before == after {
		t.Error("the change is not in the tag")
	}
	known := map[*storedLog]bool{}
	for _, v := range before.Versions {
		known[v.Stored] = true
	}
	same := 0
	for _, v := range after.Versions {
		if known[v.Stored] {
			same++
		}
	}
	if same != 49 {
		t.Errorf("of 50 logs %d were not read again after one change", same)
	}
}

// What was acknowledged before a list was requested is in it, however many
// lists and writes of that site go on.
func TestListHasWhatWasAcknowledged(t *testing.T) {
	base := t.TempDir()
	stores := []*nfs{openTestNFS(t, base), openTestNFS(t, base)}
	var g sync.WaitGroup
	for w := range 8 {
		g.Go(func() {
			id := fmt.Sprint("b", w)
			for i := range 25 {
				writer, reader := stores[w%2], stores[(w+i)%2]
				if err := writer.WriteLog("s", entry(fmt.Sprint(i), id, testTime)); err != nil {
					t.Error(err)
					return
				}
				if err := writer.StoreArtifact("s", id, strings.NewReader(strings.Repeat("x", i+1))); err != nil {
					t.Error(err)
					return
				}
				versions, err := reader.ListVersions("s")
				if err != nil {
					t.Error(err)
					return
				}
				at := slices.IndexFunc(versions, func(v *Version) bool { return v.BuildID == id })
				if at < 0 || len(versions[at].Logs) != i+1 || versions[at].SizeBytes != int64(i+1) {
					t.Errorf("round %d of %s is not listed", i, id)
				}
			}
		})
	}
	g.Wait()
}

// Of a page only the logs on it are read, and those that have no artifact.
func TestPageReadsItsLogsOnly(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	for i := range 20 {
		id := fmt.Sprintf("b%02d", i)
		mustStore(t, n, "s", id, []byte("x"))
		putLog(t, base, id, testTime, entry("1", id, testTime))
	}
	putLog(t, base, "failed", testTime, entry("1", "failed", testTime))
	page, err := listPage(n, "s", VersionQuery{Limit: 3})
	if err != nil || len(page.Versions) != 3 || page.Versions[0].BuildID != "b19" || len(page.Versions[0].Logs) != 1 {
		t.Fatalf("the page is %+v, %v", page, err)
	}
	ix, _ := n.lists.sites.Peek("s")
	var loaded []string
	for id, f := range ix.logs.files {
		if f.value.state == logRead {
			loaded = append(loaded, id)
		}
	}
	slices.Sort(loaded)
	if want := []string{"b17", "b18", "b19", "failed"}; !slices.Equal(loaded, want) {
		t.Errorf("read were the logs of %v, want %v", loaded, want)
	}
}

// That there is more behind a page is part of its tag.
func TestTagTellsOfMore(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	putLog(t, base, "b", testTime, entry("1", "b", testTime))
	last, err := listPage(n, "s", VersionQuery{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	putLog(t, base, "older", testTime, entry("1", "older", testTime.Add(-time.Hour)))
	more, err := listPage(n, "s", VersionQuery{Limit: 1})
	if err != nil || more.NextCursor == "" || more.Tag == last.Tag {
		t.Errorf("the tags are %q and %q, %v", last.Tag, more.Tag, err)
	}
}

// Metadata too large to be remembered is read whenever it is requested.
func TestLargeMetadata(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	e := entry("1", "b", testTime)
	e.Metadata = json.RawMessage(`{"x":"` + strings.Repeat("x", keepMetadata) + `"}`)
	mustLog(t, n, "s", e)
	for range 3 {
		if v := versionOf(t, n, "s", "b"); len(v.Logs) != 1 || !bytes.Equal(v.Logs[0].Metadata, e.Metadata) {
			t.Fatal("the metadata is not what was sent")
		}
		page, err := listPage(n, "s", VersionQuery{})
		if err != nil || len(page.Versions) != 1 || page.Versions[0].Logs[0].Metadata != nil {
			t.Fatalf("a list without metadata has it, or fails: %v", err)
		}
	}
	log := func(ix *siteIndex) *storedLog { return ix.logs.files["b"].value.log }
	if ix, _ := n.lists.sites.Peek("s"); log(ix).known(true) != nil || log(ix).known(false) == nil {
		t.Error("it is remembered, or the rest is not")
	}
}

// The memory is bounded, and what was forgotten is read again.
func TestListMemoryIsBounded(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	n.lists.limit = 40_000
	for s := range 30 {
		site := fmt.Sprint("s", s)
		for b := range s + 1 {
			if err := n.WriteLog(site, entry("1", fmt.Sprint("b", b), testTime)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// In a circle no site is remembered until its turn comes again. The second
	// list of one after the other finds what the first one left.
	for turn := range 4 {
		for s := range 30 {
			s = []int{s, s / 2}[turn%2]
			versions, err := n.ListVersions(fmt.Sprint("s", s))
			if err != nil || len(versions) != s+1 {
				t.Fatalf("site %d has %d versions, %v", s, len(versions), err)
			}
			var sum int64
			for _, ix := range n.lists.sites.Values() {
				sum += ix.bytes
			}
			if sum != n.lists.bytes || sum > n.lists.limit {
				t.Fatalf("%d bytes are remembered, accounted as %d of %d", sum, n.lists.bytes, n.lists.limit)
			}
		}
	}
	if got := n.lists.sites.Len(); got == 0 || got == 30 {
		t.Errorf("%d sites are remembered", got)
	}
	if n.disk.metrics.listHits.Get() == 0 {
		t.Error("no list found what another one left")
	}
}

// A site that does not fit alone is not remembered, and the others still are.
func TestLargeSiteLeavesOthersInMemory(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	n.lists.limit = 20_000
	manyBuilds(t, base, 200) // of site s
	mustLog(t, n, "small", entry("1", "b", testTime))
	for _, site := range []string{"small", "s", "s"} {
		if _, err := n.ListVersions(site); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.lists.sites.Keys(); !slices.Equal(got, []string{"small"}) || n.lists.bytes > n.lists.limit {
		t.Errorf("remembered are %q, %d bytes", got, n.lists.bytes)
	}
}

// A first list that fails leaves nothing behind that a later one shows.
func TestListAfterAFailedFirstList(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	large := entry("1", "b", testTime) // memory is taken to read it
	large.Metadata = json.RawMessage(`{"text":"` + strings.Repeat("x", 2*scanBuffer) + `"}`)
	mustLog(t, n, "s", large)
	mustLog(t, n, "s", entry("2", "c", testTime))
	scans := n.lists.limits.scans
	scans.wait = time.Millisecond
	all := mustTake(t, scans, "", scans.limit)
	if _, err := n.ListVersions("s"); !errors.Is(err, ErrBusy) {
		t.Fatalf("a list without memory to read logs: %v", err)
	}
	all.release()
	mustStore(t, n, "s", "b", []byte("abc"))
	wantList(t, n, "b:3:1", "c:0:2")
	wantList(t, n, "b:3:1", "c:0:2")
}

// The page of all versions of a large site is shared while somebody has it.
func TestLargePageIsShared(t *testing.T) {
	ix := newSiteIndex()
	page := &VersionPage{Versions: make([]*Version, keptWhole+1)}
	ix.setWhole(page)
	if ix.whole != nil || ix.wholePage() != page {
		t.Error("the page is kept, or not shared")
	}
	ix.changed()
	if ix.wholePage() != nil {
		t.Error("the page outlives a change")
	}
	ix.setWhole(&VersionPage{Versions: make([]*Version, keptWhole)})
	runtime.GC()
	if ix.wholePage() == nil {
		t.Error("a small page is not kept")
	}
	runtime.KeepAlive(page)
}

// If a list is too large for the cache, its tag is still cached: a client that has the tag
// does not get the versions again until something changes.
func TestTagOfALargeListIsKept(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	for _, build := range []string{"a", "b", "c"} {
		mustStore(t, n, "s", build, []byte("x"))
		e := entry("1", build, testTime)
		e.Metadata = json.RawMessage(`"` + strings.Repeat("x", 8<<10) + `"`)
		mustLog(t, n, "s", e)
	}
	n.lists.limit = siteBytes + 16*(artifactBytes+logBytes) // entries do not fit
	list := func(n *nfs, tag string) *VersionPage {
		t.Helper()
		page, err := n.ListVersionsPage("s", VersionQuery{Tag: tag})
		if err != nil {
			t.Fatal(err)
		}
		return page
	}
	for _, c := range []struct {
		what   string
		change func() error
	}{
		{"nothing", func() error { return nil }},
		{"an entry", func() error { return n.WriteLog("s", entry("2", "b", testTime)) }},
		{"an upload", func() error { return n.StoreArtifact("s", "b", known([]byte("xy"))) }},
		{"a deletion", func() error { return n.DeleteArtifact("s", "c", Precondition{}) }},
		{"a log by hand", func() error { return os.Remove(filepath.Join(filepath.Dir(logPath(t, base)), "c"+logSuffix)) }},
	} {
		before := list(n, "").Tag
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		page, fresh := list(n, before), list(openTestNFS(t, base), "")
		if page.pageSeal != fresh.pageSeal {
			t.Errorf("after %s: %v, want %v", c.what, page.pageSeal, fresh.pageSeal)
		}
		if page.Versions == nil && page.Tag != before {
			t.Errorf("after %s the new list has no versions", c.what)
		}
		eventually(t, "the tag is kept after "+c.what, func() bool { return list(n, page.Tag).Versions == nil })
		if ix, _ := n.lists.sites.Peek("s"); ix.wholePage() != nil {
			t.Fatal("the whole page is kept: this shows nothing")
		}
	}
	// A log that is edited in its place is seen at the latest when its entries are read again.
	log, err := appendLog(nil, []LogEntry{entry("3", "b", testTime)})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(logPath(t, base), log, 0o644); err != nil {
		t.Fatal(err)
	}
	n.lists.limit = listCacheBytes
	if page, fresh := list(n, ""), list(openTestNFS(t, base), ""); page.pageSeal != fresh.pageSeal {
		t.Errorf("after an edit in place: %v, want %v", page.pageSeal, fresh.pageSeal)
	}
}

// While the cache is large the garbage collector runs earlier, unless GOGC is set.
func TestListsPaceTheGC(t *testing.T) {
	percent := func() int {
		p := debug.SetGCPercent(100)
		debug.SetGCPercent(p)
		return p
	}
	normal := percent()
	f := func(gogc string, bytes int64, want int) {
		t.Helper()
		t.Setenv("GOGC", gogc)
		l := newListings()
		ix := l.take("s")
		ix.artifacts.files["b"] = new(dirFile[builtAt])
		ix.bytes, l.bytes = bytes, bytes
		l.keep("s", ix)
		if got := percent(); got != want {
			t.Errorf("GOGC=%s, %d bytes: %d %%, want %d", gogc, bytes, got, want)
		}
		l.drop(l.take("s"))
		if got := percent(); got != normal {
			t.Errorf("GOGC=%s, %d bytes: %d %% when nothing is left, want %d", gogc, bytes, got, normal)
		}
	}
	f("", tightGCBytes-10_000, normal)
	f("", tightGCBytes+1000, tightGCPercent)
	f("100", tightGCBytes+1000, normal)
}

// When room is short, the entries of idle sites go before the sites.
func TestEntriesGoBeforeSites(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	for _, site := range []string{"old", "new"} {
		for _, build := range []string{"a", "b", "c"} {
			mustLog(t, n, site, entry("1", build, testTime))
		}
		if _, err := n.ListVersions(site); err != nil {
			t.Fatal(err)
		}
	}
	l := n.lists
	if l.idleEntries <= 0 || l.idleEntries >= l.idle {
		t.Fatalf("%d bytes of entries, of %d", l.idleEntries, l.idle)
	}
	l.mu.Lock()
	l.evict(l.bytes - 1)
	l.mu.Unlock()
	old, _ := l.sites.Peek("old")
	if l.sites.Len() != 2 || old.bytes != old.fixed || l.idle != l.bytes {
		t.Errorf("%d sites are left; the oldest has %d bytes, %d without entries", l.sites.Len(), old.bytes, old.fixed)
	}
}

// A build has the place of its artifact, and without one that of the first entry of its
// log, or of a damaged log itself, whatever it had before.
func TestPlaceFollowsChanges(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	logs := filepath.Dir(logPath(t, base))
	artifacts := filepath.Join(base, sitesDir, "s", artifactsDir)
	if err := os.MkdirAll(artifacts, 0o755); err != nil {
		t.Fatal(err)
	}
	hour := func(h int) time.Time { return testTime.Add(time.Duration(h) * time.Hour) }
	file := func(path string, h int) error {
		return errors.Join(os.WriteFile(path+".x", []byte("["), 0o644), os.Chtimes(path+".x", hour(h), hour(h)), os.Rename(path+".x", path))
	}
	artifact := func(id string, h int) error { return file(filepath.Join(artifacts, id+artifactSuffix), h) }
	log := func(id string, h int) error {
		putLog(t, base, id, testTime, entry("1", id, hour(h)))
		return nil
	}
	f := func(what string, change func() error, want string) {
		t.Helper()
		if err := change(); err != nil {
			t.Fatal(err)
		}
		for _, limit := range []int{0, 1} {
			var got []string
			for q := (VersionQuery{Limit: limit}); ; {
				page, err := n.ListVersionsPage("s", q)
				if err != nil {
					t.Fatal(err)
				}
				for _, v := range page.Versions {
					got = append(got, v.BuildID)
				}
				if q.Cursor = page.NextCursor; q.Cursor == "" {
					break
				}
			}
			if strings.Join(got, " ") != want {
				t.Errorf("%s, limit %d: the order is %q, want %s", what, limit, got, want)
			}
		}
	}
	f("logs", func() error { return errors.Join(log("a", 1), log("b", 2), log("c", 3)) }, "c b a")
	f("an older first entry", func() error { return log("c", 0) }, "b a c")
	f("an artifact beside its log", func() error { return artifact("a", 5) }, "a b c")
	f("an older artifact in its place", func() error { return artifact("a", 1) }, "b a c")
	f("another log of a build with an artifact", func() error { return log("a", 9) }, "b a c")
	f("a damaged log", func() error { return file(filepath.Join(logs, "c"+logSuffix), 7) }, "c b a")
	f("no artifact any more", func() error { return os.Remove(filepath.Join(artifacts, "a"+artifactSuffix)) }, "a c b")
	f("no log any more", func() error { return os.Remove(filepath.Join(logs, "a"+logSuffix)) }, "c b")
	f("an artifact alone", func() error { return artifact("d", 4) }, "c d b")
	f("a log beside it", func() error { return log("d", 8) }, "c d b")
}

// A damaged log is logged by its name, once for each change.
func TestDamageIsLoggedOnce(t *testing.T) {
	var out bytes.Buffer
	base := t.TempDir()
	n, err := openNFS(base, slog.New(slog.NewTextHandler(&out, nil)))
	if err != nil {
		t.Fatal(err)
	}
	path := logPath(t, base)
	for change := 1; change <= 2; change++ {
		if err := os.WriteFile(path, []byte(strings.Repeat("{", change)), 0o644); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			leave(t, 0, filepath.Dir(path), fmt.Sprint("other", change, i, logSuffix, ".x")) // so that the directory is read
			if v := versionOf(t, n, "s", "b"); v.LogsError == "" {
				t.Errorf("the version is %+v", v)
			}
		}
		if got := strings.Count(out.String(), path); got != change {
			t.Errorf("after %d changes it is logged %d times:\n%s", change, got, out.String())
		}
	}
}

func TestListOfTenThousand(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	manyBuilds(t, base, 10_000)
	for range 2 {
		versions, err := n.ListVersions("s")
		if err != nil || len(versions) != 10_000 || !slices.IsSortedFunc(versions, compareVersions) {
			t.Fatalf("%d versions, %v", len(versions), err)
		}
		for _, v := range versions {
			if v.SizeBytes != 1 || len(v.Logs) != 1 || v.Logs[0].ID != "of "+v.BuildID || string(v.Logs[0].Metadata) != `{"n":1}` {
				t.Fatalf("listed is %+v", v)
			}
		}
	}
	var pages []*Version
	for q := (VersionQuery{Limit: 777, Metadata: true}); ; {
		page, err := listPage(n, "s", q)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, page.Versions...)
		if q.Cursor = page.NextCursor; q.Cursor == "" {
			break
		}
	}
	if whole, err := n.ListVersions("s"); err != nil || !reflect.DeepEqual(whole, pages) {
		t.Errorf("%d versions on pages are not the list, %v", len(pages), err)
	}
}

// manyBuilds makes builds, each with a log, in site s.
func manyBuilds(t testing.TB, base string, count int) {
	t.Helper()
	artifacts := filepath.Join(base, sitesDir, "s", artifactsDir)
	if err := os.MkdirAll(artifacts, 0o755); err != nil {
		t.Fatal(err)
	}
	logs := filepath.Dir(logPath(t, base))
	for i := range count {
		id := fmt.Sprintf("build-%d", i)
		e := entry("of "+id, id, testTime)
		e.Metadata = json.RawMessage(`{"n":1}`)
		log, err := appendLog(nil, []LogEntry{e})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(artifacts, id+artifactSuffix), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(logs, id+logSuffix), log, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWhatIsRememberedIsCountedOnce: the bytes of a site are given back when it
// is taken, and a count that is too high only forgets.
func TestWhatIsRememberedIsCountedOnce(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	list := func(site string) {
		t.Helper()
		if _, err := listPage(n, site, VersionQuery{}); err != nil {
			t.Fatal(err)
		}
		sum := int64(0)
		for _, ix := range n.lists.sites.Values() {
			sum += ix.bytes
		}
		if n.lists.bytes != sum || sum == 0 {
			t.Fatalf("%d bytes are counted, and %d remembered", n.lists.bytes, sum)
		}
	}
	for i := range 3 {
		for _, site := range []string{"a", "b"} {
			mustStore(t, n, site, fmt.Sprint("b", i), body(10, 1))
			list(site)
			list(site)
		}
	}
	n.lists.bytes += n.lists.limit
	if _, err := listPage(n, "a", VersionQuery{}); err != nil {
		t.Fatal(err)
	}
	if len(n.lists.sites.Keys()) != 0 || n.lists.bytes != 0 {
		t.Errorf("%d sites are remembered, %d bytes counted", len(n.lists.sites.Keys()), n.lists.bytes)
	}
	list("a")
	list("b")
}

// After a list that failed nothing is remembered of the site: what was known of
// it may be half changed.
func TestFailedListIsForgotten(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	mustStore(t, n, "s", "b", []byte("abc"))
	mustLog(t, n, "s", entry("1", "b", testTime))
	wantList(t, n, "b:3:1")
	logs := filepath.Dir(logPath(t, base))
	if err := os.Rename(logs, logs+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(logs+".away", logs); err != nil { // which is not followed
		t.Fatal(err)
	}
	mustStore(t, n, "s", "c", []byte("a"))
	if page, err := listPage(n, "s", VersionQuery{}); err == nil {
		t.Fatalf("without its logs the site is listed as %+v", page)
	}
	if n.lists.sites.Contains("s") || n.lists.bytes != 0 {
		t.Errorf("%d bytes are remembered after a list that failed", n.lists.bytes)
	}
	if err := os.Remove(logs); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(logs+".away", logs); err != nil {
		t.Fatal(err)
	}
	wantList(t, n, "b:3:1", "c:1:")
}

// An empty log beside an artifact changes nothing that is listed but that the
// log is damaged: that is in the tag.
func TestTagTellsOfDamage(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	mustStore(t, n, "s", "b", []byte("abc"))
	tag := func() string {
		t.Helper()
		page, err := listPage(n, "s", VersionQuery{})
		if err != nil {
			t.Fatal(err)
		}
		return page.Tag
	}
	before := tag()
	if err := os.WriteFile(logPath(t, base), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	wantList(t, n, "b:3:!damaged")
	if after := tag(); after == before {
		t.Errorf("the tag is still %s", after)
	}
}

// A store that cannot be reached is an error of the list, never a version whose
// log cannot be read. Here the service has too few descriptors for the logs that
// it reads at once.
func TestListWithoutDescriptors(t *testing.T) {
	const (
		most   = 12 // descriptors that are left at most
		builds = 40
	)
	s, _ := startLimited(t, 1000)
	for free := range most {
		dir := filepath.Join(s.dir, sitesDir, fmt.Sprint("s", free), logsDir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range builds {
			log, err := appendLog(nil, []LogEntry{entry("1", "b", testTime)})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("b", i, logSuffix)), log, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	limit := func(n uint64) {
		t.Helper()
		if err := unix.Prlimit(s.pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: 1000}, nil); err != nil {
			t.Fatal(err)
		}
	}
	s.get(t, 200, "/health") // opens the connection for all lists
	for free := range most {
		for _, few := range []bool{true, false} {
			if few {
				limit(limitWith(t, s.pid, free))
			}
			r, err := s.try(request{"GET", fmt.Sprint("/sites/s", free, "/versions"), nil, nil})
			if err != nil {
				t.Fatal(err)
			}
			limit(1000)
			if few && r.status == 503 {
				continue
			}
			var v versionsBody
			r.into(t, &v)
			if r.status != 200 || v.Count != builds {
				t.Fatalf("with %d descriptors: status %d, %.300s", free, r.status, r.body)
			}
			for _, b := range v.Versions {
				if b.Logs_Error != "" || len(b.Logs) != 1 {
					t.Fatalf("with %d descriptors the list has %+v", free, b)
				}
			}
		}
	}
}

// limitWith is the limit of descriptors with which the process can open free
// more of them.
func limitWith(t *testing.T, pid, free int) uint64 {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	open := map[string]bool{}
	for _, e := range entries {
		open[e.Name()] = true
	}
	limit := 0
	for ; free > 0 || open[fmt.Sprint(limit)]; limit++ {
		if !open[fmt.Sprint(limit)] {
			free--
		}
	}
	return uint64(limit)
}

// A build whose artifact is deleted stays listed with its log, also when the
// list has long known that log and does not read it again.
func TestDeletedBuildKeepsItsLogInAStableList(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("x"))
	mustLog(t, n, "s", entry("1", "b", testTime))
	waitStable(t, n)
	if err := n.DeleteArtifact("s", "b", Precondition{}); err != nil {
		t.Fatal(err)
	}
	wantList(t, n, "b:0:1")
}
