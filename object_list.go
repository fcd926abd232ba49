package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sync/errgroup"
)

const (
	logReaders   = 32       // logs read at once for one listing
	logCacheSize = 48 << 20 // bytes of memory, about, for the entries of logs that are kept
	logCacheLogs = 50_000   // logs that are remembered without their entries: about 20 MiB
)

// ListVersions implements Backend.
func (s *objectStore) ListVersions(siteID string) ([]*Version, error) { return listAll(s, siteID) }

// ListVersionsPage implements VersionPager. All keys of the site are listed,
// but only the logs on the page are read, and those of builds that have nothing
// else, since their first entry gives their place. Lists of one site that are requested
// while one is made share the next one.
func (s *objectStore) ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error) {
	results, i := s.lists.submit(siteID, q, func(queries []VersionQuery) []listed {
		return s.listPages(siteID, queries)
	})
	return results[i].page, results[i].err
}

// listPages answers queries from one listing of the keys.
func (s *objectStore) listPages(siteID string, queries []VersionQuery) []listed {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	run := &listRun{listLimits: &s.limits, client: queries[0].Client, id: queries[0].RequestID}
	defer run.close()
	builds, err := s.listSite(ctx, siteID, run)
	return answerQueries(queries, func(q VersionQuery) (*VersionPage, error) {
		if err != nil {
			return nil, err
		}
		return s.listPage(ctx, siteID, builds, q, run)
	})
}

// listSite lists the builds of a site in their order, with what is known from the keys. The
// logs of those that have an artifact are not read yet.
func (s *objectStore) listSite(ctx context.Context, siteID string, run *listRun) ([]*build, error) {
	all, err := s.listBuilds(ctx, siteID, run)
	if err != nil {
		return nil, err
	}
	var logsOnly []*build
	for _, b := range all {
		if b.artifact.key == "" {
			logsOnly = append(logsOnly, b)
		}
	}
	if err := s.fillLogs(ctx, logsOnly, run); err != nil {
		return nil, err
	}
	builds := make([]*build, 0, len(all))
	for _, b := range all {
		if !b.gone {
			builds = append(builds, b)
		}
	}
	slices.SortFunc(builds, func(a, b *build) int { return comparePlaces(a.version.place(), b.version.place()) })
	return builds, nil
}

// listPage returns the page of builds that q selects, with its logs.
func (s *objectStore) listPage(ctx context.Context, siteID string, builds []*build, q VersionQuery, run *listRun) (*VersionPage, error) {
	builds, next, err := cutPage(builds, func(b *build) place { return b.version.place() }, q)
	if err != nil {
		return nil, err
	}
	var missing []*build
	page := &VersionPage{Versions: make([]*Version, len(builds)), NextCursor: next}
	for i, b := range builds {
		page.Versions[i] = b.version
		if b.log.key != "" && !b.filled {
			missing = append(missing, b)
		}
		if q.Tags {
			b.setTags()
		}
	}
	if err := s.fillLogs(ctx, missing, run); err != nil {
		return nil, err
	}
	page.seal()
	page.ForgetLog = func(v *Version) { s.logs.forget(s.logsPrefix(siteID)+v.BuildID+logSuffix, v.Stored) }
	page.OpenLog = func(buildID string) (*openedLog, error) {
		log, _, err := s.openLog(context.Background(), s.logsPrefix(siteID)+buildID+logSuffix)
		return log, err
	}
	return page, nil
}

// build is a version with the keys that it was made from.
type build struct {
	version       *Version
	artifact, log objectInfo // key empty: there is none
	filled        bool       // its log was read
	gone          bool       // its log was removed since it was listed, and there is nothing else
}

// setTags sets logTag and arrivedAt. If the log was changed since it was listed, its tag is that
// of no log.
func (b *build) setTags() {
	b.version.logTag, b.version.arrivedAt = cmp.Or(b.log.etag, noLogTag), b.log.modTime
	if b.artifact.key != "" {
		b.version.arrivedAt = b.artifact.modTime
	}
}

