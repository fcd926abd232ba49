package client

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// withRanges runs a test in which builds from 10,000 bytes are downloaded in parts of 3000.
func withRanges(t *testing.T, test func(f *fake)) (dir string) {
	t.Helper()
	old := defaultRanges
	defaultRanges = rangeLimits{from: 10_000, part: 3000, count: 3}
	defer func() { defaultRanges = old }()
	dir = inDir(t)
	withFake(t, test)
	return dir
}

func TestPullInParts(t *testing.T) {
	for size, want := range map[int][]string{
		9_999:  {""},
		10_000: {"bytes=0-2999", "bytes=3000-5999", "bytes=6000-8999", "bytes=9000-9999"},
		12_000: {"bytes=0-2999", "bytes=3000-5999", "bytes=6000-8999", "bytes=9000-11999"},
	} {
		b := randomBuild(size, `"v1"`)
		dir := withRanges(t, func(f *fake) {
			f.hosts[serviceHost].handle = handler(b.serve)
			if r := f.run("pull", "shop", "v1").want(t, 0); strings.Contains(r.stdout, "not checked") {
				t.Errorf("stdout is %s", r.stdout)
			}
			got := []string{}
			for _, line := range f.hosts[serviceHost].requests("Range") {
				if method, rest, _ := strings.Cut(line, " "); method == http.MethodGet {
					_, value, _ := strings.Cut(rest, " Range=")
					got = append(got, value)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%d bytes: ranges %q, want %q", size, got, want)
			}
			if r := f.run("pull", "shop", "v1", "-o", "-").want(t, 0); r.stdout != string(b.data) {
				t.Errorf("standard output has %d bytes, or wrong ones", len(r.stdout))
			}
		})
		wantFiles(t, dir, map[string][]byte{"v1.tar.gz": b.data})
	}
}

// TestPullInPartsFromADeadService: one line says that all connections wait, until they try again.
func TestPullInPartsFromADeadService(t *testing.T) {
	b := randomBuild(12_000, `"v1"`)
	dir := withRanges(t, func(f *fake) {
		start, failures := time.Now(), 0
		var mu sync.Mutex
		f.hosts[serviceHost].handle = handler(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			if r.Method == http.MethodGet && time.Since(start) < time.Minute {
				failures++
				fail(w, 503, "down")
				return
			}
			b.serve(w, r)
		})
		r := f.run("pull", "shop", "v1").want(t, 0)
		announced, lines := time.Duration(0), strings.Count(r.stderr, " follows in ")
		for _, m := range regexp.MustCompile(` follows in (\S+)`).FindAllStringSubmatch(r.stderr, -1) {
			wait, err := time.ParseDuration(m[1])
			if err != nil {
				t.Error(err)
			}
			announced += wait - 50*time.Millisecond // it was rounded
		}
		if limit := time.Since(start) + maxDelay; announced > limit || lines < 2 || failures <= lines {
			t.Errorf("%d failures, %d lines that announce %v in %v:\n%s", failures, lines, announced, limit, r.stderr)
		}
	})
	wantFiles(t, dir, map[string][]byte{"v1.tar.gz": b.data})
}

