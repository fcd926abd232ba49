package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"
)

const (
	artifactType = "application/gzip"
	logType      = "application/json"

	// storeTimeout bounds a call of the store that moves no artifact.
	storeTimeout = 30 * time.Second
	// removeTries is how often a conditional delete looks again when the build
	// was replaced between the look and the delete.
	removeTries = 5
	// bucketAgain is how long the bucket is taken to be there, or gone, as it was.
	bucketAgain = 5 * time.Second
)

// objectStore is the Backend over an object store.
//
//	{prefix}sites/{site}/artifacts/{build}.tar.gz
//	{prefix}sites/{site}/logs/{build}.json
//
// Nothing but a cache is kept in memory: each decision is the store's own, by a
// condition on the very object that was looked at.
type objectStore struct {
	bucket       bucket
	prefix       string // of every key; empty or ending in a slash
	log          *slog.Logger
	logs         *logCache
	lists        batcher[VersionQuery, []listed] // one list of a site at a time
	limits       listLimits
	appends      batcher[LogEntry, []error] // one write of a log at a time
	memory       *budget                    // for the logs that are being changed
	capabilities capabilities
	bucketProbe  cachedProbe[struct{}] // whether the bucket is there
	stats        *storeMetrics
}

var (
	_ Backend           = (*objectStore)(nil)
	_ ConditionalStorer = (*objectStore)(nil)
	_ ArtifactRanger    = (*objectStore)(nil)
	_ VersionPager      = (*objectStore)(nil)
	_ Prober            = (*objectStore)(nil)
	_ Redirector        = (*objectStore)(nil)
)

func newObjectStore(b bucket, prefix string, log *slog.Logger) *objectStore {
	s := &objectStore{
		bucket: b, prefix: prefix, log: log, logs: newLogCache(logCacheSize, logCacheLogs),
		limits: newListLimits(), stats: newStoreMetrics(),
		memory: newBudget(logMemory, logWait),
	}
	s.capabilities.probe.probe, s.capabilities.probe.wait = s.probeCapabilities, capabilityWait
	s.bucketProbe.probe, s.bucketProbe.wait = s.probeBucket, capabilityWait
	return s
}

// budgets implements hasBudgets.
func (s *objectStore) budgets() map[string]*budget {
	all := s.limits.budgets()
	all["log_memory"] = s.memory
	if b, ok := s.bucket.(interface{ uploadMemory() *budget }); ok {
		all["upload_memory"] = b.uploadMemory()
	}
	return all
}

func (s *objectStore) metrics() *storeMetrics { return s.stats }

// StoreArtifact implements Backend.
func (s *objectStore) StoreArtifact(siteID, buildID string, reader io.Reader) error {
	_, err := s.StoreArtifactIf(siteID, buildID, reader, Precondition{})
	return err
}

// FetchArtifact implements Backend. What it returns is an ArtifactReader.
func (s *objectStore) FetchArtifact(siteID, buildID string) (io.ReadCloser, error) {
	return s.open(s.artifactKey(siteID, buildID), "", 0, -1)
}

// StoreArtifactIf implements ConditionalStorer. The ModTime of what it returns
// is zero where the store does not tell it.
func (s *objectStore) StoreArtifactIf(siteID, buildID string, reader io.Reader, cond Precondition) (ArtifactInfo, error) {
	key := s.artifactKey(siteID, buildID)
	opts := putOptions{contentType: artifactType, uploadID: rand.Text()}
	if !cond.IsZero() {
		if err := s.requireCapability(conditionalParts); err != nil {
			return ArtifactInfo{}, err
		}
		current, err := s.look(key)
		if err != nil {
			return ArtifactInfo{}, err
		}
		if err := cond.Check(current); err != nil {
			return ArtifactInfo{}, err
		}
		opts.absent, opts.ifMatch = current == nil, etagOf(current)
	}
	if c, ok := reader.(Charged); ok {
		opts.client, opts.revoke = c.Client(), c.Revoke
	}
	body := newExactReader(reader)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	info, err := s.bucket.put(ctx, key, body, body.size, opts)
	if body.err != nil {
		return ArtifactInfo{}, fmt.Errorf("cannot store %q: %w", key, body.err)
	}
	if err != nil {
		info, err = s.resolveAmbiguousPut(key, opts, cond, err)
	}
	return infoOfObject(info), err
}

