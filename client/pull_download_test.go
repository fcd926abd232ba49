package client

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// onGet returns a handler that serves b, except that odd serves the GET with number n, if it
// returns true.
func onGet(b fakeBuild, odd func(n int, w http.ResponseWriter, r *http.Request) bool) func(int, http.ResponseWriter, *http.Request) {
	return func(n int, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && odd(n, w, r) {
			return
		}
		b.serve(w, r)
	}
}

// Responses that are not what was asked for never lead to a wrong file.
func TestPullOfOddResponses(t *testing.T) {
	b := randomBuild(10_000, `"v1"`)
	plain := b
	plain.noDigest = true
	whole := func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Range")
		b.serve(w, r)
	}
	partly := func(w http.ResponseWriter, contentRange string, data []byte) {
		w.Header().Set("Etag", b.etag)
		w.Header().Set("Content-Range", contentRange)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(data)
	}
	for _, c := range []struct {
		name  string
		build fakeBuild
		odd   func(n int, w http.ResponseWriter, r *http.Request) bool // after a first GET that is cut after 4000 bytes
		file  int                                                      // exit status with a file
		pipe  int                                                      // exit status with standard output
	}{
		{"200 instead of 206", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			whole(w, r)
			return true
		}, 0, 0},
		{"206 with other bytes", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				partly(w, "bytes 3999-9999/10000", b.data[3999:])
			}
			return n == 2
		}, 0, exitFailure},
		{"206 of another size", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				partly(w, "bytes 4000-9999/10001", b.data[4000:])
			}
			return n == 2
		}, 0, exitConflict},
		{"206 without Content-Range", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				partly(w, "", b.data[4000:])
			}
			return n == 2
		}, 0, exitFailure},
		{"206 whose length is another", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				partly(w, "bytes 4000-9998/10000", b.data[4000:])
			}
			return n == 2
		}, 0, exitFailure},
		{"206 of less", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				partly(w, "bytes 4000-4999/10000", b.data[4000:5000])
			}
			return n == 2
		}, 0, 0},
		{"206 of an unknown size", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			partly(w, "bytes 4000-9999/*", b.data[4000:])
			return true
		}, 0, 0},
		{"416", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				w.Header().Set("Content-Range", "bytes */10000")
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			}
			return n == 2
		}, 0, exitConflict},
		{"503 with Retry-After", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				w.Header().Set("Retry-After", "30")
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return n == 2
		}, 0, 0},
		{"503 for ever", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}, exitFailure, exitFailure},
		{"501", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusNotImplemented)
			return true
		}, exitFailure, exitFailure},
		{"401", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}, exitDenied, exitDenied},
		{"404", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			fail(w, 404, "no such build")
			return true
		}, exitAbsent, exitAbsent},
		{"204", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusNoContent)
			return true
		}, exitFailure, exitFailure},
		{"a shorter 200", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				w.Header().Set("Content-Length", "9999")
				w.Write(b.data[:9999])
			}
			return n == 2
		}, 0, exitConflict},
		{"a longer 200", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				w.Header().Set("Content-Length", "10001")
				w.Write(append(slices.Clone(b.data), 0))
			}
			return n == 2
		}, 0, exitConflict},
		{"a longer 200 in chunks", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				w.Header().Set("Etag", b.etag)
				w.(http.Flusher).Flush()
				w.Write(append(slices.Clone(b.data), 0))
			}
			return n == 2
		}, 0, exitFailure},
		{"a 200 in chunks that ends early", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				w.Header().Set("Etag", b.etag)
				w.(http.Flusher).Flush()
				w.Write(b.data[:9000])
			}
			return n == 2
		}, 0, 0},
		{"wrong bytes, once", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				partly(w, "bytes 4000-9999/10000", b.data[:6000])
			}
			return n == 2
		}, 0, exitCorrupt},
		{"wrong bytes", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Etag", b.etag)
			w.Write(bytes.Repeat([]byte{1}, 10_000))
			return true
		}, exitCorrupt, exitCorrupt},
		{"a weak ETag without a digest", fakeBuild{data: b.data, etag: `W/"v1"`, noDigest: true}, func(int, http.ResponseWriter, *http.Request) bool { return false },
			exitFailure, exitFailure},
		{"no ETag and no digest", fakeBuild{data: b.data, noDigest: true}, func(int, http.ResponseWriter, *http.Request) bool { return false },
			exitFailure, exitFailure},
		{"no ETag", fakeBuild{data: b.data}, func(int, http.ResponseWriter, *http.Request) bool { return false }, 0, 0},
		{"no digest", plain, func(int, http.ResponseWriter, *http.Request) bool { return false }, 0, 0},
		{"the digest of another build", b, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				w.Header().Set("Repr-Digest", randomBuild(5, "").digest())
				partly(w, "bytes 4000-9999/10000", b.data[4000:])
			}
			return n == 2
		}, 0, exitConflict},
	} {
		for _, output := range []string{"out", "-"} {
			t.Run(c.name+"/"+output, func(t *testing.T) {
				dir := inDir(t)
				withFake(t, func(f *fake) {
					f.hosts[serviceHost].handle = onGet(c.build, func(n int, w http.ResponseWriter, r *http.Request) bool {
						if n == 1 {
							c.build.serve(cutAfter(w, 4000), r)
						}
						return c.odd(n, w, r)
					})
					if output == "-" {
						r := f.run("pull", "shop", "v1", "-o", "-").want(t, c.pipe)
						if c.pipe == 0 && r.stdout != string(b.data) {
							t.Errorf("standard output has %d bytes, or wrong ones", len(r.stdout))
						}
						wantFiles(t, dir, nil)
						return
					}
					f.run("pull", "shop", "v1", "-o", output).want(t, c.file)
					files := map[string][]byte{}
					if c.file == 0 {
						files[output] = b.data
					}
					wantFiles(t, dir, files)
				})
			})
		}
	}
}

