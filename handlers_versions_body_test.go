package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// listStores are the stores that lists are made from: with all entries that are
// small in memory, and with none.
func listStores(t *testing.T) map[string]store {
	dir, noDir := openTestNFS(t, t.TempDir()), openTestNFS(t, t.TempDir())
	noDir.lists.limit = 4 << 10 // less than the names take
	objects, noObjects := openMem(newMemBucket()), openMem(newMemBucket())
	noObjects.logs.max = 0
	return map[string]store{"directory": dir, "directory, nothing kept": noDir, "objects": objects, "objects, nothing kept": noObjects}
}

// withMetadata is an entry with n bytes of metadata.
func withMetadata(e LogEntry, n int) LogEntry {
	e.Metadata = json.RawMessage(`{"x":"` + strings.Repeat("m", n-len(`{"x":""}`)) + `"}`)
	return e
}

func plantEntries(t *testing.T, b Backend, site, id string, entries []LogEntry) {
	t.Helper()
	// The metadata of withMetadata are put in later: to encode them takes long with the race detector.
	small := slices.Clone(entries)
	mark := func(i int) json.RawMessage { return fmt.Appendf(nil, `{"@":%d}`, i) }
	for i, e := range small {
		if bytes.HasPrefix(e.Metadata, []byte(`{"x":"mmmm`)) {
			small[i].Metadata = mark(i)
		}
	}
	rest, err := appendLog(nil, small)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	for i, e := range entries {
		if before, after, found := bytes.Cut(rest, mark(i)); found {
			log.Write(before)
			log.Write(e.Metadata)
			rest = after
		}
	}
	log.Write(rest)
	plantLog(t, b, site, id, log.Bytes())
}

// listShapes are logs of all sizes, each with the number of builds that have it.
func listShapes() map[string][][]LogEntry {
	make := func(builds, entries, metadata int) (all [][]LogEntry) {
		for b := range builds {
			var log []LogEntry
			for i := range entries {
				e := entry(fmt.Sprint("e", i), fmt.Sprint("b", b), testTime.Add(time.Duration(b*1000+i)*time.Second))
				if metadata > 0 {
					e = withMetadata(e, metadata)
				}
				log = append(log, e)
			}
			all = append(all, log)
		}
		return all
	}
	odd := entry("1", "b0", testTime)
	odd.Action, odd.Status = "größer <b>&\"\\\n", "\u2028"
	early := withMetadata(entry("2", "b0", testTime.Add(-time.Hour)), 20)
	return map[string][][]LogEntry{
		"nothing":               nil,
		"one":                   make(1, 1, 0),
		"small":                 make(40, 3, 50),
		"metadata dropped":      make(4, 10, keepMetadata/5),
		"large metadata":        make(2, 4, 700<<10),
		"tiny entries":          make(2, 2000, 0),
		"tiny with metadata":    make(2, 2000, 30),
		"odd, and out of order": {{odd, early}},
	}
}

