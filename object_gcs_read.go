//go:build !no_gcs

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
)

// gcsRead counts the requests of one get. When a body breaks off, the SDK requests the rest
// at once, with no limit on the number of attempts: if a store broke off every response, the
// SDK would never stop.
type gcsRead struct {
	io.ReadCloser
	moved    int64        // bytes read since requests was 0
	requests atomic.Int32 // requests since the last gcsChunkStep bytes of progress
}

type gcsReadKey struct{}

var errGCSBrokenOff = errors.New("the store interrupted too many responses")

// gcsBadCRC begins the error of the SDK, which has no type, after a whole object was read whose
// CRC32C is not the one that the store sent (httpReader.Read of the SDK).
const gcsBadCRC = "storage: bad CRC on read"

// withContext returns a context from which gcsTransport knows which requests are those of r.
func (r *gcsRead) withContext(ctx context.Context) context.Context {
	return context.WithValue(ctx, gcsReadKey{}, r)
}

func (r *gcsRead) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && strings.HasPrefix(err.Error(), gcsBadCRC) {
		err = fmt.Errorf("%w: %w", errChecksum, err)
	}
	if r.moved += int64(n); r.moved >= gcsChunkStep {
		r.moved = 0
		r.requests.Store(0)
	}
	return n, err
}

// gcsTransport refuses a request of a get after gcsTries requests without progress.
type gcsTransport struct{ http.RoundTripper }

func (t gcsTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if r, ok := req.Context().Value(gcsReadKey{}).(*gcsRead); ok && r.requests.Add(1) > gcsTries {
		return nil, errGCSBrokenOff // the SDK does not retry after this error
	}
	return t.RoundTripper.RoundTrip(req)
}

// get implements bucket.
func (b *gcsBucket) get(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	if length == 0 {
		return getNothing(ctx, b, key, etag)
	}
	object, err := b.object(key, putOptions{ifMatch: etag})
	if err != nil {
		return nil, objectInfo{}, err
	}
	read := &gcsRead{}
	r, err := object.NewRangeReader(read.withContext(ctx), offset, length)
	if err != nil {
		return nil, objectInfo{}, needs(gcsNeedsRead, gcsError(err))
	}
	info := objectInfo{
		key: key, size: r.Attrs.Size, modTime: r.Attrs.LastModified,
		etag: gcsETag(r.Attrs.Generation), bare: len(r.Metadata()) == 0,
	}
	for name, v := range r.Metadata() { // names are in the case of header names
		switch strings.ToLower(name) {
		case uploadIDKey:
			info.uploadID = v
		case digestKey:
			info.digest = v
		}
	}
	if etag != "" && info.etag != etag {
		r.Close()
		return nil, objectInfo{}, fmt.Errorf("%w: the ETag of %q has changed", ErrPrecondition, key)
	}
	read.ReadCloser = r
	if info.bare && r.Attrs.Metageneration > 1 {
		info = b.changedInfo(ctx, info, r.Attrs.Metageneration)
	}
	return read, info, nil
}

// gcsChanged is an object whose metadata was changed after it was stored.
type gcsChanged struct {
	objectInfo
	metageneration int64 // the number of its metadata
}

// changedInfo returns what stat returns of the object that info describes, whose metadata was
// changed. Last-Modified may be the time of that change, as the member updated is
// (https://cloud.google.com/storage/docs/json_api/v1/objects). It asks the store once for each
// change. If the store fails, or the object was replaced, it returns info.
func (b *gcsBucket) changedInfo(ctx context.Context, info objectInfo, metageneration int64) objectInfo {
	if c, ok := b.changed.Get(info.key); ok && c.etag == info.etag && c.metageneration == metageneration {
		return c.objectInfo
	}
	ctx, cancel := context.WithTimeout(ctx, digestLookWait)
	defer cancel()
	attrs, err := b.bucket.Object(info.key).Attrs(ctx)
	if err != nil || gcsETag(attrs.Generation) != info.etag {
		return info
	}
	c := gcsChanged{gcsStat(attrs), attrs.Metageneration}
	b.changed.Add(info.key, c)
	return c.objectInfo
}

// stat implements bucket.
func (b *gcsBucket) stat(ctx context.Context, key string) (objectInfo, error) {
	attrs, err := b.bucket.Object(key).Attrs(ctx)
	if err != nil {
		return objectInfo{}, needs(gcsNeedsRead, gcsError(err))
	}
	return gcsStat(attrs), nil
}
