package main

import (
	"time"

	"github.com/valyala/fasthttp"
)

// probeKeep is how long the result of a probe is good for.
const probeKeep = 2 * time.Second

// getHealth tells that the process answers. It does not touch the store, so
// that a store in trouble does not get every replica killed.
func (s *service) getHealth(ctx *fasthttp.RequestCtx) {
	noStore(ctx)
	answer(ctx, fasthttp.StatusOK, struct {
		Status string    `json:"status"`
		Time   time.Time `json:"time"`
	}{"healthy", time.Now().UTC()})
}

// getReady tells whether requests should be sent here: the store can be read
// and the service is not shutting down.
func (s *service) getReady(ctx *fasthttp.RequestCtx) {
	if s.stopping.Load() {
		refuse(ctx, fasthttp.StatusServiceUnavailable, "shutting down")
		return
	}
	found := Readiness{}
	if s.ready != nil {
		var err error
		if found, err = s.ready.get(probeKeep); err != nil {
			s.fail(ctx, "read the store", "", "", err)
			ctx.SetStatusCode(fasthttp.StatusServiceUnavailable)
			return
		}
	}
	noStore(ctx)
	answer(ctx, fasthttp.StatusOK, struct {
		Status string `json:"status"`
		Writes bool   `json:"writes"`
		Reason string `json:"reason,omitempty"`
	}{"ready", found.WriteError == "", found.WriteError})
}
