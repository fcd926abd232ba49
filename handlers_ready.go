package main

import (
	"time"

	"github.com/valyala/fasthttp"
)

// probeKeep is how long the result of a probe is good for.
const probeKeep = 2 * time.Second

// getHealth reports that the process responds. It does not touch the store, so
// that a store in trouble does not get every replica killed.
func getHealth(*fasthttp.RequestCtx) (response, error) {
	r := jsonResponse(fasthttp.StatusOK, struct {
		Status string    `json:"status"`
		Time   time.Time `json:"time"`
	}{"healthy", time.Now().UTC()})
	r.cacheControl = noStore
	return r, nil
}

// getReady reports whether requests should be sent here: the store can be read
// and the service is not shutting down.
func (a *api) getReady(*fasthttp.RequestCtx) (response, error) {
	if a.stopping() {
		return response{}, newHTTPError(fasthttp.StatusServiceUnavailable, "shutting down")
	}
	found := Readiness{}
	if a.ready != nil {
		var err error
		if found, err = a.ready.get(probeKeep); err != nil {
			return response{}, &operationError{operation: "read the store", err: err, status: fasthttp.StatusServiceUnavailable}
		}
	}
	r := jsonResponse(fasthttp.StatusOK, struct {
		Status string `json:"status"`
		Writes bool   `json:"writes"`
		Reason string `json:"reason,omitempty"`
	}{"ready", found.WriteError == "", found.WriteError})
	r.cacheControl = noStore
	return r, nil
}
