package main

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestFloodLog: a flood causes at most one line in each window, and every event is counted in
// a line. Different kinds do not affect each other.
func TestFloodLog(t *testing.T) {
	out := &lockedBuffer{}
	f := newFloodLog(newLog(&Config{}, out))
	count := func(text string) (lines int, events float64) {
		for line := range strings.Lines(out.String()) {
			var m map[string]any
			if json.Unmarshal([]byte(line), &m) == nil && m["msg"] == text {
				lines++
				events += m["count"].(float64)
			}
		}
		return lines, events
	}
	begin := time.Now()
	const flood = 1000
	for i := range flood {
		f.add("many", slog.LevelWarn, "many", "i", i)
	}
	f.add("one", slog.LevelError, "one")
	if lines, events := count("one"); lines != 1 || events != 1 {
		t.Errorf("the first of a kind has %d lines, %v events", lines, events)
	}
	eventually(t, "all are counted", func() bool { _, events := count("many"); return events == flood })
	most := 2 + int(time.Since(begin)/floodWindow)
	if lines, _ := count("many"); lines > most {
		t.Errorf("%d lines, want %d at most", lines, most)
	}
	eventually(t, "the last one is the example", func() bool { return strings.Contains(out.String(), `"i":999`) })
	eventually(t, "nothing is kept", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.kinds) == 0
	})
	f.add("one", slog.LevelError, "one")
	if lines, _ := count("one"); lines != 2 {
		t.Errorf("the first one after a pause has %d lines", lines-1)
	}
}
