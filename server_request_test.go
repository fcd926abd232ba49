package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// logLines returns the lines of the service log with a message.
func logLines(s *testServer, msg string) (lines []map[string]any) {
	for line := range strings.Lines(s.log.String()) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && m["msg"] == msg {
			lines = append(lines, m)
		}
	}
	return lines
}

// awaitRequest waits for the line of the request for which is returns true.
func awaitRequest(t *testing.T, s *testServer, what string, is func(line map[string]any) bool) (found map[string]any) {
	t.Helper()
	eventually(t, what+" is logged", func() bool {
		for _, line := range logLines(s, "request") {
			if is(line) {
				found = line
				return true
			}
		}
		return false
	})
	return found
}

func hasID(id string) func(map[string]any) bool {
	return func(line map[string]any) bool { return line["request_id"] == id }
}

// The log says what a write did, where the store knows.
func TestOutcomeInTheLog(t *testing.T) {
	directory := startServer(t)
	objects, _ := startBackend(t, newObjectStore(newMemBucket(), "", quiet()))
	const build, other, logs = "/sites/a/artifacts/b", "/sites/a/artifacts/c", "/sites/a/logs"
	entry := func(status string) string { return `{"build_id":"b","action":"deploy","status":"` + status + `"}` }
	for i, c := range []struct {
		method, path, body string
		header             http.Header
		status             int
		directory, objects any
	}{
		{"PUT", build, "1", nil, 201, nil, nil},
		{"PUT", build, "2", header("If-None-Match", "*"), 412, nil, nil},
		{"PUT", build, "2", header("If-Match", "*"), 201, "replaced", "replaced"},
		{"PUT", other, "1", header("If-None-Match", "*"), 201, "created", "created"},
		{"PUT", "/sites/a/artifacts/d", "1", header("If-None-Match", `"x"`), 201, "created", "created"},
		{"DELETE", build, "", nil, 204, "deleted", nil},
		{"DELETE", build, "", nil, 204, "absent", "absent"},
		{"DELETE", other, "", header("If-Match", "*"), 204, "deleted", "deleted"},
		{"DELETE", other, "", header("If-None-Match", "*"), 204, "absent", "absent"},
		{"DELETE", "/sites/none/artifacts/b", "", nil, 204, "absent", "absent"},
		{"POST", logs, entry("ok"), nil, 201, "created", "created"},
		{"POST", logs, entry("ok"), header("Idempotency-Key", "k"), 201, "created", "created"},
		{"POST", logs, entry("ok"), header("Idempotency-Key", "k"), 201, "same", "same"},
		{"POST", logs, entry("no"), header("Idempotency-Key", "k"), 422, nil, nil},
		{"GET", "/sites/a/versions", "", nil, 200, nil, nil},
	} {
		for s, want := range map[*testServer]any{directory: c.directory, objects: c.objects} {
			id := fmt.Sprint("step-", i)
			h := c.header.Clone()
			if h == nil {
				h = http.Header{}
			}
			h.Set("X-Request-Id", id)
			s.do(t, c.status, request{c.method, c.path, c.body, h})
			if got := awaitRequest(t, s, id, hasID(id))["outcome"]; got != want {
				t.Errorf("%s %s, %v: the outcome is %v, want %v", c.method, c.path, c.header, got, want)
			}
		}
	}
}

// An entry that a later attempt finds in the log may be that of an earlier one.
func TestOutcomeAfterALostReply(t *testing.T) {
	for key, want := range map[string]any{"": "created", "k": nil} {
		b := newMemBucket()
		s, _ := startBackend(t, newObjectStore(b, "", quiet()))
		s.post(t, 201, "/sites/a/logs", `{"build_id":"b","action":"deploy","status":"begin"}`) // checks the bucket first
		lost := false
		b.mu.Lock()
		b.fault = func(op, _ string) (bool, error) {
			if op == "put" && !lost {
				lost = true
				return true, ErrUnavailable
			}
			return false, nil
		}
		b.mu.Unlock()
		h := []string{"X-Request-Id", "lost"}
		if key != "" {
			h = append(h, "Idempotency-Key", key)
		}
		s.post(t, 201, "/sites/a/logs", `{"build_id":"b","action":"deploy","status":"ok"}`, h...)
		if got := awaitRequest(t, s, "it", hasID("lost"))["outcome"]; got != want || !lost {
			t.Errorf("key %q: the outcome is %v, want %v", key, got, want)
		}
	}
}

