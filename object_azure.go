//go:build !no_azure

package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	azservice "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
)

const (
	azureMaxBlocks = 50_000
	azureTries     = 4 // attempts of one request
	azureDelay     = 200 * time.Millisecond
	azureMaxDelay  = 5 * time.Second
	azureMarkName  = "mark" // in the metadata of a blob
)

// azureBucket is a container of Azure Blob Storage. Artifacts and logs are block
// blobs: blocks that were not committed are seen by nobody, and Azure removes
// them after a week, or when another upload of the blob is committed.
type azureBucket struct {
	service *azservice.Client
	client  *container.Client
	conf    azureConfig
	buffers *partBuffers
	made    atomic.Bool // the container is there, or is not ours to make
	signer  azureSigner
}

var _ bucket = (*azureBucket)(nil)

// openAzure opens the store in a container. Credentials are those in
// AZURE_STORAGE_CONNECTION_STRING, or, with an account URL, those of the default
// Azure chain: environment, workload identity, managed identity.
func openAzure(conf azureConfig, memory byteSize, log *slog.Logger) (Backend, error) {
	b, err := newAzureBucket(conf, memory)
	if err != nil {
		return nil, err
	}
	return newObjectStore(b, keyPrefix(conf.Prefix), log), nil
}

func newAzureBucket(conf azureConfig, memory byteSize) (*azureBucket, error) {
	if err := conf.check(); err != nil {
		return nil, err
	}
	if err := checkUploadMemory(memory, conf.PartSize, "AZURE_PART_SIZE"); err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	tuneTransport(transport)
	core := azcore.ClientOptions{
		Transport: &http.Client{Transport: transport},
		Retry:     policy.RetryOptions{MaxRetries: azureTries - 1, RetryDelay: azureDelay, MaxRetryDelay: azureMaxDelay},
	}
	b := &azureBucket{conf: conf, buffers: newPartBuffers(int64(memory), int64(conf.PartSize), azureMaxBlocks)}
	b.made.Store(!conf.Create)
	options := &azservice.ClientOptions{ClientOptions: core}
	if conf.AccountURL != "" {
		identity, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: core})
		if err != nil {
			return nil, fmt.Errorf("the Azure credentials cannot be read: %w", err)
		}
		if b.service, err = azservice.NewClient(conf.AccountURL, identity, options); err != nil {
			return nil, fmt.Errorf("PAGEWRIGHT_AZURE_ACCOUNT_URL: %w", err)
		}
	} else {
		connection := os.Getenv(azureConnection)
		var err error
		if b.service, err = azservice.NewClientFromConnectionString(connection, options); err != nil {
			return nil, fmt.Errorf("%s: %w", azureConnection, err)
		}
		if b.signer.key, err = connectionKey(connection); err != nil {
			return nil, fmt.Errorf("%s: %w", azureConnection, err)
		}
	}
	b.client = b.service.NewContainerClient(conf.Container)
	return b, nil
}

func (b *azureBucket) uploadMemory() *budget { return b.buffers.memory }

// put implements bucket. A body that ends within one block is one request; every
// other is sent in blocks, of which nothing is seen before they are committed,
// by the request that bears the condition. There is no way to abort: what was
// sent of an upload that failed is seen by nobody and goes by itself.
func (b *azureBucket) put(ctx context.Context, key string, body io.Reader, size int64, opts putOptions) (objectInfo, error) {
	if err := b.makeContainer(ctx); err != nil {
		return objectInfo{}, err
	}
	return b.buffers.put(body, size, opts,
		func(body io.ReadSeeker, size int64) (objectInfo, error) { return b.putOne(ctx, key, body, size, opts) },
		func(r *partReader) (objectInfo, error) { return b.putBlocks(ctx, key, r, opts) })
}

func (b *azureBucket) putOne(ctx context.Context, key string, body io.ReadSeeker, size int64, opts putOptions) (objectInfo, error) {
	out, err := b.client.NewBlockBlobClient(key).Upload(ctx, streaming.NopCloser(body), &blockblob.UploadOptions{
		HTTPHeaders: &blob.HTTPHeaders{BlobContentType: &opts.contentType}, Metadata: azureMark(opts), AccessConditions: azureCondition(opts),
	})
	if err != nil {
		return objectInfo{}, azurePutError(err, opts)
	}
	return azureStored(key, size, out.LastModified, out.ETag, opts), nil
}

func (b *azureBucket) putBlocks(ctx context.Context, key string, r *partReader, opts putOptions) (objectInfo, error) {
	client := b.client.NewBlockBlobClient(key)
	upload := rand.Text() // so that blocks of two uploads are never mixed
	ids, total, err := b.buffers.sendParts(ctx, r, b.conf.Concurrency,
		func(ctx context.Context, n int, p *part) (string, error) {
			// All ids of a blob have to be of one length.
			id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s%06d", upload, n))
			_, err := client.StageBlock(ctx, id, streaming.NopCloser(p), nil)
			return id, azurePutError(err, opts)
		})
	if err != nil {
		return objectInfo{}, err
	}
	out, err := client.CommitBlockList(ctx, ids, &blockblob.CommitBlockListOptions{
		HTTPHeaders: &blob.HTTPHeaders{BlobContentType: &opts.contentType}, Metadata: azureMark(opts), AccessConditions: azureCondition(opts),
	})
	if err != nil {
		return objectInfo{}, azurePutError(err, opts)
	}
	return azureStored(key, total, out.LastModified, out.ETag, opts), nil
}

func azureStored(key string, size int64, modTime *time.Time, etag *azcore.ETag, opts putOptions) objectInfo {
	return objectInfo{key: key, size: size, modTime: value(modTime), etag: azureETag(etag), uploadID: opts.uploadID}
}

