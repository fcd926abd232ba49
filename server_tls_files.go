package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
)

const maxTLSFile = 1 << 20 // bytes of a certificate, a key or a list of CAs

// tlsFiles are the certificate, its key and the CAs of clients, read from files that may
// change. It is safe for concurrent use.
type tlsFiles struct {
	cfg     *tlsConfig
	log     *slog.Logger
	current atomic.Pointer[tlsState]
	watch   *fileWatch
}

// tlsState is what one load of the files has made. It never changes.
//
// Each load has a tls.Config of its own, so that the keys of session tickets end with it:
// otherwise a client could resume a session whose CA was removed. That is why connections
// get the current Config themselves, and not from GetConfigForClient: a Config that comes
// from there uses the ticket keys of the Config that has the function (crypto/tls,
// Config.ticketKeys).
type tlsState struct {
	config *tls.Config
	leaf   *x509.Certificate
}

// openTLS reads the files of TLS. It returns nil if TLS is off.
func openTLS(cfg *tlsConfig, log *slog.Logger) (*tlsFiles, error) {
	if !cfg.on() {
		return nil, nil
	}
	f := &tlsFiles{cfg: cfg, log: log}
	paths := []string{cfg.Cert, cfg.Key}
	if cfg.ClientCA != "" {
		paths = append(paths, cfg.ClientCA)
	}
	f.watch = &fileWatch{paths: paths, max: maxTLSFile, load: f.load, event: f.report}
	if err := f.watch.check(); err != nil {
		return nil, fileError(fmt.Errorf("cannot use the files of TLS: %w", err))
	}
	return f, nil
}

// load uses the files. An expired certificate does not replace one that is valid. It is
// used if there is nothing better, as at the start: some clients still accept it, and a
// service that does not run would not load its successor. A certificate that is not valid
// yet is used: it may come from a host whose clock is a little ahead.
func (f *tlsFiles) load(contents [][]byte) error {
	pair, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		if hasPassphrase(contents[1]) {
			err = errors.New("the key has a passphrase: store it without one")
		}
		return fmt.Errorf("%s and %s: %w", f.cfg.Cert, f.cfg.Key, err)
	}
	now, old := time.Now(), f.current.Load()
	if now.After(pair.Leaf.NotAfter) && old != nil && !now.After(old.leaf.NotAfter) {
		return fmt.Errorf("%s: the certificate expired at %s", f.cfg.Cert, pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
		CipherSuites: tls12Suites,
		NextProtos:   []string{"http/1.1"},
		// Small records at the beginning of a connection would cost a small response four
		// writes instead of one.
		DynamicRecordSizingDisabled: true,
	}
	if f.cfg.Min == "1.3" {
		config.MinVersion = tls.VersionTLS13
	}
	if f.cfg.ClientCA != "" {
		config.ClientAuth = tls.VerifyClientCertIfGiven
		if f.cfg.requires() {
			config.ClientAuth = tls.RequireAndVerifyClientCert
		}
		if config.ClientCAs, err = parseCAs(contents[2]); err != nil {
			return fmt.Errorf("%s: %w", f.cfg.ClientCA, err)
		}
	}
	f.current.Store(&tlsState{config, pair.Leaf})
	return nil
}

// tls12Suites are the cipher suites of TLS 1.2 with forward secrecy and authenticated
// encryption. Those of TLS 1.3 all have both.
var tls12Suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// parseCAs returns the certificates of a PEM file. Unlike x509.CertPool.AppendCertsFromPEM
// it skips none that it cannot parse.
func parseCAs(text []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for n := 1; ; n++ {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			if n == 1 {
				return nil, errors.New("there is no certificate in the file")
			}
			return pool, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("block %d is a %s, not a CERTIFICATE", n, block.Type)
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n, err)
		}
		// As in x509.Certificate.CheckSignatureFrom: a CA of version 1 has no constraints.
		if ca.Version == 3 && !ca.BasicConstraintsValid || ca.BasicConstraintsValid && !ca.IsCA {
			return nil, fmt.Errorf("certificate %d is not a CA certificate: %s", n, ca.Subject)
		}
		pool.AddCert(ca)
	}
}

// hasPassphrase reports whether the first key of a PEM file is encrypted: in PKCS#8 (RFC
// 7468, section 11), or in the older form that RFC 1421 describes.
func hasPassphrase(text []byte) bool {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			return block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED")
		}
	}
	return false
}

// report logs a load, or why it failed. openTLS returns the error of the first one.
func (f *tlsFiles) report(err error) {
	state := f.current.Load()
	switch {
	case err != nil && state == nil:
	case err != nil:
		f.log.Error("cannot reload the files of TLS; those in use stay", "error", err)
	case time.Now().After(state.leaf.NotAfter):
		f.log.Error("the TLS certificate has expired; clients will refuse it", "path", f.cfg.Cert, "not_after", state.leaf.NotAfter)
	default:
		f.log.Info("TLS certificate loaded", "path", f.cfg.Cert, "not_after", state.leaf.NotAfter)
	}
}

// verifies reports whether the CAs of clients vouch for a chain now.
func (s *tlsState) verifies(chain []*x509.Certificate) bool {
	if s.config.ClientCAs == nil {
		return false
	}
	opts := x509.VerifyOptions{Roots: s.config.ClientCAs, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(opts)
	return err == nil
}
