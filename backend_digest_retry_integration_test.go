//go:build integration

package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestRealStoresRepeatedUploads(t *testing.T) {
	eachDigestStore(t, func(t *testing.T, s *digestRig) {
		services := []*storeServer{s.replica(t), s.replica(t)}
		for _, c := range []struct {
			name string
			test func(t *testing.T, s *digestRig, services []*storeServer)
		}{
			{"conditions", rigRetryConditions},
			{"rights", rigRetryRights},
			{"connections", rigRetryConnections},
			{"unknown digest", rigRetryUnknown},
			{"race of the same bytes", func(t *testing.T, s *digestRig, services []*storeServer) { rigRetryRace(t, s, services, true) }},
			{"race of different bytes", func(t *testing.T, s *digestRig, services []*storeServer) { rigRetryRace(t, s, services, false) }},
		} {
			t.Run(c.name, func(t *testing.T) { c.test(t, s, services) })
		}
	})
}

// droppingProxy starts a proxy in front of a service that drops every nth response.
func droppingProxy(t *testing.T, to string, n int64, dropped *atomic.Int64) (url string) {
	var responses atomic.Int64
	return storeProxy(t, to, func(*http.Response) error {
		if responses.Add(1)%n == 0 {
			dropped.Add(1)
			panic(http.ErrAbortHandler)
		}
		return nil
	})
}

// rigRetryRace: 16 clients create one build over two replicas, and each repeats its upload until
// a response arrives. Of the same bytes, one upload is the first, and the others succeed. Of
// different bytes, one client succeeds.
func rigRetryRace(t *testing.T, s *digestRig, services []*storeServer, same bool) {
	const clients, tries = 16, 20
	dropped := &atomic.Int64{}
	through := []string{droppingProxy(t, services[0].url(), 5, dropped), droppingProxy(t, services[1].url(), 5, dropped)}
	for round, n := range []int64{100, 15 << 10, 15 << 10, 300_000, largeBody} {
		id := fmt.Sprintf("race%v%d", same, round)
		path := "/sites/race/artifacts/" + id
		var g sync.WaitGroup
		replies := make([]*reply, clients)
		for c := range clients {
			g.Go(func() {
				seed := int64(c)
				if same {
					seed = 1
				}
				for range tries {
					r, err := sendTo(through[c%2], "PUT", path, newBody(n, seed, -1), "If-None-Match", "*", "Repr-Digest", sha256Member(sumOfBody(n, seed)))
					if err == nil {
						replies[c] = r
						return
					}
				}
			})
		}
		g.Wait()
		statuses, winner := map[int]int{}, -1
		stored := wanted(t, 200, services[0], "GET", path, nil)
		for c, r := range replies {
			if r == nil {
				t.Fatalf("%s: client %d got no response in %d tries", id, c, tries)
			}
			statuses[r.status]++
			if r.status >= 300 {
				continue
			}
			winner = c
			r.wantDigest(t, stored.sum)
			if tag := r.header.Get("ETag"); tag == "" || tag != stored.header.Get("ETag") {
				t.Errorf("%s: client %d got %d with the ETag %q, and the build has %q", id, c, r.status, tag, stored.header.Get("ETag"))
			}
		}
		t.Logf("%d bytes: statuses %v, %d responses dropped so far", n, statuses, dropped.Load())
		if winner < 0 {
			t.Fatalf("%s: nobody succeeded", id)
		}
		seed := int64(winner)
		if same {
			seed = 1
		}
		if same && statuses[201]+statuses[200] != clients || !same && (statuses[201]+statuses[200] != 1 || statuses[412] != clients-1) || statuses[201] > 1 {
			t.Errorf("%s: the statuses are %v", id, statuses)
		}
		if want := sumOfBody(n, seed); stored.sum != want {
			t.Errorf("%s: the build has the digest %s, want %s", id, stored.sum, want)
		}
		stored.wantDigest(t, stored.sum)
		wanted(t, 200, services[1], "GET", path, nil).wantDigest(t, stored.sum)
		var artifacts []string
		for _, name := range s.named(t, id) {
			if strings.Contains(name, "/"+artifactsDir+"/") {
				artifacts = append(artifacts, name)
			}
		}
		if len(artifacts) != 1 {
			t.Errorf("%s: the store holds %q, want one build", id, artifacts)
		}
	}
	if dropped.Load() == 0 {
		t.Error("no response was dropped")
	}
}