// A list is the same whether it is made whole or while it is sent, and whether or not
// the entries were in memory: its body, ETag, length, and what HEAD and 304 say.
func TestListIsTheSameHoweverItIsSent(t *testing.T) {
	for name, b := range listStores(t) {
		s, svc := startBackend(t, b)
		for shape, logs := range listShapes() {
			site := newSite()
			for i, log := range logs {
				if i < 3 {
					mustStore(t, b, site, fmt.Sprint("b", i), body(10, 1))
				}
				plantEntries(t, b, site, fmt.Sprint("b", i), log)
			}
			plantLog(t, b, site, "damaged", []byte(`[{"id":"1",`))
			for _, metadata := range []bool{false, true} {
				path := fmt.Sprint("/sites/", site, "/versions?metadata=", metadata)
				t.Run(fmt.Sprint(name, "/", shape, "/", metadata), func(t *testing.T) {
					var first *received
					for _, buffered := range []int64{0, 1 << 40, 0} {
						svc.listBuffered = buffered
						r := s.get(t, 200, path)
						if first == nil {
							first = r
							wantEntries(t, r, logs, metadata)
						}
						if r.length != int64(len(r.body)) || r.header.Get("ETag") == "" || r.header.Get("ETag") != first.header.Get("ETag") {
							t.Errorf("%d bytes were announced as %d, with the ETag %q after %q", len(r.body), r.length, r.header.Get("ETag"), first.header.Get("ETag"))
						}
						if !bytes.Equal(r.body, first.body) {
							t.Errorf("with up to %d bytes made whole it is another list", buffered)
						}
						h := s.do(t, 200, request{"HEAD", path, nil, nil})
						if h.length != r.length || h.header.Get("ETag") != r.header.Get("ETag") {
							t.Errorf("HEAD tells of %d bytes, GET of %d", h.length, r.length)
						}
						if n := s.get(t, 304, path, "If-None-Match", r.header.Get("ETag")); len(n.body) > 0 || n.header.Get("ETag") != r.header.Get("ETag") {
							t.Errorf("304 has %d bytes and the ETag %q", len(n.body), n.header.Get("ETag"))
						}
					}
				})
			}
		}
		eventually(t, "the memory is given back", func() bool { return svc.lists.inUse() == 0 })
	}
}

// wantEntries looks whether an answer lists the logs of the builds b0, b1, ... and a
// damaged one.
func wantEntries(t *testing.T, r *received, logs [][]LogEntry, metadata bool) {
	t.Helper()
	var got struct {
		Count    int
		Versions []struct {
			Build_ID   string
			Created_At time.Time
			Logs       []LogEntry
			Logs_Error string
		}
	}
	r.into(t, &got)
	if got.Count != len(logs)+1 || len(got.Versions) != got.Count {
		t.Fatalf("%d versions are listed as %d, not %d", len(got.Versions), got.Count, len(logs)+1)
	}
	for _, v := range got.Versions {
		i := -1
		if v.Build_ID == "damaged" {
			if v.Logs_Error != ErrDamaged.Error() || len(v.Logs) > 0 {
				t.Errorf("the damaged log is listed as %+v", v)
			}
			continue
		}
		if _, err := fmt.Sscanf(v.Build_ID, "b%d", &i); err != nil || len(v.Logs) != len(logs[i]) || v.Logs_Error != "" {
			t.Fatalf("%s is listed with %d entries, %q", v.Build_ID, len(v.Logs), v.Logs_Error)
		}
		if i >= 3 && !v.Created_At.Equal(logs[i][0].Timestamp) {
			t.Errorf("%s is listed as of %s, and its first entry is of %s", v.Build_ID, v.Created_At, logs[i][0].Timestamp)
		}
		for j, e := range v.Logs {
			want := logs[i][j]
			if !metadata {
				want.Metadata = nil
			}
			if e.Action != want.Action || e.Status != want.Status || !e.Timestamp.Equal(want.Timestamp) || !bytes.Equal(e.Metadata, want.Metadata) {
				t.Fatalf("entry %d of %s is listed as %.200v, want %.200v", j, v.Build_ID, e, want)
			}
		}
	}
}

