package main

import (
	"io"
	"strings"
	"sync/atomic"
	"testing"
)

// panicky is a directory with a bug in one of its calls.
type panicky struct {
	*nfs
	at     atomic.Pointer[string] // the call
	opened atomic.Int64           // readers that are open
}

func (p *panicky) call(name string) {
	if at := p.at.Load(); at != nil && *at == name {
		panic("a bug in " + name)
	}
}

func (p *panicky) StoreArtifactIf(siteID, buildID string, r io.Reader, cond Precondition) (ArtifactInfo, error) {
	p.call("store")
	info, err := p.nfs.StoreArtifactIf(siteID, buildID, r, cond)
	p.call("stored")
	return info, err
}

func (p *panicky) DeleteArtifact(siteID, buildID string, cond Precondition) error {
	p.call("delete")
	return p.nfs.DeleteArtifact(siteID, buildID, cond)
}

func (p *panicky) StatArtifact(siteID, buildID string) (ArtifactInfo, error) {
	p.call("stat")
	return p.nfs.StatArtifact(siteID, buildID)
}

func (p *panicky) FetchArtifact(siteID, buildID string) (io.ReadCloser, error) {
	p.call("fetch")
	r, err := p.nfs.FetchArtifact(siteID, buildID)
	if err != nil {
		return nil, err
	}
	p.opened.Add(1)
	return panickyReader{r.(ArtifactReader), p}, nil
}

type panickyReader struct {
	ArtifactReader
	p *panicky
}

func (r panickyReader) Info() ArtifactInfo {
	r.p.call("info")
	return r.ArtifactReader.Info()
}

func (r panickyReader) Close() error {
	r.p.opened.Add(-1)
	return r.ArtifactReader.Close()
}

func (p *panicky) WriteLog(siteID string, e LogEntry) error {
	if at := p.at.Load(); at != nil && *at == "append" { // within what is shared
		p.appends.submit(siteID, e, func([]LogEntry) []error { p.call("append"); return nil })
	}
	return p.nfs.WriteLog(siteID, e)
}

func (p *panicky) ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error) {
	p.call("list")
	return p.nfs.ListVersionsPage(siteID, q)
}

func (p *panicky) Probe() (Readiness, error) {
	p.call("probe")
	return p.nfs.Probe()
}

func (p *panicky) Space() (Space, error) {
	p.call("space")
	return p.nfs.Space()
}

// TestAPanicGivesEverythingBack: what a request took of a bounded number is given
// back when its handler panics, and the service goes on.
func TestAPanicGivesEverythingBack(t *testing.T) {
	const path, entry = "/sites/a/artifacts/b", `{"build_id":"b","action":"a","status":"s"}`
	large := randomBytes(3 << 20)
	p := &panicky{nfs: openTestNFS(t, t.TempDir())}
	s, svc := startBackend(t, p)
	good := func() {
		t.Helper()
		s.put(t, 201, path, large)
		s.get(t, 200, path)
		s.post(t, 201, "/sites/a/logs", entry)
		s.get(t, 200, "/sites/a/versions")
		s.ready(t)
		eventually(t, "the file that was sent is closed", func() bool { return p.opened.Load() == 0 })
	}
	good()
	for _, c := range []struct {
		at     string
		status int
		r      request
	}{
		{"store", 500, request{"PUT", path, large, nil}},
		{"store", 500, request{"PUT", path, nil, nil}},
		{"stored", 500, request{"PUT", path, large, nil}},
		{"stored", 500, request{"PUT", path, "x", nil}},
		{"stat", 500, request{"PUT", path, "x", header("Expect", "100-continue", "If-Match", "*")}},
		{"stat", 500, request{"HEAD", path, nil, nil}},
		{"fetch", 500, request{"GET", path, nil, nil}},
		{"info", 500, request{"GET", path, nil, nil}},
		{"delete", 500, request{"DELETE", path, nil, nil}},
		{"append", 500, request{"POST", "/sites/a/logs", entry, nil}},
		{"list", 500, request{"GET", "/sites/a/versions", nil, nil}},
	} {
		t.Run(c.at+" "+c.r.method, func(t *testing.T) {
			p.at.Store(&c.at)
			defer p.at.Store(nil)
			for range 3 {
				r := c.r
				if r.method == "PUT" && r.body == nil { // a reader of its own: the one before may still be sent
					r.body, r.header = unsized(large), nil
				}
				s.do(t, c.status, r)
			}
			nothingIsHeld(t, svc)
			svc.freeSpace.mu.Lock()
			if svc.freeSpace.reserved != 0 {
				t.Errorf("%d bytes are claimed by nobody", svc.freeSpace.reserved)
			}
			svc.freeSpace.mu.Unlock()
			p.appends.mu.Lock()
			if n := len(p.appends.queues); n != 0 {
				t.Errorf("%d queues are left", n)
			}
			p.appends.mu.Unlock()
			if n := p.opened.Load(); n != 0 {
				t.Errorf("%d files are left open", n)
			}
		})
		good()
	}
}

