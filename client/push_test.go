package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fakeUploads is a service with one build that takes uploads as documented. before may respond
// itself; after is called when an upload is stored, and may lose the response.
type fakeUploads struct {
	build    *fakeBuild
	tags     int
	noDigest bool // PAGEWRIGHT_DIGEST=off
	before   func(n int, w http.ResponseWriter, r *http.Request) (responded bool)
	after    func(n int)
}

func (s *fakeUploads) serve(n int, w http.ResponseWriter, r *http.Request) {
	if s.before != nil && s.before(n, w, r) {
		return
	}
	switch r.Method {
	case http.MethodHead, http.MethodGet:
		if s.build == nil {
			fakeError(w, 404, "not found")
			return
		}
		s.build.serve(w, r)
	case http.MethodPut:
		s.put(n, w, r)
	default:
		fakeError(w, 405, "method not allowed")
	}
}

func (s *fakeUploads) put(n int, w http.ResponseWriter, r *http.Request) {
	digest := r.Header.Get("Repr-Digest")
	switch match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match"); {
	case none == "*" && s.build != nil && !s.noDigest && s.build.digest() == digest:
		s.respond(w, 200)
		return
	case none == "*" && s.build != nil, match != "" && (s.build == nil || s.build.etag != match):
		fakeError(w, 412, "precondition failed")
		return
	}
	data, err := io.ReadAll(r.Body)
	if err != nil {
		fakeError(w, 400, "the body was cut short")
		return
	}
	if got := digestOf(data); got != digest && !s.noDigest {
		w.WriteHeader(400)
		fmt.Fprint(w, `{"status":"error","error":"the digest is wrong","algorithm":"sha-256","expected":"00","got":"11"}`)
		return
	}
	s.store(data)
	if s.after != nil {
		s.after(n)
	}
	s.respond(w, 201)
}

func (s *fakeUploads) store(data []byte) {
	s.tags++
	s.build = &fakeBuild{data: data, etag: fmt.Sprintf(`"tag-%d"`, s.tags), noDigest: s.noDigest}
}

