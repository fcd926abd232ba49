package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// store is a Backend under test. It need not be empty: every test has its own site.
type store interface {
	Backend
	ConditionalStorer
	Prober
	VersionPager
}

// difference is a deviation of a store from the contract. It is written down here so that
// it is tested too.
type difference string

const (
	changeWaits difference = "a change waits for the readers in flight"
	deletesGone difference = "a delete on a condition of what is gone meanwhile is a success"
	deletesRace difference = "a put on the condition of an ETag may succeed although the object was deleted meanwhile"
	noDeleteIf  difference = "If-Match of a delete is ignored by the store, and refused by the service"
)

// testBackend is the contract of Backend, with a subtest for each of its sentences, in
// their order. Each call of open opens the same store as another process would.
func testBackend(t *testing.T, open func(t *testing.T) Backend, but ...difference) {
	for _, c := range []struct {
		sentence string
		test     func(t *testing.T, open func() store)
		but      difference
		instead  func(t *testing.T, open func() store) // of a store that has this difference
	}{
		{"a build is stored as it was sent", testStored, "", nil},
		{"what is acknowledged is seen by every process", testSeenByAll, "", nil},
		{"a replacement is seen whole", testReplace, "", nil},
		{"readers see the old bytes or the new ones", testNoMixture, "", nil},
		{"when two uploads overlap one wins whole", testOverlap, "", nil},
		{"a reader that fails stores nothing and its error is wrapped", testReaderFails, "", nil},
		{"a body of another size than declared stores nothing", testWrongSize, "", nil},
		{"an unknown build is not found", testNotFound, "", nil},
		{"a build replaced meanwhile does not mix into a stream", testReplacedWhileRead, changeWaits, testReplaceWaits},
		{"a build deleted meanwhile does not mix into a stream", testDeletedWhileRead, changeWaits, testDeleteWaits},
		{"an entry is appended as it was sent", testLog, "", nil},
		{"an entry whose id is in the log is a success and not appended", testLogTwice, "", nil},
		{"an entry whose id another one has is refused", testKeyReused, "", nil},
		{"of different entries with one id that arrive at once one is kept", testKeyReusedAtOnce, "", nil},
		{"entries appended at once are all kept", testLogAtOnce, "", nil},
		{"entries stand in the order of appending whatever their times", testLogOrder, "", nil},
		{"entries appended together stand as if each was appended", testAppendLog, "", nil},
		{"a damaged or full log is left alone and listed as what it is", testBadLogs, "", nil},
		{"every build with an artifact or a log is listed newest first", testList, "", nil},
		{"an unknown site has no versions", testListUnknown, "", nil},
		{"builds of another site are not listed", testListOthers, "", nil},
		{"ids of every allowed character work", testIDs, "", nil},
		{"create only stores once", testCreateOnly, "", nil},
		{"of racing create-only uploads one wins", testCreateOnlyRace, "", nil},
		{"a build that must be absent is stored once, whatever the client asks for", testAbsent, "", nil},
		{"If-Match replaces only a build that matches", testIfMatch, "", nil},
		{"of racing If-Match uploads one wins", testIfMatchRace, "", nil},
		{"If-None-Match with a tag and If-Unmodified-Since hold", testOtherConditions, "", nil},
		{"an upload returns what was stored", testInfo, "", nil},
		{"a delete is durable, repeatable and keeps the log", testDelete, "", nil},
		{"a delete on a condition", testDeleteIf, noDeleteIf, testNoDeleteIf},
		{"of racing deletes on a condition one is done", testDeleteIfRace, deletesGone, testDeletesIfRace},
		{"the info describes the bytes of the reader", testReaderInfo, "", nil},
		{"ranges are of the version asked for", testRanges, "", nil},
		{"pages join to the whole list", testPages, "", nil},
		{"equal tags mean equal versions", testTags, "", nil},
		{"a bad cursor is refused", testBadCursor, "", nil},
		{"a probe finds the store ready", testProbe, "", nil},
	} {
		test := c.test
		if c.but != "" && slices.Contains(but, c.but) {
			test, c.sentence = c.instead, string(c.but)
		}
		t.Run(strings.ReplaceAll(c.sentence, " ", "_"), func(t *testing.T) {
			test(t, func() store {
				t.Helper()
				b, ok := open(t).(store)
				if !ok {
					t.Fatalf("the backend lacks a part of the interface")
				}
				return b
			})
		})
	}
}

