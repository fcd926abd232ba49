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
	// storeStall is how long a store may move no byte of a body, or take to begin its
	// response.
	storeStall = 60 * time.Second
	storeConns = 256 // idle connections kept to the store
)

// tuneTransport configures the HTTP transport of an SDK: many idle connections to one host,
// and a timeout for every step. A body may take any time as long as bytes move.
func tuneTransport(t *http.Transport) {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &stallConn{c}, nil
	}
	t.Proxy = http.ProxyFromEnvironment
	t.MaxIdleConns, t.MaxIdleConnsPerHost = storeConns, storeConns
	t.IdleConnTimeout = storeStall / 2
	t.TLSHandshakeTimeout = 10 * time.Second
	t.ResponseHeaderTimeout = storeStall
	t.ExpectContinueTimeout = time.Second
	t.ReadBufferSize, t.WriteBufferSize = 64<<10, 64<<10
	t.DisableCompression = true // objects are returned byte for byte as stored
	t.ForceAttemptHTTP2 = false // the streams of one connection would share its flow-control window
}

// stallConn is a connection that fails if no byte moves in either direction for storeStall.
type stallConn struct{ net.Conn }

func (c *stallConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(storeStall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write also extends the read deadline: the transport waits for the response during the
// whole upload of a body.
func (c *stallConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(storeStall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// httpRange returns the Range header for length bytes from offset, or for all from offset
// on if length is not positive.
func httpRange(offset, length int64) string {
	r := "bytes=" + strconv.FormatInt(offset, 10) + "-"
	if length > 0 {
		r += strconv.FormatInt(offset+length-1, 10)
	}
	return r
}

// sizeOfRange returns the size of the object from a Content-Range, as in "bytes 0-9/100".
// It fails if the range does not begin at offset.
func sizeOfRange(contentRange string, offset int64) (int64, error) {
	_, total, _ := strings.Cut(contentRange, "/")
	size, err := strconv.ParseInt(total, 10, 64)
	if err != nil || size < 0 || !strings.HasPrefix(contentRange, fmt.Sprintf("bytes %d-", offset)) {
		return 0, fmt.Errorf("the store answered a range request at offset %d with Content-Range %q", offset, contentRange)
	}
	return size, nil
}

// kindOfStatus returns the sentinel of backend_errors.go, or errConflict, for an HTTP status of a
// store, or nil if none fits. Status 0 means that there was no response.
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

// wrapKind wraps an error of an SDK in the sentinel that kind returns for it, if any.
func wrapKind(kind func(error) error, err error) error {
	if err == nil {
		return nil
	}
	if k := kind(err); k != nil {
		return fmt.Errorf("%w: %w", k, err)
	}
	return err
}

// listError translates the error of a list: an ambiguous 404 means that the bucket is
// missing.
func listError(err error) error {
	if errors.Is(err, errAmbiguousNotFound) {
		return fmt.Errorf("%w: %v", errBucketGone, err)
	}
	return err
}

// needs adds to an ErrDenied which permission may be missing.
func needs(permission string, err error) error {
	if errors.Is(err, ErrDenied) {
		return fmt.Errorf("%w (required permission: %s)", err, permission)
	}
	return err
}

// getNothing implements get for a length of 0, which a Range header cannot express.
func getNothing(ctx context.Context, b bucket, key, etag string) (io.ReadCloser, objectInfo, error) {
	info, err := b.stat(ctx, key)
	if err == nil && etag != "" && info.etag != etag {
		err = fmt.Errorf("%w: the ETag of %q has changed", ErrPrecondition, key)
	}
	return http.NoBody, info, err
}