// The bytes of the first GET can be of an unknown length.
func TestPullOfAnUnknownLength(t *testing.T) {
	b := randomBuild(10_000, `"v1"`)
	chunks := func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		if r.Method == http.MethodGet {
			w.Write(b.data)
		}
	}
	untilClose := func(n int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprintf(buf, "HTTP/1.1 200 OK\r\n%s\r\n", w.Header().Get("X-Fields"))
			if r.Method == http.MethodGet {
				buf.Write(b.data[:n])
			}
			buf.Flush()
		}
	}
	digest := "Repr-Digest: " + b.digest() + "\r\n"
	for _, c := range []struct {
		name   string
		fields string
		handle http.HandlerFunc
		status int
	}{
		{"chunks", "", chunks, 0},
		{"until the connection ends", "", untilClose(10_000), exitFailure},
		{"until the connection ends, with a digest", digest, untilClose(10_000), 0},
		{"less, until the connection ends, with a digest", digest, untilClose(9_999), exitCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := inDir(t)
			withFake(t, func(f *fake) {
				f.hosts[serviceHost].handle = func(_ int, w http.ResponseWriter, r *http.Request) {
					w.Header().Set("X-Fields", "Etag: \"v1\"\r\n"+c.fields)
					w.Header().Set("Etag", `"v1"`)
					c.handle(w, r)
				}
				f.run("pull", "shop", "v1").want(t, c.status)
				files := map[string][]byte{}
				if c.status == 0 {
					files["v1.tar.gz"] = b.data
				}
				wantFiles(t, dir, files)
			})
		})
	}
}

