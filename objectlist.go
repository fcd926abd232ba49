package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"
)

const (
	logReaders   = 32       // logs read at once for one listing
	logCacheSize = 64 << 20 // bytes of logs kept
)

// ListVersions implements Backend.
func (s *objectStore) ListVersions(siteID string) ([]*Version, error) {
	page, err := s.ListVersionsPage(siteID, VersionQuery{Metadata: true})
	if err != nil {
		return nil, err
	}
	return page.Versions, nil
}

// ListVersionsPage implements VersionPager. All keys of the site are listed,
// but only the logs on the page are read, and those of builds that have nothing
// else, since their first entry tells their place.
func (s *objectStore) ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	builds, err := s.listBuilds(ctx, siteID)
	if err != nil {
		return nil, err
	}
	var logsOnly []*build
	byVersion := make(map[*Version]*build, len(builds))
	for _, b := range builds {
		if b.artifact.key == "" {
			logsOnly = append(logsOnly, b)
		}
	}
	if err := s.fillLogs(ctx, logsOnly); err != nil {
		return nil, err
	}
	versions := make([]*Version, 0, len(builds))
	for _, b := range builds {
		if b.gone {
			continue
		}
		byVersion[b.version] = b
		versions = append(versions, b.version)
	}
	slices.SortFunc(versions, compareVersions)
	page, err := pageVersions(versions, q)
	if err != nil {
		return nil, err
	}
	var onPage []*build
	for _, v := range page.Versions {
		if b := byVersion[v]; b.artifact.key != "" && b.log.key != "" {
			onPage = append(onPage, b)
		}
	}
	if err := s.fillLogs(ctx, onPage); err != nil {
		return nil, err
	}
	sums := make([][16]byte, len(page.Versions))
	for i, v := range page.Versions {
		sums[i] = versionSum(v)
	}
	if page.NextCursor != "" {
		sums = append(sums, [16]byte{}) // that there is more is part of the answer
	}
	page.Tag = tagOf(sums)
	return page, nil
}

// build is what the keys tell of a version.
type build struct {
	version       *Version
	artifact, log objectInfo // key empty: there is none
	gone          bool       // its log was removed since it was listed, and there is nothing else
}

// listBuilds lists the artifacts and the logs of the site, side by side.
func (s *objectStore) listBuilds(ctx context.Context, siteID string) (map[string]*build, error) {
	var artifacts, logs []objectInfo
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		artifacts, err = s.listKeys(ctx, s.artifactsPrefix(siteID), artifactSuffix)
		return err
	})
	g.Go(func() (err error) {
		logs, err = s.listKeys(ctx, s.logsPrefix(siteID), logSuffix)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	builds := make(map[string]*build, len(artifacts))
	for _, o := range artifacts {
		id := buildOf(o.key, artifactSuffix)
		builds[id] = &build{
			version:  &Version{BuildID: id, SizeBytes: o.size, CreatedAt: o.modTime},
			artifact: o,
		}
	}
	for _, o := range logs {
		id := buildOf(o.key, logSuffix)
		b := builds[id]
		if b == nil {
			b = &build{version: &Version{BuildID: id, CreatedAt: o.modTime}}
			builds[id] = b
		}
		b.log = o
	}
	return builds, nil
}

// listKeys lists the objects of one prefix that are named as builds are.
// Others, as the folders that some tools make, are not ours.
func (s *objectStore) listKeys(ctx context.Context, prefix, suffix string) ([]objectInfo, error) {
	var all []objectInfo
	err := s.bucket.list(ctx, prefix, func(page []objectInfo) error {
		for _, o := range page {
			if _, ok := buildOfFile(o.key[len(prefix):], suffix); ok {
				all = append(all, o)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list %q: %w", prefix, err)
	}
	return all, nil
}

func buildOf(key, suffix string) string {
	return strings.TrimSuffix(key[strings.LastIndexByte(key, '/')+1:], suffix)
}

// fillLogs reads the logs of builds, logReaders at once, and fails only where
// the store does.
func (s *objectStore) fillLogs(ctx context.Context, builds []*build) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(logReaders)
	for _, b := range builds {
		g.Go(func() error { return s.fillLog(ctx, b) })
	}
	return g.Wait()
}

func (s *objectStore) fillLog(ctx context.Context, b *build) error {
	entries, err := s.cachedLog(ctx, b.log)
	switch {
	case errors.Is(err, ErrNotFound):
		b.gone = b.artifact.key == ""
		return nil
	case errors.Is(err, ErrDamaged), errors.Is(err, ErrLogFull):
		s.log.Error("a log cannot be read", "key", b.log.key, "error", err)
		b.version.LogsError = reasonOf(err)
		return nil
	case err != nil:
		return err
	}
	b.version.Logs = entries
	if b.artifact.key == "" {
		b.version.CreatedAt = entries[0].Timestamp
	}
	return nil
}

// cachedLog is the log o in the order of sortEntries. What is returned is
// shared.
func (s *objectStore) cachedLog(ctx context.Context, o objectInfo) ([]LogEntry, error) {
	entries, ok := s.logs.get(o.key, o.etag)
	s.stats.list(ok)
	if ok {
		return entries, nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	data, info, err := s.readLog(ctx, o.key)
	if err != nil {
		return nil, err
	}
	entries, err = parseLog(data)
	if err != nil {
		return nil, err
	}
	sortEntries(entries)
	s.logs.put(o.key, info.etag, entries, len(data))
	return entries, nil
}

// logCache keeps parsed logs by key and ETag, the ones used last, of at most
// max bytes together.
type logCache struct {
	mu   sync.Mutex
	kept *lru.Cache[string, cachedLog]
	size int
	max  int
}

type cachedLog struct {
	etag    string
	entries []LogEntry
	size    int
}

func newLogCache(max int) *logCache {
	c := &logCache{max: max}
	// Every log counts for at least entryCost bytes, so that max is met first.
	kept, err := lru.NewWithEvict(max/entryCost+1, func(_ string, l cachedLog) { c.size -= l.size })
	if err != nil {
		panic(err) // the size is a positive constant
	}
	c.kept = kept
	return c
}

// entryCost is about what a log takes in memory beside its bytes.
const entryCost = 256

func (c *logCache) get(key, etag string) ([]LogEntry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, ok := c.kept.Get(key)
	return l.entries, ok && l.etag == etag
}

func (c *logCache) put(key, etag string, entries []LogEntry, size int) {
	size += entryCost * (len(entries) + 1)
	if size > c.max/8 {
		return // one log must not drive all others out
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept.Remove(key)
	c.kept.Add(key, cachedLog{etag, entries, size})
	for c.size += size; c.size > c.max; {
		c.kept.RemoveOldest()
		if c.kept.Len() == 0 {
			c.size = 0 // whatever was counted
		}
	}
}
