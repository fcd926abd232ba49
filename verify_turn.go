package main

import (
	"context"
	"slices"
	"sync"
)

// readOrder is the order in which the large builds of a page are read: that of the page. The
// position moves in that order, so what was read behind it is lost when a run is stopped.
type readOrder struct {
	mu    sync.Mutex
	turns []*readTurn // that have not passed
}

// readTurn is the turn of one build to be read. A nil readTurn has come, and never passes.
type readTurn struct {
	order *readOrder
	come  chan struct{} // closed when all turns before have passed
}

// add returns the turn after all others.
func (o *readOrder) add() *readTurn {
	o.mu.Lock()
	defer o.mu.Unlock()
	t := &readTurn{o, make(chan struct{})}
	if o.turns = append(o.turns, t); len(o.turns) == 1 {
		close(t.come)
	}
	return t
}

// wait waits for the turn to come. It fails if ctx ends first.
func (t *readTurn) wait(ctx context.Context) error {
	if t == nil {
		return nil
	}
	select {
	case <-t.come:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pass ends the turn, also one that has not come. It may be called again.
func (t *readTurn) pass() {
	if t == nil {
		return
	}
	o := t.order
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.Index(o.turns, t)
	if i < 0 {
		return
	}
	if o.turns = slices.Delete(o.turns, i, i+1); i == 0 && len(o.turns) > 0 {
		close(o.turns[0].come)
	}
}
