package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"hash"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// hashWindow is how many bytes the hash may be behind a splice: few enough to be in the
	// page cache still.
	hashWindow = 16 << 20
	// hashBatch is the number of bytes for which it is worth it to start a goroutine.
	hashBatch = 512 << 10
)

// bodyHash computes the digests of a body while it is read. A nil bodyHash computes none.
//
// Bytes that pass through the service are hashed in place. Bytes that were spliced into a
// file are read back from the page cache with pread(2), by another goroutine, which starts
// when hashBatch bytes are waiting and ends when none are: a client that stalls holds no
// goroutine and no buffer.
//
// The file is not mapped: a page of a mapping that cannot be read kills the process (SIGBUS).
type bodyHash struct {
	want   announcedDigests
	sha256 hash.Hash
	sha512 hash.Hash // nil: the client did not announce one
	sum    Digest    // set by end

	buffers *bodyBuffers
	file    *os.File // the bytes were spliced into it; nil: they were hashed in place
	readAt  func(f *os.File, p []byte, off int64) (int, error)

	mu      sync.Mutex // of what follows
	changed sync.Cond
	hashed  int64 // offset in file up to which it was hashed
	moved   int64 // offset in file up to which it was written
	running bool  // run is active: the hashes are its own
	waiting bool  // the body waits for the hash ...
	until   int64 // ... to be at most so many bytes behind
	stopped bool
	err     error // of reading the file
}

var _ Hashed = (*requestBody)(nil)

func newBodyHash(want announcedDigests) *bodyHash {
	h := &bodyHash{want: want, sha256: sha256.New(), readAt: (*os.File).ReadAt}
	h.changed.L = &h.mu
	if want.SHA512 != nil {
		h.sha512 = sha512.New()
	}
	return h
}

// write hashes the next bytes of the body in place.
func (h *bodyHash) write(p []byte) {
	if h == nil {
		return
	}
	if h.file != nil {
		_ = h.catchUp() // end returns the error
		h.file = nil
	}
	h.add(p)
}

func (h *bodyHash) add(p []byte) {
	h.sha256.Write(p)
	if h.sha512 != nil {
		h.sha512.Write(p)
	}
}

// canFollow reports whether bytes may be spliced into f: they can be read back from there.
func (h *bodyHash) canFollow(f *os.File) bool {
	if h == nil || h.file == f {
		return true
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDWR
}

// follow is called before up to moveSize bytes are spliced into f, at its current offset. It
// waits if the hash is too far behind, until it has caught up with half of that: fewer and
// longer waits cost less.
func (h *bodyHash) follow(f *os.File) error {
	if h == nil {
		return nil
	}
	if h.file != f {
		if err := h.catchUp(); err != nil {
			return err
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		h.file, h.hashed, h.moved = f, at, at
	}
	return h.await(hashWindow-moveSize, hashWindow/2)
}

// spliced is called when n bytes were written to the file.
func (h *bodyHash) spliced(n int64) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.moved += n
	if h.moved-h.hashed >= hashBatch && !h.running && h.err == nil {
		h.running = true
		go h.run()
	}
}

// await waits, if run is more than limit bytes behind, until it is at most until bytes behind
// or has ended.
func (h *bodyHash) await(limit, until int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.moved-h.hashed > limit {
		h.waiting, h.until = true, until
		for h.running && h.moved-h.hashed > until {
			h.changed.Wait()
		}
		h.waiting = false
	}
	return h.err
}

// awaitEnd waits until run has ended.
func (h *bodyHash) awaitEnd() error { return h.await(-1, -1) }

// catchUp hashes all that was written to the file.
func (h *bodyHash) catchUp() error {
	if err := h.awaitEnd(); err != nil || h.hashed == h.moved {
		return err
	}
	h.running = true
	h.run()
	return h.err
}

// run hashes what was written to the file and was not hashed yet.
func (h *bodyHash) run() {
	buf := h.buffers.get()
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.hashed < h.moved && h.err == nil && !h.stopped {
		p, at := buf[:min(copySize, h.moved-h.hashed)], h.hashed
		h.mu.Unlock()
		err := h.readBack(p, at)
		h.mu.Lock()
		if h.err = err; err == nil {
			h.hashed += int64(len(p))
		}
		if h.waiting && h.moved-h.hashed <= h.until {
			h.changed.Signal()
		}
	}
	h.buffers.pool.Put(buf)
	h.running = false
	h.changed.Signal()
}

// readBack hashes the bytes of the file at the offset at, as many as fit into p.
func (h *bodyHash) readBack(p []byte, at int64) error {
	n, err := h.readAt(h.file, p, at)
	if n == len(p) {
		h.add(p)
		return nil
	}
	if err == io.EOF { // it must not look like the end of the body
		err = errors.New("the file is shorter than what was written to it")
	}
	return diskError("read back", h.file.Name(), err)
}

// stop returns when run has ended. The body calls it when it is closed.
func (h *bodyHash) stop() {
	if h == nil {
		return
	}
	h.mu.Lock()
	h.stopped = true
	h.mu.Unlock()
	_ = h.awaitEnd()
}

// end is called when the body has ended. It fails with a digestError if its bytes do not have
// the digests that the client announced, and with another error if they cannot be read back.
func (h *bodyHash) end() error {
	if h == nil {
		return nil
	}
	if err := h.catchUp(); err != nil {
		return err
	}
	sum := Digest(h.sha256.Sum(nil))
	if want := h.want.SHA256; want != nil && sum != *want {
		return &digestError{"sha-256", want[:], sum[:]}
	}
	if want := h.want.SHA512; want != nil {
		if got := h.sha512.Sum(nil); !bytes.Equal(got, want[:]) {
			return &digestError{"sha-512", want[:], got}
		}
	}
	h.sum = sum
	return nil
}

// Hashes implements Hashed.
func (b *requestBody) Hashes() bool { return b.hash != nil }

// Announced implements Hashed.
func (b *requestBody) Announced() (d Digest) {
	if b.hash != nil && b.hash.want.SHA256 != nil {
		d = *b.hash.want.SHA256
	}
	return d
}

// Sum implements Hashed.
func (b *requestBody) Sum() (d Digest) {
	if b.hash != nil {
		d = b.hash.sum
	}
	return d
}
