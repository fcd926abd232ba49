package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	readBuffer  = 8 << 10         // bytes of the longest request header
	writeBuffer = 16 << 10        // bytes that leave in one write: a small artifact with its header
	cutWait     = 5 * time.Second // how long requests that were cut have to clean up
)

// handler is what a server calls for its requests. The server itself knows no route:
// main joins the two.
type handler struct {
	serve        fasthttp.RequestHandler           // responds to a request
	admit        fasthttp.RequestHandler           // responds if that needs no body, otherwise with status 100; changes nothing that clients see
	respondError func(*fasthttp.RequestCtx, error) // responds to a request that the server itself refuses
}

// server is the sockets of the service: connections, timeouts, the access log, the
// shutdown.
type server struct {
	cfg      *Config
	log      *slog.Logger
	access   *accessLog // nil: requests are not logged
	metrics  *serviceMetrics
	handler  handler
	admin    handler       // of the admin address
	inStore  int           // requests that may be in the store at once, and have files open
	seen     atomic.Uint64 // requests, for the sample of the access log
	tls      *tlsFiles     // nil: the API speaks no TLS
	stopping atomic.Bool
}

func newServer(cfg *Config, log *slog.Logger, m *serviceMetrics) *server {
	s := &server{cfg: cfg, log: log, metrics: m}
	if h, ok := log.Handler().(*logHandler); ok {
		if h.buffer != nil {
			m.linesLost = h.buffer.lost
		}
		if cfg.AccessLog && h.Enabled(context.Background(), slog.LevelInfo) {
			s.access = h.access
		}
	}
	m.gauges(map[string]func() float64{"pagewright_stopping": func() float64 { return boolToFloat(s.stopping.Load()) }})
	return s
}

// listen opens the listener of the API.
func (s *server) listen() (*listener, error) {
	addr := net.JoinHostPort(s.cfg.Listen, strconv.Itoa(int(s.cfg.Port)))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("PAGEWRIGHT_LISTEN=%s, PAGEWRIGHT_PORT=%d: %w", s.cfg.Listen, s.cfg.Port, err)
	}
	listener := newListener(l.(*net.TCPListener), s.inStore, s.cfg.StallTimeout, s.log, s.finish)
	listener.minRate, listener.ratePeriod = int64(s.cfg.MinUploadRate), time.Minute
	listener.perIP, listener.proxies, listener.count = s.cfg.MaxConnsPerIP, s.cfg.TrustedProxies, s.metrics.connections()
	if s.tls != nil {
		listener.tls = newTLSServer(s.tls, s.cfg.HeaderTimeout, s.metrics.ofTLS(s.tls))
	}
	s.metrics.gauges(map[string]func() float64{
		"pagewright_http_connections":       func() float64 { return float64(listener.connections()) },
		"pagewright_http_connections_limit": func() float64 { return float64(listener.max) },
	})
	return listener, nil
}

// errHangs: some requests did not end although their connections were cut.
var errHangs = errors.New("aborted requests did not finish: the store is not responding")

// serve serves on l until ctx ends, and then shuts down. The shutdown takes no longer than
// the delay, the grace and cutWait together, whatever hangs.
func (s *server) serve(ctx context.Context, l *listener) error {
	defer l.Close() // fasthttp does not close it if the shutdown comes before it serves
	server := s.httpServer(s.handler)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("cannot serve: %w", err)
	case <-ctx.Done():
	}
	s.stopping.Store(true)
	stopped := make(chan error, 1)
	go func() { stopped <- s.shutDown(server, l, served) }()
	select {
	case err := <-stopped:
		return err
	case <-time.After(s.cfg.ShutdownDelay + s.cfg.ShutdownGrace + cutWait):
		return errHangs
	}
}

// shutDown shuts down in two phases. For the delay /ready fails and all else is
// served as before, so that load balancers stop sending requests. Then new connections
// are refused, the requests in flight have the grace to finish, and the rest is cut.
func (s *server) shutDown(server *fasthttp.Server, l *listener, served <-chan error) error {
	s.log.Info("shutting down", "delay_ms", millis(s.cfg.ShutdownDelay), "grace_ms", millis(s.cfg.ShutdownGrace))
	select {
	case err := <-served:
		return fmt.Errorf("cannot serve: %w", err)
	case <-time.After(s.cfg.ShutdownDelay):
	}
	grace, cancel := context.WithTimeout(context.Background(), s.cfg.ShutdownGrace)
	defer cancel()
	if err := server.ShutdownWithContext(grace); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("cannot shut down: %w", err)
	}
	// fasthttp does not wait for connections that linger until the client has read
	// why it was refused.
	end, _ := grace.Deadline()
	l.wait(time.Until(end))
	if n := l.cut(); n > 0 {
		s.log.Warn("aborted requests at the end of the grace period", "connections", n)
		if !l.wait(time.Until(end.Add(cutWait))) {
			return errHangs
		}
	}
	s.log.Info("stopped")
	return nil
}

