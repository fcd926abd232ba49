package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func mustStoreIf(t *testing.T, b store, site, id string, data []byte, cond Precondition) ArtifactInfo {
	t.Helper()
	info, err := b.StoreArtifactIf(site, id, known(data), cond)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func testCreateOnly(t *testing.T, open func() store) {
	one, two, site := open(), open(), newSite()
	for i, n := range []int{100, largeBody} {
		id := fmt.Sprint("b", i)
		data := body(n, 1)
		mustStoreIf(t, one, site, id, data, createOnly)
		for _, r := range []io.Reader{known(body(n, 2)), unknown(body(n, 2))} {
			_, err := two.StoreArtifactIf(site, id, r, createOnly)
			wantError(t, err, ErrPrecondition)
		}
		wantBytes(t, two, site, id, data)
	}
}

// race lets concurrent writers store bodies of n bytes at once over several processes,
// and returns how many were acknowledged. The stored body must be that of the winner.
func race(t *testing.T, open func() store, site, id string, writers, n int, cond Precondition) int64 {
	t.Helper()
	stores := []store{open(), open()}
	bodies := make([][]byte, writers)
	for i := range bodies {
		bodies[i] = body(n, byte(100+i))
	}
	var won, refused, winner atomic.Int64
	var g sync.WaitGroup
	start := make(chan struct{})
	for i, data := range bodies {
		g.Go(func() {
			<-start
			_, err := stores[i%2].StoreArtifactIf(site, id, known(data), cond)
			switch {
			case err == nil:
				won.Add(1)
				winner.Store(int64(i))
			case errors.Is(err, ErrPrecondition):
				refused.Add(1)
			default:
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	close(start)
	g.Wait()
	t.Logf("%d writers of %d bytes: %d won, %d refused", writers, n, won.Load(), refused.Load())
	wantBytes(t, stores[0], site, id, bodies[winner.Load()])
	return won.Load()
}

func testCreateOnlyRace(t *testing.T, open func() store) {
	for i, n := range []int{1000, 1000, largeBody} {
		if won := race(t, open, newSite(), fmt.Sprint("b", i), 16, n, createOnly); won != 1 {
			t.Errorf("%d of 16 writers won", won)
		}
	}
}

// testAbsent: Absent must hold in addition to every condition of the client.
func testAbsent(t *testing.T, open func() store) {
	later := time.Now().Add(time.Hour)
	for _, cond := range []Precondition{
		{},
		{IfNoneMatch: &ETagList{Tags: []string{`"x"`}}},
		{IfNoneMatch: &ETagList{Any: true}},
		{IfUnmodifiedSince: later},
		{IfUnmodifiedSince: later, IfNoneMatch: &ETagList{Tags: []string{`W/"x"`}}},
	} {
		cond.Absent = true
		site := newSite()
		if won := race(t, open, site, "b", 8, 1000, cond); won != 1 {
			t.Errorf("%+v: %d of 8 writers won", cond, won)
		}
		b := open()
		there, err := fetch(b, site, "b")
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.StoreArtifactIf(site, "b", known(body(10, 1)), cond)
		wantError(t, err, ErrPrecondition)
		wantBytes(t, b, site, "b", there)
	}
	b, site := open(), newSite()
	_, err := b.StoreArtifactIf(site, "b", known(body(10, 1)), Precondition{Absent: true, IfMatch: exists.IfMatch})
	wantError(t, err, ErrPrecondition)
	_, err = fetch(b, site, "b")
	wantError(t, err, ErrNotFound)
}

func testIfMatch(t *testing.T, open func() store) {
	b, site := open(), newSite()
	for i, n := range []int{100, largeBody} {
		id := fmt.Sprint("b", i)
		_, err := b.StoreArtifactIf(site, id, known(body(n, 1)), exists)
		wantError(t, err, ErrPrecondition)
		_, err = b.StoreArtifactIf(site, id, known(body(n, 1)), ifMatch(`"x"`))
		wantError(t, err, ErrPrecondition)
		first := mustStoreIf(t, b, site, id, body(n, 1), Precondition{})
		second := mustStoreIf(t, b, site, id, body(n, 2), ifMatch(`"x"`, first.ETag))
		if first.ETag == second.ETag {
			t.Errorf("two bodies have the ETag %s", first.ETag)
		}
		_, err = b.StoreArtifactIf(site, id, known(body(n, 3)), ifMatch(first.ETag))
		wantError(t, err, ErrPrecondition)
		wantBytes(t, b, site, id, body(n, 2))
		mustStoreIf(t, b, site, id, body(n, 4), exists)
		wantBytes(t, b, site, id, body(n, 4))
	}
}

func testIfMatchRace(t *testing.T, open func() store) {
	// A store whose look and change are two steps is not caught by every round.
	// That of a directory has a test of its own without luck: TestChangesWaitForTheLockOfTheBuild.
	b, site := open(), newSite()
	for i, n := range []int{1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, largeBody} {
		id := fmt.Sprint("b", i)
		info := mustStoreIf(t, b, site, id, body(n, 1), createOnly)
		if won := race(t, open, site, id, 8, n, ifMatch(info.ETag)); won != 1 {
			t.Errorf("%d of 8 writers won", won)
		}
	}
}

func testOtherConditions(t *testing.T, open func() store) {
	b, site := open(), newSite()
	info := mustStoreIf(t, b, site, "b", body(10, 1), createOnly)
	_, err := b.StoreArtifactIf(site, "b", known(body(10, 2)), Precondition{IfNoneMatch: &ETagList{Tags: []string{"W/" + info.ETag}}})
	wantError(t, err, ErrPrecondition)
	_, err = b.StoreArtifactIf(site, "b", known(body(10, 2)), Precondition{IfUnmodifiedSince: time.Now().Add(-time.Hour)})
	wantError(t, err, ErrPrecondition)
	// Both count, also where If-None-Match alone would hold.
	_, err = b.StoreArtifactIf(site, "b", known(body(10, 2)), Precondition{
		IfNoneMatch: &ETagList{Tags: []string{`"x"`}}, IfUnmodifiedSince: time.Now().Add(-time.Hour)})
	wantError(t, err, ErrPrecondition)
	wantBytes(t, b, site, "b", body(10, 1))
	mustStoreIf(t, b, site, "b", body(10, 3), Precondition{IfNoneMatch: &ETagList{Tags: []string{`"x"`}}})
	mustStoreIf(t, b, site, "b", body(10, 4), Precondition{IfUnmodifiedSince: time.Now().Add(time.Hour)})
	wantBytes(t, b, site, "b", body(10, 4))
	mustStoreIf(t, b, site, "c", body(10, 5), Precondition{IfNoneMatch: &ETagList{Tags: []string{`"x"`}}})
	wantBytes(t, b, site, "c", body(10, 5))
}

func testInfo(t *testing.T, open func() store) {
	b, site := open(), newSite()
	for _, n := range []int{10, largeBody} {
		for _, r := range []io.Reader{known(body(n, 1)), unknown(body(n, 1))} {
			info, err := b.StoreArtifactIf(site, "b", r, Precondition{})
			if err != nil {
				t.Fatal(err)
			}
			wantInfo(t, b, site, "b", info, n)
		}
	}
}

// wantInfo compares the reported info of a build with the stored build.
func wantInfo(t *testing.T, b store, site, id string, info ArtifactInfo, size int) {
	t.Helper()
	r, err := b.FetchArtifact(site, id)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	now := r.(ArtifactReader).Info()
	if info.Size != int64(size) || now.Size != info.Size || now.ETag != info.ETag {
		t.Errorf("stored was %+v, and there is %+v", info, now)
	}
	if !info.ModTime.IsZero() && !info.ModTime.Equal(now.ModTime) {
		t.Errorf("stored was at %s, and there is %s", info.ModTime, now.ModTime)
	}
	if list, err := parseETags(now.ETag); err != nil || len(list.Tags) != 1 || now.ETag[0] != '"' {
		t.Errorf("%s is no strong ETag", now.ETag)
	}
}

func testDelete(t *testing.T, open func() store) {
	one, two, site := open(), open(), newSite()
	mustStore(t, one, site, "b", body(10, 1))
	mustLog(t, one, site, entry("1", "b", time.Now()))
	for range 2 {
		if err := two.DeleteArtifact(site, "b", Precondition{}); err != nil {
			t.Fatal(err)
		}
		_, err := one.FetchArtifact(site, "b")
		wantError(t, err, ErrNotFound)
	}
	if v := versionOf(t, one, site, "b"); v == nil || v.SizeBytes != 0 || len(v.Logs) != 1 {
		t.Errorf("after the delete the build is %+v", v)
	}
	if err := one.DeleteArtifact(newSite(), "b", Precondition{}); err != nil {
		t.Errorf("of an unknown site: %v", err)
	}
	mustStoreIf(t, one, site, "b", body(10, 2), createOnly)
}

func testDeleteIf(t *testing.T, open func() store) {
	b, site := open(), newSite()
	wantError(t, b.DeleteArtifact(site, "b", exists), ErrPrecondition)
	wantError(t, b.DeleteArtifact(site, "b", ifMatch(`"x"`)), ErrPrecondition)
	first := mustStoreIf(t, b, site, "b", body(10, 1), createOnly)
	second := mustStoreIf(t, b, site, "b", body(10, 2), ifMatch(first.ETag))
	wantError(t, b.DeleteArtifact(site, "b", ifMatch(first.ETag)), ErrPrecondition)
	wantError(t, b.DeleteArtifact(site, "b", Precondition{IfUnmodifiedSince: time.Now().Add(-time.Hour)}), ErrPrecondition)
	wantBytes(t, b, site, "b", body(10, 2))
	if err := b.DeleteArtifact(site, "b", ifMatch(first.ETag, second.ETag)); err != nil {
		t.Fatal(err)
	}
	_, err := b.FetchArtifact(site, "b")
	wantError(t, err, ErrNotFound)
	mustStore(t, b, site, "b", body(10, 3))
	if err := b.DeleteArtifact(site, "b", exists); err != nil {
		t.Fatal(err)
	}
	wantError(t, b.DeleteArtifact(site, "b", exists), ErrPrecondition)
}

// testDeleteIfRace: a delete that reports success did delete the build.
func testDeleteIfRace(t *testing.T, open func() store) {
	for _, done := range raceDeletes(t, open) {
		if done > 1 {
			t.Errorf("%d of 8 deletes reported that they deleted the build", done)
		}
	}
}

// testDeletesIfRace: such a store also reports success if the build was already gone.
func testDeletesIfRace(t *testing.T, open func() store) {
	for _, done := range raceDeletes(t, open) {
		if done == 0 {
			t.Error("nobody was told that the build is deleted")
		}
	}
}

// raceDeletes lets concurrent writers delete a build on a condition, and returns how many
// were acknowledged, for each of several conditions.
func raceDeletes(t *testing.T, open func() store) (acknowledged []int64) {
	t.Helper()
	stores, site := []store{open(), open()}, newSite()
	if err := stores[0].DeleteArtifact(site, "none", exists); errors.Is(err, ErrUnsupported) {
		return nil // what such a store does instead is testNoDeleteIf
	}
	for i, cond := range []func(etag string) Precondition{
		func(etag string) Precondition { return ifMatch(etag) },
		func(string) Precondition { return exists },
	} {
		id := fmt.Sprint("b", i)
		info := mustStoreIf(t, stores[0], site, id, body(10, 1), createOnly)
		var done atomic.Int64
		var g sync.WaitGroup
		start := make(chan struct{})
		for r := range 8 {
			g.Go(func() {
				<-start
				err := stores[r%2].DeleteArtifact(site, id, cond(info.ETag))
				if err == nil {
					done.Add(1)
				} else if !errors.Is(err, ErrPrecondition) && !errors.Is(err, ErrUnavailable) {
					t.Error(err)
				}
			})
		}
		close(start)
		g.Wait()
		acknowledged = append(acknowledged, done.Load())
		_, err := fetch(stores[0], site, id)
		wantError(t, err, ErrNotFound)
	}
	return acknowledged
}

func testNoDeleteIf(t *testing.T, open func() store) {
	b, site := open(), newSite()
	info := mustStoreIf(t, b, site, "b", body(10, 1), createOnly)
	for _, cond := range []Precondition{exists, ifMatch(info.ETag), ifMatch(`"x"`)} {
		wantError(t, b.DeleteArtifact(site, "b", cond), ErrUnsupported)
	}
	wantBytes(t, b, site, "b", body(10, 1))
}

func testReaderInfo(t *testing.T, open func() store) {
	b, site := open(), newSite()
	info := mustStoreIf(t, b, site, "b", body(12345, 1), Precondition{})
	wantInfo(t, b, site, "b", info, 12345)
	ranger, ok := b.(ArtifactRanger)
	if !ok {
		return // the readers of this one are cheap to open
	}
	now, err := ranger.StatArtifact(site, "b")
	if err != nil {
		t.Fatal(err)
	}
	wantInfo(t, b, site, "b", now, 12345)
	_, err = ranger.StatArtifact(site, "c")
	wantError(t, err, ErrNotFound)
}

func testRanges(t *testing.T, open func() store) {
	b, site := open(), newSite()
	data := body(largeBody, 1)
	info := mustStoreIf(t, b, site, "b", data, Precondition{})
	read := func(offset, length int64) ([]byte, error) {
		r, err := openRange(b, site, "b", info.ETag, offset, length)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	size := int64(len(data))
	for _, c := range []byteRange{{0, 1}, {0, size}, {1, 1000}, {size - 1, 1}, {size / 2, size / 3}, {min(5<<20, size-1) - 1, 2}} {
		got, err := read(c.offset, c.length)
		if err != nil || !bytes.Equal(got, data[c.offset:c.offset+c.length]) {
			t.Errorf("range %+v yielded %d bytes, %v", c, len(got), err)
		}
	}
	ranger, ok := b.(ArtifactRanger)
	if !ok {
		return // an open reader keeps its version
	}
	for _, c := range []byteRange{{0, -1}, {1, -1}, {size - 10, 100}} { // whatever is there, up to its end
		r, err := ranger.FetchArtifactRange(site, "b", "", c.offset, c.length)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data[c.offset:]) || r.Info().ETag != info.ETag || r.Info().Size != size {
			t.Errorf("range %+v yielded %d bytes of %+v, %v", c, len(got), r.Info(), err)
		}
		r.Close()
	}
	switch r, err := ranger.FetchArtifactRange(site, "b", "", size, 10); {
	case err == nil:
		if got, err := io.ReadAll(r); err != nil || len(got) > 0 {
			t.Errorf("a range behind the end yielded %d bytes, %v", len(got), err)
		}
		r.Close()
	case !errors.Is(err, errRange):
		t.Errorf("a range behind the end fails with %v", err)
	}
	mustStore(t, b, site, "b", body(largeBody, 2))
	_, err := read(0, 10)
	wantError(t, err, ErrPrecondition)
}

// openRange opens a range in the way that the backend supports.
func openRange(b store, site, id, etag string, offset, length int64) (io.ReadCloser, error) {
	if ranger, ok := b.(ArtifactRanger); ok {
		return ranger.FetchArtifactRange(site, id, etag, offset, length)
	}
	r, err := b.FetchArtifact(site, id)
	if err != nil {
		return nil, err
	}
	if _, err := r.(io.Seeker).Seek(offset, io.SeekStart); err != nil {
		r.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, length), r}, nil
}

func testPages(t *testing.T, open func() store) {
	b, site := open(), newSite()
	at := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 23 {
		mustLog(t, b, site, entry("1", fmt.Sprint("b", i), at.Add(time.Duration(i/3)*time.Hour)))
	}
	for i := range 4 {
		mustStore(t, b, site, fmt.Sprint("b", i*5), body(10, 1))
	}
	all, err := b.ListVersions(site)
	if err != nil || len(all) != 23 {
		t.Fatalf("%d versions, %v", len(all), err)
	}
	for _, limit := range []int{1, 5, 22, 23, 24} {
		var got []*Version
		for q := (VersionQuery{Limit: limit, Metadata: true}); ; {
			page, err := listPage(b, site, q)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, page.Versions...)
			if q.Cursor = page.NextCursor; q.Cursor == "" {
				break
			}
			if len(page.Versions) != limit {
				t.Fatalf("a page has %d versions, not %d", len(page.Versions), limit)
			}
		}
		if !reflect.DeepEqual(got, all) {
			t.Errorf("pages of %d do not join to the whole", limit)
		}
	}
}

func testTags(t *testing.T, open func() store) {
	one, two, site := open(), open(), newSite()
	tag := func(b store) string {
		t.Helper()
		page, err := listPage(b, site, VersionQuery{})
		if err != nil {
			t.Fatal(err)
		}
		return page.Tag
	}
	seen := map[string]string{}
	for _, change := range []struct {
		what string
		do   func()
	}{
		{"nothing", func() {}},
		{"an artifact", func() { mustStore(t, one, site, "b", body(10, 1)) }},
		{"another size", func() { mustStore(t, one, site, "b", body(11, 1)) }},
		{"the same size again", func() {
			before := createdAt(t, one, site, "b")
			eventually(t, "a later time", func() bool { // some stores tell whole seconds
				mustStore(t, one, site, "b", body(11, 2))
				return !createdAt(t, one, site, "b").Equal(before)
			})
		}},
		{"a log", func() { mustLog(t, one, site, entry("1", "b", time.Now())) }},
		{"an entry", func() { mustLog(t, one, site, entry("2", "b", time.Now())) }},
		{"a delete", func() {
			if err := one.DeleteArtifact(site, "b", Precondition{}); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		change.do()
		now := tag(one)
		if now == "" {
			continue // not known, and so never equal
		}
		if other := tag(two); other != now {
			t.Errorf("after %s one process has the tag %s and another %s", change.what, now, other)
		}
		if again := tag(one); again != now {
			t.Errorf("after %s the tag is %s and then %s", change.what, now, again)
		}
		if before, ok := seen[now]; ok {
			t.Errorf("the tag after %s is that after %s", change.what, before)
		}
		seen[now] = change.what
	}
}

// createdAt returns the time of the artifact according to a reader of it.
func createdAt(t *testing.T, b store, site, id string) time.Time {
	t.Helper()
	r, err := b.FetchArtifact(site, id)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return r.(ArtifactReader).Info().ModTime
}

func testBadCursor(t *testing.T, open func() store) {
	_, err := listPage(open(), newSite(), VersionQuery{Cursor: "no cursor"})
	wantError(t, err, ErrBadCursor)
}

func testProbe(t *testing.T, open func() store) {
	r, err := open().Probe()
	if err != nil || r.WriteError != nil {
		t.Errorf("the probe found %+v, %v", r, err)
	}
}
