package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/valyala/fasthttp"
)

// startAccess runs a service with rules over a directory.
func startAccess(t *testing.T, rules []testRule, vars ...string) (*testServer, *service) {
	t.Helper()
	var svc *service
	s, _ := startTuned(t, func(tuned *service, _ *listener) {
		svc = tuned
		access, err := openAccess(writeAccess(t, rules...), false, tuned.api.log)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(access.close)
		tuned.useAccess(access)
	}, append(vars, "LOG_LEVEL=debug")...)
	return s, svc
}

func bearer(token string) []string { return []string{"Authorization", "Bearer " + token} }

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// statusesOf is exchangeRaw, or of a HEAD one request.
func statusesOf(t *testing.T, s *testServer, raw string) string {
	t.Helper()
	if strings.HasPrefix(raw, "HEAD ") {
		return fmt.Sprint(answerTo(t, s.addr, raw).status)
	}
	return exchangeRaw(t, s.addr, raw)
}

// routeNeeds are the actions of which a client needs one for each route of the API. Those
// with "open" need none, and those "of some" need it, or admin, on any site.
var routeNeeds = map[string]string{
	"GET /sites/{site_id}/artifacts/{build_id}":    "read",
	"HEAD /sites/{site_id}/artifacts/{build_id}":   "read",
	"PUT /sites/{site_id}/artifacts/{build_id}":    "write",
	"DELETE /sites/{site_id}/artifacts/{build_id}": "delete",
	"POST /sites/{site_id}/logs":                   "log",
	"GET /sites/{site_id}/versions":                "read",
	"HEAD /sites/{site_id}/versions":               "read",
	"DELETE /sites/{site_id}/versions/{build_id}":  "delete",
	"GET /sites":                                    "read of some",
	"HEAD /sites":                                   "read of some",
	"GET /sites/{site_id}":                          "read",
	"HEAD /sites/{site_id}":                         "read",
	"DELETE /sites/{site_id}":                       "delete and admin",
	"PUT /sites/{site_id}/labels/{label}":           "label",
	"DELETE /sites/{site_id}/labels/{label}":        "label",
	"GET /sites/{site_id}/labels/{label}":           "read",
	"HEAD /sites/{site_id}/labels/{label}":          "read",
	"GET /sites/{site_id}/labels":                   "read",
	"HEAD /sites/{site_id}/labels":                  "read",
	"GET /sites/{site_id}/labels/{label}/artifact":  "read",
	"HEAD /sites/{site_id}/labels/{label}/artifact": "read",
	"GET /metrics":                                  "admin",
	"HEAD /metrics":                                 "admin",
	"GET /health":                                   "open",
	"HEAD /health":                                  "open",
	"GET /ready":                                    "open",
	"HEAD /ready":                                   "open",
	"GET /openapi.yaml":                             "open",
	"HEAD /openapi.yaml":                            "open",
}

// storeCalls returns how often the service has asked its store for anything but its health.
func storeCalls(svc *service) (n int) {
	var text bytes.Buffer
	svc.api.metrics.write(&text, nil)
	for line := range strings.Lines(text.String()) {
		var count int
		name, value, _ := strings.Cut(line, " ")
		if strings.HasPrefix(name, "pagewright_backend_duration_seconds_count") && !strings.Contains(name, `"probe"`) && !strings.Contains(name, `"space"`) {
			_, _ = fmt.Sscan(value, &count)
			n += count
		}
	}
	return n
}

// stateOf returns the files of a store and their content.
func stateOf(t *testing.T, dir string) string {
	t.Helper()
	var state strings.Builder
	for _, file := range filesBelow(t, dir) {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&state, "%s %x\n", file, sha256.Sum256(data))
	}
	return state.String()
}

const (
	challenged   = `Bearer realm="pagewright"`
	invalidToken = challenged + `, error="invalid_token", error_description="`
)

// TestEveryRouteNeedsItsAction: for every route of the table, every kind of credentials.
// What is refused reads no body, asks the store nothing, and changes nothing.
func TestEveryRouteNeedsItsAction(t *testing.T) {
	all := strings.Join(actionNames[:], " ")
	rules := []testRule{
		{name: "expired", token: newToken(), allow: all, sites: "*", expires: "2020-01-01T00:00:00Z"},
		{name: "other site", token: newToken(), allow: all, sites: "other"},
		{name: "part of the id", token: newToken(), allow: all, sites: "s-* *-s ss"},
	}
	for _, name := range actionNames {
		rules = append(rules, testRule{name: name + " on s", token: newToken(), allow: name, sites: "s"},
			testRule{name: name + " on all", token: newToken(), allow: name, sites: "*"},
			testRule{name: "all but " + name, token: newToken(), allow: strings.ReplaceAll(strings.ReplaceAll(all, name, ""), "  ", " "), sites: "*"})
	}
	s, svc := startAccess(t, rules)
	restoreAfterDelete(t, s.dir)
	ids := strings.NewReplacer("{site_id}", "s", "{build_id}", "b", "{label}", "live")
	seen := map[string]bool{}
	for _, r := range svc.api.routes() {
		route := r.method + " " + r.path
		seen[route] = true
		need := routeNeeds[route]
		if need == "" {
			t.Errorf("%s is not in the table of the test", route)
			continue
		}
		ofSite := strings.Contains(r.path, "{site_id}")
		need, ofSome := strings.CutSuffix(need, " of some")
		need, admin := strings.CutSuffix(need, " and admin")
		path := ids.Replace(r.path)
		if admin {
			path += "?confirm=s&labels=true"
		}
		var later []func()
		calls := storeCalls(svc)
		try := func(who, authorization string, want int, challenge string) {
			t.Helper()
			if need == "open" {
				want, challenge = 200, ""
			}
			test := func() { testAccess(t, s, r.method, path, who, authorization, want, challenge) }
			if asks := strings.HasSuffix(challenge, `scope="write"`); asks || want < 400 { // asks whether the build exists
				later = append(later, test)
			} else {
				test()
			}
		}
		try("nobody", "", 401, challenged)
		try("malformed", "Bearer", 401, invalidToken)
		try("malformed token", "Bearer pwst_x", 401, invalidToken)
		try("no such scheme", "Digest username=a", 401, invalidToken)
		try("no base64", "Basic %", 401, invalidToken)
		try("an unknown token", "Bearer "+newToken(), 401, invalidToken)
		try("an unknown password", basic("u", newToken()), 401, invalidToken)
		try("an unknown JWT", "Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4In0.", 401, invalidToken)
		for _, who := range rules {
			lacks := strings.Replace(need, "write", "create", 1)
			if may := strings.Fields(who.allow); admin && slices.Contains(may, need) && (who.sites == "*" || who.sites == "s") {
				lacks = "admin"
			}
			denied := fmt.Sprintf(`%s, error="insufficient_scope", scope="%s"`, challenged, lacks)
			want, challenge := 403, denied
			allowed := slices.Contains(strings.Fields(who.allow), need) && (who.sites == "*" || ofSite && who.sites == "s")
			allowed = allowed && (!admin || slices.Contains(strings.Fields(who.allow), "admin"))
			allowed = allowed || ofSome && (slices.Contains(strings.Fields(who.allow), need) || slices.Contains(strings.Fields(who.allow), "admin"))
			create := need == "write" && slices.Contains(strings.Fields(who.allow), "create") && (who.sites == "*" || who.sites == "s")
			switch {
			case who.name == "expired":
				want, challenge = 401, invalidToken
			case allowed:
				want, challenge = 0, ""
			case create: // the build exists
				challenge = challenged + `, error="insufficient_scope", scope="write"`
			}
			try(who.name, "Bearer "+who.token, want, challenge)
			try(who.name, basic("", who.token), want, challenge)
		}
		if n := storeCalls(svc) - calls; n > 0 {
			t.Errorf("%s: what was refused took %d calls of the store", route, n)
		}
		for _, test := range later {
			test()
		}
	}
	for route := range routeNeeds {
		if !seen[route] {
			t.Errorf("the service has no route %s", route)
		}
	}
}

