package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// digestBuckets are the ways in which a bucket can keep digests.
var digestBuckets = map[string]func() bucket{
	"metadata after the body":  func() bucket { return newMemBucket() },
	"metadata before the body": func() bucket { m := newMemBucket(); m.early = true; return m },
	"patched metadata":         func() bucket { m := newMemBucket(); m.early = true; return patchingBucket{m} },
	"no metadata from a get":   func() bucket { m := newMemBucket(); m.early, m.bare = true, true; return patchingBucket{m} },
}

func TestObjectDigests(t *testing.T) {
	for name, makeBucket := range digestBuckets {
		t.Run(name, func(t *testing.T) {
			b := makeBucket()
			testDigests(t, func(*testing.T) Backend { return newObjectStore(b, "a/prefix/", quiet()) })
		})
	}
}

// openDigests opens the bucket as a process of its own, with digests.
func openDigests(b bucket) *objectStore {
	s := assumeCapable(newObjectStore(b, "", quiet()))
	s.useDigests()
	return s
}

// bucketCalls records the calls of a bucket, as "op key".
type bucketCalls struct {
	mu    sync.Mutex
	calls []string
}

// recordCalls records the calls that are not about labels.
func recordCalls(m *memBucket) *bucketCalls {
	c := &bucketCalls{}
	m.fault = func(op, key string) (bool, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !strings.Contains(key, "/"+labelsDir+"/") && !strings.Contains(key, "/"+deletingDir+"/") {
			c.calls = append(c.calls, op+" "+key)
		}
		return false, nil
	}
	return c
}

// want requires that the calls since the last call were these.
func (c *bucketCalls) want(t *testing.T, what string, want ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.calls, want) {
		t.Errorf("%s: the store got %q, want %q", what, c.calls, want)
	}
	c.calls = nil
}

const (
	artifactCall = "sites/s/artifacts/b.tar.gz"
	digestCall   = "sites/s/digests/b.sha256"
	statusCall   = "status/digests.json"
)

func mustHash(t *testing.T, s *objectStore, id string, data []byte) ArtifactInfo {
	t.Helper()
	info, err := s.StoreArtifactIf("s", id, hashedBody(data), Precondition{})
	if err != nil {
		t.Fatal(err)
	}
	if info.SHA256 != digestOfBytes(data) {
		t.Fatalf("the upload returns the digest %q", info.SHA256)
	}
	return info
}

