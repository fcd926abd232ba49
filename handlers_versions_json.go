package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"time"

	"github.com/goccy/go-json"
)

// The answer that lists versions is written by hand: it is the one that can have
// tens of thousands of objects, and views of them made for a JSON library are
// most of what they cost.

// listPiece is the size in bytes of the pieces in which a list is sent.
const listPiece = 64 << 10

// listWriter collects what it is given and writes it to w in pieces, if there is a w.
type listWriter struct {
	w       io.Writer // nil: all of it stays in b
	b       []byte
	written int64
	err     error // of w
}

// flush writes what was collected, if it is a piece, or if all must go.
func (l *listWriter) flush(all bool) error {
	if l.err != nil || l.w == nil || len(l.b) < listPiece && !all {
		return l.err
	}
	l.write(l.b)
	l.b = l.b[:0]
	return l.err
}

func (l *listWriter) write(b []byte) {
	n, err := l.w.Write(b)
	l.written += int64(n)
	l.err = err
}

// raw adds b, which may be long and is not copied then.
func (l *listWriter) raw(b []byte) error {
	if l.w == nil || len(b) < listPiece {
		l.b = append(l.b, b...)
		return l.flush(false)
	}
	if err := l.flush(true); err != nil {
		return err
	}
	l.write(b)
	return l.err
}

// versions adds a page of versions as it is sent, all of it or the beginning.
func (l *listWriter) versions(siteID string, page *VersionPage, metadata bool) error {
	l.b = appendListHead(l.b, siteID, page)
	for i, v := range page.Versions {
		if i > 0 {
			l.b = append(l.b, ',')
		}
		if err := l.version(page, v, metadata); err != nil {
			return fmt.Errorf("cannot list the log of %q: %w", v.BuildID, err)
		}
	}
	l.b = appendListEnd(l.b, page)
	return l.flush(true)
}

func (l *listWriter) version(page *VersionPage, v *Version, metadata bool) error {
	l.b = appendVersionHead(l.b, v)
	end := int64(math.MaxInt64) // where the entries must end
	if v.Stored != nil {
		end = l.size() + v.Stored.size[kindOfList(metadata)]
	}
	first := true
	err := page.eachEntry(v, metadata, func(e *LogEntry) error {
		if !first {
			l.b = append(l.b, ',')
		}
		first = false
		with := metadata && len(e.Metadata) > 0
		l.b = appendEntry(l.b, e, with)
		if with && l.size()+int64(len(e.Metadata)) < end {
			if err := l.raw(e.Metadata); err != nil {
				return err
			}
			l.b = append(l.b, '}')
		} else if with || l.size() > end {
			// The metadata is not what it was. Not one byte more than was
			// announced may be sent: the rest would be cut off, and look whole.
			return errLogChanged
		}
		return l.flush(false)
	})
	if err == nil && v.Stored != nil && l.size() != end {
		err = errLogChanged
	}
	if err != nil && l.err == nil {
		return page.unread(v, err)
	}
	if err != nil {
		return err
	}
	l.b = appendVersionEnd(l.b, v)
	return l.flush(false)
}

// size is the number of bytes added so far.
func (l *listWriter) size() int64 { return l.written + int64(len(l.b)) }

// sizeOfList is the number of bytes that listWriter.versions adds.
func sizeOfList(siteID string, page *VersionPage, metadata bool) int64 {
	ends := appendListEnd(appendListHead(make([]byte, 0, 512), siteID, page), page)
	return int64(len(ends)) + page.size[kindOfList(metadata)]
}

// sizeOfVersions is the number of bytes of versions in a list, without metadata and
// with it.
func sizeOfVersions(versions []*Version) (size [2]int64) {
	var buf []byte
	size[0] = int64(max(0, len(versions)-1)) // commas
	size[1] = size[0]
	for _, v := range versions {
		buf = appendVersionEnd(appendVersionHead(buf[:0], v), v)
		logs := [2]int64{}
		if v.Stored != nil {
			logs = v.Stored.size
		}
		for i := range v.Logs {
			buf = appendEntry(buf, &v.Logs[i], false)
			if i > 0 {
				buf = append(buf, ',')
			}
			logs[1] += metadataSize(&v.Logs[i])
		}
		size[0] += int64(len(buf)) + logs[0]
		size[1] += int64(len(buf)) + logs[1]
	}
	return size
}

// kindOfList is the index of storedLog.size.
func kindOfList(metadata bool) int {
	if metadata {
		return 1
	}
	return 0
}

func appendListHead(b []byte, siteID string, page *VersionPage) []byte {
	b = appendString(append(b, `{"site_id":`...), siteID)
	b = strconv.AppendInt(append(b, `,"count":`...), int64(len(page.Versions)), 10)
	return append(b, `,"versions":[`...)
}

func appendListEnd(b []byte, page *VersionPage) []byte {
	b = append(b, ']')
	if page.NextCursor != "" {
		b = appendString(append(b, `,"next_cursor":`...), page.NextCursor)
	}
	return append(b, "}\n"...)
}

func appendVersionHead(b []byte, v *Version) []byte {
	b = appendString(append(b, `{"build_id":`...), v.BuildID)
	b = strconv.AppendInt(append(b, `,"size_bytes":`...), v.SizeBytes, 10)
	b = appendTime(append(b, `,"created_at":`...), v.CreatedAt)
	return append(b, `,"logs":[`...)
}

func appendVersionEnd(b []byte, v *Version) []byte {
	b = append(b, ']')
	if v.LogsError != "" {
		b = appendString(append(b, `,"logs_error":`...), v.LogsError)
	}
	return append(b, '}')
}

const metadataName = `,"metadata":`

// appendEntry appends an entry: open, up to the value of its metadata and without
// the brace behind it; else whole, and without metadata.
func appendEntry(b []byte, e *LogEntry, open bool) []byte {
	b = appendString(append(b, `{"action":`...), e.Action)
	b = appendString(append(b, `,"status":`...), e.Status)
	b = appendTime(append(b, `,"timestamp":`...), e.Timestamp)
	if open {
		return append(b, metadataName...)
	}
	return append(b, '}')
}

// metadataSize is the number of bytes that the metadata of an entry adds to it.
func metadataSize(e *LogEntry) int64 {
	if len(e.Metadata) == 0 {
		return 0
	}
	return int64(len(metadataName) + len(e.Metadata))
}

// appendTime appends t as time.Time.MarshalJSON does.
func appendTime(b []byte, t time.Time) []byte {
	return append(t.AppendFormat(append(b, '"'), time.RFC3339Nano), '"')
}

// appendString appends s as JSON. Next to none has anything to escape.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, err := json.MarshalWithOption(s, json.DisableHTMLEscape())
			if err != nil {
				panic(err) // a string can always be marshalled; the panic handler answers 500
			}
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
