package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// Backend is a store of artifacts and logs. Every backend keeps this contract,
// and the conformance suite has a test for each sentence of it.
//
// Ids are checked with checkID before a backend sees them. All methods are safe
// for concurrent use by many goroutines, and by many processes on many hosts
// that share one store: a backend keeps nothing in memory that another process
// would have to know.
//
// Acknowledged (a nil error) means whole and durable: it survives a power cut
// of the service and of the store. Not acknowledged means wholly absent or
// wholly present, never in part.
//
// Errors wrap the sentinels below; any other error is an internal one. Each
// method may be called again after any error.
type Backend interface {
	// StoreArtifact stores what reader yields up to io.EOF as the build,
	// replacing the build if it exists. Readers see the old bytes or the new
	// ones, never a mixture. When two uploads of one build overlap, one of them
	// wins whole. When reader fails, nothing is stored, the error of reader is
	// wrapped in the result, and an older build stays as it was.
	StoreArtifact(siteID, buildID string, reader io.Reader) error

	// FetchArtifact opens the build for reading from its first byte, or fails
	// with ErrNotFound. A build replaced or deleted meanwhile does not mix
	// other bytes into the stream. The caller closes what is returned.
	FetchArtifact(siteID, buildID string) (io.ReadCloser, error)

	// WriteLog appends entry to the log of entry.BuildID, which need not have
	// an artifact. Entries appended at once by any number of processes are all
	// kept. An entry whose ID is in the log already is not appended again: that is
	// a success if it is the same entry, one with the same content, and ErrKeyReused
	// if it is another one, also where the log is full and where both arrive at once.
	// Where Fresh says that the ID is new, the log need not be searched for it. A
	// damaged log is left alone (ErrDamaged), a log of maxLogSize bytes takes no more
	// entries (ErrLogFull), damaged or not.
	WriteLog(siteID string, entry LogEntry) error

	// ListVersions lists every build of the site that has an artifact or a
	// log, newest first, ties by build id, in the order of compareVersions. An
	// unknown site has no versions. A damaged log is told in LogsError and
	// hides nothing else. The versions are shared: the caller must not change
	// them.
	ListVersions(siteID string) ([]*Version, error)
}

// What a backend can do beyond Backend is told by the small interfaces below,
// found by type assertion. A backend that has none of them still works: its
// uploads answer without an ETag, its downloads stream without a length, and
// what needs more than the four methods is answered 501.

// ConditionalStorer stores and deletes on a condition that is decided
// atomically with the change, against every other writer of the store.
type ConditionalStorer interface {
	// StoreArtifactIf is StoreArtifact, done only if cond holds at the instant
	// in which the build becomes visible; otherwise ErrPrecondition. A
	// condition that fails already at the start may be refused before reader is
	// read. It tells what was stored.
	StoreArtifactIf(siteID, buildID string, reader io.Reader, cond Precondition) (ArtifactInfo, error)

	// DeleteArtifact removes the build if cond holds, durably. A build that
	// is not there is a success when cond allows it. The log of the build
	// stays, and a reader in flight finishes.
	DeleteArtifact(siteID, buildID string, cond Precondition) error
}

// ArtifactReader is what FetchArtifact may return: a reader that knows what it
// reads. One that is an io.Seeker too serves ranges.
type ArtifactReader interface {
	io.ReadCloser
	// Info describes exactly the bytes that this reader yields.
	Info() ArtifactInfo
}

// FileReader is an ArtifactReader whose bytes are an open file, so that they
// can be sent by the kernel without passing through the service.
type FileReader interface {
	ArtifactReader
	// File is the open file at its first byte. Closing it closes the reader.
	File() *os.File
}

// MemoryReader is an ArtifactReader whose bytes are in memory.
type MemoryReader interface {
	ArtifactReader
	// Bytes are all of the artifact. The caller must not change them.
	Bytes() []byte
}

// ArtifactStater is a store that can look at an artifact without opening it.
type ArtifactStater interface {
	// StatArtifact describes the build, or fails with ErrNotFound.
	StatArtifact(siteID, buildID string) (ArtifactInfo, error)
}

// ArtifactRanger is a store in which looking at an artifact is much cheaper
// than opening it, and that serves a part of it without reading the rest.
type ArtifactRanger interface {
	ArtifactStater
	// FetchArtifactRange yields length bytes from offset of the build, or all
	// from offset on if length is negative or goes beyond the end, as long as its
	// ETag still is etag; ErrPrecondition once it is another. An empty etag is
	// that of whatever is there. Where offset is beyond the end it may fail with
	// errRange.
	FetchArtifactRange(siteID, buildID, etag string, offset, length int64) (ArtifactReader, error)
}

// Redirector is a store that can send a client straight to its bytes.
type Redirector interface {
	// ArtifactURL makes a URL with which anybody can GET the build, and nothing
	// else, for ttl. It does not look whether the build is there.
	// ErrUnsupported where the store or its credentials cannot do it.
	ArtifactURL(siteID, buildID string, ttl time.Duration) (string, error)
}

