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

	"golang.org/x/sys/unix"
)

// openRemote opens the directory at base as if it were an NFS mount. The locks
// are real; the two steps of a rename are not, so tests make their states.
func openRemote(t testing.TB, base string) *nfs {
	t.Helper()
	n := openTestNFS(t, base)
	n.remote = true
	return n
}

// The contract holds with the replacement for NFS, too.
func TestReplacementForNFS(t *testing.T) {
	base := t.TempDir()
	testBackend(t, func(t *testing.T) Backend { return openRemote(t, base) })
}

// cutStore is a store with a build whose replacement was cut, and a log
// likewise. unfinished: the old file is there, else it is not.
func cutStore(t *testing.T, remote, unfinished bool) (n *nfs, artifacts, logs string) {
	t.Helper()
	base := t.TempDir()
	n = openTestNFS(t, base)
	mustStore(t, n, "s", "b", []byte("old"))
	mustLog(t, n, "s", entry("1", "b", testTime))
	artifacts, logs = filepath.Join(base, sitesDir, "s", artifactsDir), filepath.Join(base, sitesDir, "s", logsDir)
	move := os.Rename
	if unfinished {
		move = func(from, to string) error {
			data, err := os.ReadFile(from)
			if err != nil {
				return err
			}
			return os.WriteFile(to, append([]byte("new "), data...), 0o644)
		}
	}
	for _, path := range []string{filepath.Join(artifacts, "b"+artifactSuffix), filepath.Join(logs, "b"+logSuffix)} {
		if err := move(path, filepath.Join(filepath.Dir(path), interimName(filepath.Base(path)))); err != nil {
			t.Fatal(err)
		}
	}
	n = openTestNFS(t, base) // another process
	n.remote = remote
	return n, artifacts, logs
}

// Whatever is done first to a build whose replacement was cut finds the build,
// and afterwards nothing is left of the cut.
func TestReplacementThatWasCut(t *testing.T) {
	const build, interim, log, interimLog = "b.tar.gz", ".new-b.tar.gz", "b.json", ".new-b.json"
	wantOld := func(t *testing.T, n *nfs) {
		t.Helper()
		wantBytes(t, n, "s", "b", []byte("old"))
	}
	for _, c := range []struct {
		name            string
		do              func(t *testing.T, n *nfs)
		cut, unfinished [2][]string // the files of artifacts and logs afterwards
	}{
		{"fetch", wantOld,
			[2][]string{{interim}, {interimLog}}, [2][]string{{interim, build}, {interimLog, log}}},
		{"stat", func(t *testing.T, n *nfs) {
			if info, err := n.StatArtifact("s", "b"); err != nil || info.Size != 3 {
				t.Errorf("%+v, %v", info, err)
			}
		}, [2][]string{{interim}, {interimLog}}, [2][]string{{interim, build}, {interimLog, log}}},
		{"list", func(t *testing.T, n *nfs) {
			versions, err := n.ListVersions("s")
			if err != nil || len(versions) != 1 || versions[0].SizeBytes != 3 || !slices.Equal(idsOf(versions[0].Logs), []string{"1"}) {
				t.Errorf("%+v, %v", versions, err)
			}
		}, [2][]string{{interim}, {interimLog}}, [2][]string{{interim, build}, {interimLog, log}}},
		{"create", func(t *testing.T, n *nfs) {
			_, err := n.StoreArtifactIf("s", "b", strings.NewReader("rival"), createOnly)
			wantError(t, err, ErrPrecondition)
			wantOld(t, n)
		}, [2][]string{{interim}, {interimLog}}, [2][]string{{interim, build}, {interimLog, log}}},
		{"replace", func(t *testing.T, n *nfs) {
			mustStore(t, n, "s", "b", []byte("newest"))
			wantBytes(t, n, "s", "b", []byte("newest"))
		}, [2][]string{{build}, {interimLog}}, [2][]string{{build}, {interimLog, log}}},
		{"replace if it matches", func(t *testing.T, n *nfs) {
			info, err := n.StatArtifact("s", "b")
			if err != nil {
				t.Fatal(err)
			}
			_, err = n.StoreArtifactIf("s", "b", strings.NewReader("rival"), ifMatch(`"x"`))
			wantError(t, err, ErrPrecondition)
			if _, err = n.StoreArtifactIf("s", "b", strings.NewReader("newest"), ifMatch(info.ETag)); err != nil {
				t.Error(err)
			}
			wantBytes(t, n, "s", "b", []byte("newest"))
		}, [2][]string{{build}, {interimLog}}, [2][]string{{build}, {interimLog, log}}},
		{"delete", func(t *testing.T, n *nfs) {
			if err := n.DeleteArtifact("s", "b", Precondition{}); err != nil {
				t.Error(err)
			}
			if _, err := n.sweepOnce(context.Background(), time.Hour); err != nil {
				t.Error(err)
			}
			_, err := n.FetchArtifact("s", "b")
			wantError(t, err, ErrNotFound)
		}, [2][]string{nil, {log}}, [2][]string{nil, {interimLog, log}}},
		{"delete if it matches", func(t *testing.T, n *nfs) {
			wantError(t, n.DeleteArtifact("s", "b", ifMatch(`"x"`)), ErrPrecondition)
			wantOld(t, n)
			if err := n.DeleteArtifact("s", "b", Precondition{IfMatch: &ETagList{Any: true}}); err != nil {
				t.Error(err)
			}
		}, [2][]string{nil, {interimLog}}, [2][]string{nil, {interimLog, log}}},
		{"append", func(t *testing.T, n *nfs) {
			mustLog(t, n, "s", entry("2", "b", testTime))
			if got := idsOf(versionOf(t, n, "s", "b").Logs); !slices.Equal(got, []string{"1", "2"}) {
				t.Errorf("the log has %v", got)
			}
		}, [2][]string{{interim}, {log}}, [2][]string{{interim, build}, {log}}},
		{"repeated append", func(t *testing.T, n *nfs) {
			mustLog(t, n, "s", entry("1", "b", testTime))
			if got := idsOf(versionOf(t, n, "s", "b").Logs); !slices.Equal(got, []string{"1"}) {
				t.Errorf("the log has %v", got)
			}
		}, [2][]string{{interim}, {log}}, [2][]string{{interim, build}, {interimLog, log}}},
		{"sweep", func(t *testing.T, n *nfs) {
			if _, err := n.sweepOnce(context.Background(), time.Hour); err != nil {
				t.Error(err)
			}
			wantOld(t, n)
		}, [2][]string{{build}, {log}}, [2][]string{{interim, build}, {interimLog, log}}}, // too young to be swept
	} {
		for _, remote := range []bool{true, false} {
			for _, unfinished := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/remote=%v/unfinished=%v", c.name, remote, unfinished), func(t *testing.T) {
					n, artifacts, logs := cutStore(t, remote, unfinished)
					c.do(t, n)
					want := c.cut
					if unfinished {
						want = c.unfinished
					}
					if !remote { // a local rename is one step: what is unfinished is left to the sweep
						for i, name := range []string{interim, interimLog} {
							if unfinished && !slices.Contains(want[i], name) && !strings.HasPrefix(c.name, "delete") {
								want[i] = append([]string{name}, want[i]...)
							}
						}
						if !unfinished && c.name == "replace" {
							want[0] = []string{interim, build}
						}
					}
					wantFiles(t, artifacts, want[0]...)
					wantFiles(t, logs, want[1]...)
				})
			}
		}
	}
}

