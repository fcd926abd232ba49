package main

import (
	"io"
	"time"
)

// LogAppender is a store that can append many entries to a log at once.
type LogAppender interface {
	// AppendLog appends entries to the log of the build, as WriteLog does with each of them in
	// their order, and returns the error of each. Entries of others may stand between them.
	AppendLog(siteID, buildID string, entries []LogEntry) []error
}

// Dated is a reader, passed to StoreArtifact, of a build that another store has had since
// ModTime. A store that can choose the time of a build gives it this one, unless it is in the
// future.
type Dated interface {
	ModTime() time.Time
}

// dateOf returns the ModTime of r, or zero if r is not Dated, or if ModTime is after now.
func dateOf(r io.Reader, now time.Time) (at time.Time) {
	if d, ok := r.(Dated); ok && d.ModTime().Before(now) {
		at = d.ModTime()
	}
	return at
}
