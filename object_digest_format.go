package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
)

const (
	digestType = "text/plain"
	// maxDigestObject is the size in bytes of the largest object of a digest that is read.
	maxDigestObject = 4 << 10
	// digestBinding is the binding of an object of a digest: the size, the upload id and the
	// ETag of the artifact that it belongs to. The ETags of two uploads can be equal; their ids
	// are not.
	digestBinding = "size %d, mark %q, etag %q, "
)

// encodeDigestObject returns the object of the digest of the artifact o. With a copy of the site
// in a directory, "cd digests && sha256sum -c *.sha256" checks the artifacts.
func encodeDigestObject(buildID string, o objectInfo, sum Digest) []byte {
	return formatDigest(buildID, bindingOf(o.size, o.uploadID, o.etag), sum)
}

func bindingOf(size int64, uploadID, etag string) string {
	return fmt.Sprintf(digestBinding, size, uploadID, etag)
}

// decodeDigestObject is the reverse of encodeDigestObject. It fails with ErrDamaged if data is
// not exactly what that returns.
func decodeDigestObject(buildID string, data []byte) (f objectDigest, err error) {
	binding, sum, ok := parseDigestFile(buildID, data)
	if ok {
		_, err = fmt.Sscanf(binding, digestBinding, &f.size, &f.uploadID, &f.etag)
		ok = err == nil && binding == bindingOf(f.size, f.uploadID, f.etag)
	}
	if !ok {
		return objectDigest{}, fmt.Errorf("%w: the digest of %q is not as the service writes it", ErrDamaged, buildID)
	}
	f.sum = sum
	return f, nil
}

// write stores the object of the digest of the artifact o.
func (d *objectDigests) write(ctx context.Context, siteID, buildID string, o objectInfo, sum Digest) error {
	data := encodeDigestObject(buildID, o, sum)
	_, err := d.s.bucket.put(ctx, d.s.digestKey(siteID, buildID), bytes.NewReader(data), int64(len(data)), putOptions{contentType: digestType})
	return err
}

// read returns what the object of the digest of the build contains. It fails with ErrNotFound
// if there is none, and with ErrDamaged if it cannot be used.
func (d *objectDigests) read(ctx context.Context, siteID, buildID string) (objectDigest, error) {
	r, err := d.s.open(ctx, d.s.digestKey(siteID, buildID), "", 0, -1)
	if err != nil {
		return objectDigest{}, err
	}
	defer r.Close()
	if size := r.Info().Size; size > maxDigestObject {
		return objectDigest{}, fmt.Errorf("%w: the digest of %q has %d bytes", ErrDamaged, buildID, size)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return objectDigest{}, err
	}
	return decodeDigestObject(buildID, data)
}
