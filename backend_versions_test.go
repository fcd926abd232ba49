package main

import (
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"weak"
)

// Everything that a list shows of a build is in its sum.
func TestSumOfAVersion(t *testing.T) {
	made := func(change func(v *Version)) [16]byte {
		v := &Version{BuildID: "b", SizeBytes: 3, CreatedAt: testTime, LogsError: "", Logs: []LogEntry{
			entry("1", "b", testTime), entry("2", "b", testTime)}}
		change(v)
		return versionSum(v)
	}
	seen := map[[16]byte]string{}
	for _, c := range []struct {
		name   string
		change func(v *Version)
	}{
		{"nothing", func(*Version) {}},
		{"the id", func(v *Version) { v.BuildID = "c" }},
		{"the size", func(v *Version) { v.SizeBytes++ }},
		{"the time", func(v *Version) { v.CreatedAt = v.CreatedAt.Add(1) }},
		{"the error of the log", func(v *Version) { v.LogsError = ErrDamaged.Error() }},
		{"another error of the log", func(v *Version) { v.LogsError = ErrLogFull.Error() }},
		{"the id of an entry", func(v *Version) { v.Logs[1].ID = "3" }},
		{"the action of an entry", func(v *Version) { v.Logs[1].Action = "build" }},
		{"the status of an entry", func(v *Version) { v.Logs[1].Status = "failed" }},
		{"the time of an entry", func(v *Version) { v.Logs[1].Timestamp = testTime.Add(time.Nanosecond) }},
		{"the metadata of an entry", func(v *Version) { v.Logs[1].Metadata = []byte(`{"a":1}`) }},
		{"other metadata of an entry", func(v *Version) { v.Logs[1].Metadata = []byte(`{"a":2}`) }},
		{"the metadata of the other entry", func(v *Version) { v.Logs[0].Metadata = []byte(`{"a":1}`) }},
		{"large metadata of an entry", func(v *Version) { v.Logs[0].Metadata = make([]byte, 5<<10) }},
		{"larger metadata of an entry", func(v *Version) { v.Logs[0].Metadata = make([]byte, 5<<10+1) }},
		{"where one text ends", func(v *Version) { v.Logs[1].Action, v.Logs[1].Status = "deployo", "k" }},
		{"the order of entries", func(v *Version) { v.Logs[0], v.Logs[1] = v.Logs[1], v.Logs[0] }},
		{"one entry fewer", func(v *Version) { v.Logs = v.Logs[:1] }},
		{"no entries", func(v *Version) { v.Logs = nil }},
	} {
		sum := made(c.change)
		if before, ok := seen[sum]; ok {
			t.Errorf("with %s the sum is that with %s", c.name, before)
		}
		seen[sum] = c.name
		if again := made(c.change); again != sum {
			t.Errorf("with %s there are two sums", c.name)
		}
	}
}

// A page begins behind the place of its cursor, also when the build that was
// there has gone, or others have come.
func TestPageBehindABuildThatWent(t *testing.T) {
	at := func(id string, age time.Duration) *Version {
		return &Version{BuildID: id, CreatedAt: testTime.Add(-age)}
	}
	a, b, c, d := at("a", 1), at("b", 2), at("c", 3), at("d", 4)
	for _, test := range []struct {
		name string
		all  []*Version
		want []string
	}{
		{"it is there", []*Version{a, b, c, d}, []string{"c", "d"}},
		{"it went", []*Version{a, c, d}, []string{"c", "d"}},
		{"it and the one before went", []*Version{c, d}, []string{"c", "d"}},
		{"it was replaced", []*Version{at("b", 0), a, c, d}, []string{"c", "d"}},
		{"another came behind it", []*Version{a, b, at("x", 2), c, d}, []string{"x", "c", "d"}},
		{"all behind it went", []*Version{a, b}, nil},
		{"all went", nil, nil},
	} {
		page, err := pageVersions(test.all, VersionQuery{Cursor: formatCursor(b.place())})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, v := range page.Versions {
			got = append(got, v.BuildID)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: the page has %v, want %v", test.name, got, test.want)
		}
	}
}

// Places that move leave their old place and are sorted into the new one; those of
// builds that went are left out. What was there before is not changed.
func TestMovePlaces(t *testing.T) {
	parse := func(s string) (places []place) { // each as its time, 0 to 9, and its build
		for _, f := range strings.Fields(s) {
			places = append(places, place{int64(f[0] - '0'), f[1:]})
		}
		return places
	}
	f := func(name, before, moved, fresh, want string) {
		t.Helper()
		was, set := parse(before), map[string]bool{}
		for _, build := range strings.Fields(moved) {
			set[build] = true
		}
		if got := movePlaces(was, set, parse(fresh)); !slices.Equal(got, parse(want)) {
			t.Errorf("%s: got %v, want %s", name, got, want)
		}
		if !slices.Equal(was, parse(before)) {
			t.Errorf("%s: the places before are %v now", name, was)
		}
	}
	f("nothing", "", "", "", "")
	f("nothing moved", "3a 2b 1c", "", "", "3a 2b 1c")
	f("the first list", "", "", "1c 3a 2b", "3a 2b 1c")
	f("equal times", "", "", "1b 1c 1a 2z", "2z 1a 1b 1c")
	f("to the front", "3a 2b 1c", "c", "4c", "4c 3a 2b")
	f("to the end", "3a 2b 1c", "a", "0a", "2b 1c 0a")
	f("to its own place", "3a 2b 1c", "b", "2b", "3a 2b 1c")
	f("between equal times", "2a 2c", "", "2b", "2a 2b 2c")
	f("it went", "3a 2b 1c", "b", "", "3a 1c")
	f("it came and went", "3a 1c", "b", "", "3a 1c")
	f("all went", "3a 1c", "a c", "", "")
	f("many at once", "9a 7b 5c 3d", "b d", "8x 5b 5d 1y", "9a 8x 5b 5c 5d 1y")
}

// A cursor that is taken names one place, and is how that place is named.
func FuzzCursor(f *testing.F) {
	for _, v := range []*Version{{BuildID: "b", CreatedAt: testTime}, {BuildID: strings.Repeat("x", maxIDLen)}} {
		f.Add(formatCursor(v.place()))
	}
	for _, s := range []string{"", "x", "AAAAAAAAAAA", "AAAAAAAAAABi", "AAAAAAAAAABi=", "AAAAAAAAAAAu", "//////////9h", "__________9h", "000000000000X\n00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseCursor(s)
		if err != nil {
			wantError(t, err, ErrBadCursor)
			return
		}
		if again := formatCursor(p); again != s {
			t.Fatalf("%q names the place of %q", s, again)
		}
		v := &Version{BuildID: p.build, CreatedAt: time.Unix(0, p.at).UTC()}
		page, err := pageVersions([]*Version{v}, VersionQuery{Cursor: s})
		if err != nil || len(page.Versions) != 0 {
			t.Fatalf("the place behind it holds %v, %v", page, err)
		}
	})
}

// While a copy with digests is in use, so is the page: a store can share it with others.
func TestPageWithDigestsKeepsThePage(t *testing.T) {
	page := &VersionPage{Versions: []*Version{{BuildID: "a"}}}
	page.seal()
	before, shared := *page, weak.Make(page)
	c := page.withDigests([]Digest{{1}})
	if page.Tag != before.Tag || page.size != before.size || page.digests != nil {
		t.Errorf("the page was changed to %+v", page)
	}
	runtime.GC()
	if shared.Value() == nil {
		t.Error("the page is gone")
	}
	runtime.KeepAlive(c)
}
