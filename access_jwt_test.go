package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// jwtRig is a verifier with a real issuer.
type jwtRig struct {
	*jwtVerifier
	t      testing.TB
	issuer *testIssuer
	entry  *oidcIssuer
	policy *accessPolicy
	now    time.Time
}

func startJWTRig(t testing.TB, keys ...signingKey) *jwtRig {
	r := &jwtRig{t: t, issuer: startIssuer(t, keys...), now: time.Now().Truncate(time.Second)}
	r.entry = &oidcIssuer{name: "ci", issuer: r.issuer.URL, audience: []string{"pagewright", "builds"}, maxLifetime: time.Hour,
		algorithms: strings.Fields("RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 EdDSA"),
		granted:    []claimRule{{accessRule{"here", actionRead, []string{"site"}}, []claimMatch{{"sub", []string{"sub"}, []string{"repo:*"}}}, 0}}}
	r.policy = policyOf(r.entry)
	r.jwtVerifier = newJWTVerifier(openKeys(t, slowTimes, r.policy.issuers()...))
	return r
}

// policyOf returns a policy of copies of the issuers.
func policyOf(issuers ...*oidcIssuer) *accessPolicy {
	p := &accessPolicy{}
	for _, i := range issuers {
		i := *i
		p.oidc = append(p.oidc, &i)
	}
	return p
}

// claims are valid ones, with changes: names and values in turn. A value of nil removes the claim.
func (r *jwtRig) claims(changes ...any) jwt.MapClaims {
	c := jwt.MapClaims{"iss": r.issuer.URL, "aud": "pagewright", "sub": "repo:acme/site", "exp": r.now.Unix() + 300, "iat": r.now.Unix()}
	for i := 0; i < len(changes); i += 2 {
		if c[changes[i].(string)] = changes[i+1]; changes[i+1] == nil {
			delete(c, changes[i].(string))
		}
	}
	return c
}

// check verifies a token and returns the reason and text of the refusal, or the name of the actor.
func (r *jwtRig) check(token string) string {
	r.t.Helper()
	who, err := r.verify(token, r.policy, r.now)
	if err == nil {
		return who.name
	}
	var refused *accessError
	if who != nil || !errors.As(err, &refused) || !slices.Contains(deniedReasons[:], refused.reason) || !isDescription(refused.text) {
		r.t.Errorf("actor %v, error %#v", who, err)
		return ""
	}
	return refused.reason + ": " + refused.text
}

// isDescription reports whether a text may stand in error_description (RFC 6750, 3).
func isDescription(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool { return r < 0x20 || r > 0x7e || r == '"' || r == '\\' })
}

const (
	noAudience  = "invalid: the token is not for this audience"
	noAlgorithm = "invalid: the algorithm of the token is not accepted"
	noIssuer    = "invalid: the issuer of the token is not accepted"
	noKey       = "invalid: no key of the issuer fits the token"
	noSubject   = "invalid: the subject of the token is missing or has control characters"
	badSign     = "invalid: the signature of the token is wrong"
	noJWT       = "malformed: the token is not a JWT"
	expired     = "expired: the token has expired"
	tooEarly    = "expired: the token is not valid yet"
	tooLong     = "invalid: the token is valid for longer than max_lifetime allows"
	issuerDown  = "issuer_down: the keys of the token's issuer cannot be read at present"
	accepted    = "ci:repo:acme/site"
)