// slowList begins to read a list, and returns it after its first bytes: what is
// behind the first megabytes is not made yet.
func slowList(t *testing.T, s *testServer, local, path string) *http.Response {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	tr := &http.Transport{ReadBufferSize: 4 << 10, DisableCompression: true}
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, addr)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(256 << 10)
		}
		return c, err
	}
	t.Cleanup(tr.CloseIdleConnections)
	resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Get("http://" + s.addr + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.ContentLength < 0 {
		t.Fatalf("status %d, %d bytes", resp.StatusCode, resp.ContentLength)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	return resp
}

// plantSlow makes a site whose list begins with more than the sockets hold, and goes
// on with the log of "last".
func plantSlow(t *testing.T, b Backend, last []LogEntry) (site string) {
	t.Helper()
	site = newSite()
	var first []LogEntry
	for i := range 7 {
		first = append(first, withMetadata(entry(fmt.Sprint(i), "first", testTime.Add(time.Hour)), 1<<20-1000))
	}
	plantEntries(t, b, site, "first", first)
	plantEntries(t, b, site, "last", last)
	return site
}

// A list is what its header announced, or it is cut: a log that grew meanwhile is
// listed as it was, one that became another ends the connection.
func TestLogThatChangesWhileItsListIsSent(t *testing.T) {
	var was []LogEntry
	for i := range 3000 {
		was = append(was, withMetadata(entry(fmt.Sprint("e", i), "last", testTime), 40))
	}
	changed := func(i int, change func(e *LogEntry)) []LogEntry {
		now := slices.Clone(was)
		change(&now[i])
		return now
	}
	set := func(entries []LogEntry) func(*testing.T, Backend, string) {
		return func(t *testing.T, b Backend, site string) { plantEntries(t, b, site, "last", entries) }
	}
	for _, c := range []struct {
		name   string
		change func(t *testing.T, b Backend, site string)
		whole  bool
	}{
		{"it stays", func(*testing.T, Backend, string) {}, true},
		{"it grows", func(t *testing.T, b Backend, site string) {
			mustLog(t, b.(store), site, entry("new", "last", testTime))
		}, true},
		{"it is damaged behind what was listed", func(t *testing.T, b Backend, site string) {
			log, err := appendLog(nil, was)
			if err != nil {
				t.Fatal(err)
			}
			plantLog(t, b, site, "last", append(bytes.TrimSuffix(log, []byte("\n]\n")), ",{"...))
		}, true},
		{"an entry at its end is another", set(changed(2999, func(e *LogEntry) { e.ID = "x2999" })), false},
		{"the metadata at its end are longer", set(changed(2999, func(e *LogEntry) { *e = withMetadata(*e, 41) })), false},
		{"the metadata at its end are shorter", set(changed(2999, func(e *LogEntry) { *e = withMetadata(*e, 39) })), false},
		{"the metadata at its end are much longer", set(changed(2999, func(e *LogEntry) { *e = withMetadata(*e, 200<<10) })), false},
		{"the metadata at its end are others of that length", set(changed(2999, func(e *LogEntry) {
			e.Metadata = bytes.ReplaceAll(e.Metadata, []byte("m"), []byte("n"))
		})), false},
		{"it is shorter", set(was[:2999]), false},
		{"it is damaged", func(t *testing.T, b Backend, site string) { plantLog(t, b, site, "last", []byte(`[{"id":"e0",`)) }, false},
		{"it is empty", func(t *testing.T, b Backend, site string) { plantLog(t, b, site, "last", nil) }, false},
		{"it is gone", removeLogFile, false},
	} {
		for _, b := range []Backend{openTestNFS(t, t.TempDir()), openMem(newMemBucket())} {
			t.Run(fmt.Sprintf("%s/%T", c.name, b), func(t *testing.T) {
				s, svc := startBackend(t, b)
				site := plantSlow(t, b, was)
				resp := slowList(t, s, "127.0.0.1", "/sites/"+site+"/versions?metadata=true")
				c.change(t, b, site)
				rest, err := io.ReadAll(resp.Body)
				if whole := err == nil; whole != c.whole {
					t.Errorf("%d bytes came of %d: %v", len(rest)+100, resp.ContentLength, err)
				}
				if bytes.Contains(rest, []byte("damaged")) || bytes.Contains(rest, []byte("x2999")) && c.whole {
					t.Error("the list has what was not there when it was made")
				}
				warned := strings.Contains(s.log.String(), `"a list was aborted by a store error"`) && strings.Contains(s.log.String(), site) && strings.Contains(s.log.String(), "last")
				if warned == c.whole {
					t.Errorf("the log says:\n%s", s.log)
				}
				eventually(t, "the memory is given back", func() bool { return svc.lists.inUse() == 0 })
			})
		}
	}
}

func removeLogFile(t *testing.T, b Backend, site string) {
	t.Helper()
	var err error
	switch b := b.(type) {
	case *nfs:
		err = os.Remove(b.filePath(site, logsDir, "last"))
	case *objectStore:
		err = b.bucket.remove(t.Context(), b.logsPrefix(site)+"last"+logSuffix, "")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// getOnce asks for path on a connection of its own, on which no client asks again.
func getOnce(s *testServer, path string) error {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	r, err := c.Get("http://" + s.addr + path)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != 200 {
		return errors.New(r.Status)
	}
	_, err = io.Copy(io.Discard, r.Body)
	return err
}

// A log that cannot be read as it was when it was listed costs one list at the most:
// the next one tells what there is. A list that is made whole is made again at once.
func TestLogThatIsNotReadAsItWas(t *testing.T) {
	large := func(id, action string) []LogEntry {
		e := withMetadata(entry("1", id, testTime), 2*keepMetadata)
		e.Action = action
		return []LogEntry{e}
	}
	// edit changes the log of "b" in its place: no directory and no ETag tells of it.
	edit := func(t *testing.T, b Backend, change func(log []byte) []byte) {
		t.Helper()
		switch b := b.(type) {
		case *nfs:
			path := b.filePath("s", logsDir, "b")
			log, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, change(log), 0)
			}
			if err != nil {
				t.Fatal(err)
			}
		case *objectStore:
			m, key := b.bucket.(*memBucket), b.logsPrefix("s")+"b"+logSuffix
			o := m.objects[key]
			o.data = change(bytes.Clone(o.data))
			o.size = int64(len(o.data))
			m.objects[key] = o
		}
	}
	for _, c := range []struct {
		name    string
		change  func(t *testing.T, b Backend)
		want    string // of each build, its action or why there is none
		objects bool   // only these can be made to do so
	}{
		{"it is edited in its place", func(t *testing.T, b Backend) {
			edit(t, b, func(log []byte) []byte { return bytes.Replace(log, []byte("first"), []byte("other"), 1) })
		}, "b:other c:first d:first", false},
		{"its metadata are edited in their place", func(t *testing.T, b Backend) {
			edit(t, b, func(log []byte) []byte { return bytes.Replace(log, []byte("mmm"), nil, 1) })
		}, "b:first c:first d:first", false},
		{"it is emptied in its place", func(t *testing.T, b Backend) {
			edit(t, b, func([]byte) []byte { return nil })
		}, "b:the log is damaged c:first d:first", false},
		{"all are denied", func(_ *testing.T, b Backend) {
			b.(*objectStore).bucket.(*memBucket).fault = func(op, key string) (bool, error) {
				if op == "get" {
					return false, fmt.Errorf("%w: by the test", ErrDenied)
				}
				return false, nil
			}
		}, "b:the log cannot be read c:the log cannot be read d:the log cannot be read", true},
		{"it goes after it was looked at", func(_ *testing.T, b Backend) {
			m := b.(*objectStore).bucket.(*memBucket)
			m.fault = func(op, key string) (bool, error) {
				if op == "get" && strings.Contains(key, "/b.") {
					delete(m.objects, key)
				}
				return false, nil
			}
		}, "c:first d:first", true},
	} {
		for _, buffered := range []bool{true, false} {
			for _, b := range []Backend{openTestNFS(t, t.TempDir()), openMem(newMemBucket())} {
				if _, objects := b.(*objectStore); c.objects && !objects {
					continue
				}
				t.Run(fmt.Sprintf("%s/%v/%T", c.name, buffered, b), func(t *testing.T) {
					s, svc := startBackend(t, b)
					if !buffered {
						svc.listBuffered = 0
					}
					for _, id := range []string{"b", "c", "d"} {
						plantEntries(t, b, "s", id, large(id, "first"))
					}
					const path = "/sites/s/versions?metadata=true"
					if n, ok := b.(*nfs); ok {
						waitStable(t, n)
					}
					s.get(t, 200, path)
					c.change(t, b)
					if err := getOnce(s, path); (err == nil) != buffered {
						t.Errorf("the first list ends with %v", err)
					}
					eventually(t, "what was cut is counted", func() bool { return (svc.api.metrics.cut.Get() == 0) == buffered })
					var v struct {
						Versions []struct {
							Build_ID, Logs_Error string
							Logs                 []LogEntry
						}
					}
					s.get(t, 200, path).into(t, &v)
					var got []string
					for _, v := range v.Versions {
						for _, e := range v.Logs {
							v.Logs_Error += e.Action
						}
						got = append(got, v.Build_ID+":"+v.Logs_Error)
					}
					slices.Sort(got)
					if strings.Join(got, " ") != c.want {
						t.Errorf("listed is %q, want %q", got, c.want)
					}
					nothingIsHeld(t, svc)
				})
			}
		}
	}
}

// A client that stops reading a list holds memory for it until it leaves, or others
// wait for it.
func TestListThatIsNotRead(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(t *testing.T, s *testServer, resp *http.Response, path string)
	}{
		{"it leaves", func(t *testing.T, _ *testServer, resp *http.Response, _ string) { resp.Body.Close() }},
		{"others wait", func(t *testing.T, s *testServer, resp *http.Response, path string) {
			other := slowList(t, s, "127.0.0.2", path)
			if n, err := io.Copy(io.Discard, other.Body); err != nil {
				t.Errorf("the other client got %d bytes, %v", n+100, err)
			}
			if n, err := io.Copy(io.Discard, resp.Body); err == nil {
				t.Errorf("the list that held all memory came whole, with %d bytes", n+100)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := openTestNFS(t, t.TempDir())
			s, svc := startBackend(t, b, "STALL_TIMEOUT=1m")
			path := "/sites/" + plantSlow(t, b, []LogEntry{entry("1", "last", testTime)}) + "/versions?metadata=true"
			svc.lists.limit = 10 << 20 // two such lists
			first := slowList(t, s, "127.0.0.1", path)
			if got := svc.lists.inUse(); got < 4<<20 {
				t.Errorf("%d bytes are held for a list with entries of 1 MiB", got)
			}
			c.end(t, s, slowList(t, s, "127.0.0.1", path), path)
			first.Body.Close()
			eventually(t, "the memory is given back", func() bool { return svc.lists.inUse() == 0 })
		})
	}
}

// Without memory for a list there is 503, but for what needs none.
func TestNoMemoryForLists(t *testing.T) {
	b := openTestNFS(t, t.TempDir())
	s, svc := startBackend(t, b)
	plantEntries(t, b, "large", "b", []LogEntry{withMetadata(entry("1", "b", testTime), listFree)})
	plantEntries(t, b, "small", "b", []LogEntry{entry("1", "b", testTime)})
	const large, small = "/sites/large/versions?metadata=true", "/sites/small/versions"
	r := s.get(t, 200, large)
	eventually(t, "its memory is given back on a connection that is kept", func() bool { return svc.lists.inUse() == 0 })
	all, err := svc.lists.acquire(budgetRequest{n: svc.lists.limit})
	if err != nil {
		t.Fatal(err)
	}
	svc.lists.wait = 10 * time.Millisecond
	for _, buffered := range []int64{0, listBuffered} {
		svc.listBuffered = buffered
		refused := s.get(t, 503, large)
		if refused.header.Get("Retry-After") == "" || refused.header.Get("ETag") != "" {
			t.Errorf("503 has the header %v", refused.header)
		}
		s.get(t, 304, large, "If-None-Match", r.header.Get("ETag"))
		s.do(t, 200, request{"HEAD", large, nil, nil})
		s.get(t, 200, small)
	}
	all.release()
	s.get(t, 200, large)
}

// Lists of a site that are asked for at once are made from one look at its keys,
// whatever page they want. One that was asked for after the store was read is made anew.
func TestListsOfASiteOfObjectsShare(t *testing.T) {
	m := newMemBucket()
	b := openMem(m)
	mustLog(t, b, "s", entry("1", "b", testTime))
	mustStore(t, b, "s", "a", body(1, 1))
	var lists, gets int // guarded by m.mu
	entered, leave := make(chan struct{}), make(chan struct{})
	m.fault = func(op, _ string) (bool, error) {
		switch op {
		case "list":
			lists++
		case "get":
			gets++
			if gets == 1 {
				close(entered)
				m.mu.Unlock()
				<-leave
				m.mu.Lock()
			}
		}
		return false, nil
	}
	var g errgroup.Group
	list := func(entries int, q VersionQuery) {
		g.Go(func() error {
			page, err := listPage(b, "s", q)
			if err != nil {
				return err
			}
			want := 2
			if q.Limit == 1 {
				want = 1
			}
			if len(page.Versions) != want || (page.NextCursor != "") != (want == 1) {
				return fmt.Errorf("%v lists %d versions, next is %q", q, len(page.Versions), page.NextCursor)
			}
			if want == 2 && len(page.Versions[1].Logs) < entries {
				return errors.New("a list lacks what was there when it was asked for")
			}
			return nil
		})
	}
	list(1, VersionQuery{})
	<-entered
	m.mu.Lock()
	for key, o := range m.objects { // another entry
		if !strings.HasSuffix(key, logSuffix) {
			continue
		}
		o.data, _ = appendLog(o.data, []LogEntry{entry("2", "b", testTime)})
		o.etag, o.size = `"2"`, int64(len(o.data))
		m.objects[key] = o
	}
	m.mu.Unlock()
	for i := range 20 {
		list(2, VersionQuery{Limit: i})
	}
	eventually(t, "all wait", func() bool {
		b.lists.mu.Lock()
		defer b.lists.mu.Unlock()
		for _, q := range b.lists.queues {
			return q.users == 21
		}
		return false
	})
	close(leave)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if lists != 4 { // of artifacts and of logs, twice
		t.Errorf("21 lists looked at the keys %d times", lists)
	}
}

// A log that cannot be read hides nothing else. Only a store that cannot be reached
// is an error of the list.
func TestOneObjectThatCannotBeRead(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
	}{{ErrDenied, 200}, {errors.New("some error"), 200}, {ErrUnavailable, 503}} {
		m := newMemBucket()
		b := openMem(m)
		s, _ := startBackend(t, b)
		var out lockedBuffer
		b.log = newLog(&Config{}, &out)
		for _, id := range []string{"good", "bad"} {
			mustLog(t, b, "s", entry("1", id, testTime))
		}
		m.fault = func(op, key string) (bool, error) {
			if op == "get" && strings.Contains(key, "bad") {
				return false, fmt.Errorf("%w: by the test", c.err)
			}
			return false, nil
		}
		r := s.get(t, c.status, "/sites/s/versions")
		if c.status != 200 {
			continue
		}
		var v versionsBody
		r.into(t, &v)
		if v.Count != 2 || v.Versions[0].Build_ID != "bad" || v.Versions[0].Logs_Error != "the log cannot be read" ||
			v.Versions[1].Logs_Error != "" || len(v.Versions[1].Logs) != 1 {
			t.Errorf("%v: listed is %s", c.err, r.body)
		}
		if !strings.Contains(out.String(), "by the test") {
			t.Errorf("the log lacks the cause: %s", &out)
		}
		m.fault = nil
		var again versionsBody
		s.get(t, 200, "/sites/s/versions").into(t, &again)
		if again.Versions[0].Logs_Error != "" {
			t.Errorf("%v: it is remembered", c.err)
		}
	}
}

