package main

import (
	"bytes"
	_ "embed"
	"time"

	"github.com/valyala/fasthttp"
)

// openAPI describes the API; a test compares it with what the service does.
//
//go:embed openapi.yaml
var openAPI []byte

func getOpenAPI(*fasthttp.RequestCtx) (response, error) {
	return response{status: fasthttp.StatusOK, contentType: "application/yaml", cacheControl: "no-cache", body: openAPI}, nil
}

// getMetrics responds to a scrape. It waits for a store that hangs no longer than
// probeWait.
func (a *api) getMetrics(ctx *fasthttp.RequestCtx) (response, error) {
	c := connOf(ctx)
	place, err := acquire(a.scrapes, c, budgetRequest{n: 1, revoke: c.responseRevoker()})
	if err != nil {
		return response{}, err
	}
	sent := false
	defer func() {
		if !sent {
			place.release()
		}
	}()
	var store *storeMetrics
	if b, ok := a.backend.(instrumented); ok {
		store = b.metrics()
	}
	a.accessMetrics()
	text := bytes.NewBuffer(takeBuffer(ctx))
	a.metrics.write(text, store)
	sent = true
	return response{
		status:       fasthttp.StatusOK,
		contentType:  "text/plain; version=0.0.4; charset=utf-8",
		cacheControl: noStore,
		buffer:       text.Bytes(),
		release:      place.release,
	}, nil
}

// addGauges adds the metrics that are read at the time of a scrape.
func (a *api) addGauges() {
	gauges := map[string]func() float64{
		"pagewright_uploads_in_flight":     func() float64 { return float64(a.uploads.inUse()) },
		"pagewright_uploads_limit":         func() float64 { return float64(a.cfg.MaxUploads) },
		"pagewright_store_calls_in_flight": func() float64 { return float64(a.reads.inUse() + a.listing.inUse() + a.writes.inUse()) },

		`pagewright_store_calls_limit{kind="read"}`:  func() float64 { return float64(a.reads.limit + a.listing.limit) },
		`pagewright_store_calls_limit{kind="write"}`: func() float64 { return float64(a.writes.limit) },

		"pagewright_read_only":      func() float64 { return boolToFloat(a.cfg.ReadOnly) },
		"pagewright_access_enabled": func() float64 { return boolToFloat(a.access != nil) },
	}
	for name, b := range a.budgets() {
		label := `{budget="` + name + `"}`
		gauges["pagewright_budget_in_use"+label] = func() float64 { return float64(b.inUse()) }
		gauges["pagewright_budget_limit"+label] = func() float64 { return float64(b.limit) }
		b.onRejected = a.metrics.set.NewCounter("pagewright_budget_refused_total" + label).Inc
		b.onRevoked = a.metrics.set.NewCounter("pagewright_budget_ended_total" + label).Inc
	}
	if a.ready != nil {
		gauges["pagewright_store_readable"] = func() float64 {
			_, err := a.readiness()
			return boolToFloat(err == nil)
		}
		gauges["pagewright_store_writable"] = func() float64 {
			found, err := a.readiness()
			return boolToFloat(err == nil && found.WriteError == nil && !a.cfg.ReadOnly)
		}
		gauges["pagewright_store_denied"] = func() float64 {
			found, _ := a.readiness()
			return boolToFloat(a.neverAllowed(found))
		}
	}
	if a.space != nil {
		for name, of := range map[string]func(Space) uint64{
			"pagewright_store_free_bytes":  func(v Space) uint64 { return v.FreeBytes },
			"pagewright_store_size_bytes":  func(v Space) uint64 { return v.TotalBytes },
			"pagewright_store_free_inodes": func(v Space) uint64 { return v.FreeInodes },
			"pagewright_store_inodes":      func(v Space) uint64 { return v.TotalInodes },
		} {
			gauges[name] = func() float64 {
				found, _ := a.space.get(spaceKeep) // zero if the store does not respond
				return float64(of(found))
			}
		}
		gauges["pagewright_store_reserve_bytes"] = func() float64 { return float64(a.cfg.MinFreeSpace) }
	}
	a.metrics.gauges(gauges)
}

// timed returns ask, whose calls it counts.
func timed[T any](m *serviceMetrics, call string, ask func() (T, error)) func() (T, error) {
	return func() (T, error) {
		start := time.Now()
		found, err := ask()
		m.call(call, start, err)
		return found, err
	}
}
