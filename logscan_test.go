package main

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

func scanAll(data []byte) (entries []LogEntry, err error) {
	err = scanEntries(iotest.HalfReader(bytes.NewReader(data)), func(e LogEntry) error {
		entries = append(entries, e)
		return nil
	})
	return entries, err
}

// scanEntries takes and refuses what parseLog does.
func FuzzScanEntries(f *testing.F) {
	const entry = `{"id":"1","build_id":"b","action":"a","status":"s","timestamp":"2026-01-02T03:04:05Z","metadata":{"x":"é€😀"}}`
	for _, log := range []string{
		"[" + entry + "]", "[\n" + entry + ",\n" + entry + "\n]\n", " [ " + entry + " ] \t\r\n", "[]", "[", "", "null", "{}", "[null]", "[1]",
		"[" + entry + "]]", "[" + entry + "] x", "[" + entry, "[" + entry + ",]", "[" + entry + entry + "]", "[" + entry + "]\xc3", "[\xff]",
		"[" + strings.Replace(entry, "2026", "1026", 1) + "]", strings.Repeat("[", 20000),
	} {
		f.Add([]byte(log))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		want, wantErr := parseLog(data)
		got, err := scanAll(data)
		if (err == nil) != (wantErr == nil) || errors.Is(err, ErrDamaged) != errors.Is(wantErr, ErrDamaged) {
			t.Fatalf("scanned: %v; parsed: %v", err, wantErr)
		}
		if err == nil && !reflect.DeepEqual(got, want) {
			t.Fatalf("scanned %+v, parsed %+v", got, want)
		}
	})
}

// A log that is one endless entry is not held in memory.
func TestScanBoundsAnEntry(t *testing.T) {
	const size = 32 << 20
	r := &countedReader{left: size}
	err := scanEntries(r, func(LogEntry) error { return nil })
	if !errors.Is(err, ErrDamaged) || r.read > 3*maxScanned {
		t.Errorf("%v, after %d bytes", err, r.read)
	}
}

// countedReader yields the beginning of a log whose first string does not end.
type countedReader struct{ read, left int }

func (c *countedReader) Read(p []byte) (int, error) {
	n := min(len(p), c.left)
	for i := range n {
		p[i] = 'x'
	}
	if c.read == 0 {
		copy(p, `[{"id":"`)
	}
	c.read += n
	c.left -= n
	return n, nil
}

func TestScanHandsErrorsOn(t *testing.T) {
	cause := fmt.Errorf("%w: the disk", ErrUnavailable)
	if err := scanEntries(iotest.ErrReader(cause), nil); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	log := []byte(`[{"id":"1","timestamp":"2026-01-02T03:04:05Z"}]`)
	if err := scanEntries(bytes.NewReader(log), func(LogEntry) error { return cause }); err != cause {
		t.Error(err)
	}
}
