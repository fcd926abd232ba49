package main

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// diskError names the call, the path and the cause, and wraps the sentinel
// that the cause stands for, if there is one.
func diskError(op, path string, err error) error {
	var kind error
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		kind = ErrNoSpace
	case errors.Is(err, syscall.EROFS):
		kind = ErrReadOnly
	case errors.Is(err, syscall.ESTALE), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE),
		errors.Is(err, syscall.EREMOTEIO), errors.Is(err, syscall.EHOSTDOWN), errors.Is(err, syscall.ENOLINK),
		errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.ENOTCONN), errors.Is(err, syscall.EPIPE),
		errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNREFUSED),
		errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.ENETDOWN):
		kind = ErrUnavailable
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		kind = ErrDenied
	case errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENXIO): // the last: a socket
		kind = ErrOccupied
	default:
		return fmt.Errorf("cannot %s %q: %w", op, path, err)
	}
	return fmt.Errorf("%w: cannot %s %q: %w", kind, op, path, err)
}

// notAFile is the error of what is no regular file where a build or a log should be.
func notAFile(path string) error { return fmt.Errorf("%w: %q is not a file", ErrOccupied, path) }

// ignoreNotExist is err, unless it says that a file is not there any more.
func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
