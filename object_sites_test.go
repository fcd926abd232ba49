package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// Ids sort differently from keys: a-b/ sorts before a/.
func TestObjectListSites(t *testing.T) {
	m := newMemBucket()
	s := openMem(m)
	var want []string
	for i, id := range []string{"a", "a-", "a-b", "a-b-c", "a-b.c", "a-b0", "a.", "a.b", "a0", "aa", "b-1", "b-2", "b-3", "c", "c+", "c+d-e", "d~"} {
		want = append(want, id)
		switch i % 3 {
		case 0:
			mustLog(t, s, id, entry("1", "x", time.Now()))
		case 1:
			mustStore(t, s, id, "x", []byte("x"))
		case 2:
			key := s.sitePrefix(id) + "labels/live.json"
			m.objects[key] = memObject{objectInfo: objectInfo{key: key}}
		}
	}
	for i, key := range []string{ // not sites
		"a-a/digests/x.sha256", "a-b-/artifacts/.x", "b-0/other", "b/artifacts/x.tar.gz.bak", "zz/logs/x", "-/artifacts/x.tar.gz", "x.tar.gz",
		"a-d/deleting/x/1", "a-e/labels/Live.json", "a-f/labels/live.tar.gz",
	} {
		key = s.sitesPrefix() + key
		m.objects[key] = memObject{objectInfo: objectInfo{key: key, etag: fmt.Sprint(i)}}
	}
	slices.Sort(want)
	for _, ignored := range []bool{false, true} {
		var b bucket = m
		if ignored { // as Azure does
			b = ignoresStart{m}
		}
		for limit := range len(want) + 2 {
			s := openMem(m)
			s.bucket = b
			var got []string
			for after := ""; limit > 0; after = got[len(got)-1] {
				page, err := s.ListSites("", after, limit, nil)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, page...)
				if len(page) < limit {
					break
				}
			}
			if limit > 0 && !slices.Equal(got, want) {
				t.Errorf("%d at a time: %q, want %q", limit, got, want)
			}
		}
		for _, after := range []string{"a-b", "a-c", "b", "0", "zzz"} {
			at, found := slices.BinarySearch(want, after)
			if found {
				at++
			}
			got, err := s.ListSites("", after, 4, nil)
			if err != nil || !slices.Equal(got, want[at:min(at+4, len(want))]) {
				t.Errorf("after %s: %q, %v", after, got, err)
			}
		}
	}
	m.fault = func(op, key string) (bool, error) {
		if !strings.HasPrefix(key, s.sitesPrefix()+"a-b") {
			return false, fmt.Errorf("%s of %s", op, key)
		}
		return false, nil
	}
	for prefix, first := range map[string]string{"a-b": "a-b", "a-b-": "a-b-c", "a-bc": ""} {
		got, err := s.ListSites(prefix, "", 1, nil)
		if err != nil || strings.Join(got, " ") != first {
			t.Errorf("of %s: %q, %v", prefix, got, err)
		}
	}
	m.fault = func(string, string) (bool, error) { return false, ErrUnavailable }
	_, err := s.ListSites("", "", 1, nil)
	wantError(t, err, ErrUnavailable)
}

// ignoresStart is a bucket that always lists the folders from the first one.
type ignoresStart struct{ *memBucket }

func (b ignoresStart) folders(ctx context.Context, dir, prefix, _ string, page func([]string) error) error {
	return b.memBucket.folders(ctx, dir, prefix, "", page)
}

// Sites of random names, of the characters that sort around the slash.
func TestObjectListRandomSites(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		m := newMemBucket()
		s := openMem(m)
		sites := map[string]bool{}
		for range 30 {
			id := "a"
			for range r.IntN(5) {
				id += string("-.0a"[r.IntN(4)])
			}
			used := r.IntN(4) > 0 || sites[id]
			kind := digestsDir
			if used {
				kind = artifactsDir
			}
			key := s.sitePrefix(id) + kind + "/" + fileName(kind, "x")
			m.objects[key] = memObject{objectInfo: objectInfo{key: key}}
			sites[id] = used
		}
		var want, got []string
		for id, used := range sites {
			if used {
				want = append(want, id)
			}
		}
		slices.Sort(want)
		limit := 1 + r.IntN(6)
		for after := ""; ; after = got[len(got)-1] {
			page, err := s.ListSites("", after, limit, nil)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, page...)
			if len(page) < limit {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d, %d at a time: %q, want %q", seed, limit, got, want)
		}
	}
}

func TestObjectForeign(t *testing.T) {
	m := newMemBucket()
	s := openDigests(m)
	m.early = true
	mustHash(t, s, "b", []byte("x"))
	mustLog(t, s, "s", entry("1", "b", time.Now()))
	names := []string{"labels/live.json", "labels/0-.json", "deleting/b/X"} // the service's own
	want := map[string]string{
		"": "folder object", "artifacts/": "folder object", "artifacts/b.zip": "object", "artifacts/.b.tar.gz": "object",
		"artifacts/x/b.tar.gz": "object", "digests/b.tar.gz": "object", "logs/b.sha256": "object", "notes.txt": "object", ".lock": "object",
		"labels/Live.json": "object", "labels/live": "object", "labels/": "folder object", "deleting/b": "object", "deleting/b/": "folder object",
		"deleting/b/x/y": "object", "deleting/.b/x": "object",
	}
	for name := range want {
		names = append(names, name)
	}
	for _, name := range names {
		key := s.sitePrefix("s") + name
		m.objects[key] = memObject{objectInfo: objectInfo{key: key}}
	}
	err := s.ForeignFiles("s", func(name, what string) error {
		if want[name] != what {
			t.Errorf("%q is a foreign %q", name, what)
		}
		delete(want, name)
		return nil
	})
	if err != nil || len(want) > 0 {
		t.Errorf("not reported: %v, %v", want, err)
	}
	stop := errors.New("stop")
	if err := s.ForeignFiles("s", func(string, string) error { return stop }); err != stop {
		t.Error(err)
	}
	m.fault = func(string, string) (bool, error) { return false, ErrUnavailable }
	wantError(t, s.ForeignFiles("s", nil), ErrUnavailable)
}

func TestObjectStatus(t *testing.T) {
	m := newMemBucket()
	s := newObjectStore(m, "a/prefix/", quiet())
	if err := s.WriteStatus("verify", []byte(strings.Repeat("x", maxStatusObject))); err != nil {
		t.Fatal(err)
	}
	if m.objects["a/prefix/status/verify.json"].data == nil {
		t.Error("it is under another key")
	}
	if got, err := s.ReadStatus("verify"); err != nil || len(got) != maxStatusObject {
		t.Error(len(got), err)
	}
	if err := s.WriteStatus("verify", []byte(strings.Repeat("x", maxStatusObject+1))); err != nil {
		t.Fatal(err)
	}
	_, err := s.ReadStatus("verify")
	wantError(t, err, ErrDamaged)
}
