package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// inBubble makes the waiting of a test take no time.
func inBubble(test func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) { synctest.Test(t, test) }
}

// mustTake acquires n of b for client, or fails the test.
func mustTake(t *testing.T, b *budget, client string, n int64) *grant {
	t.Helper()
	g, err := b.acquire(budgetRequest{client: client, n: n})
	if err != nil {
		t.Fatalf("%s wants %d of %d, %d are taken: %v", client, n, b.limit, b.inUse(), err)
	}
	return g
}

// takeLater acquires in the background, and returns once the request waits.
func takeLater(t *testing.T, b *budget, a budgetRequest) <-chan error {
	t.Helper()
	b.mu.Lock()
	before := len(b.queue)
	b.mu.Unlock()
	result := make(chan error, 1)
	go func() {
		_, err := b.acquire(a)
		result <- err
	}()
	for {
		b.mu.Lock()
		waits := len(b.queue) > before
		b.mu.Unlock()
		if waits {
			return result
		}
		time.Sleep(time.Millisecond)
	}
}

func granted(result <-chan error) bool {
	select {
	case err := <-result:
		return err == nil
	default:
		return false
	}
}

func TestBudgetAlone(t *testing.T) {
	b := newBudget(10, time.Minute)
	all := mustTake(t, b, "a", 99) // as much as there is
	all.release()
	all.release()
	if b.inUse() != 0 || len(b.clients) != 0 || len(b.keys) != 0 {
		t.Errorf("after the end: %d taken, %v, %v", b.inUse(), b.clients, b.keys)
	}
	var none *grant
	none.release()
}

func TestBudgetIsBounded(t *testing.T) {
	b := newBudget(10, 20*time.Millisecond)
	mustTake(t, b, "a", 5)
	mustTake(t, b, "b", 5)
	if _, err := b.acquire(budgetRequest{client: "c", n: 1}); !errors.Is(err, ErrBusy) {
		t.Errorf("past the limit: %v", err)
	}
	if len(b.queue) != 0 {
		t.Error("who gave up is still in the queue")
	}
}

// While others wait, a client that holds half gets no more, however long it has waited.
func TestBudgetIsShared(t *testing.T) {
	b := newBudget(10, time.Minute)
	var held []*grant
	for range 10 {
		held = append(held, mustTake(t, b, "hog", 1))
	}
	more := takeLater(t, b, budgetRequest{client: "hog", n: 1})
	other := takeLater(t, b, budgetRequest{client: "other", n: 1})
	held[0].release()
	if err := <-other; err != nil {
		t.Fatal(err)
	}
	if granted(more) {
		t.Error("the hog got more than half while another one waited")
	}
	held[1].release()
	if err := <-more; err != nil { // nobody else waits any more
		t.Error(err)
	}
}

// What a client holds beyond half is revoked for others: the newest grants first, and no
// more than needed.
func TestBudgetIsTakenBack(t *testing.T) {
	for _, c := range []struct {
		hog   string
		n     int64
		ended []int
	}{
		{"hog", 1, []int{9}},
		{"hog", 3, []int{9, 8, 7}},
		{"hog", 7, []int{9, 8, 7, 6, 5}}, // half stays
		{"", 1, nil},                     // exempt
		{"other", 1, nil},                // its own
	} {
		t.Run(fmt.Sprint(c.hog, c.n), inBubble(func(t *testing.T) {
			b := newBudget(10, 1500*time.Millisecond)
			var mu sync.Mutex
			var ended []int
			grants := make([]*grant, 10)
			for i := range grants {
				g, err := b.acquire(budgetRequest{client: c.hog, n: 1, revoke: func() {
					mu.Lock()
					defer mu.Unlock()
					ended = append(ended, i)
					go grants[i].release()
				}})
				if err != nil {
					t.Fatal(err)
				}
				grants[i] = g
			}
			_, err := b.acquire(budgetRequest{client: "other", n: c.n})
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(ended, c.ended) {
				t.Errorf("ended %v, not %v", ended, c.ended)
			}
			if enough := int64(len(c.ended)) >= c.n; enough != (err == nil) {
				t.Errorf("the other one: %v", err)
			}
		}))
	}
}

