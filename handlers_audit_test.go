package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// lineMembers returns the lines of the service log with a message, by request id.
func lineMembers(t *testing.T, s *testServer, msg string) map[string]map[string]any {
	t.Helper()
	lines := map[string]map[string]any{}
	for line := range strings.Lines(s.log.String()) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) != nil || m["msg"] != msg {
			continue
		}
		id := m["request_id"].(string)
		if lines[id] != nil {
			t.Errorf("two lines %s of %s", msg, id)
		}
		lines[id] = m
	}
	return lines
}

// Each change has one audit line with who tried it and what came of it, and so has each
// refusal; reads that succeed have none.
func TestAuditLines(t *testing.T) {
	one, reader := newToken(), newToken()
	s, _ := startAccess(t, []testRule{{name: "one", token: one, allow: "write log delete", sites: "s"}, {name: "reader", token: reader, allow: "read create", sites: "s"},
		{allow: "log", sites: "public"}})
	const artifact, logs = "/sites/s/artifacts/b", "/sites/s/logs"
	cases := []struct {
		what     string
		token    string
		request  request
		status   int
		want     string // members of the line; empty: there is no line
		accessed string // members of the access line
	}{
		{"a new build", one, request{"PUT", artifact, "x", header("If-None-Match", "*")}, 201, "INFO write created s b token one", "token one"},
		{"another content", one, request{"PUT", artifact, "y", header("If-Match", "*")}, 201, "INFO write replaced s b token one", "token one"},
		{"without a condition", one, request{"PUT", artifact, "y", nil}, 201, "INFO write stored s b token one", "token one"}, // the store does not look
		{"a condition that fails", one, request{"PUT", artifact, "y", header("If-None-Match", "*")}, 412, "INFO write failed s b token one", "token one"},
		{"a bad build id", one, request{"PUT", "/sites/s/artifacts/%2e", "y", nil}, 400, "INFO write failed s . token one", "token one"},
		{"an empty body", one, request{"PUT", artifact, "", nil}, 400, "INFO write failed s b token one", "token one"},
		{"a create over a build", reader, request{"PUT", artifact, "z", nil}, 403, "INFO write denied s b token reader exists", "token reader"},
		{"an entry", one, request{"POST", logs, anEntry, header("Idempotency-Key", "k")}, 201, "INFO log appended s b token one", "token one"},
		{"the same entry", one, request{"POST", logs, anEntry, header("Idempotency-Key", "k")}, 201, "INFO log same s b token one", "token one"},
		{"no entry", one, request{"POST", logs, "{}", nil}, 400, "INFO log failed s token one", "token one"},
		{"an entry by nobody", "", request{"POST", "/sites/public/logs", anEntry, nil}, 201, "INFO log appended public b", ""},
		{"a read", reader, request{"GET", artifact, nil, nil}, 200, "", "token reader"},
		{"a read of what is not there", reader, request{"GET", "/sites/s/artifacts/none", nil, nil}, 404, "", "token reader"},
		{"a read without the right", one, request{"GET", artifact, nil, nil}, 403, "INFO read denied s b token one rights", "token one"},
		{"a list without the right", one, request{"GET", "/sites/other/versions", nil, nil}, 403, "INFO read denied other token one rights", "token one"},
		{"the metrics without the right", one, request{"GET", "/metrics", nil, nil}, 403, "INFO admin denied token one rights", "token one"},
		{"a delete without the right", reader, request{"DELETE", artifact, nil, nil}, 403, "INFO delete denied s b token reader rights", "token reader"},
		{"a delete for a page of another site", one, request{"DELETE", artifact, nil, header("Sec-Fetch-Site", "cross-site")}, 403, "INFO delete failed s b 1", ""},
		{"a delete", one, request{"DELETE", artifact, nil, nil}, 204, "INFO delete deleted s b token one", "token one"},
		{"a delete with the log", one, request{"DELETE", "/sites/s/versions/b", nil, nil}, 204, "INFO delete deleted s b token one", "token one"},
		{"a delete of the site", one, request{"DELETE", "/sites/s?confirm=s", nil, nil}, 403, "INFO delete denied s token one rights", "token one"},
		{"a list of sites without the right", one, request{"GET", "/sites", nil, nil}, 403, "INFO read denied token one rights", "token one"},
		{"a list of sites", reader, request{"GET", "/sites", nil, nil}, 200, "", "token reader"},
		{"a delete of nothing", one, request{"DELETE", artifact, nil, nil}, 204, "INFO delete absent s b token one", "token one"},
		{"what is open", one, request{"GET", "/health", nil, nil}, 200, "", ""},
		{"what does not exist", one, request{"PUT", "/nothing", "x", nil}, 404, "", ""},
		{"no credentials", "", request{"DELETE", artifact, nil, nil}, 401, "INFO delete denied s b missing 1", ""},
		{"an unknown token", newToken(), request{"GET", artifact, nil, nil}, 401, "INFO read denied s b unknown 1", ""},
	}
	for i, c := range cases {
		r, id := c.request, fmt.Sprint("request-", i)
		if r.header == nil {
			r.header = http.Header{}
		}
		r.header.Set("X-Request-Id", id)
		if c.token != "" {
			r.header.Set("Authorization", "Bearer "+c.token)
		}
		s.do(t, c.status, r)
	}
	eventually(t, "all are logged", func() bool { return len(lineMembers(t, s, "request")) == len(cases)-1 }) // not /health
	requests, audited := lineMembers(t, s, "request"), lineMembers(t, s, "audit")
	for i, c := range cases {
		id := fmt.Sprint("request-", i)
		accessed, line := requests[id], audited[id]
		if got := lineText(accessed, "actor_kind", "actor"); got != c.accessed {
			t.Errorf("%s: the access line has %q, want %q", c.what, got, c.accessed)
		}
		if got := lineText(line, "level", "action", "result", "site", "build", "actor_kind", "actor", "reason", "count"); got != c.want {
			t.Errorf("%s: audited as %q, want %q", c.what, got, c.want)
		}
		if line != nil && (line["status"] != float64(c.status) || line["server_request_id"] == nil || line["remote"] != accessed["remote"]) {
			t.Errorf("%s: audited as %v, request %v", c.what, line, accessed)
		}
	}
}

