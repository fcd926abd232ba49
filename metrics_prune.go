package main

import (
	"fmt"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// pruneMetrics are the metrics of the service's own prune. All series are there from the start.
// The gauges of runs are those of the latest run of any replica.
type pruneMetrics struct {
	runs          map[string]*metrics.Counter // of this process, by result
	builds, bytes *metrics.Counter            // removed by this process
	lastSuccess   *metrics.Gauge
	skipped       map[string]*metrics.Gauge // sites, by reason
	skippedSince  map[string]*metrics.Gauge // by reason; 0: no site is skipped for it
}

func newPruneMetrics[Reason ~string](set *metrics.Set, interval time.Duration, results []string, reasons []Reason) *pruneMetrics {
	m := &pruneMetrics{
		runs:         map[string]*metrics.Counter{},
		builds:       set.NewCounter("pagewright_prune_removed_builds_total"),
		bytes:        set.NewCounter("pagewright_prune_removed_bytes_total"),
		lastSuccess:  set.NewGauge("pagewright_prune_last_success_timestamp_seconds", nil),
		skipped:      map[string]*metrics.Gauge{},
		skippedSince: map[string]*metrics.Gauge{},
	}
	for _, result := range results {
		m.runs[result] = set.NewCounter(fmt.Sprintf("pagewright_prune_runs_total{result=%q}", result))
	}
	for _, reason := range reasons {
		m.skipped[string(reason)] = set.NewGauge(fmt.Sprintf("pagewright_prune_skipped_sites{reason=%q}", reason), nil)
		m.skippedSince[string(reason)] = set.NewGauge(fmt.Sprintf("pagewright_prune_skipped_since_timestamp_seconds{reason=%q}", reason), nil)
	}
	set.NewGauge("pagewright_prune_interval_seconds", interval.Seconds)
	return m
}
