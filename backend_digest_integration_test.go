//go:build integration

package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestRealStoresDigests(t *testing.T) {
	eachDigestStore(t, func(t *testing.T, s *digestRig) {
		service := s.replica(t)
		for _, c := range []struct {
			name string
			test func(t *testing.T, s *digestRig, service *storeServer)
		}{
			{"sizes", rigSizes},
			{"headers", rigHeaders},
			{"malformed", rigMalformed},
			{"cut", rigCut},
			{"reads", rigReads},
			{"stale", rigStale},
			{"modes", rigModes},
			{"replaced while read", rigReplacedWhileRead},
		} {
			t.Run(c.name, func(t *testing.T) { c.test(t, s, service) })
		}
	})
}

// rigSizes: a build with its digest is stored, and one of which a bit differs is not: the
// build before it stays, and nothing else is left.
func rigSizes(t *testing.T, s *digestRig, service *storeServer) {
	sizes := []int64{1, 15 << 10, 8 << 20}
	if !testing.Short() {
		sizes = append(sizes, s.large)
	}
	for _, n := range sizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			path := fmt.Sprintf("/sites/sizes/artifacts/b%d", n)
			sum := sumOfBody(n, 1)
			wanted(t, 201, service, "PUT", path, newBody(n, 1, -1), "Repr-Digest", sha256Member(sum)).wantDigest(t, sum)
			before := s.inventory(t)
			flips := slices.Compact([]int64{0, n / 2, n - 1})
			if n == s.large { // where the window of the reader behind splice(2) counts; each takes seconds
				flips = flips[len(flips)-1:]
			}
			for i, flip := range flips {
				bad := newBody(n, 1, flip)
				var sent io.Reader = bad
				if i == 1 {
					sent = struct{ io.Reader }{bad} // in chunks
				}
				wanted(t, 400, service, "PUT", path, sent, "Repr-Digest", sha256Member(sum)).wantMismatch(t, "sha-256", sum[:], bad.hash.Sum(nil))
				if n == s.large {
					continue
				}
				bad = newBody(n, 1, flip)
				wanted(t, 400, service, "PUT", path+"-new", bad, "Content-Digest", sha256Member(sum), "If-None-Match", "*").wantMismatch(t, "sha-256", sum[:], bad.hash.Sum(nil))
				wanted(t, 404, service, "GET", path+"-new", nil).wantNoDigest(t)
			}
			s.unchanged(t, before)
			r := wanted(t, 200, service, "GET", path, nil)
			r.wantDigest(t, sum)
			if r.sum != sum || r.n != n {
				t.Errorf("%d bytes with the digest %s came back, want %d with %s", r.n, r.sum, n, sum)
			}
			wanted(t, 204, service, "DELETE", path, nil)
			if names := s.named(t, fmt.Sprintf("b%d", n)); len(names) > 0 {
				t.Errorf("after the delete there is %q", names)
			}
		})
	}
}