// TestJWTClaims: the rule for each claim. All tokens have a good signature. A difference is in
// seconds from now; skew is 60 s, max_lifetime an hour.
func TestJWTClaims(t *testing.T) {
	key := signingKey{"k", "ES256", p256Key()}
	r := startJWTRig(t, key)
	at := func(seconds int64) int64 { return r.now.Unix() + seconds }
	for _, c := range []struct {
		what    string
		changes []any
		want    string
	}{
		{"nothing changed", nil, accepted},

		{"iss of another issuer", []any{"iss", "https://evil.example"}, noIssuer},
		{"iss with a slash more", []any{"iss", r.issuer.URL + "/"}, noIssuer},
		{"iss in upper case", []any{"iss", strings.ToUpper(r.issuer.URL)}, noIssuer},
		{"iss empty", []any{"iss", ""}, noIssuer},
		{"iss an array", []any{"iss", []string{r.issuer.URL}}, noIssuer},
		{"no iss", []any{"iss", nil}, noIssuer},

		{"the second audience", []any{"aud", "builds"}, accepted},
		{"one of two audiences", []any{"aud", []string{"other", "builds"}}, accepted},
		{"another audience", []any{"aud", "other"}, noAudience},
		{"other audiences", []any{"aud", []string{"other", "others"}}, noAudience},
		{"an audience that begins so", []any{"aud", "pagewright2"}, noAudience},
		{"an audience in upper case", []any{"aud", "PAGEWRIGHT"}, noAudience},
		{"no audience", []any{"aud", nil}, noAudience},
		{"an empty audience", []any{"aud", ""}, noAudience},
		{"no audience in an array", []any{"aud", []string{}}, noAudience},
		{"a number in the array of audiences", []any{"aud", []any{"pagewright", 1}}, noAudience},
		{"an object as audience", []any{"aud", map[string]any{"pagewright": 1}}, noAudience},

		{"exp +1", []any{"exp", at(1)}, accepted},
		{"exp now", []any{"exp", at(0)}, accepted},
		{"exp -59", []any{"exp", at(-59), "iat", at(-300)}, accepted},
		{"exp -60", []any{"exp", at(-60), "iat", at(-300)}, expired},
		{"exp -61", []any{"exp", at(-61), "iat", at(-300)}, expired},
		{"exp 0", []any{"exp", 0, "iat", nil}, expired},
		{"exp -59.5, a fraction", []any{"exp", float64(at(-59)) - 0.5, "iat", at(-300)}, expired},
		{"no exp", []any{"exp", nil}, "invalid: the token has no expiry"},
		{"exp null", []any{"exp", json.RawMessage("null")}, "invalid: exp of the token is not a time"},
		{"exp a string", []any{"exp", fmt.Sprint(at(300))}, "invalid: exp of the token is not a time"},
		{"exp negative", []any{"exp", -1}, "invalid: exp of the token is not a time"},
		{"exp 1e999", []any{"exp", json.RawMessage("1e999")}, "invalid: exp of the token is not a time"},
		{"exp 1e300", []any{"exp", json.RawMessage("1e300")}, "invalid: exp of the token is not a time"},
		{"exp 1e19, beyond 64 bits", []any{"exp", json.RawMessage("1e19")}, "invalid: exp of the token is not a time"},
		{"exp in milliseconds", []any{"exp", at(300) * 1000}, "invalid: exp of the token is not a time"},

		{"nbf now", []any{"nbf", at(0)}, accepted},
		{"nbf +60", []any{"nbf", at(60)}, accepted},
		{"nbf +61", []any{"nbf", at(61)}, tooEarly},
		{"nbf a string", []any{"nbf", "now"}, "invalid: nbf of the token is not a time"},
		{"nbf 1e999", []any{"nbf", json.RawMessage("1e999")}, "invalid: nbf of the token is not a time"},
		{"iat +60", []any{"iat", at(60)}, accepted},
		{"iat +61", []any{"iat", at(61)}, tooEarly},
		{"iat a string", []any{"iat", "now"}, "invalid: iat of the token is not a time"},
		{"no iat", []any{"iat", nil}, accepted},

		{"a life of an hour", []any{"exp", at(3600)}, accepted},
		{"a life of an hour and the skew", []any{"exp", at(3660)}, accepted},
		{"a life of a second more", []any{"exp", at(3661)}, tooLong},
		{"a life of a second more, most of it over", []any{"exp", at(61), "iat", at(-3600)}, tooLong},
		{"a life of an hour and the skew, most of it over", []any{"exp", at(60), "iat", at(-3600)}, accepted},
		{"a long life without iat", []any{"exp", at(3661), "iat", nil}, tooLong},
		{"ten years", []any{"exp", at(10 * 365 * 86400)}, tooLong},

		{"no sub", []any{"sub", nil}, noSubject},
		{"an empty sub", []any{"sub", ""}, noSubject},
		{"a number as sub", []any{"sub", 5}, noSubject},
		{"a newline in sub", []any{"sub", "a\nb"}, noSubject},
		{"an escape in sub", []any{"sub", "a\x1b[31m"}, noSubject},
		{"a text direction in sub", []any{"sub", "a\u202eb"}, noSubject},
		{"200 bytes of sub", []any{"sub", strings.Repeat("s", 200)}, "ci:" + strings.Repeat("s", 200)},
		{"201 bytes of sub", []any{"sub", strings.Repeat("s", 201)}, "ci:" + strings.Repeat("s", 200)},
		{"sub cut within a letter", []any{"sub", strings.Repeat("s", 199) + "é"}, "ci:" + strings.Repeat("s", 199)},
		{"sub of letters of two bytes", []any{"sub", strings.Repeat("é", 101)}, "ci:" + strings.Repeat("é", 100)},
	} {
		if got := r.check(signJWT(key, nil, r.claims(c.changes...))); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	if n := r.issuer.fetches.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
}

// TestJWTUntil: an actor is valid for as long as its token.
func TestJWTUntil(t *testing.T) {
	key := signingKey{"k", "ES256", p256Key()}
	r := startJWTRig(t, key)
	token := signJWT(key, nil, r.claims())
	who, err := r.verify(token, r.policy, r.now)
	if err != nil || who.kind != actorOIDC || len(who.rules) != 1 || !who.until.Equal(r.now.Add(360*time.Second)) {
		t.Fatalf("%+v %v", who, err)
	}
	r.now = who.until.Add(-time.Nanosecond)
	if got := r.check(token); got != accepted {
		t.Error(got)
	}
	r.now = who.until
	if got := r.check(token); got != expired {
		t.Error("the cache accepts what has expired:", got)
	}
}

// TestJWTHeader: which headers are accepted.
func TestJWTHeader(t *testing.T) {
	key := signingKey{"k", "ES256", p256Key()}
	r := startJWTRig(t, key)
	const noType = "invalid: the type of the token is not JWT or at+jwt"
	for _, c := range []struct {
		header map[string]any
		want   string
	}{
		{nil, accepted},
		{map[string]any{"typ": nil}, accepted},
		{map[string]any{"typ": "jwt"}, accepted},
		{map[string]any{"typ": "at+jwt"}, accepted},
		{map[string]any{"typ": "application/at+JWT"}, accepted},
		{map[string]any{"typ": "dpop+jwt"}, noType},
		{map[string]any{"typ": "logout+jwt"}, noType},
		{map[string]any{"typ": ""}, noType},
		{map[string]any{"typ": 1}, noType},
		{map[string]any{"crit": []string{"b64"}, "b64": false}, "invalid: the token has a critical header, which is not supported"},
		{map[string]any{"crit": []string{}}, "invalid: the token has a critical header, which is not supported"},
		{map[string]any{"kid": 1}, "malformed: the key id of the token is not a string"},
		{map[string]any{"kid": "../../k"}, noKey},
		{map[string]any{"kid": "K"}, noKey},
		{map[string]any{"kid": nil}, accepted},
		{map[string]any{"kid": ""}, accepted},
		{map[string]any{"jku": "http://127.0.0.1:1/", "jwk": jwkOf(signingKey{"k", "ES256", p256Key()})}, accepted},
	} {
		if got := r.check(signJWT(key, c.header, r.claims())); got != c.want {
			t.Errorf("%v: %s, want %s", c.header, got, c.want)
		}
	}
}

// TestJWTKeyInHeader: a key that the token brings itself is not used.
func TestJWTKeyInHeader(t *testing.T) {
	r := startJWTRig(t, signingKey{"k", "RS256", rsaKey()})
	own := signingKey{"own", "RS256", otherRSAKey()}
	evil := startIssuer(t, own)
	for _, header := range []map[string]any{{"jwk": jwkOf(own)}, {"jku": evil.URL + "/keys"}, {"x5u": evil.URL + "/keys"}, {"kid": "k", "jwk": jwkOf(own)}} {
		if got := r.check(signJWT(own, header, r.claims())); got != noKey && got != badSign {
			t.Errorf("%v: %s", header, got)
		}
	}
	if n := evil.fetches.Load(); n != 0 {
		t.Errorf("%d fetches of what tokens name", n)
	}
}

// TestJWTAlgorithms: each algorithm verifies, with a key id and without one, if the entry has it.
func TestJWTAlgorithms(t *testing.T) {
	var keys []signingKey
	for algorithm, private := range map[string]func() (k signingKey){
		"RS256": func() signingKey { return signingKey{"rs", "", rsaKey()} },
		"RS384": func() signingKey { return signingKey{"rs384", "", rsaKey()} },
		"RS512": func() signingKey { return signingKey{"rs512", "", rsaKey()} },
		"PS256": func() signingKey { return signingKey{"ps", "", otherRSAKey()} },
		"PS384": func() signingKey { return signingKey{"ps384", "", otherRSAKey()} },
		"PS512": func() signingKey { return signingKey{"ps512", "", otherRSAKey()} },
		"ES256": func() signingKey { return signingKey{"p256", "", p256Key()} },
		"ES384": func() signingKey { return signingKey{"p384", "", p384Key()} },
		"EdDSA": func() signingKey { return signingKey{"ed", "", edKey()} },
	} {
		k := private()
		k.alg = algorithm
		keys = append(keys, k)
	}
	r := startJWTRig(t, keys...)
	for _, k := range keys {
		for _, header := range []map[string]any{nil, {"kid": nil}} {
			if got := r.check(signJWT(k, header, r.claims())); got != accepted {
				t.Errorf("%s %v: %s", k.alg, header, got)
			}
		}
		less := *r.entry
		less.algorithms = slices.DeleteFunc(slices.Clone(r.entry.algorithms), func(a string) bool { return a == k.alg })
		whole := r.policy
		r.policy = policyOf(&less)
		if got := r.check(signJWT(k, nil, r.claims())); got != noAlgorithm {
			t.Errorf("%s without it in the entry: %s", k.alg, got)
		}
		r.policy = whole
	}
}

// rawJWT joins a header and claims that no library would sign.
func rawJWT(header, claims any, signature func(text string) []byte) string {
	b64 := base64.RawURLEncoding.EncodeToString
	text := b64(mustMake(json.Marshal(header))) + "." + b64(mustMake(json.Marshal(claims)))
	return text + "." + b64(signature(text))
}

// TestJWTAlgorithmConfusion: a token is verified by the kind of the key, whatever its header says,
// even if the entry lists algorithms that it must not.
func TestJWTAlgorithmConfusion(t *testing.T) {
	rs, ps := signingKey{"rs", "RS256", rsaKey()}, signingKey{"any", "", otherRSAKey()}
	es, es384, ed := signingKey{"es", "ES256", p256Key()}, signingKey{"es384", "", p384Key()}, signingKey{"ed", "", edKey()}
	r := startJWTRig(t, rs, ps, es, es384, ed)
	for _, careless := range []bool{false, true} {
		if careless {
			r.entry.algorithms = append(r.entry.algorithms, "HS256", "HS384", "HS512", "none", "None", "NONE", "nOnE", "ES512", "")
			r.policy = policyOf(r.entry)
		}
		refused := func(what, token string) {
			t.Helper()
			if got := r.check(token); !strings.HasPrefix(got, "invalid: ") && !strings.HasPrefix(got, "malformed: ") {
				t.Errorf("careless %v, %s: %s", careless, what, got)
			}
		}
		for _, k := range []signingKey{rs, ps, es, es384, ed} {
			der := mustMake(x509.MarshalPKIXPublicKey(k.private.Public()))
			jwk := jwkOf(k)
			secrets := map[string][]byte{"DER": der, "PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "nothing": {}, "JWK": mustMake(json.Marshal(jwk))}
			for _, member := range []string{"n", "x"} {
				if text, ok := jwk[member].(string); ok {
					secrets[member] = []byte(text)
					secrets[member+" decoded"] = mustMake(base64.RawURLEncoding.DecodeString(text))
				}
			}
			for what, secret := range secrets {
				for _, kid := range []any{k.kid, nil} {
					refused("HS256 with the public key of "+k.kid+" as "+what, rawJWT(map[string]any{"alg": "HS256", "kid": kid}, r.claims(),
						func(text string) []byte { return hmacOf(secret, text) }))
					header := map[string]any{"alg": "HS256"}
					refused("HS256 without a kid", rawJWT(header, r.claims(), func(text string) []byte { return hmacOf(secret, text) }))
				}
			}
		}
		for _, alg := range []any{"none", "None", "NONE", "nOnE", " none", "none ", "", nil, 0, []string{"none"}, "RS256\x00", "rs256"} {
			for _, kid := range []string{"rs", "es", "absent"} {
				for _, signature := range []string{"", "x"} {
					refused(fmt.Sprintf("alg %q", alg), rawJWT(map[string]any{"alg": alg, "kid": kid}, r.claims(), func(string) []byte { return []byte(signature) }))
				}
			}
			refused(fmt.Sprintf("alg %q without kid", alg), rawJWT(map[string]any{"alg": alg}, r.claims(), func(string) []byte { return nil }))
		}
		refused("no alg", rawJWT(map[string]any{"kid": "rs"}, r.claims(), func(string) []byte { return nil }))
		for _, kid := range []any{"es", "es384", "ed", nil} {
			refused("RS512 with the kid of another kind", signJWT(signingKey{"", "RS512", rsaKey()}, map[string]any{"kid": kid}, r.claims()))
			refused("PS256 by a key for RS256", signJWT(signingKey{"", "PS256", rsaKey()}, map[string]any{"kid": kid}, r.claims()))
		}
		refused("PS256 by a key for RS256 with its kid", signJWT(signingKey{"rs", "PS256", rsaKey()}, nil, r.claims()))
		refused("ES256 with the kid of an RSA key", signJWT(signingKey{"rs", "ES256", p256Key()}, nil, r.claims()))
		refused("ES256 with the kid of P-384", signJWT(signingKey{"es384", "ES256", p256Key()}, nil, r.claims()))
		refused("EdDSA with the kid of P-256", signJWT(signingKey{"es", "EdDSA", edKey()}, nil, r.claims()))
		refused("RS256 by another key with the kid", signJWT(signingKey{"rs", "RS256", otherRSAKey()}, nil, r.claims()))
		// The key fits any RSA algorithm, so this one is right.
		if got := r.check(signJWT(signingKey{"any", "PS256", otherRSAKey()}, nil, r.claims())); got != accepted {
			t.Error("PS256:", got)
		}
	}
}

func hmacOf(secret []byte, text string) []byte {
	h := hmac.New(sha256.New, secret)
	io.WriteString(h, text)
	return h.Sum(nil)
}

// TestJWTAltered: any change of any byte of a token makes it invalid.
func TestJWTAltered(t *testing.T) {
	key := signingKey{"k", "EdDSA", edKey()}
	r := startJWTRig(t, key)
	token := signJWT(key, nil, r.claims())
	if got := r.check(token); got != accepted {
		t.Fatal(got)
	}
	for i := range token {
		for _, b := range []byte{token[i] ^ 1, token[i] ^ 0x20, '.', 0} {
			if altered := token[:i] + string(b) + token[i+1:]; altered != token {
				if got := r.check(altered); got == accepted {
					t.Errorf("byte %d from %q to %q: accepted", i, token[i], b)
				}
			}
		}
		if got := r.check(token[:i]); got == accepted {
			t.Errorf("cut to %d bytes: accepted", i)
		}
	}
	// The last letter has bits that encode nothing. With any other value there would be more than one text for a token.
	last := len(token) - 1
	for _, b := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=" {
		if altered := token[:last] + string(b); altered != token && r.check(altered) == accepted {
			t.Errorf("%q as the last letter in place of %q: accepted", b, token[last])
		}
	}
}

// TestJWTForm: what is no JWT, or too large.
func TestJWTForm(t *testing.T) {
	key := signingKey{"k", "EdDSA", edKey()}
	r := startJWTRig(t, key)
	good := signJWT(key, nil, r.claims())
	parts := strings.Split(good, ".")
	ofSize := func(size int) string {
		// Three bytes of padding are four of base64.
		for pad := (size - len(good)) * 3 / 4; ; pad-- {
			if token := signJWT(key, nil, r.claims("pad", strings.Repeat("x", pad))); len(token) <= size {
				return token
			}
		}
	}
	const tooLarge = "malformed: the token is larger than 8 KiB"
	for _, c := range []struct{ what, token, want string }{
		{"nothing", "", noJWT},
		{"one part", parts[0], noJWT},
		{"two parts", parts[0] + "." + parts[1], noJWT},
		{"four parts", good + ".x", noJWT},
		{"five parts, as JWE", good + ".x.x", noJWT},
		{"dots", strings.Repeat(".", 8000), noJWT},
		{"empty parts", "..", noJWT},
		{"a space behind", good + " ", noJWT},
		{"a newline behind", good + "\n", noJWT},
		{"padding", parts[0] + "=." + parts[1] + "." + parts[2], noJWT},
		{"a header of null", "bnVsbA." + parts[1] + "." + parts[2], noAlgorithm},
		{"claims of null", parts[0] + ".bnVsbA." + parts[2], noIssuer},
		{"claims that are an array", parts[0] + ".W10." + parts[2], noJWT},
		{"a header of deep arrays", base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("[", 5000))) + "..", noJWT},
		{"nearly 8 KiB", ofSize(8192), accepted},
		{"more than 8 KiB", ofSize(8192) + strings.Repeat("A", 8), tooLarge},
		{"16 MiB", strings.Repeat("a.", 8<<20), tooLarge},
	} {
		if got := r.check(c.token); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}

