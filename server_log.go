package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	logChunkSize  = 64 << 10    // bytes of one write: as many as a pipe takes
	logBuffered   = 1 << 20     // bytes of lines that wait for the reader of the log
	logReserve    = 256 << 10   // more bytes, which access lines cannot use
	logFlushEvery = time.Second // how long an access line waits for others at most
	logCloseWait  = time.Second // how long the end of the process waits for the last lines
)

// lineKind decides how soon a line is written, and which are dropped first.
type lineKind uint32

const (
	accessLine  lineKind = iota // access lines and DEBUG: written together, dropped first
	otherLine                   // all others: written at once
	droppedLine                 // written by the queue itself: how many were dropped
	lineKinds   = droppedLine
)

// lineCounts are numbers of lines by kind.
type lineCounts [lineKinds]uint64

// logQueue holds the lines of the service log until its one goroutine has written
// them. Only close waits for the writer. The queue is bounded: lines
// without room are dropped and counted, and so are those that could not be written.
// When there is room again the log says how many. Lines keep their order.
type logQueue struct {
	w              io.Writer
	limit, reserve int // bytes
	flush          *time.Timer
	done           chan struct{} // closed when the goroutine has ended
	cut            bool          // the last write ended inside a line; used by the goroutine only

	mu         sync.Mutex
	work       sync.Cond
	queue      []*logChunk // the last one takes more lines
	spare      *logChunk
	used       int  // bytes of the lines in the queue, and of those being written
	due        bool // the last chunk is to be written too
	armed      bool // the timer runs
	full       bool // lines had no room, and there is still too little: access lines are dropped
	closed     bool
	dropped    lineCounts                               // since the start
	unreported lineCounts                               // of them, those that no line has reported
	notice     func(now time.Time, n lineCounts) []byte // makes the line that reports; nil: none
}

// logChunk is the lines of one write.
type logChunk struct {
	bytes  []byte
	lines  []uint32   // of each line its length and kind
	notice lineCounts // what the droppedLines in it report
}

// newLogQueue starts the goroutine that writes to w, one or more whole lines at once.
func newLogQueue(w io.Writer) *logQueue {
	b := &logQueue{w: w, limit: logBuffered, reserve: logReserve, done: make(chan struct{})}
	b.work.L = &b.mu
	b.flush = time.AfterFunc(time.Hour, b.timeout)
	b.flush.Stop()
	go b.write()
	return b
}

// add adds a copy of a line, which ends with a newline, or drops it.
func (b *logQueue) add(kind lineKind, line []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.report()
	if b.closed || !b.push(kind, line) {
		b.full = b.used > 0 // else no write is pending that could make room
		b.drop(kind)
	}
}

// push appends a line to the queue, and returns false if there is no room for it.
func (b *logQueue) push(kind lineKind, line []byte) bool {
	room := b.limit - b.used
	if kind != accessLine {
		room += b.reserve
	} else if b.full {
		room = 0
	}
	if len(line) > room {
		return false
	}
	c := b.last()
	if c == nil || len(c.bytes)+len(line) > cap(c.bytes) {
		c = b.newChunk(len(line))
		b.queue = append(b.queue, c)
		b.work.Signal()
	}
	c.bytes = append(c.bytes, line...)
	c.lines = append(c.lines, uint32(len(line))<<2|uint32(kind))
	b.used += len(line)
	switch {
	case kind == otherLine: // not droppedLine: while all writes fail there is one for each access line
		b.due = true
		b.work.Signal()
	case !b.armed:
		b.armed = true
		b.flush.Reset(logFlushEvery)
	}
	return true
}

func (b *logQueue) last() *logChunk {
	if n := len(b.queue); n > 0 {
		return b.queue[n-1]
	}
	return nil
}

func (b *logQueue) newChunk(size int) *logChunk {
	if c := b.spare; c != nil && size <= cap(c.bytes) {
		b.spare = nil
		return c
	}
	return &logChunk{bytes: make([]byte, 0, max(size, logChunkSize))}
}

func (b *logQueue) timeout() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.armed = false
	if len(b.queue) > 0 {
		b.due = true
		b.work.Signal()
	}
}

func (b *logQueue) drop(kind lineKind) {
	b.dropped[kind]++
	b.unreported[kind]++
}

// report appends a line that says how many were dropped, if there is room.
func (b *logQueue) report() {
	n := b.unreported
	if n == (lineCounts{}) || b.full || b.notice == nil || !b.push(droppedLine, b.notice(time.Now(), n)) {
		return
	}
	c := b.last()
	for kind := range n {
		c.notice[kind] += n[kind]
	}
	b.unreported = lineCounts{}
}

// write is the goroutine that writes.
func (b *logQueue) write() {
	defer close(b.done)
	for c := b.next(); c != nil; c = b.next() {
		b.written(c, b.send(c.bytes))
	}
}

