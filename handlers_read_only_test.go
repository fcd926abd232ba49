package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const anEntry = `{"build_id":"b","action":"a","status":"s"}`

// plantStore makes a store of two builds and two logs, with what a sweep would remove or
// rename: an old temporary file, and a build whose replacement was interrupted.
func plantStore(t *testing.T) (base string) {
	t.Helper()
	base = t.TempDir()
	n := openTestNFS(t, base)
	mustStore(t, n, "s", "b", []byte("a build"))
	mustStore(t, n, "s", "large", body(1<<20, 1))
	mustStore(t, n, "s", "cut", []byte("interrupted"))
	mustLog(t, n, "s", entry("1", "b", testTime))
	mustLabel(t, n, "s", "live", "large")
	artifacts := n.sitePath("s", artifactsDir)
	if err := os.Rename(filepath.Join(artifacts, "cut.tar.gz"), filepath.Join(artifacts, interimName("cut.tar.gz"))); err != nil {
		t.Fatal(err)
	}
	leave(t, 24*time.Hour, artifacts, aTempName())
	return base
}

// readAllOfStore reads everything that plantStore made.
func readAllOfStore(t *testing.T, s *testServer) {
	t.Helper()
	for path, want := range map[string]string{"b": "a build", "large": string(body(1<<20, 1)), "cut": "interrupted"} {
		if got := s.get(t, 200, "/sites/s/artifacts/"+path); string(got.body) != want {
			t.Errorf("%s has %d bytes", path, len(got.body))
		}
		s.do(t, 200, request{"HEAD", "/sites/s/artifacts/" + path, nil, nil})
	}
	s.get(t, 206, "/sites/s/artifacts/large", "Range", "bytes=5-9")
	s.get(t, 404, "/sites/s/artifacts/none")
	s.get(t, 404, "/sites/none/artifacts/b")
	s.get(t, 200, "/sites/s/labels/live")
	s.get(t, 200, "/sites/s/labels")
	s.get(t, 200, "/sites/s/labels/live/artifact")
	if v := s.versions(t, "/sites/s/versions?metadata=true"); v.Count != 3 {
		t.Errorf("%d versions", v.Count)
	}
	if v := s.versions(t, "/sites/none/versions"); v.Count != 0 {
		t.Errorf("%d versions of no site", v.Count)
	}
	s.get(t, 200, "/metrics")
}

// changesRefused tries every request that changes the store. Each must get a 503 with that
// error.
func changesRefused(t *testing.T, s *testServer, want string) {
	t.Helper()
	for _, r := range []request{
		{"PUT", "/sites/s/artifacts/b", "x", nil},
		{"PUT", "/sites/s/artifacts/b", unsized([]byte("x")), nil},
		{"PUT", "/sites/s/artifacts/b", "x", header("If-Match", "*")},
		{"PUT", "/sites/s/artifacts/new", "x", header("If-None-Match", "*")},
		{"PUT", "/sites/new/artifacts/b", "x", nil},
		{"DELETE", "/sites/s/artifacts/b", nil, nil},
		{"DELETE", "/sites/s/artifacts/b", nil, header("If-Match", "*")},
		{"POST", "/sites/s/logs", anEntry, nil},
		{"POST", "/sites/new/logs", anEntry, nil},
		{"PUT", "/sites/s/labels/live", `{"build_id":"b"}`, nil},
		{"PUT", "/sites/s/labels/new", `{"build_id":"b"}`, nil},
		{"DELETE", "/sites/s/labels/live", nil, nil},
	} {
		got := s.do(t, 503, r)
		if got.header.Get("Retry-After") == "" || !strings.Contains(string(got.body), want) {
			t.Errorf("%s %s: %v %s", r.method, r.path, got.header, got.body)
		}
	}
}

// watchChanges returns a function that reports what happened to the files of the store
// since: anything that is created, removed, renamed, changed, or opened for writing.
func watchChanges(t *testing.T, base string) func() string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	dirs := map[int]string{}
	for _, path := range names(t, base) {
		if st, err := os.Stat(path); err != nil || !st.IsDir() {
			continue
		}
		wd, err := unix.InotifyAddWatch(fd, path, unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVE|unix.IN_MODIFY|unix.IN_ATTRIB|unix.IN_CLOSE_WRITE)
		if err != nil {
			t.Fatal(err)
		}
		dirs[wd] = path
	}
	return func() (seen string) {
		buf := make([]byte, 64<<10)
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			return ""
		}
		if err != nil || n < unix.SizeofInotifyEvent {
			t.Fatal(n, err)
		}
		return fmt.Sprintf("%q", buf[:n])
	}
}