// makeContainer makes the container if it is ours to make.
func (b *azureBucket) makeContainer(ctx context.Context) error {
	if b.made.Load() {
		return nil
	}
	_, err := b.client.Create(ctx, nil)
	if err != nil && !bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
		return fmt.Errorf("cannot make the container %q: %w", b.conf.Container, needs("containers/write", azureError(err)))
	}
	b.made.Store(true)
	return nil
}

// get implements bucket.
func (b *azureBucket) get(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	if length == 0 { // a count of 0 means all
		return getNothing(ctx, b, key, etag)
	}
	return getResuming(ctx, b.getOnce, key, etag, offset, length)
}

func (b *azureBucket) getOnce(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	o := &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: offset, Count: max(length, 0)}}
	if etag != "" {
		o.AccessConditions = azureCondition(putOptions{ifMatch: etag})
	}
	out, err := b.client.NewBlobClient(key).DownloadStream(ctx, o)
	if err != nil {
		return nil, objectInfo{}, needs("blobs/read", azureError(err))
	}
	info := objectInfo{
		key: key, size: value(out.ContentLength), modTime: value(out.LastModified),
		etag: azureETag(out.ETag), uploadID: azureMarkOf(out.Metadata),
	}
	if offset > 0 || length > 0 {
		if info.size, err = sizeOfRange(value(out.ContentRange), offset); err != nil {
			out.Body.Close()
			return nil, objectInfo{}, err
		}
	}
	return out.Body, info, nil
}

// stat implements bucket.
func (b *azureBucket) stat(ctx context.Context, key string) (objectInfo, error) {
	out, err := b.client.NewBlobClient(key).GetProperties(ctx, nil)
	if err != nil {
		return objectInfo{}, needs("blobs/read", azureError(err))
	}
	return objectInfo{
		key: key, size: value(out.ContentLength), modTime: value(out.LastModified),
		etag: azureETag(out.ETag), uploadID: azureMarkOf(out.Metadata),
	}, nil
}

// remove implements bucket. A blob that has snapshots goes with them: without
// saying so it could not be removed at all.
func (b *azureBucket) remove(ctx context.Context, key, etag string) error {
	o := &blob.DeleteOptions{DeleteSnapshots: to.Ptr(blob.DeleteSnapshotsOptionTypeInclude)}
	if etag != "" {
		o.AccessConditions = azureCondition(putOptions{ifMatch: etag})
	}
	_, err := b.client.NewBlobClient(key).Delete(ctx, o)
	return needs("blobs/delete", azureError(err))
}

// list implements bucket.
func (b *azureBucket) list(ctx context.Context, prefix string, page func([]objectInfo) error) error {
	pages := b.client.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix})
	for pages.More() {
		out, err := pages.NextPage(ctx)
		if err != nil {
			return needs("blobs/read", listError(azureError(err))) // of the whole container
		}
		objects := make([]objectInfo, 0, len(out.Segment.BlobItems))
		for _, i := range out.Segment.BlobItems {
			if i.Properties == nil {
				continue
			}
			objects = append(objects, objectInfo{
				key: value(i.Name), size: value(i.Properties.ContentLength),
				modTime: value(i.Properties.LastModified), etag: azureETag(i.Properties.ETag),
			})
		}
		if err := page(objects); err != nil {
			return err
		}
	}
	return nil
}

func azureCondition(opts putOptions) *blob.AccessConditions {
	var m blob.ModifiedAccessConditions
	if opts.absent {
		m.IfNoneMatch = to.Ptr(azcore.ETagAny)
	}
	if opts.ifMatch != "" {
		m.IfMatch = to.Ptr(azcore.ETag(opts.ifMatch))
	}
	return &blob.AccessConditions{ModifiedAccessConditions: &m}
}

func azureMark(opts putOptions) map[string]*string {
	if opts.uploadID == "" {
		return nil
	}
	return map[string]*string{azureMarkName: &opts.uploadID}
}

// azureMarkOf finds the mark: its name comes back as header names are written.
func azureMarkOf(metadata map[string]*string) string {
	for name, v := range metadata {
		if strings.EqualFold(name, azureMarkName) {
			return value(v)
		}
	}
	return ""
}

func azureETag(etag *azcore.ETag) string {
	return `"` + strings.Trim(string(value(etag)), `"`) + `"` // a list has them without quotes
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// azurePutError is azureError of a put: what is not there is what If-Match
// named.
func azurePutError(err error, opts putOptions) error {
	err = needs("blobs/write", azureError(err))
	if opts.ifMatch != "" && errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: %v", ErrPrecondition, err)
	}
	return err
}

// azureError translates an error of the SDK.
func azureError(err error) error { return ofKind(azureKind, err) }

func azureKind(err error) error {
	var refused *azidentity.AuthenticationFailedError
	if errors.As(err, &refused) {
		return ErrDenied
	}
	var resp *azcore.ResponseError
	if !errors.As(err, &resp) {
		return ErrUnavailable // no answer came
	}
	switch bloberror.Code(resp.ErrorCode) {
	case bloberror.InvalidBlockList, // a rival's commit discarded the blocks
		bloberror.BlobAlreadyExists, bloberror.LeaseIDMissing:
		return errConflict
	case bloberror.BlobImmutableDueToPolicy:
		return ErrDenied
	case bloberror.BlobNotFound:
		return ErrNotFound
	case bloberror.ContainerNotFound:
		return errBucketGone
	case bloberror.ContainerBeingDeleted, bloberror.ContainerDisabled:
		return ErrUnavailable
	}
	return kindOfStatus(resp.StatusCode)
}
