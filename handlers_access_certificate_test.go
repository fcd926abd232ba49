package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// certificateRules is an access file with an entry for certificates.
func certificateRules(t testing.TB, allow string, rules ...testRule) []byte {
	t.Helper()
	certificates := fmt.Sprintf(`{"certificates":[{"name":"edge","san":["spiffe://acme/web-*"],"allow":[%q],"sites":["s"]}]`, allow)
	if len(rules) == 0 {
		return []byte(certificates + "}")
	}
	return []byte(certificates + "," + strings.TrimPrefix(string(accessJSON(t, rules...)), "{"))
}

// mutual is a service that takes certificates of ca.
type mutual struct {
	*testServer
	ca     *testCA
	tls    tlsDir
	files  *tlsFiles
	access *accessControl // nil without an access file
}

// startMutual starts a mutual.
func startMutual(t *testing.T, file []byte, auth string) *mutual {
	t.Helper()
	m := &mutual{ca: newTestCA(t, "of all"), tls: newTLSDir(t)}
	m.tls.write(m.ca.issue("server"))
	m.tls.writeCAs(m.ca)
	m.files = m.tls.open("TLS_CLIENT_AUTH="+auth, "ADMIN_LISTEN=127.0.0.1:1") // nothing listens there: require needs the variable
	m.testServer, _ = startTuned(t, func(svc *service, l *listener) {
		overTLS(m.files)(l)
		if file == nil {
			return
		}
		path := writeAccess(t)
		switchFile(t, path, file)
		var err error
		if m.access, err = openAccess(path, false, svc.api.log); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.access.close)
		svc.useAccess(m.access)
	})
	mustStore(t, openTestNFS(t, m.dir), "s", "b", []byte("a build"))
	return m
}

// requestsOver returns a function that sends a GET over c, which stays open, and reads the
// response.
func requestsOver(t *testing.T, c net.Conn) func(path string, headers ...string) *http.Response {
	r := bufio.NewReader(c)
	return func(path string, headers ...string) *http.Response {
		t.Helper()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: h\r\n%s\r\n", path, strings.Join(append(headers, ""), "\r\n"))
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp
	}
}

// withURI is an edit of a certificate.
func withURI(uri string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		u, err := url.Parse(uri)
		if err != nil {
			panic(err)
		}
		c.URIs = []*url.URL{u}
	}
}

// A client certificate counts if there is no Authorization header. It is never the second
// choice.
func TestClientCertificateAsCredential(t *testing.T) {
	logger, reader := newToken(), newToken()
	s := startMutual(t, certificateRules(t, "read", testRule{name: "logger", token: logger, allow: "log", sites: "s"}, testRule{name: "reader", token: reader, allow: "read", sites: "s"}), "optional")
	ca, access := s.ca, s.access
	edge, stranger := ca.client("edge", withURI("spiffe://acme/web-1")), ca.client("stranger", withURI("spiffe://acme/db"))
	const build = "/sites/s/artifacts/b"
	for _, c := range []struct {
		what string
		cert *tls.Certificate
		path string
		h    []string
		want int
	}{
		{"an entry fits", &edge, build, nil, 200},
		{"another site", &edge, "/sites/other/artifacts/b", nil, 403},
		{"no entry fits", &stranger, build, nil, 401},
		{"no certificate", nil, build, nil, 401},
		{"a token without the right", &edge, build, bearer(logger), 403},
		{"an unknown token", &edge, build, bearer(newToken()), 401},
		{"a malformed header", &edge, build, []string{"Authorization", ""}, 401},
		{"a good token", &stranger, build, bearer(reader), 200},
	} {
		config := ca.trust()
		if c.cert != nil {
			config.Certificates = []tls.Certificate{*c.cert}
		}
		s.https = httpsClient(t, config)
		for range 2 { // on the same connection
			if got := statusOr(s.try(request{"GET", c.path, nil, header(c.h...)})); got != c.want {
				t.Errorf("%s: %v, want %d", c.what, got, c.want)
			}
		}
	}
	eventually(t, "the actor is logged", func() bool { return strings.Contains(s.log.String(), `"actor":"edge","actor_kind":"certificate"`) })

	// New rules count on connections that are open.
	s.https = httpsClient(t, ca.trust(edge))
	s.get(t, 200, build)
	switchFile(t, access.watch.paths[0], certificateRules(t, "log"))
	if err := access.watch.check(); err != nil {
		t.Fatal(err)
	}
	s.get(t, 403, build)
}

