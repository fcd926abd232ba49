//go:build !no_gcs

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/storage"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	gcshttp "google.golang.org/api/transport/http"
)

const (
	gcsTries    = 4 // attempts of one request
	gcsDelay    = 200 * time.Millisecond
	gcsMaxDelay = 5 * time.Second
	gcsPage     = 1000
	gcsMarkName = "mark" // in the metadata of an object
	// gcsNeedsRead is what reading needs. Without the right to list, the store
	// answers 403 where there is no such object.
	gcsNeedsRead = "storage.objects.get, or storage.objects.list if there is no such object"
	// gcsEmulator is Google's own variable for a server other than theirs.
	gcsEmulator = "STORAGE_EMULATOR_HOST"
)

// gcsBucket is a bucket of Google Cloud Storage, over its JSON API. The ETag of
// an object is its generation: that is what the store compares by.
type gcsBucket struct {
	client *storage.Client
	bucket *storage.BucketHandle
	conf   gcsConfig
	memory *budget // for the chunk that the SDK holds of each upload
}

var _ bucket = (*gcsBucket)(nil)

// openGCS opens the store in a bucket. Credentials are the application default
// ones: GOOGLE_APPLICATION_CREDENTIALS, workload identity, the metadata server.
func openGCS(ctx context.Context, conf gcsConfig, memory byteSize, log *slog.Logger) (Backend, error) {
	b, err := newGCSBucket(ctx, conf, memory)
	if err != nil {
		return nil, err
	}
	return newObjectStore(b, keyPrefix(conf.Prefix), log), nil
}

