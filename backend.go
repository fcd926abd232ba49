package main

import (
	"encoding/json"
	"io"
	"os"
	"time"
)

// Backend is a store of artifacts and logs. This comment is the contract of every
// backend, and the conformance suite tests each sentence of it.
//
// Ids have passed checkID before a backend sees them. All methods are safe for concurrent
// use by many goroutines, and by many processes on many hosts that share one store: a
// backend keeps nothing in memory that another process needs to know.
//
// A nil error acknowledges a write: it is complete and durable, and survives a power cut
// of the service and of the store. A write that was not acknowledged is completely
// present or completely absent, never partial.
//
// Errors wrap the sentinels in backend_errors.go. Any other error is internal. After any
// error, the call may be retried.
type Backend interface {
	// StoreArtifact stores all bytes of reader, up to io.EOF, as the build. It replaces an
	// existing build. A concurrent download gets the old bytes or the new ones, never a
	// mixture. If two uploads of one build overlap, the stored build is exactly one of the
	// two. If reader fails, nothing is stored, an existing build does not change, and the
	// returned error wraps that of reader.
	StoreArtifact(siteID, buildID string, reader io.Reader) error

	// FetchArtifact opens the build for reading from its first byte, or fails with
	// ErrNotFound. If the build is replaced or deleted while the stream is open, the stream
	// still returns only bytes of the build that was opened. The caller closes the stream.
	FetchArtifact(siteID, buildID string) (io.ReadCloser, error)

	// WriteLog appends entry to the log of entry.BuildID, which need not have an artifact.
	// If several processes append at the same time, all entries are kept. An entry whose ID
	// is already in the log is not appended again: WriteLog succeeds if the content is the
	// same, and fails with ErrKeyReused if it differs. That also holds if the log is full,
	// and if the two entries arrive at the same time. If Fresh is set, the log need not be
	// searched for the ID. If the log is damaged, WriteLog leaves it unchanged and fails
	// with ErrDamaged. A log of maxLogSize bytes or more takes no new entries: WriteLog
	// fails with ErrLogFull, even if the log is damaged.
	WriteLog(siteID string, entry LogEntry) error

	// ListVersions lists every build of the site that has an artifact or a log, newest
	// first, and by id if the times are equal (compareVersions). An unknown site has no
	// versions. If a log is damaged, LogsError of its version says so; the rest of the list
	// is complete. The versions are shared: the caller must not change them.
	ListVersions(siteID string) ([]*Version, error)
}

// A backend can implement the small interfaces below as well; callers find them by type
// assertion. A backend without them still works: responses to uploads have no ETag,
// downloads have no length, and requests that need more than the four methods get 501.

// ConditionalStorer stores and deletes on a condition. The condition and the change are
// one atomic step with respect to every other writer of the store.
type ConditionalStorer interface {
	// StoreArtifactIf is like StoreArtifact, but stores the build only if cond holds at the
	// moment when the build becomes visible. Otherwise it fails with ErrPrecondition. If
	// cond does not hold at the start, it may fail without reading from reader. It returns
	// a description of what was stored.
	StoreArtifactIf(siteID, buildID string, reader io.Reader, cond Precondition) (ArtifactInfo, error)

	// DeleteArtifact durably removes the build if cond holds. If the build does not exist,
	// it succeeds, unless cond requires that the build exists. The log of the build stays,
	// and open downloads can finish.
	DeleteArtifact(siteID, buildID string, cond Precondition) error
}

// ArtifactReader is a reader that can describe its artifact. FetchArtifact may return one.
// If it also implements io.Seeker, the service uses it for range requests.
type ArtifactReader interface {
	io.ReadCloser
	// Info describes the whole artifact that the bytes of this reader belong to.
	Info() ArtifactInfo
}

// FileReader is an ArtifactReader over an open file, which the kernel can send without
// copying it through the service.
type FileReader interface {
	ArtifactReader
	// File returns the open file, at its first byte. Closing it closes the reader.
	File() *os.File
}

// MemoryReader is an ArtifactReader whose bytes are in memory.
type MemoryReader interface {
	ArtifactReader
	// Bytes returns the whole artifact. The caller must not change it.
	Bytes() []byte
}

// ArtifactStater is a store that can describe an artifact without fetching it.
type ArtifactStater interface {
	// StatArtifact describes the build, or fails with ErrNotFound.
	StatArtifact(siteID, buildID string) (ArtifactInfo, error)
}

// ArtifactSyncer is a store in which a build can be read before it is durable.
type ArtifactSyncer interface {
	// SyncArtifact makes the build that StatArtifact describes durable, with its digest. It
	// is called before a build that another request stored is acknowledged.
	SyncArtifact(siteID, buildID string) error
}

// ArtifactRanger is a store in which StatArtifact is much cheaper than FetchArtifact, and
// which can read a part of an artifact without the rest.
type ArtifactRanger interface {
	ArtifactStater
	// FetchArtifactRange opens length bytes of the build, starting at offset. If length is
	// negative or reaches past the end, it opens all bytes from offset to the end. It fails
	// with ErrPrecondition if the ETag of the build is not etag; an empty etag matches any
	// build. If offset is past the end, it fails with errRange or returns an empty reader.
	FetchArtifactRange(siteID, buildID, etag string, offset, length int64) (ArtifactReader, error)
}

// Redirector is a store from which a client can download directly.
type Redirector interface {
	// ArtifactURL returns a URL that lets anyone GET this build, but do nothing else, for
	// at most ttl. It does not check whether the build exists. It fails with ErrUnsupported
	// if the store or its credentials cannot sign URLs.
	ArtifactURL(siteID, buildID string, ttl time.Duration) (string, error)
}

