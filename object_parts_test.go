package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"
)

func TestPartSize(t *testing.T) {
	const mib = 1 << 20
	f := func(total int64, n int, want int64) {
		t.Helper()
		if got := partSize(8*mib, 32*mib, total, n, 10_000); got != want {
			t.Errorf("part %d of %d bytes is %d, want %d", n, total, got, want)
		}
	}
	f(1, 1, 8*mib)
	f(80_000*mib, 1, 8*mib)
	f(80_000*mib+1, 1, 9*mib)
	f(100e9, 10_000, 10*mib)
	f(5<<40, 1, 525*mib) // too large, as fits says
	f(1<<60, 1, (1<<60/10_000+mib)/mib*mib)
	f(1<<63-1, 1, (1<<63-1)/10_000/mib*mib+mib)
	f(-1, 1, 8*mib)
	f(-1, 2000, 8*mib)
	f(-1, 2001, 16*mib)
	f(-1, 4001, 32*mib)
	f(-1, 10_000, 32*mib) // an eighth of the memory
}

// A body whose declared length needs parts larger than an eighth of the memory is refused
// without being read.
func TestTooLargeForTheMemory(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		memory, total int64
		ok            bool
	}{
		{64 * mib, -1, true},
		{64 * mib, 80_000 * mib, true},
		{64 * mib, 80_000*mib + 1, false},
		{256 * mib, 320_000 * mib, true},
		{256 * mib, 320_000*mib + 1, false},
		{256 * mib, 5 << 40, false},
		{256 * mib, 1<<63 - 1, false},
		{5 << 30, 5 << 40, true},
		{1 << 40, 1<<63 - 1, false},
	} {
		b := newPartBuffers(c.memory, 8*mib, 10_000)
		body := brokenReader{} // reading it is another error
		_, _, err := b.readFirst(body, c.total, putOptions{})
		if want := map[bool]error{true: errBodyFailed, false: ErrTooLarge}[c.ok]; !errors.Is(err, want) {
			t.Errorf("%d bytes with %d of memory: %v, want %v", c.total, c.memory, err, want)
		}
		if !c.ok {
			err = fmt.Errorf("cannot store: %w", err)
			status, text := classify(err).status, reasonOf(err)
			if status != 413 || !strings.Contains(text, "PAGEWRIGHT_UPLOAD_MEMORY") || !strings.Contains(text, fmt.Sprint(c.memory/8*10_000)) {
				t.Errorf("the answer is %d %s", status, text)
			}
		}
		if b.memory.inUse() != 0 {
			t.Errorf("%d bytes are still in use", b.memory.inUse())
		}
	}
}

// A body of unknown length fails when it exceeds the maximum number of parts.
func TestUnknownBodyTooLarge(t *testing.T) {
	b := newPartBuffers(8*chunkSize, chunkSize, 5)
	for size, want := range map[int]error{5 * chunkSize: nil, 5*chunkSize + 1: ErrTooLarge} {
		r := &partReader{buffers: b, body: bytes.NewReader(make([]byte, size)), total: -1}
		if err := r.next(nil); err != nil {
			t.Fatal(err)
		}
		var sent atomic.Int32
		_, _, err := sendParts(t.Context(), r, 1, func(context.Context, int, *part) (string, error) { sent.Add(1); return "", nil })
		if n := sent.Load(); !errors.Is(err, want) || n != 5 {
			t.Errorf("%d bytes: %v, %d parts were sent", size, err, n)
		}
	}
	if b.memory.inUse() != 0 {
		t.Errorf("%d bytes are still in use", b.memory.inUse())
	}
}

// The error of an upload is the first one, not that of a part that was ended because of it.
func TestFirstErrorOfParts(t *testing.T) {
	b := newPartBuffers(8*chunkSize, chunkSize, 5)
	r, _, err := b.readFirst(unknown(make([]byte, 2*chunkSize)), 2*chunkSize, putOptions{})
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	_, _, err = sendParts(t.Context(), r, 3, func(ctx context.Context, n int, _ *part) (string, error) {
		if n == 1 {
			<-begun
			return "", errSender
		}
		close(begun)
		<-ctx.Done()
		return "", ctx.Err()
	})
	if !errors.Is(err, errSender) {
		t.Error(err)
	}
}