func mustRead(t *testing.T, s *objectStore, want Digest) {
	t.Helper()
	r, err := s.FetchArtifactRange("s", "b", "", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if got := r.Info().SHA256; got != want {
		t.Errorf("a read returns the digest %q, want %q", got, want)
	}
}

// What digests cost in calls of the store.
func TestObjectDigestCalls(t *testing.T) {
	data := body(100, 1)
	sum := digestOfBytes(data)
	delete := func(t *testing.T, s *objectStore) {
		if err := s.DeleteArtifact("s", "b", Precondition{}); err != nil {
			t.Error(err)
		}
	}
	t.Run("off", func(t *testing.T) {
		m := newMemBucket()
		mustHash(t, openDigests(m), "b", data)
		s, calls := openMem(m), recordCalls(m)
		mustRead(t, s, Digest{})
		mustStore(t, s, "s", "b", data)
		delete(t, s)
		calls.want(t, "the store", "get "+artifactCall, "stat "+artifactCall, "put "+artifactCall, "remove "+artifactCall)
	})
	t.Run("in metadata", func(t *testing.T) {
		m := newMemBucket()
		s, calls := openDigests(m), recordCalls(m)
		mustHash(t, s, "b", data)
		for range 3 {
			mustRead(t, s, sum)
		}
		calls.want(t, "an upload and reads", "stat "+artifactCall, "put "+artifactCall, "get "+artifactCall, "get "+artifactCall, "get "+artifactCall)
		delete(t, s)
		calls.want(t, "a delete", "remove "+artifactCall, "stat "+statusCall)
	})
	t.Run("none in the store", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemBucket()
			s, calls := openDigests(m), recordCalls(m)
			mustStore(t, s, "s", "b", data)
			for range 3 {
				mustRead(t, s, Digest{})
			}
			calls.want(t, "an upload and reads", "stat "+artifactCall, "put "+artifactCall, "get "+artifactCall, "stat "+statusCall, "get "+artifactCall, "get "+artifactCall)
			delete(t, s)
			calls.want(t, "a delete", "remove "+artifactCall, "stat "+statusCall)
			time.Sleep(noDigestsTTL)
			mustStore(t, s, "s", "b", data)
			mustRead(t, s, Digest{})
			mustRead(t, s, Digest{})
			calls.want(t, "a minute later", "stat "+artifactCall, "put "+artifactCall, "get "+artifactCall, "stat "+statusCall, "get "+artifactCall)
		})
	})
	t.Run("in an object", func(t *testing.T) {
		m := newMemBucket()
		m.early = true
		s, calls := openDigests(m), recordCalls(m)
		mustHash(t, s, "b", data)
		calls.want(t, "the first upload", "stat "+artifactCall, "put "+artifactCall, "stat "+statusCall, "put "+statusCall, "put "+digestCall)
		mustHash(t, s, "b", data)
		calls.want(t, "another upload", "stat "+artifactCall, "put "+artifactCall, "put "+digestCall)
		mustRead(t, s, sum)
		calls.want(t, "a read by the process that stored it", "get "+artifactCall)
		other := openDigests(m)
		for range 3 {
			mustRead(t, other, sum)
		}
		calls.want(t, "reads by another one", "get "+artifactCall, "get "+digestCall, "get "+artifactCall, "get "+artifactCall)
		delete(t, s)
		calls.want(t, "a delete", "remove "+artifactCall, "remove "+digestCall)
	})
	t.Run("unknown, in a store with digests", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemBucket()
			m.early = true
			s := openDigests(m)
			mustHash(t, s, "other", data)
			mustStore(t, s, "s", "b", data)
			calls := recordCalls(m)
			for range 3 {
				mustRead(t, s, Digest{})
			}
			calls.want(t, "reads", "get "+artifactCall, "get "+digestCall, "get "+artifactCall, "get "+artifactCall)
			time.Sleep(unknownDigestTTL)
			mustRead(t, s, Digest{})
			calls.want(t, "a read ten minutes later", "get "+artifactCall, "get "+digestCall)
		})
	})
	t.Run("no metadata from a get", func(t *testing.T) {
		m := newMemBucket()
		m.bare = true
		s, calls := openDigests(m), recordCalls(m)
		mustHash(t, s, "b", data)
		calls.want(t, "the first upload", "stat "+artifactCall, "put "+artifactCall, "stat "+statusCall, "put "+statusCall)
		for range 3 {
			mustRead(t, s, sum)
		}
		calls.want(t, "reads", "get "+artifactCall, "stat "+artifactCall, "get "+artifactCall, "get "+artifactCall)
	})
	t.Run("lists", func(t *testing.T) {
		m := newMemBucket()
		s := openDigests(m)
		mustHash(t, s, "b", data)
		mustStore(t, s, "s", "none", data)
		versions, err := s.ListVersions("s")
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := s.ListDigests("s", versions); err != nil {
				t.Fatal(err)
			}
		}
		calls := recordCalls(m)
		sums, err := s.ListDigests("s", versions)
		if err != nil || !slices.Contains(sums, sum) {
			t.Errorf("%q, %v", sums, err)
		}
		calls.want(t, "what was listed before")
	})
}

// A digest is kept by another process. Processes that had found none see it in time.
func TestObjectDigestIsSeenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemBucket()
		one, two := openDigests(m), openDigests(m)
		data := body(100, 1)
		mustStore(t, one, "s", "b", data)
		mustRead(t, one, Digest{})
		info, err := two.StatArtifact("s", "b")
		if err != nil {
			t.Fatal(err)
		}
		if err := two.KeepDigest("s", "b", info, digestOfBytes(data)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(unknownDigestTTL)
		mustRead(t, one, digestOfBytes(data))
	})
}

