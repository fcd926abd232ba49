package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// compareVersions orders newest first, ties by build id.
func compareVersions(a, b *Version) int {
	if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
		return c
	}
	return strings.Compare(a.BuildID, b.BuildID)
}

// pageVersions takes the page that q selects out of all, which is in the order
// of compareVersions. The page starts behind the place that the cursor names,
// so that builds which come and go meanwhile shift nothing. It fails with
// ErrBadCursor. Tag is left empty.
func pageVersions(all []*Version, q VersionQuery) (*VersionPage, error) {
	if q.Cursor != "" {
		after, err := parseCursor(q.Cursor)
		if err != nil {
			return nil, err
		}
		i, found := slices.BinarySearchFunc(all, after, compareVersions)
		if found {
			i++
		}
		all = all[i:]
	}
	page := &VersionPage{Versions: all}
	if q.Limit > 0 && len(all) > q.Limit {
		page.Versions = all[:q.Limit:q.Limit]
		page.NextCursor = formatCursor(page.Versions[q.Limit-1])
	}
	return page, nil
}

// formatCursor names the place right behind v in the order of compareVersions.
func formatCursor(v *Version) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(v.CreatedAt.UnixNano()))
	return base64.RawURLEncoding.EncodeToString(append(b, v.BuildID...))
}

// parseCursor reads what formatCursor wrote, or fails with ErrBadCursor.
func parseCursor(s string) (*Version, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 9 || checkID(string(b[8:])) != nil {
		return nil, fmt.Errorf("%w: %.100q", ErrBadCursor, s)
	}
	v := &Version{
		CreatedAt: time.Unix(0, int64(binary.BigEndian.Uint64(b))).UTC(),
		BuildID:   string(b[8:]),
	}
	if formatCursor(v) != s { // the decoder passes over line breaks
		return nil, fmt.Errorf("%w: %.100q", ErrBadCursor, s)
	}
	return v, nil
}

// listable returns v with metadata in its Logs that a list can show.
func (v *Version) listable() *Version {
	c := *v // v is shared
	c.Logs = slices.Clone(v.Logs)
	for i := range c.Logs {
		c.Logs[i].Metadata = listable(c.Logs[i].Metadata)
	}
	return &c
}

// versionSum is a hash of everything that a listing tells of v, the same in every
// process.
func versionSum(v *Version) [16]byte {
	b := appendSized(make([]byte, 0, 256), v.BuildID)
	b = binary.AppendVarint(b, v.SizeBytes)
	b = binary.AppendVarint(b, v.CreatedAt.UnixNano())
	b = appendSized(b, v.LogsError)
	switch {
	case v.Stored != nil:
		b = append(b, v.Stored.sum[:]...)
	case len(v.Logs) > 0:
		var entries entrySum
		for i := range v.Logs {
			entries.add(&v.Logs[i])
		}
		sum := entries.sum()
		b = append(b, sum[:]...)
	}
	sum := sha256.Sum256(b)
	return [16]byte(sum[:])
}

// tagOf joins the sums of versions, in their order, into the tag of a listing.
func tagOf(sums [][16]byte) string {
	h := sha256.New()
	for i := range sums {
		h.Write(sums[i][:])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// seal is called when the versions of p are complete, with their sums: it makes the
// tag, and notes the size.
func (p *VersionPage) seal(sums [][16]byte) {
	p.size = sizeOfVersions(p.Versions)
	if p.NextCursor != "" {
		sums = append(sums, [16]byte{}) // that there is more is part of the answer
	}
	p.Tag = tagOf(sums)
}

// unread is called with why the log of v, a version of p, was not read as it was
// announced. Nothing of such a log is remembered, so that the next list tells what
// there is. If the cause may be that of others too, they are looked at again as well.
// It returns the error of the list, which is ErrUnavailable: the site is there.
func (p *VersionPage) unread(v *Version, err error) error {
	if v.Stored == nil {
		return err
	}
	unavailable := errors.Is(err, ErrUnavailable)
	forget := func(v *Version) {
		if p.ForgetLog != nil && v.Stored != nil {
			p.ForgetLog(v)
		}
	}
	forget(v)
	if !unavailable && !errors.Is(err, ErrNotFound) {
		for _, other := range p.Versions {
			if other.Stored != nil && other.Stored.known(true) == nil {
				forget(other)
			}
		}
	}
	if unavailable {
		return err
	}
	return fmt.Errorf("%w: %v", errLogChanged, err)
}

// eachEntry calls f with the entries of v, which is a version of p, as
// storedLog.each does.
func (p *VersionPage) eachEntry(v *Version, metadata bool, f func(e *LogEntry) error) error {
	if v.Stored != nil {
		return v.Stored.each(metadata, func() (*openedLog, error) { return p.OpenLog(v.BuildID) }, f)
	}
	for i := range v.Logs {
		if err := f(&v.Logs[i]); err != nil {
			return err
		}
	}
	return nil
}

// withLogs returns the versions of p with the entries of all logs in memory.
func (p *VersionPage) withLogs(metadata bool) ([]*Version, error) {
	all := make([]*Version, len(p.Versions))
	for i, v := range p.Versions {
		c := *v // v is shared
		c.Stored = nil
		if v.Stored != nil {
			c.Logs = make([]LogEntry, 0, v.Stored.count)
		}
		err := p.eachEntry(v, metadata, func(e *LogEntry) error {
			kept := *e
			kept.BuildID = v.BuildID
			if !metadata {
				kept.Metadata = nil
			}
			c.Logs = append(c.Logs, kept)
			return nil
		})
		if err != nil {
			return nil, p.unread(v, err)
		}
		all[i] = &c
	}
	return all, nil
}
