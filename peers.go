package main

import (
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

// turnedAwayAnswer is sent before a request was read: it has nothing of it.
func turnedAwayAnswer() []byte {
	const body = `{"status":"error","error":"too many connections from your address"}` + "\n"
	return fmt.Appendf(nil, "HTTP/1.1 429 Too Many Requests\r\nDate: %s\r\nContent-Type: application/json\r\n"+
		"Content-Length: %d\r\nRetry-After: 5\r\nConnection: close\r\n%s: %s\r\n\r\n%s",
		fasthttp.AppendHTTPDate(nil, time.Now()), len(body), headerRequestID, rand.Text(), body)
}

// admit takes c among the open connections, unless its address has enough. It
// is done here and not by fasthttp, whose own limit hides the connection from
// sendfile(2) and splice(2).
func (l *listener) admit(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.perIP > 0 {
		peer := peerOf(c)
		if l.peers[peer] >= l.perIP {
			return false
		}
		l.peers[peer]++
	}
	l.open[c] = struct{}{}
	return true
}

// forget undoes admit. A second call does nothing.
func (l *listener) forget(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.open[c]; !ok {
		return
	}
	delete(l.open, c)
	if l.perIP > 0 {
		peer := peerOf(c)
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

// turnAway tells a client why it is refused, without waiting for it: what it
// sends is read away for a moment, since a close with bytes unread can overtake
// the answer. Past maxRefusing it is not told.
func (l *listener) turnAway(tcp *net.TCPConn) {
	l.turnedAway()
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
		if _, err := tcp.Write(turnedAwayAnswer()); err != nil || tcp.CloseWrite() != nil {
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
func peerOf(c *conn) netip.Addr {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap()
}
