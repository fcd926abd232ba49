// Package issuer runs the service against a real OpenID provider: that of zitadel/oidc, which is
// certified, with keys that rotate. It is a module of its own: what it needs never enters the service.
package issuer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// The client of the provider's example storage that may use the client credentials grant.
const (
	clientID     = "sid1"
	clientSecret = "verysecret"
)

// signingKey is a key of the provider.
type signingKey struct {
	id        string
	algorithm jose.SignatureAlgorithm
	private   any
	public    any
}

func (k *signingKey) ID() string                                  { return k.id }
func (k *signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k *signingKey) Key() any                                    { return k.private }

// publicKey is a signingKey as the provider publishes it.
type publicKey struct{ *signingKey }

func (k publicKey) Algorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                           { return k.public }

func newRSAKey(t *testing.T, id string) *signingKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return &signingKey{id, jose.RS256, key, &key.PublicKey}
}

func newECKey(t *testing.T, id string) *signingKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signingKey{id, jose.ES256, key, &key.PublicKey}
}

// provider is an OpenID provider on an address that stays the same while it is down.
type provider struct {
	*storage.Storage
	t       *testing.T
	issuer  string
	handler http.Handler
	server  *http.Server // nil: it is down
	fetches atomic.Int32 // of the keys

	mu   sync.Mutex
	keys []*signingKey // the first one signs
}

// newProvider returns a provider that is down.
func newProvider(t *testing.T, keys ...*signingKey) *provider {
	l := listen(t, "127.0.0.1:0")
	p := &provider{Storage: storage.NewStorage(storage.NewUserStore("http://localhost")), t: t, issuer: "http://" + l.Addr().String(), keys: keys}
	l.Close()
	handler, err := op.NewProvider(&op.Config{CryptoKey: [32]byte{1}, CryptoKeyId: "1"}, p, op.StaticIssuer(p.issuer), op.WithAllowInsecure())
	if err != nil {
		t.Fatal(err)
	}
	p.handler = handler
	t.Cleanup(func() { p.stop() })
	return p
}

func (p *provider) start() {
	l := listen(p.t, strings.TrimPrefix(p.issuer, "http://"))
	p.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			p.fetches.Add(1)
		}
		p.handler.ServeHTTP(w, r)
	})}
	go p.server.Serve(l)
}

func (p *provider) stop() {
	if p.server != nil {
		p.server.Close()
		p.server = nil
	}
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// rotate replaces the keys. The first one signs.
func (p *provider) rotate(keys ...*signingKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = keys
}

// token gets an access token by the client credentials grant. What the scopes say, such as
// audience=x, goes into the token.
func (p *provider) token(scopes ...string) string {
	p.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {strings.Join(scopes, " ")}}
	r, err := http.NewRequest(http.MethodPost, p.issuer+"/oauth/token", strings.NewReader(form.Encode()))
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(clientID, clientSecret)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	var reply struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(res.Body).Decode(&reply); err != nil || strings.Count(reply.AccessToken, ".") != 2 {
		p.t.Fatal(res.Status, reply, err)
	}
	return reply.AccessToken
}

// The methods below replace those of the example storage.

func (p *provider) SigningKey(context.Context) (op.SigningKey, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keys[0], nil
}

func (p *provider) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.RS256, jose.ES256}, nil
}

func (p *provider) KeySet(context.Context) (keys []op.Key, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range p.keys {
		keys = append(keys, publicKey{k})
	}
	return keys, nil
}

// jwtClient gets JWTs, not opaque tokens.
type jwtClient struct{ op.Client }

func (jwtClient) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }

func (p *provider) ClientCredentials(ctx context.Context, id, secret string) (op.Client, error) {
	client, err := p.Storage.ClientCredentials(ctx, id, secret)
	return jwtClient{client}, err
}

func (p *provider) ClientCredentialsTokenRequest(_ context.Context, id string, scopes []string) (op.TokenRequest, error) {
	return &oidc.JWTTokenRequest{Subject: "repo:" + scopeOf(scopes, "repository", "none"), Audience: []string{scopeOf(scopes, "audience", "pagewright")}, Scopes: scopes}, nil
}

func (p *provider) CreateAccessToken(_ context.Context, request op.TokenRequest) (string, time.Time, error) {
	life, err := time.ParseDuration(scopeOf(request.GetScopes(), "life", "5m"))
	return rand.Text(), time.Now().Add(life), err
}

func (p *provider) GetPrivateClaimsFromScopes(_ context.Context, _, _ string, scopes []string) (map[string]any, error) {
	return map[string]any{"repository": scopeOf(scopes, "repository", "none")}, nil
}

func scopeOf(scopes []string, name, otherwise string) string {
	i := slices.IndexFunc(scopes, func(scope string) bool { return strings.HasPrefix(scope, name+"=") })
	if i < 0 {
		return otherwise
	}
	return strings.TrimPrefix(scopes[i], name+"=")
}
