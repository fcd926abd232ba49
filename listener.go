package main

import (
	"errors"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// acceptPause is how long the listener waits before it looks again whether a
	// descriptor came free.
	acceptPause     = 50 * time.Millisecond
	fullEvery       = time.Minute // how often the log is told that no connection can be accepted
	filesPerRequest = 6           // descriptors that an upload has open at most beside its connection: files, directories, a pipe
)

// errFewLeft: connections have all descriptors but those kept for files.
var errFewLeft = errors.New("the descriptors that are left are kept for the files of open connections")

// listener hands out *conn. It knows the open ones, so that those which outlive
// the shutdown grace can be cut.
type listener struct {
	*net.TCPListener
	stall    time.Duration
	log      *slog.Logger
	ended    func(*exchange) // called when an answer has left
	splicers *splicers
	buffers  bodyBuffers

	max        int           // connections that leave descriptors for their files
	toldFull   time.Time     // when the log was last told that there are so many; Accept's own
	perIP      int           // connections of one address; 0: any number
	turnedAway func()        // called for each connection past it
	refusing   chan struct{} // those that are being told so

	mu    sync.Mutex
	open  map[*conn]struct{}
	peers map[netip.Addr]int // open connections; counted only with perIP
}

// newListener makes a listener that keeps descriptors for so many requests at
// once, of those that the process may have, but at most half of them; of the
// rest every connection may take a second one, for the file that it downloads.
func newListener(l *net.TCPListener, requests int, stall time.Duration, log *slog.Logger, ended func(*exchange)) *listener {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur > math.MaxInt32 {
		limit.Cur = math.MaxInt32
	}
	most := int(limit.Cur)
	return &listener{TCPListener: l, stall: stall, log: log, ended: ended, splicers: newSplicers(),
		max:      min(maxConnections, (most-min(requests*filesPerRequest, most/2))/2),
		refusing: make(chan struct{}, maxRefusing), open: map[*conn]struct{}{}, peers: map[netip.Addr]int{}}
}

// Accept implements net.Listener. It waits while the process or the system is
// short of descriptors or memory: fasthttp takes every error for the end of the
// listener, and the uploads in flight would end with it. It waits before the
// last ones are taken, so that idle connections cannot keep an upload from the
// files that it opens at its end. Connections past the limit of their address
// are turned away here.
func (l *listener) Accept() (net.Conn, error) {
	for {
		var tcp *net.TCPConn
		err := errFewLeft
		if l.connections() < l.max {
			tcp, err = l.AcceptTCP()
		}
		if isShortage(err) {
			if now := time.Now(); now.Sub(l.toldFull) >= fullEvery {
				l.toldFull = now
				l.log.Error("cannot accept connections for now", "error", err)
			}
			time.Sleep(acceptPause)
			continue
		}
		if err != nil {
			return nil, err
		}
		c := &conn{TCPConn: tcp, l: l}
		if l.admit(c) {
			return c, nil
		}
		l.turnAway(tcp)
	}
}

// isShortage tells the errors of accept(2) that pass.
func isShortage(err error) bool {
	return err == errFewLeft || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}

// cut closes every connection at once, whatever it is doing: reads and writes
// under way fail. It does not wait for them, as a close does: a sendfile(2) of a
// file on a mount that hangs keeps its socket.
func (l *listener) cut() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		go c.TCPConn.Close()
	}
	return len(l.open)
}

// wait waits until no connection is open, for at most d, and tells whether that
// is so.
func (l *listener) wait(d time.Duration) bool {
	for end := time.Now().Add(d); ; time.Sleep(10 * time.Millisecond) {
		l.mu.Lock()
		n := len(l.open)
		l.mu.Unlock()
		if n == 0 || time.Now().After(end) {
			return n == 0
		}
	}
}
