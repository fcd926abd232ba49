package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	listHelpers    = 32       // threads that help at once with lists, of all sites together
	listParallel   = 16       // and with one
	listCacheBytes = 64 << 20 // of memory, about, for what is remembered of all sites
	keepMetadata   = 64 << 10 // bytes of metadata of one build that are worth remembering
)

// listings is what this process remembers of the sites that were listed last.
// It is only ever a short cut: every list asks the store first whether it still
// holds.
type listings struct {
	group   group[VersionQuery, []listed] // one list of a site at a time
	helpers chan struct{}

	limit int64 // listCacheBytes

	mu    sync.Mutex
	sites *simplelru.LRU[string, *siteIndex]
	bytes int64
}

type listed struct {
	page *VersionPage
	err  error
}

func newListings() *listings {
	sites, err := simplelru.NewLRU[string, *siteIndex](math.MaxInt, nil)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	return &listings{sites: sites, helpers: make(chan struct{}, listHelpers), limit: listCacheBytes}
}

// ListVersions implements Backend, with the metadata of all entries.
func (n *nfs) ListVersions(siteID string) ([]*Version, error) {
	page, err := n.ListVersionsPage(siteID, VersionQuery{Metadata: true})
	if err != nil {
		return nil, err
	}
	return page.Versions, nil
}

// ListVersionsPage implements VersionPager. Lists of one site that are asked for
// while one is made share the next one, so none ever began before it was asked
// for. Where nothing changed, a list costs a look at two directories; where
// something did, reading their names and what changed. Of a page, only the logs
// on it are read, and those of builds without an artifact, whose place in the
// order is in their log.
func (n *nfs) ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error) {
	answers, i := n.lists.group.do(siteID, q, func(queries []VersionQuery) []listed {
		return n.list(siteID, queries)
	})
	return answers[i].page, answers[i].err
}

// list answers queries from one look at the site.
func (n *nfs) list(siteID string, queries []VersionQuery) []listed {
	answers := make([]listed, len(queries))
	ix := n.lists.take(siteID)
	n.disk.metrics.list(len(ix.builds) > 0)
	scan, err := n.scanSite(siteID, ix)
	if err != nil {
		for i := range answers {
			answers[i].err = fmt.Errorf("cannot list %q: %w", siteID, err)
		}
		return answers // what ix knew is forgotten: it may be half changed
	}
	defer scan.close()
	for i, q := range queries {
		answers[i].page, answers[i].err = scan.page(q)
	}
	n.lists.keep(siteID, ix)
	return answers
}

// take is what is remembered of a site, which from now on is the caller's alone.
func (l *listings) take(siteID string) *siteIndex {
	l.mu.Lock()
	defer l.mu.Unlock()
	ix, ok := l.sites.Peek(siteID)
	if !ok {
		return newSiteIndex()
	}
	l.sites.Remove(siteID)
	l.bytes -= ix.bytes
	return ix
}

// keep remembers ix, and forgets the sites that were listed longest ago until
// all fit. Of a site that does not fit alone, the logs are forgotten.
func (l *listings) keep(siteID string, ix *siteIndex) {
	if ix.measure(); ix.bytes > l.limit {
		ix.forgetLogs()
		if ix.measure(); ix.bytes > l.limit {
			return
		}
	}
	if len(ix.builds) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sites.Add(siteID, ix)
	for l.bytes += ix.bytes; l.bytes > l.limit; {
		if _, old, ok := l.sites.RemoveOldest(); ok {
			l.bytes -= old.bytes
		}
		if l.sites.Len() == 0 {
			l.bytes = 0 // whatever was counted
		}
	}
}

// parallel calls work with each of 0 to count-1, some at once, and returns one
// of the errors after all is done. It does not begin new work after an error.
func (l *listings) parallel(count int, work func(i int) error) error {
	var (
		wg     sync.WaitGroup
		next   atomic.Int64
		failed atomic.Pointer[error]
	)
	loop := func() {
		for failed.Load() == nil {
			i := int(next.Add(1)) - 1
			if i >= count {
				return
			}
			if err := work(i); err != nil {
				failed.CompareAndSwap(nil, &err)
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

// openBuilds opens the artifacts or the logs of a site. On NFS the client may
// remember that one of the directories on the way was missing; opening the one
// above, from the top, makes it ask again.
func (n *nfs) openBuilds(siteID, dir string) (*os.File, error) {
	path := n.sitePath(siteID, dir)
	f, err := n.disk.openDir(path)
	if !errors.Is(err, fs.ErrNotExist) || !n.remote {
		return f, err
	}
	above := n.base
	for _, name := range []string{"", sitesDir, siteID} {
		above = filepath.Join(above, name)
		d, err := n.disk.openDir(above)
		if err != nil {
			return nil, err
		}
		d.Close()
	}
	return n.disk.openDir(path)
}
