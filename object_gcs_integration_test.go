//go:build integration && !no_gcs

package main

import (
	"context"
	"testing"
)

// startFakeGCS starts fake-gcs-server over a directory.
func startFakeGCS(t testing.TB) *realStore {
	server := startProcess(t, "/_internal/healthcheck", nil,
		[]string{fakeGCSPath, "-scheme", "http", "-host", "127.0.0.1", "-port", "{port}", "-backend", "filesystem", "-filesystem-root", t.TempDir(), "-public-host", "{addr}", "-log-level", "error"})
	s := &realStore{name: "fake-gcs-server", server: server, cannotSign: true, but: []difference{noDeleteIf}, env: map[string]string{
		"PAGEWRIGHT_STORAGE_BACKEND": "gcs",
		"PAGEWRIGHT_GCS_BUCKET":      testBucket,
		"PAGEWRIGHT_GCS_PREFIX":      "some/prefix",
		gcsEmulator:                  server.url(),
	}}
	s.prepare = func(t testing.TB) {
		t.Helper()
		if err := s.open(t, "").(*objectStore).bucket.(*gcsBucket).bucket.Create(context.Background(), "project", nil); err != nil {
			t.Fatal(err)
		}
	}
	s.prepare(t)
	s.drop = func(t testing.TB) {
		t.Helper()
		if err := s.open(t, "").(*objectStore).bucket.(*gcsBucket).bucket.Delete(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	return s
}
