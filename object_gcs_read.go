//go:build !no_gcs

package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
)

// gcsRead counts the requests of one get. When a body breaks off, the SDK asks
// for the rest, at once and as often as it takes: a store that begins every
// answer and breaks it off would be asked for as long as the service runs.
type gcsRead struct {
	io.ReadCloser
	moved    int64        // bytes since requests was 0
	requests atomic.Int32 // that moved less than gcsChunkStep together
}

type gcsReadKey struct{}

var errGCSBrokenOff = errors.New("the store broke off its answers again and again")

// counted is a context by which gcsTransport knows the requests of r.
func (r *gcsRead) counted(ctx context.Context) context.Context {
	return context.WithValue(ctx, gcsReadKey{}, r)
}

func (r *gcsRead) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.moved += int64(n); r.moved >= gcsChunkStep {
		r.moved = 0
		r.requests.Store(0)
	}
	return n, err
}

// gcsTransport refuses a request of a get that had gcsTries of them in vain.
type gcsTransport struct{ http.RoundTripper }

func (t gcsTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if r, ok := req.Context().Value(gcsReadKey{}).(*gcsRead); ok && r.requests.Add(1) > gcsTries {
		return nil, errGCSBrokenOff // no error that the SDK tries again after
	}
	return t.RoundTripper.RoundTrip(req)
}
