package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	pruneStatus      = "prune" // the name of the state in the store
	maxPruneState    = 1 << 20 // bytes of a state that is read
	maxSkippedNames  = 20      // names of sites that the state has for each reason
	pruneStateFuture = maxSkew // how far in the future a time of a state may be
)

// pruneState is what the store keeps of the latest run over all sites, as JSON.
type pruneState struct {
	Started     time.Time      `json:"started"`
	Finished    time.Time      `json:"finished"`
	Complete    bool           `json:"complete"` // it came to the end
	Error       string         `json:"error,omitempty"`
	LastSuccess time.Time      `json:"last_success,omitzero"` // when the latest complete run ended
	Counts      pruneCounts    `json:"counts"`
	Skipped     []skippedSites `json:"skipped"` // by reason
}

// skippedSites are the sites that a run skipped for a reason.
type skippedSites struct {
	Reason skipReason `json:"reason"`
	Count  int64      `json:"count"`
	Since  time.Time  `json:"since"` // since when each complete run has skipped a site for this reason
	Sites  []string   `json:"sites"` // the first maxSkippedNames
}

// readPruneState returns the state of the latest run, the zero state if the store has none or
// cannot use what it has.
func readPruneState(keeper StatusKeeper) (s pruneState, err error) {
	data, err := keeper.ReadStatus(pruneStatus)
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrDamaged):
		return pruneState{}, nil
	case err != nil:
		return s, fmt.Errorf("cannot read the state of the latest run: %w", err)
	}
	if len(data) > maxPruneState || json.Unmarshal(data, &s) != nil {
		return pruneState{}, nil
	}
	return s, nil
}

// next returns the state after a run that has just ended, with the result of which the caller
// sets the rest. s is the state before.
func (s *pruneState) next(run pruneState) pruneState {
	run.LastSuccess = s.LastSuccess
	if !run.Complete {
		run.Skipped = s.Skipped // it did not see all sites
		return run
	}
	run.LastSuccess = run.Finished
	for i, now := range run.Skipped {
		run.Skipped[i].Since = run.Finished
		if j := slices.IndexFunc(s.Skipped, func(k skippedSites) bool { return k.Reason == now.Reason }); j >= 0 {
			run.Skipped[i].Since = s.Skipped[j].Since
		}
	}
	return run
}

// write keeps the state in the store.
func (s *pruneState) write(keeper StatusKeeper) error {
	data, err := json.MarshalIndent(s, "", " ")
	if err == nil {
		err = keeper.WriteStatus(pruneStatus, append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("cannot keep the state of the run: %w", err)
	}
	return nil
}

// dueAt returns when the next run begins: an interval after the start of the latest, or soon if it
// did not come to the end. A state of the future is of a clock that was wrong.
func (s *pruneState) dueAt(interval time.Duration, now time.Time) time.Time {
	switch {
	case s.Finished.After(now.Add(pruneStateFuture)):
		return now
	case !s.Complete && !s.Finished.IsZero():
		return s.Finished.Add(min(interval, pruneRetry))
	}
	return s.Started.Add(interval)
}

// show sets the metrics of the latest run.
func (s *pruneState) show(m *pruneMetrics) {
	if !s.LastSuccess.IsZero() {
		m.lastSuccess.Set(float64(s.LastSuccess.Unix()))
	}
	for _, reason := range skipReasons {
		var now skippedSites
		if i := slices.IndexFunc(s.Skipped, func(k skippedSites) bool { return k.Reason == reason }); i >= 0 {
			now = s.Skipped[i]
		}
		m.skipped[string(reason)].Set(float64(now.Count))
		since := 0.0
		if now.Count > 0 {
			since = float64(now.Since.Unix())
		}
		m.skippedSince[string(reason)].Set(since)
	}
}
