//go:build integration

package main

import (
	"context"
	"testing"
)

// The bucket is deleted and created again while the service runs.
func TestRealStoresBucketGone(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		const path = "/sites/s/artifacts/b"
		server := s.frontDoor(t)
		server.put(t, 201, path, "x", "If-None-Match", "*") // the store is known to keep conditions
		b := s.open(t, "").(*objectStore)
		var keys []string
		if err := b.bucket.list(context.Background(), "", func(page []objectInfo) error {
			for _, o := range page {
				keys = append(keys, o.key)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			if err := b.remove(t.Context(), key, ""); err != nil {
				t.Fatal(err)
			}
		}
		server.get(t, 404, path)
		s.drop(t)
		status := func(method string) int {
			r, err := server.try(request{method, path, nil, nil})
			if err != nil {
				t.Fatal(err)
			}
			return r.status
		}
		defer func() { // if the store itself takes the bucket for existing, the service does too
			if t.Failed() {
				t.Logf("a list of the bucket is answered: %v", b.listChecks())
			}
		}()
		eventually(t, "it is seen that the bucket is gone", func() bool { return status("HEAD") == 503 })
		wantBucketGone(t, server)
		s.prepare(t)
		eventually(t, "the bucket is seen again", func() bool {
			return status("HEAD") == 404 && status("GET") == 404
		})
		server.put(t, 201, path, "x", "If-None-Match", "*")
		server.get(t, 200, path)
	})
}
