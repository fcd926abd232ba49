package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// unsized hides the length of a body, so that it is sent in chunks.
func unsized(b []byte) io.Reader { return struct{ io.Reader }{bytes.NewReader(b)} }

func TestLifeOfAnArtifact(t *testing.T) { artifactSequence(t, startServer(t)) }

// artifactSequence is the life of one artifact, on any backend.
func artifactSequence(t *testing.T, s *testServer) {
	const path = "/sites/shop/artifacts/v1.0"
	first, second := randomBytes(300_000), randomBytes(70_000)

	s.get(t, 404, path)
	s.do(t, 404, request{"HEAD", path, nil, nil})
	s.do(t, 204, request{"DELETE", path, nil, nil}) // a retry is safe

	r := s.put(t, 201, path, first)
	var ok struct {
		Status, Site_ID, Build_ID string
		Size_Bytes                int64
	}
	r.into(t, &ok)
	if ok.Status != "success" || ok.Site_ID != "shop" || ok.Build_ID != "v1.0" || ok.Size_Bytes != 300_000 {
		t.Errorf("PUT answered %s", r.body)
	}
	tag := r.header.Get("ETag")

	r = s.get(t, 200, path)
	if !bytes.Equal(r.body, first) {
		t.Error("other bytes came back")
	}
	modified := r.header.Get("Last-Modified")
	for name, want := range map[string]string{
		"Content-Type": "application/gzip", "Content-Length": "300000", "Accept-Ranges": "bytes", "ETag": tag,
		"Content-Disposition": `attachment; filename="shop-v1.0.tar.gz"`,
	} {
		if got := r.header.Get(name); got != want || got == "" {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if d, err := http.ParseTime(modified); err != nil || time.Since(d) > time.Hour {
		t.Errorf("Last-Modified: %q", modified)
	}
	h := s.do(t, 200, request{"HEAD", path, nil, nil})
	if h.length != 300_000 || len(h.body) != 0 || h.header.Get("ETag") != tag {
		t.Errorf("HEAD: length %d, ETag %q", h.length, h.header.Get("ETag"))
	}

	s.put(t, 412, path, second, "If-None-Match", "*")
	s.put(t, 412, path, second, "If-Match", `"another"`)
	if r = s.get(t, 200, path); !bytes.Equal(r.body, first) {
		t.Error("a refused upload changed the build")
	}
	r = s.put(t, 201, path, unsized(second), "If-Match", tag)
	tag2 := r.header.Get("ETag")
	if tag2 == tag || tag2 == "" {
		t.Errorf("ETag of the replacement: %q after %q", tag2, tag)
	}
	if r = s.get(t, 200, path); !bytes.Equal(r.body, second) || r.header.Get("ETag") != tag2 {
		t.Error("the replacement is not what comes back")
	}

	if s.noDeleteIf {
		s.do(t, 501, request{"DELETE", path, nil, header("If-Match", tag2)})
		s.get(t, 200, path)
		s.do(t, 204, request{"DELETE", path, nil, nil})
	} else {
		s.do(t, 412, request{"DELETE", path, nil, header("If-Match", tag)})
		s.do(t, 204, request{"DELETE", path, nil, header("If-Match", tag2)})
		s.get(t, 404, path)
		s.do(t, 412, request{"DELETE", path, nil, header("If-Match", tag2)})
	}
	s.get(t, 404, path)
	s.put(t, 412, path, first, "If-Match", "*")
	s.put(t, 201, path, first, "If-None-Match", "*")
	s.do(t, 204, request{"DELETE", path, nil, nil})
}

// The idle timeout ends an answer whose body never comes.
func TestConditionalGet(t *testing.T) { conditionalSequence(t, startServer(t, "IDLE_TIMEOUT=10s")) }

func conditionalSequence(t *testing.T, s *testServer) {
	const path = "/sites/cond/artifacts/b"
	tag := s.put(t, 201, path, "0123456789").header.Get("ETag")
	modified := s.modified(t, path)
	at, err := http.ParseTime(modified)
	if err != nil {
		t.Fatal(err)
	}
	before, after := at.Add(-time.Hour).Format(http.TimeFormat), at.Add(time.Hour).Format(http.TimeFormat)
	for _, c := range []struct {
		name   string
		status int
		header http.Header
	}{
		{"its tag", 304, header("If-None-Match", tag)},
		{"its tag, weak", 304, header("If-None-Match", "W/"+tag)},
		{"its tag in a list", 304, header("If-None-Match", `"a", `+tag+`,"b"`)},
		{"its tag on a second line", 304, header("If-None-Match", `"a"`, "If-None-Match", tag)},
		{"any", 304, header("If-None-Match", "*")},
		{"another tag", 200, header("If-None-Match", `"a"`)},
		{"not modified since", 304, header("If-Modified-Since", modified)},
		{"not modified since later", 304, header("If-Modified-Since", after)},
		{"modified since", 200, header("If-Modified-Since", before)},
		{"no date", 200, header("If-Modified-Since", "yesterday")},
		{"If-None-Match goes before If-Modified-Since", 200, header("If-None-Match", `"a"`, "If-Modified-Since", after)},
		{"If-Match its tag", 200, header("If-Match", tag)},
		{"If-Match any", 200, header("If-Match", "*")},
		{"If-Match another", 412, header("If-Match", `"a"`)},
		{"If-Match is strong", 412, header("If-Match", "W/"+tag)},
		{"unmodified since", 200, header("If-Unmodified-Since", modified)},
		{"unmodified since before", 412, header("If-Unmodified-Since", before)},
		{"If-Match goes before If-Unmodified-Since", 200, header("If-Match", tag, "If-Unmodified-Since", before)},
		{"If-Match goes before If-None-Match", 412, header("If-Match", `"a"`, "If-None-Match", tag)},
		{"both hold", 304, header("If-Match", tag, "If-None-Match", tag)},
		{"not quoted", 200, header("If-None-Match", "abc")},
		{"its tag, and one that is not quoted", 200, header("If-None-Match", tag+", abc")},
		{"a malformed If-None-Match goes before If-Modified-Since", 200, header("If-None-Match", "abc", "If-Modified-Since", after)},
		{"an empty If-None-Match goes before If-Modified-Since", 200, header("If-None-Match", "", "If-Modified-Since", after)},
		{"not closed", 400, header("If-Match", `"abc`)},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			r, err := s.try(request{method, path, nil, c.header})
			if err != nil { // it may be that the answer does not end: the others then take as long
				t.Fatalf("%s, %s: %v, want %d", method, c.name, err, c.status)
			}
			if r.status != c.status {
				t.Errorf("%s, %s: %d, want %d", method, c.name, r.status, c.status)
				continue
			}
			if c.status == 304 && (r.header.Get("ETag") != tag || len(r.body) != 0) {
				t.Errorf("%s, %s: 304 with ETag %q and %d bytes", method, c.name, r.header.Get("ETag"), len(r.body))
			}
		}
	}
}

// modified returns the Last-Modified of a build once it is the time of the build: it
// may be earlier as long as it is the Date.
func (s *testServer) modified(t *testing.T, path string) (modified string) {
	t.Helper()
	eventually(t, "Date is later than the build", func() bool {
		h := s.do(t, 200, request{"HEAD", path, nil, nil}).header
		modified = h.Get("Last-Modified")
		return modified != h.Get("Date")
	})
	return modified
}

func statusOr(r *received, err error) any {
	if err != nil {
		return err
	}
	return r.status
}

func TestRanges(t *testing.T) { rangeSequence(t, startServer(t)) }

func rangeSequence(t *testing.T, s *testServer) {
	const path, size = "/sites/range/artifacts/b", 1_000_000
	body := randomBytes(size)
	tag := s.put(t, 201, path, body).header.Get("ETag")
	for _, c := range []struct {
		value    string
		status   int
		from, to int // of the body, to exclusive
	}{
		{"bytes=0-0", 206, 0, 1},
		{"bytes=0-9", 206, 0, 10},
		{"bytes=10-", 206, 10, size},
		{"bytes=999999-", 206, 999_999, size},
		{"bytes=-1", 206, size - 1, size},
		{"bytes=-500000", 206, 500_000, size},
		{"bytes=-2000000", 206, 0, size},
		{"bytes=5-2000000", 206, 5, size},
		{"bytes=5-99999999999999999999999", 206, 5, size},
		{"Bytes=3-4", 206, 3, 5},
		{"bytes=1000000-", 416, 0, 0},
		{"bytes=99999999999999999999999-", 416, 0, 0},
		{"bytes=-0", 416, 0, 0},
		{"bytes=0-1,5-6", 200, 0, size},
		{"bytes=9-5", 200, 0, size},
		{"bytes=a-5", 200, 0, size},
		{"bytes=", 200, 0, size},
		{"bytes=-", 200, 0, size},
		{"bytes", 200, 0, size},
		{"lines=0-9", 200, 0, size},
		{"bytes=+1-5", 200, 0, size},
	} {
		r := s.get(t, c.status, path, "Range", c.value)
		want := ""
		switch c.status {
		case 206:
			want = fmt.Sprintf("bytes %d-%d/%d", c.from, c.to-1, size)
		case 416:
			want = fmt.Sprintf("bytes */%d", size)
		}
		if got := r.header.Get("Content-Range"); got != want {
			t.Errorf("%s: Content-Range %q, want %q", c.value, got, want)
		}
		if c.status != 416 && !bytes.Equal(r.body, body[c.from:c.to]) {
			t.Errorf("%s: other bytes: %d of them, want %d", c.value, len(r.body), c.to-c.from)
		}
	}
	for _, c := range []struct {
		ifRange string
		status  int
	}{
		{tag, 206}, {`"another"`, 200}, {"W/" + tag, 200}, {"Mon, 02 Jan 2006 15:04:05 GMT", 200}, {"nonsense", 200},
	} {
		s.get(t, c.status, path, "Range", "bytes=0-9", "If-Range", c.ifRange)
	}
	// Just stored: a date within the second is no strong validator. What took
	// longer on a slow machine tells nothing, and is tried again.
	eventually(t, "a build is read within a second after it was stored", func() bool {
		stored := time.Now()
		s.put(t, 201, path, body)
		date := s.do(t, 200, request{"HEAD", path, nil, nil}).header.Get("Last-Modified")
		r, err := s.try(request{"GET", path, nil, header("Range", "bytes=0-9", "If-Range", date)})
		if err != nil {
			t.Fatal(err)
		}
		if time.Since(stored) >= time.Second {
			return false
		}
		if r.status != 200 || len(r.body) != size {
			t.Errorf("If-Range with a date that is too new: status %d, %d bytes", r.status, len(r.body))
		}
		return true
	})
	if h := s.do(t, 200, request{"HEAD", path, nil, header("Range", "bytes=0-9")}); h.length != size {
		t.Errorf("HEAD with a range: length %d", h.length) // RFC 9110, section 14.2: for GET alone
	}
}

func TestLogsAndVersions(t *testing.T) { historySequence(t, startServer(t)) }

type versionsBody struct {
	Site_ID  string
	Count    int
	Versions []struct {
		Build_ID   string
		Size_Bytes int64
		Created_At time.Time
		Logs       []struct {
			Action, Status string
			Timestamp      time.Time
			Metadata       json.RawMessage
		}
		Logs_Error string
	}
	Next_Cursor string
}

func (s *testServer) versions(t testing.TB, path string) (v versionsBody) {
	t.Helper()
	s.get(t, 200, path).into(t, &v)
	return v
}

func historySequence(t *testing.T, s *testServer) {
	const logs, list = "/sites/hist/logs", "/sites/hist/versions"
	r := s.get(t, 200, list)
	if got := strings.TrimSpace(string(r.body)); got != `{"site_id":"hist","count":0,"versions":[]}` {
		t.Errorf("unknown site: %s", got)
	}

	s.put(t, 201, "/sites/hist/artifacts/one", "11")
	s.post(t, 201, logs, `{"build_id":"one","action":"build","status":"ok","metadata":{"n":12345678901234567890123,"s":"<ä>"}}`)
	s.post(t, 201, logs, `{"build_id":"one","action":"deploy","status":"failed"}`, "Content-Type", "application/x-www-form-urlencoded")
	s.post(t, 201, logs, `{"build_id":"broken","action":"build","status":"failed"}`)
	s.tick()
	s.put(t, 201, "/sites/hist/artifacts/two", "2222")

	v := s.versions(t, list)
	if v.Site_ID != "hist" || v.Count != 3 || len(v.Versions) != 3 {
		t.Fatalf("versions: %+v", v)
	}
	if v.Versions[0].Build_ID != "two" || v.Versions[0].Size_Bytes != 4 || len(v.Versions[0].Logs) != 0 {
		t.Errorf("the newest is %+v", v.Versions[0])
	}
	if b := v.Versions[1]; b.Build_ID != "broken" || b.Size_Bytes != 0 || len(b.Logs) != 1 || !b.Created_At.Equal(b.Logs[0].Timestamp) {
		t.Errorf("the build that has only a log is %+v", b)
	}
	one := v.Versions[2]
	if one.Build_ID != "one" || len(one.Logs) != 2 || one.Logs[0].Action != "build" || one.Logs[1].Status != "failed" || one.Logs[0].Metadata != nil {
		t.Errorf("the oldest is %+v", one)
	}
	if strings.Contains(string(s.get(t, 200, list).body), `"logs":null`) {
		t.Error("logs is null")
	}
	v = s.versions(t, list+"?metadata=true")
	if got := string(v.Versions[2].Logs[0].Metadata); got != `{"n":12345678901234567890123,"s":"<ä>"}` {
		t.Errorf("metadata came back as %s", got)
	}

	// An entity tag of what is listed.
	tag := s.get(t, 200, list).header.Get("ETag")
	s.get(t, 304, list, "If-None-Match", tag)
	s.get(t, 200, list+"?metadata=true", "If-None-Match", tag)
	s.post(t, 201, logs, `{"build_id":"one","action":"rollback","status":"ok"}`)
	s.get(t, 200, list, "If-None-Match", tag)

	// A key makes a POST safe to repeat.
	for range 3 {
		s.post(t, 201, logs, `{"build_id":"two","action":"a","status":"s"}`, "Idempotency-Key", "key 1")
	}
	s.post(t, 201, logs, `{"build_id":"two","action":"a","status":"s"}`, "Idempotency-Key", "key 2")
	if v = s.versions(t, list); len(v.Versions[0].Logs) != 2 {
		t.Errorf("keys: %+v", v.Versions[0])
	}

	// Pages.
	var seen []string
	cursor := ""
	for {
		p := s.versions(t, list+"?limit=2"+cursor)
		for _, b := range p.Versions {
			seen = append(seen, b.Build_ID)
		}
		if p.Next_Cursor == "" {
			break
		}
		cursor = "&cursor=" + p.Next_Cursor
	}
	if got := strings.Join(seen, " "); got != "two broken one" {
		t.Errorf("pages: %s", got)
	}
	for _, bad := range []string{"?limit=0", "?limit=-1", "?limit=x", "?limit=", "?limit=99999", "?cursor=x", "?cursor=", "?metadata=2", "?Limit=1", "?cursor=AAAA", "?limit=1&limit=1"} {
		s.get(t, 400, list+bad)
	}

	// Deleting a build leaves its log.
	s.do(t, 204, request{"DELETE", "/sites/hist/artifacts/one", nil, nil})
	v = s.versions(t, list)
	if b := v.Versions[len(v.Versions)-1]; v.Count != 3 || b.Build_ID != "one" || b.Size_Bytes != 0 || len(b.Logs) != 3 {
		t.Errorf("after the delete: %+v", v)
	}
}

func TestDamagedLogIsToldAndLeftAlone(t *testing.T) {
	s := startServer(t)
	s.put(t, 201, "/sites/a/artifacts/good", "x")
	s.post(t, 201, "/sites/a/logs", `{"build_id":"bad","action":"a","status":"s"}`)
	file := filepath.Join(s.dir, "sites/a/logs/bad.json")
	if err := os.WriteFile(file, []byte(`[{"id":"x",`), 0o644); err != nil {
		t.Fatal(err)
	}
	v := s.versions(t, "/sites/a/versions")
	if v.Count != 2 {
		t.Fatalf("versions: %+v", v)
	}
	for _, b := range v.Versions {
		if (b.Logs_Error != "") != (b.Build_ID == "bad") {
			t.Errorf("%s: logs_error %q", b.Build_ID, b.Logs_Error)
		}
	}
	s.post(t, 500, "/sites/a/logs", `{"build_id":"bad","action":"a","status":"s"}`)
	if b, err := os.ReadFile(file); err != nil || string(b) != `[{"id":"x",` {
		t.Errorf("the damaged log is now %q, %v", b, err)
	}
	s.waitForLog(t, "bad.json")
}

func TestAppendOnly(t *testing.T) {
	appendOnlySequence(t, startServer(t, "APPEND_ONLY=true"))
	s, _ := startBackend(t, openMem(newMemBucket()), "APPEND_ONLY=true")
	appendOnlySequence(t, s)
}

// appendOnlySequence: a condition of the client narrows that of the service and
// never lifts it. 409 is the rule of the service, 412 the client's condition.
func appendOnlySequence(t *testing.T, s *testServer) {
	const path = "/sites/a/artifacts/b"
	tag := s.put(t, 201, path, "one").header.Get("ETag")
	modified := s.modified(t, path)
	at, err := http.ParseTime(modified)
	if err != nil {
		t.Fatal(err)
	}
	before := at.Add(-time.Hour).Format(http.TimeFormat)
	for _, c := range []struct {
		status int
		header http.Header
		fresh  int // status where there is no build
	}{
		{409, nil, 201},
		{412, header("If-None-Match", "*"), 201},
		{409, header("If-None-Match", `"x"`), 201},
		{409, header("If-None-Match", `W/"x"`), 201},
		{409, header("If-None-Match", `"x", "y"`), 201},
		{412, header("If-None-Match", tag), 201},
		{412, header("If-None-Match", "W/"+tag), 201},
		{409, header("If-Match", tag), 412},
		{409, header("If-Match", "*"), 412},
		{412, header("If-Match", `"x"`), 412},
		{409, header("If-Match", tag, "If-None-Match", `"x"`), 412},
		{412, header("If-Match", `"x"`, "If-None-Match", `"x"`), 412},
		{409, header("If-Unmodified-Since", modified), 201},
		{412, header("If-Unmodified-Since", before), 201},
		{409, header("If-Unmodified-Since", modified, "If-None-Match", `"x"`), 201},
		{400, header("If-None-Match", "x"), 400},
	} {
		want := map[string]int{path: c.status, "/sites/a/artifacts/" + newSite(): c.fresh}
		for path, status := range want {
			for _, body := range []any{"two", unsized([]byte("two"))} {
				if body != "two" && status == 201 {
					continue // it is there now
				}
				if got := statusOr(s.try(request{"PUT", path, body, c.header})); got != status {
					t.Errorf("%v: status %v, want %d", c.header, got, status)
				}
			}
			if status == 201 {
				continue
			}
			raw := "PUT " + path + " HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n"
			for name, values := range c.header {
				raw += name + ": " + values[0] + "\r\n"
			}
			if got := exchangeRaw(t, s.addr, raw+"\r\n"); got != fmt.Sprint(status) {
				t.Errorf("Expect, %v: answered %q, want %d", c.header, got, status)
			}
		}
		if r := s.get(t, 200, path); string(r.body) != "one" {
			t.Fatalf("%v: the build is now %q", c.header, r.body)
		}
	}
	s.do(t, 403, request{"DELETE", path, nil, nil})
}

// TestAppendOnlyIsDecidedAtTheEnd: a build that came while another upload of it
// was under way is not replaced, whatever condition that one was sent with.
func TestAppendOnlyIsDecidedAtTheEnd(t *testing.T) {
	s := startServer(t, "APPEND_ONLY=true")
	later := time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	for i, c := range []struct {
		status int
		header http.Header
	}{
		{409, nil},
		{412, header("If-None-Match", "*")},
		{409, header("If-None-Match", `"x"`)},
		{409, header("If-Unmodified-Since", later)},
		{409, header("If-Unmodified-Since", later, "If-None-Match", `"x"`)},
	} {
		site := fmt.Sprint("s", i)
		path := "/sites/" + site + "/artifacts/b"
		r, w := io.Pipe()
		done := make(chan any, 1)
		go func() { done <- statusOr(s.try(request{"PUT", path, r, c.header})) }()
		_, _ = w.Write([]byte("late"))
		eventually(t, "the upload has begun", func() bool {
			temps, _ := filepath.Glob(filepath.Join(s.dir, "sites", site, "artifacts/.tmp-*"))
			return len(temps) == 1
		})
		s.put(t, 201, path, "first")
		w.Close()
		if got := <-done; got != c.status {
			t.Errorf("%v: status %v, want %d", c.header, got, c.status)
		}
		if r := s.get(t, 200, path); string(r.body) != "first" {
			t.Errorf("%v: the build is now %q", c.header, r.body)
		}
	}
}

func TestMaxArtifactSize(t *testing.T) {
	s := startServer(t, "MAX_ARTIFACT_SIZE=100000")
	const path = "/sites/a/artifacts/b"
	s.put(t, 201, path, randomBytes(100_000))
	s.put(t, 201, path, unsized(randomBytes(100_000)))
	s.put(t, 413, path, randomBytes(100_001))
	s.put(t, 413, path, unsized(randomBytes(100_001)))
	s.put(t, 413, path, randomBytes(3_000_000)) // a client that sends it without being asked
	if h := s.do(t, 200, request{"HEAD", path, nil, nil}); h.length != 100_000 {
		t.Errorf("length %d", h.length)
	}
}

func TestTooManyUploads(t *testing.T) {
	s := startServer(t, "MAX_UPLOADS=1")
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := s.try(request{"PUT", "/sites/a/artifacts/slow", r, nil})
		done <- err
	}()
	_, _ = w.Write([]byte("begin"))
	eventually(t, "the first upload has begun", func() bool {
		temps, _ := filepath.Glob(filepath.Join(s.dir, "sites/a/artifacts/.tmp-*"))
		return len(temps) == 1
	})
	if r := s.put(t, 503, "/sites/a/artifacts/b", "x"); r.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	s.waitForLog(t, `"msg":"requests refused","reason":"uploads","status":503`)
	s.get(t, 404, "/sites/a/artifacts/b")
	w.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.put(t, 201, "/sites/a/artifacts/b", "x")
}

