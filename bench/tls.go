package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
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
	"time"

	"golang.org/x/sys/unix"
)

// The loads over TLS 1.3, with TLS_AES_128_GCM_SHA256 and the same certificate for each
// server. The client is crypto/tls.

// isTLS reports whether a server speaks TLS.
func isTLS(name string) bool { return strings.HasSuffix(name, ", TLS") }

// certificate makes the certificate, and returns the files of it and of its key.
func (b *bench) certificate() (cert, key string, err error) {
	cert, key = filepath.Join(b.scratch, "tls.pem"), filepath.Join(b.scratch, "tls.key")
	if _, err := os.Stat(key); err == nil {
		return cert, key, nil
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{{127, 0, 0, 1}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return "", "", err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", err
	}
	return cert, key, errors.Join(
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
}

func dialTLS(addr unix.SockaddrInet4) (*tls.Conn, error) {
	tcp, err := net.DialTCP("tcp4", nil, &net.TCPAddr{IP: addr.Addr[:], Port: addr.Port})
	if err != nil {
		return nil, err
	}
	c := tls.Client(tcp, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	if got := c.ConnectionState().CipherSuite; got != tls.TLS_AES_128_GCM_SHA256 {
		return nil, fmt.Errorf("the cipher suite is %s", tls.CipherSuiteName(got))
	}
	return c, nil
}

// exchangeTLS sends a request, whose body is the first size bytes of the file source, and
// reads the response. It wants a body of want bytes; -1: any.
func exchangeTLS(addr unix.SockaddrInet4, method, path, source string, size, want int64) error {
	c, err := dialTLS(addr)
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n", method, path, size)
	buf := make([]byte, 1<<20)
	if size > 0 {
		f, err := os.Open(source)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.CopyBuffer(struct{ io.Writer }{c}, io.LimitReader(f, size), buf); err != nil {
			return fmt.Errorf("cannot send the body: %w", err)
		}
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 32<<10), nil)
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
	if err != nil || resp.StatusCode/100 != 2 || want >= 0 && n != want {
		return fmt.Errorf("%s: %s, %d bytes: %w", method, resp.Status, n, err)
	}
	return nil
}

// tlsPut: large bodies.
func (b *bench) tlsPut() error {
	for _, n := range []int{1, 4} {
		err := b.turns([]string{pagewrightTLS, nginxTLS}, b.rounds, func(s *server, round int) error {
			build := func(i int) string { return fmt.Sprintf("b%d-%d", round, i) }
			r, err := each(s.pid(), n, b.large, func(i int) error {
				return exchangeTLS(s.addr, "PUT", artifactPath("large", build(i)), b.source, b.large, -1)
			})
			for i := range n {
				err = errors.Join(err, os.Remove(s.stored("large", build(i))))
			}
			b.add("large PUT over TLS", float64(n), s.name, round, r.values())
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tlsGet: large bodies, and 4 KiB on kept connections by wrk.
func (b *bench) tlsGet() error {
	for _, n := range []int{1, 4} {
		stored := map[string]bool{}
		err := b.turns([]string{pagewrightTLS, nginxTLS}, b.rounds, func(s *server, round int) error {
			path := artifactPath("large", "b")
			if !stored[s.name] {
				if err := exchangeTLS(s.addr, "PUT", path, b.source, b.large, -1); err != nil {
					return err
				}
				for i := range smallFiles {
					if err := exchangeTLS(s.addr, "PUT", artifactPath("site", fmt.Sprintf("b%08d", i)), b.source, 4<<10, -1); err != nil {
						return err
					}
				}
				stored[s.name] = true
				b.settle()
			}
			r, err := each(s.pid(), n, b.large, func(int) error { return exchangeTLS(s.addr, "GET", path, "", 0, b.large) })
			b.add("large GET over TLS", float64(n), s.name, round, r.values())
			if err == nil && n == 1 {
				err = b.wrk("small GET over TLS", s, round)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
