package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
)

const (
	copyLogBytes   = 4 << 20 // bytes, about, of the entries that are appended at once
	copyLogEntries = 10_000  // and their number
)

// errOtherEntry: the log of the target cannot get an entry of the source.
var errOtherEntry = errors.New("the target, or the source itself, has another entry with the same id")

// log appends the entries that the log of the target lacks, and reports it. A dry run only counts
// them. Its errors end the run.
func (s *copySite) log(ctx context.Context, w *buildWork) error {
	s.mu.Lock()
	bad := s.bad[w.from.id] != ""
	s.mu.Unlock()
	if !w.log || bad { // the target has another build under this id
		return nil
	}
	var appended int64
	err := s.retryLog(ctx, w, func() error { return s.copyLog(ctx, w, &appended) })
	e := copyEvent{Type: copyLogType, Site: s.id, Build: w.from.id, Result: copyAppended, Entries: appended}
	if s.options.DryRun {
		e.Result = planAppend
	}
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
	if e.Result != copyAppended { // otherwise the next list shows whether they are there
		s.mu.Lock()
		s.logs[w.from.id] = w.from.log()
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

// copyLog appends the entries of the source that the target lacks, in their order, and counts
// them. The target may have them in another order, and others between them. It fails with
// errOtherEntry if two entries have the same id and differ.
func (s *copySite) copyLog(ctx context.Context, w *buildWork, appended *int64) error {
	if s.options.DryRun {
		*appended = 0 // of an attempt before
		if !w.toHasLog && w.from.logsError == "" {
			*appended = int64(w.from.entries)
			return nil
		}
	}
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
	known, err := entriesOfTarget(ctx, w)
	if err != nil {
		return fmt.Errorf("the log of the target: %w", notSource(err))
	}
	batch := logBatch{s: s, build: w.from.id, appended: appended}
	err = from.scan(func(e LogEntry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		old, ok := known[e.ID]
		switch says := saysOf(&e); {
		case !ok:
			known[e.ID] = says
			return batch.add(e)
		case old != says:
			return fmt.Errorf("%w: %q", errOtherEntry, e.ID)
		}
		return nil
	})
	if err == nil {
		err = batch.flush()
	}
	return err
}

// entrySays is what an entry says, besides its id.
type entrySays struct {
	content contentSum
	at      int64
}

func saysOf(e *LogEntry) entrySays { return entrySays{sumOfContent(e), e.Timestamp.UnixNano()} }

// entriesOfTarget returns the entries of the log of the target by their ids.
func entriesOfTarget(ctx context.Context, w *buildWork) (map[string]entrySays, error) {
	known := map[string]entrySays{}
	if !w.toHasLog {
		return known, nil
	}
	to, err := w.toLog(w.from.id)
	if errors.Is(err, ErrNotFound) {
		return known, nil
	}
	if err != nil {
		return nil, err
	}
	defer to.Close()
	return known, to.scan(func(e LogEntry) error {
		if _, ok := known[e.ID]; !ok { // the first one counts, as for AppendLog
			known[e.ID] = saysOf(&e)
		}
		return ctx.Err()
	})
}

// logBatch is entries that the target lacks.
type logBatch struct {
	s        *copySite
	build    string
	entries  []LogEntry
	bytes    int
	appended *int64
}

func (b *logBatch) add(e LogEntry) error {
	e.BuildID, e.Metadata, e.Copied, e.Outcome = b.build, bytes.Clone(e.Metadata), true, new(Outcome)
	b.entries = append(b.entries, e)
	if b.bytes += len(e.ID) + len(e.Action) + len(e.Status) + len(e.Metadata) + 100; b.bytes < copyLogBytes && len(b.entries) < copyLogEntries {
		return nil
	}
	return b.flush()
}

// flush appends the entries. A dry run only counts them.
func (b *logBatch) flush() error {
	var first error
	switch {
	case len(b.entries) == 0:
		return nil
	case b.s.options.DryRun:
		*b.appended += int64(len(b.entries))
		b.entries, b.bytes = b.entries[:0], 0
		return nil
	}
	for i, err := range b.s.to.AppendLog(b.s.id, b.build, b.entries) {
		switch {
		case err != nil && first == nil:
			first = fmt.Errorf("the entry %q: %w", b.entries[i].ID, notSource(err))
		case err == nil && *b.entries[i].Outcome != outcomeSame: // otherwise somebody else appended it meanwhile
			*b.appended++
		}
	}
	b.entries, b.bytes = b.entries[:0], 0
	return first
}
