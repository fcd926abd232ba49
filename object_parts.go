package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	chunkSize = 256 << 10 // bytes of the buffers that parts are made of
	// partsGrowth is the number of parts after which those of a body of unknown
	// length double: of 8 MiB, every body below 16 GiB has parts of one size, which
	// some stores insist on.
	partsGrowth = 2000

	partWait = 30 * time.Second // how long an upload waits for memory
)

// partBuffers are what the parts of all uploads are held in. It is safe for
// concurrent use.
type partBuffers struct {
	memory   *budget
	base     int64     // bytes of a part, if the body is not too large for that
	maxParts int       // of one upload
	chunks   sync.Pool // *[chunkSize]byte
}

// newPartBuffers allows memory bytes of parts, over all uploads. A part has its
// share of them before it is read and until it was sent. An upload reads on while
// it sends only if there is memory left that nobody waits for. So an upload that
// waits for memory holds none but that of parts which are being sent.
func newPartBuffers(memory, base int64, maxParts int) *partBuffers {
	b := &partBuffers{memory: newBudget(memory, partWait), base: base, maxParts: maxParts}
	b.chunks.New = func() any { return new([chunkSize]byte) }
	return b
}

// largest is the size of the largest part.
func (b *partBuffers) largest() int64 { return b.memory.limit / partsInMemory }

// fits fails with ErrTooLarge if a body of total bytes needs larger parts than
// there may be.
func (b *partBuffers) fits(total int64) error {
	if largest := b.largest(); total >= 0 && b.size(total, 1) > largest {
		return b.tooLarge(largest / partStep * partStep * int64(b.maxParts))
	}
	return nil
}

func (b *partBuffers) tooLarge(most int64) error {
	return &tooLargeError{fmt.Sprintf("the artifact is larger than %d bytes, which is as much as PAGEWRIGHT_UPLOAD_MEMORY=%d allows for", most, b.memory.limit)}
}

func (b *partBuffers) size(total int64, n int) int64 {
	return partSize(b.base, b.largest(), total, n, b.maxParts)
}

// partStep is what the size of parts that are larger than configured is a multiple
// of.
const partStep = 1 << 20

// partSize is the size of part n, counted from 1, of a body of total bytes (-1:
// not known): base if that many fit under the limit of maxParts. Those of a body
// of unknown length grow up to largest.
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

// part is a part of a body in memory: an io.ReadSeeker, so that an SDK can send
// it again. It holds no more than has arrived.
type part struct {
	grant  *grant
	chunks []*[chunkSize]byte

	// An SDK may still be reading when it has returned, after an early answer.
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
		return 0, errors.New("seek before the start of a part")
	}
	p.at = offset
	return offset, nil
}

// release gives the chunks back. The part has no bytes any more.
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

// put stores body: by one where it ends within its first part, or is in memory
// and need not be in parts, else by many. What one is given is released when it
// returns. An error of body is returned as it is.
func (b *partBuffers) put(body io.Reader, total int64, opts putOptions,
	one func(body io.ReadSeeker, size int64) (objectInfo, error), many func(r *partReader) (objectInfo, error)) (objectInfo, error) {
	if r, ok := body.(*bytes.Reader); ok && !opts.parts {
		return one(r, total)
	}
	if err := b.fits(total); err != nil {
		return objectInfo{}, err
	}
	r := &partReader{buffers: b, body: body, total: total, client: opts.client, revoke: opts.revoke}
	if err := r.next(nil); err != nil {
		return objectInfo{}, err
	}
	if r.last && !opts.parts {
		defer b.release(r.part)
		return one(r.part, r.part.size)
	}
	return many(r)
}

// partReader cuts a body into parts.
type partReader struct {
	buffers *partBuffers
	body    io.Reader
	total   int64  // bytes of body, or -1
	client  string // for whom the parts are held
	revoke  func() // makes body fail; nil: it cannot

	n     int    // the number of part, counted from 1
	got   int64  // bytes of all parts so far
	part  *part  // the newest, which whoever took it releases
	last  bool   // part ends the body
	carry []byte // the byte that was read to know whether the part before was the last
}

