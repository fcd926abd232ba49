package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestMemory(t *testing.T) {
	m := newMemBucket()
	testBackend(t, func(*testing.T) Backend { return newObjectStore(m, "a/prefix/", quiet()) })
}

func openMem(m *memBucket) *objectStore { return newObjectStore(m, "", quiet()) }

// every makes each nth call of op fail: alternately the change is lost, or only its reply.
func every(n int, op string) func(string, string) (bool, error) {
	calls, faults := 0, 0
	return func(o, key string) (bool, error) {
		if o != op || strings.HasPrefix(key, "checks/") {
			return false, nil
		}
		if calls++; calls%n != 0 {
			return false, nil
		}
		faults++
		return faults%2 == 0, fmt.Errorf("%w: fault %d", ErrUnavailable, faults)
	}
}

func TestAppendsSurviveLostWritesAndLostReplies(t *testing.T) {
	for _, n := range []int{2, 3, 7} {
		m, site := newMemBucket(), newSite()
		m.fault = every(n, "put")
		appendAtOnce(t, []store{openMem(m), openMem(m)}, site, 8, 25)
		if v := versionOf(t, openMem(m), site, "b"); len(v.Logs) != 200 {
			t.Errorf("with every write number %d lost the log has %d entries", n, len(v.Logs))
		}
	}
}

func TestWaitingEntriesShareAWrite(t *testing.T) {
	m, site := newMemBucket(), newSite()
	puts, first, release := 0, make(chan struct{}), make(chan struct{})
	b := openMem(m)
	mustLog(t, b, site, entry("0", "b", time.Now()))
	m.fault = func(op, _ string) (bool, error) {
		if op == "put" {
			puts++
			if puts == 1 {
				close(first)
				<-release
			}
		}
		return false, nil
	}
	var g sync.WaitGroup
	add := func(i int) {
		if err := b.WriteLog(site, entry(fmt.Sprint(i), "b", time.Now())); err != nil {
			t.Error(err)
		}
	}
	g.Go(func() { add(1) })
	<-first
	for i := range 50 {
		g.Go(func() { add(2 + i) })
	}
	for waiting := 0; waiting < 51; { // all of them are in the group
		b.appends.mu.Lock()
		for _, q := range b.appends.queues {
			waiting = q.users
		}
		b.appends.mu.Unlock()
		runtime.Gosched()
	}
	close(release)
	g.Wait()
	if puts != 2 {
		t.Errorf("51 entries took %d writes, not 2", puts)
	}
}

func TestAppendGivesUpInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemBucket()
		b := openMem(m)
		mustLog(t, b, "s", entry("1", "b", time.Now()))
		m.fault = func(op, _ string) (bool, error) {
			if op == "put" {
				return false, fmt.Errorf("%w: a concurrent writer", ErrPrecondition)
			}
			return false, nil
		}
		start := time.Now()
		wantError(t, b.WriteLog("s", entry("2", "b", time.Now())), ErrUnavailable)
		if d := time.Since(start); d < appendTimeout || d > appendTimeout+appendMaxWait {
			t.Errorf("it took %s", d)
		}
	})
}

func TestDamagedObjectIsLeftAlone(t *testing.T) {
	m, site := newMemBucket(), newSite()
	b := openMem(m)
	mustStore(t, b, site, "good", body(10, 1))
	for i, damage := range []string{"", "{}", "[]", "[{]", `[{"id":"1"}] x`} {
		id := fmt.Sprint("b", i)
		key := b.logsPrefix(site) + id + logSuffix
		m.objects[key] = memObject{objectInfo{key: key, etag: fmt.Sprintf(`"%d"`, i), size: int64(len(damage))}, []byte(damage)}
		wantError(t, b.WriteLog(site, entry("1", id, time.Now())), ErrDamaged)
		if got := string(m.objects[key].data); got != damage {
			t.Errorf("%q became %q", damage, got)
		}
		if v := versionOf(t, b, site, id); v == nil || v.LogsError == "" {
			t.Errorf("of the damage %q the list tells %+v", damage, v)
		}
	}
	if v := versionOf(t, b, site, "good"); v == nil || v.LogsError != "" {
		t.Errorf("the good one is listed as %+v", v)
	}
}