// A DELETE removes a digest that another process kept, even if it is the first one, and this
// process has just found none.
func TestObjectDigestIsRemoved(t *testing.T) {
	for _, c := range []struct {
		name   string
		cond   Precondition
		filled bool // the digest was not known when the build was stored
	}{
		{"unconditional", Precondition{}, false},
		{"unconditional, filled", Precondition{}, true},
		{"conditional", Precondition{IfMatch: &ETagList{Any: true}}, false},
		{"conditional, filled", Precondition{IfMatch: &ETagList{Any: true}}, true},
	} {
		m := newMemBucket()
		m.early = true
		one, two := openDigests(m), openDigests(m)
		mustStore(t, one, "s", "b", []byte("old"))
		mustRead(t, one, Digest{})
		data := body(100, 1)
		if c.filled {
			mustStore(t, two, "s", "b", data)
			info, err := two.StatArtifact("s", "b")
			if err != nil {
				t.Fatal(err)
			}
			if err := two.KeepDigest("s", "b", info, digestOfBytes(data)); err != nil {
				t.Fatal(err)
			}
		} else {
			mustHash(t, two, "b", data)
		}
		if _, ok := m.objects[digestCall]; !ok {
			t.Fatalf("%s: no digest was kept", c.name)
		}
		if err := one.DeleteArtifact("s", "b", c.cond); err != nil {
			t.Error(err)
		}
		if _, ok := m.objects[digestCall]; ok {
			t.Errorf("%s: the digest is still there", c.name)
		}
	}
}

