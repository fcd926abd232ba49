package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What other replicas write into the store is noticed within spaceKeep.
func TestTheReserveIsKeptFromOthers(t *testing.T) {
	t.Parallel()
	s := startSized(t, 1_000_000, "MIN_FREE_SPACE=500000")
	s.put(t, 201, "/sites/a/artifacts/b", "x")
	if err := os.WriteFile(filepath.Join(s.dir, sitesDir, "a", artifactsDir, "theirs"+artifactSuffix), make([]byte, 600_000), 0o644); err != nil {
		t.Fatal(err)
	}
	time.Sleep(spaceKeep + 10*time.Millisecond) // the answer that is known is now too old
	s.put(t, 507, "/sites/a/artifacts/b", "yy")
	s.put(t, 507, "/sites/a/artifacts/b", unsized([]byte("yy")))
	if r := s.get(t, 200, "/sites/a/artifacts/b"); string(r.body) != "x" {
		t.Errorf("the build is now %q", r.body)
	}
}

// unaskable is a store that does not tell its size.
type unaskable struct{ *nfs }

func (unaskable) Space() (Space, error) { return Space{}, ErrUnavailable }

// A store that does not tell what is free takes no uploads: it may be full.
func TestTheReserveOfAStoreThatDoesNotAnswer(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	s, _ := startBackend(t, unaskable{n}, "MIN_FREE_SPACE=1")
	for _, body := range []any{"x", unsized([]byte("x"))} {
		if r := s.put(t, 503, "/sites/a/artifacts/b", body); r.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	if files := filesBelow(t, n.base); len(files) > 0 {
		t.Errorf("the store holds %v", files)
	}
	s, _ = startBackend(t, unaskable{n}, "MIN_FREE_SPACE=0") // without a reserve nobody asks
	s.put(t, 201, "/sites/a/artifacts/b", "x")
}

// What is written while the store answers may not be in its answer, and counts.
func TestReserveCountsWhatIsWrittenMeanwhile(t *testing.T) {
	const free, size, before, meanwhile = 1000, 500, 100, 200
	r := &reserve{min: 1}
	var c *claim
	r.space = &lookup[Space]{ask: r.watch(func() (Space, error) {
		c.placed(meanwhile)
		return Space{FreeBytes: free, TotalBytes: 2 * free}, nil
	})}
	c, err := r.admit(size) // asks, while there is no upload yet
	if err != nil {
		t.Fatal(err)
	}
	left := func() int64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.free - r.written - r.claimed
	}
	if got := left(); got != free-size {
		t.Fatalf("%d bytes are left, not %d", got, free-size)
	}
	c.placed(before)
	if got := left(); got != free-size {
		t.Errorf("of what is claimed %d bytes were placed: %d are left, not %d", before, got, free-size)
	}
	if _, err := r.space.look(0); err != nil {
		t.Fatal(err)
	}
	// The answer has what was placed before it was asked for.
	if got, want := left(), int64(free-size+before); got != want {
		t.Errorf("%d bytes are left after the answer, not %d", got, want)
	}
	// What was claimed and never written is free again, once.
	for range 2 {
		c.release()
		if got, want := left(), int64(free-meanwhile); got != want {
			t.Errorf("%d bytes are left after the upload, not %d", got, want)
		}
	}
}

// What was allocated and then arrives is counted once: the rest of the upload
// keeps its claim.
func TestReserveCountsWhatWasPlacedOnce(t *testing.T) {
	free := uint64(100)
	r := &reserve{min: 1}
	r.space = &lookup[Space]{ask: r.watch(func() (Space, error) { return Space{FreeBytes: free, TotalBytes: 200}, nil })}
	c, err := r.admit(60)
	if err != nil {
		t.Fatal(err)
	}
	c.placed(20)
	free -= 20 // as the store counts
	if _, err := r.space.look(0); err != nil {
		t.Fatal(err)
	}
	if err := c.took(20); err != nil {
		t.Fatal(err)
	}
	if _, err := r.admit(40); !errors.Is(err, ErrNoSpace) { // 80 are free, and 40 are still to come
		t.Errorf("the space of an upload under way was given away: %v", err)
	}
	if _, err := r.admit(39); err != nil {
		t.Errorf("space that is free was refused: %v", err)
	}
}
