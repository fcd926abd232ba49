package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// deleteStore is a store under test that removes whole builds.
type deleteStore interface {
	store
	ArtifactStater
	VersionDeleter
	Leaser
	SiteLister
	LabelKeeper
}

// testDeletes is the contract of the stores that remove whole builds, with a subtest for each
// of its sentences. Each call of open opens the same store as another process would.
func testDeletes(t *testing.T, open func(t *testing.T) Backend, but ...difference) {
	for _, c := range []struct {
		sentence    string
		test        func(t *testing.T, open func() deleteStore)
		conditional bool // it needs deletes on a condition
	}{
		{"artifact log and digest of each build are removed", testDeleteVersions, false},
		{"what a build left behind does not come back", testDeleteThenStore, false},
		{"a build that is not there is a success", testDeleteAbsentVersion, false},
		{"a damaged log is removed", testDeleteDamagedLog, false},
		{"a labelled build stays", testDeleteLabelledVersion, false},
		{"each build has its own condition and error", testDeleteVersionsIf, true},
		{"a log is removed only if it is as planned", testDeleteLogTag, true},
		{"entries appended meanwhile are kept or deleted as a whole", testDeleteAppendRace, false},
		{"no entry is lost that the plan did not see", testDeletePlanRace, true},
		{"no build is removed that was absent", testDeleteAbsentRace, true},
		{"tags name the artifact and the log", testVersionTags, false},
		{"pages have tags", testVersionTagsOfPages, false},
		{"a build arrived when it was stored", testArrivedAt, false},
		{"a lease has one holder", testLease, false},
		{"a site that has only a label is listed", testListLabelledSites, false},
	} {
		t.Run(strings.ReplaceAll(c.sentence, " ", "_"), func(t *testing.T) {
			if c.conditional && slices.Contains(but, noDeleteIf) {
				t.Skip(noDeleteIf)
			}
			if strings.HasPrefix(c.sentence, "entries appended meanwhile") && slices.Contains(but, deletesRace) {
				t.Skip(deletesRace)
			}
			c.test(t, func() deleteStore {
				t.Helper()
				b, ok := open(t).(deleteStore)
				if !ok {
					t.Fatal("the backend lacks a part of the interface")
				}
				if d, ok := b.(interface{ useDigests() }); ok {
					d.useDigests()
				}
				return b
			})
		})
	}
}

// deleteVersion removes one build.
func deleteVersion(b VersionDeleter, site string, d VersionDeletion) error {
	return b.DeleteVersions(site, []VersionDeletion{d})[0]
}

// storeWithLog stores a build with a digest and one entry in its log.
func storeWithLog(t *testing.T, b deleteStore, site, id string, seed byte) ArtifactInfo {
	t.Helper()
	info, err := b.StoreArtifactIf(site, id, hashedBody(body(10, seed)), Precondition{})
	if err != nil {
		t.Fatal(err)
	}
	mustLog(t, b, site, entry(fmt.Sprint("of ", seed), id, time.Now()))
	return info
}

// wantBuilds requires that every process lists these builds, each as "id", with "+log" if it has
// a log, "-artifact" if it has no artifact.
func wantBuilds(t *testing.T, open func() deleteStore, site string, want ...string) {
	t.Helper()
	var got []string
	versions, err := open().ListVersions(site)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range versions {
		text := v.BuildID
		if v.SizeBytes == 0 {
			text += "-artifact"
		}
		if len(v.Logs) > 0 || v.LogsError != "" {
			text += "+log"
		}
		got = append(got, text)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the site has %q, want %q", got, want)
	}
}

func testDeleteVersions(t *testing.T, open func() deleteStore) {
	one, site := open(), newSite()
	storeWithLog(t, one, site, "both", 1)
	storeWithLog(t, one, site, "stays", 2)
	mustStore(t, one, site, "artifact", body(10, 3))
	mustLog(t, one, site, entry("1", "log", time.Now()))
	storeWithLog(t, one, "other"+site, "both", 4)
	var deleted, absent Outcome
	errs := open().DeleteVersions(site, []VersionDeletion{
		{BuildID: "both"}, {BuildID: "unknown", Artifact: Precondition{Outcome: &absent}},
		{BuildID: "artifact"}, {BuildID: "log", Artifact: Precondition{Outcome: &deleted}},
	})
	if !slices.Equal(errs, make([]error, 4)) {
		t.Fatal(errs)
	}
	if deleted != outcomeDeleted && deleted != "" || absent != outcomeAbsent && absent != "" { // some stores cannot tell
		t.Errorf("the outcomes are %q and %q", deleted, absent)
	}
	wantBuilds(t, open, site, "stays+log")
	wantBuilds(t, open, "other"+site, "both+log")
	_, err := one.FetchArtifact(site, "both")
	wantError(t, err, ErrNotFound)
	if d, ok := open().(DigestKeeper); ok {
		_, err := d.KeptDigest(site, "both")
		wantError(t, err, ErrNotFound)
	}
	if errs := one.DeleteVersions(site, nil); len(errs) != 0 {
		t.Errorf("of no builds: %v", errs)
	}
	if sites, err := one.ListSites(site, "", 10, nil); err != nil || !slices.Equal(sites, []string{site}) {
		t.Errorf("listed are %q, %v", sites, err)
	}
}

