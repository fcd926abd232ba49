package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// openRemote opens the directory at base as if it were an NFS mount. The locks are real.
// The two steps of a rename are not, so tests create the states between them.
func openRemote(t testing.TB, base string) *nfs {
	t.Helper()
	n := openTestNFS(t, base)
	n.remote = true
	return n
}

// The replacement for NFS keeps the contract too.
func TestReplacementForNFS(t *testing.T) {
	base := t.TempDir()
	testBackend(t, func(t *testing.T) Backend { return openRemote(t, base) })
}

// leftovers are the files of an interrupted replacement: at the name, the interim name
// and the former name. The build is the one that find returns.
type leftovers struct {
	what                           string
	name, interim, former, removed string // their content; empty: there is no such file
}

var allLeftovers = []leftovers{
	{"only the interim file", "", "build", "", ""},
	{"interim and former file", "", "build", "left", ""},
	{"only the former file", "", "", "build", ""},
	{"former and removed file", "", "", "build", "left"},
	{"only the removed file", "", "", "", "build"},
	{"an interim file beside the name", "build", "left", "", ""},
	{"a former file beside the name", "build", "", "left", ""},
	{"a removed file beside the name", "build", "", "", "left"},
	{"all four", "build", "left", "left", "left"},
	{"nothing", "build", "", "", ""},
}

// completed returns the leftovers after a change that completes the replacement.
func (l leftovers) completed() leftovers {
	switch {
	case l.name == "" && l.interim != "":
		l.name, l.interim = l.interim, ""
	case l.name == "" && l.former != "":
		l.name, l.former = l.former, ""
	case l.name == "":
		l.name, l.removed = l.removed, ""
	}
	return l
}

// files returns the sorted names of the leftovers of name.
func (l leftovers) files(name string) (names []string) {
	for _, f := range []struct{ content, name string }{{l.interim, interimName(name)}, {l.former, formerName(name)}, {l.removed, removedName(name)}, {l.name, name}} {
		if f.content != "" {
			names = append(names, f.name)
		}
	}
	return names
}

