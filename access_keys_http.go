package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	maxKeysBytes     = 1 << 20 // of a response of an issuer
	maxKeysRedirects = 3
	keysStepTimeout  = 10 * time.Second // to connect, and for the TLS handshake
)

// keySource says where the keys of an issuer are.
type keySource struct {
	issuer    string
	jwksURL   string // empty: as the discovery document says
	caFile    string // certificates to trust instead of the system's
	tokenFile string // a bearer token for the host of jwksURL, or else of the issuer
}

// readKeys returns the JSON Web Key Set of an issuer (RFC 7517). Without a URL it reads the
// discovery document, whose issuer must be the same (OpenID Connect Discovery 1.0, 4.3).
func readKeys(ctx context.Context, from keySource) ([]byte, error) {
	at := from.jwksURL
	if at == "" {
		at = strings.TrimSuffix(from.issuer, "/") + "/.well-known/openid-configuration"
	}
	start, err := url.Parse(at)
	if err != nil {
		return nil, err
	}
	client, err := from.client(start)
	if err != nil {
		return nil, err
	}
	data, err := getBounded(ctx, client, at)
	if err != nil || from.jwksURL != "" {
		return data, err
	}
	var document struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(data, &document); err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	if document.Issuer != from.issuer {
		return nil, fmt.Errorf("%s: the document is of the issuer %q", at, document.Issuer)
	}
	next, err := url.Parse(document.JWKSURI)
	if err != nil || !mayFollow(start, next) {
		return nil, fmt.Errorf("%s: jwks_uri %q is not an https URL", at, document.JWKSURI)
	}
	return getBounded(ctx, client, document.JWKSURI)
}

// mayFollow reports whether a response of one URL may lead to another: by https, or to the same host in the same way.
func mayFollow(from, to *url.URL) bool {
	return to.Host != "" && (to.Scheme == "https" || sameOrigin(from, to))
}

func sameOrigin(a, b *url.URL) bool { return a.Scheme == b.Scheme && strings.EqualFold(a.Host, b.Host) }

// client returns an HTTP client for requests that begin at start. It reads the files each
// time, so that they may be replaced.
func (from keySource) client(start *url.URL) (*http.Client, error) {
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: keysStepTimeout}).DialContext, // a dial outlives the context of its request
		TLSHandshakeTimeout:    keysStepTimeout,
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: 64 << 10,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if from.caFile != "" {
		pem, err := readSmallFile(from.caFile, maxKeysBytes)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: %s: no certificate in PEM", from.caFile)
		}
	}
	var token string
	if from.tokenFile != "" {
		data, err := readSmallFile(from.tokenFile, 64<<10)
		if err != nil {
			return nil, fmt.Errorf("token_file: %w", err)
		}
		token = strings.TrimSpace(string(data))
	}
	return &http.Client{
		Transport: &tokenTransport{t, start, token},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > maxKeysRedirects {
				return errors.New("too many redirects")
			}
			if !mayFollow(via[len(via)-1].URL, r.URL) {
				return fmt.Errorf("it redirects to %s", r.URL.Redacted())
			}
			return nil
		},
	}, nil
}

// tokenTransport sends a bearer token to one origin. net/http on its own would pass it on to subdomains too.
type tokenTransport struct {
	*http.Transport
	origin *url.URL
	token  string // empty: none
}

func (t *tokenTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.token != "" && sameOrigin(t.origin, r.URL) {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+t.token)
	}
	return t.Transport.RoundTrip(r)
}

// getBounded returns the body of a response with status 200.
func getBounded(ctx context.Context, client *http.Client, at string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/json, application/jwk-set+json")
	r.Header.Set("User-Agent", "pagewright-storage")
	res, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: status %s", at, res.Status)
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, maxKeysBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	if len(data) > maxKeysBytes {
		return nil, fmt.Errorf("%s: more than %d bytes", at, maxKeysBytes)
	}
	return data, nil
}