var sites atomic.Int64

// newSite returns a site id that no other test uses, in any store and run.
func newSite() string {
	return fmt.Sprintf("t%x-%d", time.Now().UnixNano(), sites.Add(1))
}

// noise is what bodies are cut out of, since generating it takes long.
var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 13<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return b
})

// body returns n incompressible bytes, which differ by seed. Callers must not change
// them.
func body(n int, seed byte) []byte {
	at := 4099 * int(seed)
	return noise()[at : at+n : at+n]
}

// spaces returns n spaces. The race detector, which would make this slow, does not see it.
//
//go:norace
func spaces(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = ' '
	}
	return b
}

// sized is a reader that reports a size, which may be wrong.
type sized struct {
	io.Reader
	size int64
}

func (s sized) Size() int64 { return s.size }

// known and unknown are the two ways in which a body arrives.
func known(b []byte) io.Reader   { return sized{bytes.NewReader(b), int64(len(b))} }
func unknown(b []byte) io.Reader { return struct{ io.Reader }{bytes.NewReader(b)} }

func mustStore(t *testing.T, b store, site, id string, data []byte) {
	t.Helper()
	if err := b.StoreArtifact(site, id, known(data)); err != nil {
		t.Fatal(err)
	}
}

func fetch(b Backend, site, id string) ([]byte, error) {
	r, err := b.FetchArtifact(site, id)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var got bytes.Buffer
	if a, ok := r.(ArtifactReader); ok {
		got.Grow(int(a.Info().Size) + bytes.MinRead) // copying is slow with the race detector
	}
	_, err = got.ReadFrom(r)
	return got.Bytes(), err
}

func wantBytes(t *testing.T, b Backend, site, id string, want []byte) {
	t.Helper()
	got, err := fetch(b, site, id)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes came back that are not the %d sent", len(got), len(want))
	}
}

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("the error is %v, want %v", err, want)
	}
}

var (
	createOnly = Precondition{IfNoneMatch: &ETagList{Any: true}}
	exists     = Precondition{IfMatch: &ETagList{Any: true}}
)

func ifMatch(tags ...string) Precondition { return Precondition{IfMatch: &ETagList{Tags: tags}} }

var bodySizes = []int{1, 4096, 1 << 20, largeBody}

func testStored(t *testing.T, open func() store) {
	b, site := open(), newSite()
	for i, n := range bodySizes {
		data := body(n, byte(i))
		if err := b.StoreArtifact(site, "known", known(data)); err != nil {
			t.Fatal(err)
		}
		wantBytes(t, b, site, "known", data)
		if err := b.StoreArtifact(site, "unknown", unknown(data)); err != nil {
			t.Fatal(err)
		}
		wantBytes(t, b, site, "unknown", data)
	}
}

func testSeenByAll(t *testing.T, open func() store) {
	one, two, site := open(), open(), newSite()
	_, err := fetch(two, site, "b")
	wantError(t, err, ErrNotFound) // and must not be remembered
	data := body(5000, 1)
	mustStore(t, one, site, "b", data)
	wantBytes(t, two, site, "b", data)
}

func testReplace(t *testing.T, open func() store) {
	b, site := open(), newSite()
	for i, n := range []int{9000, 100, largeBody, 1} {
		data := body(n, byte(i))
		mustStore(t, b, site, "b", data)
		wantBytes(t, b, site, "b", data)
	}
}

