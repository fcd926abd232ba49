package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// signingKey is a private key of testIssuer.
type signingKey struct {
	kid, alg string
	private  crypto.Signer
}

// The keys of the tests. RSA keys take a while to make.
var (
	rsaKey      = sync.OnceValue(func() crypto.Signer { return mustMake(rsa.GenerateKey(rand.Reader, 2048)) })
	otherRSAKey = sync.OnceValue(func() crypto.Signer { return mustMake(rsa.GenerateKey(rand.Reader, 2048)) })
	p256Key     = sync.OnceValue(func() crypto.Signer { return mustMake(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	p384Key     = sync.OnceValue(func() crypto.Signer { return mustMake(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	edKey       = sync.OnceValue(func() crypto.Signer { return ed25519.NewKeyFromSeed(make([]byte, 32)) })
)

func mustMake[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// jwkOf returns the public key as a JSON Web Key.
func jwkOf(k signingKey) map[string]any {
	jwk := map[string]any{"use": "sig"}
	if k.kid != "" {
		jwk["kid"] = k.kid
	}
	if k.alg != "" {
		jwk["alg"] = k.alg
	}
	b64 := base64.RawURLEncoding.EncodeToString
	switch key := k.private.Public().(type) {
	case *rsa.PublicKey:
		jwk["kty"], jwk["n"], jwk["e"] = "RSA", b64(key.N.Bytes()), "AQAB"
	case *ecdsa.PublicKey:
		point := mustMake(key.Bytes())
		half := (len(point) - 1) / 2
		jwk["kty"], jwk["crv"], jwk["x"], jwk["y"] = "EC", key.Params().Name, b64(point[1:1+half]), b64(point[1+half:])
	case ed25519.PublicKey:
		jwk["kty"], jwk["crv"], jwk["x"] = "OKP", "Ed25519", b64(key)
	}
	return jwk
}

func keySetOf(keys ...signingKey) []byte {
	all := []any{}
	for _, k := range keys {
		all = append(all, jwkOf(k))
	}
	return mustMake(json.Marshal(map[string]any{"keys": all}))
}

// testIssuer is a real issuer: an HTTP server with a discovery document and keys, which signs.
type testIssuer struct {
	*httptest.Server
	fetches atomic.Int32 // of the key set

	mu     sync.Mutex
	keys   []signingKey
	handle http.HandlerFunc // nil: respond as an issuer does
}

func startIssuer(t testing.TB, keys ...signingKey) *testIssuer {
	i := &testIssuer{keys: keys}
	i.Server = httptest.NewServer(i)
	t.Cleanup(i.Close)
	return i
}

func (i *testIssuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	keys, handle := i.keys, i.handle
	i.mu.Unlock()
	if r.URL.Path == "/keys" {
		i.fetches.Add(1)
	}
	switch {
	case handle != nil:
		handle(w, r)
	case r.URL.Path == "/.well-known/openid-configuration":
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, i.URL, i.URL+"/keys")
	case r.URL.Path == "/keys":
		w.Write(keySetOf(keys...))
	default:
		http.NotFound(w, r)
	}
}

func (i *testIssuer) rotate(keys ...signingKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = keys
}

// respond replaces the responses; nil restores them.
func (i *testIssuer) respond(handle http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.handle = handle
}

func respond503(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }

// signJWT returns a JWT, with the key id of the key unless the header has one.
func signJWT(key signingKey, header map[string]any, claims jwt.MapClaims) string {
	t := jwt.NewWithClaims(jwt.GetSigningMethod(key.alg), claims)
	if key.kid != "" {
		t.Header["kid"] = key.kid
	}
	for name, value := range header {
		if t.Header[name] = value; value == nil {
			delete(t.Header, name)
		}
	}
	return mustMake(t.SignedString(key.private))
}

// slowTimes never read again in the time of a test, and wait for as long as it takes.
var slowTimes = keyTimes{every: time.Hour, backoff: time.Hour, again: time.Hour, wait: time.Minute, timeout: time.Minute}

// openKeys returns a store that has begun to read the keys of the issuers.
func openKeys(t testing.TB, times keyTimes, issuers ...*oidcIssuer) *keyStore {
	s := newKeyStore(slog.New(slog.DiscardHandler))
	s.times = times
	t.Cleanup(s.close)
	s.use(issuers)
	return s
}

// forget lets the next token cause a read of the keys.
func (k *issuerKeys) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = time.Time{}
}

// reads waits until so many reads of an issuer's keys have ended.
func (s *keyStore) reads(t *testing.T, want uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d reads", want), func() bool {
		stats := s.stats()
		return len(stats) > 0 && stats[0].ok+stats[0].failed >= want
	})
}

// TestReadKeys: which responses of an issuer are used.
func TestReadKeys(t *testing.T) {
	key := signingKey{"k", "ES256", p256Key()}
	other := startIssuer(t, key)
	secure := httptest.NewTLSServer(other)
	t.Cleanup(secure.Close)
	to := func(url string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, url+r.URL.Path, http.StatusFound) }
	}
	document := func(format string, args ...any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, format, args...) }
	}
	text := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			w.Write([]byte(text))
		}
	}
	endless := func(w http.ResponseWriter, r *http.Request) {
		for chunk := bytes.Repeat([]byte(" "), 64<<10); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
	for _, c := range []struct {
		what   string
		direct bool // by jwks_url
		handle func(own string) http.HandlerFunc
		want   string // in the error; empty: success
	}{
		{"discovery", false, nil, ``},
		{"jwks_url", true, nil, ``},
		{"status 500", true, func(string) http.HandlerFunc { return text(500, "{}") }, `status 500`},
		{"status 204", true, func(string) http.HandlerFunc { return text(204, "") }, `status 204`},
		{"no JSON in discovery", false, func(string) http.HandlerFunc { return text(200, "<html>") }, `invalid character`},
		{"an endless body", true, func(string) http.HandlerFunc { return endless }, `more than 1048576 bytes`},
		{"an endless discovery document", false, func(string) http.HandlerFunc { return endless }, `more than 1048576 bytes`},
		{"endless headers", true, func(string) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 128<<10)) }
		}, `server response headers exceeded 65536 bytes`},
		{"the document of another issuer", false, func(own string) http.HandlerFunc {
			return document(`{"issuer":%q,"jwks_uri":%q}`, own+"/", own+"/keys")
		}, `the document is of the issuer`},
		{"no issuer in the document", false, func(own string) http.HandlerFunc { return document(`{"jwks_uri":%q}`, own+"/keys") }, `the document is of the issuer ""`},
		{"no jwks_uri", false, func(own string) http.HandlerFunc { return document(`{"issuer":%q}`, own) }, `jwks_uri "" is not an https URL`},
		{"jwks_uri by http on another host", false, func(own string) http.HandlerFunc {
			return document(`{"issuer":%q,"jwks_uri":%q}`, own, other.URL+"/keys")
		}, `is not an https URL`},
		{"jwks_uri of a file", false, func(own string) http.HandlerFunc {
			return document(`{"issuer":%q,"jwks_uri":"file:///etc/passwd"}`, own)
		}, `is not an https URL`},
		{"302 to http on another host", true, func(string) http.HandlerFunc { return to(other.URL) }, `it redirects to http://`},
		{"302 to https on another host", true, func(string) http.HandlerFunc { return to(secure.URL) }, ``},
		{"302 to itself", true, func(own string) http.HandlerFunc { return to(own) }, `too many redirects`},
	} {
		t.Run(c.what, func(t *testing.T) {
			issuer := startIssuer(t, key)
			if c.handle != nil {
				issuer.respond(c.handle(issuer.URL))
			}
			from := keySource{issuer: issuer.URL, caFile: caOf(t, secure)}
			if c.direct {
				from.jwksURL = issuer.URL + "/keys"
			}
			data, err := readKeys(t.Context(), from)
			switch {
			case c.want == "" && (err != nil || !bytes.Equal(data, keySetOf(key))):
				t.Errorf("%q, %v", data, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want %q", err, c.want)
			}
			if n := issuer.fetches.Load(); n > 1+maxKeysRedirects {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestReadKeysDowngrade: https never leads to http, not even on the same host.
func TestReadKeysDowngrade(t *testing.T) {
	plain := startIssuer(t, signingKey{"k", "ES256", p256Key()})
	secure := httptest.NewTLSServer(http.RedirectHandler(plain.URL+"/keys", http.StatusFound))
	t.Cleanup(secure.Close)
	_, err := readKeys(t.Context(), keySource{issuer: secure.URL, jwksURL: secure.URL + "/keys", caFile: caOf(t, secure)})
	if err == nil || !strings.Contains(err.Error(), "it redirects to http://") || plain.fetches.Load() != 0 {
		t.Errorf("%v, %d fetches", err, plain.fetches.Load())
	}
}

func caOf(t *testing.T, s *httptest.Server) string {
	return keysFile(t, pemOf(s.Certificate().Raw))
}

// TestReadKeysCA: certificates of ca_file replace those of the system, and are read each time.
func TestReadKeysCA(t *testing.T) {
	issuer := startIssuer(t, signingKey{"k", "ES256", p256Key()})
	secure := httptest.NewTLSServer(issuer)
	t.Cleanup(secure.Close)
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	from := keySource{issuer: secure.URL, jwksURL: secure.URL + "/keys"}
	read := func(want string) {
		t.Helper()
		_, err := readKeys(t.Context(), from)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	read("certificate signed by unknown authority")
	from.caFile = keysFile(t, "no PEM")
	read("ca_file: " + from.caFile + ": no certificate in PEM")
	putFile(t, from.caFile, pemOf(secure.Certificate().Raw))
	read("")
	from.caFile += ".absent"
	read("ca_file: stat " + from.caFile + ": no such file")
}

// TestReadKeysToken: the token of token_file goes to the host of the URL and to no other, and is
// read each time.
func TestReadKeysToken(t *testing.T) {
	var mu sync.Mutex
	seen := map[string][]string{}
	record := func(who string, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			seen[who] = append(seen[who], r.Header.Get("Authorization"))
			mu.Unlock()
			next.ServeHTTP(w, r)
		})
	}
	keys := startIssuer(t, signingKey{"k", "ES256", p256Key()})
	// The same host with another port: net/http alone would pass the header on.
	target := httptest.NewTLSServer(record("target", keys))
	t.Cleanup(target.Close)
	var own *httptest.Server
	own = httptest.NewTLSServer(record("own", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, own.URL, target.URL+"/keys")
		case "/redirect":
			http.Redirect(w, r, target.URL+"/keys", http.StatusFound)
		default:
			keys.ServeHTTP(w, r)
		}
	})))
	t.Cleanup(own.Close)
	from := keySource{issuer: own.URL, caFile: caOf(t, own), tokenFile: keysFile(t, "first\n")}
	for _, c := range []struct{ what, jwksURL, token, own, target string }{
		{"discovery", "", "first\n", "Bearer first", ""},
		{"jwks_url", own.URL + "/keys", "second", "Bearer second", "-"},
		{"a redirect", own.URL + "/redirect", "third", "Bearer third", ""},
	} {
		clear(seen)
		putFile(t, from.tokenFile, c.token)
		from.jwksURL = c.jwksURL
		if _, err := readKeys(t.Context(), from); err != nil {
			t.Fatal(c.what, err)
		}
		want := map[string][]string{"own": {c.own}, "target": {c.target}}
		if c.target == "-" {
			delete(want, "target")
		}
		if fmt.Sprint(seen) != fmt.Sprint(want) {
			t.Errorf("%s: Authorization %q, want %q", c.what, seen, want)
		}
	}
	from.tokenFile += ".absent"
	if _, err := readKeys(t.Context(), from); err == nil || !strings.Contains(err.Error(), "token_file: stat "+from.tokenFile+": no such file") {
		t.Errorf("an absent token_file: %v", err)
	}
}

