package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sitesBody is the response to GET /sites.
type sitesBody struct {
	Sites []struct {
		SiteID string `json:"site_id"`
	}
	NextCursor *string `json:"next_cursor"`
}

// sites returns the ids on a page, separated by spaces, and the cursor of the next page.
func (s *testServer) sites(t testing.TB, path string, h ...string) (ids, cursor string) {
	t.Helper()
	r := s.get(t, 200, path, h...)
	if !strings.HasPrefix(string(r.body), `{"sites":[`) || r.header.Get("Cache-Control") != "no-cache" || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("GET %s: %v %.100s", path, r.header, r.body)
	}
	var v sitesBody
	r.into(t, &v)
	for _, site := range v.Sites {
		ids += " " + site.SiteID
	}
	if v.NextCursor != nil {
		if cursor = *v.NextCursor; cursor == "" {
			t.Errorf("GET %s: the cursor is empty", path)
		}
	}
	return strings.TrimSpace(ids), cursor
}

// allSites returns the ids on all pages of path, which has an argument already.
func (s *testServer) allSites(t testing.TB, path string, h ...string) (all []string, cursors []string) {
	t.Helper()
	for page := path; ; {
		ids, next := s.sites(t, page, h...)
		all = append(all, strings.Fields(ids)...)
		if next == "" {
			return all, cursors
		}
		cursors, page = append(cursors, next), path+"&cursor="+next
	}
}

func TestListOfSites(t *testing.T) {
	s := startServer(t)
	if ids, cursor := s.sites(t, "/sites"); ids != "" || cursor != "" {
		t.Errorf("a new store: %q, %q", ids, cursor)
	}
	n := openTestNFS(t, s.dir)
	for _, site := range []string{"a", "a-b", "a.c", "Z", "shop", "shop-1", "shop-2"} {
		mustStore(t, n, site, "b", []byte("x"))
	}
	mustLog(t, n, "log-only", entry("1", "b", testTime))
	mustStore(t, n, "label-only", "b", []byte("x"))
	mustLabel(t, n, "label-only", "live", "b")
	if err := os.Remove(filepath.Join(n.sitePath("label-only", artifactsDir), "b"+artifactSuffix)); err != nil {
		t.Fatal(err)
	}
	mustStore(t, n, "gone", "b", []byte("x"))
	if err := n.DeleteArtifact("gone", "b", Precondition{}); err != nil {
		t.Fatal(err)
	}
	const all = "Z a a-b a.c label-only log-only shop shop-1 shop-2"
	page, next := s.sites(t, "/sites?limit=3")
	if page != "Z a a-b" || next == "" {
		t.Errorf("the first page is %q, %q", page, next)
	}
	for _, c := range []struct{ query, want string }{
		{"", all},
		{"?limit=9", all},
		{"?limit=10000", all},
		{"?prefix=", all},
		{"?prefix=a", "a a-b a.c"},
		{"?prefix=shop-", "shop-1 shop-2"},
		{"?prefix=shop-2", "shop-2"},
		{"?prefix=shop-22", ""},
		{"?prefix=z", ""},
		{"?cursor=" + next, "a.c label-only log-only shop shop-1 shop-2"},
		{"?prefix=shop&cursor=" + next, "shop shop-1 shop-2"},
		{"?prefix=Z&cursor=" + next, ""},
	} {
		if ids, cursor := s.sites(t, "/sites"+c.query); ids != c.want || cursor != "" {
			t.Errorf("%s: %q, %q, want %q", c.query, ids, cursor, c.want)
		}
		get, head := s.get(t, 200, "/sites"+c.query), s.do(t, 200, request{"HEAD", "/sites" + c.query, nil, nil})
		if head.length != get.length || len(head.body) > 0 || head.header.Get("Cache-Control") != "no-cache" {
			t.Errorf("HEAD %s: %d bytes, %v, want %d", c.query, head.length, head.header, get.length)
		}
	}
	for limit := 1; limit <= 9; limit++ {
		ids, cursors := s.allSites(t, fmt.Sprintf("/sites?limit=%d", limit))
		if strings.Join(ids, " ") != all || len(cursors) != (9+limit-1)/limit-1 {
			t.Errorf("%d at a time: %q in %d pages", limit, ids, len(cursors)+1)
		}
	}
	if err := os.Rename(s.dir, s.dir+"-away"); err != nil {
		t.Fatal(err)
	}
	s.get(t, 503, "/sites")
	s.get(t, 503, "/sites/shop")
	if err := os.Rename(s.dir+"-away", s.dir); err != nil {
		t.Fatal(err)
	}
}