// VersionPager lists a page without reading what is not on it.
type VersionPager interface {
	// ListVersionsPage is pageVersions of what ListVersions lists, with the
	// tag of the page. The entries of logs may be left in the store, so that a
	// page takes little memory however long the logs are.
	ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error)
}

// Prober is a store that can be asked how it is.
type Prober interface {
	// Probe looks at the store and fails if it cannot be read. It may block
	// for as long as the store does: the caller bounds the wait and keeps to
	// one probe at a time.
	Probe() (Readiness, error)
}

// SpaceTeller is a store that has a size.
type SpaceTeller interface {
	// Space tells how full the store is. It may block as Probe does.
	Space() (Space, error)
}

// FileMover is what a reader passed to StoreArtifact may offer: to move its
// bytes into a file without passing them through the caller. It returns the
// number of bytes moved, at most max, and io.EOF at the end of the body, as
// Read does.
type FileMover interface {
	MoveTo(f *os.File, max int64) (int64, error)
}

// Sized is what a reader passed to StoreArtifact may offer: how many bytes it
// will yield, or -1 if that is not known. A reader never yields another number
// without failing.
type Sized interface {
	Size() int64
}

// Placed is what a reader passed to StoreArtifact may offer: to be told when a
// place for n more of its bytes was taken in the store, before they are read.
type Placed interface {
	Placed(n int64)
}

// Charged is what a reader passed to StoreArtifact may offer, so that the memory
// that is held for it is shared fairly among clients.
type Charged interface {
	// Client names who sends the bytes. Empty: nobody in particular.
	Client() string
	// Revoke makes the reader fail soon, since its client holds too much. It
	// does not block, and any goroutine may call it.
	Revoke()
}

// ArtifactInfo describes a stored artifact.
type ArtifactInfo struct {
	Size    int64
	ModTime time.Time
	ETag    string // strong, with its quotes (RFC 9110, section 8.8.3)
}

// LogEntry is one thing that happened to a build.
type LogEntry struct {
	ID        string          `json:"id"` // unique in its log; set by the caller of WriteLog
	BuildID   string          `json:"build_id"`
	Action    string          `json:"action"`
	Status    string          `json:"status"`
	Timestamp time.Time       `json:"timestamp"`          // UTC; set by the caller of WriteLog
	Metadata  json.RawMessage `json:"metadata,omitempty"` // a JSON object as the client sent it, or nil
	Fresh     bool            `json:"-"`                  // ID is random and was never used: no log has it yet
	Client    string          `json:"-"`                  // who sent it, for whom memory is held; not stored
}

// Version is one build of a site. A build that has only a log has SizeBytes 0
// and the CreatedAt of its first entry.
type Version struct {
	BuildID   string
	SizeBytes int64
	CreatedAt time.Time  // of the latest replacement
	Logs      []LogEntry // in the order of appending
	LogsError string     // not empty: the log could not be read, and why
	Stored    *storedLog // not nil: Logs is empty, and VersionPage.OpenLog opens the log
}

// VersionQuery selects a page of the versions of a site. The zero value
// selects all of them.
type VersionQuery struct {
	Limit    int    // 0: no limit
	Cursor   string // NextCursor of the page before, or empty
	Metadata bool   // with the metadata of each log entry
	Client   string // for whom memory is held; selects nothing
}

// VersionPage is a page of the versions of a site.
type VersionPage struct {
	Versions   []*Version
	NextCursor string // empty on the last page
	Tag        string // equal tags: equal versions; not quoted; empty: not known

	// OpenLog opens the log of a version that is Stored, as it is now. It may be
	// called long after the page was made.
	OpenLog func(buildID string) (*openedLog, error)
	// ForgetLog makes the next list look again at the log of a version, which could
	// not be read as it was when the page was made. nil: nothing is remembered.
	ForgetLog func(v *Version)

	size [2]int64 // bytes of Versions in a list, without metadata and with it
}

// Readiness is what a probe of the store found.
type Readiness struct {
	WriteError string // empty: writes work; otherwise why they do not
}

// Space is how full a store is. Zeros of both numbers of bytes, or of both of
// inodes, mean that the store does not know, not that it is full.
type Space struct {
	FreeBytes, TotalBytes   uint64 // what the service may write, and all there is
	FreeInodes, TotalInodes uint64
}

// Precondition is what must hold of an artifact for a change to be made, in
// the order of RFC 9110, section 13.2.2, and after these Absent. The zero value
// always holds.
type Precondition struct {
	IfMatch           *ETagList
	IfUnmodifiedSince time.Time // looked at only without IfMatch; zero: not set
	IfNoneMatch       *ETagList
	Absent            bool // the service's own: there must be no artifact, whatever the client asks for
}

