//go:build !no_s3

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
)

const (
	s3MaxParts = 10_000
	s3Tries    = 4 // attempts of one request
	s3MaxDelay = 2 * time.Second
	abortTime  = 30 * time.Second
	// s3NeedsRead is what GET and HEAD of an object need. Without the permission to
	// list, S3 answers them with 403 if the object does not exist.
	s3NeedsRead = "s3:GetObject, or s3:ListBucket if the object does not exist"
)

// s3Bucket is a bucket of AWS S3, or of a store with the same API.
type s3Bucket struct {
	client   *s3.Client
	signer   *s3.PresignClient
	name     string
	conf     s3Config
	buffers  *partBuffers
	unquoted atomic.Bool // send If-Match without quotes, as Ceph and DigitalOcean require
	// checksums: uploads carry a CRC64NVME, because the store refuses a wrong one. It is set
	// by checkChecksums.
	checksums atomic.Bool
	log       *slog.Logger
}

var _ bucket = (*s3Bucket)(nil)
var _ adapter = (*s3Bucket)(nil)

// openS3 opens the store in a bucket. It gets credentials from the AWS chain: environment,
// profiles, web identity, container and instance roles.
func openS3(ctx context.Context, conf s3Config, memory byteSize, log *slog.Logger) (Backend, error) {
	b, err := newS3Bucket(ctx, conf, memory, log)
	if err != nil {
		return nil, err
	}
	return newObjectStore(b, keyPrefix(conf.Prefix), log), nil
}

func newS3Bucket(ctx context.Context, conf s3Config, memory byteSize, log *slog.Logger) (*s3Bucket, error) {
	if err := conf.check(); err != nil {
		return nil, err
	}
	if err := checkUploadMemory(memory, conf.PartSize, "S3_PART_SIZE"); err != nil {
		return nil, err
	}
	cfg, err := config.LoadDefaultConfig(ctx,
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(tuneTransport)),
		config.WithLogger(logging.LoggerFunc(func(_ logging.Classification, format string, args ...any) {
			log.Warn("message from the AWS SDK", "message", fmt.Sprintf(format, args...))
		})),
		// Not every store knows the checksums that newer SDKs add. Without TLS, the hash in
		// the signature covers the bytes of an upload; over TLS, see object_s3_checksum.go.
		config.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		config.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) {
				o.MaxAttempts, o.MaxBackoff = s3Tries, s3MaxDelay
			})
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("cannot read the AWS configuration: %w", err)
	}
	cfg.Region = cmp.Or(conf.Region, cfg.Region)
	if conf.Endpoint != "" {
		cfg.Region = cmp.Or(cfg.Region, "us-east-1")
	}
	if cfg.Region == "" {
		return nil, badConfig("PAGEWRIGHT_S3_REGION or AWS_REGION must be set")
	}
	client := s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.UsePathStyle = conf.PathStyle
		if conf.Endpoint != "" {
			o.BaseEndpoint = aws.String(conf.Endpoint)
		}
	})
	return &s3Bucket{
		client: client, signer: s3.NewPresignClient(client), name: conf.Bucket,
		conf: conf, buffers: newPartBuffers(int64(memory), int64(conf.PartSize), s3MaxParts), log: log,
	}, nil
}

func (b *s3Bucket) uploadMemory() *budget { return b.buffers.memory }

// put implements bucket. It sends a body that ends within its first part, or is in memory,
// in a single request, and every other body in a multipart upload.
func (b *s3Bucket) put(ctx context.Context, key string, body io.Reader, size int64, opts putOptions) (objectInfo, error) {
	body, sum := b.checksum(body)
	parts, whole, err := b.buffers.readFirst(body, size, opts)
	if err != nil {
		return objectInfo{}, err
	}
	if whole != nil {
		defer parts.release()
		return b.putOne(ctx, key, whole, parts.got, sum, opts.withDigest(parts.got))
	}
	return b.putParts(ctx, key, parts, sum, opts.withDigest(size))
}

func (b *s3Bucket) putOne(ctx context.Context, key string, body io.ReadSeeker, size int64, sum *s3Checksum, opts putOptions) (objectInfo, error) {
	if err := opts.allowed(); err != nil {
		return objectInfo{}, err
	}
	out, err := b.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &b.name, Key: &key, Body: body, ContentLength: &size,
		ContentType: &opts.contentType, Metadata: opts.metadata(), ChecksumCRC64NVME: sum.value(),
		IfNoneMatch: ifNoneMatch(opts), IfMatch: b.ifMatch(opts.ifMatch),
	})
	if err != nil {
		return objectInfo{}, s3PutError(err, opts.ifMatch)
	}
	return objectInfo{key: key, size: size, etag: quoted(aws.ToString(out.ETag)), uploadID: opts.uploadID, digest: opts.digest}, nil
}

