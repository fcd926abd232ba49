package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// digestStores opens a store of each kind that keeps digests.
func digestStores(t *testing.T) map[string]func() (Backend, *memDigests) {
	return map[string]func() (Backend, *memDigests){
		"directory": func() (Backend, *memDigests) {
			k := newMemDigests()
			return &digestNFS{nfs: openTestNFS(t, t.TempDir()), memDigests: k}, k
		},
		"bucket": func() (Backend, *memDigests) {
			k := newMemDigests()
			return &digestBucket{openMem(newMemBucket()), k}, k
		},
	}
}

// TestRepeatedCreate: an upload that may only create its build, and announces the digest that
// the build has, is a success. All others are what they are without a digest.
func TestRepeatedCreate(t *testing.T) {
	const client, appendOnly, createOnly = "If-None-Match: *", "an append-only store", "a right of create"
	data := []byte("some bytes")
	same, other := sha256Field(data), sha256Field([]byte("other"))
	for name, open := range digestStores(t) {
		for _, c := range []struct {
			by     string // what allows only a create
			header []string
			status int // of the same upload; that of any other is refused
		}{
			{client, []string{"Repr-Digest", same}, 200},
			{client, []string{"Content-Digest", same}, 200},
			{client, []string{"Content-Digest", same, "Repr-Digest", sha512Field(data)}, 200},
			{client, []string{"Repr-Digest", sha512Field(data)}, 200},
			{client, []string{"Repr-Digest", other}, 412},
			{client, []string{"Repr-Digest", "md5=:AA==:"}, 412},
			{client, nil, 412},
			{client, []string{"Repr-Digest", same, "If-Match", "*"}, 412},
			{client, []string{"Repr-Digest", same, "If-Unmodified-Since", "Thu, 01 Jan 2099 00:00:00 GMT"}, 412},
			{appendOnly, []string{"Repr-Digest", same}, 200},
			{appendOnly, []string{"Repr-Digest", sha512Field(data)}, 200},
			{appendOnly, []string{"Repr-Digest", other}, 409},
			{appendOnly, nil, 409},
			{appendOnly, []string{"Repr-Digest", same, "If-None-Match", "*"}, 200},
			{appendOnly, []string{"Repr-Digest", other, "If-None-Match", "*"}, 412},
			{appendOnly, []string{"Repr-Digest", same, "If-None-Match", `"x"`}, 409},
			{appendOnly, []string{"Repr-Digest", same, "If-Match", "*"}, 409},
			{appendOnly, []string{"Repr-Digest", same, "If-Unmodified-Since", "Thu, 01 Jan 2099 00:00:00 GMT"}, 409},
			{createOnly, []string{"Repr-Digest", same}, 200},
			{createOnly, []string{"Repr-Digest", sha512Field(data)}, 200},
			{createOnly, []string{"Repr-Digest", other}, 403},
			{createOnly, nil, 403},
			{createOnly, []string{"Repr-Digest", same, "If-None-Match", "*"}, 200},
			{createOnly, []string{"Repr-Digest", other, "If-None-Match", "*"}, 403},
			{createOnly, []string{"Repr-Digest", same, "If-Match", "*"}, 403},
			{createOnly, []string{"Repr-Digest", same, "If-Unmodified-Since", "Thu, 01 Jan 2099 00:00:00 GMT"}, 403},
		} {
			var vars []string
			h := header(c.header...)
			switch c.by {
			case client:
				h.Set("If-None-Match", "*")
			case appendOnly:
				vars = append(vars, "APPEND_ONLY=true")
			}
			for _, known := range []bool{true, false} {
				b, kept := open()
				info, err := b.(ConditionalStorer).StoreArtifactIf("a", "b", bytes.NewReader(data), Precondition{})
				if err != nil {
					t.Fatal(err)
				}
				if known {
					kept.sums[info.ETag] = sha256.Sum256(data)
				}
				s, svc := startBackend(t, b, vars...)
				if c.by == createOnly {
					h.Set("Authorization", useCreateOnly(t, svc))
				}
				for _, expect := range []string{"", "100-continue"} {
					for _, body := range []any{data, unsized(data)} {
						what := fmt.Sprintf("%s, %s, %v, known %t, %q, %T", name, c.by, c.header, known, expect, body)
						if h.Del("Expect"); expect != "" {
							h.Set("Expect", expect)
						}
						r, err := s.try(request{"PUT", "/sites/a/artifacts/b", body, h})
						if err != nil || r.status != c.status {
							t.Fatalf("%s: %v, want %d", what, statusOr(r, err), c.status)
						}
						if c.status != 200 {
							continue
						}
						var json success
						r.into(t, &json)
						sum := Digest(sha256.Sum256(data))
						if r.header.Get("ETag") != info.ETag || r.header.Get("Repr-Digest") != same || json.SHA256 != sum.String() ||
							json.Status != "success" || *json.SizeBytes != int64(len(data)) {
							t.Errorf("%s: %v %s", what, r.header, r.body)
						}
					}
				}
				if want := map[bool]int{true: 1}[c.status == 200 && !known]; kept.calls() != want && !(c.status != 200 && !known && kept.calls() <= 1) {
					t.Errorf("%s, %s, %v: the digest was kept %d times, want %d", name, c.by, c.header, kept.calls(), want)
				}
				eventually(t, "the access lines", func() bool {
					return strings.Count(s.log.String(), `"outcome":"same"`) == map[bool]int{true: 4}[c.status == 200]
				})
				nothingIsHeld(t, svc)
			}
		}
	}
}

