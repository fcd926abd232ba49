package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// plantVersions makes site s with build both, which has a log and a digest, plain, which has no
// log, log, which has only a log, and live, which has a label.
func plantVersions(t testing.TB, s *testServer, n *nfs) {
	t.Helper()
	for _, id := range []string{"both", "plain", "live"} {
		s.put(t, 201, "/sites/s/artifacts/"+id, "the build "+id, "Repr-Digest", reprDigestOf("the build "+id))
	}
	for _, id := range []string{"both", "log"} {
		s.post(t, 201, "/sites/s/logs", `{"build_id":"`+id+`","action":"a","status":"s"}`)
	}
	mustLabel(t, n, "s", "live", "live")
}

// keptFiles returns the files of a store and their content, without the temporary files of probes.
func keptFiles(t testing.TB, base string) string {
	t.Helper()
	var state strings.Builder
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || isTempName(d.Name()) {
			return ignoreNotExist(err)
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&state, "%s %x\n", path, data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return state.String()
}

// builds returns the builds of a site, each with its size and the number of its log entries.
func (s *testServer) builds(t testing.TB, site string) map[string][2]int64 {
	t.Helper()
	builds := map[string][2]int64{}
	for _, v := range s.versions(t, "/sites/"+site+"/versions").Versions {
		builds[v.Build_ID] = [2]int64{v.Size_Bytes, int64(len(v.Logs))}
	}
	return builds
}

func TestDeleteVersion(t *testing.T) {
	for _, c := range []struct {
		what   string
		build  string
		header http.Header // ETAG is that of build both
		vars   []string
		status int
		error  string // a part of it
	}{
		{"a build with a log", "both", nil, nil, 204, ""},
		{"a build", "plain", nil, nil, 204, ""},
		{"a log", "log", nil, nil, 204, ""},
		{"what is not there", "none", nil, nil, 204, ""},
		{"a build that has a label", "live", nil, nil, 409, `build \"live\" has the label live`},
		{"the current build", "both", header("If-Match", "ETAG"), nil, 204, ""},
		{"any build", "both", header("If-Match", "*"), nil, 204, ""},
		{"another build", "both", header("If-Match", `"x"`), nil, 412, "precondition failed"},
		{"but not the current build", "both", header("If-None-Match", "ETAG"), nil, 412, "precondition failed"},
		{"but another than the current build", "both", header("If-None-Match", `"x"`), nil, 204, ""},
		{"an old build", "both", header("If-Unmodified-Since", "Mon, 01 Jan 2001 00:00:00 GMT"), nil, 412, "precondition failed"},
		{"a build that is not there", "none", header("If-Match", "*"), nil, 412, "precondition failed"},
		{"the build of a log", "log", header("If-Match", "*"), nil, 412, "precondition failed"},
		{"a log whose build is not there", "log", header("If-None-Match", "*"), nil, 204, ""},
		{"a malformed condition", "both", header("If-Match", "x"), nil, 400, "If-Match"},
		{"a bad id", "..", nil, nil, 400, "build_id"},
		{"for a page of another site", "both", header("Sec-Fetch-Site", "cross-site"), nil, 403, "cross-origin"},
		{"in an append-only store", "none", nil, []string{"APPEND_ONLY=true"}, 403, "append-only"},
		{"in an append-only store, a bad id", "..", nil, []string{"APPEND_ONLY=true"}, 400, "build_id"},
		{"in a read-only service", "both", nil, []string{"READ_ONLY=true"}, 503, "read-only"},
	} {
		base := t.TempDir()
		n := openTestNFS(t, base)
		first := startServer(t, "NFS_BASE_PATH="+base)
		plantVersions(t, first, n)
		s := first
		if c.vars != nil {
			s = startServer(t, append(c.vars, "NFS_BASE_PATH="+base)...)
		}
		etag := s.do(t, 200, request{"HEAD", "/sites/s/artifacts/both", nil, nil}).header.Get("ETag")
		h := http.Header{}
		for name, values := range c.header {
			h.Set(name, strings.ReplaceAll(values[0], "ETAG", etag))
		}
		before, was := keptFiles(t, base), first.builds(t, "s")
		got := s.do(t, c.status, request{"DELETE", "/sites/s/versions/" + c.build, nil, h})
		if c.status != 204 {
			if !strings.Contains(string(got.body), c.error) || keptFiles(t, base) != before {
				t.Errorf("%s: %s", c.what, got.body)
			}
			continue
		}
		delete(was, c.build)
		if now := first.builds(t, "s"); fmt.Sprint(now) != fmt.Sprint(was) || len(got.body) > 0 {
			t.Errorf("%s: left are %v, want %v", c.what, now, was)
		}
		if left := strings.Join(filesBelow(t, base), " "); strings.Contains(left, "/"+c.build+".") {
			t.Errorf("%s: left are %s", c.what, left)
		}
		first.get(t, 404, "/sites/s/artifacts/"+c.build)
	}
}

// A store that cannot remove a log says so.
func TestDeleteIsUnsupported(t *testing.T) {
	s, _ := startBackend(t, struct{ store }{openTestNFS(t, t.TempDir())})
	s.put(t, 201, "/sites/s/artifacts/b", "x")
	for _, r := range []request{{"DELETE", "/sites/s/versions/b", nil, nil}, {"DELETE", "/sites/s?confirm=s", nil, nil}, {"GET", "/sites", nil, nil}} {
		s.do(t, 501, r)
	}
	s.get(t, 200, "/sites/s")
	s.get(t, 200, "/sites/s/artifacts/b")
}

// deletion is what a DELETE of a site responds with.
func deleted(labels, builds, logs, bytes int, complete bool) string {
	return fmt.Sprintf(`{"status":"success","site_id":"s","labels":%d,"builds":%d,"logs":%d,"bytes":%d,"complete":%v}`+"\n", labels, builds, logs, bytes, complete)
}

func TestDeleteSite(t *testing.T) {
	for _, c := range []struct {
		what   string
		path   string
		header http.Header
		vars   []string
		status int
		want   string // the body of a 200, else a part of it
	}{
		{"all of it", "s?confirm=s&labels=true", nil, nil, 200, deleted(1, 3, 2, 43, true)},
		{"in another order", "s?labels=1&confirm=s", nil, nil, 200, deleted(1, 3, 2, 43, true)},
		{"with an encoded id", "%73?confirm=%73&labels=true", nil, nil, 200, deleted(1, 3, 2, 43, true)},
		{"with a label", "s?confirm=s", nil, nil, 409, "the site has labels (live)"},
		{"with a label, on purpose", "s?confirm=s&labels=false", nil, nil, 409, "the site has labels (live)"},
		{"without confirm", "s", nil, nil, 400, "confirm=s"},
		{"without confirm, with labels", "s?labels=true", nil, nil, 400, "confirm=s"},
		{"confirm is empty", "s?confirm=&labels=true", nil, nil, 400, "confirm=s"},
		{"confirm is another site", "s?confirm=s2&labels=true", nil, nil, 400, "confirm=s"},
		{"confirm in other case", "s?confirm=S&labels=true", nil, nil, 400, "confirm=s"},
		{"confirm is true", "s?confirm=true&labels=true", nil, nil, 400, "confirm=s"},
		{"confirm twice", "s?confirm=s&confirm=s&labels=true", nil, nil, 400, "confirm is specified more than once"},
		{"a misspelt argument", "s?confirm=s&label=true", nil, nil, 400, "label"},
		{"labels of an unset variable", "s?confirm=s&labels=", nil, nil, 400, "labels must be true or false"},
		{"labels is not a switch", "s?confirm=s&labels=live", nil, nil, 400, "labels must be true or false"},
		{"on a condition", "s?confirm=s&labels=true", header("If-Match", `"x"`), nil, 400, "condition"},
		{"if it exists", "s?confirm=s&labels=true", header("If-Match", "*"), nil, 400, "condition"},
		{"if it does not exist", "s?confirm=s&labels=true", header("If-None-Match", "*"), nil, 400, "condition"},
		{"if it is old", "s?confirm=s&labels=true", header("If-Unmodified-Since", "Mon, 01 Jan 2001 00:00:00 GMT"), nil, 400, "condition"},
		{"on a malformed condition", "s?confirm=s&labels=true", header("If-Match", "x"), nil, 400, "condition"},
		{"a bad id", "..?confirm=..", nil, nil, 400, "site_id"},
		{"for a page of another site", "s?confirm=s&labels=true", header("Origin", "https://other.example"), nil, 403, "cross-origin"},
		{"in an append-only store", "s?confirm=s&labels=true", nil, []string{"APPEND_ONLY=true"}, 403, "append-only"},
		{"in an append-only store, another site", "s2?confirm=s2", nil, []string{"APPEND_ONLY=true"}, 403, "append-only"},
		{"in a read-only service", "s?confirm=s&labels=true", nil, []string{"READ_ONLY=true"}, 503, "read-only"},
	} {
		base := t.TempDir()
		n := openTestNFS(t, base)
		s := startServer(t, "NFS_BASE_PATH="+base)
		plantVersions(t, s, n)
		s.put(t, 201, "/sites/s2/artifacts/other", "x")
		if c.vars != nil {
			s = startServer(t, append(c.vars, "NFS_BASE_PATH="+base)...)
		}
		before := keptFiles(t, base)
		got := s.do(t, c.status, request{"DELETE", "/sites/" + c.path, nil, c.header})
		if c.status != 200 {
			if !strings.Contains(string(got.body), c.want) || keptFiles(t, base) != before {
				t.Errorf("%s: %s", c.what, got.body)
			}
			continue
		}
		if string(got.body) != c.want {
			t.Errorf("%s: %s, want %s", c.what, got.body, c.want)
		}
		if left := strings.Join(filesBelow(t, base), " "); left != "sites/s2/artifacts/other.tar.gz" {
			t.Errorf("%s: left is %s", c.what, left)
		}
		for _, kept := range []string{lockName, artifactsDir, logsDir, digestsDir, labelsDir} { // other replicas may have them open
			if _, err := os.Stat(n.sitePath("s", kept)); err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
		}
		if ids, _ := s.sites(t, "/sites"); ids != "s2" || len(s.builds(t, "s")) > 0 {
			t.Errorf("%s: the sites are %q", c.what, ids)
		}
		s.get(t, 404, "/sites/s")
		for range 2 { // it can be repeated
			if again := s.do(t, 200, request{"DELETE", "/sites/s?confirm=s", nil, nil}); string(again.body) != deleted(0, 0, 0, 0, true) {
				t.Errorf("%s, again: %s", c.what, again.body)
			}
		}
		s.put(t, 201, "/sites/s/artifacts/new", "x")
		if ids, _ := s.sites(t, "/sites"); ids != "s s2" {
			t.Errorf("%s: after an upload the sites are %q", c.what, ids)
		}
	}
}

// A damaged label protects the site until it is deleted by hand.
func TestDeleteSiteWithDamagedLabel(t *testing.T) {
	s := startServer(t)
	n := openTestNFS(t, s.dir)
	plantVersions(t, s, n)
	if err := os.WriteFile(filepath.Join(n.sitePath("s", labelsDir), "live"+labelSuffix), []byte("{}"), 0o666); err != nil {
		t.Fatal(err)
	}
	before := keptFiles(t, s.dir)
	s.do(t, 500, request{"DELETE", "/sites/s?confirm=s&labels=true", nil, nil})
	if keptFiles(t, s.dir) != before {
		t.Error("something was deleted")
	}
	if err := n.DeleteLabel("s", "live", Precondition{}); err != nil {
		t.Fatal(err)
	}
	s.do(t, 200, request{"DELETE", "/sites/s?confirm=s", nil, nil})
}

// stoppedStore calls between before each call of DeleteVersions, with the number of calls before.
// It makes pages of 150 versions.
type stoppedStore struct {
	*nfs
	calls   int
	between func(call int) error
}

func (s *stoppedStore) DeleteVersions(siteID string, builds []VersionDeletion) []error {
	s.calls++
	if err := s.between(s.calls - 1); err != nil {
		errs := s.nfs.DeleteVersions(siteID, builds[:len(builds)/2])
		for len(errs) < len(builds) {
			errs = append(errs, err)
		}
		return errs
	}
	return s.nfs.DeleteVersions(siteID, builds)
}

func (s *stoppedStore) ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error) {
	q.Limit = min(q.Limit, 150)
	return s.nfs.ListVersionsPage(siteID, q)
}

