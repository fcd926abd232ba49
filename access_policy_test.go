package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// tokenOf returns a token with a random part of one repeated letter, and its hash as in the file.
func tokenOf(letter string) (token, hash string) {
	random := strings.Repeat(letter, tokenRandom)
	checksum := checksumOf([]byte(random))
	token = tokenPrefix + random + checksum
	sum := sha256.Sum256([]byte(token))
	return token, hex.EncodeToString(sum[:])
}

func TestPolicyToken(t *testing.T) {
	first, firstHash := tokenOf("a")
	next, nextHash := tokenOf("b")
	old, oldHash := tokenOf("c")
	p := mustParseAccess(t, `{"tokens":[
		{"name":"ci","sha256":["`+firstHash+`","`+nextHash+`"],"allow":["read"],"sites":["*"],"expires":"2026-12-01T12:00:01Z"},
		{"name":"old","sha256":["`+oldHash+`"],"allow":["read"],"sites":["*"],"expires":"2026-12-01T12:00:00Z"},
		{"name":"ever","sha256":["`+hashA+`"],"allow":["read"],"sites":["*"]}]}`)
	unknown, _ := tokenOf("d")
	for _, c := range []struct {
		what, token string
		at          time.Time
		name        string
		denied      accessError
	}{
		{"a token", first, accessNow, "ci", accessError{}},
		{"the next token", next, accessNow, "ci", accessError{}},
		{"just before it expires", first, accessNow.Add(time.Second - 1), "ci", accessError{}},
		{"when it expires", first, accessNow.Add(time.Second), "", accessError{deniedExpired, "the token has expired"}},
		{"one that has expired", old, accessNow, "", accessError{deniedExpired, "the token has expired"}},
		{"an unknown token", unknown, accessNow, "", accessError{deniedUnknown, "the token is unknown"}},
		{"no token", "", accessNow, "", accessError{deniedMalformed, "the token is malformed or incomplete"}},
		{"a cut token", first[:40], accessNow, "", accessError{deniedMalformed, "the token is malformed or incomplete"}},
		{"the hash of a token", firstHash, accessNow, "", accessError{deniedMalformed, "the token is malformed or incomplete"}},
		{"a wrong checksum", first[:len(first)-1] + "!", accessNow, "", accessError{deniedMalformed, "the token is malformed or incomplete"}},
	} {
		who, err := p.token(c.token, c.at)
		var denied accessError
		if refused := new(accessError); errors.As(err, &refused) {
			denied = *refused
		}
		if denied != c.denied || (who == nil) != (c.name == "") || who != nil && (who.name != c.name || who.kind != actorToken) {
			t.Errorf("%s: %+v, %v", c.what, who, err)
		}
	}
	if who := p.tokens[[32]byte(slices.Repeat([]byte{10}, 32))]; who == nil || !who.until.IsZero() {
		t.Errorf("the token that never expires: %+v", who)
	}
}

// grantsOf returns actions and sites of rules.
func grantsOf(rules []accessRule) string {
	var texts []string
	for _, r := range rules {
		texts = append(texts, r.allow.String()+" "+strings.Join(r.sites, " "))
	}
	return strings.Join(texts, "; ")
}

