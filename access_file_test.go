package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// accessNow is the time of all tests of access.
var accessNow = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

var (
	hashA = strings.Repeat("0a", 32)
	hashB = strings.Repeat("0b", 32)
)

// fullAccessFile has every member.
const fullAccessFile = `{
"tokens":[{"name":"ci","sha256":["HASHA","HASHB"],"allow":["create","log"],"sites":["shop-*"],"expires":"2027-01-31T00:00:00Z"}],
"oidc":[{"name":"github","issuer":"https://issuer.example","audience":["pagewright"],"jwks_url":"https://keys.example/jwks",
 "ca_file":"/etc/ca.pem","token_file":"/run/token","algorithms":["RS384","EdDSA"],"max_lifetime":"30m",
 "rules":[{"claims":{"owner":["123"],"repository":["acme/site-*"],"/kubernetes.io/namespace":["web"]},"allow":["write"],"sites":["site-{1}"],"shared":false}]}],
"certificates":[{"name":"edge","san":["spiffe://acme/web"],"allow":["read"],"sites":["*"],"shared":true}],
"anonymous":[{"allow":["label"],"sites":["public-*"]}]
}`

// accessFileWith returns fullAccessFile with old, which occurs once, replaced.
func accessFileWith(t testing.TB, old, text string) []byte {
	t.Helper()
	if n := strings.Count(fullAccessFile, old); n != 1 {
		t.Fatalf("%q occurs %d times in the file", old, n)
	}
	return []byte(strings.NewReplacer("HASHA", hashA, "HASHB", hashB).Replace(strings.Replace(fullAccessFile, old, text, 1)))
}

func mustParseAccess(t testing.TB, text string) *accessPolicy {
	t.Helper()
	p, err := parseAccessFile([]byte(text))
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return p
}

