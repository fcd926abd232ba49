package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// plantIn writes the objects of labels into a bucket.
func plantIn(t *testing.T, s *objectStore) func(t *testing.T, site, label string, data []byte) {
	return func(_ *testing.T, site, label string, data []byte) {
		if _, err := s.put(t.Context(), s.labelKey(site, label), data, putOptions{contentType: logType}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestObjectLabels(t *testing.T) {
	for _, k := range raceKinds[:2] {
		t.Run(k.name, func(t *testing.T) {
			m := newMemBucket()
			m.hashes = k.hashes
			open := func(*testing.T) Backend { return newObjectStore(m, "a/prefix/", quiet()) }
			testLabels(t, labelRig{gap: true, open: open, plant: plantIn(t, newObjectStore(m, "a/prefix/", quiet()))})
		})
	}
}

func TestObjectDeletes(t *testing.T) {
	m := newMemBucket()
	testDeletes(t, func(*testing.T) Backend { return newObjectStore(m, "a/prefix/", quiet()) })
}

// allCalls records all calls of a bucket, with the ids of marks as ID.
func allCalls(m *memBucket) func() []string {
	var mu sync.Mutex
	var calls []string
	m.fault = func(op, key string) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		key = strings.TrimPrefix(key, "sites/s/")
		if i := strings.LastIndexByte(key, '/'); strings.HasPrefix(key, deletingDir) && i < len(key)-1 {
			key = key[:i] + "/ID"
		}
		calls = append(calls, op+" "+key)
		return false, nil
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		defer func() { calls = nil }()
		return calls
	}
}

// What labels cost in calls of the store.
func TestObjectLabelCalls(t *testing.T) {
	m := newMemBucket()
	s := assumeCapable(openMem(m))
	took := allCalls(m)
	f := func(what string, err error, want ...string) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := took(); !slices.Equal(got, want) {
			t.Errorf("%s took\n\t%q, want\n\t%q", what, got, want)
		}
	}
	const build = "artifacts/b.tar.gz"
	store := func(size int, cond Precondition) error {
		_, err := s.StoreArtifactIf("s", "b", known(body(size, 1)), cond)
		return err
	}
	move := func(label string) error {
		_, _, err := s.MoveLabel("s", LabelMove{Label: label, BuildID: "b"})
		return err
	}
	f("a create", store(10, createOnly), "stat "+build, "put "+build)
	f("an upload", store(10, Precondition{}), "list labels/", "put "+build)
	f("a large upload", store(maxUnlooked+1, Precondition{}), "list labels/", "list labels/", "put "+build)
	f("a delete", s.DeleteArtifact("s", "b", Precondition{}), "put deleting/b/ID", "list labels/", "remove "+build, "remove deleting/b/ID")
	f("an upload", store(10, Precondition{}), "list labels/", "put "+build)
	f("a new label", move("live"), "get labels/live.json", "stat "+build, "list labels/", "put labels/live.json",
		"list labels/", "list deleting/b/", "stat "+build, "put labels/live.json")
	f("the same again", move("live"), "get labels/live.json", "stat "+build)
	_, err := s.GetLabel("s", "live")
	f("a look", err, "get labels/live.json")
	f("a delete of the label", s.DeleteLabel("s", "live", Precondition{}), "remove labels/live.json")
}

// The mark of an interrupted delete stops moves to the build for markLife, by the clock of the
// store, and nothing else.
func TestMarkOfAnInterruptedDelete(t *testing.T) {
	for _, ahead := range []time.Duration{0, time.Hour, -time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemBucket()
			m.ahead, m.silent = ahead, true
			s := assumeCapable(openMem(m))
			mustStore(t, s, "s", "b", body(10, 1))
			m.fault = func(op, key string) (bool, error) {
				if op == "remove" {
					return false, fmt.Errorf("%w: no answer", ErrUnavailable)
				}
				return false, nil
			}
			wantError(t, s.DeleteArtifact("s", "b", Precondition{}), ErrUnavailable)
			m.fault = nil
			move := func(want error) {
				t.Helper()
				_, _, err := s.MoveLabel("s", LabelMove{Label: "live", BuildID: "b"})
				wantError(t, err, want)
			}
			move(errBeingDeleted)
			if _, err := s.GetLabel("s", "live"); !errors.Is(err, ErrNotFound) {
				t.Errorf("the label that could not be created: %v", err)
			}
			if len(m.objects) != 2 { // the build and the mark
				t.Errorf("there are %d objects", len(m.objects))
			}
			mustStore(t, s, "s", "b", body(10, 2))
			if err := s.DeleteArtifact("s", "b", Precondition{}); err != nil {
				t.Errorf("another delete: %v", err)
			}
			mustStore(t, s, "s", "b", body(10, 3))
			time.Sleep(markLife - time.Second)
			move(errBeingDeleted)
			time.Sleep(2 * time.Second)
			move(nil)
			if len(m.objects) != 2 { // the build and the label
				t.Errorf("there are %d objects, so the mark was not removed", len(m.objects))
			}
		})
	}
}

