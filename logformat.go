package main

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// The log of a build is a JSON array of LogEntry in the order of appending, in
// every store the same.

// parseLog reads the log of buildID in the order of appending, or fails with
// ErrDamaged. An empty log is damaged too: none is ever written.
func parseLog(data []byte) ([]LogEntry, error) {
	var entries []LogEntry
	if err := json.Unmarshal(data, &entries); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("%w: it holds no entries", ErrDamaged)
	}
	return entries, nil
}

// appendLog returns the log that has entries behind those of old, which is a
// log that parseLog takes, or empty.
func appendLog(old []byte, entries []LogEntry) ([]byte, error) {
	var b bytes.Buffer
	old = bytes.TrimSpace(old)
	b.Write(bytes.TrimSpace(bytes.TrimSuffix(old, []byte("]"))))
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // metadata stays as it was sent
	for i := range entries {
		if b.Len() == 0 {
			b.WriteString("[\n")
		} else {
			b.WriteString(",\n")
		}
		if err := enc.Encode(&entries[i]); err != nil {
			return nil, fmt.Errorf("cannot encode a log entry: %w", err)
		}
		b.Truncate(b.Len() - 1) // the encoder's newline
	}
	b.WriteString("\n]\n")
	return b.Bytes(), nil
}
