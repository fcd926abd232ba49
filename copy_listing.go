package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// listedBuild is what a list has about a build.
type listedBuild struct {
	id        string
	size      int64
	createdAt time.Time
	arrivedAt time.Time // zero: the store must be asked
	etag      string    // of the artifact; empty: no artifact
	sum       Digest    // of the artifact, if it was looked up and is known

	entries   int // of the log
	logSum    [16]byte
	logsError string
}

// artifact returns a tag of the artifact. b may be nil.
func (b *listedBuild) artifact() string {
	if b == nil {
		return ""
	}
	return b.etag
}

// log returns a tag of what the log says; empty: no log. b may be nil.
func (b *listedBuild) log() string {
	if !b.hasLog() {
		return ""
	}
	return fmt.Sprintf("%d %x %s", b.entries, b.logSum, b.logsError)
}

func (b *listedBuild) hasLog() bool { return b != nil && (b.entries > 0 || b.logsError != "") }

// version returns b as ListDigests needs it.
func (b *listedBuild) version() *Version {
	return &Version{BuildID: b.id, SizeBytes: b.size, CreatedAt: b.createdAt, etag: b.etag}
}

// copyListing is a site as one side has it.
type copyListing struct {
	builds  []*listedBuild // the oldest first
	byID    map[string]*listedBuild
	labels  []Label
	openLog func(buildID string) (*openedLog, error) // of this side
}

// list lists a side. The labels come first: then their builds are in the list.
func (s *copySite) list(ctx context.Context, store copyable) (*copyListing, error) {
	l := &copyListing{byID: map[string]*listedBuild{}}
	err := s.retry(ctx, func() (err error) {
		l.labels, err = store.ListLabels(s.id)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = s.eachPage(ctx, store, s.id, VersionQuery{Tags: true}, func(page *VersionPage) error {
		l.openLog = page.OpenLog
		for _, v := range page.Versions {
			b := &listedBuild{id: v.BuildID, size: v.SizeBytes, createdAt: v.CreatedAt, arrivedAt: v.arrivedAt, etag: v.etag, logsError: v.LogsError}
			if v.Stored != nil {
				b.entries, b.logSum = v.Stored.count, v.Stored.sum
			}
			l.builds = append(l.builds, b)
			l.byID[b.id] = b
		}
		return nil
	})
	slices.Reverse(l.builds)
	return l, err
}

// older returns the builds that --since leaves out: those that arrived earlier, and that no label
// of the source names.
func (s *copySite) older(ctx context.Context, from, to *copyListing) (map[string]bool, error) {
	older := map[string]bool{}
	if s.options.Since == 0 {
		return older, nil
	}
	teller, _ := s.from.(ArrivalTeller)
	oldest := s.start.Add(-s.options.Since)
	for _, b := range from.builds {
		at := b.arrivedAt
		switch {
		case !at.IsZero():
		case teller == nil:
			at = b.createdAt
		default:
			err := s.retry(ctx, func() (err error) {
				if at, err = teller.ArrivedAt(s.id, b.id); errors.Is(err, ErrNotFound) { // deleted meanwhile
					err = nil
				}
				return err
			})
			if err != nil {
				return nil, err
			}
		}
		if at.Before(oldest) {
			older[b.id] = true
		}
	}
	for _, l := range from.labels {
		delete(older, l.BuildID)
	}
	return older, nil
}

// lookUpDigests sets the digests of the builds that both sides have with the same size.
func (s *copySite) lookUpDigests(ctx context.Context, from, to *copyListing, older map[string]bool) error {
	var pairs []*listedBuild
	for _, b := range from.builds {
		if t := to.byID[b.id]; b.etag != "" && t.artifact() != "" && t.size == b.size && !older[b.id] {
			pairs = append(pairs, b)
		}
	}
	for part := range slices.Chunk(pairs, copyPage) {
		for _, side := range []struct {
			store copyable
			of    func(b *listedBuild) *listedBuild
		}{{s.from, func(b *listedBuild) *listedBuild { return b }}, {s.to, func(b *listedBuild) *listedBuild { return to.byID[b.id] }}} {
			versions := make([]*Version, len(part))
			for i, b := range part {
				versions[i] = side.of(b).version()
			}
			var sums []Digest
			err := s.retry(ctx, func() (err error) {
				sums, err = side.store.ListDigests(s.id, versions)
				return err
			})
			if err != nil {
				return err
			}
			for i, b := range part {
				side.of(b).sum = sums[i]
			}
		}
	}
	return nil
}
