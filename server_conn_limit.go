package main

import (
	"container/list"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	maxRejecting = 64          // connections that are rejected with a response at once
	rejectTime   = time.Second // how long sending it may take
)

// rejection is a response that is sent before a request was read.
type rejection struct {
	status int
	reason string
}

var (
	crowded = rejection{fasthttp.StatusTooManyRequests, "too many connections from your address"}
	full    = rejection{fasthttp.StatusServiceUnavailable, "too many connections"}
)

func (r rejection) response() []byte {
	body := `{"status":"error","error":"` + r.reason + `"}` + "\n"
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"+
		"Content-Length: %d\r\nRetry-After: 5\r\nConnection: close\r\n%s: %s\r\n%s: %s\r\n\r\n%s",
		r.status, fasthttp.StatusMessage(r.status), fasthttp.AppendHTTPDate(nil, time.Now()), len(body), fasthttp.HeaderXContentTypeOptions, nosniff,
		headerRequestID, newRequestID(), body)
}

// admit adds c to the open connections, unless its address has the maximum, which does not
// apply to trusted proxies: they have the connections of many clients. fasthttp's own
// limit is not used: it wraps the connection, which prevents sendfile(2) and splice(2).
func (l *listener) admit(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.perIP > 0 && !c.proxy {
		peer := peerOf(c.TCPConn)
		if l.openPerIP[peer] >= l.perIP {
			return false
		}
		l.openPerIP[peer]++
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

// markEnding records that c was chosen to be closed for another connection, which does not
// wait for it.
func (l *listener) markEnding(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.open[c]; ok && c.ofClient != nil {
		l.ending++
		l.leaveClient(c)
	}
}

// leaveClient removes c from the connections of its client.
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
	if l.perIP > 0 && !c.proxy {
		peer := peerOf(c.TCPConn)
		if l.openPerIP[peer]--; l.openPerIP[peer] == 0 {
			delete(l.openPerIP, peer)
		}
	}
}

// connections returns how many are open.
func (l *listener) connections() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open)
}

// places returns how many more connections there may be, not counting those that are
// ending. It is negative if one too many is open.
func (l *listener) places() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.max - (len(l.open) - l.ending)
}

// reject sends the rejection to a client, in the background. It drains for a moment what the
// client sends, since a close with bytes unread can overtake the response. Past
// maxRejecting the connection is closed without a response.
func (l *listener) reject(tcp *net.TCPConn, r rejection) {
	select {
	case l.rejecting <- struct{}{}:
	default:
		tcp.Close()
		return
	}
	go func() {
		defer func() { <-l.rejecting }()
		defer tcp.Close()
		if tcp.SetDeadline(time.Now().Add(rejectTime)) != nil {
			return
		}
		if l.sendRejection(tcp, r) != nil || tcp.CloseWrite() != nil {
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

// sendRejection writes the rejection, with TLS after a handshake.
func (l *listener) sendRejection(tcp *net.TCPConn, r rejection) error {
	if l.tls == nil {
		_, err := tcp.Write(r.response())
		return err
	}
	c := tls.Server(tcp, l.tls.files.current.Load().config)
	if _, err := c.Write(r.response()); err != nil {
		return err
	}
	return c.CloseWrite()
}

// peerOf returns the address of the peer. An IPv4 address is the same over either kind
// of socket.
func peerOf(tcp *net.TCPConn) netip.Addr {
	addr, ok := tcp.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return addr.AddrPort().Addr().Unmap()
}

// clientOf returns the client as budgets know it: its IPv4 address, or the /64 of its IPv6
// address, since one client can use all of a /64.
func clientOf(addr netip.Addr) string {
	if addr.Is6() {
		return netip.PrefixFrom(addr, 64).Masked().String()
	}
	return addr.String()
}