// putParts stores a body by a multipart upload. The object appears when the upload is
// completed, by the request that carries the condition.
func (b *s3Bucket) putParts(ctx context.Context, key string, r *partReader, sum *s3Checksum, opts putOptions) (objectInfo, error) {
	id, err := b.createUpload(ctx, key, sum, opts)
	if err != nil {
		r.release()
		return objectInfo{}, err
	}
	info, err := b.sendAndComplete(ctx, key, id, r, sum, opts)
	if err != nil {
		b.abort(ctx, key, id)
	}
	return info, err
}

func (b *s3Bucket) createUpload(ctx context.Context, key string, sum *s3Checksum, opts putOptions) (id *string, err error) {
	created, err := b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &b.name, Key: &key, ContentType: &opts.contentType, Metadata: opts.metadata(),
		ChecksumAlgorithm: sum.algorithm(), ChecksumType: sum.kind(),
	})
	if err != nil {
		return nil, s3PutError(err, "")
	}
	return created.UploadId, nil
}

func (b *s3Bucket) sendAndComplete(ctx context.Context, key string, id *string, r *partReader, sum *s3Checksum, opts putOptions) (objectInfo, error) {
	parts, total, err := sendParts(ctx, r, b.conf.Concurrency, func(ctx context.Context, n int, p *part) (types.CompletedPart, error) {
		return b.sendPart(ctx, key, id, n, p, sum.ofPart(p))
	})
	if err != nil {
		return objectInfo{}, err
	}
	info, err := b.complete(ctx, key, id, parts, sum, opts)
	info.size = total
	return info, err
}

func (b *s3Bucket) sendPart(ctx context.Context, key string, id *string, n int, p *part, crc *string) (types.CompletedPart, error) {
	number := aws.Int32(int32(n))
	out, err := b.client.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: &b.name, Key: &key, UploadId: id, PartNumber: number, Body: p, ContentLength: &p.size, ChecksumCRC64NVME: crc,
	})
	if err != nil {
		return types.CompletedPart{}, s3PutError(err, "")
	}
	return types.CompletedPart{PartNumber: number, ETag: aws.String(aws.ToString(out.ETag)), ChecksumCRC64NVME: crc}, nil
}

// complete makes the parts of an upload the object. The size of its result is not set.
func (b *s3Bucket) complete(ctx context.Context, key string, id *string, parts []types.CompletedPart, sum *s3Checksum, opts putOptions) (objectInfo, error) {
	if err := opts.allowed(); err != nil {
		return objectInfo{}, err
	}
	out, err := b.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &b.name, Key: &key, UploadId: id,
		MultipartUpload:   &types.CompletedMultipartUpload{Parts: parts},
		ChecksumCRC64NVME: sum.value(), ChecksumType: sum.kind(),
		IfNoneMatch: ifNoneMatch(opts), IfMatch: b.ifMatch(opts.ifMatch),
	})
	if err != nil {
		return objectInfo{}, s3PutError(err, opts.ifMatch)
	}
	return objectInfo{key: key, etag: quoted(aws.ToString(out.ETag)), uploadID: opts.uploadID, digest: opts.digest}, nil
}

// abort removes the parts of an upload. If the service is killed before, the bucket's
// lifecycle rule for incomplete uploads removes them.
func (b *s3Bucket) abort(ctx context.Context, key string, id *string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
	defer cancel()
	_, err := b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: &key, UploadId: id})
	if err != nil && !errors.Is(s3Error(err), errConflict) { // errConflict: the upload has ended
		b.log.Warn("cannot abort an upload; its parts remain until the bucket's lifecycle rule removes them",
			"key", key, "upload", aws.ToString(id), "error", needs("s3:AbortMultipartUpload", s3Error(err)))
	}
}

// get implements bucket.
func (b *s3Bucket) get(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	if length == 0 {
		return getNothing(ctx, b, key, etag)
	}
	return getResuming(ctx, b.getOnce, key, etag, offset, length)
}

func (b *s3Bucket) getOnce(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	in := &s3.GetObjectInput{Bucket: &b.name, Key: &key, IfMatch: b.ifMatch(etag)}
	partial := offset > 0 || length > 0
	if partial {
		in.Range = aws.String(httpRange(offset, length))
	}
	out, err := b.client.GetObject(ctx, in)
	if err != nil {
		return nil, objectInfo{}, needs(s3NeedsRead, s3Error(err))
	}
	info := objectInfo{
		key: key, size: aws.ToInt64(out.ContentLength), modTime: aws.ToTime(out.LastModified),
		etag: quoted(aws.ToString(out.ETag)), uploadID: out.Metadata[uploadIDKey], digest: out.Metadata[digestKey],
	}
	if partial {
		if info.size, err = sizeOfRange(aws.ToString(out.ContentRange), offset); err != nil {
			out.Body.Close()
			return nil, objectInfo{}, err
		}
	}
	return out.Body, info, nil
}

