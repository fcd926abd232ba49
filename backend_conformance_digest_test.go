package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// digestStore is a store under test that keeps digests.
type digestStore interface {
	store
	ArtifactStater
	DigestKeeper
	SiteLister
	ForeignLister
	StatusKeeper
}

// testDigests is the contract of the stores that keep digests, with a subtest for each of its
// sentences. Each call of open opens the same store as another process would; testDigests
// turns its digests on.
func testDigests(t *testing.T, open func(t *testing.T) Backend) {
	for _, c := range []struct {
		sentence string
		test     func(t *testing.T, open func() digestStore)
	}{
		{"the digest of a hashed upload is kept", testDigestKept},
		{"the digest of a body that is not hashed is unknown", testDigestNotHashed},
		{"a body with another digest stores nothing", testDigestMismatch},
		{"a replaced build has the digest of the new bytes or none", testDigestReplaced},
		{"a deleted build leaves no digest to the next one", testDigestDeleted},
		{"create only keeps the digest of the winner", testDigestCreateOnly},
		{"a digest belongs to the bytes that are read", testDigestWhileReplaced},
		{"a digest can be kept later", testKeepDigest},
		{"a digest is only kept for the artifact it was computed from", testKeepDigestReplaced},
		{"a kept digest says what it is bound to", testKeptDigest},
		{"digests are listed in the order of the versions", testListDigests},
		{"sites with a build or a log are listed in order", testListSites},
		{"sites are listed by their ids", testListWantedSites},
		{"the service does not take its own files for foreign", testNoForeignFiles},
		{"a status is read as it was written last", testStatus},
	} {
		t.Run(strings.ReplaceAll(c.sentence, " ", "_"), func(t *testing.T) {
			c.test(t, func() digestStore {
				t.Helper()
				b, ok := open(t).(interface {
					digestStore
					useDigests()
				})
				if !ok {
					t.Fatal("the backend lacks a part of the interface")
				}
				b.useDigests()
				return b
			})
		})
	}
}

// hashing is a reader that hashes, as the body of a request does.
type hashing struct {
	r    io.Reader
	hash hash.Hash
	want Digest // zero: the client announced none
	sum  Digest
}

// sizedHashing is a hashing that knows its size.
type sizedHashing struct {
	*hashing
	size int64
}

func (h sizedHashing) Size() int64 { return h.size }

func (h *hashing) Hashes() bool      { return true }
func (h *hashing) Announced() Digest { return h.want }
func (h *hashing) Sum() Digest       { return h.sum }
func (h *hashing) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.hash.Write(p[:n])
	if err == io.EOF {
		sum := Digest(h.hash.Sum(nil))
		if h.want.known() && sum != h.want {
			return n, &digestError{"sha-256", h.want[:], sum[:]}
		}
		h.sum = sum
	}
	return n, err
}

// announcedBody is the body of a client that sends a digest, and hashedBody that of another one
// with PAGEWRIGHT_DIGEST=always.
func announcedBody(b []byte, want Digest) io.Reader {
	return sizedHashing{&hashing{r: bytes.NewReader(b), hash: sha256.New(), want: want}, int64(len(b))}
}

func hashedBody(b []byte) io.Reader { return announcedBody(b, Digest{}) }
func chunkedHashed(b []byte) io.Reader {
	return &hashing{r: bytes.NewReader(b), hash: sha256.New()}
}

func digestOfBytes(b []byte) Digest { return sha256.Sum256(b) }

// wantDigest requires that b describes the build with that digest, in every way.
func wantDigest(t *testing.T, b digestStore, site, id string, want Digest) {
	t.Helper()
	info, err := b.StatArtifact(site, id)
	if err != nil || info.SHA256 != want {
		t.Errorf("StatArtifact: the digest is %q, %v, want %q", info.SHA256, err, want)
	}
	r, err := b.FetchArtifact(site, id)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if a, ok := r.(ArtifactReader); ok && a.Info().SHA256 != want {
		t.Errorf("FetchArtifact: the digest is %q, want %q", a.Info().SHA256, want)
	}
	v := versionOf(t, b, site, id)
	if sums, err := b.ListDigests(site, []*Version{v}); err != nil || sums[0] != want {
		t.Errorf("ListDigests: %q, %v, want %q", sums, err, want)
	}
}

