package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// free reports whether a lock could be taken at once.
func free(t *testing.T, base, site, dir, build string, kind int16) bool {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(base, sitesDir, site, lockName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	switch err := lockFile(f, unix.F_OFD_SETLK, kind, lockRegion(dir, build)); err {
	case nil:
		return true
	case unix.EAGAIN, unix.EACCES:
		return false
	default:
		t.Fatal(err)
		return false
	}
}

func TestLocks(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	f := func(exclusive bool, dir, build string, sharedFree, exclusiveFree bool) {
		t.Helper()
		lock, err := n.lockBuild("s", artifactsDir, "b", exclusive)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.release()
		if err := lock.alive(); err != nil {
			t.Errorf("a lock that is held is not alive: %v", err)
		}
		if got := free(t, base, "s", dir, build, unix.F_RDLCK); got != sharedFree {
			t.Errorf("beside a lock (exclusive: %v) a shared one of %s/%s is free: %v", exclusive, dir, build, got)
		}
		if got := free(t, base, "s", dir, build, unix.F_WRLCK); got != exclusiveFree {
			t.Errorf("beside a lock (exclusive: %v) an exclusive one of %s/%s is free: %v", exclusive, dir, build, got)
		}
		lock.release()
		if !free(t, base, "s", dir, build, unix.F_WRLCK) {
			t.Error("a released lock is still held")
		}
	}
	f(true, artifactsDir, "b", false, false)
	f(false, artifactsDir, "b", true, false)
	f(true, artifactsDir, "b2", true, true)
	f(true, logsDir, "b", true, true)
}

func TestLostLockIsNotAlive(t *testing.T) {
	lock, err := openTestNFS(t, t.TempDir()).lockBuild("s", logsDir, "b", true)
	if err != nil {
		t.Fatal(err)
	}
	lock.release()
	wantError(t, lock.alive(), ErrUnavailable)
}

// Waiting callers get the lock one at a time, whichever process they belong to.
func TestLockWaiters(t *testing.T) {
	base := t.TempDir()
	stores := []*nfs{openTestNFS(t, base), openTestNFS(t, base)}
	const waiters = 2 * maxBuildWaiters
	done := make(chan error, waiters)
	var inside atomic.Int64
	for i := range waiters {
		go func() {
			lock, err := stores[i%2].lockBuild("s", logsDir, "b", true)
			if err == nil {
				if now := inside.Add(1); now != 1 {
					t.Errorf("%d are inside", now)
				}
				inside.Add(-1)
				lock.release()
			}
			done <- err
		}()
	}
	for range waiters {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// The lock file is never replaced.
func TestLockFileStays(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	path := filepath.Join(base, sitesDir, "s", lockName)
	mustStore(t, n, "s", "b", []byte("x"))
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	mustLog(t, n, "s", entry("1", "b", testTime))
	if err := n.DeleteArtifact("s", "b", Precondition{}); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(path)
	if err != nil || !os.SameFile(before, after) || after.Size() != 0 {
		t.Errorf("the lock file changed: %v, %v", after, err)
	}
}

// Reading from an unknown site, or deleting from it, does not create it.
func TestUnknownSiteIsNotMade(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	if err := n.DeleteArtifact("s", "b", Precondition{}); err != nil {
		t.Error(err)
	}
	wantError(t, n.DeleteArtifact("s", "b", exists), ErrPrecondition)
	_, err := n.FetchArtifact("s", "b")
	wantError(t, err, ErrNotFound)
	if _, err := n.ListVersions("s"); err != nil {
		t.Error(err)
	}
	wantFiles(t, base)
}

// On a local store a change of a build waits for any conditional change, and a
// conditional change also waits for every other change.
func TestChangesWaitForTheLockOfTheBuild(t *testing.T) {
	const (
		waits   = true
		goesOn  = false
		content = "new"
	)
	store := func(cond func(ArtifactInfo) Precondition) func(*nfs, ArtifactInfo) error {
		return func(n *nfs, old ArtifactInfo) error {
			_, err := n.StoreArtifactIf("s", "b", strings.NewReader(content), cond(old))
			return err
		}
	}
	remove := func(cond func(ArtifactInfo) Precondition) func(*nfs, ArtifactInfo) error {
		return func(n *nfs, old ArtifactInfo) error { return n.DeleteArtifact("s", "b", cond(old)) }
	}
	none := func(ArtifactInfo) Precondition { return Precondition{} }
	its := func(old ArtifactInfo) Precondition { return ifMatch(old.ETag) }
	since := func(old ArtifactInfo) Precondition { return Precondition{IfUnmodifiedSince: old.ModTime} }
	create := func(ArtifactInfo) Precondition { return createOnly }
	for _, c := range []struct {
		name              string
		change            func(*nfs, ArtifactInfo) error
		creates           bool // nothing is there before
		shared, exclusive bool // whether it waits for a lock of that kind
		after             string
	}{
		{"upload", store(none), false, goesOn, waits, content},
		{"upload with If-Match", store(its), false, waits, waits, content},
		{"upload with If-Unmodified-Since", store(since), false, waits, waits, content},
		{"create only", store(create), true, goesOn, waits, content},
		{"delete", remove(none), false, goesOn, waits, ""},
		{"delete with If-Match", remove(its), false, waits, waits, ""},
	} {
		for _, exclusive := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, exclusive %v", c.name, exclusive), func(t *testing.T) {
				t.Parallel()
				base := t.TempDir()
				ours, theirs := openTestNFS(t, base), openTestNFS(t, base)
				mustStore(t, theirs, "s", "other", []byte("x"))
				before := ""
				var old ArtifactInfo
				if !c.creates {
					before = "old"
					old = mustStoreIf(t, theirs, "s", "b", []byte(before), Precondition{})
				}
				lock, err := theirs.lockBuild("s", artifactsDir, "b", exclusive)
				if err != nil {
					t.Fatal(err)
				}
				defer lock.release()
				done := make(chan error, 1)
				go func() { done <- c.change(ours, old) }()
				if mustWait := exclusive && c.exclusive || !exclusive && c.shared; mustWait {
					select {
					case err := <-done:
						t.Fatalf("it did not wait: %v", err)
					case <-time.After(300 * time.Millisecond): // far longer than it takes without a lock
					}
					wantContentOf(t, theirs, before)
					lock.release()
				}
				select {
				case err := <-done:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(30 * time.Second):
					t.Fatal("it waits for ever")
				}
				wantContentOf(t, theirs, c.after)
			})
		}
	}
}