// listBuilds lists the artifacts and the logs of the site, side by side.
func (s *objectStore) listBuilds(ctx context.Context, siteID string, run *listRun) (map[string]*build, error) {
	var artifacts, logs []objectInfo
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		artifacts, err = s.listKeys(ctx, s.artifactsPrefix(siteID), artifactSuffix, run)
		return err
	})
	g.Go(func() (err error) {
		logs, err = s.listKeys(ctx, s.logsPrefix(siteID), logSuffix, run)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	builds := make(map[string]*build, len(artifacts))
	for _, o := range artifacts {
		id := buildOf(o.key, artifactSuffix)
		builds[id] = &build{
			version:  &Version{BuildID: id, SizeBytes: o.size, CreatedAt: o.modTime, etag: o.etag},
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
// Others, such as the folders that some tools make, are ignored.
func (s *objectStore) listKeys(ctx context.Context, prefix, suffix string, run *listRun) ([]objectInfo, error) {
	var all []objectInfo
	err := s.bucket.list(ctx, prefix, func(page []objectInfo) error {
		if err := run.sized(len(all) + len(page)); err != nil {
			return err
		}
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
func (s *objectStore) fillLogs(ctx context.Context, builds []*build, run *listRun) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(logReaders)
	for _, b := range builds {
		g.Go(func() error { return s.fillLog(ctx, b, run) })
	}
	return g.Wait()
}

func (s *objectStore) fillLog(ctx context.Context, b *build, run *listRun) error {
	log, err := s.cachedLog(ctx, b.log, run)
	if errors.Is(err, ErrUnavailable) || errors.Is(err, ErrBusy) || ctx.Err() != nil {
		return err
	}
	b.filled = true
	switch {
	case errors.Is(err, ErrNotFound):
		b.gone = b.artifact.key == ""
		return nil
	case err != nil:
		s.stats.logProblems.Inc()
		s.log.Error("cannot list a log", "key", b.log.key, "request_id", run.id, "error", err)
		b.version.LogsError = unreadableLog
		if errors.Is(err, ErrDamaged) || errors.Is(err, ErrLogFull) {
			b.version.LogsError = reasonOf(err)
		}
		return nil
	}
	b.version.Stored = log
	if b.artifact.key == "" {
		b.version.CreatedAt = log.first
	}
	return nil
}

// cachedLog returns what a list must know of the log o, which is read if it changed.
func (s *objectStore) cachedLog(ctx context.Context, o objectInfo, run *listRun) (*storedLog, error) {
	log := s.logs.get(o.key, o.etag)
	s.stats.list(log != nil)
	if log != nil {
		return log, nil
	}
	if err := ctx.Err(); err != nil { // another log has failed
		return nil, err
	}
	memory, err := run.scan(o.size)
	if err != nil {
		return nil, err
	}
	defer memory.release()
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	r, info, err := s.openLog(ctx, o.key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	scan := newLogScan()
	err = r.scan(func(e LogEntry) error {
		scan.add(&e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read %q: %w", o.key, err)
	}
	return s.logs.put(o.key, info.ETag, scan), nil
}

// openLog opens a log. ctx spans the reading. A log that is too large to read is
// ErrLogFull.
func (s *objectStore) openLog(ctx context.Context, key string) (*openedLog, ArtifactInfo, error) {
	r, err := s.open(ctx, key, "", 0, -1)
	if err != nil {
		return nil, ArtifactInfo{}, err
	}
	info := r.Info()
	if info.Size > maxLogRead {
		r.Close()
		return nil, info, fmt.Errorf("%w: %q is too large to read: %d bytes", ErrLogFull, key, info.Size)
	}
	return &openedLog{r, info.Size}, info, nil
}

// logCache remembers logs by key and ETag, the ones that were listed last: what
// lists must know of them, and the entries of small ones.
type logCache struct {
	max int64 // bytes of entries

	mu   sync.Mutex
	logs *simplelru.LRU[string, cachedLog]
	kept *simplelru.LRU[string, *storedLog] // those of logs whose entries are kept
	size int64                              // bytes of entries
}

type cachedLog struct {
	etag string
	*storedLog
}

func newLogCache(max int64, logs int) *logCache {
	c := &logCache{max: max}
	c.kept = newUnlockedLRU(math.MaxInt, func(_ string, l *storedLog) {
		c.size -= l.memory()
		l.forget()
	})
	c.logs = newUnlockedLRU(logs, func(key string, _ cachedLog) { c.kept.Remove(key) })
	return c
}

// get returns what is remembered of the log, or nil.
func (c *logCache) get(key, etag string) *storedLog {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, ok := c.logs.Get(key)
	if !ok || l.etag != etag {
		return nil
	}
	c.kept.Get(key)
	return l.storedLog
}

// forget forgets log, if it is what is remembered of key.
func (c *logCache) forget(key string, log *storedLog) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l, ok := c.logs.Peek(key); ok && l.storedLog == log {
		c.logs.Remove(key)
	}
}

// put remembers what was read of a log, and returns it. Of others the entries are
// forgotten, to make room.
func (c *logCache) put(key, etag string, scan *logScan) *storedLog {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.logs.Remove(key)
	log := scan.done(func(cost int64) bool {
		if cost > c.max {
			return false
		}
		for c.size += cost; c.size > c.max; {
			if _, _, ok := c.kept.RemoveOldest(); !ok {
				c.size = cost // whatever was counted
			}
		}
		return true
	})
	c.logs.Add(key, cachedLog{etag, log})
	if log.memory() > 0 {
		c.kept.Add(key, log)
	}
	return log
}