// whole returns the index of the body that got equals, or -1.
func whole(got []byte, bodies [][]byte) int {
	return slices.IndexFunc(bodies, func(b []byte) bool { return bytes.Equal(b, got) })
}

func testNoMixture(t *testing.T, open func() store) {
	one, two, site := open(), open(), newSite()
	bodies := [][]byte{body(300<<10, 1), body(200<<10, 2), body(300<<10, 3)}
	mustStore(t, one, site, "b", bodies[0])
	done := make(chan error, 1)
	go func() {
		for i := range 30 {
			if err := one.StoreArtifact(site, "b", known(bodies[i%3])); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for reads := 0; ; reads++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
		got, err := fetch(two, site, "b")
		if err != nil { // a stream may be cut, but never mixed
			if errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
			continue
		}
		if whole(got, bodies) < 0 {
			t.Fatalf("read %d yielded %d bytes that nobody sent", reads, len(got))
		}
	}
}

func testOverlap(t *testing.T, open func() store) {
	one, two, site := open(), open(), newSite()
	for _, n := range []int{100 << 10, largeBody} {
		bodies := [][]byte{body(n, 1), body(n, 2), body(n-1, 3), body(n+1, 4)}
		var acknowledged atomic.Int64
		var g sync.WaitGroup
		for i, data := range bodies {
			b := []store{one, two}[i%2]
			g.Go(func() {
				err := b.StoreArtifact(site, "b", known(data))
				if err == nil {
					acknowledged.Add(1)
				} else if !errors.Is(err, ErrUnavailable) { // a concurrent writer may make it fail
					t.Error(err)
				}
			})
		}
		g.Wait()
		if acknowledged.Load() == 0 {
			t.Error("none was acknowledged")
		}
		got, err := fetch(one, site, "b")
		if err != nil || whole(got, bodies) < 0 {
			t.Errorf("none won whole: %d bytes, %v", len(got), err)
		}
	}
}

// errSender is what a backend sees when the sender fails.
var errSender = errors.New("the sender failed")

// failing returns the first n bytes of data and then err.
func failing(data []byte, n int, err error) io.Reader {
	return io.MultiReader(bytes.NewReader(data[:n]), errReader{err})
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func testReaderFails(t *testing.T, open func() store) {
	b, site := open(), newSite()
	old := body(7777, 9)
	mustStore(t, b, site, "old", old)
	cuts := 0
	for _, n := range []int{100, 64 << 10, largeBody} {
		data := body(n, 1)
		for _, cut := range []int{0, 1, n / 2, n - 1, n} {
			for _, cause := range []error{errSender, io.ErrUnexpectedEOF, errBodyCut} {
				for _, id := range []string{"new", "old"} {
					if n == largeBody && cause == errSender {
						continue // the others are the dangerous ones
					}
					err := b.StoreArtifact(site, id, sized{failing(data, cut, cause), int64(n)})
					wantError(t, err, cause)
					err = b.StoreArtifact(site, id, failing(data, cut, cause))
					wantError(t, err, cause)
					cuts += 2
				}
			}
		}
	}
	_, err := b.StoreArtifactIf(site, "new", failing(body(100, 1), 50, io.ErrUnexpectedEOF), createOnly)
	wantError(t, err, io.ErrUnexpectedEOF)
	_, err = fetch(b, site, "new")
	wantError(t, err, ErrNotFound)
	wantBytes(t, b, site, "old", old)
	t.Logf("%d bodies cut, none stored", cuts+1)
}

func testWrongSize(t *testing.T, open func() store) {
	b, site := open(), newSite()
	for _, n := range []int{100, largeBody} {
		for _, diff := range []int64{-1, 1} {
			if err := b.StoreArtifact(site, "b", sized{bytes.NewReader(body(n, 1)), int64(n) + diff}); err == nil {
				t.Errorf("a body of %d bytes that declared %d was stored", n, int64(n)+diff)
			}
		}
	}
	_, err := fetch(b, site, "b")
	wantError(t, err, ErrNotFound)
}

func testNotFound(t *testing.T, open func() store) {
	b, site := open(), newSite()
	_, err := b.FetchArtifact(site, "b")
	wantError(t, err, ErrNotFound)
	mustStore(t, b, site, "b", body(10, 1))
	_, err = b.FetchArtifact(site, "b2")
	wantError(t, err, ErrNotFound)
}

func testReplacedWhileRead(t *testing.T, open func() store) {
	b, site := open(), newSite()
	old := body(largeBody, 1)
	mustStore(t, b, site, "b", old)
	wantPrefixOf(t, b, site, old, func() { mustStore(t, b, site, "b", body(largeBody, 2)) })
}

func testDeletedWhileRead(t *testing.T, open func() store) {
	b, site := open(), newSite()
	old := body(largeBody, 1)
	mustStore(t, b, site, "b", old)
	wantPrefixOf(t, b, site, old, func() {
		if err := b.DeleteArtifact(site, "b", Precondition{}); err != nil {
			t.Fatal(err)
		}
	})
}

func testReplaceWaits(t *testing.T, open func() store) {
	b, site := open(), newSite()
	data := body(largeBody, 2)
	wantWaiting(t, b, site, func() error { return b.StoreArtifact(site, "b", known(data)) })
	wantBytes(t, b, site, "b", data)
}

func testDeleteWaits(t *testing.T, open func() store) {
	b, site := open(), newSite()
	wantWaiting(t, b, site, func() error { return b.DeleteArtifact(site, "b", Precondition{}) })
	_, err := fetch(b, site, "b")
	wantError(t, err, ErrNotFound)
}

// wantWaiting reads build b while change is called, which may wait for the read.
func wantWaiting(t *testing.T, b store, site string, change func() error) {
	t.Helper()
	old := body(largeBody, 1)
	mustStore(t, b, site, "b", old)
	changed := make(chan error, 1)
	wantPrefixOf(t, b, site, old, func() { go func() { changed <- change() }() })
	if err := <-changed; err != nil {
		t.Fatal(err)
	}
}

// wantPrefixOf reads build b while change happens. It accepts the old bytes, or part of
// them and an error.
func wantPrefixOf(t *testing.T, b store, site string, old []byte, change func()) {
	t.Helper()
	r, err := b.FetchArtifact(site, "b")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	head := make([]byte, 1000)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	change()
	rest, err := io.ReadAll(r)
	got := append(head, rest...)
	if !bytes.HasPrefix(old, got) || err == nil && len(got) != len(old) {
		t.Fatalf("%d bytes that are not the old ones (error %v)", len(got), err)
	}
}

func entry(id, buildID string, at time.Time) LogEntry {
	return LogEntry{ID: id, BuildID: buildID, Action: "deploy", Status: "ok", Timestamp: at.UTC()}
}

func mustLog(t *testing.T, b store, site string, e LogEntry) {
	t.Helper()
	if err := b.WriteLog(site, e); err != nil {
		t.Fatal(err)
	}
}

// versionOf returns the version of the build in the list, or nil.
func versionOf(t *testing.T, b Backend, site, id string) *Version {
	t.Helper()
	versions, err := b.ListVersions(site)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range versions {
		if v.BuildID == id {
			return v
		}
	}
	return nil
}

// listPage is ListVersionsPage with the entries of all logs in Logs.
func listPage(b VersionPager, site string, q VersionQuery) (*VersionPage, error) {
	page, err := b.ListVersionsPage(site, q)
	if err != nil {
		return nil, err
	}
	p := *page
	p.Versions, err = page.withLogs(q.Metadata)
	return &p, err
}

func idsOf(entries []LogEntry) []string {
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.ID)
	}
	return ids
}

