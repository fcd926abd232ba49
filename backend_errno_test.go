package main

import (
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDiskError(t *testing.T) {
	f := func(cause, want error) {
		t.Helper()
		err := diskError("write", "/p", &fs.PathError{Op: "write", Path: "/q", Err: cause})
		if !errors.Is(err, cause) || want != nil && !errors.Is(err, want) || !strings.Contains(err.Error(), `cannot write "/p": `) {
			t.Errorf("%v became %v", cause, err)
		}
		for _, other := range []error{ErrNoSpace, ErrReadOnly, ErrUnavailable, ErrDenied} {
			if other != want && errors.Is(err, other) {
				t.Errorf("%v became %v", cause, err)
			}
		}
	}
	f(unix.ENOSPC, ErrNoSpace)
	f(unix.EDQUOT, ErrNoSpace)
	f(unix.EFBIG, ErrNoSpace)
	f(unix.EROFS, ErrReadOnly)
	f(unix.ESTALE, ErrUnavailable)
	f(unix.ETIMEDOUT, ErrUnavailable)
	f(unix.ENOTCONN, ErrUnavailable)
	f(unix.EPIPE, ErrUnavailable)
	f(unix.ECONNABORTED, ErrUnavailable)
	f(unix.ECONNRESET, ErrUnavailable)
	f(unix.ECONNREFUSED, ErrUnavailable)
	f(unix.EHOSTDOWN, ErrUnavailable)
	f(unix.EHOSTUNREACH, ErrUnavailable)
	f(unix.ENETUNREACH, ErrUnavailable)
	f(unix.ENETDOWN, ErrUnavailable)
	f(unix.ENOLINK, ErrUnavailable)
	f(unix.EREMOTEIO, ErrUnavailable)
	f(unix.EMFILE, ErrUnavailable)
	f(unix.EACCES, ErrDenied)
	f(unix.EPERM, ErrDenied)
	f(unix.EIO, nil)
	f(io.ErrUnexpectedEOF, nil)
}