func TestAccessFileIsAccepted(t *testing.T) {
	const hashes = `["HASHA","HASHB"]`
	for _, c := range []struct{ what, old, text string }{
		{"every member", hashes, hashes},
		{"white space around it", "{\n\"tokens\"", " \t\r\n{\n\"tokens\""},
		{"a newline at the end", "\n}", "\n}\n\n"},
		{"escapes", `"name":"ci"`, `"n\u0061me":"\u0063i"`},
		{"a name with letters of any script", `"ci"`, `"Küche 2"`},
		{"a name of the maximum length", `"ci"`, `"` + strings.Repeat("n", 128) + `"`},
		{"a name that another kind has", `"ci"`, `"github"`},
		{"one hash", hashes, `["HASHA"]`},
		{"a token that has expired", "2027-01-31T00:00:00Z", "2020-01-31T00:00:00+01:00"},
		{"a token that never expires", `,"expires":"2027-01-31T00:00:00Z"`, ``},
		{"write and create", `["create","log"]`, `["create","write"]`},
		{"the longest glob", `"shop-*"`, `"` + strings.Repeat("s", 127) + `*"`},
		{"all characters of ids", `"shop-*"`, `"0A.z_+~=@-*"`},
		{"an issuer on loopback", "https://issuer.example", "http://127.8.9.1:8080/realm"},
		{"an issuer on loopback, IPv6", "https://issuer.example", "http://[::1]:8080"},
		{"an issuer on localhost", "https://issuer.example", "http://localhost:8080"},
		{"keys on loopback", "https://keys.example/jwks", "http://localhost/jwks"},
		{"keys with a query", "https://keys.example/jwks", "https://keys.example/jwks?p=site"},
		{"optional strings that are empty", `"jwks_url":"https://keys.example/jwks",
 "ca_file":"/etc/ca.pem","token_file":"/run/token"`, `"jwks_url":"","ca_file":"","token_file":""`},
		{"an issuer without rules", `[{"claims":{"owner":["123"],"repository":["acme/site-*"],"/kubernetes.io/namespace":["web"]},"allow":["write"],"sites":["site-{1}"],"shared":false}]`, `[]`},
		{"a claim with slashes inside", `"owner"`, `"https://acme.example/owner"`},
		{"a JSON Pointer with escapes", `"/kubernetes.io/namespace"`, `"/a~1b~0c/"`},
		{"{1} between texts and *", `"site-{1}"`, `"a-{1}","{1}","{1}.{1}"`},
		{"{1} and *, shared", `"site-{1}"],"shared":false`, `"a-{1}-*"],"shared":true`},
		{"two claims with *, sites without {1}", `"owner":["123"],"repository":["acme/site-*"],"/kubernetes.io/namespace":["web"]},"allow":["write"],"sites":["site-{1}"]`, `"owner":["1*"],"repository":["acme/*"]},"allow":["write"],"sites":["site-a"]`},
		{"sites without *, by a claim with *", `"site-{1}"`, `"site-a"`},
		{"sites with * that are shared", `"site-{1}"],"shared":false`, `"site-*"],"shared":true`},
		{"san with *, sites that are shared", `["spiffe://acme/web"]`, `["spiffe://acme/*"]`},
		{"san and sites without *", `"sites":["*"],"shared":true`, `"sites":["a"]`},
		{"no certificates", `[{"name":"edge","san":["spiffe://acme/web"],"allow":["read"],"sites":["*"],"shared":true}]`, `[]`},
	} {
		if _, err := parseAccessFile(accessFileWith(t, c.old, c.text)); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	mustParseAccess(t, "{}")
	mustParseAccess(t, "{}"+strings.Repeat(" ", maxAccessFile-2))
}

const allowedActions = `read, create, write, log, label, delete, admin`

func TestAccessFileIsRefused(t *testing.T) {
	const (
		claims   = `{"owner":["123"],"repository":["acme/site-*"],"/kubernetes.io/namespace":["web"]}`
		tooLong  = `"` + `aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa` + `…"` // 64 characters
		hashRule = ` is not a SHA-256 as 64 hexadecimal digits in lower case`
		timeRule = ` is not a time as 2027-01-31T00:00:00Z (RFC 3339)`
		idRule   = ` cannot match any site: a site id must contain only A-Z a-z 0-9 . _ + ~ = @ -`
		httpRule = ` must be https; http is allowed only on loopback (localhost, 127.0.0.0/8, ::1)`
		algRule  = ` is not allowed; allowed: RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA`
		timeSpan = ` is not a duration above zero as 15m or 1h`
	)
	for _, c := range []struct{ old, text, want string }{
		// Members.
		{`"tokens"`, `"Tokens"`, `Tokens: unknown member; allowed here: tokens, oidc, certificates, anonymous`},
		{`"sha256"`, `"SHA256"`, `tokens[0].SHA256: unknown member; allowed here: name, sha256, allow, sites, expires`},
		{`"shop-*"]`, `"shop-*"],"shared":true`, `tokens[0].shared: unknown member; allowed here: name, sha256, allow, sites, expires`},
		{`"jwks_url"`, `"jwks url"`, `oidc[0]["jwks url"]: unknown member; allowed here: name, issuer, audience, jwks_url, ca_file, token_file, algorithms, max_lifetime, rules`},
		{`"shared":false`, `"deny":[]`, `oidc[0].rules[0].deny: unknown member; allowed here: claims, allow, sites, shared`},
		{`"san"`, `"sans"`, `certificates[0].sans: unknown member; allowed here: name, san, allow, sites, shared`},
		{`{"allow":["label"]`, `{"name":"all","allow":["label"]`, `anonymous[0].name: unknown member; allowed here: allow, sites`},
		{`{"name":"ci"`, `{"name":"a","name":"ci"`, `line 2, column 23: tokens[0].name: duplicate member`},
		{`{"name":"ci"`, `{"name":"a","n\u0061me":"ci"`, `line 2, column 23: tokens[0].name: duplicate member`},
		{`"owner":["123"]`, `"owner":["123"],"owner":["4"]`, `line 5, column 38: oidc[0].rules[0].claims.owner: duplicate member`},
		{`"certificates"`, `"tokens":[],"certificates"`, `line 6, column 1: tokens: duplicate member`},
		// Types.
		{`["create","log"]`, `"log"`, `tokens[0].allow: must be a list of strings, not a string`},
		{`["create","log"]`, `[["log"]]`, `tokens[0].allow[0]: must be a string, not a list`},
		{`"2027-01-31T00:00:00Z"`, `1801353600`, `tokens[0].expires: must be a string, not a number`},
		{`"shared":false`, `"shared":"no"`, `oidc[0].rules[0].shared: must be true or false, not a string`},
		{`{"allow":["label"]`, `{"allow":false`, `anonymous[0].allow: must be a list of strings, not false`},
		{`[{"allow":["label"],"sites":["public-*"]}]`, `{"allow":["label"],"sites":["public-*"]}`, `anonymous: must be a list of objects, not an object`},
		{`{"allow":["label"],"sites":["public-*"]}`, `"label"`, `anonymous[0]: must be an object, not a string`},
		{claims, `["repository"]`, `oidc[0].rules[0].claims: must be an object whose members are lists of strings, not a list`},
		{`["123"]`, `"123"`, `oidc[0].rules[0].claims.owner: must be a list of strings, not a string`},
		{`["123"]`, `[123]`, `oidc[0].rules[0].claims.owner[0]: must be a string, not a number`},
		{`["123"]`, `null`, `oidc[0].rules[0].claims.owner: null is not allowed; leave it out`},
		{`"2027-01-31T00:00:00Z"`, `null`, `tokens[0].expires: null is not allowed; leave it out`},
		{`"shop-*"`, `null`, `tokens[0].sites[0]: null is not allowed; leave it out`},
		// Names.
		{`"name":"ci",`, ``, `tokens[0].name: missing or empty`},
		{`"ci"`, `""`, `tokens[0].name: missing or empty`},
		{`"edge"`, `""`, `certificates[0].name: missing or empty`},
		{`"ci"`, `"c\ni"`, `tokens[0].name: "c\ni" contains a control character, or a space other than U+0020`},
		{`"ci"`, `"c\u202ei"`, `tokens[0].name: "c\u202ei" contains a control character, or a space other than U+0020`},
		{`"ci"`, `"c\u00a0i"`, `tokens[0].name: "c\u00a0i" contains a control character, or a space other than U+0020`},
		{`"ci"`, `"` + strings.Repeat("a", 129) + `"`, `tokens[0].name: ` + tooLong + ` is 129 bytes long; the maximum is 128`},
		{`"github"`, `"git:hub"`, `oidc[0].name: "git:hub" contains a colon; the service log writes name, colon and subject`},
		{`"2027-01-31T00:00:00Z"}`, `"2027-01-31T00:00:00Z"},{"name":"ci","sha256":["` + strings.Repeat("c", 64) + `"],"allow":["read"],"sites":["*"]}`, `tokens[1].name: "ci" is also the name of tokens[0]`},
		{`[{"name":"edge"`, `[{"name":"edge","san":["a"],"allow":["read"],"sites":["a"]},{"name":"edge"`, `certificates[1].name: "edge" is also the name of certificates[0]`},
		// Hashes.
		{`"sha256":["HASHA","HASHB"],`, ``, `tokens[0].sha256: missing or empty; it lists the SHA-256 of the token, and of the next one while it is replaced`},
		{`["HASHA","HASHB"]`, `[]`, `tokens[0].sha256: missing or empty; it lists the SHA-256 of the token, and of the next one while it is replaced`},
		{`"HASHB"`, `""`, `tokens[0].sha256[1]: ""` + hashRule},
		{`"HASHB"`, `"0a1b"`, `tokens[0].sha256[1]: "0a1b"` + hashRule},
		{`"HASHB"`, `"HASHB0"`, `tokens[0].sha256[1]: "0b0b…"` + hashRule},
		{`"HASHB"`, `"` + strings.Repeat("0B", 32) + `"`, `tokens[0].sha256[1]: "0B0B…"` + hashRule},
		{`"HASHB"`, `"` + strings.Repeat("xy", 32) + `"`, `tokens[0].sha256[1]: "xyxy…"` + hashRule},
		{`"HASHB"`, `"my secret password"`, `tokens[0].sha256[1]: "my s…"` + hashRule},
		{`"HASHB"`, `"` + knownToken + `"`, `tokens[0].sha256[1]: a token instead of its SHA-256; make a new token, as this one is no longer secret`},
		{`"HASHB"`, `"HASHA"`, `tokens[0].sha256[1]: the same hash as tokens[0].sha256[0]; each token belongs to one entry`},
		{`"2027-01-31T00:00:00Z"}`, `"2027-01-31T00:00:00Z"},{"name":"ci2","sha256":["HASHB"],"allow":["read"],"sites":["*"]}`, `tokens[1].sha256[0]: the same hash as tokens[0].sha256[1]; each token belongs to one entry`},
		// Expiry.
		{`2027-01-31T00:00:00Z`, ``, `tokens[0].expires: ""` + timeRule},
		{`2027-01-31T00:00:00Z`, `2027-01-31`, `tokens[0].expires: "2027-01-31"` + timeRule},
		{`2027-01-31T00:00:00Z`, `2027-01-31T00:00:00`, `tokens[0].expires: "2027-01-31T00:00:00"` + timeRule},
		{`2027-01-31T00:00:00Z`, `2027-02-31T00:00:00Z`, `tokens[0].expires: "2027-02-31T00:00:00Z"` + timeRule},
		{`2027-01-31T00:00:00Z`, `2027-01-31T0:00:00Z`, `tokens[0].expires: "2027-01-31T0:00:00Z"` + timeRule},
		{`2027-01-31T00:00:00Z`, `2027-01-31T00:00:00,5Z`, `tokens[0].expires: "2027-01-31T00:00:00,5Z"` + timeRule},
		{`2027-01-31T00:00:00Z`, `0001-01-01T00:00:00Z`, `tokens[0].expires: "0001-01-01T00:00:00Z"` + timeRule},
		// Actions.
		{`"allow":["create","log"],`, ``, `tokens[0].allow: missing or empty; allowed: ` + allowedActions},
		{`["label"]`, `[]`, `anonymous[0].allow: missing or empty; allowed: ` + allowedActions},
		{`"create"`, `"Create"`, `tokens[0].allow[0]: unknown action "Create"; allowed: ` + allowedActions},
		{`"create"`, `"*"`, `tokens[0].allow[0]: unknown action "*"; allowed: ` + allowedActions},
		{`"create"`, `"read, create"`, `tokens[0].allow[0]: unknown action "read, create"; allowed: ` + allowedActions},
		{`"create"`, `""`, `tokens[0].allow[0]: unknown action ""; allowed: ` + allowedActions},
		{`"create"`, `"` + strings.Repeat("a", 65) + `"`, `tokens[0].allow[0]: unknown action ` + tooLong + `; allowed: ` + allowedActions},
		{`"create"`, `"read ` + knownToken + `"`, `tokens[0].allow[0]: unknown action "read pwst_…"; allowed: ` + allowedActions},
		// Sites.
		{`"sites":["shop-*"],`, ``, `tokens[0].sites: missing or empty; "*" is all sites`},
		{`["public-*"]`, `[]`, `anonymous[0].sites: missing or empty; "*" is all sites`},
		{`"shop-*"`, `""`, `tokens[0].sites[0]: empty`},
		{`"shop-*"`, `"shop/*"`, `tokens[0].sites[0]: "shop/*"` + idRule},
		{`"shop-*"`, `"shop-?"`, `tokens[0].sites[0]: "shop-?"` + idRule},
		{`"shop-*"`, `"shop-{2}"`, `tokens[0].sites[0]: "shop-{2}" contains {2}, but only {1} exists`},
		{`"site-{1}"`, `"site-{1}-{2}"`, `oidc[0].rules[0].sites[0]: "site-{1}-{2}" contains {2}, but only {1} exists`},
		{`"shop-*"`, `"shop-{a}"`, `tokens[0].sites[0]: "shop-{a}"` + idRule},
		{`"shop-*"`, `"küche"`, `tokens[0].sites[0]: "küche"` + idRule},
		{`"shop-*"`, `"a","shop-* "`, `tokens[0].sites[1]: "shop-* "` + idRule},
		{`"shop-*"`, `"-*"`, `tokens[0].sites[0]: "-*" cannot match any site: a site id must begin with a letter or digit`},
		{`"shop-*"`, `"**"`, `tokens[0].sites[0]: "**" contains **, which means the same as *; write *`},
		{`"shop-*"`, `"` + strings.Repeat("a", 129) + `"`, `tokens[0].sites[0]: ` + tooLong + ` is longer than a site id, which has at most 128 characters`},
		{`"shop-*"`, `"shop-{1}"`, `tokens[0].sites[0]: "shop-{1}" contains {1}, which is allowed only where claims or san may contain *`},
		{`"public-*"`, `"{1}"`, `anonymous[0].sites[0]: "{1}" contains {1}, which is allowed only where claims or san may contain *`},
		{`acme/site-*`, `acme/site`, `oidc[0].rules[0].sites[0]: "site-{1}" contains {1}, but claims contains no * for which it could stand`},
		{`"sites":["*"]`, `"sites":["{1}"]`, `certificates[0].sites[0]: "{1}" contains {1}, but san contains no * for which it could stand`},
		{`"site-{1}"`, `"site-*"`, `oidc[0].rules[0].sites[0]: "site-*" would be shared by all clients that match oidc[0].rules[0].claims.repository; write {1} for what its first * matches, or set "shared": true`},
		{`"site-{1}"`, `"site-{1}","*"`, `oidc[0].rules[0].sites[1]: "*" would be shared by all clients that match oidc[0].rules[0].claims.repository; write {1} for what its first * matches, or set "shared": true`},
		{`["spiffe://acme/web"],"allow":["read"],"sites":["*"],"shared":true`, `["spiffe://acme/*"],"allow":["read"],"sites":["*"]`, `certificates[0].sites[0]: "*" would be shared by all clients that match certificates[0].san; write {1} for what its first * matches, or set "shared": true`},
		{`["acme/site-*"]`, `["acme/site-*","acme/main"]`, `oidc[0].rules[0].claims.repository[1]: "acme/main" contains no *, so {1} in sites would have no value; move it to a rule of its own`},
		{`"site-{1}"`, `"site-{1}-*"`, `oidc[0].rules[0].sites[0]: "site-{1}-*" would also match the sites of longer values of {1}; leave out the *, or set "shared": true`},
		{`["acme/site-*"]`, `["acme/site-*","partner/site-*"]`, `oidc[0].rules[0].claims.repository: different values could give the same {1}; write one value with one *, or set "shared": true`},
		{`["acme/site-*"]`, `["acme/*-*"]`, `oidc[0].rules[0].claims.repository: different values could give the same {1}; write one value with one *, or set "shared": true`},
		{`"owner":["123"],"repository":["acme/site-*"],"/kubernetes.io/namespace":["web"]},"allow":["write"],"sites":["site-{1}"]`, `"repository":["*"]},"allow":["write"],"sites":["site"]`, `oidc[0].rules[0].sites[0]: "site" would be open to every client: each value of oidc[0].rules[0].claims.repository is accepted; list the values, or set "shared": true`},
		{`["123"]`, `["123","4*"]`, `oidc[0].rules[0].sites[0]: "site-{1}" contains {1}, which would depend on the order of the claims: only one claim may contain *, but both oidc[0].rules[0].claims.owner and oidc[0].rules[0].claims.repository do`},
		{`"owner":["123"],"repository":["acme/site-*"]`, `"repository":["acme/site-*"],"owner":["4*"]`, `oidc[0].rules[0].sites[0]: "site-{1}" contains {1}, which would depend on the order of the claims: only one claim may contain *, but both oidc[0].rules[0].claims.owner and oidc[0].rules[0].claims.repository do`},
		// Claims and names of certificates.
		{`"claims":` + claims + `,`, ``, `oidc[0].rules[0].claims: missing or empty; all JWTs of the issuer would match`},
		{claims, `{}`, `oidc[0].rules[0].claims: missing or empty; all JWTs of the issuer would match`},
		{`"owner"`, `""`, `oidc[0].rules[0].claims[""]: the name of a claim is empty`},
		{`"owner"`, `"/a~2"`, `oidc[0].rules[0].claims["/a~2"]: not a JSON Pointer: ~ must be followed by 0 or 1 (RFC 6901)`},
		{`"owner"`, `"/a~"`, `oidc[0].rules[0].claims["/a~"]: not a JSON Pointer: ~ must be followed by 0 or 1 (RFC 6901)`},
		{`["123"]`, `[]`, `oidc[0].rules[0].claims.owner: missing or empty; it lists the values of which the claim must have one`},
		{`["web"]`, `[""]`, `oidc[0].rules[0].claims["/kubernetes.io/namespace"][0]: empty`},
		{`acme/site-*`, `acme/**`, `oidc[0].rules[0].claims.repository[0]: "acme/**" contains **, which means the same as *; write *`},
		{`"san":["spiffe://acme/web"],`, ``, `certificates[0].san: missing or empty; it lists subject alternative names, of which a certificate must have one`},
		{`["spiffe://acme/web"]`, `[]`, `certificates[0].san: missing or empty; it lists subject alternative names, of which a certificate must have one`},
		{`"spiffe://acme/web"`, `""`, `certificates[0].san[0]: empty`},
		// Issuers.
		{`"issuer":"https://issuer.example",`, ``, `oidc[0].issuer: missing or empty`},
		{`https://issuer.example`, `http://issuer.example`, `oidc[0].issuer: "http://issuer.example"` + httpRule},
		{`https://issuer.example`, `http://localhost.evil.example`, `oidc[0].issuer: "http://localhost.evil.example"` + httpRule},
		{`https://issuer.example`, `http://127.0.0.1.evil.example`, `oidc[0].issuer: "http://127.0.0.1.evil.example"` + httpRule},
		{`https://issuer.example`, `http://10.0.0.1`, `oidc[0].issuer: "http://10.0.0.1"` + httpRule},
		{`https://issuer.example`, `issuer.example`, `oidc[0].issuer: "issuer.example" is not an https URL`},
		{`https://issuer.example`, `https:issuer.example`, `oidc[0].issuer: "https:issuer.example" is not an https URL`},
		{`https://issuer.example`, `https://:443`, `oidc[0].issuer: "https://:443" is not an https URL`},
		{`https://issuer.example`, `ftp://localhost`, `oidc[0].issuer: "ftp://localhost" is not an https URL`},
		{`https://issuer.example`, ` https://issuer.example`, `oidc[0].issuer: " https://issuer.example" is not an https URL`},
		{`https://issuer.example`, `https://a:secret@issuer.example`, `oidc[0].issuer: a URL here must not contain a user name or password`},
		{`https://issuer.example`, `https://a:sec ret@issuer.example`, `oidc[0].issuer: a URL here must not contain a user name or password`},
		{`https://issuer.example`, `https://issuer.example?a`, `oidc[0].issuer: "https://issuer.example?a" contains a query or a fragment; an issuer has neither`},
		{`https://keys.example/jwks`, `http://keys.example/jwks`, `oidc[0].jwks_url: "http://keys.example/jwks"` + httpRule},
		{`https://keys.example/jwks`, `https://keys.example/jwks#a`, `oidc[0].jwks_url: "https://keys.example/jwks#a" is not an https URL`},
		{`[{"name":"github"`, `[{"name":"g","issuer":"https://issuer.example","audience":["a"]},{"name":"github"`, `oidc[1].issuer: "https://issuer.example" is also the issuer of oidc[0]; put the rules of both into one entry`},
		{`["pagewright"]`, `[]`, `oidc[0].audience: missing or empty; it lists the audiences of which a JWT must have one`},
		{`"audience":["pagewright"],`, ``, `oidc[0].audience: missing or empty; it lists the audiences of which a JWT must have one`},
		{`["pagewright"]`, `["pagewright",""]`, `oidc[0].audience[1]: empty`},
		{`"/etc/ca.pem"`, `"ca.pem"`, `oidc[0].ca_file: "ca.pem" is not an absolute path`},
		{`"/run/token"`, `"../token"`, `oidc[0].token_file: "../token" is not an absolute path`},
		{`"/run/token"`, `"/run\u0000/token"`, `oidc[0].token_file: "/run\x00/token" contains a zero byte`},
		{`["RS384","EdDSA"]`, `[]`, `oidc[0].algorithms: empty; leave it out for RS256 and ES256`},
		{`"EdDSA"`, `"HS256"`, `oidc[0].algorithms[1]: "HS256"` + algRule},
		{`"EdDSA"`, `"none"`, `oidc[0].algorithms[1]: "none"` + algRule},
		{`"EdDSA"`, `"rs256"`, `oidc[0].algorithms[1]: "rs256"` + algRule},
		{`"30m"`, `"0s"`, `oidc[0].max_lifetime: "0s"` + timeSpan},
		{`"30m"`, `"-1h"`, `oidc[0].max_lifetime: "-1h"` + timeSpan},
		{`"30m"`, `"1d"`, `oidc[0].max_lifetime: "1d"` + timeSpan},
		{`"30m"`, `""`, `oidc[0].max_lifetime: ""` + timeSpan},
	} {
		p, err := parseAccessFile(accessFileWith(t, c.old, c.text))
		if err == nil || err.Error() != c.want || p != nil {
			t.Errorf("%s\n as %s\n got  %v\n want %v", c.old, c.text, err, c.want)
		}
	}
}

func TestAccessFileIsNotJSON(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", `the file is empty`},
		{" \n", `the file is empty`},
		{"\uFEFF{}", `line 1, column 1: the file begins with a byte order mark; save it as UTF-8 without one`},
		{"[]", `line 1, column 1: not a JSON object, which begins with {`},
		{"\n tokens: []", `line 2, column 2: not a JSON object, which begins with {`},
		{"null", `line 1, column 1: not a JSON object, which begins with {`},
		{`"tokens"`, `line 1, column 1: not a JSON object, which begins with {`},
		{"{}\n{}", `line 2, column 1: trailing data after the end of the JSON text`},
		{"{} x", `line 1, column 4: trailing data after the end of the JSON text`},
		{"{}\x00", `line 1, column 3: trailing data after the end of the JSON text`},
		{"{\n\"tokens\": [", `line 2, column 12: tokens: the file ends too early`},
		{"{\n\"tokens\": [{\"name\": \"c", `line 2, column 23: tokens[0].name: the file ends too early`},
		{"{\n\"tokens\": [{}\n,]}", `line 3, column 1: tokens: a comma before ] or }`},
		{"{\n\"tokens\": [{},\n{\"name\":\"ä\" \"sha256\":[]}]}", `line 3, column 13: tokens[1]: invalid character '"' after object value (expecting ',' or '}')`},
		{`{"tokens":[],}`, `line 1, column 13: a comma before ] or }`},
		{"{\"tokens\":[{}, \n]}", `line 1, column 14: tokens: a comma before ] or }`},
		{`{"tokens":[{},,{}]}`, `line 1, column 15: tokens[1]: invalid character ',' at start of value`},
		{`{'tokens':[]}`, `line 1, column 2: invalid character '\'' at start of value`},
		{"{\"tokens\":[] // none\n}", `line 1, column 14: invalid character '/' after object value (expecting ',' or '}')`},
		{"{\"tokens\":[{\"name\":\"\xff\"}]}", `line 1, column 21: tokens[0].name: invalid UTF-8`},
		{`{"tokens":[{"name":"\ud800"}]}`, "line 1, column 21: tokens[0].name: invalid surrogate pair `\\ud800\"}]}` in string"},
		{`{"` + knownToken + `":NaN}`, `line 1, column 59: ["pwst_…"]: invalid character 'N' at start of value`},
		{`{"` + knownToken + `":1}`, `["pwst_…"]: unknown member; allowed here: tokens, oidc, certificates, anonymous`},
		{"{}" + strings.Repeat(" ", maxAccessFile-1), `the file is 1048577 bytes long; the maximum is 1048576`},
	} {
		p, err := parseAccessFile([]byte(c.text))
		if err == nil || err.Error() != c.want || p != nil {
			t.Errorf("%.80q\n got  %v\n want %v", c.text, err, c.want)
		}
	}
}

