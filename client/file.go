package client

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// tempFile is a file that gets its name when it is complete: until then it has a random name in
// the directory of that name. One goroutine creates it, and commits or discards it. Errors name
// the target, not the temporary file.
type tempFile struct {
	*os.File
	dir    *os.File // nil if it cannot be opened; it is then not synced
	target string   // for errors, until commit
	done   bool     // committed or discarded
}

// createTemp creates an empty file that is to become target. Its mode is that of target, or of any
// new file: 0666 without the bits of the umask.
func createTemp(target string) (*tempFile, error) {
	dir := filepath.Dir(target)
	f, err := os.OpenFile(filepath.Join(dir, ".pagewright-"+rand.Text()+".part"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, errorf(exitFailure, "cannot write %q: cannot create a file in %q: %w", target, dir, cause(err))
	}
	t := &tempFile{File: f, target: target}
	// Before the first write: an error of the directory would otherwise be missed. Without the
	// right to read a directory one can still create files in it.
	t.dir, _ = os.Open(dir)
	if err := t.keepMode(target); err != nil {
		t.discard()
		return nil, err
	}
	return t, nil
}

// keepMode gives the file the mode of target, if that is a file.
func (t *tempFile) keepMode(target string) error {
	old, err := os.Lstat(target)
	if err != nil || !old.Mode().IsRegular() {
		return nil
	}
	info, err := t.Stat()
	if err == nil && info.Mode().Perm() != old.Mode().Perm() {
		err = t.Chmod(old.Mode().Perm())
	}
	if err != nil {
		return fileError(target, err)
	}
	return nil
}

// reserve reserves space for size bytes, where the file system can: if there is too little, it
// is better to know that before the bytes are sent.
func (t *tempFile) reserve(size int64) error {
	const keepSize = 1 // FALLOC_FL_KEEP_SIZE
	if size <= 0 {
		return nil
	}
	switch err := syscall.Fallocate(int(t.Fd()), keepSize, 0, size); err {
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return fileError(t.target, err)
	}
	return nil
}

// commit makes the file durable under the name target, which it replaces in one step. target is
// in the directory that createTemp was called with. After an error the file is gone.
func (t *tempFile) commit(target string) error {
	defer t.discard()
	t.target = target
	if err := t.keepMode(target); err != nil { // target is another one, or its mode has changed
		return err
	}
	if err := t.Sync(); err != nil && !isUnsupported(err) {
		return fileError(target, err)
	}
	if err := t.Close(); err != nil { // NFS reports a full disk here
		return fileError(target, err)
	}
	if err := os.Rename(t.Name(), target); err != nil {
		return fileError(target, err)
	}
	t.done = true
	if t.dir == nil {
		return nil
	}
	err := t.dir.Sync()
	t.dir.Close()
	if err != nil && !isUnsupported(err) {
		return fileError(target, err)
	}
	return nil
}

// discard removes the file, unless it was committed.
func (t *tempFile) discard() {
	if t.done {
		return
	}
	t.done = true
	t.Close() // it may be closed already
	os.Remove(t.Name())
	if t.dir != nil {
		t.dir.Close()
	}
}

// isUnsupported reports whether a file system has no fsync for this kind of file.
func isUnsupported(err error) bool {
	return errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported)
}

// fileError returns the error for a local file that cannot be written.
func fileError(name string, err error) error {
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		err = e.Err
	} else if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return errorf(exitFailure, "cannot write %q: %w", name, err)
}

// resolveTarget returns the file that a write to name replaces: name itself, or the file that the
// symbolic link name points to. stream is true if name is a device, a pipe or a socket, which
// are written to instead of replaced.
func resolveTarget(name string) (target string, stream bool, err error) {
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(name); err == nil {
			return "", false, errorf(exitFailure, "cannot write %q: it is a symbolic link to a file that does not exist", name)
		}
		return name, false, nil
	case err != nil:
		return "", false, fileError(name, err)
	case info.IsDir():
		return "", false, errorf(exitUsage, "cannot write %q: it is a directory; name a file in it", name)
	case !info.Mode().IsRegular():
		return name, true, nil
	}
	target, err = filepath.EvalSymlinks(name)
	if err != nil {
		return "", false, fileError(name, err)
	}
	return target, false, nil
}

// openStream opens a device or a pipe for writing. It waits until a pipe has a reader. When ctx ends,
// it returns, and a write to a pipe that nobody reads fails.
func openStream(ctx context.Context, name string) (*os.File, error) {
	type opened struct {
		file *os.File
		err  error
	}
	result := make(chan opened, 1)
	go func() { // goes on after ctx has ended, until there is a reader or the process ends
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err == nil && ctx.Err() != nil {
			f.Close()
		}
		result <- opened{f, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-result:
		if r.err != nil {
			return nil, fileError(name, r.err)
		}
		context.AfterFunc(ctx, func() { r.file.SetWriteDeadline(time.Unix(1, 0)) }) // devices have no deadline
		return r.file, nil
	}
}

// rewind removes what was written, and goes back to the first byte.
func (t *tempFile) rewind() error {
	if err := t.Truncate(0); err != nil {
		return fileError(t.target, err)
	}
	if _, err := t.Seek(0, io.SeekStart); err != nil {
		return fileError(t.target, err)
	}
	return nil
}
