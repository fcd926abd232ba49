package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
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

// A mount that was lost is missed, whatever is at its place now. Another device
// at the base serves, if it is of the same kind.
func TestHere(t *testing.T) {
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
		n.lookAt = func(string) (baseState, error) { return baseState{c.is, n.dev.Load() + c.other}, nil }
		if err := n.checkMounted(); (err == nil) != c.available || err != nil && !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// What was durable on one device is not taken for durable on another one: the
// parents of a directory are synced again, once.
func TestAnotherDeviceIsSyncedAgain(t *testing.T) {
	w := watchFsyncs(t, t.TempDir())
	mustStore(t, w.n, "s", "b", []byte("first"))
	other := uint64(0)
	w.n.lookAt = func(path string) (baseState, error) {
		at, err := lookAtBase(path)
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

// A file system that cannot say what it is is not taken for the store: what is not
// found there is not known to be absent.
func TestUnknownFileSystemIsNotTheStore(t *testing.T) {
	n := openTestNFS(t, filepath.Join(t.TempDir(), "."))
	mustStore(t, n, "s", "b", []byte("x"))
	at := baseState{n.mountPoint, n.dev.Load() + 1}
	n.lookAt = func(string) (baseState, error) { return at, nil }
	if err := os.Rename(n.base, n.base+".away"); err != nil { // so that statfs(2) fails
		t.Fatal(err)
	}
	_, err := n.FetchArtifact("s", "b")
	wantError(t, err, ErrUnavailable)
}
