package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// testCA issues certificates.
type testCA struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newTestCA(t testing.TB, name string) *testCA {
	t.Helper()
	ca := &testCA{t: t}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca.cert, ca.key, ca.pem = ca.sign(template, nil)
	return ca
}

// sign makes a certificate. Without a CA it signs itself.
func (ca *testCA) sign(template *x509.Certificate, by *testCA) (*x509.Certificate, *ecdsa.PrivateKey, []byte) {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	template.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	template.NotBefore = template.NotAfter.Add(-48 * time.Hour)
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// issue returns a certificate and its key in PEM, for servers on this host and for clients.
func (ca *testCA) issue(name string, edit ...func(*x509.Certificate)) (cert, key []byte) {
	ca.t.Helper()
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{{127, 0, 0, 1}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, f := range edit {
		f(template)
	}
	_, private, cert := ca.sign(template, ca)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// client returns a certificate for a client.
func (ca *testCA) client(name string, edit ...func(*x509.Certificate)) tls.Certificate {
	ca.t.Helper()
	pair, err := tls.X509KeyPair(ca.issue(name, edit...))
	if err != nil {
		ca.t.Fatal(err)
	}
	return pair
}

// trust returns the settings of a client that trusts the CA.
func (ca *testCA) trust(certs ...tls.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: certs, DynamicRecordSizingDisabled: true}
}

// hasExpired is an edit of a certificate.
func hasExpired(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }

// tlsDir is a directory with the files of TLS.
type tlsDir struct {
	t                 testing.TB
	cert, key, client string
}

func newTLSDir(t testing.TB) tlsDir {
	dir := t.TempDir()
	return tlsDir{t, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt")}
}

// write replaces the certificate and its key.
func (d tlsDir) write(cert, key []byte) {
	d.t.Helper()
	if err := errors.Join(os.WriteFile(d.cert, cert, 0o600), os.WriteFile(d.key, key, 0o600)); err != nil {
		d.t.Fatal(err)
	}
}

// writeCAs replaces the CAs of clients.
func (d tlsDir) writeCAs(all ...*testCA) {
	d.t.Helper()
	var text []byte
	for _, ca := range all {
		text = append(text, ca.pem...)
	}
	if err := os.WriteFile(d.client, text, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// vars are the variables for the files.
func (d tlsDir) vars(more ...string) []string {
	vars := append([]string{"TLS_CERT=" + d.cert, "TLS_KEY=" + d.key}, more...)
	if _, err := os.Stat(d.client); err == nil {
		vars = append(vars, "TLS_CLIENT_CA="+d.client)
	}
	return vars
}

// open opens the files as a service does that has those variables.
func (d tlsDir) open(vars ...string) *tlsFiles {
	d.t.Helper()
	environ := []string{}
	for _, v := range d.vars(vars...) {
		environ = append(environ, envPrefix+v)
	}
	cfg, _, err := parseConfig(environ)
	if err != nil {
		d.t.Fatal(err)
	}
	files, err := openTLS(&cfg.TLS, newLog(cfg, io.Discard))
	if err != nil {
		d.t.Fatal(err)
	}
	return files
}

// httpsClient is testClient over TLS.
func httpsClient(t testing.TB, config *tls.Config) *http.Client {
	transport := &http.Transport{TLSClientConfig: config, DisableCompression: true, MaxIdleConnsPerHost: 128}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Timeout: testClient.Timeout, CheckRedirect: testClient.CheckRedirect, Transport: transport}
}

// startTLS starts a service that speaks TLS. Its client trusts it, and has certs.
func startTLS(t testing.TB, vars ...string) (s *testServer, ca *testCA, dir tlsDir) {
	t.Helper()
	ca, dir = newTestCA(t, "of the server"), newTLSDir(t)
	dir.write(ca.issue("server"))
	s = startServer(t, append(dir.vars(), vars...)...)
	s.https = httpsClient(t, ca.trust())
	return s, ca, dir
}

// dialTLS opens a TLS connection that the test reads and writes by hand.
func dialTLS(t testing.TB, addr string, config *tls.Config) *tls.Conn {
	t.Helper()
	c := tls.Client(dial(t, addr), config)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return c
}

// overTLS adds TLS to a listener.
func overTLS(files *tlsFiles) func(*listener) {
	return func(l *listener) { l.tls = newTLSServer(files, 10*time.Second, func() {}) }
}

// TestTLS serves the API over each version, without and with a certificate of the client.
func TestTLS(t *testing.T) {
	for _, c := range []struct {
		name    string
		version uint16
		mutual  bool
	}{{"1.2", tls.VersionTLS12, false}, {"1.3", tls.VersionTLS13, false}, {"1.2, mutual", tls.VersionTLS12, true}, {"1.3, mutual", tls.VersionTLS13, true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ca, dir := newTestCA(t, "of all"), newTLSDir(t)
			dir.write(ca.issue("server"))
			config := ca.trust()
			vars := dir.vars()
			if c.mutual {
				dir.writeCAs(ca)
				config.Certificates = []tls.Certificate{ca.client("client")}
				vars = dir.vars("TLS_CLIENT_AUTH=require", "ADMIN_LISTEN="+freeAddr(t))
			}
			config.MinVersion, config.MaxVersion = c.version, c.version
			s := startServer(t, vars...)
			s.https = httpsClient(t, config)

			artifactSequence(t, s)
			conditionalSequence(t, s)
			rangeSequence(t, s)
			historySequence(t, s)
			createRace(t, s, 1<<20)
			body := randomBytes(5_000_000)
			for name, b := range map[string]any{"sized": body, "chunked": struct{ io.Reader }{bytes.NewReader(body)}} {
				s.put(t, 201, "/sites/large/artifacts/"+name, b, "Expect", "100-continue")
				if r := s.get(t, 200, "/sites/large/artifacts/"+name); !bytes.Equal(r.body, body) {
					t.Errorf("%s: other bytes came back", name)
				}
				if r := s.get(t, 206, "/sites/large/artifacts/"+name, "Range", "bytes=1000000-4999999"); !bytes.Equal(r.body, body[1_000_000:]) {
					t.Errorf("%s: other bytes came back of a range", name)
				}
				r := s.do(t, 200, request{"HEAD", "/sites/large/artifacts/" + name, nil, nil})
				s.get(t, 304, "/sites/large/artifacts/"+name, "If-None-Match", r.header.Get("ETag"))
			}
			pipelined(t, dialTLS(t, s.addr, config), body)
		})
	}
}

// pipelined sends uploads and downloads at once, and wants the responses in their order.
func pipelined(t *testing.T, c *tls.Conn, body []byte) {
	t.Helper()
	sizes := []int{1, 8191, 8192, 16383, 16384, 16385, 131072, 131073, 2_000_000}
	go func() {
		w := bufio.NewWriter(c)
		for _, n := range sizes {
			_, _ = fmt.Fprintf(w, "PUT /sites/p/artifacts/b%d HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", n, n, body[:n])
			_, _ = fmt.Fprintf(w, "GET /sites/p/artifacts/b%d HTTP/1.1\r\nHost: h\r\n\r\n", n)
		}
		w.Flush()
	}()
	r := bufio.NewReader(c)
	for _, n := range sizes {
		for _, want := range []int{201, 200} {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != want || want == 200 && !bytes.Equal(got, body[:n]) {
				t.Fatalf("%d bytes: status %d, want %d; %d bytes, %v", n, resp.StatusCode, want, len(got), err)
			}
		}
	}
}

// TestTLSVersionsAndProtocol: HTTP/1.1 is what is agreed on, and TLS_MIN limits the version.
func TestTLSVersionsAndProtocol(t *testing.T) {
	ca, dir := newTestCA(t, "ca"), newTLSDir(t)
	dir.write(ca.issue("server"))
	for _, c := range []struct {
		min    string
		client uint16
		ok     bool
	}{{"1.2", tls.VersionTLS11, false}, {"1.2", tls.VersionTLS12, true}, {"1.2", tls.VersionTLS13, true}, {"1.3", tls.VersionTLS12, false}, {"1.3", tls.VersionTLS13, true}} {
		s := startServer(t, dir.vars("TLS_MIN="+c.min)...)
		config := ca.trust()
		config.MinVersion, config.MaxVersion, config.NextProtos = c.client, c.client, []string{"h2", "http/1.1"}
		conn := tls.Client(dial(t, s.addr), config)
		if err := conn.Handshake(); (err == nil) != c.ok {
			t.Errorf("minimum %s, client %x: %v", c.min, c.client, err)
		}
		if got := conn.ConnectionState().NegotiatedProtocol; c.ok && got != "http/1.1" {
			t.Errorf("agreed on %q", got)
		}
	}
}

// TestTLSClientAuth: who is let in with which certificate.
func TestTLSClientAuth(t *testing.T) {
	ca, other := newTestCA(t, "ca"), newTestCA(t, "other")
	dir := newTLSDir(t)
	dir.write(ca.issue("server"))
	dir.writeCAs(ca)
	good, unknown, old := ca.client("good"), other.client("unknown"), ca.client("old", hasExpired)
	server := ca.client("server", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	for _, c := range []struct {
		auth, name string
		certs      []tls.Certificate
		ok         bool
	}{
		{"", "none", nil, true},
		{"optional", "none", nil, true},
		{"optional", "good", []tls.Certificate{good}, true},
		{"optional", "of another CA", []tls.Certificate{unknown}, false},
		{"optional", "expired", []tls.Certificate{old}, false},
		{"optional", "of a server", []tls.Certificate{server}, false},
		{"require", "none", nil, false},
		{"require", "good", []tls.Certificate{good}, true},
		{"require", "of another CA", []tls.Certificate{unknown}, false},
		{"require", "expired", []tls.Certificate{old}, false},
	} {
		s := startServer(t, dir.vars("TLS_CLIENT_AUTH="+c.auth, "ADMIN_LISTEN="+freeAddr(t))...)
		config := ca.trust()
		if c.certs != nil { // sent whatever CAs the server names
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.certs[0], nil }
		}
		s.https = httpsClient(t, config)
		r, err := s.try(request{"GET", "/health", nil, nil})
		if got := err == nil && r.status == 200; got != c.ok {
			t.Errorf("%s, certificate %s: %v", c.auth, c.name, statusOr(r, err))
		}
		var alert tls.AlertError
		if !c.ok && err != nil && !errors.As(err, &alert) && !strings.Contains(err.Error(), "remote error: tls:") {
			t.Errorf("%s, certificate %s: the client is not sent an alert: %v", c.auth, c.name, err)
		}
	}
}

// TestRequestWithoutTLS gets a response that it can read, and is counted and logged.
func TestRequestWithoutTLS(t *testing.T) {
	s, _, _ := startTLS(t)
	for _, text := range []string{
		"GET /sites/a/versions HTTP/1.1\r\nHost: h\r\n\r\n",
		"DELETE /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n\r\n",
		"PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: 3000000\r\n\r\n" + strings.Repeat("x", 3_000_000),
	} {
		c := dial(t, s.addr)
		go func() { _, _ = io.WriteString(c, text) }()
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%.20s: %v", text, err)
		}
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 400 || !strings.Contains(string(body), "this port speaks TLS only: use https://") || !resp.Close {
			t.Errorf("%.20s: %d %s", text, resp.StatusCode, body)
		}
		c.Close()
	}
	s.waitForLog(t, `"method":"GET","path":"/sites/a/versions","status":400`)
	for _, text := range []string{"\x00\x01\x02\x03\x04\x05\x06\x07", "hello there, is this SMTP\r\n", "\x16\x03\x01\x00\x05hello"} {
		c := dial(t, s.addr)
		_, _ = io.WriteString(c, text)
		if got, _ := io.ReadAll(c); bytes.HasPrefix(got, []byte("HTTP")) {
			t.Errorf("%q: the response is %q", text, got)
		}
	}
	all := scrape(t, s)
	if got := all["pagewright_tls_handshake_errors_total"]; got != 6 {
		t.Errorf("%v handshake errors are counted, want 6", got)
	}
	if got := all[`pagewright_http_requests_total{route="other",method="GET",status="400"}`]; got != 1 {
		t.Errorf("%v requests without TLS are counted, want 1", got)
	}
	if files := filesBelow(t, s.dir); len(files) > 0 {
		t.Errorf("stored: %v", files)
	}
}

// TestMalformedOverTLS: what is known of a request that cannot be read is logged, and none
// of the handshake.
func TestMalformedOverTLS(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		s, ca, _ := startTLS(t)
		config := ca.trust()
		config.MaxVersion = version
		if got := askStatus(dialTLS(t, s.addr, config), "GET /sites/none HTTP/1.1\r\n\r\n"); got != 400 {
			t.Errorf("%x: status %d, want 400", version, got)
		}
		s.waitForLog(t, `"method":"GET","path":"/sites/none","status":400`)
	}
}

// TestHandshakeErrorsAreLogged: the failures of handshakes have a line of DEBUG. A connection
// that sends nothing, as the probe of a load balancer, has none.
func TestHandshakeErrorsAreLogged(t *testing.T) {
	s, _, _ := startTLS(t)
	dial(t, s.addr).Close()
	c := dial(t, s.addr)
	_, _ = io.WriteString(c, "GARBAGE")
	_, _ = io.Copy(io.Discard, c)
	s.waitForLog(t, `"level":"DEBUG","msg":"TLS handshake failed","remote":"`+c.LocalAddr().String()+`"`)
	if got := scrape(t, s)["pagewright_tls_handshake_errors_total"]; got != 1 {
		t.Errorf("%v handshake errors are counted, want 1", got)
	}
}

// TestRejectedOverTLS: a client with too many connections can read why.
func TestRejectedOverTLS(t *testing.T) {
	s, ca, _ := startTLS(t, "MAX_CONNS_PER_IP=1")
	kept := dialTLS(t, s.addr, ca.trust())
	if got := askStatus(kept, askHealth); got != 200 {
		t.Fatalf("status %d", got)
	}
	if got := askStatus(dialTLS(t, s.addr, ca.trust()), askHealth); got != 429 {
		t.Errorf("the second connection: status %d, want 429", got)
	}
}

// askStatus sends text and returns the status of the response, 0 if the connection ends.
func askStatus(c net.Conn, text string) int {
	_, _ = io.WriteString(c, text)
	return readStatus(c)
}

// TestHealthcheckOverTLS needs no CA, and prefers the admin address.
func TestHealthcheckOverTLS(t *testing.T) {
	s, _, dir := startTLS(t)
	_, port, _ := net.SplitHostPort(s.addr)
	if _, err := runWith([]string{"healthcheck"}, dir.vars("LISTEN=127.0.0.1", "PORT="+port)...); err != nil {
		t.Error(err)
	}
	admin := "ADMIN_LISTEN=" + freeAddr(t)
	startServer(t, dir.vars(admin)...)
	if _, err := runWith([]string{"healthcheck"}, dir.vars("LISTEN=127.0.0.1", "PORT=1", admin)...); err != nil {
		t.Error(err)
	}
}

// TestDownloadOverTLSOfAFileThatEnds: a file that is cut while it is sent ends the response
// early, as without TLS, with either kind of buffer.
func TestDownloadOverTLSOfAFileThatEnds(t *testing.T) {
	ca, dir := newTestCA(t, "ca"), newTLSDir(t)
	dir.write(ca.issue("server"))
	body := randomBytes(300_000)
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, large := range []bool{true, false} {
		c, client := tlsPair(t, dir.open(), ca.trust())
		if !large {
			c.l.tls.large = nil // all are in use
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		failed := make(chan error, 1)
		c.rec.sourceFailed = func(err error) { failed <- err }
		got := make(chan []byte, 1)
		go func() { b, _ := io.ReadAll(client); got <- b }()
		n, err := c.ReadFrom(&io.LimitedReader{R: f, N: int64(len(body)) + 1})
		if n != int64(len(body)) || !errors.Is(err, io.ErrUnexpectedEOF) || len(failed) != 1 || c.rec.cut != cutByStore || c.rec.sent != n {
			t.Errorf("large buffer %v: %d bytes, %v, cut %q", large, n, err, c.rec.cut)
		}
		_ = c.Close()
		if b := <-got; !bytes.Equal(b, body) {
			t.Errorf("large buffer %v: other bytes came", large)
		}
		if len(c.l.tls.large) != 0 {
			t.Error("the buffer was not given back")
		}
	}
}

// listenTLS returns a listener that nobody serves.
func listenTLS(t *testing.T, files *tlsFiles) (l *listener, addr string) {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	l = newListener(tcp.(*net.TCPListener), 0, time.Minute, files.log, func(*requestRecord) {})
	overTLS(files)(l)
	return l, tcp.Addr().String()
}

// tlsPair returns a connection of a listener, and its client, after their handshake.
func tlsPair(t *testing.T, files *tlsFiles, config *tls.Config) (*conn, *tls.Conn) {
	t.Helper()
	l, addr := listenTLS(t, files)
	client := tls.Client(dial(t, addr), config)
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := accepted.(*conn)
	t.Cleanup(func() { _ = c.close() })
	go func() { _, _ = client.Write([]byte("x")) }()
	if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	c.requestBegins()
	return c, client
}