// An upload of another size is another build, whose digest need not be known.
func TestRepeatedCreateOfAnotherSize(t *testing.T) {
	for name, open := range digestStores(t) {
		b, kept := open()
		s, _ := startBackend(t, b)
		s.put(t, 201, "/sites/a/artifacts/b", "some bytes")
		for _, c := range []struct {
			field  string
			status int
		}{
			{sha256Field([]byte("some bytes")), 412},
			{sha512Field([]byte("some more bytes")), 412},
			{sha512Field([]byte("some bytes")), 400}, // the body is read, and differs
		} {
			for _, expect := range [][]string{nil, {"Expect", "100-continue"}} {
				s.put(t, c.status, "/sites/a/artifacts/b", "some more bytes", append(expect, "If-None-Match", "*", "Repr-Digest", c.field)...)
			}
		}
		if kept.calls() != 0 {
			t.Errorf("%s: the digest was computed", name)
		}
	}
}

// useCreateOnly makes svc require a credential that may only create, and returns the
// Authorization of such a client.
func useCreateOnly(t *testing.T, svc *service) string {
	t.Helper()
	token := newToken()
	access, err := openAccess(writeAccess(t, testRule{name: "a", token: token, allow: "create", sites: "a"}), false, quiet())
	if err != nil {
		t.Fatal(err)
	}
	svc.api.useAccess(access)
	return "Bearer " + token
}

// A client that may only create, and announces only a SHA-512, must not learn the size of the
// build from whether its body is needed.
func TestRepeatedCreateDoesNotShowTheSize(t *testing.T) {
	data := []byte("some bytes")
	for name, open := range digestStores(t) {
		for _, known := range []bool{true, false} {
			b, kept := open()
			info, err := b.(ConditionalStorer).StoreArtifactIf("a", "b", bytes.NewReader(data), Precondition{})
			if err != nil {
				t.Fatal(err)
			}
			if known {
				kept.sums[info.ETag] = sha256.Sum256(data)
			}
			s, svc := startBackend(t, b)
			authorization := useCreateOnly(t, svc)
			for _, size := range []int{1, 9, 10, 11, 1 << 20} {
				head := fmt.Sprintf("PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nAuthorization: %s\r\nRepr-Digest: %s\r\nContent-Length: %d\r\n",
					authorization, sha512Field(data), size)
				if r := answerTo(t, s.addr, head+"Expect: 100-continue\r\n\r\n"); r.status != 100 {
					t.Errorf("%s, known %t, %d bytes, expecting: %d, want 100", name, known, size, r.status)
				}
				if got := exchangeRaw(t, s.addr, head+"\r\n"); got != "400" { // as the body is cut
					t.Errorf("%s, known %t, %d bytes, none sent: %s, want 400", name, known, size, got)
				}
			}
			for _, other := range []string{"shorter", "same size.", "another size"} {
				h := header("Authorization", authorization, "Repr-Digest", sha512Field([]byte(other)))
				for _, body := range []any{other, unsized([]byte(other))} {
					if got := statusOr(s.try(request{"PUT", "/sites/a/artifacts/b", body, h})); got != 403 {
						t.Errorf("%s, known %t, %q: %v, want 403", name, known, other, got)
					}
				}
			}
		}
	}
}

