package main

import (
	"container/list"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	maxRefusing = 64          // connections that are told why they are refused, at once
	refuseTime  = time.Second // how long one of them has to hear it
)

// refusal is an answer that is sent before a request was read.
type refusal struct {
	status int
	reason string
}

var (
	crowded = refusal{fasthttp.StatusTooManyRequests, "too many connections from your address"}
	full    = refusal{fasthttp.StatusServiceUnavailable, "too many connections"}
)

func (r refusal) answer() []byte {
	body := `{"status":"error","error":"` + r.reason + `"}` + "\n"
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"+
		"Content-Length: %d\r\nRetry-After: 5\r\nConnection: close\r\n%s: %s\r\n\r\n%s",
		r.status, fasthttp.StatusMessage(r.status), fasthttp.AppendHTTPDate(nil, time.Now()), len(body), headerRequestID, rand.Text(), body)
}

// admit takes c among the open connections, unless its address has enough. It
// is done here and not by fasthttp, whose own limit hides the connection from
// sendfile(2) and splice(2).
func (l *listener) admit(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.perIP > 0 {
		peer := peerOf(c.TCPConn)
		if l.peers[peer] >= l.perIP {
			return false
		}
		l.peers[peer]++
	}
	l.open[c] = struct{}{}
	all, ok := l.clients[c.from]
	if !ok {
		all = list.New()
		l.clients[c.from] = all
	}
	c.ofClient = all.PushBack(c)
	if all.Len() > l.half() {
		l.largest = c.from
	}
	return true
}

// ends notes that c was chosen to be closed for another, which does not wait for it.
func (l *listener) ends(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.open[c]; ok && c.ofClient != nil {
		l.ending++
		l.leaveClient(c)
	}
}

// leaveClient takes c from those of its client.
func (l *listener) leaveClient(c *conn) {
	all := l.clients[c.from]
	all.Remove(c.ofClient)
	c.ofClient = nil
	if all.Len() == 0 {
		delete(l.clients, c.from)
	}
	if c.from == l.largest && all.Len() <= l.half() {
		l.largest = ""
	}
}

// forget undoes admit. A second call does nothing.
func (l *listener) forget(c *conn) {
	l.idle.remove(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.open[c]; !ok {
		return
	}
	delete(l.open, c)
	if c.ofClient == nil {
		l.ending--
	} else {
		l.leaveClient(c)
	}
	if l.perIP > 0 {
		peer := peerOf(c.TCPConn)
		if l.peers[peer]--; l.peers[peer] == 0 {
			delete(l.peers, peer)
		}
	}
}

// connections is how many are open.
func (l *listener) connections() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open)
}

// places is how many more connections there may be; less than zero: one too many is
// open, those that are ending apart.
func (l *listener) places() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.max - (len(l.open) - l.ending)
}

// turnAway tells a client why it is refused, without waiting for it: what it
// sends is read away for a moment, since a close with bytes unread can overtake
// the answer. Past maxRefusing it is not told.
func (l *listener) turnAway(tcp *net.TCPConn, r refusal) {
	select {
	case l.refusing <- struct{}{}:
	default:
		tcp.Close()
		return
	}
	go func() {
		defer func() { <-l.refusing }()
		defer tcp.Close()
		if tcp.SetDeadline(time.Now().Add(refuseTime)) != nil {
			return
		}
		if _, err := tcp.Write(r.answer()); err != nil || tcp.CloseWrite() != nil {
			return
		}
		buf := make([]byte, 4<<10)
		for {
			if _, err := tcp.Read(buf); err != nil {
				return
			}
		}
	}()
}

// peerOf is the address of the client. That of IPv4 is the same over either
// kind of socket.
func peerOf(tcp *net.TCPConn) netip.Addr {
	addr, ok := tcp.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return addr.AddrPort().Addr().Unmap()
}

// clientOf is the client as budgets know it: its address, or the /64 of IPv6, all
// of which one client can use.
func clientOf(addr netip.Addr) string {
	if addr.Is6() {
		return netip.PrefixFrom(addr, 64).Masked().String()
	}
	return addr.String()
}