// leaveCut creates a store with leftovers of the build and of its log, and opens it as
// another process would.
func leaveCut(t *testing.T, remote bool, l leftovers) (n *nfs, artifacts, logs string) {
	t.Helper()
	base := t.TempDir()
	n = openTestNFS(t, base)
	mustStore(t, n, "s", "b", []byte("build"))
	mustLog(t, n, "s", entry("1", "b", testTime))
	artifacts, logs = filepath.Join(base, sitesDir, "s", artifactsDir), filepath.Join(base, sitesDir, "s", logsDir)
	for _, path := range []string{filepath.Join(artifacts, "b"+artifactSuffix), filepath.Join(logs, "b"+logSuffix)} {
		dir, name := filepath.Dir(path), filepath.Base(path)
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.Remove(path)
		}
		for at, content := range map[string]string{name: l.name, interimName(name): l.interim, formerName(name): l.former, removedName(name): l.removed} {
			if content == "left" {
				err = errors.Join(err, os.WriteFile(filepath.Join(dir, at), append([]byte("left "), data...), 0o644))
			} else if content != "" {
				err = errors.Join(err, os.WriteFile(filepath.Join(dir, at), data, 0o644))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	n = openTestNFS(t, base)
	n.remote = remote
	return n, artifacts, logs
}

// The first operation on a build after an interrupted replacement finds the build and its
// log, and leaves the expected files.
func TestReplacementThatWasCut(t *testing.T) {
	wantBuild := func(t *testing.T, n *nfs) {
		t.Helper()
		wantBytes(t, n, "s", "b", []byte("build"))
	}
	same := func(l leftovers, _ bool) leftovers { return l }
	completed := func(l leftovers, _ bool) leftovers { return l.completed() }
	none := func(leftovers, bool) leftovers { return leftovers{} }
	// On NFS a replacement takes the places of what was left; in one step it does not.
	replaced := func(l leftovers, remote bool) leftovers {
		if remote {
			return leftovers{name: "new"}
		}
		l.name = "new"
		return l
	}
	completedAndReplaced := func(l leftovers, remote bool) leftovers { return replaced(l.completed(), remote) }
	for _, c := range []struct {
		what           string
		do             func(t *testing.T, n *nfs)
		artifact, logs func(l leftovers, remote bool) leftovers // what is left
	}{
		{"fetch", wantBuild, same, same},
		{"stat", func(t *testing.T, n *nfs) {
			if info, err := n.StatArtifact("s", "b"); err != nil || info.Size != 5 {
				t.Errorf("%+v, %v", info, err)
			}
		}, same, same},
		{"list", func(t *testing.T, n *nfs) {
			versions, err := n.ListVersions("s")
			if err != nil || len(versions) != 1 || versions[0].SizeBytes != 5 || !slices.Equal(idsOf(versions[0].Logs), []string{"1"}) {
				t.Errorf("%+v, %v", versions, err)
			}
		}, same, same},
		{"create", func(t *testing.T, n *nfs) {
			_, err := n.StoreArtifactIf("s", "b", strings.NewReader("concurrent"), createOnly)
			wantError(t, err, ErrPrecondition)
			wantBuild(t, n)
		}, same, same},
		{"replace", func(t *testing.T, n *nfs) {
			mustStore(t, n, "s", "b", []byte("newest"))
			wantBytes(t, n, "s", "b", []byte("newest"))
		}, replaced, same},
		{"replace if it matches", func(t *testing.T, n *nfs) {
			info, err := n.StatArtifact("s", "b")
			if err != nil {
				t.Fatal(err)
			}
			_, err = n.StoreArtifactIf("s", "b", strings.NewReader("concurrent"), ifMatch(`"x"`))
			wantError(t, err, ErrPrecondition)
			if _, err = n.StoreArtifactIf("s", "b", strings.NewReader("newest"), ifMatch(info.ETag)); err != nil {
				t.Error(err)
			}
			wantBytes(t, n, "s", "b", []byte("newest"))
		}, completedAndReplaced, same},
		{"delete", func(t *testing.T, n *nfs) {
			if err := n.DeleteArtifact("s", "b", Precondition{}); err != nil {
				t.Error(err)
			}
			_, err := n.FetchArtifact("s", "b")
			wantError(t, err, ErrNotFound)
			if _, err := n.StoreArtifactIf("s", "b", strings.NewReader("again"), createOnly); err != nil {
				t.Error(err)
			}
			if err := n.DeleteArtifact("s", "b", Precondition{}); err != nil {
				t.Error(err)
			}
		}, none, same},
		{"delete if it matches", func(t *testing.T, n *nfs) {
			wantError(t, n.DeleteArtifact("s", "b", ifMatch(`"x"`)), ErrPrecondition)
			wantBuild(t, n)
			if err := n.DeleteArtifact("s", "b", Precondition{IfMatch: &ETagList{Any: true}}); err != nil {
				t.Error(err)
			}
		}, none, same},
		{"append", func(t *testing.T, n *nfs) {
			mustLog(t, n, "s", entry("2", "b", testTime))
			if got := idsOf(versionOf(t, n, "s", "b").Logs); !slices.Equal(got, []string{"1", "2"}) {
				t.Errorf("the log has %v", got)
			}
		}, same, completedAndReplaced},
		{"repeated append", func(t *testing.T, n *nfs) {
			mustLog(t, n, "s", entry("1", "b", testTime))
			if got := idsOf(versionOf(t, n, "s", "b").Logs); !slices.Equal(got, []string{"1"}) {
				t.Errorf("the log has %v", got)
			}
		}, same, completed},
		{"sweep", func(t *testing.T, n *nfs) { // what is left beside a name is too young
			if _, err := n.sweepOnce(context.Background(), time.Hour); err != nil {
				t.Error(err)
			}
			wantBuild(t, n)
		}, completed, completed},
		{"sweep of old files", func(t *testing.T, n *nfs) {
			if _, err := n.sweepOnce(context.Background(), -time.Hour); err != nil {
				t.Error(err)
			}
			wantBuild(t, n)
		}, func(leftovers, bool) leftovers { return leftovers{name: "build"} }, func(leftovers, bool) leftovers { return leftovers{name: "build"} }},
	} {
		for _, l := range allLeftovers {
			for _, remote := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%s/remote=%v", c.what, l.what, remote), func(t *testing.T) {
					n, artifacts, logs := leaveCut(t, remote, l)
					c.do(t, n)
					wantFiles(t, artifacts, c.artifact(l, remote).files("b"+artifactSuffix)...)
					wantFiles(t, logs, c.logs(l, remote).files("b"+logSuffix)...)
				})
			}
		}
	}
}