func testLog(t *testing.T, open func() store) {
	one, two, site := open(), open(), newSite()
	at := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
	metadata := `{"n":12345678901234567890,"f":1.10,"s":"<a&b>\u00e9é","o":{"z":1,"a":[null,true]}}`
	e := entry("e1", "b", at)
	e.Metadata = json.RawMessage(metadata)
	mustLog(t, one, site, e)
	mustLog(t, two, site, entry("e2", "b", at.Add(time.Second)))
	v := versionOf(t, one, site, "b")
	if v == nil || len(v.Logs) != 2 {
		t.Fatalf("listed is %+v", v)
	}
	if got := v.Logs[0]; string(got.Metadata) != metadata || !got.Timestamp.Equal(at) ||
		got.ID != "e1" || got.BuildID != "b" || got.Action != "deploy" || got.Status != "ok" {
		t.Errorf("the entry came back as %+v, %s", got, got.Metadata)
	}
	if v.Logs[1].Metadata != nil {
		t.Errorf("metadata came back that was not sent: %s", v.Logs[1].Metadata)
	}
}

func testLogTwice(t *testing.T, open func() store) {
	one, two, site := open(), open(), newSite()
	at := time.Now()
	mustLog(t, one, site, entry("e1", "b", at))
	mustLog(t, one, site, entry("e2", "b", at))
	mustLog(t, two, site, entry("e1", "b", at))
	mustLog(t, one, site, entry("e2", "b", at))
	if v := versionOf(t, two, site, "b"); !slices.Equal(idsOf(v.Logs), []string{"e1", "e2"}) {
		t.Errorf("the log has %v", idsOf(v.Logs))
	}
}

