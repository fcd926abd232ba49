package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Times of the store. The order of versions and, later, their retention depend
// on modification times, so all replicas must stamp by one clock: the store's.
// A file that was just made shows it. Where it is more than maxClockDiff from
// the clock of this host, our times are shifted by the difference. The
// nanoseconds stay our own.

// clockDiff is the measured difference of the store's clock from ours.
type clockDiff struct {
	diff time.Duration // 0: within maxClockDiff
	at   time.Time     // when it was measured
}

// value is the difference, 0 if none was measured.
func (c *clockDiff) value() time.Duration {
	if c == nil {
		return 0
	}
	return c.diff
}

// coarseClockDiff is maxClockDiff where the store keeps times in steps of up to
// two seconds, cut off.
const coarseClockDiff = 3 * time.Second

// clockDiffKept is how long a measured difference serves where no file is made
// anyway.
const clockDiffKept = time.Minute

// compareClocks measures the difference by the file f, which was made between
// before and after, by our clock. It reads the change time: an exclusive create over NFS may
// keep its verifier in the modification time for a moment (RFC 8881, section
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
		limit /= 2 // or files made one after the other would be dated to and fro
	}
	c := &clockDiff{diff: clockDifference(time.Unix(st.Ctim.Unix()), before, after, limit), at: after}
	d.clockDiff.Store(c)
	d.metrics.clockDiff.Set(c.diff.Seconds())
	if c.diff != 0 {
		d.warnClock.Do(func() {
			d.log.Warn("the clock of this host differs from the clock of the store; files and log entries get the store's time",
				"store_ahead_by_ms", c.diff.Milliseconds())
		})
	}
}

// clockDifference is how far the store's clock is ahead of ours, if it showed
// the time store at a moment between before and after; 0 within limit.
func clockDifference(store, before, after time.Time, limit time.Duration) time.Duration {
	switch {
	case store.Before(before.Add(-limit)):
		return store.Sub(before)
	case store.After(after.Add(limit)):
		return store.Sub(after)
	}
	return 0
}

// now is the store's time, by the last measurement.
func (d *disk) now() time.Time { return time.Now().Add(d.clockDiff.Load().value()) }

// clockDiffOf is the difference for a time taken just now, measured in dir if
// the last measurement is old.
func (d *disk) clockDiffOf(dir *os.File) time.Duration {
	if c := d.clockDiff.Load(); !d.ownClock && (c == nil || time.Since(c.at) > clockDiffKept) {
		if t, err := d.createTemp(dir); err == nil {
			t.discard()
		}
	}
	return d.clockDiff.Load().value()
}

// clock is what the store's own clock shows, by the time that it gives to a new
// file in dir. The clock of this host may show another.
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

// isCoarse reports whether a time that stamp set came back without the digits
// below fineTime: the file system keeps larger steps (ext4 with inodes of 128
// bytes keeps whole seconds, FAT two of them).
func isCoarse(t unix.Timespec) bool { return t.Nsec%int64(fineTime) == 0 }

// stamp gives the file a modification time, before it is sealed.
func (t *tempFile) stamp(at time.Time) error {
	ts := unix.NsecToTimespec(at.UnixNano() | 1) // the last digit shows whether the file system keeps it
	err := retryEINTR(func() error {
		return unix.UtimesNanoAt(int(t.dir.Fd()), t.name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err != nil {
		return diskError("set the time of", t.path, err)
	}
	return nil
}

// stampAfter gives the sealed file a time later than that of the build it is to
// replace, so that no two builds of one name have one ETag: where times are
// coarse, both may have been sealed within one step. The caller holds the lock
// of the build. It is durable when stampAfter returns.
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
	return fmt.Errorf("%w: cannot give %q a later modification time", ErrUnsupported, t.path)
}

// timeStamp is a time that the store's clock showed before at.
type timeStamp struct {
	store int64 // nanoseconds
	at    time.Time
}

// storeTime is a time in nanoseconds that the store's clock has passed, by what
// it stamped on the last file written here; 0 if nothing was, or long ago.
func (d *disk) storeTime() int64 {
	stamp := d.lastStamp.Load()
	if stamp == nil || time.Since(stamp.at) > time.Hour {
		return 0
	}
	passed := time.Since(stamp.at)
	return stamp.store + int64(passed-passed/1024) // no two clocks drift apart faster than that
}
