package main

import "github.com/valyala/fasthttp"

// readOnlyReason is why a service refuses every change.
const readOnlyReason = "the service is read-only (PAGEWRIGHT_READ_ONLY)"

// refuseChanges makes the routes that change the store refuse every request, before its
// body is read.
func (a *api) refuseChanges(routes []route) {
	refuse := func(*fasthttp.RequestCtx) (response, error) {
		a.metrics.refused[refusedReadOnly].Inc() // not logged, because it is intended
		return response{}, newHTTPError(fasthttp.StatusServiceUnavailable, readOnlyReason)
	}
	for i := range routes {
		if r := &routes[i]; r.changes() {
			r.admit, r.serve = refuse, refuse
		}
	}
}