// Probes and scrapes that succeed are not logged; all other requests are.
func TestProbesAreNotLogged(t *testing.T) {
	s := startServer(t)
	s.ready(t)
	for _, path := range []string{"/health", "/ready", "/metrics"} {
		s.get(t, 200, path)
		s.do(t, 200, request{"HEAD", path, nil, nil})
		s.do(t, 405, request{"PUT", path, nil, nil})
	}
	s.get(t, 404, "/healthy")
	s.get(t, 200, "/openapi.yaml")
	eventually(t, "the others are logged", func() bool { return len(logLines(s, "request")) >= 5 })
	for _, line := range logLines(s, "request") {
		if p := line["path"]; line["status"] == 200.0 && p != "/openapi.yaml" {
			t.Errorf("%v of %v is logged", line["status"], p)
		}
	}
}

// unready is a store that cannot be read.
type unready struct{ Backend }

func (unready) Probe() (Readiness, error) { return Readiness{}, ErrUnavailable }

// A probe that fails is logged.
func TestFailedProbesAreLogged(t *testing.T) {
	s, _ := startBackend(t, unready{})
	s.get(t, 503, "/ready")
	awaitRequest(t, s, "it", func(line map[string]any) bool { return line["path"] == "/ready" && line["status"] == 503.0 })
}

// Our own id stands beside that of the caller.
func TestServerRequestID(t *testing.T) {
	s := startServer(t)
	s.get(t, 404, "/sites/a/artifacts/b", "X-Request-Id", "theirs")
	if own, _ := awaitRequest(t, s, "it", hasID("theirs"))["server_request_id"].(string); len(own) < 20 {
		t.Errorf("our id is %q", own)
	}
	ours := s.get(t, 404, "/sites/a/artifacts/b").header.Get("X-Request-Id")
	if got, there := awaitRequest(t, s, "it", hasID(ours))["server_request_id"]; there {
		t.Errorf("there is a second id %v", got)
	}
}

