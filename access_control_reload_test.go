package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// TestReloadUnderLoad: 16 clients send requests while the file is switched 200 times between
// two sets of rules, by a rename and as Kubernetes does it. Each response is that of the rules
// in force before or after a switch that overlaps it, never that of a mixture.
func TestReloadUnderLoad(t *testing.T) {
	for _, how := range []string{"rename", "..data"} {
		t.Run(how, func(t *testing.T) { reloadUnderLoad(t, how == "..data") })
	}
}

func reloadUnderLoad(t *testing.T, asKubernetes bool) {
	const switches, clients = 200, 16
	one, two := newToken(), newToken()
	sets := [2][]testRule{
		{{name: "one", token: one, allow: "log", sites: "s"}, {name: "two", token: two, allow: "read", sites: "s"}},
		{{name: "two", token: two, allow: "log", sites: "s"}, {allow: "read", sites: "s"}},
	}
	// With the rights of one set and the anonymous rules of the other, the token one could read.
	requests := []struct {
		who    string
		header http.Header
		want   [2]int
	}{
		{"one", header(bearer(one)...), [2]int{403, 401}},
		{"two", header(bearer(two)...), [2]int{200, 200}},
		{"unknown", header(bearer(newToken())...), [2]int{401, 401}},
		{"nobody", nil, [2]int{401, 200}},
	}
	path, put := switchedFile(t, asKubernetes)
	put(accessJSON(t, sets[0]...))
	var access *accessControl
	s, _ := startTuned(t, func(svc *service, _ *listener) {
		var err error
		if access, err = openAccess(path, false, quiet()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(access.close)
		svc.useAccess(access)
	}, "ACCESS_LOG=false")
	mustStore(t, openTestNFS(t, s.dir), "s", "b", []byte("a build"))

	var generation atomic.Int64 // odd while the file is switched
	var done atomic.Bool
	var decisions, wrong, changed atomic.Int64
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			for n := i; !done.Load(); n++ {
				r := requests[n%len(requests)]
				before := generation.Load()
				got := statusOr(s.try(request{"GET", "/sites/s/artifacts/b", nil, r.header}))
				after := generation.Load()
				decisions.Add(1)
				right := got == r.want[before/2%2] || got == r.want[(after+1)/2%2] || after-before > 1 && (got == r.want[0] || got == r.want[1])
				if !right {
					wrong.Add(1)
					t.Errorf("%s in generation %d to %d: %v, want %v", r.who, before, after, got, r.want)
				}
				if r.want[0] != r.want[1] && before == after {
					changed.Add(1)
				}
			}
		})
	}
	for n := 1; n <= switches && wrong.Load() < 10; n++ {
		seen := decisions.Load()
		generation.Add(1)
		put(accessJSON(t, sets[n%2]...))
		if err := access.watch.check(); err != nil {
			t.Fatal(err)
		}
		generation.Add(1)
		if got, want := statusOr(s.try(request{"GET", "/sites/s/artifacts/b", nil, requests[0].header})), requests[0].want[n%2]; got != want {
			t.Errorf("after switch %d: %v, want %d", n, got, want)
		}
		eventually(t, "the clients go on", func() bool { return decisions.Load() >= seen+clients || wrong.Load() > 0 })
	}
	done.Store(true)
	running.Wait()
	t.Logf("%d decisions, %d of them between two switches about a right that the switch changes, %d wrong", decisions.Load(), changed.Load(), wrong.Load())
	if changed.Load() == 0 {
		t.Error("no decision depended on the rules")
	}
}

// switchedFile returns the path of a file, and a function that replaces its content in one
// step: by a rename, or as Kubernetes does it, which switches a symbolic link to a directory.
func switchedFile(t *testing.T, asKubernetes bool) (path string, put func([]byte)) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "access.json")
	if !asKubernetes {
		return path, func(data []byte) { switchFile(t, path, data) }
	}
	if err := os.Symlink(filepath.Join("..data", "access.json"), path); err != nil {
		t.Fatal(err)
	}
	n := 0
	return path, func(data []byte) {
		n++
		version := fmt.Sprint("..", n)
		for _, err := range []error{
			os.Mkdir(filepath.Join(dir, version), 0o755),
			os.WriteFile(filepath.Join(dir, version, "access.json"), data, 0o600),
			os.Symlink(version, filepath.Join(dir, "..data_tmp")),
			os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		_ = os.RemoveAll(filepath.Join(dir, fmt.Sprint("..", n-1)))
	}
}