func TestListOfSitesRefuses(t *testing.T) {
	s := startServer(t)
	mustStore(t, openTestNFS(t, s.dir), "s", "1", []byte("x"))
	mustStore(t, openTestNFS(t, s.dir), "s", "2", []byte("x"))
	ofVersions := s.versions(t, "/sites/s/versions?limit=1").Next_Cursor
	site := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	if ids, _ := s.sites(t, "/sites?cursor="+site("site/a")); ids != "s" { // what the others differ from
		t.Fatalf("a cursor of our own: %q", ids)
	}
	for _, query := range []string{
		"limit=0", "limit=-1", "limit=10001", "limit=", "limit=x", "limit=1&limit=2",
		"prefix=-a", "prefix=a%2fb", "prefix=a%20", "prefix=.", "prefix=" + strings.Repeat("a", 129), "prefix=a&prefix=a",
		"cursor=", "cursor=x", "cursor=" + ofVersions, "cursor=" + site("a"), "cursor=" + site("site/"), "cursor=" + site("site/.."), "cursor=" + site("site/a") + "%0a",
		"limits=1", "x=y", "confirm=s",
	} {
		got := s.get(t, 400, "/sites?"+query)
		if h := s.do(t, 400, request{"HEAD", "/sites?" + query, nil, nil}); h.length != got.length {
			t.Errorf("%s: HEAD has %d bytes, GET %d", query, h.length, got.length)
		}
	}
}

// What a client sees depends on its rights, and no cursor names a site that it may not see.
func TestListOfSitesByRights(t *testing.T) {
	const all = "blog public-1 public-2 shop-a shop-b shop-c"
	read, admin, suffix, one, write, other := newToken(), newToken(), newToken(), newToken(), newToken(), newToken()
	rules := []testRule{
		{name: "read", token: read, allow: "read", sites: "shop-*"},
		{name: "admin", token: admin, allow: "admin", sites: "*"},
		{name: "suffix", token: suffix, allow: "read", sites: "*-a *-2"},
		{name: "one", token: one, allow: "admin", sites: "blog"},
		{name: "write", token: write, allow: "create write log label delete", sites: "*"},
		{name: "other", token: other, allow: "read", sites: "nothing-*"},
	}
	closed, _ := startAccess(t, rules)
	public, _ := startAccess(t, append(slices.Clone(rules), testRule{allow: "read", sites: "public-*"}))
	for _, s := range []*testServer{closed, public} {
		for _, site := range strings.Fields(all) {
			mustStore(t, openTestNFS(t, s.dir), site, "b", []byte("x"))
		}
	}
	for _, c := range []struct {
		what   string
		s      *testServer
		h      []string
		status int
		want   string
	}{
		{"read", closed, bearer(read), 200, "shop-a shop-b shop-c"},
		{"admin", closed, bearer(admin), 200, all},
		{"a glob that begins with *", closed, bearer(suffix), 200, "public-2 shop-a"},
		{"admin on a site", closed, bearer(one), 200, "blog"},
		{"a site that is not there", closed, bearer(other), 200, ""},
		{"no right to see any", closed, bearer(write), 403, ""},
		{"anonymous", closed, nil, 401, ""},
		{"an unknown token", closed, bearer(newToken()), 401, ""},
		{"anonymous, with a rule", public, nil, 200, "public-1 public-2"},
		{"a token that has less than anonymous clients", public, bearer(write), 200, "public-1 public-2"},
		{"a token with more", public, bearer(read), 200, "public-1 public-2 shop-a shop-b shop-c"},
		{"an unknown token, with a rule for all", public, bearer(newToken()), 401, ""},
	} {
		if c.status != 200 {
			c.s.get(t, c.status, "/sites", c.h...)
			continue
		}
		for limit := 1; limit <= 4; limit++ {
			ids, cursors := c.s.allSites(t, fmt.Sprintf("/sites?limit=%d", limit), c.h...)
			if strings.Join(ids, " ") != c.want {
				t.Errorf("%s, %d at a time: %q, want %q", c.what, limit, ids, c.want)
			}
			for _, cursor := range cursors {
				if id, err := parseSiteCursor(cursor); err != nil || !slices.Contains(ids, id) {
					t.Errorf("%s: a cursor names %q, %v", c.what, id, err)
				}
			}
		}
	}
	for prefix, want := range map[string]string{"s": "shop-a shop-b shop-c", "shop-b": "shop-b", "blog": "", "shop-x": ""} {
		if ids, _ := closed.sites(t, "/sites?prefix="+prefix, bearer(read)...); ids != want {
			t.Errorf("prefix %s: %q, want %q", prefix, ids, want)
		}
	}
	if ids, _ := closed.sites(t, "/sites?cursor="+formatSiteCursor("shop-a"), bearer(suffix)...); ids != "" {
		t.Errorf("behind its last site: %q", ids)
	}
}

