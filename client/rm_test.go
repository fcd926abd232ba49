package client

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// fakeVersion is the build v1 of the site shop with its log.
type fakeVersion struct {
	uploads    int // 0: there is no build
	log        bool
	labelled   bool
	unreadable bool
}

func (v *fakeVersion) serve(w http.ResponseWriter, r *http.Request) {
	etag := fmt.Sprintf(`"%d"`, v.uploads)
	if r.Method == http.MethodHead {
		switch {
		case v.unreadable:
			fail(w, 403, "not allowed")
		case v.uploads == 0:
			fail(w, 404, "no such build")
		default:
			w.Header().Set("Etag", etag)
		}
		return
	}
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	switch {
	case r.Method != http.MethodDelete || r.URL.Path != "/base/sites/shop/versions/v1":
		fail(w, 404, "no such path")
	case match != "" && (v.uploads == 0 || match != etag), none == "*" && v.uploads > 0:
		fail(w, 412, "the condition does not hold")
	case v.labelled:
		fail(w, 409, "the build has the label live")
	default:
		v.uploads, v.log = 0, false
		w.WriteHeader(http.StatusNoContent)
	}
}

// A build is removed with its log, and never one that somebody else has uploaded meanwhile.
func TestRemove(t *testing.T) {
	for _, c := range []struct {
		name   string
		start  fakeVersion
		faults func(v *fakeVersion) []fault
		status int
		want   fakeVersion
	}{
		{"there", fakeVersion{uploads: 1, log: true}, nil, 0, fakeVersion{}},
		{"only a log", fakeVersion{log: true}, nil, 0, fakeVersion{}},
		{"nothing", fakeVersion{}, nil, 0, fakeVersion{}},
		{"labelled", fakeVersion{uploads: 1, labelled: true}, nil, exitConflict, fakeVersion{uploads: 1, labelled: true}},
		{"no right to read", fakeVersion{uploads: 1, unreadable: true}, func(v *fakeVersion) []fault { return []fault{lost} }, 0, fakeVersion{unreadable: true}},
		{"lost before", fakeVersion{uploads: 1}, func(v *fakeVersion) []fault { return []fault{lostBefore, unavailable} }, 0, fakeVersion{}},
		{"lost after", fakeVersion{uploads: 1}, func(v *fakeVersion) []fault { return []fault{lost} }, 0, fakeVersion{}},
		{"lost between the build and the log", fakeVersion{uploads: 1, log: true}, func(v *fakeVersion) []fault {
			return []fault{func(http.HandlerFunc, http.ResponseWriter, *http.Request) { v.uploads = 0; panic(http.ErrAbortHandler) }}
		}, 0, fakeVersion{}},
		{"replaced first", fakeVersion{uploads: 1}, func(v *fakeVersion) []fault {
			return []fault{before(func() { v.uploads = 2 })}
		}, exitConflict, fakeVersion{uploads: 2}},
		{"lost, then uploaded by another one", fakeVersion{uploads: 1}, func(v *fakeVersion) []fault {
			return []fault{then(lost, func() { v.uploads = 2 })}
		}, exitConflict, fakeVersion{uploads: 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			withFake(t, func(f *fake) {
				v := c.start
				var faults []fault
				if c.faults != nil {
					faults = c.faults(&v)
				}
				f.hosts[serviceHost].handle = faulty(v.serve, faults...)
				f.run("rm", "shop", "v1").want(t, c.status)
				if v != c.want {
					t.Errorf("it is %+v, want %+v", v, c.want)
				}
			})
		})
	}
}

// TestRemoveByAnotherServer: a success counts only if it is that of the service.
func TestRemoveByAnotherServer(t *testing.T) {
	for _, status := range []int{200, 201, 202, 206} {
		for _, args := range [][]string{{"rm", "shop", "v1"}, {"label rm", "shop", "live"}} {
			withFake(t, func(f *fake) {
				f.hosts[serviceHost].handle = handler(func(w http.ResponseWriter, r *http.Request) {
					w.WriteHeader(status)
					fmt.Fprint(w, "<html>log in")
				})
				r := f.run(args[0], args[1:]...).want(t, exitFailure)
				if r.stdout != "" || !strings.Contains(r.err.Error(), "PAGEWRIGHT_URL") {
					t.Errorf("%d: %q, %v", status, r.stdout, r.err)
				}
			})
		}
	}
}
