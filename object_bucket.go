package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// bucket is what objectStore needs of an object store. Each implementation is the only
// user of its SDK, and only translates calls and errors.
//
// An object is always replaced as a whole: readers see the old one or the new one. Errors
// wrap the sentinels of backend.go, or errConflict. All methods are safe for concurrent
// use. They end when ctx does, and with ErrUnavailable when the store moves no byte for
// storeStall, or for a few times as long if the SDK retries.
type bucket interface {
	// put stores what body yields up to io.EOF under key, in bounded memory.
	// size is the number of bytes, or -1. If body fails with any other error, put
	// stores nothing, aborts what was uploaded with a context that outlives ctx,
	// and returns the error. The store itself checks the condition in opts,
	// atomically with the change. If it does not hold, put fails with
	// ErrPrecondition, also if the object that ifMatch names was removed.
	// The modTime of the result is zero if the store does not report it.
	put(ctx context.Context, key string, body io.Reader, size int64, opts putOptions) (objectInfo, error)

	// get opens length bytes from offset of the object, or all bytes from offset
	// on if length is negative or reaches past the end. If offset is past the end,
	// get fails with errRange or yields nothing. If etag is not empty, get fails
	// with ErrPrecondition unless the object has exactly that ETag. The info
	// describes the whole object. The caller closes the reader, also before its
	// end if it likes. ctx spans the reading. If the store breaks off the body,
	// the reader resumes it from the same object, a few times. If bytes are
	// missing at the end, the reader returns an error or io.EOF: objectReader
	// counts the bytes.
	get(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error)

	// stat describes the object, or fails with ErrNotFound. Like get, it fails with
	// errAmbiguousNotFound if the store does not say whether the object or the
	// bucket is missing.
	stat(ctx context.Context, key string) (objectInfo, error)

	// remove removes the object. If etag is not empty, it fails with
	// ErrPrecondition unless the object has that ETag: the store itself checks it,
	// atomically with the removal. If there is no object, remove fails with
	// ErrNotFound, or succeeds if the store does not report that.
	remove(ctx context.Context, key, etag string) error

	// list calls page with the objects whose keys begin with prefix, in key order,
	// some at a time. It stops if page fails, and returns that error unchanged.
	// Each object has its key, size, modTime and etag. An object that exists all
	// the while is listed exactly once. It fails with errBucketGone if there is no
	// bucket.
	list(ctx context.Context, prefix string, page func([]objectInfo) error) error

	// presign returns a URL with which anybody can GET the object for ttl, under
	// the file name filename. It does not check whether the object exists. It
	// fails with ErrUnsupported if the credentials cannot sign.
	presign(ctx context.Context, key string, ttl time.Duration, filename string) (string, error)
}

// objectInfo describes an object.
type objectInfo struct {
	key      string
	size     int64
	modTime  time.Time
	etag     string // strong and quoted; what the store compares in conditions; the same from put, get, stat and list
	uploadID string // of the put that stored it; set by get and stat only
}

// putOptions says how an object is stored. At most one of absent and ifMatch is
// set.
type putOptions struct {
	contentType string
	absent      bool   // only if there is no object under the key
	ifMatch     string // only if the current object has this etag
	uploadID    string // kept in the object's metadata: shows whether a put whose reply was lost succeeded
	parts       bool   // upload in parts, even if the body is small
	client      string // to which the memory of the upload is charged; may be empty
	revoke      func() // makes the body fail soon, as Charged.Revoke does; may be nil
}

// uploadIDKey is the name of the upload id in the metadata of an object. It is not changed,
// so that processes of two versions recognise each other's uploads.
const uploadIDKey = "mark"

// errBucketGone: the store reports that the bucket does not exist.
var errBucketGone = fmt.Errorf("%w: the bucket does not exist", ErrUnavailable)

// errAmbiguousNotFound is the ErrNotFound of a store that does not say which is missing,
// the object or its bucket (HEAD of S3, and every request for an object with Google's SDK).
var errAmbiguousNotFound = fmt.Errorf("%w: either the object or its bucket is missing", ErrNotFound)

// errConflict: the store refused a change because of a concurrent one, and it is not known
// which of the two was stored. The caller reads the object to find out.
var errConflict = errors.New("conflict with a concurrent change")

// adapter is a bucket that can write conditions in more than one format. adapt switches to
// the next format and reports whether there was one.
type adapter interface{ adapt() bool }
