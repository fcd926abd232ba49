package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	keepEntries  = 256 << 10 // bytes of memory that the entries of one log may take to be kept
	keepMetadata = 64 << 10  // and bytes of their metadata
	keptOverhead = 64        // bytes of memory, about, that a kept log takes besides its text
	scanBuffer   = 64 << 10  // bytes of a log that are read at once
)

// errLogChanged: the log no longer begins with the entries that a list has announced.
var errLogChanged = fmt.Errorf("%w: the log changed while it was being listed", ErrUnavailable)

// storedLog is what a list needs to know of a log before it is sent. The entries are
// read again while it is sent, unless they were few enough to be kept in memory. A
// log only grows, so the first count entries stay what they were. It never changes,
// except for kept and stale, and is safe for concurrent use.
type storedLog struct {
	count   int
	sum     [16]byte  // of what a list shows of the entries
	first   time.Time // when the first entry was written
	size    [2]int64  // bytes of the entries in a list: without metadata, and with it
	largest int64     // bytes of the largest entry in a list
	cost    int64     // bytes of memory, about, that keeping the entries takes; 0: they are never kept
	kept    atomic.Pointer[keptLog]
	stale   atomic.Bool // the log could not be read as it was
}

// keptLog is the entries of a log in memory, packed by packEntry: a LogEntry takes
// several times as much.
type keptLog struct {
	packed   string // what packEntry made of each, and then the metadata of all
	texts    int32  // bytes before the metadata
	metadata bool   // there is the metadata
}

// packEntry appends an entry, and of its metadata only the length.
func packEntry(b []byte, e *LogEntry) []byte {
	b = appendSized(b, e.ID)
	b = appendSized(b, e.Action)
	b = appendSized(b, e.Status)
	b = binary.AppendVarint(b, e.Timestamp.UnixNano())
	return binary.AppendUvarint(b, uint64(len(e.Metadata)))
}

// each calls f with the entries in their order. f must not keep their metadata.
func (k *keptLog) each(withMetadata bool, f func(e *LogEntry) error) error {
	texts, metadata := unpacker(k.packed[:k.texts]), k.packed[k.texts:]
	var buf []byte
	for len(texts) > 0 {
		e := LogEntry{ID: texts.text(), Action: texts.text(), Status: texts.text(), Timestamp: time.Unix(0, texts.varint()).UTC()}
		if n := texts.uvarint(); n > 0 && withMetadata {
			buf = append(buf[:0], metadata[:n]...)
			e.Metadata, metadata = buf, metadata[n:]
		}
		if err := f(&e); err != nil {
			return err
		}
	}
	return nil
}

// unpacker reads what packEntry wrote.
type unpacker string

func (u *unpacker) uvarint() (n uint64) {
	for shift := 0; ; shift += 7 {
		c := (*u)[0]
		*u = (*u)[1:]
		n |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return n
		}
	}
}

func (u *unpacker) varint() int64 {
	n := u.uvarint()
	return int64(n>>1) ^ -int64(n&1) // as encoding/binary has it
}

func (u *unpacker) text() string {
	n := u.uvarint()
	s := (*u)[:n]
	*u = (*u)[n:]
	return string(s)
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

// each calls f with the entries in their order, and reads them from the log that
// open opens if they are not kept. f must neither change an entry nor keep its metadata. An
// error of f is returned as it is. It fails with errLogChanged if the log begins with
// other entries now; f was called with some of them then.
func (l *storedLog) each(metadata bool, open func() (*openedLog, error), f func(e *LogEntry) error) error {
	if k := l.known(metadata); k != nil {
		return k.each(metadata, f)
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
	case err == nil:
		return fmt.Errorf("%w: read %d of %d entries", errLogChanged, n, l.count)
	case errors.Is(err, ErrDamaged):
		return fmt.Errorf("%w: read %d of %d entries: %v", errLogChanged, n, l.count, err)
	}
	return err
}

// errAllRead ends the reading of a log.
var errAllRead = errors.New("stopped reading: nothing more is needed")

// logScan makes a storedLog of the entries of a log.
type logScan struct {
	log      *storedLog
	sum      entrySum
	packed   []byte // the entries by packEntry, unless log.cost is 0
	metadata []byte // of them
	left     bool   // the metadata is too large to be kept
	line     []byte
}

func newLogScan() *logScan { return &logScan{log: new(storedLog)} }

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
	s.packed = packEntry(s.packed, e)
	l.cost = keptOverhead + int64(len(s.packed))
	// A time of another zone would be listed otherwise if it was kept. We write none.
	if l.cost > keepEntries || e.Timestamp != time.Unix(0, e.Timestamp.UnixNano()).UTC() {
		l.cost, s.packed, s.metadata = 0, nil, nil
		return
	}
	if s.left = s.left || len(s.metadata)+len(e.Metadata) > keepMetadata; s.left {
		s.metadata = nil
		return
	}
	s.metadata = append(s.metadata, e.Metadata...)
}

// done returns what was made. reserve reports whether there is memory to keep the
// entries.
func (s *logScan) done(reserve func(cost int64) bool) *storedLog {
	l := s.log
	l.sum = s.sum.sum()
	if l.cost > 0 {
		l.cost += int64(len(s.metadata))
	}
	if l.cost > 0 && reserve(l.cost) {
		texts := int32(len(s.packed))
		l.kept.Store(&keptLog{string(append(s.packed, s.metadata...)), texts, !s.left})
	}
	return l
}

// openedLog is a log that is open for reading.
type openedLog struct {
	io.ReadCloser
	size int64
}

// scan calls each with the entries, as scanEntries does. A small log is read at once, which takes
// half the time.
func (l *openedLog) scan(each func(e LogEntry) error) error {
	if l.size > scanBuffer {
		return scanEntries(bufio.NewReaderSize(l, scanBuffer), each)
	}
	buf := smallLogs.Get().(*[scanBuffer]byte)
	defer smallLogs.Put(buf)
	data := buf[:l.size]
	if _, err := io.ReadFull(l, data); err != nil {
		return err
	}
	entries, err := parseLog(data)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := each(e); err != nil {
			return err
		}
	}
	return nil
}

// smallLogs has the buffers into which logs are read at once.
var smallLogs = sync.Pool{New: func() any { return new([scanBuffer]byte) }}

// entrySum is a hash of what a list shows of entries, in their order, the same in
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

// appendSized appends s with its length before it.
func appendSized(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// unreadableLog is why the entries of a log are not listed that exists but cannot be
// read.
const unreadableLog = "the log cannot be read"