func TestMethodsAndPaths(t *testing.T) {
	s := startServer(t)
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/", 404, ""},
		{"GET", "/sites", 200, ""},
		{"HEAD", "/sites", 200, ""},
		{"DELETE", "/sites", 405, "GET, HEAD, OPTIONS"},
		{"GET", "/sites/", 400, ""},
		{"DELETE", "/sites/?confirm=", 400, ""},
		{"PUT", "/sites/a", 405, "DELETE, GET, HEAD, OPTIONS"},
		{"GET", "/sites/a/", 404, ""},
		{"GET", "/sites/a/versions/b", 405, "DELETE, OPTIONS"},
		{"DELETE", "/sites//versions/b", 400, ""},
		{"GET", "/Health", 404, ""},
		{"GET", "/health/", 404, ""},
		{"GET", "/sites/a/versions/", 400, ""},
		{"GET", "/sites/a/artifacts/b/c", 404, ""},
		{"PUT", "/health", 405, "GET, HEAD, OPTIONS"},
		{"POST", "/sites/a/artifacts/b", 405, "DELETE, GET, HEAD, OPTIONS, PUT"},
		{"PATCH", "/sites/a/artifacts/b", 405, "DELETE, GET, HEAD, OPTIONS, PUT"},
		{"GET", "/sites/a/logs", 405, "OPTIONS, POST"},
		{"DELETE", "/sites/a/versions", 405, "GET, HEAD, OPTIONS"},
		{"OPTIONS", "/sites/a/logs", 204, "OPTIONS, POST"},
		{"FROB", "/health", 405, "GET, HEAD, OPTIONS"},
		{"HEAD", "/health", 200, ""},
		{"HEAD", "/ready", 200, ""},
		{"HEAD", "/sites/a/versions", 200, ""},
	} {
		r := s.do(t, c.status, request{c.method, c.path, nil, nil})
		if got := r.header.Get("Allow"); got != c.allow {
			t.Errorf("%s %s: Allow %q, want %q", c.method, c.path, got, c.allow)
		}
		if r.header.Get("X-Request-Id") == "" {
			t.Errorf("%s %s: no X-Request-Id", c.method, c.path)
		}
		if c.status >= 400 && !bytes.Contains(r.body, []byte(`{"status":"error","error":"`)) {
			t.Errorf("%s %s: body %s", c.method, c.path, r.body)
		}
	}
}

