package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// bucket is the interface that objectStore needs from an object store. Each SDK is used by
// one implementation only, which translates calls and errors and does little else.
//
// An object is always replaced as a whole: readers see the old one or the new one. Errors
// wrap the sentinels in backend_errors.go, or errConflict. All methods are safe for
// concurrent use. A method returns when ctx ends. It fails with ErrUnavailable if the store
// moves no bytes for storeStall; if the SDK retries, that takes a few times as long.
type bucket interface {
	// put stores the bytes of body, up to io.EOF, under key. It uses bounded memory. size
	// is the number of bytes, or -1. If body fails with any other error, put stores nothing
	// and returns that error. It aborts the unfinished upload if the store does not remove
	// it by itself, with a context that outlives ctx. The store itself checks the condition
	// in opts, atomically with the change. If the condition does not hold, put fails with
	// ErrPrecondition, even if the object that ifMatch names no longer exists. The modTime
	// of the result is zero if the store does not report it.
	put(ctx context.Context, key string, body io.Reader, size int64, opts putOptions) (objectInfo, error)

	// get opens length bytes of the object, starting at offset. If length is negative or
	// reaches past the end, it opens all bytes from offset to the end. If offset is past
	// the end, get fails with errRange or returns an empty body. If etag is not empty, get
	// fails with ErrPrecondition unless the object has exactly that ETag. The info
	// describes the whole object. The caller closes the reader; it may do so before the
	// end. ctx must not end before the reader is closed. If the store cuts the body short,
	// the reader requests the rest of the same object, up to a few times. If bytes are
	// still missing, the reader returns an error or io.EOF; objectReader counts the bytes
	// to detect that.
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

	// list calls page with batches of the objects whose keys begin with prefix, in key
	// order. It stops if page fails, and returns that error unchanged. Each object has its
	// key, size, modTime and etag. An object that exists during the whole call is listed
	// exactly once. list fails with errBucketGone if the bucket does not exist.
	list(ctx context.Context, prefix string, page func([]objectInfo) error) error

	// folders calls page with batches of the names of the folders in dir, which ends in a slash,
	// that begin with prefix: those between dir and the next slash of all keys that begin with
	// dir + prefix, each once, in the order of name + "/". It may leave out the names of keys that
	// sort before dir + start. It stops if page fails, and returns that error unchanged.
	folders(ctx context.Context, dir, prefix, start string, page func(names []string) error) error

	// presign returns a URL that lets anyone GET the object for at most ttl. filename is
	// the file name in the Content-Disposition of the response. presign does not check
	// whether the object exists. It fails with ErrUnsupported if the credentials cannot
	// sign.
	presign(ctx context.Context, key string, ttl time.Duration, filename string) (string, error)
}

// digestPatcher is a bucket that can change the metadata of an object without changing its
// ETag or the time at which it was stored.
type digestPatcher interface {
	// patchDigest sets the value of digestKey in the metadata of the object that o describes.
	// It fails with ErrPrecondition if that object was replaced, with ErrNotFound if there is
	// none, and with ErrDenied or ErrUnsupported if the metadata cannot be changed.
	patchDigest(ctx context.Context, o objectInfo, digest string) error
}

// bareGetter is a bucket whose get may return no metadata (objectInfo.bare).
type bareGetter interface{ getsBare() bool }

// absenceReporter is a bucket whose remove always fails with ErrNotFound if there is no
// object.
type absenceReporter interface{ reportsAbsence() }

// objectInfo describes an object.
type objectInfo struct {
	key      string
	size     int64
	modTime  time.Time
	etag     string // strong and quoted; what the store compares in conditions; the same from put, get, stat and list
	uploadID string // of the put that stored it; not set by list
	digest   string // the value of digestKey in its metadata; not set by list
	bare     bool   // the response had no metadata: uploadID and digest are not known
	sum      Digest // set by objectDigests alone
}

// putOptions says how an object is stored. At most one of absent and ifMatch is
// set.
type putOptions struct {
	contentType string
	absent      bool   // only if there is no object under the key
	ifMatch     string // only if the current object has this etag
	uploadID    string // kept in the object's metadata: shows whether a put whose reply was lost succeeded
	parts       bool   // upload in parts, even if the body is small
	client      string // the client that the memory of the upload is charged to; may be empty
	revoke      func() // makes the body fail soon, as Charged.Revoke does; may be nil
	hashed      Hashed // computes the digest of the body; nil: no digest is kept
	digest      string // kept in the object's metadata under digestKey; set by withDigest
	// mayCommit is called right before the request that makes the object visible. Its error stops
	// the put, and is returned unchanged. nil: the put may always commit.
	mayCommit func() error
}

// allowed is the result of mayCommit.
func (o putOptions) allowed() error {
	if o.mayCommit == nil {
		return nil
	}
	return o.mayCommit()
}

// uploadIDKey is the name of the upload id in the metadata of an object. Do not change it:
// processes of different versions must recognise each other's uploads.
const uploadIDKey = "mark"

// metadata returns the metadata of an object that is stored with these options.
func (o putOptions) metadata() map[string]string {
	if o.uploadID == "" {
		return nil
	}
	m := map[string]string{uploadIDKey: o.uploadID}
	if o.digest != "" {
		m[digestKey] = o.digest
	}
	return m
}

// errBucketGone: the store reports that the bucket does not exist.
var errBucketGone = fmt.Errorf("%w: the bucket does not exist", ErrUnavailable)

// errAmbiguousNotFound is an ErrNotFound where the store does not say whether the object or
// its bucket is missing (HEAD of S3, and every request for an object with Google's SDK).
var errAmbiguousNotFound = fmt.Errorf("%w: either the object or its bucket is missing", ErrNotFound)

// errConflict: the store refused a change because of a concurrent one, and it is not known
// which of the two was stored. The caller reads the object to find out.
var errConflict = errors.New("conflict with a concurrent change")

// adapter is a bucket that can send conditions in more than one format. adapt switches to
// the next format and reports whether there was one.
type adapter interface{ adapt() bool }
