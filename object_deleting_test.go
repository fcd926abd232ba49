package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestObjectDeletes(t *testing.T) {
	m := newMemBucket()
	testDeletes(t, func(*testing.T) Backend { return newObjectStore(m, "a/prefix/", quiet()) })
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
				if op == "remove" && strings.HasSuffix(key, artifactSuffix) {
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

// An entry that is appended right before the removal of the log is kept: the store itself compares
// the tag.
func TestLogThatChangesBeforeItsRemoval(t *testing.T) {
	m := newMemBucket()
	s, other := assumeCapable(openMem(m)), assumeCapable(openMem(m))
	mustLog(t, s, "s", entry("1", "b", time.Now()))
	tag := m.objects[s.logsPrefix("s")+"b"+logSuffix].etag
	appended := false
	race := assumeCapable(newObjectStore(beforeRemove{m, func(key string) {
		if strings.HasSuffix(key, logSuffix) && !appended {
			appended = true
			mustLog(t, other, "s", entry("2", "b", time.Now()))
		}
	}}, "", quiet()))
	wantError(t, race.DeleteVersions("s", []VersionDeletion{{BuildID: "b", LogTag: tag}})[0], ErrPrecondition)
	if v := versionOf(t, s, "s", "b"); !appended || v == nil || len(v.Logs) != 2 {
		t.Errorf("of the log is left %+v", v)
	}
}

// beforeRemove is a bucket that calls do before each removal.
type beforeRemove struct {
	*memBucket
	do func(key string)
}

func (b beforeRemove) remove(ctx context.Context, key, etag string) error {
	b.do(key)
	return b.memBucket.remove(ctx, key, etag)
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
