package main

import (
	"errors"
	"fmt"
	"io"
	"os"
)

const (
	moveSize = 1 << 20   // bytes asked of a FileMover at once: the largest pipe that splice(2) gets
	copySize = 128 << 10 // bytes of the buffer where nothing can be spliced

	// smallSize is the size in bytes up to which an artifact is read whole: with its
	// header it leaves in one write.
	smallSize = 15 << 10
)

// The errors of a reader that is passed to StoreArtifact. A backend wraps them.
var (
	errTooLarge  = errors.New("the body is too large")
	errEmptyBody = errors.New("the body is empty")
	// errStalled: the client sent too little within the stall timeout.
	errStalled = errors.New("the client stalled")
	// errBodyCut: the connection ended inside a body. It does not wrap io.EOF or
	// io.ErrUnexpectedEOF, which some libraries take for a normal end.
	errBodyCut = errors.New("the body was cut short")
	// errBadChunk: the chunks of the body are malformed (RFC 9112, section 7.1).
	errBadChunk = errors.New("the body has a malformed chunk")
	// errDigest: the body does not have the digest that the client announced.
	errDigest = errors.New("the body does not match its digest")
	// errShutDown: the shutdown of the service cut the body.
	errShutDown = errors.New("the service is shutting down")
	// errRevoked: a budget took back what this request holds.
	errRevoked = fmt.Errorf("%w: other clients are waiting for capacity that your address holds", ErrBusy)
)

// A reader that is passed to StoreArtifact may have any of these optional methods.

// FileMover moves its bytes into a file without passing them through the caller. It
// returns the number of bytes moved, at most max, and io.EOF at the end of the body, as
// Read does.
type FileMover interface {
	MoveTo(f *os.File, max int64) (int64, error)
}

// Sized returns how many bytes the reader will yield, or -1 if that is not known. A reader
// that yields another number fails.
type Sized interface {
	Size() int64
}

// sizeOf returns the Size of r, or -1 if r is not Sized.
func sizeOf(r io.Reader) int64 {
	if s, ok := r.(Sized); ok {
		return s.Size()
	}
	return -1
}

// Placed is called when the store has allocated space for n more bytes of the reader,
// before they are read.
type Placed interface {
	Placed(n int64)
}

// Charged names the client, so that the memory held for the reader is shared fairly
// among clients.
type Charged interface {
	// Client returns who sends the bytes; empty if that is unknown.
	Client() string
	// Revoke makes the reader fail soon, because its client holds too much. It
	// does not block, and any goroutine may call it.
	Revoke()
}