// plantBuilds makes count builds of 2 bytes, the newest first, of which every other has a log.
func plantBuilds(t *testing.T, n *nfs, count int) {
	t.Helper()
	for i := range count {
		id, when := fmt.Sprintf("b%03d", i), testTime.Add(-time.Duration(i)*time.Second)
		mustStore(t, n, "s", id, []byte("xy"))
		if err := os.Chtimes(filepath.Join(n.sitePath("s", artifactsDir), id+artifactSuffix), when, when); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			mustLog(t, n, "s", entry("1", id, testTime))
		}
	}
}

// A request ends when its time is over, and a repeated one goes on.
func TestDeleteSiteInSteps(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	plantBuilds(t, n, 320)
	b := &stoppedStore{nfs: n, between: func(int) error { return nil }}
	s, svc := startBackend(t, b)
	svc.api.siteDeleteTime = 0
	for _, want := range []string{deleted(0, 100, 50, 200, false), deleted(0, 100, 50, 200, false), deleted(0, 100, 50, 200, false), deleted(0, 20, 10, 40, true),
		deleted(0, 0, 0, 0, true)} {
		if got := s.do(t, 200, request{"DELETE", "/sites/s?confirm=s", nil, nil}); string(got.body) != want {
			t.Errorf("%s, want %s", got.body, want)
		}
	}
	plantBuilds(t, n, 320)
	svc.api.siteDeleteTime = siteDeleteTime
	if got := s.do(t, 200, request{"DELETE", "/sites/s?confirm=s", nil, nil}); string(got.body) != deleted(0, 320, 160, 640, true) {
		t.Errorf("at once: %s", got.body)
	}
	plantBuilds(t, n, 120)
	svc.api.stopping = func() bool { return true } // as during a shutdown
	if got := s.do(t, 200, request{"DELETE", "/sites/s?confirm=s", nil, nil}); string(got.body) != deleted(0, 100, 50, 200, false) {
		t.Errorf("during a shutdown: %s", got.body)
	}
	nothingIsHeld(t, svc)
}

