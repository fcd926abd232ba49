package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/valyala/fasthttp"
)

// operationError is the failure of an operation on the store.
type operationError struct {
	operation       string // as in "cannot delete the artifact"; empty: the response names the kind alone
	siteID, buildID string // may be empty
	err             error
	status          int // 0: that of err
}

func (e *operationError) Error() string { return "cannot " + e.operation + ": " + e.err.Error() }
func (e *operationError) Unwrap() error { return e.err }

// failure is the JSON of the response to a request that failed.
type failure struct {
	Status string `json:"status"` // "error"
	Error  string `json:"error"`

	// Of a digestError only.
	Algorithm string `json:"algorithm,omitempty"`
	Expected  string `json:"expected,omitempty"` // in hexadecimal
	Got       string `json:"got,omitempty"`
}

// respondError responds with what err stands for: the one place where an error becomes
// a status, a text and a line in the log. An httpError is such a response already. Of
// any other error the client gets what is in the table of errors, and the rest goes into
// the log if the client did not cause it.
func (a *api) respondError(ctx *fasthttp.RequestCtx, err error) {
	var refusal *httpError
	if !errors.As(err, &refusal) {
		refusal = a.refusalOf(ctx, err)
	}
	c := connOf(ctx)
	c.rec.refused, c.rec.outcome = refusal.reason, ""
	switch {
	case errors.Is(err, errBodyCut):
		c.rec.hungUp = true
	case errors.Is(err, errShutDown):
		c.rec.cut = cutByShutdown
	}
	if refusal.refused != "" {
		a.metrics.refused[refusal.refused].Inc()
		remote, _ := remoteOf(a.cfg, &ctx.Request.Header, c)
		a.floods.add(refusal.refused, slog.LevelWarn, "requests refused", "reason", refusal.refused, "status", refusal.status,
			c.rec.ids(), "remote", remote, "error", refusal.reason)
	}
	if denied := a.metrics.denied[refusal.denied]; denied != nil {
		denied.Inc()
	}
	body := failure{Status: "error", Error: refusal.reason}
	if d, ok := errors.AsType[*digestError](err); ok {
		body.Algorithm, body.Expected, body.Got = d.algorithm, hex.EncodeToString(d.expected), hex.EncodeToString(d.got)
	}
	r := jsonResponse(refusal.status, body)
	r.cacheControl = noStore // by default caches may keep some statuses, such as 404 (RFC 9110, section 15.1)
	r.write(ctx)
	h := &ctx.Response.Header
	switch refusal.status {
	case fasthttp.StatusServiceUnavailable:
		h.Set(fasthttp.HeaderRetryAfter, "5")
	case fasthttp.StatusInsufficientStorage:
		h.Set(fasthttp.HeaderRetryAfter, "60")
	}
	if refusal.header != "" {
		h.Set(refusal.header, refusal.value)
	}
	a.audit(ctx, refusal)
}

// refusalOf returns the response to an error of the store, and logs the error.
func (a *api) refusalOf(ctx *fasthttp.RequestCtx, err error) *httpError {
	class := classify(err)
	op := &operationError{err: err}
	refusal := &httpError{status: class.status, reason: reasonOf(err)}
	if errors.As(err, &op) && op.operation != "" {
		refusal.reason = "cannot " + op.operation + ": " + refusal.reason
	}
	if op.status != 0 {
		refusal.status = op.status
	}
	attrs := func() []any {
		return []any{slog.String("operation", op.operation), slog.String("site", op.siteID), slog.String("build", op.buildID),
			slog.Int("status", refusal.status), connOf(ctx).rec.ids(), slog.String("error", op.err.Error())}
	}
	switch {
	case errors.Is(err, ErrBusy) && !errors.Is(err, errRevoked):
		refusal.refused = refusedBudget // respondError logs it
	case op.operation == "": // /ready, which balancers ask all the time; watchStore logs the outage
		a.floods.add("not ready", class.log, "not ready", "status", refusal.status, connOf(ctx).rec.ids(), "error", op.err.Error())
	case errors.Is(err, ErrOccupied) && class.log == slog.LevelWarn: // any number of requests may ask for it
		a.floods.add("occupied", class.log, "request failed", attrs()...)
	case class.log != 0:
		a.log.Log(ctx, class.log, "request failed", attrs()...)
	}
	return refusal
}

// failureOfStore returns err, or nil if that is a refusal: the store has done its part.
func failureOfStore(err error) error {
	if _, refused := errors.AsType[*httpError](err); refused {
		return nil
	}
	return err
}

// sourceFailed returns what reports a failure of the store that comes after the header has
// left, when the response can only be cut. what names the response in the log, call is
// that of the backend.
func (a *api) sourceFailed(c *conn, what, call, siteID, buildID string) func(error) {
	ids := c.rec.ids()
	return func(err error) {
		a.metrics.failures(call, errorKind(err)).Inc()
		a.log.LogAttrs(context.Background(), slog.LevelWarn, what+" was aborted by a store error", slog.String("site", siteID),
			slog.String("build", buildID), ids, slog.String("error", err.Error()))
	}
}

// panicked responds with 500 for a handler that panicked, and logs where.
func (a *api) panicked(ctx *fasthttp.RequestCtx, cause any) {
	a.log.Error("a handler panicked", connOf(ctx).rec.ids(), "method", methodOf(ctx),
		"path", loggedTarget(ctx.RequestURI()), "cause", fmt.Sprint(cause), "stack", string(debug.Stack()))
	ctx.Response.ResetBody()
	a.respondError(ctx, newHTTPError(fasthttp.StatusInternalServerError, "internal error"))
}
