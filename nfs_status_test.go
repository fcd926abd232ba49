package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A status that is not a file of a reasonable size is not read, and a writer that fails leaves
// the old one.
func TestStatusOfADirectory(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	if err := n.WriteStatus("verify", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(base, statusDir, "verify.json")
	if data, err := os.ReadFile(path); err != nil || string(data) != "{}" {
		t.Errorf("%q, %v", data, err)
	}
	wantError(t, n.WriteStatus("verify", make([]byte, maxStatus+1)), ErrTooLarge)
	n.disk.fsyncs.fsyncHook = func(*os.File) error { return unix.ENOSPC }
	wantError(t, n.WriteStatus("verify", []byte("{2}")), ErrNoSpace)
	n.disk.fsyncs.fsyncHook = nil
	if got := contentOf(filepath.Dir(path)); got != "[verify=0]" {
		t.Errorf("there is %s", got)
	}
	if data, err := n.ReadStatus("verify"); err != nil || string(data) != "{}" {
		t.Errorf("%q, %v", data, err)
	}
	if err := os.Truncate(path, maxStatus+1); err != nil {
		t.Fatal(err)
	}
	if data, err := n.ReadStatus("verify"); err == nil || len(data) > 0 {
		t.Errorf("a file of %d bytes is read: %v", len(data), err)
	}
	for what, replace := range otherThanFiles {
		noError(t, os.RemoveAll(path))
		noError(t, replace(path))
		if _, err := n.ReadStatus("verify"); !errors.Is(err, ErrDamaged) || errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// otherThanFiles create something else at a path.
var otherThanFiles = map[string]func(path string) error{
	"a symbolic link": func(path string) error { return os.Symlink("/dev/null", path) },
	"a FIFO":          func(path string) error { return unix.Mkfifo(path, 0o644) },
	"a socket":        func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o644, 0) },
	"a directory":     func(path string) error { return os.Mkdir(path, 0o755) },
}
