package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// faultyStore is a store in a directory in which a test can do something at each call.
type faultyStore struct {
	*nfs
	mu       sync.Mutex
	fetched  []string                          // site/build
	onFetch  func(build string) error          // before a build is opened
	onRead   func(build string, n int64) error // after n bytes of a build were read
	down     error                             // of Probe
	listed   []int                             // the limits of all lists
	onKept   func(build string)                // before KeptDigest
	siteFail func(site string) error           // of ListVersionsPage
}

// openFaulty opens the store at base with digests on.
func openFaulty(t *testing.T, base string) *faultyStore {
	t.Helper()
	n := openTestNFS(t, base)
	n.useDigests()
	return &faultyStore{nfs: n}
}

func (s *faultyStore) FetchArtifact(site, build string) (io.ReadCloser, error) {
	s.mu.Lock()
	s.fetched = append(s.fetched, site+"/"+build)
	s.mu.Unlock()
	if s.onFetch != nil {
		if err := s.onFetch(build); err != nil {
			return nil, err
		}
	}
	r, err := s.nfs.FetchArtifact(site, build)
	if err != nil || s.onRead == nil {
		return r, err
	}
	return &faultyReader{ArtifactReader: r.(ArtifactReader), failing: func(n int64) error { return s.onRead(build, n) }}, nil
}

func (s *faultyStore) Probe() (Readiness, error) { return Readiness{}, s.down }

func (s *faultyStore) ListSites(prefix, after string, limit int, want func(string) bool) ([]string, error) {
	s.mu.Lock()
	s.listed = append(s.listed, limit)
	s.mu.Unlock()
	return s.nfs.ListSites(prefix, after, limit, want)
}

func (s *faultyStore) ListVersionsPage(site string, q VersionQuery) (*VersionPage, error) {
	s.mu.Lock()
	s.listed = append(s.listed, q.Limit)
	s.mu.Unlock()
	if s.siteFail != nil {
		if err := s.siteFail(site); err != nil {
			return nil, err
		}
	}
	return s.nfs.ListVersionsPage(site, q)
}

func (s *faultyStore) KeptDigest(site, build string) (KeptDigest, error) {
	if s.onKept != nil {
		s.onKept(build)
	}
	return s.nfs.KeptDigest(site, build)
}

// faultyReader calls failing after each read.
type faultyReader struct {
	ArtifactReader
	n       int64
	failing func(n int64) error
}

func (r *faultyReader) Read(p []byte) (int, error) {
	n, err := r.ArtifactReader.Read(p[:min(len(p), 1000)])
	r.n += int64(n)
	if failed := r.failing(r.n); failed != nil {
		return n, failed
	}
	return n, err
}

// verifyFaulty verifies a store without waits between attempts.
func verifyFaulty(ctx context.Context, s verifiable, options verifyOptions) (*verifier, *lockedBuffer, error) {
	out := &lockedBuffer{}
	v := newVerifier(s, options, 0, &verifyReport{commandOutput: commandOutput{stdout: out, stderr: io.Discard}, verbose: true})
	v.pauses = []time.Duration{0, 0}
	_, err := v.begin(false, time.Now())
	if err == nil {
		err = v.run(ctx)
	}
	return v, out, err
}

// hashedBytes is a body whose digest is kept.
type hashedBytes struct {
	*bytes.Reader
	sum Digest
}

func (hashedBytes) Hashes() bool            { return true }
func (h hashedBytes) Announced() (d Digest) { return d }
func (h hashedBytes) Sum() Digest {
	if h.Len() > 0 {
		return Digest{}
	}
	return h.sum
}

// largeOf returns the bytes of a build that is too large to be kept in memory.
func largeOf(b byte) []byte { return bytes.Repeat([]byte{b}, smallSize+1000) }

func storeHashed(t *testing.T, s Backend, site, build string, data []byte) {
	t.Helper()
	noError(t, s.StoreArtifact(site, build, hashedBytes{bytes.NewReader(data), sha256.Sum256(data)}))
}

