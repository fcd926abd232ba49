package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// brokenGet returns objects of 100 bytes that break off at once, and records the time of each
// call.
func brokenGet(calls *[]time.Time) getFunc {
	return func(_ context.Context, key, _ string, _, _ int64) (io.ReadCloser, objectInfo, error) {
		*calls = append(*calls, time.Now())
		return io.NopCloser(iotest.ErrReader(errors.New("broken off"))), objectInfo{key: key, etag: `"e"`, size: 100}, nil
	}
}

// If the store breaks off every response, the read is retried a few times, with growing delays.
func TestResumingWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls []time.Time
		r, _, err := getResuming(t.Context(), brokenGet(&calls), "k", "", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if n, err := r.Read(make([]byte, 10)); n != 0 || err == nil || !strings.Contains(err.Error(), "broken off") {
			t.Errorf("%d bytes, %v", n, err)
		}
		if len(calls) != 1+resumeTries {
			t.Fatalf("%d calls", len(calls))
		}
		for i := range resumeTries {
			most := resumeDelay << i
			if d := calls[i+1].Sub(calls[i]); d < most/2 || d > most {
				t.Errorf("try %d came after %s", i+1, d)
			}
		}
	})
}

// An object without an ETag is not resumed: the next response could be of another object.
func TestNoResumeWithoutAnETag(t *testing.T) {
	for _, etag := range []string{"", `""`} {
		calls := 0
		r, _, err := getResuming(t.Context(), func(_ context.Context, key, _ string, _, _ int64) (io.ReadCloser, objectInfo, error) {
			calls++
			part := io.MultiReader(strings.NewReader("a part"), iotest.ErrReader(errors.New("broken off")))
			return io.NopCloser(part), objectInfo{key: key, etag: etag, size: 100}, nil
		}, "k", "", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if string(got) != "a part" || err == nil || !strings.Contains(err.Error(), "broken off") || calls != 1 {
			t.Errorf("with the tag %q: %q after %d calls, %v", etag, got, calls, err)
		}
		r.Close()
	}
}

// Close ends the wait for the next attempt, and the attempt itself.
func TestCloseEndsResuming(t *testing.T) {
	f := func(name string, get func(calls int) getFunc) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				r, _, err := getResuming(t.Context(), func(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
					calls++
					return get(calls)(ctx, key, etag, offset, length)
				}, "k", "", 0, -1)
				if err != nil {
					t.Fatal(err)
				}
				end := beginRead(r)
				synctest.Wait()
				if name == "the try" {
					time.Sleep(time.Minute) // of the fake clock: past the wait
				}
				start := time.Now()
				r.Close()
				if err := <-end; !errors.Is(err, context.Canceled) || time.Since(start) > 0 {
					t.Errorf("after %s the error is %v", time.Since(start), err)
				}
			})
		})
	}
	broken := brokenGet(new([]time.Time))
	f("the waiting", func(int) getFunc { return broken })
	f("the try", func(calls int) getFunc {
		if calls == 1 {
			return broken
		}
		return func(ctx context.Context, _, _ string, _, _ int64) (io.ReadCloser, objectInfo, error) {
			<-ctx.Done()
			return nil, objectInfo{}, ctx.Err()
		}
	})
}

// If the response of an attempt arrives after Close, its body is closed.
func TestResumingClosesALateBody(t *testing.T) {
	var calls []time.Time
	broken, answer, asked := brokenGet(&calls), make(chan struct{}), make(chan struct{})
	late := &closing{}
	r, _, err := getResuming(t.Context(), func(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
		body, info, err := broken(ctx, key, etag, offset, length)
		if len(calls) > 1 {
			close(asked)
			<-answer
			body = late
		}
		return body, info, err
	}, "k", "", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	end := beginRead(r)
	<-asked
	r.Close()
	close(answer)
	if err := <-end; !errors.Is(err, context.Canceled) || !late.closed {
		t.Errorf("closed is %v, %v", late.closed, err)
	}
}

// beginRead starts to read from r, and returns a channel that gets the error.
func beginRead(r io.Reader) <-chan error {
	end := make(chan error, 1)
	go func() {
		_, err := r.Read(make([]byte, 10))
		end <- err
	}()
	return end
}

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }
