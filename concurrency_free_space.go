package main

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// spaceKeep is how long an answer of the store about its space is good for.
	spaceKeep = time.Second
	// maxSpace is the most that a store is taken to have, in bytes: sums of a few
	// such numbers fit into an int64.
	maxSpace = 1 << 60
	// keepInodes is how many inodes uploads leave for logs, on a small store a 16th.
	keepInodes = 1024
)

// freeSpace keeps a part of the store free of uploads, bytes and inodes, so that
// logs can be written and builds deleted on a store that is full. What is left is
// what the store reported last, minus what uploads have written since and what they
// have reserved. Before an upload is refused the store is asked again. Other
// replicas that fill the store are noticed within spaceKeep. It is safe for concurrent
// use.
//
// An upload reserves a window ahead of what has arrived, not what it announces: a
// client that announces a lot and sends nothing takes nothing from the others.
// So two uploads may be admitted that do not fit both, and one fails on its way.
type freeSpace struct {
	min   int64
	space *cachedProbe[Space]

	mu       sync.Mutex
	at       time.Time // when the store was asked
	sized    bool      // it knows its size; otherwise no bytes are refused or reserved
	free     int64     // what it reported
	written  int64     // since then
	reserved int64     // the windows of all uploads

	counted bool  // it knows its inodes
	inodes  int64 // free ones, as it reported
	keep    int64 // of them for logs
	made    int64 // files, since then
	uploads int64 // in flight: each may make one
}

// reservation is the part of an upload in the free space. A nil reservation limits
// nothing.
type reservation struct {
	f       *freeSpace
	size    int64 // announced; -1: not known, and no window
	arrived int64 // of it
	rest    int64 // reserved: not written yet, and not preallocated
	ahead   int64 // not written yet where blocks are preallocated: not free any more
	open    bool  // counts among the uploads
}

// admit admits an upload of size bytes, -1 if that is not known, if all of it would fit
// now, or fails with ErrNoSpace. The caller releases the reservation. A nil freeSpace
// admits every upload.
func (f *freeSpace) admit(size int64) (*reservation, error) {
	if f == nil {
		return nil, nil
	}
	r := &reservation{f: f, size: size}
	if err := f.check(r.enter); err != nil {
		return nil, err
	}
	return r, nil
}

// allocated notes that blocks for n bytes that have not arrived yet were preallocated.
// From then on the store does not count them as free: with the reservation they would
// be missing twice.
func (r *reservation) allocated(n int64) {
	if r == nil {
		return
	}
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.ahead += n
	r.use(n)
}

// use turns what was reserved into what is written. The caller holds the lock.
func (r *reservation) use(n int64) {
	r.giveBack(min(n, r.rest))
	r.f.written += n
}

func (r *reservation) giveBack(n int64) {
	r.rest -= n
	r.f.reserved -= n
}

// received notes that n bytes of the upload have arrived, moves its window,
// and fails with ErrNoSpace when the space to be kept free would be used.
func (r *reservation) received(n int64) error {
	if r == nil || n == 0 {
		return nil
	}
	r.f.mu.Lock()
	known := min(n, r.ahead)
	r.ahead -= known
	r.arrived += n
	r.use(n - known)
	r.f.mu.Unlock()
	if err := r.f.check(r.move); errors.Is(err, ErrNoSpace) {
		return err
	}
	return nil // a store that does not answer now may still store what has arrived
}

// release gives back what was reserved and not written.
func (r *reservation) release() {
	if r == nil {
		return
	}
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.giveBack(r.rest)
	if r.open {
		r.open = false
		r.f.uploads--
		r.f.made++
	}
}

// enter reserves the first window if all of the upload fits. The caller holds the
// lock.
func (r *reservation) enter() error {
	f := r.f
	if left := f.inodes - f.made - f.uploads; f.counted && left < f.keep {
		return fmt.Errorf("%w: only %d inodes are free, and %d are reserved for logs", ErrNoSpace, max(left, 0), f.keep)
	}
	if room := f.room(); f.sized && max(r.size, 0) > room {
		return f.full(room, r.size)
	}
	r.open = true
	f.uploads++
	r.extend()
	return nil
}

// move brings the window to where the upload has come. If others have filled the
// store, the window is given up first. The caller holds the lock.
func (r *reservation) move() error {
	f := r.f
	if !f.sized {
		return nil
	}
	if room := f.room(); room < 0 {
		r.giveBack(min(r.rest, -room))
	}
	if room := f.room(); room < 0 {
		return f.full(room, r.size-r.arrived)
	}
	r.extend()
	return nil
}

// extend reserves what the window lacks, as far as there is room for it.
func (r *reservation) extend() {
	if !r.f.sized || r.size < 0 {
		return
	}
	n := max(0, min(windowOf(r.arrived, r.size)-r.ahead-r.rest, r.f.room()))
	r.rest += n
	r.f.reserved += n
}

// room returns what is left beside what is kept free and the windows. No sum
// overflows: what is reserved had room in maxSpace at one time.
func (f *freeSpace) room() int64 { return f.free - f.written - f.reserved - min(f.min, maxSpace) }

func (f *freeSpace) full(room, size int64) error {
	if size <= 0 { // unknown
		return fmt.Errorf("%w: %d bytes are available beyond the %d reserved", ErrNoSpace, max(room, 0), f.min)
	}
	return fmt.Errorf("%w: %d bytes are available beyond the %d reserved, but %d are needed", ErrNoSpace, max(room, 0), f.min, size)
}

// check calls fits under the lock: first with the last answer of the store, if that is
// still good, and if that fails with a new one.
func (f *freeSpace) check(fits func() error) error {
	f.mu.Lock()
	done := time.Since(f.at) <= spaceKeep && fits() == nil
	f.mu.Unlock()
	if done {
		return nil
	}
	if _, err := f.space.get(0); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return fits()
}

// watch returns probe, whose results it notes. What is written while the store answers
// may count twice: better than not at all.
func (f *freeSpace) watch(probe func() (Space, error)) func() (Space, error) {
	return func() (Space, error) {
		f.mu.Lock()
		written, made := f.written, f.made
		f.mu.Unlock()
		space, err := probe()
		if err == nil {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.at, f.sized = time.Now(), space.FreeBytes > 0 || space.TotalBytes > 0
			f.free = int64(min(space.FreeBytes, maxSpace))
			f.written -= written
			f.counted = space.TotalInodes > 0
			f.inodes = int64(min(space.FreeInodes, maxSpace))
			f.keep = int64(min(space.TotalInodes/16, keepInodes))
			f.made -= made
		}
		return space, err
	}
}