func TestRequestID(t *testing.T) {
	s := startServer(t)
	for id, keep := range map[string]bool{"abc-123": true, strings.Repeat("x", 128): true, strings.Repeat("x", 129): false, "a b": false, `a"b`: false} {
		if got := s.get(t, 200, "/openapi.yaml", "X-Request-Id", id).header.Get("X-Request-Id"); (got == id) != keep || got == "" {
			t.Errorf("%.20q became %.20q", id, got)
		}
	}
	eventually(t, "the access log has the id", func() bool { return strings.Contains(s.log.String(), `"request_id":"abc-123"`) })
}

func TestReplacementIsAtomicForReaders(t *testing.T) {
	s := startServer(t)
	const path, size = "/sites/a/artifacts/b", 200_000
	s.put(t, 201, path, bytes.Repeat([]byte{0}, size))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, err := s.try(request{"GET", path, nil, nil})
				if err != nil || r.status != 200 || len(r.body) != size || !bytes.Equal(r.body, bytes.Repeat(r.body[:1], size)) {
					t.Errorf("torn: %v", statusOr(r, err))
					return
				}
			}
		})
	}
	for i := range 60 {
		s.put(t, 201, path, bytes.Repeat([]byte{byte(i)}, size))
	}
	close(stop)
	wg.Wait()
}