// rigHeaders: each form of both headers, with Content-Length and in chunks, with and
// without Expect: a body that has the digests replaces the build, and another does not.
func rigHeaders(t *testing.T, s *digestRig, service *storeServer) {
	const n, path = 15 << 10, "/sites/headers/artifacts/b"
	for i, c := range []struct {
		name      string
		header    string // {256} and {512} stand for the members with the digests
		algorithm string // of the digest that a wrong body is said not to have
	}{
		{"Repr-Digest sha-256", "Repr-Digest: {256}", "sha-256"},
		{"Content-Digest sha-256", "Content-Digest: {256}", "sha-256"},
		{"Repr-Digest sha-512", "Repr-Digest: {512}", "sha-512"},
		{"Content-Digest sha-512", "Content-Digest: {512}", "sha-512"},
		{"both algorithms", "Repr-Digest: {512}, {256}", ""},
		{"both headers", "Repr-Digest: {256}\nContent-Digest: {256}", "sha-256"},
		{"both headers with one algorithm each", "Repr-Digest: {256}\nContent-Digest: {512}", ""},
		{"two lines", "Repr-Digest: {512}\nRepr-Digest: {256}", ""},
		{"a parameter", "Repr-Digest: {256};a=1", "sha-256"},
		{"other algorithms beside it", "Repr-Digest: md5=:AAAA:, unixsum=7, {256}, id-sha-256=?0", "sha-256"},
		{"an empty line beside it", "Repr-Digest:\nRepr-Digest: {256}", "sha-256"},
	} {
		for j, how := range []string{"length", "chunked", "expect", "chunked and expect"} {
			t.Run(c.name+", "+how, func(t *testing.T) {
				seed := int64(4*i + j)
				good, sum512 := make([]byte, n), [sha512.Size]byte{}
				_, _ = io.ReadFull(newBody(n, seed, -1), good)
				sum := Digest(sha256.Sum256(good))
				sum512 = sha512.Sum512(good)
				var kv []string
				for line := range strings.Lines(c.header) {
					name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
					kv = append(kv, name, strings.NewReplacer("{256}", sha256Member(sum), "{512}", member("sha-512", sum512[:])).Replace(strings.TrimSpace(value)))
				}
				if strings.Contains(how, "expect") {
					kv = append(kv, "Expect", "100-continue")
				}
				as := func(m *madeBody) io.Reader {
					if strings.Contains(how, "chunked") {
						return struct{ io.Reader }{m}
					}
					return m
				}
				wanted(t, 201, service, "PUT", path, as(newBody(n, seed, -1)), kv...).wantDigest(t, sum)
				before := s.inventory(t)
				bad := newBody(n, seed, n/2)
				r := wanted(t, 400, service, "PUT", path, as(bad), kv...)
				if good[n/2] ^= 1; c.algorithm == "sha-512" {
					got := sha512.Sum512(good)
					r.wantMismatch(t, "sha-512", sum512[:], got[:])
				} else if c.algorithm == "sha-256" {
					r.wantMismatch(t, "sha-256", sum[:], bad.hash.Sum(nil))
				}
				s.unchanged(t, before)
				wanted(t, 200, service, "GET", path, nil).wantDigest(t, sum)
			})
		}
	}
	t.Run("only other algorithms", func(t *testing.T) {
		wanted(t, 201, service, "PUT", path, newBody(n, 200, -1), "Repr-Digest", "md5=:AAAA:", "Content-Digest", "crc32c=1").wantNoDigest(t)
		wanted(t, 200, service, "GET", path, nil).wantNoDigest(t)
	})
	t.Run("one of the two is wrong", func(t *testing.T) {
		good := newBody(n, 201, -1)
		_, _ = io.Copy(io.Discard, good)
		sum := Digest(good.hash.Sum(nil))
		before := s.inventory(t)
		wanted(t, 400, service, "PUT", path, newBody(n, 201, -1), "Repr-Digest", sha256Member(sum)+", "+member("sha-512", make([]byte, 64)))
		wanted(t, 400, service, "PUT", path, newBody(n, 201, -1), "Repr-Digest", sha256Member(sum), "Content-Digest", member("sha-512", make([]byte, 64)))
		for _, values := range [][2]Digest{{sum, {1}}, {{1}, sum}} { // which need no body to be refused
			r := before100(t, service, path, fmt.Sprintf("Content-Length: %d\r\nRepr-Digest: %s\r\nContent-Digest: %s\r\n", n, sha256Member(values[0]), sha256Member(values[1])))
			if r.status != 400 {
				t.Errorf("two digests that differ: status %d, want 400: %s", r.status, r.body)
			}
		}
		s.unchanged(t, before)
	})
}

// rigMalformed: what is no digest is refused before the body is asked for, and the error
// names the header.
func rigMalformed(t *testing.T, s *digestRig, service *storeServer) {
	const path = "/sites/malformed/artifacts/b"
	sum := sumOfBody(10, 1)
	wanted(t, 201, service, "PUT", path, newBody(10, 1, -1), "Repr-Digest", sha256Member(sum))
	before := s.inventory(t)
	b64 := base64.StdEncoding.EncodeToString(sum[:])
	for _, value := range []string{
		"sha-256=" + b64, "sha-256=\"" + b64 + "\"", "sha-256=:" + b64, "sha-256=:" + b64[:8] + ":", "sha-256=::", "sha-256",
		"sha-256=?1", "sha-256=1", "sha-256=(:" + b64 + ":)", "sha-256=:%%%%:", "sha-256=:" + sum.String() + ":", "SHA-256=:" + b64 + ":",
		"sha-256=:" + b64 + ":,", ",sha-256=:" + b64 + ":", "sha-256 =:" + b64 + ":", ":" + b64 + ":", "sha-512=:" + b64 + ":",
		"sha-256=:" + b64 + ":, sha-512=:AAAA:", "md5=:AAAA", "sha-256=:" + b64 + ": sha-512", b64, sum.String(),
	} {
		for _, name := range []string{"Repr-Digest", "Content-Digest"} {
			t.Run(name+": "+value, func(t *testing.T) {
				r := before100(t, service, path, "Content-Length: 10\r\n"+name+": "+value+"\r\n")
				if r.status != 400 || !bytes.Contains(r.body, []byte(name)) {
					t.Errorf("status %d, want 400 with %s in %s", r.status, name, r.body)
				}
			})
		}
	}
	for _, name := range []string{"Repr-Digest", "Content-Digest"} {
		t.Run(name+" as a trailer", func(t *testing.T) {
			if r := before100(t, service, path, "Transfer-Encoding: chunked\r\nTrailer: "+name+"\r\n"); r.status != 400 || !bytes.Contains(r.body, []byte("header")) {
				t.Errorf("status %d, want 400 that says to send it as a header: %s", r.status, r.body)
			}
		})
	}
	s.unchanged(t, before)
}

