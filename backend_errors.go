package main

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
)

// The errors of a Backend. Their classes are in errorClasses.
var (
	ErrNotFound     = errors.New("not found")
	ErrPrecondition = errors.New("precondition failed")
	ErrNoSpace      = errors.New("no space left in the store")
	ErrReadOnly     = errors.New("the store is read-only")
	ErrTooLarge     = errors.New("the build is too large for the store")
	ErrLogFull      = errors.New("the log has reached its size limit")
	ErrKeyReused    = errors.New("the Idempotency-Key was already used for a different entry")
	ErrDamaged      = errors.New("the log is damaged")
	ErrUnavailable  = errors.New("the store is unavailable")
	ErrBusy         = errors.New("too many requests at once")
	ErrDenied       = errors.New("the store denied access")
	ErrUnsupported  = errors.New("not supported by this store")
	ErrBadCursor    = errors.New("invalid cursor")
	ErrOccupied     = errors.New("unexpected file type in the store") // a directory in place of a file, or the reverse
	errRange        = errors.New("the range is not satisfiable")
)

// tooLargeError is an ErrTooLarge whose text names the limit. Clients see it.
type tooLargeError struct{ text string }

func (e *tooLargeError) Error() string     { return e.text }
func (e *tooLargeError) Unwrap() error     { return ErrTooLarge }
func (e *tooLargeError) forClient() string { return e.text }

// ErrLocked is an ErrUnavailable: the lock of a build was not free in time.
var ErrLocked error = lockedError{}

type lockedError struct{}

func (lockedError) Error() string { return "the build is locked by another operation" }
func (lockedError) Unwrap() error { return ErrUnavailable }

// tooSlow is the errStalled of a client that sent fewer bytes a second than this
// over the last minute.
type tooSlow int64

func (r tooSlow) Error() string {
	return fmt.Sprintf("the client sent less than %d bytes a second over the last minute", int64(r))
}

func (tooSlow) Unwrap() error       { return errStalled }
func (r tooSlow) forClient() string { return r.Error() }

// errorClass is what an error means to those outside the service.
type errorClass struct {
	err    error
	status int        // of the response (RFC 9110, section 15)
	kind   string     // the label of the metrics
	log    slog.Level // of the log line about the failed request; 0: no line, because the client caused the error
}

// errorClasses is the one table of errors. The first line whose error is wrapped counts.
// errRange is not in it: the downloads handle it, and anywhere else it is a fault of the
// store.
var errorClasses = []errorClass{
	// Those of the body first: a backend wraps them in errors of its own.
	{errTooLarge, 413, "client", 0},
	{errEmptyBody, 400, "client", 0},
	{errStalled, 408, "client", 0},
	{errBodyCut, 400, "client", 0},
	{errBadChunk, 400, "client", 0},
	{errDigest, 400, "digest", 0},
	{errShutDown, 503, "shutdown", slog.LevelWarn},
	{errRevoked, 503, "busy", slog.LevelWarn},
	{ErrPrecondition, 412, "precondition", 0},
	{ErrNotFound, 404, "not_found", 0},
	{ErrBadCursor, 400, "client", 0},
	{ErrTooLarge, 413, "client", 0},
	{ErrLogFull, 413, "log_full", 0},
	{errLabelled, 409, "labelled", 0},
	{errTooManyLabels, 409, "client", 0},
	{ErrKeyReused, 422, "key_reused", 0},
	{errLabelDamaged, 500, "damaged", slog.LevelError},
	{ErrDamaged, 500, "damaged", slog.LevelError},
	{ErrNoSpace, 507, "no_space", slog.LevelError},
	{ErrReadOnly, 503, "read_only", slog.LevelError},
	{errBeingDeleted, 503, "busy", slog.LevelWarn},
	{ErrBusy, 503, "busy", slog.LevelWarn}, // nothing is wrong except that there is too much to do
	{ErrLocked, 503, "unavailable", slog.LevelError},
	{ErrUnavailable, 503, "unavailable", slog.LevelError},
	{ErrDenied, 502, "denied", slog.LevelError},
	{ErrUnsupported, 501, "unsupported", slog.LevelError},
	{ErrOccupied, 409, "occupied", slog.LevelWarn}, // last: for a read it is an ErrNotFound too
}

// classify returns the class of err. What is not in the table is an internal error.
func classify(err error) errorClass {
	for _, c := range errorClasses {
		if errors.Is(err, c.err) {
			if c.log == 0 && errors.Is(err, ErrOccupied) {
				c.log = slog.LevelWarn // of a read too: the client did not cause it
			}
			return c
		}
	}
	return errorClass{errors.New("internal error"), 500, "internal", slog.LevelError}
}

// reasonOf returns what a client may know of err. The rest, with paths and causes, is
// for the log.
func reasonOf(err error) string {
	var detailed interface{ forClient() string }
	if errors.As(err, &detailed) {
		return detailed.forClient()
	}
	return classify(err).err.Error()
}

// errorKind returns err as a label of the metrics.
func errorKind(err error) string { return classify(err).kind }

// errorKinds returns the kinds of all errors.
func errorKinds() []string {
	kinds := []string{classify(nil).kind}
	for _, c := range errorClasses {
		if !slices.Contains(kinds, c.kind) {
			kinds = append(kinds, c.kind)
		}
	}
	return kinds
}
