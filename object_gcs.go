//go:build !no_gcs

package main

import (
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
	lru "github.com/hashicorp/golang-lru/v2"
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
	// gcsChangedKept bounds gcsBucket.changed: at most about 5 MB.
	gcsChangedKept = 10_000
	// gcsNeedsRead names the permission that a read needs. Without the permission to list,
	// the store answers 403 if the object does not exist.
	gcsNeedsRead = "storage.objects.get, or storage.objects.list if the object does not exist"
	// gcsEmulator is Google's own variable for the address of an emulator.
	gcsEmulator = "STORAGE_EMULATOR_HOST"
)

// gcsBucket is a bucket of Google Cloud Storage, over its JSON API. The ETag of an object is
// its generation, which is what the store compares in conditions.
type gcsBucket struct {
	client *storage.Client
	bucket *storage.BucketHandle
	conf   gcsConfig
	memory *budget // for the chunk of each upload that the SDK keeps in memory
	// changed has objects whose metadata was changed, by key: a GET does not return it.
	changed *lru.Cache[string, gcsChanged]

	// emulated: the store is an emulator. fake-gcs-server 1.56 gives an object a new
	// generation when its metadata changes, and ignores conditions on that.
	emulated bool
}

var _ bucket = (*gcsBucket)(nil)

// openGCS opens the store in a bucket. It uses the application default credentials:
// GOOGLE_APPLICATION_CREDENTIALS, workload identity, the metadata server.
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
		return nil, fmt.Errorf("GOOGLE_APPLICATION_CREDENTIALS: cannot find application default credentials: %w", err)
	}
	client, err := storage.NewClient(ctx, append(options,
		option.WithHTTPClient(&http.Client{Transport: gcsTransport{transport}}), storage.WithJSONReads())...)
	if err != nil {
		return nil, fmt.Errorf("cannot create the client for Google Cloud Storage: %w", err)
	}
	// Retry all requests, including those without a condition. That is safe: a request is
	// repeated only if it was not acknowledged, and with the same bytes.
	client.SetRetry(storage.WithPolicy(storage.RetryAlways), storage.WithMaxAttempts(gcsTries),
		storage.WithBackoff(gax.Backoff{Initial: gcsDelay, Max: gcsMaxDelay, Multiplier: 2}))
	return &gcsBucket{
		client: client, bucket: client.Bucket(conf.Bucket), conf: conf, memory: newBudget(int64(memory), partWait),
		changed: newLRU[string, gcsChanged](gcsChangedKept), emulated: os.Getenv(gcsEmulator) != "",
	}, nil
}

func (b *gcsBucket) uploadMemory() *budget { return b.memory }

// put implements bucket with a resumable upload, or with a single request if the body ends
// within its first chunk. An unfinished upload is invisible, and the store removes it after
// a week.
//
// Closing the SDK's Writer commits the bytes written so far. A Writer without chunks can do
// that even if its context was cancelled right before, so put always uses chunks. It closes
// the Writer only after the end of the body; after an error it first cancels the context
// and calls CloseWithError.
func (b *gcsBucket) put(ctx context.Context, key string, body io.Reader, size int64, opts putOptions) (objectInfo, error) {
	object, err := b.object(key, opts)
	if err != nil {
		return objectInfo{}, err
	}
	chunk, grant, err := b.acquireChunk(body, size, opts)
	if err != nil {
		return objectInfo{}, err
	}
	defer grant.release()
	body, err = readSmall(body, size, opts)
	if err != nil {
		return objectInfo{}, err
	}
	opts = opts.withDigest(size)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// WithMaxAttempts does not apply to uploads: while the store is down, the SDK would
	// retry until the context ends.
	var tries atomic.Int32
	object = object.Retryer(storage.WithErrorFunc(func(err error) bool {
		return storage.ShouldRetry(err) && tries.Add(1) < gcsTries
	}))
	w := object.NewWriter(ctx)
	w.ProgressFunc = func(int64) { tries.Store(0) }
	w.ContentType = opts.contentType
	w.ChunkSize = int(chunk)
	w.ChunkTransferTimeout = storeStall
	w.Metadata = opts.metadata()
	source := &readErrorKeeper{r: body}
	n, err := io.Copy(w, source)
	var refused error
	if err == nil {
		refused = opts.allowed()
		err = refused
	}
	if err == nil {
		err = w.Close()
	} else {
		cancel()
		//lint:ignore SA1019 it marks the body as failed, so that Close below cannot commit it as complete
		_ = w.CloseWithError(err)
		if n > 0 {
			_ = w.Close() // waits for the requests in flight; commits nothing after CloseWithError
		}
	}
	switch {
	case source.err != nil:
		return objectInfo{}, source.err
	case refused != nil:
		return objectInfo{}, refused
	case err != nil:
		return objectInfo{}, gcsPutError(err, opts)
	}
	return gcsStat(w.Attrs()), nil
}

