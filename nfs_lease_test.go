package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is not a file cannot be locked, and blocks nobody. The file of a lease stays.
func TestLeaseOfADirectory(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	release, ok, err := n.TryLease("prune", time.Hour)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	release()
	status := filepath.Join(n.base, statusDir)
	wantFiles(t, status, "prune"+leaseSuffix)
	for name, put := range map[string]func(path string) error{
		"fifo":      func(path string) error { return unix.Mkfifo(path, 0o644) },
		"link":      func(path string) error { return os.Symlink("prune"+leaseSuffix, path) },
		"dangling":  func(path string) error { return os.Symlink("nothing", path) },
		"directory": func(path string) error { return os.Mkdir(path, 0o755) },
		"socket":    func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o644, 0) },
	} {
		if err := put(filepath.Join(status, name+leaseSuffix)); err != nil {
			t.Fatal(err)
		}
		if release, ok, err := n.TryLease(name, time.Hour); err == nil || ok || release != nil {
			t.Errorf("%s: taken: %t, %v", name, ok, err)
		}
	}
	if err := os.Rename(n.base, n.base+"-away"); err != nil {
		t.Fatal(err)
	}
	_, _, err = n.TryLease("prune", time.Hour)
	wantError(t, err, ErrUnavailable)
}
