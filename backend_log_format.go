package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// The log of a build is a JSON array of LogEntry in the order of appending, in
// every store the same, one entry to a line:
//
//	[
//	{"id":"...","build_id":"...","action":"...","status":"...","timestamp":"...","metadata":{...}},
//	{...}
//	]
//
// Any other layout of the same JSON is read too. What is in the log stays as it
// is, byte for byte, when entries are added; so does the metadata of an entry,
// which may span lines.

// parseLog reads a whole log in the order of appending, or fails with
// ErrDamaged. A log without entries is damaged too: the service never writes one. It
// does not retain data.
func parseLog(data []byte) ([]LogEntry, error) {
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("%w: not UTF-8", ErrDamaged)
	}
	var entries []LogEntry
	if err := json.Unmarshal(data, &entries); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("%w: it has no entries", ErrDamaged)
	}
	for i := range entries {
		if err := checkTimestamp(i, entries[i]); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// checkTimestamp fails with ErrDamaged if entry i of a log has no time that fits
// into nanoseconds.
func checkTimestamp(i int, e LogEntry) error {
	if y := e.Timestamp.Year(); y < 1700 || y > 2200 {
		return fmt.Errorf("%w: entry %d has a missing or out-of-range timestamp", ErrDamaged, i)
	}
	return nil
}

// encodeEntry returns e as it is written to a log. The metadata is copied as it is:
// encoding it would drop its spaces and escape its "<".
func encodeEntry(e LogEntry) ([]byte, error) {
	metadata := e.Metadata
	e.Metadata = nil
	e.Timestamp = e.Timestamp.UTC()
	var head bytes.Buffer
	enc := json.NewEncoder(&head)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, fmt.Errorf("cannot encode the entry: %w", err)
	}
	const name = `,"metadata":`
	log := make([]byte, 0, head.Len()+len(name)+len(metadata)+2)
	log = append(append(log, '['), bytes.TrimSuffix(head.Bytes(), []byte("\n"))...)
	if len(metadata) > 0 {
		log = append(log[:len(log)-1], name...)
		log = append(append(log, metadata...), '}')
	}
	log = append(log, ']')
	// What is added must be readable, or one entry would damage the whole log.
	switch err := checkTimestamp(0, e); {
	case err != nil:
		return nil, fmt.Errorf("cannot encode the entry: %v", err)
	case len(log) >= maxScanned:
		return nil, fmt.Errorf("cannot encode the entry: too large (%d bytes)", len(log))
	case len(metadata) > 0 && !json.Valid(metadata), len(bytes.TrimSpace(metadata)) != len(metadata):
		return nil, errors.New("cannot encode the entry: the metadata is not a single JSON value without surrounding space")
	case !utf8.Valid(log) || !json.Valid(log): // json limits the nesting, which the array and the entry add to
		return nil, errors.New("cannot encode the entry: the result is not valid JSON in UTF-8")
	}
	return log[1 : len(log)-1], nil
}
