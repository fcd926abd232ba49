package main

import (
	"maps"
	"time"
)

const (
	maxReads       = 256              // GETs and HEADs of builds that are in the store at once
	maxLists       = 64               // lists that are made at once
	maxSiteLists   = 16               // of one site
	maxWrites      = 256              // appends and deletes that are in the store at once
	maxSiteWrites  = 128              // of one site: they may wait for its lock
	maxBuildWrites = 64               // of one build
	maxSiteDeletes = 4                // sites that are deleted at once: each holds a page of versions
	maxScrapes     = 16               // scrapes of the metrics that are made and sent
	maxDigests     = 4                // stored builds whose digest is computed at once
	maxLongDigests = 2                // of them those of more than longDigest bytes
	longDigest     = 16 << 20         // bytes that are read in about a second, also from an object store
	digestWait     = 30 * time.Second // how long a request waits for such a digest
	placeWait      = 5 * time.Second  // how long a request waits for its place, or for memory
	streamMemory   = 256 << 20        // bytes for the downloads that pass through the service
	entryMemory    = 64 << 20         // bytes for the log entries that are received and stored
)

// limits are the budgets that bound what requests hold at once.
type limits struct {
	uploads   *budget // places of the builds that are being received
	reads     *budget // places of other requests that read the store
	listing   *budget // places of lists that are being made
	writes    *budget // places of other requests that change the store
	entries   *budget // bytes of log entries
	lists     *budget // bytes of lists that are made and sent
	downloads *budget // bytes of the downloads that pass through the service
	scrapes   *budget // places of scrapes of the metrics
	digests   *budget // places of stored builds whose digest is computed
}

func newLimits(cfg *Config) limits {
	return limits{
		uploads:   newBudget(int64(cfg.MaxUploads), placeWait),
		reads:     newBudget(maxReads, placeWait),
		listing:   newBudget(maxLists, placeWait),
		writes:    newBudget(maxWrites, placeWait),
		entries:   newBudget(entryMemory, placeWait),
		lists:     newBudget(listMemory, placeWait),
		downloads: newBudget(streamMemory, placeWait),
		scrapes:   newBudget(maxScrapes, placeWait),
		digests:   newBudget(maxDigests, digestWait),
	}
}

// inStore returns how many requests can be in the store at once.
func (l *limits) inStore() int {
	return int(l.uploads.limit + l.reads.limit + l.listing.limit + l.writes.limit + l.digests.limit)
}

// budgets returns those of the API and of its store, by the names that the metrics have
// for them.
func (a *api) budgets() map[string]*budget {
	all := map[string]*budget{"uploads": a.uploads, "reads": a.reads, "writes": a.writes, "listing": a.listing,
		"entries": a.entries, "lists": a.lists, "downloads": a.downloads, "scrapes": a.scrapes, "digests": a.digests}
	if b, ok := a.backend.(hasBudgets); ok {
		maps.Copy(all, b.budgets())
	}
	return all
}

// acquire acquires a part of b for the client on c. If it gets none in time it returns
// the error of a 503.
func acquire(b *budget, c *conn, r budgetRequest) (*grant, error) {
	return acquireAs(refusedBudget, b, c, r)
}

// acquireAs is acquire of a request that counts as refused if it gets nothing.
func acquireAs(refused string, b *budget, c *conn, r budgetRequest) (*grant, error) {
	r.client = c.client()
	g, err := b.acquire(r)
	if err != nil {
		c.rec.hungUp = c.hasHungUp()
		return nil, overloaded(refused, "%v", err)
	}
	return g, nil
}

// acquireUpload acquires a place among the uploads.
func (a *api) acquireUpload(c *conn) (*grant, error) {
	g, err := a.uploads.acquire(budgetRequest{client: c.client(), n: 1, revoke: c.bodyRevoker()})
	if err != nil {
		a.metrics.tooMany.Inc()
		c.rec.hungUp = c.hasHungUp()
		return nil, overloaded(refusedUploads, "too many uploads at once")
	}
	return g, nil
}

// acquireRead acquires a place among the requests that read the store.
func (l *limits) acquireRead(c *conn) (*grant, error) {
	return acquireAs(refusedCalls, l.reads, c, budgetRequest{n: 1})
}

// acquireList acquires a place among the lists that are being made.
func (l *limits) acquireList(c *conn, siteID string) (*grant, error) {
	return acquireAs(refusedCalls, l.listing, c, budgetRequest{n: 1, caps: []keyCap{{"site " + siteID, maxSiteLists}}})
}

// acquireWrite acquires a place among the requests that change the store. They may wait
// for the lock of their build, so that few of one build, or one site, get a place at once.
func (l *limits) acquireWrite(c *conn, siteID, buildID string) (*grant, error) {
	return acquireAs(refusedCalls, l.writes, c, budgetRequest{n: 1, caps: []keyCap{
		{"site " + siteID, maxSiteWrites}, {"build " + siteID + "/" + buildID, maxBuildWrites},
	}})
}

// acquireSiteDeletion acquires a place to delete a whole site.
func (l *limits) acquireSiteDeletion(c *conn, siteID string) (*grant, error) {
	return acquireAs(refusedCalls, l.writes, c, budgetRequest{n: 1, caps: []keyCap{{"site " + siteID, maxSiteWrites}, {"whole sites", maxSiteDeletes}}})
}

// acquireDigest acquires a place to compute the digest of a stored build of size bytes, for
// client. One build of a site gets a place at once. Builds that take long leave places, also in
// their site, to those that do not.
func (l *limits) acquireDigest(client, siteID string, size int64) (*grant, error) {
	caps := []keyCap{{"site " + siteID, 1}}
	if size > longDigest {
		caps = []keyCap{{"long", maxLongDigests}, {"long of site " + siteID, 1}}
	}
	return l.digests.acquire(budgetRequest{client: client, n: 1, caps: caps})
}
