package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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
// ErrDamaged. A log without entries is damaged too: none is ever written. It
// keeps nothing of data.
func parseLog(data []byte) ([]LogEntry, error) {
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("%w: not UTF-8", ErrDamaged)
	}
	var entries []LogEntry
	if err := json.Unmarshal(data, &entries); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("%w: it holds no entries", ErrDamaged)
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
		return fmt.Errorf("%w: entry %d has no timestamp, or an impossible one", ErrDamaged, i)
	}
	return nil
}

// encodeEntry is e as it stands in a log. The metadata goes in as it is:
// encoding it would round no number, but drop its spaces and escape its "<".
func encodeEntry(e LogEntry) ([]byte, error) {
	metadata := e.Metadata
	e.Metadata = nil
	e.Timestamp = e.Timestamp.UTC()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, fmt.Errorf("cannot encode the entry: %w", err)
	}
	line := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(metadata) > 0 {
		line = append(line[:len(line)-1], `,"metadata":`...)
		line = append(append(line, metadata...), '}')
	}
	if len(line) >= maxScanned {
		return nil, fmt.Errorf("cannot encode the entry: it has %d bytes", len(line))
	}
	// What is added must be read again, or one entry would damage the whole log.
	back, err := parseLog(slices.Concat([]byte("["), line, []byte("]")))
	if err != nil {
		return nil, fmt.Errorf("cannot encode the entry: %v", err)
	}
	if len(back) != 1 || !bytes.Equal(back[0].Metadata, metadata) {
		return nil, errors.New("cannot encode the entry: the metadata is not one JSON value")
	}
	return line, nil
}
