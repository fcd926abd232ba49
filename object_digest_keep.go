package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// digestReaders is how many artifacts are described at once for lists with digests.
const digestReaders = 32

var errNoDigests = fmt.Errorf("%w: digests are off", ErrUnsupported)

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
// listed, the digest is not known.
func (s *objectStore) ListDigests(siteID string, versions []*Version) ([]Digest, error) {
	sums := make([]Digest, len(versions))
	if s.digests == nil {
		return sums, nil
	}
	g, ctx := errgroup.WithContext(context.Background())
	g.SetLimit(digestReaders)
	for i, v := range versions {
		if v.etag == "" { // it has no artifact
			continue
		}
		found, ok := s.digests.cache.Get(s.artifactKey(siteID, v.BuildID))
		if ok && found.isListed(v) && found.holds() {
			sums[i] = found.sum
			continue
		}
		g.Go(func() (err error) {
			sums[i], err = s.digests.listed(ctx, siteID, v)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("cannot look up digests: %w", err)
	}
	return sums, nil
}

// isListed reports whether f is about the artifact of v. A list has no upload id, and on some
// stores two uploads can have the same ETag, so it compares the time too.
func (f objectDigest) isListed(v *Version) bool {
	return f.etag == v.etag && f.size == v.SizeBytes && f.modTime.Truncate(time.Second).Equal(v.CreatedAt.Truncate(time.Second))
}

// listed looks up the digest of the artifact of v.
func (d *objectDigests) listed(ctx context.Context, siteID string, v *Version) (Digest, error) {
	select {
	case d.readers <- struct{}{}:
		defer func() { <-d.readers }()
	case <-ctx.Done():
		return Digest{}, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	info, err := d.s.stat(ctx, d.s.artifactKey(siteID, v.BuildID))
	if err == nil && info.etag == v.etag {
		var found objectDigest
		if info.sumInMetadata().known() || info.digest != digestElsewhere && !d.anyElsewhere() {
			found = d.remember(info, info.sumInMetadata(), unknownDigestTTL)
		} else {
			found, err = d.look(ctx, siteID, v.BuildID, info)
		}
		if err == nil {
			return found.sum, nil
		}
	}
	switch {
	case errors.Is(err, ErrNotFound):
		err = nil
	case errors.Is(err, ErrDenied):
		d.warn("cannot look up the digest of a build", info.key, err)
		err = nil
	}
	return Digest{}, err
}
