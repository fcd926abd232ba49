package main

import (
	"cmp"
	"container/list"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"
)

const (
	lingerTime  = 10 * time.Second // how long a connection stays open after an early response while its client still sends
	lingerQuiet = 2 * time.Second  // a client that sends nothing for this long has stopped
)

// conn is a connection that fasthttp serves. It adds three things: it splices bodies from
// the socket into a file, its timeouts measure progress instead of the whole transfer, and
// an early response reaches a client that is still sending its body. It embeds
// *net.TCPConn, not net.Conn, because sendfile(2) and splice(2) need the concrete type.
// Only the goroutine that serves the connection uses it, except for Close, revokeBody and
// revokeResponse.
type conn struct {
	*net.TCPConn
	l       *listener
	linger  atomic.Bool // the client may still be sending: drain before closing (see finish)
	from    string      // see client
	remote  string      // see remoteText
	proxy   bool        // the peer is a trusted proxy
	tls     *tlsConn    // nil: the connection is not encrypted
	backlog int64       // bytes unsent when the last write deadline fired

	// server_evict.go
	accepted time.Time
	began    time.Time    // when the first byte of the request was read; accepted if nothing was read
	fresh    bool         // nothing has arrived yet
	waiting  bool         // the next Read waits for a request
	state    atomic.Int32 // connBusy, connIdle or connOver
	in       *list.List   // the idle list that it is in, and place is its element there; both under l.idle.mu
	place    *list.Element
	ofClient *list.Element // its element in the list of its client; nil if it is being closed to make room; under l.mu

	sendUntil   time.Time // the write deadline
	readUntil   time.Time // the read deadline
	socketUntil time.Time // that of the socket, which is no later, except for revokeBody

	firstBytes []byte // of the request; empty: not known, because they arrived with the previous one

	kept  any                                 // what handlers keep for all requests of the connection
	actor struct{ kind, name, client string } // the latest that setActor got

	rec      requestRecord // the latest
	recOpen  atomic.Bool   // its response has not left yet
	bodyRead bool          // the handler has read all of its body

	// Other goroutines hold mu while they end a request (revokeBody, revokeResponse). The
	// serving goroutine holds it while it changes fields that they read, and while it sets
	// a deadline: otherwise it could overwrite the deadline that they set.
	mu              sync.Mutex
	token           uint64 // of the request being served
	bodyRevoked     atomic.Bool
	responseRevoked atomic.Bool

	// Set while the body of a request is being read.
	inBody  bool
	ended   error // why the service ended the body; nil if it did not
	window  int64 // bytes since the stall deadline was set
	armed   bool  // a stall deadline is set
	stallAt time.Time
	lowMark bool // SO_RCVLOWAT is lowWater
	slow    bool // SO_RCVLOWAT was too high for this client; not set again for this body
	pace    pace
	dst     *os.File // the file that gets the bytes of a Read into region
	region  []byte
	held    []byte // small pieces of the body that must be written to dst before the next splice
	moved   bool   // the last Read into region spliced its bytes to dst
	dstErr  error  // the error of dst
}

// nextRequest begins a request. It invalidates the token of the previous one.
func (c *conn) nextRequest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token++
	c.bodyRevoked.Store(false)
	if c.responseRevoked.Swap(false) {
		c.sendUntil = time.Time{} // the write deadline has passed: set a new one
	}
	if c.tls != nil {
		c.tls.setEarly(false)
	}
}

// connOf returns the connection of a request.
func connOf(ctx *fasthttp.RequestCtx) *conn { return ctx.Conn().(*conn) }

// hold returns the token of the current request. Other goroutines need it to end that
// request. It is not valid for the next request on the connection.
func (c *conn) hold() uint64 { return c.token }

// bodyRevoker returns the function that a budget calls to stop reading the body of the
// current request.
func (c *conn) bodyRevoker() func() {
	token := c.hold()
	return func() { c.revokeBody(token) }
}

// responseRevoker returns the function that a budget calls to stop sending the response to
// the current request.
func (c *conn) responseRevoker() func() {
	token := c.hold()
	return func() { c.revokeResponse(token) }
}

// revokeBody makes the current read and all later reads of the body fail soon with
// errRevoked. It has no effect after the whole body was read. Any goroutine may call it; it
// does not block.
func (c *conn) revokeBody(token uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if token != c.token {
		return
	}
	c.bodyRevoked.Store(true)
	if c.inBody { // otherwise the read deadline is for a header, or for draining
		_ = c.TCPConn.SetReadDeadline(past)
	}
}

// revokeResponse makes the current write and all later writes of the response fail soon
// with errRevoked. It has no effect after the response was sent. Any goroutine may call it;
// it does not block.
func (c *conn) revokeResponse(token uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if token != c.token {
		return
	}
	c.responseRevoked.Store(true)
	_ = c.SetWriteDeadline(past) // nothing else is written before nextRequest, so this affects only the response
}