// The size of a chunked upload is known at its end: until then no digest is computed. If the
// digest of the build is known, it is compared before the body.
func TestRepeatedCreateInChunks(t *testing.T) {
	data := []byte("some bytes")
	for name, open := range digestStores(t) {
		for _, c := range []struct {
			known  bool
			field  string
			expect int    // the response to the header
			chunks string // the body
			want   string // the response to the body
			kept   int    // digests that were computed
		}{
			{true, sha256Field(data), 200, "", "200", 0},
			{true, sha256Field([]byte("x")), 412, "", "412", 0},
			{false, sha256Field(data), 100, "", "400", 0}, // the body is cut
			{false, sha256Field(data), 100, "a\r\nsome byt", "400", 0},
			{false, sha256Field(data), 100, "1\r\nx\r\n0\r\n\r\n", "400", 0},
			{false, sha256Field([]byte("x")), 100, "1\r\nx\r\n0\r\n\r\n", "412", 0},
			{false, sha256Field([]byte("same size.")), 100, "a\r\nsame size.\r\n0\r\n\r\n", "412", 1},
			{false, sha256Field(data), 100, "a\r\nsome bytes\r\n0\r\n\r\n", "200", 1},
		} {
			b, kept := open()
			info, err := b.(ConditionalStorer).StoreArtifactIf("a", "b", bytes.NewReader(data), Precondition{})
			if err != nil {
				t.Fatal(err)
			}
			if c.known {
				kept.sums[info.ETag] = sha256.Sum256(data)
			}
			s, svc := startBackend(t, b)
			head := "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nIf-None-Match: *\r\nTransfer-Encoding: chunked\r\nRepr-Digest: " + c.field + "\r\n"
			if r := answerTo(t, s.addr, head+"Expect: 100-continue\r\n\r\n"); r.status != c.expect {
				t.Errorf("%s, %+q: the header alone gets %d", name, fmt.Sprint(c), r.status)
			}
			if got := exchangeRaw(t, s.addr, head+"\r\n"+c.chunks); got != c.want {
				t.Errorf("%s, %+q: the body gets %s", name, fmt.Sprint(c), got)
			}
			nothingIsHeld(t, svc)
			if kept.calls() != c.kept {
				t.Errorf("%s, %+q: %d digests were computed", name, fmt.Sprint(c), kept.calls())
			}
		}
	}
}

// An upload that was stored before is a success although it would be refused for its size now,
// if the digest of the build is known.
func TestRepeatedCreateOfABuildThatIsTooLargeNow(t *testing.T) {
	data, other := randomBytes(2000), randomBytes(2000)
	same := sha256Field(data)
	for _, c := range []struct {
		name    string
		vars    []string
		refusal int
	}{
		{"no space", []string{"MIN_FREE_SPACE=9000"}, 507},
		{"a lower maximum", []string{"MIN_FREE_SPACE=0", "MAX_ARTIFACT_SIZE=1000"}, 413},
	} {
		store := &sizedStore{nfs: openTestNFS(t, t.TempDir()), total: 10_000}
		store.useDigests()
		before, _ := startBackend(t, store.nfs)
		before.put(t, 201, "/sites/a/artifacts/known", data, "Repr-Digest", same)
		before.put(t, 201, "/sites/a/artifacts/unknown", data)
		s, svc := startBackend(t, store, c.vars...)
		for _, expect := range []string{"", "100-continue"} {
			for _, r := range []struct {
				status int
				build  string
				data   []byte
				header []string
			}{
				{200, "known", data, []string{"If-None-Match", "*", "Repr-Digest", same}},
				{200, "known", data, []string{"If-None-Match", "*", "Content-Digest", same + ", " + sha512Field(data)}},
				{c.refusal, "known", other, []string{"If-None-Match", "*", "Repr-Digest", sha256Field(other)}},
				{c.refusal, "known", other[:1999], []string{"If-None-Match", "*", "Repr-Digest", same}},
				{c.refusal, "known", data, []string{"If-None-Match", "*", "Repr-Digest", sha512Field(data)}},
				{c.refusal, "known", data, []string{"If-None-Match", "*"}},
				{c.refusal, "known", data, []string{"If-Match", "*", "Repr-Digest", same}},
				{c.refusal, "known", data, []string{"Repr-Digest", same}}, // it would replace the build
				{c.refusal, "unknown", data, []string{"If-None-Match", "*", "Repr-Digest", same}},
				{c.refusal, "new", data, []string{"If-None-Match", "*", "Repr-Digest", same}},
			} {
				h := header(r.header...)
				if expect != "" {
					h.Set("Expect", expect)
				}
				if got := statusOr(s.try(request{"PUT", "/sites/a/artifacts/" + r.build, r.data, h})); got != r.status {
					t.Errorf("%s, %s, %d bytes, %v: %v, want %d", c.name, r.build, len(r.data), h, got, r.status)
				}
			}
		}
		nothingIsHeld(t, svc)
		if strings.Contains(s.log.String(), `"msg":"digest computed"`) {
			t.Errorf("%s: a digest was computed", c.name)
		}
	}
}

