package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

// What is announced needs no larger parts than an eighth of the memory, or it is
// refused unread.
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
		_, err := b.put(body, c.total, putOptions{}, nil, nil)
		if want := map[bool]error{true: errBodyFailed, false: ErrTooLarge}[c.ok]; !errors.Is(err, want) {
			t.Errorf("%d bytes with %d of memory: %v, want %v", c.total, c.memory, err, want)
		}
		if !c.ok {
			status, text := statusOf(fmt.Errorf("cannot store: %w", err))
			if status != 413 || !strings.Contains(text, "PAGEWRIGHT_UPLOAD_MEMORY") || !strings.Contains(text, fmt.Sprint(c.memory/8*10_000)) {
				t.Errorf("the answer is %d %s", status, text)
			}
		}
		if b.memory.inUse() != 0 {
			t.Errorf("%d bytes are still taken", b.memory.inUse())
		}
	}
}

// A body of unknown length ends when it needs more parts than there may be.
func TestUnknownBodyTooLarge(t *testing.T) {
	b := newPartBuffers(8*chunkSize, chunkSize, 5)
	for size, want := range map[int]error{5 * chunkSize: nil, 5*chunkSize + 1: ErrTooLarge} {
		r := &partReader{buffers: b, body: bytes.NewReader(make([]byte, size)), total: -1}
		if err := r.next(nil); err != nil {
			t.Fatal(err)
		}
		sent := 0
		_, _, err := b.sendParts(t.Context(), r, 1, func(context.Context, int, *part) (string, error) { sent++; return "", nil })
		if !errors.Is(err, want) || sent != 5 {
			t.Errorf("%d bytes: %v, %d parts were sent", size, err, sent)
		}
	}
	if b.memory.inUse() != 0 {
		t.Errorf("%d bytes are still taken", b.memory.inUse())
	}
}

// collect sends body in parts of size and returns what arrived.
func collect(b *partBuffers, body io.Reader, total, size int64, fail int) ([]byte, []string, error) {
	b.base = size
	r := &partReader{buffers: b, body: body, total: total}
	if err := r.next(nil); err != nil {
		return nil, nil, err
	}
	var mu sync.Mutex
	got := map[string][]byte{}
	names, total, err := b.sendParts(context.Background(), r, 3,
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
							t.Fatalf("parts of %d, body of %d: %d bytes came, %v", size, n, len(got), err)
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
			t.Errorf("%d bytes are still taken", b.memory.inUse())
		}
	}
}

// sendCounted sends bodies of 20 parts at once, and returns how many parts were in
// memory at the most.
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
			_, err := b.put(io.LimitReader(body, 20*chunkSize), 20*chunkSize, putOptions{client: fmt.Sprint(i % 3)}, nil,
				func(r *partReader) (objectInfo, error) {
					_, _, err := b.sendParts(t.Context(), r, 3, func(context.Context, int, *part) (string, error) {
						note()
						runtime.Gosched()
						return "", nil
					})
					return objectInfo{}, err
				})
			if err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if b.memory.inUse() != 0 {
		t.Errorf("%d bytes are still taken", b.memory.inUse())
	}
	return peak.Load() / chunkSize
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Many uploads are within the memory for parts, which is no more than one part of
// each needs, and none waits for ever. One alone reads ahead.
func TestPartsInMemoryAreBounded(t *testing.T) {
	if most := sendCounted(t, newPartBuffers(8*chunkSize, chunkSize, 10_000), 40); most > 8 {
		t.Errorf("%d parts were in memory, of 8", most)
	}
	if most := sendCounted(t, newPartBuffers(8*chunkSize, chunkSize, 10_000), 1); most < 2 || most > 4 {
		t.Errorf("one upload had %d parts in memory, not one that is read and up to 3 that are sent", most)
	}
}

// The memory is taken before a byte is read, and no more than the body needs.
func TestPartTakesItsMemoryFirst(t *testing.T) {
	const part = 4 * chunkSize
	for _, c := range []struct{ total, want int64 }{
		{3000, chunkSize}, {chunkSize, chunkSize}, {chunkSize + 1, 2 * chunkSize}, {part, part}, {9 * part, part}, {-1, part},
	} {
		b := newPartBuffers(8*part, part, 10_000)
		var held int64 = -1
		_, err := b.put(readerFunc(func([]byte) (int, error) { held = b.memory.inUse(); return 0, errBodyCut }), c.total, putOptions{}, nil, nil)
		if !errors.Is(err, errBodyCut) || held != c.want {
			t.Errorf("for a body of %d bytes, %d are taken, not %d: %v", c.total, held, c.want, err)
		}
	}
}

// Who waits for memory holds none, is refused in time, and has not begun to read.
func TestUploadsWaitForMemory(t *testing.T) {
	b := newPartBuffers(8*chunkSize, chunkSize, 10_000)
	b.memory.wait = 20 * time.Millisecond
	all := mustTake(t, b.memory, "other", 8*chunkSize)
	unread := readerFunc(func([]byte) (int, error) { t.Error("the body is read"); return 0, io.EOF })
	if _, err := b.put(unread, 3000, putOptions{}, nil, nil); !errors.Is(err, ErrBusy) {
		t.Errorf("without memory: %v", err)
	}
	all.release()
	// In the middle: the part that was read is sent, and the upload fails then.
	sent := 0
	_, err := b.put(bytes.NewBuffer(make([]byte, 4*chunkSize)), 4*chunkSize, putOptions{}, nil, func(r *partReader) (objectInfo, error) {
		all = mustTake(t, b.memory, "other", 7*chunkSize)
		_, _, err := b.sendParts(t.Context(), r, 3, func(context.Context, int, *part) (string, error) {
			sent++
			go func() { mustTake(t, b.memory, "other", chunkSize) }() // as soon as this part is sent
			for queued := 0; queued == 0; runtime.Gosched() {
				b.memory.mu.Lock()
				queued = len(b.memory.queue)
				b.memory.mu.Unlock()
			}
			return "", nil
		})
		return objectInfo{}, err
	})
	if !errors.Is(err, ErrBusy) || sent != 1 {
		t.Errorf("%d parts were sent, and then: %v", sent, err)
	}
	if held := b.memory.inUse(); held != 8*chunkSize {
		t.Errorf("%d bytes are taken, not the 8 chunks of the other", held)
	}
}

// Memory is held in the name of the client, and can be taken back.
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

// A part that was given back has no bytes for an SDK that still reads it.
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
	if n, err := r.part.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d bytes, %v", n, err)
	}
}
