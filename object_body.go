package main

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// exactReader stands between a reader and an SDK, so that an SDK never takes a truncated
// body for a complete one: some treat io.ErrUnexpectedEOF as the end. An SDK sees every
// error as errBodyFailed; err has the cause.
type exactReader struct {
	r    io.Reader
	size int64 // declared, or -1
	read int64
	err  error // why the body is incomplete or too long
	end  bool
}

// errBodyFailed is the error that an SDK sees if a reader fails.
var errBodyFailed = errors.New("cannot read the request body")

func newExactReader(r io.Reader) *exactReader {
	return &exactReader{r: r, size: sizeOf(r)}
}

func (b *exactReader) Read(p []byte) (int, error) {
	switch {
	case b.err != nil:
		return 0, errBodyFailed
	case b.end:
		return 0, io.EOF
	}
	n, err := b.r.Read(p)
	b.read += int64(n)
	switch {
	case err != nil && err != io.EOF:
		b.err = err
	case b.size >= 0 && (b.read > b.size || err == io.EOF && b.read < b.size):
		b.err = fmt.Errorf("%w: received %d bytes, expected %d", errBodyCut, b.read, b.size)
	case err == io.EOF:
		b.end = true
		return n, io.EOF
	default:
		return n, nil
	}
	return 0, errBodyFailed
}

// open opens length bytes from offset of an object, with the arguments of bucket.get.
// ctx spans the reading.
func (s *objectStore) open(ctx context.Context, key, etag string, offset, length int64) (*objectReader, error) {
	ctx, cancel := context.WithCancel(ctx)
	body, info, err := s.bucket.get(ctx, key, etag, offset, length)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("cannot open %q: %w", key, s.checkBucket(err))
	}
	return &objectReader{body: body, info: info, left: partLength(info.size, offset, length), cancel: cancel}, nil
}

// objectReader is the ArtifactReader of an object. It yields exactly the bytes that were
// asked for, or fails: if the store sends fewer, Read never returns io.EOF.
type objectReader struct {
	body   io.ReadCloser
	info   objectInfo
	left   int64 // bytes still to be read
	cancel context.CancelFunc
}

var _ ArtifactReader = (*objectReader)(nil)

// Info implements ArtifactReader.
func (o *objectReader) Info() ArtifactInfo { return infoOfObject(o.info) }

func (o *objectReader) Read(p []byte) (int, error) {
	if o.left <= 0 {
		return 0, io.EOF
	}
	n, err := o.body.Read(p[:min(int64(len(p)), o.left)])
	if err != nil && err != io.EOF && int64(n) == o.left {
		n = 0 // a wrong checksum: io.ReadFull would ignore an error that comes with the last bytes
	}
	o.left -= int64(n)
	if err == nil || err == io.EOF && o.left == 0 {
		return n, err
	}
	if errors.Is(err, errChecksum) {
		return n, fmt.Errorf("cannot read %q: %w", o.info.key, err)
	}
	return n, fmt.Errorf("%w: cannot read %q: %d bytes are missing: %v", ErrUnavailable, o.info.key, o.left, err)
}

// Close may be called before the end of the body. Then it cancels the context first, or
// an SDK might read the rest to reuse the connection.
func (o *objectReader) Close() error {
	if o.left > 0 {
		o.cancel()
	}
	err := o.body.Close()
	o.cancel()
	return err
}