// nothingIsHeld fails the test if anything of a budget is not given back.
func nothingIsHeld(t *testing.T, svc *service) {
	t.Helper()
	for name, b := range svc.budgets() {
		eventually(t, name+" is given back", func() bool { return b.inUse() == 0 })
	}
}

// TestAQuestionThatPanicsIsAnError: the goroutine that asks has no handler above
// it, and the process goes on all the same.
func TestAQuestionThatPanicsIsAnError(t *testing.T) {
	p := &panicky{nfs: openTestNFS(t, t.TempDir())}
	s, svc := startBackend(t, p)
	probe, space := "probe", "space"
	p.at.Store(&probe)
	s.get(t, 503, "/ready")
	if log := s.log.String(); !strings.Contains(log, "a bug in probe") || !strings.Contains(log, "handlers_panic_test.go") {
		t.Errorf("the log does not say where it panicked:\n%s", log)
	}
	p.at.Store(&space)
	s.put(t, 500, "/sites/a/artifacts/b", "x")
	nothingIsHeld(t, svc)
	p.at.Store(nil)
	s.ready(t)
	s.put(t, 201, "/sites/a/artifacts/b", "x")
}

// unreachable is a directory that fails every call.
type unreachable struct{ *nfs }

func (unreachable) StoreArtifactIf(string, string, io.Reader, Precondition) (ArtifactInfo, error) {
	return ArtifactInfo{}, ErrUnavailable
}
func (unreachable) DeleteArtifact(string, string, Precondition) error   { return ErrUnavailable }
func (unreachable) FetchArtifact(string, string) (io.ReadCloser, error) { return nil, ErrUnavailable }
func (unreachable) StatArtifact(string, string) (ArtifactInfo, error) {
	return ArtifactInfo{}, ErrUnavailable
}
func (unreachable) WriteLog(string, LogEntry) error { return ErrUnavailable }
func (unreachable) ListVersionsPage(string, VersionQuery) (*VersionPage, error) {
	return nil, ErrUnavailable
}

// A request that fails gives back what it took of a bounded number, too.
func TestAFailureGivesEverythingBack(t *testing.T) {
	const path, entry = "/sites/a/artifacts/b", `{"build_id":"b","action":"a","status":"s"}`
	s, svc := startBackend(t, unreachable{openTestNFS(t, t.TempDir())})
	for _, r := range []request{
		{"PUT", path, "x", nil},
		{"PUT", path, "x", header("Expect", "100-continue", "If-Match", "*")},
		{"HEAD", path, nil, nil},
		{"GET", path, nil, nil},
		{"GET", path, nil, header("If-None-Match", `"x"`)},
		{"DELETE", path, nil, nil},
		{"POST", "/sites/a/logs", entry, nil},
		{"GET", "/sites/a/versions", nil, nil},
	} {
		s.do(t, 503, r)
		nothingIsHeld(t, svc)
		svc.freeSpace.mu.Lock()
		if svc.freeSpace.reserved != 0 {
			t.Errorf("%s: %d bytes are claimed by nobody", r.method, svc.freeSpace.reserved)
		}
		svc.freeSpace.mu.Unlock()
	}
}
