package main

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// spaceKeep is how long an answer of the store about its space is good for.
const spaceKeep = time.Second

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
	size = max(size, 0)
	if err := r.check(size); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claimed += size
	return &claim{r: r, rest: size}, nil
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
	if err := c.r.check(0); errors.Is(err, ErrNoSpace) {
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

// check fails with ErrNoSpace unless size bytes more leave the reserve whole.
func (r *reserve) check(size int64) error {
	if left, fresh := r.left(size); fresh && left >= r.min {
		return nil
	}
	if _, err := r.space.look(0); err != nil {
		return err
	}
	if left, _ := r.left(size); left < r.min {
		return fmt.Errorf("%w: %d bytes would be left, and %d are kept free", ErrNoSpace, left, r.min)
	}
	return nil
}

// left is what size bytes more would leave free, and whether that is known well
// enough.
func (r *reserve) left(size int64) (left int64, fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.free - r.written - r.claimed - size, time.Since(r.at) <= spaceKeep
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
			r.at, r.free = time.Now(), int64(min(space.FreeBytes, 1<<62))
			r.written -= before
		}
		return space, err
	}
}