// restoreAfterDelete stores the builds and the label that TestEveryRouteNeedsItsAction deletes.
func restoreAfterDelete(t *testing.T, dir string) {
	t.Helper()
	n := openTestNFS(t, dir)
	mustStore(t, n, "s", "b", []byte("a build"))
	if _, err := n.StatArtifact("s", "labelled"); err != nil {
		mustStore(t, n, "s", "labelled", []byte("a build"))
	}
	mustLabel(t, n, "s", "live", "labelled")
}

// testAccess sends a request to a route, at once and with Expect: 100-continue. want is its
// status, 0 for any of success.
func testAccess(t *testing.T, s *testServer, method, path, who, authorization string, want int, challenge string) {
	t.Helper()
	const length = "Content-Length: 42\r\n"
	head := method + " " + path + " HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
	if authorization != "" {
		head += "Authorization: " + authorization + "\r\n"
	}
	refused := want >= 400
	for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
		what := fmt.Sprintf("%s %s by %s, %s", method, path, who, strings.TrimSpace(expect))
		before := stateOf(t, s.dir)
		c := dial(t, s.addr)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // a response that waits for the body never comes
		if _, err := io.WriteString(c, head+length+expect+"\r\n"); err != nil {
			t.Fatal(err)
		}
		responses := bufio.NewReader(c)
		if !refused && expect != "" {
			if resp, err := http.ReadResponse(responses, nil); err != nil || resp.StatusCode != 100 {
				t.Errorf("%s: %v, %v, want 100", what, resp, err)
				continue
			}
		}
		// A client whose request is refused gets its response without sending the body; fasthttp
		// waits for the first byte unless the client expects 100.
		body := anEntry
		if strings.Contains(path, "/labels/") {
			body = fmt.Sprintf("%-42s", `{"build_id":"labelled"}`)
		}
		switch {
		case refused && expect == "":
			body = body[:1]
		case refused:
			body = ""
		}
		if _, err := io.WriteString(c, body); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(responses, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if resp.StatusCode != want && (want != 0 || resp.StatusCode >= 300) {
			t.Errorf("%s: status %d, want %d", what, resp.StatusCode, want)
		}
		got := resp.Header.Get("Www-Authenticate")
		if exact := !strings.HasSuffix(challenge, `="`); exact && got != challenge || !strings.HasPrefix(got, challenge) {
			t.Errorf("%s: WWW-Authenticate: %s, want %s", what, got, challenge)
		}
		text, _ := io.ReadAll(resp.Body)
		_ = c.Close()
		if !refused {
			if method == "DELETE" {
				restoreAfterDelete(t, s.dir)
			}
			continue
		}
		if method != "HEAD" && !bytes.HasPrefix(text, []byte(`{"status":"error","error":"`)) {
			t.Errorf("%s: the body is %q", what, text)
		}
		if after := stateOf(t, s.dir); after != before {
			t.Errorf("%s: the store was changed from\n%sto\n%s", what, before, after)
		}
	}
}

// A route that does not say what it needs stops the start.
func TestRouteWithoutANeed(t *testing.T) {
	a := newService(&Config{MaxUploads: 1}, openTestNFS(t, t.TempDir()), quiet()).api
	for _, need := range []action{0, actionRead | actionWrite, actionRead, actionOpen} {
		panicked := func() (panicked bool) {
			defer func() { panicked = recover() != nil }()
			a.handler([]route{{method: "GET", path: "/new", name: routeOther, need: need}}, noSuchPath)
			return false
		}()
		if want := need != actionRead && need != actionOpen; panicked != want {
			t.Errorf("need %#x: panicked is %v, want %v", need, panicked, want)
		}
	}
}

