package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestProbeLooksWhereSitesAre: a check of the base alone does not show whether a site can
// be read or created.
func TestProbeLooksWhereSitesAre(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	if r, err := n.Probe(); err != nil || r.WriteError != nil {
		t.Errorf("empty: %+v, %v", r, err)
	}
	sites := filepath.Join(base, sitesDir)
	if err := os.Symlink(filepath.Join(base, "nowhere"), sites); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Probe(); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), sites) {
		t.Errorf("a symbolic link: %v", err)
	}
	if err := errors.Join(os.Remove(sites), os.WriteFile(sites, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if r, err := n.Probe(); err == nil {
		t.Errorf("no directory: %+v", r)
	}
}

// onlyRoot skips a test that mounts a file system.
func onlyRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system")
	}
}

// An NFS server denies access to a read-only export without saying why. A change of the
// mode gets the real cause. The test uses a mount that is read-only in place of the export.
func TestDeniedByAReadOnlyExport(t *testing.T) {
	onlyRoot(t)
	denied := diskError("write to", "dir", unix.EACCES)
	base, mount := t.TempDir(), t.TempDir()
	if err := errors.Join(unix.Mount(base, mount, "", unix.MS_BIND, ""), unix.Mount("", mount, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) })
	for dir, want := range map[string]error{base: ErrDenied, mount: ErrReadOnly} {
		n := openRemote(t, dir)
		root, err := n.openRoot()
		if err != nil {
			t.Fatal(err)
		}
		if got := n.whyDenied(root, denied); !errors.Is(got, want) {
			t.Errorf("%s: %v, want %v", dir, got, want)
		}
		root.Close()
	}
}
