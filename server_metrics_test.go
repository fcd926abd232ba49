package main

import (
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// scrape is what /metrics tells, by name and labels.
func scrape(t *testing.T, s *testServer) map[string]float64 {
	t.Helper()
	r := s.get(t, 200, "/metrics")
	if got := r.header.Get("Content-Type"); !strings.HasPrefix(got, "text/plain; version=0.0.4") {
		t.Errorf("Content-Type %q", got)
	}
	return metricValues(t, string(r.body))
}

// metricValues returns the values in what /metrics serves.
func metricValues(t *testing.T, text string) map[string]float64 {
	t.Helper()
	values := map[string]float64{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		line = strings.TrimSpace(line)
		end := strings.LastIndexByte(line, ' ') // a label may have a space
		v, err := strconv.ParseFloat(line[end+1:], 64)
		if end < 0 || err != nil {
			t.Fatalf("bad line %q", line)
		}
		values[line[:end]] = v
	}
	return values
}

// mixedLoad makes every metric move that a single service on a local disk moves.
func mixedLoad(t *testing.T, s *testServer) {
	t.Helper()
	s.put(t, 201, "/sites/a/artifacts/b", randomBytes(300_000))
	s.put(t, 400, "/sites/a/artifacts/b", "")
	s.do(t, 201, request{"PUT", "/sites/a/artifacts/c", "x", header("If-None-Match", "*")})
	s.do(t, 412, request{"PUT", "/sites/a/artifacts/c", "x", header("If-None-Match", "*")})
	s.get(t, 200, "/sites/a/artifacts/b")
	s.get(t, 404, "/sites/a/artifacts/none")
	s.post(t, 201, "/sites/a/logs", `{"build_id":"b","action":"deploy","status":"ok"}`)
	s.get(t, 200, "/sites/a/versions")
	s.get(t, 200, "/sites/a/versions")
	s.ready(t)
	s.get(t, 404, "/nowhere")
	s.do(t, 204, request{"DELETE", "/sites/a/artifacts/c", nil, nil})
}

func TestMetricsAfterMixedLoad(t *testing.T) {
	s := startServer(t)
	mixedLoad(t, s)
	got := map[string]float64{}
	// A request is counted when its connection is read from again.
	eventually(t, "all requests are counted", func() bool {
		got = scrape(t, s)
		return got[`pagewright_http_requests_total{route="artifact",method="DELETE",status="204"}`] == 1 &&
			got["pagewright_store_readable"] == 1 && got["pagewright_store_writable"] == 1
	})
	for name, want := range map[string]float64{
		`pagewright_http_requests_total{route="artifact",method="PUT",status="201"}`:    2,
		`pagewright_http_requests_total{route="artifact",method="PUT",status="412"}`:    1,
		`pagewright_http_requests_total{route="artifact",method="PUT",status="400"}`:    1,
		`pagewright_http_requests_total{route="artifact",method="GET",status="200"}`:    1,
		`pagewright_http_requests_total{route="artifact",method="GET",status="404"}`:    1,
		`pagewright_http_requests_total{route="logs",method="POST",status="201"}`:       1,
		`pagewright_http_requests_total{route="versions",method="GET",status="200"}`:    2,
		`pagewright_http_requests_total{route="other",method="GET",status="404"}`:       1,
		`pagewright_http_request_duration_seconds_count{route="artifact",method="PUT"}`: 4,
		`pagewright_backend_duration_seconds_count{operation="append"}`:                 1,
		`pagewright_backend_duration_seconds_count{operation="delete"}`:                 1,
		`pagewright_backend_duration_seconds_count{operation="list"}`:                   2,
		`pagewright_backend_errors_total{operation="fetch",kind="not_found"}`:           1,
		`pagewright_backend_errors_total{operation="store",kind="precondition"}`:        1,
		`pagewright_backend_errors_total{operation="store",kind="internal"}`:            0,
		`pagewright_rename_seconds_count{call="link"}`:                                  1,
		`pagewright_rename_seconds_count{call="rename"}`:                                2,
		`pagewright_log_append_batch_entries_count`:                                     1,
		`pagewright_log_append_batch_entries_sum`:                                       1,
		`pagewright_list_cache_hits_total`:                                              1,
		`pagewright_list_cache_misses_total`:                                            1,
		`pagewright_temp_files_swept_total`:                                             0,
		`pagewright_log_append_conflicts_total`:                                         0,
		`pagewright_uploads_in_flight`:                                                  0,
		`pagewright_uploads_limit`:                                                      512,
		`pagewright_store_readable`:                                                     1,
		`pagewright_store_writable`:                                                     1,
		`pagewright_stopping`:                                                           0,
		`pagewright_store_reserve_bytes`:                                                32 << 20,
		`pagewright_http_received_bytes_total`:                                          300_000 + 1 + 48,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (there: %v), not %v", name, v, ok, want)
		}
	}
	// Of the two uploads, of the entry, and one of each probe, which is counted
	// when it has ended.
	eventually(t, "3 files were synced, and one for each probe", func() bool {
		got := scrape(t, s)
		return got[`pagewright_fsync_seconds_count{of="file"}`] == 3+got[`pagewright_backend_duration_seconds_count{operation="probe"}`]
	})
	for _, name := range []string{
		`pagewright_fsync_seconds_count{of="directory"}`, `pagewright_store_free_bytes`, `pagewright_store_size_bytes`,
		`pagewright_store_free_inodes`, `pagewright_http_connections`, `go_goroutines`, `process_open_fds`,
		`process_resident_memory_bytes`,
	} {
		if got[name] <= 0 {
			t.Errorf("%s is %v", name, got[name])
		}
	}
	if sent := got["pagewright_http_sent_bytes_total"]; sent < 300_000 || sent > 400_000 {
		t.Errorf("%v bytes were sent", sent)
	}
}