// Who has no right on a site cannot tell whether it exists, nor what is in it.
func TestSitesWithoutRightsLookTheSame(t *testing.T) {
	token := newToken()
	s, _ := startAccess(t, []testRule{{name: "other", token: token, allow: "read write create delete log label admin", sites: "other-*"}})
	mustStore(t, openTestNFS(t, s.dir), "there", "b", []byte("a build"))
	for _, h := range [][]string{nil, bearer(token), bearer(newToken())} {
		for _, r := range []request{
			{"GET", "/sites/%s/artifacts/b", nil, nil},
			{"GET", "/sites/%s/artifacts/..", nil, nil},
			{"GET", "/sites/%s/artifacts/b?redirect=7", nil, nil},
			{"HEAD", "/sites/%s/artifacts/b", nil, header("If-None-Match", "*")},
			{"PUT", "/sites/%s/artifacts/b", "x", nil},
			{"PUT", "/sites/%s/artifacts/b", "x", header("If-Match", "x")},
			{"PUT", "/sites/%s/artifacts/b", "", nil},
			{"DELETE", "/sites/%s/artifacts/b", nil, header("If-Match", "nonsense")},
			{"POST", "/sites/%s/logs", "no entry", nil},
			{"GET", "/sites/%s/versions", nil, nil},
			{"GET", "/sites/%s/labels", nil, nil},
			{"GET", "/sites/%s/labels/LIVE", nil, nil},
			{"HEAD", "/sites/%s/labels/live/artifact", nil, header("If-None-Match", "*")},
			{"PUT", "/sites/%s/labels/live", "no move", header("If-Match", "nonsense")},
			{"DELETE", "/sites/%s/labels/live", nil, nil},
			{"GET", "/sites/%s/versions?limit=nonsense&x=y", nil, nil},
		} {
			var responses []string
			for _, site := range []string{"there", "never", "%2e%2e"} {
				r := request{r.method, strings.Replace(r.path, "%s", site, 1), r.body, r.header.Clone()}
				if r.header == nil {
					r.header = http.Header{}
				}
				for i := 0; i < len(h); i += 2 {
					r.header.Set(h[i], h[i+1])
				}
				got, err := s.try(r)
				if err != nil {
					t.Fatal(err)
				}
				got.header.Del("X-Request-Id")
				got.header.Del("Date")
				responses = append(responses, fmt.Sprint(got.status, got.header, string(got.body)))
			}
			if responses[0] != responses[1] || responses[0] != responses[2] || !strings.HasPrefix(responses[0], "40") {
				t.Errorf("%s %s with %v:\n%s\n%s\n%s", r.method, r.path, h, responses[0], responses[1], responses[2])
			}
		}
	}
}

// Whoever may only create gets 403 for a build that exists, whatever the conditions: before
// the body, and when 16 create the same build at once.
func TestCreateOnly(t *testing.T) {
	token := newToken()
	s, _ := startAccess(t, []testRule{{name: "ci", token: token, allow: "create", sites: "s"}, {allow: "read", sites: "*"}})
	with := func(h ...string) http.Header { return header(append(h, bearer(token)...)...) }
	etag := s.do(t, 201, request{"PUT", "/sites/s/artifacts/b", "the first", with()}).header.Get("ETag")
	for _, h := range []http.Header{with(), with("If-None-Match", "*"), with("If-None-Match", etag), with("If-Match", "*"), with("If-Match", etag), with("If-Match", `"x"`),
		with("If-Unmodified-Since", "Mon, 01 Jan 2001 00:00:00 GMT")} {
		got := s.do(t, 403, request{"PUT", "/sites/s/artifacts/b", "another", h})
		if want := challenged + `, error="insufficient_scope", scope="write"`; got.header.Get("Www-Authenticate") != want {
			t.Errorf("%v: %v", h, got.header)
		}
	}
	got := answerTo(t, s.addr, "PUT /sites/s/artifacts/b HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\nAuthorization: Bearer "+token+"\r\n\r\n")
	if got.status != 403 {
		t.Errorf("expecting 100: %d, want 403", got.status)
	}
	s.do(t, 412, request{"PUT", "/sites/s/artifacts/none", "x", with("If-Match", "*")})
	s.do(t, 403, request{"DELETE", "/sites/s/artifacts/b", nil, with()})
	if got := s.get(t, 200, "/sites/s/artifacts/b"); string(got.body) != "the first" {
		t.Errorf("the build is %q", got.body)
	}
	for i := range 20 {
		path := fmt.Sprint("/sites/s/artifacts/race-", i)
		statuses := make(chan any, 16)
		var start sync.WaitGroup
		start.Add(1)
		for j := range 16 {
			go func() {
				start.Wait()
				statuses <- statusOr(s.try(request{"PUT", path, fmt.Sprint("content ", j), with()}))
			}()
		}
		start.Done()
		count := map[any]int{}
		for range 16 {
			count[<-statuses]++
		}
		if count[201] != 1 || count[403] != 15 {
			t.Errorf("16 creators: %v, want one 201 and 15 403", count)
		}
	}
}

// Rules of a token and those for anonymous clients add up.
func TestAnonymousRulesAddUp(t *testing.T) {
	token := newToken()
	s, _ := startAccess(t, []testRule{{name: "ci", token: token, allow: "write", sites: "public-*"}, {allow: "read", sites: "public-*"}})
	s.put(t, 201, "/sites/public-a/artifacts/b", "x", bearer(token)...)
	s.get(t, 200, "/sites/public-a/artifacts/b")
	s.get(t, 200, "/sites/public-a/artifacts/b", bearer(token)...)
	s.get(t, 401, "/sites/public-a/artifacts/b", bearer(newToken())...) // bad credentials are never ignored
	s.get(t, 401, "/sites/private/artifacts/b")
	s.get(t, 403, "/sites/private/artifacts/b", bearer(token)...)
	s.put(t, 401, "/sites/public-a/artifacts/b", "x")
}

