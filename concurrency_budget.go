package main

import (
	"slices"
	"sync"
	"time"
)

const (
	// revokeAfter is how long a request waits for a budget before holdings of
	// clients that have much of it are ended.
	revokeAfter = time.Second
	// endTime is how long a holding may take to end. One that takes longer cannot
	// be ended any more, as an upload that has arrived whole.
	endTime = 2 * time.Second

	maxQueue       = 1024         // requests that wait for one budget
	maxClientQueue = maxQueue / 2 // those of one client
)

// budget is an amount that requests take parts of and give back: bytes of memory,
// or places. A request that finds too little left waits for a bounded time. It is
// shared fairly by client:
//
//   - Of those that wait, the request of the client that holds least is next, and
//     of these the one that came first.
//   - While others wait, no client gets more than half, unless it asks for more than
//     that at once and holds nothing.
//   - After a second of waiting the newest holdings of the client that holds most
//     are ended, as far as they can be, as long as it holds more than half, or more
//     than a quarter and more than the waiting one would. Its only one stays.
//
// So a client that is alone may hold all of it, and neither one client nor two or
// three keep others out. It is safe for concurrent use.
type budget struct {
	limit int64
	wait  time.Duration // how long take waits; 0: it does not

	// Called for each request that was refused, and for each holding that was
	// ended; nil: nobody counts.
	onRejected, onRevoked func()

	mu       sync.Mutex
	used     int64
	clients  map[string]*holder // those that hold something, or wait
	keys     map[string]int64   // what is held with each key of caps
	queue    []*waiter          // in the order of their coming
	lookedAt time.Time          // when holdings were last looked at, to end some
}

// holder is a client.
type holder struct {
	n         int64    // what it holds
	revocable []*grant // its holdings that can be ended, the oldest first
	waiting   int      // its requests in the queue
}

// budgetRequest is what a request wants of a budget.
type budgetRequest struct {
	client string // "": shares with nobody, and is never ended
	n      int64  // more than the limit is taken as the limit
	caps   []keyCap
	revoke func() // makes the holder give up soon; must not block; nil: it cannot
}

// keyCap bounds what all holders with a key have together, whoever waits.
type keyCap struct {
	key string
	max int64
}

// grant is a part of a budget. A nil grant is of no budget.
type grant struct {
	b *budget
	budgetRequest
	revokedAt time.Time // when end was called
	done      bool
}

type waiter struct {
	grant *grant
	since time.Time
	ready chan struct{} // closed when it is granted
}

func newBudget(limit int64, wait time.Duration) *budget {
	return &budget{limit: limit, wait: wait, clients: map[string]*holder{}, keys: map[string]int64{}}
}

// acquire takes a part, to be given back with release. It fails with ErrBusy if none
// is free in time, or at once if too many wait already.
func (b *budget) acquire(a budgetRequest) (*grant, error) {
	g, w := b.enqueue(a)
	if w == nil {
		if g == nil {
			return nil, b.reject()
		}
		return g, nil
	}
	patience := time.NewTicker(revokeAfter)
	defer patience.Stop()
	end := time.NewTimer(b.wait)
	defer end.Stop()
	for {
		select {
		case <-w.ready:
			return g, nil
		case <-patience.C:
			b.revokeUnfair(time.Now())
		case <-end.C:
			if !b.giveUp(w) {
				return g, nil // it was granted just now
			}
			return nil, b.reject()
		}
	}
}

// tryAcquire takes a part without waiting: nil if none is free, or somebody waits.
func (b *budget) tryAcquire(a budgetRequest) *grant {
	g := b.newGrant(a)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) > 0 || !b.fits(g) {
		return nil
	}
	b.add(g)
	return g
}

// enqueue grants what can be granted at once, or queues: without a waiter and a grant
// it is refused.
func (b *budget) enqueue(a budgetRequest) (*grant, *waiter) {
	g := b.newGrant(a)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 && b.fits(g) {
		b.add(g)
		return g, nil
	}
	if b.wait <= 0 || len(b.queue) >= maxQueue || a.client != "" && b.client(a.client).waiting >= maxClientQueue {
		b.forget(a.client)
		return nil, nil
	}
	w := &waiter{grant: g, since: time.Now(), ready: make(chan struct{})}
	b.queue = append(b.queue, w)
	b.client(a.client).waiting++
	b.grantWaiting() // those before it may have to let it through
	return g, w
}

func (b *budget) newGrant(a budgetRequest) *grant {
	a.n = min(max(a.n, 1), b.limit)
	return &grant{b: b, budgetRequest: a}
}

func (b *budget) reject() error {
	if b.onRejected != nil {
		b.onRejected()
	}
	return ErrBusy
}

// giveUp takes w out of the queue, and reports whether it was still there.
func (b *budget) giveUp(w *waiter) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.queue, w)
	if i < 0 {
		return false
	}
	b.dequeue(i)
	b.forget(w.grant.client)
	b.grantWaiting() // others may have waited for it
	return true
}

