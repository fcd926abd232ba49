package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// parseETags parses the value of If-Match or If-None-Match (RFC 9110, sections
// 13.1.1 and 13.1.2), several header lines joined by commas. A malformed one, or one
// without a tag, is an error: to ignore it would drop the client's condition.
func parseETags(value string) (*ETagList, error) {
	value = trimOWS(value)
	if value == "*" {
		return &ETagList{Any: true}, nil
	}
	list := &ETagList{}
	for rest := value; ; {
		rest = strings.TrimLeft(rest, " \t,") // empty list elements are allowed
		if rest == "" {
			break
		}
		tag, after, err := cutETag(rest)
		if err != nil {
			return nil, err
		}
		list.Tags = append(list.Tags, tag)
		rest = trimOWS(after)
		if rest != "" && rest[0] != ',' {
			return nil, errors.New("entity tags must be separated by commas")
		}
	}
	if len(list.Tags) == 0 {
		return nil, errors.New("contains no entity tag")
	}
	return list, nil
}

// cutETag cuts one entity tag off the front of s.
func cutETag(s string) (tag, after string, err error) {
	i := 0
	if strings.HasPrefix(s, "W/") {
		i = 2
	}
	if i >= len(s) || s[i] != '"' {
		return "", "", errors.New(`an entity tag must be in double quotes, or the value must be *`)
	}
	for j := i + 1; j < len(s); j++ {
		switch c := s[j]; {
		case c == '"':
			return s[:j+1], s[j+1:], nil
		case c <= ' ' || c == 0x7f:
			return "", "", fmt.Errorf("an entity tag cannot contain the byte 0x%02x", c)
		}
	}
	return "", "", errors.New("an entity tag has no closing quote")
}

func trimOWS(s string) string { return strings.Trim(s, " \t") }

// verdict is the result of the preconditions of a GET or HEAD.
type verdict int

const (
	proceed verdict = iota
	notModified
	failed
)

// evaluateRead evaluates the preconditions of a GET or HEAD of the artifact in the
// order of RFC 9110, section 13.2.2. modifiedSince is If-Modified-Since, zero if there is
// none or it is not a date.
func evaluateRead(cond Precondition, modifiedSince time.Time, info ArtifactInfo) verdict {
	noneMatch := cond.IfNoneMatch
	cond.IfNoneMatch = nil
	if cond.Check(&info) != nil {
		return failed
	}
	if noneMatch != nil {
		if noneMatch.Any || noneMatch.matchWeak(info.ETag) {
			return notModified
		}
		return proceed
	}
	if !modifiedSince.IsZero() && !info.ModTime.Truncate(time.Second).After(modifiedSince) {
		return notModified
	}
	return proceed
}

// byteRange is a part of an artifact.
type byteRange struct{ offset, length int64 }

// parseRange parses a Range header of one byte range for an artifact of size
// bytes (RFC 9110, section 14.1.2). ok is false where the header is to be
// ignored: another unit, several ranges, or no range at all.
func parseRange(value string, size int64) (r byteRange, ok bool, err error) {
	unit, set, found := strings.Cut(trimOWS(value), "=")
	if !found || !strings.EqualFold(unit, "bytes") || strings.Contains(set, ",") {
		return r, false, nil
	}
	first, last, found := strings.Cut(trimOWS(set), "-")
	if !found || !allDigits(first) || !allDigits(last) || first == "" && last == "" {
		return r, false, nil
	}
	if first == "" { // the last n bytes
		n := min(atoiMax(last), size)
		if n == 0 {
			return r, false, errRange
		}
		return byteRange{size - n, n}, true, nil
	}
	from, to := atoiMax(first), size-1
	if last != "" {
		if atoiMax(last) < from {
			return r, false, nil
		}
		to = min(to, atoiMax(last))
	}
	if from >= size {
		return r, false, errRange
	}
	return byteRange{from, to - from + 1}, true, nil
}

func allDigits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}

// atoiMax returns the value of the digits s, or the largest int64 if it is larger.
func atoiMax(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64) // out of range gives the largest
	return n
}

// rangeStillValid evaluates If-Range (RFC 9110, section 13.1.5): an entity tag must
// be strong and equal; a date must equal that of the artifact, and the artifact must be
// older than the granularity of dates, else the date is not a strong validator (section
// 8.8.2.2). date is the value as a date, zero if it is not one.
func rangeStillValid(value string, date time.Time, info ArtifactInfo, now time.Time) bool {
	value = trimOWS(value)
	if value == "" || value == info.ETag {
		return true
	}
	return !date.IsZero() && date.Equal(info.ModTime.Truncate(time.Second)) &&
		now.Sub(info.ModTime) > 2*time.Second
}