// TestJWTUnknownIssuer: a token of an issuer without an entry causes no request.
func TestJWTUnknownIssuer(t *testing.T) {
	r := startJWTRig(t, signingKey{"k", "ES256", p256Key()})
	evil := startIssuer(t, signingKey{"k", "RS256", rsaKey()})
	evil.respond(func(http.ResponseWriter, *http.Request) { t.Error("the service asked an issuer that it does not know") })
	if got := r.check(signJWT(signingKey{"k", "RS256", rsaKey()}, nil, r.claims("iss", evil.URL))); got != noIssuer {
		t.Error(got)
	}
}

// TestJWTOfAnotherIssuer: a key verifies tokens of its own issuer only.
func TestJWTOfAnotherIssuer(t *testing.T) {
	key, other := signingKey{"k", "ES256", p256Key()}, signingKey{"k", "RS256", rsaKey()}
	r := startJWTRig(t, key)
	second := startIssuer(t, other)
	entry := *r.entry
	entry.name, entry.issuer = "second", second.URL
	r.policy = policyOf(r.entry, &entry)
	r.keys.use(r.policy.issuers())
	for _, c := range []struct {
		key  signingKey
		iss  string
		want string
	}{
		{key, r.issuer.URL, accepted},
		{other, second.URL, "second:repo:acme/site"},
		{key, second.URL, noKey},
		{other, r.issuer.URL, noKey},
	} {
		if got := r.check(signJWT(c.key, nil, r.claims("iss", c.iss))); got != c.want {
			t.Errorf("%s of %s: %s, want %s", c.key.alg, c.iss, got, c.want)
		}
	}
}

