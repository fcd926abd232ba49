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
	// logMemory is how much memory the logs take that are being changed, of all
	// builds together, and logWait how long an append waits for some of it.
	logMemory = 64 << 20
	logWait   = 10 * time.Second
)

// WriteLog implements Backend by compare-and-swap on the object of the log.
// Entries of one build that wait in this process go in one write.
func (s *objectStore) WriteLog(siteID string, entry LogEntry) error {
	if err := s.requireCapability(conditionalPut); err != nil {
		return err
	}
	key := s.logsPrefix(siteID) + entry.BuildID + logSuffix
	errs, i := s.appends.submit(key, entry, func(entries []LogEntry) []error { return s.appendLog(key, entries) })
	return errs[i]
}

// appendLog appends entries, and tells of each whether it is in the log now. It
// tries until it succeeds or appendTimeout has passed.
func (s *objectStore) appendLog(key string, entries []LogEntry) []error {
	ctx, cancel := context.WithTimeout(context.Background(), appendTimeout)
	defer cancel()
	s.stats.batch.Update(float64(len(entries)))
	wait := appendBackoff
	ids := idsToFind(entries)
	for {
		errs := make([]error, len(entries))
		err := s.tryAppend(ctx, key, entries, ids, errs)
		switch {
		case err == nil:
			return errs
		// After ErrUnavailable it may have been done all the same: the next
		// attempt finds the ids of the entries in the log.
		case errors.Is(err, errBucketGone),
			!errors.Is(err, ErrPrecondition) && !errors.Is(err, errConflict) && !errors.Is(err, ErrUnavailable):
			return slices.Repeat([]error{err}, len(entries))
		}
		ids = idsOfAll(entries)
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
// their own in errs. ids are those that the log may have.
func (s *objectStore) tryAppend(ctx context.Context, key string, entries []LogEntry, ids knownIDs, errs []error) error {
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	body, info, err := s.bucket.get(reading, key, "", 0, -1)
	err = s.checkBucket(err)
	absent := errors.Is(err, ErrNotFound)
	switch {
	case absent:
		body = io.NopCloser(bytes.NewReader(nil))
	case err != nil:
		return fmt.Errorf("cannot open %q: %w", key, err)
	}
	old := &objectReader{body: body, info: info, left: info.size, cancel: cancel}
	defer old.Close()
	switch {
	case info.size > maxLogRead:
		return fmt.Errorf("%w: %q has %d bytes", ErrLogFull, key, info.size)
	case info.size == 0 && !absent:
		return fmt.Errorf("%w: %q is empty", ErrDamaged, key)
	}
	// The store has told the size, and nothing is read yet.
	full, room := info.size >= maxLogSize, roomFor(entries, info.size)
	memory := scanCost(info.size)
	if !full {
		memory += info.size + 2*room // what is added is made apart, and then put behind
	}
	grant, err := s.memory.acquire(budgetRequest{client: entries[0].Client, n: memory})
	if err != nil {
		return fmt.Errorf("cannot append to %q: %w", key, err)
	}
	defer grant.release()
	if full {
		return refuseFull(old, entries, ids, errs)
	}
	log := make([]byte, info.size, info.size+room)
	if _, err := io.ReadFull(old, log); err != nil {
		return err
	}
	old.Close()
	head, tail, err := growLog(log, entries, errs, false)
	if err != nil {
		return fmt.Errorf("cannot append to %q: %w", key, err)
	}
	if len(tail) == 0 {
		return nil
	}
	log = append(head, tail...) // there is room for it behind the old log
	opts := putOptions{contentType: logType, absent: absent, ifMatch: info.etag}
	if _, err := s.bucket.put(ctx, key, bytes.NewReader(log), int64(len(log)), opts); err != nil {
		return fmt.Errorf("cannot write %q: %w", key, err)
	}
	return nil
}

// refuseFull puts an error into errs for each of entries that is not in the log old,
// which is full. It reads the log in pieces, and only if it may have one of ids.
func refuseFull(old io.Reader, entries []LogEntry, ids knownIDs, errs []error) error {
	if len(ids) > 0 {
		err := scanEntries(old, func(e LogEntry) error {
			ids.found(&e)
			return nil
		})
		if err != nil && !errors.Is(err, ErrDamaged) { // full, damaged or not
			return err
		}
	}
	for i := range entries {
		there, err := ids.repeats(&entries[i])
		if !there {
			err = ErrLogFull
		}
		errs[i] = err
	}
	return nil
}

// scanCost is how many bytes it takes to scan a log of size bytes: one entry of
// what clients can send, in a buffer that doubles, and once more as the entry.
func scanCost(size int64) int64 { return min(3*size, 3*2*maxEntrySize) }

// roomFor is how many bytes a log of size bytes grows by entries, at the most.
func roomFor(entries []LogEntry, size int64) int64 {
	const names, escaped = 200, 6 // bytes of an entry beside its values, and of a byte in a string
	var sum, largest int64
	for _, e := range entries {
		n := int64(names + escaped*(len(e.ID)+len(e.BuildID)+len(e.Action)+len(e.Status)) + len(e.Metadata))
		sum, largest = sum+n, max(largest, n)
	}
	return names + min(sum, max(0, maxLogSize-size)+largest) // the one that fills the log is the last
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
