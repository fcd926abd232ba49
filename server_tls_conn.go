package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// closeNotifyTime is how long a connection that is closed waits for room in the buffer of
// its socket, for the alert close_notify.
const closeNotifyTime = time.Second

// errNotTLS: a client sent a request without TLS.
var errNotTLS = errors.New("the client does not speak TLS")

// tlsConn is what makes a conn encrypted. conn.Read and conn.Write use read and write, which
// go through crypto/tls to the socket. Only the goroutine that serves the connection uses
// it, except for closeNotify and mustDrain.
type tlsConn struct {
	conn   *tls.Conn
	socket *tlsSocket
	files  *tlsFiles
	by     *tlsState           // what chain was verified with
	chain  []*x509.Certificate // of the client, as it sent it; nil: none
	lapsed bool                // no CA vouches for chain any longer
	err    error               // why there is no TLS; nil: the handshake is to come, or it succeeded
	plain  bool                // the client does not speak TLS: its 400 goes out as it is

	early bool // the handler has not been called: see readEarly
}

// newConn returns the TLS of c. The handshake is part of the first read.
func (s *tlsServer) newConn(c *conn) *tlsConn {
	state := s.files.current.Load()
	socket := &tlsSocket{c: c, until: c.accepted.Add(s.within)}
	return &tlsConn{conn: tls.Server(socket, state.config), socket: socket, files: s.files, by: state}
}

// clientCertificate returns the certificate that the client proved to have, or nil, and
// whether it is accepted. When the files of TLS have changed since, it verifies the
// certificate again: a CA that was removed must not count on connections that stay open.
// The caller checks whether the certificate has expired since the handshake, and refuses
// one that is not accepted: a client without a certificate may have more rights.
func (c *conn) clientCertificate() (cert *x509.Certificate, accepted bool) {
	if c.tls == nil || c.tls.chain == nil {
		return nil, false
	}
	t := c.tls
	if now := t.files.current.Load(); now != t.by {
		t.by = now
		t.lapsed = t.lapsed || !now.verifies(t.chain) // it is proven once, in the handshake
	}
	return t.chain[0], !t.lapsed
}

// read returns the next bytes that the client has sent, after the handshake. If that fails
// it returns io.EOF: there is nobody to respond to. A client that does not speak TLS gets a
// response: fasthttp writes one if a request fails after its first byte.
func (t *tlsConn) read(p []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	if !t.socket.over.Load() {
		if t.handshake(); t.plain {
			return copy(p[:1], t.socket.c.firstBytes), nil
		}
		if t.err != nil {
			return 0, t.err
		}
	}
	read := t.conn.Read
	if t.early {
		read = t.readEarly
	}
	n, err := read(p)
	if n > 0 {
		// crypto/tls returns the error again. It can be the client's close_notify, which
		// ends nothing: the body in p may be whole.
		return n, nil
	}
	return 0, err
}

// readEarly reads what the handler does not: the header, and the first byte of the body. A
// record must be whole before any of it can be decrypted, and clients put up to 16 KiB of
// a body into the record of a header. So a client that sends stallBytes gets more time.
func (t *tlsConn) readEarly(p []byte) (int, error) {
	for {
		n, err := t.conn.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || t.arrived() < stallBytes {
			return n, err
		}
		if err := t.socket.c.SetReadDeadline(time.Now().Add(t.socket.c.l.stall)); err != nil {
			return 0, err
		}
	}
}

// setEarly sets whether the handler of the next or current request is still to be called.
func (t *tlsConn) setEarly(early bool) {
	t.early = early
	t.arrived()
}

func (t *tlsConn) handshake() {
	c := t.socket.c
	err := t.conn.Handshake()
	defer t.socket.over.Store(true)
	if err == nil {
		t.setEarly(true)
		if state := t.conn.ConnectionState(); len(state.VerifiedChains) > 0 {
			t.chain = state.PeerCertificates
		}
		return
	}
	c.l.tls.handshakeFailed(c, err)
	t.err = io.EOF
	var record tls.RecordHeaderError
	switch {
	case errors.Is(err, net.ErrClosed): // evicted
		t.err = err
	case errors.As(err, &record) && record.Conn != nil && isHTTP(c.firstBytes):
		t.plain, t.err = true, errNotTLS
	case alerted(err):
		c.linger.Store(true) // the client may still send: the alert must arrive
	}
}

