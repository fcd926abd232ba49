package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestVerifyReadsPages: all is listed in pages, so that memory is bounded, and each build is
// read once.
func TestVerifyReadsPages(t *testing.T) {
	s := openFaulty(t, t.TempDir())
	var want []string
	for site := range 5 {
		for build := range site + 1 {
			storeHashed(t, s, fmt.Sprint("s", site), fmt.Sprint("b", build), []byte("x"))
			want = append(want, fmt.Sprintf("s%d/b%d", site, build))
		}
	}
	for _, globs := range [][]string{nil, {"s1", "s4", "t"}, {"s*", "x"}} {
		s.fetched, s.listed = nil, nil
		v := newVerifier(s, verifyOptions{Sites: globs}, 0, &verifyReport{commandOutput: commandOutput{stdout: io.Discard, stderr: io.Discard}})
		v.perPage = 2
		expected := want
		switch len(globs) {
		case 2:
			v.matches = func(site string) bool { return strings.HasPrefix(site, "s") }
		case 3:
			expected = slices.DeleteFunc(slices.Clone(want), func(name string) bool { return name[:2] != "s1" && name[:2] != "s4" })
		}
		if _, err := v.begin(false, time.Now()); err != nil {
			t.Fatal(err)
		}
		err := v.run(t.Context())
		slices.Sort(s.fetched)
		if err != nil || !slices.Equal(s.fetched, expected) || v.state.Counts.OK != int64(len(expected)) {
			t.Errorf("%v: %v, read %v, want %v", globs, err, s.fetched, expected)
		}
		if slices.ContainsFunc(s.listed, func(limit int) bool { return limit != 2 }) || len(s.listed) < 6 {
			t.Errorf("%v: lists of %v", globs, s.listed)
		}
		if v.total.known && v.total.verifyPassed != v.state.Passed {
			t.Errorf("%v: counted %+v, verified %+v", globs, v.total, v.state.Passed)
		}
	}
}

// TestVerifyRate: no byte is read before its time.
func TestVerifyRate(t *testing.T) {
	s := openFaulty(t, t.TempDir())
	const size, perSecond = 400_000, 1_000_000
	for build := range 3 {
		storeHashed(t, s, "a", fmt.Sprint(build), make([]byte, size))
	}
	v := newVerifier(s, verifyOptions{}, perSecond, &verifyReport{commandOutput: commandOutput{stdout: io.Discard, stderr: io.Discard}})
	if _, err := v.begin(false, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := v.run(t.Context()); err != nil || v.state.Counts.Bytes != 3*size {
		t.Fatal(err, v.state.Counts)
	}
	least := time.Duration(3*size-verifyBuffer) * time.Second / perSecond
	if took := v.state.Finished.Sub(v.state.Started); took < least {
		t.Errorf("%d bytes in %s, want at least %s", 3*size, took, least)
	}
}
