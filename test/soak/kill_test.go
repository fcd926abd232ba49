//go:build integration || torture

package soak

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pagewright/storage/test/service"
)

// 20 times kill -9 at a random moment of 50 uploads: every acknowledged build
// is whole, none is there in part, and what is left of the others is swept.
func TestKilledDuringUploads(t *testing.T) {
	const rounds, uploads = 20, 50
	bin, base := service.Build(t), service.SharedDir(t)
	o := service.Options{Bin: bin, Base: base, Env: []string{"TEMP_MAX_AGE=1m"}}
	m := newModel()
	var acked, cut, temps int
	for round := range rounds {
		s := service.Start(t, o)
		var sent, acks atomic.Int64
		total := int64(0)
		sizes := make([]int64, uploads)
		for i := range sizes {
			sizes[i] = m.newSize(64<<10 + rand.Int64N(4<<20))
			total += sizes[i]
		}
		// The moment is a number of bytes sent, or of uploads acknowledged: the
		// first finds them in mid-body, the second at fsync and rename.
		killBytes, killAcks := 1+rand.Int64N(total), int64(1<<62)
		if round%2 == 1 {
			killBytes, killAcks = 1<<62, rand.Int64N(uploads)
		}
		kill := sync.OnceFunc(func() { go s.Kill() })
		moment := func() {
			if sent.Load() >= killBytes || acks.Load() >= killAcks {
				kill()
			}
		}
		moment()
		var all sync.WaitGroup
		for i := range uploads {
			all.Go(func() {
				// Half of them are new builds, half replace those of all rounds.
				key := fmt.Sprintf("site/b%d", i)
				if i%2 == 0 {
					key = fmt.Sprintf("site/r%d-b%d", round, i)
				}
				w := m.begin(key, sizes[i])
				counted := &counter{body(key, sizes[i]), &sent, moment}
				status, err := put(t.Context(), http.DefaultClient, s.Addr, key, counted, sizes[i], i%4 < 2, false)
				m.end(key, w, err == nil && status == http.StatusCreated)
				switch {
				case err == nil && status == http.StatusCreated:
					acks.Add(1)
					moment()
				case err == nil:
					t.Errorf("%s: status %d", key, status)
				}
			})
		}
		all.Wait()
		s.Kill()
		acked += int(acks.Load())
		cut += uploads - int(acks.Load())
		left := service.Temps(t, base)
		temps += len(left)
		for _, f := range left {
			old := time.Now().Add(-2 * time.Minute)
			if err := os.Chtimes(f, old, old); err != nil {
				t.Fatal(err)
			}
		}
		s = service.Start(t, o)
		if err := checkSite(t.Context(), http.DefaultClient, m, s.Addr, "site"); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		service.Until(t, "the sweep of what was left", func() bool { return len(service.Temps(t, base)) == 0 })
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d rounds of %d uploads, a kill -9 in each: %d acknowledged and all whole, %d cut, %d temporary files left and all swept",
		rounds, uploads, acked, cut, temps)
	if cut == 0 || acked == 0 || temps == 0 {
		t.Error("the kills came at no moment that shows anything")
	}
}

// counter counts what is read of a body.
type counter struct {
	r      io.Reader
	sent   *atomic.Int64
	moment func()
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p[:min(len(p), 16<<10)])
	c.sent.Add(int64(n))
	c.moment()
	return n, err
}

// put uploads. An error means that the answer is not known.
func put(ctx context.Context, client *http.Client, addr, key string, r io.Reader, size int64, chunked, createOnly bool) (int, error) {
	site, name := split(key)
	req, err := http.NewRequestWithContext(ctx, "PUT", "http://"+addr+"/sites/"+site+"/artifacts/"+name, io.NopCloser(r))
	if err != nil {
		return 0, err
	}
	if req.ContentLength = size; chunked {
		req.ContentLength = -1
	}
	if createOnly {
		req.Header.Set("If-None-Match", "*")
	}
	return send(client, req)
}

// send returns the status once the whole answer is there.
func send(client *http.Client, req *http.Request) (int, error) {
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}

