//go:build !no_gcs

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The key of a service account signs URLs without a request. Emulators have no keys, so this
// is a unit test.
func TestGCSSignsURLs(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p", "private_key_id": "k", "client_email": "storage@p.iam.gserviceaccount.com",
		"client_id": "1", "token_uri": "http://127.0.0.1:1/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "account.json")
	if err := os.WriteFile(file, account, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
	b, err := newGCSBucket(context.Background(), gcsConfig{Bucket: "builds", ChunkSize: 8 << 20}, 256<<20)
	if err != nil {
		t.Fatal(err)
	}
	link, err := b.presign(context.Background(), "sites/s/artifacts/b+1.tar.gz", 5*time.Minute, "s-b+1.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if u.Scheme != "https" || u.Host != "storage.googleapis.com" || u.Path != "/builds/sites/s/artifacts/b+1.tar.gz" ||
		q.Get("X-Goog-Signature") == "" || q.Get("X-Goog-Expires") != "299" && q.Get("X-Goog-Expires") != "300" ||
		q.Get("response-content-disposition") != `attachment; filename="s-b+1.tar.gz"` {
		t.Errorf("the URL is %s", link)
	}
}

// The chunks of all uploads fit into their memory: the less is free, the smaller they are. A
// log, which is in memory anyway, does not wait for uploads.
func TestGCSChunksShareMemory(t *testing.T) {
	t.Setenv(gcsEmulator, "127.0.0.1:1")
	b, err := newGCSBucket(t.Context(), gcsConfig{Bucket: "builds", ChunkSize: 8 << 20}, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	b.memory.wait = 20 * time.Millisecond
	take := func(body io.Reader, size int64) (int64, error) {
		chunk, g, err := b.acquireChunk(body, size, putOptions{})
		if err == nil && g != nil && g.n != chunk {
			t.Errorf("%d bytes are acquired for a chunk of %d", g.n, chunk)
		}
		return chunk, err
	}
	if chunk, err := take(nil, 3000); chunk != gcsChunkStep || err != nil {
		t.Errorf("for 3000 bytes a chunk of %d, %v", chunk, err)
	}
	uploads, last, sizes := 0, int64(8<<20), map[int64]bool{}
	for ; err == nil; uploads++ {
		var chunk int64
		if chunk, err = take(nil, -1); chunk > last || chunk%gcsChunkStep != 0 {
			t.Errorf("a chunk of %d after one of %d", chunk, last)
		}
		last, sizes[chunk] = chunk, true
	}
	if !errors.Is(err, ErrBusy) || last != gcsChunkStep || uploads < 30 || len(sizes) < 10 || b.memory.inUse() != 64<<20 {
		t.Errorf("%d uploads hold %d bytes, the last has a chunk of %d: %v", uploads, b.memory.inUse(), last, err)
	}
	if chunk, err := take(bytes.NewReader(make([]byte, 9<<20)), 9<<20); chunk != gcsChunkStep || err != nil {
		t.Errorf("for a log a chunk of %d, %v", chunk, err)
	}
}
