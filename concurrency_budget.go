package main

import (
	"slices"
	"sync"
	"time"
)

const (
	// revokeAfter is how long a request waits before the budget revokes grants of the
	// clients that hold the most.
	revokeAfter = time.Second
	// revokeTime is how long the release of a revoked grant may take. Some grants do not
	// react to revoke, for example that of an upload that has arrived completely. After
	// revokeTime they count as held again.
	revokeTime = 2 * time.Second

	maxQueue       = 1024         // requests that wait for a budget
	maxClientQueue = maxQueue / 2 // waiting requests of one client
)

// budget is a weighted semaphore: requests acquire part of a limit and release it, in bytes
// of memory or in slots. If too little is left, a request waits for a bounded time. Clients
// share the budget fairly:
//
//   - The next request to be granted is that of the client that holds the least. Among
//     equals, the request that came first is granted.
//   - While other clients wait, no client gets more than half of the limit. The exception
//     is a larger single request of a client that holds nothing.
//   - When a request has waited for revokeAfter, the budget revokes grants of the client
//     that holds the most, the newest first, until there is room. It does so only while
//     that client holds more than half of the limit, or more than a quarter and more than
//     the waiting client would hold with its request. It never revokes the last grant of a
//     client.
//
// A client that is alone may hold the whole budget. But up to three clients together cannot
// lock out the others. It is safe for concurrent use.
type budget struct {
	limit int64
	wait  time.Duration // how long acquire waits; 0: not at all

	// Called for each rejected request and each revoked grant. May be nil.
	onRejected, onRevoked func()

	mu      sync.Mutex
	used    int64
	clients map[string]*holder // clients that hold something or wait
	spare   *holder            // of a client that was forgotten; nil: none
	keys    map[string]int64   // the sum of grants per key of caps
	queue   []*waiter          // in order of arrival
	revoked time.Time          // when revokeUnfair last chose grants
}

// holder is the state of a client.
type holder struct {
	n         int64    // the sum of its grants
	revocable []*grant // grants that can be revoked, oldest first
	waiting   int      // requests in the queue
}

// budgetRequest is a request for part of a budget.
type budgetRequest struct {
	client string // "": no client; does not take part in fair sharing, and is never revoked
	n      int64  // capped at the limit
	caps   []keyCap
	revoke func() // makes the holder release the grant soon; must not block; nil: not revocable
}

// keyCap limits the sum of all grants with a key.
type keyCap struct {
	key string
	max int64
}

// grant is an acquired part of a budget. release of a nil grant does nothing.
type grant struct {
	b *budget
	budgetRequest
	revokedAt time.Time // when revoke was called
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

// acquire takes part of the budget; the caller releases it. It fails with ErrBusy if too
// little becomes free within b.wait. If too many requests are already waiting, it fails at
// once.
func (b *budget) acquire(r budgetRequest) (*grant, error) {
	g, w := b.enqueue(r)
	if w == nil {
		if g == nil {
			return nil, b.reject()
		}
		return g, nil
	}
	revocation := time.NewTicker(revokeAfter)
	defer revocation.Stop()
	deadline := time.NewTimer(b.wait)
	defer deadline.Stop()
	for {
		select {
		case <-w.ready:
			return g, nil
		case <-revocation.C:
			b.revokeUnfair(time.Now())
		case <-deadline.C:
			if !b.giveUp(w) {
				return g, nil // it was granted just now
			}
			return nil, b.reject()
		}
	}
}

// tryAcquire is acquire without waiting. It returns nil if too little is free, or if
// requests wait.
func (b *budget) tryAcquire(r budgetRequest) *grant {
	g := b.newGrant(r)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) > 0 || !b.fits(g) {
		return nil
	}
	b.add(g)
	return g
}

// enqueue grants the request at once, or else queues it and returns a waiter too. It returns
// nil, nil if the request is rejected.
func (b *budget) enqueue(r budgetRequest) (*grant, *waiter) {
	g := b.newGrant(r)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 && b.fits(g) {
		b.add(g)
		return g, nil
	}
	if b.wait <= 0 || len(b.queue) >= maxQueue || r.client != "" && b.client(r.client).waiting >= maxClientQueue {
		b.forget(r.client)
		return nil, nil
	}
	w := &waiter{grant: g, since: time.Now(), ready: make(chan struct{})}
	b.queue = append(b.queue, w)
	b.client(r.client).waiting++
	b.grantWaiting() // it may be next, ahead of requests that came first
	return g, w
}

func (b *budget) newGrant(r budgetRequest) *grant {
	r.n = min(max(r.n, 1), b.limit)
	return &grant{b: b, budgetRequest: r}
}

func (b *budget) reject() error {
	if b.onRejected != nil {
		b.onRejected()
	}
	return ErrBusy
}

// giveUp removes w from the queue, and reports whether it was still there.
func (b *budget) giveUp(w *waiter) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.queue, w)
	if i < 0 {
		return false
	}
	b.dequeue(i)
	b.forget(w.grant.client)
	b.grantWaiting() // others may have waited behind it
	return true
}

// dequeue removes a waiter from the queue.
func (b *budget) dequeue(i int) {
	b.client(b.queue[i].grant.client).waiting--
	b.queue = slices.Delete(b.queue, i, i+1)
}

// release gives the grant back. A second call does nothing.
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

// add accounts for g.
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

// client returns the holder of that name, and creates it if needed.
func (b *budget) client(name string) *holder {
	h := b.clients[name]
	if h == nil {
		if h, b.spare = b.spare, nil; h == nil {
			h = &holder{}
		}
		b.clients[name] = h
	}
	return h
}

// forget removes the client if it holds nothing and does not wait.
func (b *budget) forget(name string) {
	if h := b.clients[name]; h != nil && h.n == 0 && h.waiting == 0 {
		delete(b.clients, name)
		b.spare = h
	}
}

// heldBy returns how much counts against a client in fair sharing.
func (b *budget) heldBy(client string) int64 {
	if h := b.clients[client]; h != nil && client != "" {
		return h.n
	}
	return 0
}

// fits reports whether g fits into the budget and its caps.
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

// fair reports whether the client of g holds nothing yet, or would hold at most half of the
// limit with g.
func (b *budget) fair(g *grant) bool {
	held := b.heldBy(g.client)
	return held == 0 || held+g.n <= b.limit/2
}

// grantWaiting grants waiting requests in the order that budget describes.
func (b *budget) grantWaiting() {
	for {
		i := b.next()
		if i < 0 || b.used+b.queue[i].grant.n > b.limit { // the next one must wait, and nobody overtakes it: large requests would starve
			return
		}
		w := b.queue[i]
		b.dequeue(i)
		b.add(w.grant)
		close(w.ready)
	}
}

// next returns the index of the waiter to grant next, or -1 if none may be granted now.
func (b *budget) next() int {
	first, several := "", false // the first client below its caps, and whether there are others
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
	return best // only one client waits
}

// inUse returns how much is acquired.
func (b *budget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// hasBudgets is a store with budgets of its own. The keys are their names in the metrics.
type hasBudgets interface{ budgets() map[string]*budget }