// keptOf is the number of logs of a page whose entries are in memory, and what they
// take.
func keptOf(page *VersionPage) (logs int, memory int64) {
	for _, v := range page.Versions {
		if m := v.Stored.memory(); m > 0 {
			logs, memory = logs+1, memory+m
		}
	}
	return logs, memory
}

// The entries of all sites together are bounded, however many lists are made at once
// and sent. A site that does not fit keeps what does.
func TestEntriesOfAllSitesAreBounded(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	n.lists.limit = 120 << 10
	const builds = 20 // of one site, with 4 KiB each: two sites do not fit
	var mu sync.Mutex
	var pages []*VersionPage // of lists that are still being sent
	var wg sync.WaitGroup
	plant := func(site string, builds int) {
		for b := range builds {
			plantEntries(t, n, site, fmt.Sprint("b", b), []LogEntry{withMetadata(entry("1", "b", testTime), 4<<10)})
		}
	}
	list := func(site string) *VersionPage {
		page, err := n.ListVersionsPage(site, VersionQuery{Metadata: true})
		if err != nil {
			t.Error(err)
			return &VersionPage{}
		}
		all, err := page.withLogs(true)
		if err != nil || len(all) < builds || len(all[7].Logs[0].Metadata) != 4<<10 {
			t.Errorf("%s: %d versions, %v", site, len(all), err)
		}
		mu.Lock()
		defer mu.Unlock()
		pages = append(pages, page)
		seen, memory := map[*storedLog]bool{}, int64(0)
		for _, p := range pages {
			for _, v := range p.Versions {
				if !seen[v.Stored] {
					seen[v.Stored] = true
					memory += v.Stored.memory()
				}
			}
		}
		if memory > n.lists.limit {
			t.Errorf("the entries take %d bytes of memory", memory)
		}
		return page
	}
	for s := range 5 {
		site := fmt.Sprint("s", s)
		plant(site, builds)
		wg.Go(func() {
			for range 20 {
				list(site)
			}
		})
	}
	wg.Wait()
	if logs, _ := keptOf(list("s0")); logs != builds {
		t.Errorf("of a site that fits alone, the entries of %d builds are kept", logs)
	}
	plant("large", 3*builds)
	for range 3 {
		if logs, memory := keptOf(list("large")); logs == 0 || logs == 3*builds || memory < n.lists.limit/2 {
			t.Errorf("of a site that does not fit, the entries of %d builds are kept, with %d bytes", logs, memory)
		}
	}
	if n.lists.used != 0 {
		t.Errorf("%d sites are in use", n.lists.used)
	}
}