func (s *fakeUploads) respond(w http.ResponseWriter, status int) {
	body := map[string]any{"status": "success", "site_id": "shop", "build_id": "v1", "size_bytes": len(s.build.data)}
	if !s.noDigest {
		sum := sha256.Sum256(s.build.data)
		body["sha256"] = hex.EncodeToString(sum[:])
		w.Header().Set("Repr-Digest", s.build.digest())
	}
	w.Header().Set("Etag", s.build.etag)
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

func fakeError(w http.ResponseWriter, status int, text string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"status":"error","error":%q}`, text)
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

func loseReply() { panic(http.ErrAbortHandler) }

// pushTest has a file to push to a fake service.
type pushTest struct {
	*fake
	*fakeUploads
	file string
	data []byte
	end  chan struct{} // is closed at the end: a handler that has not read the body notices nothing else
}

func testPush(t *testing.T, size int, test func(p *pushTest)) {
	t.Helper()
	withFake(t, func(f *fake) {
		p := &pushTest{fake: f, fakeUploads: &fakeUploads{}, file: filepath.Join(f.t.TempDir(), "site.tar.gz"), data: randomBuild(size, "file").data, end: make(chan struct{})}
		defer close(p.end)
		if err := os.WriteFile(p.file, p.data, 0o666); err != nil {
			f.t.Fatal(err)
		}
		f.hosts[serviceHost].handle = p.serve
		test(p)
	})
}

// push runs the command.
func (p *pushTest) push(options ...string) result {
	p.t.Helper()
	return p.run("push", append([]string{p.file, "shop", "v1", "--json"}, options...)...)
}

// wantStored fails the test unless the command succeeded, and the service has the file.
func (p *pushTest) wantStored(r result, created bool) {
	p.t.Helper()
	r.want(p.t, 0)
	var got pushed
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
		p.t.Fatalf("%v: %q", err, r.stdout)
	}
	sum := sha256.Sum256(p.data)
	if !bytes.Equal(p.build.data, p.data) || got.SHA256 != hex.EncodeToString(sum[:]) || got.Size != int64(len(p.data)) || got.Created != created || got.ETag != p.build.etag {
		p.t.Errorf("got %+v, the build has %d bytes and the tag %s", got, len(p.build.data), p.build.etag)
	}
}

func (p *pushTest) wantRequests(want ...string) {
	p.t.Helper()
	got := p.hosts[serviceHost].requests("If-Match", "If-None-Match")
	for i := range got {
		got[i] = strings.Replace(got[i], " /base/sites/shop/artifacts/v1", "", 1)
	}
	if !slices.Equal(got, want) {
		p.t.Errorf("requests %q, want %q", got, want)
	}
}

func TestPushANewBuild(t *testing.T) {
	testPush(t, 3<<20, func(p *pushTest) {
		p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut && (r.ContentLength != 3<<20 || len(r.TransferEncoding) > 0 || r.Header.Get("Expect") != "100-continue" ||
				r.Header.Get("Repr-Digest") != digestOf(p.data)) {
				t.Errorf("%d bytes, %v, %v", r.ContentLength, r.TransferEncoding, r.Header)
			}
			return false
		}
		p.wantStored(p.push(), true)
		p.wantRequests("HEAD", "PUT If-None-Match=*")
	})
}

func TestPushReplacesWhatItSaw(t *testing.T) {
	testPush(t, 1000, func(p *pushTest) {
		p.store([]byte("old"))
		p.wantStored(p.push(), true)
		p.wantRequests("HEAD", `PUT If-Match="tag-1"`)
	})
}

func TestPushOfTheSameBytesSendsNothing(t *testing.T) {
	testPush(t, 1000, func(p *pushTest) {
		p.store(p.data)
		p.wantStored(p.push(), false)
		p.wantRequests("HEAD")
	})
}

func TestPushCreate(t *testing.T) {
	testPush(t, 1000, func(p *pushTest) {
		p.wantStored(p.push("--create"), true)
		p.wantStored(p.push("--create"), false)
		p.wantRequests("PUT If-None-Match=*", "PUT If-None-Match=*")
		p.store([]byte("other"))
		if r := p.push("--create").want(t, exitConflict); r.err.Error() != "the build shop/v1 exists with other bytes" {
			t.Error(r.err)
		}
		if string(p.build.data) != "other" {
			t.Error("the build of another client is gone")
		}
	})
}

// TestPushLostReply: the upload was stored, and its response was lost.
func TestPushLostReply(t *testing.T) {
	for _, c := range []struct {
		what     string
		options  []string
		old      string
		noDigest bool
		stored   bool // by this command, as far as it can know
		want     []string
	}{
		{"new", nil, "", false, true, []string{"HEAD", "PUT If-None-Match=*", "PUT If-None-Match=*"}},
		{"create", []string{"--create"}, "", false, true, []string{"PUT If-None-Match=*", "PUT If-None-Match=*"}},
		{"replaced", nil, "old", false, true, []string{"HEAD", `PUT If-Match="tag-1"`, `PUT If-Match="tag-1"`, "HEAD"}},
		{"no digests", nil, "", true, true, []string{"HEAD", "PUT If-None-Match=*", "PUT If-None-Match=*", "HEAD", `GET If-Match="tag-1"`}},
		{"create, no digests", []string{"--create"}, "", true, true, []string{"PUT If-None-Match=*", "PUT If-None-Match=*", "HEAD", `GET If-Match="tag-1"`}},
	} {
		testPush(t, 100_000, func(p *pushTest) {
			p.noDigest = c.noDigest
			if c.old != "" {
				p.store([]byte(c.old))
			}
			p.after = func(n int) {
				if n == 1 {
					loseReply()
				}
			}
			p.wantStored(p.push(c.options...), c.stored)
			p.wantRequests(c.want...)
		})
	}
}

// TestPushLostReplyAndAnotherBuild: between the attempts somebody else has replaced our build. It stays.
func TestPushLostReplyAndAnotherBuild(t *testing.T) {
	for _, noDigest := range []bool{false, true} {
		for _, size := range []int{1000, 999} {
			testPush(t, 1000, func(p *pushTest) {
				p.noDigest = noDigest
				other := randomBuild(size, "other").data
				p.after = func(int) { p.store(other); loseReply() }
				p.push().want(t, exitConflict)
				if !bytes.Equal(p.build.data, other) {
					t.Error("the build of another client is gone")
				}
			})
		}
	}
}

// TestPushRace: somebody else uploads after the command has looked.
func TestPushRace(t *testing.T) {
	for _, old := range []string{"", "old"} {
		testPush(t, 1000, func(p *pushTest) {
			if old != "" {
				p.store([]byte(old))
			}
			p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPut {
					p.store([]byte("of another"))
				}
				return false
			}
			p.push().want(t, exitConflict)
			if string(p.build.data) != "of another" {
				t.Error("the build of another client is gone")
			}
		})
	}
}

// TestPushRaceOfTheSameBytes: two jobs upload the same build.
func TestPushRaceOfTheSameBytes(t *testing.T) {
	testPush(t, 1000, func(p *pushTest) {
		p.store([]byte("old"))
		p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				p.store(p.data)
			}
			return false
		}
		p.wantStored(p.push(), false)
	})
}

// TestPushRetries: what passes does not end the command.
func TestPushRetries(t *testing.T) {
	for what, respond := range map[string]func(p *pushTest, w http.ResponseWriter, r *http.Request){
		"503": func(p *pushTest, w http.ResponseWriter, r *http.Request) { fakeError(w, 503, "busy") },
		"500": func(p *pushTest, w http.ResponseWriter, r *http.Request) { fakeError(w, 500, "internal error") },
		"502 of a proxy": func(p *pushTest, w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(502)
			fmt.Fprint(w, "<html>bad gateway")
		},
		"507": func(p *pushTest, w http.ResponseWriter, r *http.Request) { fakeError(w, 507, "full") },
		"429": func(p *pushTest, w http.ResponseWriter, r *http.Request) { fakeError(w, 429, "too many") },
		"408": func(p *pushTest, w http.ResponseWriter, r *http.Request) {
			io.CopyN(io.Discard, r.Body, 10)
			fakeError(w, 408, "slow")
		},
		"cut at once": func(p *pushTest, w http.ResponseWriter, r *http.Request) { loseReply() },
		"cut in the body": func(p *pushTest, w http.ResponseWriter, r *http.Request) {
			io.CopyN(io.Discard, r.Body, 100_000)
			loseReply()
		},
		"stall at once": func(p *pushTest, w http.ResponseWriter, r *http.Request) { <-p.end },
		"stall in the body": func(p *pushTest, w http.ResponseWriter, r *http.Request) {
			io.CopyN(io.Discard, r.Body, 100_000)
			<-p.end
		},
		"no response": func(p *pushTest, w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); <-p.end },
		"damaged on its way": func(p *pushTest, w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error":"the digest is wrong","expected":"00","got":"11"}`)
		},
		"cut by a proxy": func(p *pushTest, w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			fakeError(w, 400, "the body was cut short")
		},
	} {
		testPush(t, 1<<20, func(p *pushTest) {
			p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPut || n > 2 {
					return false
				}
				respond(p, w, r)
				return true
			}
			r := p.push()
			if r.status != 0 {
				t.Errorf("%s: %v", what, r.err)
			}
			p.wantStored(r, true)
			if n := len(p.hosts[serviceHost].requests()); n != 4 { // HEAD and three attempts
				t.Errorf("%s: %d requests", what, n)
			}
			if !strings.Contains(r.stderr, "attempt 2 follows in") || !strings.Contains(r.stderr, "attempt 3 follows in") {
				t.Errorf("%s: %s", what, r.stderr)
			}
		})
	}
}