// At most this many artifacts are described at once, however many lists there are.
func TestListDigestsIsBounded(t *testing.T) {
	m := newMemBucket()
	s := openDigests(&slowStat{memBucket: m})
	slow := s.bucket.(*slowStat)
	for i := range 2 * digestReaders {
		mustStore(t, s, "s", fmt.Sprint("b", i), []byte("x"))
	}
	versions, err := s.ListVersions("s")
	if err != nil {
		t.Fatal(err)
	}
	slow.release = make(chan struct{})
	var g sync.WaitGroup
	for range 3 {
		g.Go(func() {
			if _, err := s.ListDigests("s", versions); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "all slots are taken", func() bool { return slow.running() == digestReaders })
	close(slow.release)
	g.Wait()
	if slow.most != digestReaders {
		t.Errorf("%d artifacts were described at once", slow.most)
	}
}

// A digest that the store does not return is left out of a list, as out of a read. The log
// names its build, unless that was deleted. A store that is down is not asked for each build.
func TestListDigestsFails(t *testing.T) {
	const builds = 5 * digestReaders
	for _, c := range []struct {
		name    string
		fails   func(op, key string, stats int) error
		most    int // stats
		unknown int
		logged  string
	}{
		{"one is throttled", func(op, key string, _ int) error {
			if strings.HasSuffix(key, "/b7.tar.gz") {
				return ErrUnavailable
			}
			return nil
		}, builds, 1, "key=sites/s/artifacts/b7.tar.gz"},
		{"every fourth one is throttled", func(op, key string, stats int) error {
			if op == "stat" && key != statusCall && stats%4 == 0 {
				return ErrUnavailable
			}
			return nil
		}, builds, builds / 4, "key=sites/s/artifacts/b"},
		{"down", func(string, string, int) error { return ErrUnavailable }, 2 * digestReaders, builds, "key=sites/s/artifacts/b"},
		{"denied", func(string, string, int) error { return ErrDenied }, 2 * digestReaders, builds, "key=sites/s/artifacts/b"},
		{"all were deleted", func(string, string, int) error { return ErrNotFound }, builds, builds, ""},
		{"some digests are denied", func(_, key string, _ int) error {
			if key == "sites/s/digests/b3.sha256" || key == "sites/s/digests/b5.sha256" {
				return ErrDenied
			}
			return nil
		}, builds, 2, "key=sites/s/artifacts/b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemBucket()
			m.early = true
			writer := openDigests(m)
			for i := range builds {
				mustHash(t, writer, fmt.Sprint("b", i), []byte("x"))
			}
			versions, err := writer.ListVersions("s")
			if err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			s := assumeCapable(newObjectStore(m, "", slog.New(slog.NewTextHandler(&log, nil))))
			s.useDigests()
			stats := 0
			m.fault = func(op, key string) (bool, error) {
				if op == "stat" && key != statusCall {
					stats++
				}
				return false, c.fails(op, key, stats)
			}
			sums, err := s.ListDigests("s", versions)
			if err != nil {
				t.Fatal(err)
			}
			unknown := 0
			for _, sum := range sums {
				if !sum.known() {
					unknown++
				} else if sum != digestOfBytes([]byte("x")) {
					t.Errorf("a digest is %q", sum)
				}
			}
			if unknown != c.unknown || stats > c.most {
				t.Errorf("%d of %d digests are unknown, want %d; %d stats, want at most %d", unknown, builds, c.unknown, stats, c.most)
			}
			if got := log.String(); !strings.Contains(got, c.logged) || (got == "") != (c.logged == "") {
				t.Errorf("the log is %q, want %q", got, c.logged)
			}
		})
	}
}

// What is kept about another artifact, or damaged, is never used.
func TestObjectDigestIsBound(t *testing.T) {
	data, other := body(100, 1), body(100, 2)
	sum := digestOfBytes(data)
	for _, c := range []struct {
		name   string
		change func(m *memBucket)
		known  bool
	}{
		{"nothing", func(*memBucket) {}, true},
		{"bytes by a tool, without metadata", func(m *memBucket) { replaceObject(m, other, "", "") }, false},
		{"bytes by a service of an older version", func(m *memBucket) { replaceObject(m, other, "new", "") }, false},
		{"bytes of another size, with the metadata", func(m *memBucket) {
			o := m.objects[artifactCall]
			replaceObject(m, other[1:], o.uploadID, o.digest)
		}, false},
		{"bytes with the same ETag, by an older version", func(m *memBucket) {
			o := m.objects[artifactCall]
			o.data, o.uploadID, o.digest = other, "new", ""
			m.objects[artifactCall] = o
		}, false},
		{"the digest of another build", func(m *memBucket) {
			o := m.objects[digestCall]
			o.data = bytes.ReplaceAll(o.data, []byte("/b."), []byte("/c."))
			m.objects[digestCall] = o
		}, false},
		{"a damaged digest", func(m *memBucket) { damageDigest(m, func(b []byte) []byte { return b[:len(b)/2] }) }, false},
		{"an empty digest", func(m *memBucket) { damageDigest(m, func([]byte) []byte { return nil }) }, false},
		{"a huge digest", func(m *memBucket) {
			damageDigest(m, func(b []byte) []byte { return append(b, make([]byte, maxDigestObject)...) })
		}, false},
		{"the digest is gone", func(m *memBucket) { delete(m.objects, digestCall) }, false},
	} {
		for _, place := range []string{"metadata", "object", "filled"} {
			m := newMemBucket()
			m.early = place == "object"
			s := openDigests(m)
			if place == "filled" {
				mustStore(t, s, "s", "b", data)
				info, _ := s.StatArtifact("s", "b")
				if err := s.KeepDigest("s", "b", info, sum); err != nil {
					t.Fatal(err)
				}
			} else {
				mustHash(t, s, "b", data)
			}
			if place == "metadata" && strings.Contains(c.name, "digest") {
				continue // there is no object
			}
			c.change(m)
			want := Digest{}
			if c.known {
				want = sum
			}
			t.Run(c.name+", "+place, func(t *testing.T) {
				wantDigest(t, openDigests(m), "s", "b", want)
				if !strings.Contains(c.name, "digest") { // this process need not read the digest again
					wantDigest(t, s, "s", "b", want)
				}
				if _, err := s.KeptDigest("s", "b"); errors.Is(err, ErrDamaged) { // it may be evidence of damage
					before := string(m.objects[digestCall].data)
					info, _ := s.StatArtifact("s", "b")
					if err := openDigests(m).KeepDigest("s", "b", info, sum); !errors.Is(err, ErrDamaged) || string(m.objects[digestCall].data) != before {
						t.Errorf("KeepDigest replaces a damaged digest: %v", err)
					}
				}
			})
		}
	}
}

// Builds that other programs stored have no upload id.
func TestObjectDigestOfForeignArtifact(t *testing.T) {
	m := newMemBucket()
	s := openDigests(m)
	data := body(100, 1)
	replaceObject(m, data, "", "")
	info, err := s.StatArtifact("s", "b")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.KeepDigest("s", "b", info, digestOfBytes(data)); err != nil {
		t.Fatal(err)
	}
	wantDigest(t, openDigests(m), "s", "b", digestOfBytes(data))
	replaceObject(m, body(100, 2), "", "")
	wantDigest(t, openDigests(m), "s", "b", Digest{})
	wantDigest(t, s, "s", "b", Digest{})
}

// replaceObject replaces the artifact as a tool does that knows nothing of the service.
func replaceObject(m *memBucket, data []byte, uploadID, digest string) {
	m.made++
	m.objects[artifactCall] = memObject{objectInfo{
		key: artifactCall, size: int64(len(data)), etag: fmt.Sprintf(`"mem-%d"`, m.made), modTime: time.Now().Add(time.Minute),
		uploadID: uploadID, digest: digest,
	}, data}
}

func damageDigest(m *memBucket, change func([]byte) []byte) {
	o := m.objects[digestCall]
	o.data = change(slices.Clone(o.data))
	o.size = int64(len(o.data))
	m.objects[digestCall] = o
}

// Between the artifact and its digest another upload comes, or the process dies: the digest
// is that of the artifact, or unknown.
func TestObjectDigestOfReplacedArtifact(t *testing.T) {
	for name, makeBucket := range map[string]func(*memBucket) bucket{
		"object": func(m *memBucket) bucket { return m }, "patch": func(m *memBucket) bucket { return patchingBucket{m} },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemBucket()
			m.early = true
			one, two := openDigests(makeBucket(m)), openMem(m)
			old, other := body(100, 1), body(100, 2)
			intruding := false
			m.fault = func(op, key string) (bool, error) {
				if (key == digestCall && op == "put" || op == "patch") && !intruding {
					intruding = true
					m.mu.Unlock() // call holds it
					mustStore(t, two, "s", "b", other)
					m.mu.Lock()
				}
				return false, nil
			}
			mustHash(t, one, "b", old)
			if !intruding {
				t.Fatal("no digest was kept")
			}
			wantDigest(t, one, "s", "b", Digest{})
			wantDigest(t, openDigests(m), "s", "b", Digest{})
			mustHash(t, one, "b", old)
			wantDigest(t, openDigests(m), "s", "b", digestOfBytes(old))
		})
	}
}

