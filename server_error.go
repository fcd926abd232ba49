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
}

func (e *httpError) Error() string { return e.reason }

func newHTTPError(status int, format string, args ...any) *httpError {
	return &httpError{status: status, reason: fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) *httpError {
	return newHTTPError(fasthttp.StatusBadRequest, format, args...)
}
