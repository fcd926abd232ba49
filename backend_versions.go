package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// compareVersions orders newest first, ties by build id.
func compareVersions(a, b *Version) int {
	if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
		return c
	}
	return strings.Compare(a.BuildID, b.BuildID)
}

// place is where a version stands in the order of compareVersions.
type place struct {
	at    int64 // CreatedAt in nanoseconds
	build string
}

func (v *Version) place() place { return place{v.CreatedAt.UnixNano(), v.BuildID} }

func comparePlaces(a, b place) int {
	return cmp.Or(cmp.Compare(b.at, a.at), strings.Compare(a.build, b.build))
}

// movePlaces returns places, which are in order, without those of the builds in moved
// and with fresh, which it sorts. It does not change places.
func movePlaces(places []place, moved map[string]bool, fresh []place) []place {
	slices.SortFunc(fresh, comparePlaces)
	all := make([]place, 0, len(places)+len(fresh))
	for _, p := range places {
		if len(moved) > 0 && moved[p.build] {
			continue
		}
		for len(fresh) > 0 && comparePlaces(fresh[0], p) < 0 {
			all, fresh = append(all, fresh[0]), fresh[1:]
		}
		all = append(all, p)
	}
	return append(all, fresh...)
}

// cutPage returns the page that q selects out of all, which is in the order of
// compareVersions, and the cursor of the next one. The page starts behind the place
// that the cursor names, so that builds which come and go meanwhile shift nothing. It
// fails with ErrBadCursor.
func cutPage[T any](all []T, placeOf func(T) place, q VersionQuery) (page []T, next string, err error) {
	if q.Cursor != "" {
		after, err := parseCursor(q.Cursor)
		if err != nil {
			return nil, "", err
		}
		i, found := slices.BinarySearchFunc(all, after, func(t T, p place) int { return comparePlaces(placeOf(t), p) })
		if found {
			i++
		}
		all = all[i:]
	}
	if q.Limit > 0 && len(all) > q.Limit {
		return all[:q.Limit:q.Limit], formatCursor(placeOf(all[q.Limit-1])), nil
	}
	return all, "", nil
}

// pageVersions is cutPage of versions. Its result is not sealed.
func pageVersions(all []*Version, q VersionQuery) (*VersionPage, error) {
	versions, next, err := cutPage(all, (*Version).place, q)
	if err != nil {
		return nil, err
	}
	return &VersionPage{Versions: versions, NextCursor: next}, nil
}

// formatCursor returns the cursor of the page right behind p.
func formatCursor(p place) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(p.at))
	return base64.RawURLEncoding.EncodeToString(append(b, p.build...))
}

// parseCursor reads what formatCursor wrote, or fails with ErrBadCursor.
func parseCursor(s string) (place, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 9 || checkID(string(b[8:])) != nil {
		return place{}, fmt.Errorf("%w: %.100q", ErrBadCursor, s)
	}
	p := place{int64(binary.BigEndian.Uint64(b)), string(b[8:])}
	if formatCursor(p) != s { // the decoder ignores line breaks
		return place{}, fmt.Errorf("%w: %.100q", ErrBadCursor, s)
	}
	return p, nil
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

// versionSum is a hash of everything that a list shows of v, the same in every
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

// seal sets the tag and the size of p. It is called when the versions and NextCursor
// are set.
func (p *VersionPage) seal() {
	p.size = sizeOfVersions(p.Versions)
	h := sha256.New()
	for _, v := range p.Versions {
		sum := versionSum(v)
		h.Write(sum[:])
	}
	if p.NextCursor != "" { // that there is more is part of the response
		h.Write(make([]byte, 16))
	}
	p.Tag = hex.EncodeToString(h.Sum(nil)[:16])
}

// withDigests returns a copy of p, which is sealed, with the digests of its versions, in their
// order; zero where one is not known. The tag of the copy covers them.
func (p *VersionPage) withDigests(digests []Digest) *VersionPage {
	c := *p // p is shared
	c.digests, c.copied = digests, p
	h := sha256.New()
	for i := range digests {
		h.Write(digests[i][:])
		if digests[i].known() {
			c.size[0] += int64(digestMember)
			c.size[1] += int64(digestMember)
		}
	}
	if c.Tag != "" {
		c.Tag += "-d" + hex.EncodeToString(h.Sum(nil)[:16])
	}
	return &c
}

// withLabels returns a copy of p, which is sealed, with the names of the labels of its
// versions. The tag of the copy covers them.
func (p *VersionPage) withLabels(labels []Label) *VersionPage {
	c := *p // p is shared
	c.labels, c.copied = make([][]string, len(p.Versions)), p
	named := map[string][]string{} // by build, in the order of labels
	for _, l := range labels {
		named[l.BuildID] = append(named[l.BuildID], l.Name)
	}
	h := sha256.New()
	var buf []byte
	for i, v := range c.Versions {
		c.labels[i] = append([]string{}, named[v.BuildID]...)
		buf = appendLabelsMember(buf[:0], c.labels[i])
		h.Write(buf)
		c.size[0] += int64(len(buf))
		c.size[1] += int64(len(buf))
	}
	if c.Tag != "" {
		c.Tag += "-l" + hex.EncodeToString(h.Sum(nil)[:16])
	}
	return &c
}

// unread is called when the log of v, a version of p, could not be read as it was when
// p was made, with the cause. The log is forgotten, so that the next list reads it
// again. If the cause may affect others too, they are forgotten as well. It returns
// the error of the list, which is ErrUnavailable: the site itself is there.
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
			kept.BuildID, kept.Metadata = v.BuildID, nil
			if metadata {
				kept.Metadata = bytes.Clone(e.Metadata)
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

// listed is the result of a VersionQuery.
type listed struct {
	page *VersionPage
	err  error
}

// answerQueries returns the results of queries of one site, in their order. It calls page
// once for each limit, cursor, tag and Tags: a page does not depend on the rest of a query.
func answerQueries(queries []VersionQuery, page func(q VersionQuery) (*VersionPage, error)) []listed {
	results := make([]listed, len(queries))
	made := map[VersionQuery]listed{}
	for i, q := range queries {
		q = VersionQuery{Limit: q.Limit, Cursor: q.Cursor, Tag: q.Tag, Tags: q.Tags}
		result, ok := made[q]
		if !ok {
			result.page, result.err = page(q)
			made[q] = result
		}
		results[i] = result
	}
	return results
}

// listAll is the ListVersions of a store that is a VersionPager.
func listAll(store VersionPager, siteID string) ([]*Version, error) {
	page, err := store.ListVersionsPage(siteID, VersionQuery{Metadata: true})
	if err != nil {
		return nil, err
	}
	return page.withLogs(true)
}
