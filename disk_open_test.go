package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// eachOpen runs a test with openat2(2), and with the walk that replaces it.
func eachOpen(t *testing.T, test func(t *testing.T, openat2 bool)) {
	t.Run("openat2", func(t *testing.T) {
		if !canOpenat2() {
			t.Skip("this kernel has no openat2")
		}
		test(t, true)
	})
	t.Run("walk", func(t *testing.T) { test(t, false) })
}

// No operation follows a symbolic link below the base, and the error names the link. The
// base itself may be a link.
func TestLinksBelowTheBase(t *testing.T) {
	eachOpen(t, func(t *testing.T, openat2 bool) {
		real, elsewhere := filepath.Join(t.TempDir(), "real"), t.TempDir()
		base := filepath.Join(t.TempDir(), "base")
		if err := errors.Join(os.Mkdir(real, 0o755), os.Symlink(real, base)); err != nil {
			t.Fatal(err)
		}
		seed := openTestNFS(t, elsewhere)
		mustStore(t, seed, "s", "b", []byte("secret"))
		mustLog(t, seed, "s", entry("1", "b", testTime))
		n := openTestNFS(t, base)
		n.disk.openat2 = openat2
		mustStore(t, n, "own", "b", []byte("x")) // the base is a link
		link := func(to string, path ...string) string {
			t.Helper()
			at := filepath.Join(append([]string{real, sitesDir}, path...)...)
			if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.Symlink(to, at)); err != nil {
				t.Fatal(err)
			}
			return at
		}
		theirs := filepath.Join(elsewhere, sitesDir, "s")
		for site, at := range map[string]string{
			"site":      link(theirs, "site"),
			"artifacts": link(filepath.Join(theirs, artifactsDir), "artifacts", artifactsDir),
			"logs":      link(filepath.Join(theirs, logsDir), "logs", logsDir),
			"dangling":  link(filepath.Join(theirs, "nowhere"), "dangling"),
		} {
			_, fetched := n.FetchArtifact(site, "b")
			_, stat := n.StatArtifact(site, "b")
			_, listed := n.ListVersions(site)
			_, created := n.StoreArtifactIf(site, "b", strings.NewReader("new"), createOnly)
			_, replaced := n.StoreArtifactIf(site, "b", strings.NewReader("new"), Precondition{IfMatch: &ETagList{Any: true}})
			errs := map[string]error{"fetch": fetched, "stat": stat, "list": listed, "create": created, "replace if": replaced,
				"replace": n.StoreArtifact(site, "b", strings.NewReader("new")),
				"delete":  n.DeleteArtifact(site, "b", Precondition{}),
				"append":  n.WriteLog(site, entry("2", "b", testTime))}
			for op, err := range errs {
				follows := site == "logs" && op != "append" && op != "list" || site == "artifacts" && op == "append"
				switch {
				case follows && errors.Is(err, ErrDenied):
					t.Errorf("%s, %s: %v", site, op, err)
				case !follows && (!errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), at)):
					t.Errorf("%s, %s: %v, want a refusal that names %q", site, op, err, at)
				}
			}
		}
		if _, err := n.sweepOnce(t.Context(), 0); !errors.Is(err, ErrDenied) {
			t.Errorf("the sweep: %v", err)
		}
		wantBytes(t, seed, "s", "b", []byte("secret"))
		if got := versionOf(t, openTestNFS(t, elsewhere), "s", "b"); len(got.Logs) != 1 {
			t.Errorf("the log has %d entries", len(got.Logs))
		}
	})
}

// The lock file is opened without following a link too.
func TestLinkInThePlaceOfALockFile(t *testing.T) {
	eachOpen(t, func(t *testing.T, openat2 bool) {
		n := openTestNFS(t, t.TempDir())
		n.disk.openat2 = openat2
		site, target := filepath.Join(n.base, sitesDir, "s"), filepath.Join(t.TempDir(), "target")
		if err := errors.Join(os.MkdirAll(site, 0o755), os.Symlink(target, filepath.Join(site, lockName))); err != nil {
			t.Fatal(err)
		}
		wantError(t, n.StoreArtifact("s", "b", strings.NewReader("x")), ErrDenied)
		if _, err := os.Lstat(target); err == nil {
			t.Error("what the link leads to was made")
		}
	})
}

// A cached small build was opened safely, and is served while the file is unchanged. A
// file that takes its place is opened again.
func TestKeptFileBehindALink(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	n.small = newSmallFiles(true)
	mustStore(t, n, "s", "b", []byte("ours"))
	wantBytes(t, n, "s", "b", []byte("ours"))
	other := openTestNFS(t, t.TempDir())
	mustStore(t, other, "s", "b", []byte("else"))
	site := filepath.Join(n.base, sitesDir, "s")
	if err := errors.Join(os.Rename(site, site+".away"), os.Symlink(filepath.Join(other.base, sitesDir, "s"), site)); err != nil {
		t.Fatal(err)
	}
	_, err := n.FetchArtifact("s", "b")
	wantError(t, err, ErrDenied)
	_, err = n.StatArtifact("s", "b")
	wantError(t, err, ErrDenied)
}

func TestWalkFindsWhatOpenat2Finds(t *testing.T) {
	eachOpen(t, func(t *testing.T, openat2 bool) {
		d := newDisk(quiet())
		d.base, d.openat2 = t.TempDir(), openat2
		if err := errors.Join(os.MkdirAll(d.base+"/a/b", 0o755), os.WriteFile(d.base+"/a/f", nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		f := func(path string, flags int, want error) {
			t.Helper()
			fd, err := d.openPath(d.base+path, flags)
			if err == nil {
				unix.Close(fd)
			}
			wantError(t, err, want)
		}
		f("", unix.O_RDONLY|unix.O_DIRECTORY, nil)
		f("/a/b", unix.O_RDONLY|unix.O_DIRECTORY, nil)
		f("/a/b/", unix.O_RDONLY|unix.O_DIRECTORY, nil)
		f("/a/f", unix.O_RDONLY, nil)
		f("/a/f", unix.O_RDONLY|unix.O_DIRECTORY, unix.ENOTDIR)
		f("/a/f/g", unix.O_RDONLY, unix.ENOTDIR)
		f("/a/none", unix.O_RDONLY, unix.ENOENT)
		f("/none/b", unix.O_RDONLY, unix.ENOENT)
	})
}