// resolveAmbiguousPut finds out what became of a put that failed. A reply that was lost, or
// that a retry of the SDK ran into, may have been a success: the mark tells. A
// condition is judged again: the build may have become another for which it
// holds too.
func (s *objectStore) resolveAmbiguousPut(key string, opts putOptions, cond Precondition, cause error) (objectInfo, error) {
	rival := errors.Is(cause, ErrPrecondition) || errors.Is(cause, errConflict)
	if !rival && !errors.Is(cause, ErrUnavailable) {
		return objectInfo{}, fmt.Errorf("cannot store %q: %w", key, cause)
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	info, err := s.stat(ctx, key)
	switch {
	case err == nil && info.uploadID == opts.uploadID:
		return info, nil
	case err != nil && !errors.Is(err, ErrNotFound):
		// Not %w of cause: its ErrPrecondition may be of our own put.
		return objectInfo{}, fmt.Errorf("%w: cannot tell whether %q was stored: %v, after %v", ErrUnavailable, key, err, cause)
	case !rival:
		return objectInfo{}, fmt.Errorf("%w: cannot store %q: %w", ErrUnavailable, key, cause)
	}
	var current *ArtifactInfo
	if err == nil {
		a := infoOfObject(info)
		current = &a
	}
	if err := cond.Check(current); err != nil {
		return objectInfo{}, err
	}
	// Not %w of cause: the condition that failed is the one on what was seen
	// before, and not the client's.
	return objectInfo{}, fmt.Errorf("%w: cannot store %q, which changed meanwhile: %v", ErrUnavailable, key, cause)
}

// DeleteArtifact implements ConditionalStorer.
func (s *objectStore) DeleteArtifact(siteID, buildID string, cond Precondition) error {
	key := s.artifactKey(siteID, buildID)
	if cond.IsZero() {
		if err := s.remove(key, ""); !errors.Is(err, ErrNotFound) {
			return err
		}
		return nil
	}
	if err := s.requireCapability(conditionalRemove); err != nil {
		return err
	}
	for try := range removeTries {
		current, err := s.look(key)
		if err != nil {
			return err
		}
		err = cond.Check(current)
		if err != nil && current == nil && try > 0 {
			// A rival, or an attempt of the SDK's whose reply was lost: it would be
			// wrong to say 204 in the first case, and 412 in the second.
			return fmt.Errorf("%w: %q was deleted, by this request or by another", ErrUnavailable, key)
		}
		if err != nil || current == nil {
			return err
		}
		err = s.remove(key, current.ETag)
		if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrPrecondition) && !errors.Is(err, errConflict) {
			return err
		}
	}
	return fmt.Errorf("%w: cannot delete %q, which changes all the time", ErrUnavailable, key)
}

func (s *objectStore) remove(key, etag string) error {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	if err := s.checkBucket(s.bucket.remove(ctx, key, etag)); err != nil {
		return fmt.Errorf("cannot delete %q: %w", key, err)
	}
	return nil
}

// StatArtifact implements ArtifactRanger.
func (s *objectStore) StatArtifact(siteID, buildID string) (ArtifactInfo, error) {
	key := s.artifactKey(siteID, buildID)
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	info, err := s.stat(ctx, key)
	if err != nil {
		return ArtifactInfo{}, fmt.Errorf("cannot look at %q: %w", key, err)
	}
	return infoOfObject(info), nil
}

// FetchArtifactRange implements ArtifactRanger.
func (s *objectStore) FetchArtifactRange(siteID, buildID, etag string, offset, length int64) (ArtifactReader, error) {
	return s.open(s.artifactKey(siteID, buildID), etag, offset, length)
}

// ArtifactURL implements Redirector.
func (s *objectStore) ArtifactURL(siteID, buildID string, ttl time.Duration) (string, error) {
	key := s.artifactKey(siteID, buildID)
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	url, err := s.bucket.presign(ctx, key, ttl, siteID+"-"+buildID+artifactSuffix)
	if err != nil {
		return "", fmt.Errorf("cannot sign a URL of %q: %w", key, err)
	}
	return url, nil
}

// look describes the object as it is now, nil if there is none.
func (s *objectStore) look(key string) (*ArtifactInfo, error) {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	info, err := s.stat(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look at %q: %w", key, err)
	}
	a := infoOfObject(info)
	return &a, nil
}

// stat is the stat of the bucket, with the error of sure.
func (s *objectStore) stat(ctx context.Context, key string) (objectInfo, error) {
	info, err := s.bucket.stat(ctx, key)
	return info, s.checkBucket(err)
}

// checkBucket returns err, unless it is an errAmbiguousNotFound and the bucket is not there, or does not
// answer: then it returns an ErrUnavailable. It asks the store at most once in
// bucketAgain.
func (s *objectStore) checkBucket(err error) error {
	if !errors.Is(err, errAmbiguousNotFound) {
		return err
	}
	if _, gone := s.bucketProbe.get(bucketAgain); gone != nil {
		return fmt.Errorf("%w, after %v", gone, err)
	}
	return err
}

// probeBucket fails if the bucket is not there, or nobody answers. It lists, which
// the service needs the right to do anyway, since every store then says what is
// missing.
func (s *objectStore) probeBucket() (none struct{}, err error) {
	if err = s.listChecks(); !errors.Is(err, ErrUnavailable) {
		err = nil // also a refusal is the answer of a bucket that is there
	}
	return none, err
}

func (s *objectStore) artifactKey(siteID, buildID string) string {
	return s.artifactsPrefix(siteID) + buildID + artifactSuffix
}

func (s *objectStore) artifactsPrefix(siteID string) string {
	return s.prefix + sitesDir + "/" + siteID + "/" + artifactsDir + "/"
}

func (s *objectStore) logsPrefix(siteID string) string {
	return s.prefix + sitesDir + "/" + siteID + "/" + logsDir + "/"
}

func infoOfObject(o objectInfo) ArtifactInfo {
	return ArtifactInfo{Size: o.size, ModTime: o.modTime, ETag: o.etag}
}

func etagOf(a *ArtifactInfo) string {
	if a == nil {
		return ""
	}
	return a.ETag
}
