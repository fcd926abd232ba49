package main

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// settleTime is how old the time of a file or directory must be when it is
// read, for an equal time later to mean that nothing changed: the clocks of
// file systems stand still for up to 2 seconds, and what changes within such an
// instant keeps its time. Older is what was first seen that long ago by the
// monotonic clock, or what lies that far behind the store's own clock. The
// clock of this host says nothing about it.
const settleTime = 2 * time.Second

// fileID tells a file or directory, and its state, from any other. Our own
// writes give every file a new inode and a time in nanoseconds; the change time
// of the kernel is for what others do.
type fileID struct {
	ino                uint64
	size, mtime, ctime int64
}

func idOf(st *unix.Stat_t) fileID {
	return fileID{st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
}

// settledAt tells that whatever changes the file after the store's clock reads
// then gives it other times.
func (id fileID) settledAt(then int64) bool {
	return max(id.mtime, id.ctime)+int64(settleTime) <= then
}

// siteIndex is what is known of the builds of a site. It is used by one
// goroutine at a time; the versions that it hands out never change.
type siteIndex struct {
	artifacts, logs watchedDir
	builds          map[string]*siteBuild
	order           []*Version      // in the order of compareVersions, for finding pages; nil: not known
	whole           [2]*VersionPage // of all versions, without and with metadata; nil: not made
	round           int             // of the reading of a directory
	bytes           int64           // of memory, about
}

// watchedDir is a directory as it was last read.
type watchedDir struct {
	id      fileID
	since   time.Time // when id was first seen
	settled bool      // id was old enough when the directory was read
}

// siteBuild is what is known of one build.
type siteBuild struct {
	id            string
	artifactRound int // in which it was last there
	logRound      int

	hasArtifact bool
	size, mtime int64

	hasLog    bool
	loaded    bool // the log was read; else only its name is known
	logID     fileID
	logSince  time.Time // when logID was first seen
	settled   bool      // logID was old enough when the log was read
	logs      []LogEntry
	withMeta  []LogEntry // with metadata; nil: there is none, or it is not kept
	noMeta    bool       // there is none
	logsError string

	version *Version // without metadata, and without logs unless loaded
	full    *Version // with metadata; nil: not known or not kept
	sum     [16]byte // of version; not set unless loaded
}

func newSiteIndex() *siteIndex { return &siteIndex{builds: make(map[string]*siteBuild)} }

// changed drops what was derived from b. The order stays as it is where a build
// is placed by its artifact and only its log is another.
func (ix *siteIndex) changed(b *siteBuild, placed bool) {
	ix.whole, ix.bytes = [2]*VersionPage{}, 0
	if !placed || !b.hasArtifact {
		ix.order = nil
	}
}

// get is the build of that id, which may be new.
func (ix *siteIndex) get(id string) *siteBuild {
	b := ix.builds[id]
	if b == nil {
		b = &siteBuild{id: id}
		ix.builds[id] = b
	}
	return b
}

// drop is told that a file of b is gone.
func (ix *siteIndex) drop(b *siteBuild) {
	if !b.hasArtifact && !b.hasLog {
		delete(ix.builds, b.id)
	}
	ix.changed(b, false)
}

// forgetLogs drops the contents of all logs.
func (ix *siteIndex) forgetLogs() {
	for _, b := range ix.builds {
		b.unload()
		ix.changed(b, true)
	}
}

// measure estimates the memory that ix takes, if it changed.
func (ix *siteIndex) measure() {
	if ix.bytes > 0 {
		return
	}
	ix.bytes = 512
	for _, b := range ix.builds {
		ix.bytes += 600 + 2*int64(len(b.id))
		for i := range b.logs {
			e := &b.logs[i]
			ix.bytes += int64(160 + len(e.ID) + len(e.Action) + len(e.Status))
		}
		for i := range b.withMeta {
			ix.bytes += int64(160 + len(b.withMeta[i].Metadata))
		}
	}
}

// unload drops the content of the log.
func (b *siteBuild) unload() {
	b.loaded, b.settled = false, false
	b.logs, b.withMeta, b.noMeta, b.logsError = nil, nil, false, ""
	b.sum = [16]byte{}
	b.describe()
}

// removeLog is told that there is no log any more.
func (b *siteBuild) removeLog() {
	b.hasLog, b.logID, b.logSince = false, fileID{}, time.Time{}
	b.unload()
}

// createdAt is when the artifact was written; of a build that has only a log,
// its first entry; and if there is none, when the log was written.
func (b *siteBuild) createdAt() time.Time {
	switch {
	case b.hasArtifact:
		return time.Unix(0, b.mtime).UTC()
	case len(b.logs) > 0:
		return b.logs[0].Timestamp
	}
	return time.Unix(0, b.logID.mtime).UTC()
}

// describe makes the versions of b anew. Those that were handed out stay.
func (b *siteBuild) describe() {
	b.version = &Version{BuildID: b.id, SizeBytes: b.size, CreatedAt: b.createdAt(), Logs: b.logs, LogsError: b.logsError}
	b.full = nil
	switch {
	case b.hasLog && !b.loaded:
		return
	case !b.hasLog || b.noMeta:
		b.full = b.version
	case b.withMeta != nil:
		b.full = b.withLogs(b.withMeta)
	}
	b.sum = versionSum(b.version)
}

// withLogs is the version with other logs.
func (b *siteBuild) withLogs(logs []LogEntry) *Version {
	v := *b.version
	v.Logs = logs
	return &v
}

// setArtifact takes over what the directory has, and tells whether it is new.
func (b *siteBuild) setArtifact(st *unix.Stat_t) bool {
	if size, mtime := st.Size, st.Mtim.Nano(); !b.hasArtifact || b.size != size || b.mtime != mtime {
		b.hasArtifact, b.size, b.mtime = true, size, mtime
		b.describe()
		return true
	}
	return false
}

// setLog takes over the entries of the log, as they are in the file, or why
// they could not be read. It returns the version with metadata.
func (b *siteBuild) setLog(entries []LogEntry, logsError string) *Version {
	sortEntries(entries)
	b.loaded, b.logsError = true, logsError
	b.logs, b.withMeta = nil, nil
	metadata := 0
	for i := range entries {
		entries[i].BuildID = b.id
		metadata += len(entries[i].Metadata)
	}
	b.noMeta = metadata == 0
	b.logs = entries
	if !b.noMeta {
		b.logs = slices.Clone(entries)
		for i := range b.logs {
			b.logs[i].Metadata = nil
		}
		if metadata <= keepMetadata {
			b.withMeta = entries
		}
	}
	b.describe()
	if b.noMeta {
		return b.version
	}
	return b.withLogs(entries)
}
