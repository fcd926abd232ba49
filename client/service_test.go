package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"http://localhost:8080":         "http://localhost:8080/",
		"https://store.example.org/":    "https://store.example.org/",
		"https://example.org/store":     "https://example.org/store/",
		"https://example.org/a/../b//c": "https://example.org/b/c/",
		"http://[::1]:80":               "http://[::1]:80/",
		"http://x:65535":                "http://x:65535/",
	} {
		if u, err := parseBase(address); err != nil || u.String() != want {
			t.Errorf("%s: %v, %v, want %s", address, u, err, want)
		}
	}
	for _, address := range []string{"localhost:8080", "store.example.org", "ftp://x", "http://", "http:///x", "http://u:secret@x", "http://x?secret=1", "http://x/#f", "http://x:port", "http://x:0", "http://x:65536", "http://x/%zz", "://"} {
		u, err := parseBase(address)
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, %v", address, u, err)
		}
	}
}

// TestAddressWithBlanks: a copied address may have them at its ends.
func TestAddressWithBlanks(t *testing.T) {
	for _, environ := range [][]string{{"PAGEWRIGHT_URL= http://x/a\n"}, {"PAGEWRIGHT_URL=\thttp://x/a/ "}} {
		if c, err := callWith(environ); err != nil || c.service.base.String() != "http://x/a/" {
			t.Errorf("%q: %v", environ, err)
		}
	}
}

func TestSameOrigin(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"http://x/a", "http://x:80/b", true},
		{"https://x", "https://X:443", true},
		{"http://x", "https://x", false},
		{"http://x", "http://x:8080", false},
		{"http://x", "http://sub.x", false},
	} {
		a, _ := url.Parse(c.a)
		b, _ := url.Parse(c.b)
		if sameOrigin(a, b) != c.want {
			t.Errorf("%s, %s: not %v", c.a, c.b, c.want)
		}
	}
}

// testService returns a service whose connections the test serves itself.
func testService(serve func(conn net.Conn)) *service {
	base, _ := parseBase("http://service.test")
	s := &service{base: base, http: newHTTPClient(base, &tls.Config{}), stall: stallTimeout, retryFor: time.Minute, note: func(string, ...any) {}}
	transport := newTransport(nil)
	transport.Proxy = nil
	transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		go serve(there)
		return here, nil
	}
	s.http.Transport = transport
	return s
}

// readHeader reads the header of a request.
func readHeader(r *bufio.Reader) (lines []string) {
	for {
		line, err := r.ReadString('\n')
		if line = strings.TrimSpace(line); err != nil || line == "" {
			return lines
		}
		lines = append(lines, line)
	}
}

// TestRefusedBeforeTheBody: after a final status no byte of the body is sent, and the status is
// that of the attempt.
func TestRefusedBeforeTheBody(t *testing.T) {
	for _, status := range []string{"503 Service Unavailable", "412 Precondition Failed", "200 OK"} {
		synctest.Test(t, func(t *testing.T) {
			rest := make(chan []byte, 1)
			s := testService(func(conn net.Conn) {
				r := bufio.NewReader(conn)
				header := readHeader(r)
				if !strings.Contains(strings.Join(header, "\n"), "Expect: 100-continue") {
					t.Errorf("%q", header)
				}
				time.Sleep(3 * time.Second) // the service may look at its store first
				io.WriteString(conn, "HTTP/1.1 "+status+"\r\nContent-Length: 2\r\n\r\n{}")
				after, _ := io.ReadAll(r)
				rest <- after
				conn.Close()
			})
			sent := 0
			resp, err := s.once(t.Context(), &request{method: "PUT", path: "x", size: 1 << 20, expect: true,
				body: func() io.Reader { return bytes.NewReader(make([]byte, 1<<20)) }, sent: func(n int) { sent += n }})
			if status == "200 OK" {
				if err != nil || resp.status != 200 {
					t.Error(resp, err)
				}
			} else if e, ok := errors.AsType[*statusError](err); !ok || !strings.HasPrefix(status, http.StatusText(e.status)) && !strings.Contains(err.Error(), status) {
				t.Error(err)
			}
			if after := <-rest; len(after) > 0 || sent > 0 {
				t.Errorf("%s: %d bytes of the body were sent, %d read", status, len(after), sent)
			}
		})
	}
}