// TestReadKeysSlow: an issuer that sends nothing, or stops within the body, is given up.
func TestReadKeysSlow(t *testing.T) {
	for _, start := range []string{"", `{"keys":[`} {
		key := signingKey{"k", "ES256", p256Key()}
		issuer := startIssuer(t, key)
		issuer.respond(func(w http.ResponseWriter, r *http.Request) {
			if start != "" {
				w.Write([]byte(start))
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
		})
		times := slowTimes
		times.timeout = 50 * time.Millisecond
		s := openKeys(t, times, &oidcIssuer{issuer: issuer.URL})
		s.reads(t, 1)
		if stats := s.stats()[0]; stats.failed != 1 || stats.known {
			t.Errorf("%q: %+v", start, stats)
		}
	}
}

// stubKeys is a keyStore, within synctest, whose issuer is a function.
func stubKeys(read func(context.Context) ([]byte, error)) (*keyStore, *issuerKeys) {
	s := newKeyStore(slog.New(slog.DiscardHandler))
	s.read = func(ctx context.Context, _ keySource) ([]byte, error) { return read(ctx) }
	s.use([]*oidcIssuer{{name: "i", issuer: "https://issuer.example"}})
	synctest.Wait()
	return s, s.of("https://issuer.example")
}

func hasKey(id string) func(*keySet) bool {
	return func(s *keySet) bool { return len(s.find(id, "ES256")) > 0 }
}

// TestKeysRefresh: keys are read every five minutes, and sooner after failures.
func TestKeysRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, began := keySetOf(signingKey{"k", "ES256", p256Key()}), time.Now()
		var at []time.Duration
		fail := func(n int) bool { return n >= 3 && n < 11 }
		s, k := stubKeys(func(context.Context) ([]byte, error) {
			at = append(at, time.Since(began))
			if fail(len(at) - 1) {
				return nil, errors.New("down")
			}
			return good, nil
		})
		time.Sleep(2 * time.Hour)
		s.close()
		synctest.Wait()
		want := []time.Duration{300, 300, 300, 5, 10, 20, 40, 80, 160, 300, 300, 300, 300}
		jitter := false
		for i, seconds := range want {
			gap, about := at[i+1]-at[i], seconds*time.Second
			jitter = jitter || gap != about
			if gap < about-about/10 || gap > about+about/10 {
				t.Errorf("read %d came after %v, want about %v", i+1, gap, about)
			}
		}
		if !jitter {
			t.Error("no pause has jitter")
		}
		if k.try(hasKey("k")) != nil {
			t.Error("the keys are gone")
		}
	})
}

