//go:build integration && !no_azure

package main

import (
	"context"
	"syscall"
	"testing"
)

// Azurite's built-in account and its key, which its documentation publishes.
const (
	azuriteAccount = "devstoreaccount1"
	azuriteKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// startAzurite starts Azurite over a directory. It saves its index of blobs only every few
// seconds, and on SIGTERM. If it were killed, it would lose acknowledged writes.
func startAzurite(t testing.TB) *realStore {
	server := startProcess(t, "", nil, []string{"node", azuritePath + "/node_modules/azurite/dist/src/blob/main.js",
		"--blobHost", "127.0.0.1", "--blobPort", "{port}", "--location", t.TempDir(), "--skipApiVersionCheck", "--disableTelemetry", "--silent"})
	s := &realStore{name: "azurite", server: server, ends: syscall.SIGTERM, env: map[string]string{
		"PAGEWRIGHT_STORAGE_BACKEND": "azure",
		"PAGEWRIGHT_AZURE_CONTAINER": testBucket,
		"PAGEWRIGHT_AZURE_PREFIX":    "some/prefix",
		azureConnection: "DefaultEndpointsProtocol=http;AccountName=" + azuriteAccount + ";AccountKey=" + azuriteKey +
			";BlobEndpoint=" + server.url() + "/" + azuriteAccount,
	}}
	s.prepare = func(t testing.TB) {
		t.Helper()
		maker := s.with(map[string]string{"PAGEWRIGHT_AZURE_CREATE": "true"})
		if err := maker.open(t, "").(*objectStore).bucket.(*azureBucket).createContainer(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	s.prepare(t)
	s.drop = func(t testing.TB) {
		t.Helper()
		if _, err := s.open(t, "").(*objectStore).bucket.(*azureBucket).client.Delete(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
	}
	return s
}
