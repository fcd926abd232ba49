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

// reserve keeps a part of the store free of uploads, bytes and inodes, so that
// logs can be written and builds deleted on a store that is full. What the store
// said last, less what uploads under way have written since and what they claim,
// is what is left; before anybody is refused the store is asked again. Other
// replicas that fill it are noticed within spaceKeep. It is safe for concurrent
// use.
//
// An upload claims a window ahead of what has come, not what it announces: a
// client that announces a lot and sends nothing takes nothing from the others.
// So two uploads may be let in that do not fit both, and one fails on its way.
type reserve struct {
	min   int64
	space *cachedProbe[Space]

	mu      sync.Mutex
	at      time.Time // when the store was asked
	sized   bool      // it knows its size; otherwise no bytes are refused nor claimed
	free    int64     // what it said
	written int64     // since then
	claimed int64     // the windows of all uploads

	counted bool  // it knows its inodes
	inodes  int64 // that are free, as it said
	keep    int64 // of them for logs
	made    int64 // files, since then
	uploads int64 // under way: each may make one
}

// claim is the part of an upload in a reserve. A nil claim limits nothing.
type claim struct {
	r     *reserve
	size  int64 // announced, -1: not known, and no window
	sent  int64 // of it
	rest  int64 // claimed: yet to be written, and without a place
	ahead int64 // yet to be written where a place is allocated: not free any more
	open  bool  // counts among the uploads
}

// admit lets an upload of size bytes in, -1 if that is not known, if all of it
// would fit now, or fails with ErrNoSpace. The claim is to be released.
func (r *reserve) admit(size int64) (*claim, error) {
	if r == nil {
		return nil, nil
	}
	c := &claim{r: r, size: size}
	if err := r.check(c.enter); err != nil {
		return nil, err
	}
	return c, nil
}

// placed is told that n bytes of what is yet to come were allocated. The store
// does not count them as free from now on: with the claim they would be missing
// twice.
func (c *claim) placed(n int64) {
	if c == nil {
		return
	}
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.ahead += n
	c.use(n)
}

// use turns what was claimed into what is written. The caller holds the lock.
func (c *claim) use(n int64) {
	c.giveBack(min(n, c.rest))
	c.r.written += n
}

func (c *claim) giveBack(n int64) {
	c.rest -= n
	c.r.claimed -= n
}

// took is told that n bytes of the upload have been written, moves its window,
// and fails with ErrNoSpace when the reserve is touched.
func (c *claim) took(n int64) error {
	if c == nil || n == 0 {
		return nil
	}
	c.r.mu.Lock()
	known := min(n, c.ahead)
	c.ahead -= known
	c.sent += n
	c.use(n - known)
	c.r.mu.Unlock()
	if err := c.r.check(c.move); errors.Is(err, ErrNoSpace) {
		return err
	}
	return nil // a store that does not answer now may yet take what was sent
}

// release gives back what was claimed and not written.
func (c *claim) release() {
	if c == nil {
		return
	}
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.giveBack(c.rest)
	if c.open {
		c.open = false
		c.r.uploads--
		c.r.made++
	}
}

// enter claims the first window if all of the upload fits. The caller holds the
// lock.
func (c *claim) enter() error {
	r := c.r
	if left := r.inodes - r.made - r.uploads; r.counted && left < r.keep {
		return fmt.Errorf("%w: %d inodes are free, and %d are kept for logs", ErrNoSpace, max(left, 0), r.keep)
	}
	if room := r.room(); r.sized && max(c.size, 0) > room {
		return r.full(room, c.size)
	}
	c.open = true
	r.uploads++
	c.extend()
	return nil
}

// move brings the window to where the upload has come. If others have filled the
// store, it is given up first. The caller holds the lock.
func (c *claim) move() error {
	r := c.r
	if !r.sized {
		return nil
	}
	if room := r.room(); room < 0 {
		c.giveBack(min(c.rest, -room))
	}
	if room := r.room(); room < 0 {
		return r.full(room, c.size-c.sent)
	}
	c.extend()
	return nil
}

// extend claims what the window lacks, as far as there is room for it.
func (c *claim) extend() {
	if !c.r.sized || c.size < 0 {
		return
	}
	n := max(0, min(windowOf(c.sent, c.size)-c.ahead-c.rest, c.r.room()))
	c.rest += n
	c.r.claimed += n
}

// room is what is left beside the reserve and the windows. No sum overflows:
// what is claimed had room in maxSpace at one time.
func (r *reserve) room() int64 { return r.free - r.written - r.claimed - min(r.min, maxSpace) }

func (r *reserve) full(room, size int64) error {
	return fmt.Errorf("%w: there is room for %d bytes beside the %d that are kept free, not for %d",
		ErrNoSpace, max(room, 0), r.min, max(size, 0))
}

// check calls fits under the lock: first with the answer of the store that is
// known, if that is still good, and if that fails with a new one.
func (r *reserve) check(fits func() error) error {
	r.mu.Lock()
	done := time.Since(r.at) <= spaceKeep && fits() == nil
	r.mu.Unlock()
	if done {
		return nil
	}
	if _, err := r.space.get(0); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return fits()
}

// watch takes over every answer of the store. What is written while it answers
// may count twice: better than never.
func (r *reserve) watch(ask func() (Space, error)) func() (Space, error) {
	return func() (Space, error) {
		r.mu.Lock()
		written, made := r.written, r.made
		r.mu.Unlock()
		space, err := ask()
		if err == nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.at, r.sized = time.Now(), space.FreeBytes > 0 || space.TotalBytes > 0
			r.free = int64(min(space.FreeBytes, maxSpace))
			r.written -= written
			r.counted = space.TotalInodes > 0
			r.inodes = int64(min(space.FreeInodes, maxSpace))
			r.keep = int64(min(space.TotalInodes/16, keepInodes))
			r.made -= made
		}
		return space, err
	}
}