// TestVerifyWhileBuildsChange: a build that is replaced or deleted while it is read is read
// again, and never reported as corrupt or changed.
func TestVerifyWhileBuildsChange(t *testing.T) {
	first, second := largeOf(1), largeOf(2)
	for _, c := range []struct {
		name   string
		change func(t *testing.T, s *faultyStore, time int) // before the build is read for the time-th time
		want   verifyCounts
		reads  int
		fails  error // of each read
	}{
		{"hashed, once", func(t *testing.T, s *faultyStore, _ int) { storeHashed(t, s, "a", "b", second) }, verifyCounts{OK: 1}, 1, nil},
		{"deleted", func(t *testing.T, s *faultyStore, _ int) { noError(t, s.DeleteArtifact("a", "b", Precondition{})) }, verifyCounts{OK: 1}, 1, nil},
		{"damaged and replaced, once", func(t *testing.T, s *faultyStore, time int) {
			if time == 0 {
				flip(t, s.filePath("a", artifactsDir, "b"), smallSize, true)
				defer storeHashed(t, s, "a", "b", second)
			}
		}, verifyCounts{OK: 1}, 2, nil},
		{"damaged and deleted", func(t *testing.T, s *faultyStore, _ int) {
			flip(t, s.filePath("a", artifactsDir, "b"), smallSize, true)
			noError(t, s.DeleteArtifact("a", "b", Precondition{}))
		}, verifyCounts{}, 2, nil},
		{"damaged and replaced, each time", func(t *testing.T, s *faultyStore, time int) {
			flip(t, s.filePath("a", artifactsDir, "b"), smallSize, true)
			storeHashed(t, s, "a", "b", largeOf(byte(10+time)))
		}, verifyCounts{Skipped: 1}, 3, nil},
		{"unreadable and replaced, each time", func(t *testing.T, s *faultyStore, time int) {
			storeHashed(t, s, "a", "b", largeOf(byte(10+time)))
		}, verifyCounts{Skipped: 1}, 3, unix.EIO},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openFaulty(t, t.TempDir())
			storeHashed(t, s, "a", "b", first)
			times := map[int64]int{}
			s.onRead = func(_ string, n int64) error {
				if n == 1000 {
					c.change(t, s, times[n])
					times[n]++
					return c.fails
				}
				return nil
			}
			v, out, err := verifyFaulty(t.Context(), s, verifyOptions{})
			got := v.state.Counts
			got.Sites, got.Bytes = 0, 0
			if least := int64(c.reads) * smallSize; c.fails == nil && c.want.OK == 1 && v.state.Counts.Bytes < least {
				t.Errorf("%d bytes were read, want at least %d", v.state.Counts.Bytes, least)
			}
			if err != nil || got != c.want || len(s.fetched) != c.reads {
				t.Errorf("%v, %+v, want %+v; read %v; %s", err, got, c.want, s.fetched, out)
			}
		})
	}
}

// TestVerifyDuringAnUpload: between the rename of an artifact and that of its digest, the kept
// digest is that of the old bytes. That is no change from outside.
func TestVerifyDuringAnUpload(t *testing.T) {
	base := t.TempDir()
	s := openFaulty(t, base)
	storeHashed(t, s, "a", "b", []byte("old bytes"))
	old, err := os.ReadFile(s.filePath("a", digestsDir, "b"))
	noError(t, err)
	storeHashed(t, s, "a", "b", []byte("new bytes"))
	complete, err := os.ReadFile(s.filePath("a", digestsDir, "b"))
	noError(t, err)
	noError(t, os.WriteFile(s.filePath("a", digestsDir, "b"), old, 0o644))
	asked := 0
	s = openFaulty(t, base) // which has not cached the new digest
	s.onKept = func(string) {
		if asked++; asked == 2 { // after the bytes were read
			noError(t, os.WriteFile(s.filePath("a", digestsDir, "b"), complete, 0o644))
		}
	}
	v, out, err := verifyFaulty(t.Context(), s, verifyOptions{})
	if err != nil || v.state.Counts.OK != 1 || v.state.Counts.Changed != 0 {
		t.Errorf("%v, %+v; %s", err, v.state.Counts, out)
	}
}

