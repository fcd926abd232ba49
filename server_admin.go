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

// serveAdmin serves what orchestrators and scrapers ask for on the admin address, if
// there is one, until stop is called. It shares no connection, no place and not the
// last descriptors with the API, so that nothing its clients hold is missing here.
func (s *server) serveAdmin() (stop func(), err error) {
	if s.cfg.AdminListen == "" {
		return func() {}, nil
	}
	tcp, err := net.Listen("tcp", s.cfg.AdminListen)
	if err != nil {
		return nil, fmt.Errorf("PAGEWRIGHT_ADMIN_LISTEN=%s: %w", s.cfg.AdminListen, err)
	}
	l := newListener(tcp.(*net.TCPListener), 0, s.cfg.StallTimeout, s.log, s.finish)
	l.max, l.refusing, l.spare = adminConnections, make(chan struct{}, 1), make(spares, adminSpares)
	l.spare.fill()
	s.log.Info("serving /health, /ready and /metrics", "address", l.Addr().String())
	go func() {
		if err := s.httpServer(s.admin).Serve(l); err != nil {
			s.log.Error("the admin address is not served any more", "error", err)
		}
	}()
	return func() { l.Close(); l.cut() }, nil
}

// spares are open descriptors to be given up for connections when the process has no
// other.
type spares chan *os.File

// fill opens those that were given up, as far as they can be had.
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

// giveUp closes one, and reports whether there was one.
func (s spares) giveUp() bool {
	select {
	case f := <-s:
		f.Close()
		return true
	default:
		return false
	}
}
