package main

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// floodWindow is how often a floodLog repeats a line at most.
const floodWindow = time.Second

// floodLog logs events that clients can cause in any number. It logs the first event of a
// kind at once, and after that at most one line in each floodWindow, with the number of
// events. It is safe for concurrent use.
type floodLog struct {
	log *slog.Logger

	mu    sync.Mutex
	kinds map[string]*flood // those with a line within the last window
}

// flood is what happened since the latest line of a kind.
type flood struct {
	count int
	level slog.Level
	text  string
	args  []any // of the latest event
}

func newFloodLog(log *slog.Logger) *floodLog { return &floodLog{log: log, kinds: map[string]*flood{}} }

// add logs an event. kind comes from a fixed set, and text and args describe the event.
func (f *floodLog) add(kind string, level slog.Level, text string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := f.kinds[kind]; k != nil {
		k.count++
		k.level, k.text, k.args = level, text, args
		return
	}
	f.kinds[kind] = &flood{}
	f.write(flood{1, level, text, args})
	time.AfterFunc(floodWindow, func() { f.windowEnds(kind) })
}

// windowEnds logs what happened in the window of a kind, and begins the next one if it was
// not empty.
func (f *floodLog) windowEnds(kind string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := f.kinds[kind]
	if k.count == 0 {
		delete(f.kinds, kind)
		return
	}
	f.write(*k)
	*k = flood{}
	time.AfterFunc(floodWindow, func() { f.windowEnds(kind) })
}

func (f *floodLog) write(k flood) {
	f.log.Log(context.Background(), k.level, k.text, append(k.args, "count", k.count)...)
}
