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
)

// azureBucket is a container of Azure Blob Storage. Artifacts and logs are block blobs.
// Uncommitted blocks are invisible, and Azure removes them after a week, or when another
// upload of the blob is committed.
type azureBucket struct {
	service *azservice.Client
	client  *container.Client
	conf    azureConfig
	buffers *partBuffers
	created atomic.Bool // the container was created or exists, or conf.Create is false
	signer  azureSigner
}

var _ bucket = (*azureBucket)(nil)

// openAzure opens the store in a container. It gets credentials from
// AZURE_STORAGE_CONNECTION_STRING, or, with an account URL, from the default Azure chain:
// environment, workload identity, managed identity.
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
	b.created.Store(!conf.Create)
	options := &azservice.ClientOptions{ClientOptions: core}
	if conf.AccountURL != "" {
		identity, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: core})
		if err != nil {
			return nil, fmt.Errorf("cannot read the Azure credentials: %w", err)
		}
		if b.service, err = azservice.NewClient(conf.AccountURL, identity, options); err != nil {
			return nil, badConfig("PAGEWRIGHT_AZURE_ACCOUNT_URL: %w", err)
		}
	} else {
		connection := os.Getenv(azureConnection)
		var err error
		if b.service, err = azservice.NewClientFromConnectionString(connection, options); err != nil {
			return nil, badConfig("%s: %w", azureConnection, err)
		}
		if b.signer.key, err = connectionKey(connection); err != nil {
			return nil, badConfig("%s: %w", azureConnection, err)
		}
	}
	b.client = b.service.NewContainerClient(conf.Container)
	return b, nil
}

func (b *azureBucket) uploadMemory() *budget { return b.buffers.memory }

// put implements bucket. It sends a body that ends within its first block, or is in memory,
// in a single request, and every other body in blocks. The blob appears when the blocks are
// committed, by the request that carries the condition. A failed upload needs no abort, and
// there is none: Azure removes its blocks.
func (b *azureBucket) put(ctx context.Context, key string, body io.Reader, size int64, opts putOptions) (objectInfo, error) {
	if err := b.createContainer(ctx); err != nil {
		return objectInfo{}, err
	}
	parts, whole, err := b.buffers.readFirst(body, size, opts)
	if err != nil {
		return objectInfo{}, err
	}
	if whole != nil {
		defer parts.release()
		return b.putOne(ctx, key, whole, parts.got, opts.withDigest(parts.got))
	}
	return b.putBlocks(ctx, key, parts, opts)
}

func (b *azureBucket) putOne(ctx context.Context, key string, body io.ReadSeeker, size int64, opts putOptions) (objectInfo, error) {
	if err := opts.allowed(); err != nil {
		return objectInfo{}, err
	}
	out, err := b.client.NewBlockBlobClient(key).Upload(ctx, streaming.NopCloser(body), &blockblob.UploadOptions{
		HTTPHeaders: &blob.HTTPHeaders{BlobContentType: &opts.contentType}, Metadata: azureMetadata(opts), AccessConditions: azureCondition(opts),
	})
	if err != nil {
		return objectInfo{}, azurePutError(err, opts)
	}
	return azureStored(key, size, out.LastModified, out.ETag, opts), nil
}

func (b *azureBucket) putBlocks(ctx context.Context, key string, r *partReader, opts putOptions) (objectInfo, error) {
	client := b.client.NewBlockBlobClient(key)
	upload := rand.Text() // in the block ids, so that blocks of two uploads are never mixed
	ids, total, err := sendParts(ctx, r, b.conf.Concurrency,
		func(ctx context.Context, n int, p *part) (string, error) {
			// All block ids of a blob must have the same length.
			id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s%06d", upload, n))
			_, err := client.StageBlock(ctx, id, streaming.NopCloser(p), nil)
			return id, azurePutError(err, opts)
		})
	if err != nil {
		return objectInfo{}, err
	}
	if err := opts.allowed(); err != nil {
		return objectInfo{}, err
	}
	opts = opts.withDigest(total)
	out, err := client.CommitBlockList(ctx, ids, &blockblob.CommitBlockListOptions{
		HTTPHeaders: &blob.HTTPHeaders{BlobContentType: &opts.contentType}, Metadata: azureMetadata(opts), AccessConditions: azureCondition(opts),
	})
	if err != nil {
		return objectInfo{}, azurePutError(err, opts)
	}
	return azureStored(key, total, out.LastModified, out.ETag, opts), nil
}

