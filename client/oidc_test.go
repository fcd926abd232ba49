package client

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// fakeRunner is the endpoint of a GitHub runner that issues JWTs.
type fakeRunner struct {
	*httptest.Server
	requests []*http.Request
	lifetime time.Duration
	status   int
}

func newFakeRunner(t *testing.T) *fakeRunner {
	r := &fakeRunner{lifetime: 10 * time.Minute, status: 200}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.requests = append(r.requests, req)
		w.WriteHeader(r.status)
		claims := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, time.Now().Add(r.lifetime).Unix()))
		fmt.Fprintf(w, `{"count":1,"value":"head%d.%s.sum"}`, len(r.requests), claims)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *fakeRunner) call(t *testing.T, args ...string) *call {
	c, err := callWith([]string{"ACTIONS_ID_TOKEN_REQUEST_URL=" + r.URL + "/token?api-version=2.0", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=runner", "PAGEWRIGHT_TOKEN=unused"},
		append([]string{"--oidc", "github"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestGitHubToken: one JWT serves all requests until shortly before it expires.
func TestGitHubToken(t *testing.T) {
	r := newFakeRunner(t)
	c := r.call(t, "--oidc-audience", "https://store.example.org")
	for _, want := range []string{"head1.", "head1."} {
		if got, err := c.service.token(t.Context()); err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	if q := r.requests[0]; q.URL.Query().Get("audience") != "https://store.example.org" || q.URL.Query().Get("api-version") != "2.0" || q.Header.Get("Authorization") != "Bearer runner" {
		t.Errorf("%v, %v", q.URL, q.Header)
	}
	r.lifetime = expiryMargin - time.Second
	c = r.call(t)
	for _, want := range []string{"head2.", "head3."} {
		if got, err := c.service.token(t.Context()); err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	if got := r.requests[1].URL.Query().Get("audience"); got != "pagewright" {
		t.Errorf("audience %q", got)
	}
}

func TestGitHubTokenFails(t *testing.T) {
	r := newFakeRunner(t)
	for status, temporary := range map[int]bool{500: true, 503: true, 401: false, 404: false} {
		r.status = status
		if _, err := r.call(t).service.token(t.Context()); err == nil || isTemporary(err) != temporary || !strings.Contains(err.Error(), "cannot get a token from GitHub") ||
			strings.Contains(err.Error(), "PAGEWRIGHT_URL") || status != 401 && final(t.Context(), err).(*Error).Status != exitFailure {
			t.Errorf("%d: %v", status, err)
		}
	}
	for _, environ := range [][]string{nil, {"ACTIONS_ID_TOKEN_REQUEST_URL=" + r.URL}, {"ACTIONS_ID_TOKEN_REQUEST_URL=x", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=y"}} {
		if _, err := callWith(environ, "--oidc", "github"); err == nil || final(t.Context(), err).(*Error).Status != exitConfig {
			t.Errorf("%q: %v", environ, err)
		}
	}
	if _, err := callWith(nil, "--oidc", "gitlab"); err == nil {
		t.Error("gitlab is not known")
	}
}

func TestExpiry(t *testing.T) {
	jwt := func(claims string) string { return "h." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".s" }
	for token, want := range map[string]int64{jwt(`{"exp":1800000000}`): 1800000000, jwt(`{"exp":1.8e9}`): 1800000000} {
		if got := expiry(token); got.Unix() != want {
			t.Errorf("%s: %v", token, got)
		}
	}
	for _, token := range []string{"", "x", "a.b", "a.!.c", jwt(`{`), jwt(`{}`)} {
		if got := expiry(token); got.After(time.Unix(0, 0)) {
			t.Errorf("%q: %v", token, got)
		}
	}
}