// TestKeysOfUnknownTokens: tokens with keys that the issuer does not have cause a read at most
// once in 30 s, beside those in the background.
func TestKeysOfUnknownTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		s, k := stubKeys(func(context.Context) ([]byte, error) {
			at = append(at, time.Now())
			return keySetOf(signingKey{"k", "ES256", p256Key()}), nil
		})
		defer s.close()
		for range 600 { // for a minute: the next read in the background comes later
			if err := k.try(hasKey("other")); err != errKeyUnknown {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if len(at) != 3 || at[2].Sub(at[1]) != 30*time.Second {
			t.Errorf("reads at %v, want the first one and two that are 30 s apart", at)
		}
	})
}

// TestKeysNotYet: a token that waits for a read which began too early gets the result of a second one.
func TestKeysNotYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads, ended := 0, make(chan struct{})
		s, k := stubKeys(func(context.Context) ([]byte, error) {
			if reads++; reads == 1 {
				<-ended
				return keySetOf(signingKey{"old", "ES256", p256Key()}), nil
			}
			return keySetOf(signingKey{"new", "ES256", p256Key()}), nil
		})
		defer s.close()
		go func() { time.Sleep(time.Second); close(ended) }()
		if err := k.try(hasKey("new")); err != nil || reads != 2 {
			t.Error(err, reads)
		}
	})
}

