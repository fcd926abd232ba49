package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// newGitHubToken returns a source of JWTs of the job that runs this command in GitHub Actions.
func newGitHubToken(c *call, s *service) (tokenSource, error) {
	address, secret := c.env("ACTIONS_ID_TOKEN_REQUEST_URL"), c.env("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
	if address == "" || secret == "" {
		return nil, configf("--oidc github: ACTIONS_ID_TOKEN_REQUEST_URL and ACTIONS_ID_TOKEN_REQUEST_TOKEN are not set: " +
			"the job needs \"permissions: id-token: write\", and a pull request from a fork gets no token")
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return nil, configf("ACTIONS_ID_TOKEN_REQUEST_URL is not a URL")
	}
	query := u.Query()
	query.Set("audience", c.text("oidc-audience"))
	u.RawQuery = query.Encode()
	g := &githubToken{url: u.String(), secret: secret, agent: s.agent, stall: s.stall, http: &http.Client{}}
	return g.get, nil
}

// githubToken asks the runner for JWTs. One is used until shortly before it expires.
type githubToken struct {
	url, secret, agent string
	stall              time.Duration
	http               *http.Client

	mu      sync.Mutex
	token   string
	expires time.Time
}

// expiryMargin is how long a token must still be valid: a request may wait in a queue.
const expiryMargin = time.Minute

func (g *githubToken) get(ctx context.Context) (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.token != "" && time.Until(g.expires) > expiryMargin {
		return g.token, nil
	}
	ctx, cancel := context.WithTimeout(ctx, g.stall)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url, nil)
	if err != nil {
		return "", permanentError{err}
	}
	req.Header.Set("Authorization", "Bearer "+g.secret)
	req.Header.Set("User-Agent", g.agent)
	resp, err := g.http.Do(req)
	if err != nil {
		return "", withoutURL("cannot get a token from GitHub", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		e, _ := newStatusError(&request{method: "GET"}, resp)
		e.request = "cannot get a token from GitHub"
		if e.status == http.StatusNotFound { // it is not about a build, or the address of the service
			e.elsewhere = false
			return "", errorf(exitFailure, "%v", e)
		}
		return "", e
	}
	var said struct{ Value string }
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorReply))
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(body, &said); err != nil || said.Value == "" {
		return "", errorf(exitFailure, "cannot get a token from GitHub: the response has no token")
	}
	if g.token, err = checkToken("the token from GitHub", said.Value); err != nil {
		return "", errorf(exitFailure, "%w", err)
	}
	g.expires = expiry(g.token)
	return g.token, nil
}

// expiry returns when a JWT expires; a time in the past if it does not say.
func expiry(jwt string) time.Time {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	var c struct{ Exp float64 }
	if err != nil || json.Unmarshal(claims, &c) != nil {
		return time.Time{}
	}
	return time.Unix(int64(c.Exp), 0)
}
