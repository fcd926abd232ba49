//go:build integration

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// digestRig is a store of one kind, and the directory in which it keeps its bytes.
type digestRig struct {
	*realStore
	kind  string
	dir   string
	large int64 // size of the largest build of the tests
}

// eachDigestStore runs test on a fresh store of each kind: a directory and, of the object
// stores, one server for each protocol.
func eachDigestStore(t *testing.T, test func(t *testing.T, s *digestRig)) {
	for _, c := range []struct {
		kind, name string
		dirFlag    string // the argument of the server before its directory
		large      int64
	}{
		{"nfs", "directory", "", 1 << 30},
		{"s3", "versitygw", "posix", 1 << 30},
		{"azure", "azurite", "--location", 1 << 30},
		{"gcs", "fake-gcs", "-filesystem-root", 40 << 20}, // it is slow with more
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.kind == "nfs" {
				dir := t.TempDir()
				test(t, &digestRig{kind: c.kind, dir: dir, large: c.large, realStore: &realStore{name: c.name,
					env: map[string]string{"PAGEWRIGHT_STORAGE_BACKEND": "nfs", "PAGEWRIGHT_NFS_BASE_PATH": dir}}})
				return
			}
			s := realStores[c.name](t)
			test(t, &digestRig{kind: c.kind, dir: s.server.argv[slices.Index(s.server.argv, c.dirFlag)+1], large: c.large, realStore: s})
		})
	}
}

// replica starts a service on the store, with further variables as NAME=value.
func (s *digestRig) replica(t *testing.T, vars ...string) *storeServer {
	t.Helper()
	return s.replicaThrough(t, "", vars...)
}

// replicaThrough is replica with a proxy in front of the store.
func (s *digestRig) replicaThrough(t *testing.T, proxy string, vars ...string) *storeServer {
	t.Helper()
	env := map[string]string{}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		env[envPrefix+name] = value
	}
	return s.with(env).service(t, proxy)
}