// VersionPager is a store that can list one page without reading all logs of the site.
type VersionPager interface {
	// ListVersionsPage returns the page that q selects from the result of ListVersions (as
	// pageVersions does), and sets its Tag. Log entries may stay in the store, so a page
	// needs little memory even if its logs are long.
	ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error)
}

// Prober is a store that can report its health.
type Prober interface {
	// Probe fails if the store cannot be read. It may block for as long as the store does
	// not respond, so the caller limits the wait and runs one probe at a time.
	Probe() (Readiness, error)
}

// SpaceTeller is a store of limited size.
type SpaceTeller interface {
	// Space returns how full the store is. It may block as Probe does.
	Space() (Space, error)
}

// Outcome is what a change did. A store sets it through Precondition.Outcome and
// LogEntry.Outcome if it knows without another call of the file system or the bucket.
type Outcome string

const (
	outcomeCreated  Outcome = "created"  // the build, the log entry or the label did not exist
	outcomeReplaced Outcome = "replaced" // the build existed
	outcomeMoved    Outcome = "moved"    // the label existed, and named another build
	outcomeSame     Outcome = "same"     // the log has the entry already, or the label names the build
	outcomeDeleted  Outcome = "deleted"  // the build or label existed
	outcomeAbsent   Outcome = "absent"   // there was nothing to delete
)

// set sets the outcome of a caller that wants it.
func (o *Outcome) set(v Outcome) {
	if o != nil {
		*o = v
	}
}

// outcomeOf returns existed or else, depending on whether the build existed.
func outcomeOf(exists bool, existed, otherwise Outcome) Outcome {
	if exists {
		return existed
	}
	return otherwise
}

// ArtifactInfo describes a stored artifact.
type ArtifactInfo struct {
	Size    int64
	ModTime time.Time
	ETag    string // strong, with its quotes (RFC 9110, section 8.8.3)
	SHA256  Digest // if the store keeps it; otherwise zero
}

// LogEntry is one event in the life of a build.
type LogEntry struct {
	ID        string          `json:"id"` // unique in its log; set by the caller of WriteLog
	BuildID   string          `json:"build_id"`
	Action    string          `json:"action"`
	Status    string          `json:"status"`
	Timestamp time.Time       `json:"timestamp"`          // UTC; set by the caller of WriteLog
	Metadata  json.RawMessage `json:"metadata,omitempty"` // a JSON object as the client sent it, or nil
	Fresh     bool            `json:"-"`                  // ID is random and new: no log has it yet
	Client    string          `json:"-"`                  // who sent it, for the memory budgets; not stored
	Copied    bool            `json:"-"`                  // of another store, whose clock Timestamp is of: it is kept as it is
	Outcome   *Outcome        `json:"-"`                  // gets what WriteLog did, where the store knows; may be nil
}

// Version is one build of a site. If the build has only a log, SizeBytes is 0 and CreatedAt
// is the Timestamp of its first entry.
type Version struct {
	BuildID   string
	SizeBytes int64
	CreatedAt time.Time  // when the artifact was last uploaded
	Logs      []LogEntry // in the order in which they were appended
	LogsError string     // why the log could not be read; empty if there was no error
	Stored    *storedLog // if not nil, Logs is empty and VersionPage.OpenLog opens the log
	etag      string     // of the artifact; not set by every store
	logTag    string     // equal tags mean the same log; noLogTag: the build has no log; set where VersionQuery.Tags asks for it
	arrivedAt time.Time  // as ArrivalTeller.ArrivedAt; zero: call that; set with logTag
}

// VersionQuery selects a page of the versions of a site. The zero value selects all.
type VersionQuery struct {
	Limit    int    // 0: no limit
	Cursor   string // NextCursor of the previous page; empty for the first page
	Tag      string // if this is the Tag of the page, the caller does not need its Versions
	Metadata bool   // with the metadata of each log entry
	Tags     bool   // with etag and logTag of each version; not for clients
	Client   string // the client, for the memory budgets; does not affect the result

	RequestID string // of the request, for the service log; does not affect the result
}

// VersionPage is a page of the versions of a site.
type VersionPage struct {
	Versions   []*Version
	NextCursor string // empty on the last page
	pageSeal
	digests []Digest     // of Versions, in their order; nil: not listed; set by withDigests
	labels  [][]string   // names of the labels of each of Versions, in their order; nil: not listed; set by withLabels
	copied  *VersionPage // of which withDigests or withLabels made a copy: a store may share it while it is in use

	// OpenLog opens the log of a version whose Stored is set, in its current state. It may
	// be called long after the page was made.
	OpenLog func(buildID string) (*openedLog, error)
	// ForgetLog removes the log of a version from the cache, so that the next list reads it
	// again. It is called when the log could not be read as it was when the page was made.
	// It is nil if nothing is cached.
	ForgetLog func(v *Version)
}

// pageSeal is what VersionPage.seal computes.
type pageSeal struct {
	Tag  string   // equal tags mean equal versions; without quotes; empty: not known
	size [2]int64 // bytes of the JSON of Versions: [0] without metadata, [1] with metadata
}

// Readiness is the result of a probe of the store.
type Readiness struct {
	WriteError error // why writes fail; nil: they work, or the probe does not write
}

// Space is how full a store is. If both numbers of bytes, or both of inodes, are zero, the
// store does not know them.
type Space struct {
	FreeBytes, TotalBytes   uint64 // what the service may write, and the size of the store
	FreeInodes, TotalInodes uint64
}

const (
	// maxLogSize is a limit in bytes: a log of this size or more takes no more entries.
	maxLogSize = 16 << 20
	// maxLogRead is the size in bytes of the largest log that is read.
	maxLogRead = 4 * maxLogSize
	// maxEntrySize is the maximum size in bytes of the request body of a log entry.
	maxEntrySize = 1 << 20
)
