package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
)

// keptDigests is a store that also keeps digests, in memory and by build id.
type keptDigests struct {
	store
	mu    sync.Mutex
	kept  map[string]Digest
	err   error
	asked int // calls of ListDigests
}

var _ DigestKeeper = (*keptDigests)(nil)

func (k *keptDigests) ListDigests(_ string, versions []*Version) ([]Digest, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	digests := make([]Digest, len(versions))
	for i, v := range versions {
		digests[i] = k.kept[v.BuildID]
	}
	return digests, k.err
}

func (k *keptDigests) KeepDigest(string, string, ArtifactInfo, Digest) error {
	return ErrUnsupported
}

func (k *keptDigests) KeptDigest(string, string) (KeptDigest, error) {
	return KeptDigest{}, ErrUnsupported
}

// set sets the digest of a build, and the error of all calls.
func (k *keptDigests) set(buildID string, d Digest, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err = err; d.known() {
		k.kept[buildID] = d
	} else {
		delete(k.kept, buildID)
	}
}

func (k *keptDigests) calls() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked
}

// wantDigests checks that list is plain with the members sha256 of want, and nothing else.
func wantDigests(t *testing.T, plain, list *received, want map[string]Digest) {
	t.Helper()
	var a, b struct {
		Site_ID, Next_Cursor string
		Count                int
		Versions             []map[string]any
	}
	plain.into(t, &a)
	list.into(t, &b)
	for _, v := range a.Versions {
		if d := want[v["build_id"].(string)]; d.known() {
			v["sha256"] = d.String()
		}
	}
	if !reflect.DeepEqual(a, b) {
		t.Errorf("the list with digests is %.1000s, want %.1000s with the digests %v", list.body, plain.body, want)
	}
	if list.length != int64(len(list.body)) {
		t.Errorf("%d bytes were announced as %d", len(list.body), list.length)
	}
}

// A list with digests is the list without them, and a member for each digest that is known:
// with every other argument, made whole or sent in pieces, for HEAD and for conditions.
func TestListWithDigests(t *testing.T) {
	for name, b := range listStores(t) {
		k := &keptDigests{store: b, kept: map[string]Digest{}}
		s, svc := startBackend(t, k)
		site := newSite()
		for i, log := range listShapes()["small"] {
			id := fmt.Sprint("b", i)
			if i < 30 {
				mustStore(t, b, site, id, body(10, byte(i)))
			}
			if i%3 > 0 || i >= 30 {
				plantEntries(t, b, site, id, log)
			}
			if i < 20 {
				k.kept[id] = Digest{byte(i), 1, 0xfe}
			}
		}
		cursor := s.versions(t, "/sites/"+site+"/versions?limit=7").Next_Cursor
		for _, args := range []string{"", "&metadata=true", "&limit=7", "&limit=7&cursor=" + cursor, "&limit=10000&cursor=" + cursor + "&metadata=true"} {
			t.Run(name+"/"+args, func(t *testing.T) {
				plainPath := "/sites/" + site + "/versions?" + strings.TrimPrefix(args, "&")
				path := "/sites/" + site + "/versions?digest=true" + args
				for _, svc.listBuffered = range []int64{0, 1 << 40} {
					plain, list := s.get(t, 200, plainPath), s.get(t, 200, path)
					wantDigests(t, plain, list, k.kept)
					if off := s.get(t, 200, "/sites/"+site+"/versions?digest=false"+args); !bytes.Equal(off.body, plain.body) || off.header.Get("ETag") != plain.header.Get("ETag") {
						t.Errorf("digest=false lists %.300s", off.body)
					}
					h := s.do(t, 200, request{"HEAD", path, nil, nil})
					tag := list.header.Get("ETag")
					if h.length != list.length || h.header.Get("ETag") != tag {
						t.Errorf("HEAD announces %d bytes and the ETag %s, GET %d and %s", h.length, h.header.Get("ETag"), list.length, tag)
					}
					if tag == "" || tag == plain.header.Get("ETag") {
						t.Errorf("the ETag is %q, and without digests %q", tag, plain.header.Get("ETag"))
					}
					if n := s.get(t, 304, path, "If-None-Match", tag); n.header.Get("ETag") != tag {
						t.Errorf("304 has the ETag %s, want %s", n.header.Get("ETag"), tag)
					}
					other := s.get(t, 200, path, "If-None-Match", plain.header.Get("ETag"))
					wantDigests(t, plain, other, k.kept)
					if other = s.get(t, 200, plainPath, "If-None-Match", tag); !bytes.Equal(other.body, plain.body) {
						t.Errorf("the list without digests is %.300s", other.body)
					}
				}
			})
		}
		eventually(t, "the memory is released", func() bool { return svc.lists.inUse() == 0 })
	}
}