// On NFS a replacement is two renames, the first upload of a build is one.
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
	}{{true, []string{"1", "3", "4", "6"}}, {false, []string{"1", "2", "3", "4"}}} {
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

// A replacement that cannot be finished takes its interim file away where the
// build is there.
func TestReplacementThatGivesUp(t *testing.T) {
	d, dir := openTestDir(t)
	target := filepath.Join(dir.Name(), "b.tar.gz")
	if err := os.Mkdir(target, 0o755); err != nil { // rename(2) does not replace it
		t.Fatal(err)
	}
	temp := sealed(t, d, dir, "new")
	if err := temp.replaceByInterim("b.tar.gz"); err == nil {
		t.Error("a directory was replaced")
	}
	temp.discard()
	wantFiles(t, dir.Name(), "b.tar.gz")
}

// While somebody may be replacing a build that is not under its name, a reader
// waits: it sees the build that comes, and never says that there is none.
func TestMissingNameUnderALock(t *testing.T) {
	for _, c := range []struct {
		kind string
		read func(n *nfs) error
	}{
		{artifactsDir, func(n *nfs) error { _, err := fetch(n, "s", "b"); return err }},
		{artifactsDir, func(n *nfs) error { _, err := n.StatArtifact("s", "b"); return err }},
		{logsDir, func(n *nfs) error {
			page, err := n.ListVersionsPage("s", VersionQuery{})
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

// A lock that is never given back ends in 503 for readers, not in 404.
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

// A look at what is not there makes nothing, and needs no lock file.
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

// On NFS every change of a build excludes every other one, and looks. On a
// local file system a change without a condition is one step, and does not.
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

// An error that the lock manager gives for a while is no "no locks here", which
// would let a change run without a lock.
func TestLockErrors(t *testing.T) {
	f := func(cause, want error) { t.Helper(); wantError(t, lockError("/p", cause), want) }
	f(unix.ENOLCK, ErrUnavailable)
	f(unix.EOPNOTSUPP, ErrUnsupported)
	f(unix.ENOSYS, ErrUnsupported)
	f(unix.EINVAL, ErrUnsupported)
	f(unix.ESTALE, ErrUnavailable)
	f(unix.EROFS, ErrReadOnly)
}

// A create whose temp has a second name, made by a backup with hard links, is
// no create that was made.
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
		page, err := reader.ListVersionsPage("s", VersionQuery{})
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
