package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// How files of the store are opened by path. Symbolic links below the base are not
// followed: a user who can create one there could make the service read, replace or
// delete files elsewhere. The kernel rejects them (openat2(2), RESOLVE_NO_SYMLINKS).
// Without that call (before Linux 5.6, or under a seccomp filter that does not know it)
// the service walks from the base, one directory at a time.

// linkError reports a path that contains a symbolic link. It wraps ErrDenied.
type linkError struct {
	link string // the path of the link itself
}

func (e *linkError) Error() string {
	return fmt.Sprintf("%v: %q is a symbolic link; links below the base are not followed", ErrDenied, e.link)
}

func (e *linkError) Unwrap() error { return ErrDenied }

// isLink reports whether err says that path itself is a symbolic link.
func isLink(err error, path string) bool {
	var link *linkError
	return errors.As(err, &link) && link.link == path
}

// canOpenat2 reports whether this process can call openat2(2).
func canOpenat2() bool {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// openPath opens the base or a path below it. Its error is a linkError or a bare errno.
func (d *disk) openPath(name string, flags int) (fd int, err error) {
	flags |= unix.O_CLOEXEC
	if d.openat2 {
		how := unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_NO_SYMLINKS}
		err = retryEINTR(func() error {
			fd, err = unix.Openat2(unix.AT_FDCWD, name, &how)
			return err
		})
	} else {
		fd, err = d.walk(name, flags)
	}
	if err == unix.ELOOP || err == unix.ENOTDIR {
		if link := d.firstIn(name, isLinkMode); link != "" {
			return -1, &linkError{link}
		}
	}
	return fd, err
}

// walk is openPath without openat2(2).
func (d *disk) walk(name string, flags int) (int, error) {
	below := strings.Split(strings.Trim(strings.TrimPrefix(name, d.base), "/"), "/")
	if below[0] == "" { // the base itself
		return openFd(unix.AT_FDCWD, name, flags)
	}
	at, err := openFd(unix.AT_FDCWD, path.Clean(d.base+"/"), unix.O_PATH|unix.O_DIRECTORY)
	for _, dir := range below[:len(below)-1] {
		if err != nil {
			return -1, err
		}
		above := at
		at, err = openFd(above, dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		unix.Close(above)
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	return openFd(at, below[len(below)-1], flags|unix.O_NOFOLLOW)
}

// firstIn returns the first component of a path below the base whose mode satisfies is,
// or "".
func (d *disk) firstIn(name string, is func(mode uint32) bool) string {
	at := d.base
	for _, part := range strings.Split(strings.Trim(strings.TrimPrefix(name, d.base), "/"), "/") {
		at += "/" + part
		var st unix.Stat_t
		if unix.Lstat(at, &st) == nil && is(st.Mode) {
			return at
		}
	}
	return ""
}

func isLinkMode(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFLNK }

func isDirMode(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFDIR }

// openDir opens a directory, or fails with fs.ErrNotExist. On NFS this revalidates the
// client's cache of the directory, which stat(2) does not (close-to-open consistency,
// nfs(5)).
func (d *disk) openDir(path string) (*os.File, error) {
	return d.openFile(path, unix.O_RDONLY|unix.O_DIRECTORY)
}

// openFile opens an existing file or directory.
func (d *disk) openFile(path string, flags int) (*os.File, error) {
	fd, err := d.openPath(path, flags)
	if err != nil {
		return nil, d.openError(path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openError turns an error of openPath into a diskError. If something other than a
// directory is in the path, the error names it. Directly below the base that is
// ErrUnavailable, because no site can be reached.
func (d *disk) openError(name string, err error) error {
	var link *linkError
	if errors.As(err, &link) {
		return err
	}
	if err == unix.ENOTDIR {
		if at := d.firstIn(name, func(mode uint32) bool { return !isDirMode(mode) }); at != "" {
			name = at
		}
		if path.Dir(name) == d.base {
			return fmt.Errorf("%w: %w", ErrUnavailable, diskError("open", name, err))
		}
	}
	return diskError("open", name, err)
}

// openPathRead is openRead for a path.
func (d *disk) openPathRead(path string) (int, error) {
	return readNonblocking(func(flags int) (int, error) { return d.openPath(path, flags) })
}

// statPath is lstat(2) of a path.
func (d *disk) statPath(path string, st *unix.Stat_t) error {
	fd, err := d.openPath(path, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return d.openError(path, err)
	}
	return statAndClose(fd, path, st)
}

// statAndClose is fstat(2) of fd. It closes fd.
func statAndClose(fd int, path string, st *unix.Stat_t) error {
	defer unix.Close(fd)
	if err := unix.Fstat(fd, st); err != nil {
		return diskError("stat", path, err)
	}
	return nil
}
