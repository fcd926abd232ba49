package main

import "time"

// gate bounds how many may be inside at once. On a hung NFS mount every call
// blocks in the kernel, each in a thread of its own, and Go ends the process at
// 10,000 threads: past the bound, callers are refused instead.
type gate struct {
	slots chan struct{}
	wait  time.Duration // how long enter waits for a slot
}

func newGate(slots int, wait time.Duration) *gate {
	return &gate{make(chan struct{}, slots), wait}
}

// enter takes a slot, to be given back with leave, or tells that none came free.
func (g *gate) enter() bool {
	select {
	case g.slots <- struct{}{}:
		return true
	default:
	}
	if g.wait <= 0 {
		return false
	}
	timer := time.NewTimer(g.wait)
	defer timer.Stop()
	select {
	case g.slots <- struct{}{}:
		return true
	case <-timer.C:
		return false
	}
}

func (g *gate) leave() { <-g.slots }

// inside is the number of slots taken.
func (g *gate) inside() int { return len(g.slots) }