// The response to a repeated create comes without the body, and the connection is used again
// if the rest of the body is small.
func TestRepeatedCreateNeedsNoBody(t *testing.T) {
	s := startServer(t)
	for _, size := range []int{1, 200 << 10, 4 << 20} {
		data := randomBytes(size)
		path := fmt.Sprintf("/sites/a/artifacts/b%d", size)
		s.put(t, 201, path, data)
		head := fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: h\r\nIf-None-Match: *\r\nRepr-Digest: %s\r\nContent-Length: %d\r\n", path, sha256Field(data), size)
		if r := answerTo(t, s.addr, head+"Expect: 100-continue\r\n\r\n"); r.status != 200 {
			t.Errorf("%d bytes, expecting: %d", size, r.status)
		}
		if r := answerTo(t, s.addr, head+"\r\n"+string(data[:1])); r.status != 200 {
			t.Errorf("%d bytes, of which one came: %d", size, r.status)
		}
		want := "200 200"
		if size > maxDrained {
			want = "200"
		}
		if got := exchangeRaw(t, s.addr, head+"\r\n"+string(data)+"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"); got != want {
			t.Errorf("%d bytes: %s, want %s", size, got, want)
		}
	}
}

// TestRacingCreates: of many uploads that create one build, one does. The others are a
// success if their bytes are the same.
func TestRacingCreates(t *testing.T) {
	for name, open := range digestStores(t) {
		for _, differ := range []bool{false, true} {
			for _, size := range []int{100, 300_000} {
				b, _ := open()
				s, svc := startBackend(t, b)
				count := map[any]int{}
				var mu sync.Mutex
				var wg sync.WaitGroup
				for i := range 16 {
					wg.Go(func() {
						data := bytes.Repeat([]byte{'x'}, size)
						if differ {
							data[size/2] = byte(i)
						}
						got := statusOr(s.try(request{"PUT", "/sites/a/artifacts/b", data, header("If-None-Match", "*", "Repr-Digest", sha256Field(data))}))
						mu.Lock()
						defer mu.Unlock()
						count[got]++
					})
				}
				wg.Wait()
				if rest := map[bool]int{false: 200, true: 412}[differ]; count[201] != 1 || count[rest] != 15 {
					t.Errorf("%s, %d bytes, differ %t: %v", name, size, differ, count)
				}
				nothingIsHeld(t, svc)
			}
		}
	}
}