// TestVerifyConfirmsChangesTogether: the waits before changes are confirmed do not add up.
func TestVerifyConfirmsChangesTogether(t *testing.T) {
	s := openFaulty(t, t.TempDir())
	const builds = 30
	for build := range builds {
		id := fmt.Sprint(build)
		storeHashed(t, s, "a", id, []byte("some bytes"))
		flip(t, s.filePath("a", artifactsDir, id), 0, false)
	}
	v := newVerifier(s, verifyOptions{}, 0, &verifyReport{commandOutput: commandOutput{stdout: io.Discard, stderr: io.Discard}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var waiting sync.WaitGroup
	waiting.Add(builds)
	all := make(chan struct{})
	go func() { waiting.Wait(); close(all) }()
	v.wait = func(ctx context.Context, _ time.Duration) bool { // until all builds wait
		waiting.Done()
		select {
		case <-all:
			return true
		case <-ctx.Done():
			return false
		}
	}
	_, err := v.begin(false, time.Now())
	noError(t, err)
	if err := v.run(ctx); err != nil || v.state.Counts.Changed != builds {
		t.Errorf("%v, %+v", err, v.state.Counts)
	}
}

// forgetfulStore describes a build with its digest only when it is opened.
type forgetfulStore struct{ *faultyStore }

func (s forgetfulStore) StatArtifact(site, build string) (ArtifactInfo, error) {
	info, err := s.faultyStore.StatArtifact(site, build)
	info.SHA256 = Digest{}
	return info, err
}

// TestVerifyFindsADigestThatTheLookupDoesNotReturn: if the kept digest is bound to the artifact,
// the build is ok or corrupt, although its description has no digest.
func TestVerifyFindsADigestThatTheLookupDoesNotReturn(t *testing.T) {
	data := largeOf(1)
	for name, open := range map[string]func(t *testing.T) (s verifiable, flipBits func()){
		"a directory that remembers that there was none": func(t *testing.T) (verifiable, func()) {
			s := openFaulty(t, t.TempDir())
			storeHashed(t, s, "s", "a", data)
			noError(t, s.DeleteArtifact("s", "a", Precondition{})) // so that there is a directory of digests
			noError(t, s.StoreArtifact("s", "b", bytes.NewReader(data)))
			info, err := s.StatArtifact("s", "b")
			noError(t, err)
			s.digests.now = func() time.Time { return time.Unix(1_700_000_000, 0) } // so it still remembers
			_, err = s.StatArtifact("s", "b")
			noError(t, err)
			noError(t, openFaulty(t, s.base).KeepDigest("s", "b", info, sha256.Sum256(data)))
			return s, func() { flip(t, s.filePath("s", artifactsDir, "b"), smallSize, true) }
		},
		"a directory that no longer finds it": func(t *testing.T) (verifiable, func()) {
			s := openFaulty(t, t.TempDir())
			storeHashed(t, s, "s", "b", data)
			return forgetfulStore{s}, func() { flip(t, s.filePath("s", artifactsDir, "b"), smallSize, true) }
		},
		"an object store whose lookups pause": func(t *testing.T) (verifiable, func()) {
			m := newMemBucket()
			m.early, m.bare = true, true
			mustHash(t, openDigests(patchingBucket{m}), "b", data)
			stats := 0
			m.fault = func(op, _ string) (bool, error) {
				if op == "stat" {
					stats++
				}
				if op == "stat" && stats == 3 { // of the artifact, then of the status; then the lookup of the download
					return false, ErrUnavailable
				}
				return false, nil
			}
			return openDigests(patchingBucket{m}), func() {
				o := m.objects[artifactCall]
				o.data = largeOf(2)
				m.objects[artifactCall] = o
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, damaged := range []bool{false, true} {
				s, flipBits := open(t)
				want := verifyCounts{OK: 1}
				if damaged {
					flipBits()
					want = verifyCounts{Corrupt: 1}
				}
				v, out, err := verifyFaulty(t.Context(), s, verifyOptions{})
				got := v.state.Counts
				got.Sites, got.Bytes = 0, 0
				if err != nil || got != want {
					t.Errorf("damaged %t: %v, %+v, want %+v; %s", damaged, err, got, want, out)
				}
			}
		})
	}
}

// TestVerifyWhatCannotBeRead: if the store works otherwise, the build is corrupt. If the store
// fails, the build is skipped.
func TestVerifyWhatCannotBeRead(t *testing.T) {
	eio := &os.PathError{Op: "read", Path: "x", Err: unix.EIO}
	unavailable := fmt.Errorf("%w: no route", ErrUnavailable)
	for _, c := range []struct {
		name       string
		open, read error
		times      int // how often it fails
		down       error
		want       verifyCounts
	}{
		{"EIO at a byte", nil, eio, 9, nil, verifyCounts{OK: 2, Corrupt: 1}},
		{"EIO at a byte, once", nil, eio, 1, nil, verifyCounts{OK: 3}},
		{"EIO at a byte of a store that fails", nil, eio, 9, eio, verifyCounts{OK: 2, Skipped: 1}},
		{"EIO when it is opened", eio, nil, 9, nil, verifyCounts{OK: 2, Corrupt: 1}},
		{"cut each time", nil, io.ErrUnexpectedEOF, 9, nil, verifyCounts{OK: 2, Corrupt: 1}},
		{"shorter than its size", nil, io.EOF, 9, nil, verifyCounts{OK: 2, Corrupt: 1}},
		{"unavailable when it is opened", unavailable, nil, 9, nil, verifyCounts{OK: 2, Skipped: 1}},
		{"unavailable when it is opened, twice", unavailable, nil, 2, nil, verifyCounts{OK: 3}},
		{"unavailable at a byte", nil, unavailable, 9, unavailable, verifyCounts{OK: 2, Skipped: 1}},
		{"denied", ErrDenied, nil, 9, nil, verifyCounts{OK: 2, Skipped: 1}},
		{"a wrong checksum of the store", nil, fmt.Errorf("at the end: %w", errChecksum), 1, nil, verifyCounts{OK: 2, Corrupt: 1}}, // at once
		{"busy", nil, ErrBusy, 9, nil, verifyCounts{OK: 2, Skipped: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openFaulty(t, t.TempDir())
			for _, build := range []string{"1", "2", "3"} {
				storeHashed(t, s, "a", build, largeOf(build[0]))
			}
			s.down = c.down
			var left sync.Map
			fails := func(build string, err error) error {
				if build != "2" || err == nil {
					return nil
				}
				n, _ := left.LoadOrStore("n", c.times)
				left.Store("n", n.(int)-1)
				if n.(int) <= 0 {
					return nil
				}
				return err
			}
			s.onFetch = func(build string) error { return fails(build, c.open) }
			s.onRead = func(build string, n int64) error {
				if n < 2000 {
					return nil
				}
				return fails(build, c.read)
			}
			v, out, err := verifyFaulty(t.Context(), s, verifyOptions{})
			got := v.state.Counts
			got.Sites, got.Bytes = 0, 0
			if err != nil || got != c.want {
				t.Errorf("%v, %+v, want %+v; %s", err, got, c.want, out)
			}
			if wrong := got.Corrupt+got.Skipped > 0; wrong != strings.Contains(out.String(), "a/2: ") {
				t.Errorf("the output is %s", out)
			}
		})
	}
}

// TestVerifyFillsNothingFromAShortRead: the digest of a part would make a sound build corrupt.
func TestVerifyFillsNothingFromAShortRead(t *testing.T) {
	s := openFaulty(t, t.TempDir())
	noError(t, s.StoreArtifact("a", "b", bytes.NewReader(largeOf(1))))
	s.onRead = func(_ string, n int64) error {
		if n >= 2000 {
			return io.EOF
		}
		return nil
	}
	v, out, err := verifyFaulty(t.Context(), s, verifyOptions{Fill: true})
	if err != nil || v.state.Counts.Corrupt != 1 || v.state.Counts.Filled != 0 || !strings.Contains(out.String(), "corrupt a/b: has 2000 bytes instead of ") {
		t.Errorf("%v, %+v; %s", err, v.state.Counts, out)
	}
	if _, err := s.nfs.KeptDigest("a", "b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a digest is kept: %v", err)
	}
}

// TestVerifyFillsWhatIsThere: a digest is not kept for a build that was replaced while it was read.
func TestVerifyFillsWhatIsThere(t *testing.T) {
	s := openFaulty(t, t.TempDir())
	noError(t, s.StoreArtifact("a", "b", bytes.NewReader(largeOf(1))))
	replaced := false
	s.onRead = func(_ string, n int64) error {
		if !replaced {
			replaced = true
			return s.StoreArtifact("a", "b", bytes.NewReader(largeOf(2)))
		}
		return nil
	}
	v, out, err := verifyFaulty(t.Context(), s, verifyOptions{Fill: true})
	kept, keptErr := s.nfs.KeptDigest("a", "b")
	if err != nil || v.state.Counts.Filled != 1 || len(s.fetched) != 2 || keptErr != nil || kept.SHA256 != sha256.Sum256(largeOf(2)) {
		t.Errorf("%v, %+v, read %v, kept %v, %v; %s", err, v.state.Counts, s.fetched, kept, keptErr, out)
	}
}

// TestVerifyListsAgain: one failure of a list skips nothing.
func TestVerifyListsAgain(t *testing.T) {
	s := openFaulty(t, t.TempDir())
	storeHashed(t, s, "a", "1", []byte("x"))
	var failed sync.Map
	s.siteFail = func(string) error {
		if n, _ := failed.LoadOrStore("n", 0); n.(int) < 2 { // verify and count
			failed.Store("n", n.(int)+1)
			return ErrUnavailable
		}
		return nil
	}
	if v, out, err := verifyFaulty(t.Context(), s, verifyOptions{}); err != nil || v.state.Counts.OK != 1 || v.state.Counts.Skipped != 0 {
		t.Errorf("%v, %+v; %s", err, v.state.Counts, out)
	}
}

// TestVerifyStopsWhenTheStoreFails: after a few failures in a row, and a resumed run begins
// before the first of them.
func TestVerifyStopsWhenTheStoreFails(t *testing.T) {
	base := t.TempDir()
	s := openFaulty(t, base)
	for i := range 20 {
		storeHashed(t, s, "a", fmt.Sprintf("%02d", 20-i), []byte("x")) // the newest is 01
	}
	down := fmt.Errorf("%w: no route", ErrUnavailable)
	s.onFetch = func(build string) error {
		if build > "07" && build != "15" {
			return down
		}
		return nil
	}
	v, out, err := verifyFaulty(t.Context(), s, verifyOptions{})
	if !errors.Is(err, errVerifyStops) || !errors.Is(err, ErrUnavailable) || v.state.Counts.OK != 7 || v.state.Counts.Skipped != verifyMaxFailed {
		t.Fatalf("%v, %+v; %s", err, v.state.Counts, out)
	}
	kept := readState(t, base)
	if kept.Complete || kept.Error == "" || kept.Finished.IsZero() || kept.Counts.OK != 7 || kept.Counts.Skipped != 0 {
		t.Fatalf("the state is %+v", kept)
	}
	s.onFetch, s.fetched = nil, nil
	v = newVerifier(s, verifyOptions{}, 0, v.report)
	resumed, err := v.begin(true, time.Now())
	if err == nil {
		err = v.run(t.Context())
	}
	slices.Sort(s.fetched)
	if err != nil || !resumed || v.state.Counts.OK != 20 || v.state.Counts.Skipped != 0 || len(s.fetched) != 13 || s.fetched[0] != "a/08" {
		t.Errorf("resumed %t: %v, %+v, read %v", resumed, err, v.state.Counts, s.fetched)
	}
}

// TestVerifySkipsASiteThatCannotBeListed, and goes on.
func TestVerifySkipsASiteThatCannotBeListed(t *testing.T) {
	s := openFaulty(t, t.TempDir())
	for _, site := range []string{"a", "b", "c"} {
		storeHashed(t, s, site, "1", []byte("x"))
	}
	s.siteFail = func(site string) error {
		if site == "b" {
			return ErrDenied
		}
		return nil
	}
	v, out, err := verifyFaulty(t.Context(), s, verifyOptions{})
	if err != nil || v.state.Counts.OK != 2 || v.state.Counts.Skipped != 1 || !strings.Contains(out.String(), "skipped b: cannot list the builds: ") {
		t.Errorf("%v, %+v; %s", err, v.state.Counts, out)
	}
}

// TestVerifyThatCannotKeepDigests stops: it would fail for each build.
func TestVerifyThatCannotKeepDigests(t *testing.T) {
	s := openFaulty(t, t.TempDir())
	for _, build := range []string{"1", "2", "3"} {
		noError(t, s.StoreArtifact("a", build, strings.NewReader("x")))
	}
	v, out, err := verifyFaulty(t.Context(), fullStore{s}, verifyOptions{Fill: true})
	if !errors.Is(err, errVerifyStops) || !errors.Is(err, ErrNoSpace) || v.state.Counts.builds() != 0 || len(s.fetched) > verifyReaders {
		t.Errorf("%v, %+v, read %v; %s", err, v.state.Counts, s.fetched, out)
	}
}

// fullStore has no space for digests.
type fullStore struct{ *faultyStore }

func (fullStore) KeepDigest(string, string, ArtifactInfo, Digest) error { return ErrNoSpace }

// TestVerifyThatCannotKeepADigestNow: a build that is locked, or a store that is busy, is skipped
// after a few attempts, without another read. The run ends only after several of them in a row.
func TestVerifyThatCannotKeepADigestNow(t *testing.T) {
	for _, c := range []struct {
		name   string
		fails  error
		times  int    // how often it fails
		builds string // for which builds; there are 0 to 9, and 9 is read first
		want   verifyCounts
		stops  bool
	}{
		{"locked, twice", ErrLocked, 2, "5", verifyCounts{Filled: 9, OK: 1, Rebound: 1}, false},
		{"locked", ErrLocked, 99, "5", verifyCounts{Filled: 8, OK: 1, Rebound: 1, Skipped: 1}, false},
		{"busy", ErrBusy, 99, "53", verifyCounts{Filled: 7, OK: 1, Rebound: 1, Skipped: 2}, false},
		{"the digest of the same bytes with another time", ErrUnavailable, 99, "0", verifyCounts{Filled: 9, Skipped: 1}, false},
		{"four in a row", ErrUnavailable, 99, "8765", verifyCounts{Filled: 5, OK: 1, Rebound: 1, Skipped: 4}, false},
		{"five in a row", ErrUnavailable, 99, "87654", verifyCounts{Filled: 1, Skipped: 5}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openFaulty(t, t.TempDir())
			storeHashed(t, s, "a", "0", []byte("x"))
			setTime(t, s.filePath("a", artifactsDir, "0"), time.Unix(1_700_000_000, 0))
			for build := 1; build <= 9; build++ {
				noError(t, s.StoreArtifact("a", fmt.Sprint(build), strings.NewReader("x")))
			}
			busy := &busyStore{faultyStore: s, fails: c.fails, times: c.times, builds: c.builds}
			v, out, err := verifyFaulty(t.Context(), busy, verifyOptions{Fill: true})
			got := v.state.Counts
			got.Sites, got.Bytes = 0, 0
			if got != c.want || errors.Is(err, errVerifyStops) != c.stops || (err != nil) != c.stops {
				t.Errorf("%v, %+v, want %+v; %s", err, got, c.want, out)
			}
			if c.want.Skipped > 0 && !strings.Contains(out.String(), "skipped a/"+c.builds[:1]+": cannot keep the digest: ") {
				t.Errorf("the output is %s", out)
			}
			if !c.stops && len(s.fetched) != 10 {
				t.Errorf("read %v", s.fetched)
			}
		})
	}
}