// TestPushHonoursRetryAfter waits at least as long as the service asks for, also after the HEAD.
func TestPushHonoursRetryAfter(t *testing.T) {
	testPush(t, 1000, func(p *pushTest) {
		var at []time.Time
		p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
			at = append(at, time.Now())
			if n > 1 {
				return false
			}
			w.Header().Set("Retry-After", "7")
			fakeError(w, 429, "too many connections")
			return true
		}
		p.wantStored(p.push(), true)
		for _, i := range []int{1, 3} {
			if waited := at[i].Sub(at[i-1]); waited < 7*time.Second || waited > 8*time.Second {
				t.Errorf("waited %v", waited)
			}
		}
	})
}

// TestPushGivesUp: after --retry-for the command fails, and says how often it tried.
func TestPushGivesUp(t *testing.T) {
	testPush(t, 1000, func(p *pushTest) {
		p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("X-Request-Id", "R1")
			fakeError(w, 503, "the service is read-only")
			return true
		}
		start := time.Now()
		r := p.push("--create", "--retry-for", "2m").want(t, exitFailure)
		if spent := time.Since(start); spent != 2*time.Minute || !strings.Contains(r.err.Error(), "503 Service Unavailable: the service is read-only (request R1); gave up after") {
			t.Errorf("%v: %v", spent, r.err)
		}
		before := len(p.hosts[serviceHost].requests())
		p.push("--retry-for", "0").want(t, exitFailure)
		if got := p.hosts[serviceHost].requests()[before:]; !slices.Equal(got, []string{"HEAD /base/sites/shop/artifacts/v1"}) {
			t.Errorf("%q", got)
		}
	})
}

