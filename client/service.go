package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	// stallTimeout ends an attempt in which no byte moves for so long.
	stallTimeout = time.Minute
	// continueTimeout is how long an upload waits for 100 Continue, or a refusal, before it
	// sends the body. It is long enough for the service to look at its store, and for servers
	// that never send 100 Continue the delay is bearable.
	continueTimeout = 10 * time.Second
	// slowest is the rate at which a proxy that has taken a whole body hands it on, at least.
	slowest       = 4 << 20 // bytes a second
	maxReply      = 64 << 20
	maxErrorReply = 64 << 10
	maxRedirects  = 5
)

// checkAddress is what to do when a response is not one of the service.
const checkAddress = "check PAGEWRIGHT_URL (or --url)"

// service is a running service.
type service struct {
	base     *url.URL
	http     *http.Client
	token    tokenSource
	agent    string
	retryFor time.Duration
	stall    time.Duration
	note     func(format string, args ...any) // tells people about retries
}

// newService returns the service that the options and variables of c name.
func newService(c *call) (*service, error) {
	address, invalid := c.text("url"), func(err error) error { return usagef("--url: %v", err) }
	if address == "" {
		address, invalid = c.env("PAGEWRIGHT_URL"), func(err error) error { return configf("PAGEWRIGHT_URL: %w", err) }
	}
	if address == "" {
		return nil, usagef("set PAGEWRIGHT_URL (or --url) to the address of the service, for example https://store.example.org")
	}
	base, err := parseBase(strings.TrimSpace(address))
	if err != nil {
		return nil, invalid(err)
	}
	conf, err := tlsConfig(c.text("ca"), c.text("cert"), c.text("key"))
	if err != nil {
		return nil, err
	}
	if c.duration("retry-for") < 0 {
		return nil, usagef("--retry-for must not be negative")
	}
	s := &service{
		base:     base,
		http:     newHTTPClient(base, conf),
		agent:    "pagewright-storage/" + c.Version,
		retryFor: c.duration("retry-for"),
		stall:    stallTimeout,
		note:     c.note,
	}
	s.token, err = newTokenSource(c, s)
	if err != nil {
		return nil, err
	}
	if s.token != nil && base.Scheme == "http" && !isLoopback(base.Hostname()) {
		c.warn("the token goes to %s without encryption: use https", base.Host)
	}
	return s, nil
}

// parseBase checks the address of a service. Its path ends with a slash.
func parseBase(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	var parsing *url.Error
	switch {
	case errors.As(err, &parsing):
		return nil, fmt.Errorf("not a URL: %w", parsing.Err) // the error itself repeats the URL, which can hold a password
	case err != nil:
		return nil, err
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("the address must begin with http:// or https://")
	case u.Hostname() == "":
		return nil, errors.New("the address has no host")
	case !isPort(portOf(u)):
		return nil, fmt.Errorf("the port %s must be from 1 to 65535", u.Port())
	case u.User != nil:
		return nil, errors.New("the address must not have a user or password: use PAGEWRIGHT_TOKEN")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return nil, errors.New("the address must not have a query or fragment")
	}
	return u.JoinPath("/"), nil
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// tlsConfig reads the files of the options --ca, --cert and --key.
func tlsConfig(ca, cert, key string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, usagef("--ca: %v", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usagef("--ca: %s has no certificate (PEM)", ca)
		}
	}
	if (cert == "") != (key == "") {
		return nil, usagef("--cert and --key belong together")
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, usagef("--cert, --key: %v", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// newHTTPClient returns a client that shows the certificate of conf only to the origin of base.
func newHTTPClient(base *url.URL, conf *tls.Config) *http.Client {
	own := newTransport(conf)
	others := newTransport(&tls.Config{MinVersion: conf.MinVersion, RootCAs: conf.RootCAs})
	return &http.Client{
		Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if sameOrigin(r.URL, base) {
				return own.RoundTrip(r)
			}
			return others.RoundTrip(r)
		}),
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			switch first := via[0]; {
			case first.Method != http.MethodGet && first.Method != http.MethodHead:
				return http.ErrUseLastResponse // a PUT would become a GET, and look like a success
			case len(via) > maxRedirects:
				return permanentError{fmt.Errorf("more than %d redirects", maxRedirects)}
			case first.URL.Scheme == "https" && r.URL.Scheme != "https":
				return permanentError{fmt.Errorf("the redirect to %s is not encrypted", r.URL.Host)}
			case !sameOrigin(r.URL, first.URL):
				r.Header.Del("Authorization")
			}
			r.Header.Del("Referer")
			return nil
		},
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && portOf(a) == portOf(b)
}

func portOf(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}

func newTransport(conf *tls.Config) *http.Transport {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 20 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       conf,
		TLSHandshakeTimeout:   20 * time.Second,
		ExpectContinueTimeout: continueTimeout,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   16,
		DisableCompression:    true, // the bytes of a build are taken as they are
		WriteBufferSize:       64 << 10,
		ReadBufferSize:        64 << 10,
		Protocols:             new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true) // one connection for each request: a stall is that of one transfer
	return t
}

