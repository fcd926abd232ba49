package main

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Sites are listed in order, in pages of any size, without those that have no build, no log and no label.
func TestListSitesOfADirectory(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	if sites, err := n.ListSites("", "", 10, nil); err != nil || len(sites) != 0 {
		t.Errorf("of a new store: %q, %v", sites, err)
	}
	var want []string
	for i := range 3000 { // more than one reading of a directory
		site := fmt.Sprintf("s%x", rand.Uint64())
		file := filepath.Join(base, sitesDir, site, artifactsDir, "b"+artifactSuffix)
		switch i % 8 {
		case 1:
			file = filepath.Join(base, sitesDir, site, logsDir, "b"+logSuffix)
		case 2:
			file = filepath.Join(base, sitesDir, site, artifactsDir, interimName("b"+artifactSuffix))
		case 3:
			file = filepath.Join(base, sitesDir, site, labelsDir, "live"+labelSuffix)
		case 4:
			file = filepath.Join(base, sitesDir, site, digestsDir, "b"+digestSuffix)
		case 5:
			file = filepath.Join(base, sitesDir, site, artifactsDir, aTempName())
		case 6:
			file = filepath.Join(base, sitesDir, site, artifactsDir, "a directory", "x")
		case 7:
			file = filepath.Join(base, sitesDir, site, labelsDir, "Live"+labelSuffix)
		}
		leave(t, 0, file)
		if i%8 < 4 {
			want = append(want, site)
		}
	}
	leave(t, 0, base, sitesDir, "file")
	leave(t, 0, base, sitesDir, ".hidden", artifactsDir, "b"+artifactSuffix)
	leave(t, 0, base, sitesDir, "build-is-a-directory", artifactsDir, "b"+artifactSuffix, "x")
	if err := os.Symlink(want[0], filepath.Join(base, sitesDir, "link")); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	for _, limit := range []int{7, 1000, len(want), len(want) + 1} {
		var got []string
		for after := ""; ; after = got[len(got)-1] {
			some, err := n.ListSites("", after, limit, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, some...); len(some) < limit {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d at a time: %d sites, want %d", limit, len(got), len(want))
		}
	}
	if some, err := n.ListSites("", "", 0, nil); err != nil || len(some) != 0 {
		t.Errorf("none: %q, %v", some, err)
	}
	if err := os.Rename(base, base+"-away"); err != nil {
		t.Fatal(err)
	}
	_, err := n.ListSites("", "", 10, nil)
	wantError(t, err, ErrUnavailable)
	wantError(t, n.ForeignFiles("s", nil), ErrUnavailable)
}

// What the service would not create is foreign.
func TestForeignFiles(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	n.useDigests()
	site := filepath.Join(base, sitesDir, "s")
	if _, err := n.StoreArtifactIf("s", "b", hashedBody([]byte("x")), Precondition{}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{artifactsDir, logsDir, digestsDir, labelsDir} { // ours
		leave(t, 0, site, dir, aTempName())
		leave(t, 0, site, dir, ".nfs"+strings.Repeat("0a", 12))
		leave(t, 0, site, dir, "b"+suffixOf(dir))
		for _, name := range otherNames("b" + suffixOf(dir)) {
			leave(t, 0, site, dir, name)
		}
	}
	want := map[string]string{
		"notes":                   "file",
		"artifacts/b.zip":         "file",
		"artifacts/-b.tar.gz":     "file",
		"artifacts/b.json":        "file",
		"artifacts/.new-b.json":   "file",
		"artifacts/.tmp-notes":    "file",
		"artifacts/.lock":         "file",
		"logs/b.tar.gz":           "file",
		"digests/b.sha256~":       "file",
		"labels/Live.json":        "file",
		"labels/.new-Live.json":   "file",
		"labels/b.tar.gz":         "file",
		"labels/dir.json":         "directory",
		"artifacts/dir.tar.gz":    "directory",
		"logs/dir":                "directory",
		"digests/link.sha256":     "symbolic link",
		"logs/fifo.json":          "FIFO",
		"artifacts/socket.tar.gz": "socket",
		"artifacts/device.tar.gz": "device",
		"backup":                  "directory",
		aTempName():               "directory",
	}
	for name, what := range want {
		path := filepath.Join(site, name)
		var err error
		switch what {
		case "file":
			leave(t, 0, path)
		case "directory":
			err = os.Mkdir(path, 0o755)
		case "symbolic link":
			err = os.Symlink("b.sha256", path)
		case "FIFO":
			err = unix.Mkfifo(path, 0o644)
		case "socket":
			err = unix.Mknod(path, unix.S_IFSOCK|0o644, 0)
		case "device":
			err = unix.Mknod(path, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]string{}
	report := func(name, what string) error {
		got[strings.TrimPrefix(name, "sites/s/")] = what
		return nil
	}
	if err := n.ForeignFiles("s", report); err != nil || !maps.Equal(got, want) {
		t.Errorf("%v\ngot  %v\nwant %v", err, got, want)
	}
	// Beside the sites.
	clear(got)
	leave(t, 0, base, sitesDir, "notes")
	leave(t, 0, base, sitesDir, aTempName(), artifactsDir, "b"+artifactSuffix) // of the command doctor
	leave(t, 0, base, sitesDir, "-x", artifactsDir, "b"+artifactSuffix)
	noError(t, os.Symlink("s", filepath.Join(base, sitesDir, "link")))
	beside := map[string]string{"sites/notes": "file", "sites/-x": "directory", "sites/link": "symbolic link"}
	if err := n.ForeignFiles("", report); err != nil || !maps.Equal(got, beside) {
		t.Errorf("%v\ngot  %v\nwant %v", err, got, beside)
	}
	stop := errors.New("stop")
	calls := 0
	if err := n.ForeignFiles("s", func(string, string) error { calls++; return stop }); err != stop || calls != 1 {
		t.Errorf("%d calls after an error, %v", calls, err)
	}
	// Something else in place of a directory.
	other := openTestNFS(t, base)
	clear(got)
	leave(t, 0, base, sitesDir, "s2", logsDir)
	if err := os.Symlink("..", filepath.Join(base, sitesDir, "s2", artifactsDir)); err != nil {
		t.Fatal(err)
	}
	err := other.ForeignFiles("s2", report)
	if want := map[string]string{"sites/s2/logs": "file", "sites/s2/artifacts": "symbolic link"}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%v: %v, want %v", err, got, want)
	}
}