// Both tokens of an entry have the name of the entry, and each has the beginning of its hash, as
// has one that has expired.
func TestLinesTellTokensOfAnEntryApart(t *testing.T) {
	first, next, old := newToken(), newToken(), newToken()
	hash := func(token string) string {
		sum, _ := tokenHash(token)
		return hex.EncodeToString(sum[:])
	}
	path := filepath.Join(t.TempDir(), "access.json")
	writeFileText(t, path, fmt.Sprintf(`{"tokens":[{"name":"ci","sha256":[%q,%q],"allow":["write"],"sites":["s"]},
		{"name":"retired","sha256":[%q],"allow":["write"],"sites":["*"],"expires":"2020-01-01T00:00:00Z"}]}`, hash(first), hash(next), hash(old)))
	s := startServer(t, "ACCESS_FILE="+path)
	cases := []struct {
		what, id, token string
		status          int
		want            string
	}{
		{"the first token", "first", first, 201, "token ci " + hash(first)[:8]},
		{"the next token", "next", next, 201, "token ci " + hash(next)[:8]},
		{"a token that has expired", "old", old, 401, "token retired " + hash(old)[:8] + " expired"},
	}
	for _, c := range cases {
		got := s.do(t, c.status, request{"PUT", "/sites/s/artifacts/b", "x", header(append(bearer(c.token), "X-Request-Id", c.id)...)})
		if text := fmt.Sprint(got.header, string(got.body)); strings.Contains(text, "retired") || strings.Contains(text, hash(old)[:8]) {
			t.Errorf("%s: the client learns the name: %s", c.what, text)
		}
	}
	eventually(t, "all are logged", func() bool { return len(lineMembers(t, s, "request")) == len(cases) })
	requests, audited := lineMembers(t, s, "request"), lineMembers(t, s, "audit")
	for _, c := range cases {
		if got := lineText(audited[c.id], "actor_kind", "actor", "credential", "reason"); got != c.want {
			t.Errorf("%s: audited as %q, want %q", c.what, got, c.want)
		}
		if got := lineText(requests[c.id], "actor_kind", "actor", "credential"); !strings.HasPrefix(c.want, got) || got == "" {
			t.Errorf("%s: the access line has %q, want %q", c.what, got, c.want)
		}
	}
	seen := lineMembers(t, s, "audit")
	if seen["old"]["count"] != 1.0 || seen["first"]["count"] != nil {
		t.Errorf("only the lines of expired tokens are limited: %v", seen)
	}
}

