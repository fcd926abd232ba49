package main

import (
	"errors"
	"fmt"
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
	// errRevoked: a budget took back what this request holds.
	errRevoked = fmt.Errorf("%w: others wait for what your address holds", ErrBusy)
)