// next waits for a chunk to write. It returns nil when the queue is closed and
// empty.
func (b *logQueue) next() *logChunk {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.queue) == 0 || len(b.queue) == 1 && !b.due {
		if b.closed && len(b.queue) == 0 {
			return nil
		}
		b.work.Wait()
	}
	c := b.queue[0]
	b.queue = slices.Delete(b.queue, 0, 1)
	b.due = b.closed || b.due && len(b.queue) > 0
	return c
}

// send writes p, and returns how many bytes of it were written. After a line that was cut
// it writes a newline first: else the next line would be lost too.
func (b *logQueue) send(p []byte) int {
	if b.cut {
		if n, _ := b.w.Write([]byte{'\n'}); n < 1 {
			return 0
		}
		b.cut = false
	}
	n, _ := b.w.Write(p)
	b.cut = n > 0 && p[n-1] != '\n'
	return n
}

// written records that n bytes of c were written, and the rest could not be.
func (b *logQueue) written(c *logChunk, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= len(c.bytes)
	if b.used <= b.limit-b.limit/16 {
		b.full = false
	}
	if n == len(c.bytes) {
		b.report()
	} else { // reported with the next line: a report now would fail as well, and again
		b.lose(c, n)
	}
	if cap(c.bytes) == logChunkSize {
		*c = logChunk{bytes: c.bytes[:0], lines: c.lines[:0]}
		b.spare = c
	}
}

// lose counts the lines of c that were not written whole.
func (b *logQueue) lose(c *logChunk, written int) {
	end, reported := 0, true
	for _, line := range c.lines {
		end += int(line >> 2)
		kind := lineKind(line & 3)
		switch {
		case end <= written:
		case kind == droppedLine:
			reported = false
		default:
			b.drop(kind)
		}
	}
	if !reported {
		for kind := range c.notice {
			b.unreported[kind] += c.notice[kind]
		}
	}
}

// lost returns how many lines were dropped since the start.
func (b *logQueue) lost() lineCounts {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dropped
}

// close writes what is in the queue, for at most d. Lines that are added later are
// dropped.
func (b *logQueue) close(d time.Duration) {
	b.mu.Lock()
	b.report()
	b.closed, b.due = true, true
	b.work.Signal()
	b.mu.Unlock()
	select {
	case <-b.done:
	case <-time.After(d):
	}
}

// lines adds each Write as a line of one kind.
type lines struct {
	b    *logQueue
	kind lineKind
}

func (l lines) Write(p []byte) (int, error) {
	l.b.add(l.kind, p)
	return len(p), nil
}

// logHandler formats lines. Those of level DEBUG are of the kind of access lines.
type logHandler struct {
	slog.Handler
	debug  slog.Handler
	access *accessLog
	buffer *logQueue // nil: none, as in some tests
}

// newBufferedLog returns a logger that never waits for the reader of the log.
func newBufferedLog(cfg *Config, b *logQueue) *slog.Logger {
	first, other := lines{b, accessLine}, lines{b, otherLine}
	b.mu.Lock()
	b.notice = func(now time.Time, n lineCounts) []byte { return droppedNotice(cfg, now, n) }
	b.mu.Unlock()
	return slog.New(&logHandler{lineHandler(cfg, other), lineHandler(cfg, first), &accessLog{first, cfg}, b})
}

func lineHandler(cfg *Config, w io.Writer) slog.Handler {
	opts := &slog.HandlerOptions{Level: cfg.LogLevel, ReplaceAttr: maskedAttr}
	if cfg.LogFormat == "text" {
		return slog.NewTextHandler(w, opts)
	}
	return slog.NewJSONHandler(w, opts)
}

func droppedNotice(cfg *Config, now time.Time, n lineCounts) []byte {
	var line bytes.Buffer
	r := slog.NewRecord(now, slog.LevelWarn, fmt.Sprintf("%d lines dropped", n[accessLine]+n[otherLine]), 0)
	r.AddAttrs(slog.Uint64("access", n[accessLine]), slog.Uint64("other", n[otherLine]))
	_ = lineHandler(cfg, &line).Handle(context.Background(), r) // a bytes.Buffer takes all
	return line.Bytes()
}

// Handle implements slog.Handler. Clients can cause any number of DEBUG lines.
func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo {
		return h.debug.Handle(ctx, r)
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{h.Handler.WithAttrs(attrs), h.debug.WithAttrs(attrs), h.access, h.buffer}
}

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(name string) slog.Handler {
	return &logHandler{h.Handler.WithGroup(name), h.debug.WithGroup(name), h.access, h.buffer}
}

// millis is a duration in the log: a number of milliseconds, in both formats.
type millis time.Duration

func (m millis) append(b []byte) []byte {
	return strconv.AppendFloat(b, float64(time.Duration(m).Microseconds())/1000, 'f', -1, 64)
}

// MarshalText implements encoding.TextMarshaler.
func (m millis) MarshalText() ([]byte, error) { return m.append(nil), nil }

// MarshalJSON implements json.Marshaler.
func (m millis) MarshalJSON() ([]byte, error) { return m.append(nil), nil }
