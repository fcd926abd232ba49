//go:build !no_s3

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/minio/crc64nvme"
)

// s3Checksum is the CRC64NVME of a body, computed while the body is read. S3 can compute it
// for an object in parts from those of the parts, so it compares all bytes of the object with
// the checksum in the completion ("full object"). The methods of a nil *s3Checksum return
// nothing, so that the SDK sends no checksum.
//
// The checksums of the body and of its parts are computed separately, so that the store would
// also notice a part in the wrong place.
type s3Checksum struct {
	r   io.Reader
	crc uint64
}

// checksum returns the reader from which body is to be uploaded and its checksum, or nil if
// uploads carry none.
func (b *s3Bucket) checksum(body io.Reader) (io.Reader, *s3Checksum) {
	if !b.checksums.Load() {
		return body, nil
	}
	c := &s3Checksum{r: body}
	if r, ok := body.(*bytes.Reader); ok { // readFirst sends it as it is
		from := r.Size() - int64(r.Len())
		_, _ = io.Copy(c, r) // neither can fail
		_, _ = r.Seek(from, io.SeekStart)
		return r, c
	}
	return c, c
}

func (c *s3Checksum) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.crc = crc64nvme.Update(c.crc, p[:n])
	return n, err
}

// Write adds bytes to the checksum.
func (c *s3Checksum) Write(p []byte) (int, error) {
	c.crc = crc64nvme.Update(c.crc, p)
	return len(p), nil
}

var _ summer = (*s3Checksum)(nil)

// update implements summer.
func (c *s3Checksum) update(crc uint64, p []byte) uint64 { return crc64nvme.Update(crc, p) }

// value returns the header of the bytes that were read so far.
func (c *s3Checksum) value() *string {
	if c == nil {
		return nil
	}
	return crc64Header(c.crc)
}

// ofPart returns the header of p.
func (c *s3Checksum) ofPart(p *part) *string {
	if c == nil {
		return nil
	}
	return crc64Header(p.sum)
}

func (c *s3Checksum) algorithm() types.ChecksumAlgorithm {
	if c == nil {
		return ""
	}
	return types.ChecksumAlgorithmCrc64nvme
}

func (c *s3Checksum) kind() types.ChecksumType {
	if c == nil {
		return ""
	}
	return types.ChecksumTypeFullObject
}

// crc64Header returns the value of x-amz-checksum-crc64nvme.
func crc64Header(crc uint64) *string {
	return aws.String(base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, crc)))
}

// errChangedOnTheWay: the store refused bytes that do not have the checksum that was sent, in a
// header or in the signature.
var errChangedOnTheWay = fmt.Errorf("%w: the bytes changed on their way to it", ErrUnavailable)

var _ checksummer = (*s3Bucket)(nil)

// overTLS reports whether the requests to the store are encrypted. Over TLS, the SDK does not
// hash the bodies of PutObject and UploadPart for the signature
// (v4.UseDynamicPayloadSigningMiddleware), so only the checksum covers them. The endpoint may
// come from any of the SDK's settings, so a signed URL shows its scheme.
func (b *s3Bucket) overTLS(ctx context.Context, key string) (bool, error) {
	url, err := b.presign(ctx, key, time.Minute, "check")
	return strings.HasPrefix(url, "https:"), err
}

// checkChecksums implements checksummer. A store that does not know the checksum ignores it, or
// fails with any error, also with the right checksum. Some stores know it in a single request
// only.
func (b *s3Bucket) checkChecksums(ctx context.Context, key string) (tested bool, err error) {
	if tls, err := b.overTLS(ctx, key); err != nil || !tls {
		return false, err
	}
	data := []byte("check " + rand.Text())
	c := &s3ChecksumCheck{b: b, key: key, data: data, right: &s3Checksum{crc: crc64nvme.Checksum(data)}}
	c.wrong = &s3Checksum{crc: ^c.right.crc}
	if err := c.pair("a single request", func(sum *s3Checksum) error {
		_, err := b.putOne(ctx, key, bytes.NewReader(data), int64(len(data)), sum, putOptions{contentType: logType})
		return err
	}); err != nil {
		return true, err
	}
	if err := c.parts(ctx); err != nil {
		return true, err
	}
	b.checksums.Store(true)
	return true, nil
}

// s3ChecksumCheck is a check in progress.
type s3ChecksumCheck struct {
	b            *s3Bucket
	key          string
	data         []byte
	right, wrong *s3Checksum // of data
}

// pair calls send with a wrong checksum, which the store must refuse, and with the right one,
// which it must accept.
func (c *s3ChecksumCheck) pair(what string, send func(*s3Checksum) error) error {
	var resp *awshttp.ResponseError
	switch err := send(c.wrong); {
	case err == nil:
		return fmt.Errorf("the store accepts a wrong CRC64NVME of %s", what)
	case !errors.As(err, &resp) || resp.HTTPStatusCode() >= 500:
		return fmt.Errorf("the store does not say that the CRC64NVME of %s is wrong: %w", what, err)
	}
	if err := send(c.right); err != nil {
		return fmt.Errorf("the store refuses the right CRC64NVME of %s: %w", what, err)
	}
	return nil
}

// parts tests an upload of one part. It aborts the upload if the store has not completed it.
func (c *s3ChecksumCheck) parts(ctx context.Context) error {
	id, err := c.b.createUpload(ctx, c.key, c.right, putOptions{contentType: logType})
	if err != nil {
		return fmt.Errorf("the store refuses to begin an upload with a CRC64NVME: %w", err)
	}
	p := &part{chunks: []*[chunkSize]byte{new([chunkSize]byte)}, size: int64(len(c.data))}
	copy(p.chunks[0][:], c.data)
	var sent types.CompletedPart
	err = c.pair("a part", func(sum *s3Checksum) (err error) {
		_, _ = p.Seek(0, io.SeekStart)
		sent, err = c.b.sendPart(ctx, c.key, id, 1, p, sum.value())
		return err
	})
	if err == nil {
		err = c.pair("the whole object", func(sum *s3Checksum) error {
			_, err := c.b.complete(ctx, c.key, id, []types.CompletedPart{sent}, sum, putOptions{})
			return err
		})
	}
	if err != nil {
		c.b.abort(ctx, c.key, id)
	}
	return err
}
