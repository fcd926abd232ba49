package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// storeStall is the time in which a store must move some bytes of a body, or
	// begin to answer.
	storeStall = 60 * time.Second
	storeConns = 256 // idle connections kept to the store
)

// tuneTransport sets the HTTP transport of an SDK up: many connections to one
// host, kept, and no timeout on a body but that it must move. Every other
// time is bounded.
func tuneTransport(t *http.Transport) {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &movingConn{c}, nil
	}
	t.Proxy = http.ProxyFromEnvironment
	t.MaxIdleConns, t.MaxIdleConnsPerHost = storeConns, storeConns
	t.IdleConnTimeout = storeStall / 2
	t.TLSHandshakeTimeout = 10 * time.Second
	t.ResponseHeaderTimeout = storeStall
	t.ExpectContinueTimeout = time.Second
	t.ReadBufferSize, t.WriteBufferSize = 64<<10, 64<<10
	t.DisableCompression = true // bytes come back as they were stored
	t.ForceAttemptHTTP2 = false // streams of one connection would share its window
}

// movingConn fails once nothing moved for storeStall in either direction.
type movingConn struct{ net.Conn }

func (c *movingConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(storeStall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write also extends the deadline of the read that waits for the answer all the
// while a long body is sent.
func (c *movingConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(storeStall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// httpRange is the Range of length bytes from offset, or of all from offset on
// if length is not positive.
func httpRange(offset, length int64) string {
	r := "bytes=" + strconv.FormatInt(offset, 10) + "-"
	if length > 0 {
		r += strconv.FormatInt(offset+length-1, 10)
	}
	return r
}

// sizeOfRange is the size of the whole in a Content-Range, "bytes 0-9/100", which
// has to begin at offset.
func sizeOfRange(contentRange string, offset int64) (int64, error) {
	_, total, _ := strings.Cut(contentRange, "/")
	size, err := strconv.ParseInt(total, 10, 64)
	if err != nil || size < 0 || !strings.HasPrefix(contentRange, fmt.Sprintf("bytes %d-", offset)) {
		return 0, fmt.Errorf("the store answered a range with Content-Range %q", contentRange)
	}
	return size, nil
}

// kindOfStatus is the sentinel of backend.go, or errConflict, that says what a
// status of a store means, nil if none does. 0 is no answer at all.
func kindOfStatus(status int) error {
	switch {
	case status == http.StatusNotFound:
		return errAmbiguousNotFound
	case status == http.StatusRequestedRangeNotSatisfiable:
		return errRange
	case status == http.StatusPreconditionFailed, status == http.StatusNotModified:
		return ErrPrecondition
	case status == http.StatusConflict:
		return errConflict
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return ErrDenied
	case status == http.StatusInsufficientStorage:
		return ErrNoSpace
	case status == http.StatusNotImplemented:
		return ErrUnsupported
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status >= 500, status == 0:
		return ErrUnavailable
	}
	return nil
}

// ofKind wraps an error of an SDK in the sentinel that kind knows for it.
func ofKind(kind func(error) error, err error) error {
	if err == nil {
		return nil
	}
	if k := kind(err); k != nil {
		return fmt.Errorf("%w: %w", k, err)
	}
	return err
}

// listError is the error of a list: a 404 that names nothing is of the bucket.
func listError(err error) error {
	if errors.Is(err, errAmbiguousNotFound) {
		return fmt.Errorf("%w: %v", errBucketGone, err)
	}
	return err
}

// needs adds to an ErrDenied which permission is probably missing.
func needs(permission string, err error) error {
	if errors.Is(err, ErrDenied) {
		return fmt.Errorf("%w (is this permission missing: %s?)", err, permission)
	}
	return err
}

// getNothing is get of no bytes, which no Range can ask for.
func getNothing(ctx context.Context, b bucket, key, etag string) (io.ReadCloser, objectInfo, error) {
	info, err := b.stat(ctx, key)
	if err == nil && etag != "" && info.etag != etag {
		err = fmt.Errorf("%w: %s", ErrPrecondition, key)
	}
	return http.NoBody, info, err
}
