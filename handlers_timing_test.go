package main

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
)

// BenchmarkRequest is a request and its response on a connection that is kept. The
// client allocates nothing, so the figures are those of the service.
func BenchmarkRequest(b *testing.B) {
	const path = "/sites/s/artifacts/b"
	for _, c := range []struct {
		name, request string
		size          int // of the stored build
	}{
		{"get 4 KiB", "GET " + path + " HTTP/1.1\r\nHost: h\r\n\r\n", 4 << 10},
		{"get 4 KiB with its digest", "GET " + path + " HTTP/1.1\r\nHost: h\r\n\r\n", 4 << 10},
		{"get 4 KiB by label", "GET /sites/s/labels/live/artifact HTTP/1.1\r\nHost: h\r\n\r\n", 4 << 10},
		{"get 64 KiB", "GET " + path + " HTTP/1.1\r\nHost: h\r\n\r\n", 64 << 10},
		{"get a range", "GET " + path + " HTTP/1.1\r\nHost: h\r\nRange: bytes=100-199\r\n\r\n", 64 << 10},
		{"get not modified", "GET " + path + " HTTP/1.1\r\nHost: h\r\nIf-None-Match: *\r\n\r\n", 4 << 10},
		{"get not modified by label", "GET /sites/s/labels/live/artifact HTTP/1.1\r\nHost: h\r\nIf-None-Match: ETAG\r\n\r\n", 4 << 10},
		{"get label", "GET /sites/s/labels/live HTTP/1.1\r\nHost: h\r\n\r\n", 4 << 10},
		{"get not found", "GET /sites/s/artifacts/none HTTP/1.1\r\nHost: h\r\n\r\n", 4 << 10},
		{"put 4 KiB", "PUT " + path + "2 HTTP/1.1\r\nHost: h\r\nContent-Length: 4096\r\n\r\n" + strings.Repeat("x", 4<<10), 1},
		{"post", "POST /sites/none/logs HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}", 1},
		{"list", "GET /sites/s/versions HTTP/1.1\r\nHost: h\r\n\r\n", 1},
	} {
		b.Run(c.name, func(b *testing.B) {
			store, data := openTestNFS(b, b.TempDir()), randomBytes(c.size)
			store.useDigests()
			s, _ := startBackend(b, store, "ACCESS_LOG=false")
			etag := s.put(b, 201, path, data).header.Get("ETag")
			if strings.HasSuffix(c.name, "digest") {
				s.put(b, 201, path, data, "Repr-Digest", sha256Field(data))
			}
			if strings.Contains(c.request, "/labels/") { // else the build could not be replaced
				mustLabel(b, store, "s", "live", "b")
			}
			client := dial(b, s.addr)
			ask := []byte(strings.Replace(c.request, "ETAG", etag, 1))
			once := func(r io.Reader) int64 { // the size of the response
				if _, err := client.Write(ask); err != nil {
					b.Fatal(err)
				}
				counted := &countingReader{r: r}
				resp, err := http.ReadResponse(bufio.NewReader(counted), nil)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					b.Fatal(err)
				}
				return counted.n
			}
			_ = once(client)
			size := once(client)
			response := make([]byte, size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Write(ask); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(client, response); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// countingReader counts the bytes that are read of r.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
