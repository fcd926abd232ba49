package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// requestBody is the body of one request as a Backend reads it. It yields
// exactly the body or fails: with errBodyCut, errStalled, errRevoked,
// errTooLarge, errEmptyBody or with ErrNoSpace, never with one that could be
// taken for its end. It is a FileMover, Sized, Placed and Charged.
type requestBody struct {
	conn   *conn
	token  uint64    // of the request (conn.hold)
	stream io.Reader // fasthttp's, which knows about chunks and what it has buffered
	size   int64     // Content-Length; -1: chunked
	limit  int64     // bytes allowed; 0: any
	read   int64
	space  *reservation // of what arrives; nil: it is not limited
	err    error        // the client's fault, and final
	ended  bool         // the whole body was read
	slab   []byte
	buf    *[copySize]byte
}

// bodyBuffers holds the buffers of bodies that are copied, *[copySize]byte.
type bodyBuffers struct{ pool sync.Pool }

func (b *bodyBuffers) get() *[copySize]byte {
	if buf, ok := b.pool.Get().(*[copySize]byte); ok {
		return buf
	}
	return new([copySize]byte)
}

// openBody begins to read the body of the request that c is serving. The caller
// closes it before the handler returns.
func openBody(c *conn, stream io.Reader, size, limit int64, splice bool, space *reservation) *requestBody {
	b := &requestBody{conn: c, stream: stream, size: size, limit: limit, space: space, token: c.hold()}
	c.beginBody()
	if splice && (size < 0 || size > copySize) {
		b.slab = c.l.splicers.acquire()
	}
	return b
}

// Client implements Charged.
func (b *requestBody) Client() string { return b.conn.client() }

// Revoke implements Charged.
func (b *requestBody) Revoke() { b.conn.revokeBody(b.token) }

// close gives back what the body holds. It does not read the rest.
func (b *requestBody) close() {
	b.conn.endBody()
	b.conn.bodyRead = b.ended
	b.conn.rec.in = b.read
	if b.slab != nil {
		b.conn.l.splicers.release(b.slab)
		b.slab = nil
	}
	if b.buf != nil {
		b.conn.l.buffers.pool.Put(b.buf)
		b.buf = nil
	}
}

// Size implements Sized.
func (b *requestBody) Size() int64 { return b.size }

// Placed implements Placed.
func (b *requestBody) Placed(n int64) { b.space.allocated(n) }

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.ended {
		return 0, io.EOF
	}
	n, err := b.stream.Read(p)
	return n, b.account(int64(n), err)
}

// account counts n bytes and judges the error that came with them.
func (b *requestBody) account(n int64, err error) error {
	b.read += n
	switch {
	case b.tooLarge(0):
		b.err = errTooLarge
	case b.spaceTaken(n):
	case err == io.EOF && (b.size < 0 || b.read == b.size):
		b.ended = true
		if b.read > 0 {
			return io.EOF
		}
		b.err = errEmptyBody
	case err != nil && b.conn.ended != nil:
		b.err = b.conn.ended
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errBodyCut):
		b.err = errBodyCut
	case err != nil:
		// A reset, or a chunk that is none. Not %w: it must not look like an end.
		b.err = fmt.Errorf("%w: %v", errBodyCut, err)
	}
	return b.err
}

// spaceTaken counts n bytes more against the free space, and reports whether that
// ends the body.
func (b *requestBody) spaceTaken(n int64) bool {
	b.err = b.space.received(n)
	return b.err != nil
}

// MoveTo implements FileMover: by splice(2) where a slab could be had, with a
// copy otherwise.
func (b *requestBody) MoveTo(f *os.File, max int64) (int64, error) {
	if b.slab == nil {
		return b.copyTo(f, max)
	}
	if b.err != nil {
		return 0, b.err
	}
	if b.ended {
		return 0, io.EOF
	}
	c := b.conn
	c.setLowMark(b.size-b.read >= moveSize+lowWater)
	c.dst, c.slab = f, b.slab
	n, err := b.move(max)
	if c.dstErr == nil {
		_ = c.writeHeld()
	}
	dstErr := c.dstErr
	c.dst, c.dstErr = nil, nil
	if dstErr != nil {
		b.err = errBodyCut // its place in the body is lost; the caller hears of the file
		return n, dstErr
	}
	return n, b.account(n, err)
}

// move moves the next bytes by splice(2). What came out of fasthttp's buffers is
// left in held instead: all that can be had if the body comes in small chunks,
// each of which would cost a write of its own.
func (b *requestBody) move(max int64) (total int64, err error) {
	c := b.conn
	for {
		c.moved = false
		var n int
		n, err = b.stream.Read(b.slab[:min(int64(len(b.slab)), max-total)])
		total += int64(n)
		if c.moved || c.dstErr != nil {
			return total, err
		}
		if b.size >= 0 { // nothing but the first bytes comes this way
			c.held = b.slab[:n]
			return total, err
		}
		if len(c.held) == 0 {
			c.held = b.buffer()[:0]
		}
		c.held = append(c.held, b.slab[:n]...)
		if err != nil || b.tooLarge(total) || cap(c.held)-len(c.held) < readBuffer || total >= max {
			return total, err
		}
	}
}

// copyTo moves the next bytes by a copy, as many as fit into the buffer.
func (b *requestBody) copyTo(f *os.File, max int64) (int64, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.ended {
		return 0, io.EOF
	}
	p := b.buffer()[:min(copySize, max)]
	n := 0
	var err error
	for n < len(p) && err == nil && !b.tooLarge(int64(n)) {
		var m int
		m, err = b.stream.Read(p[n:])
		n += m
	}
	if n > 0 {
		if _, werr := f.Write(p[:n]); werr != nil {
			return 0, werr
		}
	}
	return int64(n), b.account(int64(n), err)
}

// tooLarge reports whether n bytes more are too many.
func (b *requestBody) tooLarge(n int64) bool { return b.limit > 0 && b.read+n > b.limit }

// buffer is the buffer of this body.
func (b *requestBody) buffer() *[copySize]byte {
	if b.buf == nil {
		b.buf = b.conn.l.buffers.get()
	}
	return b.buf
}
