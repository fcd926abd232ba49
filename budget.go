package main

import (
	"slices"
	"sync"
	"time"
)

// revokeAfter is how long a caller waits for a budget before holdings of a client
// that has more than half of it are ended.
const revokeAfter = time.Second

// budget is an amount that requests take parts of and give back: bytes of memory,
// or places. Who finds too little left waits for a bounded time, first come, first
// served. It is shared fairly: while others wait, a client that holds more than
// half gets no more, and its newest holdings are ended, as far as they can be. A
// client that is alone may hold all of it. It is safe for concurrent use.
type budget struct {
	limit int64
	wait  time.Duration // how long take waits; 0: it does not

	// Called for each request that was refused, and for each holding that was
	// ended; nil: nobody counts.
	refused, ended func()

	mu      sync.Mutex
	used    int64
	clients map[string]*holder // those that hold something
	keys    map[string]int64   // what is held with each key of caps
	queue   []*waiter
}

// holder is what a client holds.
type holder struct {
	n    int64
	ends []*grant // those that can be ended, the oldest first
}

// ask is what a caller wants of a budget.
type ask struct {
	client string // "": shares with nobody, and is never ended
	n      int64  // more than the limit is taken as the limit
	caps   []keyCap
	end    func() // makes the holder give up soon; must not block; nil: it cannot
}

// keyCap bounds what all holders with a key have together, whoever waits.
type keyCap struct {
	key string // must differ from every client
	max int64
}

// grant is a part of a budget. A nil grant is of no budget.
type grant struct {
	b *budget
	ask
	ending bool // end was called
	done   bool
}

type waiter struct {
	grant *grant
	ready chan struct{} // closed when it is granted
}

func newBudget(limit int64, wait time.Duration) *budget {
	return &budget{limit: limit, wait: wait, clients: map[string]*holder{}, keys: map[string]int64{}}
}

// take takes a part, to be given back with release. It fails with ErrBusy if none
// is free in time.
func (b *budget) take(a ask) (*grant, error) {
	a.n = min(max(a.n, 1), b.limit)
	g := &grant{b: b, ask: a}
	b.mu.Lock()
	if len(b.queue) == 0 && b.fits(g) {
		b.add(g)
		b.mu.Unlock()
		return g, nil
	}
	w := &waiter{grant: g, ready: make(chan struct{})}
	b.queue = append(b.queue, w)
	b.serve() // those before it may have to let it through
	b.mu.Unlock()

	patience := time.NewTicker(revokeAfter)
	defer patience.Stop()
	end := time.NewTimer(b.wait)
	defer end.Stop()
	for {
		select {
		case <-w.ready:
			return g, nil
		case <-patience.C:
			b.endUnfair(g)
		case <-end.C:
			return b.giveUp(w)
		}
	}
}

// tryTake takes a part without waiting: nil if none is free, or somebody waits.
func (b *budget) tryTake(a ask) *grant {
	a.n = min(max(a.n, 1), b.limit)
	g := &grant{b: b, ask: a}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) > 0 || !b.fits(g) {
		return nil
	}
	b.add(g)
	return g
}

// giveUp takes w out of the queue, unless it was granted just now.
func (b *budget) giveUp(w *waiter) (*grant, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.queue, w)
	if i < 0 {
		return w.grant, nil
	}
	b.queue = slices.Delete(b.queue, i, i+1)
	b.serve() // those behind it may fit
	if b.refused != nil {
		b.refused()
	}
	return nil, ErrBusy
}

// release gives the part back. A second call does nothing.
func (g *grant) release() {
	if g == nil {
		return
	}
	b := g.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if g.done {
		return
	}
	g.done = true
	b.used -= g.n
	h := b.clients[g.client]
	h.n -= g.n
	if i := slices.Index(h.ends, g); i >= 0 {
		h.ends = slices.Delete(h.ends, i, i+1)
	}
	if h.n == 0 {
		delete(b.clients, g.client)
	}
	for _, c := range g.caps {
		if b.keys[c.key] -= g.n; b.keys[c.key] == 0 {
			delete(b.keys, c.key)
		}
	}
	b.serve()
}

// add makes g a holding.
func (b *budget) add(g *grant) {
	b.used += g.n
	h := b.clients[g.client]
	if h == nil {
		h = &holder{}
		b.clients[g.client] = h
	}
	h.n += g.n
	if g.end != nil {
		h.ends = append(h.ends, g)
	}
	for _, c := range g.caps {
		b.keys[c.key] += g.n
	}
}

// heldBy is what a client holds.
func (b *budget) heldBy(client string) int64 {
	if h := b.clients[client]; h != nil {
		return h.n
	}
	return 0
}

// fits reports whether there is room for g, and below its caps.
func (b *budget) fits(g *grant) bool {
	return b.used+g.n <= b.limit && b.belowCaps(g)
}

func (b *budget) belowCaps(g *grant) bool {
	for _, c := range g.caps {
		if held := b.keys[c.key]; held > 0 && held+g.n > c.max {
			return false
		}
	}
	return true
}

// fair reports whether g leaves its client with half at the most, if others wait.
// Who holds nothing may take what it needs.
func (b *budget) fair(g *grant) bool {
	held := b.heldBy(g.client)
	return g.client == "" || held == 0 || held+g.n <= b.limit/2 || !b.othersWait(g.client)
}

// othersWait reports whether somebody else waits whom this client could let through.
func (b *budget) othersWait(client string) bool {
	return slices.ContainsFunc(b.queue, func(w *waiter) bool {
		return w.grant.client != client && b.belowCaps(w.grant)
	})
}

// serve grants what can be granted, in the order of the queue. Who may not have
// more now, by its caps or in fairness, is passed over; who does not fit is not, or
// large parts would never be granted.
func (b *budget) serve() {
	for i := 0; i < len(b.queue); {
		w := b.queue[i]
		switch {
		case !b.belowCaps(w.grant) || !b.fair(w.grant):
			i++
		case b.used+w.grant.n > b.limit:
			return
		default:
			b.queue = slices.Delete(b.queue, i, i+1)
			b.add(w.grant)
			close(w.ready)
		}
	}
}

// endUnfair ends holdings of clients that have more than half, the newest first,
// until they have half or there is room for g and those before it.
func (b *budget) endUnfair(g *grant) {
	b.mu.Lock()
	var ends []*grant
	room := b.limit - b.used - b.neededUpTo(g)
	for client, h := range b.clients {
		if client == "" || client == g.client {
			continue
		}
		held := h.n
		for _, e := range slices.Backward(h.ends) {
			if room >= 0 || held <= b.limit/2 {
				break
			}
			if !e.ending {
				e.ending = true
				ends = append(ends, e)
			}
			held -= e.n
			room += e.n
		}
	}
	b.mu.Unlock()
	for _, e := range ends {
		e.end()
		if b.ended != nil {
			b.ended()
		}
	}
}

// neededUpTo is what the waiters up to g would take if there were room, 0 if g would
// not.
func (b *budget) neededUpTo(g *grant) (n int64) {
	for _, w := range b.queue {
		takes := b.belowCaps(w.grant) && b.fair(w.grant)
		if takes {
			n += w.grant.n
		}
		if w.grant == g && takes {
			return n
		}
	}
	return 0
}

// inUse is how much is taken.
func (b *budget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// budgeted is a store that has budgets of its own, by the names that the metrics have
// for them.
type budgeted interface{ budgets() map[string]*budget }
