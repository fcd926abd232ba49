package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// testVersionTags: the etag is that of StatArtifact, and the logTag changes with each entry, and
// only then.
func testVersionTags(t *testing.T, open func() deleteStore) {
	one, two, site := open(), open(), newSite()
	list := func(b deleteStore) map[string]*Version {
		t.Helper()
		page, err := b.ListVersionsPage(site, VersionQuery{Tags: true})
		if err != nil {
			t.Fatal(err)
		}
		byID := map[string]*Version{}
		for _, v := range page.Versions {
			byID[v.BuildID] = v
		}
		return byID
	}
	seen := map[string]bool{noLogTag: true}
	mustStore(t, one, site, "artifact", body(10, 1))
	for i := range 4 {
		mustLog(t, one, site, entry(fmt.Sprint(i), "log", time.Now()))
		mustStore(t, two, site, "both", body(10, byte(i)))
		mustLog(t, two, site, entry(fmt.Sprint(i), "both", time.Now()))
		for _, b := range []deleteStore{two, one, one, open()} {
			if _, err := b.ListVersions(site); err != nil { // a list without tags leaves none out of the next
				t.Fatal(err)
			}
			versions := list(b)
			for _, id := range []string{"artifact", "both"} {
				info, err := b.StatArtifact(site, id)
				if v := versions[id]; err != nil || v == nil || v.etag != info.ETag {
					t.Errorf("round %d: %s: %+v, but the artifact is %+v, %v", i, id, v, info, err)
				}
			}
			if v := versions["artifact"]; v.logTag != noLogTag {
				t.Errorf("round %d: without a log: %+v", i, v)
			}
			if v := versions["log"]; v.etag != "" {
				t.Errorf("round %d: without an artifact: %+v", i, v)
			}
			for _, id := range []string{"log", "both"} {
				if tag := versions[id].logTag; tag == "" || seen[id+tag] || tag != list(two)[id].logTag {
					t.Errorf("round %d: %s: the tag is %q, %q elsewhere, and was seen before: %t", i, id, tag, list(two)[id].logTag, seen[id+tag])
				}
			}
		}
		for id, v := range list(one) {
			seen[id+v.logTag] = true
		}
	}
	versions, err := one.ListVersions(site)
	if err != nil || len(versions) != 3 {
		t.Fatal(len(versions), err)
	}
	for _, v := range versions {
		if v.logTag != "" {
			t.Errorf("not asked for: %+v", v)
		}
	}
}

func testVersionTagsOfPages(t *testing.T, open func() deleteStore) {
	b, site := open(), newSite()
	for i := range 5 {
		storeWithLog(t, b, site, fmt.Sprint("b", i), byte(i))
	}
	all, err := b.ListVersionsPage(site, VersionQuery{Tags: true})
	if err != nil {
		t.Fatal(err)
	}
	var got []*Version
	for cursor := ""; ; {
		page, err := b.ListVersionsPage(site, VersionQuery{Tags: true, Limit: 2, Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, page.Versions...)
		if cursor = page.NextCursor; cursor == "" {
			break
		}
	}
	same := func(a, b *Version) bool {
		return a.BuildID == b.BuildID && a.etag == b.etag && a.logTag == b.logTag && a.etag != "" && a.logTag != "" && a.logTag != noLogTag
	}
	if !slices.EqualFunc(got, all.Versions, same) {
		t.Errorf("pages: %+v, all: %+v", got, all.Versions)
	}
}

func testArrivedAt(t *testing.T, open func() deleteStore) {
	b, ok := open().(interface {
		deleteStore
		ArrivalTeller
	})
	if !ok {
		t.Skip("CreatedAt is when a build arrived")
	}
	site := newSite()
	_, err := b.ArrivedAt(site, "b")
	wantError(t, err, ErrNotFound)
	mustLog(t, b, site, entry("1", "b", time.Now().Add(-time.Hour)))
	logged, err := b.ArrivedAt(site, "b")
	if since := time.Since(logged); err != nil || since.Abs() > time.Minute {
		t.Errorf("the log arrived %s ago, %v", since, err)
	}
	mustStore(t, b, site, "b", body(10, 1))
	arrived, err := b.ArrivedAt(site, "b")
	if err != nil || !arrived.After(logged) || arrived.Before(createdAt(t, b, site, "b")) {
		t.Errorf("the artifact arrived at %s, its log at %s, %v", arrived, logged, err)
	}
	_, err = b.ArrivedAt(site, "other")
	wantError(t, err, ErrNotFound)
}

func testLease(t *testing.T, open func() deleteStore) {
	name := newSite()
	one, two := open(), open()
	take := func(b Leaser, name string, want bool) func() {
		t.Helper()
		release, ok, err := b.TryLease(name, time.Hour)
		if err != nil || ok != want {
			t.Fatalf("taken: %t, %v, want %t", ok, err, want)
		}
		if ok {
			t.Cleanup(release)
		}
		return release
	}
	release := take(one, name, true)
	take(two, name, false)
	take(one, name, false)
	take(two, name+"-other", true)
	release()
	second := take(two, name, true)
	release() // again: it is not the lease of the second
	take(one, name, false)
	second()

	_, ok, err := one.TryLease(name, 200*time.Millisecond)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	eventually(t, "the lease ends without a release", func() bool {
		release, ok, err := two.TryLease(name, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			release()
		}
		return ok
	})
}

func testListLabelledSites(t *testing.T, open func() deleteStore) {
	one, site := open(), newSite()
	mustStore(t, one, site, "b", body(10, 1))
	if _, _, err := one.MoveLabel(site, LabelMove{Label: "live", BuildID: "b"}); err != nil {
		t.Fatal(err)
	}
	removeByHand(t, one, site, "b")
	if sites, err := open().ListSites(site, "", 10, nil); err != nil || !slices.Equal(sites, []string{site}) {
		t.Errorf("with a label: %q, %v", sites, err)
	}
	if err := one.DeleteLabel(site, "live", Precondition{}); err != nil {
		t.Fatal(err)
	}
	if sites, err := open().ListSites(site, "", 10, nil); err != nil || len(sites) != 0 {
		t.Errorf("without: %q, %v", sites, err)
	}
}

// removeByHand removes an artifact as another program would.
func removeByHand(t *testing.T, b Backend, site, id string) {
	t.Helper()
	err := errors.ErrUnsupported
	switch b := b.(type) {
	case *nfs:
		err = os.Remove(b.filePath(site, artifactsDir, id))
	case *objectStore:
		err = b.bucket.remove(context.Background(), b.artifactsPrefix(site)+id+artifactSuffix, "")
	}
	if err != nil {
		t.Fatal(err)
	}
}