// Of a log that is small the entries are kept, of others their metadata are not, and
// of large ones nothing is.
func TestWhatIsKeptOfALog(t *testing.T) {
	for _, c := range []struct {
		name              string
		entries, metadata int
		plain, full       bool
	}{
		{"small", 1, 0, true, true},
		{"small, with metadata", 10, 100, true, true},
		{"as much metadata as is kept", 4, keepMetadata / 4, true, true},
		{"more metadata", 4, keepMetadata/4 + 1, true, false},
		{"one entry of more", 1, keepMetadata + 1, true, false},
		{"many entries", 1200, 0, true, true},
		{"too many", 20_000, 0, false, false},
	} {
		scan := newLogScan()
		for i := range c.entries {
			e := entry(fmt.Sprint(i), "other", testTime)
			if c.metadata > 0 {
				e = withMetadata(e, c.metadata)
			}
			scan.add(&e)
		}
		asked := int64(0)
		l := scan.done(func(cost int64) bool { asked = cost; return true })
		if (l.known(false) != nil) != c.plain || (l.known(true) != nil) != c.full || asked != l.memory() || l.count != c.entries {
			t.Errorf("%s: kept without metadata %v, with it %v; %d bytes", c.name, l.known(false) != nil, l.known(true) != nil, asked)
		}
		k := l.known(false)
		if k == nil {
			continue
		}
		i := 0
		err := k.each(l.known(true) != nil, func(e *LogEntry) error {
			if want := entry(fmt.Sprint(i), "other", testTime); e.ID != want.ID || e.Action != want.Action || e.Status != want.Status ||
				e.Timestamp != want.Timestamp || len(e.Metadata) != c.metadata && c.full || len(e.Metadata) > 0 && !c.full {
				t.Errorf("%s: entry %d is kept as %.300v", c.name, i, e)
			}
			i++
			return nil
		})
		if err != nil || i != c.entries {
			t.Errorf("%s: %d entries are kept, %v", c.name, i, err)
		}
	}
}