// rigRetryConditions: only an upload that may not replace the build succeeds because the build
// has its digest.
func rigRetryConditions(t *testing.T, s *digestRig, services []*storeServer) {
	const n, path = 15 << 10, "/sites/repeat/artifacts/b"
	sum := sumOfBody(n, 1)
	first := wanted(t, 201, services[0], "PUT", path, newBody(n, 1, -1), "Repr-Digest", sha256Member(sum), "If-None-Match", "*")
	tag := first.header.Get("ETag")
	before := s.inventory(t)
	for _, c := range []struct {
		name   string
		status int
		header []string
	}{
		{"again", 200, []string{"If-None-Match", "*", "Repr-Digest", sha256Member(sum)}},
		{"Content-Digest", 200, []string{"If-None-Match", "*", "Content-Digest", sha256Member(sum)}},
		{"other bytes", 412, []string{"If-None-Match", "*", "Repr-Digest", sha256Member(sumOfBody(n, 2))}},
		{"no digest", 412, []string{"If-None-Match", "*"}},
		{"another algorithm", 412, []string{"If-None-Match", "*", "Repr-Digest", "md5=:AAAA:"}},
		{"its tag", 412, []string{"If-None-Match", tag, "Repr-Digest", sha256Member(sum)}},
		{"with If-Match", 412, []string{"If-None-Match", "*", "If-Match", tag, "Repr-Digest", sha256Member(sum)}},
		{"with If-Unmodified-Since", 412, []string{"If-None-Match", "*", "If-Unmodified-Since", "Fri, 01 Jan 2100 00:00:00 GMT", "Repr-Digest", sha256Member(sum)}},
	} {
		for i, service := range services {
			for _, how := range []string{"", "100-continue"} {
				t.Run(fmt.Sprintf("%s, replica %d, %s", c.name, i, how), func(t *testing.T) {
					kv := c.header
					if how != "" {
						kv = append(kv[:len(kv):len(kv)], "Expect", how)
					}
					r := wanted(t, c.status, service, "PUT", path, newBody(n, 1, -1), kv...)
					if c.status != 200 {
						r.wantNoDigest(t)
						return
					}
					r.wantDigest(t, sum)
					if r.header.Get("ETag") != tag {
						t.Errorf("the ETag is %q, want %q", r.header.Get("ETag"), tag)
					}
				})
			}
		}
	}
	s.unchanged(t, before)
	wanted(t, 201, services[1], "PUT", path, newBody(n, 1, -1), "Repr-Digest", sha256Member(sum)) // without a condition it is stored again
}

