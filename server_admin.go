package main

import (
	"fmt"
	"net"
	"os"
)

const (
	adminConnections = 16
	adminSpares      = 8 // descriptors kept for them
)

// serveAdmin serves the admin routes on the admin address, if there is one, until stop is
// called. It has its own connections, places and spare descriptors, so that clients of the
// API cannot exhaust them.
func (s *server) serveAdmin() (stop func(), err error) {
	if s.cfg.AdminListen == "" {
		return func() {}, nil
	}
	tcp, err := net.Listen("tcp", s.cfg.AdminListen)
	if err != nil {
		return nil, fmt.Errorf("PAGEWRIGHT_ADMIN_LISTEN=%s: %w", s.cfg.AdminListen, err)
	}
	l := newListener(tcp.(*net.TCPListener), 0, s.cfg.StallTimeout, s.log, s.finish)
	l.max, l.rejecting, l.spare = adminConnections, make(chan struct{}, 1), make(spares, adminSpares)
	l.proxies = s.cfg.TrustedProxies
	l.spare.fill()
	s.log.Info("serving /health, /ready and /metrics", "address", l.Addr().String())
	go func() {
		if err := s.httpServer(s.admin).Serve(l); err != nil {
			s.log.Error("the admin server stopped", "error", err)
		}
	}()
	return func() { l.Close(); l.cut() }, nil
}

// spares are open descriptors that are closed to accept connections when the process has
// no other.
type spares chan *os.File

// fill opens those that were closed again, as far as possible.
func (s spares) fill() {
	for len(s) < cap(s) {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return
		}
		select {
		case s <- f:
		default:
			f.Close()
		}
	}
}

// closeOne closes one, and reports whether there was one.
func (s spares) closeOne() bool {
	select {
	case f := <-s:
		f.Close()
		return true
	default:
		return false
	}
}
