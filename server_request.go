package main

import (
	"bytes"
	"crypto/rand"
	"time"

	"github.com/valyala/fasthttp"
)

// requestRecord is one request and its response, for the metrics and the access log. It
// ends when the response has left the service, which for a download is long after the
// handler has returned: when its connection is read from again, or closed.
type requestRecord struct {
	start   time.Time
	id      string
	method  string
	path    string // empty if this request is not logged
	agent   string // User-Agent; logged requests only
	remote  string // address of the client
	peer    string // address of the connection; empty if it is the client's
	refused string // the reason that the client was given; empty: it was not refused
	route   string // of the table of routes; empty if it has none
	status  int
	in, out int64  // bytes of the bodies; out as announced, -1 if it was not; if the response was cut as sent (chunks with their framing)
	sent    int64  // bytes that were written to the connection
	head    int64  // of sent, those of the header
	sendErr error  // why the response was not sent whole
	release func() // gives back what the response held; nil: nothing

	sourceFailed func(error) // reports a failed source of the body; nil: it cannot fail
}

// maxDrained is the size in bytes of an unread body that fasthttp reads away by
// itself, and keeps the connection.
const maxDrained = 256 << 10

// handle serves one request.
func (s *server) handle(ctx *fasthttp.RequestCtx, h handler) {
	c := connOf(ctx)
	s.start(ctx, c)
	c.bodyRead = false
	framed := s.call(ctx, h, h.serve)
	// If the client still sends, the connection may have to be closed on it.
	unread := ctx.Request.IsBodyStream() && !c.bodyRead
	c.linger.Store(unread || !framed)
	if n := ctx.Request.Header.ContentLength(); unread && (n < 0 || n > maxDrained) {
		ctx.SetConnectionClose() // said, or the client sends its next request into a closed connection
	}
	s.respond(ctx, c)
}

// expect decides whether the body that a client announced with Expect: 100-continue
// is asked for. What is refused is refused before the client has sent it.
func (s *server) expect(ctx *fasthttp.RequestCtx, h handler) int {
	c := connOf(ctx)
	s.start(ctx, c)
	s.call(ctx, h, h.admit)
	if status := ctx.Response.StatusCode(); status >= 400 {
		c.linger.Store(true) // the client may have begun to send anyway
		s.respond(ctx, c)
		return status
	}
	ctx.Response.Reset()
	return fasthttp.StatusContinue
}

// call calls f, a function of h. If the end of the request is not clear, it refuses
// the request and closes the connection.
func (s *server) call(ctx *fasthttp.RequestCtx, h handler, f fasthttp.RequestHandler) (framed bool) {
	if err := checkFraming(&ctx.Request.Header); err != nil {
		h.respondError(ctx, err)
		ctx.SetConnectionClose()
		return false
	}
	f(ctx)
	return true
}

// malformed responds to what could not be read as a request at all.
func (s *server) malformed(ctx *fasthttp.RequestCtx, h handler, err error) {
	c := connOf(ctx)
	s.start(ctx, c)
	h.respondError(ctx, malformedError(err))
	c.linger.Store(true)
	s.respond(ctx, c)
}

// checkFraming refuses a request whose end is not clear.
func checkFraming(h *fasthttp.RequestHeader) error {
	switch {
	case !bytes.HasPrefix(h.Protocol(), []byte("HTTP/1.")):
		return newHTTPError(fasthttp.StatusHTTPVersionNotSupported, "only HTTP/1.1 and HTTP/1.0 are supported")
	case hasOtherCoding(h):
		return badRequest("Transfer-Encoding: only chunked is supported")
	}
	return nil
}

// hasOtherCoding reports whether a request has a transfer coding that is not
// chunked (RFC 9112, section 6.3). fasthttp refuses such a request itself, except for
// "identity", which it takes for no coding: only the raw header tells.
func hasOtherCoding(h *fasthttp.RequestHeader) bool {
	if h.ContentLength() == -1 {
		return false
	}
	for line := range bytes.Lines(h.RawHeaders()) {
		name, _, found := bytes.Cut(line, []byte(":"))
		if found && bytes.EqualFold(name, []byte(fasthttp.HeaderTransferEncoding)) {
			return true
		}
	}
	return false
}

// start begins the record of a request, and finishes the one before it: pipelined
// requests come without a read between them.
func (s *server) start(ctx *fasthttp.RequestCtx, c *conn) {
	c.finishRecord()
	c.nextRequest()
	c.rec = requestRecord{start: time.Now(), id: requestID(ctx), method: methodOf(ctx)}
	ctx.Response.Header.Set(headerRequestID, c.rec.id)
}

// respond records what the response will be.
func (s *server) respond(ctx *fasthttp.RequestCtx, c *conn) {
	c.rec.status = ctx.Response.StatusCode()
	if s.access != nil && (c.rec.status >= 500 || s.sampled()) {
		c.rec.path, c.rec.agent = string(ctx.RequestURI()), clip(ctx.UserAgent())
		c.rec.remote, c.rec.peer = s.remoteOf(&ctx.Request.Header, c)
	}
	switch {
	case ctx.IsHead():
		c.rec.out = 0
	case ctx.Response.IsBodyStream(): // asking for Body would read all of it
		c.rec.out = int64(ctx.Response.Header.ContentLength())
	default:
		c.rec.out = int64(len(ctx.Response.Body()))
	}
	c.recOpen.Store(true)
}

// sampled reports whether this request is one of those that are logged.
func (s *server) sampled() bool {
	n := uint64(s.cfg.AccessLogSample)
	return n <= 1 || s.seen.Add(1)%n == 0
}

// finish counts a request, and writes its line of the access log.
func (s *server) finish(x *requestRecord) {
	now := time.Now()
	s.metrics.request(x, now)
	if x.path != "" {
		s.access.write(x, now)
	}
}

const headerRequestID = "X-Request-Id"

// requestID returns the caller's id of the request if it is sane, to be found in the
// logs of both, or a new one.
func requestID(ctx *fasthttp.RequestCtx) string {
	id := ctx.Request.Header.Peek(headerRequestID)
	if len(id) == 0 || len(id) > maxIDLen {
		return rand.Text()
	}
	for _, c := range id {
		if c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return rand.Text()
		}
	}
	return string(id)
}

// methodOf returns the method, without a copy for those that are served.
func methodOf(ctx *fasthttp.RequestCtx) string {
	m := ctx.Method()
	for _, known := range [...]string{"GET", "PUT", "HEAD", "POST", "DELETE", "OPTIONS"} {
		if string(m) == known {
			return known
		}
	}
	return string(m)
}
