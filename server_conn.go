package main

import (
	"bytes"
	"container/list"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"
)

const (
	lowWater    = 512 << 10        // bytes the kernel collects before it wakes the reader of a large body
	stallBytes  = 4 << 10          // bytes a peer must move within the stall timeout
	lingerTime  = 10 * time.Second // how long an early answer waits for its client to stop sending
	lingerQuiet = 2 * time.Second  // a client silent for so long has stopped
)

// conn is a connection of fasthttp's that adds what its streams do not have:
// bodies spliced from the socket into a file, timeouts that measure progress
// instead of the whole transfer, and answers that survive a body still being
// sent. It embeds *net.TCPConn, not net.Conn, because sendfile(2) and splice(2)
// need the type. Only the goroutine that serves the connection uses it, but for
// Close, revokeBody and revokeResponse.
type conn struct {
	*net.TCPConn
	l       *listener
	linger  atomic.Bool // the client may still send: let it read the answer first (finish)
	from    string      // see client
	remote  string      // see remoteText
	backlog int64       // bytes unsent when the last write deadline fired

	// server_evict.go
	accepted time.Time
	fresh    bool         // nothing has arrived yet
	waiting  bool         // the next Read waits for a request
	state    atomic.Int32 // connBusy, connIdle or connOver
	in       *list.List   // where it is among the idle ones; under l.idle.mu
	place    *list.Element
	ofClient *list.Element // where it is among those of its client; nil: it was closed for others; under l.mu

	sendUntil time.Time // the write deadline

	rec      requestRecord // the latest
	recOpen  atomic.Bool   // its answer has not left yet
	bodyRead bool          // the handler has read all of its body

	// Other goroutines take mu to end a request (revokeBody, revokeResponse), the
	// serving one to change what they look at, and to set a deadline that must
	// not undo theirs.
	mu              sync.Mutex
	token           uint64 // of the request being served
	bodyRevoked     atomic.Bool
	responseRevoked atomic.Bool

	// Set while the body of a request is being read.
	inBody  bool
	ended   error // why Read gives no more of it, if that is not the client or the network
	window  int64 // bytes since the stall deadline was set
	armed   bool  // a stall deadline is set
	stallAt time.Time
	lowMark bool // SO_RCVLOWAT is lowWater
	slow    bool // it once was too high for this client
	pace    pace
	dst     *os.File // where Read moves what it is asked to put into slab
	slab    []byte
	held    []byte // small pieces of the body that are to be written to dst before anything is moved there
	moved   bool   // the last Read into slab went to dst instead
	dstErr  error  // why dst took no more
}

// nextRequest begins a request: no token of the one before is valid any more.
func (c *conn) nextRequest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token++
	c.bodyRevoked.Store(false)
	if c.responseRevoked.Swap(false) {
		c.sendUntil = time.Time{} // the write deadline has passed: set a new one
	}
}

// connOf returns the connection of a request.
func connOf(ctx *fasthttp.RequestCtx) *conn { return ctx.Conn().(*conn) }

// hold returns the token of the request being served. It is valid until that
// request is over: with it other goroutines can end the request, and never hit
// the next one on the connection.
func (c *conn) hold() uint64 { return c.token }

// bodyRevoker returns what a budget calls to end the reading of the body of the
// request being served.
func (c *conn) bodyRevoker() func() {
	token := c.hold()
	return func() { c.revokeBody(token) }
}

// responseRevoker returns what a budget calls to end the sending of the response to the
// request being served.
func (c *conn) responseRevoker() func() {
	token := c.hold()
	return func() { c.revokeResponse(token) }
}

// revokeBody makes the reading of the body, under way or to come, fail soon with
// errRevoked. Once the body is read whole it has no effect. Any goroutine may
// call it; it does not block.
func (c *conn) revokeBody(token uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if token != c.token {
		return
	}
	c.bodyRevoked.Store(true)
	if c.inBody { // otherwise the read deadline is that of a header, or of what is drained
		_ = c.SetReadDeadline(past)
	}
}

// revokeResponse makes the sending of the answer, under way or to come, fail soon
// with errRevoked. Once the answer is sent it has no effect. Any goroutine may
// call it; it does not block.
func (c *conn) revokeResponse(token uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if token != c.token {
		return
	}
	c.responseRevoked.Store(true)
	_ = c.SetWriteDeadline(past) // until nextRequest nothing else is written
}

// past is a deadline that fires at once.
var past = time.Unix(1, 0)

// awaitBody sets the read deadline of a body, unless that was revoked.
func (c *conn) awaitBody(d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bodyRevoked.Load() {
		return c.end(errRevoked)
	}
	return c.SetReadDeadline(time.Now().Add(d))
}

// awaitResponse sets the write deadline of an answer, unless that was revoked.
func (c *conn) awaitResponse(until time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.responseRevoked.Load() {
		return errRevoked
	}
	c.sendUntil = until
	return c.SetWriteDeadline(until)
}