func TestFullObjectTakesNoMore(t *testing.T) {
	b, site := openMem(newMemBucket()), newSite()
	var last LogEntry
	for i := range maxLogSize/maxScanned + 1 {
		last = entry(fmt.Sprint(i), "b", time.Now())
		last.Metadata = json.RawMessage(`{"x":"` + strings.Repeat("x", maxScanned-300) + `"}`)
		mustLog(t, b, site, last)
	}
	wantError(t, b.WriteLog(site, entry("another", "b", time.Now())), ErrLogFull)
	wantError(t, b.WriteLog(site, entry(last.ID, "b", time.Now())), ErrKeyReused)
	mustLog(t, b, site, last) // is in the log already
}

// After a lost reply, the client's own upload must not cause a 412.
func TestLostReplyOfAnUpload(t *testing.T) {
	f := func(name string, apply bool, reply, want error, cond Precondition) {
		t.Helper()
		m := newMemBucket()
		b := openMem(m)
		if err := b.requireCapability(conditionalPut); err != nil {
			t.Fatal(err)
		}
		m.fault = func(op, _ string) (bool, error) {
			if op == "put" {
				return apply, reply
			}
			return false, nil
		}
		info, err := b.StoreArtifactIf("s", "b", known(body(10, 1)), cond)
		if !errors.Is(err, want) {
			t.Errorf("%s: the error is %v, want %v", name, err, want)
		}
		m.fault = nil
		if want == nil {
			wantInfo(t, b, "s", "b", info, 10)
		}
	}
	gone := fmt.Errorf("%w: no answer", ErrUnavailable)
	twice := fmt.Errorf("%w: the second try", ErrPrecondition)
	f("lost", false, gone, ErrUnavailable, Precondition{})
	f("lost, create only", false, gone, ErrUnavailable, createOnly)
	f("stored", true, gone, nil, Precondition{})
	f("stored, create only", true, gone, nil, createOnly)
	f("stored, and tried again by the SDK", true, twice, nil, createOnly)
	f("a conflict and nothing there", false, errConflict, ErrUnavailable, createOnly)
	f("a conflict, and ours was stored", true, errConflict, nil, createOnly)
	f("denied", false, ErrDenied, ErrDenied, createOnly)
	f("full", false, ErrNoSpace, ErrNoSpace, Precondition{})
}

// If the reply to an upload is ambiguous and the stat after it fails, it is unknown whether the
// build was stored: 503, not 412.
func TestStatFailsAfterALostReply(t *testing.T) {
	for _, reply := range []error{fmt.Errorf("%w: the second try", ErrPrecondition), errConflict} {
		for _, statErr := range []error{ErrUnavailable, errBucketGone, ErrDenied} {
			m := newMemBucket()
			b := assumeCapable(openMem(m))
			stored := false
			m.fault = func(op, _ string) (bool, error) {
				if op == "put" {
					stored = true
					return true, reply
				}
				if op == "stat" && stored {
					return false, statErr
				}
				return false, nil
			}
			_, err := b.StoreArtifactIf("s", "b", known(body(10, 1)), createOnly)
			if classify(err).status != 503 || errorKind(err) != "unavailable" {
				t.Errorf("after %v and then %v: %d, %v", reply, statErr, classify(err).status, err)
			}
		}
	}
}

// The upload id shows whether an upload was stored. That a build exists, or has changed, does not.
func TestLostReplyOfAReplacement(t *testing.T) {
	gone := fmt.Errorf("%w: no answer", ErrUnavailable)
	twice := fmt.Errorf("%w: the second try", ErrPrecondition)
	for _, c := range []struct {
		name     string
		apply    bool
		reply    error
		replaced bool // another build is stored before the stat
		want     error
	}{
		{"lost", false, gone, false, ErrUnavailable},
		{"stored", true, gone, false, nil},
		{"stored, and tried again by the SDK", true, twice, false, nil},
		{"a conflict, and ours was stored", true, errConflict, false, nil},
		{"a conflict, and the old one is still stored", false, errConflict, false, ErrUnavailable},
		{"lost, and replaced by another", false, gone, true, ErrUnavailable},
		{"stored, and replaced by another", true, gone, true, ErrUnavailable},
		{"a concurrent writer was faster", false, twice, true, ErrPrecondition},
		{"a conflict, and another was stored", false, errConflict, true, ErrPrecondition},
	} {
		m := newMemBucket()
		b := openMem(m)
		old := mustStoreIf(t, b, "s", "b", body(10, 1), createOnly)
		m.fault = func(op, key string) (bool, error) {
			if op == "stat" && c.replaced && m.objects[key].uploadID != "other" && m.made > 100 {
				m.objects[key] = memObject{objectInfo{key: key, etag: `"other"`, uploadID: "other", size: 1}, []byte("r")}
			}
			if op == "put" {
				m.made += 100 // the next stat is the one of resolveAmbiguousPut
				return c.apply, c.reply
			}
			return false, nil
		}
		info, err := b.StoreArtifactIf("s", "b", known(body(10, 2)), ifMatch(old.ETag))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: the error is %v, want %v", c.name, err, c.want)
		}
		m.fault = nil
		if err == nil {
			wantInfo(t, b, "s", "b", info, 10)
			wantBytes(t, b, "s", "b", body(10, 2))
		}
	}
}