// wantContentOf fails unless build b of site s has the content want. An empty want means
// that there is no build.
func wantContentOf(t *testing.T, n *nfs, want string) {
	t.Helper()
	if want != "" {
		wantBytes(t, n, "s", "b", []byte(want))
		return
	}
	_, err := n.FetchArtifact("s", "b")
	wantError(t, err, ErrNotFound)
}

// holdSite locks all builds of a site, as a hanging process does, until the test ends or
// release is called.
func holdSite(t *testing.T, base, site string, kind int16) (release func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(base, sitesDir, site, lockName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Whence: io.SeekStart}); err != nil {
		t.Fatal(err)
	}
	return func() { f.Close() }
}

// openOn returns how many descriptors of this process are open on the file at path, even
// if it was removed.
func openOn(t *testing.T, path string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		at, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		if strings.TrimSuffix(at, " (deleted)") == path {
			n++
		}
	}
	return n
}

// openLocks is openOn of the lock file of a site.
func openLocks(t *testing.T, base, site string) int {
	t.Helper()
	return openOn(t, filepath.Join(base, sitesDir, site, lockName))
}

// The wait for a lock that is never released is bounded, for every caller and kind of
// store.
func TestWaitForALockIsBounded(t *testing.T) {
	for _, remote := range []bool{false, true} {
		for _, exclusive := range []bool{false, true} {
			t.Run(fmt.Sprintf("remote %v, exclusive %v", remote, exclusive), func(t *testing.T) {
				t.Parallel()
				n := openTestNFS(t, t.TempDir())
				n.remote = remote
				mustStore(t, n, "s", "b", []byte("x"))
				release := holdSite(t, n.base, "s", unix.F_WRLCK)
				start := time.Now()
				_, err := n.lockBuild("s", artifactsDir, "b", exclusive)
				wantError(t, err, ErrUnavailable)
				for _, want := range []string{`"b"`, "5s", ErrLocked.Error()} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("the error does not tell %s: %v", want, err)
					}
				}
				if waited := time.Since(start); waited < lockWait { // no longer is not to be timed here
					t.Errorf("it waited %s only", waited)
				}
				release()
				lock, err := n.lockBuild("s", artifactsDir, "b", exclusive)
				if err != nil {
					t.Fatal(err)
				}
				lock.release()
				if got := openLocks(t, n.base, "s"); got != 0 {
					t.Errorf("%d descriptors stay open", got)
				}
			})
		}
	}
}

