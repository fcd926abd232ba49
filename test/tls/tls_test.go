//go:build integration || torture

// Package tls has the real binary serve over TLS, to the clients that people use. It needs
// root and what test/install installs.
package tls

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	gotls "crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pagewright/storage/test/service"
)

const (
	size   = 1 << 30      // of the large build
	middle = size - 500e6 // where the range of a download begins
)

// keys is a directory with a CA, a certificate of the server and one of a client.
type keys struct{ dir string }

func (k keys) ca() string         { return filepath.Join(k.dir, "ca.pem") }
func (k keys) cert() string       { return filepath.Join(k.dir, "server.pem") }
func (k keys) key() string        { return filepath.Join(k.dir, "server.key") }
func (k keys) clientCert() string { return filepath.Join(k.dir, "client.pem") }
func (k keys) clientKey() string  { return filepath.Join(k.dir, "client.key") }

func newKeys(t *testing.T) keys {
	t.Helper()
	k := keys{service.SharedDir(t)}
	template := func(name string) *x509.Certificate {
		serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
		return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour)}
	}
	write := func(path, kind string, der []byte) {
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sign := func(path string, template, parent *x509.Certificate, by *ecdsa.PrivateKey) *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if by == nil {
			by = key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
		if err != nil {
			t.Fatal(err)
		}
		write(path+".pem", "CERTIFICATE", der)
		der, err = x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		write(path+".key", "PRIVATE KEY", der)
		return key
	}
	ca := template("test CA")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	ca.SubjectKeyId = []byte("test CA")
	caKey := sign(filepath.Join(k.dir, "ca"), ca, ca, nil)
	for name, usage := range map[string]x509.ExtKeyUsage{"server": x509.ExtKeyUsageServerAuth, "client": x509.ExtKeyUsageClientAuth} {
		c := template(name)
		c.DNSNames, c.IPAddresses = []string{"localhost"}, []net.IP{{127, 0, 0, 1}}
		c.CRLDistributionPoints = []string{"http://localhost/crl"} // testssl.sh wants one, and does not fetch it
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{usage}
		sign(filepath.Join(k.dir, name), c, ca, caKey)
	}
	return k
}

// rig is a service over TLS.
type rig struct {
	t      *testing.T
	s      *service.Service
	base   string
	url    string // of the large build
	source string // its bytes
	sum    string
	work   string // for downloads
	keys
	mutual bool
}

func newRig(t *testing.T, bin, source, sum string, k keys, mutual bool, more ...string) *rig {
	t.Helper()
	r := &rig{t: t, base: service.SharedDir(t), source: source, sum: sum, work: service.SharedDir(t), keys: k, mutual: mutual}
	env := append([]string{"TLS_CERT=" + k.cert(), "TLS_KEY=" + k.key()}, more...)
	if mutual {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, "TLS_CLIENT_CA="+k.ca(), "TLS_CLIENT_AUTH=require", "ADMIN_LISTEN="+l.Addr().String())
		l.Close()
	}
	r.s = service.Start(t, service.Options{Bin: bin, Base: r.base, Env: env})
	_, port, _ := net.SplitHostPort(r.s.Addr)
	r.url = "https://localhost:" + port + "/sites/a/artifacts/"
	return r
}

// run runs a program, which must succeed.
func (r *rig) run(args ...string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

func (r *rig) curl(args ...string) []string {
	all := []string{"curl", "-sS", "--fail-with-body", "--cacert", r.ca()}
	if r.mutual {
		all = append(all, "--cert", r.clientCert(), "--key", r.clientKey())
	}
	return append(all, args...)
}

func (r *rig) wget(args ...string) []string {
	all := []string{"wget", "-nv", "--tries=1", "--ca-certificate=" + r.ca()}
	if r.mutual {
		all = append(all, "--certificate="+r.clientCert(), "--private-key="+r.clientKey())
	}
	return append(all, args...)
}

// check compares a file with a part of the large build.
func (r *rig) check(what, path string, from, length int64) {
	r.t.Helper()
	got, n := sumOf(r.t, path, 0, -1)
	want := r.sum
	if length != size {
		want, _ = sumOf(r.t, r.source, from, length)
	}
	if got != want || n != length {
		r.t.Errorf("%s: %d bytes came, want %d, or other ones", what, n, length)
	}
	os.Remove(path)
}

// stored checks what the service has stored.
func (r *rig) stored(what, build string) {
	r.t.Helper()
	r.check(what, filepath.Join(r.base, "sites", "a", "artifacts", build+".tar.gz"), 0, size)
}

func sumOf(t *testing.T, path string, from, length int64) (sum string, n int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r io.Reader = f
	if length >= 0 {
		r = io.NewSectionReader(f, from, length)
	}
	h := sha256.New()
	n, err = io.Copy(h, r)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil)), n
}