// A build that is replaced while it is pulled: a file gets the new one, a pipe cannot.
func TestPullOfAReplacedBuild(t *testing.T) {
	before, after := randomBuild(10_000, `"v1"`), randomBuild(12_000, `"v2"`)
	for _, digests := range []bool{true, false} {
		before.noDigest, after.noDigest = !digests, !digests
		replaced := func(n int, w http.ResponseWriter, r *http.Request) {
			switch {
			case n > 1:
				after.serve(w, r)
			case r.Method == http.MethodGet:
				before.serve(cutAfter(w, 4000), r)
			default:
				before.serve(w, r)
			}
		}
		dir := inDir(t)
		withFake(t, func(f *fake) {
			f.hosts[serviceHost].handle = replaced
			f.run("pull", "shop", "v1").want(t, 0)
			wantFiles(t, dir, map[string][]byte{"v1.tar.gz": after.data})
		})
		withFake(t, func(f *fake) {
			f.hosts[serviceHost].handle = replaced
			r := f.run("pull", "shop", "v1", "-o", "-").want(t, exitConflict)
			if r.stdout != string(before.data[:4000]) {
				t.Errorf("standard output has %d bytes, or wrong ones", len(r.stdout))
			}
		})
	}
}

// Without the first byte, a pipe can get the new build as well.
func TestPullOfABuildReplacedBeforeTheFirstByte(t *testing.T) {
	before, after := randomBuild(10_000, `"v1"`), randomBuild(12_000, `"v2"`)
	withFake(t, func(f *fake) {
		f.hosts[serviceHost].handle = func(n int, w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead && n == 1 {
				before.serve(w, r)
				return
			}
			after.serve(w, r)
		}
		if r := f.run("pull", "shop", "v1", "-o", "-").want(t, 0); r.stdout != string(after.data) {
			t.Errorf("standard output has %d bytes, or wrong ones", len(r.stdout))
		}
	})
}

// A build that is replaced again and again ends the command when its time is over.
func TestPullOfABuildThatChangesForEver(t *testing.T) {
	dir := inDir(t)
	withFake(t, func(f *fake) {
		f.hosts[serviceHost].handle = func(n int, w http.ResponseWriter, r *http.Request) {
			b := randomBuild(1000, fmt.Sprintf(`"%s%d"`, r.Method, n))
			b.serve(w, r)
		}
		f.run("pull", "shop", "v1", "--retry-for", "1m").want(t, exitConflict)
		wantFiles(t, dir, nil)
	})
}

// site serves the builds v1 and v2, and the label live.
type fakeSite struct {
	builds map[string]fakeBuild
	live   string
}

func (s *fakeSite) serve(w http.ResponseWriter, r *http.Request) {
	id, ok := strings.CutPrefix(r.URL.Path, "/base/sites/shop/artifacts/")
	if r.URL.Path == "/base/sites/shop/labels/live/artifact" {
		id, ok = s.live, true
		w.Header().Set("Content-Location", "/sites/shop/artifacts/"+id)
	}
	b, found := s.builds[id]
	if !ok || !found {
		w.Header().Del("Content-Location")
		fail(w, 404, "not found")
		return
	}
	b.serve(w, r)
}

