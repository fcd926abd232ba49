//go:build integration || torture

package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pagewright/storage/test/service"
)

const (
	workers  = 12
	replicas = 2
	sites    = 3
	builds   = 12 // of each site
)

// soak is a run: a store, its replicas and those who use it.
type soak struct {
	t     *testing.T
	model *model
	opts  service.Options

	mu       sync.RWMutex
	replicas [replicas]*service.Service

	counts     [len(opNames)]atomic.Int64
	acked      atomic.Int64
	unanswered atomic.Int64
	kills      atomic.Int64
	stops      atomic.Int64
	cuts       atomic.Int64
	violations atomic.Int64
}

var opNames = [...]string{"upload", "create-only", "delete", "download", "range", "list", "log entry", "cut upload"}

// Replicas of one store under a mixed load, each killed and restarted at random,
// never show what breaks the promise.
func TestSoak(t *testing.T) {
	s := &soak{t: t, model: newModel(), opts: service.Options{Bin: service.Build(t), Base: service.SharedDir(t), Env: []string{"TEMP_MAX_AGE=1m"}}}
	for i := range s.replicas {
		s.replicas[i] = service.Start(t, s.opts)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soakTime)
	defer cancel()
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() { s.work(ctx, w) })
	}
	all.Go(func() { s.killer(ctx) })
	all.Wait()

	// What was left by the kills is old now, and nothing else is there.
	temps := service.Temps(t, s.opts.Base)
	for _, f := range temps {
		old := time.Now().Add(-2 * time.Minute)
		if err := os.Chtimes(f, old, old); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	for i, r := range s.replicas {
		if err := r.Stop(); err != nil {
			t.Errorf("replica %d: %v", i, err)
		}
		s.replicas[i] = service.Start(t, s.opts)
	}
	for i := range sites {
		for _, r := range s.replicas {
			s.judge(checkSite(t.Context(), http.DefaultClient, s.model, r.Addr, fmt.Sprintf("s%d", i)))
		}
	}
	service.Until(t, "the sweep of what was left", func() bool { return len(service.Temps(t, s.opts.Base)) == 0 })
	s.checkNames()
	total, parts := int64(0), []string{}
	for i, name := range opNames {
		total += s.counts[i].Load()
		parts = append(parts, fmt.Sprintf("%s %d", name, s.counts[i].Load()))
	}
	t.Logf("%v, %d replicas: %d operations (%s), %d writes acknowledged, %d requests unanswered, kill -9 %d, SIGTERM %d, bodies cut %d, temporary files swept %d, violations %d",
		soakTime, replicas, total, strings.Join(parts, ", "), s.acked.Load(), s.unanswered.Load(),
		s.kills.Load(), s.stops.Load(), s.cuts.Load(), len(temps), s.violations.Load())
	if s.kills.Load() == 0 || s.acked.Load() == 0 {
		t.Error("it shows nothing")
	}
}

// checkNames: nothing is in the store that has no place there.
func (s *soak) checkNames() {
	err := filepath.WalkDir(s.opts.Base, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if n := d.Name(); n != ".lock" && !strings.HasSuffix(n, ".tar.gz") && !strings.HasSuffix(n, ".json") {
			s.judge(fmt.Errorf("%s is left in the store", path))
		}
		return nil
	})
	if err != nil {
		s.t.Error(err)
	}
}

// killer ends a replica now and again, mostly without warning, and starts it.
func (s *soak) killer(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(rand.Int64N(int64(4 * time.Second)))):
		}
		i := rand.IntN(replicas)
		s.mu.RLock()
		r := s.replicas[i]
		s.mu.RUnlock()
		if rand.IntN(4) == 0 {
			s.stops.Add(1)
			if err := r.Stop(); err != nil {
				s.t.Errorf("replica %d: %v", i, err)
			}
		} else {
			s.kills.Add(1)
			r.Kill()
		}
		r, err := service.Launch(s.opts)
		if err != nil {
			s.t.Errorf("replica %d does not start again: %v", i, err)
			return
		}
		s.t.Cleanup(r.Kill)
		s.mu.Lock()
		s.replicas[i] = r
		s.mu.Unlock()
	}
}

func (s *soak) work(ctx context.Context, n int) {
	client := service.Client(replicas)
	defer client.CloseIdleConnections()
	for i := 0; ctx.Err() == nil; i++ {
		s.mu.RLock()
		addr := s.replicas[rand.IntN(replicas)].Addr
		s.mu.RUnlock()
		site := fmt.Sprintf("s%d", rand.IntN(sites))
		key := fmt.Sprintf("%s/b%d", site, rand.IntN(builds))
		// The run's end cuts no request: what is in flight is seen through.
		err := s.one(context.WithoutCancel(ctx), client, addr, site, key, fmt.Sprintf("w%d-%d", n, i))
		var gone unanswered
		if errors.As(err, &gone) {
			s.unanswered.Add(1)
			continue
		}
		s.judge(err)
	}
}

// judge counts a violation.
func (s *soak) judge(err error) {
	if err != nil {
		s.violations.Add(1)
		s.t.Errorf("violation: %v", err)
	}
}

// one does one operation.
func (s *soak) one(ctx context.Context, client *http.Client, addr, site, key, id string) error {
	op := pick(25, 8, 5, 25, 10, 8, 15, 4)
	s.counts[op].Add(1)
	switch opNames[op] {
	case "upload", "create-only":
		return s.upload(ctx, client, addr, key, opNames[op] == "create-only")
	case "delete":
		return s.remove(ctx, client, addr, key)
	case "download":
		return checkBuild(ctx, client, s.model, addr, key)
	case "range":
		return s.rangeOf(ctx, client, addr, key)
	case "list":
		return checkList(ctx, client, s.model, addr, site)
	case "log entry":
		return s.appendEntry(ctx, client, addr, site, key, id)
	default:
		return s.cutUpload(ctx, client, addr, key)
	}
}