// The ETag covers the digests: of each build its own.
func TestETagOfDigests(t *testing.T) {
	for name, b := range listStores(t) {
		t.Run(name, func(t *testing.T) {
			k := &keptDigests{store: b, kept: map[string]Digest{}}
			s, _ := startBackend(t, k)
			for _, id := range []string{"a", "b"} {
				mustStore(t, b, "shop", id, body(10, 1))
			}
			path, tag, seen := "/sites/shop/versions?digest=true", "", map[string]bool{}
			for _, c := range []struct {
				build string
				sum   byte // 0: not known any more
				again bool // this was listed before
			}{
				{"a", 1, false}, {"b", 2, false}, {"a", 2, false}, {"b", 1, false}, {"b", 0, false}, {"b", 2, true}, {"a", 0, false}, {"a", 1, true},
			} {
				k.set(c.build, Digest{c.sum}, nil)
				r := s.get(t, 200, path, "If-None-Match", tag)
				if tag = r.header.Get("ETag"); seen[tag] != c.again {
					t.Errorf("%+v: the ETag %s was seen before: %v", c, tag, seen[tag])
				}
				seen[tag] = true
				s.get(t, 304, path, "If-None-Match", tag)
			}
		})
	}
}

// A store may send no versions to a client that has their tag. That is no list of digests.
func TestDigestsOfAListWhoseTagIsKept(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	n.lists.limit = siteBytes + 16*(artifactBytes+logBytes) // entries do not fit
	k := &keptDigests{store: n, kept: map[string]Digest{"b": {1}}}
	s, _ := startBackend(t, k)
	for _, id := range []string{"a", "b"} {
		mustStore(t, n, "shop", id, []byte("x"))
		mustLog(t, n, "shop", withMetadata(entry("1", id, testTime), 8<<10))
	}
	plain := s.get(t, 200, "/sites/shop/versions")
	tag := plain.header.Get("ETag")
	eventually(t, "the store sends no versions for the tag", func() bool {
		page, err := n.ListVersionsPage("shop", VersionQuery{Tag: tagOfWhole(tag, VersionQuery{})})
		return err == nil && len(page.Versions) == 0
	})
	wantDigests(t, plain, s.get(t, 200, "/sites/shop/versions?digest=true", "If-None-Match", tag), k.kept)
}

// Nothing asks for digests unless the client does, and a failure to read them is a failure
// of the list.
func TestDigestsAreLookedUpOnRequest(t *testing.T) {
	k := &keptDigests{store: openTestNFS(t, t.TempDir()), kept: map[string]Digest{"v1": {1}}}
	mustStore(t, k.store, "shop", "v1", body(10, 1))
	s, svc := startBackend(t, k)
	off, _ := startBackend(t, k, "DIGEST=off")
	plain, _ := startBackend(t, fourMethods{k.store})
	without := s.get(t, 200, "/sites/shop/versions")
	for _, c := range []struct {
		s      *testServer
		query  string
		status int
		asked  int
		sha256 bool
	}{
		{s, "", 200, 0, false},
		{s, "?digest=false", 200, 0, false},
		{s, "?digest=0", 200, 0, false},
		{s, "?digest", 200, 1, true},
		{s, "?digest=1", 200, 1, true},
		{s, "?digest=yes", 400, 0, false},
		{s, "?digest=true&digest=true", 400, 0, false},
		{s, "?digests=true", 400, 0, false},
		{off, "?digest=true", 200, 0, false},
		{plain, "?digest=true", 200, 0, false},
	} {
		before := k.calls()
		r := c.s.get(t, c.status, "/sites/shop/versions"+c.query)
		if asked := k.calls() - before; asked != c.asked || strings.Contains(string(r.body), `"sha256":"01`) != c.sha256 {
			t.Errorf("%q: the store was asked %d times, want %d: %s", c.query, asked, c.asked, r.body)
		}
		if c.status == 200 && !c.sha256 && !bytes.Equal(r.body, without.body) {
			t.Errorf("%q lists %s, want %s", c.query, r.body, without.body)
		}
	}
	for err, status := range map[error]int{ErrUnavailable: 503, ErrDenied: 502} {
		k.set("v1", Digest{1}, fmt.Errorf("cannot read the digests: %w", err))
		r := s.get(t, status, "/sites/shop/versions?digest=true")
		if !json.Valid(r.body) || strings.Contains(string(r.body), "digests") {
			t.Errorf("%v: %s", err, r.body)
		}
	}
	eventually(t, "places and memory are released", func() bool { return svc.listing.inUse() == 0 && svc.lists.inUse() == 0 })
}
