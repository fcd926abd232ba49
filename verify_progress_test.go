package main

import (
	"testing"
	"time"
)

func TestProgressLine(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	at := func(seconds int, read, passed int64) progressSample {
		return progressSample{start.Add(time.Duration(seconds) * time.Second), read, passed}
	}
	total := func(bytes int64) verifyTotal { return verifyTotal{verifyPassed{100, bytes}, true} }
	for _, c := range []struct {
		name        string
		recent, now progressSample
		total       verifyTotal
		want        string
	}{
		{"not counted yet", at(0, 0, 0), at(10, 50<<20, 60<<20), verifyTotal{}, "7 builds, 60 MiB, 5.0 MiB/s, counting, 3 bad"},
		{"half", at(90, 900<<20, 900<<20), at(100, 1000<<20, 1000<<20), total(2000 << 20), "50% of 2.0 GiB, 10 MiB/s, 1m40s left, 3 bad"},
		{"nothing done", at(0, 0, 0), at(1, 0, 0), total(10), "0% of 10 B, 0 B/s, time left unknown, 3 bad"},
		{"hours", at(0, 0, 0), at(10, 1<<20, 1<<20), total(1 << 30), "0% of 1.0 GiB, 102 KiB/s, 2h50m left, 3 bad"},
		{"days", at(0, 0, 0), at(10, 1<<20, 1<<20), total(1 << 35), "0% of 32 GiB, 102 KiB/s, 3 days left, 3 bad"},
		{"years", at(0, 0, 0), at(10, 10, 10), total(1 << 50), "0% of 1.0 PiB, 1 B/s, over 100 days left, 3 bad"},
		{"more than was counted", at(0, 0, 0), at(10, 50, 50), total(40), "100% of 40 B, 5 B/s, 0s left, 3 bad"},
		{"an empty store", at(0, 0, 0), at(10, 0, 0), total(0), "100% of 0 B, 0 B/s, time left unknown, 3 bad"},
	} {
		v := &verifier{total: c.total}
		v.state.Passed.Builds = 7
		v.state.Counts = verifyCounts{Corrupt: 1, Changed: 2}
		if got := v.progress(at(0, 0, 0), c.recent, c.now); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