// A build that came while a create of the same bytes was under way is a success for that, too.
func TestRepeatedCreateIsDecidedAtTheEnd(t *testing.T) {
	for name, open := range digestStores(t) {
		for _, c := range []struct {
			there  string
			field  func([]byte) string
			status int
		}{
			{"late", sha256Field, 200},
			{"late", sha512Field, 200},
			{"some", sha256Field, 412},
			{"first", sha512Field, 412},
		} {
			b, kept := open()
			kept.begins = make(chan struct{}, 2)
			s, _ := startBackend(t, b)
			r, w := io.Pipe()
			done := make(chan any, 1)
			h := header("If-None-Match", "*", "Repr-Digest", c.field([]byte("late")))
			go func() { done <- statusOr(s.try(request{"PUT", "/sites/a/artifacts/b", r, h})) }()
			_, _ = w.Write([]byte("la"))
			<-kept.begins // the condition was checked
			s.put(t, 201, "/sites/a/artifacts/b", c.there)
			_, _ = w.Write([]byte("te"))
			w.Close()
			if got := <-done; got != c.status {
				t.Errorf("%s, over %q: status %v, want %d", name, c.there, got, c.status)
			}
		}
	}
}

// slowReads is a reader that waits before its end.
type slowReads struct {
	ArtifactReader
	began, wait chan struct{}
}

func (r *slowReads) Read(p []byte) (int, error) {
	n, err := r.ArtifactReader.Read(p)
	if err == io.EOF {
		r.began <- struct{}{}
		<-r.wait
	}
	return n, err
}

// slowStore returns a store whose reads wait at their end until wait is closed.
func slowStore(t *testing.T) (b *digestNFS, began, wait chan struct{}) {
	began, wait = make(chan struct{}, 100), make(chan struct{})
	b = &digestNFS{nfs: openTestNFS(t, t.TempDir()), memDigests: newMemDigests()}
	b.reads = func(r ArtifactReader) ArtifactReader { return &slowReads{r, began, wait} }
	for _, id := range []string{"b1", "b2"} {
		for _, site := range []string{"s1", "s2"} {
			mustStore(t, b, site, id, []byte("some bytes"))
		}
	}
	return b, began, wait
}

// Requests for one build share one computation of its digest, and those for one site take
// turns. Meanwhile others are served.
func TestDigestsAreComputedOnce(t *testing.T) {
	b, began, wait := slowStore(t)
	s, svc := startBackend(t, b, "MAX_UPLOADS=4")
	places := svc.api.digests
	places.limit = 10 // so that only the sites limit them
	data := []byte("some bytes")
	h := header("If-None-Match", "*", "Repr-Digest", sha256Field(data))
	var wg sync.WaitGroup
	for _, path := range []string{"/sites/s1/artifacts/b1", "/sites/s1/artifacts/b2", "/sites/s2/artifacts/b1"} {
		for i := range 4 {
			wg.Go(func() {
				h := h.Clone()
				if i%2 == 0 {
					h.Set("Expect", "100-continue")
				}
				if got := statusOr(s.try(request{"PUT", path, data, h})); got != 200 {
					t.Errorf("%s: %v", path, got)
				}
			})
		}
	}
	<-began // one of s1 and one of s2
	<-began
	eventually(t, "no upload holds a place", func() bool { return svc.api.uploads.inUse() == 0 })
	s.put(t, 201, "/sites/s1/artifacts/new", "x")
	eventually(t, "the third waits for its turn", func() bool {
		places.mu.Lock()
		defer places.mu.Unlock()
		return places.used+int64(len(places.queue)) == 3
	})
	if n := places.inUse(); n != 2 {
		t.Errorf("%d are computed at once, want one of each site", n)
	}
	close(wait)
	wg.Wait()
	if n := b.calls(); n != 3 || len(began) != 1 {
		t.Errorf("%d digests were kept of 3, and %d more computed than at first, want 1", n, len(began))
	}
	nothingIsHeld(t, svc)
}

