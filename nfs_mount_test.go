package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountOptions(t *testing.T) {
	f := func(options, want string, noLocks bool) {
		t.Helper()
		var got []string
		fails := false
		for _, w := range nfsOptionWarnings(options) {
			got = append(got, w.option)
			fails = fails || w.noLocks
			if w.why == "" || w.Error() != w.option+": "+w.why {
				t.Errorf("%q: %v", options, w)
			}
		}
		if strings.Join(got, " ") != want || fails != noLocks {
			t.Errorf("%q: warns of %q, no locks %v; want %q, %v", options, got, fails, want, noLocks)
		}
	}
	f("rw,vers=4.2,hard,proto=tcp,local_lock=none", "", false)
	f("rw,vers=4.2,soft", "soft", false)
	f("rw,nocto", "nocto", false)
	f("rw,softerr,local_lock=flock", "softerr", false)
	f("rw,vers=3,nolock,local_lock=all", "nolock local_lock=all", true)
	f("rw,local_lock=posix", "local_lock=posix", true)
}

// A lost mount is detected, whatever is at its place now. Another device at the base is
// accepted if its file system is of the same kind.
func TestCheckMounted(t *testing.T) {
	for _, c := range []struct {
		name      string
		was, is   bool   // a mount point
		other     uint64 // added to the device
		available bool
	}{
		{"unchanged", false, false, 0, true},
		{"unchanged mount", true, true, 0, true},
		{"mounted over", false, true, 1, true},
		{"mounted again", true, true, 1, true},
		{"mount lost", true, false, 0, false},
		{"mount lost, the disk below is another device", true, false, 1, false},
	} {
		n := openTestNFS(t, t.TempDir())
		n.mountPoint = c.was
		n.statBase = func(string) (baseState, error) { return baseState{c.is, n.dev.Load() + c.other}, nil }
		if err := n.checkMounted(); (err == nil) != c.available || err != nil && !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Directories known to be durable on one device are not assumed durable on another: their
// parents are fsynced again, once.
func TestAnotherDeviceIsSyncedAgain(t *testing.T) {
	w := watchFsyncs(t, t.TempDir())
	mustStore(t, w.n, "s", "b", []byte("first"))
	other := uint64(0)
	w.n.statBase = func(path string) (baseState, error) {
		at, err := statBase(path)
		at.dev += other
		return at, err
	}
	for _, c := range []struct {
		other  uint64
		fsyncs int // the file and its directory, and the three above
	}{{0, 2}, {1, 5}, {1, 2}} {
		w.take()
		other = c.other
		mustStore(t, w.n, "s", "b", []byte("next"))
		if seen := w.take(); len(seen) != c.fsyncs {
			t.Errorf("device +%d: %d fsyncs, want %d: %q", c.other, len(seen), c.fsyncs, seen)
		}
	}
}

// A file system whose type cannot be determined is not taken for the store, so a build
// that is not found there is not reported missing.
func TestUnknownFileSystemIsNotTheStore(t *testing.T) {
	n := openTestNFS(t, filepath.Join(t.TempDir(), "."))
	mustStore(t, n, "s", "b", []byte("x"))
	at := baseState{n.mountPoint, n.dev.Load() + 1}
	n.statBase = func(string) (baseState, error) { return at, nil }
	if err := os.Rename(n.base, n.base+".away"); err != nil { // so that statfs(2) fails
		t.Fatal(err)
	}
	_, err := n.FetchArtifact("s", "b")
	wantError(t, err, ErrUnavailable)
}

// mustMount mounts a file system until the test ends.
func mustMount(t *testing.T, source, target, fsType, data string) {
	t.Helper()
	if err := unix.Mount(source, target, fsType, 0, data); err != nil {
		t.Fatalf("mount %s on %s: %v", fsType, target, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

// TestAnotherKindOfStore: a file system mounted over the base later is accepted if it is
// of the kind that the service was started on. Otherwise the service must be restarted,
// because it would not do what that kind needs.
func TestAnotherKindOfStore(t *testing.T) {
	onlyRoot(t)
	n := openTestNFS(t, t.TempDir())
	if n.kind != fsLocal {
		t.Skipf("the directory for tests is on %s", n.kind)
	}
	small, large := []byte("below"), bytes.Repeat([]byte("below"), smallSize)
	mustStore(t, n, "s", "b", small)
	mustStore(t, n, "s", "large", large)
	wantBytes(t, n, "s", "b", small) // is kept in memory now
	above := t.TempDir()
	other := openTestNFS(t, above)
	mustStore(t, other, "s", "b", []byte("above"))
	mustStore(t, other, "s", "large", bytes.Repeat([]byte("above"), smallSize))
	mustLog(t, other, "s", entry("1", "b", testTime))
	sites := filepath.Join(above, sitesDir)
	for _, fsType := range []string{"tmpfs", "ramfs"} { // another local one; of a kind of its own, as NFS is
		if err := unix.Mount("none", n.base, fsType, 0, ""); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("cp", "-a", sites, n.base).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for op, err := range map[string]error{
			"store": n.StoreArtifact("s", "b", strings.NewReader("x")),
			"store if": func() error {
				_, err := n.StoreArtifactIf("s", "b", strings.NewReader("x"), ifMatch(`"x"`))
				return err
			}(),
			"delete":      n.DeleteArtifact("s", "b", Precondition{}),
			"log":         n.WriteLog("s", entry("1", "b", testTime)),
			"fetch":       func() error { _, err := n.FetchArtifact("s", "b"); return err }(),
			"fetch large": func() error { _, err := n.FetchArtifact("s", "large"); return err }(),
			"stat":        func() error { _, err := n.StatArtifact("s", "b"); return err }(),
			"list":        func() error { _, err := n.ListVersions("s"); return err }(),
			"probe":       func() error { _, err := n.Probe(); return err }(),
		} {
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "restart the service") {
				t.Errorf("%s: %s: %v", fsType, op, err)
			}
		}
		if got, err := os.ReadFile(filepath.Join(n.sitePath("s", artifactsDir), "b.tar.gz")); err != nil || string(got) != "above" {
			t.Errorf("%s: changed to %q, %v", fsType, got, err)
		}
		if err := unix.Unmount(n.base, 0); err != nil {
			t.Fatal(err)
		}
		wantBytes(t, n, "s", "b", small) // without a restart
		wantBytes(t, n, "s", "large", large)
	}
	// What is mounted below the base is part of the store.
	below := n.sitePath("mounted", "")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	mustMount(t, "none", filepath.Clean(below), "tmpfs", "")
	mustStore(t, n, "mounted", "b", large)
	wantBytes(t, n, "mounted", "b", large)
}

// TestMountIsLost: a build in the directory below the mount point is not served instead
// of the build of the store.
func TestMountIsLost(t *testing.T) {
	onlyRoot(t)
	base := t.TempDir()
	mustStore(t, openTestNFS(t, base), "s", "b", []byte("below"))
	mustLog(t, openTestNFS(t, base), "s", entry("1", "b", testTime))
	mustMount(t, "none", base, "tmpfs", "")
	n := openTestNFS(t, base)
	mustStore(t, n, "s", "b", []byte("above"))
	if err := unix.Unmount(base, 0); err != nil {
		t.Fatal(err)
	}
	_, fetched := n.FetchArtifact("s", "b")
	_, stat := n.StatArtifact("s", "b")
	_, listed := n.ListVersions("s")
	for op, err := range map[string]error{"fetch": fetched, "stat": stat, "list": listed,
		"delete": n.DeleteArtifact("s", "b", Precondition{}), "log": n.WriteLog("s", entry("2", "b", testTime))} {
		wantError(t, err, ErrUnavailable)
		if err == nil {
			t.Error(op)
		}
	}
	wantContent(t, filepath.Join(n.sitePath("s", artifactsDir), "b.tar.gz"), "below")
}

// TestMountLostInBetween: a mount that disappears between the check of the base and the
// search for a file makes no build missing.
func TestMountLostInBetween(t *testing.T) {
	for name, do := range map[string]func(n *nfs) error{
		"delete": func(n *nfs) error { return n.DeleteArtifact("s", "b", Precondition{}) },
		"fetch":  func(n *nfs) error { _, err := n.FetchArtifact("s", "b"); return err },
		"list":   func(n *nfs) error { _, err := n.ListVersions("s"); return err },
		"list without logs": func(n *nfs) error {
			if err := os.MkdirAll(n.sitePath("s", artifactsDir), 0o755); err != nil {
				return err
			}
			_, err := n.ListVersions("s")
			return err
		},
	} {
		n := openTestNFS(t, t.TempDir())
		looks := 0
		n.mountPoint = true
		n.statBase = func(path string) (baseState, error) {
			looks++
			return baseState{mountPoint: name == "delete" && looks == 1, dev: n.dev.Load()}, nil
		}
		if err := do(n); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMountLostOverAnotherStore: the files below a lost mount are another store and are
// left alone, even if it has the same builds.
func TestMountLostOverAnotherStore(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	mustStore(t, n, "s", "b", []byte("below"))
	mustLog(t, n, "s", entry("1", "b", testTime))
	n.mountPoint = true // and now it is not
	for op, err := range map[string]error{
		"store":       n.StoreArtifact("s", "b", strings.NewReader("x")),
		"delete":      n.DeleteArtifact("s", "b", Precondition{}),
		"delete if *": n.DeleteArtifact("s", "b", Precondition{IfMatch: &ETagList{Any: true}}),
		"log":         n.WriteLog("s", entry("2", "b", testTime)),
		"probe":       func() error { _, err := n.Probe(); return err }(),
	} {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", op, err)
		}
	}
	n.mountPoint = false
	wantBytes(t, n, "s", "b", []byte("below"))
	if got := idsOf(versionOf(t, n, "s", "b").Logs); !slices.Equal(got, []string{"1"}) {
		t.Errorf("the log has %v", got)
	}
}