// What is revoked for one waiting request is not counted for the next one too.
func TestBudgetIsTakenBackForEach(t *testing.T) { synctest.Test(t, budgetIsTakenBackForEach) }

func budgetIsTakenBackForEach(t *testing.T) {
	b := newBudget(10, time.Minute)
	var ended atomic.Int64
	for range 10 {
		var g *grant
		g, _ = b.acquire(budgetRequest{client: "hog", n: 1, revoke: func() { ended.Add(1); go g.release() }})
	}
	var waiting []<-chan error
	for i := range 3 {
		waiting = append(waiting, takeLater(t, b, budgetRequest{client: fmt.Sprint("other", i), n: 1}))
	}
	for _, w := range waiting {
		if err := <-w; err != nil {
			t.Error(err)
		}
	}
	if n := ended.Load(); n != 3 {
		t.Errorf("%d were ended for three", n)
	}
}

// Two clients that hold half each do not lock out a third one.
func TestBudgetOfTwo(t *testing.T) { synctest.Test(t, budgetOfTwo) }

func budgetOfTwo(t *testing.T) {
	b := newBudget(12, time.Minute)
	var ended atomic.Int64
	for i := range 12 {
		var g *grant
		g, _ = b.acquire(budgetRequest{client: fmt.Sprint("half", i%2), n: 1, revoke: func() { ended.Add(1); go g.release() }})
	}
	mustTake(t, b, "third", 1)
	mustTake(t, b, "third", 2)
	if n := ended.Load(); n != 3 {
		t.Errorf("%d were ended for three", n)
	}
}

// A client keeps its only grant even if that is more than half: two clients that need the
// whole budget take turns.
func TestBudgetOfOne(t *testing.T) { synctest.Test(t, budgetOfOne) }

func budgetOfOne(t *testing.T) {
	b := newBudget(1, 3*time.Second)
	if _, err := b.acquire(budgetRequest{client: "a", n: 1, revoke: func() { t.Error("its only holding is ended") }}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.acquire(budgetRequest{client: "b", n: 1}); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
}

// A revoked grant that is not released does not keep others from being revoked.
func TestBudgetWhatDoesNotEnd(t *testing.T) { synctest.Test(t, budgetWhatDoesNotEnd) }

func budgetWhatDoesNotEnd(t *testing.T) {
	b := newBudget(10, time.Minute)
	for i := range 10 {
		var g *grant
		g, _ = b.acquire(budgetRequest{client: "hog", n: 1, revoke: func() {
			if i < 5 {
				go g.release()
			}
		}})
	}
	mustTake(t, b, "other", 1)
}

// A request that was passed over for another one is considered again once that one is
// granted.
func TestBudgetLeavesNoRoom(t *testing.T) {
	b := newBudget(100, time.Minute)
	first := mustTake(t, b, "a", 40)
	mustTake(t, b, "a", 60)
	more := takeLater(t, b, budgetRequest{client: "a", n: 10})
	other := takeLater(t, b, budgetRequest{client: "b", n: 10})
	first.release()
	if err := <-other; err != nil {
		t.Error(err)
	}
	if err := <-more; err != nil {
		t.Error(err)
	}
}

// The queue is bounded, and no client can fill it.
func TestBudgetQueueIsBounded(t *testing.T) {
	b := newBudget(2, time.Minute)
	held := []*grant{mustTake(t, b, "hog", 1), mustTake(t, b, "hog", 1)}
	var done sync.WaitGroup
	for range maxClientQueue {
		done.Go(func() { mustTake(t, b, "hog", 1).release() })
	}
	eventually(t, "all wait", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.queue) == maxClientQueue
	})
	if _, err := b.acquire(budgetRequest{client: "hog", n: 1}); !errors.Is(err, ErrBusy) {
		t.Errorf("past the queue of a client: %v", err)
	}
	other := takeLater(t, b, budgetRequest{client: "other", n: 1})
	held[0].release()
	if err := <-other; err != nil {
		t.Errorf("the other client: %v", err)
	}
	held[1].release()
	done.Wait()
}

