package main

import (
	_ "embed"
	"time"

	"github.com/valyala/fasthttp"
)

// openAPI describes the API; a test holds it against what the service answers.
//
//go:embed openapi.yaml
var openAPI []byte

func getOpenAPI(ctx *fasthttp.RequestCtx) {
	ctx.SetContentType("application/yaml")
	ctx.Response.Header.Set(fasthttp.HeaderCacheControl, "no-cache")
	ctx.Response.SetBodyRaw(openAPI)
}

// getMetrics answers a scrape. It waits for a store that hangs no longer than
// probeWait.
func (s *service) getMetrics(ctx *fasthttp.RequestCtx) {
	c := ctx.Conn().(*conn)
	token := c.hold()
	place, ok := s.take(ctx, s.scrapes, budgetRequest{n: 1, revoke: func() { c.revokeAnswer(token) }})
	if !ok {
		return
	}
	c.ex.release = place.release // when the answer has left
	noStore(ctx)
	ctx.SetContentType("text/plain; version=0.0.4; charset=utf-8")
	var store *storeMetrics
	if b, ok := s.backend.(instrumented); ok {
		store = b.metrics()
	}
	if s.logged != nil {
		s.metrics.linesDropped(s.logged.lost())
	}
	s.metrics.write(ctx, store)
}

// addGauges adds the metrics that are read at the time of a scrape.
func (s *service) addGauges() {
	gauges := map[string]func() float64{
		"pagewright_uploads_in_flight":     func() float64 { return float64(s.uploads.inUse()) },
		"pagewright_uploads_limit":         func() float64 { return float64(s.cfg.MaxUploads) },
		"pagewright_store_calls_in_flight": func() float64 { return float64(s.reads.inUse() + s.listing.inUse() + s.writes.inUse()) },
		"pagewright_stopping":              func() float64 { return boolToFloat(s.stopping.Load()) },
	}
	for name, b := range s.budgets() {
		label := `{budget="` + name + `"}`
		gauges["pagewright_budget_in_use"+label] = func() float64 { return float64(b.inUse()) }
		gauges["pagewright_budget_limit"+label] = func() float64 { return float64(b.limit) }
		b.onRejected = s.metrics.set.NewCounter("pagewright_budget_refused_total" + label).Inc
		b.onRevoked = s.metrics.set.NewCounter("pagewright_budget_ended_total" + label).Inc
	}
	if s.ready != nil {
		gauges["pagewright_store_readable"] = func() float64 {
			_, err := s.ready.get(probeKeep)
			return boolToFloat(err == nil)
		}
		gauges["pagewright_store_writable"] = func() float64 {
			found, err := s.ready.get(probeKeep)
			return boolToFloat(err == nil && found.WriteError == "")
		}
	}
	if s.space != nil {
		for name, of := range map[string]func(Space) uint64{
			"pagewright_store_free_bytes":  func(v Space) uint64 { return v.FreeBytes },
			"pagewright_store_size_bytes":  func(v Space) uint64 { return v.TotalBytes },
			"pagewright_store_free_inodes": func(v Space) uint64 { return v.FreeInodes },
			"pagewright_store_inodes":      func(v Space) uint64 { return v.TotalInodes },
		} {
			gauges[name] = func() float64 {
				found, _ := s.space.get(spaceKeep) // zero if the store does not answer
				return float64(of(found))
			}
		}
		gauges["pagewright_store_reserve_bytes"] = func() float64 { return float64(s.cfg.MinFreeSpace) }
	}
	s.metrics.gauges(gauges)
}

// timed counts the calls of ask.
func timed[T any](s *service, call string, ask func() (T, error)) func() (T, error) {
	return func() (T, error) {
		start := time.Now()
		found, err := ask()
		s.metrics.call(call, start, err)
		return found, err
	}
}

func boolToFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
