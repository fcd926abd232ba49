package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// How a tempFile is written, sequentially from its first byte.

const flushEvery = 16 << 20 // write-back starts whenever so many bytes were written

// Write appends p.
func (t *tempFile) Write(p []byte) (int, error) {
	n, err := t.f.Write(p)
	t.size += int64(n)
	if err != nil {
		return n, diskError("write", t.path, errors.Unwrap(err))
	}
	return n, nil
}

// copyFile appends n bytes of f, from the current offset of f. If possible the kernel
// copies them (copy_file_range(2)), on NFSv4.2 the server. A shorter f is an error.
func (t *tempFile) copyFile(f *os.File, n int64) error {
	rest := &io.LimitedReader{R: f, N: n}
	_, err := t.f.ReadFrom(rest) // the result omits bytes copied before a fallback to read and write
	t.size += n - rest.N
	if err == nil && rest.N > 0 {
		err = fmt.Errorf("copied %d of %d bytes: %w", n-rest.N, n, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return diskError("copy to", t.path, err)
	}
	return nil
}

// ReadFrom appends all bytes of r, with r.MoveTo if r is a FileMover. If r is Sized, it
// fails with ErrNoSpace before it reads r if the bytes cannot fit, and any other number of
// bytes is an error. If r is Placed, it calls r.Placed for each preallocation. It wraps
// errors of r.
func (t *tempFile) ReadFrom(r io.Reader) (int64, error) {
	size := sizeOf(r)
	if err := t.checkFree(size); err != nil {
		return 0, err
	}
	mover, ok := r.(FileMover)
	if !ok {
		buf := t.disk.copyBuffers.Get().(*[copySize]byte)
		defer t.disk.copyBuffers.Put(buf)
		mover = copier{r, buf[:]}
	}
	reader, _ := r.(Placed)
	start := t.size
	for {
		before := t.preallocated
		if err := t.preallocate(size); err != nil {
			return t.size - start, err
		}
		if reader != nil && t.preallocated > before {
			reader.Placed(t.preallocated - before)
		}
		n, err := mover.MoveTo(t.f, moveSize)
		t.size += n
		t.setLarge(size >= reserveMin || t.size >= reserveMin)
		if err == io.EOF {
			if got := t.size - start; size >= 0 && got != size {
				return got, fmt.Errorf("cannot write %q: received %d bytes, expected %d: %w", t.path, got, size, io.ErrUnexpectedEOF)
			}
			return t.size - start, nil
		}
		if err != nil {
			return t.size - start, diskError("write", t.path, err)
		}
		t.startWriteBack()
	}
}

// copier makes a FileMover of any reader. It does not use os.File.ReadFrom,
// which would allocate its own buffer.
type copier struct {
	r   io.Reader
	buf []byte
}

func (c copier) MoveTo(f *os.File, _ int64) (int64, error) {
	n, err := c.r.Read(c.buf)
	if n > 0 {
		if _, werr := f.Write(c.buf[:n]); werr != nil {
			return 0, werr
		}
	}
	return int64(n), err
}

// checkFree returns ErrNoSpace if size bytes do not fit.
func (t *tempFile) checkFree(size int64) error {
	if size < reserveMin {
		return nil // not worth a system call: the write fails if there is no space
	}
	var st unix.Statfs_t
	if err := retryEINTR(func() error { return unix.Fstatfs(int(t.f.Fd()), &st) }); err != nil {
		return diskError("statfs", t.path, err)
	}
	// A file system that does not know its size (some FUSE) reports 0 blocks.
	if st.Blocks > 0 && uint64(size)/uint64(st.Bsize) > st.Bavail {
		return diskError("write", t.path, unix.ENOSPC)
	}
	return nil
}

// preallocate allocates blocks ahead of the writes to a file of size bytes. That makes
// the writes cheaper, and a full disk fails early. The window grows with the bytes that
// arrived, so an upload with only a large Content-Length takes no space.
func (t *tempFile) preallocate(size int64) error {
	if size < reserveMin || t.preallocated < 0 || t.preallocated >= size {
		return nil
	}
	upTo := t.size + windowOf(t.size, size)
	if t.preallocated-t.size > (upTo-t.size)/2 {
		return nil
	}
	err := retryEINTR(func() error {
		return unix.Fallocate(int(t.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, t.preallocated, upTo-t.preallocated)
	})
	switch err {
	case nil:
		t.preallocated = upTo
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL:
		t.preallocated = -1
	default:
		return diskError("allocate", t.path, err)
	}
	return nil
}

// startWriteBack starts write-back of the bytes written so far, and does not wait for
// it, so that the final fsync has little to do. It can ignore the result: fsync reports
// every error.
func (t *tempFile) startWriteBack() {
	if n := t.size - t.flushed; n >= flushEvery {
		_ = unix.SyncFileRange(int(t.f.Fd()), t.flushed, n, unix.SYNC_FILE_RANGE_WRITE)
		t.flushed = t.size
	}
}
