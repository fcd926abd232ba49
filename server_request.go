package main

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"github.com/valyala/fasthttp"
)

// requestRecord is one request and its response, for the metrics and the access log. It
// ends when the response has left the service, which for a download is long after the
// handler has returned: when its connection is read from again, or closed.
type requestRecord struct {
	start    time.Time // when its first byte was read
	id       string
	serverID string // our id; empty if id is ours
	method   string // empty: not known
	path     string // empty: not known, or not logged
	agent    string // User-Agent; logged requests only
	remote   string // address of the client
	peer     string // address of the connection; empty if it is the client's
	logged   bool
	refused  string  // the reason that the client was given; empty: it was not refused
	route    string  // of the table of routes; empty if it has none
	outcome  Outcome // what a write did
	status   int     // in the service log and the metrics: see finishRecord
	in, out  int64   // bytes of the bodies; out is the announced length or -1; if the response was cut, the bytes sent (chunks with their framing)
	sent     int64   // bytes that were written to the connection
	head     int64   // of sent, those of the header
	cut      string  // one of the reasons of a cut; empty: the response was sent whole
	hungUp   bool    // the client closed the connection before the response began
	release  func()  // gives back what the response held; nil: nothing

	// Set by the handlers.
	action      string // that the request needs, for the audit line; empty: no line is written
	actor       string // who sent it; empty: anonymous
	actorKind   string
	stranger    bool   // the actor has no rights of its own
	credential  string // of a token of the actor: the beginning of its hash; empty: it has no token
	certificate string // the names of a client certificate that no entry fits, for the audit line
	client      string // the client in budgets; empty: that of the connection
	createOnly  bool   // the actor may not replace a build
	build       string // that the body, or the label, names
	audited     []any  // more members of the audit line

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
// is asked for. If not, its status is that of the response (RFC 9110, section 10.1.1).
func (s *server) expect(ctx *fasthttp.RequestCtx, h handler) int {
	c := connOf(ctx)
	s.start(ctx, c)
	s.call(ctx, h, h.admit)
	if status := ctx.Response.StatusCode(); status != fasthttp.StatusContinue {
		c.linger.Store(true) // the client may have begun to send anyway
		s.respond(ctx, c)
		return status
	}
	ctx.Response.Reset()
	if c.tls != nil {
		c.tls.setEarly(true)
	}
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
	h.respondError(ctx, malformedError(c.firstBytes, err))
	c.linger.Store(true)
	c.rec.hungUp = isHangUp(err)
	s.log.Debug("malformed request", "request_id", c.rec.id, "remote", c.remoteText(), "error", withoutContent(err))
	s.respond(ctx, c)
	var target string
	c.rec.method, target, _ = firstLine(c.firstBytes)
	c.rec.path = loggedTarget(target)
}

// isHangUp reports whether a request could not be read because its client closed the
// connection.
func isHangUp(err error) bool {
	var netErr net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &netErr) && !netErr.Timeout()
}

// firstLine returns the method and the path of the first line of a request, as far as they
// are known, and whether the line is one of HTTP/1.x (RFC 9112, section 3). fasthttp forgets
// what it has read of a malformed request.
func firstLine(head []byte) (method, path string, valid bool) {
	line, _, whole := bytes.Cut(head, []byte("\n"))
	m, rest, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\r")), []byte(" "))
	for _, c := range m {
		if c < 'A' || c > 'z' || c > 'Z' && c < 'a' {
			ok = false
		}
	}
	if !ok || len(m) == 0 {
		return "", "", false
	}
	target, version, ended := bytes.Cut(rest, []byte(" "))
	if ended || whole {
		path = string(target)
	}
	return string(m), path, path != "" && whole && bytes.HasPrefix(version, []byte("HTTP/1."))
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
		const name = fasthttp.HeaderTransferEncoding + ":"
		if len(line) >= len(name) && line[len(name)-1] == ':' && bytes.EqualFold(line[:len(name)], []byte(name)) {
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
	c.rec = requestRecord{start: c.began, method: methodOf(ctx)}
	id, callers := requestID(ctx)
	c.rec.id = id
	if callers {
		c.rec.serverID = newRequestID()
	}
	h := &ctx.Response.Header
	setHeader(h, headerRequestID, id)
	setHeader(h, fasthttp.HeaderXContentTypeOptions, nosniff) // every response has it (WHATWG Fetch, section 3.6)
}

const nosniff = "nosniff"

// setHeader sets a header of a response. name must have fasthttp's canonical form, in which
// it is found again: to bring it there costs more than the rest.
func setHeader(h *fasthttp.ResponseHeader, name, value string) {
	h.SetCanonical([]byte(name), []byte(value)) // without a copy: the compiler sees that neither is changed or kept
}

// respond records what the response will be.
func (s *server) respond(ctx *fasthttp.RequestCtx, c *conn) {
	c.rec.status = ctx.Response.StatusCode()
	if s.access != nil && !c.rec.ofProbe() && (c.rec.status >= 500 || s.sampled()) {
		c.rec.logged = true
		c.rec.path, c.rec.agent = loggedTarget(ctx.RequestURI()), masked(clip(ctx.UserAgent()))
		c.rec.remote, c.rec.peer = remoteOf(s.cfg, &ctx.Request.Header, c)
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

// ofProbe reports whether x is a probe or a scrape that succeeded: there are many, and they
// are not logged.
func (x *requestRecord) ofProbe() bool {
	switch x.route {
	case routeHealth, routeReady, routeMetrics:
		return x.status/100 == 2
	}
	return false
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
	if x.logged {
		s.access.write(x, now)
	}
}

const headerRequestID = "X-Request-Id"

// requestID returns the caller's id of the request if it is sane, to be found in the
// logs of both, or a new one. It reports whether it is the caller's.
func requestID(ctx *fasthttp.RequestCtx) (id string, callers bool) {
	given := ctx.Request.Header.Peek(headerRequestID)
	if len(given) == 0 || len(given) > maxIDLen {
		return newRequestID(), false
	}
	for _, c := range given {
		if c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return newRequestID(), false
		}
	}
	if id = string(given); masked(id) != id { // it is in the log and in the response
		return newRequestID(), false
	}
	return id, true
}

// newRequestID returns 26 characters of base32: 128 random bits, so no two requests of all
// replicas get the same one. They come from Go's own generator, a ChaCha8 that the kernel
// seeds: crypto/rand costs ten times as much, and an id is no secret.
func newRequestID() string {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	var id [26]byte
	high, low := rand.Uint64(), rand.Uint64()
	for i := range 13 {
		id[i], id[13+i] = digits[high>>(5*i)&31], digits[low>>(5*i)&31]
	}
	return string(id[:])
}

// ids returns the members that identify the request in a line of the service log.
func (x *requestRecord) ids() slog.Attr {
	if x.serverID == "" {
		return slog.String("request_id", x.id)
	}
	return slog.Group("", slog.String("request_id", x.id), slog.String("server_request_id", x.serverID))
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
