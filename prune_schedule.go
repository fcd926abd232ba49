package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"
)

const (
	pruneFirst    = 5 * time.Minute  // from the start of the service to its first run
	pruneRetry    = 15 * time.Minute // from the end of a run that failed to the next
	pruneLook     = 10 * time.Minute // how often a replica looks whether another has pruned
	pruneJitter   = time.Minute      // so that replicas that start together do not look together
	pruneLeaseTTL = time.Hour
	pruneStopWait = 10 * time.Second // how long a run that is stopped may take to end
)

// The results of runs as a label.
const (
	pruneOK         = "ok"
	pruneIncomplete = "incomplete" // it came to the end, but skipped a site for a fault, or could not remove a build
	pruneFailed     = "failed"
	pruneStopped    = "stopped" // by a shutdown
)

var pruneResults = []string{pruneOK, pruneIncomplete, pruneFailed, pruneStopped}

// pruneJob prunes the store at intervals, in one of the replicas that share it: the store keeps
// when the latest run began, and has the lease of the run that is under way.
type pruneJob struct {
	store    schedulable
	rules    func() *retention // as they are now
	interval time.Duration
	log      *slog.Logger
	metrics  *pruneMetrics
	wait     func(ctx context.Context, d time.Duration) (goesOn bool)
	now      func() time.Time
}

// schedulable is a store that the service can prune.
type schedulable interface {
	prunable
	StatusKeeper
	Leaser
}

func newPruneJob(store schedulable, rules func() *retention, interval time.Duration, metrics *pruneMetrics, log *slog.Logger) *pruneJob {
	return &pruneJob{store: store, rules: rules, interval: interval, metrics: metrics, log: log, wait: pause, now: time.Now}
}

// start runs the job in the background until ctx ends. stop waits until it has ended, but not for
// long: a run stops between two batches, and one that is killed does no harm.
func (j *pruneJob) start(ctx context.Context) (stop func()) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for wait := pruneFirst; j.wait(ctx, wait+rand.N(pruneJitter)); {
			wait = j.turn(ctx)
		}
	}()
	return func() {
		select {
		case <-ended:
		case <-time.After(pruneStopWait):
		}
	}
}

// turn prunes if it is time to, and no other replica does. It returns how long to wait until the
// next turn.
func (j *pruneJob) turn(ctx context.Context) time.Duration {
	_, wait, err := j.due()
	if err == nil && wait <= 0 {
		wait, err = j.runAlone(ctx)
	}
	if err != nil {
		j.metrics.runs[pruneFailed].Inc()
		j.log.Error("cannot prune", "kind", errorKind(err), "cause", err.Error())
		wait = min(j.interval, pruneRetry)
	}
	return min(wait, pruneLook)
}

// due returns the state of the latest run, which it shows in the metrics, and how long to wait
// until the next.
func (j *pruneJob) due() (pruneState, time.Duration, error) {
	state, err := readPruneState(j.store)
	if err != nil {
		return state, 0, err
	}
	state.show(j.metrics)
	now := j.now()
	return state, state.dueAt(j.interval, now).Sub(now), nil
}

// runAlone prunes if no other replica does, and returns how long to wait.
func (j *pruneJob) runAlone(ctx context.Context) (time.Duration, error) {
	release, ok, err := j.store.TryLease(pruneStatus, pruneLeaseTTL)
	switch {
	case err != nil:
		return 0, fmt.Errorf("cannot take the lease: %w", err)
	case !ok:
		return pruneLook, nil
	}
	defer release()
	state, wait, err := j.due() // another replica may have ended its run just now
	if err == nil && wait <= 0 {
		state = j.run(ctx, state)
		wait = state.dueAt(j.interval, j.now()).Sub(j.now())
	}
	return wait, err
}

// run prunes, and keeps the result in the store. latest is the state of the run before.
func (j *pruneJob) run(ctx context.Context, latest pruneState) pruneState {
	p := newPruner(j.store, j.rules(), &pruneLog{j.log, map[skipReason]int{}})
	p.apply, p.gentle = true, true
	err := p.run(ctx)
	state := latest.next(p.state)
	if kept := state.write(j.store); err == nil {
		err = kept
	}
	result, c := p.result(err), &state.Counts
	j.metrics.runs[result].Inc()
	j.metrics.builds.AddInt64(c.Removed)
	j.metrics.bytes.AddInt64(c.RemovedBytes)
	state.show(j.metrics)
	level := slog.LevelInfo
	attrs := []any{"result", result, "duration_ms", state.Finished.Sub(state.Started).Milliseconds(), "sites", c.Sites, "skipped_sites", c.SkippedSites, "builds", c.Builds,
		"removed_builds", c.Removed, "removed_bytes", c.RemovedBytes, "changed_builds", c.Changed, "labelled_builds", c.Labelled, "failed_builds", c.Failed}
	if result == pruneFailed {
		level, attrs = slog.LevelError, append(attrs, "kind", errorKind(err), "cause", err.Error())
	}
	j.log.Log(ctx, level, "prune ended", attrs...)
	return state
}

// pruneLog is the pruneReport of the service: lines of the service log about what was removed, and
// about sites that were skipped for a fault.
type pruneLog struct {
	log     *slog.Logger
	skipped map[skipReason]int
}

func (l *pruneLog) build(site string, b buildResult) error {
	attrs := []any{"site", site, "build", b.Build, "bytes", b.Bytes, "created_at", b.CreatedAt, "reason", b.Reason}
	switch b.Action {
	case pruneRemoved:
		l.log.Info("build pruned", attrs...)
	case pruneNot:
		l.log.Error("build not pruned", append(attrs, "cause", b.Detail)...)
	}
	return nil
}

func (l *pruneLog) site(s siteResult) error {
	if !s.Skip.isFault() {
		return nil
	}
	if l.skipped[s.Skip]++; l.skipped[s.Skip] <= maxSkippedNames {
		l.log.Warn("site not pruned", "site", s.Site, "reason", s.Skip, "cause", s.Detail)
	}
	return nil
}
