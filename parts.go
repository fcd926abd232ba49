package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	chunkSize = 256 << 10 // bytes of the buffers that parts are made of
	// partsGrowth is the number of parts after which those of a body of unknown
	// length double: 8 MiB become 100 GB with 4,000 parts, of the 10,000 that S3
	// allows, and every body below 16 GiB has parts of one size, which some
	// stores insist on.
	partsGrowth = 2000
)

// partBuffers are what the parts of all uploads are held in. It is safe for
// concurrent use.
type partBuffers struct {
	chunks sync.Pool     // *[chunkSize]byte
	ahead  chan struct{} // one for each part that is sent while its upload reads on
}

// newPartBuffers allows ahead parts, over all uploads, to be sent while their
// uploads read on; where none is free an upload sends before it reads on. So
// memory is bounded by one part for each upload and ahead parts for all.
func newPartBuffers(ahead int) *partBuffers {
	p := &partBuffers{ahead: make(chan struct{}, ahead)}
	p.chunks.New = func() any { return new([chunkSize]byte) }
	return p
}

// part is a part of a body in memory: an io.ReadSeeker, so that an SDK can send
// it again. It holds no more than has arrived.
type part struct {
	chunks []*[chunkSize]byte
	size   int64
	at     int64
}

var _ io.ReadSeeker = (*part)(nil)

func (p *part) Read(b []byte) (int, error) {
	if p.at >= p.size {
		return 0, io.EOF
	}
	in := p.at % chunkSize
	n := copy(b, p.chunks[p.at/chunkSize][in:min(chunkSize, in+p.size-p.at)])
	p.at += int64(n)
	return n, nil
}

func (p *part) Seek(offset int64, whence int) (int64, error) {
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

// release gives the chunks back. Nothing may read the part any more.
func (b *partBuffers) release(p *part) {
	for _, c := range p.chunks {
		b.chunks.Put(c)
	}
	p.chunks, p.size = nil, 0
}

// put stores body: by one where it ends within its first part, or can be sought
// and need not be in parts, else by many. What one is given is released when it
// returns. An error of body is returned as it is.
func (b *partBuffers) put(body io.Reader, total int64, opts putOptions, size func(n int) int64,
	one func(body io.ReadSeeker, size int64) (objectInfo, error), many func(r *partReader) (objectInfo, error)) (objectInfo, error) {
	if r, ok := body.(*bytes.Reader); ok && !opts.parts {
		return one(r, total)
	}
	r := &partReader{buffers: b, body: body, size: size}
	if err := r.next(); err != nil {
		return objectInfo{}, err
	}
	if r.last && !opts.parts {
		defer b.release(r.part)
		return one(r.part, r.part.size)
	}
	return many(r)
}

// partReader cuts a body into parts. Part n, counted from 1, has size(n) bytes,
// and the last one what is left.
type partReader struct {
	buffers *partBuffers
	body    io.Reader
	size    func(n int) int64

	n     int    // the number of part
	part  *part  // the newest, which whoever took it releases
	last  bool   // part ends the body
	carry []byte // the byte that was read to know whether the part before was the last
}

// next reads the next part. An error of the body is returned as it is, and then
// there is none.
func (r *partReader) next() (err error) {
	r.n++
	r.part, r.last, err = r.read(r.size(r.n))
	return err
}

func (r *partReader) read(size int64) (p *part, last bool, err error) {
	p = &part{}
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
			return p, true, nil
		}
		if err != nil {
			r.buffers.release(p)
			return nil, false, err
		}
	}
	var one [1]byte
	switch _, err := io.ReadFull(r.body, one[:]); err {
	case nil:
		r.carry = one[:]
		return p, false, nil
	case io.EOF:
		return p, true, nil
	default:
		r.buffers.release(p)
		return nil, false, err
	}
}

// fill begins p with carried bytes.
func (r *partReader) fill(p *part, carry []byte) int {
	if len(carry) == 0 {
		return 0
	}
	p.chunks = append(p.chunks, r.buffers.chunks.Get().(*[chunkSize]byte))
	return copy(p.chunks[0][:], carry)
}

// partSize is the size of part n, counted from 1, of a body of total bytes (-1:
// not known), which is base if that many fit under the limit of maxParts.
func partSize(base, total int64, n, maxParts int) int64 {
	if total < 0 {
		return base << ((n - 1) / partsGrowth)
	}
	const step = 1 << 20
	least := (total + int64(maxParts) - 1) / int64(maxParts)
	return max(base, (least+step-1)/step*step)
}

// sendParts sends the part that r has read and all that follow, at most
// concurrency at once. send is called with the numbers from 1 on and returns
// what the store calls the part; what it is given is released when it returns.
// sendParts returns these names in the order of the numbers, and the size of the
// whole. It ends with the first error.
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
		total += p.size
		mu.Lock()
		names = append(names, "")
		mu.Unlock()
		if r.last || !b.sendAhead(g, func() error { return sendOne(ctx, n, p) }) {
			if err := sendOne(ctx, n, p); err != nil {
				_ = g.Wait()
				return nil, 0, err
			}
		}
		if r.last || ctx.Err() != nil { // ctx: a part failed
			break
		}
		if err := r.next(); err != nil {
			_ = g.Wait() // the body is the cause, whatever else failed
			return nil, 0, err
		}
	}
	return names, total, g.Wait()
}

// sendAhead runs send beside the reading if that is allowed now.
func (b *partBuffers) sendAhead(g *errgroup.Group, send func() error) bool {
	select {
	case b.ahead <- struct{}{}:
	default:
		return false
	}
	ok := g.TryGo(func() error {
		defer func() { <-b.ahead }()
		return send()
	})
	if !ok {
		<-b.ahead
	}
	return ok
}
