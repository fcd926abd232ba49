package main

import "sync"

// batcher is a group commit. It runs one batch at a time for each key; items that are
// submitted while a batch runs form the next one. So the run that handles an item always
// starts after the item was submitted. The zero value is ready for use.
type batcher[T, R any] struct {
	// acquire, if set, is called for an item that has to wait. It returns a function that
	// releases the slot of the item, or nil and the result of an item that is rejected.
	acquire func(key string) (release func(), rejected R)

	mu     sync.Mutex
	queues map[string]*batchQueue[T, R]
}

type batchQueue[T, R any] struct {
	turn  sync.Mutex   // held while a batch runs
	next  *batch[T, R] // the batch that items may still join; nil: none
	users int          // calls of submit in progress
}

type batch[T, R any] struct {
	items  []T
	result R
	ran    bool          // false after done: run panicked
	done   chan struct{} // closed when run has returned
}

// submit adds item to the next batch of key. It returns the result of that batch, and
// the index of item in it. The first caller of a batch, its leader, calls run.
func (b *batcher[T, R]) submit(key string, item T, run func(items []T) R) (R, int) {
	q, waits := b.openQueue(key)
	defer b.closeQueue(key, q)
	if waits && b.acquire != nil {
		release, rejected := b.acquire(key)
		if release == nil {
			return rejected, 0
		}
		defer release()
	}
	batch, index := b.join(q, item)
	if index > 0 {
		<-batch.done
		if !batch.ran {
			panic("the leader of the batch panicked")
		}
		return batch.result, index
	}
	q.turn.Lock()
	defer q.turn.Unlock()
	b.mu.Lock()
	q.next = nil // the batch is complete
	b.mu.Unlock()
	defer close(batch.done)
	batch.result = run(batch.items)
	batch.ran = true
	return batch.result, index
}

// openQueue returns the queue of key, and reports whether another call uses it.
func (b *batcher[T, R]) openQueue(key string) (q *batchQueue[T, R], shared bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q = b.queues[key]
	if q == nil {
		q = new(batchQueue[T, R])
		if b.queues == nil {
			b.queues = make(map[string]*batchQueue[T, R])
		}
		b.queues[key] = q
	}
	q.users++
	return q, q.users > 1
}

func (b *batcher[T, R]) closeQueue(key string, q *batchQueue[T, R]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.users--; q.users == 0 {
		delete(b.queues, key)
	}
}

// join adds item to the next batch of q, and returns its index there.
func (b *batcher[T, R]) join(q *batchQueue[T, R], item T) (*batch[T, R], int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.next == nil {
		q.next = &batch[T, R]{done: make(chan struct{})}
	}
	q.next.items = append(q.next.items, item)
	return q.next, len(q.next.items) - 1
}