// A delayed request of a client that lost its lock arrives between two steps of a
// replacement, or after the last one. The build stays, with the content that was
// acknowledged last.
func TestLateRequests(t *testing.T) {
	const name = "b" + artifactSuffix
	late := map[string][2]string{
		"the old file away from its name": {name, formerName(name)},
		"the new file to the name":        {interimName(name), name},
		"the former file away":            {formerName(name), removedName(name)},
	}
	for what, r := range late {
		for at := range 6 { // after so many renames
			n := openRemote(t, t.TempDir())
			mustStore(t, n, "s", "b", []byte("old"))
			artifacts := n.sitePath("s", artifactsDir)
			count := 0
			arrive := func() { _ = os.Rename(filepath.Join(artifacts, r[0]), filepath.Join(artifacts, r[1])) }
			n.disk.renamed = func() {
				if count++; count == at+1 {
					arrive()
				}
			}
			err := n.StoreArtifact("s", "b", strings.NewReader("acknowledged"))
			n.disk.renamed = nil
			if count <= at {
				arrive() // after the answer
			}
			if err != nil {
				t.Errorf("%s after rename %d: %v", what, at, err)
			}
			if got, err := fetch(n, "s", "b"); string(got) != "acknowledged" {
				t.Errorf("%s after rename %d: the build is %q, %v", what, at, got, err)
			}
			_, err = n.StoreArtifactIf("s", "b", strings.NewReader("concurrent"), createOnly)
			wantError(t, err, ErrPrecondition)
			mustStore(t, n, "s", "b", []byte("next"))
			wantBytes(t, n, "s", "b", []byte("next"))
			if _, err := n.sweepOnce(t.Context(), -time.Hour); err != nil {
				t.Error(err)
			}
			wantFiles(t, artifacts, name)
			wantBytes(t, n, "s", "b", []byte("next"))
		}
	}
}

// On NFS, a new file never replaces one that another host created after it had got the
// lock.
func TestNewFileThatComesLate(t *testing.T) {
	n := openRemote(t, t.TempDir())
	mustStore(t, n, "s", "other", []byte("x"))
	dir := mustOpenBuilds(t, n)
	lock := mustLock(t, n)
	temp := sealed(t, n.disk, dir, "late")
	defer temp.discard()
	n.disk.linking = func() {
		n.disk.linking = nil
		if err := os.WriteFile(filepath.Join(dir.Name(), "b.tar.gz"), []byte("acknowledged"), 0o644); err != nil {
			t.Error(err)
		}
	}
	wantError(t, n.putInPlace(temp, "b.tar.gz", lock), ErrUnavailable)
	wantBytes(t, n, "s", "b", []byte("acknowledged"))
}

// Something with an interim name that is not a regular file does not become the build.
func TestInterimNameThatIsNoFile(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("x"))
	artifacts := n.sitePath("s", artifactsDir)
	if err := errors.Join(os.Mkdir(filepath.Join(artifacts, ".new-dir.tar.gz"), 0o755),
		os.Symlink("b.tar.gz", filepath.Join(artifacts, ".old-link.tar.gz"))); err != nil {
		t.Fatal(err)
	}
	if _, err := n.sweepOnce(t.Context(), time.Hour); err != nil {
		t.Error(err)
	}
	for _, build := range []string{"dir", "link"} {
		_, err := n.FetchArtifact("s", build)
		wantError(t, err, ErrNotFound)
	}
	wantFiles(t, artifacts, ".new-dir.tar.gz", ".old-link.tar.gz", "b.tar.gz")
}

// On NFS a replacement takes three renames, and a new file gets its name by a link.
func TestRenamesOfAReplacement(t *testing.T) {
	renames := func(n *nfs) string {
		var b bytes.Buffer
		n.disk.metrics.set.WritePrometheus(&b)
		_, rest, _ := strings.Cut(b.String(), `pagewright_rename_seconds_count{call="rename"} `)
		count, _, _ := strings.Cut(rest, "\n")
		return count
	}
	for _, c := range []struct {
		remote bool
		want   []string
	}{{true, []string{"0", "3", "3", "6"}}, {false, []string{"1", "2", "3", "4"}}} {
		n := openTestNFS(t, t.TempDir())
		n.remote = c.remote
		for i, write := range []func(){
			func() { mustStore(t, n, "s", "b", []byte("x")) },
			func() { mustStore(t, n, "s", "b", []byte("x")) },
			func() { mustLog(t, n, "s", entry("1", "b", testTime)) },
			func() { mustLog(t, n, "s", entry("2", "b", testTime)) },
		} {
			if write(); renames(n) != c.want[i] {
				t.Errorf("remote %v: %s renames after write %d, want %s", c.remote, renames(n), i, c.want[i])
			}
		}
	}
}