// What is open stays open, also to bad credentials, and no more than that is.
func TestWhatIsOpen(t *testing.T) {
	s, _ := startAccess(t, []testRule{{name: "a", token: newToken(), allow: "read", sites: "s"}})
	const host, bad = " HTTP/1.1\r\nHost: h\r\n", "Authorization: Bearer nonsense\r\nAuthorization: twice\r\n"
	for _, c := range []struct{ request, want string }{
		{"GET /health", "200"}, {"GET /ready", "200"}, {"GET /openapi.yaml", "200"},
		{"OPTIONS /sites/s/artifacts/b", "204"}, {"OPTIONS *", "204"},
		{"GET /", "404"}, {"GET /sitesx", "404"}, {"PUT /nothing", "404"}, {"GET /sites/s/artifacts/b/", "404"}, {"GET /sites/s/artifacts/b/c", "404"},
		{"GET //sites/s/artifacts/b", "404"}, {"GET /./sites/s/artifacts/b", "404"}, {"GET /SITES/s/artifacts/b", "404"},
		{"GET /metrics/", "404"}, {"GET /x/../metrics", "404"}, {"GET /%6detrics", "404"}, {"GET /metrics;x", "404"},
		{"POST /sites/s/artifacts/b", "405"}, {"PATCH /sites/s/artifacts/b", "405"}, {"TRACE /sites/s/artifacts/b", "405"}, {"PUT /metrics", "405"},
		{"GET /sites", "401"}, {"GET /metrics", "401"}, {"HEAD /metrics", "401"}, {"GET /metrics?x=y", "401"},
	} {
		for _, credentials := range []string{"", "Authorization: Bearer " + newToken() + "\r\n", bad} {
			want := c.want
			if want == "401" && credentials == bad {
				want = "400"
			}
			if got := statusesOf(t, s, c.request+host+credentials+"Content-Length: 0\r\n\r\n"); got != want {
				t.Errorf("%s with %q: %q, want %s", c.request, credentials, got, want)
			}
		}
	}
}