// FuzzParseAccessFile: what is accepted keeps the rules of the file, and errors are one short line
// without secrets.
func FuzzParseAccessFile(f *testing.F) {
	f.Add([]byte(strings.NewReplacer("HASHA", hashA, "HASHB", hashB).Replace(fullAccessFile)))
	f.Add([]byte(`{"anonymous":[{"allow":["read","admin"],"sites":["*"]}]}`))
	f.Add([]byte(`{"tokens":[{"name":"` + knownToken + `"}]}`))
	f.Add([]byte("\uFEFF{}"))
	whole := regexp.MustCompile(tokenPrefix + `[A-Za-z0-9_-]{43}`)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parseAccessFile(data)
		if err != nil {
			text := err.Error()
			bad := strings.IndexFunc(text, func(r rune) bool { return !unicode.IsGraphic(r) }) >= 0
			if p != nil || bad || !utf8.ValidString(text) || whole.MatchString(text) {
				t.Errorf("%q", text)
			}
			return
		}
		for _, who := range p.tokens {
			checkFuzzedRules(t, who.rules, false)
			if who.kind != actorToken || who.name == "" {
				t.Errorf("%+v", who)
			}
		}
		for _, o := range p.issuers() {
			if p.issuer(o.issuer) != o || len(o.audience) == 0 || len(o.algorithms) == 0 || o.maxLifetime <= 0 || o.name == "" {
				t.Errorf("%+v", o)
			}
			for _, rule := range o.granted {
				checkFuzzedRules(t, []accessRule{rule.accessRule}, true)
				if len(rule.claims) == 0 {
					t.Errorf("%+v", rule)
				}
			}
		}
		for _, entry := range p.certificates {
			checkFuzzedRules(t, []accessRule{entry.accessRule}, true)
		}
		checkFuzzedRules(t, p.anonymous, false)
		if len(p.anonymous) > 0 && !bytes.Contains(data, []byte("sites")) && !bytes.Contains(data, []byte(`\u`)) {
			t.Errorf("%+v", p.anonymous)
		}
	})
}

func checkFuzzedRules(t *testing.T, rules []accessRule, filling bool) {
	t.Helper()
	glob := regexp.MustCompile(`^(\{1\}|[*A-Za-z0-9])(\{1\}|[*A-Za-z0-9._+~=@-])*$`)
	for _, rule := range rules {
		if rule.allow == 0 || len(rule.sites) == 0 || rule.place == "" || rule.allow&actionWrite != 0 && rule.allow&actionCreate == 0 {
			t.Errorf("%+v", rule)
		}
		for _, site := range rule.sites {
			if !glob.MatchString(site) || strings.Contains(site, filledIn) && !filling {
				t.Errorf("%+v", rule)
			}
		}
	}
}
