package main

import (
	"container/list"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

// freshPatience is how long a new connection that sends nothing is spared. The request of
// a client that connects arrives within a second even if its first packet was lost. After
// that such a connection is worth less than one that has sent requests. Not before: else
// a flood of connections would close new ones before a distant client can send anything.
const freshPatience = time.Second

// The states of a connection. Goroutines race only for the change from connIdle.
const (
	connBusy = iota // a request is read or served, or its response is sent
	connIdle        // it waits for the first byte of a request
	connOver        // it was closed: a request that still arrives is not served
)

// idleConns are the connections that wait for a request, the longest idle first. A
// connection that becomes busy stays in its list until it is idle again or is found there:
// so a request costs one lock.
type idleConns struct {
	mu    sync.Mutex
	fresh list.List // new ones, on which nothing has arrived
	kept  list.List // those that were kept after a request
}

// add records that c begins to wait. It returns false if c was closed.
func (i *idleConns) add(c *conn) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !c.state.CompareAndSwap(connBusy, connIdle) {
		return false
	}
	to := &i.kept
	if c.fresh {
		to = &i.fresh
	}
	if c.place != nil && c.in == to {
		if !c.fresh { // else it waits again in its TLS handshake: its age counts
			to.MoveToBack(c.place)
		}
		return true
	}
	i.drop(c)
	c.in, c.place = to, to.PushBack(c)
	return true
}

// remove removes c, which was closed.
func (i *idleConns) remove(c *conn) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.drop(c)
}

func (i *idleConns) drop(c *conn) {
	if c.place != nil {
		c.in.Remove(c.place)
		c.in, c.place = nil, nil
	}
}

// takeOldest returns the longest idle connection, and marks it as closed: a request that
// arrives now is not read. It returns nil if none is idle. Connections that have sent
// nothing for freshPatience are taken first, newer ones that have sent nothing last.
func (i *idleConns) takeOldest() *conn {
	i.mu.Lock()
	defer i.mu.Unlock()
	for {
		c := i.first(&i.fresh)
		if c == nil || time.Since(c.accepted) < freshPatience {
			if kept := i.first(&i.kept); kept != nil {
				c = kept
			}
		}
		if c == nil {
			return nil
		}
		i.drop(c)
		if c.state.CompareAndSwap(connIdle, connOver) {
			return c
		}
	}
}

// first returns the first idle connection of a list, and drops those before it. One
// whose request has arrived but was not read yet counts as busy.
func (i *idleConns) first(of *list.List) *conn {
	for e := of.Front(); e != nil; e = of.Front() {
		c := e.Value.(*conn)
		if c.state.Load() == connIdle && c.queued() == 0 {
			return c
		}
		i.drop(c)
	}
	return nil
}

// readFirst waits for the first bytes of a request. It fails if the connection was
// evicted in the meantime, even if bytes have arrived: evict relies on that.
func (c *conn) readFirst(p []byte) (n int, err error) {
	if c.tls != nil {
		n, err = c.tls.read(p) // it calls readIdle
	} else {
		n, err = c.readIdle(p)
	}
	if errors.Is(err, net.ErrClosed) {
		return 0, err
	}
	c.fresh = false
	if c.tls == nil || !c.tls.plain { // else the socket has kept them
		c.keepFirst(p[:n])
	}
	return n, err
}

// readIdle reads from the socket. Until bytes arrive the connection may be evicted.
func (c *conn) readIdle(p []byte) (int, error) {
	if !c.l.idle.add(c) {
		return 0, net.ErrClosed
	}
	n, err := c.readSocket(p)
	if !c.state.CompareAndSwap(connIdle, connBusy) {
		return 0, net.ErrClosed
	}
	return n, err
}

// evict closes the longest idle connection, and reports whether there was one.
func (l *listener) evict() bool {
	c := l.idle.takeOldest()
	if c == nil {
		return false
	}
	l.markEnding(c)
	l.count.evicted()
	if c.tls != nil {
		c.tls.closeNotify(false)
	}
	c.TCPConn.Close() // does not block: only a waiting read uses the socket
	return true
}

// makeRoom closes a connection in favour of c, which is one too many: the longest idle
// one, or else the newest of a client that has more than half of all, unless c is of the
// same client. It reports whether there was one.
func (l *listener) makeRoom(c *conn) bool {
	if l.evict() {
		l.logRarely(slog.LevelWarn, "connection limit reached; closing the longest idle connection for each new one", "limit", l.max)
		return true
	}
	newest := l.newestOfLargest(c)
	if newest == nil {
		return false
	}
	l.markEnding(newest)
	l.count.cut()
	l.logRarely(slog.LevelWarn, "connection limit reached; closing the newest connections of a client that has more than half",
		"client", newest.from, "limit", l.max)
	go newest.TCPConn.Close() // may block: see cut
	return true
}

// newestOfLargest returns the newest connection of the client that has more than half of
// all. It returns nil if there is none, if c is of the same client, or if many connections
// that were closed do not end: they may wait for a store that hangs.
func (l *listener) newestOfLargest(c *conn) *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.largest == "" || l.largest == c.from || l.ending >= cap(l.rejecting) {
		return nil
	}
	return l.clients[l.largest].Back().Value.(*conn)
}

// half returns the number of connections above which a client has more than half of all.
// It counts the one connection that is too many, so at most one client has more.
func (l *listener) half() int { return (l.max + 1) / 2 }