// beginBody makes Read watch for stalls, in place of the header's deadline.
func (c *conn) beginBody() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inBody, c.ended, c.armed, c.window = true, nil, false, 0
	c.pace = newPace(c.l.minRate, c.l.minute, time.Now())
}

// endBody ends what beginBody began. What is left unread may still come for a
// bounded time, since fasthttp drains it before the next request.
func (c *conn) endBody() {
	c.setLowMark(false)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inBody, c.slow, c.dst, c.slab, c.held, c.dstErr = false, false, nil, nil, nil, nil
	_ = c.SetReadDeadline(time.Now().Add(lingerQuiet))
}

// Read reads as net.Conn does, and in a body: fails with errStalled when the
// client moves too little, with errBodyCut when it leaves, with errRevoked when
// others need what it holds, and moves the bytes
// to dst by splice(2), leaving p as it is, when p is the slab. fasthttp's
// stream passes the slab on, cut to what is left of the body or of the chunk,
// only when nothing is buffered in front of it: so what is moved is exactly
// what it believes to have read, and its counters stay right.
func (c *conn) Read(p []byte) (int, error) {
	if !c.inBody {
		c.finishRecord()
		if c.waiting {
			return c.readFirst(p)
		}
		return c.TCPConn.Read(p)
	}
	splice := c.dst != nil && len(p) > 0 && &p[0] == &c.slab[0]
	if c.armed && time.Now().After(c.stallAt) {
		c.armed = false // it passed while nobody read, as an upload that waits for memory: not for the client
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
		c.pace.got += int64(n)
		c.window += int64(n)
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
			if c.armed && !c.waitsOn() {
				if c.ended == nil { // else it was revoked just now
					c.ended = errStalled
				}
				return n, c.ended
			}
			if n > 0 {
				return n, nil
			}
		case err == io.EOF, n == 0 && err == nil && len(p) > 0:
			return n, errBodyCut
		default:
			return n, err
		}
	}
}

// waitsOn is asked when a deadline fired and too little was read. It reports
// whether there is time left, and sets a deadline for it.
func (c *conn) waitsOn() bool {
	if now := time.Now(); now.Before(c.stallAt) { // it was one of the pace
		return c.awaitPace(now) == nil
	}
	return c.drainBelowMark()
}

// awaitPace sets a read deadline for the stall timeout or, if that is sooner, for
// the next look at the pace of the client.
func (c *conn) awaitPace(now time.Time) error {
	if c.pace.judge(now) {
		c.setLowMark(false)
	}
	return c.awaitBody(c.pace.patience(c.stallAt.Sub(now)))
}

// end notes why a body ends. fasthttp wraps an error between two chunks in one
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
			return c.TCPConn.Read(p)
		}
		queued, err := c.awaitQueued()
		if err != nil {
			return 0, err
		}
		most = min(most, queued)
	}
	if !splice {
		return c.TCPConn.Read(p)
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

// writeHeld writes to dst what was gathered, which is no more after it.
func (c *conn) writeHeld() error {
	held := c.held
	c.held = nil
	if len(held) == 0 {
		return nil
	}
	_, c.dstErr = c.dst.Write(held)
	return c.dstErr
}

// failed reports whether an error that a splice or a sendfile has just returned is the
// socket's own, and not that of the file. The error itself does not tell: a file
// on a remote store fails with ETIMEDOUT or ENOTCONN too. The socket does: the
// kernel closes one before it reports an error of it, and a closed socket has no
// peer (getpeername(2)). If an error of it is still pending (SO_ERROR), the
// call did not report that one, and its own was the file's.
func (c *conn) failed() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	failed := true // Control fails where this side has closed the connection (cut)
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

// drainBelowMark is asked when a deadline fired and too little was read: bytes
// may be queued that are fewer than the low-water mark. If so the mark is taken
// away for the rest of the body, and there is a little time to read them.
func (c *conn) drainBelowMark() bool {
	if !c.lowMark {
		return false
	}
	c.setLowMark(false)
	c.slow = true
	return c.queued() > 0 && c.awaitBody(lingerQuiet) == nil
}

// queued is the number of bytes that the client sent and nobody has read.
func (c *conn) queued() int64 {
	queued := 0
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { queued, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	}
	return int64(queued)
}

// awaitQueued waits for bytes of the client's, and for nothing else: a splice
// waits for the file too. At the end of the connection it returns 1.
func (c *conn) awaitQueued() (int64, error) {
	defer c.pace.wait(time.Now())
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	queued := 0
	err = raw.Read(func(fd uintptr) bool {
		// Not SIOCINQ alone: it is 0 at the end of the connection too, of which the
		// poller may have told already, and it tells once.
		var b [1]byte
		if _, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT); err == unix.EAGAIN {
			return false
		}
		queued, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		return true
	})
	return max(int64(queued), 1), err
}

// setLowMark sets SO_RCVLOWAT to lowWater, or back to 1: the fewer times a large
// body wakes its reader, the less it costs. It must be off whenever fewer bytes
// than that are to come.
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

