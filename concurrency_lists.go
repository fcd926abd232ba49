package main

import (
	"sync"
	"time"
)

const (
	logScanBytes  = 32 << 20         // bytes of memory, about, for the logs that are read at once
	largeSite     = 1000             // builds; what is known of them takes about a megabyte
	maxLargeLists = 8                // lists of larger sites that are made at once, of what is not in memory
	listWait      = 30 * time.Second // how long a list waits for its turn
)

// listLimits are the budgets of the lists that a store makes.
type listLimits struct {
	scans *budget // bytes for logs that are read
	large *budget // places of lists of large sites
}

func newListLimits() listLimits {
	return listLimits{scans: newBudget(logScanBytes, listWait), large: newBudget(maxLargeLists, listWait)}
}

// budgets returns the budgets of l by name, for the metrics.
func (l *listLimits) budgets() map[string]*budget {
	return map[string]*budget{"log_scans": l.scans, "large_lists": l.large}
}

// listRun is what is held of the limits while lists of a site are made, for the client
// that asked first. It is safe for concurrent use.
type listRun struct {
	*listLimits
	client string
	id     string // of the request of that client

	largeMu sync.Mutex
	place   *grant // may be nil
	full    error  // no place was free in time

	turn   sync.Mutex // held by the goroutine that waits for scans
	failed error      // of the wait; guarded by turn
}

// sized notes that builds are to be held in memory that are not counted yet. If they
// are a large site it waits for a place, and fails with ErrBusy if there is none.
func (r *listRun) sized(builds int) error {
	if builds <= largeSite {
		return nil
	}
	r.largeMu.Lock()
	defer r.largeMu.Unlock()
	if r.place != nil || r.full != nil {
		return r.full
	}
	a := budgetRequest{client: r.client, n: 1}
	if r.client != "" { // these cannot be ended for others, so no client gets all
		a.caps = []keyCap{{"client " + r.client, maxLargeLists / 2}}
	}
	r.place, r.full = r.large.acquire(a)
	return r.full
}

// scan takes the memory to read a log of that size. Of one list at most one request
// waits, so that a list of many logs does not keep others waiting for all of them. It
// fails with ErrBusy if the list got no turn for listWait, however long it takes as a
// whole.
func (r *listRun) scan(size int64) (*grant, error) {
	a := budgetRequest{client: r.client, n: scanMemory(size)}
	if g := r.scans.tryAcquire(a); g != nil {
		return g, nil
	}
	r.turn.Lock()
	defer r.turn.Unlock()
	if r.failed != nil {
		return nil, r.failed
	}
	g, err := r.scans.acquire(a)
	r.failed = err
	return g, err
}

// close gives back the place. It is called when nothing of the run is going on.
func (r *listRun) close() { r.place.release() }

// scanMemory returns about how much memory the scan of a log of size bytes takes: a buffer,
// its largest entry in a second buffer that doubles, and the decoded entry.
func scanMemory(size int64) int64 { return min(3*size+scanBuffer, 3*2*maxEntrySize) }
