package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// bucket is what the objectStore needs of an object store. Each SDK is known
// to the one file that implements it, and does nothing but translate.
//
// An object is only ever replaced whole: readers see the old one or the new
// one. Errors wrap the sentinels of backend.go, or errConflict. All methods are
// safe for concurrent use. They end when ctx does, and with ErrUnavailable
// when the store moves no byte for storeStall, or for a few of them in a row
// where the SDK asks again.
type bucket interface {
	// put stores what body yields up to io.EOF under key, in bounded memory.
	// size is the number of bytes, or -1. Any other error of body, whatever it
	// is, leaves nothing behind and is returned; what was uploaded by then is
	// aborted with a context that outlives ctx. Where opts sets a condition it
	// is the store's own, decided in the instant of the change: ErrPrecondition
	// if it does not hold, also where the object is gone that ifMatch names.
	// The modTime of the result may be zero: not every store tells it.
	put(ctx context.Context, key string, body io.Reader, size int64, opts putOptions) (objectInfo, error)

	// get opens length bytes from offset of the object, or all from offset on
	// if length is negative or goes beyond the end; if offset does, it fails with
	// errRange or yields nothing. If etag is not empty, it fails with
	// ErrPrecondition unless the object has that very ETag. The info is of the
	// whole object that the bytes are of. The caller closes the reader, which may
	// be done early. ctx spans the reading. A body that the store breaks off is
	// continued with the same object, a few times. If bytes are missing at its end,
	// the reader returns an error or io.EOF: objectReader counts.
	get(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error)

	// stat describes the object, or fails with ErrNotFound: as get does, with
	// errAmbiguousNotFound if the store does not say whether the object or the bucket is missing.
	stat(ctx context.Context, key string) (objectInfo, error)

	// remove removes the object; if etag is not empty, only the one that has
	// it, else ErrPrecondition, by the store's own condition. An object that is
	// not there is ErrNotFound or, where the store does not tell, a success.
	remove(ctx context.Context, key, etag string) error

	// list calls page with the objects whose keys begin with prefix, in the
	// order of keys, some at a time, until page fails, and returns that error
	// as it is. Of each it tells the key, size, modTime and etag. An object
	// that is neither made nor removed meanwhile is listed exactly once. It fails
	// with errBucketGone if there is no bucket.
	list(ctx context.Context, prefix string, page func([]objectInfo) error) error

	// presign makes a URL with which anybody can GET the object for ttl under
	// the name filename, whether or not it exists. ErrUnsupported where the
	// credentials at hand cannot sign.
	presign(ctx context.Context, key string, ttl time.Duration, filename string) (string, error)
}

// objectInfo describes an object.
type objectInfo struct {
	key      string
	size     int64
	modTime  time.Time
	etag     string // strong, with its quotes, the same from put, get, stat and list; whatever the store compares by
	uploadID string // of the put; told by get and stat only
}

// putOptions says how an object is stored. At most one of absent and ifMatch is
// set.
type putOptions struct {
	contentType string
	absent      bool   // only if there is no object under the key
	ifMatch     string // only if the object there has this etag
	uploadID    string // kept in the object's metadata: tells a put that was done but whose reply was lost
	parts       bool   // in parts, as a large body is, however small this one is
	client      string // for whom the memory of the upload is held; empty: nobody in particular
	revoke      func() // makes the body fail soon, as Charged.Revoke does; nil: it cannot
}

// errBucketGone: the store says that it has no such bucket.
var errBucketGone = fmt.Errorf("%w: there is no such bucket", ErrUnavailable)

// errAmbiguousNotFound is the ErrNotFound of a store that does not say what it did not find,
// the object or its bucket (HEAD of S3, and all objects of the SDK for Google).
var errAmbiguousNotFound = fmt.Errorf("%w: the object or its bucket", ErrNotFound)

// errConflict: the store gave up a change because of a rival one, and it is not
// known which of both will be there. Look, and then say.
var errConflict = errors.New("a rival change was going on")

// adapter is a bucket that can say conditions in another way. adapt turns to
// the next one and tells whether there was one left.
type adapter interface{ adapt() bool }