// What arrives while a site is deleted stays, and the rest goes.
func TestDeleteSiteDuringUploads(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	plantBuilds(t, n, 320)
	other := openTestNFS(t, n.base)
	b := &stoppedStore{nfs: n, between: func(call int) error {
		mustStore(t, other, "s", fmt.Sprint("new", call), []byte("new"))
		mustStore(t, other, "s", "b319", []byte("replaced")) // which the last call would delete
		return nil
	}}
	s, _ := startBackend(t, b)
	if got := s.do(t, 200, request{"DELETE", "/sites/s?confirm=s", nil, nil}); !strings.Contains(string(got.body), `"complete":true`) {
		t.Errorf("%s", got.body)
	}
	left := s.builds(t, "s")
	if len(left) != b.calls+1 || left["new0"] != [2]int64{3, 0} || left["b319"] != [2]int64{8, 0} {
		t.Errorf("after %d calls %v are left", b.calls, left)
	}
}

// If the store fails in the middle, or a build gets a label, the response and the audit line say
// what was deleted.
func TestDeleteSiteFails(t *testing.T) {
	for _, c := range []struct {
		what   string
		fail   func(n *nfs) error
		status int
		want   string
		left   int
	}{
		{"the store is gone", func(*nfs) error { return fmt.Errorf("%w: a secret path", ErrUnavailable) }, 503,
			"cannot delete the site: the store is unavailable; deleted so far: labels: 1, builds: 125, logs: 63", 125},
		{"a build gets a label", func(n *nfs) error {
			_, _, err := n.MoveLabel("s", LabelMove{Label: "live", BuildID: "b120"})
			return err
		}, 409, `cannot delete the site: build \"b120\" has the label live: move or delete the label first; deleted so far: labels: 1, builds: 149, logs: 74`, 101},
	} {
		token := newToken()
		access, err := openAccess(writeAccess(t, testRule{name: "ops", token: token, allow: "delete admin read", sites: "*"}), false, quiet())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(access.close)
		n := openTestNFS(t, t.TempDir())
		plantBuilds(t, n, 250)
		mustLabel(t, n, "s", "old", "b007")
		b := &stoppedStore{nfs: n}
		b.between = func(call int) error {
			if call == 1 {
				return c.fail(n)
			}
			return nil
		}
		s, svc := startBackend(t, b, "ACCESS_LOG=true")
		svc.useAccess(access)
		h := header(append(bearer(token), "X-Request-Id", "first")...)
		got := s.do(t, c.status, request{"DELETE", "/sites/s?confirm=s&labels=true", nil, h})
		if want := `{"status":"error","error":"` + c.want + `"}` + "\n"; string(got.body) != want {
			t.Errorf("%s: %s\nwant %s", c.what, got.body, want)
		}
		line := lineMembers(t, s, "audit")["first"]
		if text := lineText(line, "action", "result", "site", "actor", "labels", "complete"); text != "delete failed s ops 1 false" || line["builds"].(float64) < 124 {
			t.Errorf("%s: audited as %v", c.what, line)
		}
		h.Set("X-Request-Id", "second")
		again := s.do(t, 200, request{"DELETE", "/sites/s?confirm=s&labels=true", nil, h})
		var done siteDeleted
		if err := json.Unmarshal(again.body, &done); err != nil || done.Builds != c.left || !done.Complete {
			t.Errorf("%s, again: %s, %v", c.what, again.body, err)
		}
		line = lineMembers(t, s, "audit")["second"]
		text := lineText(line, "action", "result", "site", "actor", "builds", "bytes", "complete")
		if want := fmt.Sprintf("delete deleted s ops %d %d true", c.left, 2*c.left); text != want {
			t.Errorf("%s, again: audited as %q, want %q", c.what, text, want)
		}
	}
}