// TestSeriesFromTheStart: each status that openapi.yaml has for a route has a series before the
// first request, so that Prometheus sees an increase to 1.
func TestSeriesFromTheStart(t *testing.T) {
	access := filepath.Join(t.TempDir(), "access.json")
	switchFile(t, access, []byte(`{"anonymous":[{"allow":["admin"],"sites":["*"]}]}`))
	s := startServer(t, "ACCESS_FILE="+access)
	got := scrape(t, s)
	names := []string{`pagewright_http_request_duration_seconds_count{route="artifact",method="PUT"}`,
		`pagewright_http_requests_total{route="artifact",method="PUT",status="499"}`,
		`pagewright_http_requests_total{route="other",method="other",status="431"}`,
		`pagewright_list_log_errors_total`}
	for _, reason := range []string{"shutdown", "uploads", "store_calls", "budget"} {
		names = append(names, `pagewright_http_requests_refused_total{reason="`+reason+`"}`)
	}
	for _, kind := range []string{"internal", "busy", "damaged", "denied", "no_space", "read_only", "shutdown", "unavailable", "unsupported"} {
		names = append(names, `pagewright_backend_errors_total{operation="store",kind="`+kind+`"}`)
	}
	route, method := "", ""
	status := regexp.MustCompile(`^        "(\d{3})":`)
	routes := map[string]string{"artifacts/{build_id}": routeArtifact, "logs": routeLogs, "versions": routeVersions,
		"versions/{build_id}": routeVersion, "sites": routeSites, "sites/{site_id}": routeSite,
		"labels": routeLabels, "labels/{label}": routeLabel, "labels/{label}/artifact": routeByLabel, "health": routeHealth,
		"ready": routeReady, "metrics": routeMetrics, "openapi.yaml": routeOpenAPI}
	answers := 0
	for line := range strings.Lines(string(openAPI)) {
		line = strings.TrimRight(line, "\n")
		if path, ok := strings.CutPrefix(line, "  /"); ok {
			route = routes[strings.TrimPrefix(strings.TrimSuffix(path, ":"), "sites/{site_id}/")]
		}
		for _, m := range []string{"get", "head", "put", "post", "delete"} {
			if line == "    "+m+":" {
				method = strings.ToUpper(m)
			}
		}
		if m := status.FindStringSubmatch(line); m != nil {
			names = append(names, `pagewright_http_requests_total{route="`+route+`",method="`+method+`",status="`+m[1]+`"}`)
			answers++
		}
	}
	if answers < 60 {
		t.Errorf("%d responses were found in openapi.yaml", answers)
	}
	for _, name := range names {
		if _, ok := got[name]; !ok {
			t.Errorf("%s is not there", name)
		}
	}
}

// TestNoLabelComesFromAClient: whatever is asked for, the series are the same.
func TestNoLabelComesFromAClient(t *testing.T) {
	s := startServer(t)
	mixedLoad(t, s)
	scrape(t, s)
	ask := func(n int) {
		site := "site" + strconv.Itoa(n)
		s.put(t, 201, "/sites/"+site+"/artifacts/b"+site, "x", "X-Request-Id", site, "User-Agent", site)
		s.get(t, 200, "/sites/"+site+"/artifacts/b"+site)
		s.get(t, 404, "/sites/"+site+"/artifacts/none")
		s.post(t, 201, "/sites/"+site+"/logs", `{"build_id":"`+site+`","action":"`+site+`","status":"`+site+`"}`)
		s.get(t, 200, "/sites/"+site+"/versions?limit="+strconv.Itoa(n+1))
		s.get(t, 404, "/"+site)
		s.do(t, 405, request{"X" + strings.ToUpper(site), "/health", nil, nil})
	}
	ask(0) // one of each kind
	before := map[string]float64{}
	eventually(t, "all requests are counted", func() bool {
		before = scrape(t, s)
		return before[`pagewright_http_requests_total{route="other",method="other",status="405"}`] == 1
	})
	const rounds = 100
	for i := range rounds {
		ask(1 + i)
	}
	names := map[string]float64{}
	eventually(t, "all requests are counted", func() bool {
		names = scrape(t, s)
		return names[`pagewright_http_requests_total{route="other",method="other",status="405"}`] == 1+rounds
	})
	for name := range names {
		if _, ok := before[name]; !ok {
			t.Errorf("a new series: %s", name)
		}
		if regexp.MustCompile(`(?i)site\d`).MatchString(name) {
			t.Errorf("%s has a site for a label", name)
		}
	}
}

// BenchmarkMetricsOfARequest is what the metrics cost a request.
func BenchmarkMetricsOfARequest(b *testing.B) {
	m := newServiceMetrics()
	x := &requestRecord{start: time.Now(), route: routeArtifact, method: "GET", status: 200, in: 0, sent: 4096}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.call(callFetch, x.start, nil)
			m.request(x, time.Now())
		}
	})
}

func TestDroppedLinesAreNotSetBack(t *testing.T) {
	m := newServiceMetrics()
	for _, n := range []lineCounts{{1, 5}, {3, 4}, {2, 6}} {
		m.linesDropped(n)
	}
	if access, other := m.dropped[accessLine].Get(), m.dropped[otherLine].Get(); access != 3 || other != 6 {
		t.Errorf("access %d, other %d, want 3 and 6", access, other)
	}
}