// ETagList is the value of If-Match or If-None-Match: any entity tag ("*"), or
// one of Tags, each in quotes and with its W/ if it is weak.
type ETagList struct {
	Any  bool
	Tags []string
}

// Check tells whether p holds of the current artifact, nil for none, with
// ErrPrecondition if it does not.
func (p Precondition) Check(current *ArtifactInfo) error {
	switch {
	case p.IfMatch != nil:
		if current == nil || !p.IfMatch.Any && !slices.Contains(p.IfMatch.Tags, current.ETag) {
			return errNoMatch
		}
	case !p.IfUnmodifiedSince.IsZero():
		if current != nil && current.ModTime.Truncate(time.Second).After(p.IfUnmodifiedSince) {
			return errModified
		}
	}
	if l := p.IfNoneMatch; l != nil && current != nil && (l.Any || l.matchWeak(current.ETag)) {
		return errMatch
	}
	if p.Absent && current != nil {
		return errExists
	}
	return nil
}

// IsZero tells that p holds of everything.
func (p Precondition) IsZero() bool {
	return p.IfMatch == nil && p.IfNoneMatch == nil && p.IfUnmodifiedSince.IsZero() && !p.Absent
}

// CreateOnly reports whether p holds exactly where there is no artifact: whether
// to store can then be decided by a call that replaces nothing, without a look.
func (p Precondition) CreateOnly() bool {
	return p.IfMatch == nil && (p.Absent || p.IfNoneMatch != nil && p.IfNoneMatch.Any)
}

// matchWeak compares by the weak comparison of RFC 9110, section 8.8.3.2.
func (l *ETagList) matchWeak(etag string) bool {
	return slices.ContainsFunc(l.Tags, func(t string) bool {
		return t == etag || len(t) > 2 && t[:2] == "W/" && t[2:] == etag
	})
}

// The errors of a Backend. Each has one status in statusOf.
var (
	ErrNotFound     = errors.New("not found")
	ErrPrecondition = errors.New("precondition failed")
	ErrNoSpace      = errors.New("no space left in the store")
	ErrReadOnly     = errors.New("the store is read-only")
	ErrTooLarge     = errors.New("the artifact is too large for the store")
	ErrLogFull      = errors.New("the log is full")
	ErrKeyReused    = errors.New("the Idempotency-Key was used for another entry")
	ErrDamaged      = errors.New("the log is damaged")
	ErrUnavailable  = errors.New("the store cannot be reached")
	ErrBusy         = errors.New("too many requests at once")
	ErrDenied       = errors.New("the store denied access")
	ErrUnsupported  = errors.New("not supported by this store")
	ErrBadCursor    = errors.New("bad cursor")
	ErrOccupied     = errors.New("something else is in its place in the store") // a directory in that of a file, or the reverse
)

// tooLargeError is an ErrTooLarge that says which limit it is, for the client too.
type tooLargeError struct{ text string }

func (e *tooLargeError) Error() string { return e.text }
func (e *tooLargeError) Unwrap() error { return ErrTooLarge }

// ErrLocked is the ErrUnavailable of a build whose lock was not free in time.
var ErrLocked error = lockedError{}

type lockedError struct{}

func (lockedError) Error() string { return "the build is locked by another process" }
func (lockedError) Unwrap() error { return ErrUnavailable }

// The ErrPrecondition of each part of a Precondition.
var (
	errNoMatch  = fmt.Errorf("%w: If-Match", ErrPrecondition)
	errModified = fmt.Errorf("%w: If-Unmodified-Since", ErrPrecondition)
	errMatch    = fmt.Errorf("%w: If-None-Match", ErrPrecondition)
	errExists   = fmt.Errorf("%w: the build exists", ErrPrecondition)
)

// maxLogSize is the size in bytes past which a log takes no more entries.
const maxLogSize = 16 << 20

// maxIDLen is the length in bytes of the longest id.
const maxIDLen = 128

// checkID tells whether id can name a site or a build: 1 to maxIDLen of
// A-Z a-z 0-9 . _ + ~ = @ -, the first a letter or digit. So no id is hidden,
// names another directory, or needs escaping in a path or a header.
func checkID(id string) error {
	if id == "" {
		return errors.New("is empty")
	}
	if len(id) > maxIDLen {
		return fmt.Errorf("is longer than %d characters", maxIDLen)
	}
	for i := range len(id) {
		c := id[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i == 0:
			return errors.New("must begin with a letter or digit")
		case c == '.', c == '_', c == '+', c == '~', c == '=', c == '@', c == '-':
		default:
			return errors.New("has a character outside A-Z a-z 0-9 . _ + ~ = @ -")
		}
	}
	return nil
}

// maxLogRead is the size of the largest log that is read at all.
const maxLogRead = 4 * maxLogSize

const maxEntrySize = 1 << 20 // bytes of the body of a POST of a log entry

// errRange: the range lies outside of the artifact (416).
var errRange = errors.New("the range is not satisfiable")
