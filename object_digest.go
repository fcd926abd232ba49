package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Where the digest of an artifact is:
//
//   - In the metadata of the artifact, as the value of digestKey, where it is known in time: the
//     artifact and its digest appear in one step, and every stat returns both.
//   - Else in an object of its own, digests/{build}.sha256, which says which artifact it belongs
//     to (object_digest_format.go). The two cannot change in one step, so a reader compares.
//
// A store that has no object of the second kind is not asked for any: the first one is preceded
// by a status, digestsStatus, that each process looks for once in a while.

const (
	// digestKey is the name of the digest in the metadata of an artifact. Its value is
	// "{hex}:{size}", or digestElsewhere. The size guards against tools that change an object
	// and keep its metadata. Do not change it: processes of different versions share it.
	digestKey = "sha256"
	// digestElsewhere says that the digest was not known when the upload began, and is kept
	// in an object of its own.
	digestElsewhere = "object"

	// digestsStatus is the status that is there if the store may have digests that a GET of
	// the artifact does not return.
	digestsStatus = "digests"

	objectDigestsKept = 50_000           // digests in the cache: at most about 20 MB
	unknownDigestTTL  = 10 * time.Minute // for how long an unknown digest is not looked for again
	pendingDigestTTL  = 10 * time.Second // the same, if the upload is about to keep it
	noDigestsTTL      = time.Minute      // for how long a missing digestsStatus is not looked for again
	digestPause       = 30 * time.Second // after a failed look no digest is looked for
	digestLookWait    = 5 * time.Second  // how long a download waits for its digest
)

var _ DigestKeeper = (*objectStore)(nil)

// objectDigests keeps and looks up digests. It asks the store only for those that it cannot
// find in the metadata of the artifact or in its cache. A nil *objectDigests does nothing.
type objectDigests struct {
	s       *objectStore
	cache   *lru.Cache[string, objectDigest]  // by key of the artifact
	looks   batcher[objectInfo, objectDigest] // one look for an artifact at a time
	marked  atomic.Bool                       // digestsStatus is there
	status  cachedProbe[bool]                 // whether it is
	paused  atomic.Pointer[time.Time]         // until when no digest is looked for
	readers chan struct{}                     // a slot for each artifact that a list describes at once
	flood   *floodLog
}

// objectDigest is what was found out about the digest of one artifact. It holds for artifacts
// with the same identity only.
type objectDigest struct {
	etag, uploadID string
	size           int64
	modTime        time.Time // zero: not known
	sum            Digest    // zero: there was none
	until          time.Time // when to look again, if there was none
}

func (f objectDigest) isOf(o objectInfo) bool {
	return f.etag == o.etag && f.size == o.size && (o.bare || f.uploadID == o.uploadID)
}

// holds reports whether the digest need not be looked for again.
func (f objectDigest) holds() bool { return f.sum.known() || time.Now().Before(f.until) }

// useDigests makes the store keep digests and look them up. It is called before the first
// request.
func (s *objectStore) useDigests() {
	d := &objectDigests{
		s: s, cache: newLRU[string, objectDigest](objectDigestsKept),
		readers: make(chan struct{}, digestReaders), flood: newFloodLog(s.log),
	}
	d.status.probe, d.status.wait = d.probeStatus, digestLookWait
	s.digests = d
}

// hashOf returns the Hashed of a body whose digest is to be kept, or nil.
func (d *objectDigests) hashOf(body io.Reader) Hashed {
	if h, ok := body.(Hashed); ok && d != nil && h.Hashes() {
		return h
	}
	return nil
}

// withDigest sets what is kept in the metadata of an object of size bytes (-1: not known): the
// digest, as far as it is known now, that is, if the body has ended or its client announced it.
// A body that does not have the announced digest fails, so that nothing is stored.
func (o putOptions) withDigest(size int64) putOptions {
	if o.hashed == nil {
		return o
	}
	sum := o.hashed.Sum()
	if !sum.known() {
		sum = o.hashed.Announced()
	}
	o.digest = digestElsewhere
	if sum.known() && size >= 0 {
		o.digest = digestValue(sum, size)
	}
	return o
}

