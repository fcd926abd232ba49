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
// Errors wrap the sentinels below. Any other error is internal. After any error the method
// may be called again.
type Backend interface {
	// StoreArtifact stores what reader yields up to io.EOF as the build,
	// replacing the build if it exists. Readers see the old bytes or the new
	// ones, never a mixture. When two uploads of one build overlap, one of them
	// wins completely. When reader fails, nothing is stored, an existing build
	// does not change, and the result wraps the error of reader.
	StoreArtifact(siteID, buildID string, reader io.Reader) error

	// FetchArtifact opens the build for reading from its first byte, or fails
	// with ErrNotFound. If the build is replaced or deleted meanwhile, the stream
	// still has only bytes of the build that was opened. The caller closes it.
	FetchArtifact(siteID, buildID string) (io.ReadCloser, error)

	// WriteLog appends entry to the log of entry.BuildID, which need not have
	// an artifact. Entries that any number of processes append at once are all
	// kept. An entry whose ID is already in the log is not appended again: WriteLog
	// succeeds if the content is the same and fails with ErrKeyReused if not, also
	// when the log is full and when both arrive at once. If Fresh is set, the log
	// need not be searched for the ID. A damaged log is not changed (ErrDamaged). A
	// log of maxLogSize bytes takes no more entries (ErrLogFull), damaged or not.
	WriteLog(siteID string, entry LogEntry) error

	// ListVersions lists every build of the site that has an artifact or a
	// log, newest first, ties by build id, in the order of compareVersions. An
	// unknown site has no versions. A damaged log is reported in LogsError, and
	// the rest of the list is complete. The versions are shared: the caller must
	// not change them.
	ListVersions(siteID string) ([]*Version, error)
}

// A backend can implement the small interfaces below as well; callers find them by type
// assertion. A backend without them still works: responses to uploads have no ETag,
// downloads have no length, and requests that need more than the four methods get 501.

// ConditionalStorer stores and deletes on a condition. The condition and the change are
// one atomic step with respect to every other writer of the store.
type ConditionalStorer interface {
	// StoreArtifactIf is StoreArtifact if cond holds at the moment when the build
	// becomes visible, and fails with ErrPrecondition otherwise. It may fail
	// before it reads from reader if cond does not hold then. It returns a
	// description of what was stored.
	StoreArtifactIf(siteID, buildID string, reader io.Reader, cond Precondition) (ArtifactInfo, error)

	// DeleteArtifact durably removes the build if cond holds. If the build does
	// not exist it succeeds, unless cond requires one. The log of the build stays,
	// and a reader that is open can finish.
	DeleteArtifact(siteID, buildID string, cond Precondition) error
}

// ArtifactReader is a reader that FetchArtifact may return, which describes its artifact.
// If it is an io.Seeker too, it serves ranges.
type ArtifactReader interface {
	io.ReadCloser
	// Info describes exactly the bytes that this reader yields.
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

// ArtifactStater is a store that can look at an artifact without opening it.
type ArtifactStater interface {
	// StatArtifact describes the build, or fails with ErrNotFound.
	StatArtifact(siteID, buildID string) (ArtifactInfo, error)
}

// ArtifactRanger is a store that describes an artifact at much less cost than opening it,
// and serves a part of it without reading the rest.
type ArtifactRanger interface {
	ArtifactStater
	// FetchArtifactRange opens length bytes of the build from offset on, or all
	// of them if length is negative or goes beyond the end. It fails with
	// ErrPrecondition if the ETag of the build is not etag; an empty etag matches
	// any build. If offset is beyond the end it may fail with errRange.
	FetchArtifactRange(siteID, buildID, etag string, offset, length int64) (ArtifactReader, error)
}

// Redirector is a store from which a client can download directly.
type Redirector interface {
	// ArtifactURL returns a URL with which anybody can GET the build, and nothing
	// else, for ttl. It does not check whether the build exists. It fails with
	// ErrUnsupported if the store or its credentials cannot sign URLs.
	ArtifactURL(siteID, buildID string, ttl time.Duration) (string, error)
}

// VersionPager lists a page without reading what is not on it.
type VersionPager interface {
	// ListVersionsPage returns the page of ListVersions that q selects
	// (pageVersions), with its tag. The entries of logs may stay in the store, so
	// that a page takes little memory however long the logs are.
	ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error)
}

// Prober is a store that can report its health.
type Prober interface {
	// Probe fails if the store cannot be read. It may block for as long as the
	// store does: the caller bounds the wait and runs one probe at a time.
	Probe() (Readiness, error)
}

// SpaceTeller is a store of limited size.
type SpaceTeller interface {
	// Space returns how full the store is. It may block as Probe does.
	Space() (Space, error)
}

// ArtifactInfo describes a stored artifact.
type ArtifactInfo struct {
	Size    int64
	ModTime time.Time
	ETag    string // strong, with its quotes (RFC 9110, section 8.8.3)
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
}

// Version is one build of a site. A build that has only a log has SizeBytes 0
// and the CreatedAt of its first entry.
type Version struct {
	BuildID   string
	SizeBytes int64
	CreatedAt time.Time  // of the latest replacement
	Logs      []LogEntry // in the order of appending
	LogsError string     // why the log could not be read; empty: it could
	Stored    *storedLog // if not nil, Logs is empty and VersionPage.OpenLog opens the log
}

// VersionQuery selects a page of the versions of a site. The zero value selects all.
type VersionQuery struct {
	Limit    int    // 0: no limit
	Cursor   string // NextCursor of the page before, or empty
	Metadata bool   // with the metadata of each log entry
	Client   string // who asks, for the memory budgets; selects nothing
}

// VersionPage is a page of the versions of a site.
type VersionPage struct {
	Versions   []*Version
	NextCursor string // empty on the last page
	Tag        string // equal tags mean equal versions; without quotes; empty: not known

	// OpenLog opens the log of a version that has Stored, as it is now. It may be
	// called long after the page was made.
	OpenLog func(buildID string) (*openedLog, error)
	// ForgetLog is called when the log of a version is not the one that the page
	// was made of. The next list reads it again. nil: nothing is cached.
	ForgetLog func(v *Version)

	size [2]int64 // bytes of Versions in a list, without metadata and with it
}

// Readiness is the result of a probe of the store.
type Readiness struct {
	WriteError string // why writes fail; empty: they work
}

// Space is how full a store is. If both numbers of bytes, or both of inodes, are zero, the
// store does not know them.
type Space struct {
	FreeBytes, TotalBytes   uint64 // what the service may write, and the size of the store
	FreeInodes, TotalInodes uint64
}

const (
	// maxLogSize is the size in bytes from which on a log takes no more entries.
	maxLogSize = 16 << 20
	// maxLogRead is the size in bytes of the largest log that is read.
	maxLogRead = 4 * maxLogSize
	// maxEntrySize is the size in bytes of the largest POST of a log entry.
	maxEntrySize = 1 << 20
)