// follow passes a change of state from fasthttp to the connection. fasthttp calls it in
// the goroutine that serves, also after the connection was closed.
func follow(nc net.Conn, state fasthttp.ConnState) {
	c := nc.(*conn)
	switch state {
	case fasthttp.StateActive:
		c.requestBegins()
	case fasthttp.StateIdle:
		c.requestOver()
	case fasthttp.StateClosed:
		c.finish()
	}
}

// httpServer returns a server that calls h.
func (s *server) httpServer(h handler) *fasthttp.Server {
	return &fasthttp.Server{
		Handler:        func(ctx *fasthttp.RequestCtx) { s.handle(ctx, h) },
		ExpectHandler:  func(ctx *fasthttp.RequestCtx) int { return s.expect(ctx, h) },
		ErrorHandler:   func(ctx *fasthttp.RequestCtx, err error) { s.malformed(ctx, h, err) },
		HeaderReceived: s.bodyTimeout,
		ConnState:      follow,
		Logger:         httpLog{s.log},

		// More than the listener accepts, plus those that were closed for others and
		// a few that fasthttp has not released yet: past this limit fasthttp sends a
		// response of its own.
		Concurrency:     maxConnections + 2*maxRejecting,
		ReadBufferSize:  readBuffer,
		WriteBufferSize: writeBuffer,
		// For the whole header: a body has its own rule (server_conn_read.go). There
		// is no WriteTimeout for the same reason.
		ReadTimeout: s.cfg.HeaderTimeout,
		IdleTimeout: s.cfg.IdleTimeout,
		// One byte of a body is read before the handler runs, not 8 KiB.
		StreamRequestBody:  true,
		MaxRequestBodySize: 1,

		ReduceMemoryUsage:            true, // an idle connection holds no write buffer
		LazyRequestTime:              true, // nothing needs it
		CloseOnShutdown:              true,
		NoDefaultServerHeader:        true,
		NoDefaultContentType:         true,
		DisablePreParseMultipartForm: true,
		SecureErrorLogMessage:        true,
	}
}

// bodyTimeout gives the first byte of a body the stall timeout, not what is left of the
// header timeout.
func (s *server) bodyTimeout(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	if h.ContentLength() == 0 || h.ContentLength() < -1 {
		return fasthttp.RequestConfig{}
	}
	return fasthttp.RequestConfig{ReadTimeout: s.cfg.StallTimeout}
}

// malformedError returns the response to a request that fasthttp cannot read, of which head
// are the first bytes. The text of err, which names parts of fasthttp, is for the service
// log.
func malformedError(head []byte, err error) *httpError {
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	what := "the request target, Host or another header field is missing or invalid"
	switch _, _, valid := firstLine(head); {
	case errors.As(err, &small):
		return newHTTPError(fasthttp.StatusRequestHeaderFieldsTooLarge, "the request header is larger than %d bytes", readBuffer)
	case errors.As(err, &netErr) && netErr.Timeout():
		return newHTTPError(fasthttp.StatusRequestTimeout, "the request did not arrive in time")
	case errors.Is(err, errNotTLS):
		return badRequest("this port speaks TLS only: use https://")
	case isHangUp(err):
		return badRequest("the request was cut short")
	case errors.Is(err, fasthttp.ErrDuplicateContentLength):
		what = "Content-Length is specified more than once"
	case errors.Is(err, fasthttp.ErrUnsupportedTransferEncoding):
		what = "Transfer-Encoding: only chunked is supported"
	case !valid && len(head) > 0:
		what = "the first line is not a request line of HTTP/1.1"
	}
	return badRequest("the request is malformed: %s", what)
}

// quotedContent matches what fasthttp quotes from a request, by %q.
var quotedContent = regexp.MustCompile(`"(\\.|[^"\\])*("|$)`)

// withoutContent returns the text of an error of fasthttp without what it quotes from the
// request: that may be a line with credentials.
func withoutContent(err error) string { return quotedContent.ReplaceAllString(err.Error(), `"..."`) }

// httpLog logs the messages of fasthttp. Most of them are about clients.
type httpLog struct{ log *slog.Logger }

func (l httpLog) Printf(format string, args ...any) {
	for i, arg := range args {
		if err, ok := arg.(error); ok {
			args[i] = withoutContent(err)
		}
	}
	l.log.Debug("message from fasthttp", "message", fmt.Sprintf(format, args...))
}
