package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
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
	return s.queue.add(key, entry, func(entries []LogEntry) error { return s.appendTo(key, entries) })
}

// appendTo appends entries until it succeeds or appendTimeout has passed.
func (s *objectStore) appendTo(key string, entries []LogEntry) error {
	ctx, cancel := context.WithTimeout(context.Background(), appendTimeout)
	defer cancel()
	wait := appendBackoff
	for {
		err := s.tryAppend(ctx, key, entries)
		switch {
		case err == nil:
			return nil
		// After ErrUnavailable it may have been done all the same: the next
		// attempt finds the ids of the entries in the log.
		case !errors.Is(err, ErrPrecondition) && !errors.Is(err, errConflict) && !errors.Is(err, ErrUnavailable):
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: cannot append to %q in %s: %v", ErrUnavailable, key, appendTimeout, err)
		case <-time.After(rand.N(wait)):
			wait = min(2*wait, appendMaxWait)
		}
	}
}

// tryAppend appends what is not in the log yet, on the condition that the log
// is still the one that was read.
func (s *objectStore) tryAppend(ctx context.Context, key string, entries []LogEntry) error {
	old, info, err := s.readLog(ctx, key)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	var have []LogEntry
	opts := putOptions{contentType: logType, absent: err != nil, ifMatch: info.etag}
	if !opts.absent {
		if have, err = parseLog(old); err != nil {
			return fmt.Errorf("cannot append to %q: %w", key, err)
		}
	}
	added := newEntries(have, entries)
	if len(added) == 0 {
		return nil
	}
	if info.size >= maxLogSize {
		return fmt.Errorf("%w: %q has %d bytes", ErrLogFull, key, info.size)
	}
	data, err := appendLog(old, added)
	if err != nil {
		return err
	}
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

// newEntries are those of entries whose ids are not in have, each id once.
func newEntries(have, entries []LogEntry) []LogEntry {
	known := make(map[string]bool, len(have)+len(entries))
	for i := range have {
		known[have[i].ID] = true
	}
	var added []LogEntry
	for _, e := range entries {
		if !known[e.ID] {
			known[e.ID] = true
			added = append(added, e)
		}
	}
	return added
}

// appendQueue joins the entries that wait for one log into one write. The zero
// value is ready.
type appendQueue struct {
	mu      sync.Mutex
	waiting map[string][]*waitingEntry // a key that is present has a goroutine at work
}

type waitingEntry struct {
	entry LogEntry
	done  chan error
}

// add returns what write returned for a batch that held entry.
func (q *appendQueue) add(key string, entry LogEntry, write func([]LogEntry) error) error {
	w := &waitingEntry{entry, make(chan error, 1)}
	q.mu.Lock()
	if q.waiting == nil {
		q.waiting = map[string][]*waitingEntry{}
	}
	batch, busy := q.waiting[key]
	q.waiting[key] = append(batch, w)
	q.mu.Unlock()
	if !busy {
		go q.work(key, write)
	}
	return <-w.done
}

// work writes batches until nobody waits for key.
func (q *appendQueue) work(key string, write func([]LogEntry) error) {
	for {
		batch := q.take(key)
		if len(batch) == 0 {
			return
		}
		entries := make([]LogEntry, len(batch))
		for i, w := range batch {
			entries[i] = w.entry
		}
		err := write(entries)
		for _, w := range batch {
			w.done <- err
		}
	}
}

// take takes the next batch of key, of at most maxLogSize bytes of metadata.
func (q *appendQueue) take(key string) []*waitingEntry {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.waiting[key]
	if len(all) == 0 {
		delete(q.waiting, key)
		return nil
	}
	n, size := 0, 0
	for n < len(all) && (n == 0 || size+len(all[n].entry.Metadata) <= maxLogSize) {
		size += len(all[n].entry.Metadata)
		n++
	}
	q.waiting[key] = all[n:]
	return all[:n:n]
}