// A read-only service refuses every change before its body and writes nothing to its store,
// which it serves as always, also from a mount that is read-only.
func TestReadOnlyService(t *testing.T) {
	base := plantStore(t)
	changes := watchChanges(t, base)
	s := startServer(t, "NFS_BASE_PATH="+base, "READ_ONLY=true", "TEMP_MAX_AGE=1m")
	s.ready(t)
	if got := readiness(t, s, 200); got.Writes || got.Reason != readOnlyReason {
		t.Errorf("/ready says %+v", got)
	}
	readAllOfStore(t, s)
	changesRefused(t, s, readOnlyReason)

	c := dial(t, s.addr)
	fmt.Fprintf(c, "PUT /sites/s/artifacts/b HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("an upload that waits for 100: %v, %v", resp, err)
	}
	s.do(t, 405, request{"POST", "/sites/s/artifacts/b", nil, nil}) // as without it
	m := scrape(t, s)
	if m["pagewright_read_only"] != 1 || m["pagewright_store_readable"] != 1 || m["pagewright_store_writable"] != 0 || m["pagewright_store_denied"] != 0 {
		t.Errorf("metrics: %v", m)
	}
	if got := m[`pagewright_http_requests_refused_total{reason="read_only"}`]; got != 13 {
		t.Errorf("%v refusals are counted", got)
	}
	out, err := runDoctor("PAGEWRIGHT_NFS_BASE_PATH="+base, "PAGEWRIGHT_READ_ONLY=true")
	if err != nil || !strings.Contains(out, "ok   read the directory of the sites\n") || !strings.Contains(out, "warn checks that write: skipped") {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if seen := changes(); seen != "" {
		t.Errorf("the store was changed: %s", seen)
	}
	if log := strings.Replace(s.log.String(), `"level":"WARN","msg":"access control is off`, "", 1); strings.Contains(log, `"level":"WARN"`) || strings.Contains(log, `"level":"ERROR"`) {
		t.Errorf("logged:\n%s", log)
	}
}

// On a mount that is read-only the service starts, and all reads work, whether or not it is
// configured to be read-only.
func TestReadOnlyMount(t *testing.T) {
	onlyRoot(t)
	base := plantStore(t)
	mount := t.TempDir()
	if err := errors.Join(unix.Mount(base, mount, "", unix.MS_BIND, ""), unix.Mount("", mount, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) })
	for _, c := range []struct{ variable, reason string }{
		{"READ_ONLY=true", readOnlyReason},
		{"READ_ONLY=false", ErrReadOnly.Error()},
	} {
		s := startServer(t, "NFS_BASE_PATH="+mount, c.variable)
		if c.reason != readOnlyReason {
			if line := waitForLine(t, s, "store not writable"); line["kind"] != "read_only" || line["level"] != "ERROR" { // nobody asked
				t.Errorf("%s: logged %v", c.variable, line)
			}
		}
		if got := readiness(t, s, 200); got.Writes || got.Reason != c.reason {
			t.Errorf("%s: /ready says %+v", c.variable, got)
		}
		readAllOfStore(t, s)
		changesRefused(t, s, c.reason)
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	}
	if out, err := runDoctor("PAGEWRIGHT_NFS_BASE_PATH="+mount, "PAGEWRIGHT_READ_ONLY=true"); err != nil {
		t.Errorf("doctor: %v\n%s", err, out)
	}
}

// A read-only service only reads and lists an object store: no check of its capabilities.
func TestReadOnlyServiceOfAnObjectStore(t *testing.T) {
	m := newMemBucket()
	store := openMem(m)
	mustStore(t, store, "s", "b", []byte("a build"))
	var mu sync.Mutex
	calls := map[string]int{}
	m.mu.Lock()
	m.fault = func(op, _ string) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		calls[op]++
		return false, nil
	}
	m.mu.Unlock()
	store = openMem(m)
	store.readOnly = true
	s, svc := startBackend(t, store, "READ_ONLY=true")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go svc.watchStore(ctx, svc.probeInterval())
	if got := readiness(t, s, 200); got.Writes || got.Reason != readOnlyReason {
		t.Errorf("/ready says %+v", got)
	}
	s.get(t, 200, "/sites/s/artifacts/b")
	if v := s.versions(t, "/sites/s/versions"); v.Count != 1 {
		t.Errorf("%d versions", v.Count)
	}
	changesRefused(t, s, readOnlyReason)
	var results []string
	store.runChecks(func(r checkResult) { results = append(results, r.String()) })
	if got := strings.Join(results, "\n"); !strings.HasPrefix(got, "ok   list the store\nwarn checks that write: skipped") {
		t.Errorf("doctor says:\n%s", got)
	}
	mu.Lock()
	defer mu.Unlock()
	for op := range calls {
		if op != "get" && op != "stat" && op != "list" {
			t.Errorf("it called %s: %v", op, calls)
		}
	}
	if calls["list"] == 0 {
		t.Errorf("nothing was listed: %v", calls)
	}
}