// Few sites are deleted at once: each holds a page of versions.
func TestFewSitesAreDeletedAtOnce(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	wait, inside := make(chan struct{}), make(chan struct{}, 2*maxSiteDeletes)
	b := &waitingDeleter{n, wait, inside}
	s, svc := startBackend(t, b)
	svc.api.writes = newBudget(maxWrites, time.Millisecond)
	var done sync.WaitGroup
	for i := range maxSiteDeletes {
		site := fmt.Sprint("s", i)
		mustStore(t, n, site, "b", []byte("x"))
		done.Go(func() { s.do(t, 200, request{"DELETE", "/sites/" + site + "?confirm=" + site, nil, nil}) })
	}
	for range maxSiteDeletes {
		<-inside
	}
	if got := s.do(t, 503, request{"DELETE", "/sites/more?confirm=more", nil, nil}); got.header.Get("Retry-After") == "" {
		t.Errorf("%v", got.header)
	}
	mustStore(t, n, "more", "b", []byte("x"))
	s.do(t, 204, request{"DELETE", "/sites/more/artifacts/b", nil, nil})
	close(wait)
	done.Wait()
	s.do(t, 200, request{"DELETE", "/sites/more?confirm=more", nil, nil})
	nothingIsHeld(t, svc)
}

// waitingDeleter waits in DeleteVersions.
type waitingDeleter struct {
	*nfs
	wait   <-chan struct{}
	inside chan<- struct{}
}

