package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The time of the store. The order of versions and, later, their retention depend on
// modification times, so all replicas must use one clock: the store's. A new file shows
// its time. If it differs by more than maxClockDiff from the clock of this host, the
// service adds the difference to the times that it sets. The nanoseconds are still those
// of this host.

// clockDiff is a measured difference: the clock of the store minus that of this host.
type clockDiff struct {
	diff time.Duration // 0 within maxClockDiff
	at   time.Time     // when it was measured
}

// value returns the difference, or 0 if none was measured.
func (c *clockDiff) value() time.Duration {
	if c == nil {
		return 0
	}
	return c.diff
}

// coarseClockDiff is maxClockDiff for stores that truncate times to steps of up to two
// seconds.
const coarseClockDiff = 3 * time.Second

// clockDiffKept is how long clockDiffOf uses a measured difference.
const clockDiffKept = time.Minute

// compareClocks measures the difference with the file f, which was created between before
// and after by the clock of this host. It reads the change time: after an exclusive create
// over NFS, the modification time may briefly hold the verifier (RFC 8881, section
// 18.16.3).
func (d *disk) compareClocks(f *os.File, before, after time.Time) {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return
	}
	limit := maxClockDiff
	switch {
	case isCoarse(st.Ctim):
		limit = coarseClockDiff
	case d.clockDiff.Load().value() != 0:
		limit /= 2 // hysteresis: or the times of successive files could jump back and forth
	}
	c := &clockDiff{diff: clockDifference(time.Unix(st.Ctim.Unix()), before, after, limit), at: after}
	d.clockDiff.Store(c)
	d.metrics.clockDiff.Set(c.diff.Seconds())
	if c.diff != 0 {
		d.warnClock.Do(func() {
			d.log.Warn("this host's clock differs from the store's; files and log entries get the store's time",
				"store_ahead_by_ms", c.diff.Milliseconds())
		})
	}
}

// clockDifference returns how far the store's clock is ahead of this host's, given that
// it showed the time store between before and after. It returns 0 within limit.
func clockDifference(store, before, after time.Time, limit time.Duration) time.Duration {
	switch {
	case store.Before(before.Add(-limit)):
		return store.Sub(before)
	case store.After(after.Add(limit)):
		return store.Sub(after)
	}
	return 0
}

// now returns the store's time according to the last measurement.
func (d *disk) now() time.Time { return time.Now().Add(d.clockDiff.Load().value()) }

// clockDiffOf returns the current difference. If the last measurement is too old it
// creates a temporary file in dir to measure again.
func (d *disk) clockDiffOf(dir *os.File) time.Duration {
	if c := d.clockDiff.Load(); !d.ownClock && (c == nil || time.Since(c.at) > clockDiffKept) {
		if t, err := d.createTemp(dir); err == nil {
			t.discard()
		}
	}
	return d.clockDiff.Load().value()
}

// clock returns the time of the store's clock: the time of a new temporary file in dir.
func (d *disk) clock(dir *os.File) (time.Time, error) {
	t, err := d.createTemp(dir)
	if err != nil {
		return time.Time{}, err
	}
	defer t.discard()
	var st unix.Stat_t
	if err := unix.Fstat(int(t.f.Fd()), &st); err != nil {
		return time.Time{}, diskError("stat", t.path, err)
	}
	return time.Unix(st.Ctim.Unix()), nil
}

// isCoarse reports whether a time set by stamp lost its digits below fineTime, because
// the file system's timestamps are coarser (ext4 with inodes of 128 bytes: 1 s; FAT: 2 s).
func isCoarse(t unix.Timespec) bool { return t.Nsec%int64(fineTime) == 0 }

// stamp sets the modification time of the file.
func (t *tempFile) stamp(at time.Time) error {
	ns := at.UnixNano() | 1 // never 0, so that isCoarse can tell
	if step := int64(t.disk.timeStep); step != 0 {
		ns -= ns % step
	}
	ts := unix.NsecToTimespec(ns)
	err := retryEINTR(func() error {
		return unix.UtimesNanoAt(int(t.dir.Fd()), t.name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err != nil {
		return diskError("set the time of", t.path, err)
	}
	return nil
}

// stampAfter makes the modification time of the sealed file later than old, that of the
// build it replaces. With coarse timestamps the two could otherwise be equal, and so could
// the ETags. The caller holds the lock of the build. The time is durable when stampAfter
// returns.
func (t *tempFile) stampAfter(old unix.Timespec) error {
	if t.stat.Mtim.Nano() > old.Nano() {
		return nil
	}
	f, err := openAt(int(t.dir.Fd()), t.name, unix.O_WRONLY|unix.O_NOFOLLOW, t.path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, step := range []time.Duration{fineTime, time.Second, 2 * time.Second} { // FAT has steps of 2 s
		if err := t.stamp(time.Unix(old.Unix()).Add(step)); err != nil {
			return err
		}
		if err := unix.Fstat(int(f.Fd()), &t.stat); err != nil {
			return diskError("stat", t.path, err)
		}
		if t.stat.Mtim.Nano() > old.Nano() {
			return t.sync(f)
		}
	}
	return fmt.Errorf("%w: cannot set a later modification time on %q", ErrUnsupported, t.path)
}

// timeStamp says that the store's clock showed the time store before at.
type timeStamp struct {
	store int64 // nanoseconds
	at    time.Time
}

// storeTime returns a time in nanoseconds that the store's clock has certainly passed. It
// derives the time from the last file that this process wrote, and returns 0 if there is
// none from the last hour.
func (d *disk) storeTime() int64 {
	stamp := d.lastStamp.Load()
	if stamp == nil || time.Since(stamp.at) > time.Hour {
		return 0
	}
	passed := time.Since(stamp.at)
	return stamp.store + int64(passed-passed/1024) // clocks do not drift apart faster than 1/1024
}
