package main

import (
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// The metrics of /metrics. Every label has a bounded number of values, whatever
// clients send: no site, build, path or address is ever one. docs/operations.md
// lists all names, and deploy/monitoring queries them.

// serviceMetrics are the metrics of the HTTP side. It is safe for concurrent use.
type serviceMetrics struct {
	set            *metrics.Set
	received, sent *metrics.Counter
	cut            *metrics.Counter
	tooMany        *metrics.Counter            // uploads refused
	refused        map[string]*metrics.Counter // requests, by the labels of httpError.refused
	denied         map[string]*metrics.Counter // requests, by the labels of httpError.denied; nil without access control
	noSpace        *metrics.Counter
	dropped        [lineKinds]*metrics.Counter // lines of the service log
	linesLost      func() lineCounts           // reads them; nil: the log counts none
	calls          map[string]*metrics.PrometheusHistogram

	mu       sync.RWMutex
	requests map[requestKey]requestMetrics
	issuers  map[string]keyReads  // that have metrics
	tokens   map[string]time.Time // that have metrics, by the names of their entries
}

type requestKey struct {
	route, method string
	status        int
}

type requestMetrics struct {
	count    *metrics.Counter
	duration *metrics.PrometheusHistogram
}

// The routes as a label; requests that match none are routeOther.
const (
	routeOther    = "other"
	routeArtifact = "artifact"
	routeLogs     = "logs"
	routeVersions = "versions"
	routeVersion  = "version"
	routeSites    = "sites"
	routeSite     = "site"
	routeLabel    = "label"
	routeLabels   = "labels"
	routeByLabel  = "label_artifact"
	routeHealth   = "health"
	routeReady    = "ready"
	routeMetrics  = "metrics"
	routeOpenAPI  = "openapi"
)

// The calls of the backend as a label.
const (
	callStore  = "store"
	callFetch  = "fetch"
	callStat   = "stat"
	callDelete = "delete"
	callAppend = "append"
	callList   = "list"
	callSites  = "sites"  // a list of sites
	callRemove = "remove" // of many builds with their logs
	callProbe  = "probe"
	callSpace  = "space"
	callURL    = "url"

	callMoveLabel   = "move_label"
	callGetLabel    = "get_label"
	callListLabels  = "list_labels"
	callDeleteLabel = "delete_label"
)

// possible are the responses that have series from the start, because Prometheus sees an
// increase only if the series existed before. Others, such as a panic in /health, get a
// series when they occur.
var possible = []struct {
	route, methods string
	statuses       []int
}{
	{routeArtifact, "PUT", []int{200, 201, 400, 403, 408, 409, 412, 413, 415, statusHungUp, 500, 501, 502, 503, 507}},
	{routeArtifact, "GET", []int{200, 206, 304, 307, 400, 404, 412, 416, statusHungUp, 500, 502, 503}},
	{routeArtifact, "HEAD", []int{200, 304, 400, 404, 412, statusHungUp, 500, 502, 503}},
	{routeArtifact, "DELETE", []int{204, 400, 403, 409, 412, statusHungUp, 500, 501, 502, 503}},
	{routeLogs, "POST", []int{201, 400, 403, 408, 409, 413, 415, 422, statusHungUp, 500, 501, 502, 503, 507}},
	{routeVersions, "GET", []int{200, 304, 400, statusHungUp, 500, 501, 502, 503}},
	{routeVersions, "HEAD", []int{200, 304, 400, statusHungUp, 500, 501, 502, 503}},
	{routeVersion, "DELETE", []int{204, 400, 403, 409, 412, statusHungUp, 500, 501, 502, 503}},
	{routeSites, "GET HEAD", []int{200, 400, statusHungUp, 500, 501, 502, 503}},
	{routeSite, "GET HEAD", []int{200, 400, 404, statusHungUp, 500, 502, 503}},
	{routeSite, "DELETE", []int{200, 400, 403, 409, statusHungUp, 500, 501, 502, 503}},
	{routeLabel, "PUT", []int{200, 201, 400, 403, 404, 408, 409, 412, 413, 415, statusHungUp, 500, 501, 502, 503, 507}},
	{routeLabel, "GET HEAD", []int{200, 304, 400, 404, 412, statusHungUp, 500, 501, 502, 503}},
	{routeLabel, "DELETE", []int{204, 400, 403, 412, statusHungUp, 500, 501, 502, 503}},
	{routeLabels, "GET HEAD", []int{200, 304, 400, statusHungUp, 500, 501, 502, 503}},
	{routeByLabel, "GET", []int{200, 206, 304, 307, 400, 404, 412, 416, statusHungUp, 500, 501, 502, 503}},
	{routeByLabel, "HEAD", []int{200, 304, 400, 404, 412, statusHungUp, 500, 501, 502, 503}},
	{routeHealth, "GET HEAD", []int{200}},
	{routeReady, "GET HEAD", []int{200, 503}},
	{routeMetrics, "GET HEAD", []int{200, 503}},
	{routeOpenAPI, "GET HEAD", []int{200}},
	{routeOther, "GET HEAD PUT POST DELETE", []int{400, 404, 405}},
	{routeOther, "OPTIONS", []int{204}},
	{routeOther, "other", []int{400, 404, 405, 408, 431, statusHungUp, 505}},
}

func newServiceMetrics() *serviceMetrics {
	metrics.ExposeMetadata(true)
	set := metrics.NewSet()
	m := &serviceMetrics{
		set:      set,
		received: set.NewCounter("pagewright_http_received_bytes_total"),
		sent:     set.NewCounter("pagewright_http_sent_bytes_total"),
		cut:      set.NewCounter("pagewright_http_answers_cut_total"),
		tooMany:  set.NewCounter(`pagewright_uploads_refused_total{reason="too_many"}`),
		noSpace:  set.NewCounter(`pagewright_uploads_refused_total{reason="no_space"}`),
		calls:    map[string]*metrics.PrometheusHistogram{},
		refused:  map[string]*metrics.Counter{},
		requests: map[requestKey]requestMetrics{},
	}
	for _, reason := range []string{refusedShutdown, refusedUploads, refusedCalls, refusedBudget, refusedReadOnly} {
		m.refused[reason] = set.NewCounter(fmt.Sprintf(`pagewright_http_requests_refused_total{reason=%q}`, reason))
	}
	for _, p := range possible {
		for method := range strings.FieldsSeq(p.methods) {
			for _, status := range p.statuses {
				m.addRequest(requestKey{p.route, method, status})
			}
		}
	}
	for kind, name := range []string{accessLine: "access", otherLine: "other"} {
		m.dropped[kind] = set.NewCounter(fmt.Sprintf(`pagewright_log_lines_dropped_total{kind=%q}`, name))
	}
	for _, call := range []string{callStore, callFetch, callStat, callDelete, callAppend, callList, callSites, callRemove, callProbe, callSpace, callURL,
		callMoveLabel, callGetLabel, callListLabels, callDeleteLabel} {
		m.calls[call] = set.NewPrometheusHistogramExt(fmt.Sprintf(`pagewright_backend_duration_seconds{operation=%q}`, call), durationBuckets)
		// From zero on: an increase is seen only of a series that existed before.
		for _, kind := range errorKinds() {
			m.failures(call, kind)
		}
	}
	set.NewGauge(fmt.Sprintf(`pagewright_build_info{version=%q,goversion=%q}`, version, runtime.Version()), func() float64 { return 1 })
	return m
}

// connections counts the connections that do not end by themselves.
func (m *serviceMetrics) connections() connCounters {
	counter := func(name, reason string) func() {
		return m.set.NewCounter(fmt.Sprintf(`pagewright_http_connections_%s_total{reason=%q}`, name, reason)).Inc
	}
	return connCounters{
		crowded: counter("refused", "address"), full: counter("refused", "limit"),
		evicted: counter("evicted", "idle"), cut: counter("evicted", "share"),
	}
}

// ofTLS adds the metrics of TLS, and returns the function that counts a handshake that failed.
func (m *serviceMetrics) ofTLS(f *tlsFiles) (failed func()) {
	m.reloads("tls", f.watch)
	m.gauges(map[string]func() float64{
		"pagewright_tls_certificate_not_after_timestamp_seconds": func() float64 { return float64(f.current.Load().leaf.NotAfter.Unix()) },
	})
	return m.set.NewCounter("pagewright_tls_handshake_errors_total").Inc
}

// reloads adds the metrics of files that are reloaded.
func (m *serviceMetrics) reloads(file string, w *fileWatch) {
	m.gauges(map[string]func() float64{
		fmt.Sprintf("pagewright_reload_successful{file=%q}", file):                func() float64 { return boolToFloat(!w.failing.Load()) },
		fmt.Sprintf("pagewright_reload_success_timestamp_seconds{file=%q}", file): func() float64 { return float64(w.loadedAt.Load()) },
	})
}

// request counts a request that ended at now.
func (m *serviceMetrics) request(x *requestRecord, now time.Time) {
	key := requestKey{x.route, x.method, x.status}
	if key.route == "" {
		key.route = routeOther
	}
	switch key.method {
	case "GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS":
	default:
		key.method = "other"
	}
	m.mu.RLock()
	r, ok := m.requests[key]
	m.mu.RUnlock()
	if !ok {
		r = m.addRequest(key)
	}
	r.count.Inc()
	r.duration.Update(now.Sub(x.start).Seconds())
	m.received.AddInt64(x.in)
	m.sent.AddInt64(x.sent)
	if x.cut != "" {
		m.cut.Inc()
	}
}

func (m *serviceMetrics) addRequest(key requestKey) requestMetrics {
	labels := fmt.Sprintf(`route=%q,method=%q`, key.route, key.method)
	r := requestMetrics{
		m.set.GetOrCreateCounter(`pagewright_http_requests_total{` + labels + `,status="` + strconv.Itoa(key.status) + `"}`),
		m.set.GetOrCreatePrometheusHistogramExt(`pagewright_http_request_duration_seconds{`+labels+`}`, durationBuckets),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests[key] = r
	return r
}

// call counts a call of the backend that began at start.
func (m *serviceMetrics) call(call string, start time.Time, err error) {
	m.calls[call].UpdateDuration(start)
	if err != nil {
		m.failures(call, errorKind(err)).Inc()
	}
}

func (m *serviceMetrics) failures(call, kind string) *metrics.Counter {
	return m.set.GetOrCreateCounter(`pagewright_backend_errors_total{operation="` + call + `",kind="` + kind + `"}`)
}

// countDenied makes the counters of denied, and the series of the requests that can be.
func (m *serviceMetrics) countDenied(reasons []string) {
	m.denied = map[string]*metrics.Counter{}
	for _, p := range possible {
		switch p.route {
		case routeArtifact, routeLogs, routeVersions, routeVersion, routeSites, routeSite, routeLabel, routeLabels, routeByLabel, routeMetrics:
			for method := range strings.FieldsSeq(p.methods) {
				for _, status := range []int{400, 401, 403, 503} {
					m.addRequest(requestKey{p.route, method, status})
				}
			}
		}
	}
	for _, reason := range reasons {
		m.denied[reason] = m.set.NewCounter(fmt.Sprintf(`pagewright_access_denied_total{reason=%q}`, reason))
	}
}

// keyReads are the reads of the keys of an issuer.
type keyReads struct {
	ok, failed uint64
	age        time.Duration // of the keys
}

// issuerKeys sets the metrics of the keys of all issuers, and removes those of issuers that
// are gone.
func (m *serviceMetrics) issuerKeys(now map[string]keyReads) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for issuer := range m.issuers {
		if _, there := now[issuer]; !there {
			for _, name := range issuerSeries(issuer) {
				m.set.UnregisterMetric(name)
			}
		}
	}
	for issuer, reads := range now {
		names := issuerSeries(issuer)
		m.set.GetOrCreateCounter(names[0]).Set(reads.ok)
		m.set.GetOrCreateCounter(names[1]).Set(reads.failed)
		m.set.GetOrCreateGauge(names[2], nil).Set(reads.age.Seconds())
	}
	m.issuers = now
}

func issuerSeries(issuer string) [3]string {
	label := fmt.Sprintf(`{issuer=%q`, issuer)
	return [...]string{`pagewright_access_key_fetches_total` + label + `,result="ok"}`,
		`pagewright_access_key_fetches_total` + label + `,result="failed"}`, `pagewright_access_keys_age_seconds` + label + `}`}
}

// tokensExpire sets when the tokens expire that do, and removes the metrics of those that are
// gone. The access file bounds their number.
func (m *serviceMetrics) tokensExpire(now map[string]time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.tokens {
		if _, there := now[name]; !there {
			m.set.UnregisterMetric(tokenSeries(name))
		}
	}
	for name, until := range now {
		m.set.GetOrCreateGauge(tokenSeries(name), nil).Set(float64(until.Unix()))
	}
	m.tokens = now
}

func tokenSeries(name string) string {
	return fmt.Sprintf(`pagewright_access_token_expires_timestamp_seconds{name=%q}`, name)
}

// linesDropped sets how many lines the service log has dropped. A scrape that is overtaken
// by another one does not decrease the counters.
func (m *serviceMetrics) linesDropped(n lineCounts) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for kind, c := range m.dropped {
		c.Set(max(c.Get(), n[kind]))
	}
}

// gauges adds gauges that are read at the time of a scrape.
func (m *serviceMetrics) gauges(values map[string]func() float64) {
	for name, value := range values {
		m.set.NewGauge(name, value)
	}
}

// write writes everything in the text format of Prometheus.
func (m *serviceMetrics) write(w io.Writer, store *storeMetrics) {
	if m.linesLost != nil {
		m.linesDropped(m.linesLost())
	}
	m.set.WritePrometheus(w)
	if store != nil {
		store.set.WritePrometheus(w)
	}
	metrics.WriteProcessMetrics(w)
	metrics.WriteFDMetrics(w)
}

func boolToFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