func TestReaderInFlightKeepsTheOldBytes(t *testing.T) {
	s := startServer(t)
	const path = "/sites/a/artifacts/b"
	old := randomBytes(30 << 20) // more than the sockets hold
	s.put(t, 201, path, old)
	resp, err := testClient.Get("http://" + s.addr + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	s.put(t, 201, path, "new")
	s.do(t, 204, request{"DELETE", path, nil, nil})
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, old) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestOneOfManyCreatesWins(t *testing.T) { createRace(t, startServer(t), 50_000) }

// createRace lets 16 clients create one build, of which one must win.
func createRace(t *testing.T, s *testServer, size int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	count, winner := map[int]int{}, []byte(nil)
	for range 16 {
		wg.Go(func() {
			body := randomBytes(size)
			r, err := s.try(request{"PUT", "/sites/race/artifacts/b", body, header("If-None-Match", "*", "Expect", "100-continue")})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			count[r.status]++
			if r.status == 201 {
				winner = body
			}
		})
	}
	wg.Wait()
	if count[201] != 1 || count[412] != 15 {
		t.Errorf("statuses: %v", count)
	}
	if r := s.get(t, 200, "/sites/race/artifacts/b"); !bytes.Equal(r.body, winner) {
		t.Error("the build is not the winner's")
	}
}

// TestBodiesThatAreNotStored: a body that would not be stored as its sender means it is
// refused before it is sent, by the header alone.
func TestBodiesThatAreNotStored(t *testing.T) {
	s := startServer(t)
	const put, post = "PUT /sites/a/artifacts/b", "POST /sites/a/logs"
	const coded = "without Content-Encoding"
	for _, c := range []struct {
		request, header string
		status          int
		text            string // in the answer
	}{
		{put, "Content-Encoding: gzip", 415, "send the build without Content-Encoding; the body is stored unchanged"},
		{put, "content-encoding: br", 415, coded},
		{put, "Content-Encoding: identity, GZIP", 415, coded},
		{put, "Content-Encoding: identity\r\nContent-Encoding: gzip", 415, coded},
		{put, "Content-Encoding: aws-chunked", 415, coded},
		{post, "Content-Encoding: deflate", 415, coded},
		{put, "Content-Type: multipart/form-data; boundary=x", 415, "send the raw build, as curl -T does, not multipart"},
		{put, "Content-Type: Multipart/Mixed", 415, "send the raw build"},
		{post, "Content-Type: multipart/form-data; boundary=x", 415, "send the raw log entry, as curl -d does, not multipart"},
		{put, "Content-MD5: 1B2M2Y8AsgTpgAmY7PhCfg==", 400, "Content-MD5 is not supported: send Repr-Digest (RFC 9530)"},
		{put, "Content-MD5:", 400, "Content-MD5"},
		{put, "Digest: sha-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=", 400, "Digest is not supported"},
		{post, "Digest: md5=x", 400, "Digest is not supported"},

		{put, "Content-Encoding: identity", 201, ""},
		{put, "Content-Encoding: Identity , identity", 201, ""},
		{put, "Content-Encoding:", 201, ""},
		{put, "Content-Encoding: ,", 201, ""},
		{put, "Content-Type: application/x-www-form-urlencoded", 201, ""},
		{put, "Content-Type: multipart", 201, ""},
		{put, "Repr-Digest: sha-256=:X0PjGlcv2yksoeBbBUCzMd3sHF/BQOw9vdZQDXwnQ1A=:", 201, ""},
		{put, "Want-Repr-Digest: sha-256=1", 201, ""},
		{post, "Content-Encoding: identity", 201, ""},
	} {
		body := `{"build_id":"b","action":"a","status":"s"}`
		raw := fmt.Sprintf("%s HTTP/1.1\r\nHost: h\r\n%s\r\nContent-Length: %d\r\n", c.request, c.header, len(body))
		const health = "GET /health HTTP/1.1\r\nHost: h\r\n\r\n"
		if got, want := exchangeRaw(t, s.addr, raw+"\r\n"+body+health), fmt.Sprint(c.status, " 200"); got != want {
			t.Errorf("%s, %s: answered %q, want %q", c.request, c.header, got, want)
		}
		if c.status < 400 {
			continue
		}
		r := answerTo(t, s.addr, raw+"Expect: 100-continue\r\n\r\n")
		if r.status != c.status || !strings.Contains(string(r.body), c.text) {
			t.Errorf("%s, %s, expecting: answered %d %q; want %d %q", c.request, c.header, r.status, r.body, c.status, c.text)
		}
		if got, want := r.header.Get("Accept-Encoding"), map[bool]string{true: "identity"}[strings.Contains(c.text, coded)]; got != want {
			t.Errorf("%s, %s: Accept-Encoding %q, want %q", c.request, c.header, got, want)
		}
	}
}

// TestRequestsOfOtherSites: a page of another site cannot let a browser change the store.
func TestRequestsOfOtherSites(t *testing.T) {
	s := startServer(t)
	const put, post, del = "PUT /sites/a/artifacts/b", "POST /sites/a/logs", "DELETE /sites/a/artifacts/b"
	for _, c := range []struct{ request, host, header, want string }{
		{put, "h:8080", "Sec-Fetch-Site: cross-site", "403"},
		{put, "h:8080", "Sec-Fetch-Site: same-site", "403"},
		{put, "h:8080", "Sec-Fetch-Site: Same-Origin", "403"},
		{put, "h:8080", "Sec-Fetch-Site:", "403"},
		{put, "h:8080", "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Site: cross-site", "403"},
		{put, "h:8080", "Sec-Fetch-Site: cross-site\r\nOrigin: http://h:8080", "403"},
		{put, "h:8080", "Sec-Fetch-Site: same-origin", "201"},
		{put, "h:8080", "Sec-Fetch-Site: none", "201"},
		{put, "h:8080", "Sec-Fetch-Site: same-origin\r\nOrigin: https://outside", "201"}, // a proxy gave us another Host
		{put, "h:8080", "Origin: http://h:8080", "201"},
		{put, "h:8080", "Origin: https://h:8080", "201"}, // TLS ends at a proxy
		{put, "H:8080", "Origin: http://h:8080", "201"},
		{put, "h", "Origin: http://h", "201"},
		{put, "h:80", "Origin: http://h", "201"},
		{put, "h", "Origin: http://h:80", "201"},
		{put, "h:443", "Origin: https://h", "201"},
		{put, "[::1]:8080", "Origin: http://[::1]:8080", "201"},
		{put, "h:8080", "Origin: http://h", "403"},
		{put, "h:80", "Origin: https://h", "403"},
		{put, "h:8080", "Origin: http://h:8081", "403"},
		{put, "h:8080", "Origin: http://i:8080", "403"},
		{put, "h:8080", "Origin: http://h:8080.evil", "403"},
		{put, "h:8080", "Origin: http://evil/h:8080", "403"},
		{put, "h:8080", "Origin: http://h:8080, http://evil", "403"},
		{put, "h:8080", "Origin: http://evil\r\nOrigin: http://h:8080", "403"},
		{put, "h:8080", "Origin: extension://h:8080", "403"},
		{put, "h:8080", "Origin: h:8080", "403"},
		{put, "h:8080", "Origin: null", "403"},
		{put, "h:8080", "Origin:", "403"},
		{post, "h:8080", "Sec-Fetch-Site: cross-site", "403"},
		{post, "h:8080", "Origin: null", "403"},
		{post, "h:8080", "Origin: http://h:8080", "201"},
		{del, "h:8080", "Sec-Fetch-Site: cross-site", "403"},
		{del, "h:8080", "Origin: http://h:8080", "204"},
		{"PATCH /sites/a/artifacts/b", "h:8080", "Sec-Fetch-Site: cross-site", "403"},
		{"PUT /health", "h:8080", "Sec-Fetch-Site: cross-site", "403"},
		{"GET /health", "h:8080", "Sec-Fetch-Site: cross-site\r\nOrigin: null", "200"},
		{"HEAD /nothing", "h:8080", "Sec-Fetch-Site: cross-site", "404"},
		{"OPTIONS /sites/a/logs", "h:8080", "Sec-Fetch-Site: cross-site\r\nOrigin: http://evil", "204"},
	} {
		body := `{"build_id":"b","action":"a","status":"s"}`
		r := answerTo(t, s.addr, fmt.Sprintf("%s HTTP/1.1\r\nHost: %s\r\n%s\r\nContent-Length: %d\r\n\r\n%s", c.request, c.host, c.header, len(body), body))
		if got := fmt.Sprint(r.status); got != c.want {
			t.Errorf("%s, Host: %s, %s: answered %s, want %s", c.request, c.host, c.header, got, c.want)
		}
		for name := range r.header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%s, %s: answered %s", c.request, c.header, name)
			}
		}
	}
}

