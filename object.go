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
	// removeTries bounds the attempts of a conditional delete: each begins anew if
	// the object was replaced between the stat and the delete.
	removeTries = 5
)

// objectStore is the Backend over an object store.
//
//	{prefix}sites/{site}/artifacts/{build}.tar.gz
//	{prefix}sites/{site}/logs/{build}.json
//	{prefix}sites/{site}/digests/{build}.sha256
//	{prefix}sites/{site}/labels/{label}.json
//	{prefix}sites/{site}/deleting/{build}/{id}
//	{prefix}status/{name}.json
//
// It keeps only caches in memory. The store itself decides whether a change is made,
// by a condition on the ETag of the object that was read before.
type objectStore struct {
	bucket       bucket
	prefix       string // of every key; empty or ending in a slash
	log          *slog.Logger
	readOnly     bool // probes and checks must not write
	logs         *logCache
	lists        batcher[VersionQuery, []listed] // one list of a site at a time
	limits       listLimits
	appends      batcher[LogEntry, []error] // one write of a log at a time
	memory       *budget                    // for logs during an append
	capabilities capabilities
	checksums    checksumsCheck
	bucketProbe  cachedProbe[struct{}] // whether the bucket exists
	stats        *storeMetrics
	digests      *objectDigests // nil: digests are neither kept nor looked up
}

var (
	_ Backend           = (*objectStore)(nil)
	_ ConditionalStorer = (*objectStore)(nil)
	_ ArtifactRanger    = (*objectStore)(nil)
	_ VersionPager      = (*objectStore)(nil)
	_ Prober            = (*objectStore)(nil)
	_ Redirector        = (*objectStore)(nil)
	_ LogAppender       = (*objectStore)(nil)
)

