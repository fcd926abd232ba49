package main

import "sync"

// batcher runs one call at a time for each key, and lets those who ask while it
// runs share the next one: the call that serves an item always begins after the
// item was handed in. The zero value is ready for use.
type batcher[T, R any] struct {
	// enter, if it is set, is called for an item that has to wait. It returns what
	// gives its place back, or nil and the result of an item that is not taken.
	acquire func(key string) (leave func(), refused R)

	mu     sync.Mutex
	queues map[string]*batchQueue[T, R]
}

type batchQueue[T, R any] struct {
	turn  sync.Mutex   // held while a batch runs
	next  *batch[T, R] // those who wait for the turn; nil: nobody
	users int
}

type batch[T, R any] struct {
	items  []T
	result R
	ran    bool // false once done: run panicked
	done   chan struct{}
}

// submit hands item in and returns the result of the run that had it, and its place
// among the items of that run. One of those who share the run calls run.
func (g *batcher[T, R]) submit(key string, item T, run func(items []T) R) (R, int) {
	g.mu.Lock()
	q := g.queues[key]
	if q == nil {
		q = new(batchQueue[T, R])
		if g.queues == nil {
			g.queues = make(map[string]*batchQueue[T, R])
		}
		g.queues[key] = q
	}
	q.users++
	waits := q.users > 1
	g.mu.Unlock()
	defer g.releaseQueue(key, q)

	if waits && g.acquire != nil {
		leave, refused := g.acquire(key)
		if leave == nil {
			return refused, 0
		}
		defer leave()
	}
	g.mu.Lock()
	leads := q.next == nil
	if leads {
		q.next = &batch[T, R]{done: make(chan struct{})}
	}
	b := q.next
	place := len(b.items)
	b.items = append(b.items, item)
	g.mu.Unlock()

	if !leads {
		<-b.done
		if !b.ran {
			panic("the call that was shared has panicked")
		}
		return b.result, place
	}
	q.turn.Lock()
	defer q.turn.Unlock()
	g.mu.Lock()
	q.next = nil // from here on nobody joins
	g.mu.Unlock()
	defer close(b.done)
	b.result = run(b.items)
	b.ran = true
	return b.result, place
}

func (g *batcher[T, R]) releaseQueue(key string, q *batchQueue[T, R]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if q.users--; q.users == 0 {
		delete(g.queues, key)
	}
}
