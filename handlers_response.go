package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/goccy/go-json"
	"github.com/valyala/fasthttp"
)

// success is the answer to a write.
type success struct {
	Status    string `json:"status"` // "success"
	SiteID    string `json:"site_id"`
	BuildID   string `json:"build_id"`
	SizeBytes *int64 `json:"size_bytes,omitempty"`
	EntryID   string `json:"entry_id,omitempty"`
}

// failure is the answer to everything that did not go well.
type failure struct {
	Status string `json:"status"` // "error"
	Error  string `json:"error"`
}

// answer sends v as JSON.
func answer(ctx *fasthttp.RequestCtx, status int, v any) {
	body, err := json.MarshalWithOption(v, json.DisableHTMLEscape())
	if err != nil {
		panic(err) // our own types, all of which can be marshalled; the panic handler answers 500
	}
	ctx.SetStatusCode(status)
	ctx.SetContentType("application/json")
	ctx.Response.SetBodyRaw(append(body, '\n'))
}

// refuse answers with an error whose text is for the client. No cache may keep it: by
// default caches may keep some statuses, such as 404 (RFC 9110, section 15.1).
func refuse(ctx *fasthttp.RequestCtx, status int, format string, args ...any) {
	switch status {
	case fasthttp.StatusServiceUnavailable:
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, "5")
	case fasthttp.StatusInsufficientStorage:
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, "60")
	}
	noStore(ctx)
	reason := fmt.Sprintf(format, args...)
	ctx.Conn().(*conn).ex.refused = reason
	answer(ctx, status, failure{"error", reason})
}

func noStore(ctx *fasthttp.RequestCtx) {
	ctx.Response.Header.Set(fasthttp.HeaderCacheControl, "no-store")
}

// answerDate is the Date that fasthttp writes into an answer now. It keeps a Date for
// about a second and has no function that returns it, so a header is written for it.
func answerDate() time.Time {
	var h fasthttp.ResponseHeader
	var buf [128]byte
	_, rest, _ := bytes.Cut(h.AppendBytes(buf[:0]), []byte("\r\nDate: "))
	text, _, _ := bytes.Cut(rest, []byte("\r\n"))
	date, err := fasthttp.ParseHTTPDate(text)
	if err != nil {
		panic(err) // it is fasthttp's own; the panic handler answers 500
	}
	return date
}

// statusOf is the one map from an error to its status and to what the client
// may know of it. The rest of the error, with its paths and causes, is for the
// log.
func statusOf(err error) (int, string) {
	if slow := tooSlow(0); errors.As(err, &slow) {
		return fasthttp.StatusRequestTimeout, slow.Error()
	}
	for _, e := range []struct {
		err    error
		status int
	}{
		// The client's doing first: a backend wraps it in errors of its own.
		{errTooLarge, fasthttp.StatusRequestEntityTooLarge},
		{errEmptyBody, fasthttp.StatusBadRequest},
		{errStalled, fasthttp.StatusRequestTimeout},
		{errBodyCut, fasthttp.StatusBadRequest},
		{errRevoked, fasthttp.StatusServiceUnavailable},
		{ErrPrecondition, fasthttp.StatusPreconditionFailed},
		{ErrNotFound, fasthttp.StatusNotFound},
		{ErrBadCursor, fasthttp.StatusBadRequest},
		{ErrTooLarge, fasthttp.StatusRequestEntityTooLarge},
		{ErrLogFull, fasthttp.StatusRequestEntityTooLarge},
		{ErrKeyReused, fasthttp.StatusUnprocessableEntity},
		{ErrDamaged, fasthttp.StatusInternalServerError},
		{ErrNoSpace, fasthttp.StatusInsufficientStorage},
		{ErrReadOnly, fasthttp.StatusServiceUnavailable},
		{ErrBusy, fasthttp.StatusServiceUnavailable},
		{ErrLocked, fasthttp.StatusServiceUnavailable},
		{ErrUnavailable, fasthttp.StatusServiceUnavailable},
		{ErrDenied, fasthttp.StatusBadGateway},
		{ErrUnsupported, fasthttp.StatusNotImplemented},
		{ErrOccupied, fasthttp.StatusConflict}, // last, since for a read it is an ErrNotFound too
	} {
		if errors.Is(err, e.err) {
			if large := (*tooLargeError)(nil); errors.As(err, &large) {
				return e.status, large.text
			}
			return e.status, e.err.Error()
		}
	}
	return fasthttp.StatusInternalServerError, "internal error"
}

// reasonOf is what a client may know of err.
func reasonOf(err error) string {
	_, reason := statusOf(err)
	return reason
}

// fail answers with what err stands for. What is not the client's doing is
// logged, with all that is known of it.
func (s *service) fail(ctx *fasthttp.RequestCtx, op, siteID, buildID string, err error) {
	status, reason := statusOf(err)
	if occupied := errors.Is(err, ErrOccupied); status >= 500 || occupied {
		level := slog.LevelError
		// With ErrBusy nothing is wrong but that too much is asked at once.
		if errors.Is(err, ErrBusy) || status < 500 {
			level = slog.LevelWarn
		}
		s.log.LogAttrs(ctx, level, "request failed", slog.String("operation", op),
			slog.String("site", siteID), slog.String("build", buildID), slog.Int("status", status),
			slog.String("request_id", requestIDOf(ctx)), slog.String("error", err.Error()))
	}
	refuse(ctx, status, "cannot %s: %s", op, reason)
}

// failLater reports a failure of the store that comes after the header has left, when the
// answer can only be cut. what names the answer in the log, call is that of the backend.
func (s *service) failLater(c *conn, what, call, siteID, buildID string) {
	id := c.ex.id
	c.ex.sourceFailed = func(err error) {
		s.metrics.failures(call, errorKind(err)).Inc()
		s.log.LogAttrs(context.Background(), slog.LevelWarn, what+" was cut", slog.String("site", siteID),
			slog.String("build", buildID), slog.String("request_id", id), slog.String("error", err.Error()))
	}
}