// What could not be read as a request is logged as far as it was read, without the texts of
// a library. A client that closed the connection is 499 in the log and the metrics.
func TestMalformedRequestsInTheLog(t *testing.T) {
	s := startServer(t)
	const host = "Host: h\r\n"
	for _, c := range []struct {
		name, raw    string
		sent         int // in the response; 0: no response
		status       float64
		method, path any
		reason       string
	}{
		{"a bad header", "PUT /sites/a/artifacts/b HTTP/1.1\r\n" + host + "nonsense\r\n\r\n", 400, 400, "PUT", "/sites/a/artifacts/b",
			"the request is malformed: the request target, Host or another header field is missing or invalid"},
		{"no host", "POST /sites/a/logs HTTP/1.1\r\n\r\n", 400, 400, "POST", "/sites/a/logs",
			"the request is malformed: the request target, Host or another header field is missing or invalid"},
		{"a bad host", "GET /sites HTTP/1.1\r\nHost: [\r\n\r\n", 400, 400, "GET", "/sites",
			"the request is malformed: the request target, Host or another header field is missing or invalid"},
		{"two lengths", "PUT /p HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400, 400, "PUT", "/p",
			"the request is malformed: Content-Length is specified more than once"},
		{"a length in words", "PUT /p HTTP/1.1\r\n" + host + "Content-Length: one\r\n\r\nx", 400, 400, "PUT", "/p",
			"the request is malformed: the request target, Host or another header field is missing or invalid"},
		{"an unknown coding", "PUT /p HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\n\r\nx", 400, 400, "PUT", "/p",
			"the request is malformed: Transfer-Encoding: only chunked is supported"},
		{"no version", "DELETE /sites/a/artifacts/b\r\n\r\n", 400, 400, "DELETE", "/sites/a/artifacts/b",
			"the request is malformed: the first line is not a request line of HTTP/1.1"},
		{"not HTTP", "\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, 400, nil, nil,
			"the request is malformed: the first line is not a request line of HTTP/1.1"},
		{"a large header", "PUT /large HTTP/1.1\r\n" + host + "X-A: " + strings.Repeat("a", 10_000) + "\r\n\r\n", 431, 431, "PUT", "/large",
			"the request header is larger than 8192 bytes"},
		{"a large path", "PUT /" + strings.Repeat("a", 10_000) + " HTTP/1.1\r\n\r\n", 431, 431, "PUT", nil,
			"the request header is larger than 8192 bytes"},
		{"cut in the header", "PUT /sites/a/artifacts/b HTTP/1.1\r\nHo", 400, 499, "PUT", "/sites/a/artifacts/b", "the request was cut short"},
		{"cut in the first line", "PUT /sites/a", 400, 499, "PUT", nil, "the request was cut short"},
		{"cut before the body", "PUT /sites/a/artifacts/b HTTP/1.1\r\n" + host + "Content-Length: 9\r\n\r\n", 400, 499, "PUT", "/sites/a/artifacts/b", ""},
		{"cut in the body", "PUT /sites/a/artifacts/b HTTP/1.1\r\n" + host + "Content-Length: 9\r\n\r\nabc", 400, 499, "PUT", "/sites/a/artifacts/b",
			"cannot store the artifact: the body was cut short"},
		{"cut in a chunk", "PUT /sites/a/artifacts/b HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n5\r\nab", 400, 499, "PUT", "/sites/a/artifacts/b",
			"cannot store the artifact: the body was cut short"},
		{"cut in a log entry", "POST /sites/a/logs HTTP/1.1\r\n" + host + "Content-Length: 9\r\n\r\n{", 400, 499, "POST", "/sites/a/logs",
			"cannot read the log entry: the body was cut short"},
		{"a chunk size in words", "PUT /sites/a/artifacts/b HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\nfive\r\n", 400, 400, "PUT", "/sites/a/artifacts/b",
			"cannot store the artifact: the body has a malformed chunk"},
		{"a chunk without its end", "PUT /sites/a/artifacts/b HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\naXX0\r\n\r\n", 400, 400, "PUT", "/sites/a/artifacts/b",
			"cannot store the artifact: the body has a malformed chunk"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := dial(t, s.addr)
			from := client.LocalAddr().String()
			_, _ = io.WriteString(client, c.raw)
			_ = client.CloseWrite()
			resp, err := http.ReadResponse(bufio.NewReader(client), nil)
			if err != nil {
				t.Fatal(err)
			}
			var answer failure
			if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode != c.sent {
				t.Errorf("the status is %d, %v, want %d", resp.StatusCode, err, c.sent)
			}
			line := awaitRequest(t, s, "it", func(line map[string]any) bool { return line["remote"] == from })
			if line["status"] != c.status || line["method"] != c.method || line["path"] != c.path || line["cut"] != nil {
				t.Errorf("logged are %v %v %v, cut %v, want %v %v %v", line["status"], line["method"], line["path"], line["cut"], c.status, c.method, c.path)
			}
			if c.reason != "" && (answer.Error != c.reason || line["error"] != c.reason) {
				t.Errorf("the client gets %q, logged is %q, want %q", answer.Error, line["error"], c.reason)
			}
			if strings.Contains(answer.Error, "fasthttp") {
				t.Errorf("the client gets %q", answer.Error)
			}
		})
	}
	if got := scrape(t, s)[`pagewright_http_requests_total{route="artifact",method="PUT",status="499"}`]; got < 2 {
		t.Errorf("%v uploads count as 499", got)
	}
}