func digestValue(sum Digest, size int64) string {
	return sum.String() + ":" + strconv.FormatInt(size, 10)
}

// parseDigestValue is the reverse of digestValue.
func parseDigestValue(value string) (sum Digest, size int64, ok bool) {
	hex, n, _ := strings.Cut(value, ":")
	size, err := strconv.ParseInt(n, 10, 64)
	if sum, ok = parseDigest(hex); !ok || err != nil {
		return Digest{}, 0, false
	}
	return sum, size, true
}

// sumInMetadata returns the digest in the metadata of o, or zero.
func (o objectInfo) sumInMetadata() Digest {
	sum, size, ok := parseDigestValue(o.digest)
	if !ok || size != o.size {
		return Digest{}
	}
	return sum
}

// describe returns the artifact o with its digest, if that is known. It never fails: a digest
// that cannot be looked up is not known.
func (d *objectDigests) describe(siteID, buildID string, o objectInfo) objectInfo {
	if d == nil {
		return o
	}
	if o.sum = o.sumInMetadata(); o.sum.known() {
		return o
	}
	found, ok := d.cached(o)
	if !ok && o.digest != digestElsewhere && !d.anyElsewhere(noDigestsTTL) {
		return o
	}
	if !ok {
		// Waiting downloads of the same artifact share a look.
		found, _ = d.looks.submit(o.key, o, func(waiting []objectInfo) objectDigest {
			return d.lookOnce(siteID, buildID, waiting[0])
		})
	}
	if found.isOf(o) {
		o.sum = found.sum
	}
	return o
}

// cached returns what is remembered of the artifact o, and reports whether that is enough.
func (d *objectDigests) cached(o objectInfo) (objectDigest, bool) {
	found, ok := d.cache.Get(o.key)
	return found, ok && found.isOf(o) && found.holds()
}

// lookOnce looks for the digest of o for a download, unless it was found meanwhile, or looks
// have failed lately. Then, and if this one fails, it returns zero.
func (d *objectDigests) lookOnce(siteID, buildID string, o objectInfo) objectDigest {
	found, ok := d.cached(o)
	if ok || d.isPaused() {
		return found
	}
	ctx, cancel := context.WithTimeout(context.Background(), digestLookWait)
	defer cancel()
	found, err := d.look(ctx, siteID, buildID, o)
	if err != nil && !errors.Is(err, ErrNotFound) { // the artifact was not just removed
		d.lookFailed(o.key, err)
	}
	return found
}

// look looks for the digest of an artifact in the store, and remembers what it found. If o.bare
// is set, and o was replaced meanwhile, that is about the other artifact.
func (d *objectDigests) look(ctx context.Context, siteID, buildID string, o objectInfo) (objectDigest, error) {
	if o.bare {
		info, err := d.s.stat(ctx, o.key)
		if err != nil {
			return objectDigest{}, err
		}
		o = info
	}
	ttl := unknownDigestTTL
	sum := o.sumInMetadata()
	if !sum.known() {
		if o.digest == digestElsewhere {
			ttl = pendingDigestTTL
		}
		kept, err := d.read(ctx, siteID, buildID)
		switch {
		case err == nil && kept.isOf(o):
			sum = kept.sum
		case errors.Is(err, ErrDamaged):
			d.warn("cannot use the digest of a build", o.key, err)
		case err != nil && !errors.Is(err, ErrNotFound):
			return objectDigest{}, err
		}
	}
	return d.remember(o, sum, ttl), nil
}

// remember remembers the digest of o: sum, or if that is zero what is remembered already, which
// the store may have failed to keep. ttl is for an unknown digest.
func (d *objectDigests) remember(o objectInfo, sum Digest, ttl time.Duration) objectDigest {
	if found, ok := d.cache.Peek(o.key); ok && !sum.known() && found.isOf(o) {
		sum = found.sum
	}
	f := objectDigest{o.etag, o.uploadID, o.size, o.modTime, sum, time.Now().Add(ttl)}
	d.cache.Add(o.key, f)
	return f
}