// If a build disappears during a conditional delete, this request may have deleted it and lost the
// reply, or a concurrent request did. The response claims neither.
func TestAmbiguousConditionalDelete(t *testing.T) {
	missing := fmt.Errorf("%w: gone", ErrNotFound)
	none := fmt.Errorf("%w: gone", ErrPrecondition)
	later := Precondition{IfUnmodifiedSince: time.Now().Add(time.Hour)}
	for _, c := range []struct {
		name  string
		cond  func(etag string) Precondition
		reply error
		want  error
	}{
		{"If-Match, not found", func(etag string) Precondition { return ifMatch(etag) }, missing, ErrUnavailable},
		{"If-Match, refused", func(etag string) Precondition { return ifMatch(etag) }, none, ErrUnavailable},
		{"If-Match, conflict", func(etag string) Precondition { return ifMatch(etag) }, errConflict, ErrUnavailable},
		{"any, not found", func(string) Precondition { return exists }, missing, ErrUnavailable},
		{"a condition that holds without a build", func(string) Precondition { return later }, missing, nil},
		{"no condition", func(string) Precondition { return Precondition{} }, missing, nil},
	} {
		m := newMemBucket()
		b := openMem(m)
		info := mustStoreIf(t, b, "s", "b", body(10, 1), createOnly)
		wantError(t, b.DeleteArtifact("s", "other", exists), ErrPrecondition) // never was there
		m.fault = func(op, key string) (bool, error) {
			if op == "remove" {
				return true, c.reply
			}
			return false, nil
		}
		if err := b.DeleteArtifact("s", "b", c.cond(info.ETag)); !errors.Is(err, c.want) {
			t.Errorf("%s: the error is %v, want %v", c.name, err, c.want)
		}
		m.fault = nil
		_, err := fetch(b, "s", "b")
		wantError(t, err, ErrNotFound)
	}
}

func TestConflictWithAConcurrentWriter(t *testing.T) {
	f := func(cond Precondition, reply, want error) {
		t.Helper()
		m := newMemBucket()
		b := openMem(m)
		mustStore(t, b, "s", "b", body(10, 1))
		if cond.CreateOnly() {
			delete(m.objects, b.artifactKey("s", "b"))
		}
		m.fault = func(op, key string) (bool, error) {
			if op != "put" || strings.HasPrefix(key, "checks/") {
				return false, nil
			}
			m.objects[key] = memObject{objectInfo{key: key, etag: `"other"`}, nil}
			return false, reply
		}
		_, err := b.StoreArtifactIf("s", "b", known(body(10, 2)), cond)
		wantError(t, err, want)
		if etag := m.objects[b.artifactKey("s", "b")].etag; etag != `"other"` {
			t.Errorf("the build of the concurrent writer was replaced: the ETag is %s", etag)
		}
	}
	gone := fmt.Errorf("%w: no answer", ErrUnavailable)
	f(createOnly, errConflict, ErrPrecondition) // it exists now
	f(exists, errConflict, ErrUnavailable)      // the condition holds for the other build too: try again
	f(Precondition{}, errConflict, ErrUnavailable)
	// The store itself detects that the build is not the one that was read before.
	f(createOnly, nil, ErrPrecondition)
	f(exists, nil, ErrUnavailable)
	// Without a response, ours may have been stored and then replaced by the other one.
	f(createOnly, gone, ErrUnavailable)
	f(Precondition{}, gone, ErrUnavailable)
}