// Of a malformed request that arrives with the one before it, and of one that follows on the
// same connection, no part of the one before is logged.
func TestMalformedRequestAfterAnother(t *testing.T) {
	s := startServer(t)
	const good, bad = "GET /openapi.yaml HTTP/1.1\r\nHost: h\r\n\r\n", "PUT /second HTTP/1.1\r\n\r\n"
	for _, c := range []struct {
		sent         []string
		method, path any
	}{
		{[]string{good + bad}, nil, nil},
		{[]string{good + bad[:9], bad[9:]}, nil, nil},
		{[]string{good, bad}, "PUT", "/second"},
		{[]string{good, bad[:9], bad[9:]}, "PUT", "/second"},
	} {
		client := dial(t, s.addr)
		r := bufio.NewReader(client)
		for i, part := range c.sent {
			_, _ = io.WriteString(client, part)
			if i == 0 {
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
			}
		}
		if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 400 {
			t.Fatal(resp, err)
		}
		client.Close()
		line := awaitRequest(t, s, "it", func(line map[string]any) bool {
			return line["remote"] == client.LocalAddr().String() && line["status"] == 400.0
		})
		if line["method"] != c.method || line["path"] != c.path {
			t.Errorf("%q: logged are %v %v", c.sent, line["method"], line["path"])
		}
	}
}

// The duration of a request starts at its first byte, even if the rest is malformed.
func TestDurationOfAMalformedRequest(t *testing.T) {
	s := startCrowd(t, 10)
	client := s.from(t, here)
	_, _ = io.WriteString(client, "PUT /slow HTTP/1.1\r\nHost")
	s.settles(t, 1, 0) // its first byte has been read
	begin := time.Now()
	eventually(t, "some time has passed", func() bool { return time.Since(begin) > 20*time.Millisecond })
	waited := time.Since(begin)
	if got := client.status("\r\n\r\n"); got != 400 {
		t.Errorf("the status is %d", got)
	}
	line := awaitRequest(t, s.testServer, "it", func(line map[string]any) bool { return line["path"] == "/slow" })
	if took, _ := line["duration_ms"].(float64); took < float64(waited.Milliseconds()) {
		t.Errorf("duration_ms is %v, the client alone took %v", took, waited)
	}
}