// A replacement that cannot continue removes its interim file, and the old build stays.
func TestReplacementThatGivesUp(t *testing.T) {
	n := openRemote(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("old"))
	artifacts := n.sitePath("s", artifactsDir)
	former := filepath.Join(artifacts, formerName("b"+artifactSuffix))
	if err := os.Mkdir(former, 0o755); err != nil { // a file cannot be renamed over it
		t.Fatal(err)
	}
	if err := n.StoreArtifact("s", "b", strings.NewReader("new")); err == nil {
		t.Error("a directory was replaced")
	}
	wantFiles(t, artifacts, filepath.Base(former), "b"+artifactSuffix)
	wantBytes(t, n, "s", "b", []byte("old"))
}

// While a build that is missing under its name may be being replaced, a reader waits. It
// gets the new build and never reports that there is none.
func TestMissingNameUnderALock(t *testing.T) {
	for _, c := range []struct {
		kind string
		read func(n *nfs) error
	}{
		{artifactsDir, func(n *nfs) error { _, err := fetch(n, "s", "b"); return err }},
		{artifactsDir, func(n *nfs) error { _, err := n.StatArtifact("s", "b"); return err }},
		{artifactsDir, func(n *nfs) error {
			page, err := listPage(n, "s", VersionQuery{})
			if err == nil && (len(page.Versions) != 1 || page.Versions[0].SizeBytes != 1) {
				err = fmt.Errorf("listed as %+v", page.Versions)
			}
			return err
		}},
		{logsDir, func(n *nfs) error {
			page, err := listPage(n, "s", VersionQuery{})
			if err == nil && (len(page.Versions) != 1 || len(page.Versions[0].Logs) != 1) {
				err = fmt.Errorf("listed as %+v", page.Versions)
			}
			return err
		}},
	} {
		n := openRemote(t, t.TempDir())
		mustStore(t, n, "s", "b", []byte("x"))
		mustLog(t, n, "s", entry("1", "b", testTime))
		if _, err := n.ListVersions("s"); err != nil { // so that the list knows the build
			t.Fatal(err)
		}
		path := filepath.Join(n.sitePath("s", c.kind), fileName(c.kind, "b"))
		lock, err := n.lockBuild("s", c.kind, "b", true)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- c.read(n) }()
		select {
		case err := <-done:
			t.Errorf("%s: the reader did not wait: %v", c.kind, err)
		case <-time.After(50 * time.Millisecond):
			if err := os.Rename(path+".away", path); err != nil {
				t.Fatal(err)
			}
			lock.release()
			if err := <-done; err != nil {
				t.Errorf("%s: %v", c.kind, err)
			}
		}
	}
}

// If a lock is never released, a reader gets 503 and not 404.
func TestLockedMissingBuildIsUnavailable(t *testing.T) {
	t.Parallel()
	n := openRemote(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("x"))
	lock, err := n.lockBuild("s", artifactsDir, "b", true)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.release()
	if err := os.Remove(filepath.Join(n.sitePath("s", artifactsDir), "b"+artifactSuffix)); err != nil {
		t.Fatal(err)
	}
	_, err = n.FetchArtifact("s", "b")
	wantError(t, err, ErrUnavailable)
	_, err = n.FetchArtifact("s", "other")
	wantError(t, err, ErrNotFound)
}