// collect sends body in parts of size bytes and returns what was sent.
func collect(b *partBuffers, body io.Reader, total, size int64, fail int) ([]byte, []string, error) {
	b.base = size
	r := &partReader{buffers: b, body: body, total: total}
	if err := r.next(nil); err != nil {
		return nil, nil, err
	}
	var mu sync.Mutex
	got := map[string][]byte{}
	names, total, err := sendParts(context.Background(), r, 3,
		func(_ context.Context, n int, p *part) (string, error) {
			if n == fail {
				return "", errSender
			}
			data, err := io.ReadAll(p)
			if _, err := p.Seek(0, io.SeekStart); err != nil {
				return "", err
			}
			again, _ := io.ReadAll(iotest.OneByteReader(io.LimitReader(p, 10))) // as a retry does
			if !bytes.HasPrefix(data, again) {
				return "", errors.New("a part that is read again is another")
			}
			mu.Lock()
			defer mu.Unlock()
			name := fmt.Sprint("part", n)
			got[name] = data
			return name, err
		})
	var whole []byte
	for _, name := range names {
		whole = append(whole, got[name]...)
	}
	if err == nil && total != int64(len(whole)) {
		err = fmt.Errorf("%d bytes are said to have come, and %d did", total, len(whole))
	}
	return whole, names, err
}

func TestSendParts(t *testing.T) {
	for _, room := range []int64{1, 2, 40} { // parts in memory
		b := newPartBuffers(room*3*chunkSize, 0, 10_000)
		for _, size := range []int64{chunkSize / 2, chunkSize, chunkSize + 1, 3*chunkSize - 1} {
			for _, n := range []int64{0, 1, size - 1, size, size + 1, 2 * size, 5*size + 3} {
				data := body(int(n), 1)
				for _, total := range []int64{n, -1} {
					if total < 0 && size > b.largest() {
						continue
					}
					for _, r := range []io.Reader{bytes.NewReader(data), iotest.DataErrReader(bytes.NewReader(data)), iotest.HalfReader(bytes.NewReader(data))} {
						got, names, err := collect(b, r, total, size, 0)
						if err != nil || !bytes.Equal(got, data) {
							t.Fatalf("parts of %d, body of %d: %d bytes received, %v", size, n, len(got), err)
						}
						if want := max(1, (n+size-1)/size); int64(len(names)) != want {
							t.Fatalf("parts of %d, body of %d: %d parts, not %d", size, n, len(names), want)
						}
					}
				}
			}
		}
		for fail := 1; fail <= 6; fail++ {
			if _, _, err := collect(b, bytes.NewReader(body(6*chunkSize, 1)), 6*chunkSize, chunkSize, fail); !errors.Is(err, errSender) {
				t.Errorf("part %d failed: the error is %v", fail, err)
			}
		}
		for _, cut := range []int{0, 1, chunkSize, chunkSize + 1, 3 * chunkSize} {
			if _, _, err := collect(b, failing(body(4*chunkSize, 1), cut, errBodyCut), 4*chunkSize, chunkSize, 0); !errors.Is(err, errBodyCut) {
				t.Errorf("the body was cut at %d: the error is %v", cut, err)
			}
		}
		if _, _, err := collect(b, bytes.NewReader(body(2*chunkSize, 1)), 2*chunkSize-1, chunkSize, 0); err == nil {
			t.Error("a body was sent that has more bytes than it announced")
		}
		if b.memory.inUse() != 0 {
			t.Errorf("%d bytes are still in use", b.memory.inUse())
		}
	}
}