// Tricks with paths and headers: each request of a sequence on one connection is decided
// by its own credentials.
func TestAccessTricks(t *testing.T) {
	good, other := newToken(), newToken()
	s, _ := startAccess(t, []testRule{{name: "good", token: good, allow: "read write delete log", sites: "s"}, {name: "other", token: other, allow: "read write delete log", sites: "s-2"}})
	n := openTestNFS(t, s.dir)
	mustStore(t, n, "s", "b", []byte("a build"))
	mustStore(t, n, "s-2", "b", []byte("a build"))
	before := stateOf(t, s.dir)
	const get = "GET /sites/s/artifacts/b HTTP/1.1\r\nHost: h\r\n"
	request := func(line string, headers ...string) string {
		return line + " HTTP/1.1\r\nHost: h\r\n" + strings.Join(append(headers, ""), "\r\n") + "\r\n"
	}
	auth := "Authorization: Bearer " + good
	chunked := "PUT /sites/s/artifacts/new HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
	for _, c := range []struct{ name, raw, want string }{
		{"right", request("GET /sites/s/artifacts/b", auth), "200"},
		{"scheme in other cases", request("GET /sites/s/artifacts/b", "authorization: bEARER "+good), "200"},
		{"several spaces", request("GET /sites/s/artifacts/b", "Authorization:   Bearer   "+good+"  "), "200"},
		{"Basic", request("GET /sites/s/artifacts/b", "Authorization: "+basic("", good)), "200"},
		{"Basic in other cases", request("GET /sites/s/artifacts/b", "Authorization: BASIC "+strings.TrimPrefix(basic("any user", good), "Basic ")), "200"},
		{"Basic: the token as user", request("GET /sites/s/artifacts/b", "Authorization: "+basic(good, "")), "401"},
		{"Basic: the password begins at the first colon", request("GET /sites/s/artifacts/b", "Authorization: "+basic("u:"+good, "")), "401"},
		{"Basic: the password has a colon", request("GET /sites/s/artifacts/b", "Authorization: "+basic("u", "x:"+good)), "401"},
		{"Basic: no colon", request("GET /sites/s/artifacts/b", "Authorization: Basic "+base64.StdEncoding.EncodeToString([]byte(good))), "401"},
		{"Basic: no padding", request("GET /sites/s/artifacts/b", "Authorization: "+strings.TrimRight(basic("u", good), "=")+"x"), "401"},
		{"Basic: a newline", request("GET /sites/s/artifacts/b", "Authorization: "+basic("u", good+"\n")), "401"},
		{"no space", request("GET /sites/s/artifacts/b", "Authorization: Bearer"+good), "401"},
		{"a tab", request("GET /sites/s/artifacts/b", "Authorization: Bearer\t"+good), "401"},
		{"the token alone", request("GET /sites/s/artifacts/b", "Authorization: "+good), "401"},
		{"empty", request("GET /sites/s/artifacts/b", "Authorization:"), "401"},
		{"a parameter", request("GET /sites/s/artifacts/b", "Authorization: Bearer token="+good), "401"},
		{"a list", request("GET /sites/s/artifacts/b", auth+", Bearer "+other), "401"},
		{"the token and more", request("GET /sites/s/artifacts/b", auth+"x"), "401"},
		{"the token in capitals", request("GET /sites/s/artifacts/b", "Authorization: Bearer "+strings.ToUpper(good)), "401"},
		{"twice", request("GET /sites/s/artifacts/b", auth, auth), "400"},
		{"two tokens", request("GET /sites/s/artifacts/b", auth, "Authorization: Bearer "+other), "400"},
		{"twice, in other cases", request("GET /sites/s/artifacts/b", auth, "AUTHORIZATION: x"), "400"},
		{"twice, the second empty", request("GET /sites/s/artifacts/b", auth, "authorization:"), "400"},
		{"a folded line", get + "Authorization: Bearer\r\n " + good + "\r\n\r\n", "200"}, // RFC 9112, section 5.2: as a space
		{"a folded line before", get + "X: y\r\n " + auth + "\r\n\r\n", "401"},
		{"a folded line after", request("GET /sites/s/artifacts/b", auth, "\tx"), "401"},
		{"a space before the colon", get + "Authorization : Bearer " + good + "\r\n\r\n", "400"},
		{"a space before the name", get + " " + auth + "\r\n\r\n", "400"},
		{"another name with an underscore", request("GET /sites/s/artifacts/b", "Autho_rization: Bearer "+good), "401"},
		{"Proxy-Authorization", request("GET /sites/s/artifacts/b", "Proxy-Authorization: Bearer "+good), "401"},
		{"X-Authorization", request("GET /sites/s/artifacts/b", "X-Authorization: Bearer "+good), "401"},
		{"X-Forwarded-User", request("GET /sites/s/artifacts/b", "X-Forwarded-User: good", "X-Remote-User: good"), "401"},
		{"a client certificate in a header", request("GET /sites/s/artifacts/b", "X-Client-Cert: good", "X-SSL-Client-Verify: SUCCESS"), "401"},
		{"a cookie", request("GET /sites/s/artifacts/b", "Cookie: Authorization=Bearer "+good), "401"},
		{"in the query", request("GET /sites/s/artifacts/b?access_token=" + good), "401"},
		{"in the user of a target", request("GET http://u:" + good + "@h/sites/s/artifacts/b"), "401"},

		{"in the trailer", chunked + "\r\n1\r\nx\r\n0\r\n" + auth + "\r\n\r\n", "401"},
		{"in the trailer, announced", chunked + "Trailer: Authorization\r\n\r\n1\r\nx\r\n0\r\n" + auth + "\r\n\r\n", "400"},
		{"in the trailer, expecting", chunked + "Expect: 100-continue\r\n\r\n", "401"},
		{"in the header, and in the trailer of a request before", "POST /sites/s/logs HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n" + auth +
			"\r\n\r\n2\r\n{}\r\n0\r\nX-Trailer: a\r\n\r\n" + get + "\r\n", "400 401"},

		{"absolute", request("GET http://h/sites/s/artifacts/b", auth), "200"},
		{"absolute, without credentials", request("GET http://h/sites/s/artifacts/b"), "401"},
		{"absolute, of a site without rights", request("GET http://h/sites/s-2/artifacts/b", auth), "403"},
		{"dots", request("GET /sites/s/../s-2/artifacts/b", auth), "404"},
		{"dots in an id", request("GET /sites/../artifacts/b", auth), "403"},
		{"dots, encoded", request("GET /sites/s%2f..%2fs-2/artifacts/b", auth), "403"},
		{"a slash, encoded", request("GET /sites/s%2fartifacts/artifacts/b", auth), "403"},
		{"a slash in the build", request("GET /sites/s/artifacts/..%2f..%2fs-2%2fartifacts%2fb", auth), "400"},
		{"an id, encoded", request("GET /sites/%73/artifacts/b", auth), "200"},
		{"an id without rights, encoded", request("GET /sites/s%2d2/artifacts/b", auth), "403"},
		{"an id, twice encoded", request("GET /sites/%2573/artifacts/b", auth), "403"},
		{"a bad escape", request("GET /sites/s%2/artifacts/b", auth), "403"},
		{"a NUL", request("GET /sites/s%00/artifacts/b", auth), "403"},
		{"a capital", request("GET /sites/S/artifacts/b", auth), "403"},
		{"a glob", request("GET /sites/*/artifacts/b", auth), "403"},
		{"an empty id", request("GET /sites//artifacts/b", auth), "403"},
		{"a semicolon", request("GET /sites/s;x/artifacts/b", auth), "403"},
		{"a question mark, encoded", request("GET /sites/s%3f/artifacts/b", auth), "403"},
		{"a fragment", request("GET /sites/s-2#/sites/s/artifacts/b", auth), "403"},

		{"HEAD", "HEAD /sites/s/artifacts/b HTTP/1.1\r\nHost: h\r\n\r\n", "401"},
		{"a HEAD of a list", "HEAD /sites/s/versions HTTP/1.1\r\nHost: h\r\n\r\n", "401"},
		{"method override", request("GET /sites/s-2/artifacts/b", auth, "X-HTTP-Method-Override: PUT"), "403"},
		{"method override of a POST", request("POST /sites/s-2/logs", "X-HTTP-Method: GET", "X-Method-Override: GET", "Content-Length: 0"), "401"},
		{"an unknown method", request("get /sites/s/artifacts/b", auth), "405"},
		{"X-Original-URL", request("GET /sites/s-2/artifacts/b", auth, "X-Original-URL: /sites/s/artifacts/b", "X-Rewrite-URL: /sites/s/artifacts/b"), "403"},
		{"a cross-site POST", request("POST /sites/s/logs", auth, "Sec-Fetch-Site: cross-site", "Content-Length: 0"), "403"},
		{"a cross-site POST with Basic", request("POST /sites/s/logs", "Authorization: "+basic("", good), "Origin: http://evil", "Content-Length: 0"), "403"},

		{"pipelined", request("GET /sites/s/artifacts/b", auth) + get + "\r\n" + request("GET /sites/s/artifacts/b", "Authorization: Bearer "+other) +
			request("GET /sites/s-2/artifacts/b", "Authorization: Bearer "+other) + request("GET /sites/s/artifacts/b", auth) + get + "\r\n", "200 401 403 200 200 401"},
		{"pipelined after a refused body", "PUT /sites/s/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: 96\r\n\r\n" +
			strings.Repeat("x", 96) + request("GET /sites/s/artifacts/b", auth) + get + "\r\n", "401 200 401"},
		{"a request in a refused body", "PUT /sites/s/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: " +
			fmt.Sprint(len(request("GET /sites/s/artifacts/b", auth))) + "\r\n\r\n" + request("GET /sites/s/artifacts/b", auth) + get + "\r\n", "401 401"},
		{"after a malformed request", request("GET /sites/s/artifacts/b", auth) + "nonsense\r\n\r\n" + get + "\r\n", "200 400"},
		{"HTTP/1.0", "GET /sites/s/artifacts/b HTTP/1.0\r\nHost: h\r\n\r\n", "401"},
	} {
		if got := statusesOf(t, s, c.raw); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if after := stateOf(t, s.dir); after != before {
			t.Fatalf("%s: the store was changed from\n%sto\n%s", c.name, before, after)
		}
	}
}