func testDigestKept(t *testing.T, open func() digestStore) {
	one, two, site := open(), open(), newSite()
	for i, n := range []int{1, 4096, 15 << 10, largeBody} {
		data := body(n, byte(i))
		sum := digestOfBytes(data)
		for name, r := range map[string]io.Reader{"announced": announcedBody(data, sum), "hashed": hashedBody(data), "chunked": chunkedHashed(data)} {
			id := fmt.Sprint(name, "-", n)
			info, err := one.StoreArtifactIf(site, id, r, Precondition{})
			if err != nil || info.SHA256 != sum {
				t.Fatalf("%s: %q, %v", id, info.SHA256, err)
			}
			for _, b := range []digestStore{one, two, open()} {
				wantDigest(t, b, site, id, sum)
				wantBytes(t, b, site, id, data)
			}
		}
	}
	id := "A0._+~=@-" // every other allowed character
	sum := digestOfBytes([]byte("x"))
	if _, err := one.StoreArtifactIf(site, id, hashedBody([]byte("x")), Precondition{}); err != nil {
		t.Fatal(err)
	}
	wantDigest(t, open(), site, id, sum)
}

func testDigestNotHashed(t *testing.T, open func() digestStore) {
	one, site := open(), newSite()
	if info := mustStoreIf(t, one, site, "b", body(100, 1), Precondition{}); info.SHA256.known() {
		t.Errorf("an upload returns %q", info.SHA256)
	}
	wantDigest(t, one, site, "b", Digest{})
	wantDigest(t, open(), site, "b", Digest{})
}

func testDigestMismatch(t *testing.T, open func() digestStore) {
	one, site := open(), newSite()
	for i, n := range []int{1, 15 << 10, largeBody} {
		old, other := body(n, 1), body(n, 2)
		id := fmt.Sprint("b", i)
		_, err := one.StoreArtifactIf(site, id, announcedBody(old, digestOfBytes(other)), Precondition{})
		wantError(t, err, errDigest)
		if _, err := one.StatArtifact(site, id); !errors.Is(err, ErrNotFound) {
			t.Errorf("%d bytes: the build is there: %v", n, err)
		}
		if _, err := one.StoreArtifactIf(site, id, announcedBody(old, digestOfBytes(old)), Precondition{}); err != nil {
			t.Fatal(err)
		}
		_, err = one.StoreArtifactIf(site, id, announcedBody(other, digestOfBytes(old)), Precondition{})
		wantError(t, err, errDigest)
		wantBytes(t, one, site, id, old)
		wantDigest(t, open(), site, id, digestOfBytes(old))
	}
}

func testDigestReplaced(t *testing.T, open func() digestStore) {
	one, two, site := open(), open(), newSite()
	for i, n := range []int{100, 100, largeBody} { // one size: only the time differs
		data, hash := body(n, byte(i)), i%2 == 0
		r, want := known(data), Digest{}
		if hash {
			r, want = hashedBody(data), digestOfBytes(data)
		}
		if _, err := one.StoreArtifactIf(site, "b", r, Precondition{}); err != nil {
			t.Fatal(err)
		}
		for _, b := range []digestStore{one, two, open()} {
			wantDigest(t, b, site, "b", want)
		}
	}
}

func testDigestDeleted(t *testing.T, open func() digestStore) {
	one, site := open(), newSite()
	if _, err := one.StoreArtifactIf(site, "b", hashedBody(body(100, 1)), Precondition{}); err != nil {
		t.Fatal(err)
	}
	if err := one.DeleteArtifact(site, "b", Precondition{}); err != nil {
		t.Fatal(err)
	}
	if _, err := one.KeptDigest(site, "b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a digest is kept: %v", err)
	}
	mustStore(t, one, site, "b", body(100, 2))
	wantDigest(t, one, site, "b", Digest{})
	wantDigest(t, open(), site, "b", Digest{})
}

