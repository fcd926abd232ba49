package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mustLabel moves a label to a build.
func mustLabel(t testing.TB, b LabelKeeper, siteID, label, buildID string) Label {
	t.Helper()
	l, _, err := b.MoveLabel(siteID, LabelMove{Label: label, BuildID: buildID})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// move is the body of a PUT of a label.
func move(buildID string) string { return fmt.Sprintf(`{"build_id":%q}`, buildID) }

// TestLifeOfALabel: one label from its creation to its end.
func TestLifeOfALabel(t *testing.T) {
	s := startServer(t)
	const list, live = "/sites/s/labels", "/sites/s/labels/live"
	if got := s.get(t, 200, list); string(got.body) != `{"site_id":"s","labels":[]}`+"\n" {
		t.Errorf("an unknown site has the labels %s", got.body)
	}
	s.get(t, 404, live)
	s.get(t, 404, live+"/artifact")
	s.do(t, 204, request{"DELETE", live, nil, nil})
	s.do(t, 412, request{"DELETE", live, nil, header("If-Match", "*")})
	for _, site := range []string{"s", "other"} { // the first has no build at all
		got := s.put(t, 404, "/sites/"+site+"/labels/live", move("v1"))
		if text := `"cannot move the label: site \"` + site + `\" has no build \"v1\""`; !strings.Contains(string(got.body), text) {
			t.Errorf("no such build: %s", got.body)
		}
		s.put(t, 201, "/sites/other/artifacts/v2", "x")
	}
	s.put(t, 201, "/sites/s/artifacts/v1", "one")
	s.put(t, 201, "/sites/s/artifacts/v2", "two")
	s.put(t, 412, live, move("v1"), "If-Match", "*")

	started := time.Now().Add(-time.Minute)
	created := s.put(t, 201, live, move("v1"), "If-None-Match", "*")
	var l labelJSON
	created.into(t, &l)
	if l.ChangedAt.Before(started) || l.ChangedAt.After(time.Now().Add(time.Minute)) || l.ChangedAt.Location() != time.UTC {
		t.Errorf("changed at %v", l.ChangedAt)
	}
	text := func(l labelJSON) string {
		return fmt.Sprintf(`{"label":%q,"build_id":%q,"previous":%q,"changed_at":%q,"by":%q}`, l.Label, l.BuildID, l.Previous, l.ChangedAt.Format(time.RFC3339Nano), l.By)
	}
	if want := text(labelJSON{"live", "v1", "", l.ChangedAt, ""}) + "\n"; string(created.body) != want {
		t.Errorf("created as %s, want %s", created.body, want)
	}
	etag := created.header.Get("ETag")
	if same := s.put(t, 200, live, move("v1")); string(same.body) != string(created.body) || same.header.Get("ETag") != etag {
		t.Errorf("the same build: %s %v", same.body, same.header)
	}
	s.put(t, 412, live, move("v1"), "If-None-Match", "*")
	s.put(t, 412, live, move("v2"), "If-Match", `"x"`)
	s.put(t, 412, live, move("v2"), "If-None-Match", `"x", `+etag)
	s.put(t, 412, live, move("v2"), "If-Unmodified-Since", "Mon, 01 Jan 2001 00:00:00 GMT")
	s.put(t, 404, live, move("v3"), "If-Match", etag)
	if got := s.get(t, 200, live); string(got.body) != string(created.body) {
		t.Errorf("a refused move changed the label to %s", got.body)
	}
	moved := s.put(t, 200, live, move("v2"), "If-Match", etag)
	moved.into(t, &l)
	if l.BuildID != "v2" || l.Previous != "v1" || moved.header.Get("ETag") == etag {
		t.Errorf("moved: %s %v", moved.body, moved.header)
	}
	// Back, and not forward again.
	back := s.put(t, 200, live, move(l.Previous), "If-Match", moved.header.Get("ETag"))
	s.put(t, 412, live, move(l.Previous), "If-Match", moved.header.Get("ETag"))
	back.into(t, &l)
	if l.BuildID != "v1" || l.Previous != "v2" || back.header.Get("ETag") == etag {
		t.Errorf("rolled back: %s", back.body)
	}
	s.put(t, 201, "/sites/s/labels/a", move("v2"))
	got := s.get(t, 200, list)
	var all struct{ Labels []labelJSON }
	got.into(t, &all)
	if len(all.Labels) != 2 || all.Labels[0].Label != "a" || text(all.Labels[1])+"\n" != string(back.body) {
		t.Errorf("the labels are %s", got.body)
	}
	s.do(t, 412, request{"DELETE", live, nil, header("If-Match", etag)})
	s.do(t, 204, request{"DELETE", live, nil, header("If-Match", back.header.Get("ETag"))})
	s.do(t, 204, request{"DELETE", live, nil, nil})
	s.get(t, 404, live)
	if changed := s.get(t, 200, list, "If-None-Match", got.header.Get("ETag")); strings.Contains(string(changed.body), "live") {
		t.Errorf("after the delete: %s", changed.body)
	}
	s.get(t, 200, "/sites/s/artifacts/v1")
}

// TestReadLabels: the conditions and the headers of the responses to GET and HEAD.
func TestReadLabels(t *testing.T) {
	s := startServer(t)
	s.put(t, 201, "/sites/s/artifacts/v1", "one")
	s.put(t, 201, "/sites/s/labels/live", move("v1"))
	for _, path := range []string{"/sites/s/labels", "/sites/s/labels/live"} {
		whole := s.get(t, 200, path)
		etag := whole.header.Get("ETag")
		one := path != "/sites/s/labels"
		for _, c := range []struct {
			header []string
			status int
		}{
			{nil, 200},
			{[]string{"If-None-Match", etag}, 304},
			{[]string{"If-None-Match", "W/" + etag}, 304},
			{[]string{"If-None-Match", `"x", ` + etag}, 304},
			{[]string{"If-None-Match", "*"}, 304},
			{[]string{"If-None-Match", `"x"`}, 200},
			{[]string{"If-None-Match", "x"}, 200},
			{[]string{"If-Match", `"x"`}, map[bool]int{true: 412, false: 200}[one]},
			{[]string{"If-Match", etag}, 200},
			{[]string{"If-Match", "x"}, map[bool]int{true: 400, false: 200}[one]},
			{[]string{"If-Unmodified-Since", "Mon, 01 Jan 2001 00:00:00 GMT"}, map[bool]int{true: 412, false: 200}[one]},
			{[]string{"If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT"}, 200}, // it has no Last-Modified
		} {
			got := s.get(t, c.status, path, c.header...)
			head := s.do(t, c.status, request{"HEAD", path, nil, header(c.header...)})
			if c.status >= 400 {
				continue
			}
			for _, r := range []*received{got, head} {
				if r.header.Get("ETag") != etag || r.header.Get("Cache-Control") != "no-cache" || r.header.Get("Last-Modified") != "" {
					t.Errorf("%s %v: %v", path, c.header, r.header)
				}
			}
			if c.status == 200 && (string(got.body) != string(whole.body) || head.length != int64(len(got.body)) || got.header.Get("Content-Type") != "application/json") {
				t.Errorf("%s %v: %s, %v", path, c.header, got.body, got.header)
			}
		}
	}
	s.get(t, 400, "/sites/s/labels?limit=1")
	s.get(t, 200, "/sites/s/labels/live?limit=1")
}

// TestMovesOfLabels: what the header and the body of a PUT may be. Whatever is refused changes
// nothing; what the header shows is refused before the body.
func TestMovesOfLabels(t *testing.T) {
	s := startServer(t)
	s.put(t, 201, "/sites/s/artifacts/v1", "one")
	right := move("v1")
	wide := move("v1") + strings.Repeat(" ", maxLabelBody-len(right))
	const early, late = true, false
	for _, c := range []struct {
		header, body string
		status       int
		when         bool   // of a refusal: before the body
		text         string // of it
	}{
		{"", right, 200, late, ""},
		{"", " \n" + right + "\r\n", 200, late, ""},
		{"", `{"build_id":"v\u0031"}`, 200, late, ""},
		{"", wide, 200, late, ""},
		{"Content-Type: application/json", right, 200, late, ""},
		{"Content-Type: application/x-www-form-urlencoded", right, 200, late, ""}, // as curl -d sends it
		{"Content-Encoding: identity", right, 200, late, ""},
		{"Repr-Digest: " + sha256Field([]byte(right)), right, 200, late, ""},
		{"If-Match: *", right, 200, late, ""},

		{"", "", 400, late, "empty"},
		{"", "  ", 400, late, "empty"},
		{"", "{}", 400, late, "build_id is missing"},
		{"", `{"build_id":null}`, 400, late, "build_id is missing"},
		{"", `{"build_id":""}`, 400, late, "build_id is empty"},
		{"", `{"build_id":1}`, 400, late, "build_id is not a string"},
		{"", `{"build_id":["v1"]}`, 400, late, "build_id is not a string"},
		{"", `{"build_id":{"a":1}}`, 400, late, "build_id is not a string"},
		{"", `{"build_id":true}`, 400, late, "build_id is not a string"},
		{"", `{"build_id":"../v1"}`, 400, late, "build_id must"},
		{"", `{"build_id":".v1"}`, 400, late, "build_id must"},
		{"", move(strings.Repeat("v", 129)), 400, late, "build_id is longer than 128"},
		{"", `{"build_id":"v1","build_id":"v1"}`, 400, late, "build_id is specified more than once"},
		{"", `{"build_id":"v1","if_match":"x"}`, 400, late, `unknown member \"if_match\"`},
		{"", `{"Build_id":"v1"}`, 400, late, `unknown member \"Build_id\"`},
		{"", `{"":"v1"}`, 400, late, `unknown member \"\"`},
		{"", `{"` + strings.Repeat("n", 3000) + `":1}`, 400, late, "unknown member"},
		{"", right + "{}", 400, late, "trailing data"},
		{"", right + "x", 400, late, "not valid JSON"},
		{"", `{"build_id":"v1",}`, 400, late, "not valid JSON"},
		{"", `{"build_id":"v1"`, 400, late, "not valid JSON"},
		{"", "{'build_id':'v1'}", 400, late, "not valid JSON"},
		{"", "v1", 400, late, "not valid JSON"},
		{"", `"v1"`, 400, late, "not a JSON object"},
		{"", `["v1"]`, 400, late, "not a JSON object"},
		{"", "null", 400, late, "not a JSON object"},
		{"", "{\"build_id\":\"v1\xff\"}", 400, late, "not valid UTF-8"},
		{"", `{"build_id":"v1\ud800"}`, 400, late, "surrogate"},
		{"", "build_id=v1", 400, late, "not valid JSON"},
		{"Repr-Digest: " + sha256Field([]byte("x")), right, 400, late, `"algorithm":"sha-256"`},
		{"", wide + " ", 413, early, "the label is larger than the maximum of 4096 bytes"},
		{"Repr-Digest: sha-256=x", right, 400, early, "Repr-Digest"},
		{"Content-Encoding: gzip", right, 415, early, "Content-Encoding"},
		{"Content-Type: multipart/form-data; boundary=x", right, 415, early, "multipart"},
		{"Content-MD5: AA==", right, 400, early, "Content-MD5"},
		{"If-Match: x", right, 400, early, "If-Match"},
		{"If-None-Match: ", right, 400, early, "If-None-Match"},
		{"If-None-Match: *", right, 412, late, "cannot move the label: precondition failed"},
		{"Sec-Fetch-Site: cross-site", right, 403, early, "cross-origin"},
		{"Origin: http://evil.example", right, 403, early, "cross-origin"},
		{"Sec-Fetch-Site: same-origin\r\nOrigin: http://h", right, 200, late, ""},
	} {
		// A new label for each that must be refused: none may be there afterwards.
		label := "live"
		if c.status >= 400 && c.status != 412 {
			label = "refused"
		} else {
			mustPut(t, s, "/sites/s/labels/live", right)
		}
		head := "PUT /sites/s/labels/" + label + " HTTP/1.1\r\nHost: h\r\n"
		if c.header != "" {
			head += c.header + "\r\n"
		}
		sized := fmt.Sprintf("Content-Length: %d\r\n", len(c.body))
		chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(c.body), c.body)
		if c.body == "" {
			chunked = "0\r\n\r\n"
		}
		for _, raw := range []string{head + sized + "\r\n" + c.body, head + "Transfer-Encoding: chunked\r\n\r\n" + chunked} {
			if got := answerTo(t, s.addr, raw); got.status != c.status || !strings.Contains(string(got.body), c.text) || len(got.body) > 1000 {
				t.Errorf("%q: %d %s; want %d %q", raw, got.status, got.body, c.status, c.text)
			}
		}
		expecting := answerTo(t, s.addr, head+sized+"Expect: 100-continue\r\n\r\n")
		if want := map[bool]int{early: c.status, late: 100}[c.when]; expecting.status != want {
			t.Errorf("%s, %q: before the body %d, want %d", c.header, c.body, expecting.status, want)
		}
		if c.status >= 400 && label == "refused" {
			s.get(t, 404, "/sites/s/labels/refused")
		}
	}
	for _, r := range []request{ // cross-origin
		{"DELETE", "/sites/s/labels/live", nil, header("Sec-Fetch-Site", "cross-site")},
		{"DELETE", "/sites/s/labels/live", nil, header("Origin", "null")},
	} {
		s.do(t, 403, r)
	}
	s.get(t, 200, "/sites/s/labels/live", "Sec-Fetch-Site", "cross-site", "Origin", "http://evil.example")
	s.get(t, 200, "/sites/s/labels/live/artifact", "Sec-Fetch-Site", "cross-site")
}

