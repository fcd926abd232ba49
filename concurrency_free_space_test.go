package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	r := &freeSpace{min: 1}
	var c *reservation
	r.space = &cachedProbe[Space]{probe: r.watch(func() (Space, error) {
		c.allocated(meanwhile)
		return Space{FreeBytes: free, TotalBytes: 2 * free}, nil
	})}
	c, err := r.admit(size) // asks, while there is no upload yet
	if err != nil {
		t.Fatal(err)
	}
	left := func() int64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.free - r.written - r.reserved
	}
	if got := left(); got != free-size {
		t.Fatalf("%d bytes are left, not %d", got, free-size)
	}
	c.allocated(before)
	if got := left(); got != free-size {
		t.Errorf("of what is claimed %d bytes were placed: %d are left, not %d", before, got, free-size)
	}
	if _, err := r.space.get(0); err != nil {
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
	r := &freeSpace{min: 1}
	r.space = &cachedProbe[Space]{probe: r.watch(func() (Space, error) { return Space{FreeBytes: free, TotalBytes: 200}, nil })}
	c, err := r.admit(60)
	if err != nil {
		t.Fatal(err)
	}
	c.allocated(20)
	free -= 20 // as the store counts
	if _, err := r.space.get(0); err != nil {
		t.Fatal(err)
	}
	if err := c.received(20); err != nil {
		t.Fatal(err)
	}
	if _, err := r.admit(40); !errors.Is(err, ErrNoSpace) { // 80 are free, and 40 are still to come
		t.Errorf("the space of an upload under way was given away: %v", err)
	}
	if _, err := r.admit(39); err != nil {
		t.Errorf("space that is free was refused: %v", err)
	}
}

func TestWindowOf(t *testing.T) {
	const mib = 1 << 20
	f := func(sent, size, want int64) {
		t.Helper()
		if got := windowOf(sent, size); got != want {
			t.Errorf("windowOf(%d, %d) = %d, want %d", sent, size, got, want)
		}
	}
	f(0, 10, 10)
	f(4, 10, 6)
	f(10, 10, 0)
	f(0, 500*mib, mib)
	f(mib+1, 500*mib, mib+1)
	f(300*mib, 800*mib, 256*mib)
	f(300*mib, 310*mib, 10*mib)
}

// The window follows what was sent, and is given up where others have filled the
// store: an upload fails when there is no room for what it sent.
func TestTheWindowMoves(t *testing.T) {
	const mib = 1 << 20
	free := uint64(100 * mib)
	r := &freeSpace{min: 10 * mib}
	r.space = &cachedProbe[Space]{probe: r.watch(func() (Space, error) { return Space{FreeBytes: free, TotalBytes: 200 * mib}, nil })}
	c, err := r.admit(90 * mib)
	if err != nil {
		t.Fatal(err)
	}
	step := func(name string, n, others, claimed int64, want error) {
		t.Helper()
		free -= uint64(n + others)
		r.at = time.Time{} // so that the store is asked after these bytes are counted
		err := c.received(n)
		if !errors.Is(err, want) || (err == nil) != (want == nil) || r.reserved != claimed {
			t.Errorf("%s: %v, %d bytes claimed; want %v, %d", name, err, r.reserved, want, claimed)
		}
	}
	step("the first bytes", 1000, 0, mib, nil)
	step("a window as large as what was sent", 20*mib-1000, 0, 20*mib, nil)
	step("others leave less than the window", 10*mib, 45*mib, 15*mib, nil)
	step("others leave nothing", mib, 14*mib, 0, nil)
	step("nothing more fits", mib, 0, 0, ErrNoSpace)
	c.release()
	if r.reserved != 0 || r.uploads != 0 {
		t.Errorf("%d bytes and %d uploads stay claimed", r.reserved, r.uploads)
	}
}

func TestInodesAreKept(t *testing.T) {
	f := func(name string, free, total uint64, under, made int64, want error) {
		t.Helper()
		r := &freeSpace{min: 1, uploads: under, made: made}
		r.space = &cachedProbe[Space]{probe: r.watch(func() (Space, error) {
			r.made += made // while it answers
			return Space{FreeBytes: 1 << 30, TotalBytes: 1 << 40, FreeInodes: free, TotalInodes: total}, nil
		})}
		c, err := r.admit(1)
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if err != nil && !strings.Contains(err.Error(), "inodes") {
			t.Errorf("%s: the error does not say what is missing: %v", name, err)
		}
		c.release()
	}
	f("the store does not tell", 0, 0, 0, 0, nil)
	f("plenty", 1<<40, 1<<41, 0, 0, nil)
	f("what is kept is there", 1024, 1<<20, 0, 0, nil)
	f("one is missing", 1023, 1<<20, 0, 0, ErrNoSpace)
	f("others under way", 1033, 1<<20, 10, 0, ErrNoSpace)
	f("others under way, and enough", 1034, 1<<20, 10, 0, nil)
	f("made meanwhile", 1033, 1<<20, 0, 10, ErrNoSpace)
	f("made meanwhile, and enough", 1034, 1<<20, 0, 10, nil)
	f("a small store", 10, 160, 0, 0, nil)
	f("a small store, one missing", 9, 160, 0, 0, ErrNoSpace)
	f("a tiny store", 0, 15, 0, 0, nil)
	f("none of many", 0, 1<<20, 0, 0, ErrNoSpace)
}

// Uploads end before they have used up the inodes that a log and a deletion need.
func TestInodesAreKeptForLogs(t *testing.T) {
	dir := t.TempDir()
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m,nr_inodes=320")
	if err == unix.EPERM || err == unix.EACCES {
		t.Skip("a small file system can only be mounted by root")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s := startServer(t, "NFS_BASE_PATH="+dir, "MIN_FREE_SPACE=1MiB")
	put := func(i int) any {
		return statusOr(s.try(request{"PUT", fmt.Sprint("/sites/a/artifacts/b", i), "x", nil}))
	}
	stored := 0
	for put(stored) == 201 {
		stored++
	}
	if got := put(stored); got != 507 || stored < 200 {
		t.Fatalf("after %d uploads: %v, want 507", stored, got)
	}
	s.waitForLog(t, "inodes are free")
	for i := range 3 {
		s.post(t, 201, "/sites/a/logs", fmt.Sprintf(`{"build_id":"b%d","action":"deploy","status":"ok"}`, i))
	}
	for i := range 30 {
		s.do(t, 204, request{"DELETE", fmt.Sprint("/sites/a/artifacts/b", i), nil, nil})
	}
	eventually(t, "there are inodes again", func() bool { return put(0) == 201 })
}

// The error of an upload of unknown size names no size that is needed.
func TestErrorOfAFullStore(t *testing.T) {
	f := func(size int64, want string) {
		t.Helper()
		err := (&freeSpace{min: 100}).full(5, size)
		if want = ErrNoSpace.Error() + ": 5 bytes are available beyond the 100 reserved" + want; err.Error() != want {
			t.Errorf("size %d: %q, want %q", size, err, want)
		}
	}
	f(10, ", but 10 are needed")
	f(-1, "")
}
