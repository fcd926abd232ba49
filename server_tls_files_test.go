package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// reloadNow makes the services of this process read their files again.
func reloadNow(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// presented returns the name in the certificate of the service.
func presented(t *testing.T, addr string, config *tls.Config) string {
	t.Helper()
	return dialTLS(t, addr, config).ConnectionState().PeerCertificates[0].Subject.CommonName
}

// TestTLSReload: new connections get the new certificate, old ones stay, and files that
// cannot be used change nothing.
func TestTLSReload(t *testing.T) {
	s, ca, dir := startTLS(t)
	old := dialTLS(t, s.addr, ca.trust())
	if got := askStatus(old, askHealth); got != 200 {
		t.Fatalf("status %d", got)
	}
	dir.write(ca.issue("second"))
	reloadNow(t)
	eventually(t, "the second certificate is presented", func() bool { return presented(t, s.addr, ca.trust()) == "second" })
	if got := askStatus(old, askHealth); got != 200 {
		t.Errorf("the open connection: status %d", got)
	}
	goodCert, goodKey := ca.issue("third")
	_, otherKey := ca.issue("other")
	expiredCert, expiredKey := ca.issue("expired", hasExpired)
	for _, c := range []struct {
		name string
		make func()
		want string
	}{
		{"a key of another certificate", func() { dir.write(goodCert, otherKey) }, "private key does not match"},
		{"no PEM", func() { dir.write([]byte("x"), goodKey) }, "failed to find any PEM data"},
		{"an empty key", func() { dir.write(goodCert, nil) }, "the file is empty"},
		{"an expired certificate", func() { dir.write(expiredCert, expiredKey) }, "the certificate expired at"},
		{"no certificate", func() { os.Remove(dir.cert) }, "no such file"},
	} {
		c.make()
		reloadNow(t)
		eventually(t, c.name+" is reported", func() bool {
			for line := range strings.Lines(s.log.String()) {
				if strings.Contains(line, `"level":"ERROR","msg":"cannot reload the files of TLS; those in use stay"`) && strings.Contains(line, c.want) {
					return true
				}
			}
			return false
		})
		if got := presented(t, s.addr, ca.trust()); got != "second" {
			t.Errorf("%s: %s is presented", c.name, got)
		}
		if got := scrape(t, s)[`pagewright_reload_successful{file="tls"}`]; got != 0 {
			t.Errorf("%s: pagewright_reload_successful is %v", c.name, got)
		}
		s.log.reset()
	}
	dir.write(goodCert, goodKey)
	reloadNow(t)
	eventually(t, "the third certificate is presented", func() bool { return presented(t, s.addr, ca.trust()) == "third" })
	all := scrape(t, s)
	block, _ := pem.Decode(goodCert)
	leaf, _ := x509.ParseCertificate(block.Bytes)
	if all[`pagewright_reload_successful{file="tls"}`] != 1 || all["pagewright_tls_certificate_not_after_timestamp_seconds"] != float64(leaf.NotAfter.Unix()) {
		t.Errorf("metrics: %v, %v", all[`pagewright_reload_successful{file="tls"}`], all["pagewright_tls_certificate_not_after_timestamp_seconds"])
	}
}

// reset forgets the lines so far.
func (l *lockedBuffer) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}

// TestExpiredCertificateIsReplaced: one that has expired too is no reason to keep the old one.
func TestExpiredCertificateIsReplaced(t *testing.T) {
	ca, dir := newTestCA(t, "ca"), newTLSDir(t)
	dir.write(ca.issue("first", hasExpired))
	files := dir.open()
	dir.write(ca.issue("second", hasExpired))
	if err := files.watch.check(); err != nil {
		t.Fatal(err)
	}
	if got := files.current.Load().leaf.Subject.CommonName; got != "second" {
		t.Errorf("%s is in use", got)
	}
}

// TestSessionsEndWithTheFiles: a client resumes its session, unless the files have changed since:
// the CA of its certificate may have been removed.
func TestSessionsEndWithTheFiles(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		ca, first, second := newTestCA(t, "server"), newTestCA(t, "first"), newTestCA(t, "second")
		dir := newTLSDir(t)
		dir.write(ca.issue("server"))
		dir.writeCAs(first)
		s := startServer(t, dir.vars("TLS_CLIENT_AUTH=require", "ADMIN_LISTEN="+freeAddr(t))...)
		config := ca.trust(first.client("client"))
		config.MaxVersion, config.ClientSessionCache = version, tls.NewLRUClientSessionCache(1)
		// connect reports whether a request succeeds, and whether its session was resumed.
		connect := func() (ok, resumed bool) {
			c := tls.Client(dial(t, s.addr), config)
			defer c.Close()
			if c.Handshake() != nil {
				return false, false
			}
			return askStatus(c, askHealth) == 200, c.ConnectionState().DidResume
		}
		if ok, resumed := connect(); !ok || resumed {
			t.Fatalf("%x: the first connection: %v, resumed %v", version, ok, resumed)
		}
		if ok, resumed := connect(); !ok || !resumed {
			t.Fatalf("%x: the second connection: %v, resumed %v", version, ok, resumed)
		}
		dir.writeCAs(first, second)
		reloadNow(t)
		s.waitForLogs(t, `"msg":"TLS certificate loaded"`, 2)
		if ok, resumed := connect(); !ok || resumed {
			t.Errorf("%x: after a change: %v, resumed %v", version, ok, resumed)
		}
		dir.writeCAs(second)
		reloadNow(t)
		s.waitForLogs(t, `"msg":"TLS certificate loaded"`, 3)
		if ok, _ := connect(); ok {
			t.Errorf("%x: a client of a CA that was removed is let in", version)
		}
	}
}

