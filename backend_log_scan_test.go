package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
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

// A log that is one endless value is not held in memory, nor is any amount of space.
func TestScanBoundsAnEntry(t *testing.T) {
	const entry = `{"id":"1","timestamp":"2026-01-02T03:04:05Z"}`
	const size = 4 * maxScanned
	for _, c := range []struct {
		begin   string
		fill    byte
		end     string
		good    bool
		maxRead int
	}{
		{`[{"id":"`, 'x', "", false, 3 * maxScanned},
		{`[` + entry + `,{"id":"`, 'x', "", false, 3 * maxScanned},
		{`[` + entry + `,"`, 'x', "", false, 3 * maxScanned},
		{`[` + entry + `]"`, 'x', "", false, 3 * maxScanned},
		{`"`, 'x', "", false, 3 * maxScanned},
		{`{"id":"`, 'x', "", false, 3 * maxScanned},
		{`[{"id":`, ' ', "", false, 3 * maxScanned},
		{``, ' ', "[" + entry + "]", true, size},
		{`[`, ' ', entry + "]", true, size},
		{`[` + entry, ' ', "," + entry + "]", true, size},
		{`[` + entry + `,`, ' ', entry + "]", true, size},
		{`[` + entry + `]`, ' ', "", true, size},
		{`[` + entry + `]`, ' ', "x", false, size},
		{`[` + entry, ' ', entry + "]", false, size},
	} {
		r := &filledReader{begin: c.begin, fill: c.fill, end: c.end, size: size}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := scanEntries(r, func(LogEntry) error { return nil })
		runtime.ReadMemStats(&after)
		if c.good != (err == nil) || err != nil && !errors.Is(err, ErrDamaged) || r.read > c.maxRead {
			t.Errorf("%s and many %q and %s: %v, after %d bytes", c.begin, c.fill, c.end, err, r.read)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 6*maxScanned || c.maxRead == size && got > 1<<20 {
			t.Errorf("%s and many %q and %s: %d bytes were allocated", c.begin, c.fill, c.end, got)
		}
	}
}

// filledReader yields size bytes: begin, end, and fill between them.
type filledReader struct {
	begin, end string
	fill       byte
	size, read int
}

func (f *filledReader) Read(p []byte) (int, error) {
	if f.read == f.size {
		return 0, io.EOF
	}
	n := min(len(p), f.size-f.read)
	for i := range p[:n] {
		switch at := f.read + i; {
		case at < len(f.begin):
			p[i] = f.begin[at]
		case at >= f.size-len(f.end):
			p[i] = f.end[at-(f.size-len(f.end))]
		default:
			p[i] = f.fill
		}
	}
	f.read += n
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