// rigRetryRights: append-only stores and clients that may only create.
func rigRetryRights(t *testing.T, s *digestRig, _ []*storeServer) {
	out, err := runWith([]string{"token", "new", "--name", "ci", "--allow", "create", "--sites", "rights"})
	token, entry, _ := strings.Cut(strings.TrimSpace(out), "\n")
	if err != nil || entry == "" {
		t.Fatal(out, err)
	}
	file := filepath.Join(t.TempDir(), "access.json")
	if err := os.WriteFile(file, []byte(`{"tokens": [`+entry+`]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		id, mode string
		refused  int
		header   []string
	}{
		{"append-only", "APPEND_ONLY=true", 409, nil},
		{"create", "ACCESS_FILE=" + file, 403, []string{"Authorization", "Bearer " + token}},
		{"both", "ACCESS_FILE=" + file, 403, []string{"Authorization", "Bearer " + token, "If-None-Match", "*"}},
	} {
		t.Run(c.id, func(t *testing.T) {
			service := s.replica(t, c.mode)
			for _, n := range []int64{15 << 10, largeBody} {
				path := fmt.Sprintf("/sites/rights/artifacts/%s%d", c.id, n)
				with := func(sum Digest, more ...string) []string {
					return append(append([]string{"Repr-Digest", sha256Member(sum)}, more...), c.header...)
				}
				sum := sumOfBody(n, 1)
				tag := wanted(t, 201, service, "PUT", path, newBody(n, 1, -1), with(sum)...).header.Get("ETag")
				before := s.inventory(t)
				for _, more := range [][]string{nil, {"Expect", "100-continue"}} {
					r := wanted(t, 200, service, "PUT", path, newBody(n, 1, -1), with(sum, more...)...)
					if r.wantDigest(t, sum); r.header.Get("ETag") != tag {
						t.Errorf("the ETag is %q, want %q", r.header.Get("ETag"), tag)
					}
					wanted(t, c.refused, service, "PUT", path, newBody(n, 2, -1), with(sumOfBody(n, 2), more...)...).wantNoDigest(t)
					wanted(t, c.refused, service, "PUT", path, newBody(n, 1, -1), append(more[:len(more):len(more)], c.header...)...).wantNoDigest(t)
				}
				s.unchanged(t, before)
			}
		})
	}
}

// rigRetryConnections: when the upload need not be sent, and whether its connection is kept. In
// any case, no byte of a body is taken for a request.
func rigRetryConnections(t *testing.T, s *digestRig, services []*storeServer) {
	for _, n := range []int64{15 << 10, 256 << 10, 256<<10 + 1, largeBody} {
		path := fmt.Sprintf("/sites/connections/artifacts/b%d", n)
		sum := sumOfBody(n, 1)
		wanted(t, 201, services[0], "PUT", path, newBody(n, 1, -1), "Repr-Digest", sha256Member(sum))
		for _, c := range []struct {
			name          string
			expect, early bool // Expect is sent; the body is sent before the response comes
			kept          bool // the connection must be kept, if the body is small
		}{
			{"waits", true, false, false},
			{"expects and does not wait", true, true, false},
			{"does not expect", false, true, true},
		} {
			t.Run(fmt.Sprintf("%d, %s", n, c.name), func(t *testing.T) {
				conn := dial(t, services[1].addr)
				head := fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nIf-None-Match: *\r\nRepr-Digest: %s\r\n", path, n, sha256Member(sum))
				if c.expect {
					head += "Expect: 100-continue\r\n"
				}
				fmt.Fprint(conn, head, "\r\n")
				r := bufio.NewReader(conn)
				var sent sync.WaitGroup
				if c.early {
					sent.Go(func() { _, _ = io.Copy(conn, newBody(n, 1, -1)) }) // fails if the connection is closed
				}
				got := readReply(t, r)
				if got.status != 200 {
					t.Fatalf("status %d, want 200: %s", got.status, got.body)
				}
				got.wantDigest(t, sum)
				closes := got.header.Get("Connection") == "close"
				if c.kept && closes != (n > 256<<10) {
					t.Errorf("Connection: close is %v", closes)
				}
				sent.Wait()
				if closes {
					_ = conn.CloseWrite()
					if rest, err := io.ReadAll(r); len(rest) > 0 {
						t.Errorf("after the response came %.100q, %v", rest, err)
					}
					return
				}
				if !c.early { // the client may send the body after a response that does not close
					_, _ = io.Copy(conn, newBody(n, 1, -1))
				}
				fmt.Fprintf(conn, "HEAD %s HTTP/1.1\r\nHost: h\r\n\r\n", path)
				resp, err := http.ReadResponse(r, &http.Request{Method: "HEAD"})
				if err != nil || resp.StatusCode != 200 || resp.ContentLength != n {
					t.Errorf("the next response of the connection is %v, %v", resp, err)
				}
			})
		}
	}
}

// rigRetryUnknown: the digest of a build that has none is computed once, from the bytes that are
// stored, and kept for all replicas.
func rigRetryUnknown(t *testing.T, s *digestRig, _ []*storeServer) {
	off := s.replica(t, "DIGEST=off")
	var reads atomic.Int64
	proxy := ""
	if s.server != nil {
		proxy = storeProxy(t, s.server.url(), func(resp *http.Response) error {
			if resp.Request.Method == http.MethodGet && resp.Header.Get("Content-Type") == artifactType && resp.StatusCode < 300 {
				reads.Add(1)
			}
			return nil
		})
	}
	for _, n := range []int64{15 << 10, largeBody} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			first, second := s.replicaThrough(t, proxy), s.replicaThrough(t, proxy)
			id := fmt.Sprint("u", n)
			path := "/sites/unknown/artifacts/" + id
			sum := sumOfBody(n, 1)
			wanted(t, 201, off, "PUT", path, newBody(n, 1, -1)).wantNoDigest(t)
			wanted(t, 200, first, "HEAD", path, nil).wantNoDigest(t)
			create := func(service *storeServer, status int, n, seed int64, kv ...string) *reply {
				kv = append(kv, "If-None-Match", "*", "Repr-Digest", sha256Member(sumOfBody(n, seed)))
				return wanted(t, status, service, "PUT", path, newBody(n, seed, -1), kv...)
			}
			reads.Store(0)
			create(first, 412, n+1, 1)
			if got := reads.Load(); got != 0 {
				t.Errorf("%d reads for an upload of another size", got)
			}
			var g sync.WaitGroup
			for i := range 8 {
				kv := [][]string{{"Expect", "100-continue"}, nil}[i%2]
				g.Go(func() {
					kv := append(kv[:len(kv):len(kv)], "If-None-Match", "*", "Repr-Digest", sha256Member(sum))
					if r, err := send(first, "PUT", path, newBody(n, 1, -1), kv...); err != nil || r.status != 200 {
						t.Errorf("%v, %+v, want 200", err, r)
					} else {
						r.wantDigest(t, sum)
					}
				})
			}
			g.Wait()
			create(first, 412, n, 2)
			create(second, 200, n, 1, "Expect", "100-continue").wantDigest(t, sum)
			create(second, 412, n, 2)
			if got := reads.Load(); s.server != nil && got != 1 {
				t.Errorf("the build was read %d times, want once", got)
			}
			for _, service := range []*storeServer{first, second, s.replica(t)} {
				wanted(t, 200, service, "HEAD", path, nil).wantDigest(t, sum)
			}
			if s.kind != "nfs" {
				return
			}
			// Of a file, reads cannot be counted: other bytes show whether it is read again.
			flipBit(t, filepath.Join(s.dir, sitesDir, "unknown", artifactsDir, id+artifactSuffix), 0, keepTime)
			create(s.replica(t), 200, n, 1).wantDigest(t, sum)
		})
	}
}
