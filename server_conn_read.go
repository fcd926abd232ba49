package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lowWater   = 512 << 10 // bytes the kernel collects before it wakes the reader of a large body
	stallBytes = 4 << 10   // bytes a peer must move within the stall timeout
)

// SetReadDeadline implements net.Conn. fasthttp sets two for each request: one for its first
// byte and one for its header. That of the socket is only set to fire sooner: if it fires
// too soon, readSocket sets it again.
func (c *conn) SetReadDeadline(until time.Time) error {
	if c.socketUntil.IsZero() || until.Before(c.socketUntil) {
		return c.setReadDeadline(until)
	}
	c.readUntil = until
	return nil
}

// setReadDeadline sets the read deadline, also that of the socket.
func (c *conn) setReadDeadline(until time.Time) error {
	c.readUntil, c.socketUntil = until, until
	return c.TCPConn.SetReadDeadline(until)
}

// readSocket reads from the socket until the read deadline. In a body that is the deadline of
// the socket: revokeBody sets no other.
func (c *conn) readSocket(p []byte) (int, error) {
	for {
		n, err := c.TCPConn.Read(p)
		if err == nil || c.inBody || !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(c.readUntil) {
			return n, err
		}
		if err := c.setReadDeadline(c.readUntil); err != nil {
			return n, err
		}
	}
}

// awaitBody sets the read deadline of a body, unless that was revoked.
func (c *conn) awaitBody(d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bodyRevoked.Load() {
		return c.end(errRevoked)
	}
	return c.setReadDeadline(time.Now().Add(d))
}

// beginBody makes Read watch for stalls, instead of the header's deadline.
func (c *conn) beginBody() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inBody, c.ended, c.armed, c.window = true, nil, false, 0
	c.pace = newPace(c.l.minRate, c.l.ratePeriod, time.Now())
	if c.tls != nil {
		c.tls.arrived() // those of the header do not count
	}
}

// endBody undoes beginBody. The deadline that it sets is for the unread rest, which
// fasthttp drains before the next request.
func (c *conn) endBody() {
	c.setLowMark(false)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inBody, c.slow, c.dst, c.region, c.held, c.dstErr = false, false, nil, nil, nil, nil
	_ = c.setReadDeadline(time.Now().Add(lingerQuiet))
}

// Read implements net.Conn. In a body it fails with errStalled if the client sends too
// little, with errBodyCut if it leaves, with errRevoked if others need what it holds, and
// with errShutDown if the shutdown cuts it.
//
// If p is the marker region, Read moves the bytes to dst by splice(2) and leaves p
// unchanged. fasthttp's stream passes the region on, cut to what is left of the body or of
// the chunk, only if it has nothing buffered: so exactly the bytes are moved that it
// believes to have read, and its counters stay right.
func (c *conn) Read(p []byte) (int, error) {
	if !c.inBody {
		c.finishRecord()
		if c.waiting {
			return c.readFirst(p)
		}
		n, err := c.receive(p)
		if len(c.firstBytes) > 0 {
			c.keepFirst(p[:n])
		}
		return n, err
	}
	splice := c.dst != nil && len(p) > 0 && &p[0] == &c.region[0]
	if c.armed && time.Now().After(c.stallAt) {
		c.armed = false // it passed while the service did not read, as an upload that waits for memory
	}
	for {
		if c.bodyRevoked.Load() {
			return 0, c.end(errRevoked)
		}
		if !c.armed {
			now := time.Now()
			c.stallAt, c.armed, c.window = now.Add(c.l.stall), true, 0
			if err := c.awaitPace(now); err != nil {
				return 0, err
			}
		}
		n, err := c.readOnce(p, splice)
		arrived := int64(n)
		if c.tls != nil {
			arrived = c.tls.arrived()
		}
		c.pace.got += arrived
		c.window += arrived
		if c.window >= stallBytes {
			c.armed = false
		}
		if c.pace.failed() && c.queued() == 0 {
			return n, c.end(tooSlow(c.pace.rate))
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if c.bodyRevoked.Load() {
				return n, c.end(errRevoked)
			}
			if c.armed && !c.extendDeadline() {
				if c.ended == nil { // else it was revoked in the meantime
					c.ended = errStalled
				}
				return n, c.ended
			}
			if n > 0 {
				return n, nil
			}
		case err == io.EOF, n == 0 && err == nil && len(p) > 0:
			return n, c.end(errBodyCut)
		case err != nil && c.dstErr == nil:
			return n, c.end(c.lostBody(err))
		default:
			return n, err
		}
	}
}