// The reply to the put of an artifact is lost, or the put itself: the digest is never that of
// other bytes, and a put that turns out to be done keeps it.
func TestObjectDigestAfterLostReply(t *testing.T) {
	for _, early := range []bool{false, true} {
		for _, apply := range []bool{false, true} {
			m := newMemBucket()
			m.early = early
			s := openDigests(m)
			mustHash(t, s, "b", body(100, 1))
			lost := false
			m.fault = func(op, key string) (bool, error) {
				if op == "put" && key == artifactCall && !lost {
					lost = true
					return apply, fmt.Errorf("%w: lost", ErrUnavailable)
				}
				return false, nil
			}
			data := body(100, 2)
			info, err := s.StoreArtifactIf("s", "b", hashedBody(data), Precondition{})
			if apply != (err == nil) || apply && info.SHA256 != digestOfBytes(data) {
				t.Errorf("early=%v apply=%v: %+v, %v", early, apply, info, err)
			}
			want := digestOfBytes(body(100, 1))
			if apply {
				want = digestOfBytes(data)
			}
			wantDigest(t, openDigests(m), "s", "b", want)
		}
	}
}

// An upload succeeds even if its digest cannot be kept, and a read even if the digest cannot
// be looked up. The log says so, and the store is not asked again for a while. The process that
// computed the digest knows it.
func TestObjectDigestFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemBucket()
		m.early = true
		var log bytes.Buffer
		s := assumeCapable(newObjectStore(m, "", slog.New(slog.NewTextHandler(&log, nil))))
		other := assumeCapable(newObjectStore(m, "", slog.New(slog.NewTextHandler(&log, nil))))
		s.useDigests()
		other.useDigests()
		denied := 0
		m.fault = func(op, key string) (bool, error) {
			if key == digestCall {
				denied++
				return false, fmt.Errorf("%w: as the test wants it", ErrDenied)
			}
			return false, nil
		}
		data := body(100, 1)
		mustHash(t, s, "b", data)
		denied = 0
		for range 5 {
			mustRead(t, s, digestOfBytes(data))
			mustRead(t, other, Digest{})
		}
		if denied != 1 {
			t.Errorf("the store was asked %d times", denied)
		}
		time.Sleep(digestPause)
		mustRead(t, other, Digest{})
		if denied != 2 {
			t.Errorf("the store was asked %d times after a while", denied)
		}
		m.fault = nil
		time.Sleep(digestPause)
		mustHash(t, s, "b", data)
		mustRead(t, other, digestOfBytes(data))
		time.Sleep(2 * floodWindow) // the timers of the log end
		synctest.Wait()
		for _, text := range []string{"the build was stored, but its digest could not be kept", "cannot look up the digest of a build"} {
			if n := strings.Count(log.String(), text); n != 1 && n != 2 {
				t.Errorf("the log says %d times %q", n, text)
			}
		}
	})
}

