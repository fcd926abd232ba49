package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
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

// versionSum is a hash of everything that a listing tells of v but metadata,
// the same in every process.
func versionSum(v *Version) [16]byte {
	b := make([]byte, 0, 256)
	str := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	str(v.BuildID)
	b = binary.AppendVarint(b, v.SizeBytes)
	b = binary.AppendVarint(b, v.CreatedAt.UnixNano())
	str(v.LogsError)
	for i := range v.Logs {
		e := &v.Logs[i]
		str(e.ID) // names the entry, and so its metadata, which never changes
		str(e.Action)
		str(e.Status)
		b = binary.AppendVarint(b, e.Timestamp.UnixNano())
	}
	sum := sha256.Sum256(b)
	return [16]byte(sum[:16])
}

// tagOf joins the sums of versions, in their order, into the tag of a listing.
func tagOf(sums [][16]byte) string {
	h := sha256.New()
	for i := range sums {
		h.Write(sums[i][:])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// sortEntries puts the entries of a log into the order in which they are
// listed: oldest first, as appended where the times are equal.
func sortEntries(entries []LogEntry) {
	slices.SortStableFunc(entries, func(a, b LogEntry) int { return cmp.Compare(a.Timestamp.UnixNano(), b.Timestamp.UnixNano()) })
}
