package main

import (
	"crypto/rand"
	"time"

	"github.com/valyala/fasthttp"
)

// exchange is one request and its answer, for the metrics and the access log. It ends when the
// answer has left the service, which for a download is long after the handler
// has returned: when its connection is read from again, or closed.
type exchange struct {
	start   time.Time
	id      string
	method  string
	path    string // empty if this request is not logged
	agent   string // User-Agent; logged requests only
	remote  string
	refused string // the reason that the client was given; empty: it was not refused
	route   string // of the table of routes; empty if it has none
	status  int
	in, out int64  // bytes of the bodies; out as announced, -1 if it was not; if the answer was cut as sent (chunks with their framing)
	sent    int64  // bytes that were written to the connection
	head    int64  // of sent, those of the header
	sendErr error  // why the answer was not sent whole
	release func() // gives back what the answer held; nil: nothing

	sourceFailed func(error) // reports a failed source of the body; nil: it cannot fail
}

// begin notes the request, and ends the exchange before it: pipelined requests
// come without a read between them.
func (s *service) begin(ctx *fasthttp.RequestCtx, c *conn) {
	c.endExchange()
	c.nextRequest()
	c.ex = exchange{start: time.Now(), id: requestID(ctx), method: methodOf(ctx)}
	ctx.Response.Header.Set(headerRequestID, c.ex.id)
}

// answered notes what the answer will be.
func (s *service) answered(ctx *fasthttp.RequestCtx, c *conn) {
	c.ex.status = ctx.Response.StatusCode()
	if s.access != nil && (c.ex.status >= 500 || s.sampled()) {
		c.ex.path, c.ex.agent, c.ex.remote = string(ctx.RequestURI()), clip(ctx.UserAgent()), c.remoteText()
	}
	switch {
	case ctx.IsHead():
		c.ex.out = 0
	case ctx.Response.IsBodyStream(): // asking for Body would read all of it
		c.ex.out = int64(ctx.Response.Header.ContentLength())
	default:
		c.ex.out = int64(len(ctx.Response.Body()))
	}
	c.exOpen.Store(true)
}

// sampled tells whether this request is one of those that are logged.
func (s *service) sampled() bool {
	n := uint64(s.cfg.AccessLogSample)
	return n <= 1 || s.seen.Add(1)%n == 0
}

// ended counts an exchange, and writes its line of the access log.
func (s *service) ended(x *exchange) {
	now := time.Now()
	s.metrics.request(x, now)
	if x.path != "" {
		s.access.write(x, now)
	}
}

const headerRequestID = "X-Request-Id"

// requestID is the caller's id of the request if it is sane, to be found in the
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

// requestIDOf is the id that begin gave the request.
func requestIDOf(ctx *fasthttp.RequestCtx) string {
	return string(ctx.Response.Header.Peek(headerRequestID))
}

// methodOf is the method, without a copy for those that are served.
func methodOf(ctx *fasthttp.RequestCtx) string {
	m := ctx.Method()
	for _, known := range [...]string{"GET", "PUT", "HEAD", "POST", "DELETE", "OPTIONS"} {
		if string(m) == known {
			return known
		}
	}
	return string(m)
}