func newGCSBucket(ctx context.Context, conf gcsConfig, memory byteSize) (*gcsBucket, error) {
	if err := conf.check(); err != nil {
		return nil, err
	}
	if err := checkUploadMemory(memory, conf.ChunkSize, "GCS_CHUNK_SIZE"); err != nil {
		return nil, err
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	tuneTransport(base)
	options := []option.ClientOption{option.WithScopes(storage.ScopeReadWrite), option.WithTelemetryDisabled()}
	if os.Getenv(gcsEmulator) != "" {
		options = []option.ClientOption{option.WithoutAuthentication(), option.WithTelemetryDisabled()}
	}
	transport, err := gcshttp.NewTransport(ctx, base, options...)
	if err != nil {
		return nil, fmt.Errorf("GOOGLE_APPLICATION_CREDENTIALS: there are no application default credentials: %w", err)
	}
	client, err := storage.NewClient(ctx, append(options,
		option.WithHTTPClient(&http.Client{Transport: gcsTransport{transport}}), storage.WithJSONReads())...)
	if err != nil {
		return nil, fmt.Errorf("the client of Google Cloud Storage cannot be made: %w", err)
	}
	// All, also what has no condition: it is done a second time only while it
	// is not acknowledged, and then with the same bytes.
	client.SetRetry(storage.WithPolicy(storage.RetryAlways), storage.WithMaxAttempts(gcsTries),
		storage.WithBackoff(gax.Backoff{Initial: gcsDelay, Max: gcsMaxDelay, Multiplier: 2}))
	return &gcsBucket{client: client, bucket: client.Bucket(conf.Bucket), conf: conf, memory: newBudget(int64(memory), partWait)}, nil
}

func (b *gcsBucket) uploadMemory() *budget { return b.memory }

// put implements bucket by a resumable upload, or by one request where the body
// ends within a chunk. Of an upload that was not finished nothing is seen; the
// store forgets it after a week.
//
// The SDK commits what it has when its writer is closed, and a writer without
// chunks also when its context ends (storage.Writer): so there are chunks
// always, and a writer is closed only after the end of the body, or after its
// context.
func (b *gcsBucket) put(ctx context.Context, key string, body io.Reader, size int64, opts putOptions) (objectInfo, error) {
	cond, err := gcsCondition(opts)
	if err != nil {
		return objectInfo{}, err
	}
	object := b.bucket.Object(key)
	if cond != (storage.Conditions{}) {
		object = object.If(cond)
	}
	chunk, grant, err := b.takeChunk(body, size, opts)
	if err != nil {
		return objectInfo{}, err
	}
	defer grant.release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Of an upload the SDK counts no attempts: a store that is away would hold
	// it for as long as its context lasts.
	var tries atomic.Int32
	object = object.Retryer(storage.WithErrorFunc(func(err error) bool {
		return storage.ShouldRetry(err) && tries.Add(1) < gcsTries
	}))
	w := object.NewWriter(ctx)
	w.ProgressFunc = func(int64) { tries.Store(0) }
	w.ContentType = opts.contentType
	w.ChunkSize = int(chunk)
	w.ChunkTransferTimeout = storeStall
	if opts.uploadID != "" {
		w.Metadata = map[string]string{gcsMarkName: opts.uploadID}
	}
	source := &erringReader{r: body}
	n, err := io.Copy(w, source)
	if err == nil {
		err = w.Close()
	} else {
		cancel()
		//lint:ignore SA1019 cancelling alone would let Close below end the body as if it were whole
		_ = w.CloseWithError(err)
		if n > 0 {
			_ = w.Close() // waits for the end of what was sent; commits nothing after CloseWithError
		}
	}
	switch {
	case source.err != nil:
		return objectInfo{}, source.err
	case err != nil:
		return objectInfo{}, gcsPutError(err, opts)
	}
	return gcsStat(w.Attrs()), nil
}

// takeChunk takes the memory of one chunk, which the SDK holds for as long as the
// upload lasts (gensupport.MediaBuffer; it sends again out of the same). The
// shorter memory is, the smaller are the chunks; only for the smallest an upload
// waits. A body that is in memory already, as a log is, does not wait for uploads.
func (b *gcsBucket) takeChunk(body io.Reader, size int64, opts putOptions) (chunk int64, g *grant, err error) {
	free := b.memory.limit - b.memory.inUse()
	chunk = min(b.chunkSize(size), max(gcsChunkStep, free/partsInMemory/gcsChunkStep*gcsChunkStep))
	a := budgetRequest{client: opts.client, n: chunk, revoke: opts.revoke}
	if g = b.memory.tryAcquire(a); g != nil {
		return chunk, g, nil
	}
	if _, held := body.(*bytes.Reader); held {
		return gcsChunkStep, nil, nil
	}
	a.n = gcsChunkStep
	g, err = b.memory.acquire(a)
	return gcsChunkStep, g, err
}

// chunkSize is the configured one, or less for a body that is shorter: one of at
// most a chunk is sent in one request.
func (b *gcsBucket) chunkSize(size int64) int64 {
	if size < 0 || size >= int64(b.conf.ChunkSize) {
		return int64(b.conf.ChunkSize)
	}
	return (size/gcsChunkStep + 1) * gcsChunkStep
}

// erringReader keeps the error of a reader, to tell it from one of the writer.
type erringReader struct {
	r   io.Reader
	err error
}

func (e *erringReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err != nil && err != io.EOF {
		e.err = err
	}
	return n, err
}

// get implements bucket.
func (b *gcsBucket) get(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	if length == 0 {
		return getNothing(ctx, b, key, etag)
	}
	object := b.bucket.Object(key)
	if etag != "" {
		generation, err := gcsGeneration(etag)
		if err != nil {
			return nil, objectInfo{}, err
		}
		object = object.If(storage.Conditions{GenerationMatch: generation})
	}
	read := &gcsRead{}
	r, err := object.NewRangeReader(read.counted(ctx), offset, length)
	if err != nil {
		return nil, objectInfo{}, needs(gcsNeedsRead, gcsError(err))
	}
	info := objectInfo{
		key: key, size: r.Attrs.Size, modTime: r.Attrs.LastModified,
		etag: gcsETag(r.Attrs.Generation), uploadID: r.Metadata()[gcsMarkName],
	}
	if etag != "" && info.etag != etag {
		r.Close()
		return nil, objectInfo{}, fmt.Errorf("%w: %s", ErrPrecondition, key)
	}
	read.ReadCloser = r
	return read, info, nil
}

// stat implements bucket.
func (b *gcsBucket) stat(ctx context.Context, key string) (objectInfo, error) {
	attrs, err := b.bucket.Object(key).Attrs(ctx)
	if err != nil {
		return objectInfo{}, needs(gcsNeedsRead, gcsError(err))
	}
	return gcsStat(attrs), nil
}

// remove implements bucket.
func (b *gcsBucket) remove(ctx context.Context, key, etag string) error {
	object := b.bucket.Object(key)
	if etag != "" {
		generation, err := gcsGeneration(etag)
		if err != nil {
			return err
		}
		object = object.If(storage.Conditions{GenerationMatch: generation})
	}
	return needs("storage.objects.delete", gcsError(object.Delete(ctx)))
}

// list implements bucket.
func (b *gcsBucket) list(ctx context.Context, prefix string, page func([]objectInfo) error) error {
	query := &storage.Query{Prefix: prefix}
	if err := query.SetAttrSelection([]string{"Name", "Size", "Created", "Generation"}); err != nil {
		return err
	}
	pages := iterator.NewPager(b.bucket.Objects(ctx, query), gcsPage, "")
	for {
		var attrs []*storage.ObjectAttrs
		next, err := pages.NextPage(&attrs)
		if err != nil {
			return needs("storage.objects.list", listError(gcsError(err)))
		}
		objects := make([]objectInfo, len(attrs))
		for i, a := range attrs {
			objects[i] = gcsInfo(a)
		}
		if err := page(objects); err != nil || next == "" {
			return err
		}
	}
}

// presign implements bucket with the private key of a service account, or by
// asking Google to sign for it.
func (b *gcsBucket) presign(_ context.Context, key string, ttl time.Duration, filename string) (string, error) {
	if os.Getenv(gcsEmulator) != "" {
		return "", fmt.Errorf("%w: %s is set, and there is no key to sign with", ErrUnsupported, gcsEmulator)
	}
	return b.bucket.SignedURL(key, &storage.SignedURLOptions{
		Scheme: storage.SigningSchemeV4, Method: http.MethodGet, Expires: time.Now().Add(ttl),
		QueryParameters: url.Values{"response-content-disposition": {`attachment; filename="` + filename + `"`}},
	})
}

// gcsInfo describes an object. Its modTime is that of the generation: changes of
// metadata do not count.
func gcsInfo(a *storage.ObjectAttrs) objectInfo {
	return objectInfo{key: a.Name, size: a.Size, modTime: a.Created, etag: gcsETag(a.Generation), uploadID: a.Metadata[gcsMarkName]}
}

// gcsStat is gcsInfo with the time that get tells, in whole seconds.
func gcsStat(a *storage.ObjectAttrs) objectInfo {
	info := gcsInfo(a)
	info.modTime = info.modTime.Truncate(time.Second)
	return info
}

func gcsETag(generation int64) string { return `"` + strconv.FormatInt(generation, 10) + `"` }

// gcsGeneration is the generation that an ETag names. One that names none is
// the ETag of no object.
func gcsGeneration(etag string) (int64, error) {
	n, err := strconv.ParseInt(strings.Trim(etag, `"`), 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%w: no object has the ETag %s", ErrPrecondition, etag)
	}
	return n, nil
}

func gcsCondition(opts putOptions) (c storage.Conditions, err error) {
	c.DoesNotExist = opts.absent
	if opts.ifMatch != "" {
		c.GenerationMatch, err = gcsGeneration(opts.ifMatch)
	}
	return c, err
}

// gcsPutError is gcsError of a put: what is not there is what the condition
// named, or else the bucket.
func gcsPutError(err error, opts putOptions) error {
	err = needs("storage.objects.create, and storage.objects.delete to replace one", gcsError(err))
	switch {
	case !errors.Is(err, ErrNotFound):
		return err
	case opts.ifMatch != "":
		return fmt.Errorf("%w: %v", ErrPrecondition, err)
	}
	return fmt.Errorf("%w: %v", errBucketGone, err)
}

// gcsError translates an error of the SDK.
func gcsError(err error) error { return ofKind(gcsKind, err) }

func gcsKind(err error) error {
	if errors.Is(err, storage.ErrBucketNotExist) {
		return errBucketGone
	}
	if errors.Is(err, storage.ErrObjectNotExist) { // the SDK makes it of every 404 of an object
		return errAmbiguousNotFound
	}
	var token *auth.Error // from where credentials are changed into a token
	if errors.As(err, &token) && token.Response != nil && token.Response.StatusCode < 500 {
		return ErrDenied
	}
	var resp *googleapi.Error
	if !errors.As(err, &resp) {
		return ErrUnavailable // no answer came
	}
	for _, e := range resp.Errors {
		if strings.HasSuffix(strings.ToLower(e.Reason), "ratelimitexceeded") {
			return ErrUnavailable // with status 403
		}
	}
	return kindOfStatus(resp.Code)
}