// rigCut: an upload that ends early stores nothing, whatever its digest is.
func rigCut(t *testing.T, s *digestRig, service *storeServer) {
	for _, n := range []int64{15 << 10, largeBody} {
		old := fmt.Sprintf("/sites/cut/artifacts/old%d", n)
		sum := sumOfBody(n, 1)
		wanted(t, 201, service, "PUT", old, newBody(n, 1, -1), "Repr-Digest", sha256Member(sum))
		half := newBody(n/2, 1, -1)
		_, _ = io.Copy(io.Discard, half)
		halfSum := Digest(half.hash.Sum(nil)) // of the bytes that arrive
		before := s.inventory(t)
		for _, path := range []string{old, fmt.Sprintf("/sites/cut/artifacts/new%d", n)} {
			for _, framing := range []string{fmt.Sprintf("Content-Length: %d", n), "Transfer-Encoding: chunked"} {
				for _, announced := range []Digest{sum, halfSum} {
					t.Run(fmt.Sprintf("%s, %s, %.8s", path, framing, announced), func(t *testing.T) {
						c := dial(t, service.addr)
						fmt.Fprintf(c, "PUT %s HTTP/1.1\r\nHost: h\r\n%s\r\nRepr-Digest: %s\r\n\r\n", path, framing, sha256Member(announced))
						if framing[0] == 'T' {
							fmt.Fprintf(c, "%x\r\n", n/2)
						}
						if _, err := io.Copy(c, newBody(n/2, 1, -1)); err != nil {
							t.Fatal(err)
						}
						_ = c.CloseWrite()
						if got, _ := io.ReadAll(c); len(got) > 0 && !bytes.HasPrefix(got, []byte("HTTP/1.1 400 ")) {
							t.Errorf("the response is %.100s", got)
						}
						s.unchanged(t, before)
					})
				}
			}
		}
		wanted(t, 200, service, "GET", old, nil).wantDigest(t, sum)
	}
}