// A HEAD is refused as the GET is.
func TestHeadIsRefusedAsGet(t *testing.T) {
	s, _ := startAccess(t, []testRule{{name: "a", token: newToken(), allow: "log", sites: "s"}})
	for _, path := range []string{"/sites/s/artifacts/b", "/sites/s/versions", "/metrics"} {
		get, head := s.get(t, 401, path), s.do(t, 401, request{"HEAD", path, nil, nil})
		for _, h := range []http.Header{get.header, head.header} {
			h.Del("X-Request-Id")
			h.Del("Date")
		}
		if fmt.Sprint(get.header) != fmt.Sprint(head.header) || len(head.body) > 0 {
			t.Errorf("%s: GET %v, HEAD %v %q", path, get.header, head.header, head.body)
		}
	}
}

// No line of the service log has a credential, whatever went wrong.
func TestCredentialsAreNotLogged(t *testing.T) {
	b := &panicky{nfs: openTestNFS(t, t.TempDir())}
	token := newToken()
	path := writeAccess(t, testRule{name: "a", token: token, allow: "read write delete log", sites: "s"})
	s, svc := startBackend(t, b, "LOG_LEVEL=debug", "LOG_FORMAT=text")
	access, err := openAccess(path, false, svc.api.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(access.close)
	svc.useAccess(access)
	at := "stat"
	b.at.Store(&at)
	expected := newToken() // of nobody
	raw := func(line string, headers ...string) string {
		return line + " HTTP/1.1\r\nHost: h\r\n" + strings.Join(append(headers, ""), "\r\n") + "\r\n"
	}
	pairs := base64.StdEncoding.EncodeToString([]byte("u:" + token))
	requests := []string{
		raw("GET /sites/s/artifacts/b", "Authorization: Bearer "+token),
		raw("HEAD /sites/s/artifacts/b", "Authorization: Bearer "+token), // panics
		raw("HEAD /sites/s/artifacts/b?token="+token, "Authorization: Bearer "+token),
		raw("GET /sites/s/artifacts/b", "Authorization: Bearer "+expected),
		raw("GET /sites/s/artifacts/b", "Authorization: Basic "+pairs),
		raw("GET /sites/s/artifacts/b", "Authorization: Digest "+token),
		raw("GET /sites/s/artifacts/b", "Authorization: Bearer "+token, "Authorization: Bearer "+expected),
		raw("GET /sites/s/artifacts/b", "Authorization : Bearer "+token),
		raw("GET /sites/s/artifacts/b", "Authorization: Bearer "+token, "nonsense"),
		raw("GET /sites/s/artifacts/b", "Authorization: Bearer "+token, "Content-Length: x"),
		raw("GET /sites/s/artifacts/b", "Authorization: Bearer "+token+"\x00"),
		"Authorization: Bearer " + token + "\r\n\r\n",
		"GET\r\nAuthorization: Bearer " + token + "\r\n\r\n",
		raw("GET /sites/s/artifacts/b", "Authorization: Bearer "+token, "X: "+strings.Repeat("x", readBuffer)),
		raw("GET /sites/s/versions?access_token="+token, "Authorization: Bearer "+token),
		raw("GET /sites/s/versions?limit=1&X-Token="+token+"&x=y", "Authorization: Bearer "+token),
		raw("GET /sites/s/versions?%74oken="+token, "Authorization: Bearer "+token),
		raw("GET http://u:" + token + "@h/sites/s/versions"),
		raw("GET http://u:"+token+"@h/sites/s/versions?token="+token, "nonsense"),
		"GET /sites/s/versions?token=" + token + " HTTP/1.1\r\nnonsense\r\n\r\n",
		"PUT /sites/s/artifacts/b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer " + token + "\r\n\r\n1\r\nx\r\n0\r\nAuthorization: Bearer " + token + "\r\n\r\n",
		raw("DELETE /sites/s/artifacts/b", "Authorization: Bearer "+token, "If-Match: x"),
	}
	for _, r := range requests {
		statusesOf(t, s, r)
	}
	eventually(t, "all are logged", func() bool { return strings.Count(s.log.String(), "msg=request ") >= len(requests) })
	log := s.log.String()
	for _, want := range []string{"a handler panicked", "malformed request", "msg=audit", "actor=a actor_kind=token"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %q:\n%s", want, log)
		}
	}
	for _, secret := range []string{token, token[5:30], expected, pairs, pairs[8:40], strings.ToUpper(token)} {
		if i := strings.Index(log, secret); i >= 0 {
			t.Errorf("the log has a secret: %q", log[max(0, i-300):i+len(secret)])
		}
	}
}

// The budgets count the requests of an actor together, from wherever they come, and not
// with others of its address.
func TestBudgetsAreSharedByActor(t *testing.T) {
	one, two := newToken(), newToken()
	s, svc := startAccess(t, []testRule{{name: "one", token: one, allow: "write", sites: "*"}, {name: "two", token: two, allow: "write", sites: "*"}, {allow: "write", sites: "public"}})
	beginUpload(t, s, "127.0.0.1", "/sites/a/artifacts/1", "Authorization: Bearer "+one)
	beginUpload(t, s, "127.0.0.2", "/sites/b/artifacts/2", "Authorization: Bearer "+one)
	beginUpload(t, s, "127.0.0.1", "/sites/a/artifacts/3", "Authorization: "+basic("u", two))
	beginUpload(t, s, "127.0.0.1", "/sites/public/artifacts/4")
	awaitUploads(t, svc, map[string]int64{"token one": 2, "token two": 1, "127.0.0.1": 1})
}