// siteStore is a store that records what is asked of it.
type siteStore struct {
	*nfs
	prefixes chan string
	creating string // the site of a label that is being created
}

func (s *siteStore) ListLabels(siteID string) ([]Label, error) {
	labels, err := s.nfs.ListLabels(siteID)
	if siteID == s.creating {
		labels = append(labels, Label{Name: "new", Next: "b0"})
	}
	return labels, err
}

func (s *siteStore) ListSites(prefix, after string, limit int, want func(string) bool) ([]string, error) {
	s.prefixes <- prefix
	return s.nfs.ListSites(prefix, after, limit, want)
}

// ListVersionsPage makes small pages.
func (s *siteStore) ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error) {
	q.Limit = min(q.Limit, 2)
	return s.nfs.ListVersionsPage(siteID, q)
}

// The store need not list the names of sites that a client cannot see, where the rules allow to
// tell by a prefix.
func TestListOfSitesByPrefix(t *testing.T) {
	b := &siteStore{openTestNFS(t, t.TempDir()), make(chan string, 1), ""}
	a := newService(&Config{MaxUploads: 1}, b, quiet()).api
	scope := &accessScope{[]accessRule{{allow: actionRead, sites: []string{"shop-*", "shop-eu-1"}}}}
	for _, c := range []struct {
		scope *accessScope
		asked string
		want  string // -: the store is not asked
	}{
		{nil, "", ""},
		{nil, "a", "a"},
		{scope, "", "shop-"},
		{scope, "s", "shop-"},
		{scope, "shop-", "shop-"},
		{scope, "shop-e", "shop-e"},
		{scope, "t", "-"},
		{scope, "shopping", "-"},
	} {
		_, err := a.listSites(siteListing{conn: &conn{}, prefix: c.asked, limit: 1, scope: c.scope})
		got := "-"
		select {
		case got = <-b.prefixes:
		default:
		}
		if err != nil || got != c.want {
			t.Errorf("%v, prefix %q: asked for %q, %v, want %q", c.scope != nil, c.asked, got, err, c.want)
		}
	}
}

