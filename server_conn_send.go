package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// awaitResponse sets the write deadline of a response, unless that was revoked.
func (c *conn) awaitResponse(until time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.responseRevoked.Load() {
		return errRevoked
	}
	c.sendUntil = until
	return c.SetWriteDeadline(until)
}

// Write writes all of p, for as long as the client takes at least stallBytes
// within each stall timeout.
func (c *conn) Write(p []byte) (int, error) {
	if c.rec.sent == 0 {
		c.rec.head = headSize(p)
	}
	var n int
	var err error
	if c.tls != nil {
		n, err = c.tls.write(p)
	} else {
		n, err = c.writeSocket(p)
	}
	c.rec.sent += int64(n)
	return n, c.sent(err)
}

// writeSocket writes all of p to the socket, under the rule of Write.
func (c *conn) writeSocket(p []byte) (int, error) {
	total := 0
	for {
		n, err := c.sendOnce(func() (int64, error) {
			n, err := c.TCPConn.Write(p[total:])
			return int64(n), err
		})
		total += int(n)
		if err != nil || total == len(p) {
			return total, err
		}
	}
}

// headSize returns the size of the header that p begins with. fasthttp writes a header
// at once: it is smaller than the buffer (writeBuffer).
func headSize(p []byte) int64 {
	const end = "\r\n\r\n"
	if i := bytes.Index(p, []byte(end)); i >= 0 {
		return int64(i + len(end))
	}
	return int64(len(p))
}

// ReadFrom sends r under the same rule as Write: by sendfile(2) if r is a file
// in an io.LimitedReader, which is what fasthttp passes. A file that ends before the
// limit has failed (sourceFailed): fasthttp closes the connection then.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	var file *os.File
	lr, ok := r.(*io.LimitedReader)
	if ok {
		file, ok = lr.R.(*os.File)
	}
	if !ok {
		// Only the writes have deadlines: that the source is slow is not the client's
		// fault.
		return io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{r}, make([]byte, 64<<10))
	}
	if c.tls != nil {
		return c.sendCopy(lr, file)
	}
	total := int64(0)
	for ended := false; lr.N > 0 && !ended; {
		ofFile := false
		n, err := c.sendOnce(func() (int64, error) {
			n, err := c.TCPConn.ReadFrom(lr)
			ended = err == nil // all of it was sent, or all that the file has
			ofFile = err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !c.failed()
			return n, err
		})
		total += n
		c.rec.sent += n
		if ofFile {
			return total, c.sourceFailed(readError(file.Name(), err))
		}
		if err != nil {
			return total, c.sent(err)
		}
	}
	if lr.N > 0 {
		return total, c.sourceFailed(cutError(file.Name(), lr.N))
	}
	return total, nil
}

// readError returns the error of a file that could not be read while it was sent.
func readError(path string, err error) error {
	if errno := unix.Errno(0); errors.As(err, &errno) {
		err = errno // without the names of the calls and of the connection
	}
	return diskError("read", path, err)
}

// cutError returns the error of a source that ended missing bytes too early.
func cutError(name string, missing int64) error {
	return fmt.Errorf("cannot read %q: it ended %d bytes early: %w", name, missing, io.ErrUnexpectedEOF)
}

// sourceFailed records that a response is cut because its source failed, and calls the
// function that the response has for that.
func (c *conn) sourceFailed(err error) error {
	if c.rec.sourceFailed != nil {
		c.rec.sourceFailed(err)
	}
	c.rec.cut = cmp.Or(c.rec.cut, cutByStore)
	return err
}

// The reasons why a request or a response was cut, as the service log has them.
const (
	cutByClient   = "the client closed the connection"
	cutByStore    = "the store failed"
	cutByShutdown = "shutdown"
	cutForOthers  = "other clients needed the capacity"
	cutSlow       = "the client stalled"
	cutByNetwork  = "the connection to the client was lost"
)

// isOurs reports whether the service closed the connection for this reason.
func isOurs(cut string) bool {
	return cut == cutByStore || cut == cutByShutdown || cut == cutForOthers
}

// sent records why a response was not sent whole. The first reason counts.
func (c *conn) sent(err error) error {
	if err != nil {
		c.rec.cut = cmp.Or(c.rec.cut, c.cutReason(err))
	}
	return err
}

// cutReason returns the reason for an error of the connection.
func (c *conn) cutReason(err error) string {
	switch {
	case errors.Is(err, errStalled):
		return cutSlow
	case errors.Is(err, errRevoked):
		return cutForOthers
	case errors.Is(err, errShutDown), errors.Is(err, net.ErrClosed) && c.l.cutting.Load():
		return cutByShutdown
	case errors.Is(err, net.ErrClosed): // makeRoom closed it
		return cutForOthers
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET), errors.Is(err, errBodyCut):
		return cutByClient
	}
	return cutByNetwork
}

// sendOnce calls send under a deadline. A deadline that fires with too little sent is an
// error only if the socket's buffer did not drain either since the deadline before: the
// buffer can hold what a slow line takes minutes to send. So a client that reads nothing
// is dropped after at most four and a half stall timeouts. A deadline that is at least a
// stall timeout away is kept, since setting one for each response costs more than it
// gains.
func (c *conn) sendOnce(send func() (int64, error)) (int64, error) {
	if now := time.Now(); c.sendUntil.Sub(now) < c.l.stall {
		if err := c.awaitResponse(now.Add(c.l.stall * 3 / 2)); err != nil {
			return 0, err
		}
	}
	n, err := send()
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.backlog = 0
		return n, err
	}
	if c.responseRevoked.Load() {
		return n, errRevoked
	}
	before, now := c.backlog, c.unsent()
	c.backlog = now
	if n < stallBytes && before > 0 && before+n-now < stallBytes {
		return n, errStalled
	}
	return n, nil
}

// unsent returns the number of bytes written to the socket that the client has not
// acknowledged.
func (c *conn) unsent() int64 {
	queued := 0
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { queued, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	}
	return int64(queued)
}
