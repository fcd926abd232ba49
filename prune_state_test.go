package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestPruneStates: what a run makes of the state before, and when the next one is due.
func TestPruneStates(t *testing.T) {
	at := func(hours int) time.Time { return time.Date(2026, 1, 1, hours, 0, 0, 0, time.UTC) }
	skipped := func(reason skipReason, since time.Time) skippedSites {
		return skippedSites{Reason: reason, Count: 1, Since: since, Sites: []string{"a"}}
	}
	old := pruneState{Started: at(0), Finished: at(1), Complete: true, LastSuccess: at(1), Skipped: []skippedSites{skipped(skipNoLabel, at(1)), skipped(skipPercent, at(1))}}
	next := old.next(pruneState{Started: at(2), Finished: at(3), Complete: true, Skipped: []skippedSites{skipped(skipPercent, time.Time{}), skipped(skipUnreadableLog, time.Time{})}})
	if len(next.Skipped) != 2 || !next.Skipped[0].Since.Equal(at(1)) || !next.Skipped[1].Since.Equal(at(3)) || !next.LastSuccess.Equal(at(3)) {
		t.Errorf("after a complete run: %+v", next)
	}
	failed := next.next(pruneState{Started: at(4), Finished: at(5), Error: "x", Skipped: []skippedSites{}})
	if len(failed.Skipped) != 2 || !failed.LastSuccess.Equal(at(3)) {
		t.Errorf("after one that failed: %+v", failed)
	}
	for _, c := range []struct {
		name  string
		state pruneState
		now   time.Time
		want  time.Time
	}{
		{"none", pruneState{}, at(7), time.Time{}.Add(6 * time.Hour)},
		{"complete", next, at(3), at(8)},
		{"failed", failed, at(5), at(5).Add(pruneRetry)},
		{"of the future", pruneState{Started: at(9), Finished: at(9), Complete: true}, at(7), at(7)},
	} {
		if got := c.state.dueAt(6*time.Hour, c.now); !got.Equal(c.want) {
			t.Errorf("%s: due at %v, want %v", c.name, got, c.want)
		}
	}
	data, err := json.Marshal(next)
	if err != nil || !strings.Contains(string(data), `"skipped":[{"reason":"max_delete_percent","count":1,"since":"2026-01-01T01:00:00Z","sites":["a"]}`) {
		t.Errorf("%v, %s", err, data)
	}
}
