package main

import (
	"fmt"

	"github.com/valyala/fasthttp"
)

// httpError is an error whose text is for the client, with its status. It is not a
// failure of the store.
type httpError struct {
	status        int
	reason        string
	header, value string // a header of the response; empty: none
	refused       string // reason label, if the service refuses a valid request; otherwise empty
	denied        string // reason label, if access control refuses it; otherwise empty
}

// Reason labels of valid requests that the service refuses.
const (
	refusedShutdown = "shutdown"
	refusedUploads  = "uploads"     // too many uploads
	refusedCalls    = "store_calls" // too many other calls of the store
	refusedBudget   = "budget"      // another budget: memory, or places of those that wait
	refusedReadOnly = "read_only"   // PAGEWRIGHT_READ_ONLY
)

// overloaded returns the error of a 503.
func overloaded(refused, format string, args ...any) *httpError {
	e := newHTTPError(fasthttp.StatusServiceUnavailable, format, args...)
	e.refused = refused
	return e
}

func (e *httpError) Error() string { return e.reason }

func newHTTPError(status int, format string, args ...any) *httpError {
	return &httpError{status: status, reason: fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) *httpError {
	return newHTTPError(fasthttp.StatusBadRequest, format, args...)
}
