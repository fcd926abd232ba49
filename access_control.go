package main

import (
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
)

// accessControl knows who may do what: the rules of the access file, which is reloaded, and
// the keys of the issuers that the rules name. A nil *accessControl is off. It is safe for
// concurrent use.
type accessControl struct {
	log      *slog.Logger
	watch    *fileWatch
	policy   atomic.Pointer[accessPolicy] // never nil
	keys     *keyStore
	verifier *jwtVerifier
	noCA     bool // no client can have a certificate
}

// openAccess loads the access file. It fails if the file cannot be used. Later the rules
// stay in force while the file cannot be used. noCA: no client can have a certificate.
func openAccess(path string, noCA bool, log *slog.Logger) (*accessControl, error) {
	keys := newKeyStore(log)
	a := &accessControl{log: log, keys: keys, verifier: newJWTVerifier(keys), noCA: noCA}
	a.watch = &fileWatch{paths: []string{path}, max: maxAccessFile, load: a.load, event: a.loaded}
	if err := a.watch.check(); err != nil {
		a.close()
		return nil, accessFileError(path, err)
	}
	return a, nil
}

// readAccess reads an access file once.
func readAccess(path string) (*accessPolicy, error) {
	data, err := readSmallFile(path, maxAccessFile)
	if err != nil {
		return nil, accessFileError(path, err)
	}
	policy, err := parseAccessFile(data)
	if err != nil {
		return nil, accessFileError(path, err)
	}
	return policy, nil
}

func accessFileError(path string, err error) error {
	return fmt.Errorf("PAGEWRIGHT_ACCESS_FILE=%s: %w", path, err)
}

// close stops the refreshing of keys.
func (a *accessControl) close() { a.keys.close() }

// load makes the content of the file the rules in force.
func (a *accessControl) load(contents [][]byte) error {
	policy, err := parseAccessFile(contents[0])
	if err != nil {
		return err
	}
	a.keys.use(policy.issuers())
	a.policy.Store(policy)
	return nil
}

// loaded logs what a check of the file found.
func (a *accessControl) loaded(err error) {
	switch policy := a.policy.Load(); {
	case err == nil:
		a.log.Info("access file loaded", "path", a.watch.paths[0],
			"tokens", len(policy.tokenEntries()), "oidc", len(policy.oidc), "certificates", len(policy.certificates), "anonymous", len(policy.anonymous))
		a.warnUnused()
	case policy != nil: // at the start openAccess returns the error
		a.log.Error("access file not loaded; the previous rules stay in force", "path", a.watch.paths[0], "error", err.Error())
	}
}

// warnUnused logs that no client can use the entries for certificates, if there are any.
func (a *accessControl) warnUnused() {
	if n := len(a.policy.Load().certificates); n > 0 && a.noCA {
		a.log.Warn("no client can use the certificates of the access file: set PAGEWRIGHT_TLS_CLIENT_CA", "path", a.watch.paths[0], "certificates", n)
	}
}

// identify returns who sent a credential: a token or a JWT. Its error is an *accessError.
// The caller passes the rules that it decides by, so that one decision never mixes two
// versions of the file.
func (a *accessControl) identify(policy *accessPolicy, credential string, now time.Time) (*actor, error) {
	switch {
	case strings.HasPrefix(credential, tokenPrefix):
		return policy.token(credential, now)
	case strings.Count(credential, ".") == 2: // a JWT in the compact form (RFC 7519, section 3)
		return a.verifier.verify(credential, policy, now)
	}
	return nil, &accessError{deniedMalformed, "the credentials are neither a token of this service nor a JWT"}
}