// A key is capped for all clients together, and a request that waits for its key lets
// others pass.
func TestBudgetCaps(t *testing.T) {
	b := newBudget(10, time.Minute)
	site := func(name string) []keyCap { return []keyCap{{"site " + name, 2}} }
	first, _ := b.acquire(budgetRequest{client: "a", n: 1, caps: site("x")})
	if _, err := b.acquire(budgetRequest{client: "b", n: 1, caps: site("x")}); err != nil {
		t.Fatal(err)
	}
	third := takeLater(t, b, budgetRequest{client: "c", n: 1, caps: site("x")})
	if _, err := b.acquire(budgetRequest{client: "a", n: 1, caps: site("y")}); err != nil {
		t.Fatal(err)
	}
	if granted(third) {
		t.Fatal("three of a site where two are allowed")
	}
	first.release()
	if err := <-third; err != nil {
		t.Error(err)
	}
}

// Small requests do not overtake a large one forever.
func TestBudgetKeepsTheOrder(t *testing.T) {
	b := newBudget(10, time.Minute)
	held := mustTake(t, b, "a", 5)
	large := takeLater(t, b, budgetRequest{client: "b", n: 8})
	small := takeLater(t, b, budgetRequest{client: "c", n: 1})
	if granted(small) {
		t.Error("the small part was granted before the large one")
	}
	held.release()
	if err := <-large; err != nil {
		t.Error(err)
	}
	if err := <-small; err != nil {
		t.Error(err)
	}
}

// Under concurrency the limit holds, and everything is released.
func TestBudgetTogether(t *testing.T) {
	b := newBudget(64, 5*time.Millisecond)
	var inside, failed atomic.Int64
	var done sync.WaitGroup
	for i := range 64 {
		done.Go(func() {
			for k := range 200 {
				n := int64(1 + (i+k)%20)
				g, err := b.acquire(budgetRequest{client: fmt.Sprint(i % 5), n: n, caps: []keyCap{{fmt.Sprint("k", i%7), 30}}})
				if err != nil {
					failed.Add(1)
					continue
				}
				if inside.Add(n) > 64 {
					t.Error("past the limit")
				}
				inside.Add(-n)
				g.release()
			}
		})
	}
	done.Wait()
	if b.inUse() != 0 || len(b.queue) != 0 || len(b.clients) != 0 || len(b.keys) != 0 {
		t.Errorf("left: %d, %d waiting, %v", b.inUse(), len(b.queue), b.clients)
	}
	t.Logf("%d were refused", failed.Load())
}

// unfinished is a request of another client, sent except for the last byte of its body.
type unfinished struct{ net.Conn }

func sendUnfinished(t *testing.T, s *testServer, method, path string, size int) unfinished {
	t.Helper()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	c, err := from.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", method, path, size, entryOf(size)[:size-1])
	return unfinished{c}
}

// entryOf returns a log entry of that many bytes.
func entryOf(size int) string {
	const begin, end = `{"build_id":"b","action":"a","status":"s","metadata":{"x":"`, `"}}`
	return begin + strings.Repeat("x", size-len(begin)-len(end)) + end
}