func TestPolicyClaims(t *testing.T) {
	const perRepo = `{"claims":{"repo":["acme/site-*"]},"allow":["read"],"sites":["site-{1}"]}`
	for _, c := range []struct{ what, rules, claims, want string }{
		// One claim.
		{"a value", `{"claims":{"ref":["main"]},"allow":["read"],"sites":["a"]}`, `{"ref":"main"}`, "read a"},
		{"another value", `{"claims":{"ref":["main"]},"allow":["read"],"sites":["a"]}`, `{"ref":"main2"}`, ""},
		{"a value in another case", `{"claims":{"ref":["main"]},"allow":["read"],"sites":["a"]}`, `{"ref":"Main"}`, ""},
		{"a name in another case", `{"claims":{"ref":["main"]},"allow":["read"],"sites":["a"]}`, `{"Ref":"main"}`, ""},
		{"a missing claim", `{"claims":{"ref":["*"]},"allow":["read"],"sites":["a"]}`, `{}`, ""},
		{"an empty value", `{"claims":{"ref":["*"]},"allow":["read"],"sites":["a"]}`, `{"ref":""}`, "read a"},
		{"any of the globs", `{"claims":{"ref":["main","v*"]},"allow":["read"],"sites":["a"]}`, `{"ref":"v1"}`, "read a"},
		{"all of the claims", `{"claims":{"ref":["main"],"repo":["x"]},"allow":["read"],"sites":["a"]}`, `{"ref":"main","repo":"x"}`, "read a"},
		{"one of two claims", `{"claims":{"ref":["main"],"repo":["x"]},"allow":["read"],"sites":["a"]}`, `{"ref":"main","repo":"y"}`, ""},
		{"the first of two claims", `{"claims":{"ref":["main"],"repo":["x"]},"allow":["read"],"sites":["a"]}`, `{"ref":"other","repo":"x"}`, ""},
		// Types.
		{"a number", `{"claims":{"id":["123"]},"allow":["read"],"sites":["a"]}`, `{"id":123}`, "read a"},
		{"a number of another text", `{"claims":{"id":["123"]},"allow":["read"],"sites":["a"]}`, `{"id":123.0}`, ""},
		{"a number beyond float64", `{"claims":{"id":["9007199254740993"]},"allow":["read"],"sites":["a"]}`, `{"id":9007199254740993}`, "read a"},
		{"true", `{"claims":{"protected":["true"]},"allow":["read"],"sites":["a"]}`, `{"protected":true}`, "read a"},
		{"the text true", `{"claims":{"protected":["true"]},"allow":["read"],"sites":["a"]}`, `{"protected":"true"}`, "read a"},
		{"false", `{"claims":{"protected":["true"]},"allow":["read"],"sites":["a"]}`, `{"protected":false}`, ""},
		{"null", `{"claims":{"x":["*"]},"allow":["read"],"sites":["a"]}`, `{"x":null}`, ""},
		{"an object", `{"claims":{"x":["*"]},"allow":["read"],"sites":["a"]}`, `{"x":{"y":"z"}}`, ""},
		{"an array", `{"claims":{"x":["b"]},"allow":["read"],"sites":["a"]}`, `{"x":["a","b"]}`, "read a"},
		{"an array of numbers", `{"claims":{"x":["2"]},"allow":["read"],"sites":["a"]}`, `{"x":[1,2]}`, "read a"},
		{"an array without the value", `{"claims":{"x":["b"]},"allow":["read"],"sites":["a"]}`, `{"x":["a","ab"]}`, ""},
		{"an empty array", `{"claims":{"x":["*"]},"allow":["read"],"sites":["a"]}`, `{"x":[]}`, ""},
		{"an array in an array", `{"claims":{"x":["*"]},"allow":["read"],"sites":["a"]}`, `{"x":[["a"]]}`, ""},
		{"an array of null", `{"claims":{"x":["*"]},"allow":["read"],"sites":["a"]}`, `{"x":[null]}`, ""},
		// Names and JSON Pointers.
		{"a pointer", `{"claims":{"/kubernetes.io/namespace":["web"]},"allow":["read"],"sites":["a"]}`, `{"kubernetes.io":{"namespace":"web"}}`, "read a"},
		{"a pointer is no name", `{"claims":{"/a":["web"]},"allow":["read"],"sites":["a"]}`, `{"/a":"web"}`, ""},
		{"a name with dots and slashes", `{"claims":{"https://acme.example/x":["web"]},"allow":["read"],"sites":["a"]}`, `{"https://acme.example/x":"web"}`, "read a"},
		{"a name is no pointer", `{"claims":{"a/b":["web"]},"allow":["read"],"sites":["a"]}`, `{"a":{"b":"web"}}`, ""},
		{"escapes in a pointer", `{"claims":{"/a~1b~01/c":["web"]},"allow":["read"],"sites":["a"]}`, `{"a/b~1":{"c":"web"}}`, "read a"},
		{"a pointer to an element", `{"claims":{"/a/1":["web"]},"allow":["read"],"sites":["a"]}`, `{"a":["x","web"]}`, "read a"},
		{"an index with a zero in front", `{"claims":{"/a/01":["web"]},"allow":["read"],"sites":["a"]}`, `{"a":["x","web"]}`, ""},
		{"an index beyond the end", `{"claims":{"/a/2":["web"]},"allow":["read"],"sites":["a"]}`, `{"a":["x","web"]}`, ""},
		{"a pointer through a string", `{"claims":{"/a/b":["web"]},"allow":["read"],"sites":["a"]}`, `{"a":"b"}`, ""},
		{"a pointer to the empty name", `{"claims":{"/":["web"]},"allow":["read"],"sites":["a"]}`, `{"":"web"}`, "read a"},
		// {1}.
		{"{1}", perRepo, `{"repo":"acme/site-shop"}`, "read site-shop"},
		{"{1} twice", `{"claims":{"repo":["acme/*"]},"allow":["read"],"sites":["{1}.{1}","{1}-*"]}`, `{"repo":"acme/shop"}`, "read shop.shop shop-*"},
		{"{1} of an empty run", perRepo, `{"repo":"acme/site-"}`, ""},
		{"{1}* of an empty run", `{"claims":{"repo":["acme/*"]},"allow":["admin"],"sites":["{1}*"]}`, `{"repo":"acme/"}`, ""},
		{"{1} with a slash", perRepo, `{"repo":"acme/site-a/b"}`, ""},
		{"{1} with a *", perRepo, `{"repo":"acme/site-*"}`, ""},
		{"{1} is {1}", perRepo, `{"repo":"acme/site-{1}"}`, ""},
		{"{1} with a zero byte", perRepo, `{"repo":"acme/site-a\u0000"}`, ""},
		{"{1} with a newline", perRepo, `{"repo":"acme/site-a\n"}`, ""},
		{"{1} begins with a dot", `{"claims":{"repo":["acme/*"]},"allow":["read"],"sites":["site-{1}"]}`, `{"repo":"acme/.a"}`, "read site-.a"},
		{"other sites without {1}", `{"claims":{"repo":["acme/*"]},"allow":["read"],"sites":["{1}","docs"]}`, `{"repo":"acme/a/b"}`, "read docs"},
		{"{1} of the claim with a *", `{"claims":{"owner":["1"],"repo":["acme/*"],"ref":["v1"]},"allow":["read"],"sites":["{1}"]}`, `{"owner":"1","repo":"acme/a","ref":"v1"}`, "read a"},
		{"several claims with a *", `{"claims":{"repo":["acme/*"],"ref":["v*"]},"allow":["read"],"sites":["s"]}`, `{"repo":"acme/a","ref":"v1"}`, "read s"},
		{"one of several claims with a * does not match", `{"claims":{"repo":["acme/*"],"ref":["v*"]},"allow":["read"],"sites":["s"]}`, `{"repo":"acme/a","ref":"w1"}`, ""},
		{"{1} of the first * of a claim", `{"claims":{"repo":["*/site-*"]},"allow":["read"],"sites":["{1}"]}`, `{"repo":"acme/site-x"}`, "read acme"},
		{"{1} is the shortest run", `{"claims":{"repo":["*-*"]},"allow":["read"],"sites":["{1}"]}`, `{"repo":"a-b-c"}`, "read a"},
		{"{1} of the first glob that matches", `{"claims":{"repo":["acme/*","*/site"]},"allow":["read"],"sites":["{1}"]}`, `{"repo":"acme/site"}`, "read site"},
		{"{1} of each element", `{"claims":{"groups":["site-*"]},"allow":["read"],"sites":["{1}"]}`, `{"groups":["site-a","x","site-b"]}`, "read a b"},
		{"{1} of a number", `{"claims":{"id":["*"]},"allow":["read"],"sites":["s{1}"]}`, `{"id":42}`, "read s42"},
		{"shared", `{"claims":{"repo":["acme/*"]},"allow":["read"],"sites":["site-*"]}`, `{"repo":"acme/a"}`, "read site-*"},
		// Rules.
		{"rules add up", perRepo + `,{"claims":{"ref":["main"]},"allow":["write"],"sites":["b"]}`, `{"repo":"acme/site-a","ref":"main"}`, "read site-a; create, write b"},
		{"a rule that does not match", perRepo + `,{"claims":{"ref":["main"]},"allow":["write"],"sites":["b"]}`, `{"repo":"acme/x","ref":"main"}`, "create, write b"},
	} {
		p := mustParseAccess(t, `{"oidc":[{"name":"i","issuer":"https://issuer.example","audience":["a"],"rules":[`+
			strings.ReplaceAll(c.rules, `"allow"`, `"shared":true,"allow"`)+`]}]}`) // what may be shared is for the tests of the file
		dec := json.NewDecoder(strings.NewReader(c.claims))
		dec.UseNumber()
		claims := map[string]any{}
		if err := dec.Decode(&claims); err != nil {
			t.Fatal(c.what, err)
		}
		if got := grantsOf(p.issuers()[0].rules(claims)); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

func TestPolicyIssuers(t *testing.T) {
	p := mustParseAccess(t, `{"oidc":[{"name":"a","issuer":"https://a.example","audience":["x","y"],"rules":[
			{"claims":{"sub":["me"]},"allow":["read"],"sites":["s"]},{"claims":{"sub":["*"]},"allow":["log"],"sites":["{1}"]}]},
		{"name":"b","issuer":"https://b.example/","audience":["z"],"jwks_url":"https://b.example/keys","ca_file":"/ca","token_file":"/token",
			"algorithms":["PS512"],"max_lifetime":"90s"}]}`)
	a, b := *p.issuer("https://a.example"), *p.issuer("https://b.example/")
	rules := a.rules(map[string]any{"sub": "me"})
	if len(rules) != 2 || rules[0].place != `oidc[0] "a" rules[0]` || rules[1].place != `oidc[0] "a" rules[1]` {
		t.Errorf("rules of a: %+v", rules)
	}
	a.granted = nil
	want := []oidcIssuer{
		{name: "a", issuer: "https://a.example", audience: []string{"x", "y"}, algorithms: []string{"RS256", "ES256"}, maxLifetime: time.Hour},
		{name: "b", issuer: "https://b.example/", audience: []string{"z"}, jwksURL: "https://b.example/keys", caFile: "/ca", tokenFile: "/token", algorithms: []string{"PS512"}, maxLifetime: 90 * time.Second},
	}
	if got := []oidcIssuer{a, b}; fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	for _, iss := range []string{"", "https://a.example/", "https://b.example", "https://A.example", "a"} {
		if o := p.issuer(iss); o != nil {
			t.Errorf("issuer(%q) = %+v", iss, o)
		}
	}
}

func TestPolicyCertificate(t *testing.T) {
	p := mustParseAccess(t, `{"certificates":[
		{"name":"edge","san":["spiffe://acme/web","web.acme.example"],"allow":["read"],"sites":["*"]},
		{"name":"team","san":["spiffe://acme/team/*"],"allow":["write"],"sites":["{1}-site"]},
		{"name":"both","san":["spiffe://acme/team/red","spiffe://acme/team/.*"],"allow":["log"],"sites":["logs"]},
		{"name":"mail","san":["ops@acme.example"],"allow":["delete"],"sites":["a"]},
		{"name":"net","san":["10.0.0.7","2001:db8::7"],"allow":["label"],"sites":["b"]}]}`)
	uri := func(text string) *url.URL {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	from, to := accessNow.Add(-time.Hour), accessNow.Add(time.Hour)
	for _, c := range []struct {
		what        string
		cert        x509.Certificate
		name, rules string
	}{
		{"a URI", x509.Certificate{URIs: []*url.URL{uri("spiffe://acme/web")}}, "edge", "read *"},
		{"another URI", x509.Certificate{URIs: []*url.URL{uri("spiffe://acme/web2")}}, "", ""},
		{"the second of two URIs", x509.Certificate{URIs: []*url.URL{uri("spiffe://x/y"), uri("spiffe://acme/web")}}, "edge", "read *"},
		{"a DNS name", x509.Certificate{DNSNames: []string{"web.acme.example"}}, "edge", "read *"},
		{"a wildcard name", x509.Certificate{DNSNames: []string{"*.acme.example"}}, "", ""},
		{"two names of one entry", x509.Certificate{DNSNames: []string{"web.acme.example"}, URIs: []*url.URL{uri("spiffe://acme/web")}}, "edge", "read *"},
		{"{1}", x509.Certificate{URIs: []*url.URL{uri("spiffe://acme/team/blue")}}, "team", "create, write blue-site"},
		{"{1} of each name", x509.Certificate{URIs: []*url.URL{uri("spiffe://acme/team/a"), uri("spiffe://acme/team/b")}}, "team", "create, write a-site b-site"},
		{"{1} that no site can have", x509.Certificate{URIs: []*url.URL{uri("spiffe://acme/team/blue/x")}}, "team", ""},
		{"two entries", x509.Certificate{URIs: []*url.URL{uri("spiffe://acme/team/red")}}, "team, both", "create, write red-site; log logs"},
		{"an address of mail", x509.Certificate{EmailAddresses: []string{"ops@acme.example"}}, "mail", "delete a"},
		{"an IPv4 address", x509.Certificate{IPAddresses: []net.IP{net.ParseIP("10.0.0.7").To4()}}, "net", "label b"},
		{"an IPv6 address", x509.Certificate{IPAddresses: []net.IP{net.ParseIP("2001:db8::7")}}, "net", "label b"},
		{"a DNS name that reads like a URI", x509.Certificate{DNSNames: []string{"spiffe://acme/web"}}, "", ""},
		{"a DNS name that reads like an address", x509.Certificate{DNSNames: []string{"10.0.0.7", "2001:db8::7"}}, "", ""},
		{"a DNS name that reads like mail", x509.Certificate{DNSNames: []string{"ops@acme.example"}}, "", ""},
		{"mail that reads like a URI", x509.Certificate{EmailAddresses: []string{"spiffe://acme/web", "spiffe://acme/team/a@b"}}, "", ""},
		{"mail that reads like a DNS name", x509.Certificate{EmailAddresses: []string{"web.acme.example"}}, "", ""},
		{"a URI that reads like a DNS name", x509.Certificate{URIs: []*url.URL{uri("web.acme.example")}}, "", ""},
		{"no names", x509.Certificate{}, "", ""},
		{"just valid", x509.Certificate{DNSNames: []string{"web.acme.example"}, NotBefore: accessNow, NotAfter: accessNow}, "edge", "read *"},
		{"expired", x509.Certificate{DNSNames: []string{"web.acme.example"}, NotBefore: from, NotAfter: accessNow.Add(-1)}, "", ""},
		{"not yet valid", x509.Certificate{DNSNames: []string{"web.acme.example"}, NotBefore: accessNow.Add(1), NotAfter: to}, "", ""},
	} {
		if c.cert.NotAfter.IsZero() {
			c.cert.NotBefore, c.cert.NotAfter = from, to
		}
		who := p.certificate(&c.cert, accessNow)
		if who == nil {
			who = &actor{}
		} else if who.kind != actorCertificate || !who.until.Equal(c.cert.NotAfter) {
			t.Errorf("%s: %+v", c.what, who)
		}
		if got := grantsOf(who.rules); who.name != c.name || got != c.rules {
			t.Errorf("%s: %q may %q, want %q may %q", c.what, who.name, got, c.name, c.rules)
		}
	}
}

func TestPolicyAllows(t *testing.T) {
	shop, shopHash := tokenOf("a")
	admin, adminHash := tokenOf("b")
	local, localHash := tokenOf("c")
	p := mustParseAccess(t, `{"tokens":[
			{"name":"shop","sha256":["`+shopHash+`"],"allow":["create","log"],"sites":["shop-*","news"]},
			{"name":"admin","sha256":["`+adminHash+`"],"allow":["admin","write"],"sites":["a*","*"]},
			{"name":"local","sha256":["`+localHash+`"],"allow":["admin","delete"],"sites":["*-x","z*"]}],
		"anonymous":[{"allow":["read"],"sites":["public-*"]},{"allow":["label"],"sites":["shop-de"]}]}`)
	const tokens = `tokens[0] "shop"`
	actors := map[string]*actor{"anonymous": nil, "no rules": {kind: actorOIDC, name: "i:me"}}
	for name, token := range map[string]string{"shop": shop, "admin": admin, "local": local} {
		who, err := p.token(token, accessNow)
		if err != nil {
			t.Fatal(err)
		}
		actors[name] = who
	}
	for _, c := range []struct {
		who   string
		want  action
		site  string
		place string // of the rule that allows it; empty: none does
	}{
		{"anonymous", actionRead, "public-a", "anonymous[0]"},
		{"anonymous", actionRead, "public", ""},
		{"anonymous", actionRead, "my-public-a", ""},
		{"anonymous", actionRead, "shop-de", ""},
		{"anonymous", actionLabel, "shop-de", "anonymous[1]"},
		{"anonymous", actionLabel, "public-a", ""},
		{"anonymous", actionRead, "", ""},
		{"anonymous", actionAdmin, "", ""},
		{"no rules", actionRead, "public-a", "anonymous[0]"},
		{"no rules", actionRead, "news", ""},
		{"shop", actionCreate, "shop-de", tokens},
		{"shop", actionCreate, "news", tokens},
		{"shop", actionLog, "shop-de", tokens},
		{"shop", actionWrite, "shop-de", ""},
		{"shop", actionRead, "shop-de", ""},
		{"shop", actionDelete, "shop-de", ""},
		{"shop", actionAdmin, "shop-de", ""},
		{"shop", actionLabel, "shop-de", "anonymous[1]"},
		{"shop", actionLabel, "shop-fr", ""},
		{"shop", actionCreate, "shop", ""},
		{"shop", actionCreate, "news2", ""},
		{"shop", actionCreate, "Shop-de", ""},
		{"shop", actionCreate, "public-a", ""},
		{"shop", actionRead, "public-a", "anonymous[0]"},
		{"shop", actionCreate, "", ""},
		{"admin", actionWrite, "any", `tokens[1] "admin"`},
		{"admin", actionCreate, "any", `tokens[1] "admin"`},
		{"admin", actionAdmin, "", `tokens[1] "admin"`},
		{"admin", actionRead, "any", ""},
		{"admin", actionDelete, "any", ""},
		{"admin", actionRead, "", ""},
		{"local", actionAdmin, "a-x", `tokens[2] "local"`},
		{"local", actionDelete, "zoo", `tokens[2] "local"`},
		{"local", actionAdmin, "*", ""},
		{"local", actionAdmin, "", ""},
	} {
		place := ""
		if rule := p.allows(actors[c.who], c.want, c.site); rule != nil {
			place = rule.place
		}
		if place != c.place {
			t.Errorf("%s, %v, %q: allowed by %q, want %q", c.who, c.want, c.site, place, c.place)
		}
	}
	if (&accessRule{sites: []string{"", "**", "*a", "a*"}}).covers("") {
		t.Error("a glob other than * is all sites")
	}
}

// TestFilledInStaysWithinTheRule: whatever a claim's value is, a rule with {1} allows no site that
// it would not allow with * for {1}, none for which the value itself does not stand in the
// id, and never what concerns all sites.
func TestFilledInStaysWithinTheRule(t *testing.T) {
	const seed = 17
	random := rand.New(rand.NewPCG(seed, seed))
	pick := func(parts []string) string { return parts[random.IntN(len(parts))] }
	text := func(parts []string, most int) (s string) {
		for range random.IntN(most + 1) {
			s += pick(parts)
		}
		return s
	}
	globs := []string{"{1}", "{1}*", "*{1}", "a-{1}", "{1}-*", "{1}{1}", "a{1}b", "a.{1}*{1}"}
	allowed := 0
	for range 200_000 {
		glob, value := pick(globs), text([]string{"a", "b", "-", ".", "*", "{1}", "/", "\x00", "ü", ""}, 4)
		site := text([]string{"a", "b", "-", ".", value, "*"}, 6)
		rule := accessRule{allow: actionAdmin, sites: []string{glob}}
		p := &accessPolicy{oidc: []*oidcIssuer{{granted: []claimRule{{accessRule: rule, claims: []claimMatch{{path: []string{"c"}, globs: []string{"*"}}}}}}}}
		who := &actor{rules: p.oidc[0].rules(map[string]any{"c": value})}
		if p.allows(who, actionAdmin, "") != nil {
			t.Fatalf("%q with %q is all sites", glob, value)
		}
		if p.allows(who, actionAdmin, site) == nil {
			continue
		}
		allowed++
		outside := !globMatch(strings.ReplaceAll(glob, filledIn, "*"), site)
		if outside || !strings.Contains(site, value) || value == "" || strings.ContainsAny(value, "*{/\x00ü") {
			t.Fatalf("%q with %q allows %q", glob, value, site)
		}
	}
	if allowed < 1000 {
		t.Errorf("only %d sites were allowed; the test is of no use", allowed)
	}
}

func BenchmarkPolicyToken(b *testing.B) {
	var tokens []string
	for _, letter := range strings.Split("abcdefghijklmnopqrstuvwxyz", "") {
		_, hash := tokenOf(letter)
		tokens = append(tokens, fmt.Sprintf(`{"name":%q,"sha256":[%q],"allow":["read"],"sites":["x-*","shop-*"],"expires":"2027-01-31T00:00:00Z"}`, letter, hash))
	}
	p := mustParseAccess(b, `{"tokens":[`+strings.Join(tokens, ",")+`],"anonymous":[{"allow":["read"],"sites":["public-*"]}]}`)
	token, _ := tokenOf("k")
	b.ReportAllocs()
	for b.Loop() {
		who, err := p.token(token, accessNow)
		if err != nil || p.allows(who, actionRead, "shop-de") == nil {
			b.Fatal(err)
		}
	}
}
