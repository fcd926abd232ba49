package main

import (
	"container/list"
	"log/slog"
	"net"
	"sync"
	"time"
)

// freshPatience is how long a new connection that sends nothing is spared. A client
// that connects has a request to send, and it arrives within a second even if its
// first packet was lost. So such a connection is worth less than one that has sent
// requests, but not before: else a flood of connections would end new ones before
// a client that is far away can send anything.
const freshPatience = time.Second

// The states of a connection. Only a change from connIdle is raced for.
const (
	connBusy = iota // a request is read or served, or its answer is sent
	connIdle        // it waits for the first byte of a request
	connOver        // it was closed: nothing that still arrives is served
)

// idleConns are the connections that wait for a request, those that wait for
// longest first. One that has become busy stays in its list until it is idle again,
// or is found there: so a request costs one lock.
type idleConns struct {
	mu    sync.Mutex
	fresh list.List // nothing has arrived on them
	kept  list.List // they were kept after a request
}

// add notes that c begins to wait, and reports false if it is over.
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
		to.MoveToBack(c.place)
		return true
	}
	i.drop(c)
	c.in, c.place = to, to.PushBack(c)
	return true
}

// remove forgets c, which is over.
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

// takeOldest returns the connection that has been idle for longest, and makes it
// over: a request that arrives now is not read. It returns nil if none is idle.
// Before others come those that have sent nothing for freshPatience, and after them
// those that are new.
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

// first returns the first of a list that is idle, and drops those before it. One
// whose request has arrived and was not read yet is as good as busy.
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
// closed meanwhile, also if bytes have arrived: who closed it counts on that.
func (c *conn) readFirst(p []byte) (int, error) {
	if !c.l.idle.add(c) {
		return 0, net.ErrClosed
	}
	n, err := c.TCPConn.Read(p)
	if !c.state.CompareAndSwap(connIdle, connBusy) {
		return 0, net.ErrClosed
	}
	c.fresh = false
	return n, err
}

// evict closes the connection that has been idle for longest, and reports whether
// there was one.
func (l *listener) evict() bool {
	c := l.idle.takeOldest()
	if c == nil {
		return false
	}
	l.ends(c)
	l.count.evicted()
	c.TCPConn.Close() // does not block: nothing but a read that waits has the socket
	return true
}

// makeRoom ends a connection in favour of c, which is one too many: the one that
// has been idle for longest, or else the newest of a client that has more than half
// of all, if c is not its own. It reports whether there was one.
func (l *listener) makeRoom(c *conn) bool {
	if l.evict() {
		l.tell(slog.LevelWarn, "no connection is free: the longest idle one is closed for each new one", "limit", l.max)
		return true
	}
	newest := l.newestOfLargest(c)
	if newest == nil {
		return false
	}
	l.ends(newest)
	l.count.cut()
	l.tell(slog.LevelWarn, "no connection is free: one client has more than half, and its newest are cut for those of others",
		"client", newest.client(), "limit", l.max)
	go newest.TCPConn.Close() // may block: see cut
	return true
}

// newestOfLargest is the newest connection of the client that has more than half of
// all. It is nil if there is none, or it is that of c, or many that were closed do
// not end: the store may hang that they wait for.
func (l *listener) newestOfLargest(c *conn) *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.largest == "" || l.largest == c.client() || l.ending >= cap(l.refusing) {
		return nil
	}
	return l.clients[l.largest].Back().Value.(*conn)
}

// half is the number of connections past which a client has more than half of all.
// With the one that is one too many, no two clients have.
func (l *listener) half() int { return (l.max + 1) / 2 }
