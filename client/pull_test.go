package client

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// inDir changes to a new directory and returns it.
func inDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Chdir(dir)
	return dir
}

// wantFiles fails the test unless the directory has these files, and no other.
func wantFiles(t *testing.T, dir string, want map[string][]byte) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, ok := want[e.Name()]
		if !ok {
			t.Errorf("%s was left", e.Name())
			continue
		}
		if got, err := os.ReadFile(filepath.Join(dir, e.Name())); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s has %d bytes, want %d, or other ones (%v)", e.Name(), len(got), len(data), err)
		}
	}
	if len(entries) < len(want) {
		t.Errorf("%d files, want %d", len(entries), len(want))
	}
}

func TestPull(t *testing.T) {
	for _, size := range []int{1, 2, 1000, copySize, copySize + 1, 3 << 20} {
		dir := inDir(t)
		withFake(t, func(f *fake) {
			b := randomBuild(size, `"v1"`)
			f.hosts[serviceHost].handle = handler(b.serve)
			r := f.run("pull", "shop", "v1").want(t, 0)
			wantFiles(t, dir, map[string][]byte{"v1.tar.gz": b.data})
			if !strings.HasPrefix(r.stdout, "shop/v1 sha256:") || !strings.HasSuffix(r.stdout, " bytes v1.tar.gz\n") {
				t.Errorf("stdout is %q", r.stdout)
			}
			got := f.hosts[serviceHost].requests("If-Match", "Range", "Accept-Encoding")
			want := []string{"HEAD /base/sites/shop/artifacts/v1", `GET /base/sites/shop/artifacts/v1 If-Match="v1"`}
			if !slices.Equal(got, want) {
				t.Errorf("requests %q, want %q", got, want)
			}
		})
	}
}

// A transfer that is cut goes on where it stopped, wherever that is.
func TestPullGoesOnAfterACut(t *testing.T) {
	const size = 2*copySize + 100
	for _, cuts := range [][]int{
		{0}, {1}, {100}, {copySize - 1}, {copySize}, {copySize + 1}, {size - 1},
		{0, 0, 0}, {1, 1, 1}, {100, copySize, 7},
	} {
		for _, output := range []string{"out", "-"} {
			dir := inDir(t)
			withFake(t, func(f *fake) {
				b := randomBuild(size, `"v1"`)
				host := f.hosts[serviceHost]
				host.handle = func(n int, w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodGet && n <= len(cuts) {
						if cuts[n-1] == 0 {
							panic(http.ErrAbortHandler) // before the header
						}
						w = cutAfter(w, cuts[n-1])
					}
					b.serve(w, r)
				}
				r := f.run("pull", "shop", "v1", "-o", output).want(t, 0)
				if output == "-" {
					if r.stdout != string(b.data) {
						t.Errorf("cuts %v: standard output has %d bytes, or other ones", cuts, len(r.stdout))
					}
				} else {
					wantFiles(t, dir, map[string][]byte{output: b.data})
				}
				at := 0
				for i, line := range host.requests("If-Match", "Range")[1:] {
					want := `GET /base/sites/shop/artifacts/v1 If-Match="v1"`
					if at > 0 {
						want += " Range=bytes=" + itoa(at) + "-"
					}
					if line != want {
						t.Errorf("cuts %v: request %d is %s, want %s", cuts, i, line, want)
					}
					if i < len(cuts) {
						at += cuts[i]
					}
				}
			})
		}
	}
}

// A transfer that stalls is ended and goes on.
func TestPullGoesOnAfterAStall(t *testing.T) {
	for _, at := range []int{0, 1, 1000} {
		dir := inDir(t)
		withFake(t, func(f *fake) {
			b := randomBuild(5000, `"v1"`)
			f.hosts[serviceHost].handle = func(n int, w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet && n == 1 {
					if at == 0 {
						<-r.Context().Done()
						return
					}
					w = stallAfter(w, r, at)
				}
				b.serve(w, r)
			}
			f.run("pull", "shop", "v1").want(t, 0)
			wantFiles(t, dir, map[string][]byte{"v1.tar.gz": b.data})
		})
	}
}

// A page of another server, such as a login, is no build, also if it has a strong ETag.
func TestPullOfAPage(t *testing.T) {
	for _, etag := range []string{"", `W/"1"`, `"1"`} {
		for _, output := range []string{"out", "-"} {
			dir := inDir(t)
			withFake(t, func(f *fake) {
				f.hosts[serviceHost].handle = handler(func(w http.ResponseWriter, r *http.Request) {
					if etag != "" {
						w.Header().Set("Etag", etag)
					}
					w.Header().Set("Content-Type", "text/html; charset=utf-8")
					w.Write([]byte("<html>log in"))
				})
				r := f.run("pull", "shop", "v1", "-o", output).want(t, exitFailure)
				if r.stdout != "" || !strings.Contains(r.err.Error(), "PAGEWRIGHT_URL") {
					t.Errorf("%q, %v", r.stdout, r.err)
				}
			})
			wantFiles(t, dir, nil)
		}
	}
}

// Only the body of a 404 tells whether the service sent it: one that is cut is asked for again.
func TestPullOfNothingOverABadLine(t *testing.T) {
	for name, cut := range map[string]int{"whole": 1000, "cut at once": 1, "cut later": 15} {
		inDir(t)
		withFake(t, func(f *fake) {
			f.hosts[serviceHost].handle = func(n int, w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet && n <= 3 {
					w = cutAfter(w, cut)
				}
				fail(w, 404, "the site shop has no build v1")
			}
			r := f.run("pull", "shop", "v1").want(t, exitAbsent)
			if text := r.err.Error(); !strings.Contains(text, "no build v1") || strings.Contains(text, "PAGEWRIGHT_URL") {
				t.Errorf("%s: %s", name, text)
			}
		})
	}
}
