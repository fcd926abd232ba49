package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"sync"
	"time"
)

const (
	firstDelay = 500 * time.Millisecond
	maxDelay   = 30 * time.Second
	// maxMalformed is how many responses in a row may have a header that is no HTTP. One can be a
	// header that was cut in the middle of a line; many are another server.
	maxMalformed = 8
)

// retries decides how often and when a request is repeated.
type retries struct {
	limit    time.Duration // from the first failure, or the first one after progress
	since    time.Time     // of that failure
	attempts int
	delays   int // since the last progress
	note     func(format string, args ...any)

	malformed int // responses, in a row

	lull *lull // of all that wait at the same time; nil: no other does
}

// lull lets one of several that wait at the same time say so.
type lull struct {
	mu    sync.Mutex
	until time.Time
}

// begin reports whether the caller may announce a wait. It returns false while another one lasts.
func (l *lull) begin(wait time.Duration) bool {
	if l == nil {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().Before(l.until) {
		return false
	}
	l.until = time.Now().Add(wait)
	return true
}

func (s *service) newRetries() *retries {
	return &retries{limit: s.retryFor, note: s.note}
}

// progress starts the time that is allowed again: a long transfer over a bad line goes on as
// long as it advances.
func (r *retries) progress() { r.since, r.delays = time.Time{}, 0 }

// wait returns nil when it is time for the next attempt after one that failed with err. It
// returns an error at once if err stays, or its time would be over, and when ctx ends.
func (r *retries) wait(ctx context.Context, err error) error {
	r.attempts++
	if ctx.Err() != nil || !isTemporary(err) {
		return err
	}
	if !isMalformed(err) {
		r.malformed = 0
	} else if r.malformed++; r.malformed == maxMalformed {
		return err
	}
	if r.since.IsZero() {
		r.since = time.Now()
	}
	left := r.limit - time.Since(r.since)
	delay, known := r.delay(err)
	switch {
	case r.limit == 0:
		return err
	case left <= 0:
		return fmt.Errorf("%w; gave up after %s in %v", err, r.count(), time.Since(r.since).Round(time.Second))
	case known > left:
		return fmt.Errorf("%w; gave up after %s: the service asks to wait %v, and --retry-for leaves %v", err, r.count(), known.Round(time.Second), left.Round(time.Second))
	}
	delay = min(delay, left) // the last attempt is at the end
	if r.lull.begin(delay) {
		r.note("%v; attempt %d follows in %v", err, r.attempts+1, delay.Round(100*time.Millisecond))
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return err
	case <-timer.C:
		return nil
	}
}

// isMalformed reports whether a response had a header that is no HTTP.
func isMalformed(err error) bool {
	if errors.As(err, new(textproto.ProtocolError)) {
		return true
	}
	return err != nil && strings.Contains(err.Error(), "malformed HTTP ") // net/http has no type for it
}

// count returns the number of attempts for people.
func (r *retries) count() string {
	if r.attempts == 1 {
		return "1 attempt"
	}
	return fmt.Sprintf("%d attempts", r.attempts)
}

// delay returns how long to wait before the next attempt, and how much of that the service
// asked for. The rest is random between 0 and a limit that doubles: clients that failed
// together do not come back together ("full jitter").
func (r *retries) delay(err error) (delay, known time.Duration) {
	if e, ok := errors.AsType[*statusError](err); ok {
		known = e.retryAfter
	}
	most := min(firstDelay<<min(r.delays, 10), maxDelay)
	r.delays++
	return known + rand.N(most+1), known
}

// temporaryError marks an error that another attempt may not get, whatever it is.
type temporaryError struct{ error }

// Unwrap returns the error itself.
func (e temporaryError) Unwrap() error { return e.error }

// permanentError marks an error that another attempt does not change.
type permanentError struct{ error }

// Unwrap returns the error itself.
func (e permanentError) Unwrap() error { return e.error }

// isTemporary reports whether another attempt may succeed. Errors of the transport may; those
// that this package made have an exit status and stay.
func isTemporary(err error) bool {
	if errors.As(err, new(temporaryError)) {
		return true
	}
	if errors.As(err, new(permanentError)) { // also a response: another part of the command has repeated it
		return false
	}
	if e, ok := errors.AsType[*statusError](err); ok {
		switch e.status {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusTooEarly:
			return true
		case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
			return false
		}
		return e.status >= 500
	}
	if errors.As(err, new(*Error)) {
		return false
	}
	switch {
	case errors.As(err, new(*tls.CertificateVerificationError)), errors.As(err, new(x509.UnknownAuthorityError)),
		errors.As(err, new(tls.RecordHeaderError)), errors.As(err, new(tls.AlertError)), errors.Is(err, http.ErrSchemeMismatch),
		errors.As(err, new(*net.AddrError)): // the port of a proxy or store
		return false
	}
	return !strings.Contains(err.Error(), "server response headers exceeded") // net/http has no type for it
}

// final returns the error with which a command ends: one with an exit status.
func final(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errorf(exitFailure, "interrupted")
	}
	status := exitFailure
	if e, ok := errors.AsType[*Error](err); ok {
		status = e.Status
	} else if e, ok := errors.AsType[*statusError](err); ok {
		status = e.exitStatus()
	}
	return &Error{status, printable(err.Error()), err}
}
