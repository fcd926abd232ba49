//go:build integration

package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestRealStores(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		testBackend(t, func(t *testing.T) Backend { return s.open(t, "") }, s.but...)
	})
}

func BenchmarkRealStores(b *testing.B) {
	for name, start := range realStores {
		b.Run(name, func(b *testing.B) { benchBackend(b, start(b).open(b, "")) })
	}
}

// The HTTP sequences of handlers_test.go, over every store.
func TestRealStoresThroughTheFrontDoor(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		server := s.frontDoor(t)
		for _, c := range []struct {
			name string
			test func(t *testing.T, s *testServer)
		}{
			{"artifact", artifactSequence},
			{"conditions", conditionalSequence},
			{"ranges", rangeSequence},
			{"history", historySequence},
			{"create race", func(t *testing.T, s *testServer) { createRace(t, s, 50_000) }},
			{"create race in parts", func(t *testing.T, s *testServer) {
				s.do(t, 204, request{"DELETE", "/sites/race/artifacts/b", nil, nil})
				createRace(t, s, largeBody)
			}},
		} {
			t.Run(c.name, func(t *testing.T) { c.test(t, server) })
		}
	})
}

// storeProxy starts a proxy of a store that passes each response to modify.
func storeProxy(t *testing.T, to string, modify func(*http.Response) error) (proxy string) {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	p := httputil.NewSingleHostReverseProxy(target)
	p.ModifyResponse = modify
	p.FlushInterval = -1 // a body that is cut has begun
	p.ErrorLog = httpDiscard
	direct := p.Director
	p.Director = func(r *http.Request) { // the signature is of the host that the client asked
		host := r.Host
		direct(r)
		r.Host = host
	}
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	return server.URL
}

// lossyProxy starts a proxy of a store that drops the response to every nth write, after the
// store has done the write.
func lossyProxy(t *testing.T, to string, n int64) (proxy string, dropped *atomic.Int64) {
	t.Helper()
	dropped = &atomic.Int64{}
	var writes atomic.Int64
	return storeProxy(t, to, func(resp *http.Response) error {
		switch resp.Request.Method {
		case http.MethodPut, http.MethodPost:
			if writes.Add(1)%n == 0 {
				dropped.Add(1)
				panic(http.ErrAbortHandler)
			}
		}
		return nil
	}), dropped
}

// postEntries lets 8 clients append 25 entries each to one build over two
// service processes, and returns how many were acknowledged.
func postEntries(t *testing.T, services []*storeServer) int64 {
	t.Helper()
	var acknowledged atomic.Int64
	var g sync.WaitGroup
	for w := range 8 {
		g.Go(func() {
			for i := range 25 {
				resp, err := http.Post(services[w%len(services)].url()+"/sites/s/logs", "application/json",
					strings.NewReader(fmt.Sprintf(`{"build_id":"b","action":"w%d","status":"s%d"}`, w, i)))
				if err != nil {
					t.Error(err)
					return
				}
				answer, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode == http.StatusCreated {
					acknowledged.Add(1)
				} else {
					t.Errorf("writer %d, entry %d: %d %s", w, i, resp.StatusCode, answer)
				}
			}
		})
	}
	g.Wait()
	return acknowledged.Load()
}

func TestRealStoresKeepEveryEntry(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		for _, lossy := range []bool{false, true} {
			t.Run(fmt.Sprintf("lossy=%v", lossy), func(t *testing.T) {
				through, dropped := "", &atomic.Int64{}
				if lossy {
					through, dropped = lossyProxy(t, s.server.url(), 7)
				}
				in := s.with(map[string]string{s.prefixVariable(): fmt.Sprint("entries-", lossy)})
				services := []*storeServer{in.service(t, through), in.service(t, through)}
				acknowledged := postEntries(t, services)
				v := versionOf(t, in.open(t, ""), "s", "b")
				if v == nil || len(v.Logs) != 200 || acknowledged != 200 {
					t.Fatalf("%d entries were acknowledged, and there is %+v", acknowledged, v)
				}
				var said []string
				for _, e := range v.Logs {
					said = append(said, e.Action+e.Status)
				}
				slices.Sort(said)
				if n := len(slices.Compact(said)); n != 200 {
					t.Errorf("%d of the entries are different ones", n)
				}
				t.Logf("8 writers x 25 over 2 processes, %d replies dropped: %d acknowledged, %d entries", dropped.Load(), acknowledged, len(v.Logs))
			})
		}
	})
}

// patientClient is for requests during which the store may be down.
var patientClient = &http.Client{Timeout: 2 * time.Minute}

