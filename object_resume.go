package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

const (
	// resumeTries bounds the attempts to resume a body without resumeStep bytes of
	// progress in between. In each attempt the SDK may retry the request.
	resumeTries = 4
	resumeStep  = 256 << 10
	resumeDelay = 100 * time.Millisecond // before the first attempt; doubled each time
)

// getFunc is the get of a bucket.
type getFunc func(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error)

// getResuming calls get and returns a body that resumes when the store breaks it off: it
// requests the rest with If-Match, so that the bytes are never those of another object.
// It is for SDKs that do not resume. azblob does have a RetryReader, but that does not
// wait between its attempts, and never gives up if each response yields one byte.
func getResuming(ctx context.Context, get getFunc, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	ctx, cancel := context.WithCancel(ctx)
	body, info, err := get(ctx, key, etag, offset, length)
	if err != nil {
		cancel()
		return nil, info, err
	}
	return &resumingBody{
		ctx: ctx, cancel: cancel, get: get, info: info,
		offset: offset, left: partLength(info.size, offset, length), body: body,
	}, info, nil
}

// partLength returns the number of bytes from offset to the end of an object of size
// bytes, at most length unless length is negative.
func partLength(size, offset, length int64) int64 {
	left := max(0, size-offset)
	if length < 0 {
		return left
	}
	return min(left, length)
}

// resumingBody is the body that getResuming returns. Close may be called during a Read,
// which then fails.
type resumingBody struct {
	ctx    context.Context
	cancel context.CancelFunc
	get    getFunc
	info   objectInfo
	offset int64 // of the next byte
	left   int64
	tries  int   // attempts since the last resumeStep bytes of progress
	moved  int64 // bytes read since tries was 0
	broken error // why body ended early; nil while it can be read

	mu     sync.Mutex // guards the fields below
	body   io.ReadCloser
	closed bool
}

func (r *resumingBody) Read(p []byte) (int, error) {
	for r.left > 0 {
		if r.broken != nil {
			if err := r.resume(); err != nil {
				return 0, err
			}
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.left)])
		r.offset, r.left = r.offset+int64(n), r.left-int64(n)
		if r.moved += int64(n); r.moved >= resumeStep {
			r.moved, r.tries = 0, 0
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // ignored if nothing is left
		}
		r.broken = err
		if n > 0 || err == nil {
			return n, nil
		}
	}
	return 0, io.EOF
}

// resume opens the rest of the object.
func (r *resumingBody) resume() error {
	if r.tries == resumeTries {
		return fmt.Errorf("the store interrupted %d responses in a row: %w", r.tries+1, r.broken)
	}
	if strings.Trim(r.info.etag, `"`) == "" { // a replaced object could not be detected
		return fmt.Errorf("cannot resume a download without an ETag: %w", r.broken)
	}
	wait := resumeDelay << r.tries
	r.tries++
	select {
	case <-r.ctx.Done():
		return r.ctx.Err()
	case <-time.After(wait/2 + rand.N(wait/2)):
	}
	body, info, err := r.get(r.ctx, r.info.key, r.info.etag, r.offset, r.left)
	if err != nil {
		return fmt.Errorf("cannot resume the download (interrupted by: %v): %w", r.broken, err)
	}
	if info.etag != r.info.etag { // the store ignored If-Match
		body.Close()
		return fmt.Errorf("%w: the object was replaced during the download (interrupted by: %v)", ErrPrecondition, r.broken)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		body.Close()
		return context.Canceled
	}
	r.body.Close()
	r.body, r.broken = body, nil
	return nil
}

func (r *resumingBody) Close() error {
	r.cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return r.body.Close()
}
