package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	maxReads       = 256             // GETs and HEADs of builds that are in the store at once
	maxLists       = 64              // lists that are made at once
	maxSiteLists   = 16              // of one site
	maxWrites      = 256             // appends and deletes that are
	maxSiteWrites  = 128             // of one site: they may wait for its lock
	maxBuildWrites = 64              // of one build
	maxScrapes     = 16              // scrapes of the metrics that are made and sent
	placeWait      = 5 * time.Second // how long a request waits for its place, or for memory
	streamMemory   = 256 << 20       // bytes for the downloads that pass through the service
	entryMemory    = 64 << 20        // bytes for the log entries that are received and stored
	readBuffer     = 8 << 10         // bytes of the longest request header
	writeBuffer    = 16 << 10        // bytes that leave in one write: a small artifact with its header
	cutWait        = 5 * time.Second // how long requests that were cut have to clean up
)

// service is the HTTP side of the storage service over one backend.
type service struct {
	cfg       *Config
	backend   Backend
	log       *slog.Logger
	access    *accessLog // nil: requests are not logged
	logged    *logQueue  // nil: the log has none
	handler   fasthttp.RequestHandler
	uploads   *budget                 // places of the builds that are being received
	reads     *budget                 // places of other requests that read the store
	listing   *budget                 // places of lists that are being made
	writes    *budget                 // places of other requests that change it
	entries   *budget                 // bytes of log entries
	lists     *budget                 // bytes of lists that are made and sent
	downloads *budget                 // bytes of the downloads that pass through the service
	scrapes   *budget                 // places of scrapes of the metrics
	ready     *cachedProbe[Readiness] // nil: the backend cannot be probed
	space     *cachedProbe[Space]     // nil: the backend has no size
	reserve   *reserve                // nil: none is kept
	metrics   *serviceMetrics
	seen      atomic.Uint64 // requests, for the sample of the access log
	stopping  atomic.Bool

	listBuffered int64 // bytes of a list that is made whole before it is sent
}

func newService(cfg *Config, backend Backend, log *slog.Logger) *service {
	s := &service{
		cfg: cfg, backend: backend, log: log,
		uploads: newBudget(int64(cfg.MaxUploads), placeWait),
		reads:   newBudget(maxReads, placeWait),
		listing: newBudget(maxLists, placeWait),
		writes:  newBudget(maxWrites, placeWait),
		entries: newBudget(entryMemory, placeWait),
		lists:   newBudget(listMemory, placeWait), listBuffered: listBuffered,
		scrapes:   newBudget(maxScrapes, placeWait),
		metrics:   newServiceMetrics(),
		downloads: newBudget(streamMemory, placeWait),
	}
	if h, ok := log.Handler().(*logHandler); ok {
		s.logged = h.buffer
		if cfg.AccessLog && h.Enabled(context.Background(), slog.LevelInfo) {
			s.access = h.access
		}
	}
	if p, ok := backend.(Prober); ok {
		s.ready = &cachedProbe[Readiness]{probe: timed(s, callProbe, p.Probe)}
	}
	if p, ok := backend.(SpaceTeller); ok {
		s.space = &cachedProbe[Space]{probe: timed(s, callSpace, p.Space)}
		if cfg.MinFreeSpace > 0 {
			s.reserve = &reserve{min: int64(cfg.MinFreeSpace), space: s.space}
			s.space.probe = s.reserve.watch(s.space.probe)
		}
	}
	s.addGauges()
	s.handler = s.routes()
	return s
}

// budgets are those of the service and of its store, by the names that the metrics
// have for them.
func (s *service) budgets() map[string]*budget {
	all := map[string]*budget{"uploads": s.uploads, "reads": s.reads, "writes": s.writes, "listing": s.listing,
		"entries": s.entries, "lists": s.lists, "downloads": s.downloads, "scrapes": s.scrapes}
	if b, ok := s.backend.(hasBudgets); ok {
		maps.Copy(all, b.budgets())
	}
	return all
}

