package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// imageSize is what the file system under test can hold: room for what a round
// of four large uploads to each server leaves behind.
const imageSize = 24 << 30

// newFileSystem makes a file system of its own for the run, of the type kind
// (ext4 or xfs), in a file under parent, on a loop device with direct I/O, and
// mounts it: so that each run finds the same one, with a journal as in
// production, whatever the machine's root is. close unmounts and removes it.
func newFileSystem(kind, parent string) (dir string, close func(), err error) {
	run := func(name string, args ...string) (string, error) {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", name, err, out)
		}
		return strings.TrimSpace(string(out)), err
	}
	var undo undoing
	close = func() { undo.all() }
	defer func() {
		if err != nil {
			close()
		}
	}()
	image, dir := filepath.Join(parent, "bench.img"), filepath.Join(parent, "mnt")
	f, err := os.Create(image)
	if err != nil {
		return "", nil, err
	}
	undo = append(undo, func() { os.Remove(image) })
	err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, imageSize), f.Close(), os.MkdirAll(dir, 0o755))
	if err != nil {
		return "", nil, err
	}
	options := []string{"-q", image}
	if kind == "ext4" {
		// All inode tables are written now, or the kernel would do so during the run.
		options = []string{"-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image}
	}
	if _, err := run("mkfs."+kind, options...); err != nil {
		return "", nil, err
	}
	loop, err := run("losetup", "-f", "--show", "--direct-io=on", image)
	if err != nil {
		return "", nil, err
	}
	undo = append(undo, func() { _, _ = run("losetup", "-d", loop) })
	if _, err := run("mount", loop, dir); err != nil {
		return "", nil, err
	}
	undo = append(undo, func() {
		if _, err := run("umount", "--lazy", dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	})
	return dir, close, nil
}

// settle waits until everything written is on the disk, so that what one server
// left unsynced is not paid for by the next.
func (b *bench) settle() {
	if dir, err := os.Open(b.dir); err == nil {
		_ = unix.Syncfs(int(dir.Fd()))
		dir.Close()
	}
}

// touchMemory uses size bytes of memory and frees them. A virtual machine may
// have given its free memory back to the host (free page reporting), and pays
// for the first use of each page: up to several times what the write costs,
// whoever writes.
func touchMemory(size int64) error {
	var have unix.Sysinfo_t
	if err := unix.Sysinfo(&have); err != nil {
		return err
	}
	size = min(size, int64(have.Freeram)*int64(have.Unit)*3/4) // no more than there is
	m, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("cannot use %d bytes of memory: %w", size, err)
	}
	return unix.Munmap(m)
}

// ddLimit is the speed of dd with fsync from memory to the disk, in MB/s.
func (b *bench) ddLimit(size int64) (float64, error) {
	out := filepath.Join(b.dir, "dd")
	defer os.Remove(out)
	start := time.Now()
	if said, err := exec.Command("dd", "if="+b.source, "of="+out, "bs=1M", "conv=fsync",
		fmt.Sprintf("count=%d", size>>20)).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("dd: %w: %s", err, said)
	}
	return float64(size) / 1e6 / time.Since(start).Seconds(), nil
}

// durableLoop writes files of size bytes durably from n goroutines, without
// HTTP: create, write, fsync, rename, fsync of the directory. It returns the
// number per second.
func (b *bench) durableLoop(n, size int, duration time.Duration) (float64, error) {
	b.serial++
	path := filepath.Join(b.dir, fmt.Sprintf("%d-loop", b.serial))
	if err := os.Mkdir(path, 0o755); err != nil {
		return 0, err
	}
	data := make([]byte, size)
	_, _ = io.ReadFull(rand.Reader, data)
	var done, serial atomic.Int64
	errs := make([]error, n)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for errs[i] == nil && time.Since(start) < duration {
				errs[i] = durableWrite(path, fmt.Sprintf("f%d", serial.Add(1)), data)
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(start).Seconds(), errors.Join(errs...)
}

func durableWrite(path, name string, data []byte) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	temp := filepath.Join(path, ".tmp-"+name)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close(), os.Rename(temp, filepath.Join(path, name))); err != nil {
		return err
	}
	return dir.Sync()
}

// undoing is what takes things away again that were made.
type undoing []func()

// all takes them away, the newest first.
func (u undoing) all() {
	for _, f := range slices.Backward(u) {
		f()
	}
}
