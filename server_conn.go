package main

import (
	"container/list"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	lingerTime  = 10 * time.Second // how long an early response waits for its client to stop sending
	lingerQuiet = 2 * time.Second  // a client silent for so long has stopped
)

// conn is a connection of fasthttp's that adds what its streams do not have:
// bodies spliced from the socket into a file, timeouts that measure progress
// instead of the whole transfer, and responses that survive a body still being
// sent. It embeds *net.TCPConn, not net.Conn, because sendfile(2) and splice(2)
// need the type. Only the goroutine that serves the connection uses it, except for
// Close, revokeBody and revokeResponse.
type conn struct {
	*net.TCPConn
	l       *listener
	linger  atomic.Bool // the client may still send: let it read the response first (finish)
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
	recOpen  atomic.Bool   // its response has not left yet
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
	ended   error // why Read fails, if neither the client nor the network failed
	window  int64 // bytes since the stall deadline was set
	armed   bool  // a stall deadline is set
	stallAt time.Time
	lowMark bool // SO_RCVLOWAT is lowWater
	slow    bool // SO_RCVLOWAT was once too high for this client
	pace    pace
	dst     *os.File // where Read moves the bytes that it is asked to put into region
	region  []byte
	held    []byte // small pieces of the body, to be written to dst before anything is moved there
	moved   bool   // the last Read into region went to dst instead
	dstErr  error  // the error of dst
}

// nextRequest begins a request, which invalidates the token of the one before.
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

// hold returns the token of the request being served. It is valid until that request is
// over: with it other goroutines can end the request, but never the next one on the
// connection.
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

// revokeBody makes reads of the body, current and later ones, fail soon with errRevoked.
// Once the body is read whole it has no effect. Any goroutine may call it; it does not
// block.
func (c *conn) revokeBody(token uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if token != c.token {
		return
	}
	c.bodyRevoked.Store(true)
	if c.inBody { // otherwise the read deadline is that of a header, or of draining
		_ = c.SetReadDeadline(past)
	}
}

// revokeResponse makes writes of the response, current and later ones, fail soon with
// errRevoked. Once the response is sent it has no effect. Any goroutine may call it; it
// does not block.
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
		c.l.finished(&c.rec)
	}
}

// Close closes the connection, unless it lingers: finish does that then. Close may be
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

// requestOver is called when the response has left and the body is drained, before
// the connection waits for its next request.
func (c *conn) requestOver() {
	c.linger.Store(false)
	c.waiting = true
}

// finish ends a connection, in the goroutine that served it. After an early response
// it first stops sending and drains what the client still sends, for a bounded
// time: a close with bytes unread is a reset, which can overtake the response (RFC
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

// remoteText returns the address of the client for the log, formatted once.
func (c *conn) remoteText() string {
	if c.remote == "" {
		c.remote = c.RemoteAddr().String()
	}
	return c.remote
}

// client returns the client as budgets know it (clientOf).
func (c *conn) client() string { return c.from }
