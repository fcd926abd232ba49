package main

import "github.com/valyala/fasthttp"

// readOnlyReason is why a service refuses every change.
const readOnlyReason = "the service is read-only (PAGEWRIGHT_READ_ONLY)"

// refuseChanges makes the routes that change the store refuse every request, before its
// body is read.
func (a *api) refuseChanges(routes []route) {
	admit := func(*fasthttp.RequestCtx) error {
		a.metrics.refused[refusedReadOnly].Inc() // not logged, because it is intended
		return newHTTPError(fasthttp.StatusServiceUnavailable, readOnlyReason)
	}
	for i := range routes {
		if r := &routes[i]; r.changes() {
			r.admit = admit
			r.serve = func(ctx *fasthttp.RequestCtx) (response, error) { return response{}, admit(ctx) }
		}
	}
}