// Whatever happens to parts, pull leaves the right file or no file.
func TestPullInPartsOfOddResponses(t *testing.T) {
	const size = 20_000
	b, after := randomBuild(size, `"v1"`), randomBuild(size+1000, `"v2"`)
	plain := b
	plain.noDigest = true
	some := func(n int) bool { return n%2 == 1 && n < 12 }
	for _, c := range []struct {
		name   string
		build  fakeBuild
		odd    func(n int, w http.ResponseWriter, r *http.Request) bool
		status int
		want   []byte
	}{
		{"cut", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if some(n) {
				b.serve(cutAfter(w, 100*n), r)
			}
			return some(n)
		}, 0, b.data},
		{"cut before the header", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if some(n) {
				panic(http.ErrAbortHandler)
			}
			return false
		}, 0, b.data},
		{"stall", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if some(n) {
				b.serve(stallAfter(w, r, 100*n), r)
			}
			return some(n)
		}, 0, b.data},
		{"503", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if some(n) {
				w.WriteHeader(503)
			}
			return some(n)
		}, 0, b.data},
		{"503 for ever", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(503)
			return true
		}, exitFailure, nil},
		{"403", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 3 {
				w.WriteHeader(403)
			}
			return n == 3
		}, exitDenied, nil},
		{"all instead of a part", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return false
		}, 0, b.data},
		{"all instead of the third part", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 3 {
				r.Header.Del("Range")
			}
			return false
		}, 0, b.data},
		{"without the ETag and the digest", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			fakeBuild{data: b.data, noDigest: true}.serve(w, &http.Request{Method: r.Method, Header: http.Header{"Range": r.Header["Range"]}})
			return true
		}, 0, b.data},
		{"without a digest", plain, func(n int, w http.ResponseWriter, r *http.Request) bool { return false }, 0, b.data},
		{"replaced", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n >= 3 {
				after.serve(w, r)
			}
			return n >= 3
		}, exitConflict, nil}, // a HEAD still shows the old build
		{"other bytes", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 3 {
				w.Header().Set("Etag", b.etag)
				w.Header().Set("Content-Range", strings.Replace(r.Header.Get("Range"), "=", " ", 1)+fmt.Sprintf("/%d", size))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(make([]byte, 3000))
			}
			return n == 3
		}, 0, b.data},
		{"more bytes", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				w.Header().Set("Etag", b.etag)
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", size-1, size))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(b.data)
			}
			return n == 1
		}, 0, b.data},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := withRanges(t, func(f *fake) {
				f.hosts[serviceHost].handle = onGet(c.build, c.odd)
				f.run("pull", "shop", "v1", "-o", "out", "--retry-for", "5m").want(t, c.status)
			})
			files := map[string][]byte{}
			if c.want != nil {
				files["out"] = c.want
			}
			wantFiles(t, dir, files)
		})
	}
}

// A build that is replaced while its parts are downloaded.
func TestPullInPartsOfAReplacedBuild(t *testing.T) {
	for _, digests := range []bool{true, false} {
		before, after := randomBuild(20_000, `"v1"`), randomBuild(12_000, `"v2"`)
		before.noDigest, after.noDigest = !digests, !digests
		dir := withRanges(t, func(f *fake) {
			f.hosts[serviceHost].handle = func(n int, w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead && n > 1 || r.Method == http.MethodGet && n > 4 {
					after.serve(w, r)
					return
				}
				before.serve(w, r)
			}
			f.run("pull", "shop", "v1").want(t, 0)
		})
		wantFiles(t, dir, map[string][]byte{"v1.tar.gz": after.data})
	}
}

func TestPullInPartsFromTheStore(t *testing.T) {
	for _, digests := range []bool{true, false} {
		b := randomBuild(20_000, `"v1"`)
		b.noDigest = !digests
		dir := withRanges(t, func(f *fake) {
			s := &redirecting{fakeSite: fakeSite{map[string]fakeBuild{"v1": b}, "v1"}, storeTag: `"store"`}
			s.odd = func(n int, w http.ResponseWriter, r *http.Request) bool {
				if n == 2 {
					s.builds["v1"].serve(cutAfter(w, 1000), r)
				}
				return false
			}
			s.run(f)
			f.run("pull", "shop", "@live").want(t, 0)
			for _, line := range f.hosts[storeHost].requests("Authorization", "If-Match") {
				if line != "GET /v1?signature=abc" {
					t.Errorf("the store got %s", line)
				}
			}
		})
		wantFiles(t, dir, map[string][]byte{"v1.tar.gz": b.data})
	}
}

func TestPullInPartsInterrupted(t *testing.T) {
	b := randomBuild(20_000, `"v1"`)
	dir := withRanges(t, func(f *fake) {
		ctx, cancel := context.WithCancel(f.ctx)
		f.ctx = ctx
		os.WriteFile("out", []byte("old"), 0o644)
		f.hosts[serviceHost].handle = onGet(b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 4 {
				b.serve(&cutWriter{w, 500, func() { cancel(); <-r.Context().Done() }}, r)
			}
			return false
		})
		if r := f.run("pull", "shop", "v1", "-o", "out").want(t, exitFailure); r.err.Error() != "interrupted" {
			t.Error(r.err)
		}
	})
	wantFiles(t, dir, map[string][]byte{"out": []byte("old")})
}
