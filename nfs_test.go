package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTestNFS opens the store at base, as another process would.
func openTestNFS(t testing.TB, base string) *nfs {
	t.Helper()
	n, err := openNFS(base, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNFS(t *testing.T) {
	base := t.TempDir()
	testBackend(t, func(t *testing.T) Backend { return openTestNFS(t, base) })
}

// TestWhatIsNoFile: a FIFO, a symbolic link or a directory in the place of an
// artifact or a log is not found, or damaged, and holds nobody up.
func TestWhatIsNoFile(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	mustStore(t, n, "site", "real", []byte("x"))
	site := filepath.Join(n.base, sitesDir, "site")
	for name, make := range map[string]func(path string) error{
		"fifo":    func(path string) error { return unix.Mkfifo(path, 0o644) },
		"link":    func(path string) error { return os.Symlink("real.tar.gz", path) },
		"nowhere": func(path string) error { return os.Symlink("nowhere", path) },
		"dir":     func(path string) error { return os.Mkdir(path, 0o755) },
	} {
		if err := errors.Join(os.MkdirAll(filepath.Join(site, logsDir), 0o755),
			make(filepath.Join(site, artifactsDir, name+artifactSuffix)), make(filepath.Join(site, logsDir, name+logSuffix))); err != nil {
			t.Fatal(err)
		}
		if _, err := n.FetchArtifact("site", name); !errors.Is(err, ErrNotFound) {
			t.Errorf("fetch of a %s: %v", name, err)
		}
		if _, err := n.StatArtifact("site", name); !errors.Is(err, ErrNotFound) {
			t.Errorf("stat of a %s: %v", name, err)
		}
		if err := n.WriteLog("site", entry("1", name, time.Now())); !errors.Is(err, ErrDamaged) {
			t.Errorf("entry to a %s: %v", name, err)
		}
	}
	versions, err := n.ListVersions("site")
	if err != nil || len(versions) != 5 {
		t.Fatalf("%d versions, %v", len(versions), err)
	}
	for _, v := range versions {
		if want := v.BuildID != "real"; (v.LogsError == ErrDamaged.Error()) != want {
			t.Errorf("%s: logs_error %q", v.BuildID, v.LogsError)
		}
	}
}

// TestStoreThatWentAway: when the base is gone, or the mount on it, nothing is
// taken for absent and nothing is written to what lies below.
func TestStoreThatWentAway(t *testing.T) {
	if n := openTestNFS(t, "/proc"); !n.mountPoint {
		t.Error("/proc is no mount point")
	}
	gone := openTestNFS(t, filepath.Join(t.TempDir(), "."))
	if gone.mountPoint {
		t.Fatal("a new directory is a mount point")
	}
	mustStore(t, gone, "site", "b", []byte("x"))
	if err := os.Rename(gone.base, gone.base+".away"); err != nil {
		t.Fatal(err)
	}
	unmounted := openTestNFS(t, t.TempDir())
	unmounted.mountPoint = true // and now it is not
	for name, n := range map[string]*nfs{"gone": gone, "unmounted": unmounted} {
		_, fetch := n.FetchArtifact("site", "b")
		_, stat := n.StatArtifact("site", "b")
		_, list := n.ListVersions("site")
		_, probe := n.Probe()
		_, space := n.Space()
		for op, err := range map[string]error{
			"fetch": fetch, "stat": stat, "list": list, "probe": probe, "space": space,
			"store":  n.StoreArtifact("site", "b", bytes.NewReader([]byte("y"))),
			"delete": n.DeleteArtifact("site", "b", Precondition{}),
			"log":    n.WriteLog("site", entry("1", "b", time.Now())),
		} {
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s, %s: %v", name, op, err)
			}
		}
		if names, err := os.ReadDir(n.base); len(names) > 0 || err == nil && name == "gone" {
			t.Errorf("%s: something was written: %v", name, names)
		}
	}
}

// mover is a body in the middle of which the store goes away.
type mover struct{ n *nfs }

func (m mover) Read([]byte) (int, error) {
	if err := os.Rename(m.n.base, m.n.base+".away"); err != nil {
		return 0, err
	}
	return 0, io.EOF
}

func TestStoreGoesAwayInAnUpload(t *testing.T) {
	n := openTestNFS(t, filepath.Join(t.TempDir(), "."))
	mustStore(t, n, "s", "b", []byte("old"))
	wantError(t, n.StoreArtifact("s", "b", mover{n}), ErrUnavailable)
	if err := os.Rename(n.base+".away", n.base); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, n, "s", "b", []byte("old"))
	wantFiles(t, filepath.Join(n.base, sitesDir, "s", artifactsDir), "b"+artifactSuffix)
}

// TestProbeLooksWhereSitesAre: the base alone does not tell whether a site can
// be read or made.
func TestProbeLooksWhereSitesAre(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	if r, err := n.Probe(); err != nil || r.WriteError != "" {
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
