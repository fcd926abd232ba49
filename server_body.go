package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// requestBody is the body of one request as a Backend reads it. It returns
// exactly the body or fails: with errBodyCut, errBadChunk, errStalled, errRevoked,
// errShutDown, errTooLarge, errEmptyBody or with ErrNoSpace, never with an error
// that could be taken for its end. It is a FileMover, Sized, Placed and Charged.
type requestBody struct {
	conn   *conn
	token  uint64    // of the request (conn.hold)
	stream io.Reader // fasthttp's, which decodes chunks and has bytes buffered
	size   int64     // Content-Length; -1: chunked
	limit  int64     // bytes allowed; 0: any
	read   int64
	space  *reservation // of what arrives; nil: it is not limited
	err    error        // final
	ended  bool         // the whole body was read
	region []byte
	buf    *[copySize]byte
	hash   *bodyHash // nil: the body is not hashed

	// checkTrailer is called at the end of the body, and returns the error with which that
	// fails. nil: any trailer will do.
	checkTrailer func() error
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
	if splice && c.tls == nil && (size < 0 || size > copySize) {
		b.region = c.l.spliceSlots.acquire()
	}
	return b
}

// Client implements Charged.
func (b *requestBody) Client() string { return b.conn.client() }

// Revoke implements Charged.
func (b *requestBody) Revoke() { b.conn.revokeBody(b.token) }

// close releases what the body holds. It does not read the rest.
func (b *requestBody) close() {
	b.conn.endBody()
	b.conn.bodyRead = b.ended
	b.conn.rec.in = b.read
	b.hash.stop()
	b.releaseRegion()
	if b.buf != nil {
		b.conn.l.buffers.pool.Put(b.buf)
		b.buf = nil
	}
}

// hashed makes the body compute its digests while it is read, and fail at its end unless
// they are those that the client announced. It is called before the body is read.
func (b *requestBody) hashed(want announcedDigests) {
	b.hash = newBodyHash(want)
	b.hash.buffers = &b.conn.l.buffers
}

// releaseRegion makes the body be copied from now on.
func (b *requestBody) releaseRegion() {
	if b.region != nil {
		b.conn.l.spliceSlots.release(b.region)
		b.region = nil
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
	b.hash.write(p[:n])
	return n, b.account(int64(n), err)
}

// account counts n bytes, and returns what the error that came with them means.
func (b *requestBody) account(n int64, err error) error {
	b.read += n
	switch {
	case b.tooLarge(0):
		b.err = errTooLarge
	case b.spaceTaken(n):
	case err == io.EOF && (b.size < 0 || b.read == b.size):
		b.ended = true
		if b.err = b.atEnd(); b.err == nil {
			return io.EOF
		}
	case err != nil && b.conn.ended != nil:
		b.err = b.conn.ended
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errBodyCut):
		b.err = errBodyCut
	case err != nil: // the connection is not at fault, so fasthttp cannot decode the chunks
		b.err = fmt.Errorf("%w: %v", errBadChunk, err) // not %w of err: it must not look like an end
	}
	return b.err
}

// atEnd returns what is wrong with the body as a whole.
func (b *requestBody) atEnd() error {
	if b.read == 0 {
		return errEmptyBody
	}
	if b.checkTrailer != nil {
		if err := b.checkTrailer(); err != nil {
			return err
		}
	}
	return b.hash.end()
}

// spaceTaken counts n bytes more against the free space, and reports whether that
// ends the body.
func (b *requestBody) spaceTaken(n int64) bool {
	b.err = b.space.received(n)
	return b.err != nil
}

// MoveTo implements FileMover: by splice(2) if the body has a marker region, else with a
// copy. A body that is hashed is only spliced into a file that is open for reading too.
func (b *requestBody) MoveTo(f *os.File, max int64) (int64, error) {
	if b.region != nil && !b.hash.canFollow(f) {
		b.releaseRegion()
	}
	if b.region == nil {
		return b.copyTo(f, max)
	}
	if b.err != nil {
		return 0, b.err
	}
	if b.ended {
		return 0, io.EOF
	}
	if b.err = b.hash.follow(f); b.err != nil {
		return 0, b.err
	}
	c := b.conn
	c.setLowMark(b.size-b.read >= moveSize+lowWater)
	c.dst, c.region = f, b.region
	n, err := b.move(max)
	if c.dstErr == nil {
		_ = c.writeHeld()
	}
	dstErr := c.dstErr
	c.dst, c.dstErr = nil, nil
	if dstErr != nil {
		b.err = errBodyCut // the position in the body is lost; the caller gets the error of the file
		return n, dstErr
	}
	b.hash.spliced(n)
	return n, b.account(n, err)
}

// move moves the next bytes by splice(2). Bytes that were in fasthttp's buffers are
// left in held instead. A body of small chunks is collected there, since each chunk
// would cost a write.
func (b *requestBody) move(max int64) (total int64, err error) {
	c := b.conn
	for {
		c.moved = false
		var n int
		n, err = b.stream.Read(b.region[:min(int64(len(b.region)), max-total)])
		total += int64(n)
		if c.moved || c.dstErr != nil {
			return total, err
		}
		if b.size >= 0 { // only the first bytes were buffered
			c.held = b.region[:n]
			return total, err
		}
		if len(c.held) == 0 {
			c.held = b.buffer()[:0]
		}
		c.held = append(c.held, b.region[:n]...)
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
	b.hash.write(p[:n])
	return int64(n), b.account(int64(n), err)
}

// tooLarge reports whether the body is too large with n more bytes.
func (b *requestBody) tooLarge(n int64) bool { return b.limit > 0 && b.read+n > b.limit }

// buffer returns the buffer of this body.
func (b *requestBody) buffer() *[copySize]byte {
	if b.buf == nil {
		b.buf = b.conn.l.buffers.get()
	}
	return b.buf
}