// nextSize is the size of the next part, if the body does not end before.
func (r *partReader) nextSize() int64 {
	size := r.buffers.size(r.total, r.n+1)
	if r.total >= 0 {
		size = min(size, r.total-r.got)
	}
	return size
}

// ask asks for the memory of the next part.
func (r *partReader) ask() budgetRequest {
	return budgetRequest{client: r.client, n: max(chunkSize, roundUp(r.nextSize(), chunkSize)), revoke: r.revoke}
}

// next reads the next part into the memory of g, or waits for some if g is nil. An
// error of the body is returned as it is, and then there is no part.
func (r *partReader) next(g *grant) (err error) {
	if r.n == r.buffers.maxParts {
		g.release()
		return r.buffers.tooLarge(r.got)
	}
	if g == nil {
		if g, err = r.buffers.memory.acquire(r.ask()); err != nil {
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

// read fills p with size bytes, or what the body has left. It reports whether the
// body has ended.
func (r *partReader) read(p *part, size int64) (last bool, err error) {
	p.size = int64(r.fill(p, r.carry))
	r.carry = nil
	for p.size < size {
		in := p.size % chunkSize
		if in == 0 && p.size/chunkSize == int64(len(p.chunks)) {
			p.chunks = append(p.chunks, r.buffers.chunks.Get().(*[chunkSize]byte))
		}
		n, err := r.body.Read(p.chunks[p.size/chunkSize][in:min(chunkSize, in+size-p.size)])
		p.size += int64(n)
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
		return false, fmt.Errorf("the body has more than the %d bytes that it announced", r.total)
	}
	r.carry = one[:]
	return false, nil
}

// fill begins p with carried bytes.
func (r *partReader) fill(p *part, carry []byte) int {
	if len(carry) == 0 {
		return 0
	}
	p.chunks = append(p.chunks, r.buffers.chunks.Get().(*[chunkSize]byte))
	return copy(p.chunks[0][:], carry)
}

// sendParts sends the part that r has read and all that follow, at most
// concurrency at once beside the one that is read. send is called with the numbers
// from 1 on and returns what the store calls the part; what it is given is released
// when it returns. sendParts returns these names in the order of the numbers, and
// the size of the whole. It ends with the first error.
func (b *partBuffers) sendParts(ctx context.Context, r *partReader, concurrency int,
	send func(ctx context.Context, n int, p *part) (string, error)) (names []string, total int64, err error) {
	var mu sync.Mutex
	sendOne := func(ctx context.Context, n int, p *part) error {
		defer b.release(p)
		name, err := send(ctx, n, p)
		mu.Lock()
		defer mu.Unlock()
		names[n-1] = name
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(concurrency)
	for {
		n, p := r.n, r.part
		mu.Lock()
		names = append(names, "")
		mu.Unlock()
		next := r.sendAhead(g, func() error { return sendOne(ctx, n, p) })
		if next == nil {
			if err := sendOne(ctx, n, p); err != nil {
				_ = g.Wait()
				return nil, 0, err
			}
		}
		if r.last || ctx.Err() != nil { // ctx: a part failed
			next.release()
			break
		}
		if err := r.next(next); err != nil {
			_ = g.Wait() // the body is the cause, whatever else failed
			return nil, 0, err
		}
	}
	return names, r.got, g.Wait()
}

// sendAhead runs send beside the reading of the next part if there is memory for
// that one now, which it returns; else nil.
func (r *partReader) sendAhead(g *errgroup.Group, send func() error) *grant {
	if r.last || r.n == r.buffers.maxParts {
		return nil
	}
	next := r.buffers.memory.tryAcquire(r.ask())
	if next != nil && !g.TryGo(send) {
		next.release()
		return nil
	}
	return next
}