// TestJWTRotation: a new key is fetched when the first token needs it; a key that the issuer
// withdrew verifies no more, not even what was verified before.
func TestJWTRotation(t *testing.T) {
	for _, kids := range [][2]string{{"first", "second"}, {"", ""}} {
		first, second := signingKey{kids[0], "RS256", rsaKey()}, signingKey{kids[1], "RS256", otherRSAKey()}
		r := startJWTRig(t, first)
		token := signJWT(first, nil, r.claims())
		if got := r.check(token); got != accepted {
			t.Fatal(got)
		}
		r.issuer.rotate(first, second)
		if got := r.check(signJWT(second, nil, r.claims())); got != accepted {
			t.Errorf("%q: %s", kids, got)
		}
		if got := r.check(token); got != accepted {
			t.Errorf("%q: %s", kids, got)
		}
		r.issuer.rotate(second)
		r.keys.of(r.issuer.URL).forget()
		r.check(signJWT(signingKey{"absent", "RS256", rsaKey()}, nil, r.claims()))
		if n := r.issuer.fetches.Load(); n != 3 {
			t.Errorf("%q: %d fetches", kids, n)
		}
		if got := r.check(token); got != noKey {
			t.Errorf("%q: the withdrawn key: %s", kids, got)
		}
		if got := r.check(signJWT(second, nil, r.claims())); got != accepted {
			t.Errorf("%q: %s", kids, got)
		}
	}
}