// TestKeysReadMeanwhile: a token that may cause no read still gets keys that were read after it looked.
func TestKeysReadMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		s, k := stubKeys(func(context.Context) ([]byte, error) {
			reads++
			return keySetOf(signingKey{fmt.Sprint(reads), "ES256", p256Key()}), nil
		})
		defer s.close()
		first := true
		if err := k.try(func(set *keySet) bool {
			if first {
				first = false
				<-k.ask(k.set.Load()) // of another token
				return false
			}
			return hasKey("2")(set)
		}); err != nil {
			t.Error(err)
		}
	})
}

// TestKeysEndWhileAsked: nobody waits for a read that never begins.
func TestKeysEndWhileAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 200 {
			s, k := stubKeys(func(context.Context) ([]byte, error) { return nil, errors.New("down") })
			done := k.ask(k.set.Load())
			s.use(nil)
			<-done
			s.close()
		}
	})
}

// TestKeysWait: a token waits for at most 5 s, and only so many wait.
func TestKeysWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := stubKeys(func(ctx context.Context) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		defer s.close()
		began := time.Now()
		var mu sync.Mutex
		waits := map[time.Duration]int{}
		var all sync.WaitGroup
		for range maxKeysWaiting + 44 {
			all.Go(func() {
				err := k.try(hasKey("k"))
				mu.Lock()
				defer mu.Unlock()
				if waits[time.Since(began)]++; err != errIssuerDown {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if waits[0] != 44 || waits[5*time.Second] != maxKeysWaiting || len(waits) != 2 {
			t.Error(waits)
		}
		time.Sleep(5 * time.Second) // the read ends after 10 s
		synctest.Wait()
		if stats := s.stats()[0]; stats.failed != 1 {
			t.Errorf("%+v", stats)
		}
		time.Sleep(time.Minute)
		if began = time.Now(); k.try(hasKey("k")) != errIssuerDown || time.Since(began) != 5*time.Second {
			t.Errorf("a later token waits for %v: those before it still count", time.Since(began))
		}
	})
}

// TestKeysDown: the keys of an issuer that is down stay; a token that needs another key gets
// errIssuerDown, and errKeyUnknown once the issuer is back.
func TestKeysDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		s, k := stubKeys(func(context.Context) ([]byte, error) {
			if down.Load() {
				return nil, errors.New("down")
			}
			return keySetOf(signingKey{"k", "ES256", p256Key()}), nil
		})
		defer s.close()
		down.Store(true)
		time.Sleep(24 * time.Hour)
		if err := k.try(hasKey("k")); err != nil {
			t.Error("the keys did not stay:", err)
		}
		if err := k.try(hasKey("other")); err != errIssuerDown {
			t.Error(err)
		}
		if age := s.stats()[0].age; age < 23*time.Hour || age > 24*time.Hour {
			t.Error("age", age)
		}
		down.Store(false)
		time.Sleep(6 * time.Minute)
		if err := k.try(hasKey("other")); err != errKeyUnknown {
			t.Error(err)
		}
		if age := s.stats()[0].age; age > 6*time.Minute {
			t.Error("age", age)
		}
	})
}