// repeat is an entry, and whether it equals the first entry with its ID.
type repeat struct {
	LogEntry
	same bool
}

// sameID are entries with one ID. The first is in a log already, or gets there during the
// test.
func sameID(id, buildID string) []repeat {
	with := func(same bool, action, status, metadata string) repeat {
		e := entry(id, buildID, time.Now())
		e.Action, e.Status = action, status
		if metadata != "" {
			e.Metadata = json.RawMessage(metadata)
		}
		return repeat{e, same}
	}
	return []repeat{
		with(true, "deploy", "ok", `{"a":[1,"x y"]}`),
		with(true, "deploy", "ok", "{ \"a\":\t[1 ,\n\"x y\"] }"),
		with(false, "build", "ok", `{"a":[1,"x y"]}`),
		with(false, "deploy", "failed", `{"a":[1,"x y"]}`),
		with(false, "deployo", "k", `{"a":[1,"x y"]}`),
		with(false, "deploy", "ok", `{"a":[1,"xy"]}`),
		with(false, "deploy", "ok", `{"a":[1.0,"x y"]}`),
		with(false, "deploy", "ok", `{"a":[1,"x\u0020y"]}`),
		with(false, "deploy", "ok", `{}`),
		with(false, "deploy", "ok", ""),
	}
}

func testKeyReused(t *testing.T, open func() store) {
	one, two, site := open(), open(), newSite()
	entries := sameID("k", "b")
	for _, b := range []store{one, two, one} { // as it is known to one, and as the other finds it
		for _, e := range entries {
			want := ErrKeyReused
			if e.same {
				want = nil
			}
			if err := b.WriteLog(site, e.LogEntry); !errors.Is(err, want) {
				t.Errorf("%s %s %s: %v, want %v", e.Action, e.Status, e.Metadata, err, want)
			}
		}
	}
	mustLog(t, two, site, entry("l", "b", time.Now()))
	v := versionOf(t, one, site, "b")
	if !slices.Equal(idsOf(v.Logs), []string{"k", "l"}) || string(v.Logs[0].Metadata) != string(entries[0].Metadata) {
		t.Errorf("the log has %+v", v.Logs)
	}
}