// Large builds whose digests are computed leave places to small ones.
func TestDigestsOfLargeBuilds(t *testing.T) {
	b, began, wait := slowStore(t)
	slow := b.reads
	b.reads = func(r ArtifactReader) ArtifactReader {
		if r.Info().Size <= longDigest {
			return r
		}
		return slow(r)
	}
	small, large := []byte("some bytes"), make([]byte, longDigest+1)
	for _, site := range []string{"s1", "s2", "s3"} {
		mustStore(t, b, site, "large", large)
	}
	s, svc := startBackend(t, b)
	var wg sync.WaitGroup
	create := func(site string) {
		wg.Go(func() {
			h := header("If-None-Match", "*", "Repr-Digest", sha256Field(large), "Expect", "100-continue")
			if got := statusOr(s.try(request{"PUT", "/sites/" + site + "/artifacts/large", large, h})); got != 200 {
				t.Errorf("%s: %v", site, got)
			}
		})
	}
	create("s1")
	create("s2")
	<-began
	<-began
	create("s3")
	places := svc.api.digests
	eventually(t, "the third large one waits", func() bool {
		places.mu.Lock()
		defer places.mu.Unlock()
		return places.used == maxLongDigests && len(places.queue) == 1
	})
	for _, path := range []string{"/sites/s1/artifacts/b1", "/sites/s2/artifacts/b2"} {
		s.put(t, 200, path, small, "If-None-Match", "*", "Repr-Digest", sha256Field(small))
	}
	close(wait)
	wg.Wait()
	nothingIsHeld(t, svc)
}

// A request waits for a bounded time. The computation goes on, and the next request has it.
func TestDigestThatTakesTooLong(t *testing.T) {
	b, began, wait := slowStore(t)
	s, svc := startBackend(t, b)
	svc.api.digests.wait = 10 * time.Millisecond
	data := []byte("some bytes")
	h := []string{"If-None-Match", "*", "Repr-Digest", sha256Field(data)}
	for _, id := range []string{"b1", "b2"} { // the first takes too long, the second does not get its turn
		r := s.put(t, 503, "/sites/s1/artifacts/"+id, data, h...)
		if r.header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After: %s", id, r.body)
		}
	}
	<-began
	close(wait)
	eventually(t, "the digest is kept", func() bool {
		info, err := b.StatArtifact("s1", "b1")
		return err == nil && info.SHA256.known()
	})
	s.put(t, 200, "/sites/s1/artifacts/b1", data, h...)
	eventually(t, "the line of the digest", func() bool {
		return strings.Contains(s.log.String(), `"msg":"digest computed","site":"s1","build":"b1"`)
	})
	if n := strings.Count(s.log.String(), `"msg":"digest computed","site":"s1","build":"b1"`); n != 1 {
		t.Errorf("the digest was computed %d times", n)
	}
	nothingIsHeld(t, svc)
}

// What goes wrong in the store while a digest is computed.
func TestDigestThatCannotBeComputed(t *testing.T) {
	data := []byte("some bytes")
	h := []string{"If-None-Match", "*", "Repr-Digest", sha256Field(data)}
	for _, c := range []struct {
		name   string
		reads  func(b *digestNFS, r ArtifactReader) ArtifactReader
		fail   error // of KeepDigest
		status int
		log    string
	}{
		{"a read fails", func(b *digestNFS, r ArtifactReader) ArtifactReader { return failingReads{r, ErrUnavailable} }, nil, 503, "the store is unavailable"},
		{"a read panics", func(b *digestNFS, r ArtifactReader) ArtifactReader { return failingReads{r, nil} }, nil, 500, "a bug in Read"},
		{"a read is short", func(b *digestNFS, r ArtifactReader) ArtifactReader { return failingReads{r, io.EOF} }, nil, 500, "0 bytes were read of a build of 10"},
		{"it is replaced before", func(b *digestNFS, r ArtifactReader) ArtifactReader {
			return describedReader{r, ArtifactInfo{ETag: `"x"`, Size: 10}}
		}, nil, 412, ""},
		{"it is replaced after", nil, errNoMatch, 200, ""},
		{"it cannot be kept", nil, errors.New("by the test"), 200, "cannot keep a digest"},
	} {
		b := &digestNFS{nfs: openTestNFS(t, t.TempDir()), memDigests: newMemDigests()}
		b.fail = c.fail
		mustStore(t, b, "a", "b", data)
		if c.reads != nil {
			b.reads = func(r ArtifactReader) ArtifactReader { return c.reads(b, r) }
		}
		s, svc := startBackend(t, b)
		r := s.put(t, c.status, "/sites/a/artifacts/b", data, h...)
		if strings.Contains(string(r.body), "bug") {
			t.Errorf("%s: %s", c.name, r.body)
		}
		if log := s.log.String(); !strings.Contains(log, c.log) || c.log == "" && strings.Contains(log, `"WARN"`) {
			t.Errorf("%s: the log is\n%s", c.name, log)
		}
		nothingIsHeld(t, svc)
	}
}