// receive reads from the socket, and decrypts.
func (c *conn) receive(p []byte) (int, error) {
	if c.tls != nil {
		return c.tls.read(p)
	}
	return c.readSocket(p)
}

// lostBody returns the error of a body whose connection failed with err.
func (c *conn) lostBody(err error) error {
	switch c.cutReason(err) {
	case cutByShutdown:
		return errShutDown
	case cutForOthers:
		return errRevoked
	}
	return fmt.Errorf("%w: %v", errBodyCut, err) // not %w of err: it must not look like an end
}

// extendDeadline is called when a deadline fired and too little was read. It reports
// whether there is time left, and sets a deadline for it.
func (c *conn) extendDeadline() bool {
	if now := time.Now(); now.Before(c.stallAt) { // it was a deadline of the pace
		return c.awaitPace(now) == nil
	}
	return c.drainBelowMark()
}

// awaitPace sets a read deadline for the stall timeout or, if that is sooner, for
// the next check of the pace of the client.
func (c *conn) awaitPace(now time.Time) error {
	if c.pace.judge(now) {
		c.setLowMark(false)
	}
	return c.awaitBody(c.pace.patience(c.stallAt.Sub(now)))
}

// end records why a body ends. fasthttp wraps an error between two chunks in one
// that does not unwrap.
func (c *conn) end(err error) error {
	c.ended = err
	return err
}

// readOnce does one Read, or one splice into dst, whose own errors go to dstErr.
func (c *conn) readOnce(p []byte, splice bool) (int, error) {
	most := int64(len(p))
	if c.pace.watched {
		if !splice {
			defer c.pace.wait(time.Now())
			return c.receive(p)
		}
		queued, err := c.awaitQueued()
		if err != nil {
			return 0, err
		}
		most = min(most, queued)
	}
	if !splice {
		return c.receive(p)
	}
	if err := c.writeHeld(); err != nil {
		return 0, err
	}
	c.moved = true
	n, err := c.dst.ReadFrom(&io.LimitedReader{R: c.TCPConn, N: most})
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !c.failed() {
		c.dstErr = err
	}
	return int(n), err
}

// writeHeld writes the collected pieces to dst, and forgets them.
func (c *conn) writeHeld() error {
	held := c.held
	c.held = nil
	if len(held) == 0 {
		return nil
	}
	_, c.dstErr = c.dst.Write(held)
	return c.dstErr
}

// failed reports whether an error that a splice or a sendfile has just returned is that
// of the socket, and not that of the file. The error itself does not say: a file
// on a remote store fails with ETIMEDOUT or ENOTCONN too. The state of the socket does: the
// kernel closes a socket before it reports its error, and a closed socket has no
// peer (getpeername(2)). If an error of the socket is still pending (SO_ERROR), the
// call has reported another one, that of the file.
func (c *conn) failed() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	failed := true // Control fails if this side has closed the connection (cut)
	_ = raw.Control(func(fd uintptr) {
		if _, err := unix.Getpeername(int(fd)); err == nil {
			failed = false
			return
		}
		pending, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		failed = err != nil || pending == 0
	})
	return failed
}

// drainBelowMark is called when a deadline fired and too little was read: fewer bytes
// than the low-water mark may be queued. If so the mark is removed for the rest of the
// body, and there is a little time to read them.
func (c *conn) drainBelowMark() bool {
	if !c.lowMark {
		return false
	}
	c.setLowMark(false)
	c.slow = true
	return c.queued() > 0 && c.awaitBody(lingerQuiet) == nil
}

// queued returns the number of bytes that have arrived and were not read.
func (c *conn) queued() int64 {
	queued := 0
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { queued, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	}
	return int64(queued)
}

// awaitQueued waits for bytes of the client only: a splice also waits for the file. At the
// end of the connection it returns 1.
func (c *conn) awaitQueued() (int64, error) {
	defer c.pace.wait(time.Now())
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	queued := 0
	err = raw.Read(func(fd uintptr) bool {
		// Not SIOCINQ alone: it is 0 also at the end of the connection, which the
		// poller reports only once and may have reported already.
		var b [1]byte
		if _, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT); err == unix.EAGAIN {
			return false
		}
		queued, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		return true
	})
	return max(int64(queued), 1), err
}

// setLowMark sets SO_RCVLOWAT to lowWater, or back to 1: a large body that wakes its
// reader less often costs less. It must be off whenever fewer bytes than that are still to
// come.
func (c *conn) setLowMark(on bool) {
	if on == c.lowMark || on && (c.slow || c.pace.watched) {
		return
	}
	mark := 1
	if on {
		mark = lowWater
	}
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, mark) == nil {
				c.lowMark = on
			}
		})
	}
}
