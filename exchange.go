package main

import (
	"context"
	"crypto/rand"
	"log/slog"
	"time"

	"github.com/valyala/fasthttp"
)

// exchange is one request and its answer, for the access log. It ends when the
// answer has left the service, which for a download is long after the handler
// has returned: when its connection is read from again, or closed.
type exchange struct {
	start   time.Time
	id      string
	method  string
	path    string // empty if requests are not logged
	remote  string
	status  int
	in, out int64 // bytes of the bodies; out as announced, -1 if it was not
	sendErr error // why the answer was not sent whole
}

// begin notes the request, and ends the exchange before it: pipelined requests
// come without a read between them.
func (s *service) begin(ctx *fasthttp.RequestCtx, c *conn) {
	c.endExchange()
	c.ex = exchange{start: time.Now(), id: requestID(ctx), method: methodOf(ctx)}
	if s.cfg.AccessLog {
		c.ex.path, c.ex.remote = string(ctx.RequestURI()), ctx.RemoteAddr().String()
	}
	ctx.Response.Header.Set(headerRequestID, c.ex.id)
}

// answered notes what the answer will be.
func (s *service) answered(ctx *fasthttp.RequestCtx, c *conn) {
	c.ex.status = ctx.Response.StatusCode()
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

// logExchange writes the line of the access log.
func (s *service) logExchange(x *exchange) {
	if !s.cfg.AccessLog {
		return
	}
	attrs := [...]slog.Attr{
		slog.String("request_id", x.id), slog.String("method", x.method), slog.String("path", x.path),
		slog.Int("status", x.status), slog.Int64("bytes_in", x.in), slog.Int64("bytes_out", x.out),
		slog.Duration("duration", time.Since(x.start)), slog.String("remote", x.remote), {},
	}
	n := len(attrs) - 1
	if x.sendErr != nil {
		attrs[n] = slog.String("cut", x.sendErr.Error())
		n++
	}
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "request", attrs[:n]...)
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
