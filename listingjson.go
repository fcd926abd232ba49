package main

import (
	"strconv"
	"time"

	"github.com/goccy/go-json"
)

// The answer that lists versions is written by hand: it is the one that can have
// tens of thousands of objects, and views of them made for a JSON library are
// most of what they cost.

// appendVersions appends a page of versions as it is sent.
func appendVersions(b []byte, siteID string, page *VersionPage, metadata bool) []byte {
	b = appendString(append(b, `{"site_id":`...), siteID)
	b = strconv.AppendInt(append(b, `,"count":`...), int64(len(page.Versions)), 10)
	b = append(b, `,"versions":[`...)
	for i, v := range page.Versions {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendVersion(b, v, metadata)
	}
	b = append(b, ']')
	if page.NextCursor != "" {
		b = appendString(append(b, `,"next_cursor":`...), page.NextCursor)
	}
	return append(b, "}\n"...)
}

func appendVersion(b []byte, v *Version, metadata bool) []byte {
	b = appendString(append(b, `{"build_id":`...), v.BuildID)
	b = strconv.AppendInt(append(b, `,"size_bytes":`...), v.SizeBytes, 10)
	b = appendTime(append(b, `,"created_at":`...), v.CreatedAt)
	b = append(b, `,"logs":[`...)
	for i := range v.Logs {
		e := &v.Logs[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(append(b, `{"action":`...), e.Action)
		b = appendString(append(b, `,"status":`...), e.Status)
		b = appendTime(append(b, `,"timestamp":`...), e.Timestamp)
		if metadata && len(e.Metadata) > 0 {
			b = append(append(b, `,"metadata":`...), e.Metadata...)
		}
		b = append(b, '}')
	}
	b = append(b, ']')
	if v.LogsError != "" {
		b = appendString(append(b, `,"logs_error":`...), v.LogsError)
	}
	return append(b, '}')
}

// sizeOfVersions is about what appendVersions appends, metadata apart.
func sizeOfVersions(page *VersionPage) int {
	n := 256
	for _, v := range page.Versions {
		n += 112 + len(v.BuildID) + len(v.LogsError)
		for i := range v.Logs {
			n += 80 + len(v.Logs[i].Action) + len(v.Logs[i].Status)
		}
	}
	return n
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
