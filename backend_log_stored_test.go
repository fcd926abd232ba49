package main

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// Entries that are kept come out as they went in. Those whose time would be listed
// otherwise are not kept.
func TestKeptEntries(t *testing.T) {
	scanned := func(entries []LogEntry) *storedLog {
		scan := newLogScan()
		for i := range entries {
			e := entries[i]
			scan.add(&e)
		}
		return scan.done(func(int64) bool { return true })
	}
	var entries []LogEntry
	for i := range 300 {
		e := entry(fmt.Sprint("id", i), "b", testTime.Add(time.Duration(i-150)*1e15+time.Duration(i)))
		e.Action, e.Status = string(bytes.Repeat([]byte("a"), i)), ""
		if i%3 > 0 {
			e = withMetadata(e, 10+i%3)
		}
		entries = append(entries, e)
	}
	k := scanned(entries).known(true)
	if k == nil {
		t.Fatal("the entries are not kept")
	}
	for _, metadata := range []bool{false, true} {
		i := 0
		err := k.each(metadata, func(e *LogEntry) error {
			want := entries[i]
			if !metadata {
				want.Metadata = nil
			}
			if e.ID != want.ID || e.Action != want.Action || e.Status != want.Status || e.Timestamp != want.Timestamp || !bytes.Equal(e.Metadata, want.Metadata) {
				t.Errorf("entry %d is %+v, want %+v", i, e, want)
			}
			i++
			return nil
		})
		if err != nil || i != len(entries) {
			t.Errorf("%d entries of %d, %v", i, len(entries), err)
		}
	}
	other := entry("1", "b", testTime)
	other.Timestamp = testTime.In(time.FixedZone("", 7200))
	for _, log := range [][]LogEntry{{other}, {entries[0], other}, {other, entries[0]}} {
		if l := scanned(log); l.known(false) != nil || l.count != len(log) {
			t.Errorf("%v: it is kept, or miscounted: %+v", log, l)
		}
	}
}