func lineText(line map[string]any, names ...string) string {
	var found []string
	for _, name := range names {
		if v, there := line[name]; there {
			found = append(found, fmt.Sprint(v))
		}
	}
	return strings.Join(found, " ")
}

// Anybody can send requests without credentials: the audit lines of those that fail are one a
// second for each reason, with the number of requests.
func TestDeniedFloodHasFewAuditLines(t *testing.T) {
	for what, flood := range map[string]func(t *testing.T, s *testServer){
		"no credentials": func(t *testing.T, s *testServer) { s.get(t, 401, "/sites/s/versions") },
		"for a page of another site": func(t *testing.T, s *testServer) {
			s.do(t, 403, request{"DELETE", "/sites/s/artifacts/b", nil, header("Sec-Fetch-Site", "cross-site")})
		},
		"a change that fails": func(t *testing.T, s *testServer) { s.do(t, 400, request{"POST", "/sites/s/logs", "{}", nil}) },
	} {
		t.Run(what, func(t *testing.T) { testAuditFlood(t, flood) })
	}
}

func testAuditFlood(t *testing.T, flood func(*testing.T, *testServer)) {
	s, _ := startAccess(t, []testRule{{allow: "log", sites: "*"}}, "ACCESS_LOG=false")
	const n = 200
	for range n {
		flood(t, s)
	}
	lines, counted := 0, 0.0
	eventually(t, "all are counted", func() bool {
		lines, counted = 0, 0
		for _, m := range lineMembers(t, s, "audit") {
			lines++
			if n, there := m["count"].(float64); there {
				counted += n
			} else {
				counted++
			}
		}
		return counted == n
	})
	if lines >= n/2 {
		t.Errorf("%d audit lines for %d requests", lines, n)
	}
}

// A build that the service cannot tell the outcome of is "stored", and a panic is a failure.
func TestAuditOfOtherResults(t *testing.T) {
	for _, c := range []struct {
		record requestRecord
		want   string
	}{
		{requestRecord{route: routeArtifact, method: "PUT"}, "stored"},
		{requestRecord{route: routeArtifact, method: "DELETE"}, "deleted"},
		{requestRecord{route: routeLogs, method: "POST"}, "appended"},
		{requestRecord{route: routeLogs, method: "POST", outcome: outcomeCreated}, "appended"},
		{requestRecord{route: routeLogs, method: "POST", outcome: outcomeSame}, "same"},
	} {
		if got := auditResult(&c.record); got != c.want {
			t.Errorf("%+v: %s, want %s", c.record, got, c.want)
		}
	}
	b := &panicky{nfs: openTestNFS(t, t.TempDir())}
	s, svc := startBackend(t, b)
	access, err := openAccess(writeAccess(t, testRule{allow: "delete", sites: "*"}), false, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(access.close)
	svc.useAccess(access)
	at := "delete"
	b.at.Store(&at)
	s.do(t, 500, request{"DELETE", "/sites/s/artifacts/b", nil, header("X-Request-Id", "id")})
	if got := lineText(lineMembers(t, s, "audit")["id"], "action", "result", "site", "build", "status"); got != "delete failed s b 500" {
		t.Errorf("a panic is audited as %q", got)
	}
}

// Without an access file there are no audit lines, and none has an actor.
func TestNoAuditWithoutAccessFile(t *testing.T) {
	s := startServer(t)
	s.put(t, 201, "/sites/s/artifacts/b", "x", bearer(newToken())...)
	s.do(t, 204, request{"DELETE", "/sites/s/artifacts/b", nil, header("Authorization", "nonsense")})
	s.get(t, 200, "/metrics", "Authorization", "Basic nonsense")
	eventually(t, "both are logged", func() bool { return strings.Count(s.log.String(), `"msg":"request"`) == 2 })
	if log := s.log.String(); strings.Contains(log, `"msg":"audit"`) || strings.Contains(log, `"actor`) {
		t.Errorf("logged:\n%s", log)
	}
}
