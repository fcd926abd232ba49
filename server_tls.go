package main

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"time"
)

const (
	maxLargeBuffers = 64       // downloads that are encrypted through a buffer of copySize at once
	smallBuffer     = 16 << 10 // bytes of the buffer of others: one record (RFC 8446, section 5.1)
)

// tlsServer makes the TLS of the connections of a listener.
type tlsServer struct {
	files  *tlsFiles
	within time.Duration // limit of a handshake
	failed func()        // counts a handshake that failed
	large  chan struct{} // one element for each buffer of copySize in use
}

func newTLSServer(files *tlsFiles, within time.Duration, failed func()) *tlsServer {
	return &tlsServer{files: files, within: within, failed: failed, large: make(chan struct{}, maxLargeBuffers)}
}

// handshakeFailed counts and logs a handshake that failed. What a client that has sent
// nothing does is not a failure: load balancers probe ports like that. Clients can cause
// any number of these lines.
func (s *tlsServer) handshakeFailed(c *conn, err error) {
	if c.tls.socket.received == 0 || errors.Is(err, net.ErrClosed) {
		return
	}
	s.failed()
	c.l.floods.add("handshake", slog.LevelDebug, "TLS handshake failed", "remote", c.remoteText(), "error", err.Error())
}

// alerted reports whether a handshake failed on this side, so that an alert, or the
// response to a request without TLS, is on its way to the client.
func alerted(err error) bool {
	if op := new(net.OpError); errors.As(err, &op) && op.Op != "local error" { // the socket, or an alert of the client
		return false
	}
	return !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed)
}

// sendCopy is ReadFrom for TLS: the kernel cannot encrypt what sendfile(2) sends (Go has no
// kTLS, golang/go#44506). Its buffer is large, for few system calls, unless many downloads
// have one: a slow download keeps its buffer for long.
func (c *conn) sendCopy(lr *io.LimitedReader, file *os.File) (total int64, err error) {
	var buf []byte
	select {
	case c.l.tls.large <- struct{}{}:
		b := c.l.buffers.get()
		defer func() { c.l.buffers.pool.Put(b); <-c.l.tls.large }()
		buf = b[:]
	default:
		buf = make([]byte, smallBuffer)
	}
	for lr.N > 0 {
		n, err := lr.Read(buf)
		if n > 0 {
			sent, err := c.Write(buf[:n])
			total += int64(sent)
			if err != nil {
				return total, err
			}
		}
		switch {
		case err == io.EOF, err == nil && n == 0:
			return total, c.sourceFailed(cutError(file.Name(), lr.N))
		case err != nil:
			return total, c.sourceFailed(readError(file.Name(), err))
		}
	}
	return total, nil
}