func (w *waitingDeleter) DeleteVersions(siteID string, builds []VersionDeletion) []error {
	w.inside <- struct{}{}
	<-w.wait
	return w.nfs.DeleteVersions(siteID, builds)
}

// Over two replicas: what was acknowledged before a deletion began is gone after it, and what is
// acknowledged after its response stays.
func TestDeleteSiteRacesUploads(t *testing.T) {
	base := t.TempDir()
	s := [2]*testServer{startServer(t, "NFS_BASE_PATH="+base), startServer(t, "NFS_BASE_PATH="+base)}
	var mu sync.Mutex
	acked := map[string]bool{} // builds whose upload was acknowledged before the deletion that runs or is next
	for round := range 10 {
		stop := make(chan struct{})
		var uploads sync.WaitGroup
		late := map[string]bool{} // acknowledged after the deletion began
		began, ended := false, false
		after := map[string]bool{} // sent after its response
		for w := range 4 {
			uploads.Go(func() {
				for i := 0; ; i++ {
					id := fmt.Sprintf("r%d-w%d-%d", round, w, i)
					mu.Lock()
					sentLate := ended
					mu.Unlock()
					s[w%2].put(t, 201, "/sites/s/artifacts/"+id, "x")
					s[w%2].post(t, 201, "/sites/s/logs", `{"build_id":"`+id+`","action":"a","status":"s"}`)
					mu.Lock()
					switch {
					case sentLate:
						after[id] = true
					case began:
						late[id] = true
					default:
						acked[id] = true
					}
					mu.Unlock()
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		eventually(t, "builds are stored", func() bool { mu.Lock(); defer mu.Unlock(); return len(acked) > 8 })
		mu.Lock()
		began = true
		mu.Unlock()
		got := s[round%2].do(t, 200, request{"DELETE", "/sites/s?confirm=s", nil, nil})
		mu.Lock()
		ended = true
		mu.Unlock()
		if !bytes.Contains(got.body, []byte(`"complete":true`)) {
			t.Fatalf("%s", got.body)
		}
		eventually(t, "builds are stored after it", func() bool { mu.Lock(); defer mu.Unlock(); return len(after) > 4 })
		close(stop)
		uploads.Wait()
		left := s[(round+1)%2].builds(t, "s")
		for id := range acked {
			if _, there := left[id]; there {
				t.Errorf("round %d: %s is still there: %v", round, id, left[id])
			}
		}
		for id := range after {
			if left[id] != [2]int64{1, 1} {
				t.Errorf("round %d: %s is gone: %v", round, id, left[id])
			}
		}
		clear(acked)
		for id := range left { // those of the next round
			acked[id] = true
		}
	}
}