// TestJWTSameKeyID: of keys with the same id each is tried.
func TestJWTSameKeyID(t *testing.T) {
	first, second := signingKey{"k", "RS256", rsaKey()}, signingKey{"k", "RS256", otherRSAKey()}
	r := startJWTRig(t, first, second)
	for _, k := range []signingKey{first, second} {
		if got := r.check(signJWT(k, nil, r.claims())); got != accepted {
			t.Error(got)
		}
	}
}

// TestJWTStorm: 10,000 tokens with keys that do not exist cause one fetch; good tokens pass meanwhile.
func TestJWTStorm(t *testing.T) {
	key := signingKey{"k", "ES256", p256Key()}
	r := startJWTRig(t, key)
	good := signJWT(key, nil, r.claims())
	if got := r.check(good); got != accepted {
		t.Fatal(got)
	}
	header, claims, _ := strings.Cut(good, ".")
	if header == "" {
		t.Fatal("no header")
	}
	var all sync.WaitGroup
	for g := range 100 {
		all.Go(func() {
			for i := range 100 {
				head := fmt.Sprintf(`{"alg":"ES256","kid":"%d-%d"}`, g, i)
				if got := r.check(base64.RawURLEncoding.EncodeToString([]byte(head)) + "." + claims); got != noKey {
					t.Error(got)
				}
				if i%10 == 0 {
					if got := r.check(good); got != accepted {
						t.Error(got)
					}
				}
			}
		})
	}
	all.Wait()
	if n := r.issuer.fetches.Load(); n != 2 {
		t.Errorf("%d fetches, want the first one and one for all tokens", n)
	}
}