func TestStoreThatIgnoresConditions(t *testing.T) {
	for _, c := range []struct {
		name          string
		blind         func(putOptions) bool
		logs, uploads error
	}{
		{"in parts", func(o putOptions) bool { return o.parts }, nil, ErrUnsupported},
		{"all", func(putOptions) bool { return true }, ErrUnsupported, ErrUnsupported},
		{"none", func(putOptions) bool { return false }, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemBucket()
			m.blind = c.blind
			b := openMem(m)
			wantError(t, b.WriteLog("s", entry("1", "b", time.Now())), c.logs)
			_, err := b.StoreArtifactIf("s", "b", known(body(10, 1)), createOnly)
			wantError(t, err, c.uploads)
			mustStore(t, b, "s", "b", body(10, 2))
			wantBytes(t, b, "s", "b", body(10, 2))
			if r, err := b.Probe(); err != nil {
				t.Errorf("the probe found %+v, %v", r, err)
			}
			for key := range m.objects {
				if strings.HasPrefix(key, "checks/") {
					t.Errorf("the check left %s behind", key)
				}
			}
		})
	}
}

func TestStoreThatRequiresUnquotedETags(t *testing.T) {
	m := newMemBucket()
	m.unquoted = true
	open := func() store { return openMem(m) }
	testIfMatch(t, open)
	testLogTwice(t, open)
	testDeleteIf(t, open)
}

func TestProbeOfAStoreInTrouble(t *testing.T) {
	f := func(op string, fault, want error, writeError bool) {
		t.Helper()
		m := newMemBucket()
		m.fault = func(o, _ string) (bool, error) {
			if o == op {
				return false, fault
			}
			return false, nil
		}
		b := openMem(m)
		r, err := b.Probe()
		if !errors.Is(err, want) || (r.WriteError != nil) != writeError {
			t.Errorf("%s fails with %v: the probe found %+v, %v", op, fault, r, err)
		}
	}
	f("put", ErrUnavailable, ErrUnavailable, false)
	f("list", ErrUnavailable, ErrUnavailable, false)
	f("list", ErrDenied, ErrDenied, true)
	f("put", ErrDenied, nil, true)
	f("put", ErrNoSpace, nil, true)
}

func TestPageReadsOnlyItsLogs(t *testing.T) {
	m, site := newMemBucket(), newSite()
	b := openMem(m)
	for i := range 40 {
		id := fmt.Sprint("b", i)
		mustStore(t, b, site, id, body(10, 1))
		mustLog(t, b, site, entry("1", id, time.Now()))
	}
	gets := 0
	m.fault = func(op, _ string) (bool, error) {
		if op == "get" {
			gets++
		}
		return false, nil
	}
	f := func(q VersionQuery, want int) {
		t.Helper()
		gets = 0
		if _, err := listPage(b, site, q); err != nil {
			t.Fatal(err)
		}
		if gets != want {
			t.Errorf("%+v read %d logs, not %d", q, gets, want)
		}
	}
	f(VersionQuery{Limit: 10}, 10)
	f(VersionQuery{Limit: 10}, 0) // known by their ETags
	f(VersionQuery{}, 30)
	mustLog(t, b, site, entry("2", "b7", time.Now()))
	f(VersionQuery{}, 1)
}

func TestLogCacheIsBounded(t *testing.T) {
	c := newLogCache(50_000, 500)
	put := func(key string, entries int) *storedLog {
		scan := newLogScan()
		for i := range entries {
			e := entry(fmt.Sprint(i), "b", testTime)
			scan.add(&e)
		}
		return c.put(key, "e", scan)
	}
	for i := range 1000 {
		put(fmt.Sprint(i), 5)
		if c.size > c.max || c.logs.Len() > 500 {
			t.Fatalf("%d bytes are kept, not %d; %d logs are remembered", c.size, c.max, c.logs.Len())
		}
	}
	if put("large", 20_000).memory() > 0 || put("full", 5000).memory() > 0 {
		t.Error("one log took all of the cache")
	}
	if l := c.get("999", "e"); l == nil || l.known(true) == nil {
		t.Error("the last one is not kept")
	}
	if l := c.get("600", "e"); l == nil || l.known(true) != nil {
		t.Error("an older one is kept with its entries, or not remembered at all")
	}
	if c.get("1", "e") != nil {
		t.Error("the first one is still remembered")
	}
	if c.get("999", "other") != nil {
		t.Error("the cache returned a log with another ETag")
	}
	sum := int64(0)
	for _, l := range c.kept.Values() {
		sum += l.memory()
	}
	if sum != c.size || sum == 0 {
		t.Errorf("%d bytes are counted, and %d kept", c.size, sum)
	}
	c.size += c.max // a count that is too high only forgets
	put("1", 5)
	put("2", 5)
	if l := c.get("2", "e"); l == nil || l.known(true) == nil || c.size > 3000 {
		t.Errorf("after a wrong count %d bytes are counted, and the last log is kept: %v", c.size, l != nil)
	}
}