// Looking for a missing build creates nothing and needs no lock file.
func TestLookOnNFSMakesNothing(t *testing.T) {
	n := openRemote(t, t.TempDir())
	_, err := n.FetchArtifact("invented", "b")
	wantError(t, err, ErrNotFound)
	wantFiles(t, n.base)
	if err := os.MkdirAll(n.sitePath("s", artifactsDir), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = n.FetchArtifact("s", "b")
	wantError(t, err, ErrNotFound)
	wantFiles(t, filepath.Join(n.base, sitesDir, "s"), artifactsDir)
}

// Names vanish for a moment while a list is made, as in a replacement on NFS.
func TestListWhileNamesVanish(t *testing.T) {
	base := t.TempDir()
	writer, reader := openRemote(t, base), openRemote(t, base)
	const builds = 20
	for i := range builds {
		mustStore(t, writer, "s", fmt.Sprint("b", i), []byte("x"))
		mustLog(t, writer, "s", entry("1", fmt.Sprint("b", i), testTime))
	}
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		for i := 0; ; i = (i + 1) % builds {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			for _, kind := range []string{artifactsDir, logsDir} {
				path := filepath.Join(writer.sitePath("s", kind), fileName(kind, fmt.Sprint("b", i)))
				interim := filepath.Join(filepath.Dir(path), interimName(filepath.Base(path)))
				lock, err := writer.lockBuild("s", kind, fmt.Sprint("b", i), true)
				if err == nil {
					if err = os.Rename(path, interim); err == nil {
						err = os.Rename(interim, path)
					}
					lock.release()
				}
				if err != nil {
					done <- err
					return
				}
			}
		}
	}()
	for range 300 {
		page, err := listPage(reader, "s", VersionQuery{})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Versions) != builds {
			t.Fatalf("%d builds are listed of %d", len(page.Versions), builds)
		}
		for _, v := range page.Versions {
			if v.SizeBytes != 1 || len(v.Logs) != 1 {
				t.Fatalf("listed as %+v", v)
			}
		}
		reader = openRemote(t, base) // every other reader knows nothing yet
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// An abandoned replacement keeps its interim file if that is the only file of the build,
// if it belongs to another host, or if the lock is lost.
func TestReplacementThatGivesUpRemovesNoBuild(t *testing.T) {
	const name = "b" + artifactSuffix
	for _, c := range []struct {
		what    string
		change  func(t *testing.T, n *nfs, temp *tempFile, lock *buildLock)
		removed bool
	}{
		{"as it is", func(*testing.T, *nfs, *tempFile, *buildLock) {}, true},
		{"no name", func(t *testing.T, n *nfs, temp *tempFile, _ *buildLock) {
			if err := n.disk.remove(temp.dir, name); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"another's", func(_ *testing.T, _ *nfs, temp *tempFile, _ *buildLock) { temp.stat.Ino++ }, false},
		{"lock lost", func(_ *testing.T, _ *nfs, _ *tempFile, lock *buildLock) { lock.release() }, false},
	} {
		n := openRemote(t, t.TempDir())
		mustStore(t, n, "s", "b", []byte("old"))
		dir := mustOpenBuilds(t, n)
		lock := mustLock(t, n)
		temp := sealed(t, n.disk, dir, "new")
		if err := n.linkInterim(temp, name, lock); err != nil {
			t.Fatal(err)
		}
		c.change(t, n, temp, lock)
		n.giveUp(temp, name, lock)
		_, err := os.Lstat(filepath.Join(dir.Name(), interimName(name)))
		if removed := errors.Is(err, fs.ErrNotExist); removed != c.removed {
			t.Errorf("%s: the interim file was removed: %v, want %v", c.what, removed, c.removed)
		}
		temp.discard()
	}
}

// A reader releases the lock after it has found that there is no build.
func TestLookAtAMissingBuildGivesTheLockBack(t *testing.T) {
	n := openRemote(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("x"))
	for _, missing := range []string{"other", "b"} {
		if missing == "b" {
			path := filepath.Join(n.sitePath("s", artifactsDir), fileName(artifactsDir, "b"))
			if err := os.Rename(path, filepath.Join(filepath.Dir(path), interimName(filepath.Base(path)))); err != nil {
				t.Fatal(err)
			}
			wantBytes(t, n, "s", "b", []byte("x"))
		} else {
			_, err := n.StatArtifact("s", missing)
			wantError(t, err, ErrNotFound)
		}
		lock, err := n.tryLock("s", artifactsDir, missing)
		if err != nil || lock == nil {
			t.Fatalf("after a look at %s its lock is not free: %v", missing, err)
		}
		lock.release()
	}
}

// A lock that is lost between two steps ends the replacement. Files of another host stay,
// and nothing is acknowledged.
func TestLostLockEndsAReplacementBetweenItsSteps(t *testing.T) {
	const name = "b" + artifactSuffix
	for _, c := range []struct {
		what    string
		theirs  bool // another host's interim file is there
		renames int  // the lock is lost after so many; 0: before the link
		want    leftovers
	}{
		{"before the old file is moved", false, 0, leftovers{name: "old", interim: "new"}},
		{"before another's interim file is removed", true, 0, leftovers{name: "old", interim: "theirs"}},
		{"before the former file is removed", false, 2, leftovers{name: "new", former: "old"}},
	} {
		n := openRemote(t, t.TempDir())
		mustStore(t, n, "s", "b", []byte("old"))
		dir := mustOpenBuilds(t, n)
		if c.theirs {
			if err := os.WriteFile(filepath.Join(dir.Name(), interimName(name)), []byte("theirs"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		lock, err := n.lockBuild("s", artifactsDir, "b", true)
		if err != nil {
			t.Fatal(err)
		}
		temp := sealed(t, n.disk, dir, "new")
		renames := 0
		n.disk.renamed = func() {
			if renames++; renames == c.renames {
				lock.release()
			}
		}
		if c.renames == 0 {
			n.disk.linking = lock.release
		}
		err = n.putInPlace(temp, name, lock)
		temp.discard()
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", c.what, err)
		}
		wantFiles(t, dir.Name(), c.want.files(name)...)
		for at, want := range map[string]string{name: c.want.name, interimName(name): c.want.interim, formerName(name): c.want.former} {
			if want != "" {
				wantContent(t, filepath.Join(dir.Name(), at), want)
			}
		}
	}
}

// A replacement succeeds although a delayed rename moves the old file away first.
func TestLateRenameBeforeAReplacement(t *testing.T) {
	const name = "b" + artifactSuffix
	n := openRemote(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("old"))
	artifacts := n.sitePath("s", artifactsDir)
	n.disk.linking = func() {
		if err := os.Rename(filepath.Join(artifacts, name), filepath.Join(artifacts, formerName(name))); err != nil {
			t.Error(err)
		}
	}
	if err := n.StoreArtifact("s", "b", strings.NewReader("new")); err != nil {
		t.Error(err)
	}
	wantBytes(t, n, "s", "b", []byte("new"))
	wantFiles(t, artifacts, name)
}

// A replacement whose new file vanished is not acknowledged, and the old build stays.
func TestReplacementWhoseInterimFileWent(t *testing.T) {
	const name = "b" + artifactSuffix
	n := openRemote(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("old"))
	artifacts := n.sitePath("s", artifactsDir)
	n.disk.renamed = func() {
		n.disk.renamed = nil
		if err := os.Remove(filepath.Join(artifacts, interimName(name))); err != nil {
			t.Error(err)
		}
	}
	wantError(t, n.StoreArtifact("s", "b", strings.NewReader("new")), fs.ErrNotExist)
	wantBytes(t, n, "s", "b", []byte("old"))
	wantFiles(t, artifacts, name)
}

// A replacement is not acknowledged if a delayed rename moved its file and the file
// cannot be renamed back.
func TestReplacementThatCannotPutItsFileBack(t *testing.T) {
	const name = "b" + artifactSuffix
	n := openRemote(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("old"))
	artifacts := n.sitePath("s", artifactsDir)
	renames := 0
	n.disk.renamed = func() {
		var err error
		switch renames++; renames {
		case 2:
			err = os.Rename(filepath.Join(artifacts, name), filepath.Join(artifacts, formerName(name)))
		case 3: // the look at the directory fails
			err = errors.Join(os.Rename(artifacts, artifacts+".moved"), os.WriteFile(artifacts, nil, 0o644))
		}
		if err != nil {
			t.Error(err)
		}
	}
	if err := n.StoreArtifact("s", "b", strings.NewReader("new")); err == nil {
		t.Error("it is acknowledged")
	}
	if renames < 3 {
		t.Errorf("%d renames", renames)
	}
}

// A build is not reported missing if a delayed rename of another host gives it its name
// back while a reader tries the other names.
func TestLookBesideALateRename(t *testing.T) {
	n := openRemote(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("x"))
	name := n.sitePath("s", artifactsDir) + "/b" + artifactSuffix
	interim := filepath.Join(filepath.Dir(name), interimName(filepath.Base(name)))
	if err := os.Rename(name, interim); err != nil {
		t.Fatal(err)
	}
	err := n.find("s", artifactsDir, "b", func(path string) error {
		if path == interim {
			if err := os.Rename(interim, name); err != nil {
				t.Error(err)
			}
		}
		_, err := os.Stat(path)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
