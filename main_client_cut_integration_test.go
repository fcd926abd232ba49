//go:build integration

package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// A pull of a large build goes on where it was cut, however often, and the file has the bytes that
// were pushed.
func TestIntegrationPullThatIsCut(t *testing.T) {
	const cuts = 20
	s, dir := startServer(t), t.TempDir()
	name, back := filepath.Join(dir, "site.tar.gz"), filepath.Join(dir, "back.tar.gz")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	_, err = io.CopyN(io.MultiWriter(f, sum), rand.NewChaCha8([32]byte{20}), clientLargeFile)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	var sent, left atomic.Int64
	left.Store(cuts)
	proxy := storeProxy(t, "http://"+s.addr, func(resp *http.Response) error {
		if resp.Request.Method != http.MethodGet {
			return nil
		}
		at := resp.ContentLength + 1 // never
		if left.Add(-1) >= 0 {
			at = resp.ContentLength / 3
		}
		resp.Body = &countedBody{fatedBody{resp.Body, fate{at: at}}, &sent}
		return nil
	})
	command := func(url string, args ...string) {
		t.Helper()
		log := &lockedBuffer{}
		if err := run(t.Context(), args, []string{"PAGEWRIGHT_URL=" + url}, &bytes.Buffer{}, log); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, log)
		}
	}
	command("http://"+s.addr, "push", name, "s", "b")
	command(proxy, "pull", "s", "b", "-o", back)
	got, err := fileSum(back)
	if err != nil || got != fmt.Sprintf("%x", sum.Sum(nil)) {
		t.Errorf("the file has the SHA-256 %s, %v; want %x", got, err, sum.Sum(nil))
	}
	if left.Load() > 0 {
		t.Errorf("%d cuts were not used", left.Load())
	}
	// What was on its way at a cut is sent again.
	if most := int64(clientLargeFile + cuts*(1<<20)); sent.Load() > most {
		t.Errorf("%d bytes were sent of a build of %d, want at most %d", sent.Load(), int64(clientLargeFile), most)
	}
	t.Logf("%d bytes, cut %d times: %d bytes sent", int64(clientLargeFile), cuts, sent.Load())
}

// countedBody counts what is read.
type countedBody struct {
	fatedBody
	n *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.fatedBody.Read(p)
	b.n.Add(int64(n))
	return n, err
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return fmt.Sprintf("%x", sum.Sum(nil)), err
}
