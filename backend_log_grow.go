package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
)

// knownIDs are the ids that an append looks for in a log, each with the content of the
// entry that has it, or the zero contentSum if no entry has it.
type knownIDs map[string]contentSum

// contentSum is a hash of what makes two entries the same.
type contentSum [sha256.Size]byte

// sumOfContent covers the action, the status and the metadata, whose insignificant space
// it ignores.
func sumOfContent(e *LogEntry) contentSum {
	var metadata bytes.Buffer
	if err := json.Compact(&metadata, e.Metadata); err != nil { // none, or invalid metadata, which encodeEntry refuses
		metadata.Reset()
		metadata.Write(e.Metadata)
	}
	h := sha256.New()
	h.Write(appendSized(appendSized(nil, e.Action), e.Status))
	h.Write(metadata.Bytes())
	return contentSum(h.Sum(nil))
}

// idsToFind returns the ids of the entries that may be in the log already.
func idsToFind(entries []LogEntry) knownIDs {
	ids := make(knownIDs, len(entries))
	for i := range entries {
		if !entries[i].Fresh {
			ids[entries[i].ID] = contentSum{}
		}
	}
	return ids
}

// idsOfAll returns the ids of all entries, fresh or not.
func idsOfAll(entries []LogEntry) knownIDs {
	ids := make(knownIDs, len(entries))
	for i := range entries {
		ids[entries[i].ID] = contentSum{}
	}
	return ids
}

// scan parses the log in r and records which of the ids it has. It fails with ErrDamaged.
func (k knownIDs) scan(r io.Reader) error {
	return scanEntries(r, func(e LogEntry) error {
		if sum, wanted := k[e.ID]; wanted && sum == (contentSum{}) { // the first entry with an ID counts
			k[e.ID] = sumOfContent(&e)
		}
		return nil
	})
}

// has reports whether the log has an entry with the ID of e, and returns ErrKeyReused if
// that entry has other content.
func (k knownIDs) has(e *LogEntry) (bool, error) {
	sum := k[e.ID]
	switch {
	case sum == (contentSum{}):
		return false, nil
	case sum != sumOfContent(e):
		return true, ErrKeyReused
	}
	return true, nil
}

// encodeTail returns what must follow the last entry of a log of size bytes to append
// entries. It is empty if there is nothing to append. An entry that is in the log already
// is left out. If an entry cannot be appended, encodeTail puts its error into errs.
func (k knownIDs) encodeTail(size int64, entries []LogEntry, errs []error) (tail []byte) {
	for i := range entries {
		e := &entries[i]
		if exists, err := k.has(e); exists {
			e.Outcome.set(outcomeSame)
			errs[i] = err
			continue
		}
		e.Outcome.set(outcomeCreated)
		if size := size + int64(len(tail)); size >= maxLogSize {
			errs[i] = fmt.Errorf("%w: it has %d bytes", ErrLogFull, size)
			continue
		}
		line, err := encodeEntry(*e)
		if err != nil {
			errs[i] = err
			continue
		}
		if size == 0 && len(tail) == 0 {
			tail = append(tail, "[\n"...)
		} else {
			tail = append(tail, ",\n"...)
		}
		tail = append(tail, line...)
		if !e.Fresh { // no other entry has a fresh ID
			k[e.ID] = sumOfContent(e)
		}
	}
	if len(tail) > 0 {
		tail = append(tail, "\n]\n"...)
	}
	return tail
}

// endOfEntries returns where the last entry in a log, or in a piece of one, ends, or 0 if
// none does. Only space and one "]" can follow the last entry of a log.
func endOfEntries(log []byte) int { return bytes.LastIndexByte(log, '}') + 1 }
