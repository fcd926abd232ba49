package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"sync/atomic"
	"time"
)

const (
	keepEntries  = 256 << 10 // bytes of memory, about, that the entries of one log may take to be kept
	keepMetadata = 64 << 10  // and bytes of their metadata
	scanBuffer   = 64 << 10  // bytes of a log that are read at once
)

// errLogChanged: what a list has announced of a log is not in the log any more.
var errLogChanged = fmt.Errorf("%w: the log is not what it was a moment ago", ErrUnavailable)

// storedLog is what a list needs to know of a log before it is sent. The entries are
// read again while it is sent, unless they were few enough to be kept in memory. A
// log only grows, so the first count entries stay what they were. It never changes,
// but for kept and stale, and is safe for concurrent use.
type storedLog struct {
	count   int
	sum     [16]byte  // of what a list tells of the entries
	first   time.Time // when the first entry was written
	size    [2]int64  // bytes of the entries in a list: without metadata, and with it
	largest int64     // bytes of the largest entry in a list
	cost    int64     // bytes of memory, about, that keeping the entries takes; 0: they are too large
	kept    atomic.Pointer[keptLog]
	stale   atomic.Bool // the log could not be read as it was
}

// keptLog is the entries of a log.
type keptLog struct {
	entries  []LogEntry // never changed
	metadata bool       // none of their metadata was left out
}

// forget drops the entries from memory. They are read again when they are needed.
func (l *storedLog) forget() {
	if l != nil {
		l.kept.Store(nil)
	}
}

// wanting reports whether the entries would be kept if there were room.
func (l *storedLog) wanting() bool { return l != nil && l.cost > 0 && l.kept.Load() == nil }

// memory is about what the kept entries take.
func (l *storedLog) memory() int64 {
	if l == nil || l.kept.Load() == nil {
		return 0
	}
	return l.cost
}

// known returns the entries if they are kept with all that a list shows.
func (l *storedLog) known(metadata bool) *keptLog {
	if k := l.kept.Load(); k != nil && (k.metadata || !metadata) {
		return k
	}
	return nil
}

// each calls f with the entries, in their order, and reads them from the log that
// open opens if they are not kept. f must not change them. An error of f is returned
// as it is. It fails with errLogChanged if the log begins with other entries now;
// f was called with some of them then.
func (l *storedLog) each(metadata bool, open func() (*openedLog, error), f func(e *LogEntry) error) error {
	if k := l.known(metadata); k != nil {
		for i := range k.entries {
			if err := f(&k.entries[i]); err != nil {
				return err
			}
		}
		return nil
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	var sum entrySum
	var failed error // of f
	n := 0
	err = r.scan(func(e LogEntry) error {
		e.Metadata = listable(e.Metadata)
		sum.add(&e)
		if n++; n == l.count && sum.sum() != l.sum {
			return errLogChanged
		}
		if failed = f(&e); failed != nil {
			return failed
		}
		if n == l.count {
			return errAllRead
		}
		return nil
	})
	switch {
	case err == errAllRead:
		return nil
	case failed != nil:
		return failed
	case err == nil, errors.Is(err, ErrDamaged):
		return fmt.Errorf("%w: it has %d entries of %d: %v", errLogChanged, n, l.count, err)
	}
	return err
}

// errAllRead ends the reading of a log.
var errAllRead = errors.New("all that was wanted is read")

// logScan makes a storedLog of the entries of a log.
type logScan struct {
	buildID  string
	log      *storedLog
	sum      entrySum
	entries  []LogEntry
	metadata int64 // bytes of metadata in entries
	left     bool  // metadata was left out of entries
	line     []byte
}

func newLogScan(buildID string) *logScan { return &logScan{buildID: buildID, log: new(storedLog)} }

// add takes the next entry, of which it keeps what is small. It makes the metadata
// listable.
func (s *logScan) add(e *LogEntry) {
	l := s.log
	e.Metadata = listable(e.Metadata)
	if l.count == 0 {
		l.first = e.Timestamp
	} else { // a comma
		l.size[0]++
		l.size[1]++
	}
	l.count++
	s.sum.add(e)
	s.line = appendEntry(s.line[:0], e, false)
	plain := int64(len(s.line))
	full := plain + metadataSize(e)
	l.size[0] += plain
	l.size[1] += full
	l.largest = max(l.largest, full)
	s.keep(e)
}

func (s *logScan) keep(e *LogEntry) {
	l := s.log
	if l.count > 1 && l.cost == 0 {
		return
	}
	if l.cost += int64(160 + len(e.ID) + len(e.Action) + len(e.Status)); l.cost > keepEntries {
		l.cost, s.entries = 0, nil
		return
	}
	kept := *e
	kept.BuildID = s.buildID
	if s.metadata += int64(len(e.Metadata)); s.metadata > keepMetadata && !s.left {
		s.left = true
		for i := range s.entries {
			s.entries[i].Metadata = nil
		}
	}
	if s.left {
		kept.Metadata = nil
	}
	s.entries = append(s.entries, kept)
}

// done returns what was made. reserve reports whether there is memory to keep the
// entries.
func (s *logScan) done(reserve func(cost int64) bool) *storedLog {
	l := s.log
	l.sum = s.sum.sum()
	if l.cost > 0 && !s.left {
		l.cost += s.metadata
	}
	if l.cost > 0 && reserve(l.cost) {
		l.kept.Store(&keptLog{slices.Clip(s.entries), !s.left})
	}
	return l
}

// openedLog is a log that is open for reading.
type openedLog struct {
	io.ReadCloser
	size int64
}

// scan is scanEntries in reads of a fair size.
func (l *openedLog) scan(each func(e LogEntry) error) error {
	return scanEntries(bufio.NewReaderSize(l, int(min(l.size, scanBuffer))), each)
}

// entrySum is a hash of what a list tells of entries, in their order, the same in
// every process.
type entrySum struct {
	b []byte
	h hash.Hash // nil: all is in b
}

func (s *entrySum) add(e *LogEntry) {
	s.b = appendSized(s.b, e.ID)
	s.b = appendSized(s.b, e.Action)
	s.b = appendSized(s.b, e.Status)
	s.b = binary.AppendVarint(s.b, e.Timestamp.UnixNano())
	s.b = binary.AppendUvarint(s.b, uint64(len(e.Metadata)))
	if len(s.b)+len(e.Metadata) < 4<<10 {
		s.b = append(s.b, e.Metadata...)
		return
	}
	if s.h == nil {
		s.h = sha256.New()
	}
	s.h.Write(s.b)
	s.h.Write(e.Metadata)
	s.b = s.b[:0]
}

func (s *entrySum) sum() [16]byte {
	if s.h == nil {
		sum := sha256.Sum256(s.b)
		return [16]byte(sum[:])
	}
	s.h.Write(s.b)
	s.b = s.b[:0]
	return [16]byte(s.h.Sum(nil))
}

// appendSized appends s so that where it ends cannot be mistaken.
func appendSized(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}