// beginUpload sends a part of an upload from an address.
func beginUpload(t *testing.T, s *testServer, from, path string, headers ...string) {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := dialer.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "PUT %s HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n%s\r\nbegin", path, strings.Join(append(headers, ""), "\r\n"))
}

// awaitUploads waits until the uploads are those of the clients in want.
func awaitUploads(t *testing.T, svc *service, want map[string]int64) {
	t.Helper()
	eventually(t, fmt.Sprint("the uploads are those of ", want), func() bool {
		b := svc.api.uploads
		b.mu.Lock()
		defer b.mu.Unlock()
		got := map[string]int64{}
		for name, h := range b.clients {
			got[name] = h.n
		}
		return fmt.Sprint(got) == fmt.Sprint(want)
	})
}

// A public issuer gives everyone any number of subjects. Those that no rule matches have no
// budgets of their own, and not a line of the service log each.
func TestStrangersCountAsTheirAddress(t *testing.T) {
	key := signingKey{"k", "ES256", p256Key()}
	issuer := startIssuer(t, key)
	s, svc := startAccess(t, []testRule{{allow: "read", sites: "*"}}, "ACCESS_LOG=false")
	switchFile(t, svc.api.access.watch.paths[0], []byte(`{"oidc":[{"name":"ci","issuer":"`+issuer.URL+`","audience":["pagewright"],"rules":[{"claims":{"owner":["acme"]},"allow":["write"],"sites":["*"]}]}],
		"anonymous":[{"allow":["write"],"sites":["public"]}]}`))
	if err := svc.api.access.watch.check(); err != nil {
		t.Fatal(err)
	}
	stranger := func(i int) string {
		return signJWT(key, nil, jwt.MapClaims{"iss": issuer.URL, "aud": "pagewright", "sub": fmt.Sprint("stranger-", i), "owner": "evil", "exp": time.Now().Add(time.Minute).Unix()})
	}
	for i := range 2 {
		beginUpload(t, s, "127.0.0.1", fmt.Sprint("/sites/public/artifacts/", i), "Authorization: Bearer "+stranger(i))
	}
	awaitUploads(t, svc, map[string]int64{"127.0.0.1": 2})
	const n = 50
	for i := range n {
		s.get(t, 403, "/sites/s/versions", bearer(stranger(i))...)
	}
	counted := 0
	eventually(t, "all are counted", func() bool {
		counted = 0
		for _, m := range lineMembers(t, s, "audit") {
			count, _ := m["count"].(float64)
			counted += int(count)
		}
		return counted == n
	})
	if lines := len(lineMembers(t, s, "audit")); lines >= n/2 {
		t.Errorf("%d audit lines for %d requests", lines, n)
	}
}

// Denials are counted by reason, from zero on, and only with an access file.
func TestDeniedMetrics(t *testing.T) {
	admin, creator := newToken(), newToken()
	s, _ := startAccess(t, []testRule{{name: "admin", token: admin, allow: "admin", sites: "*"}, {name: "ci", token: creator, allow: "create", sites: "s"},
		{name: "old", token: newToken(), allow: "read", sites: "*", expires: "2020-01-01T00:00:00Z"}})
	read := func() map[string]float64 {
		t.Helper()
		return metricValues(t, string(s.get(t, 200, "/metrics", bearer(admin)...).body))
	}
	got := read()
	for _, reason := range deniedReasons {
		if n, there := got[fmt.Sprintf("pagewright_access_denied_total{reason=%q}", reason)]; !there || n != 0 {
			t.Errorf("%s: %v, %v", reason, n, there)
		}
	}
	if got["pagewright_access_enabled"] != 1 || got[`pagewright_reload_successful{file="access"}`] != 1 || got[`pagewright_reload_success_timestamp_seconds{file="access"}`] < 1e9 {
		t.Errorf("metrics: %v", got)
	}
	s.get(t, 401, "/sites/s/versions")
	s.get(t, 401, "/sites/s/versions", "Authorization", "Negotiate x")
	s.get(t, 401, "/sites/s/versions", bearer(newToken())...)
	s.get(t, 403, "/sites/s/versions", bearer(admin)...)
	s.put(t, 201, "/sites/s/artifacts/b", "x", bearer(creator)...)
	for range 2 {
		again := s.put(t, 403, "/sites/s/artifacts/b", "x", bearer(creator)...)
		if text := string(again.body); !strings.Contains(text, "the build exists, and these credentials may only create builds (create), not replace them (write)") {
			t.Error(text)
		}
	}
	got = read()
	for reason, want := range map[string]float64{deniedMissing: 1, deniedMalformed: 1, deniedUnknown: 1, deniedRights: 1, deniedExists: 2, deniedExpired: 0} {
		if n := got[fmt.Sprintf("pagewright_access_denied_total{reason=%q}", reason)]; n != want {
			t.Errorf("%s: %v, want %v", reason, n, want)
		}
	}
	open := startServer(t)
	for name, value := range scrape(t, open) {
		if strings.HasPrefix(name, "pagewright_access_") && name != "pagewright_access_enabled" || strings.HasPrefix(name, "pagewright_reload_") || name == "pagewright_access_enabled" && value != 0 {
			t.Errorf("without an access file: %s %v", name, value)
		}
	}
}