func TestCacheControl(t *testing.T) {
	const build, logs, list, of = "/sites/a/artifacts/b", "/sites/a/logs", "/sites/a/versions", "public, max-age=60"
	plain := startServer(t)
	cached := startServer(t, "APPEND_ONLY=true", "BUILD_CACHE_CONTROL= "+of)
	for _, s := range []*testServer{plain, cached} {
		s.put(t, 201, build, "body")
		s.ready(t)
	}
	for _, c := range []struct {
		request string
		status  int
		header  http.Header
		plain   string
		cached  string // where builds have a value of their own
	}{
		{"GET " + build, 200, nil, "no-cache", of},
		{"HEAD " + build, 200, nil, "no-cache", of},
		{"GET " + build, 206, header("Range", "bytes=0-0"), "no-cache", of},
		{"GET " + build, 304, header("If-None-Match", "*"), "no-cache", of},
		{"HEAD " + build, 304, header("If-None-Match", "*"), "no-cache", of},
		{"GET " + build, 416, header("Range", "bytes=99-"), "no-store", "no-store"},
		{"GET " + build, 412, header("If-Match", `"x"`), "no-store", "no-store"},
		{"GET " + build, 400, header("If-Match", "x"), "no-store", "no-store"},
		{"GET " + build + "x", 404, nil, "no-store", "no-store"},
		{"HEAD " + build + "x", 404, nil, "no-store", "no-store"},
		{"GET " + list, 200, nil, "no-cache", "no-cache"},
		{"HEAD " + list, 200, nil, "no-cache", "no-cache"},
		{"GET " + list, 304, header("If-None-Match", "*"), "no-cache", "no-cache"},
		{"GET " + list + "?limit=0", 400, nil, "no-store", "no-store"},
		{"GET " + logs, 405, nil, "no-store", "no-store"},
		{"GET /nothing", 404, nil, "no-store", "no-store"},
		{"PUT " + build, 400, nil, "no-store", "no-store"},
		{"GET /ready", 200, nil, "no-store", "no-store"},
		{"GET /health", 200, nil, "no-store", "no-store"},
		{"GET /metrics", 200, nil, "no-store", "no-store"},
		{"GET /openapi.yaml", 200, nil, "no-cache", "no-cache"},
	} {
		for s, want := range map[*testServer]string{plain: c.plain, cached: c.cached} {
			method, path, _ := strings.Cut(c.request, " ")
			r := s.do(t, c.status, request{method, path, nil, c.header})
			if got := r.header.Values("Cache-Control"); len(got) != 1 || got[0] != want {
				t.Errorf("%s, %v: %d with Cache-Control %q, want %q", c.request, c.header, r.status, got, want)
			}
		}
	}
	if r := answerTo(t, plain.addr, "GET / HTTP/1.1\r\n\r\n"); r.status != 400 || r.header.Get("Cache-Control") != "no-store" {
		t.Errorf("a malformed request: %d, %v", r.status, r.header)
	}
}

