package main

import "github.com/VictoriaMetrics/metrics"

// instrumented is a store that counts its inner work.
type instrumented interface{ metrics() *storeMetrics }

// storeMetrics is what a store counts of its inner work. What a store does not
// do stays at zero.
type storeMetrics struct {
	set                  *metrics.Set
	fsync, dirSync       *metrics.PrometheusHistogram
	rename, link         *metrics.PrometheusHistogram
	commit               *metrics.PrometheusHistogram // files that one shared sync made durable
	batch                *metrics.PrometheusHistogram // log entries that went into one write
	conflicts            *metrics.Counter             // appends that waited for, or lost to, another process
	listHits, listMisses *metrics.Counter
	logProblems          *metrics.Counter // logs of builds whose entries are not listed
	tempsSwept           *metrics.Counter
	clockDiff            *metrics.Gauge // seconds that the store's clock is ahead of ours
}

func newStoreMetrics() *storeMetrics {
	set := metrics.NewSet()
	histogram := func(name string) *metrics.PrometheusHistogram {
		return set.NewPrometheusHistogramExt(name, durationBuckets)
	}
	return &storeMetrics{
		set:        set,
		fsync:      histogram(`pagewright_fsync_seconds{of="file"}`),
		dirSync:    histogram(`pagewright_fsync_seconds{of="directory"}`),
		rename:     histogram(`pagewright_rename_seconds{call="rename"}`),
		link:       histogram(`pagewright_rename_seconds{call="link"}`),
		commit:     set.NewPrometheusHistogramExt("pagewright_group_commit_files", []float64{1, 8, 16, 32, 64, 128, 256, 512}),
		batch:      set.NewPrometheusHistogramExt("pagewright_log_append_batch_entries", []float64{1, 2, 4, 8, 16, 32, 64, 128}),
		conflicts:  set.NewCounter("pagewright_log_append_conflicts_total"),
		listHits:   set.NewCounter("pagewright_list_cache_hits_total"),
		listMisses: set.NewCounter("pagewright_list_cache_misses_total"),

		logProblems: set.NewCounter("pagewright_list_log_errors_total"),
		tempsSwept:  set.NewCounter("pagewright_temp_files_swept_total"),
		clockDiff:   set.NewGauge("pagewright_store_clock_difference_seconds", nil),
	}
}

// list counts a look at the memory of lists.
func (m *storeMetrics) list(known bool) {
	if known {
		m.listHits.Inc()
	} else {
		m.listMisses.Inc()
	}
}

// durationBuckets are seconds, from a small file out of the page cache to a
// large upload over a slow line.
var durationBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