// TestPushFails: what stays ends the command at once, with the status for it, and stores nothing.
func TestPushFails(t *testing.T) {
	for _, c := range []struct {
		status, want int
		body         bool // the service reads it
		attempts     int
	}{
		{400, exitFailure, false, 1}, {401, exitDenied, false, 1}, {403, exitDenied, false, 1}, {409, exitConflict, false, 1},
		{413, exitFailure, false, 1}, {413, exitFailure, true, 1}, {415, exitFailure, false, 1}, {501, exitFailure, false, 1}, {505, exitFailure, false, 1},
		{400, exitFailure, true, maxRefused},
		{301, exitFailure, false, 1}, {302, exitFailure, false, 1}, {303, exitFailure, false, 1}, {307, exitFailure, false, 1}, {308, exitFailure, false, 1},
	} {
		testPush(t, 100_000, func(p *pushTest) {
			attempts := 0
			p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPut {
					return false
				}
				if attempts++; c.body {
					io.Copy(io.Discard, r.Body)
				}
				w.Header().Set("Location", "http://"+storeHost+"/elsewhere")
				fakeError(w, c.status, "no")
				return true
			}
			if r := p.push(); r.status != c.want || attempts != c.attempts || r.stdout != "" || !strings.Contains(r.err.Error(), fmt.Sprint(c.status)) {
				t.Errorf("%d: exit status %d after %d attempts, %q: %v", c.status, r.status, attempts, r.stdout, r.err)
			}
		})
	}
}

// TestPushDamagedBytes: a line that damages each attempt.
func TestPushDamagedBytes(t *testing.T) {
	testPush(t, 1000, func(p *pushTest) {
		p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				r.Body = io.NopCloser(io.MultiReader(strings.NewReader("x"), r.Body))
			}
			return false
		}
		p.push().want(t, exitCorrupt)
		p.wantRequests("HEAD", "PUT If-None-Match=*", "PUT If-None-Match=*", "PUT If-None-Match=*")
		if p.build != nil {
			t.Error("it was stored")
		}
	})
}

// TestPushResponseOfAnotherServer: a success counts only if it is that of the service.
func TestPushResponseOfAnotherServer(t *testing.T) {
	for _, body := range []string{"<html>welcome", `{}`, `{"build_id":"v2"}`} {
		testPush(t, 1000, func(p *pushTest) {
			p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPut {
					io.Copy(io.Discard, r.Body)
					fmt.Fprint(w, body)
				}
				return r.Method == http.MethodPut
			}
			p.push().want(t, exitFailure)
		})
	}
}