func (d *objectDigests) isPaused() bool {
	until := d.paused.Load()
	return until != nil && time.Now().Before(*until)
}

// lookFailed is called if a digest could not be looked up. Every look makes a
// download wait, and the next ones would probably fail too: so it pauses them for a while.
func (d *objectDigests) lookFailed(key string, err error) {
	until := time.Now().Add(digestPause)
	d.paused.Store(&until)
	d.warn("cannot look up the digest of a build", key, err)
}

func (d *objectDigests) warn(text, key string, err error) {
	d.flood.add("digest", slog.LevelWarn, text, "key", key, "error", err)
}

// keepUploaded keeps the digest of an artifact that was just stored, unless its metadata has
// it. The upload has succeeded, so a failure is only logged.
func (d *objectDigests) keepUploaded(siteID, buildID string, o objectInfo) {
	if !o.sum.known() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	var err error
	if o.sumInMetadata() != o.sum {
		err = d.keep(ctx, siteID, buildID, o, o.sum)
	} else if b, ok := d.s.bucket.(bareGetter); ok && b.getsBare() {
		err = d.mark(ctx)
	}
	if err != nil && !errors.Is(err, ErrPrecondition) && !errors.Is(err, ErrNotFound) { // replaced or removed meanwhile
		d.warn("the build was stored, but its digest could not be kept", o.key, err)
	}
}

// keep keeps sum as the digest of the artifact o, outside of the put that stored it. If the
// store cannot keep it, this process still remembers it, so that it is not computed again.
func (d *objectDigests) keep(ctx context.Context, siteID, buildID string, o objectInfo, sum Digest) error {
	if o.sumInMetadata().known() {
		return fmt.Errorf("the metadata of %q has another digest", o.key)
	}
	d.remember(o, sum, 0)
	if err := d.mark(ctx); err != nil {
		return err
	}
	err := error(ErrUnsupported)
	if b, ok := d.s.bucket.(digestPatcher); ok {
		err = b.patchDigest(ctx, o, digestValue(sum, o.size))
	}
	if errors.Is(err, ErrUnsupported) || errors.Is(err, ErrDenied) {
		err = d.write(ctx, siteID, buildID, o, sum)
	}
	if err != nil {
		return fmt.Errorf("cannot keep the digest of %q: %w", o.key, err)
	}
	return nil
}

// remove removes the object of the digest of an artifact that was removed, if there can be one.
// Its metadata had the value digest, or empty if that is not known.
func (d *objectDigests) remove(ctx context.Context, siteID, buildID, digest string) error {
	d.cache.Remove(d.s.artifactKey(siteID, buildID))
	if digest != digestElsewhere && !d.marked.Load() {
		there, err := d.status.get(0) // another process may just have kept the first one
		if !there || err != nil {
			return err
		}
	}
	return ignoreMissing(d.s.remove(ctx, d.s.digestKey(siteID, buildID), ""))
}

// anyElsewhere reports whether the store may have digests that a GET of the artifact does not
// return. Until it has, the result is at most age old.
func (d *objectDigests) anyElsewhere(age time.Duration) bool {
	if d.marked.Load() {
		return true
	}
	there, err := d.status.get(age)
	return there && err == nil
}

// probeStatus reports whether digestsStatus is there.
func (d *objectDigests) probeStatus() (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), digestLookWait)
	defer cancel()
	key := d.s.statusKey(digestsStatus)
	_, err := d.s.bucket.stat(ctx, key)
	switch {
	case err == nil:
		d.marked.Store(true)
		return true, nil
	case errors.Is(err, ErrNotFound):
		return false, nil
	}
	d.warn("cannot find out whether the store has digests", key, err)
	return false, err
}

// mark writes digestsStatus unless it is there.
func (d *objectDigests) mark(ctx context.Context) error {
	if d.marked.Load() {
		return nil
	}
	if there, err := d.probeStatus(); there || err != nil && !errors.Is(err, ErrDenied) {
		return err
	}
	if err := d.s.writeStatus(ctx, digestsStatus, []byte(`{"digests":true}`+"\n")); err != nil {
		return err
	}
	d.marked.Store(true)
	return nil
}