func TestShortStreamIsNeverWhole(t *testing.T) {
	data := body(1000, 1)
	for cut := range int64(3) {
		r := &objectReader{
			body: io.NopCloser(bytes.NewReader(data[:999-cut*400])), left: 1000,
			info: objectInfo{key: "k", size: 1000}, cancel: func() {},
		}
		got, err := io.ReadAll(r)
		wantError(t, err, ErrUnavailable)
		if int64(len(got)) != 999-cut*400 {
			t.Errorf("%d bytes received", len(got))
		}
	}
}

// If a concurrent writer stores a build between the stat and the delete of a conditional delete,
// that build is deleted only if the condition holds for it too.
func TestConditionalDeleteDuringAReplacement(t *testing.T) {
	f := func(name string, cond func(etag string) Precondition, replacements int, want error, left bool) {
		t.Helper()
		m := newMemBucket()
		b := openMem(m)
		first := mustStoreIf(t, b, "s", "b", body(10, 1), createOnly)
		if err := b.requireCapability(conditionalRemove); err != nil {
			t.Fatal(err)
		}
		stored := 0
		m.fault = func(op, key string) (bool, error) {
			if op == "remove" && stored < replacements {
				stored++
				data := body(20, byte(stored))
				m.objects[key] = memObject{objectInfo{key: key, etag: fmt.Sprintf(`"other-%d"`, stored), size: 20}, data}
			}
			return false, nil
		}
		if err := b.DeleteArtifact("s", "b", cond(first.ETag)); !errors.Is(err, want) {
			t.Errorf("%s: the error is %v, want %v", name, err, want)
		}
		m.fault = nil
		if !left {
			_, err := b.FetchArtifact("s", "b")
			wantError(t, err, ErrNotFound)
			return
		}
		wantBytes(t, b, "s", "b", body(20, byte(stored)))
	}
	its := func(etag string) Precondition { return ifMatch(etag) }
	anyOne := func(string) Precondition { return exists }
	f("its tag", its, 0, nil, false)
	f("its tag, replaced once", its, 1, ErrPrecondition, true)
	f("any, replaced once", anyOne, 1, nil, false)
	f("any, replaced each time", anyOne, removeTries, ErrUnavailable, true)
}

// If a log is removed between the list of keys and its read, and there is no artifact, the build
// is not listed.
func TestLogRemovedDuringAList(t *testing.T) {
	m := newMemBucket()
	b := openMem(m)
	mustStore(t, b, "s", "both", body(10, 1))
	for _, id := range []string{"both", "gone", "stays"} {
		mustLog(t, b, "s", entry("1", id, time.Now()))
	}
	b = openMem(m) // nothing is cached
	m.fault = func(op, key string) (bool, error) {
		if op == "get" && !strings.Contains(key, "stays") {
			delete(m.objects, key)
		}
		return false, nil
	}
	versions, err := b.ListVersions("s")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range versions {
		got = append(got, briefly(v))
	}
	slices.Sort(got)
	if want := []string{"both:10:", "stays:0:1"}; !slices.Equal(got, want) {
		t.Errorf("listed are %q, want %q", got, want)
	}
}

