package main

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// useAccess makes the rules of access decide who may do what. It must come before the first
// request. nil: everybody may do everything.
func (a *api) useAccess(access *accessControl) {
	if a.access = access; access == nil {
		return
	}
	a.metrics.countDenied(deniedReasons[:])
	a.metrics.reloads("access", access.watch)
}

// accessMetrics sets the metrics of the entries of the access file.
func (a *api) accessMetrics() {
	if a.access == nil {
		return
	}
	reads := map[string]keyReads{}
	for _, i := range a.access.keys.stats() {
		reads[i.name] = keyReads{i.ok, i.failed, i.age}
	}
	a.metrics.issuerKeys(reads)
	expire := map[string]time.Time{}
	for name, who := range a.access.policy.Load().tokenEntries() {
		if !who.until.IsZero() {
			expire[name] = who.until
		}
	}
	a.metrics.tokensExpire(expire)
}

// authorize returns the error with which a request is refused because of who sent it, or
// nil. It runs before anything else reads the request, and in both halves of a route,
// because the rules may change in between.
func (a *api) authorize(ctx *fasthttp.RequestCtx, r *route) error {
	c := connOf(ctx)
	if r.need == actionOpen || a.access == nil && c.tls == nil {
		return nil
	}
	now := time.Now()
	cert, err := certificateOf(c, now)
	if err != nil {
		ctx.SetConnectionClose() // a new connection can have a new certificate
		return refusedAccess(err)
	}
	if a.access == nil {
		return nil
	}
	policy := a.access.policy.Load() // once: a decision must not mix two versions of the file
	who, err := a.identify(&ctx.Request.Header, c, cert, policy, now)
	if err != nil {
		if expired, ok := errors.AsType[*expiredToken](err); ok {
			c.setActor(expired.who.kind, expired.who.name, expired.who.credential, true) // has no rights any more
		}
		return refusedAccess(err)
	}
	if who != nil {
		c.setActor(who.kind, who.name, who.credential, len(who.rules) == 0)
	}
	site := pathText(ctx, "site_id")
	scope, lacks := r.judge(policy, who, site)
	if lacks != 0 {
		switch {
		case who == nil && cert != nil:
			c.rec.certificate = certificateNames(cert)
			return refusedAccess(errNoEntry)
		case who == nil:
			return refusedAccess(errNoCredentials)
		}
		return lacking(lacks)
	}
	if r.ofSome {
		ctx.SetUserValue(scopeKey{}, scope)
	}
	c.rec.createOnly = r.need == actionCreate && policy.allows(who, actionWrite, site) == nil
	return nil
}

// judge returns the first action that who may not do although r needs it on the site; 0: none. Of
// a route that shows some sites it returns which.
func (r *route) judge(policy *accessPolicy, who *actor, site string) (scope *accessScope, lacks action) {
	if r.ofSome {
		scope, some := policy.scope(who)
		if !some {
			return nil, r.need
		}
		return scope, 0
	}
	for _, need := range [...]action{r.need, r.also} {
		if need != 0 && policy.allows(who, need, site) == nil {
			return nil, need
		}
	}
	return nil, 0
}

// certificateOf returns the certificate of the client, nil if it has none. It is an error if
// the certificate was good in the handshake and is not any more.
func certificateOf(c *conn, now time.Time) (*x509.Certificate, error) {
	cert, accepted := c.clientCertificate()
	switch {
	case cert == nil:
		return nil, nil
	case now.Before(cert.NotBefore), now.After(cert.NotAfter):
		return nil, &accessError{deniedExpired, "the client certificate has expired or is not valid yet"}
	case !accepted:
		return nil, &accessError{deniedInvalid, "the CA of the client certificate is no longer accepted"}
	}
	return cert, nil
}

// certificateNames returns the names of a certificate that entries of the access file can
// match, for an audit line.
func certificateNames(cert *x509.Certificate) string {
	names := alternativeNames(cert)
	if len(names) == 0 {
		return "no subject alternative name"
	}
	return clip(strings.Join(names, ", "))
}

// pathText returns an id of the path as rules and audit lines see it: decoded, also if it is
// not valid, which handlers refuse later. It returns "" if the route has no such id. A route
// without a site concerns all sites.
func pathText(ctx *fasthttp.RequestCtx, name string) string {
	raw, _ := ctx.UserValue(name).(string)
	if id, err := url.PathUnescape(raw); err == nil {
		return id
	}
	return raw
}

// identify returns who sent a request, nil if it is anonymous. A token or JWT counts more
// than cert, the client certificate, and a bad one is not replaced by the certificate.
func (a *api) identify(h *fasthttp.RequestHeader, c *conn, cert *x509.Certificate, policy *accessPolicy, now time.Time) (*actor, error) {
	credential, err := credentialOf(h)
	switch {
	case err != nil:
		return nil, err
	case credential != "":
		return a.access.identify(policy, credential, now)
	case cert != nil:
		return certificateActor(c, policy, cert, now), nil
	}
	return nil, nil
}

