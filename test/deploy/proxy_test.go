//go:build integration

// Package deploy starts what deploy/ holds with the programs that it is for: the proxies in
// front of the real service, and the unit in a systemd of its own. It needs root and what
// test/install installs. The compose files are started in test/container.
package deploy

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"pagewright/storage/test/service"
)

// proxy is one of the configurations of deploy/load-balancer.
type proxy struct {
	name string
	file string
	// edits are made to the file, from text to text. They name the addresses of the test.
	edits func(a addresses) [][2]string
	check []string // the command that checks a file, whose path is appended
	run   []string // the command that runs a file, whose path is appended
}

// addresses are where the proxy listens, and where it finds the service.
type addresses struct {
	http, https string // of the proxy
	service     string
	other       string // of a second server, if there is one
	admin       string // of the service: /ready
	dir         string // of the certificate
}

var proxies = []proxy{{
	name: "haproxy", file: "haproxy.cfg",
	edits: func(a addresses) [][2]string {
		_, port, _ := net.SplitHostPort(a.admin)
		return [][2]string{
			{"bind :8080\n", "bind " + a.http + "\n"},
			{"#tls bind :8443 ", "bind " + a.https + " "},
			{"/etc/haproxy/tls.pem", a.dir + "/tls.pem"},
			{" storage-1:8080\n", " " + a.service + "\n"},
			{" storage-2:8080\n", " " + cmp.Or(a.other, a.service) + "\n"},
			{"check port 9090 ", "check port " + port + " "},
		}
	},
	check: []string{"haproxy", "-c", "-f"},
	run:   []string{"haproxy", "-db", "-f"},
}, {
	name: "nginx", file: "nginx.conf",
	edits: func(a addresses) [][2]string {
		servers := "server " + a.service + ";\n"
		if a.other != "" {
			servers += "server " + a.other + ";\n"
		}
		return [][2]string{
			{"listen 80;\n", "listen " + a.http + ";\n"},
			{"#tls listen 443 ", "listen " + a.https + " "},
			{"#tls ssl_certificate /etc/nginx/tls.crt;", "ssl_certificate " + a.dir + "/tls.pem;"},
			{"#tls ssl_certificate_key /etc/nginx/tls.key;", "ssl_certificate_key " + a.dir + "/tls.pem;"},
			{"server 127.0.0.1:8080;\n", servers},
		}
	},
	check: []string{"nginx", "-t", "-g", "pid nginx.pid;", "-p", ".", "-c"},
	run:   []string{"nginx", "-g", "daemon off; pid nginx.pid;", "-p", ".", "-c"},
}}

// start checks the configuration with the proxy's own tool and runs the proxy, until the
// test ends.
func (p proxy) start(t *testing.T, a addresses) addresses {
	t.Helper()
	a.dir = service.SharedDir(t)
	a.http, a.https = freeAddress(t), freeAddress(t)
	writeCertificate(t, a.dir+"/tls.pem")
	text, err := os.ReadFile("../../deploy/load-balancer/" + p.file)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range p.edits(a) {
		if bytes.Count(text, []byte(e[0])) != 1 {
			t.Fatalf("%s does not hold %q once", p.file, e[0])
		}
		text = bytes.Replace(text, []byte(e[0]), []byte(e[1]), 1)
	}
	file := filepath.Join(a.dir, p.file)
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	check := p.command(p.check, a.dir, file)
	if out, err := check.CombinedOutput(); err != nil || regexp.MustCompile(`(?im)^.?(warning|alert)|\[(warn|emerg)\]`).Match(out) {
		t.Fatalf("%s: %v\n%s", check, err, out)
	}
	cmd := p.command(p.run, a.dir, file)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			t.Logf("the last that %s logged:\n%s", p.name, log.Bytes()[max(0, log.Len()-4<<10):])
		}
	})
	service.Until(t, p.name+" listens", func() bool {
		c, err := net.Dial("tcp", a.http)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return a
}

func (p proxy) command(args []string, dir, file string) *exec.Cmd {
	args = append(append([]string{}, args...), file)
	path := args[0]
	if found, err := exec.LookPath(path); err == nil {
		path = found
	} else {
		path = "/usr/sbin/" + path
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return cmd
}

// writeCertificate writes a certificate for 127.0.0.1 and storage.example.com, and its key, into
// one file.
func writeCertificate(t *testing.T, file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames: []string{"storage.example.com"}}
	cert, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: cert})
	pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: private})
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