func (s *service) close() { s.http.CloseIdleConnections() }

// request is what all attempts of a request have in common.
type request struct {
	method string
	path   string // below the base URL, see artifactPath
	query  url.Values
	header http.Header
	size   int64            // of the body
	body   func() io.Reader // returns the body from its first byte, for each attempt; nil: no body
	expect bool             // send the body only after 100 Continue
	sent   func(n int)      // is called when n bytes of the body were taken; may be nil
}

// String returns the method and the path.
func (r *request) String() string { return r.method + " /" + r.path }

// jsonRequest returns a request with value as its body.
func jsonRequest(method, path string, value any) (*request, error) {
	var buf bytes.Buffer
	encoder := json.NewEncoder(&buf)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, err
	}
	text := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	return &request{
		method: method, path: path,
		header: http.Header{"Content-Type": {"application/json"}},
		size:   int64(len(text)),
		body:   func() io.Reader { return bytes.NewReader(text) },
	}, nil
}

// try sends the request once. It returns a *statusError unless the status is 2xx or 304. The
// caller closes the body, whose Read fails when no byte arrives for stallTimeout. Errors are
// judged by isTemporary.
func (s *service) try(ctx context.Context, r *request) (*http.Response, error) {
	ctx, w := newWatch(ctx, s.stall, r.String())
	resp, err := s.send(ctx, w, r)
	if err != nil {
		err = w.explain(err)
		w.stop()
		return nil, err
	}
	resp.Body = &watchedBody{resp.Body, w}
	if resp.StatusCode/100 == 2 || resp.StatusCode == http.StatusNotModified {
		return resp, nil
	}
	defer resp.Body.Close()
	e, err := newStatusError(r, resp)
	if err != nil && e.status == http.StatusNotFound { // who says so is in the body
		return nil, temporaryError{fmt.Errorf("%s: the response is cut: %w", r, w.explain(err))}
	}
	if e.status == http.StatusUnauthorized && s.token == nil && !strings.Contains(resp.Header.Get("Www-Authenticate"), "error=") {
		e.text = "no token is set: set PAGEWRIGHT_TOKEN or PAGEWRIGHT_TOKEN_FILE"
	}
	return nil, e
}

