package client

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// redirecting is a service that redirects to a store. The service knows the digest and has ETags
// of its own; the store has others.
type redirecting struct {
	fakeSite
	storeTag string
	odd      func(n int, w http.ResponseWriter, r *http.Request) bool // what the store does instead
	after    func()                                                   // runs when the service has redirected
}

func (s *redirecting) run(f *fake) {
	f.env = append(f.env, "PAGEWRIGHT_TOKEN=secret")
	f.hosts[serviceHost].handle = func(n int, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead || r.URL.Query().Get("redirect") == "false" {
			s.serve(w, r)
			return
		}
		id := strings.TrimPrefix(r.URL.Path, "/base/sites/shop/artifacts/")
		if match := r.Header.Get("If-Match"); match != "" && match != s.builds[id].etag {
			w.WriteHeader(http.StatusPreconditionFailed)
			return
		}
		w.Header().Set("Location", "http://"+storeHost+"/"+id+"?signature=abc")
		w.WriteHeader(http.StatusTemporaryRedirect)
		if s.after != nil {
			s.after()
		}
	}
	f.hosts[storeHost].handle = func(n int, w http.ResponseWriter, r *http.Request) {
		if s.odd != nil && s.odd(n, w, r) {
			return
		}
		b := s.builds[strings.TrimPrefix(r.URL.Path, "/")]
		b.etag, b.noDigest = s.storeTag, true
		b.serve(w, r)
	}
}

// A store gets neither the token nor the ETag of the service. The digest is that of the service.
func TestPullFromTheStore(t *testing.T) {
	dir := inDir(t)
	withFake(t, func(f *fake) {
		b := randomBuild(10_000, `"v1"`)
		s := &redirecting{fakeSite: fakeSite{map[string]fakeBuild{"v1": b}, "v1"}, storeTag: `"store"`}
		s.odd = func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				b.serve(cutAfter(w, 4000), r)
			}
			return false
		}
		s.run(f)
		r := f.run("pull", "shop", "@live").want(t, 0)
		wantFiles(t, dir, map[string][]byte{"v1.tar.gz": b.data})
		if strings.Contains(r.stdout, "not checked") {
			t.Errorf("stdout is %s", r.stdout)
		}
		got := f.hosts[storeHost].requests("Authorization", "If-Match", "Referer", "Range")
		if want := []string{"GET /v1?signature=abc", "GET /v1?signature=abc Range=bytes=4000-"}; !slices.Equal(got, want) {
			t.Errorf("the store got %q, want %q", got, want)
		}
		for _, line := range f.hosts[serviceHost].requests("Authorization") {
			if !strings.HasSuffix(line, " Authorization=Bearer secret") {
				t.Errorf("the service got %s", line)
			}
		}
	})
}

// If the store does not send the build, the service does.
func TestPullFromTheServiceInsteadOfTheStore(t *testing.T) {
	b := randomBuild(10_000, `"v1"`)
	status := func(code int) func(n int, w http.ResponseWriter, r *http.Request) bool {
		return func(n int, w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(code); return true }
	}
	for name, odd := range map[string]func(n int, w http.ResponseWriter, r *http.Request) bool{
		"down":        nil,
		"forbidden":   status(403),
		"absent":      status(404),
		"unavailable": status(503),
		"empty":       status(204),
		"cut":         func(int, http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
		"stall":       func(_ int, _ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true },
	} {
		t.Run(name, func(t *testing.T) {
			dir := inDir(t)
			withFake(t, func(f *fake) {
				s := &redirecting{fakeSite: fakeSite{map[string]fakeBuild{"v1": b}, "v1"}, odd: odd}
				f.hosts[storeHost].down = name == "down"
				s.run(f)
				r := f.run("pull", "shop", "v1").want(t, 0)
				wantFiles(t, dir, map[string][]byte{"v1.tar.gz": b.data})
				if strings.Contains(r.stderr, "signature") {
					t.Errorf("stderr shows the signed URL: %s", r.stderr)
				}
			})
		})
	}
}

// A build that is replaced between the redirect and the response of the store.
func TestPullOfABuildReplacedInTheStore(t *testing.T) {
	for _, c := range []struct {
		name   string
		digest bool
		size   int // of the new build
		at     int // cut the first response of the store there; 0: do not
		pipe   int // exit status
	}{
		{"with a digest", true, 10_000, 0, exitConflict},
		{"without a digest", false, 10_000, 0, exitConflict},
		{"with another size", false, 12_000, 0, 0},
		{"in the middle, with a digest", true, 10_000, 4000, exitConflict},
		{"in the middle, without a digest", false, 10_000, 4000, exitConflict},
	} {
		for _, output := range []string{"out", "-"} {
			t.Run(c.name+"/"+output, func(t *testing.T) {
				dir := inDir(t)
				withFake(t, func(f *fake) {
					before, after := randomBuild(10_000, `"v1"`), randomBuild(c.size, `"v2"`)
					before.noDigest, after.noDigest = !c.digest, !c.digest
					s := &redirecting{fakeSite: fakeSite{map[string]fakeBuild{"v1": before}, "v1"}}
					redirects := 0
					s.after = func() {
						if redirects++; c.at == 0 && redirects == 1 || c.at > 0 && redirects == 2 {
							s.builds["v1"] = after
						}
					}
					s.odd = func(n int, w http.ResponseWriter, r *http.Request) bool {
						if n == 1 && c.at > 0 {
							before.serve(cutAfter(w, c.at), r)
						}
						return false
					}
					s.run(f)
					if output == "-" {
						f.run("pull", "shop", "v1", "-o", "-").want(t, c.pipe)
						return
					}
					f.run("pull", "shop", "v1", "-o", output).want(t, 0)
					wantFiles(t, dir, map[string][]byte{"out": after.data})
				})
			})
		}
	}
}