// TestServerWithoutContinue: a server that never says 100 Continue gets the body after a while.
func TestServerWithoutContinue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testService(func(conn net.Conn) {
			defer conn.Close()
			r := bufio.NewReader(conn)
			readHeader(r)
			if n, _ := io.CopyN(io.Discard, r, 1<<20); n == 1<<20 {
				io.WriteString(conn, "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
			}
		})
		start := time.Now()
		reply, err := s.once(t.Context(), &request{method: "PUT", path: "x", size: 1 << 20, expect: true,
			body: func() io.Reader { return bytes.NewReader(make([]byte, 1<<20)) }})
		if err != nil || reply.status != 201 || time.Since(start) != continueTimeout {
			t.Errorf("%v, %v after %v", reply, err, time.Since(start))
		}
	})
}

// TestStalls: each phase of an attempt ends when nothing moves; what moves slowly does not.
func TestStalls(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
	forever := func(conn net.Conn) { io.Copy(io.Discard, conn) }
	for _, c := range []struct {
		what  string
		serve func(conn net.Conn, r *bufio.Reader)
		size  int64
		fails bool
		after time.Duration
	}{
		{"no response", func(conn net.Conn, r *bufio.Reader) { forever(conn) }, 0, true, stallTimeout},
		{"half a header", func(conn net.Conn, r *bufio.Reader) { io.WriteString(conn, "HTTP/1.1 200"); forever(conn) }, 0, true, stallTimeout},
		{"half a body", func(conn net.Conn, r *bufio.Reader) { io.WriteString(conn, ok+"ab"); forever(conn) }, 0, true, stallTimeout},
		{"slow", func(conn net.Conn, r *bufio.Reader) {
			for _, b := range "abcd" {
				time.Sleep(50 * time.Second)
				io.WriteString(conn, string(b))
			}
		}, 0, false, 200 * time.Second},
		{"nobody reads the body", func(conn net.Conn, r *bufio.Reader) { select {} }, 1 << 20, true, stallTimeout},
		{"no response to a body", func(conn net.Conn, r *bufio.Reader) { forever(conn) }, 8 << 20, true, stallTimeout + 2*time.Second},
	} {
		if c.what == "nobody reads the body" {
			c.serve = func(conn net.Conn, r *bufio.Reader) { time.Sleep(2 * stallTimeout) }
		}
		synctest.Test(t, func(t *testing.T) {
			s := testService(func(conn net.Conn) {
				defer conn.Close()
				r := bufio.NewReader(conn)
				readHeader(r)
				if c.what == "slow" {
					io.WriteString(conn, ok)
				}
				c.serve(conn, r)
			})
			r := &request{method: "GET", path: "x"}
			if c.size > 0 {
				r.method, r.size, r.body = "PUT", c.size, func() io.Reader { return bytes.NewReader(make([]byte, c.size)) }
			}
			start := time.Now()
			reply, err := s.once(t.Context(), r)
			if spent := time.Since(start); errors.Is(err, errStalled) != c.fails || spent != c.after {
				t.Errorf("%s: %v, %v after %v, want %v", c.what, reply, err, spent, c.after)
			}
			if want := r.String() + ": the connection stalled: no byte moved for 1m0s"; c.fails && err.Error() != want {
				t.Errorf("%s: %v, want %s", c.what, err, want)
			}
			time.Sleep(3 * stallTimeout) // the server ends
		})
	}
}

// TestSlowReader: time in which nobody reads the response is no stall.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testService(func(conn net.Conn) {
			defer conn.Close()
			readHeader(bufio.NewReader(conn))
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd")
		})
		resp, err := s.try(t.Context(), &request{method: "GET", path: "x"})
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		time.Sleep(time.Hour)
		if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "abcd" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// redirectingTo returns a service, over TLS or not, that sends clients elsewhere.
func redirectingTo(t *testing.T, secure bool, to func() string) *httptest.Server {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", to())
		w.WriteHeader(http.StatusTemporaryRedirect)
	}))
	if server.TLS = nil; secure {
		server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return server
}