// TestPushOfAFileThatChanges: at whatever point it changes, the command fails.
func TestPushOfAFileThatChanges(t *testing.T) {
	for _, method := range []string{http.MethodHead, http.MethodPut} {
		for what, change := range map[string]func(p *pushTest) error{
			"appended to": func(p *pushTest) error {
				f, err := os.OpenFile(p.file, os.O_APPEND|os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				_, err = f.WriteString("more")
				return err
			},
			"cut":       func(p *pushTest) error { return os.Truncate(p.file, 10) },
			"rewritten": func(p *pushTest) error { return os.WriteFile(p.file, randomBuild(len(p.data), "x").data, 0o666) },
		} {
			testPush(t, 1<<20, func(p *pushTest) {
				p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
					if r.Method == method {
						io.CopyN(io.Discard, struct{ io.Reader }{r.Body}, 0)
						if err := change(p); err != nil {
							t.Error(err)
						}
					}
					return false
				}
				r := p.push()
				if r.status != exitFailure || !strings.Contains(r.err.Error(), "changed while it was pushed") || r.stdout != "" {
					t.Errorf("%s at %s: status %d: %v", what, method, r.status, r.err)
				}
				if method == http.MethodHead {
					p.wantRequests("HEAD")
				}
			})
		}
	}
}

// TestPushInterrupted: the command ends at once.
func TestPushInterrupted(t *testing.T) {
	testPush(t, 1<<20, func(p *pushTest) {
		ctx, cancel := context.WithCancel(p.ctx)
		p.ctx = ctx
		p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				io.CopyN(io.Discard, r.Body, 1000)
				cancel()
				<-p.end
			}
			return r.Method == http.MethodPut
		}
		start := time.Now()
		if r := p.push().want(t, exitFailure); r.err.Error() != "interrupted" || time.Since(start) != 0 {
			t.Errorf("%v after %v", r.err, time.Since(start))
		}
	})
}

// TestPushLogsAndLabels: entries first, then labels; the key of an entry stays the same when it
// is sent again.
func TestPushLogsAndLabels(t *testing.T) {
	testPush(t, 1000, func(p *pushTest) {
		keys := map[string]bool{}
		posts := 0
		p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
			switch {
			case r.Method == http.MethodPost:
				keys[r.Header.Get("Idempotency-Key")] = true
				if posts++; posts == 1 {
					loseReply()
				}
				w.WriteHeader(201)
				fmt.Fprint(w, `{"status":"success","entry_id":"E1"}`)
			case strings.Contains(r.URL.Path, "/labels/") && r.Method == http.MethodPut:
				w.WriteHeader(201)
				fmt.Fprint(w, `{"label":"live","build_id":"v1","previous":"v0"}`)
			case strings.Contains(r.URL.Path, "/labels/"):
				fakeError(w, 404, "no such label")
			default:
				return false
			}
			return true
		}
		r := p.push("--log", "build=ok", "--label", "live", "--create")
		p.wantStored(r, true)
		if !strings.Contains(r.stdout, `"log_entries":["E1"]`) || !strings.Contains(r.stdout, `"label":"live"`) {
			t.Error(r.stdout)
		}
		if len(keys) != 1 || posts != 2 {
			t.Errorf("%d keys, %d requests", len(keys), posts)
		}
		got := p.hosts[serviceHost].requests()
		want := []string{"PUT /base/sites/shop/artifacts/v1", "POST /base/sites/shop/logs", "POST /base/sites/shop/logs"}
		if len(got) < 4 || !slices.Equal(got[:3], want) || got[len(got)-1] != "PUT /base/sites/shop/labels/live" {
			t.Errorf("%q", got)
		}
	})
}

// TestPushStoredButNotLabelled: the error says that the build is there.
func TestPushStoredButNotLabelled(t *testing.T) {
	testPush(t, 1000, func(p *pushTest) {
		p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/labels/") {
				fakeError(w, 403, "denied")
				return true
			}
			return false
		}
		r := p.push("--label", "live", "--create").want(t, exitDenied)
		if !strings.HasPrefix(r.err.Error(), "the build is stored, but the label live was not moved: ") {
			t.Error(r.err)
		}
	})
}