func testKeyReusedAtOnce(t *testing.T, open func() store) {
	const rounds, each = 3, 6
	stores, site := []store{open(), open()}, newSite()
	for round := range rounds {
		id := fmt.Sprint("b", round)
		errs := make([]error, 2*each)
		content := func(i int) string { return fmt.Sprint("content ", i%3) }
		var g sync.WaitGroup
		start := make(chan struct{})
		for i := range errs {
			g.Go(func() {
				e := entry("k", id, time.Now())
				e.Action = content(i)
				<-start
				errs[i] = stores[i/each].WriteLog(site, e)
			})
		}
		close(start)
		g.Wait()
		v := versionOf(t, stores[0], site, id)
		if v == nil || len(v.Logs) != 1 {
			t.Fatalf("the log has %+v", v)
		}
		for i, err := range errs {
			want := ErrKeyReused
			if content(i) == v.Logs[0].Action {
				want = nil
			}
			if !errors.Is(err, want) {
				t.Errorf("%q, where %q is kept: %v, want %v", content(i), v.Logs[0].Action, err, want)
			}
		}
	}
}

// testLogOrder: two replicas append in turn, and the clock of one is far behind.
func testLogOrder(t *testing.T, open func() store) {
	stores, site := []store{open(), open()}, newSite()
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	var ids []string
	for i := range 6 {
		id := fmt.Sprint(i)
		mustLog(t, stores[i%2], site, entry(id, "b", now.Add(time.Duration(i)*time.Second-time.Duration(i%2)*time.Hour)))
		ids = append(ids, id)
	}
	mustLog(t, stores[0], site, entry("later", "c", now.Add(-time.Second))) // but older than the first entry of b
	for i, b := range stores {
		page, err := listPage(b, site, VersionQuery{Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		for what, v := range map[string]*Version{"the list": versionOf(t, b, site, "b"), "the first page": page.Versions[0]} {
			if v == nil || v.BuildID != "b" || !slices.Equal(idsOf(v.Logs), ids) || !v.CreatedAt.Equal(v.Logs[0].Timestamp) {
				t.Errorf("%s of process %d has %+v", what, i, v)
			}
		}
	}
}

// plantLog writes data as a log, as another program would.
func plantLog(t *testing.T, b Backend, site, id string, data []byte) {
	t.Helper()
	var err error
	switch b := b.(type) {
	case *nfs:
		dir := filepath.Join(b.base, sitesDir, site, logsDir)
		if err = os.MkdirAll(dir, 0o755); err == nil {
			err = os.WriteFile(filepath.Join(dir, id+logSuffix), data, 0o644)
		}
	case *objectStore:
		_, err = b.bucket.put(context.Background(), b.logsPrefix(site)+id+logSuffix,
			bytes.NewReader(data), int64(len(data)), putOptions{contentType: logType})
	default:
		t.Fatalf("nobody knows where the logs of a %T are", b)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func testBadLogs(t *testing.T, open func() store) {
	one, two, site := open(), open(), newSite()
	line, err := encodeEntry(entry("1", "b", time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	// Valid, and larger than what is read: white space may stand between entries.
	log := func(n int) []byte {
		b := spaces(n)
		copy(b, "["+string(line))
		b[n-1] = ']'
		return b
	}
	tooLarge := log(maxLogRead + 1)
	cases := []struct {
		id       string
		artifact bool
		data     []byte
		appended error // of another entry
		again    error // of the entry that is there
		reused   error // of another one with its id
		listed   string
		entries  int
	}{
		{"damaged", true, []byte(`[{"id":"1",`), ErrDamaged, ErrDamaged, ErrDamaged, "the log is damaged", 0},
		{"damaged-alone", false, []byte(`[{"id":"1",`), ErrDamaged, ErrDamaged, ErrDamaged, "the log is damaged", 0},
		{"empty", true, nil, ErrDamaged, ErrDamaged, ErrDamaged, "the log is damaged", 0},
		{"no-entries", true, []byte("[]"), ErrDamaged, ErrDamaged, ErrDamaged, "the log is damaged", 0},
		{"nearly-full", true, log(maxLogSize - 1), nil, nil, ErrKeyReused, "", 2},
		{"full", true, log(maxLogSize), ErrLogFull, nil, ErrKeyReused, "", 1},
		{"full-and-damaged", true, append(log(maxLogSize), `{"x":"\"`...), ErrLogFull, nil, ErrKeyReused, "the log is damaged", 0},
		{"too-large", true, tooLarge, ErrLogFull, ErrLogFull, ErrLogFull, "the log has reached its size limit", 0},
		{"too-large-alone", false, tooLarge, ErrLogFull, ErrLogFull, ErrLogFull, "the log has reached its size limit", 0},
	}
	for _, c := range cases {
		if c.artifact {
			mustStore(t, one, site, c.id, body(10, 1))
		}
		plantLog(t, one, site, c.id, c.data)
		if err := one.WriteLog(site, entry("1", c.id, time.Now())); !errors.Is(err, c.again) {
			t.Errorf("%s: the entry that is there: %v, want %v", c.id, err, c.again)
		}
		reused := entry("1", c.id, time.Now())
		reused.Status = "failed"
		if err := two.WriteLog(site, reused); !errors.Is(err, c.reused) {
			t.Errorf("%s: another entry with the id of the one that is there: %v, want %v", c.id, err, c.reused)
		}
		if err := two.WriteLog(site, entry("2", c.id, time.Now())); !errors.Is(err, c.appended) {
			t.Errorf("%s: another entry: %v, want %v", c.id, err, c.appended)
		}
	}
	mustLog(t, two, site, entry("1", "good", time.Now())) // it is not hidden by the others
	versions, err := one.ListVersions(site)
	if err != nil || len(versions) != len(cases)+1 {
		t.Fatalf("%d versions are listed, %v", len(versions), err)
	}
	listed := map[string]*Version{}
	for _, v := range versions {
		listed[v.BuildID] = v
	}
	for _, c := range cases {
		if v := listed[c.id]; v == nil || v.LogsError != c.listed || len(v.Logs) != c.entries {
			t.Errorf("%s: listed is %+v, want %d entries and the error %q", c.id, v, c.entries, c.listed)
		}
	}
	if v := listed["good"]; v == nil || len(v.Logs) != 1 || v.LogsError != "" {
		t.Errorf("the good one is listed as %+v", v)
	}
}

func testLogAtOnce(t *testing.T, open func() store) {
	const writers, each = 8, 25
	site := newSite()
	stores := []store{open(), open()}
	appendAtOnce(t, stores, site, writers, each)
	v := versionOf(t, stores[0], site, "b")
	if v == nil || len(v.Logs) != writers*each {
		t.Fatalf("the log lost entries: %+v", v)
	}
	t.Logf("%d writers of %d entries in %d stores: %d entries", writers, each, len(stores), len(v.Logs))
}

// appendAtOnce appends writers x each entries to build b concurrently. Each writer waits
// for its entry before it sends the next, and the log must show them in that order. Their
// times go backwards and do not matter.
func appendAtOnce(t *testing.T, stores []store, site string, writers, each int) {
	t.Helper()
	start := time.Now()
	var g sync.WaitGroup
	for w := range writers {
		g.Go(func() {
			for i := range each {
				e := entry(fmt.Sprintf("%d-%d", w, i), "b", start.Add(-time.Duration(i)*time.Minute))
				if err := stores[w%len(stores)].WriteLog(site, e); err != nil {
					t.Errorf("writer %d, entry %d: %v", w, i, err)
				}
			}
		})
	}
	g.Wait()
	seen := map[string]bool{}
	last := make([]int, writers) // of each writer
	for w := range last {
		last[w] = -1
	}
	if v := versionOf(t, stores[0], site, "b"); v != nil {
		for _, id := range idsOf(v.Logs) {
			if seen[id] {
				t.Errorf("entry %s is there twice", id)
			}
			seen[id] = true
			var w, i int
			if _, err := fmt.Sscanf(id, "%d-%d", &w, &i); err != nil || w >= writers {
				t.Errorf("entry %s is nobody's", id)
				continue
			}
			if i < last[w] {
				t.Errorf("entry %s comes after %d-%d", id, w, last[w])
			}
			last[w] = i
		}
	}
}

func testList(t *testing.T, open func() store) {
	b, site := open(), newSite()
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC) // later than any artifact of today
	mustLog(t, b, site, entry("1", "m", at))
	mustLog(t, b, site, entry("2", "z", at.Add(time.Hour)))
	mustLog(t, b, site, entry("3", "a", at))
	mustLog(t, b, site, entry("4", "old", at.AddDate(-20, 0, 0)))
	mustLog(t, b, site, entry("5", "both", at.Add(2*time.Hour)))
	before := time.Now()
	mustStore(t, b, site, "both", body(321, 1))
	mustStore(t, b, site, "alone", body(123, 1))
	versions, err := b.ListVersions(site)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(versions, compareVersions) {
		t.Error("the list is not in order")
	}
	var got []string
	for _, v := range versions {
		if v.BuildID != "both" && v.BuildID != "alone" { // these two may be of one second
			got = append(got, v.BuildID)
			if v.SizeBytes != 0 || !v.CreatedAt.Equal(v.Logs[0].Timestamp) {
				t.Errorf("%s has only a log, and is %+v", v.BuildID, v)
			}
		} else if v.CreatedAt.Sub(before).Abs() > time.Minute {
			t.Errorf("%s was created at %s, and stored at %s", v.BuildID, v.CreatedAt, before)
		}
	}
	if want := []string{"z", "a", "m", "old"}; !slices.Equal(got, want) {
		t.Errorf("listed are %v, want %v", got, want)
	}
	if v := versionOf(t, b, site, "both"); v == nil || v.SizeBytes != 321 || !slices.Equal(idsOf(v.Logs), []string{"5"}) {
		t.Errorf("the build with both is %+v", v)
	}
	if v := versionOf(t, b, site, "alone"); v == nil || v.SizeBytes != 123 || len(v.Logs) != 0 {
		t.Errorf("the build without a log is %+v", v)
	}
}

func testListUnknown(t *testing.T, open func() store) {
	versions, err := open().ListVersions(newSite())
	if err != nil || len(versions) != 0 {
		t.Errorf("listed are %v, %v", versions, err)
	}
}

func testListOthers(t *testing.T, open func() store) {
	b, site := open(), newSite()
	mustStore(t, b, site, "b", body(10, 1))
	mustStore(t, b, site+"0", "b2", body(10, 1))
	mustLog(t, b, site+".x", entry("1", "b3", time.Now()))
	versions, err := b.ListVersions(site)
	if err != nil || len(versions) != 1 || versions[0].BuildID != "b" {
		t.Errorf("listed are %v, %v", versions, err)
	}
}

func testIDs(t *testing.T, open func() store) {
	b, site := open(), newSite()
	for _, id := range []string{"A", "9.._+~=@-", "a.tar.gz", "a.json", "x" + strings.Repeat("~", maxIDLen-1), "a+b", "a=b@c", "UPPER", "upper"} {
		for _, s := range []string{site, site + ".+~=@-"} {
			data := []byte("the artifact " + id)
			mustStore(t, b, s, id, data)
			mustLog(t, b, s, entry("1", id, time.Now()))
			wantBytes(t, b, s, id, data)
			if v := versionOf(t, b, s, id); v == nil || v.SizeBytes != int64(len(data)) || len(v.Logs) != 1 {
				t.Errorf("build %s of site %s is listed as %+v", id, s, v)
			}
		}
	}
}