// get downloads a build, checks its bytes and tells its size.
func get(ctx context.Context, client *http.Client, addr, key string) (int64, error) {
	site, name := split(key)
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+addr+"/sites/"+site+"/artifacts/"+name, nil)
	if err != nil {
		return 0, err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, unanswered{err}
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusNotFound:
		return absent, nil
	case http.StatusOK:
		if err := check(markedBody{res.Body}, key, res.ContentLength); err != nil {
			return 0, err
		}
		return res.ContentLength, nil
	}
	return 0, fmt.Errorf("%s: status %d", key, res.StatusCode)
}

// unanswered is the error of a request whose answer did not come, or not whole:
// of a kill, and no violation.
type unanswered struct{ error }

// markedBody marks the errors of a body that was cut.
type markedBody struct{ io.Reader }

func (b markedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = unanswered{err}
	}
	return n, err
}

// version is a build as it is listed.
type version struct {
	BuildID   string `json:"build_id"`
	SizeBytes int64  `json:"size_bytes"`
	LogsError string `json:"logs_error"`
	Logs      []struct{ Action, Status string }
}

// list lists a site.
func list(ctx context.Context, client *http.Client, addr, site string) ([]version, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+addr+"/sites/"+site+"/versions", nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, unanswered{err}
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, unanswered{err}
	}
	var answer struct {
		Count    int
		Versions []version
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("list of %s: status %d: %s", site, res.StatusCode, data)
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fmt.Errorf("list of %s: %w", site, err)
	}
	if answer.Count != len(answer.Versions) {
		return nil, fmt.Errorf("list of %s: count %d of %d", site, answer.Count, len(answer.Versions))
	}
	return answer.Versions, nil
}

// keysOf are the builds of a site that anybody ever wrote to.
func (m *model) keysOf(site string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := map[string]bool{}
	for key := range m.builds {
		seen[key] = true
	}
	for key := range m.entries {
		seen[key] = true
	}
	var keys []string
	for key := range seen {
		if s, _ := split(key); s == site {
			keys = append(keys, key)
		}
	}
	return keys
}

// checkList judges a list of a site.
func checkList(ctx context.Context, client *http.Client, m *model, addr, site string) error {
	l := m.watch(m.keysOf(site)...)
	versions, err := list(ctx, client, addr, site)
	m.done(l)
	if err != nil {
		return err
	}
	listed := map[string]version{}
	for _, v := range versions {
		key := site + "/" + v.BuildID
		if _, twice := listed[key]; twice {
			return fmt.Errorf("%s is listed twice", key)
		}
		if v.LogsError != "" {
			return fmt.Errorf("%s: %s", key, v.LogsError)
		}
		listed[key] = v
		if _, known := l.may[key]; !known && !m.begunSince(key) {
			return fmt.Errorf("%s is listed, and nobody sent it", key)
		}
	}
	for key := range l.may {
		v, there := listed[key]
		size := v.SizeBytes
		if !there || size == 0 { // not there, or by its log only
			size = absent
		}
		if err := l.saw(key, size); err != nil {
			return fmt.Errorf("listed: %w", err)
		}
		ids := make([]string, len(v.Logs))
		for i := range v.Logs {
			ids[i] = v.Logs[i].Status
		}
		if err := m.sawEntries(l, key, ids); err != nil {
			return fmt.Errorf("listed: %w", err)
		}
	}
	return nil
}

// begunSince tells that a build was first written to after a look had begun.
func (m *model) begunSince(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.builds[key] != nil || m.entries[key] != nil
}

// checkSite judges the list and every build of a site.
func checkSite(ctx context.Context, client *http.Client, m *model, addr, site string) error {
	if err := checkList(ctx, client, m, addr, site); err != nil {
		return err
	}
	for _, key := range m.keysOf(site) {
		if err := checkBuild(ctx, client, m, addr, key); err != nil {
			return err
		}
	}
	return nil
}

// checkBuild judges a download.
func checkBuild(ctx context.Context, client *http.Client, m *model, addr, key string) error {
	l := m.watch(key)
	size, err := get(ctx, client, addr, key)
	m.done(l)
	if err != nil {
		return err
	}
	return l.saw(key, size)
}
