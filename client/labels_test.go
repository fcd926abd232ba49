package client

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// fakeLabel is the label live of the site shop, and the builds that it can name.
type fakeLabel struct {
	build, previous string // build is empty: there is no label
	moves           int
	builds          []string
	unreadable      bool // the token has no right to read
}

func (l *fakeLabel) etag() string { return fmt.Sprintf(`"%d"`, l.moves) }

// move makes the label name a build; empty: deletes it.
func (l *fakeLabel) move(build string) {
	if build != l.build {
		l.previous, l.build = l.build, build
		l.moves++
	}
}

func (l *fakeLabel) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/base/sites/shop/labels/live" {
		fail(w, 404, "no such path")
		return
	}
	if r.Method == http.MethodGet && l.unreadable {
		fail(w, 403, "not allowed")
		return
	}
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	if match != "" && (l.build == "" || match != l.etag()) || none == "*" && l.build != "" {
		fail(w, 412, "the condition does not hold")
		return
	}
	switch r.Method {
	case http.MethodGet:
		if l.build == "" {
			fail(w, 404, "no label")
			return
		}
	case http.MethodPut:
		var body struct {
			BuildID string `json:"build_id"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || !slices.Contains(l.builds, body.BuildID) {
			fail(w, 404, "the site has no such build")
			return
		}
		l.move(body.BuildID)
	case http.MethodDelete:
		l.move("")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Etag", l.etag())
	json.NewEncoder(w).Encode(map[string]string{
		"label": "live", "build_id": l.build, "previous": l.previous, "changed_at": "2026-01-02T03:04:05.678901234Z", "by": "ci",
	})
}

// fail writes an error of the service.
func fail(w http.ResponseWriter, status int, text string) {
	w.Header().Set("X-Request-Id", "r1")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"status": "error", "error": text})
}

// discard is the writer of a response that is lost.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// faulty serves requests by serve, except those that change something: of these the first ones
// meet faults, in this order.
func faulty(serve http.HandlerFunc, faults ...func(serve http.HandlerFunc, w http.ResponseWriter, r *http.Request)) func(int, http.ResponseWriter, *http.Request) {
	n := 0
	return func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			serve(w, r)
			return
		}
		if n++; n <= len(faults) {
			faults[n-1](serve, w, r)
			return
		}
		serve(w, r)
	}
}

// lostBefore is a request that does not arrive, lost one whose response does not.
func lostBefore(http.HandlerFunc, http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func lost(serve http.HandlerFunc, _ http.ResponseWriter, r *http.Request) {
	serve(discard{http.Header{}}, r)
	panic(http.ErrAbortHandler)
}

func unavailable(_ http.HandlerFunc, w http.ResponseWriter, _ *http.Request) {
	fail(w, 503, "try again later")
}

// then is a fault after which something happens.
func then(fault func(http.HandlerFunc, http.ResponseWriter, *http.Request), what func()) func(http.HandlerFunc, http.ResponseWriter, *http.Request) {
	return func(serve http.HandlerFunc, w http.ResponseWriter, r *http.Request) {
		defer what()
		fault(serve, w, r)
	}
}

// before is a request that is served when something else has happened.
func before(what func()) func(http.HandlerFunc, http.ResponseWriter, *http.Request) {
	return func(serve http.HandlerFunc, w http.ResponseWriter, r *http.Request) {
		what()
		serve(w, r)
	}
}

type fault = func(http.HandlerFunc, http.ResponseWriter, *http.Request)

// A label is where the last one who moved it wants it, and no move of others is lost.
func TestLabelSet(t *testing.T) {
	for _, c := range []struct {
		name   string
		start  fakeLabel
		build  string
		faults func(l *fakeLabel) []fault
		status int
		want   string // the build that the label names in the end
	}{
		{"new", fakeLabel{}, "v2", nil, 0, "v2"},
		{"move", fakeLabel{build: "v1"}, "v2", nil, 0, "v2"},
		{"as it is", fakeLabel{build: "v2"}, "v2", nil, 0, "v2"},
		{"no such build", fakeLabel{build: "v1"}, "v9", nil, exitAbsent, "v1"},
		{"no right to read", fakeLabel{build: "v1", unreadable: true}, "v2", func(l *fakeLabel) []fault { return []fault{lost} }, 0, "v2"},
		{"lost before", fakeLabel{build: "v1"}, "v2", func(l *fakeLabel) []fault { return []fault{lostBefore, unavailable, lostBefore} }, 0, "v2"},
		{"lost after", fakeLabel{build: "v1"}, "v2", func(l *fakeLabel) []fault { return []fault{lost} }, 0, "v2"},
		{"new, lost after", fakeLabel{}, "v2", func(l *fakeLabel) []fault { return []fault{lost} }, 0, "v2"},
		{"moved by another one first", fakeLabel{build: "v1"}, "v2", func(l *fakeLabel) []fault {
			return []fault{before(func() { l.move("v3") })}
		}, 0, "v2"},
		{"created by another one first", fakeLabel{}, "v2", func(l *fakeLabel) []fault {
			return []fault{before(func() { l.move("v3") })}
		}, 0, "v2"},
		{"lost, then moved by another one", fakeLabel{build: "v1"}, "v2", func(l *fakeLabel) []fault {
			return []fault{then(lost, func() { l.move("v3") })}
		}, exitConflict, "v3"},
		{"lost before, then moved by another one", fakeLabel{build: "v1"}, "v2", func(l *fakeLabel) []fault {
			return []fault{then(lostBefore, func() { l.move("v3") })}
		}, exitConflict, "v3"},
		{"lost, then deleted by another one", fakeLabel{build: "v1"}, "v2", func(l *fakeLabel) []fault {
			return []fault{then(lost, func() { l.move("") })}
		}, exitConflict, ""},
		{"lost, then moved away and back", fakeLabel{build: "v1"}, "v2", func(l *fakeLabel) []fault {
			return []fault{then(lost, func() { l.move("v3"); l.move("v2") })}
		}, 0, "v2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			withFake(t, func(f *fake) {
				l := c.start
				l.builds = []string{"v1", "v2", "v3"}
				var faults []fault
				if c.faults != nil {
					faults = c.faults(&l)
				}
				f.hosts[serviceHost].handle = faulty(l.serve, faults...)
				r := f.run("label set", "shop", "live", c.build).want(t, c.status)
				if l.build != c.want {
					t.Errorf("the label names %q, want %q", l.build, c.want)
				}
				if c.status == 0 && !strings.HasPrefix(r.stdout, "shop: live is "+c.build) {
					t.Errorf("stdout is %s", r.stdout)
				}
			})
		})
	}
}

func TestLabelRollback(t *testing.T) {
	for _, c := range []struct {
		name   string
		start  fakeLabel
		faults func(l *fakeLabel) []fault
		status int
		want   string
	}{
		{"back", fakeLabel{build: "v2", previous: "v1"}, nil, 0, "v1"},
		{"nothing before", fakeLabel{build: "v2"}, nil, exitConflict, "v2"},
		{"no label", fakeLabel{}, nil, exitAbsent, ""},
		{"the build before is gone", fakeLabel{build: "v2", previous: "v0"}, nil, exitAbsent, "v2"},
		{"no right to read", fakeLabel{build: "v2", previous: "v1", unreadable: true}, nil, exitDenied, "v2"},
		{"lost before", fakeLabel{build: "v2", previous: "v1"}, func(l *fakeLabel) []fault { return []fault{lostBefore, unavailable} }, 0, "v1"},
		{"lost after", fakeLabel{build: "v2", previous: "v1"}, func(l *fakeLabel) []fault { return []fault{lost} }, 0, "v1"},
		{"moved by another one first", fakeLabel{build: "v2", previous: "v1"}, func(l *fakeLabel) []fault {
			return []fault{before(func() { l.move("v3") })}
		}, exitConflict, "v3"},
		{"lost, then moved by another one", fakeLabel{build: "v2", previous: "v1"}, func(l *fakeLabel) []fault {
			return []fault{then(lost, func() { l.move("v3") })}
		}, exitConflict, "v3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			withFake(t, func(f *fake) {
				l := c.start
				l.builds = []string{"v1", "v2", "v3"}
				var faults []fault
				if c.faults != nil {
					faults = c.faults(&l)
				}
				f.hosts[serviceHost].handle = faulty(l.serve, faults...)
				f.run("label rollback", "shop", "live").want(t, c.status)
				if l.build != c.want {
					t.Errorf("the label names %q, want %q", l.build, c.want)
				}
			})
		})
	}
}

func TestLabelRemove(t *testing.T) {
	for _, c := range []struct {
		name   string
		start  fakeLabel
		faults func(l *fakeLabel) []fault
		status int
		want   string
	}{
		{"there", fakeLabel{build: "v1"}, nil, 0, ""},
		{"not there", fakeLabel{}, nil, 0, ""},
		{"no right to read", fakeLabel{build: "v1", unreadable: true}, nil, 0, ""},
		{"lost before", fakeLabel{build: "v1"}, func(l *fakeLabel) []fault { return []fault{lostBefore, unavailable} }, 0, ""},
		{"lost after", fakeLabel{build: "v1"}, func(l *fakeLabel) []fault { return []fault{lost, lost} }, 0, ""},
		{"moved by another one first", fakeLabel{build: "v1"}, func(l *fakeLabel) []fault {
			return []fault{before(func() { l.move("v3") })}
		}, exitConflict, "v3"},
		{"lost, then created by another one", fakeLabel{build: "v1"}, func(l *fakeLabel) []fault {
			return []fault{then(lost, func() { l.move("v3") })}
		}, exitConflict, "v3"},
		{"lost twice, then created by another one", fakeLabel{build: "v1"}, func(l *fakeLabel) []fault {
			return []fault{lost, unavailable, then(lost, func() { l.move("v3") })}
		}, exitConflict, "v3"},
		{"not there, created by another one", fakeLabel{}, func(l *fakeLabel) []fault {
			return []fault{before(func() { l.move("v3") })}
		}, exitConflict, "v3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			withFake(t, func(f *fake) {
				l := c.start
				var faults []fault
				if c.faults != nil {
					faults = c.faults(&l)
				}
				f.hosts[serviceHost].handle = faulty(l.serve, faults...)
				f.run("label rm", "shop", "live").want(t, c.status)
				if l.build != c.want {
					t.Errorf("the label names %q, want %q", l.build, c.want)
				}
			})
		})
	}
}

func TestLabelList(t *testing.T) {
	const list = `{"site_id":"shop","labels":[{"label":"live","build_id":"v2","previous":"v1","changed_at":"2026-01-02T04:04:05.678+01:00","by":"ci"},` +
		`{"label":"next","build_id":"v3","previous":"","changed_at":"2026-01-02T03:04:05Z","by":"\u001b[2Jx"}],"more":1.50}`
	withFake(t, func(f *fake) {
		f.hosts[serviceHost].handle = handler(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, list) })
		r := f.run("label list", "shop").want(t, 0)
		const want = `LABEL  BUILD  BEFORE  CHANGED               BY
live   v2     v1      2026-01-02T03:04:05Z  ci
next   v3     -       2026-01-02T03:04:05Z  \x1b[2Jx
`
		if r.stdout != want {
			t.Errorf("stdout is\n%s\nwant\n%s", r.stdout, want)
		}
		if r := f.run("label list", "shop", "--json").want(t, 0); r.stdout != list+"\n" {
			t.Errorf("with --json stdout is %s", r.stdout)
		}
		f.hosts[serviceHost].handle = handler(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"site_id":"shop","labels":[]}`) })
		if r := f.run("label list", "shop").want(t, 0); !strings.HasPrefix(r.stdout, "LABEL ") || !strings.HasSuffix(r.stderr, "site shop has no labels\n") {
			t.Errorf("stdout is %q, stderr %q", r.stdout, r.stderr)
		}
		for _, args := range [][]string{{"label list", "a/b"}, {"label set", "shop", "Live", "v1"}, {"label set", "shop", "live", ".v1"}, {"label rm", "shop", ""}, {"label rollback", "shop"}} {
			f.run(args[0], args[1:]...).want(t, exitUsage)
		}
	})
}