// connActor is the actor of a client certificate. Each connection keeps one: to match the
// names of a certificate again for each request would cost too much.
type connActor struct {
	policy *accessPolicy
	who    *actor
}

// certificateActor returns policy.certificate of the certificate of a connection.
func certificateActor(c *conn, policy *accessPolicy, cert *x509.Certificate, now time.Time) *actor {
	kept, _ := c.kept.(*connActor)
	if kept == nil || kept.policy != policy {
		kept = &connActor{policy, policy.certificate(cert, now)}
		c.kept = kept
	}
	return kept.who
}

// errTwoCredentials is the error of a request with several Authorization headers.
var errTwoCredentials = &httpError{status: fasthttp.StatusBadRequest, reason: "Authorization is specified more than once", denied: deniedMalformed}

// credentialOf returns the token of the Authorization header, "" if there is no such header.
// The schemes are Bearer (RFC 6750, section 2.1) and Basic (RFC 7617), of which the user
// name is ignored. It reads the header only: PeekAll would return trailer fields too.
func credentialOf(h *fasthttp.RequestHeader) (string, error) {
	var value []byte
	found := 0
	for key, v := range h.All() {
		if string(key) == fasthttp.HeaderAuthorization {
			value = v
			found++
		}
	}
	switch found {
	case 0:
		return "", nil
	case 1:
	default:
		return "", errTwoCredentials
	}
	scheme, rest, _ := bytes.Cut(value, []byte(" "))
	rest = bytes.Trim(rest, " ")
	switch {
	case bytes.EqualFold(scheme, []byte("Bearer")):
	case bytes.EqualFold(scheme, []byte("Basic")):
		pair := make([]byte, base64.StdEncoding.DecodedLen(len(rest)))
		n, err := base64.StdEncoding.Strict().Decode(pair, rest)
		_, password, colon := bytes.Cut(pair[:n], []byte(":"))
		if err != nil || !colon {
			return "", &accessError{deniedMalformed, "Authorization is not valid for the scheme Basic"}
		}
		rest = password
	default:
		return "", &accessError{deniedMalformed, "Authorization must have the scheme Bearer or Basic"}
	}
	if !isToken68(rest) {
		return "", &accessError{deniedMalformed, "Authorization must be `Bearer TOKEN`, without quotes or other characters"}
	}
	return string(rest), nil
}

// isToken68 reports whether b is a token68 (RFC 9110, section 11.2).
func isToken68(b []byte) bool {
	b = bytes.TrimRight(b, "=")
	for _, c := range b {
		if !isAlphanumeric(c) && strings.IndexByte("-._~+/", c) < 0 {
			return false
		}
	}
	return len(b) > 0
}

// challenge is the WWW-Authenticate of a response (RFC 6750, section 3). Basic is accepted
// but not offered: browsers would ask people for a password.
const challenge = `Bearer realm="pagewright"`

var (
	errNoCredentials = &accessError{deniedMissing, "credentials are required: send Authorization: Bearer TOKEN"}
	errNoEntry       = &accessError{deniedUnknown, "no entry of the access file fits the client certificate"}
)

// lacking returns the error of a request whose sender is known, but may not do what it needs.
// It is the same whether or not the site exists.
func lacking(need action) *httpError {
	return insufficient(deniedRights, need, "these credentials do not allow this: the action "+need.String()+" is required")
}

// mayNotReplace returns the error of an upload of a build that exists, by a client that may
// only create builds.
func mayNotReplace() *httpError {
	return insufficient(deniedExists, actionWrite, "the build exists, and these credentials may only create builds (create), not replace them (write)")
}

func insufficient(denied string, need action, text string) *httpError {
	e := newHTTPError(fasthttp.StatusForbidden, "%s", text)
	e.denied, e.header = denied, fasthttp.HeaderWWWAuthenticate
	e.value = challenge + `, error="insufficient_scope", scope="` + need.String() + `"`
	return e
}

// refusedAccess returns the response to credentials that are not accepted.
func refusedAccess(err error) *httpError {
	var refusal *httpError
	if errors.As(err, &refusal) {
		return refusal
	}
	var e *accessError
	if !errors.As(err, &e) {
		e = &accessError{deniedInvalid, "the credentials cannot be verified"}
	}
	if e.reason == deniedIssuer {
		refusal = newHTTPError(fasthttp.StatusServiceUnavailable, "%s", e.text)
		refusal.denied = e.reason
		return refusal
	}
	refusal = newHTTPError(fasthttp.StatusUnauthorized, "%s", e.text)
	refusal.denied, refusal.header, refusal.value = e.reason, fasthttp.HeaderWWWAuthenticate, challenge
	if e.reason != deniedMissing {
		refusal.value += `, error="invalid_token", error_description="` + describable(e.text) + `"`
	}
	return refusal
}

// describable returns s with the characters that an error_description may have (RFC 6750,
// section 3).
func describable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"' || r == '\\':
			return '\''
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, s)
}