// TestKeysPanic: a panic while keys are read is an error like another.
func TestKeysPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := stubKeys(func(context.Context) ([]byte, error) { panic("here") })
		defer s.close()
		if err := k.try(hasKey("k")); err != errIssuerDown {
			t.Error(err)
		}
	})
}

// TestKeysUse: a reload keeps the keys of an issuer that did not change, stops the reads of one
// that did or is gone, and drops its keys.
func TestKeysUse(t *testing.T) {
	entry := oidcIssuer{name: "a", issuer: "https://a.example", algorithms: []string{"RS256"}, audience: []string{"x"}}
	for _, c := range []struct {
		what   string
		change func(*oidcIssuer)
		keeps  bool
	}{
		{"nothing", func(*oidcIssuer) {}, true},
		{"name", func(i *oidcIssuer) { i.name = "b" }, true},
		{"audience", func(i *oidcIssuer) { i.audience = []string{"y"} }, true},
		{"algorithms", func(i *oidcIssuer) { i.algorithms = []string{"ES256"} }, true},
		{"issuer", func(i *oidcIssuer) { i.issuer = "https://b.example" }, false},
		{"jwks_url", func(i *oidcIssuer) { i.jwksURL = "https://a.example/keys" }, false},
		{"ca_file", func(i *oidcIssuer) { i.caFile = "/ca" }, false},
		{"token_file", func(i *oidcIssuer) { i.tokenFile = "/token" }, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			reads := map[keySource]int{}
			var mu sync.Mutex
			s := newKeyStore(slog.New(slog.DiscardHandler))
			s.read = func(_ context.Context, from keySource) ([]byte, error) {
				mu.Lock()
				defer mu.Unlock()
				reads[from]++
				return keySetOf(signingKey{"k", "ES256", p256Key()}), nil
			}
			defer s.close()
			s.use([]*oidcIssuer{&entry})
			synctest.Wait()
			before := s.of(entry.issuer)
			next := entry
			c.change(&next)
			s.use([]*oidcIssuer{&next})
			synctest.Wait()
			after := s.of(next.issuer)
			if kept := before == after; kept != c.keeps {
				t.Errorf("%s: kept %v", c.what, kept)
			}
			if dropped := before.set.Load() == nil; dropped == c.keeps || after.set.Load() == nil {
				t.Errorf("%s: dropped %v", c.what, dropped)
			}
			if stats := s.stats(); len(stats) != 1 || stats[0].name != next.name || stats[0].ok != 1 || !stats[0].known {
				t.Errorf("%s: %+v", c.what, stats)
			}
			time.Sleep(time.Hour)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !c.keeps && reads[before.source] != 1 {
				t.Errorf("%s: %d reads of an issuer that is gone", c.what, reads[before.source])
			}
		})
	}
}