// isHTTP reports whether a client that does not speak TLS has sent a request of HTTP.
func isHTTP(head []byte) bool {
	method, _, found := bytes.Cut(head, []byte(" "))
	return found && slices.Contains([]string{"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "PRI"}, string(method))
}

// write encrypts and sends p. After an error the connection cannot be used.
func (t *tlsConn) write(p []byte) (int, error) {
	if t.plain {
		return t.socket.c.writeSocket(p)
	}
	return t.conn.Write(p)
}

// arrived returns how many bytes have arrived since it was called before. They count as
// progress, not what they decrypt to: a slow client may take long for one record.
func (t *tlsConn) arrived() int64 {
	n := t.socket.received
	t.socket.received = 0
	return n
}

// mustDrain reports whether closing the socket now could lose the response: the client has
// sent something, such as its own close_notify, that was not read (see finish).
func (t *tlsConn) mustDrain() bool {
	c := t.socket.c
	return t.socket.over.Load() && t.err == nil && c.state.Load() == connBusy && c.queued() > 0
}

// closeNotify sends the alert that ends the connection (RFC 8446, section 6.1), unless the
// handshake has not ended or a write failed. Without wait it does not block, and leaves the
// alert out if the buffer of the socket is full. Any goroutine may call it.
func (t *tlsConn) closeNotify(wait bool) {
	s := t.socket
	s.patient.Store(wait)
	s.closing.Store(true) // no write blocks for longer from now on
	if s.writing.TryLock() {
		broken := s.broken
		s.writing.Unlock()
		if !broken {
			_ = t.conn.CloseWrite()
		}
	} // else a write is blocked, and has the lock that CloseWrite takes
}

// tlsSocket is the socket as crypto/tls sees it. A deadline that fires in a Write would end
// the connection, because crypto/tls cannot repeat part of a record. So deadlines are not
// those of crypto/tls: Write goes on for as long as the client makes progress.
type tlsSocket struct {
	c        *conn
	until    time.Time // when the handshake must be over
	received int64     // see arrived

	over    atomic.Bool // the handshake has ended; the err and plain of the tlsConn are set before
	writing sync.Mutex  // held while a record is sent
	broken  bool        // a record was not sent whole; under writing
	closing atomic.Bool // closeNotify was called
	patient atomic.Bool // its write may block for closeNotifyTime
}

// Read implements net.Conn. While it waits for a request, which begins with the handshake,
// the connection may be evicted.
func (s *tlsSocket) Read(p []byte) (n int, err error) {
	c := s.c
	if c.waiting {
		n, err = c.readIdle(p)
	} else {
		n, err = c.readSocket(p)
	}
	if !s.over.Load() && n > 0 && (len(c.firstBytes) > 0 || s.received == 0 && p[0] != recordHandshake) {
		c.keepFirst(p[:n]) // of a client that does not speak TLS
	}
	s.received += int64(n)
	return n, err
}

// recordHandshake is the first byte of a TLS connection (RFC 8446, section 5.1).
const recordHandshake = 22

// Write implements net.Conn.
func (s *tlsSocket) Write(p []byte) (n int, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	c := s.c
	switch {
	case s.closing.Load() && s.patient.Load():
		_ = c.TCPConn.SetWriteDeadline(time.Now().Add(closeNotifyTime))
		n, err = c.TCPConn.Write(p)
	case s.closing.Load():
		n, err = c.sendNow(p)
	case !s.over.Load():
		_ = c.TCPConn.SetWriteDeadline(s.until)
		n, err = c.TCPConn.Write(p)
	default:
		n, err = c.writeSocket(p)
	}
	s.broken = s.broken || err != nil
	return n, err
}

// sendNow sends p if the buffer of the socket has room.
func (c *conn) sendNow(p []byte) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) {
		n, err = unix.SendmsgN(int(fd), p, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	if err == nil && n < len(p) {
		err = os.ErrDeadlineExceeded
	}
	return max(n, 0), errors.Join(cerr, err)
}

// Close implements net.Conn.
func (s *tlsSocket) Close() error { return s.c.TCPConn.Close() }

// LocalAddr implements net.Conn.
func (s *tlsSocket) LocalAddr() net.Addr { return s.c.LocalAddr() }

// RemoteAddr implements net.Conn.
func (s *tlsSocket) RemoteAddr() net.Addr { return s.c.RemoteAddr() }

// SetDeadline implements net.Conn, and does nothing: see tlsSocket.
func (*tlsSocket) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn, and does nothing.
func (*tlsSocket) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn, and does nothing.
func (*tlsSocket) SetWriteDeadline(time.Time) error { return nil }