// stat implements bucket.
func (b *s3Bucket) stat(ctx context.Context, key string) (objectInfo, error) {
	out, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return objectInfo{}, needs(s3NeedsRead, s3Error(err))
	}
	return objectInfo{
		key: key, size: aws.ToInt64(out.ContentLength), modTime: aws.ToTime(out.LastModified),
		etag: quoted(aws.ToString(out.ETag)), uploadID: out.Metadata[uploadIDKey], digest: out.Metadata[digestKey],
	}, nil
}

// remove implements bucket.
func (b *s3Bucket) remove(ctx context.Context, key, etag string) error {
	_, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: &key, IfMatch: b.ifMatch(etag)})
	return needs("s3:DeleteObject", s3Error(err))
}

// list implements bucket.
func (b *s3Bucket) list(ctx context.Context, prefix string, page func([]objectInfo) error) error {
	pages := s3.NewListObjectsV2Paginator(b.client, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &prefix})
	for pages.HasMorePages() {
		out, err := pages.NextPage(ctx)
		if err != nil {
			return needs("s3:ListBucket", listError(s3Error(err)))
		}
		objects := make([]objectInfo, len(out.Contents))
		for i, o := range out.Contents {
			objects[i] = objectInfo{
				key: aws.ToString(o.Key), size: aws.ToInt64(o.Size),
				modTime: aws.ToTime(o.LastModified), etag: quoted(aws.ToString(o.ETag)),
			}
		}
		if err := page(objects); err != nil {
			return err
		}
	}
	return nil
}

// folders implements bucket.
func (b *s3Bucket) folders(ctx context.Context, dir, prefix, start string, page func([]string) error) error {
	in := &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: aws.String(dir + prefix), Delimiter: aws.String("/")}
	if start != "" {
		in.StartAfter = aws.String(dir + start)
	}
	pages := s3.NewListObjectsV2Paginator(b.client, in)
	for pages.HasMorePages() {
		out, err := pages.NextPage(ctx)
		if err != nil {
			return needs("s3:ListBucket", listError(s3Error(err)))
		}
		names := make([]string, len(out.CommonPrefixes))
		for i, p := range out.CommonPrefixes {
			names[i] = folderName(dir, aws.ToString(p.Prefix))
		}
		if err := page(names); err != nil {
			return err
		}
	}
	return nil
}

// presign implements bucket. A URL that is signed with temporary credentials expires with
// them, even if ttl is longer.
func (b *s3Bucket) presign(ctx context.Context, key string, ttl time.Duration, filename string) (string, error) {
	out, err := b.signer.PresignGetObject(ctx, &s3.GetObjectInput{
		Bucket: &b.name, Key: &key,
		ResponseContentDisposition: aws.String(`attachment; filename="` + filename + `"`),
	}, s3.WithPresignExpires(ttl))
	if err != nil {
		return "", s3Error(err)
	}
	return out.URL, nil
}

// adapt implements adapter.
func (b *s3Bucket) adapt() bool { return b.unquoted.CompareAndSwap(false, true) }

func (b *s3Bucket) ifMatch(etag string) *string {
	switch {
	case etag == "":
		return nil
	case b.unquoted.Load():
		return aws.String(strings.Trim(etag, `"`))
	}
	return &etag
}

func ifNoneMatch(opts putOptions) *string {
	if opts.absent {
		return aws.String("*")
	}
	return nil
}

// quoted returns an ETag with its quotes, which some stores leave out.
func quoted(etag string) string { return `"` + strings.Trim(etag, `"`) + `"` }

// s3PutError translates the error of a put. With ifMatch, a 404 means that the object does not
// exist. Otherwise it means that the bucket does not exist. NoSuchUpload is another error,
// errConflict: a completion whose reply was lost may have ended the upload.
func s3PutError(err error, ifMatch string) error {
	err = needs("s3:PutObject", s3Error(err))
	switch {
	case !errors.Is(err, ErrNotFound):
		return err
	case ifMatch != "":
		return fmt.Errorf("%w: %v", ErrPrecondition, err)
	}
	return fmt.Errorf("%w: %v", errBucketGone, err)
}

// s3Error translates an error of the SDK.
func s3Error(err error) error { return wrapKind(s3Kind, err) }

func s3Kind(err error) error {
	var api smithy.APIError
	code := ""
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	switch code {
	case "NoSuchKey":
		return ErrNotFound
	case "PreconditionFailed":
		return ErrPrecondition
	case "ConditionalRequestConflict", "OperationAborted", "NoSuchUpload":
		return errConflict
	case "NoSuchBucket":
		return errBucketGone
	case "SlowDown", "RequestTimeout", "RequestTimeTooSkewed":
		return ErrUnavailable
	case "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch":
		return errChangedOnTheWay
	case "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage":
		return ErrNoSpace
	case "NotImplemented":
		return ErrUnsupported
	}
	var resp *awshttp.ResponseError
	if !errors.As(err, &resp) {
		var signing *smithy.SerializationError
		if errors.As(err, &signing) {
			return nil
		}
		return ErrUnavailable // there was no response
	}
	return kindOfStatus(resp.HTTPStatusCode())
}
