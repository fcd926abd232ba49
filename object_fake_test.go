package main

import (
	"crypto/md5"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// fakeStore is an HTTP server that behaves like S3, and for GET and HEAD also like Azure.
// Real stores cannot be made to break off responses or deny a permission.
type fakeStore struct {
	*httptest.Server
	azure bool

	mu       sync.Mutex
	objects  map[string][]byte // by key
	requests []string          // method and kind, with the Range

	after, cuts int  // the next cuts responses with a body break off after that many bytes
	gone        bool // there is no bucket
	bare        bool // a 404 has no body, as if from a proxy
	noList      bool // lists are denied, and so are requests for absent objects
	noCondition bool // If-Match is ignored
	onCut       func()
}

func startFakeStore(t *testing.T) *fakeStore {
	f := &fakeStore{objects: map[string][]byte{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

// took returns the requests since the last call.
func (f *fakeStore) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.requests = nil }()
	return f.requests
}

func (f *fakeStore) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func fakeETag(data []byte) string { return fmt.Sprintf(`"%x"`, md5.Sum(data)) }

func (f *fakeStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, key, _ := strings.Cut(r.URL.Path, "/builds")
	key = strings.TrimPrefix(key, "/")
	part := r.Header.Get("Range") + r.Header.Get("X-Ms-Range")
	data, there := f.objects[key]
	ifMatch := r.Header.Get("If-Match")
	mismatch := ifMatch != "" && ifMatch != fakeETag(data) && !f.noCondition
	list := key == ""
	what := r.Method
	if list {
		what = "LIST"
	}
	f.requests = append(f.requests, strings.TrimSpace(what+" "+part))
	switch {
	case f.gone:
		f.fail(w, r, 404, "NoSuchBucket", "ContainerNotFound")
	case f.noList && (list || !there && (r.Method == "GET" || r.Method == "HEAD")):
		f.fail(w, r, 403, "AccessDenied", "AuthorizationPermissionMismatch")
	case list:
		fmt.Fprint(w, `<ListBucketResult><Name>builds</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>`)
	case r.Method == "PUT" && (mismatch || there && r.Header.Get("If-None-Match") == "*"), there && mismatch:
		f.fail(w, r, 412, "PreconditionFailed", "ConditionNotMet")
	case r.Method == "PUT":
		f.objects[key], _ = io.ReadAll(r.Body)
		w.Header().Set("ETag", fakeETag(f.objects[key]))
	case r.Method == "DELETE":
		delete(f.objects, key)
		w.WriteHeader(204)
	case !there:
		f.fail(w, r, 404, "NoSuchKey", "BlobNotFound")
	default:
		f.send(w, r, data, part)
	}
}

// fail responds with an error. To HEAD, S3 sends the status only.
func (f *fakeStore) fail(w http.ResponseWriter, r *http.Request, status int, code, azureCode string) {
	if f.azure {
		w.Header().Set("X-Ms-Error-Code", azureCode)
		code = azureCode
	}
	w.WriteHeader(status)
	if r.Method != "HEAD" && !(f.bare && status == 404) {
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>as the test wants it</Message></Error>", code)
	}
}

// send responds with an object, or a range of it.
func (f *fakeStore) send(w http.ResponseWriter, r *http.Request, data []byte, part string) {
	h := w.Header()
	h.Set("ETag", fakeETag(data))
	h.Set("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
	from, to, status := 0, len(data), 200
	if part != "" {
		first, last, _ := strings.Cut(strings.TrimPrefix(part, "bytes="), "-")
		from, _ = strconv.Atoi(first)
		if n, err := strconv.Atoi(last); err == nil {
			to = min(n+1, to)
		}
		if from >= len(data) {
			f.fail(w, r, 416, "InvalidRange", "InvalidRange")
			return
		}
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(data)))
		status = 206
	}
	h.Set("Content-Length", strconv.Itoa(to-from))
	w.WriteHeader(status)
	if r.Method == "HEAD" {
		return
	}
	if f.cuts > 0 && from+f.after < to {
		f.cuts--
		_, _ = w.Write(data[from : from+f.after])
		_ = http.NewResponseController(w).Flush()
		if f.onCut != nil {
			f.onCut()
		}
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(data[from:to])
}

func (f *fakeStore) wantRequests(t *testing.T, what string, want ...string) {
	t.Helper()
	if got := f.took(); !slices.Equal(got, want) {
		t.Errorf("%s: the store got the requests %q, want %q", what, got, want)
	}
}

// assumeCapable makes s assume that the store supports conditions, without a check.
func assumeCapable(s *objectStore) *objectStore {
	s.capabilities.missing.Store(&map[capability]error{})
	return s
}

// testResuming reads an object through b while the store f breaks off its responses.
func testResuming(t *testing.T, f *fakeStore, b bucket) {
	const key, size = "key", 2 << 20
	old, other := body(size, 1), body(size, 2)
	many := 1 << 30
	for _, c := range []struct {
		name        string
		after, cuts int
		replaced    bool // after the first cut
		blind       bool
		answers     int // that the store gives
		want        int // bytes
		err         bool
	}{
		{"once", size / 2, 1, false, false, 2, size, false},
		{"before the first byte", 0, 1, false, false, 2, size, false},
		{"a few times", 1, resumeTries, false, false, 1 + resumeTries, size, false},
		{"always, with progress", resumeStep + 1, many, false, false, 8, size, false},
		{"always, without", 1, many, false, false, 1 + resumeTries, 1 + resumeTries, true},
		{"replaced meanwhile", size / 2, 1, true, false, 2, size / 2, true},
		{"replaced, and If-Match is ignored", size / 2, 1, true, true, 2, size / 2, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.set(func() {
				f.objects[key], f.after, f.cuts, f.noCondition, f.onCut = old, c.after, c.cuts, c.blind, nil
				if c.replaced {
					f.onCut = func() { f.objects[key] = other }
				}
			})
			f.took()
			r, info, err := b.get(t.Context(), key, "", 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if len(got) != c.want || string(got) != string(old[:len(got)]) || (err != nil) != c.err || info.size != size {
				t.Errorf("%d bytes of %d, %v", len(got), info.size, err)
			}
			if n := len(f.took()); n != c.answers {
				t.Errorf("the store got %d requests, not %d", n, c.answers)
			}
		})
	}
	f.set(func() { f.objects[key], f.after, f.cuts, f.noCondition, f.onCut = old, 1000, 1, false, nil })
	r, _, err := b.get(t.Context(), key, fakeETag(old), 100, 5000)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != string(old[100:5100]) {
		t.Errorf("of a part %d bytes, %v", len(got), err)
	}
	f.wantRequests(t, "a part", "GET bytes=100-5099", "GET bytes=1100-5099")
}

// wantBucketGone checks that all requests get 503, each with an ERROR line that names the
// cause.
func wantBucketGone(t *testing.T, server *testServer) {
	t.Helper()
	const path = "/sites/s/artifacts/"
	for _, c := range []struct {
		method, path string
		body         any
		header       http.Header
	}{
		{"GET", path + "b", nil, nil},
		{"GET", path + "b", nil, header("Range", "bytes=0-0")},
		{"GET", path + "b", nil, header("If-None-Match", `"x"`)},
		{"HEAD", path + "b", nil, nil},
		{"HEAD", path + "none", nil, nil},
		{"PUT", path + "b", "y", nil},
		{"PUT", path + "b", "y", header("If-Match", "*")},
		{"PUT", path + "none", "y", header("If-None-Match", "*")},
		{"DELETE", path + "b", nil, nil},
		{"DELETE", path + "none", nil, header("If-Match", "*")},
		{"POST", "/sites/s/logs", `{"build_id":"b","action":"a","status":"s"}`, nil},
		{"GET", "/sites/s/versions", nil, nil},
		{"GET", "/ready", nil, nil},
	} {
		if server.noDeleteIf && c.method == "DELETE" && c.header != nil {
			continue // 501, whatever there is
		}
		errorLines := func() int { return strings.Count(server.log.String(), "the bucket does not exist") }
		before := errorLines()
		if c.path == "/ready" { // the result of the last probe counts for a while
			eventually(t, "/ready fails", func() bool {
				r, err := server.try(request{c.method, c.path, c.body, c.header})
				return err == nil && r.status == 503
			})
		}
		if r := server.do(t, 503, request{c.method, c.path, c.body, c.header}); r.header.Get("Retry-After") == "" {
			t.Errorf("%s %s: no Retry-After", c.method, c.path)
		}
		eventually(t, c.method+" "+c.path+" is an error in the log", func() bool { return errorLines() > before })
	}
}
