package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// fsyncs records every fsync of a store, and can make some of them fail.
type fsyncs struct {
	base string
	n    *nfs

	mu          sync.Mutex
	seen        []string
	files, dirs int                     // how many there were of each kind
	before      func(path string) error // called before each fsync, which fails with its error; nil: none
}

// watchFsyncs opens the store at base and records its fsyncs.
func watchFsyncs(t *testing.T, base string) *fsyncs {
	t.Helper()
	w := &fsyncs{n: openTestNFS(t, base)}
	w.base = w.n.base
	w.n.disk.fsyncs.fsyncHook = w.fsync
	return w
}

var tempName = regexp.MustCompile(`\.tmp-\w+`)

// fsync records what is made durable, and the content of the directory at that moment. So
// it also shows the order of the calls around it.
func (w *fsyncs) fsync(f *os.File) error {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	path, err = filepath.Rel(w.base, path)
	if err != nil {
		return err
	}
	path = tempName.ReplaceAllString(path, ".tmp")
	w.mu.Lock()
	defer w.mu.Unlock()
	dir := path
	if st.IsDir() {
		w.dirs++
	} else {
		w.files++
		dir = filepath.Dir(path)
	}
	w.seen = append(w.seen, path+" "+contentOf(filepath.Join(w.base, dir)))
	if w.before != nil {
		if err := w.before(path); err != nil {
			return err
		}
	}
	return unix.Fsync(int(f.Fd()))
}

// contentOf lists a directory: each artifact with its size, each log with its number of
// entries.
func contentOf(dir string) string {
	var list []string
	names, err := os.ReadDir(dir)
	if err != nil {
		return err.Error()
	}
	for _, n := range names {
		name := tempName.ReplaceAllString(n.Name(), ".tmp")
		data, _ := os.ReadFile(filepath.Join(dir, n.Name()))
		switch {
		case strings.HasPrefix(name, "."):
		case strings.HasSuffix(name, artifactSuffix):
			name = fmt.Sprintf("%s=%d", strings.TrimSuffix(name, artifactSuffix), len(data))
		case strings.HasSuffix(name, logSuffix):
			name = fmt.Sprintf("%s=%d", strings.TrimSuffix(name, logSuffix), bytes.Count(data, []byte(`"build_id"`)))
		}
		list = append(list, name)
	}
	slices.Sort(list)
	return "[" + strings.Join(list, " ") + "]"
}

// take returns the fsyncs since the last take.
func (w *fsyncs) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

