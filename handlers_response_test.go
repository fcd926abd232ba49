package main

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
)

// Every response says that its type is not to be guessed.
func TestNosniff(t *testing.T) {
	s, admin := startAdmin(t)
	etag := s.put(t, 201, "/sites/a/artifacts/b", "body").header.Get("ETag")
	s.post(t, 201, "/sites/a/logs", `{"build_id":"b","action":"deploy","status":"ok"}`)
	const host = " HTTP/1.1\r\nHost: h\r\n"
	for _, c := range []struct {
		s      *testServer
		raw    string
		status int
	}{
		{s, "GET /sites/a/artifacts/b" + host + "\r\n", 200},
		{s, "HEAD /sites/a/artifacts/b" + host + "\r\n", 200},
		{s, "GET /sites/a/artifacts/b" + host + "Range: bytes=1-2\r\n\r\n", 206},
		{s, "GET /sites/a/artifacts/b" + host + "Range: bytes=9-\r\n\r\n", 416},
		{s, "GET /sites/a/artifacts/b" + host + "If-None-Match: " + etag + "\r\n\r\n", 304},
		{s, "GET /sites/a/artifacts/none" + host + "\r\n", 404},
		{s, "PUT /sites/a/artifacts/c" + host + "Content-Length: 1\r\n\r\nx", 201},
		{s, "PUT /sites/a/artifacts/c" + host + "Content-Length: 0\r\nExpect: 100-continue\r\n\r\n", 400},
		{s, "DELETE /sites/a/artifacts/c" + host + "\r\n", 204},
		{s, "GET /sites/a/versions" + host + "\r\n", 200},
		{s, "POST /sites/a/logs" + host + "Content-Length: 1\r\n\r\nx", 400},
		{s, "OPTIONS /sites/a/versions" + host + "\r\n", 204},
		{s, "PATCH /sites/a/versions" + host + "\r\n", 405},
		{s, "GET /openapi.yaml" + host + "\r\n", 200},
		{s, "GET / HTTP/1.1\r\n\r\n", 400},
		{s, "nonsense\r\n\r\n", 400},
		{s, "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 10_000) + "\r\n\r\n", 431},
		{s, "GET / HTTP/3.0\r\nHost: h\r\n\r\n", 505},
		{admin, "GET /health" + host + "\r\n", 200},
		{admin, "GET /ready" + host + "\r\n", 200},
		{admin, "GET /metrics" + host + "\r\n", 200},
		{admin, "GET /nothing" + host + "\r\n", 404},
	} {
		r := answerTo(t, c.s.addr, c.raw)
		if got := r.header.Values("X-Content-Type-Options"); r.status != c.status || len(got) != 1 || got[0] != "nosniff" {
			t.Errorf("%.40q: %d, want %d, X-Content-Type-Options %q", c.raw, r.status, c.status, got)
		}
	}
}

// Rejected connections get it too, before a request was read.
func TestNosniffOfARejectedConnection(t *testing.T) {
	for _, status := range []int{429, 503} {
		var s *crowd
		if status == 429 {
			s = startCrowd(t, 10, "MAX_CONNS_PER_IP=1")
		} else {
			s = startCrowd(t, 1)
		}
		_, _ = io.WriteString(s.from(t, here), half)
		s.settles(t, 1, 0)
		resp, err := http.ReadResponse(bufio.NewReader(s.from(t, here)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Header.Get("X-Content-Type-Options"); resp.StatusCode != status || got != "nosniff" {
			t.Errorf("%d, want %d, with %q", resp.StatusCode, status, got)
		}
		eventually(t, "it is logged", func() bool {
			for _, msg := range []string{"connections refused: one address has the maximum", "connections refused: the connection limit is reached"} {
				for _, line := range logLines(s.testServer, msg) {
					if line["status"] == float64(status) && line["count"] == 1.0 && strings.HasPrefix(line["remote"].(string), here) {
						return true
					}
				}
			}
			return false
		})
	}
}