// mustPut creates or moves a label.
func mustPut(t *testing.T, s *testServer, path, body string) {
	t.Helper()
	if r, err := s.try(request{"PUT", path, body, nil}); err != nil || r.status/100 != 2 {
		t.Fatalf("PUT %s: %v", path, statusOr(r, err))
	}
}

// TestNamesOfLabels: a name that is not valid gets a 400 with the rule, whatever is asked of it.
func TestNamesOfLabels(t *testing.T) {
	s := startServer(t)
	s.put(t, 201, "/sites/s/artifacts/v1", "one")
	for name, rule := range map[string]string{
		"a": "", "0": "", "a-": "", "a--b": "", "live-2": "", strings.Repeat("z", 32): "", "%61": "",
		strings.Repeat("z", 33): "label must have 1 to 32 characters",
		"-a":                    "label must contain only a-z 0-9 -, and begin with a letter or digit", "A": "label must contain only", "a_b": "label must contain only",
		"a.b": "label must contain only", "..": "label must contain only", "a%2Fb": "label must contain only", "%C3%A4": "label must contain only",
		"a%00": "label must contain only", "a%20": "label must contain only", "%zz": "label has invalid percent-encoding",
	} {
		for _, r := range []string{"PUT ", "GET ", "GET /artifact", "HEAD ", "HEAD /artifact", "DELETE "} {
			method, under, _ := strings.Cut(r, " ")
			raw := fmt.Sprintf("%s /sites/s/labels/%s%s HTTP/1.1\r\nHost: h\r\n", method, name, under)
			if method == "PUT" {
				raw += fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(move("v1")), move("v1"))
			}
			got := answerTo(t, s.addr, raw+"\r\n")
			if (got.status == 400) != (rule != "") || method != "HEAD" && !strings.Contains(string(got.body), rule) {
				t.Errorf("%s %s: %d %s, want %q", method, name, got.status, got.body, rule)
			}
		}
	}
}

