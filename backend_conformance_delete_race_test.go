package main

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// raceRounds is how often the steps of a race are repeated.
const raceRounds = 60

// atOnceBut is atOnce. Errors of want are allowed, and those after which
// a client tries again.
func atOnceBut(t *testing.T, want error, calls ...func() error) (errs []error) {
	t.Helper()
	errs = atOnce(calls...)
	for _, err := range errs {
		if err != nil && !errors.Is(err, want) && !errors.Is(err, ErrUnavailable) {
			t.Error(err)
		}
	}
	return errs
}

// testDeleteAppendRace: a delete removes every entry that was acknowledged before it began, and
// none that was begun after it was acknowledged.
func testDeleteAppendRace(t *testing.T, open func() deleteStore) {
	stores, site := []deleteStore{open(), open()}, newSite()
	gone, kept := 0, 0
	for round := range raceRounds {
		id := fmt.Sprint("before-", round)
		mustLog(t, stores[round%2], site, entry(id, "b", time.Now()))
		var calls []func() error
		for i := range 4 {
			calls = append(calls, func() error {
				return stores[i%2].WriteLog(site, entry(fmt.Sprint("during-", round, "-", i), "b", time.Now()))
			})
		}
		calls = append(calls, func() error { return deleteVersion(stores[round/2%2], site, VersionDeletion{BuildID: "b"}) })
		errs := atOnceBut(t, ErrUnavailable, calls...)
		after := fmt.Sprint("after-", round)
		mustLog(t, stores[(round+1)%2], site, entry(after, "b", time.Now()))
		ids := idsOf(versionOf(t, open(), site, "b").Logs)
		if errs[4] == nil && slices.Contains(ids, id) {
			t.Errorf("round %d: an entry is back: %q", round, ids)
		}
		if !slices.Contains(ids, after) {
			t.Errorf("round %d: an entry is lost: %q", round, ids)
		}
		if errs[4] == nil { // the next round begins with what is left
			kept += len(ids) - 1
			gone += 4 - (len(ids) - 1)
		}
		if err := deleteVersion(stores[0], site, VersionDeletion{BuildID: "b"}); err != nil {
			t.Error(err)
		}
	}
	t.Logf("of the entries that were appended meanwhile %d were removed, %d kept", gone, kept)
}

// testDeletePlanRace: each acknowledged entry is in the log, or was in that of a plan whose
// delete succeeded.
func testDeletePlanRace(t *testing.T, open func() deleteStore) {
	stores, site := []deleteStore{open(), open()}, newSite()
	acknowledged, removed := map[string]bool{}, map[string]bool{}
	var mu sync.Mutex
	var writers, planner sync.WaitGroup
	var done atomic.Bool
	for w := range 2 {
		writers.Go(func() {
			for i := range 2 * raceRounds {
				id := fmt.Sprint(w, "-", i)
				err := stores[w].WriteLog(site, entry(id, "b", time.Now()))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				acknowledged[id] = true
				mu.Unlock()
			}
		})
	}
	refused := 0
	planner.Go(func() {
		for b := open(); !done.Load(); {
			page, err := listPage(b, site, VersionQuery{Tags: true})
			if errors.Is(err, ErrUnavailable) { // the log changed meanwhile
				continue
			}
			if err != nil {
				t.Error(err)
				return
			}
			for _, v := range page.Versions {
				err := deleteVersion(b, site, VersionDeletion{BuildID: v.BuildID, Artifact: Precondition{Absent: true}, LogTag: v.logTag})
				switch {
				case err == nil:
					for _, id := range idsOf(v.Logs) {
						removed[id] = true
					}
				case errors.Is(err, ErrPrecondition):
					refused++
				case !errors.Is(err, ErrUnavailable):
					t.Error(err)
				}
			}
		}
	})
	writers.Wait()
	done.Store(true)
	planner.Wait()
	left := map[string]bool{}
	if v := versionOf(t, open(), site, "b"); v != nil {
		for _, id := range idsOf(v.Logs) {
			left[id] = true
		}
	}
	for id := range acknowledged {
		if left[id] == removed[id] {
			t.Errorf("entry %s: in the log: %t, in the log of a plan that was carried out: %t", id, left[id], removed[id])
		}
	}
	t.Logf("of %d entries %d were removed; %d deletes were refused", len(acknowledged), len(removed), refused)
}

// testDeleteAbsentRace: an upload at the same time survives the delete of a build that has only
// a log, and so does the log if the delete came too late.
func testDeleteAbsentRace(t *testing.T, open func() deleteStore) {
	stores, site := []deleteStore{open(), open()}, newSite()
	refused := 0
	for round := range raceRounds {
		id := fmt.Sprint("b", round)
		mustLog(t, stores[0], site, entry("1", id, time.Now()))
		errs := atOnceBut(t, ErrPrecondition,
			func() error { return stores[round%2].StoreArtifact(site, id, known(body(10, byte(round)))) },
			func() error {
				return deleteVersion(stores[round/2%2], site, VersionDeletion{BuildID: id, Artifact: Precondition{Absent: true}})
			})
		wantBytes(t, open(), site, id, body(10, byte(round)))
		v := versionOf(t, open(), site, id)
		if deleted := errs[1] == nil; deleted == (len(v.Logs) > 0) && !errors.Is(errs[1], ErrUnavailable) {
			t.Errorf("round %d: the delete returned %v, and the log has %q", round, errs[1], idsOf(v.Logs))
		}
		if errs[1] != nil {
			refused++
		}
	}
	t.Logf("%d of %d deletes were refused", refused, raceRounds)
}