// A client certificate that no entry fits has a response and an audit line of its own, unless
// anonymous clients may do the same.
func TestClientCertificateFitsNoEntry(t *testing.T) {
	s := startMutual(t, certificateRules(t, "read", testRule{allow: "read", sites: "public"}), "optional")
	mustStore(t, openTestNFS(t, s.dir), "public", "b", []byte("a build"))
	uris := func(c *x509.Certificate) {
		withURI("spiffe://acme/db")(c)
		c.EmailAddresses = []string{strings.Repeat("a", 300) + "@example.com"}
	}
	bare := func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, nil }
	for _, c := range []struct {
		id, path string
		cert     []tls.Certificate
		want     int
		text     string // in the response
		audited  string
	}{
		{"stranger", "/sites/s/artifacts/b", []tls.Certificate{s.ca.client("db", uris)}, 401, "no entry of the access file fits the client certificate",
			"denied unknown " + ("spiffe://acme/db, localhost, " + strings.Repeat("a", 300))[:maxLoggedText]},
		{"nameless", "/sites/s/artifacts/b", []tls.Certificate{s.ca.client("db", bare)}, 401, "no entry of the access file fits the client certificate", "denied unknown no subject alternative name"},
		{"none", "/sites/s/artifacts/b", nil, 401, "credentials are required: send Authorization: Bearer TOKEN", "denied missing"},
		{"anonymous", "/sites/public/artifacts/b", []tls.Certificate{s.ca.client("db", uris)}, 200, "a build", ""},
	} {
		s.https = httpsClient(t, s.ca.trust(c.cert...))
		if text := string(s.get(t, c.want, c.path, "X-Request-Id", c.id).body); !strings.Contains(text, c.text) {
			t.Errorf("%s: %s", c.id, text)
		}
		if c.audited == "" {
			continue
		}
		got := ""
		eventually(t, c.id+" is audited", func() bool { // one line a second of each reason
			line := lineMembers(t, s.testServer, "audit")[c.id]
			got = lineText(line, "result", "reason", "certificate")
			return line != nil
		})
		if got != c.audited {
			t.Errorf("%s: audited as %q, want %q", c.id, got, c.audited)
		}
	}
}

// A certificate that expires while its connection is open is refused from then on, also with
// a good token, and without an access file.
func TestClientCertificateExpires(t *testing.T) {
	token := newToken()
	for name, file := range map[string][]byte{
		"with an access file":    certificateRules(t, "read", testRule{name: "reader", token: token, allow: "read", sites: "s"}),
		"without an access file": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startMutual(t, file, "optional")
			cert := s.ca.client("edge", withURI("spiffe://acme/web-1"), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(3 * time.Second) })
			get := requestsOver(t, dialTLS(t, s.addr, s.ca.trust(cert)))
			if got := get("/sites/s/artifacts/b").StatusCode; got != 200 {
				t.Fatalf("before: %d", got)
			}
			// The open route says nothing of the certificate.
			eventually(t, "the certificate has expired", func() bool { return time.Now().After(cert.Leaf.NotAfter.Add(time.Millisecond)) })
			if got := get("/health").StatusCode; got != 200 {
				t.Errorf("what is open: %d", got)
			}
			got := get("/sites/s/artifacts/b", "Authorization: Bearer "+token)
			if got.StatusCode != 401 || !got.Close || !strings.Contains(got.Header.Get("Www-Authenticate"), `error="invalid_token"`) {
				t.Errorf("after: %d %v, close %v", got.StatusCode, got.Header, got.Close)
			}
		})
	}
}

// A certificate whose CA leaves the file while its connection is open is refused from then on.
// It does not make the client anonymous: without an access file that would allow everything.
func TestClientCAIsRemoved(t *testing.T) {
	token := newToken()
	reader := testRule{name: "reader", token: token, allow: "read", sites: "s"}
	for _, c := range []struct {
		name, auth string
		file       []byte
	}{
		{"required, without an access file", "require", nil},
		{"optional, without an access file", "optional", nil},
		{"required, with an access file", "require", certificateRules(t, "read", reader)},
		{"anonymous clients may read", "optional", certificateRules(t, "read", reader, testRule{allow: "read", sites: "s"})},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := startMutual(t, c.file, c.auth)
			config := s.ca.trust(s.ca.client("edge", withURI("spiffe://acme/web-1")))
			get := requestsOver(t, dialTLS(t, s.addr, config))
			if got := get("/sites/s/artifacts/b").StatusCode; got != 200 {
				t.Fatalf("before: %d", got)
			}
			s.tls.writeCAs(newTestCA(t, "another"))
			mustReload(t, s.files)
			if got := get("/health").StatusCode; got != 200 {
				t.Errorf("what is open: %d", got)
			}
			got := get("/sites/s/artifacts/b", "Authorization: Bearer "+token)
			if got.StatusCode != 401 || !got.Close || !strings.Contains(got.Header.Get("Www-Authenticate"), `error="invalid_token"`) {
				t.Errorf("after: %d %v, close %v", got.StatusCode, got.Header, got.Close)
			}
		})
	}
}
