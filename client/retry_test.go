package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func newTestRetries(limit time.Duration) *retries {
	return &retries{limit: limit, note: func(string, ...any) {}}
}

// TestRetryDelays: the delays are spread over all of a range that doubles up to maxDelay.
func TestRetryDelays(t *testing.T) {
	for n, most := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, maxDelay, maxDelay} {
		const draws = 2000
		low, high := 0, 0
		for range draws {
			delay, known := (&retries{delays: n}).delay(io.ErrUnexpectedEOF)
			switch {
			case known != 0 || delay < 0 || delay > most:
				t.Fatalf("delay %d is %v, known %v, want at most %v", n+1, delay, known, most)
			case delay < most/10:
				low++
			case delay > most-most/10:
				high++
			}
		}
		if low == 0 || high == 0 { // a chance of 0.9^2000
			t.Errorf("delay %d: %d of %d are in the lowest tenth, %d in the highest", n+1, low, draws, high)
		}
	}
}

// TestRetryAfter: the service's own time passes before the random one begins.
func TestRetryAfter(t *testing.T) {
	for range 200 {
		delay, known := (&retries{}).delay(fmt.Errorf("wrapped: %w", &statusError{status: 503, retryAfter: 7 * time.Second}))
		if known != 7*time.Second || delay < known || delay > known+firstDelay {
			t.Fatalf("%v, of which %v are known", delay, known)
		}
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "5": 5 * time.Second, " 120 ": 2 * time.Minute, "-3": 0, "1.5": 0, "soon": 0,
		"99999999999":                   1 << 30 * time.Second,
		"99999999999999999999999":       1 << 30 * time.Second,
		"-99999999999999999999999":      0,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute,
		"Fri, 02 Jan 2026 03:03:05 GMT": 0,
	} {
		if got := parseRetryAfter(value, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

// TestRetriesEnd: attempts end at the limit after the first failure, with the last of them at the limit.
func TestRetriesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 10 * time.Minute
		r := newTestRetries(limit)
		time.Sleep(time.Hour) // a long first attempt does not count
		start, attempts := time.Now(), 0
		var err error
		for err == nil {
			attempts++
			err = r.wait(t.Context(), io.ErrUnexpectedEOF)
		}
		if spent := time.Since(start); spent != limit || !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), fmt.Sprintf("gave up after %d attempts in 10m0s", attempts)) {
			t.Errorf("%v after %v and %d attempts", err, spent, attempts)
		}
		if attempts < 20 { // 30s at most between two
			t.Errorf("only %d attempts", attempts)
		}
	})
}

// TestRetriesWithProgress: the limit counts from the last progress.
func TestRetriesWithProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTestRetries(time.Minute)
		for range 100 {
			if err := r.wait(t.Context(), io.ErrUnexpectedEOF); err != nil {
				t.Fatal(err)
			}
			time.Sleep(40 * time.Second)
			r.progress()
		}
	})
}

// TestRetryAfterBeyondTheLimit: nobody waits for what comes too late.
func TestRetryAfterBeyondTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		err := newTestRetries(time.Minute).wait(t.Context(), &statusError{status: 503, retryAfter: time.Hour})
		const want = "gave up after 1 attempt: the service asks to wait 1h0m0s, and --retry-for leaves 1m0s"
		if err == nil || time.Since(start) != 0 || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestRetriesStopWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := newTestRetries(time.Hour)
		r.delays = 5
		go func() { time.Sleep(time.Millisecond); cancel(nil) }()
		start := time.Now()
		if err := r.wait(ctx, &statusError{status: 503, retryAfter: time.Minute}); err == nil || time.Since(start) != time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if err := final(ctx, io.EOF); err.Error() != "interrupted" {
			t.Error(err)
		}
	})
}

func TestWhatIsTemporary(t *testing.T) {
	status := func(code int) error { return fmt.Errorf("wrapped: %w", &statusError{status: code}) }
	for _, err := range []error{status(408), status(425), status(429), status(500), status(502), status(503), status(504), status(507),
		io.ErrUnexpectedEOF, errStalled, temporaryError{status(400)}} {
		if !isTemporary(err) {
			t.Errorf("%v is not temporary", err)
		}
	}
	for _, err := range []error{status(301), status(400), status(401), status(403), status(404), status(409), status(412), status(413), status(501), status(505),
		errorf(exitFailure, "x"), permanentError{io.EOF}, permanentError{status(503)}, http.ErrSchemeMismatch, tls.AlertError(42),
		&net.OpError{Op: "dial", Err: &net.AddrError{Err: "invalid port", Addr: "65536"}},
		fmt.Errorf("x: %w", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}})} {
		if isTemporary(err) {
			t.Errorf("%v is temporary", err)
		}
	}
}

// TestResponsesThatAreNoHTTP: a header that is cut is repeated, another server is not asked for ever.
func TestResponsesThatAreNoHTTP(t *testing.T) {
	for _, c := range []struct {
		response  string
		cut, want int // how many responses are that one, 0: all; how many attempts there are
		ok        bool
	}{
		{"HTTP/1.1 20", 3, 4, true},
		{"HTTP/1.1 200 OK\r\nConte", 3, 4, true},
		{"HTTP/1.1 200 OK\r\nContent-Length: 1", 3, 4, true},
		{"SSH-2.0-x\r\n", 0, maxMalformed, false},
		{"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", 0, maxMalformed, false},
		{"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 11<<20) + "\r\n\r\n", 0, 1, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			attempts := 0
			s := testService(func(conn net.Conn) {
				defer conn.Close()
				readHeader(bufio.NewReader(conn))
				if attempts++; c.cut == 0 || attempts <= c.cut {
					io.WriteString(conn, c.response)
					return
				}
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			})
			s.retryFor = 10 * time.Minute
			_, err := s.do(t.Context(), &request{method: "GET", path: "x"})
			if (err == nil) != c.ok || attempts != c.want {
				t.Errorf("%.40q: %v after %d attempts, want %d", c.response, err, attempts, c.want)
			}
			s.close()
		})
	}
}

// TestOneAttempt: --retry-for 0 is one attempt.
func TestOneAttempt(t *testing.T) {
	if err := newTestRetries(0).wait(t.Context(), io.EOF); err != io.EOF {
		t.Error(err)
	}
}

func TestExitStatuses(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{&statusError{status: 401}, exitDenied},
		{&statusError{status: 403}, exitDenied},
		{&statusError{status: 404}, exitAbsent},
		{&statusError{status: 409}, exitConflict},
		{&statusError{status: 412}, exitConflict},
		{&statusError{status: 400}, exitFailure},
		{&statusError{status: 400, mismatch: true}, exitCorrupt},
		{&statusError{status: 413}, exitFailure},
		{&statusError{status: 503}, exitFailure},
		{io.EOF, exitFailure},
		{usagef("x"), exitUsage},
	} {
		err := final(t.Context(), fmt.Errorf("the context of it: %w", c.err))
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Status != c.want || !strings.HasPrefix(err.Error(), "the context of it: ") {
			t.Errorf("%v: %v, want status %d", c.err, err, c.want)
		}
	}
}