// A body that has not the declared size fails before the SDK sees its end.
func TestExactReader(t *testing.T) {
	f := func(r io.Reader, read string, cause error) {
		t.Helper()
		b := newExactReader(r)
		got, err := io.ReadAll(b)
		if string(got) != read || !errors.Is(b.err, cause) || (cause == nil) != (err == nil) || err != nil && err != errBodyFailed {
			t.Errorf("read %q, the SDK sees %v, the cause is %v; want %q, %v", got, err, b.err, read, cause)
		}
		if _, again := b.Read(make([]byte, 1)); cause != nil && again != errBodyFailed || cause == nil && again != io.EOF {
			t.Errorf("read again it fails with %v", again)
		}
	}
	text := func(s string) io.Reader { return iotest.DataErrReader(strings.NewReader(s)) } // the end comes with the last bytes
	f(text("abc"), "abc", nil)
	f(sized{text("abc"), 3}, "abc", nil)
	f(sized{text("abc"), -1}, "abc", nil)
	f(sized{text("abc"), 4}, "", errBodyCut)
	f(sized{text("abc"), 2}, "", errBodyCut)
	f(sized{strings.NewReader("abc"), 4}, "abc", errBodyCut)
	f(sized{strings.NewReader("abc"), 2}, "", errBodyCut)
	f(failing([]byte("abc"), 3, errSender), "abc", errSender)
	f(failing([]byte("abc"), 3, io.ErrUnexpectedEOF), "abc", io.ErrUnexpectedEOF)
}

// badChecksum returns objects whose read fails at the end, as when the SDK finds a wrong checksum.
type badChecksum struct{ *memBucket }

func (b badChecksum) get(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	r, info, err := b.memBucket.get(ctx, key, etag, offset, length)
	if err != nil {
		return nil, info, err
	}
	data, _ := io.ReadAll(r)
	return io.NopCloser(iotest.DataErrReader(failing(data, len(data), errors.New("bad CRC")))), info, nil
}

// Such an object is never taken for complete, and no log is rewritten from it.
func TestObjectWithABadChecksum(t *testing.T) {
	m := newMemBucket()
	sound := assumeCapable(openMem(m))
	mustStore(t, sound, "s", "b", body(100, 1))
	mustLog(t, sound, "s", entry("1", "b", time.Now()))
	b := assumeCapable(newObjectStore(badChecksum{m}, "", quiet()))
	r, err := b.FetchArtifact("s", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n, err := io.ReadFull(r, make([]byte, 100)); n == 100 || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "bad CRC") {
		t.Errorf("%d bytes, %v", n, err)
	}
	errs := make([]error, 1)
	e := []LogEntry{entry("2", "b", time.Now())}
	wantError(t, b.tryAppend(t.Context(), b.logsPrefix("s")+"b"+logSuffix, e, idsToFind(e), errs), ErrUnavailable)
	if n := len(versionOf(t, sound, "s", "b").Logs); n != 1 {
		t.Errorf("the log has %d entries", n)
	}
}

// After an ambiguous 404 the service checks the bucket.
func TestAmbiguousNotFound(t *testing.T) {
	for _, c := range []struct{ list, want error }{
		{nil, ErrNotFound},
		{ErrDenied, ErrNotFound}, // a bucket that denies exists
		{errors.New("501"), ErrUnavailable},
		{ErrNotFound, ErrUnavailable},
		{ErrUnsupported, ErrUnavailable},
		{errBucketGone, errBucketGone},
		{ErrUnavailable, ErrUnavailable}, // unknown
	} {
		m := newMemBucket()
		b := assumeCapable(openMem(m))
		m.fault = func(op, key string) (bool, error) {
			switch {
			case strings.HasPrefix(key, "sites/s/labels/"), strings.HasPrefix(key, "sites/s/deleting/"):
				return false, nil
			case op == "list":
				return false, c.list
			}
			return false, fmt.Errorf("%w: 404", errAmbiguousNotFound)
		}
		_, err := b.StatArtifact("s", "b")
		wantError(t, err, c.want)
		_, err = b.FetchArtifact("s", "b")
		wantError(t, err, c.want)
		err = b.DeleteArtifact("s", "b", Precondition{})
		if c.want == ErrNotFound {
			wantError(t, err, nil)
			wantError(t, b.DeleteArtifact("s", "b", exists), ErrPrecondition)
			continue
		}
		wantError(t, err, c.want)
		wantError(t, b.DeleteArtifact("s", "b", exists), c.want)
		_, err = b.StoreArtifactIf("s", "b", known(body(10, 1)), exists)
		wantError(t, err, c.want)
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrPrecondition) {
			t.Errorf("the error is also %v", err)
		}
	}
}