// TestManyLabels: a site has 16 labels at most; those that are there can still be moved.
func TestManyLabels(t *testing.T) {
	s := startServer(t)
	s.put(t, 201, "/sites/s/artifacts/v1", "one")
	s.put(t, 201, "/sites/s/artifacts/v2", "two")
	for i := range maxLabels {
		s.put(t, 201, fmt.Sprint("/sites/s/labels/l", i), move("v1"))
	}
	if got := s.put(t, 409, "/sites/s/labels/more", move("v1")); !strings.Contains(string(got.body), "cannot move the label: the site has 16 labels, the maximum") {
		t.Errorf("one too many: %s", got.body)
	}
	s.put(t, 200, "/sites/s/labels/l3", move("v2"))
	s.do(t, 204, request{"DELETE", "/sites/s/labels/l4", nil, nil})
	s.put(t, 201, "/sites/s/labels/more", move("v1"))
	if got := s.do(t, 409, request{"DELETE", "/sites/s/artifacts/v2", nil, nil}); !strings.Contains(string(got.body), `build \"v2\" has the label l3`) {
		t.Errorf("%s", got.body)
	}
}

// TestLabelsProtect: a labelled build is neither deleted nor replaced, and an upload that would
// replace it is refused before its body.
func TestLabelsProtect(t *testing.T) {
	s := startServer(t)
	const build, none = "/sites/s/artifacts/v1", "/sites/s/artifacts/v0"
	data := []byte("one")
	etag := s.put(t, 201, build, data).header.Get("ETag")
	s.put(t, 201, "/sites/s/labels/live", move("v1"))
	s.put(t, 201, "/sites/s/labels/beta", move("v1"))
	const conflict = `build \"v1\" has the labels beta, live: move or delete the labels first`
	digest := sha256Field(data)
	for _, c := range []struct {
		method, path string
		header       []string
		status       int
	}{
		{"PUT", build, nil, 409},
		{"PUT", build, []string{"If-Match", etag}, 409},
		{"PUT", build, []string{"If-Match", "*"}, 409},
		{"PUT", build, []string{"If-None-Match", `"x"`}, 409},
		{"PUT", build, []string{"Repr-Digest", digest}, 409},
		{"PUT", build, []string{"If-Match", `"x"`}, 412},
		{"PUT", build, []string{"If-None-Match", "*"}, 412},
		{"PUT", build, []string{"If-None-Match", "*", "Repr-Digest", digest}, 200}, // it changes nothing
		{"DELETE", build, nil, 409},
		{"DELETE", build, []string{"If-Match", etag}, 409},
		{"DELETE", build, []string{"If-Match", `"x"`}, 412},
		{"PUT", none, nil, 201},
		{"PUT", none, nil, 201},
		{"DELETE", none, nil, 204},
	} {
		var body any
		if c.method == "PUT" {
			body = data
		}
		got := s.do(t, c.status, request{c.method, c.path, body, header(c.header...)})
		if c.status == 409 && !strings.Contains(string(got.body), conflict) {
			t.Errorf("%s %v: %s", c.method, c.header, got.body)
		}
		if c.method == "DELETE" {
			continue
		}
		head := fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n", c.path)
		for i := 0; i < len(c.header); i += 2 {
			head += c.header[i] + ": " + c.header[i+1] + "\r\n"
		}
		want := c.status
		if want == 201 {
			want = 100
		}
		if got := answerTo(t, s.addr, head+"\r\n"); got.status != want {
			t.Errorf("PUT %v: before the body %d %s, want %d", c.header, got.status, got.body, want)
		}
	}
	if got := s.get(t, 200, build); !bytes.Equal(got.body, data) || got.header.Get("ETag") != etag {
		t.Errorf("the build is %s, %v", got.body, got.header)
	}
	// Somebody removes the build by hand: it can be created again, and is protected then.
	if err := os.Remove(filepath.Join(s.dir, "sites/s/artifacts/v1.tar.gz")); err != nil {
		t.Fatal(err)
	}
	s.get(t, 404, "/sites/s/labels/live/artifact")
	if got := answerTo(t, s.addr, "PUT "+build+" HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"); got.status != 100 {
		t.Errorf("before the body of what is missing: %d", got.status)
	}
	s.put(t, 201, build, data)
	s.put(t, 409, build, data)
	s.get(t, 200, "/sites/s/labels/live/artifact")
}

