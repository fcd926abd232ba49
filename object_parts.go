package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	chunkSize = 256 << 10 // a part is a list of buffers of this size
	// partsGrowth sets the part size of a body of unknown length: it doubles after every
	// partsGrowth parts. Some stores require parts of equal size: with parts of 8 MiB, all
	// parts but the last of a body of up to 15.6 GiB have the same size.
	partsGrowth = 2000

	partWait = 30 * time.Second // how long an upload waits for memory
)

// partBuffers holds the parts of all uploads in memory. It is safe for concurrent use.
type partBuffers struct {
	memory   *budget
	base     int64     // bytes of a part, unless the body needs larger ones
	maxParts int       // of one upload
	chunks   sync.Pool // *[chunkSize]byte
}

// newPartBuffers returns buffers for the parts of all uploads, with memory bytes in total.
// An upload acquires the memory of a part before it reads the part, and releases it when
// the part was sent. It reads ahead while it sends a part only if memory is free and no
// other upload waits for it. So an upload that waits for memory holds only parts that are
// being sent.
func newPartBuffers(memory, base int64, maxParts int) *partBuffers {
	b := &partBuffers{memory: newBudget(memory, partWait), base: base, maxParts: maxParts}
	b.chunks.New = func() any { return new([chunkSize]byte) }
	return b
}

// largest returns the size of the largest part.
func (b *partBuffers) largest() int64 { return b.memory.limit / partsInMemory }

// checkSize fails with ErrTooLarge if a body of total bytes would need parts that are
// larger than b.largest().
func (b *partBuffers) checkSize(total int64) error {
	if largest := b.largest(); total >= 0 && b.size(total, 1) > largest {
		return b.tooLarge(largest / partStep * partStep * int64(b.maxParts))
	}
	return nil
}

func (b *partBuffers) tooLarge(most int64) error {
	return &tooLargeError{fmt.Sprintf("the build is larger than %d bytes, the most that PAGEWRIGHT_UPLOAD_MEMORY=%d allows", most, b.memory.limit)}
}

func (b *partBuffers) size(total int64, n int) int64 {
	return partSize(b.base, b.largest(), total, n, b.maxParts)
}

// partStep is used if a body of known length needs parts larger than configured: their size
// is rounded up to a multiple of it.
const partStep = 1 << 20

// partSize returns the size of part n, counted from 1, of a body of total bytes: base, or
// more if the body would have more than maxParts parts. If total is -1 (unknown), the size
// grows with n, to at most largest.
func partSize(base, largest, total int64, n, maxParts int) int64 {
	if total < 0 {
		return min(largest, base<<((n-1)/partsGrowth))
	}
	if least := divideUp(total, int64(maxParts)); least > base {
		return roundUp(least, partStep)
	}
	return base
}

func divideUp(n, by int64) int64 { return n/by + min(1, n%by) }

func roundUp(n, step int64) int64 { return divideUp(n, step) * step }

// part is a part of a body in memory: an io.ReadSeeker, so that an SDK can send it again.
// It allocates chunks only as bytes arrive.
type part struct {
	grant  *grant
	chunks []*[chunkSize]byte
	sum    uint64 // see summer

	// After an early response, an SDK may still read the part although its call has returned.
	mu   sync.Mutex
	size int64
	at   int64
}

var _ io.ReadSeeker = (*part)(nil)

func (p *part) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at >= p.size {
		return 0, io.EOF
	}
	in := p.at % chunkSize
	n := copy(b, p.chunks[p.at/chunkSize][in:min(chunkSize, in+p.size-p.at)])
	p.at += int64(n)
	return n, nil
}

func (p *part) Seek(offset int64, whence int) (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += p.at
	case io.SeekEnd:
		offset += p.size
	}
	if offset < 0 {
		return 0, errors.New("cannot seek before the start of a part")
	}
	p.at = offset
	return offset, nil
}

// release returns the chunks to the pool. After it, the part is empty.
func (b *partBuffers) release(p *part) {
	p.mu.Lock()
	chunks := p.chunks
	p.chunks, p.size = nil, 0
	p.mu.Unlock()
	for _, c := range chunks {
		b.chunks.Put(c)
	}
	p.grant.release()
}

// readFirst reads the first part of body, which has total bytes (-1: unknown). A body that
// ends within that part, or is already in memory, is sent in a single request unless
// opts.parts is set: whole is then the body, parts.got is its size, and the caller releases
// parts. Otherwise whole is nil, and sendParts sends and releases the parts. An error of
// body is returned unchanged.
func (b *partBuffers) readFirst(body io.Reader, total int64, opts putOptions) (parts *partReader, whole io.ReadSeeker, err error) {
	if r, ok := body.(*bytes.Reader); ok && !opts.parts {
		return &partReader{got: total}, r, nil
	}
	if err := b.checkSize(total); err != nil {
		return nil, nil, err
	}
	r := &partReader{buffers: b, body: body, total: total, client: opts.client, revoke: opts.revoke}
	if err := r.next(nil); err != nil {
		return nil, nil, err
	}
	if r.last && !opts.parts {
		return r, r.part, nil
	}
	return r, nil, nil
}

// summer is a body of which each part is to have a checksum. It is computed while the body is
// read, when its bytes are in the cache of the CPU.
type summer interface {
	// update adds bytes to the checksum of a part, which is 0 at first.
	update(sum uint64, bytes []byte) uint64
}