// What the shutdown cuts is not the client's fault.
func TestShutdownInTheLog(t *testing.T) {
	s := startServer(t, "SHUTDOWN_GRACE=200ms")
	s.put(t, 201, "/sites/a/artifacts/large", randomBytes(100<<10))
	if err := os.Truncate(s.dir+"/sites/a/artifacts/large.tar.gz", 128<<20); err != nil { // more than the sockets hold
		t.Fatal(err)
	}
	upload, chunked, download := dial(t, s.addr), dial(t, s.addr), dial(t, s.addr)
	_, _ = io.WriteString(upload, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: 2000000\r\n\r\nbegin")
	_, _ = io.WriteString(chunked, "PUT /sites/a/artifacts/c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n")
	_, _ = io.WriteString(download, "GET /sites/a/artifacts/large HTTP/1.1\r\nHost: h\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(download), nil); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	eventually(t, "the uploads have begun", func() bool { return len(filesBelow(t, s.dir)) == 3 })
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	want := map[any]float64{"/sites/a/artifacts/b": 503, "/sites/a/artifacts/c": 503, "/sites/a/artifacts/large": 200}
	for _, line := range logLines(s, "request") {
		if line["method"] == "PUT" && line["status"] == 201.0 {
			continue
		}
		if status := want[line["path"]]; line["status"] != status || line["cut"] != "shutdown" {
			t.Errorf("%v is logged as %v, cut %v, want %v", line["path"], line["status"], line["cut"], status)
		}
		delete(want, line["path"])
	}
	if len(want) > 0 {
		t.Errorf("not logged: %v", want)
	}
}

// A client that hangs up while it waits for a slot is 499, and its request counts as
// refused.
func TestHangUpWhileWaiting(t *testing.T) {
	s := startServer(t, "MAX_UPLOADS=1")
	first := dial(t, s.addr)
	_, _ = io.WriteString(first, "PUT /sites/a/artifacts/a HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nbegin")
	waitForTemp(t, s)
	for _, path := range []string{"/sites/a/artifacts/gone", "/sites/a/artifacts/patient"} {
		c := dial(t, s.addr)
		_, _ = io.WriteString(c, "PUT "+path+" HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nwhole")
		if strings.HasSuffix(path, "gone") {
			c.Close()
		}
	}
	for path, status := range map[string]float64{"/sites/a/artifacts/gone": 499, "/sites/a/artifacts/patient": 503} {
		line := awaitRequest(t, s, path, func(line map[string]any) bool { return line["path"] == path })
		if line["status"] != status || line["cut"] != nil {
			t.Errorf("%s is logged as %v, cut %v, want %v", path, line["status"], line["cut"], status)
		}
	}
	eventually(t, "both are logged as refused", func() bool {
		count := 0.0
		for _, line := range logLines(s, "requests refused") {
			if line["reason"] == "uploads" && line["level"] == "WARN" {
				count += line["count"].(float64)
			}
		}
		return count == 2
	})
	if got := scrape(t, s)[`pagewright_http_requests_refused_total{reason="uploads"}`]; got != 2 {
		t.Errorf("%v requests count as refused", got)
	}
	if got := filesBelow(t, s.dir); len(got) != 1 {
		t.Errorf("%v are stored", got)
	}
}

// An upload whose connection is closed for those of others was not ended by its client.
func TestUploadThatMakesRoomInTheLog(t *testing.T) {
	s := startCrowd(t, 4)
	for i := range 4 {
		c := s.from(t, here)
		_, _ = fmt.Fprintf(c, "PUT /sites/a/artifacts/b%d HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nbegin", i)
		eventually(t, "it has begun", func() bool { return len(filesBelow(t, s.dir)) == i+1 })
	}
	s.from(t, there)
	line := awaitRequest(t, s.testServer, "it", func(line map[string]any) bool { return line["path"] == "/sites/a/artifacts/b3" })
	if line["status"] != 503.0 || line["cut"] != "other clients needed the capacity" {
		t.Errorf("logged are %v and %v", line["status"], line["cut"])
	}
}

// A line about the damaged log of a build has the id of the request that met it, there is
// one for each request, and a list counts it.
func TestDamagedLogInTheLog(t *testing.T) {
	s := startServer(t)
	s.post(t, 201, "/sites/a/logs", `{"build_id":"b","action":"deploy","status":"ok"}`)
	if err := os.WriteFile(s.dir+"/sites/a/logs/b.json", []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.get(t, 200, "/sites/a/versions", "X-Request-Id", "list")
	s.post(t, 500, "/sites/a/logs", `{"build_id":"b","action":"deploy","status":"ok"}`, "X-Request-Id", "append")
	s.waitForLog(t, `"request_id":"append"`)
	found := map[any]int{}
	for line := range strings.Lines(s.log.String()) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && m["level"] == "ERROR" && strings.Contains(line, "damaged") {
			found[m["request_id"]]++
		}
	}
	if len(found) != 2 || found["list"] != 1 || found["append"] != 1 {
		t.Errorf("lines by request: %v", found)
	}
	if got := scrape(t, s)["pagewright_list_log_errors_total"]; got != 1 {
		t.Errorf("%v logs are counted", got)
	}
}

// The refusal of a full log names the limit.
func TestFullLogNamesTheLimit(t *testing.T) {
	s := startServer(t)
	s.post(t, 201, "/sites/a/logs", `{"build_id":"b","action":"deploy","status":"ok"}`)
	if err := os.Truncate(s.dir+"/sites/a/logs/b.json", maxLogSize); err != nil {
		t.Fatal(err)
	}
	r := s.post(t, 413, "/sites/a/logs", `{"build_id":"b","action":"deploy","status":"ok"}`)
	if want := `"cannot write the log entry: the build's log has reached the maximum of 16777216 bytes"`; !strings.Contains(string(r.body), want) {
		t.Errorf("the response is %s", r.body)
	}
}

// If something else is in the place of a site or a build, requests for it cause few lines.
func TestOccupiedPlacesInTheLog(t *testing.T) {
	s := startServer(t)
	s.put(t, 201, "/sites/a/artifacts/b", "x")
	for _, err := range []error{os.WriteFile(s.dir+"/sites/file", nil, 0o600), os.Mkdir(s.dir+"/sites/a/artifacts/dir.tar.gz", 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	s.get(t, 200, "/sites/file/versions")
	s.waitForLog(t, "skipping a path that is not a directory")
	if got := logLines(s, "skipping a path that is not a directory"); len(got) != 1 {
		t.Errorf("one list has %d lines", len(got))
	}
	const many = 200
	for range many {
		s.get(t, 404, "/sites/a/artifacts/dir")
		s.get(t, 200, "/sites/file/versions")
	}
	most := 3 + int(time.Since(begin)/floodWindow)
	for msg, want := range map[string]float64{"skipping a path that is not a directory": many + 1, "request failed": many} {
		eventually(t, "all are counted", func() bool {
			sum := 0.0
			for _, line := range logLines(s, msg) {
				sum += line["count"].(float64)
			}
			return sum == want
		})
		if got := logLines(s, msg); len(got) > most || got[0]["level"] != "WARN" {
			t.Errorf("%q has %d lines, want %d at most", msg, len(got), most)
		}
	}
}

// TestStatusOfACutResponse checks the status of a request whose response was not sent whole.
func TestStatusOfACutResponse(t *testing.T) {
	for _, c := range []struct {
		what   string
		cut    string
		sent   int64
		status int
		logged string // the cut in the log
	}{
		{"nothing was cut", "", 0, 200, ""},
		{"the client left before the response began", cutByClient, 0, statusHungUp, ""},
		{"the client left later", cutByClient, 1, 200, cutByClient},
		{"the network failed before the response began", cutByNetwork, 0, statusHungUp, ""},
		{"the network failed later", cutByNetwork, 1, 200, cutByNetwork},
		{"the store failed before the response began", cutByStore, 0, 503, cutByStore},
		{"the store failed later", cutByStore, 1, 200, cutByStore},
		{"the shutdown came before the response began", cutByShutdown, 0, 503, cutByShutdown},
		{"others needed the capacity before the response began", cutForOthers, 0, 503, cutForOthers},
	} {
		t.Run(c.what, func(t *testing.T) {
			var got requestRecord
			conn := &conn{l: &listener{finished: func(x *requestRecord) { got = *x }}, rec: requestRecord{status: 200, cut: c.cut, sent: c.sent}}
			conn.recOpen.Store(true)
			conn.finishRecord()
			if got.status != c.status || got.cut != c.logged {
				t.Errorf("status %d, cut %q; want %d, %q", got.status, got.cut, c.status, c.logged)
			}
		})
	}
}

func TestNewRequestIDs(t *testing.T) {
	const n = 1000
	seen, at := map[string]bool{}, [26]map[byte]bool{}
	for range n {
		id := newRequestID()
		if len(id) != len(at) || strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
			t.Fatalf("%q", id)
		}
		seen[id] = true
		for i := range at {
			if at[i] == nil {
				at[i] = map[byte]bool{}
			}
			at[i][id[i]] = true
		}
	}
	if len(seen) != n {
		t.Errorf("%d ids, %d of them different", n, len(seen))
	}
	for i, digits := range at {
		want := 32
		if i == 12 || i == 25 {
			want = 16 // the last bits of 64
		}
		if len(digits) != want {
			t.Errorf("position %d has %d digits, want %d", i, len(digits), want)
		}
	}
}

// A name that is not canonical would be sent twice if it is set twice.
func TestHeaderNamesAreCanonical(t *testing.T) {
	s := startServer(t)
	s.put(t, 201, "/sites/a/artifacts/b", "body")
	c := dial(t, s.addr)
	fmt.Fprint(c, "GET /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nRange: bytes=0-1\r\nConnection: close\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(answer), "\r\n\r\n")
	lines := strings.Split(head, "\r\n")[1:]
	for _, line := range lines {
		name, _, _ := strings.Cut(line, ":")
		if want := fasthttp.AppendNormalizedHeaderKey(nil, name); string(want) != name {
			t.Errorf("%s, want %s", name, want)
		}
	}
	if len(lines) < 10 || !strings.Contains(head, "Etag: ") {
		t.Error(head)
	}
}
