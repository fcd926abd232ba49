package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
)

// The response that lists versions is written without a JSON library: it can have tens of
// thousands of objects, and the values made for a library would be most of its cost.

// listPiece is the size in bytes of the pieces in which a list is sent.
const listPiece = 64 << 10

// listWriter collects bytes and writes them to w in pieces, if there is a w.
type listWriter struct {
	w       io.Writer // nil: all of it stays in b
	b       []byte
	written int64
	err     error // of w
}

// flush writes the collected bytes, if they are a piece or all is set.
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

// raw adds b, which is not copied if it is long.
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

// versions adds a page of versions. After an error it has added the beginning.
func (l *listWriter) versions(siteID string, page *VersionPage, metadata bool) error {
	l.b = appendListHead(l.b, siteID, page)
	for i, v := range page.Versions {
		if i > 0 {
			l.b = append(l.b, ',')
		}
		var digest *Digest
		var labels []string
		if page.digests != nil {
			digest = &page.digests[i]
		}
		if page.labels != nil {
			labels = page.labels[i]
		}
		if err := l.version(page, v, digest, labels, metadata); err != nil {
			return fmt.Errorf("cannot list the log of build %q: %w", v.BuildID, err)
		}
	}
	l.b = appendListEnd(l.b, page)
	return l.flush(true)
}

func (l *listWriter) version(page *VersionPage, v *Version, digest *Digest, labels []string, metadata bool) error {
	l.b = appendVersionHead(l.b, v, digest, labels)
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
			// The metadata has changed. Not one byte more than was announced may be
			// sent: the rest would be cut off, and look whole.
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

// size returns the number of bytes added so far.
func (l *listWriter) size() int64 { return l.written + int64(len(l.b)) }

// sizeOfList returns the number of bytes that listWriter.versions adds.
func sizeOfList(siteID string, page *VersionPage, metadata bool) int64 {
	ends := appendListEnd(appendListHead(make([]byte, 0, 512), siteID, page), page)
	return int64(len(ends)) + page.size[kindOfList(metadata)]
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