// partReader cuts a body into parts.
type partReader struct {
	buffers *partBuffers
	body    io.Reader
	total   int64  // bytes of body, or -1
	client  string // the client that the memory of the parts is charged to
	revoke  func() // makes body fail; may be nil

	n     int    // the number of the newest part, counted from 1
	got   int64  // bytes of all parts so far
	part  *part  // the newest part
	last  bool   // the newest part is the last one of the body
	carry []byte // the first byte of the next part, read to find out whether part is the last one
}

// release releases the part that was read last, if any.
func (r *partReader) release() {
	if r.part != nil {
		r.buffers.release(r.part)
	}
}

// nextSize returns the size of the next part, unless the body ends earlier.
func (r *partReader) nextSize() int64 {
	size := r.buffers.size(r.total, r.n+1)
	if r.total >= 0 {
		size = min(size, r.total-r.got)
	}
	return size
}

// nextRequest returns the request for the memory of the next part.
func (r *partReader) nextRequest() budgetRequest {
	return budgetRequest{client: r.client, n: max(chunkSize, roundUp(r.nextSize(), chunkSize)), revoke: r.revoke}
}

// next reads the next part into the memory of g. If g is nil, it waits for memory. An error
// of the body is returned unchanged; r.part is then still the previous part.
func (r *partReader) next(g *grant) (err error) {
	if r.n == r.buffers.maxParts {
		g.release()
		return r.buffers.tooLarge(r.got)
	}
	if g == nil {
		if g, err = r.buffers.memory.acquire(r.nextRequest()); err != nil {
			return err
		}
	}
	size := r.nextSize()
	r.n++
	p := &part{grant: g}
	if r.last, err = r.read(p, size); err != nil {
		r.buffers.release(p)
		return err
	}
	r.part, r.got = p, r.got+p.size
	return nil
}

// read fills p with size bytes, or with the rest of the body if that is shorter. It reports
// whether the body has ended.
func (r *partReader) read(p *part, size int64) (last bool, err error) {
	p.size = int64(r.fill(p, r.carry))
	r.carry = nil
	for p.size < size {
		in := p.size % chunkSize
		if in == 0 && p.size/chunkSize == int64(len(p.chunks)) {
			p.chunks = append(p.chunks, r.buffers.chunks.Get().(*[chunkSize]byte))
		}
		free := p.chunks[p.size/chunkSize][in:min(chunkSize, in+size-p.size)]
		n, err := r.body.Read(free)
		p.size += int64(n)
		r.update(p, free[:n])
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
	if r.got+p.size < r.total {
		return false, nil
	}
	var one [1]byte
	switch _, err := io.ReadFull(r.body, one[:]); {
	case err == io.EOF:
		return true, nil
	case err != nil:
		return false, err
	case r.total >= 0:
		return false, fmt.Errorf("the body is longer than the declared %d bytes", r.total)
	}
	r.carry = one[:]
	return false, nil
}

// fill copies carry to the start of p, which is empty, and returns its length.
func (r *partReader) fill(p *part, carry []byte) int {
	if len(carry) == 0 {
		return 0
	}
	p.chunks = append(p.chunks, r.buffers.chunks.Get().(*[chunkSize]byte))
	r.update(p, carry)
	return copy(p.chunks[0][:], carry)
}

// update adds bytes, which were added to p, to its checksum.
func (r *partReader) update(p *part, bytes []byte) {
	if s, ok := r.body.(summer); ok {
		p.sum = s.update(p.sum, bytes)
	}
}

// sendParts sends the part that r has read and all that follow. It sends up to concurrency
// parts in the background while it reads the next one. If there is no free slot or no
// memory for reading ahead, it sends the current part itself. It calls send with each part
// and its number, counted from 1. send returns what the store needs to find the part; the part
// is released after that. sendParts returns these results in order, and the size of the body.
// It stops at the first error.
func sendParts[T any](ctx context.Context, r *partReader, concurrency int,
	send func(ctx context.Context, n int, p *part) (T, error)) (sent []T, total int64, err error) {
	var mu sync.Mutex
	sendOne := func(ctx context.Context, n int, p *part) error {
		defer r.buffers.release(p)
		result, err := send(ctx, n, p)
		mu.Lock()
		defer mu.Unlock()
		sent[n-1] = result
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(concurrency)
	for {
		n, p := r.n, r.part
		mu.Lock()
		sent = append(sent, *new(T))
		mu.Unlock()
		next := r.sendAhead(g, func() error { return sendOne(ctx, n, p) })
		if next == nil {
			if err := sendOne(ctx, n, p); err != nil {
				// If another part failed first, err is only that ctx has ended.
				return nil, 0, cmp.Or(g.Wait(), err)
			}
		}
		if r.last || ctx.Err() != nil { // ctx.Err: a part failed
			next.release()
			break
		}
		if err := r.next(next); err != nil {
			_ = g.Wait() // wait, but return the error of the body even if a part failed too
			return nil, 0, err
		}
	}
	return sent, r.got, g.Wait()
}

// sendAhead runs send in the background if a slot and the memory for the next part are
// free, and returns the grant of that memory. Otherwise it returns nil, and the caller runs
// send.
func (r *partReader) sendAhead(g *errgroup.Group, send func() error) *grant {
	if r.last || r.n == r.buffers.maxParts {
		return nil
	}
	next := r.buffers.memory.tryAcquire(r.nextRequest())
	if next != nil && !g.TryGo(send) {
		next.release()
		return nil
	}
	return next
}