// listen opens the listener of the service.
func (s *service) listen() (*listener, error) {
	addr := net.JoinHostPort(s.cfg.Listen, strconv.Itoa(int(s.cfg.Port)))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("PAGEWRIGHT_LISTEN=%s, PAGEWRIGHT_PORT=%d: %w", s.cfg.Listen, s.cfg.Port, err)
	}
	listener := newListener(l.(*net.TCPListener), s.cfg.MaxUploads+maxReads+maxLists+maxWrites, s.cfg.StallTimeout, s.log, s.ended)
	listener.minRate, listener.minute = int64(s.cfg.MinUploadRate), time.Minute
	listener.perIP, listener.count = s.cfg.MaxConnsPerIP, s.metrics.connections()
	s.metrics.gauges(map[string]func() float64{
		"pagewright_http_connections":       func() float64 { return float64(listener.connections()) },
		"pagewright_http_connections_limit": func() float64 { return float64(listener.max) },
	})
	return listener, nil
}

// errHangs: a shutdown ended with requests that did not.
var errHangs = errors.New("requests that were cut did not end: the store does not answer")

// serve serves on l until ctx ends, and then shuts down. That lasts no longer than
// the delay, the grace and cutWait, whatever hangs.
func (s *service) serve(ctx context.Context, l *listener) error {
	defer l.Close() // fasthttp does not, when it is told to shut down before it has begun to serve
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
// served as before, so that load balancers send no more. Then there are no new
// connections, the requests in flight have the grace to finish, and the rest is cut.
func (s *service) shutDown(server *fasthttp.Server, l *listener, served <-chan error) error {
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
	// fasthttp is done with a connection that only lingers, for a client to read
	// why it was refused.
	end, _ := grace.Deadline()
	l.wait(time.Until(end))
	if n := l.cut(); n > 0 {
		s.log.Warn("requests were cut at the end of the grace", "connections", n)
		if !l.wait(time.Until(end.Add(cutWait))) {
			return errHangs
		}
	}
	s.log.Info("stopped")
	return nil
}

// follow tells a connection what only fasthttp knows of it. fasthttp calls it in
// the goroutine that serves, after the Close of the connection too.
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

// httpServer is a server of routes.
func (s *service) httpServer(routes fasthttp.RequestHandler) *fasthttp.Server {
	return &fasthttp.Server{
		Handler:        func(ctx *fasthttp.RequestCtx) { s.handle(ctx, routes) },
		ExpectHandler:  func(ctx *fasthttp.RequestCtx) int { return s.expect(ctx, routes) },
		ErrorHandler:   s.malformed,
		HeaderReceived: s.bodyTimeout,
		ConnState:      follow,
		Logger:         httpLog{s.log},

		// More than the listener hands out, with those that were closed for others,
		// and a few that fasthttp has not let go yet: what it would answer past it is
		// none of our answers.
		Concurrency:     maxConnections + 2*maxRefusing,
		ReadBufferSize:  readBuffer,
		WriteBufferSize: writeBuffer,
		// Of the whole header: a body has the rule of its own (server_conn.go). There
		// is no WriteTimeout for the same reason.
		ReadTimeout: s.cfg.HeaderTimeout,
		IdleTimeout: s.cfg.IdleTimeout,
		// One byte of a body is read before the handler runs, not 8 KiB.
		StreamRequestBody:  true,
		MaxRequestBodySize: 1,

		ReduceMemoryUsage:            true, // an idle connection holds no write buffer
		CloseOnShutdown:              true,
		NoDefaultServerHeader:        true,
		NoDefaultContentType:         true,
		DisablePreParseMultipartForm: true,
		SecureErrorLogMessage:        true,
	}
}

// bodyTimeout gives the first byte of a body the stall timeout, not what the
// header has left of its own.
func (s *service) bodyTimeout(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	if h.ContentLength() == 0 || h.ContentLength() < -1 {
		return fasthttp.RequestConfig{}
	}
	return fasthttp.RequestConfig{ReadTimeout: s.cfg.StallTimeout}
}

// malformedStatus tells what to answer to a request that fasthttp cannot read.
func malformedStatus(err error) (int, string) {
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	switch {
	case errors.As(err, &small):
		return fasthttp.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the header is larger than %d bytes", readBuffer)
	case errors.As(err, &netErr) && netErr.Timeout():
		return fasthttp.StatusRequestTimeout, "the request did not arrive in time"
	}
	if cause := errors.Unwrap(err); cause != nil {
		return fasthttp.StatusBadRequest, fmt.Sprintf("the request is malformed: %.200s", cause)
	}
	return fasthttp.StatusBadRequest, "the request is malformed"
}

// httpLog takes what fasthttp has to say: about clients, for the most part.
type httpLog struct{ log *slog.Logger }

func (l httpLog) Printf(format string, args ...any) {
	l.log.Debug("http", "message", fmt.Sprintf(format, args...))
}