// metric returns what /metrics reports about the fsyncs.
func (w *fsyncs) metric(of string) string {
	var b bytes.Buffer
	w.n.disk.metrics.set.WritePrometheus(&b)
	name := `pagewright_fsync_seconds_count{of="` + of + `"} `
	for line := range strings.Lines(b.String()) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// syncedRequest is a request and the fsyncs that it needs.
type syncedRequest struct {
	name   string
	req    request
	status int
	before func(t *testing.T, base string) // done by another process
	fsyncs []string                        // in this order, each with what its directory held then
}

func putOf(path, body string, h ...string) request { return request{"PUT", path, body, header(h...)} }

func deleteOf(path string) request { return request{"DELETE", path, nil, nil} }

func postOf(site, key string) request {
	return request{"POST", "/sites/" + site + "/logs", `{"build_id":"b","action":"deploy","status":"ok"}`, header("Idempotency-Key", key)}
}

// remade replaces a directory below base by an empty one. The old one keeps another name,
// so that its inode number is not reused.
func remade(names ...string) func(*testing.T, string) {
	return func(t *testing.T, base string) {
		path := filepath.Join(append([]string{base}, names...)...)
		if err := errors.Join(os.Rename(path, filepath.Join(base, "away-"+filepath.Base(path))), os.Mkdir(path, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
}

// The exact fsyncs of each request: what they make durable, in which order, and that the
// change was visible before.
func TestFsyncsOfEachRequest(t *testing.T) {
	base := t.TempDir()
	w := watchFsyncs(t, base)
	s, _ := startBackend(t, w.n)
	run := func(steps []syncedRequest) {
		t.Helper()
		for _, step := range steps {
			if step.before != nil {
				step.before(t, base)
			}
			s.do(t, step.status, step.req)
			if got := w.take(); !slices.Equal(got, step.fsyncs) {
				t.Errorf("%s:\ngot  %s\nwant %s", step.name, strings.Join(got, "\n     "), strings.Join(step.fsyncs, "\n     "))
			}
			for of, n := range map[string]int{"file": w.files, "directory": w.dirs} {
				if got := w.metric(of); got != fmt.Sprint(n) {
					t.Errorf("%s: the metric counts %s fsyncs of a %s, not %d", step.name, got, of, n)
				}
			}
		}
	}
	const b, c = "/sites/s/artifacts/b", "/sites/s/artifacts/c"
	run([]syncedRequest{
		{"the first build of all", putOf(b, "x"), 201, nil, []string{
			". [sites]",
			"sites [s]",
			"sites/s [artifacts]",
			"sites/s/artifacts/.tmp [.tmp]",
			"sites/s [.lock artifacts]",
			"sites/s/artifacts [b=1]",
		}},
		{"the first build of another site", putOf("/sites/s2/artifacts/b", "x"), 201, nil, []string{
			"sites [s s2]",
			"sites/s2 [artifacts]",
			"sites/s2/artifacts/.tmp [.tmp]",
			"sites/s2 [.lock artifacts]",
			"sites/s2/artifacts [b=1]",
		}},
		{"a replacement", putOf(b, "xx"), 201, nil, []string{
			"sites/s/artifacts/.tmp [.tmp b=1]",
			"sites/s/artifacts [b=2]",
		}},
		{"a replacement on a condition", putOf(b, "xxx", "If-Match", "*"), 201, nil, []string{
			"sites/s/artifacts/.tmp [.tmp b=2]",
			"sites/s/artifacts [b=3]",
		}},
		{"create-only", putOf(c, "x", "If-None-Match", "*"), 201, nil, []string{
			"sites/s/artifacts/.tmp [.tmp b=3]",
			"sites/s/artifacts [b=3 c=1]",
		}},
		{"create-only where a build is", putOf(c, "xx", "If-None-Match", "*"), 412, nil, nil},
		{"DELETE", deleteOf(c), 204, nil, []string{
			"sites/s/artifacts [b=3]",
		}},
		{"DELETE of what is not there", deleteOf(c), 204, nil, []string{
			"sites/s/artifacts [b=3]", // who deleted it may not have synced yet
		}},
		{"DELETE in a site that is not there", deleteOf("/sites/none/artifacts/b"), 204, nil, nil},
		{"the first log entry", postOf("s", "1"), 201, nil, []string{
			"sites/s [.lock artifacts logs]",
			"sites/s/logs/.tmp [.tmp]",
			"sites/s/logs [b=1]",
		}},
		{"a further log entry", postOf("s", "2"), 201, nil, []string{
			"sites/s/logs/.tmp [.tmp b=1]",
			"sites/s/logs [b=2]",
		}},
		{"the same log entry again", postOf("s", "2"), 201, nil, []string{
			"sites/s/logs [b=2]", // who wrote it may not have synced yet
		}},
		{"a log entry, logs was made anew", postOf("s", "3"), 201, remade("sites", "s", "logs"), []string{
			"sites/s [.lock artifacts logs]",
			"sites/s/logs/.tmp [.tmp]",
			"sites/s/logs [b=1]",
		}},
		{"a build, artifacts was made anew", putOf(b, "x"), 201, remade("sites", "s", "artifacts"), []string{
			"sites/s [.lock artifacts logs]",
			"sites/s/artifacts/.tmp [.tmp]",
			"sites/s/artifacts [b=1]",
		}},
		{"a build, its site was made anew", putOf("/sites/s2/artifacts/b", "x"), 201, remade("sites", "s2"), []string{
			"sites [s s2]",
			"sites/s2 [artifacts]",
			"sites/s2/artifacts/.tmp [.tmp]",
			"sites/s2 [.lock artifacts]",
			"sites/s2/artifacts [b=1]",
		}},
	})

	// Another process may have made the directories, and not have synced them.
	w = watchFsyncs(t, base)
	s, _ = startBackend(t, w.n)
	run([]syncedRequest{
		{"the first build of a process", putOf(b, "xx"), 201, nil, []string{
			". [away-artifacts away-logs away-s2 sites]",
			"sites [s s2]",
			"sites/s [.lock artifacts logs]",
			"sites/s/artifacts/.tmp [.tmp b=1]",
			"sites/s/artifacts [b=2]",
		}},
		{"the first log entry of a process", postOf("s", "4"), 201, nil, []string{
			"sites/s [.lock artifacts logs]",
			"sites/s/logs/.tmp [.tmp b=1]",
			"sites/s/logs [b=2]",
		}},
	})
}

// A request with a failed fsync is not acknowledged, and the next request repeats that
// fsync.
func TestFailedFsyncIsNotAcknowledged(t *testing.T) {
	const b = "/sites/s/artifacts/b"
	artifacts, logs := "sites/s/artifacts", "sites/s/logs"
	for _, test := range []struct {
		name   string
		req    request
		fails  string // what is fsynced
		with   error
		status int
		then   string // what is in artifacts and logs
		again  int    // status of the same request without the fault
		syncs  string // the same fsync is made then
	}{
		{"PUT, file", putOf(b, "xx"), artifacts + "/.tmp", unix.EIO, 500, "[b=1] [b=1]", 201, artifacts + "/.tmp"},
		{"PUT, file: disk full", putOf(b, "xx"), artifacts + "/.tmp", unix.ENOSPC, 507, "[b=1] [b=1]", 201, artifacts + "/.tmp"},
		{"PUT, directory", putOf(b, "xx"), artifacts, unix.EIO, 500, "[b=2] [b=1]", 201, artifacts},
		{"PUT, directory: disk full", putOf(b, "xx"), artifacts, unix.ENOSPC, 507, "[b=2] [b=1]", 201, artifacts},
		{"PUT, file: the mount cannot", putOf(b, "xx"), artifacts + "/.tmp", unix.EINVAL, 500, "[b=1] [b=1]", 201, artifacts + "/.tmp"},
		{"PUT, directory: the mount cannot", putOf(b, "xx"), artifacts, unix.EINVAL, 201, "[b=2] [b=1]", 201, artifacts},
		{"PUT, directory: the mount does not", putOf(b, "xx"), artifacts, unix.ENOTSUP, 201, "[b=2] [b=1]", 201, artifacts},
		{"create-only, directory", putOf("/sites/s/artifacts/c", "xx", "If-None-Match", "*"), artifacts, unix.EIO, 500, "[b=1 c=2] [b=1]", 412, ""},
		{"a new process, base", putOf(b, "xx"), ".", unix.EIO, 500, "[b=1] [b=1]", 201, "."},
		{"a new process, sites", putOf(b, "xx"), "sites", unix.EIO, 500, "[b=1] [b=1]", 201, "sites"},
		{"a new process, site", putOf(b, "xx"), "sites/s", unix.EIO, 500, "[b=1] [b=1]", 201, "sites/s"},
		{"DELETE", deleteOf(b), artifacts, unix.EIO, 500, "[] [b=1]", 204, artifacts},
		{"DELETE of what is not there", deleteOf("/sites/s/artifacts/c"), artifacts, unix.EIO, 500, "[b=1] [b=1]", 204, artifacts},
		{"entry, file", postOf("s", "2"), logs + "/.tmp", unix.EIO, 500, "[b=1] [b=1]", 201, logs + "/.tmp"},
		{"entry, directory", postOf("s", "2"), logs, unix.EIO, 500, "[b=1] [b=2]", 201, logs},
		{"first entry of a new process, site", postOf("s", "2"), "sites/s", unix.EIO, 500, "[b=1] [b=1]", 201, "sites/s"},
		{"repeated entry", postOf("s", "1"), logs, unix.EIO, 500, "[b=1] [b=1]", 201, logs},
	} {
		t.Run(test.name, func(t *testing.T) {
			base := t.TempDir()
			first := openTestNFS(t, base)
			mustStore(t, first, "s", "b", []byte("x"))
			s, _ := startBackend(t, first)
			s.do(t, 201, postOf("s", "1"))

			w := watchFsyncs(t, base) // which knows of no directory that it is durable
			s, _ = startBackend(t, w.n)
			failed := false
			w.before = func(path string) error {
				if path != test.fails || failed {
					return nil
				}
				failed = true
				return test.with
			}
			s.do(t, test.status, test.req)
			if !failed {
				t.Fatalf("no fsync of %q: %q", test.fails, w.take())
			}
			site := filepath.Join(base, sitesDir, "s")
			if got := contentOf(filepath.Join(site, artifactsDir)) + " " + contentOf(filepath.Join(site, logsDir)); got != test.then {
				t.Errorf("then there is %s, not %s", got, test.then)
			}
			w.take()
			s.do(t, test.again, test.req)
			if got := w.take(); test.syncs != "" && !slices.ContainsFunc(got, func(line string) bool {
				return strings.HasPrefix(line, test.syncs+" ")
			}) {
				t.Errorf("the next request does not fsync %q: %q", test.syncs, got)
			}
		})
	}
}

// The same for a request that creates the lock file: the file is durable before it
// protects anything.
func TestFailedFsyncOfALockFileIsNotAcknowledged(t *testing.T) {
	w := watchFsyncs(t, t.TempDir())
	mustStore(t, w.n, "s", "b", []byte("old"))
	if err := os.Remove(filepath.Join(w.base, sitesDir, "s", lockName)); err != nil {
		t.Fatal(err)
	}
	w.before = func(path string) error {
		if path == "sites/s" {
			return unix.EIO
		}
		return nil
	}
	wantError(t, w.n.StoreArtifact("s", "b", known([]byte("new"))), unix.EIO)
	wantBytes(t, w.n, "s", "b", []byte("old"))
}

// A mount that cannot fsync a directory is reported once.
func TestMountThatCannotFsyncDirectories(t *testing.T) {
	w := watchFsyncs(t, t.TempDir())
	log := &lockedBuffer{}
	w.n.disk.log = newLog(&Config{}, log)
	w.before = func(path string) error {
		if strings.HasSuffix(path, ".tmp") {
			return nil
		}
		return unix.EINVAL
	}
	mustStore(t, w.n, "s", "b", []byte("x"))
	mustStore(t, w.n, "s", "b", []byte("y"))
	if n := strings.Count(log.String(), "cannot fsync directories"); n != 1 || !w.n.disk.noDirSync.Load() {
		t.Errorf("reported %d times, kept in mind: %v\n%s", n, w.n.disk.noDirSync.Load(), log)
	}
}

// NFS reports a full disk on close. Here the test closes the file first, so that the
// close by the store fails.
func TestFailedCloseIsNotAcknowledged(t *testing.T) {
	w := watchFsyncs(t, t.TempDir())
	s, _ := startBackend(t, w.n)
	s.put(t, 201, "/sites/s/artifacts/b", "old")
	s.do(t, 201, postOf("s", "1"))
	w.n.disk.fsyncs.fsyncHook = func(f *os.File) error {
		err := w.fsync(f)
		if strings.Contains(f.Name(), tempPrefix) {
			f.Close()
		}
		return err
	}
	for _, req := range []request{
		putOf("/sites/s/artifacts/b", "newer"),
		putOf("/sites/s/artifacts/c", "x", "If-None-Match", "*"),
		postOf("s", "2"),
	} {
		s.do(t, 500, req)
		if !strings.Contains(s.log.String(), "cannot close") {
			t.Errorf("%s %s: the cause is not in the log", req.method, req.path)
		}
		site := filepath.Join(w.base, sitesDir, "s")
		if got := contentOf(filepath.Join(site, artifactsDir)) + contentOf(filepath.Join(site, logsDir)); got != "[b=3][b=1]" {
			t.Errorf("%s %s: then there is %s", req.method, req.path, got)
		}
	}
}

// A shared sync reports an error once, to one of its callers. So every write that began
// before the report fails.
func TestSyncErrorReportedToAnotherWrite(t *testing.T) {
	toldTo := func(w *fsyncs) { w.n.disk.fsyncs.failures.Add(1) }
	for _, test := range []struct {
		name string
		when func(w *fsyncs, temp *tempFile) // nil: never
		seal error
		sync error
	}{
		{"to nobody", func(*fsyncs, *tempFile) {}, nil, nil},
		{"before the file was synced", func(w *fsyncs, temp *tempFile) {
			toldTo(w)
		}, unix.EIO, nil},
		{"while the file was synced", func(w *fsyncs, temp *tempFile) {
			w.before = func(string) error { w.before = nil; toldTo(w); return nil }
		}, unix.EIO, nil},
		{"while the directory was synced", func(w *fsyncs, temp *tempFile) {
			w.before = func(path string) error {
				if path == "sites" {
					toldTo(w)
				}
				return nil
			}
		}, nil, unix.EIO},
	} {
		w := watchFsyncs(t, t.TempDir())
		share(t, w.n)
		dir := sitesOf(t, w.n)
		temp, err := w.n.disk.createTemp(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer temp.discard()
		test.when(w, temp)
		_, err = temp.seal()
		if !errors.Is(err, test.seal) {
			t.Errorf("%s: seal: %v, not %v", test.name, err, test.seal)
		}
		if err != nil {
			continue
		}
		if err := temp.syncDir(); !errors.Is(err, test.sync) {
			t.Errorf("%s: syncDir: %v, not %v", test.name, err, test.sync)
		}
	}

	// Between the two syncs.
	w := watchFsyncs(t, t.TempDir())
	share(t, w.n)
	temp := sealed(t, w.n.disk, sitesOf(t, w.n), "x")
	defer temp.discard()
	toldTo(w)
	wantError(t, temp.syncDir(), unix.EIO)

	// What counts is the time of the first write, not that of the first sync:
	// seal's own look at the failures is bypassed here.
	w = watchFsyncs(t, t.TempDir())
	share(t, w.n)
	temp, err := w.n.disk.createTemp(sitesOf(t, w.n))
	if err != nil {
		t.Fatal(err)
	}
	defer temp.discard()
	toldTo(w)
	w.n.disk.fsyncs.dev++
	if _, err := temp.seal(); err != nil {
		t.Fatal(err)
	}
	w.n.disk.fsyncs.dev--
	wantError(t, temp.syncDir(), unix.EIO)
}

// share makes the store share its syncs on any file system.
func share(t *testing.T, n *nfs) {
	t.Helper()
	root, err := os.Open(n.base)
	if err != nil {
		t.Fatal(err)
	}
	if old := n.disk.fsyncs.root; old != nil {
		old.Close()
	}
	n.disk.fsyncs.share(root, unix.XFS_SUPER_MAGIC)
	if n.disk.fsyncs.root == nil {
		t.Skip("a kernel before 5.8 shares no syncs")
	}
	t.Cleanup(func() { root.Close() })
}

func sitesOf(t *testing.T, n *nfs) *os.File {
	t.Helper()
	dir, err := n.disk.ensureDir(n.base, sitesDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

// A probe writes and fsyncs a file as an upload does. If that fails the store is not
// ready, or not writable.
func TestProbeSyncs(t *testing.T) {
	w := watchFsyncs(t, t.TempDir())
	if found, err := w.n.Probe(); err != nil || found.WriteError != nil || w.files != 1 {
		t.Errorf("%d files were synced: %+v, %v", w.files, found, err)
	}
	w.before = func(string) error { return unix.EIO }
	_, err := w.n.Probe()
	wantError(t, err, unix.EIO)
	w.before = func(string) error { return unix.ENOSPC }
	if found, err := w.n.Probe(); err != nil || !errors.Is(found.WriteError, ErrNoSpace) {
		t.Errorf("no space for the probe: %+v, %v", found, err)
	}
	wantFiles(t, w.base)
}

// A repeated upload that finds its build is acknowledged only when the build is durable: the
// upload that stored it may not have synced it yet.
func TestRepeatedUploadIsDurable(t *testing.T) {
	w := watchFsyncs(t, t.TempDir())
	w.n.useDigests()
	s, _ := startBackend(t, w.n)
	put := putOf("/sites/s/artifacts/b", "abc", "If-None-Match", "*", "Repr-Digest", "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:")
	fail := func(path string) error {
		if strings.HasSuffix(path, "/artifacts") {
			return unix.EIO
		}
		return nil
	}
	setBefore := func(f func(string) error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.before = f
	}
	// The directories are there, so only the build itself is synced below.
	s.put(t, 201, "/sites/s/artifacts/a", "abc", "Repr-Digest", put.header.Get("Repr-Digest"))
	setBefore(fail)
	s.do(t, 500, put) // the build is there, but perhaps not after a power cut
	s.get(t, 200, "/sites/s/artifacts/b")
	s.do(t, 500, put)
	setBefore(nil)
	w.take()
	s.do(t, 200, put)
	want := []string{"sites/s/artifacts [a=3 b=3]", "sites/s/digests [a.sha256 b.sha256]"}
	if seen := w.take(); !slices.Equal(seen, want) {
		t.Errorf("the fsyncs are %q, want %q", seen, want)
	}
}
