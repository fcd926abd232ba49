package main

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// The metrics of a textfile for the collector "textfile" of Prometheus' node exporter.
const (
	metricLastRun      = "pagewright_verify_last_run_timestamp_seconds"
	metricLastComplete = "pagewright_verify_last_complete_timestamp_seconds"
)

// verifyTextfile returns the metrics of a run that has ended. old is the textfile of the run
// before: if this run is not complete, the time of the latest complete one is taken from it.
func verifyTextfile(s *verifyState, old []byte) []byte {
	var b bytes.Buffer
	metric := func(name, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name) }
	one := func(name, help string, value float64) {
		metric(name, help)
		fmt.Fprintf(&b, "%s %s\n", name, strconv.FormatFloat(value, 'f', -1, 64))
	}
	one(metricLastRun, "When verify ended last, complete or not.", unixSeconds(s.Finished))
	complete := unixSeconds(s.Finished)
	if !s.Complete {
		complete = metricOf(old, metricLastComplete)
	}
	if complete > 0 {
		one(metricLastComplete, "When verify came to the end last.", complete)
	}
	one("pagewright_verify_duration_seconds", "Time from the start of the run to its end, with pauses if it was resumed.", s.Finished.Sub(s.Started).Seconds())
	const builds = "pagewright_verify_builds"
	metric(builds, "Builds of the last run, by result.")
	for _, result := range []string{resultOK, resultCorrupt, resultChanged, resultUnknown, resultFilled, resultDamagedDigest, resultSkipped} {
		fmt.Fprintf(&b, "%s{result=%q} %d\n", builds, result, *s.Counts.of(result))
	}
	one("pagewright_verify_damaged_logs", "Damaged logs that the last run found.", float64(s.Counts.DamagedLogs))
	one("pagewright_verify_foreign_files", "Files or objects of others that the last run found.", float64(s.Counts.Foreign))
	one("pagewright_verify_read_bytes", "Bytes that the last run read.", float64(s.Counts.Bytes))
	return b.Bytes()
}

func unixSeconds(t time.Time) float64 { return math.Round(float64(t.UnixMilli())) / 1000 }

// metricOf returns the value of a metric without labels in a textfile; 0 if it is not there.
func metricOf(file []byte, name string) float64 {
	for line := range strings.Lines(string(file)) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			value, _ := strconv.ParseFloat(strings.TrimSpace(text), 64)
			return value
		}
	}
	return 0
}