func putBuild(service, id string, data []byte) (int, error) {
	req, err := http.NewRequest(http.MethodPut, service+"/sites/s/artifacts/"+id, bytes.NewReader(data))
	if err != nil {
		return 0, err
	}
	resp, err := patientClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// The store is killed, or ended with the signal s.ends, and restarted under load: no acknowledged
// write is lost, errors are 503, and the service recovers by itself.
func TestRealStoresRestart(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		signal := cmp.Or(s.ends, syscall.SIGKILL)
		service := s.service(t, "")
		var acknowledged sync.Map
		var count, refused atomic.Int64
		var g sync.WaitGroup
		stop := make(chan struct{})
		end := sync.OnceFunc(func() { close(stop); g.Wait() })
		defer end()
		for w := range 6 {
			g.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					id, data := fmt.Sprintf("b%d-%d", w, i), body([]int{5000, largeBody}[w%2], byte(w*16+i%16))
					switch status, err := putBuild(service.url(), id, data); {
					case err != nil:
						t.Errorf("upload %s: %v", id, err)
					case status == http.StatusCreated:
						acknowledged.Store(id, data)
						count.Add(1)
					case status == http.StatusServiceUnavailable:
						refused.Add(1)
						time.Sleep(50 * time.Millisecond) // as a client that minds Retry-After
					default:
						t.Errorf("upload %s: status %d", id, status)
					}
				}
			})
		}
		waitFor(t, "uploads", func() bool { return count.Load() >= 10 })
		s.server.end(signal)
		waitFor(t, "refusals", func() bool { return refused.Load() >= 6 })
		waitFor(t, "/ready to say so", func() bool { return getStatus(service.url()+"/ready") == 503 })
		if got := getStatus(service.url() + "/health"); got != 200 {
			t.Errorf("/health is %d while the store is down", got)
		}
		before := count.Load()
		s.server.start()
		waitFor(t, "uploads again", func() bool { return count.Load() >= before+10 })
		waitFor(t, "/ready to recover", func() bool { return getStatus(service.url()+"/ready") == 200 })
		end()
		n := 0
		acknowledged.Range(func(id, data any) bool {
			n++
			got, err := fetch(s.open(t, ""), "s", id.(string))
			if err != nil || !bytes.Equal(got, data.([]byte)) {
				t.Errorf("acknowledged %s: %d bytes of %d, %v", id, len(got), len(data.([]byte)), err)
			}
			return true
		})
		t.Logf("%d uploads acknowledged (%d before the restart by %q), %d refused with 503, %d checked", count.Load(), before, signal, refused.Load(), n)
	})
}

// waitFor polls until done, for a minute or two.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

func getStatus(url string) int {
	resp, err := patientClient.Get(url)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// The service is killed in the middle of a large upload: no part of it is visible.
func TestRealStoresKillDuringAnUpload(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		service := s.service(t, "")
		old := body(3000, 9)
		if status, err := putBuild(service.url(), "old", old); status != 201 {
			t.Fatal(status, err)
		}
		ids := []string{"new", "old"}
		var g sync.WaitGroup
		var writers []*io.PipeWriter
		for _, id := range ids {
			r, w := io.Pipe()
			writers = append(writers, w)
			g.Go(func() {
				req, _ := http.NewRequest(http.MethodPut, service.url()+"/sites/s/artifacts/"+id, r)
				if resp, err := patientClient.Do(req); err == nil {
					resp.Body.Close()
					t.Errorf("half an upload was answered %d", resp.StatusCode)
				}
			})
			if _, err := w.Write(body(largeBody, 1)); err != nil {
				t.Fatal(err)
			}
		}
		waitFor(t, "the uploads to be under way", func() bool { return s.unfinished == nil || s.unfinished(t) >= len(ids) })
		service.kill()
		for _, w := range writers {
			w.CloseWithError(errors.New("the service is gone"))
		}
		g.Wait()
		b := s.open(t, "")
		_, err := fetch(b, "s", "new")
		wantError(t, err, ErrNotFound)
		wantBytes(t, b, "s", "old", old)
		if versions, err := b.ListVersions("s"); err != nil || len(versions) != 1 {
			t.Errorf("listed are %v, %v", versions, err)
		}
		if s.unfinished != nil {
			t.Logf("%d unfinished uploads are left to the store's lifecycle rule; nothing of them is seen", s.unfinished(t))
		}
		again := s.service(t, "")
		if status, err := putBuild(again.url(), "new", body(largeBody, 2)); status != 201 {
			t.Fatal(status, err)
		}
		wantBytes(t, b, "s", "new", body(largeBody, 2))
	})
}

// A signed URL serves the build without credentials, until it expires.
func TestRealStoresSignURLs(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		b := s.open(t, "")
		data := body(100_000, 1)
		mustStore(t, b, "s", "b+1", data)
		link, err := b.(Redirector).ArtifactURL("s", "b+1", time.Minute)
		if s.cannotSign {
			wantError(t, err, ErrUnsupported)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		resp, err := patientClient.Get(link)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || !bytes.Equal(got, data) {
			t.Errorf("status %d, %d bytes, %v", resp.StatusCode, len(got), err)
		}
		if d := resp.Header.Get("Content-Disposition"); d != `attachment; filename="s-b+1.tar.gz"` {
			t.Errorf("Content-Disposition is %s", d)
		}
		if status := getStatus(strings.Replace(link, "b%2B1", "b%2B2", 1)); status < 400 {
			t.Errorf("the URL of another build answers %d", status)
		}
	})
}