// TestDamagedLabel: it protects all builds of its site until somebody deletes it.
func TestDamagedLabelOverHTTP(t *testing.T) {
	s := startServer(t)
	s.put(t, 201, "/sites/s/artifacts/v1", "one")
	s.put(t, 201, "/sites/s/labels/live", move("v1"))
	if err := os.WriteFile(filepath.Join(s.dir, "sites/s/labels/live.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/labels", "/labels/live", "/labels/live/artifact", "/versions?labels=true"} {
		s.get(t, 500, "/sites/s"+path)
	}
	s.put(t, 500, "/sites/s/labels/live", move("v1"), "If-Match", "*")
	s.put(t, 500, "/sites/s/artifacts/v1", "x")
	s.do(t, 500, request{"DELETE", "/sites/s/artifacts/v1", nil, nil})
	const expect = " HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
	for id, want := range map[string]int{"v1": 500, "new": 100} {
		if got := answerTo(t, s.addr, "PUT /sites/s/artifacts/"+id+expect); got.status != want {
			t.Errorf("before the body of %s: %d, want %d", id, got.status, want)
		}
	}
	s.put(t, 201, "/sites/s/artifacts/new", "x")
	s.get(t, 200, "/sites/s/versions")
	s.do(t, 204, request{"DELETE", "/sites/s/labels/live", nil, nil})
	s.put(t, 201, "/sites/s/artifacts/v1", "x")
}

// TestStoresWithoutLabels: what needs labels gets 501, and the rest works.
func TestStoresWithoutLabels(t *testing.T) {
	s, _ := startBackend(t, fourMethods{openTestNFS(t, t.TempDir())})
	for _, r := range []request{
		{"PUT", "/sites/s/labels/live", move("v1"), nil},
		{"DELETE", "/sites/s/labels/live", nil, nil},
		{"GET", "/sites/s/labels/live", nil, nil},
		{"HEAD", "/sites/s/labels/live", nil, nil},
		{"GET", "/sites/s/labels", nil, nil},
		{"GET", "/sites/s/labels/live/artifact", nil, nil},
		{"GET", "/sites/s/versions?labels=true", nil, nil},
	} {
		s.do(t, 501, r)
	}
	if got := answerTo(t, s.addr, "PUT /sites/s/labels/live HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"); got.status != 501 {
		t.Errorf("before the body: %d", got.status)
	}
	s.put(t, 201, "/sites/s/artifacts/v1", "one")
	s.put(t, 201, "/sites/s/artifacts/v1", "two")
	s.get(t, 200, "/sites/s/versions?labels=false")
}

// TestLabelsInAnAppendOnlyStore: labels come, move and go.
func TestLabelsInAnAppendOnlyStore(t *testing.T) {
	s := startServer(t, "APPEND_ONLY=true")
	s.put(t, 201, "/sites/s/artifacts/v1", "one")
	s.put(t, 201, "/sites/s/artifacts/v2", "two")
	s.put(t, 201, "/sites/s/labels/live", move("v1"))
	s.put(t, 200, "/sites/s/labels/live", move("v2"))
	s.put(t, 409, "/sites/s/artifacts/v2", "x")
	s.do(t, 403, request{"DELETE", "/sites/s/artifacts/v2", nil, nil})
	s.do(t, 204, request{"DELETE", "/sites/s/labels/live", nil, nil})
}

// TestRightsOnLabels: each right alone, and who moved a label.
func TestRightsOnLabels(t *testing.T) {
	tokens := map[string]string{}
	rules := []testRule{}
	for _, name := range actionNames {
		tokens[name] = newToken()
		rules = append(rules, testRule{name: "ci-" + name, token: tokens[name], allow: name, sites: "s"})
	}
	s, _ := startAccess(t, rules)
	s.put(t, 201, "/sites/s/artifacts/v1", "one", bearer(tokens["write"])...)
	s.put(t, 201, "/sites/s/artifacts/v2", "one", bearer(tokens["create"])...)
	for _, c := range []struct{ request, build, need string }{
		{"PUT /sites/s/labels/live", "v1", "label"},
		{"GET /sites/s/labels/live", "", "read"},
		{"HEAD /sites/s/labels/live", "", "read"},
		{"GET /sites/s/labels", "", "read"},
		{"GET /sites/s/labels/live/artifact", "", "read"},
		{"GET /sites/s/versions?labels=true", "", "read"},
		{"PUT /sites/s/labels/live", "v2", "label"},
		{"DELETE /sites/s/labels/live", "", "label"},
	} {
		method, path, _ := strings.Cut(c.request, " ")
		var body any
		if c.build != "" {
			body = move(c.build)
		}
		for name, token := range tokens {
			if name != c.need {
				s.do(t, 403, request{method, path, body, header(bearer(token)...)})
			}
		}
		s.do(t, 401, request{method, path, body, nil})
		got, err := s.try(request{method, path, body, header(bearer(tokens[c.need])...)})
		if err != nil || got.status/100 != 2 || c.build != "" && !strings.Contains(string(got.body), `"by":"ci-label"`) {
			t.Errorf("%s: %v %s", c.request, statusOr(got, err), got.body)
		}
	}
	s.do(t, 403, request{"PUT", "/sites/s/labels/Bad", "{", header(bearer(tokens["read"])...)})
	s.do(t, 400, request{"PUT", "/sites/s/labels/Bad", "{", header(bearer(tokens["label"])...)})
	s.do(t, 403, request{"PUT", "/sites/other/labels/live", move("v1"), header(bearer(tokens["label"])...)})
}

// TestLinesOfLabels: the audit line and the request line of each request for a label.
func TestLinesOfLabels(t *testing.T) {
	token := newToken()
	s, _ := startAccess(t, []testRule{{name: "one", token: token, allow: "read write label delete", sites: "s"}})
	cases := []struct {
		what, request, body string
		header              []string
		status              int
		audit, line         string
	}{
		{"a build", "PUT /sites/s/artifacts/v1", "one", nil, 201, "write stored s v1", ""},
		{"another build", "PUT /sites/s/artifacts/v2", "two", nil, 201, "write stored s v2", ""},
		{"a new label", "PUT /sites/s/labels/live", move("v1"), nil, 201, "label created s v1 live", "v1 created"},
		{"the same", "PUT /sites/s/labels/live", move("v1"), nil, 200, "label same s v1 live", "v1 same"},
		{"a move", "PUT /sites/s/labels/live", move("v2"), nil, 200, "label moved s v2 live", "v2 moved"},
		{"a move on a condition", "PUT /sites/s/labels/live", move("v1"), []string{"If-None-Match", "*"}, 412, "label failed s v1 live", "v1"},
		{"a build that is missing", "PUT /sites/s/labels/live", move("v3"), nil, 404, "label failed s v3 live", "v3"},
		{"a bad name", "PUT /sites/s/labels/Live", move("v1"), nil, 400, "label failed s Live", ""},
		{"a bad body", "PUT /sites/s/labels/live", "{", nil, 400, "label failed s live", ""},
		{"a labelled build", "DELETE /sites/s/artifacts/v2", "", nil, 409, "delete failed s v2", ""},
		{"a read", "GET /sites/s/labels/live", "", nil, 200, "", ""},
		{"a download", "GET /sites/s/labels/live/artifact", "", nil, 200, "", "v2"},
		{"a list", "GET /sites/s/labels", "", nil, 200, "", ""},
		{"a delete", "DELETE /sites/s/labels/live", "", nil, 204, "label deleted s live", "deleted"},
		{"a delete of nothing", "DELETE /sites/s/labels/live", "", nil, 204, "label absent s live", "absent"},
		{"another site", "PUT /sites/other/labels/live", move("v1"), nil, 403, "label denied other live", ""},
	}
	for i, c := range cases {
		method, path, _ := strings.Cut(c.request, " ")
		h := header(append(append(bearer(token), "X-Request-Id", fmt.Sprint("request-", i)), c.header...)...)
		var body any
		if c.body != "" {
			body = c.body
		}
		s.do(t, c.status, request{method, path, body, h})
	}
	eventually(t, "all are logged", func() bool { return len(lineMembers(t, s, "request")) == len(cases) })
	requests, audited := lineMembers(t, s, "request"), lineMembers(t, s, "audit")
	for i, c := range cases {
		id := fmt.Sprint("request-", i)
		if got := lineText(audited[id], "action", "result", "site", "build", "label"); got != c.audit {
			t.Errorf("%s: audited as %q, want %q", c.what, got, c.audit)
		}
		if got := lineText(requests[id], "build", "outcome"); got != c.line {
			t.Errorf("%s: the request line has %q, want %q", c.what, got, c.line)
		}
	}
}

// TestVersionsWithLabels: the list shows the labels of its builds, and its ETag covers them.
func TestVersionsWithLabels(t *testing.T) {
	s := startServer(t)
	const list = "/sites/s/versions"
	for _, id := range []string{"v1", "v2", "v3"} {
		s.put(t, 201, "/sites/s/artifacts/"+id, id, "Repr-Digest", sha256Field([]byte(id)))
		s.tick()
	}
	s.post(t, 201, "/sites/s/logs", `{"build_id":"v2","action":"a","status":"s","metadata":{"m":1}}`)
	// labelsOf returns the builds of a list with their labels, "?" without the member.
	labelsOf := func(query string, h ...string) (text, etag string) {
		r := s.get(t, 200, list+query, h...)
		if head := s.do(t, 200, request{"HEAD", list + query, nil, header(h...)}); head.length != int64(len(r.body)) || head.header.Get("ETag") != r.header.Get("ETag") {
			t.Errorf("%s: HEAD has length %d and %v, GET %d bytes and %v", query, head.length, head.header, len(r.body), r.header)
		}
		s.get(t, 304, list+query, "If-None-Match", r.header.Get("ETag"))
		var v struct {
			Versions []struct {
				Build_ID, SHA256 string
				Labels           *[]string
				Logs             []struct{ Metadata *struct{ M int } }
			}
		}
		r.into(t, &v)
		for _, b := range v.Versions {
			labels := "?"
			if b.Labels != nil {
				labels = strings.Join(*b.Labels, "+")
			}
			text += b.Build_ID + ":" + labels + " "
			if digests := strings.Contains(query, "digest"); digests != (b.SHA256 != "") {
				t.Errorf("%s: %s has the digest %q", query, b.Build_ID, b.SHA256)
			}
			if len(b.Logs) > 0 && strings.Contains(query, "metadata") != (b.Logs[0].Metadata != nil) {
				t.Errorf("%s: metadata %v", query, b.Logs[0])
			}
		}
		return strings.TrimSpace(text), r.header.Get("ETag")
	}
	queries := []string{"?labels=true", "?labels", "?labels=true&digest=true", "?labels=true&metadata=true", "?labels=1&digest=1&metadata=1"}
	seen := map[string]string{}
	expect := func(want string) {
		t.Helper()
		for _, query := range queries {
			text, etag := labelsOf(query)
			if text != want {
				t.Errorf("%s: %s, want %s", query, text, want)
			}
			if was, again := seen[etag]; again && (was != want+strings.TrimSuffix(query, "=true")) && query != "?labels" {
				t.Errorf("%s: the ETag %s was that of %s", query, etag, was)
			}
			seen[etag] = want + strings.TrimSuffix(query, "=true")
		}
		if text, _ := labelsOf(""); strings.Trim(text, "v123:? ") != "" {
			t.Errorf("without labels: %s", text)
		}
	}
	expect("v3: v2: v1:")
	_, plain := labelsOf("")
	s.put(t, 201, "/sites/s/labels/live", move("v2"))
	expect("v3: v2:live v1:")
	s.put(t, 201, "/sites/s/labels/beta", move("v2"))
	s.put(t, 201, "/sites/s/labels/old", move("v1"))
	expect("v3: v2:beta+live v1:old")
	if text, etag := labelsOf("?labels=true&limit=1"); text != "v3:" {
		t.Errorf("the first page: %s", text)
	} else if s.put(t, 200, "/sites/s/labels/old", move("v2")); true {
		s.get(t, 304, list+"?labels=true&limit=1", "If-None-Match", etag) // nothing of it has changed
	}
	s.put(t, 200, "/sites/s/labels/old", move("v1"))
	if text, _ := labelsOf("?labels=true&limit=2"); text != "v3: v2:beta+live" {
		t.Errorf("two on a page: %s", text)
	}
	var v versionsBody
	s.get(t, 200, list+"?limit=2").into(t, &v)
	if text, _ := labelsOf("?labels=true&limit=2&cursor=" + v.Next_Cursor); text != "v1:old" {
		t.Errorf("the second page: %s", text)
	}
	if text, _ := labelsOf("?labels=true", "If-None-Match", plain); text != "v3: v2:beta+live v1:old" {
		t.Errorf("to a client that has the list without labels: %s", text)
	}
	if _, etag := labelsOf(""); etag != plain {
		t.Error("the list without labels has changed")
	}
	s.get(t, 400, list+"?labels=2")
	s.get(t, 400, list+"?labels=true&labels=true")
	s.get(t, 400, list+"?label=true")
	// A label whose build is missing is not shown.
	if err := os.Remove(filepath.Join(s.dir, "sites/s/artifacts/v1.tar.gz")); err != nil {
		t.Fatal(err)
	}
	if text, _ := labelsOf("?labels=true"); text != "v3: v2:beta+live" {
		t.Errorf("without v1: %s", text)
	}
	if got := s.get(t, 200, "/sites/none/versions?labels=true"); string(got.body) != `{"site_id":"none","count":0,"versions":[]}`+"\n" {
		t.Errorf("no site: %s", got.body)
	}
}
