//go:build !no_gcs

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
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

// A small body that is read first takes memory beside its chunk, also if it has to wait.
func TestGCSSmallBodiesTakeMemory(t *testing.T) {
	t.Setenv(gcsEmulator, "127.0.0.1:1")
	b, err := newGCSBucket(t.Context(), gcsConfig{Bucket: "builds", ChunkSize: 8 << 20}, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	opts := putOptions{hashed: hashedBody(nil).(Hashed)}
	for _, busy := range []bool{false, true} {
		var all *grant
		if busy {
			all = b.memory.tryAcquire(budgetRequest{n: b.memory.limit})
		}
		done := make(chan *grant)
		go func() {
			_, g, err := b.acquireChunk(hashedBody(nil), 1000, opts)
			if err != nil {
				t.Error(err)
			}
			done <- g
		}()
		if busy {
			eventually(t, "the upload waits", func() bool {
				b.memory.mu.Lock()
				defer b.memory.mu.Unlock()
				return len(b.memory.queue) == 1
			})
			all.release()
		}
		if g := <-done; g.n != 2*gcsChunkStep {
			t.Errorf("busy=%t: %d bytes are acquired, want %d", busy, g.n, 2*gcsChunkStep)
		} else {
			g.release()
		}
	}
}

// The SDK sends the CRC32C of the whole body with its last bytes, and Google compares it with what
// arrived (Writer.DisableAutoChecksum).
func TestGCSSendsAChecksum(t *testing.T) {
	const chunk = gcsChunkStep
	for size, requests := range map[int]int{1: 1, 3000: 1, chunk - 1: 1, chunk: 3, 2*chunk + 1000: 4} {
		var got []byte
		var sent string
		calls := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls++
			switch r.URL.Query().Get("uploadType") {
			case "multipart":
				got, sent = readGCSUpload(t, r)
			case "resumable":
				w.Header().Set("Location", "http://"+r.Host+"/session")
				return
			default:
				more, _ := io.ReadAll(r.Body)
				got = append(got, more...)
				if strings.HasSuffix(r.Header.Get("Content-Range"), "/*") {
					w.Header().Set("X-Http-Status-Code-Override", "308")
					w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", len(got)-1))
					return
				}
				sent, _ = strings.CutPrefix(r.Header.Get("X-Goog-Hash"), "crc32c=")
			}
			fmt.Fprintf(w, `{"name":"key","generation":"1","size":"%d"}`, len(got))
		}))
		t.Setenv(gcsEmulator, server.URL)
		b, err := newGCSBucket(t.Context(), gcsConfig{Bucket: "builds", ChunkSize: chunk}, 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		data := body(size, 1)
		_, err = b.put(t.Context(), "key", bytes.NewReader(data), int64(size), putOptions{})
		server.Close()
		sum := crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
		if want := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum)); err != nil || sent != want || !bytes.Equal(got, data) || calls != requests {
			t.Errorf("%d bytes in %d requests: %d arrived, the checksum is %q, not %q: %v", size, calls, len(got), sent, want, err)
		}
	}
}

// readGCSUpload returns the bytes of an upload in a single request, and the CRC32C in its description.
func readGCSUpload(t *testing.T, r *http.Request) (data []byte, crc string) {
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		t.Error(err)
		return nil, ""
	}
	parts := multipart.NewReader(r.Body, params["boundary"])
	var description struct{ Crc32c string }
	if p, err := parts.NextPart(); err != nil || json.NewDecoder(p).Decode(&description) != nil {
		t.Error("there is no description", err)
		return nil, ""
	}
	p, err := parts.NextPart()
	if err != nil {
		t.Error(err)
		return nil, ""
	}
	data, _ = io.ReadAll(p)
	return data, description.Crc32c
}
