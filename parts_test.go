package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
)

func TestPartSize(t *testing.T) {
	const mib = 1 << 20
	f := func(total int64, n int, want int64) {
		t.Helper()
		if got := partSize(8*mib, total, n, 10_000); got != want {
			t.Errorf("part %d of %d bytes is %d, want %d", n, total, got, want)
		}
	}
	f(1, 1, 8*mib)
	f(80_000*mib, 1, 8*mib)
	f(80_000*mib+1, 1, 9*mib)
	f(100e9, 10_000, 10*mib)
	f(5<<40, 1, 525*mib)
	f(-1, 2000, 8*mib)
	f(-1, 2001, 16*mib)
	f(-1, 10_000, 128*mib)
}

// Any body fits under the limit of parts.
func TestPartSizesReachFarEnough(t *testing.T) {
	for _, total := range []int64{100e9, 5 << 40} {
		if have := 10_000 * partSize(8<<20, total, 1, 10_000); have < total {
			t.Errorf("10,000 parts are %d bytes of %d", have, total)
		}
	}
	var unknown int64
	for n := range 10_000 {
		unknown += partSize(8<<20, -1, n+1, 10_000)
	}
	if unknown < 100e9 {
		t.Errorf("10,000 parts of an unknown body are %d bytes", unknown)
	}
}

// collect sends body in parts of size and returns what arrived.
func collect(b *partBuffers, body io.Reader, size int64, fail int) ([]byte, []string, error) {
	r := &partReader{buffers: b, body: body, size: func(int) int64 { return size }}
	if err := r.next(); err != nil {
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
	for _, ahead := range []int{0, 1, 16} {
		b := newPartBuffers(ahead)
		for _, size := range []int64{chunkSize / 2, chunkSize, chunkSize + 1, 3*chunkSize - 1} {
			for _, n := range []int64{0, 1, size - 1, size, size + 1, 2 * size, 5*size + 3} {
				data := body(int(n), 1)
				for _, r := range []io.Reader{bytes.NewReader(data), iotest.DataErrReader(bytes.NewReader(data)), iotest.HalfReader(bytes.NewReader(data))} {
					got, names, err := collect(b, r, size, 0)
					if err != nil || !bytes.Equal(got, data) {
						t.Fatalf("parts of %d, body of %d: %d bytes came, %v", size, n, len(got), err)
					}
					if want := max(1, (n+size-1)/size); int64(len(names)) != want {
						t.Fatalf("parts of %d, body of %d: %d parts, not %d", size, n, len(names), want)
					}
				}
			}
		}
		for fail := 1; fail <= 6; fail++ {
			if _, _, err := collect(b, bytes.NewReader(body(6*chunkSize, 1)), chunkSize, fail); !errors.Is(err, errSender) {
				t.Errorf("part %d failed: the error is %v", fail, err)
			}
		}
		for _, cut := range []int{0, 1, chunkSize, chunkSize + 1, 3 * chunkSize} {
			if _, _, err := collect(b, failing(body(4*chunkSize, 1), cut, errBodyCut), chunkSize, 0); !errors.Is(err, errBodyCut) {
				t.Errorf("the body was cut at %d: the error is %v", cut, err)
			}
		}
	}
}

// Of all uploads at once each may send one part, and ahead more over all.
func TestPartsInMemoryAreBounded(t *testing.T) {
	const uploads, ahead = 10, 4
	b := newPartBuffers(ahead)
	var now, most atomic.Int64
	var g sync.WaitGroup
	for range uploads {
		g.Go(func() {
			r := &partReader{buffers: b, body: bytes.NewReader(make([]byte, 20*chunkSize)), size: func(int) int64 { return chunkSize }}
			if err := r.next(); err != nil {
				t.Error(err)
				return
			}
			_, _, err := b.sendParts(context.Background(), r, 3,
				func(context.Context, int, *part) (string, error) {
					for n := now.Add(1); ; {
						if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
							break
						}
					}
					runtime.Gosched()
					now.Add(-1)
					return "", nil
				})
			if err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if most.Load() > uploads+ahead {
		t.Errorf("%d parts were sent at once", most.Load())
	}
	if len(b.ahead) != 0 {
		t.Errorf("%d parts are still counted as ahead", len(b.ahead))
	}
}
