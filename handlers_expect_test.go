package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/valyala/fasthttp"
)

// changeCounter counts the calls that change the store.
type changeCounter struct {
	*nfs
	changes atomic.Int64
}

func (c *changeCounter) StoreArtifactIf(siteID, buildID string, r io.Reader, cond Precondition) (ArtifactInfo, error) {
	c.changes.Add(1)
	return c.nfs.StoreArtifactIf(siteID, buildID, r, cond)
}

func (c *changeCounter) DeleteArtifact(siteID, buildID string, cond Precondition) error {
	c.changes.Add(1)
	return c.nfs.DeleteArtifact(siteID, buildID, cond)
}

func (c *changeCounter) WriteLog(siteID string, e LogEntry) error {
	c.changes.Add(1)
	return c.nfs.WriteLog(siteID, e)
}

func (c *changeCounter) DeleteVersions(siteID string, builds []VersionDeletion) []error {
	c.changes.Add(1)
	return c.nfs.DeleteVersions(siteID, builds)
}

// expectContinue sends the header of a request that expects 100-continue, and returns
// the connection after the 100 has arrived.
func expectContinue(t *testing.T, addr, method, path, header string) (io.Writer, *bufio.Reader) {
	t.Helper()
	c := dial(t, addr)
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 10\r\n%s\r\n", method, path, header)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 100 {
		t.Fatalf("%s %s: %v, %v, want 100", method, path, resp, err)
	}
	return c, r
}

// Every route of the service answers Expect: 100-continue without changing the store and
// without keeping anything, also for a condition that is checked.
func TestExpectChangesNothing(t *testing.T) {
	b := &changeCounter{nfs: openTestNFS(t, t.TempDir())}
	mustStore(t, b.nfs, "s", "b", []byte("x"))
	s, svc := startBackend(t, b)
	ids := strings.NewReplacer("{site_id}", "s", "{build_id}", "b", "{label}", "live")
	for _, r := range svc.api.routes() {
		if r.admit == nil || r.serve == nil {
			t.Errorf("%s %s has no admit or no serve", r.method, r.path)
			continue
		}
		path, conditions := ids.Replace(r.path), []string{"", "If-Match: *\r\n"}
		if r.method == "DELETE" && r.name == routeSite {
			path, conditions = path+"?confirm=s", conditions[:1]
		}
		for _, condition := range conditions {
			for range maxScrapes + 1 { // more than the smallest number of places
				expectContinue(t, s.addr, r.method, path, condition)
			}
		}
		if n := b.changes.Load(); n != 0 {
			t.Fatalf("%s %s: Expect made %d changes", r.method, r.path, n)
		}
		nothingIsHeld(t, svc)
	}
}

// A route that is added is served after the body has been asked for, and only then.
func TestExpectDoesNotServe(t *testing.T) {
	var parsed, served atomic.Int64
	parse := func(*fasthttp.RequestCtx) (int, error) { parsed.Add(1); return 7, nil }
	added := endpoint("PUT", "/added", routeOther, actionOpen, parse, nil, func(_ *fasthttp.RequestCtx, n int) (response, error) {
		served.Add(1)
		return response{status: 200 + n, body: []byte("done")}, nil
	})
	s, _ := startTuned(t, func(svc *service, _ *listener) {
		svc.server.handler = svc.api.handler(append(svc.api.routes(), added), noSuchAPIPath)
	})
	c, r := expectContinue(t, s.addr, "PUT", "/added", "")
	if parsed.Load() != 1 || served.Load() != 0 {
		t.Errorf("before the body it was parsed %d times and served %d times, want 1 and 0", parsed.Load(), served.Load())
	}
	fmt.Fprint(c, "0123456789")
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 207 || served.Load() != 1 {
		t.Errorf("with the body: %v, %v, served %d times, want 207 and once", resp, err, served.Load())
	}
}