// A label that moves while its build is pulled: the build stays the one of the beginning, as long
// as it is there.
func TestPullByLabel(t *testing.T) {
	v1, v2 := randomBuild(10_000, `"v1"`), randomBuild(12_000, `"v2"`)
	for _, c := range []struct {
		name    string
		during  func(*fakeSite)
		want    string // the build in the file
		pipe    int    // exit status
		noLabel bool
	}{
		{"nothing happens", func(*fakeSite) {}, "v1", 0, false},
		{"the label moves", func(s *fakeSite) { s.live = "v2" }, "v1", 0, false},
		{"the label moves and the build is deleted", func(s *fakeSite) { s.live = "v2"; delete(s.builds, "v1") }, "v2", exitConflict, false},
		{"the label moves and the build is replaced", func(s *fakeSite) { s.live = "v2"; s.builds["v1"] = randomBuild(10_000, `"v3"`) }, "v2", exitConflict, false},
		{"the label and the build are deleted", func(s *fakeSite) { s.live = ""; delete(s.builds, "v1") }, "", exitConflict, false},
		{"there is no label", func(s *fakeSite) {}, "", exitAbsent, true},
	} {
		for _, output := range []string{"", "-"} {
			t.Run(c.name+"/"+output, func(t *testing.T) {
				dir := inDir(t)
				withFake(t, func(f *fake) {
					s := &fakeSite{map[string]fakeBuild{"v1": v1, "v2": v2}, "v1"}
					if c.noLabel {
						s.live = ""
					}
					f.hosts[serviceHost].handle = func(n int, w http.ResponseWriter, r *http.Request) {
						if r.Method == http.MethodGet && n == 1 {
							defer c.during(s)
							w = cutAfter(w, 4000)
						}
						s.serve(w, r)
					}
					if output == "-" {
						r := f.run("pull", "shop", "@live", "-o", "-").want(t, c.pipe)
						if c.pipe == 0 && r.stdout != string(v1.data) {
							t.Errorf("standard output has %d bytes, or wrong ones", len(r.stdout))
						}
						return
					}
					if c.want == "" {
						f.run("pull", "shop", "@live").want(t, exitAbsent)
						wantFiles(t, dir, nil)
						return
					}
					// The name of the file is that of the build at the beginning; -o avoids that.
					r := f.run("pull", "shop", "@live", "-o", "out", "--json").want(t, 0)
					wantFiles(t, dir, map[string][]byte{"out": s.builds[c.want].data})
					if !strings.Contains(r.stdout, `"build_id":"`+c.want+`"`) {
						t.Errorf("stdout is %s", r.stdout)
					}
				})
			})
		}
	}
}

// The id in Content-Location becomes the name of a file, so it is checked.
func TestPullByLabelOfAStrangeLocation(t *testing.T) {
	b := randomBuild(1000, `"v1"`)
	for location, want := range map[string]string{
		"/sites/shop/artifacts/v1":                         "v1.tar.gz",
		"https://elsewhere.test/x/sites/shop/artifacts/v1": "v1.tar.gz",
		"/sites/shop/artifacts/a%2Bb":                      "a+b.tar.gz",
		"/sites/shop/artifacts/../../etc/cron":             "live.tar.gz",
		"/sites/shop/artifacts/%2e%2e%2fx":                 "live.tar.gz",
		"/sites/other/artifacts/v1":                        "live.tar.gz",
		"::":                                               "live.tar.gz",
		"":                                                 "live.tar.gz",
	} {
		dir := inDir(t)
		withFake(t, func(f *fake) {
			f.hosts[serviceHost].handle = func(n int, w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Location", location)
				b.serve(w, r)
			}
			f.run("pull", "shop", "@live").want(t, 0)
			wantFiles(t, dir, map[string][]byte{want: b.data})
		})
	}
}

// A build that changes its name when the download begins again keeps the name of the beginning.
func TestPullByLabelNamesTheFileOfTheBuild(t *testing.T) {
	dir := inDir(t)
	withFake(t, func(f *fake) {
		s := &fakeSite{map[string]fakeBuild{"v1": randomBuild(10_000, `"v1"`), "v2": randomBuild(12_000, `"v2"`)}, "v1"}
		f.hosts[serviceHost].handle = func(n int, w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && n == 1 {
				defer func() { s.live = "v2"; delete(s.builds, "v1") }()
				w = cutAfter(w, 4000)
			}
			s.serve(w, r)
		}
		f.run("pull", "shop", "@live").want(t, 0)
		wantFiles(t, dir, map[string][]byte{"v2.tar.gz": s.builds["v2"].data})
	})
}

// The bytes are those of the build, whatever a proxy says about their encoding.
func TestPullDecodesNothing(t *testing.T) {
	dir := inDir(t)
	withFake(t, func(f *fake) {
		b := randomBuild(1000, `"v1"`)
		f.hosts[serviceHost].handle = func(n int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Set("Content-Length", "1000")
			b.serve(w, r)
		}
		f.run("pull", "shop", "v1").want(t, 0)
		wantFiles(t, dir, map[string][]byte{"v1.tar.gz": b.data})
	})
}