// busyStore fails to keep the digests of some builds a number of times.
type busyStore struct {
	*faultyStore
	fails  error
	times  int
	builds string
	mu     sync.Mutex
}

func (s *busyStore) KeepDigest(site, build string, of ArtifactInfo, sum Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.Contains(s.builds, build) && s.times > 0 {
		s.times--
		return s.fails
	}
	return s.faultyStore.KeepDigest(site, build, of, sum)
}

// TestVerifyOnAnObjectStore: what a tool did is a change, and what the service did is not. What is
// unknown is not fetched.
func TestVerifyOnAnObjectStore(t *testing.T) {
	data, other := largeOf(1), largeOf(2)
	for _, c := range []struct {
		name   string
		change func(t *testing.T, m *memBucket, s *objectStore)
		want   verifyCounts
	}{
		{"nothing", func(*testing.T, *memBucket, *objectStore) {}, verifyCounts{OK: 1}},
		{"other bytes by a tool", func(_ *testing.T, m *memBucket, _ *objectStore) { replaceObject(m, other, "", "") }, verifyCounts{Changed: 1}},
		{"the same bytes by a tool", func(_ *testing.T, m *memBucket, _ *objectStore) { replaceObject(m, data, "", "") }, verifyCounts{OK: 1, Rebound: 1}},
		{"an upload without a digest", func(t *testing.T, _ *memBucket, s *objectStore) { mustStore(t, s, "s", "b", other) }, verifyCounts{Unknown: 1}},
		{"bits of the object", func(_ *testing.T, m *memBucket, _ *objectStore) {
			o := m.objects[artifactCall]
			o.data = other
			m.objects[artifactCall] = o
		}, verifyCounts{Corrupt: 1}},
		{"the digest is gone", func(_ *testing.T, m *memBucket, _ *objectStore) { delete(m.objects, digestCall) }, verifyCounts{Unknown: 1}},
		{"bits of the digest", func(_ *testing.T, m *memBucket, _ *objectStore) {
			o := m.objects[digestCall]
			o.data = bytes.Replace(o.data, []byte("crc32c"), []byte("Crc32c"), 1)
			m.objects[digestCall] = o
		}, verifyCounts{DamagedDigests: 1}},
	} {
		m := newMemBucket()
		s := openDigests(m)
		mustStore(t, s, "s", "b", data)
		info, err := s.StatArtifact("s", "b")
		noError(t, err)
		noError(t, s.KeepDigest("s", "b", info, sha256.Sum256(data)))
		c.change(t, m, s)
		var mu sync.Mutex
		gets := 0
		m.fault = func(op, key string) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			if op == "get" && key == artifactCall {
				gets++
			}
			return false, nil
		}
		v, out, err := verifyFaulty(t.Context(), openDigests(m), verifyOptions{})
		got := v.state.Counts
		got.Sites, got.Bytes = 0, 0
		if err != nil || got != c.want || (gets == 0) != (c.want.Unknown+c.want.DamagedDigests == 1) {
			t.Errorf("%s: %v, %+v, want %+v, %d times fetched; %s", c.name, err, got, c.want, gets, out)
		}
	}
}
