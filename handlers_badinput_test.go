package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// exchangeRaw sends raw on a connection of its own, then ends its side, and
// returns the statuses of the answers, "" for none.
func exchangeRaw(t testing.TB, addr, raw string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	go func() {
		_, _ = io.WriteString(c, raw)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	var statuses []string
	r := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return strings.Join(statuses, " ")
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Errorf("an answer of status %d was cut: %v", resp.StatusCode, err)
		}
		if resp.StatusCode >= 400 && !bytes.HasPrefix(body, []byte(`{"status":"error","error":"`)) {
			t.Errorf("the body of status %d is %q", resp.StatusCode, body)
		}
		statuses = append(statuses, fmt.Sprint(resp.StatusCode))
	}
}

// filesBelow lists every file of a store but its locks.
func filesBelow(t testing.TB, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != ".lock" {
			rel, _ := filepath.Rel(dir, path)
			files = append(files, rel)
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return files
}

// badInputs is the table of what clients send wrongly, and the answer to each.
func badInputs() []struct{ name, raw, want string } {
	const (
		host    = "Host: h\r\n"
		put     = "PUT /sites/a/artifacts/b HTTP/1.1\r\n" + host
		post    = "POST /sites/a/logs HTTP/1.1\r\n" + host
		chunked = put + "Transfer-Encoding: chunked\r\n\r\n"
		health  = "GET /health HTTP/1.1\r\n" + host + "\r\n"
	)
	get := func(path string) string { return "GET " + path + " HTTP/1.1\r\n" + host + "\r\n" }
	putTo := func(path string) string {
		return "PUT " + path + " HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabc"
	}
	entry := func(body string) string { return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", post, len(body), body) }
	return []struct{ name, raw, want string }{
		// Ids.
		{"build dots", get("/sites/a/artifacts/.."), "400"},
		{"build dot", get("/sites/a/artifacts/."), "400"},
		{"build hidden", putTo("/sites/a/artifacts/.hidden"), "400"},
		{"build encoded dots", putTo("/sites/a/artifacts/%2e%2e"), "400"},
		{"build encoded slash", putTo("/sites/a/artifacts/x%2Fy"), "400"},
		{"build encoded backslash", putTo("/sites/a/artifacts/x%5Cy"), "400"},
		{"build encoded climb", putTo("/sites/a/artifacts/..%2F..%2F..%2Fetc%2Fpasswd"), "400"},
		{"build twice encoded", putTo("/sites/a/artifacts/b%2563"), "400"}, // an id only if decoded twice
		{"build dots, twice encoded", putTo("/sites/a/artifacts/%252e%252e"), "400"},
		{"site twice encoded", putTo("/sites/a%2563/artifacts/b"), "400"},
		{"build NUL", putTo("/sites/a/artifacts/b%00"), "400"},
		{"build newline", putTo("/sites/a/artifacts/b%0a"), "400"},
		{"build space", putTo("/sites/a/artifacts/b%20c"), "400"},
		{"build quote", putTo("/sites/a/artifacts/b%22c"), "400"},
		{"build UTF-8 encoded", putTo("/sites/a/artifacts/%C3%BC"), "400"},
		{"build UTF-8 raw", putTo("/sites/a/artifacts/\xc3\xbc"), "400"},
		{"build bad escape", putTo("/sites/a/artifacts/b%zz"), "400"},
		{"build cut escape", putTo("/sites/a/artifacts/b%2"), "400"},
		{"build dash first", putTo("/sites/a/artifacts/-b"), "400"},
		{"build of 129", putTo("/sites/a/artifacts/" + strings.Repeat("b", 129)), "400"},
		{"build empty", putTo("/sites/a/artifacts/"), "400"},
		{"build semicolon", putTo("/sites/a/artifacts/b;c"), "400"},
		{"build star", putTo("/sites/a/artifacts/*"), "400"},
		{"site dots", get("/sites/../versions"), "400"},
		{"site encoded dots", get("/sites/%2e%2e/versions"), "400"},
		{"site NUL", get("/sites/a%00b/versions"), "400"},
		{"site empty, versions", get("/sites//versions"), "400"},
		{"site empty, logs", "POST /sites//logs HTTP/1.1\r\n" + host + "Content-Length: 2\r\n\r\n{}", "400"},
		{"site empty, artifact", putTo("/sites//artifacts/b"), "400"},
		{"site of 129", get("/sites/" + strings.Repeat("s", 129) + "/versions"), "400"},
		{"delete dots", "DELETE /sites/a/artifacts/%2e%2e HTTP/1.1\r\n" + host + "\r\n", "400"},

		{"label empty", "GET /sites/a/labels/ HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"label empty, artifact", get("/sites/a/labels//artifact"), "400"},
		{"site empty, label", putTo("/sites//labels/live"), "400"},
		{"site empty, labels", get("/sites//labels"), "400"},
		{"site empty, label and artifact", get("/sites//labels/live/artifact"), "400"},
		{"label in capitals", get("/sites/a/labels/Live"), "400"},
		{"label dots", get("/sites/a/labels/.."), "400"},
		{"label encoded dots", get("/sites/a/labels/%2e%2e/artifact"), "400"},
		{"label NUL", "DELETE /sites/a/labels/a%00 HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"label of 33", putTo("/sites/a/labels/" + strings.Repeat("l", 33)), "400"},
		{"label bad percent", get("/sites/a/labels/%zz"), "400"},

		// Bodies that are none.
		{"no length", put + "\r\n", "400"},
		{"length 0", put + "Content-Length: 0\r\n\r\n", "400"},
		{"chunked and empty", chunked + "0\r\n\r\n", "400"},
		{"part of a build", put + "Content-Range: bytes 0-2/9\r\nContent-Length: 3\r\n\r\nabc", "400"},

		// Bodies cut short, at every stage.
		{"cut at the body", put + "Content-Length: 10\r\n\r\n", "400"},
		{"cut in the body", put + "Content-Length: 10\r\n\r\nabc", "400"},
		{"cut in a large body", put + "Content-Length: 3000000\r\n\r\n" + strings.Repeat("x", 1_500_000), "400"},
		{"cut one byte short", put + "Content-Length: 300000\r\n\r\n" + strings.Repeat("x", 299_999), "400"},
		{"cut in the header", put + "Content-Le", "400"},
		{"cut in the request line", "PUT /sites/a/art", "400"},
		{"cut before the first chunk", chunked, "400"},
		{"cut in a chunk size", chunked + "5", "400"},
		{"cut behind a chunk size", chunked + "5\r\n", "400"},
		{"cut in a chunk", chunked + "5\r\nab", "400"},
		{"cut behind a chunk", chunked + "5\r\nabcde", "400"},
		{"cut between chunks", chunked + "5\r\nabcde\r\n", "400"},
		{"cut in a large chunk", chunked + "200000\r\n" + strings.Repeat("x", 1_000_000), "400"},
		{"cut in the last chunk", chunked + "5\r\nabcde\r\n0\r\n", "400"},
		{"cut in a trailer", chunked + "5\r\nabcde\r\n0\r\nX-T", "400"},

		// Chunks that are none.
		{"chunk size not hex", chunked + "xyz\r\nabc\r\n0\r\n\r\n", "400"},
		{"chunk size negative", chunked + "-5\r\nabcde\r\n0\r\n\r\n", "400"},
		{"chunk size huge", chunked + "fffffffffffffffff\r\nabc\r\n0\r\n\r\n", "400"},
		{"chunk without its end", chunked + "3\r\nabcXX0\r\n\r\n", "400"},

		// Framing, and what hides a request in another.
		{"length twice, different", put + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "400"},
		{"length a list", put + "Content-Length: 3, 3\r\n\r\nabc", "400"},
		{"length signed", put + "Content-Length: +3\r\n\r\nabc", "400"},
		{"length negative", put + "Content-Length: -1\r\n\r\nabc", "400"},
		{"length hex", put + "Content-Length: 0x3\r\n\r\nabc", "400"},
		{"length huge", put + "Content-Length: 99999999999999999999\r\n\r\nabc", "400"},
		{"length not a number", put + "Content-Length: abc\r\n\r\nabc", "400"},
		{"coding unknown", put + "Transfer-Encoding: gzip\r\n\r\nabc", "400"},
		{"coding that is none", put + "Transfer-Encoding: identity\r\n\r\n" + health, "400"},
		{"coding that is none, with a length", put + "Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc", "400"},
		{"If-Match without a tag", put + "If-Match:\r\nContent-Length: 3\r\n\r\nabc", "400"},
		{"If-None-Match not quoted on a list", "GET /sites/a/versions HTTP/1.1\r\nHost: h\r\nIf-None-Match: x\r\n\r\n", "200"},
		{"If-None-Match not quoted on a DELETE", "DELETE /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nIf-None-Match: x\r\n\r\n", "400"},
		{"If-None-Match without a tag on a GET", "GET /sites/a/versions HTTP/1.1\r\nHost: h\r\nIf-None-Match:\r\n\r\n", "200"},
		{"If-None-Match without a tag", put + "If-None-Match: \r\nContent-Length: 3\r\n\r\nabc", "400"},
		{"coding spelt oddly", put + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + health, "400"},
		{"space before the colon", put + "Content-Length : 3\r\n\r\nabc", "400"},
		{"NUL in a header", put + "X-A: b\x00c\r\nContent-Length: 3\r\n\r\nabc", "400"},
		{"header without a colon", put + "nonsense\r\n\r\n", "400"},
		{"header without a name", put + ": x\r\n\r\n", "400"},

		// Headers.
		{"no host", "GET /health HTTP/1.1\r\n\r\n", "400"},
		{"two hosts", "GET /health HTTP/1.1\r\n" + host + "Host: i\r\n\r\n", "400"},
		{"header of 100 KB", "GET /health HTTP/1.1\r\n" + host + "X-A: " + strings.Repeat("a", 100_000) + "\r\n\r\n", "431"},
		{"10,000 headers", "GET /health HTTP/1.1\r\n" + host + strings.Repeat("X-A: b\r\n", 10_000) + "\r\n", "431"},
		{"path of 100 KB", get("/" + strings.Repeat("a", 100_000)), "431"},
		{"If-Match not quoted", put + "If-Match: abc\r\nContent-Length: 3\r\n\r\nabc", "400"},
		{"If-None-Match not closed", put + "If-None-Match: \"abc\r\nContent-Length: 3\r\n\r\nabc", "400"},

		// Not HTTP.
		{"garbage", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"},
		{"words", "hello world\r\n\r\n", "400"},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"},
		{"no version", "GET /health\r\n\r\n", "400"},
		{"version 3", "GET /health HTTP/3.0\r\n" + host + "\r\n", "505"},
		{"nothing", "", ""},
		{"empty lines", "\r\n\r\n", ""},

		// Methods and paths.
		{"method lower case", "get /health HTTP/1.1\r\n" + host + "\r\n", "405"},
		{"method TRACE", "TRACE /health HTTP/1.1\r\n" + host + "\r\n", "405"},
		{"method CONNECT", "CONNECT h:80 HTTP/1.1\r\n" + host + "\r\n", "404"},
		{"POST of an artifact", "POST /sites/a/artifacts/b HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabc", "405"},
		{"PUT of nothing known", putTo("/sites/a/b/c/d"), "404"},

		// Log entries.
		{"entry without a body", post + "\r\n", "400"},
		{"entry empty", entry(""), "400"},
		{"entry not JSON", entry("hello"), "400"},
		{"entry cut JSON", entry(`{"build_id":"b","action":"a","sta`), "400"},
		{"entry with garbage behind", entry(`{"build_id":"b","action":"a","status":"s"}x`), "400"},
		{"entry twice", entry(`{"build_id":"b","action":"a","status":"s"}{}`), "400"},
		{"entry an array", entry(`[{"build_id":"b","action":"a","status":"s"}]`), "400"},
		{"entry null", entry(`null`), "400"},
		{"entry a string", entry(`"b"`), "400"},
		{"entry not UTF-8", entry("{\"build_id\":\"b\",\"action\":\"\xff\",\"status\":\"s\"}"), "400"},
		{"entry control character", entry("{\"build_id\":\"b\",\"action\":\"a\x01\",\"status\":\"s\"}"), "400"},
		{"entry trailing comma", entry(`{"build_id":"b","action":"a","status":"s",}`), "400"},
		{"entry NaN", entry(`{"build_id":"b","action":"a","status":"s","metadata":{"n":NaN}}`), "400"},
		{"entry leading zero", entry(`{"build_id":"b","action":"a","status":"s","metadata":{"n":01}}`), "400"},
		{"entry lone escape", entry(`{"build_id":"b","action":"\x","status":"s"}`), "400"},
		{"entry without build_id", entry(`{"action":"a","status":"s"}`), "400"},
		{"entry without action", entry(`{"build_id":"b","status":"s"}`), "400"},
		{"entry without status", entry(`{"build_id":"b","action":"a"}`), "400"},
		{"entry empty action", entry(`{"build_id":"b","action":"","status":"s"}`), "400"},
		{"entry null status", entry(`{"build_id":"b","action":"a","status":null}`), "400"},
		{"entry number for build_id", entry(`{"build_id":1,"action":"a","status":"s"}`), "400"},
		{"entry bad build_id", entry(`{"build_id":"../x","action":"a","status":"s"}`), "400"},
		{"entry metadata array", entry(`{"build_id":"b","action":"a","status":"s","metadata":[1]}`), "400"},
		{"entry metadata string", entry(`{"build_id":"b","action":"a","status":"s","metadata":"x"}`), "400"},
		{"entry of 1 MiB and more", entry(`{"build_id":"b","action":"a","status":"` + strings.Repeat("s", 1<<20) + `"}`), "413"},
		{"entry of 1 MiB and more, chunked", post + "Transfer-Encoding: chunked\r\n\r\n180000\r\n" + strings.Repeat("s", 0x180000) + "\r\n0\r\n\r\n", "413"},
		{"entry nested too deep", entry(`{"build_id":"b","action":"a","status":"s","metadata":{"a":` + strings.Repeat("[", 9_998) + strings.Repeat("]", 9_998) + `}}`), "400"},
		{"entry cut", post + "Content-Length: 100\r\n\r\n{\"build_id\":", "400"},
		{"entry key not ASCII", post + "Idempotency-Key: \xff\r\nContent-Length: 2\r\n\r\n{}", "400"},
		{"entry key of 256", post + "Idempotency-Key: " + strings.Repeat("k", 256) + "\r\nContent-Length: 2\r\n\r\n{}", "400"},
	}
}

func TestBadInput(t *testing.T) {
	s := startServer(t)
	for _, c := range badInputs() {
		got := exchangeRaw(t, s.addr, c.raw)
		if got != c.want {
			t.Errorf("%s: answered %q, want %q", c.name, got, c.want)
		}
	}
	if files := filesBelow(t, s.dir); len(files) > 0 {
		t.Errorf("bad input left %v in the store", files)
	}
	s.get(t, 200, "/health")
}

// TestSmuggling sends what two servers could frame in different ways: whatever
// the answer is, the request hidden in the body must not be served.
func TestSmuggling(t *testing.T) {
	s := startServer(t)
	const hidden = "PUT /sites/a/artifacts/hidden HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx"
	const put = "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n"
	for name, raw := range map[string]string{
		"CL.TE":              put + fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s", len(hidden)+5, hidden),
		"TE.CL":              put + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + hidden,
		"unread body":        fmt.Sprintf("PUT /sites/../artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(hidden), hidden),
		"body of a GET":      fmt.Sprintf("GET /health HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(hidden), hidden),
		"body of a 404":      fmt.Sprintf("PUT /nothing HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(hidden), hidden),
		"body of a log":      fmt.Sprintf("POST /sites/a/logs HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(hidden), hidden),
		"refused, then more": "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nIf-Match: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nPUT /\r\n0\r\n\r\n",
		"no coding":          put + "Transfer-Encoding: identity\r\n\r\n" + hidden,
		"no coding of a GET": "GET /health HTTP/1.1\r\nHost: h\r\ntransfer-encoding:identity\r\n\r\n" + hidden,
		"no coding, length":  put + "Transfer-Encoding: identity\r\nContent-Length: 1\r\n\r\nx" + hidden,
		"no coding, expect":  put + "Expect: 100-continue\r\nTransfer-Encoding: Identity\r\n\r\n" + hidden,
		"expect refused":     fmt.Sprintf("PUT /sites/../artifacts/b HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n%s", len(hidden), hidden),
	} {
		_ = exchangeRaw(t, s.addr, raw)
		if r, err := s.try(request{"GET", "/sites/a/artifacts/hidden", nil, nil}); err != nil || r.status != 404 {
			t.Errorf("%s: the hidden request was served: %v", name, statusOr(r, err))
			s.do(t, 204, request{"DELETE", "/sites/a/artifacts/hidden", nil, nil})
		}
	}
	for _, coding := range []string{"CL.TE", "TE.CL"} {
		raw := put + "Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + hidden
		if coding == "TE.CL" {
			raw = put + "Transfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + hidden
		}
		// RFC 9112, section 6.3: the coding wins, and the connection ends.
		if got := exchangeRaw(t, s.addr, raw); got != "201" && got != "400" {
			t.Errorf("%s: answered %q", coding, got)
		}
	}
}

// TestEarlyRefusalsReachTheClient: a client that sends without asking must be
// able to read why it was refused, although its body was never read, and also if
// it reads only after it has sent all: a connection that is closed with bytes
// unread is reset, and the answer is lost with it.
func TestEarlyRefusalsReachTheClient(t *testing.T) {
	s := startServer(t, "MAX_ARTIFACT_SIZE=25000000")
	s.put(t, 201, "/sites/a/artifacts/there", "x")
	const size = 30_000_000
	body := strings.Repeat("x", size)
	sized := fmt.Sprintf("Content-Length: %d\r\n", size)
	const chunked, expect = "Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\n"
	for _, c := range []struct{ name, path, header, want string }{
		{"too large", "/sites/a/artifacts/b", sized, "413"},
		{"too large, chunked", "/sites/a/artifacts/b", chunked, "413"},
		{"bad id", "/sites/a/artifacts/..", sized, "400"},
		{"bad id, chunked", "/sites/a/artifacts/..", chunked, "400"},
		{"exists", "/sites/a/artifacts/there", "If-None-Match: *\r\nContent-Length: 20000000\r\n", "412"},
		{"no such path", "/nothing", sized, "404"},
		{"no such method", "/health", sized, "405"},
		{"expecting, too large", "/sites/a/artifacts/b", expect + sized, "413"},
		{"expecting, bad id, chunked", "/sites/a/artifacts/..", expect + chunked, "400"},
		{"expecting, exists", "/sites/a/artifacts/there", expect + "If-None-Match: *\r\nContent-Length: 20000000\r\n", "412"},
		{"malformed", "/sites/a/artifacts/b", "nonsense\r\n" + sized, "400"},
		{"header too large", "/sites/a/artifacts/b", "X-A: " + strings.Repeat("a", 100_000) + "\r\n" + sized, "431"},
		{"coding unknown", "/sites/a/artifacts/b", "Transfer-Encoding: identity\r\n", "400"},
		{"compressed", "/sites/a/artifacts/b", "Content-Encoding: gzip\r\nContent-Length: 20000000\r\n", "415"},
		{"compressed, chunked", "/sites/a/artifacts/b", "Content-Encoding: gzip\r\n" + chunked, "415"},
		{"expecting, compressed", "/sites/a/artifacts/b", expect + "Content-Encoding: gzip\r\nContent-Length: 20000000\r\n", "415"},
		{"of another site", "/sites/a/artifacts/b", "Sec-Fetch-Site: cross-site\r\nContent-Length: 20000000\r\n", "403"},
		{"expecting, of another site", "/sites/a/artifacts/b", expect + "Sec-Fetch-Site: cross-site\r\nContent-Length: 20000000\r\n", "403"},
	} {
		text := body
		if strings.Contains(c.header, "chunked") {
			text = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
		}
		raw := "PUT " + c.path + " HTTP/1.1\r\nHost: h\r\n" + c.header + "\r\n" + text
		for range 2 { // a client that reads while it sends
			if got := exchangeRaw(t, s.addr, raw); got != c.want {
				t.Fatalf("%s: answered %q, want %q", c.name, got, c.want)
			}
		}
		for _, before := range []string{"", "PUT /sites/a/artifacts/good HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"} {
			resp, err := sendAll(t, s.addr, before, raw)
			if err != nil {
				t.Errorf("%s, after %d other requests: no answer: %v", c.name, min(len(before), 1), err)
			} else if fmt.Sprint(resp.StatusCode) != c.want || !resp.Close {
				t.Errorf("%s, after %d other requests: answered %d, Connection: close %v; want %s, true",
					c.name, min(len(before), 1), resp.StatusCode, resp.Close, c.want)
			}
		}
	}
	if got := filesBelow(t, s.dir); len(got) != 2 {
		t.Errorf("the store holds %v", got)
	}
}

// sendAll sends the request raw on a connection of its own, and reads the answer
// only when all of it is sent. If there is a request before it, that one is sent
// and answered first.
func sendAll(t *testing.T, addr, before, raw string) (*http.Response, error) {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	answers := bufio.NewReader(c)
	if before != "" {
		_, _ = io.WriteString(c, before)
		resp, err := http.ReadResponse(answers, nil)
		if err != nil || resp.StatusCode >= 400 {
			t.Fatalf("the request before: %v, %v", resp, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
	}
	if _, err := io.WriteString(c, raw); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(answers, nil)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return nil, err
	}
	if !resp.Close {
		return resp, nil
	}
	_, err = io.Copy(io.Discard, answers) // to the end of the connection
	return resp, err
}

// A refused body that is small enough is read away, and the connection stays.
func TestSmallRefusalsKeepTheConnection(t *testing.T) {
	s := startServer(t)
	for _, size := range []int{1, 1000, maxDrained} {
		raw := fmt.Sprintf("PUT /sites/a/artifacts/.. HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size))
		if got := exchangeRaw(t, s.addr, raw+"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"); got != "400 200" {
			t.Errorf("%d bytes: answered %q", size, got)
		}
	}
}

// TestPipelining: a connection goes on serving behind bodies of every size
// around the edges of the buffers, and each body is stored as it was sent.
func TestPipelining(t *testing.T) {
	s := startServer(t)
	sizes := []int{1, 2, 4095, 4096, 8191, 8192, 8193, 16384, 65535, 65536, 131071, 131072, 131073, 262144, 262145,
		524288, 1 << 20, 1<<20 + 1, 3 << 20, 5<<20 + 7}
	var raw strings.Builder
	var want []string
	bodies := map[string][]byte{}
	for _, chunk := range []int{0, 1000, 100_000, 2 << 20} {
		for _, size := range sizes {
			if chunk == 1000 && size > 1<<20 {
				continue
			}
			name, body := fmt.Sprintf("c%d-%d", chunk, size), randomBytes(size)
			bodies[name] = body
			fmt.Fprintf(&raw, "PUT /sites/pipe/artifacts/%s HTTP/1.1\r\nHost: h\r\n", name)
			if chunk == 0 {
				fmt.Fprintf(&raw, "Content-Length: %d\r\n\r\n%s", size, body)
			} else {
				raw.WriteString("Transfer-Encoding: chunked\r\n\r\n")
				for rest := body; len(rest) > 0; {
					n := min(chunk, len(rest))
					fmt.Fprintf(&raw, "%x\r\n%s\r\n", n, rest[:n])
					rest = rest[n:]
				}
				raw.WriteString("0\r\n\r\n")
			}
			raw.WriteString("GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
			want = append(want, "201", "200")
		}
	}
	if got := exchangeRaw(t, s.addr, raw.String()); got != strings.Join(want, " ") {
		t.Fatalf("answered %s", got)
	}
	for name, body := range bodies {
		if r := s.get(t, 200, "/sites/pipe/artifacts/"+name); !bytes.Equal(r.body, body) {
			t.Errorf("%s: other bytes came back", name)
		}
	}
}

// TestUploadEndsWithItsClient: a client that goes away, politely or not, at any
// point of its body leaves nothing behind.
func TestUploadEndsWithItsClient(t *testing.T) {
	s := startServer(t)
	const size = 4 << 20
	head := fmt.Sprintf("PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", size)
	body := strings.Repeat("x", size)
	for _, reset := range []bool{false, true} {
		for _, at := range []int{0, 1, 4095, 8192, 131072, 1 << 20, 3<<20 + 5, size - 1} {
			c, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, head+body[:at]); err != nil {
				t.Fatal(err)
			}
			if reset {
				_ = c.(*net.TCPConn).SetLinger(0)
			}
			c.Close()
		}
	}
	// Connections are accepted in their order. So once one that was opened later
	// is answered, and is the only one, all of these have ended.
	eventually(t, "all of them have ended", func() bool { return scrape(t, s)["pagewright_http_connections"] == 1 })
	const refused = `pagewright_http_requests_total{route="artifact",method="PUT",status="499"}`
	if n := scrape(t, s)[refused]; n < 8 { // of those that were reset, some were gone before they were read
		t.Errorf("%v uploads were read and ended, want 8 at least", n)
	}
	if files := filesBelow(t, s.dir); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
	s.get(t, 404, "/sites/a/artifacts/b")
	s.put(t, 201, "/sites/a/artifacts/b", "x")
}
