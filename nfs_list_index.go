package main

import (
	"sync/atomic"
	"time"
	"weak"
)

// siteIndex is what is known of the builds of a site. It is used by one goroutine
// at a time. What it gives away, versions and logs, never changes.
type siteIndex struct {
	artifacts watchedDir[builtAt]
	logs      watchedDir[logValue]
	watch     *dirWatch // of the directory of artifacts; nil: it is not watched

	places  []place         // of all builds, in order; nil: not known. Never changed
	moved   map[string]bool // builds that may have another place since, or none
	logOnly map[string]bool // builds without an artifact
	sorted  bool            // places and logOnly are up to date

	whole *VersionPage              // of all versions; nil: not made, or large
	large weak.Pointer[VersionPage] // the same, of more than keptWhole versions, while it is being sent
	seal  *pageSeal                 // of the page of all versions; nil: not known
	stale *atomic.Bool              // a log is stale; set while lists are sent

	bytes int64 // of memory, about, that listings charges for it; guarded by its mu
	fixed int64 // of these, for all but entries
}

// builtAt is what a list shows of an artifact.
type builtAt struct{ size, mtime int64 }

// logValue is what was read of a log.
type logValue struct {
	sighting
	log   *storedLog // nil unless state is logRead
	state logState
}

type logState uint8

const (
	logUnread logState = iota
	logRead
	logDamaged    // ErrDamaged
	logTooLarge   // ErrLogFull
	logOccupied   // ErrOccupied
	logUnreadable // the next list tries again
)

// problem returns why the entries of the log are not listed, or an empty string.
func (s logState) problem() string {
	switch s {
	case logDamaged:
		return ErrDamaged.Error()
	case logTooLarge:
		return ErrLogFull.Error()
	case logOccupied:
		return ErrOccupied.Error()
	case logUnreadable:
		return unreadableLog
	}
	return ""
}

// known reports whether the log need not be read again while the file stays.
func (s logState) known() bool { return s != logUnread && s != logUnreadable }

// The memory that siteIndex.size counts, in bytes, about.
const (
	siteBytes     = 1 << 10
	artifactBytes = 110
	logBytes      = 250
	versionBytes  = 110
)

func newSiteIndex() *siteIndex {
	return &siteIndex{
		artifacts: newWatchedDir[builtAt](artifactsDir),
		logs:      newWatchedDir[logValue](logsDir),
		moved:     make(map[string]bool),
		logOnly:   make(map[string]bool),
		stale:     new(atomic.Bool),
	}
}

// size estimates the memory that ix takes, without the entries of logs.
func (ix *siteIndex) size() int64 {
	size := int64(siteBytes + len(ix.artifacts.files)*artifactBytes + len(ix.logs.files)*logBytes)
	if ix.whole != nil {
		size += int64(len(ix.whole.Versions) * versionBytes)
	}
	return size
}

// forgetLogs drops the entries of all logs from memory. The next list reads them again.
func (ix *siteIndex) forgetLogs() {
	for _, f := range ix.logs.files {
		f.value.log.forget()
	}
	ix.setWhole(nil)
}

// changed notes that the places, and the page of all versions, are out of date.
func (ix *siteIndex) changed() {
	ix.sorted = false
	ix.seal = nil
	ix.setWhole(nil)
}

// wholePage returns the page of all versions, nil if it must be made.
func (ix *siteIndex) wholePage() *VersionPage {
	if ix.whole != nil {
		return ix.whole
	}
	return ix.large.Value()
}

// setWhole sets the page of all versions. A large one is shared by those to whom it is
// being sent, and is not kept after that.
func (ix *siteIndex) setWhole(page *VersionPage) {
	ix.whole, ix.large = nil, weak.Pointer[VersionPage]{}
	switch {
	case page == nil:
	case len(page.Versions) <= keptWhole:
		ix.whole = page
	default:
		ix.large = weak.Make(page)
	}
}

// move notes that a build may have another place, or none.
func (ix *siteIndex) move(build string) {
	ix.changed()
	if ix.places != nil {
		ix.moved[build] = true
	}
}

// createdAt returns when the first entry was written; of a log that cannot be read,
// when it was written itself.
func (v *logValue) createdAt() time.Time {
	if v.log != nil {
		return v.log.first
	}
	return time.Unix(0, v.id.mtime).UTC()
}

// placeOf returns the place of a build, if it has an artifact or a log.
func (ix *siteIndex) placeOf(build string) (p place, ok bool) {
	if f := ix.artifacts.files[build]; f != nil {
		return place{f.value.mtime, build}, true
	}
	if f := ix.logs.files[build]; f != nil {
		return place{f.value.createdAt().UnixNano(), build}, true
	}
	return place{}, false
}