// inventory lists what the store has of sites, by name, with its size and version.
func (s *digestRig) inventory(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	if s.kind == "nfs" {
		err := filepath.WalkDir(filepath.Join(s.dir, sitesDir), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && (d.IsDir() || d.Name() == lockName) {
				return nil
			}
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil {
				all[strings.TrimPrefix(path, s.dir+"/")] = fmt.Sprint(info.Size(), " ", info.ModTime())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	err := s.open(t, "").(*objectStore).bucket.list(context.Background(), "", func(page []objectInfo) error {
		for _, o := range page {
			if strings.Contains(o.key, sitesDir+"/") { // not the objects of the self-check
				all[o.key] = fmt.Sprint(o.size, " ", o.etag)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// named returns the names in the inventory that contain a text.
func (s *digestRig) named(t *testing.T, text string) (names []string) {
	t.Helper()
	for name := range s.inventory(t) {
		if strings.Contains(name, text) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// unchanged fails the test if the store does not hold exactly what it held before.
func (s *digestRig) unchanged(t *testing.T, before map[string]string) {
	t.Helper()
	if now := s.inventory(t); !maps.Equal(now, before) {
		t.Errorf("the store holds\n%v\nand before it held\n%v", now, before)
	}
}

// madeBody is a body that is made while it is read: noise, over and over, with one bit
// flipped. It hashes what was read.
type madeBody struct {
	n, at int64
	flip  int64 // position of the byte with the flipped bit; negative: none
	seed  int64 // bodies differ by it
	hash  hash.Hash
}

func newBody(n, seed, flip int64) *madeBody {
	return &madeBody{n: n, seed: seed, flip: flip, hash: sha256.New()}
}

func (m *madeBody) Size() int64 { return m.n }

func (m *madeBody) Read(p []byte) (int, error) {
	if m.at == m.n {
		return 0, io.EOF
	}
	all := noise()
	from := all[(m.at+4099*m.seed)%int64(len(all)):]
	n := copy(p[:min(int64(len(p)), m.n-m.at)], from)
	if at := m.flip - m.at; m.flip >= 0 && at >= 0 && at < int64(n) {
		p[at] ^= 1
	}
	m.at += int64(n)
	_, _ = m.hash.Write(p[:n])
	return n, nil
}

// sumOfBody returns the SHA-256 of a body without a flipped bit.
func sumOfBody(n, seed int64) Digest {
	m := newBody(n, seed, -1)
	_, _ = io.Copy(io.Discard, m)
	return Digest(m.hash.Sum(nil))
}

func member(algorithm string, sum []byte) string {
	return algorithm + "=:" + base64.StdEncoding.EncodeToString(sum) + ":"
}

func sha256Member(d Digest) string { return member("sha-256", d[:]) }

// reply is a response, of whose body only the beginning is kept.
type reply struct {
	status int
	header http.Header
	body   []byte
	n      int64
	sum    Digest // of the whole body
}

// expectClient waits for 100 Continue before it sends a body.
var expectClient = &http.Client{Timeout: 5 * time.Minute,
	Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64, ExpectContinueTimeout: 2 * time.Minute}}

// send sends a request. A body that is Sized is sent with Content-Length, another in chunks.
func send(service *storeServer, method, path string, body io.Reader, kv ...string) (*reply, error) {
	return sendTo(service.url(), method, path, body, kv...)
}

func sendTo(url, method, path string, body io.Reader, kv ...string) (*reply, error) {
	req, err := http.NewRequest(method, url+path, body)
	if err != nil {
		return nil, err
	}
	if b, ok := body.(Sized); ok {
		req.ContentLength = b.Size()
	}
	req.Header = header(kv...)
	resp, err := expectClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	h, kept := sha256.New(), &bytes.Buffer{}
	r := &reply{status: resp.StatusCode, header: resp.Header}
	r.n, err = io.Copy(io.MultiWriter(h, &limitedWriter{kept, 256 << 10}), resp.Body)
	r.body, r.sum = kept.Bytes(), Digest(h.Sum(nil))
	return r, err
}

// limitedWriter writes the first bytes, and drops the rest.
type limitedWriter struct {
	w    io.Writer
	left int
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// wanted is send that fails the test unless the response has the status.
func wanted(t *testing.T, status int, service *storeServer, method, path string, body io.Reader, kv ...string) *reply {
	t.Helper()
	r, err := send(service, method, path, body, kv...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	if r.status != status {
		t.Fatalf("%s %s: status %d, want %d: %.300s", method, path, r.status, status, r.body)
	}
	return r
}

// wantDigest fails the test unless the response has the digest, in its header and, if it is
// to an upload, in its body.
func (r *reply) wantDigest(t *testing.T, sum Digest) {
	t.Helper()
	if got := r.header.Get("Repr-Digest"); got != sha256Member(sum) {
		t.Errorf("Repr-Digest is %q, want %q (status %d)", got, sha256Member(sum), r.status)
	}
	var up struct{ Status, SHA256 string }
	if json.Unmarshal(r.body, &up) == nil && up.Status == "success" && up.SHA256 != sum.String() {
		t.Errorf("sha256 is %q, want %q: %s", up.SHA256, sum, r.body)
	}
}

// wantNoDigest fails the test if the response has a digest.
func (r *reply) wantNoDigest(t *testing.T) {
	t.Helper()
	if got, ok := r.header["Repr-Digest"]; ok {
		t.Errorf("Repr-Digest is %q, want none (status %d)", got, r.status)
	}
	if bytes.Contains(r.body, []byte(`"sha256"`)) {
		t.Errorf("a digest is in the body: %.300s", r.body)
	}
}

// wantMismatch fails the test unless the response names both digests.
func (r *reply) wantMismatch(t *testing.T, algorithm string, expected, got []byte) {
	t.Helper()
	var e struct{ Status, Error, Algorithm, Expected, Got string }
	if err := json.Unmarshal(r.body, &e); err != nil {
		t.Errorf("%v: %.300s", err, r.body)
	}
	if e.Status != "error" || e.Error == "" || e.Algorithm != algorithm || e.Expected != hex.EncodeToString(expected) || e.Got != hex.EncodeToString(got) {
		t.Errorf("the response is %s\nwant algorithm %s, expected %x, got %x", r.body, algorithm, expected, got)
	}
	r.wantNoDigest(t)
}

// before100 returns the first response to an upload whose client waits for it with
// Expect: 100-continue and sends no body.
func before100(t *testing.T, service *storeServer, path, header string) *reply {
	t.Helper()
	c := dial(t, service.addr)
	fmt.Fprintf(c, "PUT %s HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n%s\r\n", path, header)
	return readReply(t, bufio.NewReader(c))
}

// readReply reads the next response of a connection.
func readReply(t *testing.T, r *bufio.Reader) *reply {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == http.StatusContinue {
		return &reply{status: resp.StatusCode, header: resp.Header}
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Close { // net/http takes the header away
		resp.Header.Set("Connection", "close")
	}
	return &reply{status: resp.StatusCode, header: resp.Header, body: body}
}

// digestsOf returns the digests in a list of versions, by build.
func digestsOf(t *testing.T, list []byte) map[string]string {
	t.Helper()
	var body struct {
		Versions []struct {
			BuildID string `json:"build_id"`
			SHA256  string
		}
	}
	if err := json.Unmarshal(list, &body); err != nil {
		t.Fatalf("%v: %.300s", err, list)
	}
	sums := map[string]string{}
	for _, v := range body.Versions {
		sums[v.BuildID] = v.SHA256
	}
	return sums
}
