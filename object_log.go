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
	// appendTimeout bounds an append, which begins anew whenever a concurrent writer
	// changed the log.
	appendTimeout = 30 * time.Second
	appendBackoff = 20 * time.Millisecond // the longest first wait; doubled each time
	appendMaxWait = 2 * time.Second
	// logMemory bounds the memory of all appends together, and logWait how long one
	// waits for its share.
	logMemory = 64 << 20
	logWait   = 10 * time.Second
)

// WriteLog implements Backend by compare-and-swap on the object of the log. Entries of one
// build that wait in this process share the next write.
func (s *objectStore) WriteLog(siteID string, entry LogEntry) error {
	if err := s.requireCapability(conditionalPut); err != nil {
		return err
	}
	key := s.logsPrefix(siteID) + entry.BuildID + logSuffix
	errs, i := s.appends.submit(key, entry, func(entries []LogEntry) []error { return s.appendLog(key, entries) })
	return errs[i]
}

// AppendLog implements LogAppender.
func (s *objectStore) AppendLog(siteID, buildID string, entries []LogEntry) []error {
	if err := s.requireCapability(conditionalPut); err != nil {
		return slices.Repeat([]error{err}, len(entries))
	}
	return s.appendLog(s.logsPrefix(siteID)+buildID+logSuffix, entries)
}

// appendLog appends entries and returns the error of each. It retries until it succeeds or
// appendTimeout has passed.
func (s *objectStore) appendLog(key string, entries []LogEntry) []error {
	ctx, cancel := context.WithTimeout(context.Background(), appendTimeout)
	defer cancel()
	s.stats.batch.Update(float64(len(entries)))
	wait := appendBackoff
	ids := idsToFind(entries)
	for retried := false; ; retried = true {
		errs := make([]error, len(entries))
		err := s.tryAppend(ctx, key, entries, ids, errs)
		switch {
		case err == nil:
			if retried {
				forgetSame(entries)
			}
			return errs
		// After ErrUnavailable the entries may have been written: the next attempt finds
		// their ids in the log.
		case errors.Is(err, errBucketGone),
			!errors.Is(err, ErrPrecondition) && !errors.Is(err, errConflict) && !errors.Is(err, ErrUnavailable):
			return slices.Repeat([]error{err}, len(entries))
		}
		ids = idsOfAll(entries)
		s.stats.conflicts.Inc()
		select {
		case <-ctx.Done():
			err = fmt.Errorf("%w: cannot append to %q within %s: %v", ErrUnavailable, key, appendTimeout, err)
			return slices.Repeat([]error{err}, len(entries))
		case <-time.After(rand.N(wait)):
			wait = min(2*wait, appendMaxWait)
		}
	}
}

// tryAppend appends the entries that are not in the log yet, on the condition that the log
// does not change between its read and its write. If an entry cannot be appended, its
// error is put into errs. ids are the ids of entries that may be in the log.
func (s *objectStore) tryAppend(ctx context.Context, key string, entries []LogEntry, ids knownIDs, errs []error) error {
	old, info, err := s.openLog(ctx, key)
	absent := errors.Is(err, ErrNotFound)
	if err != nil && !absent {
		return err
	}
	if !absent {
		defer old.Close()
		if info.Size == 0 {
			return fmt.Errorf("%w: %q is empty", ErrDamaged, key)
		}
	}
	// The size is known, but nothing is read yet.
	full, room := info.Size >= maxLogSize, roomFor(entries, info.Size)
	memory := scanMemory(info.Size)
	if !full {
		memory += info.Size + 2*room // the tail is encoded apart, and then appended to the old log
	}
	grant, err := s.memory.acquire(budgetRequest{client: entries[0].Client, n: memory})
	if err != nil {
		return fmt.Errorf("cannot append to %q: %w", key, err)
	}
	defer grant.release()
	if full {
		return refuseFull(old, entries, ids, errs)
	}
	log := make([]byte, info.Size, info.Size+room)
	if !absent {
		if _, err := io.ReadFull(old, log); err != nil {
			return err
		}
		old.Close()
		ids = idsOfAll(entries) // the whole log is parsed anyway, to see whether it is damaged
		if err := ids.scan(bytes.NewReader(log)); err != nil {
			return fmt.Errorf("cannot append to %q: %w", key, err)
		}
	}
	tail := ids.encodeTail(info.Size, entries, errs)
	if len(tail) == 0 {
		return nil
	}
	log = append(log[:endOfEntries(log)], tail...) // within the capacity of log
	opts := putOptions{contentType: logType, absent: absent, ifMatch: info.ETag}
	if _, err := s.bucket.put(ctx, key, bytes.NewReader(log), int64(len(log)), opts); err != nil {
		return fmt.Errorf("cannot write %q: %w", key, err)
	}
	return nil
}

// forgetSame corrects the outcome of entries that were found in the log by a later attempt:
// it may have been an earlier one that wrote them.
func forgetSame(entries []LogEntry) {
	for _, e := range entries {
		if e.Outcome == nil || *e.Outcome != outcomeSame {
			continue
		}
		*e.Outcome = ""
		if e.Fresh {
			*e.Outcome = outcomeCreated
		}
	}
}

// refuseFull sets the error of each entry that is not in the full log old. It streams the
// log, and only if the log may contain one of ids.
func refuseFull(old io.Reader, entries []LogEntry, ids knownIDs, errs []error) error {
	if len(ids) > 0 {
		if err := ids.scan(old); err != nil && !errors.Is(err, ErrDamaged) { // a full log may be damaged
			return err
		}
	}
	for i := range entries {
		exists, err := ids.has(&entries[i])
		entries[i].Outcome.set(outcomeSame)
		if !exists {
			err = ErrLogFull
		}
		errs[i] = err
	}
	return nil
}

// roomFor returns the largest number of bytes by which entries can make a log of size bytes
// longer.
func roomFor(entries []LogEntry, size int64) int64 {
	const names, escaped = 200, 6 // bytes of an entry apart from its values, and of one escaped byte in a string
	var sum, largest int64
	for _, e := range entries {
		n := int64(names + escaped*(len(e.ID)+len(e.BuildID)+len(e.Action)+len(e.Status)) + len(e.Metadata))
		sum, largest = sum+n, max(largest, n)
	}
	return names + min(sum, max(0, maxLogSize-size)+largest) // the entry that fills the log is the last one
}
