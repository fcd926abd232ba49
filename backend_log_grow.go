package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"os"
)

// logPiece is how many bytes of a log are in memory at once while entries are added
// to it. A smaller log is read whole.
const logPiece = 64 << 10

// oldLog is a log to which entries are to be added: a file, or its bytes. A log
// that is not there yet has none.
type oldLog struct {
	f    *os.File // nil: data is all of it
	data []byte
	size int64

	// What scan finds out.
	head int64        // so many bytes stay when entries follow
	sum  maphash.Hash // of these
	has  knownIDs     // the ids that scan looked for
}

// knownIDs are the ids that are looked for in a log, each with the content of the
// entry that has it; the zero contentSum: none has.
type knownIDs map[string]contentSum

// contentSum is a hash of what makes two entries the same.
type contentSum [sha256.Size]byte

// sumOfContent covers the action, the status and the metadata, less the space between
// the parts of the metadata.
func sumOfContent(e *LogEntry) contentSum {
	var metadata bytes.Buffer
	if err := json.Compact(&metadata, e.Metadata); err != nil { // no metadata, or some that encodeEntry will refuse
		metadata.Reset()
		metadata.Write(e.Metadata)
	}
	h := sha256.New()
	h.Write(appendSized(appendSized(nil, e.Action), e.Status))
	h.Write(metadata.Bytes())
	return contentSum(h.Sum(nil))
}

// found takes note of an entry of the log. The first one that has an ID counts.
func (k knownIDs) found(e *LogEntry) {
	if sum, wanted := k[e.ID]; wanted && sum == (contentSum{}) {
		k[e.ID] = sumOfContent(e)
	}
}

// repeats reports whether the log has the ID of e, and fails with ErrKeyReused if it
// is that of an entry with other content.
func (k knownIDs) repeats(e *LogEntry) (bool, error) {
	sum := k[e.ID]
	switch {
	case sum == (contentSum{}):
		return false, nil
	case sum != sumOfContent(e):
		return true, ErrKeyReused
	}
	return true, nil
}

// close closes the file. A second call does nothing.
func (l *oldLog) close() {
	if l.f != nil {
		l.f.Close()
	}
}

// growLog adds entries to the log old, which is empty if there is none yet: the
// new log is head and tail, head being a part of old. An entry that cannot be
// added has its error put into errs; one that is there already is left out,
// and every ID is looked for. It fails with ErrDamaged. sound tells that parseLog
// is known to take old: then it is parsed only if an ID may be in it.
func growLog(old []byte, entries []LogEntry, errs []error, sound bool) (head, tail []byte, err error) {
	l := &oldLog{data: old, size: int64(len(old))}
	if err := l.scan(idsOfAll(entries), maphash.MakeSeed(), func(uint64) bool { return sound }); err != nil {
		return nil, nil, err
	}
	tail = l.grow(entries, errs)
	return old[:l.head], tail, nil
}

// idsToFind are the ids of the entries that may be in the log already, for scan.
func idsToFind(entries []LogEntry) knownIDs {
	ids := make(knownIDs, len(entries))
	for i := range entries {
		if !entries[i].Fresh {
			ids[entries[i].ID] = contentSum{}
		}
	}
	return ids
}

// idsOfAll are the ids of the entries, fresh or not.
func idsOfAll(entries []LogEntry) knownIDs {
	ids := make(knownIDs, len(entries))
	for i := range entries {
		ids[entries[i].ID] = contentSum{}
	}
	return ids
}

// scan reads the log in order to add to it, and looks for ids. It fails with
// ErrDamaged. known reports whether a hash is that of a log that parseLog takes: then
// it is parsed only if an id may be in it. A log that is full takes nothing, so it is
// only searched.
func (l *oldLog) scan(ids knownIDs, seed maphash.Seed, known func(sum uint64) bool) error {
	l.has = ids
	l.sum.SetSeed(seed)
	full := l.size >= maxLogSize
	if l.size == 0 || full && len(ids) == 0 {
		return nil
	}
	search := newIDSearch(ids)
	all, at := l.sum, int64(0)
	err := l.eachPiece(func(p []byte) {
		// Entries are objects: behind the last one are space and one "]" at most.
		end := bytes.LastIndexByte(p, '}') + 1
		all.Write(p[:end])
		if end > 0 {
			l.head, l.sum = at+int64(end), all
		}
		all.Write(p[end:])
		at += int64(len(p))
		search.add(p)
	})
	if err != nil || !search.may && (full || known(all.Sum64())) {
		return err
	}
	err = scanEntries(l.reader(), func(e LogEntry) error {
		ids.found(&e)
		return nil
	})
	if full && errors.Is(err, ErrDamaged) {
		return nil // nothing is added to it
	}
	return err
}

// grow is what follows the head of the log when entries are added, empty if none
// is. An entry that cannot be added has its error put into errs; one that is
// there already is left out.
func (l *oldLog) grow(entries []LogEntry, errs []error) (tail []byte) {
	for i := range entries {
		e := &entries[i]
		if there, err := l.has.repeats(e); there {
			errs[i] = err
			continue
		}
		if size := l.size + int64(len(tail)); size >= maxLogSize {
			errs[i] = fmt.Errorf("%w: it has %d bytes", ErrLogFull, size)
			continue
		}
		line, err := encodeEntry(*e)
		if err != nil {
			errs[i] = err
			continue
		}
		if l.size == 0 && len(tail) == 0 {
			tail = append(tail, "[\n"...)
		} else {
			tail = append(tail, ",\n"...)
		}
		tail = append(tail, line...)
		if !e.Fresh { // else no other entry has its ID
			l.has[e.ID] = sumOfContent(e)
		}
	}
	if len(tail) > 0 {
		tail = append(tail, "\n]\n"...)
	}
	return tail
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

// reader reads the log from its beginning.
func (l *oldLog) reader() io.Reader {
	if l.f == nil {
		return bytes.NewReader(l.data)
	}
	return bufio.NewReaderSize(io.NewSectionReader(l, 0, l.size), logPiece)
}

// ReadAt is that of the file.
func (l *oldLog) ReadAt(p []byte, off int64) (int, error) {
	n, err := l.f.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = diskError("read", l.f.Name(), errors.Unwrap(err))
	}
	return n, err
}

// idSearch looks for ids in a log that comes in pieces. Where nothing is escaped a
// JSON string is what stands between two quotes, so no id is overlooked. Where
// something is, any id may be there.
type idSearch struct {
	ids               knownIDs
	shortest, longest int    // lengths of an id
	quoted            bool   // the last piece ended within a string
	text              []byte // the beginning of that, one byte longer than the longest id at most
	may               bool   // an id may be in the log
}

func newIDSearch(ids knownIDs) *idSearch {
	s := &idSearch{ids: ids, shortest: math.MaxInt}
	for id := range ids {
		s.shortest = min(s.shortest, len(id))
		s.longest = max(s.longest, len(id))
		s.may = s.may || id == "" // the ID of an entry that has none
	}
	return s
}

// add looks at the next piece.
func (s *idSearch) add(p []byte) {
	if s.may || len(s.ids) == 0 {
		return
	}
	if bytes.IndexByte(p, '\\') >= 0 {
		s.may = true
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
				if _, s.may = s.ids[string(before)]; s.may {
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