// dequeue takes a waiter out of the queue.
func (b *budget) dequeue(i int) {
	b.client(b.queue[i].grant.client).waiting--
	b.queue = slices.Delete(b.queue, i, i+1)
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
	h := b.client(g.client)
	h.n -= g.n
	if i := slices.Index(h.revocable, g); i >= 0 {
		h.revocable = slices.Delete(h.revocable, i, i+1)
	}
	b.forget(g.client)
	for _, c := range g.caps {
		if b.keys[c.key] -= g.n; b.keys[c.key] == 0 {
			delete(b.keys, c.key)
		}
	}
	b.grantWaiting()
}

// add makes g a holding.
func (b *budget) add(g *grant) {
	b.used += g.n
	h := b.client(g.client)
	h.n += g.n
	if g.revoke != nil {
		h.revocable = append(h.revocable, g)
	}
	for _, c := range g.caps {
		b.keys[c.key] += g.n
	}
}

// client is the holder of that name, which may be new.
func (b *budget) client(name string) *holder {
	h := b.clients[name]
	if h == nil {
		h = &holder{}
		b.clients[name] = h
	}
	return h
}

// forget drops a client that neither holds anything nor waits.
func (b *budget) forget(name string) {
	if h := b.clients[name]; h != nil && h.n == 0 && h.waiting == 0 {
		delete(b.clients, name)
	}
}

// heldBy is what counts against a client.
func (b *budget) heldBy(client string) int64 {
	if h := b.clients[client]; h != nil && client != "" {
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

// fair reports whether g leaves its client with half at the most.
func (b *budget) fair(g *grant) bool {
	held := b.heldBy(g.client)
	return held == 0 || held+g.n <= b.limit/2
}

// grantWaiting grants what can be granted, in the order that budget describes.
func (b *budget) grantWaiting() {
	for {
		i := b.next()
		if i < 0 || b.used+b.queue[i].grant.n > b.limit { // nobody passes the next one, or a large part would never be granted
			return
		}
		w := b.queue[i]
		b.dequeue(i)
		b.add(w.grant)
		close(w.ready)
	}
}

// next is the index of the waiter whose turn it is, -1 if nobody may have more now.
func (b *budget) next() int {
	first, several := "", false // the clients that wait and are below their caps: one, or several
	best, least := -1, int64(0)
	bestFair, any := -1, false
	for i, w := range b.queue {
		if !b.belowCaps(w.grant) {
			continue
		}
		client := w.grant.client
		if !any {
			first, any = client, true
		}
		several = several || client != first
		held := b.heldBy(client)
		if best < 0 {
			best = i
		}
		if b.fair(w.grant) && (bestFair < 0 || held < least) {
			bestFair, least = i, held
		}
	}
	if several {
		return bestFair
	}
	return best // it is alone
}

// revokeUnfair ends holdings for those that have waited for revokeAfter.
func (b *budget) revokeUnfair(now time.Time) {
	b.mu.Lock()
	var ends []*grant
	if now.Sub(b.lookedAt) >= revokeAfter/4 { // one of those that wait does it for all
		b.lookedAt = now
		ends = b.chooseRevocations(now)
	}
	b.mu.Unlock()
	for _, g := range ends {
		g.revoke()
		if b.onRevoked != nil {
			b.onRevoked()
		}
	}
}

// chooseRevocations chooses holdings to end, until there is room for all who waited long
// enough, or nobody has too much.
func (b *budget) chooseRevocations(now time.Time) (ends []*grant) {
	held := make(map[string]int64, len(b.clients)) // when all has ended that was told to
	room := b.limit - b.used
	for name, h := range b.clients {
		held[name] = h.n
		for _, g := range h.revocable {
			if !g.revokedAt.IsZero() && now.Sub(g.revokedAt) < endTime {
				held[name] -= g.n
				room += g.n
			}
		}
	}
	for _, w := range b.queue {
		g := w.grant
		if now.Sub(w.since) < revokeAfter || !b.belowCaps(g) || !b.fair(g) {
			continue
		}
		for room < g.n {
			least := min(b.limit/2, max(b.limit/4, held[g.client]+g.n))
			victim := b.newestOfLargest(held, least, g.client)
			if victim == nil {
				return ends
			}
			victim.revokedAt = now
			ends = append(ends, victim)
			held[victim.client] -= victim.n
			room += victim.n
		}
		room -= g.n
		held[g.client] += g.n
	}
	return ends
}

// newestOfLargest is the newest holding that can be ended of whoever else holds
// most, by held, if that is more than least.
func (b *budget) newestOfLargest(held map[string]int64, least int64, but string) (newest *grant) {
	for name, h := range b.clients {
		if name == "" || name == but || held[name] <= least {
			continue
		}
		for _, g := range slices.Backward(h.revocable) {
			if g.revokedAt.IsZero() && held[name] > g.n { // the only one it has stays
				newest, least = g, held[name]
				break
			}
		}
	}
	return newest
}

// inUse is how much is taken.
func (b *budget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// hasBudgets is a store that has budgets of its own, by the names that the metrics have
// for them.
type hasBudgets interface{ budgets() map[string]*budget }
