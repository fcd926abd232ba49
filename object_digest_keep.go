package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// digestReaders is how many artifacts are described at once for lists with digests.
const digestReaders = 32

// KeepDigest implements DigestKeeper.
func (s *objectStore) KeepDigest(siteID, buildID string, of ArtifactInfo, sum Digest) error {
	switch {
	case s.digests == nil:
		return errNoDigests
	case s.readOnly:
		return ErrReadOnly
	}
	key := s.artifactKey(siteID, buildID)
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	info, err := s.stat(ctx, key)
	if err != nil {
		return fmt.Errorf("cannot stat %q: %w", key, err)
	}
	if info.etag != of.ETag {
		return fmt.Errorf("%w: %q was replaced", ErrPrecondition, key)
	}
	if info.sumInMetadata() == sum {
		return nil
	}
	if s.digests.anyElsewhere(noDigestsTTL) {
		if _, err := s.digests.read(ctx, siteID, buildID); errors.Is(err, ErrDamaged) {
			s.digests.remember(info, sum, 0) // it need not be computed again
			return err
		}
	}
	return s.digests.keep(ctx, siteID, buildID, info, sum)
}

// KeptDigest implements DigestKeeper. A digest in the metadata of an object that has another
// size is bound to that size only: its ETag is empty.
func (s *objectStore) KeptDigest(siteID, buildID string) (KeptDigest, error) {
	if s.digests == nil {
		return KeptDigest{}, errNoDigests
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	info, err := s.stat(ctx, s.artifactKey(siteID, buildID))
	if err != nil && !errors.Is(err, ErrNotFound) {
		return KeptDigest{}, err
	}
	sum, size, inMetadata := parseDigestValue(info.digest)
	if inMetadata && size == info.size {
		return KeptDigest{SHA256: sum, Size: size, ETag: info.etag}, nil
	}
	found, err := s.digests.read(ctx, siteID, buildID)
	switch {
	case err == nil:
		// A tool that replaces an object leaves its upload id, or none.
		superseded := info.uploadID != "" && info.uploadID != found.uploadID
		return KeptDigest{SHA256: found.sum, Size: found.size, ETag: found.etag, Superseded: superseded}, nil
	case errors.Is(err, ErrNotFound) && inMetadata: // a tool has changed the bytes, and kept the metadata
		return KeptDigest{SHA256: sum, Size: size}, nil
	}
	return KeptDigest{}, err
}

// ListDigests implements DigestKeeper. A list of the store has no metadata, so each artifact
// that is not in the cache takes a stat. Of an artifact that was replaced since versions were
// listed, or that the store does not return, the digest is not known. So it never fails.
func (s *objectStore) ListDigests(siteID string, versions []*Version) ([]Digest, error) {
	sums := make([]Digest, len(versions))
	if s.digests == nil {
		return sums, nil
	}
	var g errgroup.Group
	g.SetLimit(digestReaders)
	var failed atomic.Int32 // looks since the last one that did not fail
	for i, v := range versions {
		if v.etag == "" { // it has no artifact
			continue
		}
		found, ok := s.digests.cache.Get(s.artifactKey(siteID, v.BuildID))
		if ok && found.isListed(v) && found.holds() {
			sums[i] = found.sum
			continue
		}
		g.Go(func() error {
			if failed.Load() >= digestReaders { // the store is down, and each look may take storeTimeout
				return nil
			}
			sum, err := s.digests.listed(siteID, v)
			switch {
			case err == nil, errors.Is(err, ErrNotFound): // deleted meanwhile
				sums[i] = sum
				failed.Store(0)
			default:
				failed.Add(1)
				s.digests.warn("cannot look up the digest of a build", s.artifactKey(siteID, v.BuildID), err)
			}
			return nil
		})
	}
	return sums, g.Wait()
}

// isListed reports whether f is about the artifact of v. A list has no upload id, and on some
// stores two uploads can have the same ETag, so it compares the time too.
func (f objectDigest) isListed(v *Version) bool {
	return f.etag == v.etag && f.size == v.SizeBytes && f.modTime.Truncate(time.Second).Equal(v.CreatedAt.Truncate(time.Second))
}

// listed looks up the digest of the artifact of v.
func (d *objectDigests) listed(siteID string, v *Version) (Digest, error) {
	d.readers <- struct{}{}
	defer func() { <-d.readers }()
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	info, err := d.s.stat(ctx, d.s.artifactKey(siteID, v.BuildID))
	if err != nil || info.etag != v.etag {
		return Digest{}, err
	}
	sum := info.sumInMetadata()
	found, ok := d.cached(info)
	switch {
	case sum.known():
	case ok && found.sum.known():
		sum = found.sum
	case info.digest == digestElsewhere || d.anyElsewhere(noDigestsTTL):
		found, err = d.look(ctx, siteID, v.BuildID, info)
		return found.sum, err
	}
	return d.remember(info, sum, unknownDigestTTL).sum, nil
}