// makeSource makes a file of random bytes, in memory.
func makeSource(t *testing.T) (path, sum string) {
	t.Helper()
	f, err := os.CreateTemp("/dev/shm", "storage-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(f.Name()) })
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, h), mathrand.NewChaCha8([32]byte{1}), size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name(), hex.EncodeToString(h.Sum(nil))
}

// TestClients moves a large build over TLS with each client, without and with a certificate
// of its own.
func TestClients(t *testing.T) {
	bin, k := service.Build(t), newKeys(t)
	source, sum := makeSource(t)
	for _, mutual := range []bool{false, true} {
		t.Run(fmt.Sprint("mutual ", mutual), func(t *testing.T) {
			r := newRig(t, bin, source, sum, k, mutual)
			out := filepath.Join(r.work, "out")
			for _, c := range []struct {
				name           string
				put, get, part func(build string)
			}{
				{"curl",
					func(b string) { r.run(r.curl("-T", source, r.url+b)...) },
					func(b string) { r.run(r.curl("-o", out, r.url+b)...) },
					func(b string) { r.run(r.curl("-r", fmt.Sprint(int64(middle), "-"), "-o", out, r.url+b)...) }},
				{"curl, TLS 1.2, chunked",
					func(b string) {
						r.run("sh", "-c", strings.Join(r.curl("--tls-max", "1.2", "-T", "-", r.url+b), " ")+" <"+source)
					},
					func(b string) { r.run(r.curl("--tls-max", "1.2", "-o", out, r.url+b)...) },
					func(b string) {
						r.run(r.curl("--tls-max", "1.2", "-r", fmt.Sprint(int64(middle), "-"), "-o", out, r.url+b)...)
					}},
				{"wget",
					func(b string) { r.run(r.wget("-O", "-", "--method=PUT", "--body-file="+source, r.url+b)...) },
					func(b string) { r.run(r.wget("-O", out, r.url+b)...) },
					func(b string) {
						r.run(r.wget("-O", out, fmt.Sprint("--start-pos=", int64(middle)), r.url+b)...)
					}},
				{"Go", r.goPut, func(b string) { r.goGet(b, out, "") }, func(b string) { r.goGet(b, out, fmt.Sprint("bytes=", int64(middle), "-")) }},
				{"Python",
					func(b string) { r.python("put", b, source) },
					func(b string) { r.python("get", b, out) },
					func(b string) { r.python("part", b, out) }},
			} {
				build := strings.ReplaceAll(strings.ReplaceAll(c.name, " ", "-"), ",", "")
				c.put(build)
				c.get(build)
				r.check(c.name+": download", out, 0, size)
				c.part(build)
				r.check(c.name+": range", out, middle, size-middle)
				r.stored(c.name+": upload", build)
			}
			// A probe of the store may have one for a moment.
			service.Until(t, "no temporary file to be left", func() bool { return len(service.Temps(t, r.base)) == 0 })
		})
	}
}

func (r *rig) goClient() *http.Client {
	pool := x509.NewCertPool()
	ca, err := os.ReadFile(r.ca())
	if err != nil || !pool.AppendCertsFromPEM(ca) {
		r.t.Fatal("no CA: ", err)
	}
	config := &gotls.Config{RootCAs: pool}
	if r.mutual {
		pair, err := gotls.LoadX509KeyPair(r.clientCert(), r.clientKey())
		if err != nil {
			r.t.Fatal(err)
		}
		config.Certificates = []gotls.Certificate{pair}
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Timeout: 5 * time.Minute, Transport: transport}
}

func (r *rig) goPut(build string) {
	r.t.Helper()
	f, err := os.Open(r.source)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	req, _ := http.NewRequest("PUT", r.url+build, f)
	req.ContentLength = size
	res, err := r.goClient().Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	if text, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusCreated {
		r.t.Fatalf("%s: %s", res.Status, text)
	}
}

func (r *rig) goGet(build, out, part string) {
	r.t.Helper()
	req, _ := http.NewRequest("GET", r.url+build, nil)
	want := http.StatusOK
	if part != "" {
		req.Header.Set("Range", part)
		want = http.StatusPartialContent
	}
	res, err := r.goClient().Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	f, err := os.Create(out)
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = io.Copy(f, res.Body)
	if err := errors.Join(err, f.Close()); err != nil || res.StatusCode != want {
		r.t.Fatal(res.Status, err)
	}
}

// The standard library of Python alone: http.client to send a file, urllib to read one.
const pythonClient = `
import http.client, shutil, ssl, sys, urllib.request
do, url, path, ca, cert, key, first = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
if cert:
    context.load_cert_chain(cert, key)
if do == "put":
    host, _, target = url.removeprefix("https://").partition("/")
    c = http.client.HTTPSConnection(host, context=context, timeout=300)
    with open(path, "rb") as f:
        c.request("PUT", "/" + target, body=f)
    r = c.getresponse()
    assert r.status == 201, (r.status, r.read())
    assert c.sock.version() == "TLSv1.3", c.sock.version()
else:
    request = urllib.request.Request(url, headers={"Range": "bytes=" + first + "-"} if do == "part" else {})
    with urllib.request.urlopen(request, context=context, timeout=300) as r, open(path, "wb") as f:
        assert r.status == (206 if do == "part" else 200), r.status
        shutil.copyfileobj(r, f, 1 << 20)
`