// rigReads: which responses have the digest.
func rigReads(t *testing.T, s *digestRig, service *storeServer) {
	other := s.replica(t)
	for _, n := range []int64{15 << 10, largeBody} {
		path := fmt.Sprintf("/sites/reads/artifacts/b%d", n)
		sum := sumOfBody(n, 1)
		tag := wanted(t, 201, service, "PUT", path, newBody(n, 1, -1), "Repr-Digest", sha256Member(sum)).header.Get("ETag")
		for _, c := range []struct {
			method string
			status int
			digest bool
			header []string
		}{
			{"GET", 200, true, nil},
			{"HEAD", 200, true, nil},
			{"GET", 206, true, []string{"Range", "bytes=0-0"}},
			{"GET", 206, true, []string{"Range", "bytes=-100"}},
			{"GET", 206, true, []string{"Range", "bytes=100-9999", "If-Range", tag}},
			{"GET", 200, true, []string{"Range", "bytes=100-9999", "If-Range", `"a"`}},
			{"GET", 200, true, []string{"If-Match", tag}},
			{"GET", 304, false, []string{"If-None-Match", tag}},
			{"HEAD", 304, false, []string{"If-None-Match", tag}},
			{"GET", 412, false, []string{"If-Match", `"a"`}},
			{"GET", 416, false, []string{"Range", "bytes=99999999-"}},
		} {
			for _, from := range []*storeServer{service, other} {
				r := wanted(t, c.status, from, c.method, path, nil, c.header...)
				if c.digest {
					r.wantDigest(t, sum)
				} else {
					r.wantNoDigest(t)
				}
				if c.status == 200 && c.method == "GET" && r.sum != sum {
					t.Errorf("%v: the bytes have the digest %s, want %s", c, r.sum, sum)
				}
			}
		}
		wanted(t, 404, service, "GET", path+"-absent", nil).wantNoDigest(t)
	}
	wanted(t, 201, service, "PUT", "/sites/reads/artifacts/none", newBody(10, 1, -1)).wantNoDigest(t)
	wanted(t, 200, service, "GET", "/sites/reads/artifacts/none", nil).wantNoDigest(t)
	wanted(t, 201, service, "POST", "/sites/reads/logs", strings.NewReader(`{"build_id":"only-a-log","action":"a","status":"s"}`))

	want := map[string]string{"none": "", "only-a-log": "", fmt.Sprint("b", 15<<10): sumOfBody(15<<10, 1).String(), fmt.Sprint("b", largeBody): sumOfBody(largeBody, 1).String()}
	for _, from := range []*storeServer{service, other} {
		plain := wanted(t, 200, from, "GET", "/sites/reads/versions", nil)
		plain.wantNoDigest(t)
		with := wanted(t, 200, from, "GET", "/sites/reads/versions?digest=true", nil)
		if got := digestsOf(t, with.body); !maps.Equal(got, want) {
			t.Errorf("the list has %v, want %v", got, want)
		}
		if plain.header.Get("ETag") == with.header.Get("ETag") {
			t.Error("the lists with and without digests have one ETag")
		}
		wanted(t, 304, from, "GET", "/sites/reads/versions?digest=true", nil, "If-None-Match", with.header.Get("ETag"))
		paged := map[string]string{}
		for cursor, pages := "", 0; pages == 0 || cursor != ""; pages++ {
			query := "?digest=true&metadata=false&limit=1"
			if cursor != "" {
				query += "&cursor=" + cursor
			}
			r := wanted(t, 200, from, "GET", "/sites/reads/versions"+query, nil)
			maps.Copy(paged, digestsOf(t, r.body))
			var page struct {
				Next string `json:"next_cursor"`
			}
			if err := json.Unmarshal(r.body, &page); err != nil || pages > 4 {
				t.Fatal(pages, err)
			}
			cursor = page.Next
		}
		if !maps.Equal(paged, want) {
			t.Errorf("the pages have %v, want %v", paged, want)
		}
	}
}

// rigStale: the digest of a build that was replaced without one, or deleted, is served by
// no replica.
func rigStale(t *testing.T, s *digestRig, service *storeServer) {
	off, other := s.replica(t, "DIGEST=off"), s.replica(t)
	for i, by := range []*storeServer{service, other, off} {
		for _, n := range []int64{100, 15 << 10, largeBody} {
			path := fmt.Sprintf("/sites/stale/artifacts/b%d-%d", i, n)
			sum := sumOfBody(n, 1)
			wanted(t, 201, service, "PUT", path, newBody(n, 1, -1), "Repr-Digest", sha256Member(sum))
			for _, from := range []*storeServer{service, other} { // they may remember it
				wanted(t, 200, from, "GET", path, nil).wantDigest(t, sum)
			}
			wanted(t, 200, off, "GET", path, nil).wantNoDigest(t)
			wanted(t, 201, by, "PUT", path, newBody(n, 2, -1)).wantNoDigest(t) // of the same size
			for _, from := range []*storeServer{service, other, off} {
				wanted(t, 200, from, "GET", path, nil).wantNoDigest(t)
				wanted(t, 200, from, "HEAD", path, nil).wantNoDigest(t)
				if got := digestsOf(t, wanted(t, 200, from, "GET", "/sites/stale/versions?digest=true", nil).body); got[strings.TrimPrefix(path, "/sites/stale/artifacts/")] != "" {
					t.Errorf("%s: the list has a stale digest: %v", path, got)
				}
			}
			// With a digest again, and no longer unknown anywhere.
			wanted(t, 201, service, "PUT", path, newBody(n, 3, -1), "Repr-Digest", sha256Member(sumOfBody(n, 3)))
			wanted(t, 200, service, "GET", path, nil).wantDigest(t, sumOfBody(n, 3))
			wanted(t, 204, by, "DELETE", path, nil)
			wanted(t, 404, other, "GET", path, nil).wantNoDigest(t)
			wanted(t, 201, other, "PUT", path, newBody(n, 4, -1))
			wanted(t, 200, service, "GET", path, nil).wantNoDigest(t)
		}
	}
}