func testDeleteThenStore(t *testing.T, open func() deleteStore) {
	one, two, site := open(), open(), newSite()
	for i := range byte(3) {
		old := storeWithLog(t, one, site, "b", 1)
		if v := versionOf(t, two, site, "b"); v == nil || !slices.Equal(idsOf(v.Logs), []string{"of 1"}) {
			t.Fatalf("listed is %+v", v)
		}
		if err := deleteVersion(two, site, VersionDeletion{BuildID: "b"}); err != nil {
			t.Fatal(err)
		}
		wantBuilds(t, open, site)
		info := mustStoreIf(t, one, site, "b", body(10, 2), createOnly)
		if info.ETag == old.ETag {
			t.Error("the new build has the ETag of the old one")
		}
		mustLog(t, one, site, entry("1", "b", time.Now())) // an id may be used again
		for _, b := range []deleteStore{one, two, open()} {
			wantBytes(t, b, site, "b", body(10, 2))
			if info, err := b.StatArtifact(site, "b"); err != nil || info.SHA256 == digestOfBytes(body(10, 1)) {
				t.Errorf("round %d: %+v, %v", i, info, err)
			}
			if v := versionOf(t, b, site, "b"); v == nil || !slices.Equal(idsOf(v.Logs), []string{"1"}) {
				t.Errorf("round %d: listed is %+v", i, v)
			}
		}
		if err := deleteVersion(one, site, VersionDeletion{BuildID: "b"}); err != nil {
			t.Fatal(err)
		}
	}
}

func testDeleteAbsentVersion(t *testing.T, open func() deleteStore) {
	b, site := open(), newSite()
	for range 2 { // of an unknown site, then of one that has another build
		for _, c := range []struct {
			d    VersionDeletion
			want error
		}{
			{VersionDeletion{}, nil},
			{VersionDeletion{LogTag: noLogTag}, nil},
			{VersionDeletion{Artifact: Precondition{Absent: true}}, nil},
			{VersionDeletion{Artifact: Precondition{Absent: true}, LogTag: noLogTag}, nil},
			{VersionDeletion{Artifact: exists}, ErrPrecondition},
			{VersionDeletion{LogTag: "a log"}, ErrPrecondition},
		} {
			c.d.BuildID = "b"
			if err := deleteVersion(b, site, c.d); !errors.Is(err, c.want) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("%+v: %v, want %v", c.d, err, c.want)
			}
		}
		mustStore(t, b, site, "other", body(10, 1))
	}
}

func testDeleteDamagedLog(t *testing.T, open func() deleteStore) {
	b, site := open(), newSite()
	plantLog(t, b, site, "alone", []byte(`[{"id":"1",`))
	mustStore(t, b, site, "both", body(10, 1))
	plantLog(t, b, site, "both", []byte("no log"))
	errs := b.DeleteVersions(site, []VersionDeletion{{BuildID: "alone"}, {BuildID: "both"}})
	if !slices.Equal(errs, make([]error, 2)) {
		t.Fatal(errs)
	}
	wantBuilds(t, open, site)
	mustLog(t, b, site, entry("1", "alone", time.Now()))
	wantBuilds(t, open, site, "alone-artifact+log")
}