// TestJWTIssuerDown: at the start, and later.
func TestJWTIssuerDown(t *testing.T) {
	key, next := signingKey{"k", "ES256", p256Key()}, signingKey{"next", "RS256", rsaKey()}
	r := &jwtRig{t: t, now: time.Now().Truncate(time.Second), issuer: startIssuer(t, key)}
	r.issuer.respond(respond503)
	r.entry = &oidcIssuer{name: "ci", issuer: r.issuer.URL, audience: []string{"pagewright"}, maxLifetime: time.Hour, algorithms: []string{"ES256", "RS256"}}
	r.policy = policyOf(r.entry)
	r.jwtVerifier = newJWTVerifier(openKeys(t, slowTimes, r.policy.issuers()...))
	keys := r.keys.of(r.issuer.URL)
	token := signJWT(key, nil, r.claims())
	for _, step := range []struct {
		what  string
		up    bool
		token string
		want  string
	}{
		{"down at the start", false, token, issuerDown},
		{"down at the start, a token that is not for us", false, signJWT(key, nil, r.claims("aud", "other")), noAudience},
		{"up", true, token, accepted},
		{"down later, verified before", false, token, accepted},
		{"down later, another token", false, signJWT(key, nil, r.claims("jti", "2")), accepted},
		{"down later, a wrong signature", false, token[:len(token)-8] + "AAAAAAAA", badSign},
		{"down later, a new key", false, signJWT(next, nil, r.claims()), issuerDown},
		{"up again, a new key", true, signJWT(next, nil, r.claims()), noKey},
	} {
		if r.issuer.respond(nil); !step.up {
			r.issuer.respond(respond503)
		}
		keys.forget()
		if got := r.check(step.token); got != step.want {
			t.Errorf("%s: %s, want %s", step.what, got, step.want)
		}
	}
}

