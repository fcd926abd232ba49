package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// bucketTTL is how long the result of a check for the bucket is reused.
const bucketTTL = 5 * time.Second

// probeInterval is how often the store is probed if nobody asks: at most 90,000 lists a month.
func (s *objectStore) probeInterval() time.Duration { return 30 * time.Second }

// Probe implements Prober. Every call lists. Until the check of capabilities has succeeded
// once, a call also runs that check, which writes, unless the service is read-only. Later
// calls do not write: that costs money, and the check has found out whether the store
// refuses writes.
func (s *objectStore) Probe() (Readiness, error) {
	var found Readiness
	if s.readOnly {
		return found, s.listChecks()
	}
	switch err := s.requireCapability(conditionalPut); {
	case err == nil, errors.Is(err, ErrUnsupported):
		s.learnChecksums()
	case errors.Is(err, ErrDenied), errors.Is(err, ErrNoSpace), errors.Is(err, ErrReadOnly):
		found.WriteError = err
	default:
		return found, err
	}
	return found, s.listChecks()
}

// listChecks lists one page of the keys of checks, to see whether the store answers.
func (s *objectStore) listChecks() error {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	err := s.bucket.list(ctx, s.prefix+checksDir, func([]objectInfo) error { return errStopList })
	if err != nil && !errors.Is(err, errStopList) {
		return fmt.Errorf("cannot list %q: %w", s.prefix+checksDir, err)
	}
	return nil
}

// errStopList ends a list after its first page.
var errStopList = errors.New("the list was stopped")

// checkBucket returns err. But if err is errAmbiguousNotFound, and it is not certain that the
// bucket exists, it returns an ErrUnavailable instead. It asks the store at most once in
// bucketTTL.
func (s *objectStore) checkBucket(err error) error {
	if !errors.Is(err, errAmbiguousNotFound) {
		return err
	}
	if _, gone := s.bucketProbe.get(bucketTTL); gone != nil {
		return fmt.Errorf("%w; the request failed with: %v", gone, err)
	}
	return err
}

// probeBucket fails with ErrUnavailable unless it knows that the bucket exists. It lists,
// because every store then says whether the bucket is missing, and the service needs the
// permission to list anyway.
func (s *objectStore) probeBucket() (struct{}, error) {
	err := s.listChecks()
	switch {
	case err == nil, errors.Is(err, ErrDenied): // a bucket that denies the list exists
		return struct{}{}, nil
	case errors.Is(err, ErrUnavailable):
		return struct{}{}, err
	}
	return struct{}{}, fmt.Errorf("%w: cannot tell whether the bucket exists: %v", ErrUnavailable, err)
}

var _ ClockTeller = (*objectStore)(nil)

// StoreTime implements ClockTeller. It is the clock of the modTime of objects, and may be a second
// behind.
func (s *objectStore) StoreTime() (time.Time, error) {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	c := s.newCheck(ctx)
	defer c.clean()
	info, err := c.put(putOptions{absent: true})
	if err == nil && info.modTime.IsZero() {
		info, err = s.bucket.stat(ctx, c.key)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: cannot tell the time of the store: %v", ErrUnavailable, s.checkBucket(err))
	}
	return info.modTime, nil
}