// A delete that could not remove the build in time removes nothing.
func TestDeleteThatTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemBucket()
		s := assumeCapable(openMem(m))
		mustStore(t, s, "s", "b", body(10, 1))
		slow := slowLists{m}
		s = assumeCapable(newObjectStore(slow, "", quiet()))
		wantError(t, s.DeleteArtifact("s", "b", Precondition{}), ErrUnavailable)
		wantError(t, s.DeleteVersions("s", []VersionDeletion{{BuildID: "b"}})[0], ErrUnavailable)
		wantBytes(t, s, "s", "b", body(10, 1))
	})
}

// slowLists is a bucket whose list ignores its context, and is slow.
type slowLists struct{ *memBucket }

func (b slowLists) list(_ context.Context, prefix string, page func([]objectInfo) error) error {
	time.Sleep(deleteWithin + time.Second)
	return b.memBucket.list(context.Background(), prefix, page)
}

// A commit whose reply was lost is found out by reading the label.
func TestLostReplyOfAMove(t *testing.T) {
	for _, reply := range []error{ErrUnavailable, errConflict, fmt.Errorf("%w: tried again by the SDK", ErrPrecondition)} {
		m := newMemBucket()
		m.hashes = true
		s := assumeCapable(openMem(m))
		mustStore(t, s, "s", "b", body(10, 1))
		puts := 0
		m.fault = func(op, _ string) (bool, error) {
			if op == "put" {
				puts++
				return true, reply
			}
			return false, nil
		}
		l, created, err := s.MoveLabel("s", LabelMove{Label: "live", BuildID: "b", Cond: createOnly})
		if err != nil || !created || l.BuildID != "b" || puts != 2 {
			t.Errorf("after %v: %+v, %t, %v, %d writes", reply, l, created, err, puts)
		}
	}
}

// With a store that ignores the conditions of puts, labels would protect nothing.
func TestLabelsNeedConditions(t *testing.T) {
	m := newMemBucket()
	m.blind = func(putOptions) bool { return true }
	s := openMem(m)
	mustStore(t, s, "s", "b", body(10, 1))
	_, _, err := s.MoveLabel("s", LabelMove{Label: "live", BuildID: "b"})
	wantError(t, err, ErrUnsupported)
}

// A delete on a condition that the store would ignore changes nothing.
func TestDeletesNeedConditions(t *testing.T) {
	m := newMemBucket()
	m.blindRemove = true
	s := openMem(m)
	mustStore(t, s, "s", "b", body(10, 1))
	mustLog(t, s, "s", entry("1", "b", time.Now()))
	mustLog(t, s, "s", entry("1", "log", time.Now()))
	wantError(t, s.DeleteArtifact("s", "b", exists), ErrUnsupported) // which checks the store
	took := allCalls(m)
	for _, d := range []VersionDeletion{{BuildID: "b", Artifact: exists}, {BuildID: "b", LogTag: "tag"}, {BuildID: "log", Artifact: Precondition{Absent: true}}} {
		errs := s.DeleteVersions("s", []VersionDeletion{d, {BuildID: "b"}})
		if len(errs) != 2 || !errors.Is(errs[0], ErrUnsupported) || !errors.Is(errs[1], ErrUnsupported) {
			t.Errorf("%+v: %v", d, errs)
		}
	}
	if calls := took(); len(calls) > 0 {
		t.Errorf("calls: %q", calls)
	}
}

// More builds than one batch has, of which one is labelled.
func TestDeleteManyVersions(t *testing.T) {
	m := newMemBucket()
	s := assumeCapable(openMem(m))
	var all []VersionDeletion
	for i := range 2*deleteBatch + 5 {
		id := fmt.Sprint("b", i)
		mustStore(t, s, "s", id, body(10, 1))
		all = append(all, VersionDeletion{BuildID: id})
	}
	if _, _, err := s.MoveLabel("s", LabelMove{Label: "live", BuildID: "b150"}); err != nil {
		t.Fatal(err)
	}
	took := allCalls(m)
	for i, err := range s.DeleteVersions("s", all) {
		if want := i == 150; errors.Is(err, errLabelled) != want || !want && err != nil {
			t.Errorf("of build %d: %v", i, err)
		}
	}
	lists := 0
	for _, call := range took() {
		if call == "list labels/" {
			lists++
		}
	}
	if lists != 3 || len(m.objects) != 2 { // the labelled build and the label
		t.Errorf("the labels were read %d times, and %d objects are left", lists, len(m.objects))
	}
}
