//go:build integration

package container

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"
)

// client speaks to the service at base, without keeping connections: each
// request is a new chance to meet a service that stops.
type client struct {
	base  string
	probe string // the path that is 200 when the service is ready
	http  http.Client
}

func newClient(address string) *client {
	return &client{"http://" + address, "/ready", http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{DisableKeepAlives: true},
	}}
}

// do sends one request and returns the status and the body of the answer.
func (c *client) do(method, path string, body io.Reader) (int, []byte, error) {
	req, err := http.NewRequest(method, c.base+path, body)
	if err != nil {
		return 0, nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return res.StatusCode, data, err
}

// want fails the test unless the answer has the status.
func (c *client) want(t *testing.T, status int, method, path string, body []byte) []byte {
	t.Helper()
	got, data, err := c.do(method, path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if got != status {
		t.Fatalf("%s %s: status %d, not %d: %s", method, path, got, status, data)
	}
	return data
}

// ready waits until the service is ready, or returns what it is instead.
func (c *client) ready() error {
	return until(time.Minute, func() error {
		status, body, err := c.do("GET", c.probe, nil)
		if err == nil && status != 200 {
			err = fmt.Errorf("%s: %d %s", c.probe, status, body)
		}
		return err
	})
}

// tour goes through the API with a build of its own.
func (c *client) tour(t *testing.T, build string) {
	t.Helper()
	path := "/sites/tour/artifacts/" + build
	body := randomBody(3 << 20)
	if c.probe == "/ready" { // else a proxy passes nothing on but the API
		c.want(t, 200, "GET", "/health", nil)
	}
	if err := c.ready(); err != nil {
		t.Fatal(err)
	}
	c.want(t, 404, "GET", path, nil)
	c.want(t, 201, "PUT", path, body)
	if got := c.want(t, 200, "GET", path, nil); !bytes.Equal(got, body) {
		t.Fatalf("%s: %d other bytes than the %d that were stored", path, len(got), len(body))
	}
	c.want(t, 200, "HEAD", path, nil)
	c.want(t, 201, "POST", "/sites/tour/logs", []byte(`{"build_id":"`+build+`","action":"deploy","status":"ok"}`))
	var list struct {
		Versions []struct {
			BuildID   string `json:"build_id"`
			SizeBytes int    `json:"size_bytes"`
			Logs      []any
		}
	}
	data := c.want(t, 200, "GET", "/sites/tour/versions", nil)
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatal(err)
	}
	for _, v := range list.Versions {
		if v.BuildID == build && v.SizeBytes == len(body) && len(v.Logs) == 1 {
			return
		}
	}
	t.Fatalf("%s with its log is not among the versions: %s", build, data)
}

func randomBody(n int) []byte {
	body := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32())})
	r.Read(body)
	return body
}

// load uploads builds, some at a time, each into a name of its own, until it is
// told to stop.
type load struct {
	c        *client
	site     string
	stop     chan struct{}
	wg       sync.WaitGroup
	mu       sync.Mutex
	accepted map[string][32]byte // acknowledged, with the digest of the bytes
	refused  map[string]int      // answered with another status
	broken   int                 // not answered
	sent     map[string][32]byte // every upload that was begun
}

func startLoad(c *client, site string, workers int) *load {
	l := &load{c: c, site: site, stop: make(chan struct{}),
		accepted: map[string][32]byte{}, refused: map[string]int{}, sent: map[string][32]byte{}}
	for w := range workers {
		l.wg.Add(1)
		go func() {
			defer l.wg.Done()
			for i := 0; ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				l.upload(fmt.Sprintf("w%d-%d", w, i))
			}
		}()
	}
	return l
}

func (l *load) upload(build string) {
	body := randomBody(256<<10 + rand.IntN(1<<20))
	sum := sha256.Sum256(body)
	l.mu.Lock()
	l.sent[build] = sum
	l.mu.Unlock()
	// In two halves with a pause, as from a client on a slow line, so that
	// there is always an upload in flight.
	slow := io.MultiReader(bytes.NewReader(body[:len(body)/2]), pause(50*time.Millisecond), bytes.NewReader(body[len(body)/2:]))
	req, _ := http.NewRequest("PUT", l.c.base+"/sites/"+l.site+"/artifacts/"+build, slow)
	req.ContentLength = int64(len(body))
	res, err := l.c.http.Do(req)
	if err == nil {
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil:
		l.broken++
	case res.StatusCode == http.StatusCreated:
		l.accepted[build] = sum
	default:
		l.refused[res.Status]++
	}
	if err != nil { // the service is gone: do not spin
		time.Sleep(20 * time.Millisecond)
	}
}

// acknowledged is the number of uploads that were so far.
func (l *load) acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.accepted)
}

// end stops the load and waits for it.
func (l *load) end() {
	close(l.stop)
	l.wg.Wait()
}

// check fails the test unless every acknowledged upload is there, and every
// other one is wholly there or wholly absent.
func (l *load) check(t *testing.T) {
	t.Helper()
	whole := 0
	for build, sum := range l.sent {
		status, body, err := l.c.do("GET", "/sites/"+l.site+"/artifacts/"+build, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, acknowledged := l.accepted[build]
		switch {
		case status == 200 && sha256.Sum256(body) == sum:
			whole++
		case status == 404 && !acknowledged:
		default:
			t.Errorf("%s (acknowledged: %v): status %d with %d bytes that were not sent", build, acknowledged, status, len(body))
		}
	}
	t.Logf("uploads: %d begun, %d acknowledged, %d refused %v, %d without an answer; %d whole, none torn",
		len(l.sent), len(l.accepted), sum(l.refused), l.refused, l.broken, whole)
	if len(l.accepted) == 0 {
		t.Error("no upload was acknowledged: the load proves nothing")
	}
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

// pause is a reader that yields nothing, late.
type pause time.Duration

func (p pause) Read([]byte) (int, error) {
	time.Sleep(time.Duration(p))
	return 0, io.EOF
}
