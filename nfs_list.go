package main

import (
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	listHelpers    = 32       // goroutines that help with lists, of all sites together
	listParallel   = 16       // goroutines that make one list
	listCacheBytes = 64 << 20 // bytes of memory, about, for what is remembered of all sites

	tightGCBytes   = 16 << 20 // size of the cache above which the heap may grow by only tightGCPercent
	tightGCPercent = 50
)

// listings is what this process remembers of the sites that were listed last.
// It only ever saves work: every list asks the store first whether it still holds.
type listings struct {
	batches batcher[VersionQuery, []listed] // one list of a site at a time
	helpers chan struct{}

	limits  listLimits
	start   time.Time // of clock
	watches *dirWatches

	limit int64 // listCacheBytes

	mu    sync.Mutex
	sites *simplelru.LRU[string, *siteIndex] // those that no list uses now
	used  int                                // sites that a list uses now
	bytes int64                              // charged for all of them
	idle  int64                              // of these, for sites

	idleEntries int64 // of idle, for the entries of logs

	tightGC   bool // the heap may grow by tightGCPercent only
	gcPercent int  // by which it may grow otherwise
}

func newListings() *listings {
	return &listings{helpers: make(chan struct{}, listHelpers), limit: listCacheBytes, limits: newListLimits(), start: time.Now(), watches: newDirWatches(),
		sites: newUnlockedLRU[string, *siteIndex](math.MaxInt, nil)}
}

// clock returns the time by the monotonic clock of this process.
func (l *listings) clock() time.Duration { return time.Since(l.start) }

// budgets implements hasBudgets.
func (n *nfs) budgets() map[string]*budget { return n.lists.limits.budgets() }

// ListVersions implements Backend, with the metadata of all entries.
func (n *nfs) ListVersions(siteID string) ([]*Version, error) { return listAll(n, siteID) }

// ListVersionsPage implements VersionPager. Lists of one site that are requested
// while one is made share the next one, so no list began before it was requested. If
// nothing changed, a list stats two directories. Otherwise it reads their names, and stats
// all artifacts and the logs on the page; of a large site on a local disk it stats only the
// artifacts that changed (nfs_list_watch.go). It reads only those logs, and those of builds
// without an artifact, whose place in the order is in their log. The entries of a large log
// stay in the store.
func (n *nfs) ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error) {
	results, i := n.lists.batches.submit(siteID, q, func(queries []VersionQuery) []listed {
		return n.list(siteID, queries)
	})
	return results[i].page, results[i].err
}

// list answers queries from one look at the site.
func (n *nfs) list(siteID string, queries []VersionQuery) []listed {
	ix := n.lists.take(siteID)
	whole := false // what is known of the site can be used again
	defer func() {
		if whole {
			n.lists.keep(siteID, ix)
		} else {
			n.lists.drop(ix)
		}
	}()
	n.disk.metrics.list(len(ix.artifacts.files)+len(ix.logs.files) > 0)
	run := &listRun{listLimits: &n.lists.limits, client: queries[0].Client, id: queries[0].RequestID}
	defer run.close()
	scan, err := n.scanSite(siteID, ix, run)
	if err != nil {
		err = fmt.Errorf("cannot list site %q: %w", siteID, err)
		return answerQueries(queries, func(VersionQuery) (*VersionPage, error) { return nil, err }) // ix is dropped: it may be half changed
	}
	defer scan.close()
	n.lists.recount(ix) // before the entries, which take only the room that is left
	results := answerQueries(queries, scan.answer)
	whole = true
	return results
}

// take returns what is remembered of a site. It belongs to the caller until keep or
// drop.
func (l *listings) take(siteID string) *siteIndex {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used++
	ix, ok := l.sites.Peek(siteID)
	if !ok {
		return newSiteIndex()
	}
	l.sites.Remove(siteID)
	l.idle -= ix.bytes
	l.idleEntries -= ix.bytes - ix.fixed
	return ix
}

// reserve charges bytes for entries that ix keeps from now on, and reports whether
// there is room for them. The sites that were listed longest ago make room.
func (l *listings) reserve(ix *siteIndex, bytes int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bytes-l.idle+bytes > l.entryLimit() {
		return false
	}
	l.evict(l.entryLimit() - bytes)
	l.charge(ix, bytes)
	return true
}

// entryLimit is what may be charged when entries are added: the rest is for names, so
// that a new build does not push the entries out again.
func (l *listings) entryLimit() int64 { return l.limit * 3 / 4 }

