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
)

// reserve keeps a part of the store free of uploads, so that logs can be
// written and builds deleted on a store that is full. What the store said last,
// less what uploads under way have written since and have yet to write, is what
// is left; before anybody is refused the store is asked again. Other replicas
// that fill it are noticed within spaceKeep. It is safe for concurrent use.
type reserve struct {
	min   int64
	space *lookup[Space]

	mu      sync.Mutex
	at      time.Time // when the store was asked
	sized   bool      // it knows its size; otherwise nothing is refused nor claimed
	free    int64     // what it said
	written int64     // since then
	claimed int64     // yet to be written by uploads of known size
}

// claim is the part of an upload in a reserve. A nil claim limits nothing.
type claim struct {
	r     *reserve
	rest  int64 // yet to be written, and without a place
	ahead int64 // yet to be written where a place is allocated: not free any more
}

// admit makes room for an upload of size bytes, -1 if that is not known, or
// fails with ErrNoSpace. The claim is to be released.
func (r *reserve) admit(size int64) (*claim, error) {
	if r == nil {
		return nil, nil
	}
	c := &claim{r: r}
	if err := r.check(max(size, 0), c); err != nil {
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
	known := min(n, c.rest)
	c.rest -= known
	c.r.claimed -= known
	c.r.written += n
}

// took is told that n bytes of the upload have been written, and fails with
// ErrNoSpace when the reserve is touched.
func (c *claim) took(n int64) error {
	if c == nil || n == 0 {
		return nil
	}
	c.r.mu.Lock()
	known := min(n, c.ahead)
	c.ahead -= known
	c.use(n - known)
	c.r.mu.Unlock()
	if err := c.r.check(0, c); errors.Is(err, ErrNoSpace) {
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
	c.r.claimed -= c.rest
	c.rest = 0
}

// check claims size bytes more for c, or fails with ErrNoSpace if they would not
// leave the reserve whole.
func (r *reserve) check(size int64, c *claim) error {
	if _, ok := r.claim(size, c, true); ok {
		return nil
	}
	if _, err := r.space.look(0); err != nil {
		return err
	}
	if room, ok := r.claim(size, c, false); !ok {
		return fmt.Errorf("%w: there is room for %d bytes beside the %d that are kept free, not for %d",
			ErrNoSpace, max(room, 0), r.min, size)
	}
	return nil
}

// claim claims size bytes more for c if there is room for them. With fresh, only
// by an answer of the store that is still good.
func (r *reserve) claim(size int64, c *claim, fresh bool) (room int64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if fresh && time.Since(r.at) > spaceKeep {
		return 0, false
	}
	if !r.sized {
		return 0, true
	}
	// No sum overflows: what is claimed had room in maxSpace at one time.
	room = r.free - r.written - r.claimed - min(r.min, maxSpace)
	if size > room {
		return room, false
	}
	r.claimed += size
	c.rest += size
	return room, true
}

// watch takes over every answer of the store. What is written while it answers
// may count twice: better than never.
func (r *reserve) watch(ask func() (Space, error)) func() (Space, error) {
	return func() (Space, error) {
		r.mu.Lock()
		before := r.written
		r.mu.Unlock()
		space, err := ask()
		if err == nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.at, r.sized = time.Now(), space.FreeBytes > 0 || space.TotalBytes > 0
			r.free = int64(min(space.FreeBytes, maxSpace))
			r.written -= before
		}
		return space, err
	}
}