// TestJWTCache: a verified token is remembered for one policy and one set of keys.
func TestJWTCache(t *testing.T) {
	key, more := signingKey{"k", "ES256", p256Key()}, signingKey{"more", "ES384", p384Key()}
	r := startJWTRig(t, key)
	token := signJWT(key, nil, r.claims())
	verify := func() *actor {
		t.Helper()
		who, err := r.verify(token, r.policy, r.now)
		if err != nil {
			t.Fatal(err)
		}
		return who
	}
	keys := r.keys.of(r.issuer.URL)
	reread := func() {
		t.Helper()
		keys.forget()
		r.check(signJWT(signingKey{"absent", "ES256", p256Key()}, nil, r.claims()))
	}
	who := verify()
	if verify() != who {
		t.Error("a verified token is verified again")
	}
	fetches := r.issuer.fetches.Load()
	if reread(); r.issuer.fetches.Load() != fetches+1 || verify() != who {
		t.Error("the same keys are another set")
	}
	r.issuer.rotate(key, more)
	reread()
	next := verify()
	if next == who {
		t.Error("the cache outlives the keys")
	}
	old := r.policy
	changed := *r.entry
	changed.name = "renamed"
	r.policy = policyOf(&changed)
	if who = verify(); who == next || who.name != "renamed:repo:acme/site" {
		t.Error("the cache outlives the policy:", who.name)
	}
	// A request that began before the reload puts nothing into the cache of the new policy.
	r.add(sha256.Sum256([]byte(token)), old, verifiedJWT{next, keys, keys.set.Load()})
	if verify() != who {
		t.Error("the cache has the actor of an old policy")
	}
	r.policy = policyOf()
	if got := r.check(token); got != noIssuer {
		t.Error("an issuer that was removed:", got)
	}
}

// TestJWTRemovedIssuer: what an issuer verified is void once it is removed or changed, even
// before the policy is.
func TestJWTRemovedIssuer(t *testing.T) {
	key := signingKey{"k", "ES256", p256Key()}
	r := startJWTRig(t, key)
	token := signJWT(key, nil, r.claims())
	if got := r.check(token); got != accepted {
		t.Fatal(got)
	}
	r.keys.use(nil)
	if got := r.check(token); got != issuerDown {
		t.Error(got)
	}
}

// TestJWTFailuresAreNotCached: a token that was refused is accepted once it is right.
func TestJWTFailuresAreNotCached(t *testing.T) {
	key, next := signingKey{"k", "ES256", p256Key()}, signingKey{"next", "RS256", rsaKey()}
	r := startJWTRig(t, key)
	early, unknown := signJWT(key, nil, r.claims("nbf", r.now.Unix()+100)), signJWT(next, nil, r.claims())
	if got := r.check(early) + r.check(unknown); got != tooEarly+noKey {
		t.Error(got)
	}
	r.now = r.now.Add(time.Minute)
	r.issuer.rotate(key, next)
	r.keys.of(r.issuer.URL).forget()
	if got := r.check(early) + r.check(unknown); got != accepted+accepted {
		t.Error(got)
	}
}

// TestJWTCacheIsBounded: it holds 4,096 tokens, and none that was refused.
func TestJWTCacheIsBounded(t *testing.T) {
	key := signingKey{"k", "EdDSA", edKey()}
	r := startJWTRig(t, key)
	for i := range maxJWTCached + 100 {
		if got := r.check(signJWT(key, nil, r.claims("jti", fmt.Sprint(i)))); got != accepted {
			t.Fatal(got)
		}
		if i == 10 {
			r.check(signJWT(key, nil, r.claims("aud", "other")))
			if n := r.cache.Len(); n != 11 {
				t.Errorf("%d tokens in the cache, want 11", n)
			}
		}
	}
	if n := r.cache.Len(); n != 4096 {
		t.Errorf("%d tokens in the cache", n)
	}
}