// release takes back what was reserved for entries that ix no longer keeps.
func (l *listings) release(ix *siteIndex, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.charge(ix, -bytes)
}

// room returns how many bytes can be reserved at most.
func (l *listings) room() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(0, l.entryLimit()-(l.bytes-l.idle))
}

// recount charges what ix takes now besides entries, whether or not there is room.
func (l *listings) recount(ix *siteIndex) {
	fixed := ix.size()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.charge(ix, fixed-ix.fixed)
	ix.fixed = fixed
}

// charge changes what is counted for ix. The caller holds mu.
func (l *listings) charge(ix *siteIndex, bytes int64) {
	l.bytes += bytes
	ix.bytes += bytes
}

// evict forgets what is known of the sites that were listed longest ago, first the
// entries of logs and then the rest, until at most limit is charged, or all that is left
// is in use. The caller holds mu.
func (l *listings) evict(limit int64) {
	if l.bytes > limit && l.idleEntries > 0 {
		for _, old := range l.sites.Values() { // the oldest first
			if l.bytes <= limit-limit/16 { // more than needed, so that this is not done for each log
				break
			}
			entries := old.bytes - old.fixed
			old.forgetLogs() // lists that are being sent still have them
			l.idle -= entries
			l.idleEntries -= entries
			l.charge(old, -entries)
		}
	}
	for l.bytes > limit && l.sites.Len() > 0 {
		_, old, _ := l.sites.RemoveOldest()
		l.idle -= old.bytes
		l.idleEntries -= old.bytes - old.fixed
		l.charge(old, -old.bytes)
		old.forgetLogs()
		l.watches.remove(old.watch)
		if l.sites.Len() == 0 && l.used == 0 {
			l.bytes, l.idle, l.idleEntries = 0, 0, 0 // even if something was counted wrongly
		}
	}
}

// keep remembers ix, and forgets the sites that were listed longest ago until
// all fit. Of a site that does not fit alone, the entries of logs are forgotten.
func (l *listings) keep(siteID string, ix *siteIndex) {
	l.recount(ix)
	if ix.bytes > l.limit && ix.whole != nil {
		ix.setWhole(nil)
		l.recount(ix)
	}
	if ix.bytes > l.limit {
		ix.forgetLogs()
		l.release(ix, ix.bytes-ix.fixed)
	}
	if ix.bytes > l.limit || len(ix.artifacts.files)+len(ix.logs.files) == 0 {
		l.drop(ix)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used--
	l.sites.Add(siteID, ix)
	l.idle += ix.bytes
	l.idleEntries += ix.bytes - ix.fixed
	l.evict(l.limit)
	l.paceGC()
}

// paceGC makes the garbage collector run earlier while the cache is large: by default the heap
// may grow to twice its size. A heap this large is rarely collected even then. With a small
// heap this would cost each small request a sixth of its CPU time. paceGC does nothing if GOGC
// is set. The caller holds mu.
func (l *listings) paceGC() {
	tight := l.bytes >= tightGCBytes
	if tight == l.tightGC || os.Getenv("GOGC") != "" {
		return
	}
	if l.tightGC = tight; tight {
		l.gcPercent = debug.SetGCPercent(tightGCPercent)
	} else {
		debug.SetGCPercent(l.gcPercent)
	}
}

// drop forgets ix.
func (l *listings) drop(ix *siteIndex) {
	ix.forgetLogs()
	l.watches.remove(ix.watch)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used--
	l.charge(ix, -ix.bytes)
	l.paceGC()
}

// parallel calls work with each of 0 to count-1, some at once, and returns one
// of the errors after all is done. It starts no new work after an error.
func (l *listings) parallel(count int, work func(i int) error) error {
	var (
		wg     sync.WaitGroup
		next   atomic.Int64
		failed atomic.Pointer[error]
	)
	step := min(64, 1+count/(8*listParallel)) // taken at once: many are faster one after the other
	loop := func() {
		for failed.Load() == nil {
			end := int(next.Add(int64(step)))
			if end-step >= count {
				return
			}
			for i := end - step; i < min(end, count); i++ {
				if err := work(i); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
			}
		}
	}
	for range min(count, listParallel) - 1 {
		select {
		case l.helpers <- struct{}{}:
			wg.Go(func() {
				defer func() { <-l.helpers }()
				loop()
			})
		default: // all are busy: there is still this goroutine
		}
	}
	loop()
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}
