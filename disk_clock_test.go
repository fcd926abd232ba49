package main

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestClockDifference(t *testing.T) {
	const none = 0
	before := time.Date(2026, 1, 2, 3, 4, 5, 999_000_000, time.UTC)
	after := before.Add(300 * time.Millisecond)
	f := func(store time.Duration, want time.Duration) {
		t.Helper()
		if got := clockDifference(before.Add(store), before, after, maxClockDiff); got != want {
			t.Errorf("a store at %s: %s, want %s", store, got, want)
		}
	}
	f(0, none)
	f(100*time.Millisecond, none)
	f(-time.Second, none)                     // whole seconds, cut off
	f(300*time.Millisecond+time.Second, none) // the call took that long
	f(-1001*time.Millisecond, -1001*time.Millisecond)
	f(1301*time.Millisecond, 1001*time.Millisecond)
	f(48*time.Hour, 48*time.Hour-300*time.Millisecond)
	f(-48*time.Hour, -48*time.Hour)
}

// A new file measures the difference. It is logged once, and is a metric.
func TestClocksAreCompared(t *testing.T) {
	var log bytes.Buffer
	d := newDisk(slog.New(slog.NewTextHandler(&log, nil)))
	f, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 2 { // this host's clock is two days behind
		at := time.Now().Add(-48 * time.Hour)
		d.compareClocks(f, at, at)
	}
	if got := time.Until(d.now()); got < 47*time.Hour || got > 49*time.Hour {
		t.Errorf("the store's time is %s ahead", got)
	}
	if got := d.metrics.clockDiff.Get(); got < 47*3600 || got > 49*3600 {
		t.Errorf("the metric is %v", got)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, log.String())
	}
	d.compareClocks(f, time.Now(), time.Now()) // it was set right
	if got := time.Until(d.now()).Abs(); got > time.Minute || d.metrics.clockDiff.Get() != 0 {
		t.Errorf("the difference stays: %s", got)
	}
}

// Builds and log entries get the time of the store, whatever the clock of this host
// shows.
func TestStoreTime(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	n.disk.ownClock = true // do not measure: the store's clock is two days ahead of ours
	n.disk.clockDiff.Store(&clockDiff{diff: 48 * time.Hour, at: time.Now()})
	mustStore(t, n, "s", "b", []byte("x"))
	if err := n.WriteLog("s", entry("1", "b", time.Now().UTC())); err != nil {
		t.Fatal(err)
	}
	v := versionOf(t, n, "s", "b")
	for what, at := range map[string]time.Time{"build": v.CreatedAt, "entry": v.Logs[0].Timestamp} {
		if ahead := time.Until(at); ahead < 47*time.Hour || ahead > 49*time.Hour {
			t.Errorf("the %s is %s ahead", what, ahead)
		}
	}
}

// If no file was created for a while, a log entry measures the difference again.
func TestLogEntryMeasuresTheClock(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	n.disk.ownClock = false
	n.disk.clockDiff.Store(&clockDiff{diff: 48 * time.Hour, at: time.Now().Add(-2 * clockDiffKept)})
	if err := n.WriteLog("s", entry("1", "b", time.Now().UTC())); err != nil {
		t.Fatal(err)
	}
	if at := versionOf(t, n, "s", "b").Logs[0].Timestamp; time.Until(at).Abs() > time.Hour {
		t.Errorf("stamped %s", at)
	}
}

// The times of successive files do not jump back and forth near the limit: a difference
// ends only below half of the limit at which it begins.
func TestClockDifferenceIsSteady(t *testing.T) {
	d := newDisk(quiet())
	f, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct{ ahead, want time.Duration }{
		{7 * maxClockDiff / 10, 0},
		{11 * maxClockDiff / 10, 11 * maxClockDiff / 10},
		{7 * maxClockDiff / 10, 7 * maxClockDiff / 10},
		{4 * maxClockDiff / 10, 0},
		{7 * maxClockDiff / 10, 0},
	} {
		at := time.Unix(st.Ctim.Unix()).Add(-c.ahead)
		d.compareClocks(f, at, at)
		if got := d.clockDiff.Load().value(); got != c.want {
			t.Errorf("measurement %d of %s: the difference is %s, want %s", i, c.ahead, got, c.want)
		}
	}
}

// A later time given to a sealed file is made durable too.
func TestStampAfterIsDurable(t *testing.T) {
	d, dir := openTestDir(t)
	temp := sealed(t, d, dir, "new")
	old, syncs, failure := temp.stat.Mtim, 0, error(nil)
	d.fsyncs.fsyncHook = func(*os.File) error { syncs++; return failure }
	for _, want := range []int{1, 1} { // the second time it is later already
		if err := temp.stampAfter(old); err != nil || syncs != want || temp.stat.Mtim.Nano() <= old.Nano() {
			t.Errorf("%d fsyncs, want %d; the time is %d, was %d: %v", syncs, want, temp.stat.Mtim.Nano(), old.Nano(), err)
		}
	}
	failure = unix.EIO
	wantError(t, temp.stampAfter(temp.stat.Mtim), unix.EIO)
	temp.discard()
}