// TestJWTReload: under reloads and rotations no request gets rules of a policy that it did not bring.
func TestJWTReload(t *testing.T) {
	key := signingKey{"k", "ES256", p256Key()}
	r := startJWTRig(t, key)
	token := signJWT(key, nil, r.claims())
	var policies []*accessPolicy
	for i := range 4 {
		entry := *r.entry
		entry.name = fmt.Sprint("p", i)
		policies = append(policies, policyOf(&entry))
	}
	var all sync.WaitGroup
	for g := range 16 {
		all.Go(func() {
			for i := range 500 {
				n := (g + i/7) % len(policies)
				who, err := r.verify(token, policies[n], r.now)
				if err != nil || !strings.HasPrefix(who.name, fmt.Sprint("p", n, ":")) {
					t.Errorf("policy %d: %v, %v", n, who, err)
				}
				if g == 0 && i%50 == 0 {
					r.keys.use(policies[n].issuers())
				}
			}
		})
	}
	all.Wait()
}

// FuzzJWT: verify accepts what the library, asked for all rules in one call, accepts with the only
// key, and its errors are of the kind that handlers know.
func FuzzJWT(f *testing.F) {
	key := signingKey{"k", "EdDSA", edKey()}
	now := time.Unix(1_800_000_000, 0)
	entry := &oidcIssuer{name: "ci", issuer: "https://issuer.example", audience: []string{"pagewright"}, algorithms: []string{"EdDSA"}, maxLifetime: time.Hour}
	s := newKeyStore(slog.New(slog.DiscardHandler))
	s.times = slowTimes
	s.read = func(context.Context, keySource) ([]byte, error) { return keySetOf(key), nil }
	f.Cleanup(s.close)
	policy := policyOf(entry)
	s.use(policy.issuers())
	r := &jwtRig{jwtVerifier: newJWTVerifier(s), t: f, policy: policy, now: now}
	claims := jwt.MapClaims{"iss": entry.issuer, "aud": "pagewright", "sub": "s", "exp": now.Unix() + 300, "iat": now.Unix()}
	good := signJWT(key, nil, claims)
	if got := r.check(good); got != "ci:s" {
		f.Fatal(got)
	}
	head, rest, _ := strings.Cut(good, ".")
	body, signature, _ := strings.Cut(rest, ".")
	decode := func(s string) string { return string(mustMake(base64.RawURLEncoding.DecodeString(s))) }
	f.Add(decode(head), decode(body), signature, false)
	f.Add(decode(head), decode(body), "", true)
	f.Add(`{"alg":"none"}`, decode(body), "", false)
	f.Add(`{"alg":"EdDSA","kid":"k","crit":[]}`, decode(body), "", true)
	f.Add(`{"alg":"EdDSA"}`, `{"iss":"https://issuer.example","aud":["pagewright"],"exp":1e999,"sub":"s"}`, "", true)
	f.Fuzz(func(t *testing.T, head, body, signature string, resign bool) {
		r := *r
		r.t = t
		b64 := base64.RawURLEncoding.EncodeToString
		text := b64([]byte(head)) + "." + b64([]byte(body))
		if resign {
			signature = b64(mustMake(jwt.SigningMethodEdDSA.Sign(text, key.private)))
		}
		token := text + "." + signature
		got := r.check(token)
		_, err := jwt.Parse(token, func(*jwt.Token) (any, error) { return key.private.Public(), nil }, jwt.WithValidMethods(entry.algorithms),
			jwt.WithIssuer(entry.issuer), jwt.WithAudience("pagewright"), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(jwtSkew),
			jwt.WithStrictDecoding(), jwt.WithTimeFunc(func() time.Time { return now }))
		if strings.HasPrefix(got, "ci:") && err != nil {
			t.Errorf("%q is accepted as %s, but the library refuses it: %v", token, got, err)
		}
	})
}

// BenchmarkJWT: a token that is remembered, and one that is verified.
func BenchmarkJWT(b *testing.B) {
	for _, key := range []signingKey{{"k", "RS256", rsaKey()}, {"k", "ES256", p256Key()}} {
		r := startJWTRig(b, key)
		token := signJWT(key, nil, r.claims("repository", "acme/site", "ref", strings.Repeat("x", 600)))
		bad := token[:len(token)-8] + "AAAAAAAA"
		r.check(token)
		b.Run(key.alg+"/cached", func(b *testing.B) {
			for b.Loop() {
				r.check(token)
			}
		})
		b.Run(key.alg+"/refused", func(b *testing.B) {
			for b.Loop() {
				r.check(bad)
			}
		})
	}
}
