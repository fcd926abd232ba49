package main

import (
	"slices"
	"testing"
	"time"
)

// Each thing that a list tells of a build is in the sum of it.
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
		page, err := pageVersions(test.all, VersionQuery{Cursor: formatCursor(b)})
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