// sendCounted sends bodies of 20 parts at once, and returns the largest number of parts that
// memory was acquired for.
func sendCounted(t *testing.T, b *partBuffers, uploads int) (most int64) {
	t.Helper()
	var peak atomic.Int64
	note := func() {
		for n := b.memory.inUse(); ; {
			if m := peak.Load(); n <= m || peak.CompareAndSwap(m, n) {
				return
			}
		}
	}
	var g sync.WaitGroup
	for i := range uploads {
		g.Go(func() {
			body := readerFunc(func(p []byte) (int, error) { note(); return len(p), nil })
			r, _, err := b.readFirst(io.LimitReader(body, 20*chunkSize), 20*chunkSize, putOptions{client: fmt.Sprint(i % 3)})
			if err == nil {
				_, _, err = sendParts(t.Context(), r, 3, func(context.Context, int, *part) (string, error) {
					note()
					runtime.Gosched()
					return "", nil
				})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if b.memory.inUse() != 0 {
		t.Errorf("%d bytes are still in use", b.memory.inUse())
	}
	return peak.Load() / chunkSize
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Many uploads stay within the memory for parts, even if it is less than one part for each,
// and none waits for ever. A single upload reads ahead.
func TestPartsInMemoryAreBounded(t *testing.T) {
	if most := sendCounted(t, newPartBuffers(8*chunkSize, chunkSize, 10_000), 40); most > 8 {
		t.Errorf("%d parts were in memory, of 8", most)
	}
	// One that is read, up to 3 that are sent, and the memory for a next one, which is released
	// again if none of the 3 was sent by then.
	if most := sendCounted(t, newPartBuffers(8*chunkSize, chunkSize, 10_000), 1); most < 2 || most > 5 {
		t.Errorf("one upload had %d parts in memory, not 2 to 5", most)
	}
}

// The memory is acquired before the first byte is read, and no more than the body needs.
func TestPartTakesItsMemoryFirst(t *testing.T) {
	const part = 4 * chunkSize
	for _, c := range []struct{ total, want int64 }{
		{3000, chunkSize}, {chunkSize, chunkSize}, {chunkSize + 1, 2 * chunkSize}, {part, part}, {9 * part, part}, {-1, part},
	} {
		b := newPartBuffers(8*part, part, 10_000)
		var held int64 = -1
		_, _, err := b.readFirst(readerFunc(func([]byte) (int, error) { held = b.memory.inUse(); return 0, errBodyCut }), c.total, putOptions{})
		if !errors.Is(err, errBodyCut) || held != c.want {
			t.Errorf("for a body of %d bytes, %d are in use, not %d: %v", c.total, held, c.want, err)
		}
	}
}

// An upload that waits for memory holds none, has not begun to read, and fails in time.
func TestUploadsWaitForMemory(t *testing.T) {
	b := newPartBuffers(8*chunkSize, chunkSize, 10_000)
	b.memory.wait = 20 * time.Millisecond
	all := mustTake(t, b.memory, "other", 8*chunkSize)
	unread := readerFunc(func([]byte) (int, error) { t.Error("the body is read"); return 0, io.EOF })
	if _, _, err := b.readFirst(unread, 3000, putOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("without memory: %v", err)
	}
	all.release()
	// In the middle of an upload: the part that was read is sent, and then the upload fails.
	sent := 0
	r, _, err := b.readFirst(bytes.NewBuffer(make([]byte, 4*chunkSize)), 4*chunkSize, putOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mustTake(t, b.memory, "other", 7*chunkSize)
	_, _, err = sendParts(t.Context(), r, 3, func(context.Context, int, *part) (string, error) {
		sent++
		go func() { mustTake(t, b.memory, "other", chunkSize) }() // as soon as this part is sent
		for queued := 0; queued == 0; runtime.Gosched() {
			b.memory.mu.Lock()
			queued = len(b.memory.queue)
			b.memory.mu.Unlock()
		}
		return "", nil
	})
	if !errors.Is(err, ErrBusy) || sent != 1 {
		t.Errorf("%d parts were sent, and then: %v", sent, err)
	}
	if held := b.memory.inUse(); held != 8*chunkSize {
		t.Errorf("%d bytes are in use, not the 8 chunks of the other client", held)
	}
}

// Memory is charged to the client, and can be revoked.
func TestPartsAreCharged(t *testing.T) {
	b := newPartBuffers(8*chunkSize, chunkSize, 10_000)
	revoked := make(chan struct{})
	r := &partReader{buffers: b, total: -1, client: "c", revoke: sync.OnceFunc(func() { close(revoked) }),
		body: readerFunc(func([]byte) (int, error) { <-revoked; return 0, ErrBusy })}
	failed := make(chan error, 1)
	hold := mustTake(t, b.memory, "c", 7*chunkSize)
	defer hold.release()
	go func() { failed <- r.next(nil) }()
	for b.memory.inUse() < 8*chunkSize {
		runtime.Gosched()
	}
	mustTake(t, b.memory, "other", chunkSize).release()
	if err := <-failed; !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
}

// A part that was released yields no bytes to an SDK that still reads it.
func TestPartAfterItsEnd(t *testing.T) {
	b := newPartBuffers(8*chunkSize, chunkSize, 10_000)
	r := &partReader{buffers: b, body: bytes.NewReader(body(2*chunkSize, 1)), total: -1}
	if err := r.next(nil); err != nil {
		t.Fatal(err)
	}
	var late sync.WaitGroup
	late.Go(func() {
		for p := make([]byte, 100); ; {
			if _, err := r.part.Read(p); err == io.EOF {
				return
			}
		}
	})
	runtime.Gosched()
	b.release(r.part)
	late.Wait()
	if _, err := r.part.Seek(0, io.SeekStart); err != nil { // as a retry does
		t.Fatal(err)
	}
	if n, err := r.part.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// partsBucket is a memBucket that receives bodies in parts, as real stores do.
type partsBucket struct {
	*memBucket
	buffers *partBuffers
	onPart  func(n int) // nil: nothing
}

func (b partsBucket) uploadMemory() *budget { return b.buffers.memory }

func (b partsBucket) put(ctx context.Context, key string, body io.Reader, size int64, opts putOptions) (objectInfo, error) {
	r, whole, err := b.buffers.readFirst(body, size, opts)
	if err != nil {
		return objectInfo{}, err
	}
	if whole != nil {
		defer r.release()
		return b.memBucket.put(ctx, key, whole, r.got, opts)
	}
	var mu sync.Mutex
	parts := map[int][]byte{}
	_, size, err = sendParts(ctx, r, 4, func(_ context.Context, n int, p *part) (string, error) {
		data, err := io.ReadAll(p)
		mu.Lock()
		parts[n] = data
		mu.Unlock()
		if b.onPart != nil {
			b.onPart(n)
		}
		return "", err
	})
	if err != nil {
		return objectInfo{}, err
	}
	var all []byte
	for n := range len(parts) {
		all = append(all, parts[n+1]...)
	}
	return b.memBucket.put(ctx, key, bytes.NewReader(all), size, opts)
}

// startParts starts a service over a store whose uploads share the memory of 8 parts of 1 MiB.
func startParts(t *testing.T, onPart func(n int), vars ...string) (*testServer, *service, *budget) {
	t.Helper()
	b := partsBucket{newMemBucket(), newPartBuffers(8<<20, 1<<20, 20), onPart}
	s, svc := startBackend(t, newObjectStore(b, "", quiet()), vars...)
	return s, svc, b.buffers.memory
}

// Clients share the memory of uploads: a client that holds all of it and stops sending blocks
// others only for a moment, and its upload is not stored.
func TestClientsShareTheMemoryOfUploads(t *testing.T) {
	s, svc, memory := startParts(t, nil)
	var held []unfinished
	for i := range 8 {
		held = append(held, sendUnfinished(t, s, "PUT", fmt.Sprint("/sites/hog/artifacts/", i), 1<<20))
		eventually(t, "its memory is in use", func() bool { return memory.inUse() == int64(i+1)<<20 })
	}
	data := bytes.Repeat(body(1<<20, 1), 3)
	s.put(t, 201, "/sites/s/artifacts/known", data)
	s.put(t, 201, "/sites/s/artifacts/chunked", io.MultiReader(bytes.NewReader(data)))
	for _, id := range []string{"known", "chunked"} {
		if got := s.get(t, 200, "/sites/s/artifacts/"+id).body; !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes received of %d", id, len(got), len(data))
		}
	}
	if r := held[7].answer(t); r.StatusCode != 503 || r.Header.Get("Retry-After") == "" {
		t.Errorf("the newest of who held all: %s, %v", r.Status, r.Header)
	}
	held[0].Write([]byte("}"))
	if r := held[0].answer(t); r.StatusCode != 201 {
		t.Errorf("the oldest: %s", r.Status)
	}
	s.get(t, 404, "/sites/hog/artifacts/7")
	for _, h := range held {
		h.Close()
	}
	nothingIsHeld(t, svc)
}

// An upload that is too large for the memory is refused with a text that names the limit: at
// once if its length is declared, and otherwise when it reaches the limit. Nothing is stored.
func TestTooLargeUploadSaysWhy(t *testing.T) {
	s, svc, _ := startParts(t, nil)
	const limit = 20 << 20
	for name, r := range map[string]request{
		"known":   {"PUT", "/sites/s/artifacts/known", announced{io.LimitReader(endless{}, limit+1), limit + 1}, nil},
		"chunked": {"PUT", "/sites/s/artifacts/chunked", io.LimitReader(endless{}, limit+1), nil},
	} {
		got := s.do(t, 413, r)
		if !bytes.Contains(got.body, []byte(fmt.Sprint("larger than ", limit, " bytes"))) || !bytes.Contains(got.body, []byte("PAGEWRIGHT_UPLOAD_MEMORY=8388608")) {
			t.Errorf("%s: the answer is %s", name, got.body)
		}
		s.get(t, 404, r.path)
	}
	nothingIsHeld(t, svc)
}

// announced is a body with a declared length.
type announced struct {
	io.Reader
	size int64
}

func (a announced) Size() int64 { return a.size }

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// The time in which an upload waits for memory does not count as a stall of the client.
func TestWaitForMemoryIsNotAStall(t *testing.T) {
	s, svc, memory := startParts(t, nil, "STALL_TIMEOUT=1s")
	inQueue := func() bool {
		memory.mu.Lock()
		defer memory.mu.Unlock()
		return len(memory.queue) == 1
	}
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data := bytes.Repeat(body(1<<20, 1), 3)
	fmt.Fprintf(c, "PUT /sites/s/artifacts/b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n%s\r\n", data[:1<<20])
	eventually(t, "the first part is read", func() bool { return memory.inUse() == 1<<20 })
	rest := mustTake(t, memory, "", 7<<20)
	next := make(chan *grant, 1)
	go func() { next <- mustTake(t, memory, "", 1<<20) }() // as soon as the first part is sent
	eventually(t, "somebody waits before the upload", inQueue)
	fmt.Fprintf(c, "a\r\n%s\r\n", data[1<<20:1<<20+10]) // so few that more is awaited
	all := <-next
	eventually(t, "the upload waits", inQueue)
	fmt.Fprintf(c, "%x\r\n%s\r\n0\r\n\r\n", len(data)-1<<20-10, data[1<<20+10:])
	time.Sleep(2500 * time.Millisecond)
	rest.release()
	all.release()
	if r := (unfinished{c}).answer(t); r.StatusCode != 201 {
		t.Errorf("the answer is %s", r.Status)
	}
	if got := s.get(t, 200, "/sites/s/artifacts/b").body; !bytes.Equal(got, data) {
		t.Errorf("%d bytes received of %d", len(got), len(data))
	}
	nothingIsHeld(t, svc)
}

// A body that ends within its first part, or is in memory, is sent in a single request, unless
// parts are asked for.
func TestReadFirst(t *testing.T) {
	for _, c := range []struct {
		name   string
		body   io.Reader
		total  int64
		parts  bool
		single bool
	}{
		{"in memory", bytes.NewReader(make([]byte, 3*chunkSize)), 3 * chunkSize, false, true},
		{"in memory, in parts", bytes.NewReader(make([]byte, 3*chunkSize)), 3 * chunkSize, true, false},
		{"small", bytes.NewBuffer(make([]byte, chunkSize)), chunkSize, false, true},
		{"small, in parts", bytes.NewBuffer(make([]byte, chunkSize)), chunkSize, true, false},
		{"small, of unknown length", bytes.NewBuffer(make([]byte, chunkSize)), -1, false, true},
		{"large", bytes.NewBuffer(make([]byte, chunkSize+1)), chunkSize + 1, false, false},
		{"large, of unknown length", bytes.NewBuffer(make([]byte, chunkSize+1)), -1, false, false},
	} {
		b := newPartBuffers(8*chunkSize, chunkSize, 10_000)
		r, whole, err := b.readFirst(c.body, c.total, putOptions{parts: c.parts})
		if err != nil || (whole != nil) != c.single {
			t.Errorf("%s: a single request is %v, want %v: %v", c.name, whole != nil, c.single, err)
			continue
		}
		if whole != nil {
			if n, err := io.Copy(io.Discard, whole); n != r.got || err != nil {
				t.Errorf("%s: the body has %d bytes, and got is %d: %v", c.name, n, r.got, err)
			}
		}
		r.release()
		if held := b.memory.inUse(); held != 0 {
			t.Errorf("%s: %d bytes are still in use", c.name, held)
		}
	}
}