// TestPushStoredByAnotherServer: what follows the upload counts only if it is confirmed.
func TestPushStoredByAnotherServer(t *testing.T) {
	for _, option := range [][]string{{"--log", "build=ok"}, {"--label", "live"}} {
		for _, body := range []string{"{}", "null", "<html>log in", `{"label":"live","build_id":"v9"}`} {
			testPush(t, 1000, func(p *pushTest) {
				p.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
					ours := !strings.Contains(r.URL.Path, "/artifacts/")
					if ours {
						fmt.Fprint(w, body)
					}
					return ours
				}
				r := p.push(append(option, "--create")...).want(t, exitFailure)
				if text := r.err.Error(); r.stdout != "" || !strings.HasPrefix(text, "the build is stored, but the ") || !strings.Contains(text, "PAGEWRIGHT_URL") {
					t.Errorf("%q, %s: %q, %s", option, body, r.stdout, text)
				}
			})
		}
	}
}

// TestPushBadInput: the exit status says what is wrong, and there is no request.
func TestPushBadInput(t *testing.T) {
	testPush(t, 10, func(p *pushTest) {
		dir := filepath.Dir(p.file)
		empty, pipe, none := filepath.Join(dir, "empty"), filepath.Join(dir, "pipe"), filepath.Join(dir, "none")
		emptyDir := filepath.Join(dir, "dir")
		if err := os.WriteFile(empty, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(pipe, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Mkdir(emptyDir, 0o777), os.Symlink("loop", filepath.Join(dir, "loop"))); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{
			{}, {p.file}, {p.file, "shop"}, {p.file, "shop", "v1", "v2"},
			{p.file, "", "v1"}, {p.file, "shop", ""}, {p.file, "a/b", "v1"}, {p.file, "shop", ".."}, {p.file, "shop", strings.Repeat("v", 129)},
			{p.file, "shop", "v1", "--label", "Live"}, {p.file, "shop", "v1", "--log", "build"}, {p.file, "shop", "v1", "--log", "=ok"},
			{p.file, "shop", "v1", "--nonsense"}, {p.file, "shop", "v1", "--retry-for", "soon"}, {p.file, "shop", "v1", "--retry-for", "-1s"},
			{p.file, "shop", "v1", "--url", "store.example.org"}, {p.file, "shop", "v1", "--cert", p.file}, {p.file, "shop", "v1", "--ca", p.file},
			{"-", "shop", "v1"}, {empty, "shop", "v1"}, {pipe, "shop", "v1"}, {"/proc/version", "shop", "v1"}, {os.DevNull, "shop", "v1"}, {emptyDir, "shop", "v1"},
		} {
			if r := p.run("push", args...); r.status != exitUsage || strings.Contains(strings.Join(args, " "), "/proc") != strings.Contains(r.err.Error(), "has bytes but no size") {
				t.Errorf("%q: exit status %d: %v", args, r.status, r.err)
			}
		}
		for file, want := range map[string]string{pipe: "it is a pipe", os.DevNull: "it is a device"} {
			if r := p.run("push", file, "shop", "v1"); !strings.Contains(r.err.Error(), want) {
				t.Errorf("%s: %v", file, r.err)
			}
		}
		// A file that cannot be read, for whatever cause.
		for _, file := range []string{none, filepath.Join(p.file, "x"), filepath.Join(dir, "loop")} {
			p.run("push", file, "shop", "v1").want(t, exitFailure)
		}
		env := p.env
		for _, v := range []string{"PAGEWRIGHT_URL=store.example.org", "PAGEWRIGHT_TOKEN=a b", "PAGEWRIGHT_TOKEN_FILE=" + none, "SOURCE_DATE_EPOCH=8589934592", "SOURCE_DATE_EPOCH=-1", "SOURCE_DATE_EPOCH=now"} {
			p.env = append(slices.Clip(env), v)
			if r := p.run("push", dir, "shop", "v1").want(t, exitConfig); !strings.Contains(r.err.Error(), v[:strings.Index(v, "=")]) {
				t.Errorf("%s: %v", v, r.err)
			}
		}
		p.wantRequests()
	})
}
