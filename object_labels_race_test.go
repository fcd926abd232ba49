package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// Processes over one bucket that move labels, delete and replace builds. Each test runs them in
// all orders of their calls.

const samples = 40 // runs with one fault, and with up to three, of each race on each kind of store

var allFaults = []turnVerdict{lost, refused, late, dies, diedNow, paused}

// at puts objects into a bucket, each by a process that nothing disturbs.
func at(builds []string, labels ...string) func(m *memBucket) {
	return func(m *memBucket) {
		s := assumeCapable(openMem(m))
		for _, id := range builds {
			must(s.StoreArtifact("s", id, known([]byte("old "+id))))
		}
		for _, l := range labels {
			name, build, _ := strings.Cut(l, "=")
			_, _, err := s.MoveLabel("s", LabelMove{Label: name, BuildID: build})
			must(err)
		}
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

type process = func(s *objectStore) error

func moves(label, build string, cond Precondition) process {
	return func(s *objectStore) error {
		l, _, err := s.MoveLabel("s", LabelMove{Label: label, BuildID: build, Cond: cond})
		if err == nil && l.BuildID != build {
			err = fmt.Errorf("it was moved to %q", l.BuildID)
		}
		return err
	}
}

func deletes(build string) process {
	return func(s *objectStore) error { return s.DeleteArtifact("s", build, Precondition{}) }
}

func deletesIf(build string, cond Precondition) process {
	return func(s *objectStore) error { return s.DeleteArtifact("s", build, cond) }
}

func deletesAll(builds ...string) process {
	return func(s *objectStore) error {
		var all []VersionDeletion
		for _, id := range builds {
			all = append(all, VersionDeletion{BuildID: id})
		}
		return errors.Join(s.DeleteVersions("s", all)...)
	}
}

func deletesLabel(label string) process {
	return func(s *objectStore) error { return s.DeleteLabel("s", label, Precondition{}) }
}

func stores(build string, cond Precondition) process {
	return func(s *objectStore) error {
		_, err := s.StoreArtifactIf("s", build, known([]byte("new "+build)), cond)
		return err
	}
}

// siteState is what a bucket has.
type siteState struct {
	builds map[string]objectInfo
	labels map[string]Label
	marks  int
}

func bucketState(m *memBucket) (st siteState, err error) {
	st = siteState{map[string]objectInfo{}, map[string]Label{}, 0}
	for key, o := range m.objects {
		parts := strings.Split(key, "/")
		switch parts[2] {
		case artifactsDir:
			st.builds[strings.TrimSuffix(parts[3], artifactSuffix)] = o.objectInfo
		case deletingDir:
			st.marks++
		case labelsDir:
			name := strings.TrimSuffix(parts[3], labelSuffix)
			if st.labels[name], err = parseLabel(name, o.data); err != nil {
				return st, err
			}
		}
	}
	return st, nil
}

// labelledAreThere fails if a label names a build that is not there, and also if the site has too
// many labels.
func labelledAreThere(r *raceRun) error {
	st, err := bucketState(r.m)
	if err != nil {
		return err
	}
	shown := 0
	for name, l := range st.labels {
		if l.BuildID == "" {
			continue
		}
		shown++
		if _, ok := st.builds[l.BuildID]; !ok {
			return fmt.Errorf("VIOLATION: the label %q names %q, which is not there", name, l.BuildID)
		}
	}
	if shown > maxLabels {
		return fmt.Errorf("VIOLATION: %d labels", shown)
	}
	return nil
}

// resultsHold fails if the bucket does not have what the processes were told. Then it does the
// opposite of each of them, after all marks have ceased to count: nothing may be stuck.
func resultsHold(r *raceRun) error {
	st, err := bucketState(r.m)
	if err != nil {
		return err
	}
	ok := func(name string) bool { err, ended := r.results[name]; return ended && err == nil }
	for name, err := range r.results {
		if err != nil && !errors.Is(err, ErrPrecondition) && !errors.Is(err, ErrNotFound) && !errors.Is(err, errLabelled) &&
			!errors.Is(err, errBeingDeleted) && !errors.Is(err, errTooManyLabels) && !errors.Is(err, ErrUnsupported) &&
			!(errors.Is(err, ErrUnavailable) && r.faults > 0) {
			return fmt.Errorf("%s fails with %v", name, err)
		}
	}
	if r.race.told != nil {
		if err := r.race.told(r, st, ok); err != nil {
			return err
		}
	}
	if r.faults == 0 && st.marks > 0 {
		return errors.New("a mark is left")
	}
	time.Sleep(markLife + time.Minute)
	s := r.race.open(r.m)
	for id := range st.builds {
		if _, _, err := s.MoveLabel("s", LabelMove{Label: "last", BuildID: id}); err != nil && !errors.Is(err, errTooManyLabels) {
			return fmt.Errorf("afterwards, a label cannot be moved to %q: %w", id, err)
		}
		if err := s.DeleteArtifact("s", id, Precondition{}); err == nil {
			return fmt.Errorf("VIOLATION: the labelled %q was deleted", id)
		}
	}
	for _, name := range append(slices.Collect(maps.Keys(st.labels)), "last") {
		if err := s.DeleteLabel("s", name, Precondition{}); err != nil {
			return fmt.Errorf("afterwards, %q cannot be deleted: %w", name, err)
		}
	}
	for id := range st.builds {
		if err := s.DeleteVersions("s", []VersionDeletion{{BuildID: id}})[0]; err != nil {
			return fmt.Errorf("afterwards, %q cannot be deleted: %w", id, err)
		}
	}
	return nil
}

// raceKinds are the kinds of stores: with unique ETags, with hashes as ETags, and one that ignores
// the conditions of deletes.
var raceKinds = []struct {
	name        string
	hashes      bool
	blindRemove bool
}{{"unique ETags", false, false}, {"hashes", true, false}, {"no conditional delete", true, true}}

// raceAll runs a race on each kind of store: in all orders without faults, or if there are too many
// in samples of them, and in samples of those with faults.
func raceAll(t *testing.T, all bool, start func(*memBucket), told func(*raceRun, siteState, func(string) bool) error, processes map[string]process) {
	t.Helper()
	for _, k := range raceKinds {
		r := &bucketRace{
			start:     func(m *memBucket) { m.hashes, m.blindRemove = k.hashes, k.blindRemove; start(m) },
			processes: processes, kinds: allFaults, check: labelledAreThere, end: resultsHold, told: told,
			open: func(b bucket) *objectStore {
				s := newObjectStore(b, "", quiet())
				missing := map[capability]error{}
				if k.blindRemove {
					missing[conditionalRemove] = ErrUnsupported
				}
				s.capabilities.missing.Store(&missing)
				return s
			},
		}
		if all {
			t.Logf("%s: %d orders without faults", k.name, r.explore(t, 0))
		} else {
			r.sample(t, 0, 2*samples)
		}
		r.sample(t, 1, samples)
		r.sample(t, 3, samples)
	}
}

// is fails with a violation unless it holds.
func is(holds bool, format string, args ...any) error {
	if holds {
		return nil
	}
	return fmt.Errorf("VIOLATION: "+format, args...)
}

// Exactly one of a move and a delete of the build succeeds, or neither.
func moveOrDelete(r *raceRun, st siteState, ok func(string) bool) error {
	_, there := st.builds["b"]
	moved := st.labels["live"].BuildID == "b"
	return errors.Join(
		is(!ok("move") || moved, "the move was acknowledged, and the label is %+v", st.labels["live"]),
		is(!ok("move") || there, "the move was acknowledged, and the build is gone"),
		is(!ok("delete") || !there, "the delete was acknowledged, and the build is there"))
}

func TestLabelMoveAgainstDelete(t *testing.T) {
	for name, start := range map[string]func(*memBucket){"new": at([]string{"b"}), "existing": at([]string{"a", "b"}, "live=a")} {
		t.Run(name, func(t *testing.T) {
			raceAll(t, true, start, moveOrDelete, map[string]process{"move": moves("live", "b", Precondition{}), "delete": deletes("b")})
		})
	}
}

// The store may carry out a call that has failed for the process, at any later time.
func TestLabelMoveAgainstLateRemoval(t *testing.T) {
	r := &bucketRace{
		start: at([]string{"a", "b"}, "live=a"), kinds: []turnVerdict{late}, check: labelledAreThere, end: resultsHold, told: moveOrDelete,
		open:      func(b bucket) *objectStore { return assumeCapable(newObjectStore(b, "", quiet())) },
		processes: map[string]process{"move": moves("live", "b", Precondition{}), "delete": deletes("b")},
	}
	t.Logf("%d orders with a call that is carried out late", r.explore(t, 1))
}

func TestLabelMoveAgainstConditionalDelete(t *testing.T) {
	raceAll(t, true, at([]string{"a", "b"}, "live=a"), moveOrDelete,
		map[string]process{"move": moves("live", "b", exists), "delete": deletesIf("b", exists)})
}

func TestLabelMoveAgainstDeleteVersions(t *testing.T) {
	raceAll(t, true, at([]string{"b", "c"}), moveOrDelete,
		map[string]process{"move": moves("live", "b", Precondition{}), "delete": deletesAll("b")})
}

func TestLabelMoveAgainstMove(t *testing.T) {
	start := at([]string{"a", "b", "c"}, "live=a")
	told := func(r *raceRun, st siteState, ok func(string) bool) error {
		l := st.labels["live"]
		switch {
		case r.faults > 0:
			return is(!ok("move b") && !ok("move c") || l.BuildID != "a", "the label was not moved: %+v", l)
		case ok("move b") && ok("move c"):
			return is(l.BuildID == "b" && l.Previous == "c" || l.BuildID == "c" && l.Previous == "b", "a move was lost: %+v", l)
		}
		return is(ok("move b") == (l.BuildID == "b") && ok("move c") == (l.BuildID == "c"), "the label is %+v", l)
	}
	raceAll(t, false, start, told, map[string]process{"move b": moves("live", "b", Precondition{}), "move c": moves("live", "c", Precondition{})})
}

// Of moves on one condition only one succeeds.
func TestLabelMovesIfMatch(t *testing.T) {
	told := func(r *raceRun, st siteState, ok func(string) bool) error {
		return errors.Join(is(!ok("move b") || !ok("move c"), "both succeeded"),
			is(r.faults > 0 || ok("move b") || ok("move c"), "neither succeeded: %v", r.results))
	}
	raceAll(t, false, at([]string{"b", "c"}), told,
		map[string]process{"move b": moves("live", "b", createOnly), "move c": moves("live", "c", createOnly)})
}

func TestLabelMoveAgainstDeleteOfTheLabel(t *testing.T) {
	told := func(r *raceRun, st siteState, ok func(string) bool) error {
		_, there := st.builds["a"]
		return is(!ok("delete") || !there, "the delete was acknowledged, and the build is there")
	}
	raceAll(t, false, at([]string{"a", "b"}, "live=a"), told,
		map[string]process{"move": moves("live", "b", Precondition{}), "delete label": deletesLabel("live"), "delete": deletes("a")})
}

// Two moves to one build, a delete of it and a third that clears the way: with hashes as ETags, a
// label may have the same bytes twice.
func TestLabelMovesOfOneBuildAgainstDelete(t *testing.T) {
	raceAll(t, false, at([]string{"a", "b"}, "live=a"), nil, map[string]process{
		"move": moves("live", "b", Precondition{}), "other move": moves("live", "b", Precondition{}), "delete": deletes("b"),
	})
}

func TestLabelMoveAgainstUploadAndDelete(t *testing.T) {
	raceAll(t, false, at([]string{"b"}), nil, map[string]process{
		"move": moves("live", "b", Precondition{}), "upload": stores("b", Precondition{}), "delete": deletes("b"),
	})
}

// A replacement that sees the label does nothing. One that does not has looked for labels before
// the move began, which is the gap that remains.
func TestLabelMoveAgainstReplacement(t *testing.T) {
	gaps := 0
	told := func(r *raceRun, st siteState, ok func(string) bool) error {
		if !ok("move") || !ok("replace") || st.labels["live"].BuildETag == st.builds["b"].etag {
			return nil
		}
		look, next := slices.Index(r.trace, "replace list sites/s/labels/"), slices.Index(r.trace, "move put sites/s/labels/live.json")
		gaps++
		return is(look < next, "the build was replaced although the label was there")
	}
	raceAll(t, true, at([]string{"b"}), told,
		map[string]process{"move": moves("live", "b", Precondition{}), "replace": stores("b", Precondition{})})
	t.Logf("the build was replaced after the move in %d runs", gaps)
}

// With 15 labels, only one of two new ones can be created.
func TestLabelsAtOnceAreAtMost16(t *testing.T) {
	var labels []string
	for i := range maxLabels - 1 {
		labels = append(labels, fmt.Sprintf("l%d=b", i))
	}
	told := func(r *raceRun, st siteState, ok func(string) bool) error {
		return is(!ok("one") || !ok("two"), "both were created")
	}
	raceAll(t, false, at([]string{"b"}, labels...), told,
		map[string]process{"one": moves("one", "b", Precondition{}), "two": moves("two", "b", Precondition{})})
}
