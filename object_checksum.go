package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
)

// checksummer is a bucket that sends a checksum with each upload, once checkChecksums has
// found that the store refuses bytes that do not have it.
type checksummer interface {
	// checkChecksums sends uploads with wrong and right checksums to key. It fails if the
	// store accepts a wrong one, or refuses a right one. It leaves at most one object, under
	// key, and no unfinished upload. tested is false if this bucket does not need checksums.
	checkChecksums(ctx context.Context, key string) (tested bool, err error)
}

const (
	checksumCheck = "refuse an upload with a wrong checksum"
	// checksumsWithin is shorter than checkTimeout, so that a store that never responds to a
	// checksum is one that does not support it.
	checksumsWithin = checkTimeout / 2
)

// checksumsCheck caches whether checkChecksums has ended.
type checksumsCheck struct {
	known atomic.Bool
	probe cachedProbe[struct{}]
}

// learnChecksums starts checkChecksums in the background, unless its result is known. No write
// depends on the result, so none waits for it.
func (s *objectStore) learnChecksums() {
	if s.checksums.known.Load() {
		return
	}
	_, _ = s.checksums.probe.await(checkRetry, 0)
}

// probeChecksums runs checkChecksums. Its result is final unless it is an error.
func (s *objectStore) probeChecksums() (struct{}, error) {
	r, err := s.checkChecksums()
	if err == nil {
		s.checksums.known.Store(true)
	}
	if err == nil && r.err != nil {
		s.log.Info("the store does not check uploads; only TLS protects their bytes", "check", r.what, "error", r.err)
	}
	return struct{}{}, err
}

// checkChecksums tests whether the store refuses uploads with a wrong checksum. r is a warning
// if it does not, and empty if uploads need no checksums. err is set if the store does not
// respond.
func (s *objectStore) checkChecksums() (r checkResult, err error) {
	b, ok := s.bucket.(checksummer)
	if !ok {
		return r, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), checksumsWithin)
	defer cancel()
	c := s.newCheck(ctx)
	tested, err := b.checkChecksums(ctx, c.key)
	if tested {
		r = checkResult{what: checksumCheck, err: err, warning: true}
		defer c.clean()
	}
	if !errors.Is(err, ErrUnavailable) && (tested || err == nil) {
		return r, nil
	}
	// A store, or a proxy, that does not know the checksum may respond with any error. If the
	// store responds to other requests, it is that.
	if down := s.listChecks(); down != nil || !tested {
		return r, fmt.Errorf("cannot check the checksums of uploads: %w", err)
	}
	return r, nil
}
