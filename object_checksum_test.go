package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// summedBucket is a bucket whose uploads may carry checksums.
type summedBucket struct {
	*memBucket
	check func() (tested bool, err error)
	calls atomic.Int32
}

func (b *summedBucket) checkChecksums(context.Context, string) (bool, error) {
	b.calls.Add(1)
	return b.check()
}

// What a check of checksums finds, and whether it is run again by the next probe.
func TestChecksumsAreLearned(t *testing.T) {
	refused := errors.New("the store accepts a wrong checksum")
	down := fmt.Errorf("%w: no response", ErrUnavailable)
	for _, c := range []struct {
		name     string
		tested   bool
		err      error
		lists    error // of the store
		readOnly bool
		calls    int32 // after two probes
		warns    bool
	}{
		{"checked", true, nil, nil, false, 1, false},
		{"not needed", false, nil, nil, false, 1, false},
		{"ignored", true, refused, nil, false, 1, true},
		{"no response to a checksum", true, down, nil, false, 1, true},
		{"no response at all", true, down, down, false, 2, false},
		{"not to be found out", false, errors.New("cannot sign"), nil, false, 2, false},
		{"read-only", true, nil, nil, true, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				b := &summedBucket{memBucket: newMemBucket(), check: func() (bool, error) { return c.tested, c.err }}
				s := assumeCapable(newObjectStore(b, "", slog.New(slog.NewTextHandler(&log, nil))))
				s.readOnly = c.readOnly
				for range 2 {
					b.fault = func(op, _ string) (bool, error) {
						if op == "list" {
							return false, c.lists
						}
						return false, nil
					}
					_, _ = s.Probe()
					synctest.Wait()
					time.Sleep(checkRetry)
				}
				if n := b.calls.Load(); n != c.calls {
					t.Errorf("%d checks", n)
				}
				if warned := strings.Contains(log.String(), "only TLS protects"); warned != c.warns {
					t.Errorf("the log says %q", log.String())
				}
			})
		})
	}
}

// Nothing waits for the check of a store that does not respond to it.
func TestSlowCheckOfChecksums(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		respond := make(chan struct{})
		b := &summedBucket{memBucket: newMemBucket(), check: func() (bool, error) { <-respond; return true, nil }}
		s := newObjectStore(b, "", quiet())
		start := time.Now()
		for i := range 3 {
			if _, err := s.Probe(); err != nil {
				t.Error(err)
			}
			mustStore(t, s, "s", "b", body(10, 1))
			mustLog(t, s, "s", entry(fmt.Sprint(i), "b", start))
		}
		synctest.Wait()
		if waited := time.Since(start); waited > 0 || b.calls.Load() != 1 {
			t.Errorf("%s, %d checks", waited, b.calls.Load())
		}
		close(respond)
		synctest.Wait()
		if !s.checksums.known.Load() {
			t.Error("the result is not known")
		}
	})
}
