package client

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// treeEntry is a file of a test, or with a target a symbolic link, or with a / at its end a directory.
type treeEntry struct {
	name, content, target string
	mode                  os.FileMode
}

// siteTree is a site as a generator leaves it.
var siteTree = []treeEntry{
	{name: "index.html", content: "<html>", mode: 0o644},
	{name: "a/", mode: 0o755},
	{name: "a/z.css", content: strings.Repeat("x", 100_000), mode: 0o600},
	{name: "a/b/", mode: 0o700},
	{name: "a/b/empty", mode: 0o644},
	{name: "a.txt", content: "sorts before a/ as a string, and after it in a walk", mode: 0o644},
	{name: "run.sh", content: "#!", mode: 0o755},
	{name: "empty/", mode: 0o755},
	{name: "link", target: "a/z.css"},
	{name: "a/up", target: "../index.html"},
	{name: "dir", target: "a/b"},
	{name: "äöü " + strings.Repeat("n", 200), content: "a long name", mode: 0o644},
	{name: "line\nbreak", content: "a name with a control character", mode: 0o644},
}

// makeTree writes entries into a new directory, in their order.
func makeTree(t *testing.T, entries []treeEntry) string {
	t.Helper()
	dir := t.TempDir()
	for _, e := range entries {
		name := filepath.Join(dir, e.name)
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		switch {
		case err != nil:
		case e.target != "":
			err = os.Symlink(e.target, name)
		case strings.HasSuffix(e.name, "/"):
			err = os.MkdirAll(name, 0o755)
		default:
			err = os.WriteFile(name, []byte(e.content), 0o600)
		}
		if err == nil && e.target == "" {
			err = os.Chmod(name, e.mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// packed returns the archive of a directory.
func packed(dir string, at time.Time) ([]byte, error) {
	p, err := newPacking(context.Background(), dir, at)
	if err != nil {
		return nil, err
	}
	defer p.close()
	var b bytes.Buffer
	moved := 0
	if err := p.write(context.Background(), &b, func(n int) { moved += n }); err != nil {
		return nil, err
	}
	if int64(moved) != p.size {
		return nil, fmt.Errorf("%d bytes were reported, want %d", moved, p.size)
	}
	return b.Bytes(), nil
}

// listing describes the entries of an archive, with the standard library's readers.
func listing(t *testing.T, archive []byte) (lines []string) {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	if zip.Name != "" || !zip.ModTime.IsZero() {
		t.Errorf("the header has the name %q and the time %v", zip.Name, zip.ModTime)
	}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if err == io.EOF {
			return lines
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" {
			t.Errorf("%s has the owner %d:%d %s:%s", h.Name, h.Uid, h.Gid, h.Uname, h.Gname)
		}
		lines = append(lines, fmt.Sprintf("%c %o %s%s %d %s", h.Typeflag, h.Mode, h.Name, map[bool]string{true: " -> " + h.Linkname}[h.Linkname != ""], len(content), h.ModTime.UTC().Format(time.DateOnly)))
	}
}

func TestPack(t *testing.T) {
	archive, err := packed(makeTree(t, siteTree), packTime)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"5 755 a/ 0 1980-01-01",
		"5 755 a/b/ 0 1980-01-01",
		"0 644 a/b/empty 0 1980-01-01",
		"2 777 a/up -> ../index.html 0 1980-01-01",
		"0 644 a/z.css 100000 1980-01-01",
		"0 644 a.txt 51 1980-01-01",
		"2 777 dir -> a/b 0 1980-01-01",
		"5 755 empty/ 0 1980-01-01",
		"0 644 index.html 6 1980-01-01",
		"0 644 line\nbreak 31 1980-01-01",
		"2 777 link -> a/z.css 0 1980-01-01",
		"0 755 run.sh 2 1980-01-01",
		"0 644 äöü " + strings.Repeat("n", 200) + " 11 1980-01-01",
	}
	if got := listing(t, archive); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestPackIsReproducible: what a checkout changes does not change the archive; what a site is does.
func TestPackIsReproducible(t *testing.T) {
	archive, err := packed(makeTree(t, siteTree), packTime)
	if err != nil {
		t.Fatal(err)
	}
	reversed := slices.Clone(siteTree)
	slices.Reverse(reversed)
	other := makeTree(t, reversed)
	err = filepath.WalkDir(other, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.Type() == os.ModeSymlink {
			return err
		}
		info, err := d.Info()
		if err == nil && os.Geteuid() == 0 {
			err = os.Chown(name, 1234, 5678)
		}
		if err == nil { // another umask
			err = os.Chmod(name, info.Mode()|0o070&(info.Mode()>>3|0o060))
		}
		if err == nil {
			err = os.Chtimes(name, time.Unix(1e9, 1), time.Unix(1e9, 1))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := packed(other, packTime); err != nil || !bytes.Equal(got, archive) {
		t.Errorf("the same files have another archive: %v", err)
	}
	for what, change := range map[string]func(dir string) error{
		"bytes":      func(dir string) error { return os.WriteFile(filepath.Join(dir, "index.html"), []byte("<HTML>"), 0) },
		"a name":     func(dir string) error { return os.Rename(filepath.Join(dir, "a.txt"), filepath.Join(dir, "b.txt")) },
		"a new file": func(dir string) error { return os.WriteFile(filepath.Join(dir, "new"), nil, 0o644) },
		"executable": func(dir string) error { return os.Chmod(filepath.Join(dir, "index.html"), 0o755) },
		"a link": func(dir string) error {
			os.Remove(filepath.Join(dir, "link"))
			return os.Symlink("a.txt", filepath.Join(dir, "link"))
		},
	} {
		dir := makeTree(t, siteTree)
		if err := change(dir); err != nil {
			t.Fatal(err)
		}
		if got, err := packed(dir, packTime); err != nil || bytes.Equal(got, archive) {
			t.Errorf("%s: the archive is the same: %v", what, err)
		}
	}
	if got, err := packed(makeTree(t, siteTree), time.Unix(1e9, 0)); err != nil || bytes.Equal(got, archive) {
		t.Errorf("another SOURCE_DATE_EPOCH: the archive is the same: %v", err)
	}
}

func TestArchiveTime(t *testing.T) {
	for epoch, want := range map[string]int64{"": packTime.Unix(), "0": 0, "1767322800": 1767322800, "8589934591": 8589934591} {
		if at, err := archiveTime(epoch); err != nil || at.Unix() != want {
			t.Errorf("%q: %v, %v", epoch, at, err)
		}
	}
	for _, epoch := range []string{"x", "-1", "1.5", "8589934592", " 1", "99999999999999999999"} {
		if at, err := archiveTime(epoch); err == nil {
			t.Errorf("%q: %v", epoch, at)
		}
	}
}

// TestPackRefuses: nothing that a site lacks afterwards, or that leads out of it, is packed silently.
func TestPackRefuses(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		make func(dir string) error
		want string
	}{
		{"a link to another directory", func(dir string) error { return os.Symlink("../secret", filepath.Join(dir, "l")) }, `l": its target "../secret" must be relative, and inside of`},
		{"an absolute link", func(dir string) error { return os.Symlink(outside, filepath.Join(dir, "l")) }, "must be relative"},
		{"an absolute link to the inside", func(dir string) error { return os.Symlink(filepath.Join(dir, "index.html"), filepath.Join(dir, "l")) }, "must be relative"},
		{"a link out through another link", func(dir string) error {
			return errors.Join(os.Symlink(".", filepath.Join(dir, "here")), os.Symlink("here/..", filepath.Join(dir, "l")))
		}, `l": its target "here/.." must be relative`},
		{"a link to nothing", func(dir string) error { return os.Symlink("none", filepath.Join(dir, "l")) }, `to "none", which does not exist`},
		{"a link to itself", func(dir string) error { return os.Symlink("l", filepath.Join(dir, "l")) }, `l": it is a symbolic link to "l", which leads back to it`},
		{"a named pipe", func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "p"), 0o600) }, `p": it is neither a file, a directory nor a symbolic link`},
	} {
		dir := makeTree(t, []treeEntry{{name: "index.html", content: "x", mode: 0o644}})
		if err := c.make(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := packed(dir, packTime); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if _, err := packed(t.TempDir(), packTime); err == nil || final(t.Context(), err).(*Error).Status != exitUsage {
		t.Errorf("an empty directory: %v", err)
	}
	if os.Geteuid() != 0 {
		dir := makeTree(t, []treeEntry{{name: "closed", content: "x", mode: 0}})
		if _, err := packed(dir, packTime); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Error(err)
		}
	}
}

// TestPackOfATreeThatChanges: a change at any time before the end is an error, also of what was packed already.
func TestPackOfATreeThatChanges(t *testing.T) {
	tree := []treeEntry{{name: "1", content: strings.Repeat("a", 1000), mode: 0o644}, {name: "2/", mode: 0o755}, {name: "2/2", content: strings.Repeat("b", 1<<20), mode: 0o644}, {name: "3", content: "c", mode: 0o644}}
	for what, change := range map[string]func(dir string) error{
		"a file before":   func(dir string) error { return os.WriteFile(filepath.Join(dir, "1"), []byte("new"), 0) },
		"this file, cut":  func(dir string) error { return os.Truncate(filepath.Join(dir, "2/2"), 10) },
		"this file, more": func(dir string) error { return os.Truncate(filepath.Join(dir, "2/2"), 2<<20) },
		"a file after":    func(dir string) error { return os.WriteFile(filepath.Join(dir, "3"), []byte("d"), 0) },
		"a new file":      func(dir string) error { return os.WriteFile(filepath.Join(dir, "2/new"), nil, 0o644) },
		"a removed file":  func(dir string) error { return os.Remove(filepath.Join(dir, "1")) },
		"another file":    func(dir string) error { return os.Rename(filepath.Join(dir, "1"), filepath.Join(dir, "3")) },
	} {
		dir := makeTree(t, tree)
		p, err := newPacking(t.Context(), dir, packTime)
		if err != nil {
			t.Fatal(err)
		}
		done := int64(0)
		err = p.write(t.Context(), io.Discard, func(n int) {
			if before := done; before <= 1000 && before+int64(n) > 1000 { // in the second file
				if err := change(dir); err != nil {
					t.Error(err)
				}
			}
			done += int64(n)
		})
		p.close()
		if err == nil || !strings.Contains(err.Error(), "changed while it was packed") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestPackInterrupted(t *testing.T) {
	p, err := newPacking(t.Context(), makeTree(t, siteTree), packTime)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	ctx, cancel := context.WithCancel(t.Context())
	if err := p.write(ctx, io.Discard, func(int) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestPackWithoutSpace names the place that is full.
func TestPackWithoutSpace(t *testing.T) {
	p, err := newPacking(t.Context(), makeTree(t, siteTree), packTime)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := p.write(t.Context(), fullDisk{}, nil); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "TMPDIR") {
		t.Error(err)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
}

// TestPushOfADirectory: twice gives the same bytes, and nothing is left in TMPDIR.
func TestPushOfADirectory(t *testing.T) {
	dir, temp := makeTree(t, siteTree), t.TempDir()
	want, err := packed(dir, time.Unix(1e9, 0))
	if err != nil {
		t.Fatal(err)
	}
	testPush(t, 1, func(p *pushTest) {
		p.file, p.data = dir, want
		p.t.Setenv("TMPDIR", temp)
		p.env = append(p.env, "SOURCE_DATE_EPOCH=1000000000")
		p.wantStored(p.push(), true)
		p.wantStored(p.push("--create"), false)
		if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
			t.Errorf("%v, %v", left, err)
		}
	})
}