// Tokens with an expiry have a metric, as long as the file has them. Names may have any character
// that can be printed.
func TestTokenExpiryMetrics(t *testing.T) {
	issuer := "http://" + freeAddr(t)
	name := "Küche 2 \"x\"\\"
	file := func(entry string) []byte {
		return fmt.Appendf(nil, `{"tokens":[%s],"oidc":[{"name":"i","issuer":%q,"audience":["a"]}],"anonymous":[{"allow":["admin"],"sites":["*"]}]}`, entry, issuer)
	}
	s, svc := startAccess(t, nil)
	path := svc.api.access.watch.paths[0]
	load := func(data []byte) map[string]float64 {
		t.Helper()
		switchFile(t, path, data)
		if err := svc.api.access.watch.check(); err != nil {
			t.Fatal(err)
		}
		return scrape(t, s)
	}
	expiring := func(all map[string]float64) string {
		found := map[string]float64{}
		for series, v := range all {
			if strings.HasPrefix(series, "pagewright_access_token_expires_timestamp_seconds") {
				found[series] = v
			}
		}
		return fmt.Sprint(found)
	}
	quoted := string(mustMake(json.Marshal(name)))
	two := `{"name":` + quoted + `,"sha256":["` + hashA + `","` + hashB + `"],"allow":["read"],"sites":["*"],"expires":"2027-01-31T00:00:00Z"},
		{"name":"ever","sha256":["` + strings.Repeat("0c", 32) + `"],"allow":["read"],"sites":["*"]}`
	all := load(file(two))
	if got, want := expiring(all), fmt.Sprint(map[string]float64{`pagewright_access_token_expires_timestamp_seconds{name="Küche 2 \"x\"\\"}`: 1801353600}); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := expiring(load(file(strings.Replace(two, "2027", "2028", 1)))); !strings.Contains(got, "1.8328896e+09") {
		t.Errorf("another time: %s", got)
	}
	if got := expiring(load(file(""))); got != "map[]" {
		t.Errorf("the entry is gone, its metric is not: %s", got)
	}
}

// An admin address is open: it has no more than the probes and the metrics.
func TestAdminAddressNeedsNoCredentials(t *testing.T) {
	addr := freeAddr(t)
	s := startServer(t, "ADMIN_LISTEN="+addr, "ACCESS_FILE="+writeAccess(t, testRule{name: "a", token: newToken(), allow: "read", sites: "*"}))
	admin := &testServer{addr: addr, log: s.log}
	admin.get(t, 200, "/metrics")
	admin.get(t, 200, "/ready")
	admin.get(t, 404, "/sites/s/versions")
	s.get(t, 404, "/metrics")
}

func TestErrorDescriptions(t *testing.T) {
	for text, want := range map[string]string{"plain": "plain", `a "quoted" \ one`: "a 'quoted' ' one", "a\nb\x7f": "a?b?", "ä": "?"} {
		if got := describable(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestIsToken68(t *testing.T) {
	for text, want := range map[string]bool{"a": true, "aZ09-._~+/": true, "a=": true, "a==": true, "": false, "=": false, "a=b": false, "a b": false, "a,": false, "a\"": false, "\xc3\xa4": false} {
		if got := isToken68([]byte(text)); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// BenchmarkAuthorize is what access control costs a small request with a token, and without
// an access file.
func BenchmarkAuthorize(b *testing.B) {
	token := newToken()
	path := writeAccess(b, testRule{name: "a", token: token, allow: "read", sites: "shop-*"})
	access, err := openAccess(path, false, quiet())
	if err != nil {
		b.Fatal(err)
	}
	defer access.close()
	for name, on := range map[string]*accessControl{"off": nil, "token": access} {
		b.Run(name, func(b *testing.B) {
			permit := permitOf(on, token)
			b.ReportAllocs()
			for b.Loop() {
				if err := permit(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// permitOf returns a function that authorises a read on the site shop-berlin with a token.
func permitOf(access *accessControl, token string) func() error {
	a := &api{access: access}
	r := &route{method: "GET", need: actionRead}
	ctx := &fasthttp.RequestCtx{}
	ctx.Init2(&conn{from: "127.0.0.1"}, nil, false)
	h := &ctx.Request.Header
	h.SetHost("storage.example.com")
	h.SetUserAgent("curl/8.14.1")
	h.Set("Accept", "*/*")
	h.Set("Authorization", "Bearer "+token)
	ctx.SetUserValue("site_id", "shop-berlin")
	return func() error { return a.permit(ctx, r) }
}

// Without an access file the header is not even read.
func TestAccessOffAllocatesNothing(t *testing.T) {
	permit := permitOf(nil, newToken())
	if n := testing.AllocsPerRun(100, func() {
		if err := permit(); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// The JWTs of an issuer that does not respond get 503 until it does: they may be good.
func TestIssuerDown(t *testing.T) {
	issuer := "http://" + freeAddr(t)
	path := writeAccess(t)
	switchFile(t, path, []byte(`{"oidc":[{"name":"ci","issuer":"`+issuer+`","audience":["pagewright"],"rules":[{"claims":{"sub":["x"]},"allow":["read"],"sites":["s"]}]}],
		"anonymous":[{"allow":["admin"],"sites":["*"]},{"allow":["read"],"sites":["public"]}]}`))
	s := startServer(t, "ACCESS_FILE="+path)
	part := base64.RawURLEncoding.EncodeToString
	jwt := part([]byte(`{"alg":"RS256","typ":"JWT","kid":"k"}`)) + "." +
		part(fmt.Appendf(nil, `{"iss":%q,"aud":"pagewright","sub":"x","exp":%d}`, issuer, time.Now().Add(time.Minute).Unix())) + "." + part(make([]byte, 256))
	for _, path := range []string{"/sites/s/versions", "/sites/public/versions"} {
		got := s.get(t, 503, path, bearer(jwt)...)
		if got.header.Get("Retry-After") == "" || got.header.Get("Www-Authenticate") != "" {
			t.Errorf("%s: %v", path, got.header)
		}
	}
	s.get(t, 401, "/sites/s/versions", bearer(strings.Replace(jwt, "eyJhbGciOiJSUzI1NiI", "eyJhbGciOiJub25lIiA", 1))...)
	s.get(t, 200, "/sites/public/versions")
	got := scrape(t, s)
	if got[`pagewright_access_denied_total{reason="issuer_down"}`] != 2 || got[`pagewright_access_key_fetches_total{issuer="ci",result="failed"}`] == 0 {
		t.Errorf("metrics: %v", got)
	}
	if _, there := got[`pagewright_access_keys_age_seconds{issuer="ci"}`]; !there {
		t.Error("the age of the keys is missing")
	}
	if strings.Contains(s.log.String(), jwt[100:150]) {
		t.Error("the service log has the JWT")
	}
}