// A long list takes from the budget of lists, and gives it back.
func TestLongListOfSites(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	long := strings.Repeat("x", 120)
	for i := range 200 {
		leave(t, 0, n.sitePath(fmt.Sprintf("%s%d", long, i), artifactsDir), "b"+artifactSuffix)
	}
	s, svc := startBackend(t, n)
	for range 3 {
		if ids, _ := s.sites(t, "/sites"); len(strings.Fields(ids)) != 200 || len(ids) < listFree {
			t.Errorf("%d bytes", len(ids))
		}
	}
	nothingIsHeld(t, svc)
	svc.api.lists = newBudget(listFree, time.Millisecond)
	if _, err := svc.api.lists.acquire(budgetRequest{client: "another", n: listFree}); err != nil {
		t.Fatal(err)
	}
	s.get(t, 503, "/sites")
	s.get(t, 200, "/sites?limit=10")
}

func TestDescribeSite(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	s, svc := startBackend(t, &siteStore{n, nil, "one"})
	for i, site := range []string{"one", "many", "many", "many", "many", "many", "labelled", "labelled"} {
		mustStore(t, n, site, fmt.Sprint("b", i), body(i+1, 1))
		when := testTime.Add(time.Duration(10-i) * time.Minute) // the first one is the newest
		file := filepath.Join(n.sitePath(site, artifactsDir), fmt.Sprint("b", i)+artifactSuffix)
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
	}
	mustLog(t, n, "log-only", entry("1", "b", testTime))
	for i := range 5 {
		mustLog(t, n, "many", entry("1", fmt.Sprint("x", i), testTime.Add(time.Hour)))
	}
	mustLog(t, n, "many", entry("1", "b3", testTime))
	mustLabel(t, n, "labelled", "preview", "b7")
	mustLabel(t, n, "labelled", "live", "b6")
	mustStore(t, n, "label-only", "b", []byte("x"))
	mustLabel(t, n, "label-only", "live", "b")
	mustStore(t, n, "gone", "b", []byte("x"))
	for _, site := range []string{"gone", "label-only"} {
		if err := os.Remove(filepath.Join(n.sitePath(site, artifactsDir), "b"+artifactSuffix)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		site   string
		status int
		want   string
	}{
		{"one", 200, `{"site_id":"one","builds":1,"bytes":1,"newest":"b0","labels":[]}`},
		{"many", 200, `{"site_id":"many","builds":5,"bytes":20,"newest":"b1","labels":[]}`},
		{"log-only", 200, `{"site_id":"log-only","builds":0,"bytes":0,"newest":"","labels":[]}`},
		{"labelled", 200, `{"site_id":"labelled","builds":2,"bytes":15,"newest":"b6","labels":[{"label":"live","build_id":"b6"},{"label":"preview","build_id":"b7"}]}`},
		{"label-only", 200, `{"site_id":"label-only","builds":0,"bytes":0,"newest":"","labels":[{"label":"live","build_id":"b"}]}`},
		{"gone", 404, `{"status":"error","error":"cannot describe the site: not found"}`},
		{"never", 404, `{"status":"error","error":"cannot describe the site: not found"}`},
		{"..", 400, `{"status":"error","error":"site_id must begin with a letter or digit"}`},
		{"%6Fne", 200, `{"site_id":"one","builds":1,"bytes":1,"newest":"b0","labels":[]}`},
		{"one?x=y", 200, `{"site_id":"one","builds":1,"bytes":1,"newest":"b0","labels":[]}`},
	} {
		got, head := s.get(t, c.status, "/sites/"+c.site), s.do(t, c.status, request{"HEAD", "/sites/" + c.site, nil, nil})
		cache := "no-cache"
		if c.status != 200 {
			cache = "no-store"
		}
		if string(got.body) != c.want+"\n" || got.header.Get("Cache-Control") != cache {
			t.Errorf("%s: %s%v\nwant %s", c.site, got.body, got.header, c.want)
		}
		if head.length != got.length || len(head.body) > 0 {
			t.Errorf("HEAD of %s: %d bytes, want %d", c.site, head.length, got.length)
		}
	}
	if err := os.WriteFile(filepath.Join(n.sitePath("labelled", labelsDir), "live"+labelSuffix), []byte("{}"), 0o666); err != nil {
		t.Fatal(err)
	}
	s.get(t, 500, "/sites/labelled")
	nothingIsHeld(t, svc)
}
