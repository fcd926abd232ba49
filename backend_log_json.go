package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"time"
)

// kindOfList is the index of storedLog.size.
func kindOfList(metadata bool) int {
	if metadata {
		return 1
	}
	return 0
}

const metadataName = `,"metadata":`

// appendVersionHead appends v up to its entries. digest and labels may be nil.
func appendVersionHead(b []byte, v *Version, digest *Digest, labels []string) []byte {
	b = appendString(append(b, `{"build_id":`...), v.BuildID)
	b = strconv.AppendInt(append(b, `,"size_bytes":`...), v.SizeBytes, 10)
	if digest != nil && digest.known() {
		b = appendDigestMember(b, digest)
	}
	b = appendTime(append(b, `,"created_at":`...), v.CreatedAt)
	if labels != nil {
		b = appendLabelsMember(b, labels)
	}
	return append(b, `,"logs":[`...)
}

// appendLabelsMember appends the member with the names of labels, which need no escapes.
func appendLabelsMember(b []byte, names []string) []byte {
	b = append(b, `,"labels":[`...)
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), name...), '"')
	}
	return append(b, ']')
}

// digestMember is the number of bytes that appendDigestMember appends.
const digestMember = len(`,"sha256":""`) + 2*len(Digest{})

func appendDigestMember(b []byte, d *Digest) []byte {
	return append(hex.AppendEncode(append(b, `,"sha256":"`...), d[:]), '"')
}

func appendVersionEnd(b []byte, v *Version) []byte {
	b = append(b, ']')
	if v.LogsError != "" {
		b = appendString(append(b, `,"logs_error":`...), v.LogsError)
	}
	return append(b, '}')
}

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

// sizeOfVersions is the number of bytes of versions in a list, without metadata and
// with it.
func sizeOfVersions(versions []*Version) (size [2]int64) {
	var buf []byte
	size[0] = int64(max(0, len(versions)-1)) // commas
	size[1] = size[0]
	for _, v := range versions {
		buf = appendVersionEnd(appendVersionHead(buf[:0], v, nil, nil), v)
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

// appendTime appends t as time.Time.MarshalJSON does.
func appendTime(b []byte, t time.Time) []byte {
	return append(t.AppendFormat(append(b, '"'), time.RFC3339Nano), '"')
}

// appendString appends s as JSON, without escapes for HTML. Most strings need none at all.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return appendEscaped(b, s)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

func appendEscaped(b []byte, s string) []byte {
	var quoted bytes.Buffer
	enc := json.NewEncoder(&quoted)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(err) // a string can always be encoded; the panic handler answers 500
	}
	return append(b, bytes.TrimSuffix(quoted.Bytes(), []byte("\n"))...)
}