func (r *rig) python(do, build, path string) {
	r.t.Helper()
	cert, key := "", ""
	if r.mutual {
		cert, key = r.clientCert(), r.clientKey()
	}
	r.run("python3", "-c", pythonClient, do, r.url+build, path, r.ca(), cert, key, fmt.Sprint(int64(middle)))
}

// TestSlowClients: a client that is limited to a rate takes longer than the stall timeout,
// and gets and sends all of it.
func TestSlowClients(t *testing.T) {
	k := newKeys(t)
	r := newRig(t, service.Build(t), "", "", k, false, "STALL_TIMEOUT=2s")
	small := filepath.Join(r.work, "small")
	data := make([]byte, 2<<20)
	_, _ = rand.Read(data)
	if err := os.WriteFile(small, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r.run(r.curl("--limit-rate", "250k", "-T", small, r.url+"slow")...)
	out := filepath.Join(r.work, "out")
	r.run(r.curl("--limit-rate", "250k", "-o", out, r.url+"slow")...)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, data) {
		t.Errorf("other bytes came back, %v", err)
	}
}

// TestCutUploads: nothing of an upload stays whose client is killed.
func TestCutUploads(t *testing.T) {
	k := newKeys(t)
	r := newRig(t, service.Build(t), "", "", k, false)
	for _, args := range [][]string{
		r.curl("--limit-rate", "20M", "-T", "/dev/zero", r.url+"endless"),
		r.curl("--limit-rate", "20M", "-H", "Content-Length: 1000000000", "-T", "/dev/zero", r.url+"sized"),
		r.curl("--tls-max", "1.2", "--limit-rate", "20M", "-T", "/dev/zero", r.url+"old"),
	} {
		cmd := exec.Command(args[0], args[1:]...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		service.Until(t, "some of the upload to arrive", func() bool {
			for _, temp := range service.Temps(t, r.base) {
				if st, err := os.Stat(temp); err == nil && st.Size() > 4<<20 {
					return true
				}
			}
			return false
		})
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		service.Until(t, "the temporary file to be gone", func() bool { return len(service.Temps(t, r.base)) == 0 })
	}
	if names, _ := filepath.Glob(filepath.Join(r.base, "sites", "*", "artifacts", "*")); len(names) > 0 {
		t.Errorf("stored: %v", names)
	}
}

// TestHalfClosed: openssl s_client, which ends its side at once, gets its response.
func TestHalfClosed(t *testing.T) {
	k := newKeys(t)
	r := newRig(t, service.Build(t), "", "", k, false)
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		out := r.run("sh", "-c", `printf 'GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n' | openssl s_client -quiet -verify_return_error -ignore_unexpected_eof `+
			version+` -CAfile `+r.ca()+` -connect `+r.s.Addr)
		if !strings.Contains(out, "HTTP/1.1 200 OK") || !strings.Contains(out, `"status":"healthy"`) {
			t.Errorf("%s: %s", version, out)
		}
	}
}

// TestTestssl: testssl.sh finds nothing that is severe.
func TestTestssl(t *testing.T) {
	k := newKeys(t)
	r := newRig(t, service.Build(t), "", "", k, false)
	report := filepath.Join(r.work, "testssl.json")
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Minute)
	defer cancel()
	_, port, _ := net.SplitHostPort(r.s.Addr)
	cmd := exec.CommandContext(ctx, "testssl", "--quiet", "--color", "0", "--warnings", "off", "--ip", "127.0.0.1", "--openssl-timeout", "5",
		"--add-ca", k.ca(), "--jsonfile", report, "https://localhost:"+port)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("it took too long: %s", out)
	}
	text, rerr := os.ReadFile(report)
	var findings []struct{ ID, Severity, Finding string }
	if jerr := json.Unmarshal(text, &findings); rerr != nil || jerr != nil {
		t.Fatal(err, rerr, jerr, string(out))
	}
	seen := map[string]bool{}
	for _, f := range findings {
		seen[f.ID] = true
		switch f.Severity {
		case "HIGH", "CRITICAL", "FATAL":
			t.Errorf("%s: %s: %s", f.Severity, f.ID, f.Finding)
		case "WARN", "LOW", "MEDIUM":
			t.Logf("%s: %s: %s", f.Severity, f.ID, f.Finding)
		}
	}
	for _, id := range []string{"TLS1", "TLS1_2", "TLS1_3", "cert_chain_of_trust", "heartbleed", "ROBOT", "LUCKY13"} {
		if !seen[id] {
			t.Errorf("%s was not tested", id)
		}
	}
}