// The number of waiting callers is limited per build and per site, separately for reads
// and changes. One more is rejected at once, and no other caller is.
func TestWaitersForLocksAreCounted(t *testing.T) {
	t.Parallel()
	n := openTestNFS(t, t.TempDir())
	n.lockWait = 10 * time.Minute
	mustStore(t, n, "s", "b", []byte("x"))
	mustStore(t, n, "t", "b", []byte("x"))
	release := holdSite(t, n.base, "s", unix.F_WRLCK)
	change := func(site, build string) error {
		lock, err := n.lockBuild(site, artifactsDir, build, true)
		if err == nil {
			lock.release()
		}
		return err
	}
	read := func(site, build string) error {
		lock, err := n.lockToRead(site, artifactsDir, build)
		if err == nil {
			lock.release()
		}
		return err
	}
	done := make(chan error)
	started := 0
	wait := func(take func(site, build string) error, build string, waiters int) {
		t.Helper()
		for range waiters {
			go func() { done <- take("s", build) }()
		}
		started += waiters
		eventually(t, "all of them wait", func() bool { return n.waiting.inUse() == int64(started) })
	}
	for _, kind := range []struct {
		name string
		take func(site, build string) error
	}{{"changes", change}, {"reads", read}} {
		wait(kind.take, "b", maxBuildWaiters)
		wantError(t, kind.take("s", "b"), ErrBusy)
		wait(kind.take, "c", maxSiteWaiters-maxBuildWaiters)
		wantError(t, kind.take("s", "d"), ErrBusy)
		if err := kind.take("t", "b"); err != nil {
			t.Errorf("%s of another site: %v", kind.name, err)
		}
	}
	if got := openLocks(t, n.base, "s"); got != started+1 {
		t.Errorf("%d descriptors are open for %d waiters", got, started)
	}
	release()
	for range started {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if got, open := n.waiting.inUse(), openLocks(t, n.base, "s"); got != 0 || open != 0 {
		t.Errorf("%d places and %d descriptors are not given back", got, open)
	}
}

// A process that holds a lock and hangs blocks only the changes of that site, and these
// end with 503.
func TestStuckLockOfASite(t *testing.T) {
	t.Parallel()
	n := openTestNFS(t, t.TempDir())
	s, _ := startBackend(t, n)
	for _, site := range []string{"stuck", "other"} {
		s.put(t, 201, "/sites/"+site+"/artifacts/b", "old")
		s.do(t, 201, postOf(site, "1"))
	}
	release := holdSite(t, n.base, "stuck", unix.F_RDLCK)
	var reqs []request
	for i := range 300 {
		reqs = append(reqs, postOf("stuck", fmt.Sprint("refused-", i)))
	}
	for range 10 {
		reqs = append(reqs, putOf("/sites/stuck/artifacts/b", "new", "If-Match", "*"),
			request{"DELETE", "/sites/stuck/artifacts/b", nil, header("If-Match", "*")},
			request{"POST", "/sites/stuck/logs", `{"build_id":"first","action":"deploy","status":"ok"}`, nil})
	}
	done := make(chan any)
	for _, r := range reqs {
		go func() { done <- statusOr(s.try(r)) }()
	}
	eventually(t, "as many wait as may", func() bool { return n.waiting.inUse() > maxBuildWaiters })
	for i := range 5 { // meanwhile
		s.get(t, 200, "/sites/other/artifacts/b")
		s.get(t, 200, "/sites/other/versions")
		s.get(t, 200, "/sites/stuck/artifacts/b")
		s.put(t, 201, fmt.Sprint("/sites/other/artifacts/c", i), "new", "If-None-Match", "*")
		s.do(t, 201, postOf("other", fmt.Sprint("more-", i)))
	}
	for range reqs {
		if status := <-done; status != 503 {
			t.Errorf("a change of the stuck site: %d", status)
		}
	}
	if got, open := n.waiting.inUse(), openLocks(t, n.base, "stuck"); got != 0 || open != 1 || len(n.appends.queues) != 0 {
		t.Errorf("%d places, %d descriptors and %d queues stay", got, open-1, len(n.appends.queues))
	}
	if !strings.Contains(s.log.String(), ErrLocked.Error()) {
		t.Error("the cause is not in the log")
	}
	release()
	for dir, want := range map[string]string{artifactsDir: "[b=3]", logsDir: "[b=1]"} {
		if got := contentOf(filepath.Join(n.base, sitesDir, "stuck", dir)); got != want {
			t.Errorf("%s then has %s, not %s", dir, got, want)
		}
	}
	s.do(t, 201, postOf("stuck", "2"))
	s.put(t, 201, "/sites/stuck/artifacts/b", "new", "If-Match", "*")
	if v := versionOf(t, n, "stuck", "b"); len(v.Logs) != 2 {
		t.Errorf("the log has %d entries", len(v.Logs))
	}
	s.do(t, 204, request{"DELETE", "/sites/stuck/artifacts/b", nil, header("If-Match", "*")})
}

// An error that the lock manager gives for a while is no "no locks here", which
// would let a change run without a lock.
func TestLockErrors(t *testing.T) {
	f := func(cause, want error) { t.Helper(); wantError(t, lockError("/p", cause), want) }
	f(unix.ENOLCK, ErrUnavailable)
	f(unix.EOPNOTSUPP, ErrUnsupported)
	f(unix.ENOSYS, ErrUnsupported)
	f(unix.EINVAL, ErrUnsupported)
	f(unix.ESTALE, ErrUnavailable)
	f(unix.EROFS, ErrReadOnly)
}