// Write writes all of p, for as long as the client takes at least stallBytes
// within each stall timeout.
func (c *conn) Write(p []byte) (int, error) {
	if c.rec.sent == 0 {
		c.rec.head = headSize(p)
	}
	total := 0
	for {
		n, err := c.sendOnce(func() (int64, error) {
			n, err := c.TCPConn.Write(p[total:])
			return int64(n), err
		})
		total += int(n)
		c.rec.sent += n
		if err != nil || total == len(p) {
			return total, c.sent(err)
		}
	}
}

// headSize is the size of the header that p begins with. fasthttp writes a header
// at once: it is smaller than the buffer (writeBuffer).
func headSize(p []byte) int64 {
	const end = "\r\n\r\n"
	if i := bytes.Index(p, []byte(end)); i >= 0 {
		return int64(i + len(end))
	}
	return int64(len(p))
}

// ReadFrom sends r under the same rule as Write: by sendfile(2) if r is a file
// in an io.LimitedReader, as fasthttp passes it on. A file that ends before the
// limit has failed (sourceFailed): fasthttp closes the connection then.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	var file *os.File
	lr, ok := r.(*io.LimitedReader)
	if ok {
		file, ok = lr.R.(*os.File)
	}
	if !ok {
		// The source may be slow, and that is not the client's fault: only
		// the writes have deadlines.
		return io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{r}, make([]byte, 64<<10))
	}
	total := int64(0)
	for ended := false; lr.N > 0 && !ended; {
		ofFile := false
		n, err := c.sendOnce(func() (int64, error) {
			n, err := c.TCPConn.ReadFrom(lr)
			ended = err == nil // all of it, or all that the file has
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

// readError is the error of a file that could not be read while it was sent.
func readError(path string, err error) error {
	if errno := unix.Errno(0); errors.As(err, &errno) {
		err = errno // without the names of the calls and of the connection
	}
	return diskError("read", path, err)
}

// cutError is the error of a source that ended missing bytes too early.
func cutError(name string, missing int64) error {
	return fmt.Errorf("cannot read %q: it ended %d bytes too early: %w", name, missing, io.ErrUnexpectedEOF)
}

// sourceFailed notes that an answer is cut because what it is made of failed,
// and reports that, if the answer says how.
func (c *conn) sourceFailed(err error) error {
	if c.rec.sourceFailed != nil {
		c.rec.sourceFailed(err)
	}
	return c.sent(err)
}

// sent notes why an answer was not sent whole.
func (c *conn) sent(err error) error {
	if err != nil {
		c.rec.sendErr = err
	}
	return err
}

// finishRecord reports the latest request, once. Close may be called by another
// goroutine, but on an idle connection only.
func (c *conn) finishRecord() {
	if c.recOpen.CompareAndSwap(true, false) {
		if c.rec.release != nil {
			c.rec.release()
		}
		if c.rec.sendErr != nil {
			c.rec.out = max(0, c.rec.sent-c.rec.head)
		}
		c.l.ended(&c.rec)
	}
}

// sendOnce calls send under a deadline. A deadline that fires with too little
// sent is an error only if the socket's buffer did not empty either since the
// one before: it can hold minutes of a slow client's line. So a client that
// takes nothing at all is dropped after four and a half stall timeouts at the most. A
// deadline that leaves the stall timeout or more is left as it is, since setting
// one for each answer costs more than it is worth.
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

// unsent is the number of bytes written to the socket that the client has not
// acknowledged.
func (c *conn) unsent() int64 {
	queued := 0
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { queued, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	}
	return int64(queued)
}

// Close closes the connection, and leaves one that lingers to finish: it may be
// called by the goroutine that shuts down, which must not wait for a client.
func (c *conn) Close() error {
	if c.linger.Load() {
		return nil
	}
	return c.close()
}

func (c *conn) close() error {
	c.state.Store(connOver)
	c.finishRecord()
	c.l.forget(c)
	err := c.TCPConn.Close()
	c.l.spare.fill()
	return err
}

// requestBegins is called when the first byte of a request was read, which may have
// come with the request before.
func (c *conn) requestBegins() { c.waiting = false }

// requestOver is called when the answer has left and the body is drained, before
// the connection waits for its next request.
func (c *conn) requestOver() {
	c.linger.Store(false)
	c.waiting = true
}

// finish ends a connection, in the goroutine that served it. After an early answer
// it first stops sending and reads away what the client still sends, for a bounded
// time: a close with bytes unread is a reset, which can overtake the answer (RFC
// 9112, section 9.6).
func (c *conn) finish() {
	if !c.linger.Swap(false) {
		return
	}
	if c.CloseWrite() == nil {
		end := time.Now().Add(lingerTime)
		buf := make([]byte, 64<<10)
		for {
			now := time.Now()
			if now.After(end) || c.SetReadDeadline(now.Add(min(lingerQuiet, end.Sub(now)))) != nil {
				break
			}
			if _, err := c.TCPConn.Read(buf); err != nil {
				break
			}
		}
	}
	_ = c.close()
}
