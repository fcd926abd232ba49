package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// watch ends an attempt when it has waited too long for the network. Time that the attempt
// spends elsewhere, as in a slow reader of its output, does not count.
type watch struct {
	cancel context.CancelCauseFunc
	ctx    context.Context
	timer  *time.Timer
	limit  time.Duration
	what   string // the request, for errors
}

// errStalled is the cause of a context that a watch has ended.
var errStalled = errors.New("the connection stalled")

func newWatch(ctx context.Context, limit time.Duration, what string) (context.Context, *watch) {
	w := &watch{limit: limit, what: what}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(time.Hour, func() { w.cancel(errStalled) })
	w.timer.Stop()
	return w.ctx, w
}

// start gives the attempt until now+limit for the next byte.
func (w *watch) start(limit time.Duration) { w.timer.Reset(limit) }

// pause stops the clock.
func (w *watch) pause() { w.timer.Stop() }

// stop ends the attempt.
func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(context.Canceled)
}

// explain returns the error of an attempt; if it is only that the attempt was ended, the cause of
// that.
func (w *watch) explain(err error) error {
	if errors.Is(context.Cause(w.ctx), errStalled) {
		return fmt.Errorf("%s: %w: no byte moved for %v", w.what, errStalled, w.limit)
	}
	return err
}

// sentBody is the body of a request. Each read shows that the bytes of the one before are on
// their way.
type sentBody struct {
	io.Reader
	size  int64
	left  int64 // to be read
	watch *watch
	sent  func(n int)
}

func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.left -= int64(n)
	limit := b.watch.limit
	if b.left <= 0 { // a proxy may have held the body back until now
		limit += time.Duration(b.size/slowest) * time.Second
	}
	b.watch.start(limit)
	if b.sent != nil && n > 0 {
		b.sent(n)
	}
	return n, err
}

// watchedBody is the body of a response.
type watchedBody struct {
	io.ReadCloser
	watch *watch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.start(b.watch.limit)
	n, err := b.ReadCloser.Read(p)
	b.watch.pause()
	if err != nil && err != io.EOF {
		err = b.watch.explain(err)
	}
	return n, err
}

// Close closes the body, and frees what its attempt uses.
func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close()
	b.watch.stop()
	return err
}
