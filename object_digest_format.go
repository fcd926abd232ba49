package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
)

const (
	digestType = "text/plain"
	// maxDigestObject is the size in bytes of the largest object of a digest that is read.
	maxDigestObject = 4 << 10
	// digestComment is the first line of an object of a digest: the size, the upload id and
	// the ETag of the artifact that it belongs to. The ETag of two uploads can be equal; their
	// ids are not.
	digestComment = "# size=%d mark=%q etag=%q"
)

// encodeDigestObject returns the object of the digest of the artifact o: after the comment, a line
// as sha256sum(1) writes it. With a copy of the site in a directory,
// "cd digests && sha256sum -c *.sha256" checks the artifacts.
func encodeDigestObject(buildID string, o objectInfo, sum Digest) []byte {
	return fmt.Appendf(nil, digestComment+"\n%s  ../%s/%s\n", o.size, o.uploadID, o.etag, sum, artifactsDir, fileName(artifactsDir, buildID))
}

// decodeDigestObject is the reverse of encodeDigestObject. It fails with ErrDamaged if data is not the
// object of the digest of the build.
func decodeDigestObject(buildID string, data []byte) (f objectDigest, err error) {
	damaged := func(why string) (objectDigest, error) {
		return objectDigest{}, fmt.Errorf("%w: the digest of %q: %s", ErrDamaged, buildID, why)
	}
	comment, line, _ := strings.Cut(string(data), "\n")
	if _, err := fmt.Sscanf(comment, digestComment, &f.size, &f.uploadID, &f.etag); err != nil {
		return damaged(err.Error())
	}
	hex, name, _ := strings.Cut(line, "  ")
	var ok bool
	if f.sum, ok = parseDigest(hex); !ok || !f.sum.known() {
		return damaged("it has no SHA-256")
	}
	if name != "../"+artifactsDir+"/"+fileName(artifactsDir, buildID)+"\n" {
		return damaged("it names another file")
	}
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
