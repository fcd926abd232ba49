//go:build integration && !no_s3

package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// flipper makes a proxy flip a bit of the byte at an offset, in the bodies of PUT.
type flipper struct {
	at    atomic.Int64
	times atomic.Int64 // bodies that are still to be changed
}

// flippingProxy starts a proxy of a store.
func flippingProxy(t *testing.T, to string, tls bool) (proxy string, f *flipper) {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	f = &flipper{}
	p := &httputil.ReverseProxy{ErrorLog: httpDiscard, Rewrite: func(r *httputil.ProxyRequest) {
		host := r.In.Host
		r.SetURL(target)
		r.Out.Host = host // the signature is of the host that the client asked
		if r.In.Method == http.MethodPut && r.In.ContentLength > f.at.Load() && f.times.Add(-1) >= 0 {
			r.Out.Body = &flippingBody{ReadCloser: r.In.Body, left: f.at.Load()}
		}
	}}
	server := httptest.NewUnstartedServer(p)
	if tls {
		server.StartTLS()
		ca := filepath.Join(t.TempDir(), "ca.pem")
		putFile(t, ca, pemOf(server.Certificate().Raw))
		t.Setenv("AWS_CA_BUNDLE", ca)
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return server.URL, f
}

type flippingBody struct {
	io.ReadCloser
	left int64 // bytes before the one to flip
}

func (b *flippingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left >= 0 && b.left < int64(n) {
		p[b.left] ^= 1
	}
	b.left -= int64(n)
	return n, err
}

// Real stores refuse bytes that change on their way, whether a checksum or the signature covers
// them, and keep the build that they have. Over TLS, all else works as it does without it.
func TestRealStoresRefuseChangedBytes(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *realStore{"versitygw": startVersity, "minio": startMinIO} {
		for _, tls := range []bool{false, true} {
			how := map[bool]string{false: " without TLS", true: " over TLS"}[tls]
			t.Run(name+how, func(t *testing.T) {
				s := start(t)
				proxy, f := flippingProxy(t, s.server.url(), tls)
				b := s.open(t, proxy).(*objectStore)
				if r, err := b.checkChecksums(); err != nil || r.err != nil || (r.what != "") != tls {
					t.Fatalf("the check found %+v, %v", r, err)
				}
				refuseChangedBytes(t, b, f)
				if tls {
					testBackend(t, func(t *testing.T) Backend { return b }, s.but...)
				}
			})
		}
	}
}

func refuseChangedBytes(t *testing.T, b *objectStore, f *flipper) {
	t.Helper()
	old := body(1000, 1)
	mustStore(t, b, "flipped", "b", old)
	for _, c := range []struct{ size, at int64 }{
		{1, 0}, {15 << 10, 0}, {15 << 10, 7000}, {15 << 10, 15<<10 - 1}, {8 << 20, 0}, {8 << 20, 8<<20 - 1},
		{largeBody, 0}, {largeBody, 1 << 20},
	} {
		f.at.Store(c.at)
		for _, data := range []io.Reader{known(body(int(c.size), 2)), unknown(body(int(c.size), 2))} {
			f.times.Store(1 << 40)
			wantError(t, b.StoreArtifact("flipped", "b", data), errChangedOnTheWay)
			f.times.Store(0)
			wantBytes(t, b, "flipped", "b", old)
		}
	}
	// An entry is tried again.
	mustLog(t, b, "flipped", entry("0", "b", time.Now())) // the first one checks the store
	f.at.Store(3)
	f.times.Store(1)
	mustLog(t, b, "flipped", entry("1", "b", time.Now()))
	if v := versionOf(t, b, "flipped", "b"); f.times.Load() >= 0 || v == nil || len(v.Logs) != 2 {
		t.Errorf("there is %+v", v)
	}
}