// answerTo returns the answer to the request raw.
func answerTo(t *testing.T, addr, raw string) *received {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	fmt.Fprint(c, raw)
	r, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: strings.Fields(raw)[0]})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return &received{r.StatusCode, r.Header, body, r.ContentLength}
}

// signedBucket is a bucket in memory with URLs to its objects.
type signedBucket struct{ *memBucket }

func (signedBucket) presign(context.Context, string, time.Duration, string) (string, error) {
	return "http://store/signed", nil
}

func TestBooleansInQueries(t *testing.T) {
	s, _ := startBackend(t, newObjectStore(signedBucket{newMemBucket()}, "", quiet()), "STORAGE_BACKEND=s3", "DOWNLOAD_REDIRECT=true")
	const build, list = "/sites/a/artifacts/b", "/sites/a/versions"
	s.put(t, 201, build, "x")
	s.post(t, 201, "/sites/a/logs", `{"build_id":"b","action":"a","status":"s","metadata":{"m":1}}`)
	plain := startServer(t) // redirects nothing
	plain.put(t, 201, build, "x")
	for query, want := range map[string]string{
		"?%s=true": "true", "?%s=1": "true", "?%s=": "true", "?%s": "true",
		"?%s=false": "false", "?%s=0": "false",
		"?%s=True": "", "?%s=yes": "", "?%s=2": "", "?%s=%%20": "", "?%s=true&%[1]s=true": "", "?%s=1&%[1]s": "",
	} {
		metadata, redirect := fmt.Sprintf(list+query, "metadata"), fmt.Sprintf(build+query, "redirect")
		if want == "" {
			s.get(t, 400, metadata)
			for _, s := range []*testServer{s, plain} {
				s.get(t, 400, redirect)
				s.do(t, 400, request{"HEAD", redirect, nil, nil})
			}
			continue
		}
		if r := s.get(t, 200, metadata); strings.Contains(string(r.body), `"m":1`) != (want == "true") {
			t.Errorf("%s: %s", metadata, r.body)
		}
		s.get(t, map[string]int{"true": 307, "false": 200}[want], redirect)
		plain.get(t, 200, redirect)
	}
	if r := s.get(t, 307, build); r.header.Get("Cache-Control") != "no-store" {
		t.Errorf("a redirect with Cache-Control %q", r.header.Get("Cache-Control"))
	}
	if r := s.get(t, 200, list); strings.Contains(string(r.body), "metadata") {
		t.Errorf("metadata nobody asked for: %s", r.body)
	}
}

