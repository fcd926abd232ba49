package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// appendTimeout bounds the attempts to append, which begin anew whenever
	// another process was faster.
	appendTimeout = 30 * time.Second
	appendBackoff = 20 * time.Millisecond // the first wait at most; doubled each time
	appendMaxWait = 2 * time.Second
	// maxLogRead is the size of the largest log that is read at all.
	maxLogRead = 4 * maxLogSize
)

// WriteLog implements Backend by compare-and-swap on the object of the log.
// Entries of one build that wait in this process go in one write.
func (s *objectStore) WriteLog(siteID string, entry LogEntry) error {
	if err := s.trusted(conditionalPut); err != nil {
		return err
	}
	key := s.logsPrefix(siteID) + entry.BuildID + logSuffix
	errs, i := s.appends.do(key, entry, func(entries []LogEntry) []error { return s.appendLog(key, entries) })
	return errs[i]
}

// appendLog appends entries, and tells of each whether it is in the log now. It
// tries until it succeeds or appendTimeout has passed.
func (s *objectStore) appendLog(key string, entries []LogEntry) []error {
	ctx, cancel := context.WithTimeout(context.Background(), appendTimeout)
	defer cancel()
	s.stats.batch.Update(float64(len(entries)))
	wait := appendBackoff
	for {
		errs := make([]error, len(entries))
		err := s.tryAppend(ctx, key, entries, errs)
		switch {
		case err == nil:
			return errs
		// After ErrUnavailable it may have been done all the same: the next
		// attempt finds the ids of the entries in the log.
		case !errors.Is(err, ErrPrecondition) && !errors.Is(err, errConflict) && !errors.Is(err, ErrUnavailable):
			return slices.Repeat([]error{err}, len(entries))
		}
		s.stats.conflicts.Inc()
		select {
		case <-ctx.Done():
			err = fmt.Errorf("%w: cannot append to %q in %s: %v", ErrUnavailable, key, appendTimeout, err)
			return slices.Repeat([]error{err}, len(entries))
		case <-time.After(rand.N(wait)):
			wait = min(2*wait, appendMaxWait)
		}
	}
}

// tryAppend appends what is not in the log yet, on the condition that the log
// is still the one that was read. Entries that cannot be added have errors of
// their own in errs.
func (s *objectStore) tryAppend(ctx context.Context, key string, entries []LogEntry, errs []error) error {
	old, info, err := s.readLog(ctx, key)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	opts := putOptions{contentType: logType, absent: err != nil, ifMatch: info.etag}
	if len(old) == 0 && !opts.absent {
		return fmt.Errorf("%w: %q is empty", ErrDamaged, key)
	}
	head, tail, err := growLog(old, entries, errs, false)
	if err != nil {
		return fmt.Errorf("cannot append to %q: %w", key, err)
	}
	if len(tail) == 0 {
		return nil
	}
	data := slices.Concat(head, tail)
	if _, err := s.bucket.put(ctx, key, bytes.NewReader(data), int64(len(data)), opts); err != nil {
		return fmt.Errorf("cannot write %q: %w", key, err)
	}
	return nil
}

// readLog reads the whole log.
func (s *objectStore) readLog(ctx context.Context, key string) ([]byte, objectInfo, error) {
	body, info, err := s.bucket.get(ctx, key, "", 0, -1)
	if err != nil {
		return nil, info, fmt.Errorf("cannot open %q: %w", key, err)
	}
	defer body.Close()
	if info.size > maxLogRead {
		return nil, info, fmt.Errorf("%w: %q has %d bytes", ErrLogFull, key, info.size)
	}
	data := make([]byte, info.size)
	if _, err := io.ReadFull(body, data); err != nil {
		return nil, info, fmt.Errorf("%w: cannot read %q: %v", ErrUnavailable, key, err)
	}
	return data, info, nil
}