// remove implements bucket.
func (b *gcsBucket) remove(ctx context.Context, key, etag string) error {
	object, err := b.object(key, putOptions{ifMatch: etag})
	if err != nil {
		return err
	}
	return needs("storage.objects.delete", gcsError(object.Delete(ctx)))
}

// reportsAbsence implements absenceReporter.
func (b *gcsBucket) reportsAbsence() {}

// list implements bucket.
func (b *gcsBucket) list(ctx context.Context, prefix string, page func([]objectInfo) error) error {
	fields := []string{"Name", "Size", "Created", "Generation"}
	return b.pages(ctx, &storage.Query{Prefix: prefix}, fields, func(attrs []*storage.ObjectAttrs) error {
		objects := make([]objectInfo, len(attrs))
		for i, a := range attrs {
			objects[i] = gcsInfo(a)
		}
		return page(objects)
	})
}

// folders implements bucket.
func (b *gcsBucket) folders(ctx context.Context, dir, prefix, start string, page func([]string) error) error {
	query := &storage.Query{Prefix: dir + prefix, Delimiter: "/"}
	if start != "" {
		query.StartOffset = dir + start
	}
	return b.pages(ctx, query, []string{"Name"}, func(attrs []*storage.ObjectAttrs) error {
		var names []string
		for _, a := range attrs {
			if a.Prefix != "" {
				names = append(names, folderName(dir, a.Prefix))
			}
		}
		return page(names)
	})
}

// pages calls page with batches of these fields of what query selects. It stops if page fails,
// and returns that error unchanged.
func (b *gcsBucket) pages(ctx context.Context, query *storage.Query, fields []string, page func([]*storage.ObjectAttrs) error) error {
	if err := query.SetAttrSelection(fields); err != nil {
		return err
	}
	pages := iterator.NewPager(b.bucket.Objects(ctx, query), gcsPage, "")
	for {
		var attrs []*storage.ObjectAttrs
		next, err := pages.NextPage(&attrs)
		if err != nil {
			return needs("storage.objects.list", listError(gcsError(err)))
		}
		if err := page(attrs); err != nil || next == "" {
			return err
		}
	}
}

// getsBare implements bareGetter: the JSON API returns no metadata with an object.
func (b *gcsBucket) getsBare() bool { return !b.emulated }

// patchDigest implements digestPatcher.
func (b *gcsBucket) patchDigest(ctx context.Context, o objectInfo, digest string) error {
	if b.emulated {
		return fmt.Errorf("%w: the emulator gives an object another ETag if its metadata changes", ErrUnsupported)
	}
	generation, err := gcsGeneration(o.etag)
	if err != nil {
		return err
	}
	object := b.bucket.Object(o.key).If(storage.Conditions{GenerationMatch: generation})
	for try := 1; ; try++ {
		attrs, err := object.Attrs(ctx)
		if err != nil {
			return needs(gcsNeedsRead, gcsError(err))
		}
		metadata := map[string]string{digestKey: digest}
		for name, v := range attrs.Metadata {
			if name != digestKey {
				metadata[name] = v
			}
		}
		_, err = b.bucket.Object(o.key).
			If(storage.Conditions{GenerationMatch: generation, MetagenerationMatch: attrs.Metageneration}).
			Update(ctx, storage.ObjectAttrsToUpdate{Metadata: metadata})
		err = needs("storage.objects.update", gcsError(err))
		// Either the object was replaced, or its metadata was changed meanwhile.
		if !errors.Is(err, ErrPrecondition) || try == gcsTries {
			return err
		}
	}
}

