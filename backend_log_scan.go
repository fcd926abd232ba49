package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// maxScanned is the size in bytes of the largest entry that is read from a log. Those
// that are accepted are smaller: 1 MiB, and escapes at most double that.
const maxScanned = 4 << 20

// scanEntries reads a log from r and calls each with its entries, in their order. It
// accepts what parseLog accepts and fails with ErrDamaged where that does, but holds one
// entry at a time in memory. An error of r or of each is returned as it is. each
// may keep the entry.
func scanEntries(r io.Reader, each func(e LogEntry) error) error {
	in := &logReader{r: r, limit: maxScanned, skip: true}
	dec := json.NewDecoder(in)
	// next bounds what is read next, and lets the space before it be skipped: there
	// may be any amount of it.
	next := func() {
		in.skip = onlySpace(dec.Buffered())
		in.limit = dec.InputOffset() + maxScanned
	}
	damaged := func(err error) error {
		if in.err != nil {
			return in.err
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		if err == nil {
			err = errors.New("not a JSON array")
		}
		return damaged(err)
	}
	n := 0
	for next(); dec.More(); next() {
		next() // behind the comma
		var e LogEntry
		if err := dec.Decode(&e); err != nil {
			return damaged(err)
		}
		if err := checkTimestamp(n, e); err != nil {
			return err
		}
		if err := each(e); err != nil {
			return err
		}
		n++
	}
	if _, err := dec.Token(); err != nil { // the ]
		return damaged(err)
	}
	next()
	if _, err := dec.Token(); err != io.EOF {
		if err == nil {
			err = errors.New("trailing data after the array")
		}
		return damaged(err)
	}
	if err := in.end(); err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("%w: it has no entries", ErrDamaged)
	}
	return nil
}

// onlySpace reports whether r yields nothing but the space that stands between
// entries, and commas.
func onlySpace(r io.Reader) bool {
	var b [1]byte
	for {
		if n, _ := r.Read(b[:]); n == 0 {
			return true
		}
		if b[0] != ',' && strings.IndexByte(jsonSpace, b[0]) < 0 {
			return false
		}
	}
}

const jsonSpace = " \t\r\n" // RFC 8259, section 2

// logReader returns what r has as long as it is UTF-8, and up to limit.
type logReader struct {
	r     io.Reader
	read  int64 // bytes returned
	limit int64 // where the entry that is being read must have ended
	skip  bool  // space is dropped, until something else comes
	tail  []byte
	err   error // why the log cannot be read; never io.EOF
}

func (l *logReader) Read(p []byte) (int, error) {
	for {
		if l.err != nil {
			return 0, l.err
		}
		if l.read > l.limit {
			l.err = fmt.Errorf("%w: an entry has more than %d bytes", ErrDamaged, maxScanned)
			return 0, l.err
		}
		n, err := l.r.Read(p[:min(int64(len(p)), l.limit-l.read+1)])
		if !l.valid(p[:n]) {
			err = fmt.Errorf("%w: not UTF-8", ErrDamaged)
		}
		if err != nil && err != io.EOF {
			l.err = err
		}
		if l.skip {
			rest := bytes.TrimLeft(p[:n], jsonSpace)
			l.skip = len(rest) == 0
			n = copy(p, rest)
		}
		l.read += int64(n)
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// valid reports whether b continues valid UTF-8. A character that b cuts is kept in
// tail until the rest of it is there.
func (l *logReader) valid(b []byte) bool {
	for len(l.tail) > 0 && len(b) > 0 {
		l.tail, b = append(l.tail, b[0]), b[1:]
		if utf8.FullRune(l.tail) {
			if !utf8.Valid(l.tail) {
				return false
			}
			l.tail = l.tail[:0]
		}
	}
	for i := 1; i <= min(utf8.UTFMax-1, len(b)); i++ {
		if rest := b[len(b)-i:]; utf8.RuneStart(rest[0]) {
			if !utf8.FullRune(rest) {
				l.tail = append(l.tail, rest...)
				b = b[:len(b)-i]
			}
			break
		}
	}
	return utf8.Valid(b)
}

// end fails if the log ends within a character.
func (l *logReader) end() error {
	if len(l.tail) > 0 {
		return fmt.Errorf("%w: not UTF-8", ErrDamaged)
	}
	return nil
}
