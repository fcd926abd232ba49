package main

import (
	"strings"
	"testing"
	"time"
)

func TestParseETags(t *testing.T) {
	f := func(value, want string) {
		t.Helper()
		l, err := parseETags(value)
		got := "error"
		switch {
		case err != nil:
		case l.Any:
			got = "any"
		default:
			got = strings.Join(l.Tags, " ")
		}
		if got != want {
			t.Errorf("%q is %s (%v), want %s", value, got, err, want)
		}
	}
	f("", "error")
	f("  ", "error")
	f("*", "any")
	f(" * ", "any")
	f(`"a"`, `"a"`)
	f(`""`, `""`)
	f(`"a","b"`, `"a" "b"`)
	f(`"a" , W/"b"`, `"a" W/"b"`)
	f(`,"a",,"b",`, `"a" "b"`)
	f(`"a,b"`, `"a,b"`)
	f("\"\xff\"", "\"\xff\"")
	f(`a`, "error")
	f(`"a`, "error")
	f(`w/"a"`, "error")
	f(`W/a`, "error")
	f(`W/`, "error")
	f(`"a""b"`, "error")
	f(`"a" "b"`, "error")
	f(`"a b"`, "error")
	f("\"a\x00\"", "error")
	f(`*, "a"`, "error")
	f(`,`, "error")
}

func TestRangeStillValid(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	f := func(value string, date, modified time.Time, want bool) {
		t.Helper()
		if got := rangeStillValid(value, date, ArtifactInfo{ETag: `"x"`, ModTime: modified}, now); got != want {
			t.Errorf("%q, %v: %v", value, date, got)
		}
	}
	old := now.Add(-time.Hour)
	f("", time.Time{}, old, true)
	f(`"x"`, time.Time{}, old, true)
	f(`W/"x"`, time.Time{}, old, false)
	f(`"y"`, time.Time{}, old, false)
	f("d", old.Truncate(time.Second), old, true)
	f("d", old.Truncate(time.Second).Add(time.Second), old, false)
	f("d", now.Truncate(time.Second), now, false) // may change again within the second
}

func TestCheckID(t *testing.T) {
	for _, id := range []string{"a", "0", "v1.2.3", "A_b+c~d=e@f-g", strings.Repeat("a", 128), "a.tar.gz", "a..b"} {
		if err := checkID(id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, id := range []string{"", ".", "..", ".a", "-a", "_a", "a/b", "a b", "a\x00", "ü", "a\n", strings.Repeat("a", 129), `a\b`, "a:b", "a%", "a*"} {
		if checkID(id) == nil {
			t.Errorf("%q was taken", id)
		}
	}
}

// FuzzID: whatever is taken for an id is one path element that needs no
// escaping anywhere.
func FuzzID(f *testing.F) {
	for _, s := range []string{"a", "..", "a/b", "", ".x", "a\x00b", "é", "a@b", strings.Repeat("x", 129)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if checkID(id) != nil {
			return
		}
		if id == "" || len(id) > 128 || id[0] == '.' || id[0] == '-' || strings.ContainsAny(id, "/\\\x00\r\n\"%?#; ") || !isASCII(id) {
			t.Errorf("taken: %q", id)
		}
	})
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r > '~' || r < '!' }) < 0
}

// FuzzRange: whatever a range header says, the part lies within the artifact.
func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-0", "bytes=-5", "bytes=5-", "bytes=1-2,3-4", "bytes=9223372036854775807-", "bytes=--1", "x"} {
		f.Add(s, int64(10))
	}
	f.Add("bytes=0-", int64(0))
	f.Fuzz(func(t *testing.T, value string, size int64) {
		if size < 0 {
			return
		}
		r, ok, err := parseRange(value, size)
		if ok && err == nil && (r.offset < 0 || r.length < 1 || r.offset > size-r.length) {
			t.Errorf("%q of %d is %+v", value, size, r)
		}
		if !ok && err == nil && r != (byteRange{}) {
			t.Errorf("%q is ignored and %+v", value, r)
		}
	})
}

// FuzzConditions: a list that parses is made of whole quoted tags, and parses
// to the same when it is written again.
func FuzzConditions(f *testing.F) {
	for _, s := range []string{"*", `"a"`, `W/"a", "b"`, `"a`, `,,"x"`, `"a,b"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		l, err := parseETags(value)
		if err != nil || l == nil || l.Any {
			return
		}
		if len(l.Tags) == 0 {
			t.Fatalf("%q: no tags", value)
		}
		for _, tag := range l.Tags {
			bare := strings.TrimPrefix(tag, "W/")
			if len(bare) < 2 || bare[0] != '"' || bare[len(bare)-1] != '"' || strings.Contains(bare[1:len(bare)-1], `"`) {
				t.Errorf("%q gave the tag %q", value, tag)
			}
		}
		again, err := parseETags(strings.Join(l.Tags, ", "))
		if err != nil || strings.Join(again.Tags, " ") != strings.Join(l.Tags, " ") {
			t.Errorf("%q gave %q, which gives %v, %v", value, l.Tags, again, err)
		}
		// The conditions of a change and those of a read must agree.
		info := &ArtifactInfo{ETag: `"a"`}
		cond := Precondition{IfNoneMatch: l}
		if (cond.Check(info) != nil) != (evaluateRead(cond, time.Time{}, *info) == notModified) {
			t.Errorf("%q: two verdicts", value)
		}
	})
}

// TestCreateOnlyIsWhatHoldsOfNothingAlone: what is create only may be decided by
// a call that replaces nothing, so it must hold where there is no build, and nowhere else.
func TestCreateOnlyIsWhatHoldsOfNothingAlone(t *testing.T) {
	current := &ArtifactInfo{ETag: `"a"`, ModTime: time.Now()}
	f := func(p Precondition, want bool) {
		t.Helper()
		if got := p.CreateOnly(); got != want {
			t.Errorf("%+v: %v, want %v", p, got, want)
		}
		if want && (p.Check(nil) != nil || p.Check(current) == nil) {
			t.Errorf("%+v does not hold exactly where there is no build", p)
		}
	}
	any, tag := &ETagList{Any: true}, &ETagList{Tags: []string{`"b"`}}
	later := time.Now().Add(time.Hour)
	f(Precondition{}, false)
	f(Precondition{Absent: true}, true)
	f(Precondition{IfNoneMatch: any}, true)
	f(Precondition{IfNoneMatch: tag}, false)
	f(Precondition{IfNoneMatch: tag, Absent: true}, true)
	f(Precondition{IfUnmodifiedSince: later}, false)
	f(Precondition{IfUnmodifiedSince: later, Absent: true}, true)
	f(Precondition{IfUnmodifiedSince: later, IfNoneMatch: any}, true)
	f(Precondition{IfMatch: any, Absent: true}, false)
	f(Precondition{IfMatch: tag, IfNoneMatch: any}, false)
}
