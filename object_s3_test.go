//go:build !no_s3

package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// openFakeS3 opens a fake store as the service does.
func openFakeS3(t *testing.T) (*fakeStore, *objectStore) {
	t.Helper()
	f := startFakeStore(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	conf := s3Config{Bucket: "builds", Endpoint: f.URL, PathStyle: true, PartSize: 5 << 20, Concurrency: 2}
	b, err := openS3(t.Context(), conf, 64<<20, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return f, b.(*objectStore)
}

func TestS3Resumes(t *testing.T) {
	f, s := openFakeS3(t)
	testResuming(t, f, s.bucket)
}

// A download resumes unnoticed by the client, or ends early with an error that says which bytes
// of which object are missing.
func TestS3ResumesADownload(t *testing.T) {
	f, s := openFakeS3(t)
	server, svc := startBackend(t, s)
	const path = "/sites/s/artifacts/b"
	data := body(1<<20, 1)
	f.set(func() { f.objects[s.artifactKey("s", "b")], f.after, f.cuts = data, 500_000, 1 })
	if r := server.get(t, 200, path); !bytes.Equal(r.body, data) {
		t.Errorf("%d bytes received", len(r.body))
	}
	f.set(func() {
		f.after, f.cuts, f.onCut = 500_000, 1, func() { f.objects[s.artifactKey("s", "b")] = data[1:] }
	})
	if err := getOnce(server, path); err == nil {
		t.Error("a build that is replaced came whole")
	}
	eventually(t, "the cut is counted", func() bool { return svc.api.metrics.cut.Get() == 1 })
	eventually(t, "the log says why", func() bool {
		log := server.log.String()
		return strings.Contains(log, `"level":"WARN"`) && strings.Contains(log, "PreconditionFailed")
	})
	f.set(func() { f.objects[s.artifactKey("s", "b")], f.cuts = data, 1 })
	r, err := s.FetchArtifact("s", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if !bytes.Equal(got, data[:500_000]) || !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrPrecondition) ||
		!strings.Contains(err.Error(), s.artifactKey("s", "b")) || !strings.Contains(err.Error(), "PreconditionFailed") {
		t.Errorf("of a build that is replaced: %d bytes, %v", len(got), err)
	}
}

// Which calls of the store each request makes.
func TestS3Calls(t *testing.T) {
	f, s := openFakeS3(t)
	server, _ := startBackend(t, assumeCapable(s))
	const path, none = "/sites/s/artifacts/b", "/sites/s/artifacts/none"
	data := body(1000, 1)
	etag := server.put(t, 201, path, data).header.Get("ETag")
	f.wantRequests(t, "an upload", "HEAD", "PUT")
	for _, c := range []struct {
		name, method, path string
		header             []string
		status             int
		body               []byte
		want               []string
	}{
		{"a download", "GET", path, nil, 200, data, []string{"GET"}},
		{"HEAD", "HEAD", path, nil, 200, nil, []string{"HEAD"}},
		{"a part", "GET", path, []string{"Range", "bytes=10-19"}, 206, data[10:20], []string{"GET bytes=10-19"}},
		{"more than there is", "GET", path, []string{"Range", "bytes=990-1999"}, 206, data[990:], []string{"GET bytes=990-1999"}},
		{"the rest", "GET", path, []string{"Range", "bytes=900-"}, 206, data[900:], []string{"GET bytes=900-"}},
		{"all as a part", "GET", path, []string{"Range", "bytes=0-"}, 206, data, []string{"GET"}},
		{"the end", "GET", path, []string{"Range", "bytes=-10"}, 206, data[990:], []string{"HEAD", "GET bytes=990-999"}},
		{"behind the end", "GET", path, []string{"Range", "bytes=1000-"}, 416, nil, []string{"GET bytes=1000-", "HEAD"}},
		{"several parts", "GET", path, []string{"Range", "bytes=0-1,5-6"}, 200, data, []string{"HEAD", "GET bytes=0-999"}},
		{"a part if", "GET", path, []string{"Range", "bytes=1-2", "If-Range", etag}, 206, data[1:3], []string{"HEAD", "GET bytes=1-2"}},
		{"not modified", "GET", path, []string{"If-None-Match", etag}, 304, nil, []string{"HEAD"}},
		{"not modified since", "GET", path, []string{"If-Modified-Since", "Wed, 01 Jan 2025 00:00:00 GMT"}, 304, nil, []string{"HEAD"}},
		{"modified", "GET", path, []string{"If-None-Match", `"x"`}, 200, data, []string{"HEAD", "GET bytes=0-999"}},
		{"another", "GET", path, []string{"If-Match", `"x"`}, 412, nil, []string{"HEAD"}},
		{"none", "GET", none, nil, 404, nil, []string{"GET"}},
		{"HEAD of none", "HEAD", none, nil, 404, nil, []string{"HEAD", "LIST"}},
		{"HEAD of none again", "HEAD", none, nil, 404, nil, []string{"HEAD"}},
	} {
		r := server.do(t, c.status, request{c.method, c.path, nil, header(c.header...)})
		if c.body != nil && !bytes.Equal(r.body, c.body) {
			t.Errorf("%s: %d bytes", c.name, len(r.body))
		}
		f.wantRequests(t, c.name, c.want...)
	}
}

// Without its bucket the store is unavailable, for every request. S3 does not say in response to
// HEAD whether the object or the bucket is missing; one more request finds out.
func TestS3BucketGone(t *testing.T) {
	f, s := openFakeS3(t)
	server, _ := startBackend(t, assumeCapable(s))
	server.put(t, 201, "/sites/s/artifacts/b", "x")
	f.set(func() { f.gone = true })
	f.took()
	start := time.Now()
	for range 10 {
		server.do(t, 503, request{"HEAD", "/sites/s/artifacts/b", nil, nil})
	}
	heads := f.took()
	lists := slices.DeleteFunc(slices.Clone(heads), func(r string) bool { return r != "LIST" })
	if most := 1 + int(time.Since(start)/bucketTTL); len(heads)-len(lists) != 10 || len(lists) < 1 || len(lists) > most {
		t.Errorf("the store got the requests %q", heads)
	}
	f.took()
	server.post(t, 503, "/sites/s/logs", `{"build_id":"b","action":"a","status":"s"}`)
	f.wantRequests(t, "a log entry is not tried again", "GET")
	wantBucketGone(t, server)
	f.set(func() { f.gone = false })
	server.get(t, 200, "/sites/s/artifacts/b")
}

// Any 404 of a list means that there is no bucket, also without an error code.
func TestS3BucketGoneWithoutACode(t *testing.T) {
	f, s := openFakeS3(t)
	server, _ := startBackend(t, assumeCapable(s))
	server.put(t, 201, "/sites/s/artifacts/b", "x")
	f.set(func() { f.gone, f.bare = true, true })
	wantBucketGone(t, server)
}

// Without the permission to list, the store answers 403 for absent objects, which may as well
// exist. That is an error, and it names the permission.
func TestS3WithoutPermissionToList(t *testing.T) {
	f, s := openFakeS3(t)
	server, _ := startBackend(t, assumeCapable(s))
	server.put(t, 201, "/sites/s/artifacts/b", "x")
	f.set(func() { f.noList = true })
	server.get(t, 200, "/sites/s/artifacts/b")
	for _, c := range []struct {
		method, path string
		body         any
		header       http.Header
	}{
		{"GET", "/sites/s/artifacts/none", nil, nil},
		{"HEAD", "/sites/s/artifacts/none", nil, nil},
		{"PUT", "/sites/s/artifacts/none", "x", header("If-None-Match", "*")},
		{"PUT", "/sites/s/artifacts/none", "x", nil}, // a label may protect it
		{"PUT", "/sites/s/artifacts/b", "x", nil},
		{"POST", "/sites/s/logs", `{"build_id":"none","action":"a","status":"s"}`, nil},
		{"GET", "/sites/s/versions", nil, nil},
	} {
		named := func() int { return strings.Count(server.log.String(), "s3:ListBucket") }
		before := named()
		server.do(t, 502, request{c.method, c.path, c.body, c.header})
		eventually(t, c.method+" "+c.path+" names the right in the log", func() bool { return named() > before })
	}
	out, err := runDoctor("PAGEWRIGHT_STORAGE_BACKEND=s3", "PAGEWRIGHT_S3_BUCKET=builds", "PAGEWRIGHT_S3_ENDPOINT="+f.URL, "PAGEWRIGHT_S3_PATH_STYLE=true")
	if err == nil || !strings.Contains(out, "FAIL list the object: ") || !strings.Contains(out, "s3:ListBucket") {
		t.Errorf("doctor says %v:\n%s", err, out)
	}
}