// pick chooses an index by weight.
func pick(weights ...int) int {
	total := 0
	for _, w := range weights {
		total += w
	}
	n := rand.IntN(total)
	for i, w := range weights {
		if n -= w; n < 0 {
			return i
		}
	}
	panic("not reached")
}

// someSize is small for most, some megabytes for a few.
func (s *soak) someSize() int64 {
	if rand.IntN(5) == 0 {
		return s.model.newSize(rand.Int64N(5 << 20))
	}
	return s.model.newSize(0)
}

func (s *soak) upload(ctx context.Context, client *http.Client, addr, key string, createOnly bool) error {
	size := s.someSize()
	w := s.model.begin(key, size)
	status, err := put(ctx, client, addr, key, body(key, size), size, rand.IntN(3) == 0, createOnly)
	switch {
	case err != nil:
		s.model.end(key, w, false)
		return unanswered{err}
	case status == http.StatusCreated:
		s.acked.Add(1)
		s.model.end(key, w, true)
	case status == http.StatusPreconditionFailed && createOnly:
		s.model.refused(key, w)
	default:
		s.model.end(key, w, false)
		return fmt.Errorf("%s: upload answered %d", key, status)
	}
	return nil
}

func (s *soak) remove(ctx context.Context, client *http.Client, addr, key string) error {
	site, name := split(key)
	req, err := http.NewRequestWithContext(ctx, "DELETE", "http://"+addr+"/sites/"+site+"/artifacts/"+name, nil)
	if err != nil {
		return err
	}
	w := s.model.begin(key, absent)
	status, err := send(client, req)
	s.model.end(key, w, err == nil && status == http.StatusNoContent)
	if err != nil {
		return unanswered{err}
	}
	if status != http.StatusNoContent {
		return fmt.Errorf("%s: delete answered %d", key, status)
	}
	s.acked.Add(1)
	return nil
}

// rangeOf downloads a build without some of its first bytes, 99 at most.
func (s *soak) rangeOf(ctx context.Context, client *http.Client, addr, key string) error {
	l := s.model.watch(key)
	defer s.model.done(l)
	site, name := split(key)
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+addr+"/sites/"+site+"/artifacts/"+name, nil)
	if err != nil {
		return err
	}
	from := rand.Int64N(100)
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	res, err := client.Do(req)
	if err != nil {
		return unanswered{err}
	}
	defer res.Body.Close()
	var first, last, size int64
	switch res.StatusCode {
	case http.StatusNotFound:
		size = absent
	case http.StatusRequestedRangeNotSatisfiable:
		if _, err := fmt.Sscanf(res.Header.Get("Content-Range"), "bytes */%d", &size); err != nil || size > from {
			return fmt.Errorf("%s: %d refused: %s", key, from, res.Header.Get("Content-Range"))
		}
	case http.StatusPartialContent:
		if _, err := fmt.Sscanf(res.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); err != nil || first != from || last != size-1 {
			return fmt.Errorf("%s: %d-: %s", key, from, res.Header.Get("Content-Range"))
		}
		want := body(key, size)
		if _, err := io.CopyN(io.Discard, want, from); err != nil {
			return err
		}
		got, err := io.ReadAll(res.Body)
		if err != nil {
			return unanswered{err}
		}
		rest, _ := io.ReadAll(want)
		if string(got) != string(rest) {
			return fmt.Errorf("%s: other bytes from %d of %d", key, from, size)
		}
	default:
		return fmt.Errorf("%s: range answered %d", key, res.StatusCode)
	}
	s.model.done(l)
	return l.saw(key, size)
}

// appendEntry sends an entry until it is acknowledged, always with the same key.
func (s *soak) appendEntry(ctx context.Context, client *http.Client, addr, site, key, id string) error {
	s.model.beginEntry(key, id)
	_, name := split(key)
	for {
		req, err := http.NewRequestWithContext(ctx, "POST", "http://"+addr+"/sites/"+site+"/logs",
			strings.NewReader(fmt.Sprintf(`{"build_id":%q,"action":"soak","status":%q}`, name, id)))
		if err != nil {
			return err
		}
		req.Header.Set("Idempotency-Key", id)
		status, err := send(client, req)
		if err == nil && status != http.StatusCreated {
			return fmt.Errorf("%s: entry answered %d", key, status)
		}
		if err == nil {
			s.acked.Add(1)
			s.model.ackEntry(key, id)
			return nil
		}
		s.unanswered.Add(1)
		s.mu.RLock()
		addr = s.replicas[rand.IntN(replicas)].Addr
		s.mu.RUnlock()
	}
}

// cutUpload announces more than it sends: it is never stored, so the model does
// not hear of it.
func (s *soak) cutUpload(ctx context.Context, client *http.Client, addr, key string) error {
	size := s.someSize()
	sent := rand.Int64N(size)
	gone := errors.New("the client goes away")
	r := io.MultiReader(io.LimitReader(body(key, size), sent), failing{gone})
	status, err := put(ctx, client, addr, key, r, size, rand.IntN(2) == 0, false)
	if err == nil {
		return fmt.Errorf("%s: %d bytes of %d were answered %d", key, sent, size, status)
	}
	if errors.Is(err, gone) {
		s.cuts.Add(1)
		return nil
	}
	return unanswered{err}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func split(key string) (site, name string) {
	site, name, _ = strings.Cut(key, "/")
	return site, name
}
