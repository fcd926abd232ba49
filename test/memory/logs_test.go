//go:build integration || torture

package memory

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pagewright/storage/test/service"
)

const (
	// What requests of logs may cost above the idle service.
	listsBound   = 160 << 20
	postsBound   = 128 << 20
	appendsBound = 96 << 20

	logsOf  = 12 // builds of a site that have logs
	posts   = 300
	unsent  = 140 // bytes that a POST holds back
	listAll = 5
)

// a store is where the rows put logs and start services.
type store struct {
	put   putLog
	start func(t *testing.T) *service.Service
}

// directory is a store in a new directory.
func directory(t *testing.T, bin string) store {
	o := service.Options{Bin: bin, Base: service.SharedDir(t)}
	return store{intoDirectory(o.Base), func(t *testing.T) *service.Service { return service.Start(t, o) }}
}

// Lists are streamed: what they cost does not grow with the logs, and each of
// them is whole.
func TestMemoryOfLists(t *testing.T) {
	bin := service.Build(t)
	measureLists(t, func(t *testing.T) store { return directory(t, bin) })
}

func measureLists(t *testing.T, open func(t *testing.T) store) {
	for _, sh := range shapes {
		t.Run(sh.name, func(t *testing.T) {
			st := open(t)
			entries := fill(t, st.put, sh, logSize, listAll, logsOf)
			for _, c := range []struct {
				name         string
				lists, sites int
				pause        time.Duration
				short        bool // also in the short form
			}{
				{"one", 1, 1, 0, false},
				{"one, slow", 1, 1, time.Second, false},
				{"five of one site", listAll, 1, 0, false},
				{"five of one site, slow", listAll, 1, time.Second, false},
				{"five of five sites", listAll, listAll, 0, false},
				{"five of five sites, slow", listAll, listAll, time.Second, true},
			} {
				if !c.short && !torture {
					continue
				}
				t.Run(c.name, func(t *testing.T) {
					m := newMeter(t, st.start(t))
					var all sync.WaitGroup
					var busy atomic.Int64
					begin := time.Now()
					for i := range c.lists {
						all.Go(func() {
							n, err := retried(func() error {
								return getList(m.s.Addr, siteName(i%c.sites), logsOf, entries, sh, func(r io.Reader) io.Reader {
									if c.pause == 0 {
										return r
									}
									return &slowReader{r: r, pause: c.pause}
								})
							})
							busy.Add(int64(n))
							if err != nil {
								t.Errorf("list %d: %v", i, err)
							}
						})
					}
					all.Wait()
					m.check(listsBound, "%d entries each, %v, %d times 503", entries, time.Since(begin).Round(time.Millisecond), busy.Load())
				})
			}
		})
	}
}

// entryOf is the body of a POST of size bytes, or a little more.
func entryOf(build string, size int) []byte {
	return fmt.Appendf(nil, `{"build_id":%q,"action":"a","status":"s","metadata":{"x":"%s"}}`, build, strings.Repeat("m", max(0, size-80)))
}

func headOf(site string, length int) string {
	return fmt.Sprintf("POST /sites/%s/logs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", site, length)
}

// The budget of bodies is taken before a body is read: entries that are never
// sent to their end hold no more than it.
func TestMemoryOfUnfinishedEntries(t *testing.T) {
	st := directory(t, service.Build(t))
	measurePosts(t, st, postsBound)
}

// measurePosts bounds the memory while the entries wait, and when they end.
func measurePosts(t *testing.T, st store, end int64) {
	m := newMeter(t, st.start(t))
	var all []*held
	for i := range posts {
		body := entryOf(buildName(i), 1<<20)
		h, err := hold(m.s.Addr, headOf("site", len(body)), body, unsent)
		if err != nil {
			t.Fatal(err)
		}
		defer h.conn.Close()
		all = append(all, h)
	}
	waiting := m.settle()
	stored, busy := finishAll(t, all)
	if waiting > postsBound {
		t.Errorf("%.0f MiB above idle while they waited, more than %d", mib(waiting), postsBound>>20)
	}
	m.check(end, "%.0f MiB while they waited, then %d times 201, %d times 503", mib(waiting), stored, busy)
	if stored == 0 {
		t.Error("none of them was stored")
	}
	got := listedEntries(t, m.s.Addr, "site")
	if got != stored {
		t.Errorf("%d were acknowledged, and %d are listed", stored, got)
	}
}

// listedEntries counts the entries of a site.
func listedEntries(t *testing.T, addr, site string) int {
	t.Helper()
	total := 0
	if _, err := retried(func() error {
		res, err := http.Get("http://" + addr + "/sites/" + site + "/versions")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return refused(res)
		}
		list, err := io.ReadAll(res.Body)
		if total = bytes.Count(list, []byte(`"action":"a"`)); err == nil && bytes.Contains(list, []byte("logs_error")) {
			err = errors.New("a log cannot be read")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return total
}

// An append costs no memory that grows with the log, whether the client sends a
// key to be looked for or not.
func TestMemoryOfAppends(t *testing.T) {
	bin := service.Build(t)
	measureAppends(t, appendsBound, func(t *testing.T) store { return directory(t, bin) })
}

func measureAppends(t *testing.T, bound int64, open func(t *testing.T) store) {
	for _, sh := range shapes {
		t.Run(sh.name, func(t *testing.T) {
			st := open(t)
			entries := fill(t, st.put, sh, appendSize, 1, logsOf)
			m := newMeter(t, st.start(t))
			begin := time.Now()
			busy := 0
			// With a key first: then no log is known yet.
			for _, key := range []string{"key", ""} {
				busy += appendAll(t, m.s.Addr, key)
			}
			m.check(bound, "twice, %v, %d times 503", time.Since(begin).Round(time.Millisecond), busy)
			if got, want := listedEntries(t, m.s.Addr, siteName(0)), logsOf*(entries+2); got != want {
				t.Errorf("%d entries are listed, not %d", got, want)
			}
		})
	}
}

// appendAll appends an entry to the log of every build at once, and returns how
// often one was answered 503.
func appendAll(t *testing.T, addr, key string) int {
	t.Helper()
	var busy atomic.Int64
	var all sync.WaitGroup
	for i := range logsOf {
		all.Go(func() {
			n, err := retried(func() error { return appendEntry(http.DefaultClient, addr, siteName(0), buildName(i), key) })
			busy.Add(int64(n))
			if err != nil {
				t.Errorf("log %d: %v", i, err)
			}
		})
	}
	all.Wait()
	return int(busy.Load())
}

// appendEntry sends an entry of 60 bytes or less. key, if not empty, is its
// Idempotency-Key.
func appendEntry(client *http.Client, addr, site, build, key string) error {
	req, err := http.NewRequest("POST", "http://"+addr+"/sites/"+site+"/logs",
		strings.NewReader(fmt.Sprintf(`{"build_id":%q,"action":"a","status":"s"}`, build)))
	if err != nil {
		return err
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		return refused(res)
	}
	_, err = io.Copy(io.Discard, res.Body)
	return err
}