// rigModes: what PAGEWRIGHT_DIGEST and PAGEWRIGHT_REQUIRE_DIGEST do.
func rigModes(t *testing.T, s *digestRig, service *storeServer) {
	t.Run("always", func(t *testing.T) {
		always := s.replica(t, "DIGEST=always")
		for _, n := range []int64{1, 15 << 10, largeBody} {
			for i, sent := range []io.Reader{newBody(n, 5, -1), struct{ io.Reader }{newBody(n, 5, -1)}} {
				path := fmt.Sprintf("/sites/modes/artifacts/always%d-%d", n, i)
				wanted(t, 201, always, "PUT", path, sent).wantDigest(t, sumOfBody(n, 5))
				wanted(t, 200, always, "GET", path, nil).wantDigest(t, sumOfBody(n, 5))
				wanted(t, 200, service, "GET", path, nil).wantDigest(t, sumOfBody(n, 5))
				if got := digestsOf(t, wanted(t, 200, service, "GET", "/sites/modes/versions?digest=true", nil).body)[strings.TrimPrefix(path, "/sites/modes/artifacts/")]; got != sumOfBody(n, 5).String() {
					t.Errorf("%s: the list has %q", path, got)
				}
				// Replaced without a digest: what is kept is that of another build.
				wanted(t, 201, service, "PUT", path, newBody(n, 6, -1)).wantNoDigest(t)
				for _, from := range []*storeServer{service, always, s.replica(t)} {
					wanted(t, 200, from, "GET", path, nil).wantNoDigest(t)
				}
				wanted(t, 201, always, "PUT", path, newBody(n, 7, -1)).wantDigest(t, sumOfBody(n, 7))
				wanted(t, 204, always, "DELETE", path, nil)
				if names := s.named(t, path[strings.LastIndexByte(path, '/')+1:]); len(names) > 0 {
					t.Errorf("after the delete there is %q", names)
				}
			}
		}
	})
	t.Run("required", func(t *testing.T) {
		required, before := s.replica(t, "REQUIRE_DIGEST=true"), s.inventory(t)
		const path = "/sites/modes/artifacts/required"
		for _, header := range []string{"", "Repr-Digest: md5=:AAAA:\r\n", "Content-Digest:\r\n"} {
			r := before100(t, required, path, "Content-Length: 10\r\n"+header)
			if r.status != 400 || r.header.Get("Want-Repr-Digest") != "sha-256=10" {
				t.Errorf("%q: status %d, Want-Repr-Digest %q, want 400: %s", header, r.status, r.header.Get("Want-Repr-Digest"), r.body)
			}
		}
		s.unchanged(t, before)
		wanted(t, 201, required, "PUT", path, newBody(10, 6, -1), "Repr-Digest", sha256Member(sumOfBody(10, 6))).wantDigest(t, sumOfBody(10, 6))
		sum := sha512.Sum512(body(10, 6))
		wanted(t, 201, required, "PUT", path, newBody(10, 6, -1), "Content-Digest", member("sha-512", sum[:])).wantDigest(t, sumOfBody(10, 6))
	})
	t.Run("off", func(t *testing.T) {
		off := s.replica(t, "DIGEST=off")
		const path = "/sites/modes/artifacts/off"
		for _, value := range []string{sha256Member(sumOfBody(10, 7)), sha256Member(Digest{1}), "malformed"} {
			wanted(t, 201, off, "PUT", path, newBody(10, 7, -1), "Repr-Digest", value).wantNoDigest(t)
			wanted(t, 200, off, "GET", path, nil).wantNoDigest(t)
			wanted(t, 200, service, "GET", path, nil).wantNoDigest(t)
		}
		wanted(t, 412, off, "PUT", path, newBody(10, 7, -1), "Repr-Digest", sha256Member(sumOfBody(10, 7)), "If-None-Match", "*").wantNoDigest(t)
		if names := s.named(t, "digests"); slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, "off") }) {
			t.Errorf("a digest is kept: %q", names)
		}
	})
}
