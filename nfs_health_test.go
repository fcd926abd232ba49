package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
