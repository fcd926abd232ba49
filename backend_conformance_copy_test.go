package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"
)

// testAppendLog: many entries at once are appended as one after the other would be, and appending
// them again changes nothing.
func testAppendLog(t *testing.T, open func() store) {
	one, two, site := open(), open(), newSite()
	at := time.Date(2021, 2, 3, 4, 5, 6, 789, time.UTC)
	var entries []LogEntry
	for i := range 50 {
		e := entry(fmt.Sprint("e", i), "b", at.Add(time.Duration(-i)*time.Hour))
		e.Copied, e.Metadata = true, json.RawMessage(fmt.Sprintf(`{"n": %d}`, i))
		entries = append(entries, e)
	}
	mustLog(t, one, site, entries[1])
	other := entries[2]
	other.Status = "failed"
	mustLog(t, two, site, other)
	for round := range 2 {
		errs := one.(LogAppender).AppendLog(site, "b", entries)
		for i, err := range errs {
			if want := map[bool]error{i == 2: ErrKeyReused}[true]; !errors.Is(err, want) || len(errs) != len(entries) {
				t.Errorf("round %d, entry %d: %v, want %v", round, i, err, want)
			}
		}
		got := versionOf(t, two, site, "b").Logs
		want := slices.Concat([]LogEntry{entries[1], other, entries[0]}, entries[3:])
		if len(got) != len(want) {
			t.Fatalf("round %d: the log has %d entries, want %d", round, len(got), len(want))
		}
		for i := range want {
			if g := got[i]; g.ID != want[i].ID || !g.Timestamp.Equal(want[i].Timestamp) || g.Status != want[i].Status || !bytes.Equal(g.Metadata, want[i].Metadata) {
				t.Errorf("round %d: entry %d is %+v, want %+v", round, i, g, want[i])
			}
		}
	}
}

// dated is a reader of a build of another time.
type dated struct {
	io.Reader
	at time.Time
}

func (d dated) ModTime() time.Time { return d.at }

// TestDirectoryKeepsTheTimeOfACopy, of the past, with conditions and without. The ETag of a
// replacement with the same time differs.
func TestDirectoryKeepsTheTimeOfACopy(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	n.useDigests()
	at := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	first := mustStoreDated(t, n, at, createOnly)
	if !first.ModTime.Truncate(time.Millisecond).Equal(at) {
		t.Errorf("the time is %v, want %v", first.ModTime, at)
	}
	seen := map[string]bool{first.ETag: true}
	for range 20 {
		info := mustStoreDated(t, n, at, Precondition{})
		if seen[info.ETag] || !info.ModTime.Truncate(time.Millisecond).Equal(at) {
			t.Fatalf("replaced: %+v; the ETag was seen before: %t", info, seen[info.ETag])
		}
		seen[info.ETag] = true
	}
	before := time.Now()
	if info := mustStoreDated(t, n, at.AddDate(100, 0, 0), Precondition{}); info.ModTime.After(time.Now()) || info.ModTime.Before(before.Add(-time.Minute)) {
		t.Errorf("of the future: %v", info.ModTime)
	}
}

func mustStoreDated(t *testing.T, n *nfs, at time.Time, cond Precondition) ArtifactInfo {
	t.Helper()
	info, err := n.StoreArtifactIf("s", "b", dated{bytes.NewReader(body(100, 1)), at}, cond)
	noError(t, err)
	stat, err := n.StatArtifact("s", "b")
	noError(t, err)
	if stat.ETag != info.ETag || !stat.ModTime.Equal(info.ModTime) {
		t.Fatalf("stored %+v, there is %+v", info, stat)
	}
	return info
}

// TestCopiedEntriesKeepTheirTime, whatever the clock of the store says.
func TestCopiedEntriesKeepTheirTime(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	n.disk.ownClock = false
	n.disk.clockDiff.Store(&clockDiff{diff: 48 * time.Hour, at: time.Now()})
	at := time.Date(2021, 2, 3, 4, 5, 6, 789, time.UTC)
	copied := entry("1", "b", at)
	copied.Copied = true
	for _, err := range n.AppendLog("s", "b", []LogEntry{copied, entry("2", "b", at)}) {
		noError(t, err)
	}
	if logs := versionOf(t, n, "s", "b").Logs; !logs[0].Timestamp.Equal(at) || !logs[1].Timestamp.Equal(at.Add(48*time.Hour)) {
		t.Errorf("the entries have %v and %v", logs[0].Timestamp, logs[1].Timestamp)
	}
}