// waitForLogs waits until the log has a text n times.
func (s *testServer) waitForLogs(t *testing.T, text string, n int) {
	t.Helper()
	eventually(t, text, func() bool { return strings.Count(s.log.String(), text) >= n })
}

// TestClientCertificate: handlers get the certificate that the client proved to have. It is
// accepted for as long as its CA is among those of the file, also on a connection that stays open.
func TestClientCertificate(t *testing.T) {
	ca, first, second := newTestCA(t, "server"), newTestCA(t, "first"), newTestCA(t, "second")
	dir := newTLSDir(t)
	dir.write(ca.issue("server"))
	dir.writeCAs(first)
	files := dir.open()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := ca.trust(first.client("client"))
		config.MaxVersion = version
		dir.writeCAs(first)
		mustReload(t, files)
		c, _ := tlsPair(t, files, config)
		anonymous, _ := tlsPair(t, files, ca.trust())
		if got, accepted := anonymous.clientCertificate(); got != nil || accepted {
			t.Errorf("without a certificate: %v, accepted %v", got, accepted)
		}
		for _, step := range []struct {
			change func()
			want   bool
		}{
			{func() {}, true},
			{func() { dir.write(ca.issue("server")) }, true},
			{func() { dir.writeCAs(second, first) }, true},
			{func() { dir.writeCAs(second) }, false},
			{func() { dir.writeCAs(first) }, false}, // it was no longer proven
		} {
			step.change()
			mustReload(t, files)
			got, accepted := c.clientCertificate()
			if got == nil || got.Subject.CommonName != "client" || accepted != step.want {
				t.Errorf("%x: %v, accepted %v, want %v", version, got, accepted, step.want)
			}
		}
	}
	if cert, accepted := (&conn{}).clientCertificate(); cert != nil || accepted {
		t.Errorf("without TLS: %v, accepted %v", cert, accepted)
	}
}

func mustReload(t *testing.T, files *tlsFiles) {
	t.Helper()
	if err := files.watch.check(); err != nil {
		t.Fatal(err)
	}
}

// TestStartWithBadTLSFiles: files that cannot be used stop the start. Only those that are
// not there may come later.
func TestStartWithBadTLSFiles(t *testing.T) {
	ca := newTestCA(t, "ca")
	cert, key := ca.issue("server")
	other, _ := ca.issue("other")
	for _, c := range []struct {
		name string
		make func(d tlsDir)
		want string
		exit int
	}{
		{"no certificate", func(d tlsDir) { os.Remove(d.cert) }, "no such file", exitFailure},
		{"no CAs", func(d tlsDir) { os.Remove(d.client) }, "no such file", exitFailure},
		{"a directory", func(d tlsDir) { os.Remove(d.key); os.Mkdir(d.key, 0o700) }, "not a regular file", exitConfig},
		{"a key of another certificate", func(d tlsDir) { d.write(other, key) }, "does not match", exitConfig},
		{"a file of CAs without a certificate", func(d tlsDir) { os.WriteFile(d.client, []byte("x"), 0o600) }, "no certificate", exitConfig},
		{"a key among the CAs", func(d tlsDir) { os.WriteFile(d.client, append(ca.pem, key...), 0o600) }, "block 2 is a PRIVATE KEY", exitConfig},
		{"a CA that is cut", func(d tlsDir) {
			os.WriteFile(d.client, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), 0o600)
		}, "certificate 1", exitConfig},
		{"a certificate that is no CA", func(d tlsDir) { os.WriteFile(d.client, append(ca.pem, cert...), 0o600) }, "certificate 2 is not a CA certificate: CN=server", exitConfig},
		{"a key with a passphrase", func(d tlsDir) {
			d.write(cert, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}))
		}, "passphrase", exitConfig},
		{"an old key with a passphrase", func(d tlsDir) {
			d.write(cert, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: []byte("x")}))
		}, "passphrase", exitConfig},
		{"no key", func(d tlsDir) { d.write(cert, cert) }, "found a certificate rather than a key", exitConfig},
		{"too large", func(d tlsDir) { d.write(make([]byte, maxTLSFile+1), key) }, "larger than", exitConfig},
	} {
		dir := newTLSDir(t)
		dir.write(cert, key)
		dir.writeCAs(ca)
		vars := append(dir.vars(), "NFS_BASE_PATH="+t.TempDir(), "LISTEN=127.0.0.1", "PORT=0")
		c.make(dir)
		_, err := runWith(nil, vars...)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), filepath.Dir(dir.cert)) || exitStatus(err) != c.exit {
			t.Errorf("%s: %v, want %q and exit status %d", c.name, err, c.want, c.exit)
		}
	}
}

// TestTLSFilesByLink: the files of a Kubernetes Secret change by a switch of the link ..data.
func TestTLSFilesByLink(t *testing.T) {
	ca, root := newTestCA(t, "ca"), t.TempDir()
	publish := func(name string) {
		t.Helper()
		dir, link := filepath.Join(root, name), filepath.Join(root, "..data")
		cert, key := ca.issue(name)
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "tls.crt"), cert, 0o600),
			os.WriteFile(filepath.Join(dir, "tls.key"), key, 0o600), os.Symlink(name, link+"_tmp"), os.Rename(link+"_tmp", link)); err != nil {
			t.Fatal(err)
		}
	}
	publish("..1")
	for _, name := range []string{"tls.crt", "tls.key"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	d := tlsDir{t, filepath.Join(root, "tls.crt"), filepath.Join(root, "tls.key"), filepath.Join(root, "none")}
	files := d.open()
	publish("..2")
	if err := files.watch.check(); err != nil {
		t.Fatal(err)
	}
	if got := files.current.Load().leaf.Subject.CommonName; got != "..2" {
		t.Errorf("%s is in use", got)
	}
}
