//go:build !no_gcs

package main

import (
	"bytes"
	"io"
)

// acquireChunk acquires the memory of one chunk. The SDK keeps the chunk until the upload
// ends, so that it can retry (gensupport.MediaBuffer). If little memory is free, the chunk
// is smaller. An upload waits only if there is no memory for the smallest chunk either, or
// if other uploads wait. If the body is in memory already, as that of a log is, the upload
// does not wait.
func (b *gcsBucket) acquireChunk(body io.Reader, size int64, opts putOptions) (chunk int64, g *grant, err error) {
	free := b.memory.limit - b.memory.inUse()
	chunk = min(b.chunkSize(size), max(gcsChunkStep, free/partsInMemory/gcsChunkStep*gcsChunkStep))
	first := int64(0) // bytes of a body that readSmall keeps beside the chunk
	if readsFirst(size, opts) {
		first = gcsChunkStep
	}
	request := budgetRequest{client: opts.client, n: chunk + first, revoke: opts.revoke}
	if g = b.memory.tryAcquire(request); g != nil {
		return chunk, g, nil
	}
	if _, inMemory := body.(*bytes.Reader); inMemory {
		return gcsChunkStep, nil, nil
	}
	request.n = gcsChunkStep + first
	g, err = b.memory.acquire(request)
	return gcsChunkStep, g, err
}

// chunkSize returns the configured size of a chunk. If the body is shorter than that, it
// returns a size that is just larger than the body, so that the body is sent in a single
// request.
func (b *gcsBucket) chunkSize(size int64) int64 {
	if size < 0 || size >= int64(b.conf.ChunkSize) {
		return int64(b.conf.ChunkSize)
	}
	return (size/gcsChunkStep + 1) * gcsChunkStep
}

// readErrorKeeper records the error of a reader, so that the caller of io.Copy can tell
// whether the reader or the writer failed.
type readErrorKeeper struct {
	r   io.Reader
	err error
}

func (e *readErrorKeeper) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err != nil && err != io.EOF {
		e.err = err
	}
	return n, err
}

// readsFirst reports whether a body is read whole before it is sent, so that its digest can
// be sent with it: it is small, and its client announced none. Keeping the digest later takes
// more requests.
func readsFirst(size int64, opts putOptions) bool {
	return opts.hashed != nil && !opts.hashed.Announced().known() && 0 <= size && size <= gcsChunkStep
}

// readSmall returns a body with the bytes of body, which are in memory if it readsFirst.
func readSmall(body io.Reader, size int64, opts putOptions) (io.Reader, error) {
	if !readsFirst(size, opts) {
		return body, nil
	}
	data := bytes.NewBuffer(make([]byte, 0, size+bytes.MinRead))
	_, err := data.ReadFrom(body)
	return bytes.NewReader(data.Bytes()), err
}