// TestKeysRemovedWhileRead: what is read of an issuer that was removed meanwhile is not used, and nobody waits for it.
func TestKeysRemovedWhileRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := stubKeys(func(ctx context.Context) ([]byte, error) {
			<-ctx.Done()
			return keySetOf(signingKey{"k", "ES256", p256Key()}), nil
		})
		defer s.close()
		began := time.Now()
		go s.use(nil)
		if err := k.try(hasKey("k")); err != errIssuerDown || time.Since(began) != 0 {
			t.Error(err, time.Since(began))
		}
		if synctest.Wait(); k.set.Load() != nil {
			t.Error("the keys are in use")
		}
	})
}

// TestKeysLog: a failure is logged once, and its end too; no line has a secret.
func TestKeysLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		var down atomic.Bool
		s := newKeyStore(slog.New(slog.NewTextHandler(&out, nil)))
		s.read = func(context.Context, keySource) ([]byte, error) {
			if down.Load() {
				return nil, errors.New("no route")
			}
			return keySetOf(signingKey{"k", "ES256", p256Key()}), nil
		}
		down.Store(true)
		s.use([]*oidcIssuer{{name: "i", issuer: "https://issuer.example"}})
		for _, next := range []bool{false, true, false} {
			time.Sleep(time.Hour)
			down.Store(next)
		}
		time.Sleep(time.Hour)
		s.close()
		synctest.Wait()
		var got []string
		for line := range strings.Lines(out.String()) {
			_, line, _ = strings.Cut(strings.TrimSpace(line), " ")
			got = append(got, line)
		}
		want := []string{
			`level=WARN msg="cannot read the keys of an issuer" name=i issuer=https://issuer.example error="no route"`,
			`level=INFO msg="keys of an issuer read" name=i issuer=https://issuer.example keys=1`,
			`level=WARN msg="cannot read the keys of an issuer" name=i issuer=https://issuer.example error="no route"`,
			`level=INFO msg="keys of an issuer can be read again" name=i issuer=https://issuer.example`,
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s", strings.Join(got, "\n"))
		}
	})
}

func pemOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func keysFile(t *testing.T, text string) string {
	name := filepath.Join(t.TempDir(), "file")
	putFile(t, name, text)
	return name
}

func putFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