func azureStored(key string, size int64, modTime *time.Time, etag *azcore.ETag, opts putOptions) objectInfo {
	return objectInfo{key: key, size: size, modTime: value(modTime), etag: azureETag(etag), uploadID: opts.uploadID, digest: opts.digest}
}

// createContainer creates the container if the configuration asks for it.
func (b *azureBucket) createContainer(ctx context.Context) error {
	if b.created.Load() {
		return nil
	}
	_, err := b.client.Create(ctx, nil)
	if err != nil && !bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
		return fmt.Errorf("cannot create the container %q: %w", b.conf.Container, needs("containers/write", azureError(err)))
	}
	b.created.Store(true)
	return nil
}

// get implements bucket.
func (b *azureBucket) get(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	if length == 0 { // for the SDK a count of 0 means all
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
		etag: azureETag(out.ETag), uploadID: azureValue(out.Metadata, uploadIDKey), digest: azureValue(out.Metadata, digestKey),
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
		etag: azureETag(out.ETag), uploadID: azureValue(out.Metadata, uploadIDKey), digest: azureValue(out.Metadata, digestKey),
	}, nil
}

// remove implements bucket. It also removes the snapshots of the blob: Azure refuses to
// remove a blob without them.
func (b *azureBucket) remove(ctx context.Context, key, etag string) error {
	o := &blob.DeleteOptions{DeleteSnapshots: to.Ptr(blob.DeleteSnapshotsOptionTypeInclude)}
	if etag != "" {
		o.AccessConditions = azureCondition(putOptions{ifMatch: etag})
	}
	_, err := b.client.NewBlobClient(key).Delete(ctx, o)
	return needs("blobs/delete", azureError(err))
}

// reportsAbsence implements absenceReporter.
func (b *azureBucket) reportsAbsence() {}

// list implements bucket.
func (b *azureBucket) list(ctx context.Context, prefix string, page func([]objectInfo) error) error {
	pages := b.client.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix})
	for pages.More() {
		out, err := pages.NextPage(ctx)
		if err != nil {
			return needs("blobs/read", listError(azureError(err)))
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

// folders implements bucket. It begins at the first name: Azurite and accounts without a
// hierarchical namespace cannot begin at another one.
func (b *azureBucket) folders(ctx context.Context, dir, prefix, _ string, page func([]string) error) error {
	pages := b.client.NewListBlobsHierarchyPager("/", &container.ListBlobsHierarchyOptions{Prefix: to.Ptr(dir + prefix)})
	for pages.More() {
		out, err := pages.NextPage(ctx)
		if err != nil {
			return needs("blobs/read", listError(azureError(err)))
		}
		names := make([]string, len(out.Segment.BlobPrefixes))
		for i, p := range out.Segment.BlobPrefixes {
			names[i] = folderName(dir, value(p.Name))
		}
		if err := page(names); err != nil {
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

func azureMetadata(opts putOptions) map[string]*string {
	m := map[string]*string{}
	for name, v := range opts.metadata() {
		m[name] = &v
	}
	return m
}

// azureValue returns a value of the metadata. Azure returns names in the case of header names.
func azureValue(metadata map[string]*string, key string) string {
	for name, v := range metadata {
		if strings.EqualFold(name, key) {
			return value(v)
		}
	}
	return ""
}

func azureETag(etag *azcore.ETag) string {
	return `"` + strings.Trim(string(value(etag)), `"`) + `"` // lists leave the quotes out
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// azurePutError translates the error of a put: ErrNotFound means that the blob that If-Match
// names does not exist.
func azurePutError(err error, opts putOptions) error {
	err = needs("blobs/write", azureError(err))
	if opts.ifMatch != "" && errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: %v", ErrPrecondition, err)
	}
	return err
}

// azureError translates an error of the SDK.
func azureError(err error) error { return wrapKind(azureKind, err) }

func azureKind(err error) error {
	var refused *azidentity.AuthenticationFailedError
	if errors.As(err, &refused) {
		return ErrDenied
	}
	var resp *azcore.ResponseError
	if !errors.As(err, &resp) {
		return ErrUnavailable // there was no response
	}
	switch bloberror.Code(resp.ErrorCode) {
	case bloberror.InvalidBlockList, // the commit of a concurrent writer discarded the blocks
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
