package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"
)

var lineEnd = time.Date(2026, 3, 4, 5, 6, 7, 80_900_000, time.UTC)

func exampleRecord() requestRecord {
	return requestRecord{start: lineEnd.Add(-1234567 * time.Nanosecond), id: "ID", method: "GET", path: "/sites/s/artifacts/b",
		remote: "127.0.0.1:1", status: 200, in: 3, out: 4096}
}

// lineOf is the line that the access log writes.
func lineOf(t *testing.T, format string, x *requestRecord) string {
	t.Helper()
	var out bytes.Buffer
	(&accessLog{&out, &Config{LogFormat: format}}).write(x, lineEnd)
	return out.String()
}

// slogLine is the line that slog writes.
func slogLine(t *testing.T, format string, x *requestRecord) string {
	t.Helper()
	var out bytes.Buffer
	if err := lineHandler(&Config{LogFormat: format}, &out).Handle(context.Background(), accessRecord(x, lineEnd)); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestAccessLine(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, c := range []struct {
		name       string
		change     func(x *requestRecord)
		json, text string // what follows remote
	}{
		{"no more members", func(*requestRecord) {}, ``, ``},
		{"a user agent", func(x *requestRecord) { x.agent = "curl/8" }, `,"user_agent":"curl/8"`, ` user_agent=curl/8`},
		{"spaces", func(x *requestRecord) { x.agent = "a b" }, `,"user_agent":"a b"`, ` user_agent="a b"`},
		{"an equals sign", func(x *requestRecord) { x.agent = "a=b" }, `,"user_agent":"a=b"`, ` user_agent="a=b"`},
		{"quotes", func(x *requestRecord) { x.agent = `a"b` }, `,"user_agent":"a\"b"`, ` user_agent="a\"b"`},
		{"a backslash", func(x *requestRecord) { x.agent = `a\b` }, `,"user_agent":"a\\b"`, ` user_agent=a\b`},
		{"a newline", func(x *requestRecord) { x.agent = "a\nb" }, `,"user_agent":"a\nb"`, ` user_agent="a\nb"`},
		{"a control character", func(x *requestRecord) { x.agent = "a\x1bb" }, `,"user_agent":"a\u001bb"`, ` user_agent="a\x1bb"`},
		{"invalid UTF-8", func(x *requestRecord) { x.agent = "a\xffb" }, `,"user_agent":"a\ufffdb"`, ` user_agent="a\xffb"`},
		{"other letters", func(x *requestRecord) { x.agent = "ä" }, `,"user_agent":"ä"`, ` user_agent=ä`},
		{"a reason", func(x *requestRecord) { x.refused = "no" }, `,"error":"no"`, ` error=no`},
		{"a token in a reason", func(x *requestRecord) { x.refused = "no-pwst_a" }, `,"error":"no-pwst_***"`, ` error=no-pwst_***`},
		{"a cut answer", func(x *requestRecord) { x.cut = "gone" }, `,"cut":"gone"`, ` cut=gone`},
		{"all", func(x *requestRecord) { x.agent, x.outcome, x.refused, x.cut, x.serverID = "u", "o", "e", "c", "i" },
			`,"user_agent":"u","outcome":"o","error":"e","cut":"c","server_request_id":"i"`, ` user_agent=u outcome=o error=e cut=c server_request_id=i`},
		{"an actor", func(x *requestRecord) { x.actor, x.actorKind = "ci-shop", "token" }, `,"actor":"ci-shop","actor_kind":"token"`, ` actor=ci-shop actor_kind=token`},
		{"a token of an actor", func(x *requestRecord) { x.actor, x.actorKind, x.credential = "ci-shop", "token", "50d858e0" },
			`,"actor":"ci-shop","actor_kind":"token","credential":"50d858e0"`, ` actor=ci-shop actor_kind=token credential=50d858e0`},
		{"an actor to escape", func(x *requestRecord) { x.actor, x.actorKind = `a "b"`, "oidc" }, `,"actor":"a \"b\"","actor_kind":"oidc"`, ` actor="a \"b\"" actor_kind=oidc`},
		{"long texts", func(x *requestRecord) { x.refused = long },
			`,"error":"` + long[:256] + `"`, ` error=` + long[:256]},
		{"a long text ends between two letters", func(x *requestRecord) { x.refused = long[:255] + "ä" },
			`,"error":"` + long[:255] + `"`, ` error=` + long[:255]},
	} {
		x := exampleRecord()
		c.change(&x)
		for format, want := range map[string]string{
			"json": `{"time":"2026-03-04T05:06:07.0809Z","level":"INFO","msg":"request","request_id":"ID","method":"GET",` +
				`"path":"/sites/s/artifacts/b","status":200,"bytes_in":3,"bytes_out":4096,"duration_ms":1.234,"remote":"127.0.0.1:1"` + c.json + "}\n",
			"text": `time=2026-03-04T05:06:07.080Z level=INFO msg=request request_id=ID method=GET path=/sites/s/artifacts/b ` +
				`status=200 bytes_in=3 bytes_out=4096 duration_ms=1.234 remote=127.0.0.1:1` + c.text + "\n",
		} {
			if got := lineOf(t, format, &x); got != want {
				t.Errorf("%s: the line is\n%swant\n%s", c.name, got, want)
			}
			if got := slogLine(t, format, &x); got != want {
				t.Errorf("%s: slog's line is\n%swant\n%s", c.name, got, want)
			}
		}
	}
}

// FuzzAccessLine: whatever clients send, the line is the one that slog would write.
func FuzzAccessLine(f *testing.F) {
	for _, s := range []string{"", "a", "a b", "a=b", `"`, `\`, "\n", "\x00", "\x7f", "a \x7f", "\xff", "\u2028", "\u00a0", "ä", "\U000e0001"} {
		f.Add("/sites/"+s, s, s, s, int64(1500))
	}
	f.Fuzz(func(t *testing.T, path, id, agent, reason string, took int64) {
		x := exampleRecord()
		id, path, agent, reason = masked(id), masked(path), masked(agent), masked(reason) // as the server does
		x.path, x.id, x.method, x.agent, x.refused, x.cut, x.serverID = path, id, id, clip(agent), reason, agent, id
		x.actor, x.actorKind, x.credential = reason, agent, id
		x.start = lineEnd.Add(-time.Duration(took))
		for _, format := range []string{"json", "text"} {
			got, want := lineOf(t, format, &x), slogLine(t, format, &x)
			if got != want {
				t.Errorf("%s: the line is\n%swant\n%s", format, got, want)
			}
			if strings.Count(got, "\n") != 1 {
				t.Errorf("%s: not one line: %q", format, got)
			}
			if format == "json" && !json.Valid([]byte(got)) {
				t.Errorf("not JSON: %q", got)
			}
		}
	})
}

// A request target in the log has no credentials.
func TestLoggedTarget(t *testing.T) {
	for target, want := range map[string]string{
		"/sites/s/versions":                  "/sites/s/versions",
		"/sites/s/versions?limit=5&cursor=x": "/sites/s/versions?limit=5&cursor=x",
		"/a?":                                "/a?",
		"/a?token=x":                         "/a",
		"/a?access_token=x&y=z":              "/a",
		"/a?y=z&X-TOKEN-x=x":                 "/a",
		"/a?%74oken=x":                       "/a",
		"/a?to%6Ben":                         "/a",
		"/a?%token=x":                        "/a",
		"/a?b=token":                         "/a?b=token",
		"/a?b=c?token=x":                     "/a?b=c?token=x",
		"/a?token=x?y":                       "/a",
		"http://u:p@h/a":                     "http://h/a",
		"http://u:p@h:80/a?b=c":              "http://h:80/a?b=c",
		"http://u:p@h?token=x":               "http://h",
		"http://u:p@x@h/a@b":                 "http://b",
		"http://u:p/x?token@h/a":             "http://h/a",
		"/a://u:p@h/":                        "/a://u:p@h/",
		"/a?key=pwst_a-B_9&b=c":              "/a?key=pwst_***&b=c",
		"/a?key=pwst%5Fab":                   "/a?key=pwst_***",
		"/a?b=%zz&key=pwst_ab":               "/a?b=%zz&key=pwst_***",
		"://":                                "://", "://x@": "://",
		"*": "*",
		"":  "",
	} {
		if got := loggedTarget(target); got != want {
			t.Errorf("%q: %q, want %q", target, got, want)
		}
	}
}

// TestAccessLineOfARequest: what the handlers note arrives in the line.
func TestAccessLineOfARequest(t *testing.T) {
	s := startServer(t)
	agent := strings.Repeat("a", 300)
	s.get(t, 400, "/sites/a/versions?x=1", "User-Agent", agent, "X-Request-Id", "refused")
	s.put(t, 201, "/sites/a/artifacts/b", "body", "X-Request-Id", "stored")
	s.get(t, 200, "/openapi.yaml", "X-Request-Id", "same-connection")
	lines := map[string]map[string]any{}
	eventually(t, "all are logged", func() bool {
		for line := range strings.Lines(s.log.String()) {
			var m map[string]any
			if json.Unmarshal([]byte(line), &m) == nil && m["msg"] == "request" {
				lines[m["request_id"].(string)] = m
			}
		}
		return len(lines) == 3
	})
	for _, c := range []struct {
		id, member string
		want       any
	}{
		{"refused", "user_agent", agent[:256]},
		{"refused", "error", `unknown query parameter "x"`},
		{"refused", "status", 400.0},
		{"stored", "error", nil},
		{"stored", "status", 201.0},
		{"stored", "bytes_in", 4.0},
		{"stored", "method", "PUT"},
		{"same-connection", "error", nil},
		{"same-connection", "remote", lines["refused"]["remote"]},
	} {
		if got := lines[c.id][c.member]; got != c.want {
			t.Errorf("%s: %s is %v, want %v", c.id, c.member, got, c.want)
		}
	}
	for id, m := range lines {
		if took, ok := m["duration_ms"].(float64); !ok || took <= 0 || took > 60_000 {
			t.Errorf("%s: duration_ms is %v", id, m["duration_ms"])
		}
	}
}

// BenchmarkAccessLine is what the access log costs a request, but for its share of
// the writes.
func BenchmarkAccessLine(b *testing.B) {
	for _, format := range []string{"json", "text"} {
		b.Run(format, func(b *testing.B) {
			lines := newLogQueue(io.Discard)
			defer lines.close(logCloseWait)
			log := newBufferedLog(&Config{LogFormat: format}, lines).Handler().(*logHandler).access
			x := exampleRecord()
			x.agent = "curl/8.14.1"
			b.ReportAllocs()
			for b.Loop() {
				log.write(&x, lineEnd)
			}
		})
	}
}
