package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openTestDir creates a directory and opens it for changes.
func openTestDir(t *testing.T) (*disk, *os.File) {
	t.Helper()
	d := newDisk(quiet())
	dir, err := d.openDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return d, dir
}

// sealed returns a sealed temporary file in dir that contains content.
func sealed(t *testing.T, d *disk, dir *os.File, content string) *tempFile {
	t.Helper()
	temp, err := d.createTemp(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := temp.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if _, err := temp.seal(); err != nil {
		t.Fatal(err)
	}
	return temp
}

// wantFiles fails unless dir has exactly these names.
func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%q has %q, want %q", dir, got, want)
	}
}

func wantContent(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%q holds %q, %v, want %q", path, got, err, want)
	}
}

// Each way to commit a sealed file, and its result.
func TestCommit(t *testing.T) {
	replace := (*tempFile).replace
	create := (*tempFile).create
	f := func(name string, before func(t *testing.T, temp *tempFile, target string), place func(*tempFile, string) error, want error, content string) {
		t.Run(name, func(t *testing.T) {
			d, dir := openTestDir(t)
			target := filepath.Join(dir.Name(), "target")
			temp := sealed(t, d, dir, "new")
			before(t, temp, target)
			err := place(temp, "target")
			temp.discard()
			wantError(t, err, want)
			if content == "" {
				wantFiles(t, dir.Name())
				return
			}
			wantFiles(t, dir.Name(), "target")
			wantContent(t, target, content)
		})
	}
	nothing := func(*testing.T, *tempFile, string) {}
	do := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	other := func(t *testing.T, _ *tempFile, target string) { do(t, os.WriteFile(target, []byte("old"), 0o644)) }
	swept := func(t *testing.T, temp *tempFile, _ string) { do(t, os.Remove(temp.path)) }
	sweptAndOther := func(t *testing.T, temp *tempFile, target string) { swept(t, temp, target); other(t, temp, target) }

	f("replace makes", nothing, replace, nil, "new")
	f("replace replaces", other, replace, nil, "new")
	f("replace of a swept temp", swept, replace, fs.ErrNotExist, "")
	f("replace of a swept temp over another writer's file", sweptAndOther, replace, fs.ErrNotExist, "old")
	f("replace whose reply was lost", func(t *testing.T, temp *tempFile, target string) { do(t, os.Rename(temp.path, target)) }, replace, nil, "new")
	f("create makes", nothing, create, nil, "new")
	f("create does not replace", other, create, fs.ErrExist, "old")
	f("create of a swept temp", swept, create, fs.ErrNotExist, "")
	f("create whose reply was lost", func(t *testing.T, temp *tempFile, target string) { do(t, os.Link(temp.path, target)) }, create, nil, "new")
}

// If link(2) fails with EPERM, as on a file system without hard links, create renames the
// file. Here the temporary file is swapped for a directory, which has no hard links either.
func TestCreateWithoutLinks(t *testing.T) {
	d, dir := openTestDir(t)
	temp := sealed(t, d, dir, "new")
	if err := errors.Join(os.Remove(temp.path), os.Mkdir(temp.path, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := temp.create("target"); err != nil {
		t.Error(err)
	}
	temp.discard()
	wantFiles(t, dir.Name(), "target")
}

// If a sweep freed the inode and another writer got its number, the file is not ours.
func TestReusedInodeOfSweptTemp(t *testing.T) {
	d, dir := openTestDir(t)
	temp := sealed(t, d, dir, "new")
	if err := os.Remove(temp.path); err != nil {
		t.Fatal(err)
	}
	other := sealed(t, d, dir, "old")
	if err := other.replace("target"); err != nil {
		t.Fatal(err)
	}
	temp.stat.Ino = other.stat.Ino // as file systems like to give them
	wantError(t, temp.replace("target"), fs.ErrNotExist)
	wantContent(t, filepath.Join(dir.Name(), "target"), "old")
}

func TestDiscardLeavesNothing(t *testing.T) {
	d, dir := openTestDir(t)
	temp, err := d.createTemp(dir)
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir.Name(), temp.name)
	if _, err := temp.ReadFrom(failing([]byte("data"), 2, errSender)); !errors.Is(err, errSender) {
		t.Errorf("the error of the reader became %v", err)
	}
	temp.discard()
	wantFiles(t, dir.Name())
}

// Builds of equal size that replace each other as fast as possible never share an ETag,
// on a file system that reuses a freed inode number at once.
func TestETagsDiffer(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	seen := map[string]bool{}
	for range 200 {
		info, err := n.StoreArtifactIf("s", "b", strings.NewReader("same"), Precondition{})
		if err != nil {
			t.Fatal(err)
		}
		if seen[info.ETag] {
			t.Fatalf("%s came twice", info.ETag)
		}
		seen[info.ETag] = true
	}
}

// A temporary file can be read only where that has no price: not on NFS.
func TestTempAccess(t *testing.T) {
	for _, c := range []struct {
		readBack bool
		want     int
	}{{true, unix.O_RDWR}, {false, unix.O_WRONLY}} {
		d, dir := openTestDir(t)
		d.readBack = c.readBack
		temp, err := d.createTemp(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer temp.discard()
		flags, err := unix.FcntlInt(temp.f.Fd(), unix.F_GETFL, 0)
		if got := flags & unix.O_ACCMODE; err != nil || got != c.want {
			t.Errorf("readBack %v: opened with access mode %d, want %d: %v", c.readBack, got, c.want, err)
		}
	}
}