func newObjectStore(b bucket, prefix string, log *slog.Logger) *objectStore {
	s := &objectStore{
		bucket: b, prefix: prefix, log: log, logs: newLogCache(logCacheSize, logCacheLogs),
		limits: newListLimits(), stats: newStoreMetrics(),
		memory: newBudget(logMemory, logWait),
	}
	s.capabilities.probe.probe, s.capabilities.probe.wait = s.probeCapabilities, capabilityWait
	s.checksums.probe.probe = s.probeChecksums
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

// FetchArtifact implements Backend. It returns an ArtifactReader.
func (s *objectStore) FetchArtifact(siteID, buildID string) (io.ReadCloser, error) {
	r, err := s.FetchArtifactRange(siteID, buildID, "", 0, -1)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// StoreArtifactIf implements ConditionalStorer. The ModTime of its result is zero if
// the store does not report it.
func (s *objectStore) StoreArtifactIf(siteID, buildID string, reader io.Reader, cond Precondition) (ArtifactInfo, error) {
	key := s.artifactKey(siteID, buildID)
	opts := putOptions{contentType: artifactType, uploadID: rand.Text()}
	if !cond.IsZero() {
		if err := s.requireCapability(conditionalParts); err != nil {
			return ArtifactInfo{}, err
		}
		current, err := s.statIfExists(context.Background(), key)
		if err != nil {
			return ArtifactInfo{}, err
		}
		if err := cond.Check(current.info()); err != nil {
			return ArtifactInfo{}, err
		}
		opts.absent, opts.ifMatch = current == nil, current.etagOf()
		cond.Outcome.set(outcomeOf(current != nil, outcomeReplaced, outcomeCreated))
	}
	if c, ok := reader.(Charged); ok {
		opts.client, opts.revoke = c.Client(), c.Revoke
	}
	body := newExactReader(reader)
	if !opts.absent {
		opts.mayCommit = func() error { return s.mayReplace(siteID, buildID, opts.ifMatch != "") }
		if looksFirst(reader) {
			if err := opts.mayCommit(); err != nil {
				return ArtifactInfo{}, err
			}
		}
	}
	opts.hashed = s.digests.hashOf(reader)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	info, err := s.bucket.put(ctx, key, body, body.size, opts)
	if body.err != nil {
		return ArtifactInfo{}, fmt.Errorf("cannot store %q: %w", key, body.err)
	}
	if err != nil {
		info, err = s.resolveAmbiguousPut(key, opts, cond, err)
	}
	if err == nil && opts.hashed != nil {
		info.sum = opts.hashed.Sum()
		s.digests.keepUploaded(siteID, buildID, info)
	}
	return infoOfObject(info), err
}

// mayReplace fails with a labelledError if the build is there and a label protects it. known says
// that it is there: otherwise one stat finds out. A label that is moved to the build after the last
// call, which is right before the commit of the upload, does not prevent the replacement.
func (s *objectStore) mayReplace(siteID, buildID string, known bool) error {
	if !known {
		ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
		defer cancel()
		key := s.artifactKey(siteID, buildID)
		_, err := s.bucket.stat(ctx, key)
		if errors.Is(err, ErrNotFound) { // if the bucket is missing, the upload fails
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot stat %q: %w", key, err)
		}
	}
	labels, err := s.readLabels(context.Background(), siteID)
	if err != nil {
		return err
	}
	return checkUnlabelled(buildID, labels)
}

// resolveAmbiguousPut finds out whether a put that failed with cause was done. If the
// reply was lost, or an SDK's retry met the object of its own first attempt, the put may
// have succeeded: then the object has the upload id of opts. If it has not, another
// build may be there now, so cond is checked again.
func (s *objectStore) resolveAmbiguousPut(key string, opts putOptions, cond Precondition, cause error) (objectInfo, error) {
	conflict := errors.Is(cause, ErrPrecondition) || errors.Is(cause, errConflict)
	if !conflict && !errors.Is(cause, ErrUnavailable) {
		return objectInfo{}, fmt.Errorf("cannot store %q: %w", key, cause)
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	info, err := s.stat(ctx, key)
	switch {
	case err == nil && info.uploadID == opts.uploadID:
		return info, nil
	case err != nil && !errors.Is(err, ErrNotFound):
		// Not %w of cause: its ErrPrecondition may be due to our own put.
		return objectInfo{}, fmt.Errorf("%w: cannot tell whether %q was stored: %v; the upload failed with: %v", ErrUnavailable, key, err, cause)
	case !conflict:
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
	// Not %w of cause: the condition that failed is our own, on the ETag that was read
	// before, not the client's.
	return objectInfo{}, fmt.Errorf("%w: cannot store %q: a concurrent writer changed it: %v", ErrUnavailable, key, cause)
}

// StatArtifact implements ArtifactRanger.
func (s *objectStore) StatArtifact(siteID, buildID string) (ArtifactInfo, error) {
	key := s.artifactKey(siteID, buildID)
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	info, err := s.stat(ctx, key)
	if err != nil {
		return ArtifactInfo{}, fmt.Errorf("cannot stat %q: %w", key, err)
	}
	return infoOfObject(s.digests.describe(siteID, buildID, info)), nil
}

// FetchArtifactRange implements ArtifactRanger.
func (s *objectStore) FetchArtifactRange(siteID, buildID, etag string, offset, length int64) (ArtifactReader, error) {
	r, err := s.open(context.Background(), s.artifactKey(siteID, buildID), etag, offset, length)
	if err != nil {
		return nil, err
	}
	r.info = s.digests.describe(siteID, buildID, r.info)
	return r, nil
}

// ArtifactURL implements Redirector.
func (s *objectStore) ArtifactURL(siteID, buildID string, ttl time.Duration) (string, error) {
	key := s.artifactKey(siteID, buildID)
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	url, err := s.bucket.presign(ctx, key, ttl, siteID+"-"+buildID+artifactSuffix)
	if err != nil {
		return "", fmt.Errorf("cannot sign a URL for %q: %w", key, err)
	}
	return url, nil
}

// statIfExists describes the object, or returns nil if there is none.
func (s *objectStore) statIfExists(ctx context.Context, key string) (*objectInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	info, err := s.stat(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot stat %q: %w", key, err)
	}
	return &info, nil
}

// stat is the bucket's stat, with the error of checkBucket.
func (s *objectStore) stat(ctx context.Context, key string) (objectInfo, error) {
	info, err := s.bucket.stat(ctx, key)
	return info, s.checkBucket(err)
}

func (s *objectStore) artifactKey(siteID, buildID string) string {
	return s.artifactsPrefix(siteID) + buildID + artifactSuffix
}

func (s *objectStore) sitesPrefix() string { return s.prefix + sitesDir + "/" }

func (s *objectStore) sitePrefix(siteID string) string { return s.sitesPrefix() + siteID + "/" }

func (s *objectStore) artifactsPrefix(siteID string) string {
	return s.sitePrefix(siteID) + artifactsDir + "/"
}

func (s *objectStore) logsPrefix(siteID string) string {
	return s.sitePrefix(siteID) + logsDir + "/"
}

func (s *objectStore) digestKey(siteID, buildID string) string {
	return s.sitePrefix(siteID) + digestsDir + "/" + buildID + digestSuffix
}

func infoOfObject(o objectInfo) ArtifactInfo {
	return ArtifactInfo{Size: o.size, ModTime: o.modTime, ETag: o.etag, SHA256: o.sum}
}

// info describes the artifact o, or returns nil if o is nil.
func (o *objectInfo) info() *ArtifactInfo {
	if o == nil {
		return nil
	}
	a := infoOfObject(*o)
	return &a
}

// etagOf returns the ETag of o, or an empty string if o is nil.
func (o *objectInfo) etagOf() string {
	if o == nil {
		return ""
	}
	return o.etag
}
