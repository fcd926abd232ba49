//go:build integration || torture

package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pagewright/storage/test/service"
)

// latencies are the times that requests of each kind took.
type latencies struct {
	mu    sync.Mutex
	times map[string][]time.Duration
}

func (l *latencies) add(kind string, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.times[kind] = append(l.times[kind], d)
}

func (l *latencies) log(t *testing.T, title string) {
	for _, kind := range []string{"GET", "list", "PUT"} {
		d := l.times[kind]
		if len(d) == 0 {
			t.Errorf("%s: no %s was made", title, kind)
			continue
		}
		slices.Sort(d)
		t.Logf("FIGURE %s, %s: %s p50 %v, p99 %v, max %v of %d", t.Name(), title, kind,
			round(d[len(d)/2]), round(d[len(d)*99/100]), round(d[len(d)-1]), len(d))
	}
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// While another process holds the lock of a site and appends to it wait, the
// other sites are served: no request of them is answered 503. What they take
// beside a quiet run is logged.
func TestOtherSitesWhileALockIsHeld(t *testing.T) {
	bin := service.Build(t)
	for _, appends := range []int{256, 300} {
		if appends != 300 && !torture {
			continue
		}
		t.Run(fmt.Sprint(appends, " appends"), func(t *testing.T) {
			o := service.Options{Bin: bin, Base: service.SharedDir(t)}
			s := service.Start(t, o)
			if err := prepareOthers(s); err != nil {
				t.Fatal(err)
			}
			if err := appendEntry(http.DefaultClient, s.Addr, "locked", "b", ""); err != nil {
				t.Fatal(err)
			}
			useOthers(t, s, latencyTime).log(t, "quiet")
			unlock := holdLock(t, filepath.Join(o.Base, "sites", "locked", ".lock"))
			w := startAppends(t, s, appends)
			useOthers(t, s, latencyTime).log(t, fmt.Sprintf("%d appends wait", appends))
			if n := w.stored.Load(); n > 0 {
				t.Errorf("%d entries were acknowledged while another process had the lock", n)
			}
			unlock()
			w.stop()
			t.Logf("FIGURE %s: of the appends %d were answered 503, %d 201 after the lock was free", t.Name(), w.busy.Load(), w.stored.Load())
			if _, err := retried(func() error { return appendEntry(http.DefaultClient, s.Addr, "locked", "b", "") }); err != nil {
				t.Errorf("after the lock was free: %v", err)
			}
			if got, want := listedEntries(t, s.Addr, "locked"), int(w.stored.Load())+2; got != want {
				t.Errorf("%d entries are listed, not %d", got, want)
			}
		})
	}
}

// holdLock takes a shared lock of a whole lock file, as another process of the
// store would.
func holdLock(t *testing.T, path string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}); err != nil {
		t.Fatal(err)
	}
	unlock = sync.OnceFunc(func() { f.Close() })
	t.Cleanup(unlock)
	return unlock
}

// waiters are clients that append to a site that is locked.
type waiters struct {
	busy, stored atomic.Int64
	ending       atomic.Bool
	all          sync.WaitGroup
}

// startAppends starts clients each of which appends over and over, until stop.
// It returns when all have sent their first.
func startAppends(t *testing.T, s *service.Service, n int) *waiters {
	w := &waiters{}
	client := service.Client(n)
	var begun sync.WaitGroup
	begun.Add(n)
	for range n {
		w.all.Go(func() {
			for first := true; first || !w.ending.Load(); first = false {
				if first {
					begun.Done()
				}
				switch err := appendEntry(client, s.Addr, "locked", "b", ""); {
				case err == nil:
					w.stored.Add(1)
				case errors.Is(err, errBusy):
					w.busy.Add(1)
				default:
					t.Errorf("a waiting append: %v", err)
				}
			}
		})
	}
	begun.Wait()
	service.Until(t, "the appends to be received", func() bool { return connections(t, s) >= n })
	t.Cleanup(client.CloseIdleConnections)
	return w
}

// connections counts the sockets of the service, more or less.
func connections(t *testing.T, s *service.Service) int {
	others, _, err := s.Descriptors()
	if err != nil {
		t.Fatal(err)
	}
	return others
}

func (w *waiters) stop() {
	w.ending.Store(true)
	w.all.Wait()
}

var small = bytes.Repeat([]byte("0123456789abcdef"), 4<<10)

func prepareOthers(s *service.Service) error {
	for i := range 4 {
		if err := put(http.DefaultClient, s.URL(siteName(i), "b"), small); err != nil {
			return err
		}
		if err := appendEntry(http.DefaultClient, s.Addr, siteName(i), "b", ""); err != nil {
			return err
		}
	}
	return nil
}

// useOthers makes requests of other sites for a time, all of which must succeed.
func useOthers(t *testing.T, s *service.Service, d time.Duration) *latencies {
	l := &latencies{times: map[string][]time.Duration{}}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var all sync.WaitGroup
	for i := range 4 {
		url := s.URL(siteName(i), "b")
		client := service.Client(1)
		defer client.CloseIdleConnections()
		all.Go(func() {
			failed := 0
			for first := true; (first || ctx.Err() == nil) && failed < 3; first = false {
				for _, r := range []struct {
					kind string
					do   func() error
				}{
					{"GET", func() error { return get(client, url) }},
					{"list", func() error { return get(client, "http://"+s.Addr+"/sites/"+siteName(i)+"/versions") }},
					{"PUT", func() error { return put(client, url, small) }},
				} {
					start := time.Now()
					if err := r.do(); err != nil {
						failed++
						t.Errorf("%s of another site, after %v: %v", r.kind, time.Since(start).Round(time.Millisecond), err)
					}
					l.add(r.kind, time.Since(start))
				}
			}
		})
	}
	all.Wait()
	return l
}

func get(client *http.Client, url string) error {
	res, err := client.Get(url)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return refused(res)
	}
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

func put(client *http.Client, url string, data []byte) error {
	req, err := http.NewRequest("PUT", url, bytes.NewReader(data))
	if err != nil {
		return err
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