func testDigestCreateOnly(t *testing.T, open func() digestStore) {
	one, two, site := open(), open(), newSite()
	var g sync.WaitGroup
	for i := range 8 {
		g.Go(func() {
			_, err := []digestStore{one, two}[i%2].StoreArtifactIf(site, "b", hashedBody(body(1000, byte(i))), createOnly)
			if err != nil && !errors.Is(err, ErrPrecondition) {
				t.Error(err)
			}
		})
	}
	g.Wait()
	data, err := fetch(one, site, "b")
	if err != nil {
		t.Fatal(err)
	}
	wantDigest(t, open(), site, "b", digestOfBytes(data))
}

// Writers replace the build through two processes, every second time without a digest.
func testDigestWhileReplaced(t *testing.T, open func() digestStore) {
	one, two, site := open(), open(), newSite()
	mustStore(t, one, site, "b", body(3000, 0))
	var writers, readers sync.WaitGroup
	done := make(chan struct{})
	for i, b := range []digestStore{one, two} {
		writers.Go(func() {
			for j := range 20 {
				data := body(3000, byte(1+20*i+j))
				r := known(data)
				if j%2 == 0 {
					r = hashedBody(data)
				}
				if _, err := b.StoreArtifactIf(site, "b", r, Precondition{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	known := 0
	readers.Go(func() {
		for stop := false; !stop; {
			select {
			case <-done:
				stop = true // once more
			default:
			}
			r, err := open().FetchArtifact(site, "b")
			if err != nil {
				t.Error(err)
				return
			}
			data, err := io.ReadAll(r)
			r.Close()
			if err != nil {
				t.Error(err)
				return
			}
			a, ok := r.(ArtifactReader)
			if ok && a.Info().SHA256.known() {
				known++
				if a.Info().SHA256 != digestOfBytes(data) {
					t.Errorf("the digest %s belongs to other bytes", a.Info().SHA256)
				}
			}
		}
	})
	writers.Wait()
	close(done)
	readers.Wait()
	t.Logf("the digest was known %d times", known)
	last := body(3000, 100)
	if _, err := one.StoreArtifactIf(site, "b", hashedBody(last), Precondition{}); err != nil {
		t.Fatal(err)
	}
	wantDigest(t, open(), site, "b", digestOfBytes(last))
}

func testKeepDigest(t *testing.T, open func() digestStore) {
	one, site := open(), newSite()
	for i, n := range []int{100, largeBody} {
		data, id := body(n, byte(i)), fmt.Sprint("b", i)
		stored := mustStoreIf(t, one, site, id, data, Precondition{})
		wantDigest(t, one, site, id, Digest{})
		info, err := one.StatArtifact(site, id)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // repeatable
			if err := one.KeepDigest(site, id, info, digestOfBytes(data)); err != nil {
				t.Fatal(err)
			}
		}
		wantDigest(t, one, site, id, digestOfBytes(data)) // at once
		wantDigest(t, open(), site, id, digestOfBytes(data))
		after, err := one.StatArtifact(site, id)
		if err != nil || after.ETag != stored.ETag || !after.ModTime.Equal(info.ModTime) || after.Size != stored.Size {
			t.Errorf("the artifact is %+v then, %v, and was %+v", after, err, stored)
		}
		wantBytes(t, one, site, id, data)
	}
}

func testKeepDigestReplaced(t *testing.T, open func() digestStore) {
	one, site := open(), newSite()
	wantError(t, one.KeepDigest(site, "b", ArtifactInfo{Size: 1, ETag: `"x"`}, digestOfBytes(nil)), ErrNotFound)
	old := mustStoreIf(t, one, site, "b", body(100, 1), Precondition{})
	mustStore(t, one, site, "b", body(100, 2))
	wantError(t, one.KeepDigest(site, "b", old, digestOfBytes(body(100, 1))), ErrPrecondition)
	wantDigest(t, one, site, "b", Digest{})
	if err := one.DeleteArtifact(site, "b", Precondition{}); err != nil {
		t.Fatal(err)
	}
	wantError(t, one.KeepDigest(site, "b", old, digestOfBytes(body(100, 1))), ErrNotFound)
}

func testKeptDigest(t *testing.T, open func() digestStore) {
	one, site := open(), newSite()
	if _, err := one.KeptDigest(site, "b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of an unknown site: %v", err)
	}
	data := body(100, 1)
	info, err := one.StoreArtifactIf(site, "b", hashedBody(data), Precondition{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := open().KeptDigest(site, "b")
	switch {
	case err != nil || k.SHA256 != digestOfBytes(data):
		t.Errorf("%+v, %v", k, err)
	case k.Size == 0 && k.ETag == "":
		t.Error("it is bound to nothing")
	case k.Size != 0 && k.Size != 100, !k.ModTime.IsZero() && !k.ModTime.Equal(info.ModTime), k.ETag != "" && k.ETag != info.ETag:
		t.Errorf("it is bound to %+v, not to %+v", k, info)
	}
	mustStore(t, one, site, "none", data)
	if _, err := one.KeptDigest(site, "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of a build without a digest: %v", err)
	}
}

func testListDigests(t *testing.T, open func() digestStore) {
	one, site := open(), newSite()
	want := map[string]Digest{}
	for i := range 9 {
		id, data := fmt.Sprint("b", i), body(100+i, byte(i))
		r := known(data)
		if i%3 > 0 {
			r, want[id] = hashedBody(data), digestOfBytes(data)
		}
		if _, err := one.StoreArtifactIf(site, id, r, Precondition{}); err != nil {
			t.Fatal(err)
		}
	}
	mustLog(t, one, site, LogEntry{ID: "1", BuildID: "log", Action: "a", Status: "s", Timestamp: time.Now()})
	for _, b := range []digestStore{one, open()} {
		versions, err := b.ListVersions(site)
		if err != nil || len(versions) != 10 {
			t.Fatal(len(versions), err)
		}
		sums, err := b.ListDigests(site, versions)
		if err != nil || len(sums) != len(versions) {
			t.Fatal(len(sums), err)
		}
		for i, v := range versions {
			if sums[i] != want[v.BuildID] {
				t.Errorf("%s has %q, not %q", v.BuildID, sums[i], want[v.BuildID])
			}
		}
		part := []*Version{versions[7], versions[2]}
		if got, err := b.ListDigests(site, part); err != nil || !slices.Equal(got, []Digest{sums[7], sums[2]}) {
			t.Errorf("of two versions: %q, %v", got, err)
		}
	}
	if sums, err := one.ListDigests(newSite(), nil); err != nil || len(sums) != 0 {
		t.Errorf("of an unknown site: %q, %v", sums, err)
	}
}

func testListSites(t *testing.T, open func() digestStore) {
	one := open()
	prefix := newSite()
	var want []string
	for i, with := range []string{"build", "log", "both", "nothing", "build"} {
		site := fmt.Sprintf("%s.%d", prefix, i)
		if with == "build" || with == "both" {
			mustStore(t, one, site, "b", []byte("x"))
		}
		if with == "log" || with == "both" {
			mustLog(t, one, site, LogEntry{ID: "1", BuildID: "b", Action: "a", Status: "s", Timestamp: time.Now()})
		}
		if with == "nothing" {
			mustStore(t, one, site, "b", []byte("x"))
			if err := one.DeleteArtifact(site, "b", Precondition{}); err != nil {
				t.Fatal(err)
			}
		} else {
			want = append(want, site)
		}
	}
	for limit := 1; limit <= 6; limit++ {
		var got []string
		for after := prefix; ; after = got[len(got)-1] {
			some, err := open().ListSites("", after, limit, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(some) > limit || !slices.IsSorted(some) {
				t.Fatalf("after %q: %q", after, some)
			}
			ours := slices.DeleteFunc(slices.Clone(some), func(s string) bool { return !strings.HasPrefix(s, prefix) })
			got = append(got, ours...)
			if len(some) < limit || len(ours) < len(some) {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d at a time: %q, want %q", limit, got, want)
		}
	}
	for _, c := range []struct {
		prefix, after string
		want          []string
	}{
		{prefix, "", want},
		{prefix + ".", want[0], want[1:]},
		{prefix + ".2", "", want[2:3]},
		{prefix + ".2", want[2], nil},
		{prefix + ".3", "", nil},
		{prefix + "-", "", nil},
		{want[3], want[0], want[3:]},
	} {
		if got, err := open().ListSites(c.prefix, c.after, 10, nil); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("of %q, after %q: %q, %v, want %q", c.prefix, c.after, got, err, c.want)
		}
	}
	all, err := one.ListSites("", "", 1<<20, nil)
	if err != nil || !slices.IsSorted(all) || !slices.Contains(all, want[0]) {
		t.Errorf("all: %q, %v", all, err)
	}
}

// testListWantedSites. Ids sort differently from the keys of object stores: a-/ before a/.
func testListWantedSites(t *testing.T, open func() digestStore) {
	one := open()
	prefix := newSite()
	for _, end := range []string{"", "-a", "-a-b", "-b", ".a", "0", "00", "a"} {
		mustStore(t, one, prefix+end, "b", []byte("x"))
	}
	for _, c := range []struct {
		prefix, after string
		not           string // what an id that is wanted does not end with
		limit         int
		want          string
	}{
		{"", "", "/", 9, " -a -a-b -b .a 0 00 a"},
		{"", "", "a", 9, " -a-b -b 0 00"},
		{"", "", "b", 9, " -a .a 0 00 a"},
		{"", "", "b", 3, " -a .a"},
		{"-", "", "/", 9, "-a -a-b -b"},
		{"-", "", "a", 9, "-a-b -b"},
		{"-a-b", "", "/", 9, "-a-b"},
		{"-a-b", "", "b", 9, ""},
		{"", "-a", "b", 9, ".a 0 00 a"},
		{"", "-a-b", "a", 2, "-b 0"},
		{"0", "-a", "/", 9, "0 00"},
		{"x", "", "/", 9, ""},
	} {
		after := ""
		if c.after != "" {
			after = prefix + c.after
		}
		got, err := one.ListSites(prefix+c.prefix, after, c.limit, func(id string) bool { return !strings.HasSuffix(id, c.not) })
		for i := range got {
			got[i] = strings.TrimPrefix(got[i], prefix)
		}
		if text := strings.Join(got, " "); err != nil || text != c.want {
			t.Errorf("%+v: %q, %v", c, text, err)
		}
	}
}

func testNoForeignFiles(t *testing.T, open func() digestStore) {
	one, site := open(), newSite()
	for range 2 { // replaced
		if _, err := one.StoreArtifactIf(site, "b", hashedBody(body(100, 1)), Precondition{}); err != nil {
			t.Fatal(err)
		}
	}
	mustStore(t, one, site, "large", body(largeBody, 1))
	mustLog(t, one, site, LogEntry{ID: "1", BuildID: "b", Action: "a", Status: "s", Timestamp: time.Now()})
	info, err := one.StatArtifact(site, "large")
	if err != nil {
		t.Fatal(err)
	}
	if err := one.KeepDigest(site, "large", info, digestOfBytes(body(largeBody, 1))); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{site, newSite()} {
		err := open().ForeignFiles(s, func(name, what string) error {
			t.Errorf("%s is a foreign %s", name, what)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func testStatus(t *testing.T, open func() digestStore) {
	one, name := open(), newSite()
	_, err := one.ReadStatus(name)
	wantError(t, err, ErrNotFound)
	for _, text := range []string{`{"a":1}`, `{}`, strings.Repeat("x", 100_000)} {
		if err := one.WriteStatus(name, []byte(text)); err != nil {
			t.Fatal(err)
		}
		for _, b := range []digestStore{one, open()} {
			if got, err := b.ReadStatus(name); err != nil || string(got) != text {
				t.Errorf("%d bytes came back of %d, %v", len(got), len(text), err)
			}
		}
	}
	_, err = one.ReadStatus(name + "x")
	wantError(t, err, ErrNotFound)
}