func (s *service) send(ctx context.Context, w *watch, r *request) (*http.Response, error) {
	u := s.base.JoinPath(r.path)
	u.RawQuery = r.query.Encode()
	var body io.Reader
	if r.body != nil {
		body = &sentBody{Reader: r.body(), size: r.size, left: r.size, watch: w, sent: r.sent}
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if r.header != nil {
		req.Header = r.header.Clone()
	}
	req.ContentLength = r.size
	if r.expect {
		// A connection that stays open after a refusal would need the body: net/http sends it then.
		req.Close = true
		req.Header.Set("Expect", "100-continue")
	}
	req.Header.Set("User-Agent", s.agent)
	if s.token != nil {
		token, err := s.token(ctx)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	w.start(s.stall)
	defer w.pause()
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, withoutURL(r.String(), err)
	}
	return resp, nil
}

// withoutURL returns the error of an http.Client without the URL, which can be a signed one of
// a store.
func withoutURL(what string, err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	return fmt.Errorf("%s: %w", what, err)
}

// reply is a response that was read as a whole.
type reply struct {
	request string // method and path
	status  int
	header  http.Header
	body    []byte
}

// decode parses the body as JSON.
func (r *reply) decode(into any) error {
	switch err := json.Unmarshal(r.body, into); {
	case err == nil:
		return nil
	case json.Valid(r.body):
		return r.foreign("it is other JSON")
	}
	return r.foreign("it is no JSON")
}

// foreign returns the error for a success that the service cannot have sent, such as a login page.
func (r *reply) foreign(why string) error {
	return errorf(exitFailure, "%s: the response is not that of the service, %s: %s", r.request, why, checkAddress)
}

// isBuild returns an error unless the response is one to a HEAD for a build.
func (r *reply) isBuild() error {
	kind, _, _ := mime.ParseMediaType(r.header.Get("Content-Type"))
	if kind == "text/html" || strongETag(r.header) == "" && reprDigest(r.header) == "" {
		return r.foreign("which says application/gzip and sends a strong ETag")
	}
	return nil
}

// once is try for responses that fit into memory.
func (s *service) once(ctx context.Context, r *request) (*reply, error) {
	resp, err := s.try(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	switch {
	case err != nil:
		return nil, err
	case len(body) > maxReply:
		return nil, errorf(exitFailure, "%s: the response is larger than %d MiB", r, maxReply>>20)
	}
	return &reply{r.String(), resp.StatusCode, resp.Header, body}, nil
}

// do sends the request, and again until there is a response or an error that stays.
func (s *service) do(ctx context.Context, r *request) (*reply, error) {
	for tries := s.newRetries(); ; {
		reply, err := s.once(ctx, r)
		if err == nil {
			return reply, nil
		}
		if err := tries.wait(ctx, err); err != nil {
			return nil, err
		}
	}
}

// statusError is a response that is no success.
type statusError struct {
	status     int
	text       string // of the JSON error
	request    string // method and path
	requestID  string
	retryAfter time.Duration // 0: not given
	mismatch   bool          // the body did not have its digest
	elsewhere  bool          // a redirect, or a 404 that is not about a site, build or label of the service
	header     http.Header
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%s: %d %s", e.request, e.status, http.StatusText(e.status))
	if e.text != "" {
		text += ": " + e.text
	}
	if e.requestID != "" {
		text += " (request " + e.requestID + ")"
	}
	if e.elsewhere {
		text += ": " + checkAddress
	}
	return text
}

// exitStatus returns the exit status of a command that ends with this response.
func (e *statusError) exitStatus() int {
	switch e.status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitDenied
	case http.StatusNotFound:
		if e.elsewhere {
			return exitFailure
		}
		return exitAbsent
	case http.StatusConflict, http.StatusPreconditionFailed:
		return exitConflict
	case http.StatusBadRequest:
		if e.mismatch {
			return exitCorrupt
		}
	}
	return exitFailure
}

// hasStatus reports whether err is a response with that status.
func hasStatus(err error, status int) bool {
	e, ok := errors.AsType[*statusError](err)
	return ok && e.status == status
}

// newStatusError reads the response. An error is that of its body, without which the rest is valid.
func newStatusError(r *request, resp *http.Response) (*statusError, error) {
	e := &statusError{
		status:     resp.StatusCode,
		request:    r.String(),
		requestID:  resp.Header.Get("X-Request-Id"),
		retryAfter: parseRetryAfter(resp.Header.Get("Retry-After"), time.Now()),
		header:     resp.Header,
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorReply))
	var said struct{ Error, Expected, Got string }
	switch {
	case resp.StatusCode/100 == 3:
		e.text, e.elsewhere = explainRedirect(r, resp)
	case r.method == http.MethodHead:
		e.text = explainChallenge(resp.Header.Get("Www-Authenticate"))
	case json.Unmarshal(body, &said) == nil && said.Error != "":
		e.text, e.mismatch = said.Error, said.Expected != "" && said.Got != ""
	default: // of a proxy
		text := strings.Join(strings.Fields(string(body)), " ")
		e.text = strings.ToValidUTF8(text[:min(len(text), 200)], "")
		e.elsewhere = e.status == http.StatusNotFound
	}
	e.elsewhere = e.elsewhere || e.status == http.StatusNotFound && e.text == "no such path"
	return e, err
}

// explainRedirect says where a redirect leads. If that is the same path below another address of the
// service, it names the address; otherwise the redirect is one of another server.
func explainRedirect(r *request, resp *http.Response) (text string, elsewhere bool) {
	to, err := resp.Location()
	if err != nil {
		return "", true
	}
	to = &url.URL{Scheme: to.Scheme, Host: to.Host, Path: to.Path} // the rest can be secret
	if base, ok := strings.CutSuffix(to.Path, "/"+r.path); ok {
		to.Path = base
		return fmt.Sprintf("the service redirects: set PAGEWRIGHT_URL (or --url) to %s", to), false
	}
	return fmt.Sprintf("redirect to %s", to), true
}

var (
	challengeText  = regexp.MustCompile(`error_description="([^"]+)"`)
	challengeScope = regexp.MustCompile(`error="insufficient_scope".*scope="([^"]+)"`)
)

// explainChallenge returns the reason in a WWW-Authenticate (RFC 6750): the response to a HEAD has no
// other.
func explainChallenge(challenge string) string {
	if m := challengeText.FindStringSubmatch(challenge); m != nil {
		return m[1]
	}
	if m := challengeScope.FindStringSubmatch(challenge); m != nil {
		return "the token lacks the right " + m[1]
	}
	return ""
}

// parseRetryAfter returns how long a header Retry-After says to wait, 0 if it does not say.
func parseRetryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(strings.TrimSpace(value)); err == nil || errors.Is(err, strconv.ErrRange) { // then it is the limit
		return time.Duration(min(max(seconds, 0), 1<<30)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