// A store may not be able to keep the digest of a build that is created again. It is still
// computed only once.
func TestObjectDigestIsComputedOnce(t *testing.T) {
	data := body(100, 1)
	for _, c := range []struct {
		denied string // the object that cannot be written
		marked bool   // the store has digests of other builds
	}{{statusCall, false}, {digestCall, false}, {digestCall, true}} {
		m := newMemBucket()
		store := openDigests(m)
		if c.marked {
			if err := store.digests.mark(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		s, _ := startBackend(t, store)
		s.put(t, 201, "/sites/s/artifacts/b", data)
		var reads, denied int
		m.fault = func(op, key string) (bool, error) {
			switch {
			case op == "get" && key == artifactCall:
				reads++
			case op == "put" && key == c.denied:
				denied++
				return false, fmt.Errorf("%w: as the test wants it", ErrDenied)
			}
			return false, nil
		}
		sums := func() []Digest {
			versions, err := store.ListVersions("s")
			if err != nil {
				t.Fatal(err)
			}
			sums, err := store.ListDigests("s", versions)
			if err != nil {
				t.Fatal(err)
			}
			return sums
		}
		for range 3 {
			s.put(t, 200, "/sites/s/artifacts/b", data, "If-None-Match", "*", "Repr-Digest", sha256Field(data))
			if got := sums(); got[0] != digestOfBytes(data) {
				t.Errorf("%s is denied, marked=%t: the list has the digests %q", c.denied, c.marked, got)
			}
		}
		if reads != 1 || denied == 0 {
			t.Errorf("%s is denied, marked=%t: the build was read %d times, and %d writes were denied", c.denied, c.marked, reads, denied)
		}
	}
}

// Most stores do not report the time of an object that they store, but a list has it. So the
// list describes the build again, which must not lose a digest that could not be kept.
func TestObjectDigestAfterAPutWithoutATime(t *testing.T) {
	m := newMemBucket()
	m.early = true
	s := openDigests(untimedBucket{m})
	looks := 0
	m.fault = func(op, key string) (bool, error) {
		switch {
		case key != digestCall:
			return false, nil
		case op == "get":
			looks++
		}
		return false, fmt.Errorf("%w: as the test wants it", ErrDenied)
	}
	data := body(100, 1)
	mustHash(t, s, "b", data)
	versions, err := s.ListVersions("s")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if sums, err := s.ListDigests("s", versions); err != nil || sums[0] != digestOfBytes(data) {
			t.Errorf("the list has the digests %q, %v", sums, err)
		}
	}
	mustRead(t, s, digestOfBytes(data))
	if looks > 0 {
		t.Errorf("the digest was looked for %d times", looks)
	}
}

// untimedBucket is a memBucket whose put does not report the time.
type untimedBucket struct{ *memBucket }

func (b untimedBucket) put(ctx context.Context, key string, body io.Reader, size int64, opts putOptions) (objectInfo, error) {
	info, err := b.memBucket.put(ctx, key, body, size, opts)
	info.modTime = time.Time{}
	return info, err
}

// A store that denies a change of the metadata gets an object.
func TestObjectDigestPatchDenied(t *testing.T) {
	m := newMemBucket()
	m.early = true
	s := openDigests(patchingBucket{m})
	m.fault = func(op, _ string) (bool, error) {
		if op == "patch" {
			return false, fmt.Errorf("%w: patch", ErrDenied)
		}
		return false, nil
	}
	mustHash(t, s, "b", body(100, 1))
	if m.objects[digestCall].data == nil {
		t.Error("there is no object of the digest")
	}
	wantDigest(t, openDigests(m), "s", "b", digestOfBytes(body(100, 1)))
}

// Nothing is written by a service that is read-only, and nothing kept or looked up if digests
// are off.
func TestObjectDigestRefused(t *testing.T) {
	m := newMemBucket()
	s := openDigests(m)
	info := mustHash(t, s, "b", body(100, 1))
	s.readOnly = true
	wantError(t, s.KeepDigest("s", "b", info, digestOfBytes(nil)), ErrReadOnly)
	wantError(t, s.WriteStatus("verify", nil), ErrReadOnly)
	s.readOnly = false
	if err := s.KeepDigest("s", "b", info, digestOfBytes(nil)); err == nil {
		t.Error("another digest was kept beside that in the metadata")
	}
	off := openMem(m)
	wantError(t, off.KeepDigest("s", "b", info, info.SHA256), ErrUnsupported)
	_, err := off.KeptDigest("s", "b")
	wantError(t, err, ErrUnsupported)
	wantDigest(t, off, "s", "b", Digest{})
}

// The object of a digest is what sha256sum -c reads in a copy of the store.
func TestDigestObject(t *testing.T) {
	o := objectInfo{size: 12, uploadID: "ABC", etag: `"0x8D \"1"`}
	sum := digestOfBytes([]byte("x"))
	data := encodeDigestObject("b+1", o, sum)
	want := "# size 12, mark \"ABC\", etag \"\\\"0x8D \\\\\\\"1\\\"\", crc32c 5ea254de\n" + sum.String() + "  ../artifacts/b+1.tar.gz\n"
	if string(data) != want {
		t.Errorf("it is %q, not %q", data, want)
	}
	got, err := decodeDigestObject("b+1", data)
	if err != nil || !got.isOf(o) || got.sum != sum {
		t.Errorf("it is read as %+v, %v", got, err)
	}
	foreign := objectInfo{size: 1, etag: `"x"`} // it has no upload id
	if got, err := decodeDigestObject("b", encodeDigestObject("b", foreign, sum)); err != nil || !got.isOf(foreign) {
		t.Errorf("it is read as %+v, %v", got, err)
	}
	for i := range data {
		if got, err := decodeDigestObject("b+1", data[:i]); err == nil {
			t.Errorf("%q is read as %+v", data[:i], got)
		}
		flipped := slices.Clone(data)
		flipped[i] ^= 1
		if got, err := decodeDigestObject("b+1", flipped); err == nil {
			t.Errorf("%q is read as %+v", flipped, got)
		}
	}
	for _, value := range []string{"", "object", sum.String(), sum.String() + ":", sum.String() + ":x", sum.String()[1:] + ":1", ":1"} {
		if got, size, ok := parseDigestValue(value); ok {
			t.Errorf("%q is read as %s, %d", value, got, size)
		}
	}
}

// slowStat is a memBucket whose stats wait for release, and which counts them.
type slowStat struct {
	*memBucket
	release chan struct{} // nil: they do not wait

	mu        sync.Mutex
	now, most int
}

func (b *slowStat) stat(ctx context.Context, key string) (objectInfo, error) {
	if b.release != nil {
		b.count(1)
		<-b.release
		defer b.count(-1)
	}
	return b.memBucket.stat(ctx, key)
}

func (b *slowStat) count(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now += n
	b.most = max(b.most, b.now)
}

func (b *slowStat) running() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}