// failingReads is a reader that fails with err, or panics if that is nil.
type failingReads struct {
	ArtifactReader
	err error
}

func (r failingReads) Read([]byte) (int, error) {
	if r.err == nil {
		panic("a bug in Read")
	}
	return 0, r.err
}

// A shutdown ends the computation of a digest.
func TestDigestAtTheShutdown(t *testing.T) {
	began, wait := make(chan struct{}, 1), make(chan struct{})
	data := []byte("some bytes")
	b := &digestNFS{nfs: openTestNFS(t, t.TempDir()), memDigests: newMemDigests()}
	mustStore(t, b, "a", "b", data)
	b.reads = func(r ArtifactReader) ArtifactReader { return &firstRead{ArtifactReader: r, began: began, wait: wait} }
	s, svc := startBackend(t, b)
	done := make(chan any, 1)
	go func() {
		done <- statusOr(s.try(request{"PUT", "/sites/a/artifacts/b", data, header("If-None-Match", "*", "Repr-Digest", sha256Field(data))}))
	}()
	<-began
	svc.server.stopping.Store(true)
	close(wait)
	if got := <-done; got != http.StatusServiceUnavailable || b.calls() != 0 {
		t.Errorf("%v, %d digests kept, want 503 and none", got, b.calls())
	}
}

// firstRead is a reader whose first Read waits, and returns one byte.
type firstRead struct {
	ArtifactReader
	began, wait chan struct{}
	done        bool
}

func (r *firstRead) Read(p []byte) (int, error) {
	if !r.done {
		r.done = true
		r.began <- struct{}{}
		<-r.wait
		return r.ArtifactReader.Read(p[:1])
	}
	return r.ArtifactReader.Read(p)
}

// TestLifeOfADigest: a digest follows the build that it belongs to, and no other.
func TestLifeOfADigest(t *testing.T) { onBothStores(t, lifeOfADigest) }

func lifeOfADigest(t *testing.T, s *testServer) {
	const path = "/sites/a/artifacts/b"
	one, two := []byte("one"), []byte("two")
	expect := func(what string, data []byte) {
		t.Helper()
		want := ""
		if data != nil {
			want = sha256Field(data)
		}
		for _, r := range []request{{"GET", path, nil, nil}, {"HEAD", path, nil, nil}, {"GET", path, nil, header("Range", "bytes=1-1")}} {
			resp, err := s.try(r)
			if err != nil || resp.status >= 300 {
				t.Fatalf("%s: %s: %v", what, r.method, statusOr(resp, err))
			}
			if got := resp.header.Get("Repr-Digest"); got != want {
				t.Errorf("%s: %s %v: Repr-Digest %q, want %q", what, r.method, r.header, got, want)
			}
		}
	}
	computed := func(want int) {
		t.Helper()
		eventually(t, "the lines of the digests that were computed", func() bool {
			return strings.Count(s.log.String(), `"msg":"digest computed"`) >= want
		})
	}
	create := func(status int, data []byte) *received {
		t.Helper()
		return s.put(t, status, path, data, "If-None-Match", "*", "Repr-Digest", sha256Field(data))
	}
	create(201, one)
	expect("created with its digest", one)
	create(200, one)
	create(412, two)
	expect("created twice", one)
	s.put(t, 400, path, two, "Repr-Digest", sha256Field(one))
	expect("after a damaged upload", one)
	s.put(t, 201, path, two)
	expect("replaced without a digest", nil)
	create(412, one)
	computed(1)
	expect("computed", two)
	create(200, two)
	s.put(t, 201, path, one, "Repr-Digest", sha512Field(one))
	expect("replaced with another digest", one)
	s.do(t, 204, request{"DELETE", path, nil, nil})
	create(201, two)
	expect("created again", two)
	if s.stop != nil {
		if err := s.stop(); err != nil { // then all lines are there
			t.Error(err)
		}
	}
	if n := strings.Count(s.log.String(), `"msg":"digest computed"`); n != 1 {
		t.Errorf("%d digests were computed, want 1", n)
	}
}
