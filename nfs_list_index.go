package main

import (
	"sync/atomic"
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
	order           []*Version   // in the order of compareVersions, for finding pages; nil: not known
	whole           *VersionPage // of all versions; nil: not made
	round           int          // of the reading of a directory
	charged         int64        // bytes of memory, about, that listings counts for it; guarded by its mu
	entries         int64        // of charged, for the entries of logs; guarded likewise
	counted         bool         // charged is what it takes now
	stale           *atomic.Bool // a log is stale; set while lists are sent
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
	logSince  time.Time  // when logID was first seen
	settled   bool       // logID was old enough when the log was read
	log       *storedLog // nil unless loaded, or if it could not be read
	logsError string

	version *Version
	sum     [16]byte // of version; not set unless loaded
}

func newSiteIndex() *siteIndex {
	return &siteIndex{builds: make(map[string]*siteBuild), stale: new(atomic.Bool)}
}

// changed drops what was derived from b. The order stays as it is where a build
// is placed by its artifact and only its log is another.
func (ix *siteIndex) changed(b *siteBuild, placed bool) {
	ix.whole, ix.counted = nil, false
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

// unloadStale drops what is known of stale logs, so that they are read again.
func (ix *siteIndex) unloadStale() {
	if !ix.stale.Swap(false) {
		return
	}
	for _, b := range ix.builds {
		if b.log != nil && b.log.stale.Load() {
			b.unload()
			ix.changed(b, true)
		}
	}
}

// forgetLogs drops the entries of all logs from memory.
func (ix *siteIndex) forgetLogs() {
	for _, b := range ix.builds {
		b.log.forget()
	}
}

// memory estimates what ix takes, and what of it the entries of logs take.
func (ix *siteIndex) memory() (all, entries int64) {
	all = 512
	for _, b := range ix.builds {
		all += 600 + 2*int64(len(b.id))
		entries += b.log.memory()
	}
	return all + entries, entries
}

// unload drops what is known of the log.
func (b *siteBuild) unload() {
	b.log.forget()
	b.loaded, b.settled = false, false
	b.log, b.logsError = nil, ""
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
	case b.log != nil:
		return b.log.first
	}
	return time.Unix(0, b.logID.mtime).UTC()
}

// describe makes the version of b anew. Those that were handed out stay.
func (b *siteBuild) describe() {
	b.version = &Version{BuildID: b.id, SizeBytes: b.size, CreatedAt: b.createdAt(), LogsError: b.logsError, Stored: b.log}
	if b.loaded || !b.hasLog {
		b.sum = versionSum(b.version)
	}
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

// setLog takes over what the log holds, or why it could not be read.
func (b *siteBuild) setLog(log *storedLog, logsError string) {
	b.log.forget()
	b.loaded, b.log, b.logsError = true, log, logsError
	b.describe()
}
