package main

import (
	"container/list"
	"context"
	"errors"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// acceptPause is how long the listener waits before it checks again whether a
	// descriptor is free.
	acceptPause     = 50 * time.Millisecond
	logEvery        = time.Minute // how often the service log repeats a message about connections
	filesPerRequest = 6           // descriptors that an upload has open at most beside its connection: files, directories, a pipe
)

// listener accepts *conn. It knows the open ones, so that those that outlive
// the shutdown grace can be cut.
type listener struct {
	*net.TCPListener
	stall       time.Duration
	minRate     int64         // bytes a second of a body; 0: any
	ratePeriod  time.Duration // over which minRate is judged
	log         *slog.Logger
	finished    func(*requestRecord) // called when a response has left
	tls         *tlsServer           // nil: connections are not encrypted
	spliceSlots *spliceSlots
	buffers     bodyBuffers

	cutting   atomic.Bool          // cut was called
	max       int                  // connections that leave descriptors for their files
	perIP     int                  // connections of one address; 0: any number
	proxies   addressRanges        // trusted proxies, to which perIP does not apply
	rejecting chan struct{}        // one element for each connection that is being rejected
	loggedAt  map[string]time.Time // when each message was logged last; used by Accept only
	floods    *floodLog
	count     connCounters

	idle  idleConns
	spare spares // nil: there are none

	mu        sync.Mutex
	open      map[*conn]struct{}
	ending    int                   // those of them that were closed for others and have not ended
	clients   map[string]*list.List // the others, by client, the oldest first
	largest   string                // the client that has more than half, if there is one
	openPerIP map[netip.Addr]int    // open connections; counted only with perIP
}

// connCounters are called for connections that do not end by themselves.
type connCounters struct {
	crowded, full func() // refused: its address has too many; there are too many
	evicted, cut  func() // closed for others: idle; in use
}

// newListener returns a listener that leaves descriptors for the files of so many requests
// at once, but at most half of those that the process may have. Of the rest each connection
// may use two: one for itself, one for the file that it downloads.
func newListener(l *net.TCPListener, requests int, stall time.Duration, log *slog.Logger, finished func(*requestRecord)) *listener {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur > math.MaxInt32 {
		limit.Cur = math.MaxInt32
	}
	most := int(limit.Cur)
	uncounted := func() {}
	listener := &listener{TCPListener: l, stall: stall, log: log, finished: finished, spliceSlots: newSpliceSlots(),
		max:      min(maxConnections, (most-min(requests*filesPerRequest, most/2))/2),
		loggedAt: map[string]time.Time{}, floods: newFloodLog(log), count: connCounters{uncounted, uncounted, uncounted, uncounted},
		open: map[*conn]struct{}{}, clients: map[string]*list.List{}, openPerIP: map[netip.Addr]int{}}
	// Each has a descriptor.
	listener.rejecting = make(chan struct{}, min(maxRejecting, listener.max/8+1))
	return listener
}

// Accept implements net.Listener. While the process or the system is short of
// descriptors or memory it closes idle connections and waits: fasthttp takes every
// error for the end of the listener, and the uploads in flight would end with it.
// Past max, which leaves descriptors for the files that uploads open at their end, a
// connection replaces another one or is rejected.
func (l *listener) Accept() (net.Conn, error) {
	for short := false; ; {
		tcp, err := l.AcceptTCP()
		if isShortage(err) {
			short = l.relieve(err, short)
			continue
		}
		if err != nil {
			return nil, err
		}
		short = false
		c := l.newConn(tcp)
		switch {
		case !l.admit(c):
			l.count.crowded()
			l.floods.add("crowded", slog.LevelWarn, "connections refused: one address has the maximum", "status", crowded.status,
				"remote", tcp.RemoteAddr().String(), "limit", l.perIP, "address", l.Addr().String())
			l.reject(tcp, crowded)
		case l.places() < 0 && !l.makeRoom(c):
			l.forget(c)
			l.count.full()
			l.floods.add("full", slog.LevelError, "connections refused: the connection limit is reached", "status", full.status,
				"remote", tcp.RemoteAddr().String(), "limit", l.max, "address", l.Addr().String())
			l.reject(tcp, full)
		default:
			return c, nil
		}
	}
}

// relieve closes something for a waiting connection that cannot be accepted because
// descriptors are short, and reports whether it did. It pauses if it could not, and if the
// close before did not help, so that not all connections are closed at once.
func (l *listener) relieve(shortage error, again bool) bool {
	if !l.awaited() {
		time.Sleep(acceptPause)
		return false
	}
	l.logRarely(slog.LevelError, "cannot accept connections; will retry", "error", shortage)
	if again {
		time.Sleep(acceptPause)
	}
	if isFewDescriptors(shortage) && (l.spare.closeOne() || l.evict()) {
		return true
	}
	time.Sleep(acceptPause)
	return false
}

// awaited reports whether a connection waits to be accepted. accept(2) needs a
// descriptor before it can say so.
func (l *listener) awaited() bool {
	raw, err := l.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	_ = raw.Control(func(fd uintptr) {
		n, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	})
	return n > 0
}

// newConn returns the connection that fasthttp gets.
func (l *listener) newConn(tcp *net.TCPConn) *conn {
	peer := peerOf(tcp)
	now := time.Now()
	c := &conn{TCPConn: tcp, l: l, from: clientOf(peer), proxy: l.proxies.contains(peer), accepted: now, began: now, fresh: true, waiting: true}
	if l.tls != nil {
		c.tls = l.tls.newConn(c)
	}
	return c
}

// logRarely logs a message at most once in logEvery.
func (l *listener) logRarely(level slog.Level, what string, args ...any) {
	if now := time.Now(); now.Sub(l.loggedAt[what]) >= logEvery {
		l.loggedAt[what] = now
		l.log.Log(context.Background(), level, what, append(args, "address", l.Addr().String())...)
	}
}

// isShortage reports whether an error of accept(2) is temporary.
func isShortage(err error) bool {
	return isFewDescriptors(err) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}

// isFewDescriptors reports whether an error passes when a connection is closed.
func isFewDescriptors(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}

// cut closes every connection at once, whatever it is doing: reads and writes in progress
// fail. It does not wait for the closes: a sendfile(2) of a file on a mount that hangs
// keeps its socket.
func (l *listener) cut() int {
	l.cutting.Store(true)
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		go c.TCPConn.Close()
	}
	return len(l.open)
}

// wait waits until no connection is open, for at most d, and reports whether none is.
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
