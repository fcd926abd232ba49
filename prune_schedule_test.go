package main

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// scheduledOver returns a job over a store, its metrics by name, and its log.
func scheduledOver(t *testing.T, store schedulable) (j *pruneJob, values func() map[string]float64, log *lockedBuffer) {
	t.Helper()
	set := metrics.NewSet()
	log = &lockedBuffer{}
	rules := testRetention(t, keepTwo)
	j = newPruneJob(store, func() *retention { return rules }, time.Hour, newPruneMetrics(set, time.Hour, pruneResults, skipReasons), slog.New(slog.NewJSONHandler(log, nil)))
	return j, func() map[string]float64 {
		var b strings.Builder
		set.WritePrometheus(&b)
		return metricValues(t, b.String())
	}, log
}

// TestPruneJob: a run of the service, what it leaves, and when the next one is.
func TestPruneJob(t *testing.T) {
	base := storeAged(t, append(shop(4), agedBuild{name: "x/b", days: 1, status: "ok"})...)
	noError(t, openTestNFS(t, base).WriteStatus(pruneStatus, []byte("{"))) // a state that cannot be used is none
	j, values, log := scheduledOver(t, openTestNFS(t, base))
	before := values()
	for _, name := range []string{`pagewright_prune_runs_total{result="failed"}`, `pagewright_prune_removed_builds_total`, `pagewright_prune_last_success_timestamp_seconds`,
		`pagewright_prune_skipped_sites{reason="no_label"}`, `pagewright_prune_skipped_since_timestamp_seconds{reason="max_delete_percent"}`} {
		if v, there := before[name]; !there || v != 0 {
			t.Errorf("%s is %v, there from the start: %v", name, v, there)
		}
	}
	if wait := j.turn(t.Context()); wait != pruneLook {
		t.Errorf("waits %v", wait)
	}
	if got := buildsOf(t, base); got != "shop/b1+~ shop/b2+~ x/b+~=" {
		t.Errorf("left are %s", got)
	}
	after := values()
	if after[`pagewright_prune_runs_total{result="ok"}`] != 1 || after["pagewright_prune_removed_builds_total"] != 2 || after["pagewright_prune_removed_bytes_total"] != 40 ||
		after["pagewright_prune_last_success_timestamp_seconds"] < 1e9 || after["pagewright_prune_interval_seconds"] != 3600 {
		t.Errorf("the metrics are %v", after)
	}
	for _, want := range []string{`"msg":"build pruned","site":"shop","build":"b4","bytes":20,`, `"reason":"beyond keep_last 2"`, `"msg":"prune ended","result":"ok"`, `"removed_builds":2`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%s is not in the log:\n%s", want, log)
		}
	}
	state := readPruned(t, base)
	if !state.Complete || state.Counts.Removed != 2 {
		t.Errorf("the state is %+v", state)
	}
	// The next turns of this replica and of another one do nothing until it is time.
	other, shown, _ := scheduledOver(t, openTestNFS(t, base))
	for _, c := range []struct {
		job  *pruneJob
		at   time.Duration // after the start of the run
		runs bool
	}{{j, time.Minute, false}, {other, 59 * time.Minute, false}, {other, 61 * time.Minute, true}, {j, 61 * time.Minute, false}} {
		latest := readPruned(t, base).Started
		at := state.Started.Add(c.at)
		c.job.now = func() time.Time { return at }
		c.job.turn(t.Context())
		if runs := !readPruned(t, base).Started.Equal(latest); runs != c.runs {
			t.Errorf("%v later: runs: %v", c.at, runs)
		}
		if c.runs { // by the real clock, which is early
			state := readPruned(t, base)
			state.Started, state.Finished = at, at
			noError(t, state.write(openTestNFS(t, base)))
		}
	}
	if v := shown(); v["pagewright_prune_last_success_timestamp_seconds"] < 1e9 || v["pagewright_prune_removed_builds_total"] != 0 {
		t.Errorf("the metrics of the other replica are %v", v)
	}
}

// TestPruneJobAlone: a replica does not run while another one does.
func TestPruneJobAlone(t *testing.T) {
	base := storeAged(t, shop(4)...)
	release, ok, err := openTestNFS(t, base).TryLease(pruneStatus, time.Hour)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	j, values, _ := scheduledOver(t, openTestNFS(t, base))
	if wait := j.turn(t.Context()); wait != pruneLook || !readPruned(t, base).Started.IsZero() {
		t.Errorf("waits %v, %+v", wait, readPruned(t, base))
	}
	release()
	if j.turn(t.Context()); readPruned(t, base).Counts.Removed != 2 || values()[`pagewright_prune_runs_total{result="ok"}`] != 1 {
		t.Errorf("afterwards: %+v", readPruned(t, base))
	}
}

// TestPruneJobFails: a run that fails is tried again soon, and does not count as a success.
func TestPruneJobFails(t *testing.T) {
	base := storeAged(t, shop(4)...)
	s := &failingStore{nfs: openTestNFS(t, base)}
	j, values, log := scheduledOver(t, s)
	s.deleting = func(builds []VersionDeletion) ([]error, bool) { return allFail(builds, ErrDenied), true }
	if wait := j.turn(t.Context()); wait != pruneLook {
		t.Errorf("waits %v", wait)
	}
	state := readPruned(t, base)
	if state.Complete || !state.LastSuccess.IsZero() || state.Error == "" || state.dueAt(j.interval, state.Finished).Sub(state.Finished) != pruneRetry {
		t.Errorf("the state is %+v", state)
	}
	if v := values(); v[`pagewright_prune_runs_total{result="failed"}`] != 1 || v["pagewright_prune_last_success_timestamp_seconds"] != 0 {
		t.Errorf("the metrics are %v", v)
	}
	if !strings.Contains(log.String(), `"level":"ERROR","msg":"prune ended","result":"failed"`) || !strings.Contains(log.String(), `"kind":"denied"`) {
		t.Errorf("the log is %s", log)
	}
}

// TestPruneJobEnds with the service, also in the middle of a run.
func TestPruneJobEnds(t *testing.T) {
	s := &failingStore{nfs: openTestNFS(t, storeAged(t, shop(2+2*pruneBatch)...))}
	j, values, _ := scheduledOver(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	s.deleting = func([]VersionDeletion) ([]error, bool) { cancel(); return nil, false }
	waits := []time.Duration{}
	j.wait = func(ctx context.Context, d time.Duration) bool {
		waits = append(waits, d)
		return ctx.Err() == nil
	}
	j.start(ctx)()
	if v := values(); v[`pagewright_prune_runs_total{result="stopped"}`] != 1 || v["pagewright_prune_removed_builds_total"] != pruneBatch {
		t.Errorf("the metrics are %v", v)
	}
	if len(waits) != 2 || waits[0] < pruneFirst || waits[0] >= pruneFirst+pruneJitter || waits[1] > pruneLook+pruneJitter {
		t.Errorf("it waited %v", waits)
	}
}