// answer reads the response.
func (u unfinished) answer(t *testing.T) *http.Response {
	t.Helper()
	u.SetReadDeadline(time.Now().Add(time.Minute))
	r, err := http.ReadResponse(bufio.NewReader(u), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	return r
}

// A client may hold the whole budget. When another one comes, only the newest grant of
// the first is revoked.
func TestClientsShareWhatTheyHold(t *testing.T) {
	const size, all = 2000, 4
	for _, c := range []struct {
		name, method, path string
		of                 func(*service) *budget
		other              request
	}{
		{"uploads", "PUT", "/sites/hog/artifacts/%d", func(s *service) *budget { return s.uploads },
			request{"PUT", "/sites/other/artifacts/b", "x", nil}},
		{"log entries", "POST", "/sites/hog/logs?%d", func(s *service) *budget { return s.entries },
			request{"POST", "/sites/other/logs", entryOf(size), nil}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, svc := startBackend(t, openTestNFS(t, t.TempDir()), "MAX_UPLOADS=4")
			svc.entries.limit = all * (6*size + 4<<10)
			b := c.of(svc)
			var held []unfinished
			for i := range all {
				held = append(held, sendUnfinished(t, s, c.method, fmt.Sprintf(c.path, i), size))
				eventually(t, "it is taken", func() bool { return b.inUse() == b.limit/all*int64(i+1) })
			}
			s.do(t, 201, c.other)
			newest := held[all-1].answer(t)
			if newest.StatusCode != 503 || newest.Header.Get("Retry-After") == "" {
				t.Errorf("the newest of who held all: %s, %v", newest.Status, newest.Header)
			}
			for _, h := range held[:all-1] {
				h.Write([]byte("}"))
				if r := h.answer(t); r.StatusCode != 201 {
					t.Errorf("an older one: %s", r.Status)
				}
			}
			nothingIsHeld(t, svc)
		})
	}
}

// stuck is a store in which the writes of one site block.
type stuck struct {
	*nfs
	release chan struct{}
}

func (s stuck) WriteLog(siteID string, e LogEntry) error {
	if siteID == "stuck" {
		<-s.release
	}
	return s.nfs.WriteLog(siteID, e)
}

// Waiting writes block neither writes of other builds and sites, nor reads.
func TestWritesThatWait(t *testing.T) {
	store := stuck{openTestNFS(t, t.TempDir()), make(chan struct{})}
	s, svc := startBackend(t, store)
	release := sync.OnceFunc(func() { close(store.release) })
	t.Cleanup(release)
	entry := func(build string) string { return `{"build_id":"` + build + `","action":"a","status":"s"}` }
	statuses := make(chan any, 2*maxSiteWrites)
	for _, c := range []struct {
		build string
		more  int // than get a place
		want  int // places taken
	}{
		{"one", 10, maxBuildWrites},
		{"two", 0, 2 * maxBuildWrites},
		{"three", 10, maxSiteWrites},
	} {
		for range maxBuildWrites + c.more {
			go func() { statuses <- statusOr(s.try(request{"POST", "/sites/stuck/logs", entry(c.build), nil})) }()
		}
		eventually(t, "the places are taken", func() bool { return svc.writes.inUse() == int64(c.want) })
	}
	s.post(t, 503, "/sites/stuck/logs", entry("four"))
	s.post(t, 201, "/sites/other/logs", entry("b"))
	s.put(t, 201, "/sites/stuck/artifacts/b", "x")
	s.get(t, 200, "/sites/stuck/versions")
	s.do(t, 204, request{"DELETE", "/sites/other/artifacts/b", nil, nil})
	release()
	for range 3*maxBuildWrites + 20 {
		if got := <-statuses; got != 201 && got != 503 {
			t.Errorf("a write that waited: %v", got)
		}
	}
	nothingIsHeld(t, svc)
}

// tryAcquire succeeds if enough is free, unless a request waits for it.
func TestBudgetTries(t *testing.T) {
	b := newBudget(10, time.Minute)
	all := b.tryAcquire(budgetRequest{client: "a", n: 99})
	if all == nil || b.inUse() != 10 || b.tryAcquire(budgetRequest{client: "a", n: 1}) != nil {
		t.Fatalf("%d of 10 are taken", b.inUse())
	}
	all.release()
	half := mustTake(t, b, "a", 5)
	large := takeLater(t, b, budgetRequest{client: "b", n: 8})
	if b.tryAcquire(budgetRequest{client: "c", n: 1}) != nil {
		t.Error("who does not wait was served before who waits")
	}
	half.release()
	if err := <-large; err != nil {
		t.Error(err)
	}
	if capped := []keyCap{{"k", 1}}; b.tryAcquire(budgetRequest{client: "c", n: 1, caps: capped}) == nil || b.tryAcquire(budgetRequest{client: "c", n: 1, caps: capped}) != nil {
		t.Error("a cap is not kept")
	}
}
