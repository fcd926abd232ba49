//go:build integration

package main

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// hostileProxy is a proxy in front of a service that mistreats a part of the requests. Each client
// has a path of its own below it, so that the proxy can tell them apart.
type hostileProxy struct {
	*httptest.Server
	mu    sync.Mutex
	rand  *rand.Rand
	fates map[string]int
	seen  map[string]time.Time // by client: when its last HEAD before its first PUT was answered
	wrote map[string]bool      // clients that have sent a PUT
}

// fate is what happens to a request.
type fate struct {
	client, kind string
	at           int64 // bytes of a body that pass before
}

// fateKey is the key of the fate in the context of a request.
type fateKey struct{}

// Kinds of fates, each with its share of 100 requests. All others pass.
var fateShares = map[string]int{
	"busy":         6, // 503 with Retry-After, without a look at the body
	"unavailable":  4, // 503 without it
	"refused":      4, // the connection ends before a response
	"cut upload":   6, // ... in the middle of the body of the request
	"stall upload": 2, // nothing moves for a while, then it ends
	"lost reply":   6, // the service has done it, and the client does not learn that
	"cut download": 8,
	"stall reply":  2,
}

var errFate = errors.New("as the test wants it")

func startHostileProxy(t *testing.T, target string, seed uint64) *hostileProxy {
	t.Helper()
	to, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &hostileProxy{rand: rand.New(rand.NewPCG(seed, 1)), fates: map[string]int{}, seen: map[string]time.Time{}, wrote: map[string]bool{}}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			_, path := splitClient(r.In.URL.Path)
			r.Out.URL.Path, r.Out.URL.RawPath = path, ""
		},
		ModifyResponse: p.modify,
		FlushInterval:  -1,
		ErrorLog:       httpDiscard,
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, _ := splitClient(r.URL.Path)
		f := p.draw(client, r)
		switch f.kind {
		case "busy":
			w.Header().Set("Retry-After", "1")
			fallthrough
		case "unavailable":
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"status":"error","error":"as the test wants it"}`)
			return
		case "refused":
			panic(http.ErrAbortHandler)
		case "cut upload", "stall upload":
			if r.ContentLength != 0 {
				r.Body = &fatedBody{ReadCloser: r.Body, fate: f}
			}
		}
		proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), fateKey{}, f)))
	}))
	p.Config.ErrorLog = httpDiscard
	t.Cleanup(p.Close)
	return p
}

// splitClient splits a path into the client and what the service is asked for.
func splitClient(path string) (client, rest string) {
	client, rest, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return client, "/" + rest
}

// draw draws the fate of a request, and notes what the client does.
func (p *hostileProxy) draw(client string, r *http.Request) fate {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Method == http.MethodPut {
		p.wrote[client] = true
	}
	f, n := fate{client: client, kind: "none"}, p.rand.IntN(100)
	for _, kind := range slices.Sorted(maps.Keys(fateShares)) {
		if n -= fateShares[kind]; n < 0 {
			f.kind = kind
			break
		}
	}
	f.at = p.rand.Int64N(1 << p.rand.IntN(26))
	p.fates[f.kind]++
	return f
}

// modify applies the fate of a request to the response.
func (p *hostileProxy) modify(resp *http.Response) error {
	f, _ := resp.Request.Context().Value(fateKey{}).(fate)
	p.mu.Lock()
	if resp.Request.Method == http.MethodHead && !p.wrote[f.client] {
		p.seen[f.client] = time.Now()
	}
	p.mu.Unlock()
	switch f.kind {
	case "lost reply":
		panic(http.ErrAbortHandler)
	case "cut download", "stall reply":
		resp.Body = &fatedBody{ReadCloser: resp.Body, fate: f}
	}
	return nil
}

// fatedBody is a body that ends with an error.
type fatedBody struct {
	io.ReadCloser
	fate fate
}

func (b *fatedBody) Read(p []byte) (int, error) {
	if b.fate.at <= 0 {
		if strings.HasPrefix(b.fate.kind, "stall") {
			time.Sleep(time.Second) // that nothing moves is what the test wants
		}
		return 0, errFate
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.fate.at)])
	b.fate.at -= int64(n)
	return n, err
}

// lastLook returns when the last HEAD of the client before its first PUT was answered.
func (p *hostileProxy) lastLook(client string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[client]
}
