package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// checkedBucket calls onCheck for each write of a check.
type checkedBucket struct {
	*memBucket
	onCheck func()
}

func (b checkedBucket) put(ctx context.Context, key string, body io.Reader, size int64, opts putOptions) (objectInfo, error) {
	if strings.HasPrefix(key, checksDir) {
		b.onCheck()
	}
	return b.memBucket.put(ctx, key, body, size, opts)
}

// No request waits long for a slow check, and only one check runs.
func TestSlowCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		var puts atomic.Int32
		b := newObjectStore(checkedBucket{newMemBucket(), func() { puts.Add(1); <-answer }}, "", quiet())
		start := time.Now()
		var g sync.WaitGroup
		for i := range 20 {
			g.Go(func() {
				time.Sleep(time.Duration(i) * time.Second)
				var err error
				switch begun := time.Now(); i % 3 {
				case 0:
					err = b.WriteLog("s", entry("1", "b", begun))
				case 1:
					_, err = b.StoreArtifactIf("s", "b", known(body(10, 1)), createOnly)
				default:
					err = b.DeleteArtifact("s", "b", createOnly)
				}
				if !errors.Is(err, ErrUnavailable) {
					t.Errorf("a change on a condition in second %d: %v", i, err)
				}
				if now := time.Since(start); now > max(capabilityWait, time.Duration(i)*time.Second) {
					t.Errorf("the one of second %d waited until %s", i, now)
				}
			})
		}
		if err := b.StoreArtifact("s", "b", known(body(10, 1))); err != nil || time.Since(start) > 0 {
			t.Errorf("a change without a condition: %v, after %s", err, time.Since(start))
		}
		g.Wait()
		if n := puts.Load(); n != 1 {
			t.Errorf("%d checks were begun", n)
		}
		close(answer)
		time.Sleep(time.Hour)
		checks := puts.Load()
		mustLog(t, b, "s", entry("1", "b", time.Now()))
		if puts.Load() != checks {
			t.Error("the store was checked again")
		}
	})
}

// A check that panics fails, does not end the process, and is run again.
func TestCheckPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var puts atomic.Int32
		b := newObjectStore(checkedBucket{newMemBucket(), func() {
			if puts.Add(1) == 1 {
				panic("a fault of the SDK")
			}
		}}, "", quiet())
		for range 2 {
			if err := b.WriteLog("s", entry("1", "b", time.Now())); err == nil || !strings.Contains(err.Error(), "a fault of the SDK") {
				t.Errorf("after the panic: %v", err)
			}
		}
		time.Sleep(checkRetry)
		mustLog(t, b, "s", entry("1", "b", time.Now()))
	})
}