// TestRedirects: a store gets neither the token nor the client certificate; a redirect that is not
// encrypted is refused after one that is.
func TestRedirects(t *testing.T) {
	type seen struct {
		token, cert bool
		ranges      string
	}
	var got []seen
	store := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, seen{r.Header.Get("Authorization") != "", len(r.TLS.PeerCertificates) > 0, r.Header.Get("Range")})
		io.WriteString(w, "bytes")
	}))
	store.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	store.StartTLS()
	defer store.Close()
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Error("a request without TLS") }))
	defer plain.Close()
	target := store.URL + "/b?signature=secret"
	service := redirectingTo(t, true, func() string { return target })

	dir := t.TempDir()
	ca, cert, key := filepath.Join(dir, "ca"), filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	pair := store.TLS.Certificates[0]
	private, err := marshalKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		ca: {Type: "CERTIFICATE", Bytes: store.Certificate().Raw}, cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := newCall(Command{Name: "x"}, []string{"--url", service.URL, "--ca", ca, "--cert", cert, "--key", key}, IO{Environ: []string{"PAGEWRIGHT_TOKEN=t"}, Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	r := &request{method: "GET", path: "b", header: http.Header{"Range": {"bytes=1-"}}}
	reply, err := c.service.once(t.Context(), r)
	if err != nil || string(reply.body) != "bytes" || len(got) != 1 || got[0] != (seen{false, false, "bytes=1-"}) {
		t.Fatalf("%v, %v, %+v", reply, err, got)
	}
	for _, to := range []string{plain.URL, service.URL} { // without TLS; in a circle
		target = to
		if _, err := c.service.once(t.Context(), r); err == nil || isTemporary(err) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", to, err)
		}
	}
	store.Close() // the error has no signature
	target = store.URL + "/b?signature=secret"
	if _, err := c.service.once(t.Context(), r); err == nil || !isTemporary(err) || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

// TestWrongCA: a certificate that nobody vouches for is no reason to try for ten minutes.
func TestWrongCA(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // it says that the client hung up
	server.StartTLS()
	defer server.Close()
	for _, address := range []string{server.URL, strings.Replace(redirectingTo(t, false, func() string { return "/" }).URL, "http:", "https:", 1)} {
		c, err := newCall(Command{Name: "x"}, []string{"--url", address}, IO{Stderr: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.service.do(t.Context(), &request{method: "GET", path: "x"}); err == nil || isTemporary(err) {
			t.Error(err)
		}
	}
}

// TestErrorTexts: an error has what the service said, with its request id; of a proxy's page a piece.
func TestErrorTexts(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{`{"status":"error","error":"no such build"}`, "GET /a: 404 Not Found: no such build (request R)"},
		{`{"status":"error","error":"no such path"}`, "GET /a: 404 Not Found: no such path (request R): check PAGEWRIGHT_URL (or --url)"},
		{"<html>\n <b>nginx</b>\x1b[2J", "GET /a: 404 Not Found: <html> <b>nginx</b>\x1b[2J (request R): check PAGEWRIGHT_URL (or --url)"},
		{"", "GET /a: 404 Not Found (request R): check PAGEWRIGHT_URL (or --url)"},
		{strings.Repeat("é", 500), "GET /a: 404 Not Found: " + strings.Repeat("é", 100) + " (request R): check PAGEWRIGHT_URL (or --url)"},
	} {
		e, _ := newStatusError(&request{method: "GET", path: "a"}, &http.Response{StatusCode: 404, Header: http.Header{"X-Request-Id": {"R"}}, Body: io.NopCloser(strings.NewReader(c.body))})
		if e.Error() != c.want {
			t.Errorf("%q, want %q", e.Error(), c.want)
		}
		if shown := final(t.Context(), e).Error(); strings.ContainsRune(shown, 0x1b) {
			t.Errorf("%q", shown)
		}
	}
}

// TestRefusalsOfHead: such a response has no body, and the error has the reason all the same.
func TestRefusalsOfHead(t *testing.T) {
	for _, c := range []struct {
		status           int
		challenge, token string
		want             string
	}{
		{401, `Bearer realm="p", error="invalid_token", error_description="the token has expired"`, "t", "401 Unauthorized: the token has expired"},
		{403, `Bearer realm="p", error="insufficient_scope", scope="read"`, "t", "403 Forbidden: the token lacks the right read"},
		{401, `Bearer realm="p"`, "", "401 Unauthorized: no token is set: set PAGEWRIGHT_TOKEN or PAGEWRIGHT_TOKEN_FILE"},
		{401, `Bearer realm="p", error="invalid_token", error_description="no entry fits the client certificate"`, "", "401 Unauthorized: no entry fits the client certificate"},
		{403, "", "t", "403 Forbidden"},
	} {
		withFake(t, func(f *fake) {
			f.env = append(f.env, "PAGEWRIGHT_TOKEN="+c.token)
			f.hosts[serviceHost].handle = handler(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Www-Authenticate", c.challenge)
				w.WriteHeader(c.status)
			})
			if r := f.run("pull", "shop", "v1", "-o", "-").want(t, exitDenied); r.err.Error() != "HEAD /sites/shop/artifacts/v1: "+c.want {
				t.Errorf("%v, want %s", r.err, c.want)
			}
		})
	}
}

// TestRedirectsOfUploads: the error names the address only if the redirect leads to the same path there.
func TestRedirectsOfUploads(t *testing.T) {
	const cause = "POST /sites/shop/logs: 308 Permanent Redirect"
	for location, want := range map[string]string{
		"http://store.test/a/sites/shop/logs?x=secret": cause + ": the service redirects: set PAGEWRIGHT_URL (or --url) to http://store.test/a",
		"https://service.test/sites/shop/logs":         cause + ": the service redirects: set PAGEWRIGHT_URL (or --url) to https://service.test",
		"/other/sites/shop/logs":                       cause + ": the service redirects: set PAGEWRIGHT_URL (or --url) to http://service.test/other",
		"https://u:secret@login.test/x?y=secret":       cause + ": redirect to https://login.test/x: check PAGEWRIGHT_URL (or --url)",
		"":                                             cause + ": check PAGEWRIGHT_URL (or --url)",
	} {
		withFake(t, func(f *fake) {
			f.hosts[serviceHost].handle = handler(func(w http.ResponseWriter, r *http.Request) {
				if location != "" {
					w.Header().Set("Location", location)
				}
				w.WriteHeader(308)
			})
			if r := f.run("log", "shop", "v1", "a", "b").want(t, exitFailure); r.err.Error() != want {
				t.Errorf("%v, want %s", r.err, want)
			}
		})
	}
}

func marshalKey(key any) ([]byte, error) { return x509.MarshalPKCS8PrivateKey(key) }

// TestWrongAddress: another server, or a wrong path, is not an absent build.
func TestWrongAddress(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	commands := [][]string{
		{"push", file, "shop", "v1"}, {"push", file, "shop", "v1", "--create"}, {"pull", "shop", "v1", "-o", "-"}, {"pull", "shop", "@live", "-o", "-"},
		{"versions", "shop"}, {"sites"}, {"label set", "shop", "live", "v1"}, {"label rm", "shop", "live"}, {"label list", "shop"},
		{"label rollback", "shop", "live"}, {"log", "shop", "v1", "a", "b"}, {"rm", "shop", "v1"},
	}
	for body, want := range map[string]int{
		`{"status":"error","error":"no such path"}`: exitFailure, "<html>not here": exitFailure, "": exitFailure, `{"status":404}`: exitFailure,
		`{"status":"error","error":"no such build"}`: exitAbsent,
	} {
		for _, args := range commands {
			withFake(t, func(f *fake) {
				f.hosts[serviceHost].handle = handler(func(w http.ResponseWriter, r *http.Request) {
					w.WriteHeader(404)
					io.WriteString(w, body)
				})
				r := f.run(args[0], args[1:]...).want(t, want)
				if strings.Contains(r.err.Error(), "PAGEWRIGHT_URL") != (want == exitFailure) {
					t.Errorf("%q: %v", args, r.err)
				}
				if want == exitAbsent && args[0] == "pull" && !strings.Contains(r.err.Error(), ": the site shop has no ") {
					t.Error(r.err)
				}
			})
		}
	}
}

// TestResponsesOfAnotherServer: a success with a page or with other JSON is no success, and the error
// names the request.
func TestResponsesOfAnotherServer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	commands := [][]string{
		{"push", file, "shop", "v1"}, {"push", file, "shop", "v1", "--create"}, {"pull", "shop", "v1", "-o", "-"},
		{"versions", "shop"}, {"sites"}, {"label set", "shop", "live", "v1"}, {"label rm", "shop", "live"}, {"label list", "shop"},
		{"label rollback", "shop", "live"}, {"log", "shop", "v1", "a", "b"}, {"rm", "shop", "v1"},
	}
	for _, body := range []string{"<html>log in", "", "{}", "null", `{"status":"success"}`, `[1]`, `{"sites":1,"versions":"x","labels":{},"label":[],"entry_id":7}`,
		`{"sites":[1],"versions":[1],"labels":[1],"label":"live","build_id":"v2","previous":"v0","entry_id":""}`} {
		for _, args := range commands {
			withFake(t, func(f *fake) {
				f.hosts[serviceHost].handle = handler(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) })
				r := f.run(args[0], args[1:]...).want(t, exitFailure)
				if text := r.err.Error(); r.stdout != "" || !strings.Contains(text, "not that of the service") ||
					!strings.Contains(text, "PAGEWRIGHT_URL") || !strings.Contains(text, " /sites") || strings.Contains(text, "Go ") {
					t.Errorf("%q, %s: %q, %s", args, body, r.stdout, text)
				}
			})
		}
	}
}