// past is a deadline that fires at once.
var past = time.Unix(1, 0)

// statusHungUp is the status of a request whose client closed the connection before the
// response began. Only the service log and the metrics have it; nginx uses the same number.
const statusHungUp = 499

// finishRecord reports the latest request, once. Its status is the one that was sent. If
// nothing was sent, it is 503 if the service closed the connection, or else statusHungUp.
// Another goroutine may call it through Close, but only while the connection is idle.
func (c *conn) finishRecord() {
	if !c.recOpen.CompareAndSwap(true, false) {
		return
	}
	x := &c.rec
	if x.release != nil {
		x.release()
	}
	if x.cut != "" {
		x.out = max(0, x.sent-x.head)
	}
	unsent := x.cut != "" && x.sent == 0
	switch {
	case x.hungUp, unsent && !isOurs(x.cut):
		x.status, x.cut = statusHungUp, ""
	case unsent:
		x.status = fasthttp.StatusServiceUnavailable
	}
	c.l.finished(x)
}

// Close closes the connection. If the connection lingers, Close does nothing, and finish
// closes it later: the goroutine that shuts down the server may call Close, and it must not
// wait for a client.
func (c *conn) Close() error {
	if c.tls != nil && c.tls.mustDrain() {
		c.linger.Store(true)
	}
	if c.linger.Load() {
		return nil
	}
	return c.close()
}

func (c *conn) close() error {
	was := c.state.Swap(connOver)
	c.finishRecord()
	c.l.forget(c)
	if c.tls != nil {
		c.tls.closeNotify(was == connBusy)
	}
	err := c.TCPConn.Close()
	c.l.spare.fill()
	return err
}

// maxFirstBytes is about the size in bytes of the longest request line that the API
// accepts.
const maxFirstBytes = 320

// keepFirst keeps p, the next bytes of a header, for the case that it is malformed.
func (c *conn) keepFirst(p []byte) {
	if c.firstBytes == nil {
		c.firstBytes = make([]byte, 0, maxFirstBytes)
	}
	c.firstBytes = append(c.firstBytes, p[:min(len(p), maxFirstBytes-len(c.firstBytes))]...)
}

// hasHungUp reports whether the client has closed its side of the connection.
func (c *conn) hasHungUp() (yes bool) {
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}, 0)
			yes = n > 0
		})
	}
	return yes
}

// requestBegins is called when the first byte of a request was read. That byte may have
// arrived together with the previous request.
func (c *conn) requestBegins() { c.waiting, c.began = false, time.Now() }

// requestOver is called when the response has left and the body is drained, before
// the connection waits for its next request.
func (c *conn) requestOver() {
	c.linger.Store(false)
	c.waiting, c.firstBytes = true, c.firstBytes[:0]
	if c.tls != nil {
		c.tls.setEarly(true)
	}
}

// finish closes a connection that lingers, in the goroutine that served it. The connection
// has sent an early response. finish first closes its sending side and, for a bounded time,
// drains what the client still sends. Otherwise close would discard unread bytes and send a
// reset, which can overtake the response (RFC 9112, section 9.6). Any other connection is
// closed already.
func (c *conn) finish() {
	if !c.linger.Swap(false) {
		return
	}
	c.finishRecord() // the response has left
	if c.tls != nil {
		c.tls.closeNotify(true)
	}
	if c.CloseWrite() == nil {
		end := time.Now().Add(lingerTime)
		buf := make([]byte, 64<<10)
		for {
			now := time.Now()
			if now.After(end) || c.TCPConn.SetReadDeadline(now.Add(min(lingerQuiet, end.Sub(now)))) != nil {
				break
			}
			if _, err := c.TCPConn.Read(buf); err != nil { // of TLS too: nothing needs it decrypted
				break
			}
		}
	}
	_ = c.close()
}

// remoteText returns the address and the port of the peer for the log, formatted once.
func (c *conn) remoteText() string {
	if c.remote == "" {
		c.remote = c.RemoteAddr().String()
	}
	return c.remote
}

// client returns the name of the client in budgets: its actor, or else its address (see
// clientOf).
func (c *conn) client() string { return cmp.Or(c.rec.client, c.from) }

// setActor records who sent the request. credential tells the tokens of one actor apart. A
// stranger has no more rights than an anonymous client, and counts as its address: everyone who
// has an account at a public issuer can get any number of names from it.
func (c *conn) setActor(kind, name, credential string, stranger bool) {
	c.rec.actorKind, c.rec.actor, c.rec.credential, c.rec.stranger = kind, name, credential, stranger
	if stranger {
		return
	}
	if name != c.actor.name || kind != c.actor.kind {
		c.actor.kind, c.actor.name, c.actor.client = kind, name, kind+" "+name
	}
	c.rec.client = c.actor.client
}
