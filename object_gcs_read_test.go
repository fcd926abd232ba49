//go:build !no_gcs

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// A read resumes where its response broke off, as long as it makes progress.
func TestGCSReadBrokenOff(t *testing.T) {
	const size, most = 1 << 20, 100
	data := body(size, 1)
	for _, c := range []struct {
		after    int // bytes after which each answer breaks off
		requests int64
		whole    bool
	}{
		{300 << 10, 4, true},
		{100 << 10, 11, true},
		{1, gcsTries, false},
	} {
		t.Run(fmt.Sprint(c.after), func(t *testing.T) {
			var requests atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var from int
				w.Header().Set("X-Goog-Generation", "1")
				w.Header().Set("Content-Type", artifactType)
				if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
				}
				w.Header().Set("Content-Length", fmt.Sprint(size-from))
				if from > 0 {
					w.WriteHeader(http.StatusPartialContent)
				}
				if requests.Add(1) > most || size-from <= c.after {
					_, _ = w.Write(data[from:])
					return
				}
				_, _ = w.Write(data[from : from+c.after])
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}))
			defer server.Close()
			t.Setenv(gcsEmulator, server.URL)
			b, err := newGCSBucket(context.Background(), gcsConfig{Bucket: "builds", ChunkSize: 8 << 20}, 256<<20)
			if err != nil {
				t.Fatal(err)
			}
			r, _, err := b.get(context.Background(), "key", "", 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if requests.Load() != c.requests || (err == nil) != c.whole || !bytes.HasPrefix(data, got) || c.whole && len(got) != size {
				t.Errorf("%d bytes of %d after %d requests, %v", len(got), size, requests.Load(), err)
			}
		})
	}
}

// What does not have the CRC32C of the store is damaged there, and not read again.
func TestGCSReadOfDamagedBytes(t *testing.T) {
	data := body(1<<20, 1)
	var requests atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		w.Header().Set("X-Goog-Generation", "1")
		w.Header().Set("X-Goog-Hash", "crc32c=AAAAAA==")
		w.Header().Set("Content-Type", artifactType)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data)
	}))
	defer server.Close()
	t.Setenv(gcsEmulator, server.URL)
	b, err := newGCSBucket(context.Background(), gcsConfig{Bucket: "builds", ChunkSize: 8 << 20}, 256<<20)
	if err != nil {
		t.Fatal(err)
	}
	r, err := newObjectStore(b, "", quiet()).FetchArtifact("s", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, errChecksum) || errors.Is(err, ErrUnavailable) || requests.Load() != 1 {
		t.Errorf("%v after %d requests", err, requests.Load())
	}
}
