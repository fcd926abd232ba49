//go:build integration

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// rigReplacedWhileRead: the digest of each download is that of its bytes, while four
// writers, one of them without a digest, replace the build over two replicas.
func rigReplacedWhileRead(t *testing.T, s *digestRig, service *storeServer) {
	replaceWhileRead(t, []*storeServer{service, s.replica(t)}, nil)
}

// replaceWhileRead reads a build over two replicas while it is replaced over them and, if
// it is not nil, over one that knows nothing of digests.
func replaceWhileRead(t *testing.T, services []*storeServer, unaware *storeServer) {
	const path = "/sites/replaced/artifacts/b"
	for _, sizes := range [][]int64{{4 << 10, 4 << 10}, {300_000, 15 << 10}, {largeBody, 9 << 20}} {
		t.Run(fmt.Sprint(sizes[0]), func(t *testing.T) {
			wanted(t, 201, services[0], "PUT", path, newBody(sizes[0], 9, -1), "Repr-Digest", sha256Member(sumOfBody(sizes[0], 9)))
			minReads, minWrites := int64(400), int64(60)
			if sizes[0] == largeBody {
				minReads, minWrites = 40, 16
			}
			var done, known, partial, wrong, writes atomic.Int64
			var g sync.WaitGroup
			stop := make(chan struct{})
			for w := range 4 {
				g.Go(func() {
					for i := int64(0); ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						n, seed := sizes[(i+int64(w))%2], (4*i+int64(w))%40
						service, kv := services[w%2], []string(nil)
						if w > 0 {
							kv = []string{"Repr-Digest", sha256Member(sumOfBody(n, seed))}
						} else if unaware != nil {
							service = unaware
						}
						r, err := send(service, "PUT", path, newBody(n, seed, -1), kv...)
						if err != nil || r.status != 201 && r.status != 503 {
							t.Errorf("PUT: %v, %+v", err, r)
							return
						}
						writes.Add(1)
					}
				})
			}
			var readers sync.WaitGroup
			for w := range 4 {
				readers.Go(func() {
					for (done.Add(1) <= minReads || writes.Load() < minWrites) && !t.Failed() {
						r, err := send(services[w/2], "GET", path, nil)
						if err != nil || r.status != 200 {
							partial.Add(1) // an object store may drop what is replaced
							continue
						}
						got := r.header.Get("Repr-Digest")
						if got != "" {
							known.Add(1)
						}
						if got != "" && got != sha256Member(r.sum) {
							wrong.Add(1)
							t.Errorf("Repr-Digest is %s, and that of the %d bytes is %s", got, r.n, sha256Member(r.sum))
						}
					}
				})
			}
			readers.Wait()
			close(stop)
			g.Wait()
			t.Logf("%d downloads during %d uploads: %d with a digest, %d wrong, %d ended early", done.Load(), writes.Load(), known.Load(), wrong.Load(), partial.Load())
			if known.Load() == 0 {
				t.Error("no download had a digest")
			}
			if partial.Load() > done.Load()/10 {
				t.Errorf("%d of %d downloads ended early", partial.Load(), done.Load())
			}
			// At rest, each replica knows the digest of the last upload.
			last := sumOfBody(sizes[1], 50)
			wanted(t, 201, services[0], "PUT", path, newBody(sizes[1], 50, -1), "Repr-Digest", sha256Member(last))
			for _, from := range services {
				wanted(t, 200, from, "GET", path, nil).wantDigest(t, last)
			}
		})
	}
}

// beforeDigests is the last commit whose program knows nothing of digests.
const beforeDigests = "acf214d"

// oldReplica starts a service of the version before digests. If the history of this tree is
// not there, it starts one that ignores digests.
func oldReplica(t *testing.T, s *digestRig) *storeServer {
	t.Helper()
	archive, err := exec.Command("git", "archive", beforeDigests).Output()
	if err != nil {
		t.Logf("the version before digests cannot be built, since git archive %s fails: %v", beforeDigests, err)
		return s.replica(t, "DIGEST=off")
	}
	dir := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		var data []byte
		if err == nil {
			data, err = io.ReadAll(r)
		}
		if err == nil && h.Typeflag == tar.TypeReg && !strings.Contains(h.Name, "/") { // the program is flat
			err = os.WriteFile(filepath.Join(dir, h.Name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-tags", "disable_grpc_modules,no_s3,no_azure,no_gcs", "-o", "old", ".")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build %s: %v\n%s", beforeDigests, err, out)
	}
	return startProcess(t, "/health", append(s.environ(""), "PAGEWRIGHT_LISTEN=127.0.0.1", "PAGEWRIGHT_PORT={port}", "PAGEWRIGHT_ACCESS_LOG=false"),
		[]string{filepath.Join(dir, "old")})
}

// A replica of the version before digests works on the same directory: what it replaces or
// deletes has no digest afterwards, and never that of the build before.
func TestIntegrationDigestsBesideAnOldReplica(t *testing.T) {
	dir := t.TempDir()
	s := &digestRig{kind: "nfs", dir: dir, realStore: &realStore{env: map[string]string{"PAGEWRIGHT_NFS_BASE_PATH": dir}}}
	old := oldReplica(t, s)
	services := []*storeServer{s.replica(t), s.replica(t)}
	for _, n := range []int64{100, 15 << 10, largeBody} {
		path := fmt.Sprintf("/sites/old/artifacts/b%d", n)
		none := func(status int) {
			for _, service := range services {
				wanted(t, status, service, "GET", path, nil).wantNoDigest(t)
				if got := digestsOf(t, wanted(t, 200, service, "GET", "/sites/old/versions?digest=true", nil).body)[fmt.Sprint("b", n)]; got != "" {
					t.Errorf("the list has the digest %s", got)
				}
			}
		}
		store := func(seed int64) {
			wanted(t, 201, services[0], "PUT", path, newBody(n, seed, -1), "Repr-Digest", sha256Member(sumOfBody(n, seed)))
			for _, service := range services {
				wanted(t, 200, service, "GET", path, nil).wantDigest(t, sumOfBody(n, seed))
			}
		}
		store(1)
		wanted(t, 201, old, "PUT", path, newBody(n, 2, -1)) // of the same size
		none(200)
		store(3)
		wanted(t, 204, old, "DELETE", path, nil)
		none(404)
		wanted(t, 201, old, "PUT", path, newBody(n, 4, -1))
		none(200)
		create := []string{"If-None-Match", "*", "Repr-Digest", sha256Member(sumOfBody(n, 3))}
		wanted(t, 412, services[0], "PUT", path, newBody(n, 3, -1), create...) // the digest that is there no more
		store(5)
	}
	replaceWhileRead(t, services, old)
}