// presign implements bucket with the private key of a service account. Without a key file,
// the SDK asks Google to sign.
func (b *gcsBucket) presign(_ context.Context, key string, ttl time.Duration, filename string) (string, error) {
	if b.emulated {
		return "", fmt.Errorf("%w: cannot sign URLs: %s is set, and the emulator has no signing key", ErrUnsupported, gcsEmulator)
	}
	return b.bucket.SignedURL(key, &storage.SignedURLOptions{
		Scheme: storage.SigningSchemeV4, Method: http.MethodGet, Expires: time.Now().Add(ttl),
		QueryParameters: url.Values{"response-content-disposition": {`attachment; filename="` + filename + `"`}},
	})
}

// gcsInfo describes an object. Its modTime is the time when the generation was created.
// Updates of the metadata do not change that time.
func gcsInfo(a *storage.ObjectAttrs) objectInfo {
	return objectInfo{key: a.Name, size: a.Size, modTime: a.Created, etag: gcsETag(a.Generation), uploadID: a.Metadata[uploadIDKey], digest: a.Metadata[digestKey]}
}

// gcsStat is gcsInfo with the modTime in whole seconds, as get returns it.
func gcsStat(a *storage.ObjectAttrs) objectInfo {
	info := gcsInfo(a)
	info.modTime = info.modTime.Truncate(time.Second)
	return info
}

func gcsETag(generation int64) string { return `"` + strconv.FormatInt(generation, 10) + `"` }

// gcsGeneration returns the generation that an ETag names. It fails with ErrPrecondition if
// etag is not a generation, because no object can have such an ETag.
func gcsGeneration(etag string) (int64, error) {
	n, err := strconv.ParseInt(strings.Trim(etag, `"`), 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%w: no object has the ETag %s", ErrPrecondition, etag)
	}
	return n, nil
}

// object returns the handle of an object with the condition in opts.
func (b *gcsBucket) object(key string, opts putOptions) (*storage.ObjectHandle, error) {
	object := b.bucket.Object(key)
	switch {
	case opts.absent:
		return object.If(storage.Conditions{DoesNotExist: true}), nil
	case opts.ifMatch != "":
		generation, err := gcsGeneration(opts.ifMatch)
		if err != nil {
			return nil, err
		}
		return object.If(storage.Conditions{GenerationMatch: generation}), nil
	}
	return object, nil
}

// gcsPutError translates the error of a put. With ifMatch, ErrNotFound means that the
// object does not exist. Otherwise it means that the bucket does not exist.
func gcsPutError(err error, opts putOptions) error {
	err = needs("storage.objects.create, and storage.objects.delete to replace an object", gcsError(err))
	switch {
	case !errors.Is(err, ErrNotFound):
		return err
	case opts.ifMatch != "":
		return fmt.Errorf("%w: %v", ErrPrecondition, err)
	}
	return fmt.Errorf("%w: %v", errBucketGone, err)
}

// gcsError translates an error of the SDK.
func gcsError(err error) error { return wrapKind(gcsKind, err) }

func gcsKind(err error) error {
	if errors.Is(err, storage.ErrBucketNotExist) {
		return errBucketGone
	}
	if errors.Is(err, storage.ErrObjectNotExist) { // the SDK returns it for every 404 of an object
		return errAmbiguousNotFound
	}
	var token *auth.Error // from the exchange of credentials for a token
	if errors.As(err, &token) && token.Response != nil && token.Response.StatusCode < 500 {
		return ErrDenied
	}
	var resp *googleapi.Error
	if !errors.As(err, &resp) {
		return ErrUnavailable // there was no response
	}
	for _, e := range resp.Errors {
		if strings.HasSuffix(strings.ToLower(e.Reason), "ratelimitexceeded") {
			return ErrUnavailable // although the status is 403
		}
	}
	return kindOfStatus(resp.Code)
}