// TestLastModifiedIsNotLaterThanDate: RFC 9110, section 8.8.2.1. Conditions are judged
// by the time of the file all the same.
func TestLastModifiedIsNotLaterThanDate(t *testing.T) {
	s := startServer(t)
	const path = "/sites/a/artifacts/b"
	s.put(t, 201, path, "0123456789")
	file := filepath.Join(s.dir, "sites/a/artifacts/b.tar.gz")
	times := func(h http.Header) (modified, date time.Time) {
		t.Helper()
		var err, err2 error
		modified, err = http.ParseTime(h.Get("Last-Modified"))
		date, err2 = http.ParseTime(h.Get("Date"))
		if err != nil || err2 != nil {
			t.Fatalf("%v, %v", err, err2)
		}
		return modified, date
	}
	for _, ahead := range []time.Duration{-time.Hour, time.Hour, 20 * 365 * 24 * time.Hour} {
		at := time.Now().Add(ahead)
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
		tag := s.get(t, 200, path).header.Get("ETag")
		for _, r := range []*received{
			s.get(t, 200, path),
			s.do(t, 200, request{"HEAD", path, nil, nil}),
			s.get(t, 206, path, "Range", "bytes=0-4"),
			s.get(t, 304, path, "If-None-Match", tag),
		} {
			modified, date := times(r.header)
			if want := at.UTC().Truncate(time.Second); ahead < 0 && !modified.Equal(want) || ahead > 0 && !modified.Equal(date) {
				t.Errorf("%v ahead, %d: Last-Modified %v, Date %v, the file %v", ahead, r.status, modified, date, want)
			}
		}
		if ahead < 0 {
			continue
		}
		// What a client knows of it is not the time of the file.
		modified := s.get(t, 200, path).header.Get("Last-Modified")
		s.get(t, 200, path, "If-Modified-Since", modified)
		s.get(t, 412, path, "If-Unmodified-Since", modified)
		s.get(t, 200, path, "Range", "bytes=0-4", "If-Range", modified)
		s.put(t, 412, path, "another", "If-Unmodified-Since", modified)
		s.get(t, 206, path, "Range", "bytes=0-4", "If-Range", tag)
	}
	// The Date is kept for a second: builds of every moment of it.
	var dates []time.Time
	eventually(t, "the Date changes twice", func() bool {
		s.put(t, 201, path, "0123456789")
		modified, date := times(s.do(t, 200, request{"HEAD", path, nil, nil}).header)
		if modified.After(date) {
			t.Fatalf("Last-Modified %v, Date %v", modified, date)
		}
		if len(dates) == 0 || !date.Equal(dates[len(dates)-1]) {
			dates = append(dates, date)
		}
		return len(dates) == 3
	})
}
