package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
)

const (
	copyLogBytes   = 4 << 20 // bytes, about, of the entries that are appended at once
	copyLogEntries = 10_000  // and their number
)

// The log of the target cannot become that of the source.
var (
	errOtherEntry = errors.New("the log of the target has other entries")
	errOtherOrder = fmt.Errorf("%w: they are in another order, or two of the source have the same id", errOtherEntry)
)

// log appends the entries that the log of the target lacks, and reports it. Its errors end the
// run.
func (s *copySite) log(ctx context.Context, w *buildWork) error {
	s.mu.Lock()
	bad := s.bad[w.from.id] != ""
	s.mu.Unlock()
	if !w.log || bad { // the target has another build under this id
		return nil
	}
	var appended int64
	err := s.retryLog(ctx, w, func() error { return s.copyLog(ctx, w, &appended) })
	if errors.Is(err, errOtherOrder) && appended == 0 { // unless somebody else appends the same entries now
		err = s.retryLog(ctx, w, func() error { return s.copyLog(ctx, w, &appended) })
	}
	if errors.Is(err, errOtherOrder) && appended > 0 { // the next list shows which
		err = nil
	}
	e := copyEvent{Type: copyLogType, Site: s.id, Build: w.from.id, Result: copyAppended, Entries: appended}
	var failure error
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil && appended == 0:
		e.Result = copySame
	case err == nil:
	case errors.Is(err, ErrNotFound): // deleted in the source
		e.Result = copyGone
	case errors.Is(err, ErrDamaged):
		e.Result, e.Detail = copyCorrupt, oneLine(err)
	case errors.Is(err, errOtherEntry), errors.Is(err, ErrKeyReused):
		e.Result, e.Detail = copyConflict, oneLine(err)
	default:
		e.Result, e.Detail, failure = copyFailed, oneLine(err), err
	}
	if e.Result != copyAppended { // otherwise the next list shows whether more came
		s.mu.Lock()
		s.logs[w.from.id] = w.from.log() + "|" + w.to.log()
		s.mu.Unlock()
	}
	stop := s.countFailure(failure)
	if err := s.report.add(e); err != nil {
		return err
	}
	return stop
}

// retryLog is retry, but not after errors that are about the entries.
func (s *copySite) retryLog(ctx context.Context, w *buildWork, f func() error) (err error) {
	retried := s.retry(ctx, func() error {
		err = f()
		w.toHasLog = true // an attempt that failed may have made it
		for _, lasting := range []error{ErrDamaged, errOtherEntry, ErrKeyReused, ErrLogFull, ErrNotFound} {
			if errors.Is(err, lasting) {
				return nil
			}
		}
		return err
	})
	if err == nil {
		err = retried
	}
	return err
}

// copyLog appends the entries of the source that the target lacks, and counts them. Other entries
// of the target may stand between them. It reads both logs side by side, so it holds few entries
// at once. It fails with errOtherOrder if the target has entries that it did not find in their
// place.
func (s *copySite) copyLog(ctx context.Context, w *buildWork, appended *int64) error {
	from, err := w.fromLog(w.from.id)
	if err != nil {
		return err
	}
	defer from.Close()
	if w.from.logsError != "" { // nothing is copied of half a log
		if err := from.scan(func(LogEntry) error { return ctx.Err() }); err != nil {
			return err
		}
		return fmt.Errorf("%w: %s", ErrUnavailable, w.from.logsError)
	}
	next, stop := s.entriesOf(w)
	defer stop()
	batch := logBatch{s: s, build: w.from.id, appended: appended}
	err = from.scan(func(e LogEntry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		for {
			t, err, more := next()
			switch {
			case !more: // nothing is left of the target
				return batch.add(e)
			case err != nil:
				return fmt.Errorf("the log of the target: %w", notSource(err))
			case t.ID == e.ID:
				return sameEntry(e, t)
			}
		}
	})
	if err == nil {
		err = batch.flush()
	}
	if err == nil && batch.misplaced {
		err = errOtherOrder
	}
	return err
}

// entriesOf returns the entries of the log of the target.
func (s *copySite) entriesOf(w *buildWork) (next func() (LogEntry, error, bool), stop func()) {
	return iter.Pull2(func(yield func(LogEntry, error) bool) {
		if !w.toHasLog {
			return
		}
		to, err := w.toLog(w.from.id)
		if errors.Is(err, ErrNotFound) {
			return
		}
		if err == nil {
			err = to.scan(func(e LogEntry) error {
				if !yield(e, nil) {
					return errAllRead
				}
				return nil
			})
			to.Close() // before it is replaced
		}
		if err != nil && err != errAllRead {
			yield(LogEntry{}, err)
		}
	})
}

// sameEntry fails with errOtherEntry unless t, of the target, says what e says.
func sameEntry(e, t LogEntry) error {
	if !e.Timestamp.Equal(t.Timestamp) || sumOfContent(&e) != sumOfContent(&t) {
		return fmt.Errorf("%w: the one with the id %q differs", errOtherEntry, e.ID)
	}
	return nil
}

// logBatch is entries that the target lacks.
type logBatch struct {
	s        *copySite
	build    string
	entries  []LogEntry
	bytes    int
	appended *int64

	misplaced bool // the log has one of them all the same
}

func (b *logBatch) add(e LogEntry) error {
	e.BuildID, e.Metadata, e.Copied, e.Outcome = b.build, bytes.Clone(e.Metadata), true, new(Outcome)
	b.entries = append(b.entries, e)
	if b.bytes += len(e.ID) + len(e.Action) + len(e.Status) + len(e.Metadata) + 100; b.bytes < copyLogBytes && len(b.entries) < copyLogEntries {
		return nil
	}
	return b.flush()
}

// flush appends the entries.
func (b *logBatch) flush() error {
	if len(b.entries) == 0 {
		return nil
	}
	var first error
	for i, err := range b.s.to.AppendLog(b.s.id, b.build, b.entries) {
		switch {
		case err != nil && first == nil:
			first = fmt.Errorf("the entry %q: %w", b.entries[i].ID, notSource(err))
		case err == nil && *b.entries[i].Outcome == outcomeSame:
			b.misplaced = true
		case err == nil:
			*b.appended++
		}
	}
	b.entries, b.bytes = b.entries[:0], 0
	return first
}
