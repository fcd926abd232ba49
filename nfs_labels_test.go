package main

import (
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

// labelPath returns the path of the file of a label.
func labelPath(base, site, label string) string {
	return filepath.Join(base, sitesDir, site, labelsDir, fileName(labelsDir, label))
}

func plantLabel(t testing.TB, base, site, label string, data []byte) {
	t.Helper()
	path := labelPath(base, site, label)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// openKinds are the two kinds of directory, which replace a label in different ways.
var openKinds = map[string]func(t testing.TB, base string) *nfs{"local": openTestNFS, "remote": openRemote}

func TestLabelsInADirectory(t *testing.T) {
	for kind, open := range openKinds {
		t.Run(kind, func(t *testing.T) {
			base := t.TempDir()
			testLabels(t, labelRig{
				open:  func(t *testing.T) Backend { return open(t, base) },
				plant: func(t *testing.T, site, label string, data []byte) { plantLabel(t, base, site, label, data) },
			})
		})
	}
}

// labelled opens a store in which the label live names build b of site s, and c is another one.
func labelled(t testing.TB, base string, open func(t testing.TB, base string) *nfs) *nfs {
	t.Helper()
	n := open(t, base)
	for _, id := range []string{"b", "c"} {
		if err := n.StoreArtifact("s", id, strings.NewReader(id)); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := n.MoveLabel("s", LabelMove{Label: "live", BuildID: "b"}); err != nil {
		t.Fatal(err)
	}
	return n
}

func moveTo(build string) LabelMove { return LabelMove{Label: "live", BuildID: build} }

// A move and a delete of a label exclude the changes of the builds that it names before and after,
// and changes of labels. Nothing else waits for them, and they wait for nothing else: on a busy
// site some lock is always held.
func TestLabelsLockTheirBuilds(t *testing.T) {
	const wait = 200 * time.Millisecond // far longer than each operation takes without a lock
	move := func(n *nfs) error { _, _, err := n.MoveLabel("s", moveTo("c")); return err }
	remove := func(n *nfs) error { return n.DeleteLabel("s", "live", Precondition{}) }
	put := func(build string, cond Precondition) func(n *nfs) error {
		return func(n *nfs) error {
			_, err := n.StoreArtifactIf("s", build, strings.NewReader("new"), cond)
			return err
		}
	}
	lock := func(dir, id string, exclusive bool) func(n *nfs) (*buildLock, error) {
		return func(n *nfs) (*buildLock, error) { return n.lockBuild("s", dir, id, exclusive) }
	}
	moving := func(n *nfs) (*buildLock, error) { // what a move from b to c holds
		l, err := n.lockLabels("s", "live")
		return l, errors.Join(err, n.addArtifact(l, "s", "c"), n.addArtifact(l, "s", "b"))
	}
	another := func(n *nfs) (*buildLock, error) { return n.lockLabels("t", "live") }
	for _, c := range []struct {
		what  string
		hold  func(n *nfs) (*buildLock, error)
		do    func(n *nfs) error
		waits bool
	}{
		{"a move for its new build", lock(artifactsDir, "c", true), move, true},
		{"a move for a shared lock of it", lock(artifactsDir, "c", false), move, true},
		{"a move for its old build", lock(artifactsDir, "b", true), move, true},
		{"a move for a shared lock of it too", lock(artifactsDir, "b", false), move, true},
		{"a move for another label", lock(labelsDir, "other", true), move, true},
		{"a move for another build", lock(artifactsDir, "other", true), move, false},
		{"a move for a log", lock(logsDir, "c", true), move, false},
		{"a delete of a label for its build", lock(artifactsDir, "b", false), remove, true},
		{"a delete of a label for another label", lock(labelsDir, "other", true), remove, true},
		{"a delete of a label for another build", lock(artifactsDir, "c", true), remove, false},
		{"a replacement", moving, put("c", Precondition{}), true},
		{"a replacement on a condition", moving, put("c", exists), true},
		{"a delete", moving, func(n *nfs) error { return n.DeleteArtifact("s", "c", Precondition{}) }, true},
		{"a delete of another build", moving, func(n *nfs) error { return n.DeleteArtifact("s", "d", Precondition{}) }, false},
		{"a replacement of another build", moving, put("d", exists), false},
		{"a create", moving, put("new", createOnly), false},
		{"an entry", moving, func(n *nfs) error { return n.WriteLog("s", entry("1", "b", testTime)) }, false},
		{"a move in another site", another, move, false},
		{"a read", moving, func(n *nfs) error { _, err := n.GetLabel("s", "live"); return err }, false},
		{"a list", moving, func(n *nfs) error { _, err := n.ListLabels("s"); return err }, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			base := t.TempDir()
			n := labelled(t, base, openTestNFS)
			mustStore(t, n, "s", "d", []byte("d"))
			mustStore(t, n, "t", "b", []byte("x"))
			mustMove(t, n, "t", "live", "b")
			n.lockWait = wait
			held, err := c.hold(openTestNFS(t, base))
			if err != nil {
				t.Fatal(err)
			}
			defer held.release()
			err = c.do(n)
			if c.waits {
				wantError(t, err, ErrLocked)
				for id, content := range map[string]string{"b": "b", "c": "c"} {
					wantBytes(t, n, "s", id, []byte(content))
				}
				wantLabel(t, n, "s", "live", "b")
				held.release()
				err = c.do(n)
			}
			if err != nil {
				t.Error(err)
			}
			held.release()
			if got := openLocks(t, base, "s"); got != 0 {
				t.Errorf("%d descriptors stay open", got)
			}
		})
	}
}

// A lost lock ends a move or a delete, and the label stays as it was.
func TestLostLockEndsAMove(t *testing.T) {
	n := labelled(t, t.TempDir(), openTestNFS)
	loseLocks(t, n)
	_, _, err := n.MoveLabel("s", moveTo("c"))
	wantError(t, err, ErrUnavailable)
	wantError(t, n.DeleteLabel("s", "live", Precondition{}), ErrUnavailable)
	wantLabel(t, n, "s", "live", "b")
	wantFiles(t, n.sitePath("s", labelsDir), "live.json")
}

// If another host may have deleted the build while the label was moved, the move is not
// acknowledged.
func TestLockLostInAMove(t *testing.T) {
	for kind, open := range openKinds {
		for _, label := range []string{"live", "new"} {
			n := labelled(t, t.TempDir(), open)
			lose := func() {
				n.disk.renamed, n.disk.linking = nil, nil
				loseOpenLocks(t, n)
			}
			if kind == "remote" && label == "new" {
				n.disk.linking = lose
			} else {
				n.disk.renamed = lose
			}
			_, _, err := n.MoveLabel("s", LabelMove{Label: label, BuildID: "c"})
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s, %s: %v", kind, label, err)
			}
		}
	}
}

// loseOpenLocks makes the locks of site s that this process holds look lost: each descriptor of
// the lock file becomes one that cannot be read.
func loseOpenLocks(t *testing.T, n *nfs) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	lost := 0
	for _, fd := range fds {
		var number int
		if at, _ := os.Readlink("/proc/self/fd/" + fd.Name()); at == filepath.Join(n.sitePath("s", ""), lockName) {
			if _, err := fmt.Sscan(fd.Name(), &number); err != nil {
				t.Fatal(err)
			}
			if err := unix.Dup3(int(w.Fd()), number, unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			lost++
		}
	}
	if lost != 1 {
		t.Fatalf("%d locks were held", lost)
	}
}

// No operation creates anything in a site that is not there, and no PUT or DELETE creates labels.
func TestLabelsCreateNothing(t *testing.T) {
	for kind, open := range openKinds {
		base := t.TempDir()
		n := open(t, base)
		_, _, err := n.MoveLabel("s", moveTo("b"))
		wantError(t, err, ErrNotFound)
		wantLabel(t, n, "s", "live", "")
		labels, err := n.ListLabels("s")
		if err != nil || len(labels) != 0 {
			t.Errorf("%s: listed %v, %v", kind, labels, err)
		}
		if err := n.DeleteLabel("s", "live", Precondition{}); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		wantFiles(t, base)
		mustStore(t, n, "s", "b", []byte("x"))
		mustStore(t, n, "s", "b", []byte("y"))
		mustStore(t, n, "s", "c", []byte("y"))
		for _, move := range []LabelMove{moveTo("unknown"), {Label: "live", BuildID: "b", Cond: exists}} {
			if _, _, err := n.MoveLabel("s", move); err == nil {
				t.Errorf("%s: %+v succeeds", kind, move)
			}
		}
		if err := errors.Join(n.DeleteArtifact("s", "c", Precondition{}), n.DeleteLabel("s", "live", Precondition{})); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		wantFiles(t, filepath.Join(base, sitesDir, "s"), lockName, artifactsDir)
	}
}

// cutLabel leaves the files of an interrupted replacement of the label live, which names b. What
// is left beside it names c.
func cutLabel(t *testing.T, remote bool, l leftovers) *nfs {
	t.Helper()
	n := labelled(t, t.TempDir(), openTestNFS)
	n.remote = remote
	b, err := os.ReadFile(labelPath(n.base, "s", "live"))
	if err != nil {
		t.Fatal(err)
	}
	c := formatLabel(Label{Name: "live", BuildID: "c", ChangedAt: testTime})
	dir, name := n.sitePath("s", labelsDir), "live.json"
	for at, content := range map[string]string{name: l.name, interimName(name): l.interim, formerName(name): l.former, removedName(name): l.removed} {
		data := map[string][]byte{"build": b, "left": c}[content]
		path := filepath.Join(dir, at)
		if data == nil {
			err = ignoreNotExist(os.Remove(path))
		} else {
			err = os.WriteFile(path, data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// The first operation after an interrupted replacement finds the label, and leaves the expected
// files.
func TestLabelWhoseReplacementWasCut(t *testing.T) {
	same := func(l leftovers, _ bool) leftovers { return l }
	completed := func(l leftovers, _ bool) leftovers { return l.completed() }
	none := func(leftovers, bool) leftovers { return leftovers{} }
	for _, c := range []struct {
		what string
		do   func(t *testing.T, n *nfs)
		left func(l leftovers, remote bool) leftovers
	}{
		{"get", func(t *testing.T, n *nfs) { wantLabel(t, n, "s", "live", "b") }, same},
		{"list", func(t *testing.T, n *nfs) {
			if labels, err := n.ListLabels("s"); err != nil || len(labels) != 1 || labels[0].BuildID != "b" {
				t.Errorf("%+v, %v", labels, err)
			}
		}, same},
		{"changes of its build", func(t *testing.T, n *nfs) {
			for what, change := range changesOf(n, "s", mustGet(t, n, "s", "live").BuildETag) {
				wantLabelled(t, what, change(), "live")
			}
			wantBytes(t, n, "s", "b", []byte("b"))
		}, same},
		{"a change of another build", func(t *testing.T, n *nfs) {
			if err := n.DeleteArtifact("s", "c", Precondition{}); err != nil {
				t.Error(err)
			}
		}, same},
		{"move", func(t *testing.T, n *nfs) {
			if l, created, err := n.MoveLabel("s", moveTo("c")); err != nil || created || l.Previous != "b" {
				t.Errorf("%+v, created %v, %v", l, created, err)
			}
			wantLabel(t, n, "s", "live", "c")
		}, func(l leftovers, remote bool) leftovers {
			if l = l.completed(); remote {
				return leftovers{name: "c"}
			}
			return l
		}},
		{"move to its build", func(t *testing.T, n *nfs) { mustMove(t, n, "s", "live", "b") }, completed},
		{"move that is refused", func(t *testing.T, n *nfs) {
			_, _, err := n.MoveLabel("s", LabelMove{Label: "live", BuildID: "c", Cond: createOnly})
			wantError(t, err, ErrPrecondition)
		}, completed},
		{"delete", func(t *testing.T, n *nfs) {
			if err := n.DeleteLabel("s", "live", Precondition{}); err != nil {
				t.Error(err)
			}
			wantLabel(t, n, "s", "live", "")
		}, none},
		{"sweep", func(t *testing.T, n *nfs) {
			if _, err := n.sweepOnce(context.Background(), time.Hour); err != nil {
				t.Error(err)
			}
			wantLabel(t, n, "s", "live", "b")
		}, completed},
		{"sweep of old files", func(t *testing.T, n *nfs) {
			if _, err := n.sweepOnce(context.Background(), -time.Hour); err != nil {
				t.Error(err)
			}
			wantLabel(t, n, "s", "live", "b")
		}, func(leftovers, bool) leftovers { return leftovers{name: "build"} }},
	} {
		for _, l := range allLeftovers {
			for _, remote := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%s/remote=%v", c.what, l.what, remote), func(t *testing.T) {
					n := cutLabel(t, remote, l)
					c.do(t, n)
					wantFiles(t, n.sitePath("s", labelsDir), c.left(l, remote).files("live.json")...)
				})
			}
		}
	}
}

// A label moves to a build whose replacement was interrupted, which gets its name first.
func TestLabelOfABuildWhoseReplacementWasCut(t *testing.T) {
	for _, l := range allLeftovers {
		for _, remote := range []bool{true, false} {
			n, artifacts, _ := leaveCut(t, remote, l)
			label := mustMove(t, n, "s", "live", "b")
			if info, err := n.StatArtifact("s", "b"); err != nil || info.ETag != label.BuildETag {
				t.Errorf("%s: %+v, %v; the label is %+v", l.what, info, err, label)
			}
			wantBytes(t, n, "s", "b", []byte("build"))
			wantFiles(t, artifacts, l.completed().files("b"+artifactSuffix)...)
		}
	}
}

// A delayed request of a client that lost its lock arrives between two steps of a move. The label
// stays, with the build that was acknowledged last.
func TestLateRequestsForALabel(t *testing.T) {
	const name = "live.json"
	for what, r := range map[string][2]string{
		"the old label away from its name": {name, formerName(name)},
		"the new label to the name":        {interimName(name), name},
		"the former label away":            {formerName(name), removedName(name)},
	} {
		for at := range 5 { // after so many renames
			n := labelled(t, t.TempDir(), openRemote)
			dir, count := n.sitePath("s", labelsDir), 0
			n.disk.renamed = func() {
				if count++; count == at+1 {
					_ = os.Rename(filepath.Join(dir, r[0]), filepath.Join(dir, r[1]))
				}
			}
			_, _, err := n.MoveLabel("s", moveTo("c"))
			n.disk.renamed = nil
			if err != nil {
				t.Errorf("%s after rename %d: %v", what, at, err)
			}
			wantLabel(t, n, "s", "live", "c")
			wantLabelled(t, what, n.DeleteArtifact("s", "c", Precondition{}), "live")
			if _, err := n.sweepOnce(t.Context(), -time.Hour); err != nil {
				t.Error(err)
			}
			wantFiles(t, dir, name)
			wantLabel(t, n, "s", "live", "c")
		}
	}
}

// At each moment of a move over NFS, every process finds the label, and whoever holds a lock
// reads all labels.
func TestLabelIsNeverMissing(t *testing.T) {
	n := labelled(t, t.TempDir(), openRemote)
	other := openRemote(t, n.base)
	other.lockWait = 10 * time.Millisecond
	seen := 0
	look := func() {
		seen++
		names, err := os.ReadDir(n.sitePath("s", labelsDir))
		if err != nil {
			t.Fatal(err)
		}
		dir, err := other.openFresh("s", labelsDir)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if labels, err := labelsIn(dir, func(label string) (Label, error) { return other.labelIn(dir, label) }); err != nil || len(labels) != 1 {
			t.Errorf("labels %+v, %v in %v", labels, err, names)
		}
		if l, err := other.GetLabel("s", "live"); err == nil && l.BuildID != "b" && l.BuildID != "c" || err != nil && !errors.Is(err, ErrLocked) {
			t.Errorf("label %+v, %v in %v", l, err, names)
		}
	}
	n.disk.renamed, n.disk.linking, n.disk.removing = look, look, look
	mustMove(t, n, "s", "live", "c")
	if seen < 5 {
		t.Errorf("a move has %d steps", seen)
	}
}

// Whatever else has the name of a label blocks nobody, and protects every build until it is
// removed.
func TestWhatIsNoLabel(t *testing.T) {
	for what, plant := range map[string]func(path string) error{
		"a FIFO":              func(path string) error { return unix.Mkfifo(path, 0o644) },
		"a link to a label":   func(path string) error { return os.Symlink("live.json", path) },
		"a link to nothing":   func(path string) error { return os.Symlink("nowhere", path) },
		"a socket":            func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o644, 0) },
		"a directory":         func(path string) error { return os.Mkdir(path, 0o755) },
		"a device":            func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) }, // /dev/zero
		"an empty file":       func(path string) error { return os.WriteFile(path, nil, 0o644) },
		"a file that is huge": func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o644), os.Truncate(path, 1<<40)) },
	} {
		for kind, open := range openKinds {
			t.Run(what+", "+kind, func(t *testing.T) {
				n := labelled(t, t.TempDir(), open)
				if err := plant(labelPath(n.base, "s", "other")); errors.Is(err, unix.EPERM) {
					t.Skip(err)
				} else if err != nil {
					t.Fatal(err)
				}
				_, get := n.GetLabel("s", "other")
				_, list := n.ListLabels("s")
				_, _, move := n.MoveLabel("s", LabelMove{Label: "other", BuildID: "b"})
				for op, err := range map[string]error{"get": get, "list": list, "move": move,
					"delete on a condition": n.DeleteLabel("s", "other", exists),
					"delete of a build":     n.DeleteArtifact("s", "c", Precondition{}),
					"replacement":           n.StoreArtifact("s", "c", strings.NewReader("x")),
				} {
					if !errors.Is(err, errLabelDamaged) {
						t.Errorf("%s: %v", op, err)
					}
				}
				if err := n.StoreArtifact("s", "new", strings.NewReader("x")); err != nil {
					t.Errorf("a new build: %v", err)
				}
				wantBytes(t, n, "s", "c", []byte("c"))
				wantLabel(t, n, "s", "live", "b")
				mustMove(t, n, "s", "live", "c")
				err := n.DeleteLabel("s", "other", Precondition{})
				if what == "a directory" { // the service removes none
					wantError(t, err, ErrOccupied)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := n.DeleteArtifact("s", "b", Precondition{}); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// What cannot be the name of a label is ignored.
func TestOtherFilesBesideLabels(t *testing.T) {
	n := labelled(t, t.TempDir(), openTestNFS)
	for _, name := range []string{"Live.json", "-a.json", "live.txt", "live", ".json", ".live.json", ".new-Live.json", ".new-live.txt", aTempName(), strings.Repeat("z", maxLabelLen+1) + ".json"} {
		if err := os.WriteFile(filepath.Join(n.sitePath("s", labelsDir), name), []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if labels, err := n.ListLabels("s"); err != nil || len(labels) != 1 {
		t.Errorf("listed %+v, %v", labels, err)
	}
	if err := n.DeleteArtifact("s", "c", Precondition{}); err != nil {
		t.Error(err)
	}
	wantLabelled(t, "its build", n.DeleteArtifact("s", "b", Precondition{}), "live")
}

// If something else is in the place of the labels, nobody knows which builds they protect.
func TestWhatIsNoDirectoryOfLabels(t *testing.T) {
	for what, c := range map[string]struct {
		plant func(path string) error
		want  error
	}{
		"a file":              {func(path string) error { return os.WriteFile(path, nil, 0o644) }, ErrOccupied},
		"a FIFO":              {func(path string) error { return unix.Mkfifo(path, 0o644) }, ErrOccupied},
		"a link":              {func(path string) error { return os.Symlink(artifactsDir, path) }, ErrDenied},
		"a link to nothing":   {func(path string) error { return os.Symlink("nowhere", path) }, ErrDenied},
		"a link to a labels'": {func(path string) error { return os.Symlink("../t/labels", path) }, ErrDenied},
	} {
		for kind, open := range openKinds {
			t.Run(what+", "+kind, func(t *testing.T) {
				n := open(t, t.TempDir())
				for _, site := range []string{"s", "t"} {
					mustStore(t, n, site, "b", []byte("old"))
				}
				mustMove(t, n, "t", "live", "b")
				if err := c.plant(n.sitePath("s", labelsDir)); err != nil {
					t.Fatal(err)
				}
				_, list := n.ListLabels("s")
				_, _, move := n.MoveLabel("s", moveTo("b"))
				for op, err := range map[string]error{"list": list, "move": move,
					"delete":            n.DeleteLabel("s", "live", Precondition{}),
					"delete of a build": n.DeleteArtifact("s", "b", Precondition{}),
					"replacement":       n.StoreArtifact("s", "b", strings.NewReader("x")),
				} {
					if !errors.Is(err, c.want) {
						t.Errorf("%s: %v", op, err)
					}
				}
				if _, err := n.GetLabel("s", "live"); err == nil {
					t.Error("there is a label")
				}
				wantBytes(t, n, "s", "b", []byte("old"))
				mustStore(t, n, "s", "new", []byte("x"))
			})
		}
	}
}

// A move is durable before its lock is released, and what a delete relies on before the build is
// removed.
func TestFsyncsOfLabels(t *testing.T) {
	base := t.TempDir()
	labelled(t, base, openTestNFS)
	w := watchFsyncs(t, base) // which knows of no directory that it is durable
	const dir, file, builds = "sites/s/labels", "sites/s/labels/.tmp", "sites/s/artifacts"
	locked := func(path string) error {
		if (path == file || path == dir) && (free(t, base, "s", labelsDir, "any", unix.F_RDLCK) || free(t, base, "s", artifactsDir, "b", unix.F_RDLCK)) {
			t.Errorf("a lock is free during the fsync of %s", path)
		}
		return nil
	}
	f := func(what string, do func() error, want ...string) {
		t.Helper()
		w.take()
		if err := do(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		got := w.take()
		for i := range got {
			got[i], _, _ = strings.Cut(got[i], " ")
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	move := func(label, build string) func() error {
		return func() error {
			_, _, err := w.n.MoveLabel("s", LabelMove{Label: label, BuildID: build})
			return err
		}
	}
	w.before = locked
	f("the first move of a process", move("live", "c"), ".", "sites", "sites/s", builds, file, dir)
	f("a move", move("live", "b"), builds, file, dir)
	f("the same move", move("live", "b"), dir)
	f("a label that is created", move("new", "b"), builds, file, dir)
	f("a delete of a label", func() error { return w.n.DeleteLabel("s", "new", Precondition{}) }, dir)
	w.before = nil
	f("a delete of no label", func() error { return w.n.DeleteLabel("s", "new", Precondition{}) }, dir)
	f("a replacement", func() error { return w.n.StoreArtifact("s", "c", strings.NewReader("new")) },
		"sites/s", "sites/s/artifacts/.tmp", dir, "sites/s/artifacts")
	f("a new build", func() error { return w.n.StoreArtifact("s", "d", strings.NewReader("new")) },
		"sites/s/artifacts/.tmp", "sites/s/artifacts")
	f("a delete", func() error { return w.n.DeleteArtifact("s", "c", Precondition{}) }, dir, "sites/s/artifacts")
}

// A move or a delete of a label whose fsync failed is not acknowledged, and the next one repeats
// the fsync. Without it, no build is removed.
func TestFailedFsyncOfALabelIsNotAcknowledged(t *testing.T) {
	move := func(n *nfs) error { _, _, err := n.MoveLabel("s", moveTo("c")); return err }
	remove := func(n *nfs) error { return n.DeleteLabel("s", "live", Precondition{}) }
	for _, c := range []struct {
		what        string
		do          func(n *nfs) error
		fails       string
		with, want  error
		then, after string // the build that the label names; empty: there is no label
	}{
		{"move, file", move, "sites/s/labels/.tmp", unix.EIO, unix.EIO, "b", "c"},
		{"move, file: disk full", move, "sites/s/labels/.tmp", unix.ENOSPC, ErrNoSpace, "b", "c"},
		{"move, directory of the build", move, "sites/s/artifacts", unix.EIO, unix.EIO, "b", "c"},
		{"move, directory", move, "sites/s/labels", unix.EIO, unix.EIO, "c", "c"},
		{"move of a new process, site", move, "sites/s", unix.EIO, unix.EIO, "b", "c"},
		{"delete", remove, "sites/s/labels", unix.EIO, unix.EIO, "", ""},
		{"delete of a build that the label left", func(n *nfs) error { return n.DeleteArtifact("s", "c", Precondition{}) }, "sites/s/labels", unix.EIO, unix.EIO, "b", "b"},
		{"replacement of such a build", func(n *nfs) error { return n.StoreArtifact("s", "c", strings.NewReader("x")) }, "sites/s/labels", unix.EIO, unix.EIO, "b", "b"},
	} {
		t.Run(c.what, func(t *testing.T) {
			base := t.TempDir()
			n := labelled(t, base, openTestNFS)
			mustMove(t, n, "s", "live", "c")
			mustMove(t, n, "s", "live", "b")
			w := watchFsyncs(t, base)
			failed := false
			w.before = func(path string) error {
				if path != c.fails || failed {
					return nil
				}
				failed = true
				return c.with
			}
			wantError(t, c.do(w.n), c.want)
			if !failed {
				t.Fatalf("no fsync of %q: %q", c.fails, w.take())
			}
			wantBytes(t, n, "s", "c", []byte("c"))
			wantLabel(t, n, "s", "live", c.then)
			w.take()
			if err := c.do(w.n); err != nil {
				t.Error(err)
			}
			if got := w.take(); !slices.ContainsFunc(got, func(line string) bool { return strings.HasPrefix(line, c.fails+" ") }) {
				t.Errorf("the next one does not fsync %q: %q", c.fails, got)
			}
			wantLabel(t, n, "s", "live", c.after)
			if left, _ := filepath.Glob(filepath.Join(base, "sites/s/labels/.*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// On a mount that is full or read-only a label cannot move, and stays as it was.
func TestLabelsOnAMountThatTakesNone(t *testing.T) {
	onlyRoot(t)
	for what, c := range map[string]struct {
		mount func(base, at string) error
		want  error
	}{
		"read-only": {func(base, at string) error {
			return errors.Join(unix.Mount(base, at, "", unix.MS_BIND, ""), unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
		}, ErrReadOnly},
		"full": {func(base, at string) error {
			return errors.Join(unix.Mount("tmpfs", at, "tmpfs", 0, "size=64k"), os.CopyFS(at, os.DirFS(base)),
				ignoreNoSpace(os.WriteFile(filepath.Join(at, "full"), make([]byte, 64<<10), 0o644)))
		}, ErrNoSpace},
	} {
		t.Run(what, func(t *testing.T) {
			base, at := t.TempDir(), t.TempDir()
			labelled(t, base, openTestNFS)
			if err := c.mount(base, at); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
			n := openTestNFS(t, at)
			_, _, err := n.MoveLabel("s", moveTo("c"))
			wantError(t, err, c.want)
			_, _, err = n.MoveLabel("s", LabelMove{Label: "new", BuildID: "c"})
			wantError(t, err, c.want)
			wantLabel(t, n, "s", "live", "b")
			if labels, err := n.ListLabels("s"); err != nil || len(labels) != 1 {
				t.Errorf("listed %+v, %v", labels, err)
			}
			wantFiles(t, filepath.Join(at, "sites/s/labels"), "live.json")
			if err := n.DeleteLabel("s", "live", Precondition{}); c.want == ErrReadOnly && !errors.Is(err, ErrReadOnly) || c.want != ErrReadOnly && err != nil {
				t.Errorf("delete: %v", err)
			}
		})
	}
}

func ignoreNoSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return nil
	}
	return err
}

// If the store is gone, no label is reported missing, and no build is let go.
func TestLabelsOfAStoreThatWentAway(t *testing.T) {
	gone := labelled(t, filepath.Join(t.TempDir(), "."), openTestNFS)
	if err := os.Rename(gone.base, gone.base+".away"); err != nil {
		t.Fatal(err)
	}
	unmounted := openTestNFS(t, t.TempDir())
	unmounted.mountPoint = true // and now it is not
	for what, n := range map[string]*nfs{"gone": gone, "unmounted": unmounted} {
		_, get := n.GetLabel("s", "live")
		_, list := n.ListLabels("s")
		_, _, move := n.MoveLabel("s", moveTo("c"))
		for op, err := range map[string]error{"get": get, "list": list, "move": move, "delete": n.DeleteLabel("s", "live", Precondition{}),
			"the look of a change": n.checkUnlabelled(change{siteID: "s", buildID: "b"})} {
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s, %s: %v", what, op, err)
			}
		}
		if names, err := os.ReadDir(n.base); len(names) > 0 || err == nil && what == "gone" {
			t.Errorf("%s: something was written: %v", what, names)
		}
	}
}

// On a local disk a label is read once, until its file changes. On NFS nothing is remembered.
func TestLabelsAreCached(t *testing.T) {
	for kind, open := range openKinds {
		n := labelled(t, t.TempDir(), open)
		if kind == "remote" {
			n.small = newSmallFiles(false) // as openNFS does for NFS
		}
		path := labelPath(n.base, "s", "live")
		for range 3 {
			wantLabel(t, n, "s", "live", "b")
		}
		cached := unchanged(n.small.labels, path) != nil
		if cached != (kind == "local") {
			t.Errorf("%s: cached %v", kind, cached)
		}
		if n.small.files != nil && n.small.files.Contains(path) {
			t.Errorf("%s: it is among the builds", kind)
		}
		// As an administrator would, with another length and time.
		if err := os.WriteFile(path, formatLabel(Label{Name: "live", BuildID: "by-hand", ChangedAt: testTime}), 0o644); err != nil {
			t.Fatal(err)
		}
		wantLabel(t, n, "s", "live", "by-hand")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		wantLabel(t, n, "s", "live", "")
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

// BenchmarkGetLabel compares a GET of a label with that of the build that it names.
func BenchmarkGetLabel(b *testing.B) {
	n := labelled(b, b.TempDir(), openTestNFS)
	b.Run("build", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r, err := n.FetchArtifact("s", "b")
			if err != nil {
				b.Fatal(err)
			}
			r.Close()
		}
	})
	b.Run("label", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := n.GetLabel("s", "live"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
