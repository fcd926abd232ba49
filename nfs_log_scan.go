package main

import (
	"bufio"
	"bytes"
	"errors"
	"hash/maphash"
	"io"
	"math"
	"os"
)

// logPiece is how many bytes of a log are in memory at once during an append. A smaller
// log is read as a whole.
const logPiece = 64 << 10

// oldLog is a log to which entries are to be appended: an open file, or its bytes. It is
// empty if there is no log yet.
type oldLog struct {
	f    *os.File // nil: data is all of it
	data []byte
	size int64

	// The results of scan.
	head int64        // bytes to keep when entries are appended
	sum  maphash.Hash // of these bytes
	ids  knownIDs
}

// close closes the file. A second call does nothing.
func (l *oldLog) close() {
	if l.f != nil {
		l.f.Close()
	}
}

// scan prepares an append to the log, and looks for ids in it. It fails with ErrDamaged.
// verified reports whether a hash is that of a log that this process wrote: such a log is
// parsed only if it may contain one of ids. A full log takes no entries, so it is only
// searched for ids.
func (l *oldLog) scan(ids knownIDs, seed maphash.Seed, verified func(sum uint64) bool) error {
	l.ids = ids
	l.sum.SetSeed(seed)
	full := l.size >= maxLogSize
	if l.size == 0 || full && len(ids) == 0 {
		return nil
	}
	search := newIDSearch(ids)
	all, at := l.sum, int64(0)
	err := l.eachPiece(func(p []byte) {
		end := endOfEntries(p)
		all.Write(p[:end])
		if end > 0 {
			l.head, l.sum = at+int64(end), all
		}
		all.Write(p[end:])
		at += int64(len(p))
		search.add(p)
	})
	if err != nil || !search.mayContain && (full || verified(all.Sum64())) {
		return err
	}
	err = ids.scan(l.reader())
	if full && errors.Is(err, ErrDamaged) {
		return nil // it stays as it is
	}
	return err
}

// grow is encodeTail for this log, after scan.
func (l *oldLog) grow(entries []LogEntry, errs []error) (tail []byte) {
	return l.ids.encodeTail(l.size, entries, errs)
}

// eachPiece calls do with the bytes of the log in order. do must not keep them.
func (l *oldLog) eachPiece(do func(p []byte)) error {
	if l.f == nil {
		do(l.data)
		return nil
	}
	buf := make([]byte, logPiece)
	for at := int64(0); at < l.size; {
		p := buf[:min(int64(len(buf)), l.size-at)]
		if _, err := l.ReadAt(p, at); err != nil {
			if err == io.EOF {
				err = diskError("read", l.f.Name(), io.ErrUnexpectedEOF)
			}
			return err
		}
		do(p)
		at += int64(len(p))
	}
	return nil
}

// reader returns a reader of the log from its beginning.
func (l *oldLog) reader() io.Reader {
	if l.f == nil {
		return bytes.NewReader(l.data)
	}
	return bufio.NewReaderSize(io.NewSectionReader(l, 0, l.size), logPiece)
}

// ReadAt reads from the file, with errors of this package.
func (l *oldLog) ReadAt(p []byte, off int64) (int, error) {
	n, err := l.f.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = diskError("read", l.f.Name(), errors.Unwrap(err))
	}
	return n, err
}

// idSearch looks for ids in a log that it gets in pieces. It overlooks no id: if the log
// has no backslash, a JSON string is exactly what stands between two quotes. If it has
// one, it may contain any id.
type idSearch struct {
	ids               knownIDs
	shortest, longest int    // lengths of an id
	quoted            bool   // the last piece ended within a string
	text              []byte // the beginning of that string, at most longest+1 bytes
	mayContain        bool   // the log may contain an id
}

func newIDSearch(ids knownIDs) *idSearch {
	s := &idSearch{ids: ids, shortest: math.MaxInt}
	for id := range ids {
		s.shortest = min(s.shortest, len(id))
		s.longest = max(s.longest, len(id))
		s.mayContain = s.mayContain || id == "" // the ID of an entry without one
	}
	return s
}

// add searches the next piece.
func (s *idSearch) add(p []byte) {
	if s.mayContain || len(s.ids) == 0 {
		return
	}
	if bytes.IndexByte(p, '\\') >= 0 {
		s.mayContain = true
		return
	}
	for len(p) > 0 {
		before, rest, quote := bytes.Cut(p, []byte{'"'})
		if s.quoted {
			if len(s.text) > 0 || !quote {
				s.text = append(s.text, before[:min(len(before), s.longest+1-len(s.text))]...)
				before = s.text
			}
			if quote && len(before) >= s.shortest && len(before) <= s.longest {
				if _, s.mayContain = s.ids[string(before)]; s.mayContain {
					return
				}
			}
		}
		if quote {
			s.quoted, s.text = !s.quoted, s.text[:0]
		}
		p = rest
	}
}