func testDeleteLabelledVersion(t *testing.T, open func() deleteStore) {
	one, site := open(), newSite()
	for i, id := range []string{"free", "live", "two"} {
		storeWithLog(t, one, site, id, byte(i))
	}
	for label, id := range map[string]string{"live": "live", "a": "two", "b": "two"} {
		if _, _, err := one.MoveLabel(site, LabelMove{Label: label, BuildID: id}); err != nil {
			t.Fatal(err)
		}
	}
	errs := open().DeleteVersions(site, []VersionDeletion{{BuildID: "live"}, {BuildID: "free"}, {BuildID: "two"}})
	var labelled *labelledError
	if !errors.As(errs[0], &labelled) || !slices.Equal(labelled.labels, []string{"live"}) || errs[1] != nil ||
		!errors.As(errs[2], &labelled) || !slices.Equal(labelled.labels, []string{"a", "b"}) {
		t.Error(errs)
	}
	wantBuilds(t, open, site, "live+log", "two+log")
	if err := one.DeleteLabel(site, "live", Precondition{}); err != nil {
		t.Fatal(err)
	}
	if err := deleteVersion(open(), site, VersionDeletion{BuildID: "live"}); err != nil {
		t.Fatal(err)
	}
	wantBuilds(t, open, site, "two+log")
}

// logTagNow returns the logTag of a build.
func logTagNow(t *testing.T, b VersionPager, site, id string) string {
	t.Helper()
	page, err := b.ListVersionsPage(site, VersionQuery{Tags: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range page.Versions {
		if v.BuildID == id {
			return v.logTag
		}
	}
	return noLogTag
}

func testDeleteVersionsIf(t *testing.T, open func() deleteStore) {
	b, site := open(), newSite()
	conditions := []struct {
		id    string
		cond  func(old, now ArtifactInfo) Precondition
		want  error
		stays bool
	}{
		{"now", func(_, now ArtifactInfo) Precondition { return ifMatch(now.ETag) }, nil, false},
		{"old", func(old, _ ArtifactInfo) Precondition { return ifMatch(old.ETag) }, ErrPrecondition, true},
		{"any", func(_, _ ArtifactInfo) Precondition { return exists }, nil, false},
		{"absent", func(_, _ ArtifactInfo) Precondition { return Precondition{Absent: true} }, ErrPrecondition, true},
		{"none", func(_, _ ArtifactInfo) Precondition { return Precondition{} }, nil, false},
	}
	var builds []VersionDeletion
	var stay []string
	for _, c := range conditions {
		old := mustStoreIf(t, b, site, c.id, body(10, 1), Precondition{})
		builds = append(builds, VersionDeletion{BuildID: c.id, Artifact: c.cond(old, storeWithLog(t, b, site, c.id, 2))})
		if c.stays {
			stay = append(stay, c.id+"+log")
		}
	}
	for i, err := range open().DeleteVersions(site, builds) {
		if !errors.Is(err, conditions[i].want) {
			t.Errorf("%s: %v", conditions[i].id, err)
		}
	}
	wantBuilds(t, open, site, stay...)
	mustLog(t, b, site, entry("1", "log", time.Now()))
	wantError(t, deleteVersion(b, site, VersionDeletion{BuildID: "log", Artifact: exists}), ErrPrecondition)
	wantBuilds(t, open, site, append(stay, "log-artifact+log")...)
	if err := deleteVersion(b, site, VersionDeletion{BuildID: "log", Artifact: Precondition{Absent: true}}); err != nil {
		t.Fatal(err)
	}
	wantBuilds(t, open, site, stay...)
}

func testDeleteLogTag(t *testing.T, open func() deleteStore) {
	b, site := open(), newSite()
	for _, artifact := range []bool{true, false} {
		id := fmt.Sprint("b-", artifact)
		listed := map[bool]string{true: id + "+log", false: id + "-artifact+log"}[artifact]
		if artifact {
			mustStore(t, b, site, id, body(10, 1))
		}
		mustLog(t, b, site, entry("1", id, time.Now()))
		planned := logTagNow(t, b, site, id)
		mustLog(t, open(), site, entry("2", id, time.Now()))
		for _, tag := range []string{planned, noLogTag} {
			wantError(t, deleteVersion(b, site, VersionDeletion{BuildID: id, LogTag: tag}), ErrPrecondition)
			wantBuilds(t, open, site, listed)
		}
		if err := deleteVersion(b, site, VersionDeletion{BuildID: id, LogTag: logTagNow(t, open(), site, id)}); err != nil {
			t.Fatal(err)
		}
		wantBuilds(t, open, site)
		mustLog(t, b, site, entry("1", id, time.Now()))
		wantError(t, deleteVersion(b, site, VersionDeletion{BuildID: id, LogTag: planned}), ErrPrecondition)
		if err := deleteVersion(b, site, VersionDeletion{BuildID: id}); err != nil {
			t.Fatal(err)
		}
	}
	mustStore(t, b, site, "no-log", body(10, 1))
	if err := deleteVersion(b, site, VersionDeletion{BuildID: "no-log", LogTag: noLogTag}); err != nil {
		t.Fatal(err)
	}
	wantBuilds(t, open, site)
}
