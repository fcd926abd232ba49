// Package contract holds the OpenAPI document against what the service answers,
// and the unit of deploy against what systemd knows.
// It is a module of its own: what it needs never enters the service.
package contract

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
)

// digestOfBody is the Repr-Digest of "body".
const digestOfBody = "sha-256=:Iw2DWNyOiJC0xY3utikS7i8gNXrpKlzIYbmOaP4xrLU=:"

// TestTheDocumentTellsWhatTheServiceAnswers sends requests of every kind, and
// compares each answer with the document that the same service serves: path,
// method, status, headers and body.
func TestTheDocumentTellsWhatTheServiceAnswers(t *testing.T) {
	base := serve(t, buildService(t))
	check := documentOf(t, base)
	if ok, errs := check.ValidateDocument(); !ok {
		for _, e := range errs {
			t.Error(e)
		}
	}
	const build, label = "/sites/a/artifacts/b", "/sites/a/labels/live"
	for _, r := range []struct {
		method, path, body string
		status             int
		header             []string
	}{
		{"GET", "/health", "", 200, nil},
		{"GET", "/ready", "", 200, nil},
		{"GET", "/metrics", "", 200, nil},
		{"GET", "/openapi.yaml", "", 200, nil},
		{"HEAD", "/health", "", 200, nil},
		{"HEAD", "/ready", "", 200, nil},
		{"HEAD", "/metrics", "", 200, nil},
		{"HEAD", "/openapi.yaml", "", 200, nil},
		{"GET", "/sites/a/versions", "", 200, nil},
		{"GET", build, "", 404, nil},
		{"HEAD", build, "", 404, nil},
		{"PUT", build, "body", 201, nil},
		{"PUT", build, "body", 412, []string{"If-None-Match", "*"}},
		{"PUT", build, "body", 400, []string{"If-None-Match", "x"}},
		{"PUT", build, "", 400, nil},
		{"PUT", build, "body", 201, []string{"Repr-Digest", digestOfBody}},
		{"PUT", build, "body", 200, []string{"Repr-Digest", digestOfBody, "If-None-Match", "*"}},
		{"PUT", build, "BODY", 400, []string{"Repr-Digest", digestOfBody}},
		{"PUT", build, "body", 400, []string{"Repr-Digest", "sha-256=:AA==:"}},
		{"POST", "/sites/a/logs", `{}`, 400, []string{"Content-Digest", digestOfBody}},
		{"PUT", build, "body", 403, []string{"Origin", "null"}},
		{"PUT", build, "body", 415, []string{"Content-Encoding", "gzip"}},
		{"PUT", build, strings.Repeat("x", 200_001), 413, nil},
		{"GET", build, "", 200, nil},
		{"GET", build, "", 206, []string{"Range", "bytes=0-1"}},
		{"GET", build, "", 416, []string{"Range", "bytes=9-"}},
		{"GET", build, "", 412, []string{"If-Match", `"x"`}},
		{"GET", build, "", 304, []string{"If-None-Match", "*"}},
		{"HEAD", build, "", 200, nil},
		{"HEAD", build, "", 304, []string{"If-None-Match", "*"}},
		{"HEAD", build, "", 412, []string{"If-Match", `"x"`}},
		{"GET", build + "?redirect=false", "", 200, nil},
		{"GET", build + "?redirect=perhaps", "", 400, nil},
		{"POST", "/sites/a/logs", `{"build_id":"b","action":"deploy","status":"ok","metadata":{"x":1}}`, 201, []string{"Idempotency-Key", "k"}},
		{"POST", "/sites/a/logs", `{"build_id":"b","action":"deploy","status":"ok"}`, 422, []string{"Idempotency-Key", "k"}},
		{"POST", "/sites/a/logs", `{"build_id":"b"}`, 400, nil},
		{"POST", "/sites/a/logs", `{}`, 403, []string{"Sec-Fetch-Site", "cross-site"}},
		{"POST", "/sites/a/logs", `{}`, 415, []string{"Content-Encoding", "gzip"}},
		{"POST", "/sites/a/logs", strings.Repeat(" ", 1<<20+1), 413, nil},
		{"GET", "/sites/a/versions?limit=1&metadata=true", "", 200, nil},
		{"GET", "/sites/a/versions?limit=0", "", 400, nil},
		{"HEAD", "/sites/a/versions", "", 200, nil},
		{"HEAD", "/sites/a/versions", "", 304, []string{"If-None-Match", "*"}},
		{"HEAD", "/sites/a/versions?limit=0", "", 400, nil},
		{"GET", "/sites/a/versions", "", 304, []string{"If-None-Match", "*"}},
		{"PUT", label, `{"build_id":"none"}`, 404, nil},
		{"PUT", label, `{"build_id":"b"}`, 201, nil},
		{"PUT", label, `{"build_id":"b"}`, 200, nil},
		{"PUT", label, `{"build_id":"b"}`, 412, []string{"If-None-Match", "*"}},
		{"PUT", label, `{"build":"b"}`, 400, nil},
		{"PUT", label, `{}`, 415, []string{"Content-Encoding", "gzip"}},
		{"PUT", label, `{}`, 403, []string{"Sec-Fetch-Site", "cross-site"}},
		{"PUT", label, strings.Repeat(" ", 4097), 413, nil},
		{"GET", label, "", 200, nil},
		{"GET", label, "", 304, []string{"If-None-Match", "*"}},
		{"GET", label, "", 412, []string{"If-Match", `"x"`}},
		{"HEAD", label, "", 200, nil},
		{"GET", label + "-2", "", 404, nil},
		{"HEAD", label + "-2", "", 404, nil},
		{"GET", "/sites/a/labels", "", 200, nil},
		{"GET", "/sites/a/labels", "", 304, []string{"If-None-Match", "*"}},
		{"HEAD", "/sites/a/labels", "", 200, nil},
		{"GET", "/sites/a/labels?limit=1", "", 400, nil},
		{"GET", "/sites/a/versions?labels=true&digest=true", "", 200, nil},
		{"GET", label + "/artifact", "", 200, nil},
		{"GET", label + "/artifact", "", 206, []string{"Range", "bytes=0-1"}},
		{"GET", label + "/artifact", "", 416, []string{"Range", "bytes=9-"}},
		{"GET", label + "/artifact", "", 304, []string{"If-None-Match", "*"}},
		{"GET", label + "/artifact", "", 412, []string{"If-Match", `"x"`}},
		{"GET", label + "-2/artifact", "", 404, nil},
		{"HEAD", label + "/artifact", "", 200, nil},
		{"HEAD", label + "/artifact", "", 304, []string{"If-None-Match", "*"}},
		{"PUT", build, "other", 409, nil},
		{"DELETE", build, "", 409, nil},
		{"DELETE", label, "", 412, []string{"If-Match", `"x"`}},
		{"DELETE", label, "", 204, nil},
		{"DELETE", build, "", 412, []string{"If-Match", `"x"`}},
		{"DELETE", build, "", 204, nil},
		{"GET", "/sites/-a/artifacts/b", "", 400, nil},
	} {
		name := fmt.Sprintf("%s %s: %d", r.method, r.path, r.status)
		req, err := http.NewRequest(r.method, base+r.path, strings.NewReader(r.body))
		if err != nil {
			t.Fatal(err)
		}
		if r.method == "POST" || strings.HasPrefix(r.path, label) {
			req.Header.Set("Content-Type", "application/json")
		}
		for i := 0; i < len(r.header); i += 2 {
			req.Header.Set(r.header[i], r.header[i+1])
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(name, err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != r.status {
			t.Errorf("%s: answered %d, %v: %.200s", name, res.StatusCode, err, body)
			continue
		}
		res.Body = io.NopCloser(bytes.NewReader(body))
		if ok, errs := check.ValidateHttpResponse(req, res); !ok {
			for _, e := range errs {
				t.Errorf("%s: %s: %s %v", name, e.Message, e.Reason, e.SchemaValidationErrors)
			}
		}
	}
}

// TestTheDocumentHasWhatAccessControlSends: each route that needs a credential gets a 401 without
// one and a 403 with one that allows something else, and the document has both.
func TestTheDocumentHasWhatAccessControlSends(t *testing.T) {
	bin := buildService(t)
	out, err := exec.Command(bin, "token", "new", "--name", "other", "--allow", "read", "--sites", "other").Output()
	token, entry, found := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || !found {
		t.Fatalf("%v: %q", err, out)
	}
	file := filepath.Join(t.TempDir(), "access.json")
	if err := os.WriteFile(file, []byte(`{"tokens":[`+entry+`]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	base := serve(t, bin, "PAGEWRIGHT_ACCESS_FILE="+file)
	check := documentOf(t, base)
	const build = "/sites/a/artifacts/b"
	for _, route := range []string{"GET " + build, "HEAD " + build, "PUT " + build, "DELETE " + build, "POST /sites/a/logs",
		"GET /sites/a/versions", "HEAD /sites/a/versions", "GET /metrics", "HEAD /metrics"} {
		method, path, _ := strings.Cut(route, " ")
		for status, credential := range map[int]string{401: "", 403: "Bearer " + token} {
			req, err := http.NewRequest(method, base+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if credential != "" {
				req.Header.Set("Authorization", credential)
			}
			res, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(route, err)
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || res.StatusCode != status || res.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: status %d, want %d with WWW-Authenticate: %v, %v", route, res.StatusCode, status, res.Header, err)
				continue
			}
			res.Body = io.NopCloser(bytes.NewReader(body))
			if ok, errs := check.ValidateHttpResponse(req, res); !ok {
				for _, e := range errs {
					t.Errorf("%s: %d: %s: %s %v", route, status, e.Message, e.Reason, e.SchemaValidationErrors)
				}
			}
		}
	}
}

// documentOf returns a validator of the document that the service serves.
func documentOf(t *testing.T, base string) validator.Validator {
	t.Helper()
	document, err := libopenapi.NewDocument(fetch(t, base+"/openapi.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	check, errs := validator.NewValidator(document)
	if errs != nil {
		t.Fatal(errs)
	}
	return check
}

// buildService builds the service, and returns its path.
func buildService(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "service")
	build := exec.Command("go", "build", "-tags", "no_s3,no_azure,no_gcs", "-o", bin, ".")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false -trimpath", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// serve starts the service on a free port, and returns its URL.
func serve(t *testing.T, bin string, env ...string) string {
	t.Helper()
	cmd := exec.Command(bin)
	cmd.Env = append(append(os.Environ(), "PAGEWRIGHT_PORT=0", "PAGEWRIGHT_LISTEN=127.0.0.1", "PAGEWRIGHT_MAX_ARTIFACT_SIZE=200000",
		"PAGEWRIGHT_NFS_BASE_PATH="+t.TempDir()), env...)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	address := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(log); lines.Scan(); {
			var line struct{ Msg, Address string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
				address <- line.Address
			}
		}
	}()
	select {
	case a := <-address:
		return "http://" + a
	case <-time.After(30 * time.Second):
		t.Fatal("the service did not start")
		return ""
	}
}

func fetch(t *testing.T, url string) []byte {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		t.Fatal(res.Status, err)
	}
	return data
}
