package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// failingStore is a store in a directory, some of whose calls fail.
type failingStore struct {
	*nfs
	deleting func(builds []VersionDeletion) (errs []error, instead bool)
	listing  func() error
	arriving func() error
	labels   func() error
	deletes  int
}

func (s *failingStore) DeleteVersions(siteID string, builds []VersionDeletion) []error {
	s.deletes++
	if s.deleting != nil {
		if errs, instead := s.deleting(builds); instead {
			return errs
		}
	}
	return s.nfs.DeleteVersions(siteID, builds)
}

func (s *failingStore) ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error) {
	if s.listing != nil {
		if err := s.listing(); err != nil {
			return nil, err
		}
	}
	return s.nfs.ListVersionsPage(siteID, q)
}

func (s *failingStore) ListLabels(siteID string) ([]Label, error) {
	if s.labels != nil {
		if err := s.labels(); err != nil {
			return nil, err
		}
	}
	return s.nfs.ListLabels(siteID)
}

func (s *failingStore) ArrivedAt(siteID, buildID string) (time.Time, error) {
	if s.arriving != nil {
		return time.Time{}, s.arriving()
	}
	return s.nfs.ArrivedAt(siteID, buildID)
}

// allFail returns err for each build.
func allFail(builds []VersionDeletion, err error) []error {
	errs := make([]error, len(builds))
	for i := range errs {
		errs[i] = err
	}
	return errs
}

// recorder is a pruneReport that keeps everything.
type recorder struct {
	builds map[string]buildResult
	sites  []siteResult
}

func (r *recorder) build(_ string, b buildResult) error {
	r.builds[b.Build] = b
	return nil
}

func (r *recorder) site(s siteResult) error {
	r.sites = append(r.sites, s)
	return nil
}

func testRetention(t testing.TB, rules string) *retention {
	t.Helper()
	r, err := parseRetention([]byte(`{"grace":"0h","max_delete_percent":100,"rules":[` + rules + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// applyTo returns a pruner that removes builds of store, and what it reports.
func applyTo(t testing.TB, store prunable, rules string) (*pruner, *recorder) {
	t.Helper()
	r := &recorder{builds: map[string]buildResult{}}
	p := newPruner(store, testRetention(t, rules), r)
	p.apply, p.retryWait = true, 0
	return p, r
}

// TestPruneWhenDeletesFail: what is tried again, what ends the run, and what is reported.
func TestPruneWhenDeletesFail(t *testing.T) {
	once := func(f func(s *failingStore, builds []VersionDeletion) []error) func(s *failingStore) {
		return func(s *failingStore) {
			s.deleting = func(builds []VersionDeletion) ([]error, bool) {
				if s.deletes > 1 {
					return nil, false
				}
				return f(s, builds), true
			}
		}
	}
	always := func(err error) func(s *failingStore) {
		return func(s *failingStore) {
			s.deleting = func(builds []VersionDeletion) ([]error, bool) { return allFail(builds, err), true }
		}
	}
	for _, c := range []struct {
		name    string
		fault   func(s *failingStore)
		result  string
		actions string // of b1 to b4
		left    string
		calls   int
	}{
		{"none", func(*failingStore) {}, pruneOK, "keep keep removed removed", "shop/b1+~= shop/b2+~=", 1},
		{"all, once", once(func(_ *failingStore, b []VersionDeletion) []error { return allFail(b, ErrUnavailable) }), pruneOK, "keep keep removed removed", "shop/b1+~= shop/b2+~=", 3},
		{"one, once", once(func(s *failingStore, b []VersionDeletion) []error {
			return append(s.nfs.DeleteVersions("shop", b[:1]), ErrLocked)
		}), pruneOK, "keep keep removed removed", "shop/b1+~= shop/b2+~=", 2},
		{"after the artifact was removed", once(func(s *failingStore, b []VersionDeletion) []error {
			noError(t, s.nfs.DeleteArtifact("shop", b[0].BuildID, Precondition{}))
			return append([]error{ErrUnavailable}, s.nfs.DeleteVersions("shop", b[1:])...)
		}), pruneOK, "keep keep removed removed", "shop/b1+~= shop/b2+~=", 3},
		{"after the build was removed", once(func(s *failingStore, b []VersionDeletion) []error {
			s.nfs.DeleteVersions("shop", b)
			return allFail(b, ErrUnavailable)
		}), pruneOK, "keep keep changed changed", "shop/b1+~= shop/b2+~=", 5},
		{"all, always", always(ErrUnavailable), pruneIncomplete, "keep keep failed failed", "shop/b1+~= shop/b2+~= shop/b3+~= shop/b4+~=", 2},
		{"conditions are ignored", always(fmt.Errorf("%w: If-Match", ErrUnsupported)), pruneFailed, "keep keep failed failed", "shop/b1+~= shop/b2+~= shop/b3+~= shop/b4+~=", 1},
		{"denied", always(ErrDenied), pruneFailed, "keep keep failed failed", "shop/b1+~= shop/b2+~= shop/b3+~= shop/b4+~=", 1},
		{"labels that cannot be read", always(errLabelDamaged), pruneIncomplete, "keep keep failed failed", "shop/b1+~= shop/b2+~= shop/b3+~= shop/b4+~=", 1},
		{"labelled after the plan", func(s *failingStore) {
			s.deleting = func([]VersionDeletion) ([]error, bool) {
				_, _, err := s.MoveLabel("shop", LabelMove{Label: "live", BuildID: "b3"})
				noError(t, err)
				return nil, false
			}
		}, pruneOK, "keep keep labelled removed", "shop/b1+~= shop/b2+~= shop/b3+~=", 1},
		{"replaced after the plan", func(s *failingStore) {
			s.deleting = func([]VersionDeletion) ([]error, bool) {
				mustStore(t, s.nfs, "shop", "b3", []byte("other bytes"))
				return nil, false
			}
		}, pruneOK, "keep keep changed removed", "shop/b1+~= shop/b2+~= shop/b3+=", 1},
		{"logged after the plan", func(s *failingStore) {
			s.deleting = func([]VersionDeletion) ([]error, bool) {
				noError(t, s.WriteLog("shop", LogEntry{ID: "2", BuildID: "b4", Action: "build", Status: "ok", Timestamp: time.Now().UTC()}))
				return nil, false
			}
		}, pruneOK, "keep keep removed changed", "shop/b1+~= shop/b2+~= shop/b4+~=", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			builds := shop(4)
			for i := range builds {
				builds[i].status = "ok"
			}
			base := storeAged(t, builds...)
			s := &failingStore{nfs: openTestNFS(t, base)}
			c.fault(s)
			p, r := applyTo(t, s, keepTwo)
			err := p.run(t.Context())
			var actions []string
			for _, b := range []string{"b1", "b2", "b3", "b4"} {
				actions = append(actions, r.builds[b].Action)
			}
			left := buildsOf(t, base)
			if c.name == "replaced after the plan" { // whether its old digest is there does not matter
				left = strings.Replace(left, "b3+~=", "b3+=", 1)
			}
			if got := strings.Join(actions, " "); p.result(err) != c.result || got != c.actions || left != c.left || s.deletes != c.calls {
				t.Errorf("%v, %s, left are %s; %d calls", err, got, left, s.deletes)
			}
		})
	}
}

// TestPruneRaces: while builds are removed, other replicas upload them again, label them, and
// write to their logs. What was acknowledged after the plan was made is there afterwards.
func TestPruneRaces(t *testing.T) {
	const n = 150
	builds := shop(n)
	for i := range builds {
		builds[i].status = "ok"
	}
	base := storeAged(t, builds...)
	var mu sync.Mutex
	stored, labelled, logged := map[string]string{}, map[string]string{}, map[string]bool{}
	var wg sync.WaitGroup
	other := openTestNFS(t, base)
	begun := make(chan struct{}) // when the plan is made
	race := func(f func()) { wg.Go(func() { <-begun; f() }) }
	race(func() {
		for i := n; i > 2; i -= 3 {
			build := fmt.Sprintf("b%d", i)
			info, err := other.StoreArtifactIf("shop", build, strings.NewReader("new bytes"), Precondition{})
			if err != nil && !errors.Is(err, errLabelled) {
				t.Error(err)
			} else if err == nil {
				mu.Lock()
				stored[build] = info.ETag
				mu.Unlock()
			}
		}
	})
	race(func() {
		for i := n - 1; i > 2; i -= 3 {
			build, name := fmt.Sprintf("b%d", i), fmt.Sprintf("l%d", i%maxLabels)
			l, _, err := other.MoveLabel("shop", LabelMove{Label: name, BuildID: build})
			if err == nil {
				mu.Lock()
				labelled[name] = l.BuildID
				mu.Unlock()
			} else if !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
		}
	})
	race(func() {
		for i := n - 2; i > 2; i -= 3 {
			build := fmt.Sprintf("b%d", i)
			noError(t, other.WriteLog("shop", LogEntry{ID: "2", BuildID: build, Action: "build", Status: "ok", Timestamp: time.Now().UTC()}))
			logged[build] = true
		}
	})
	s := &failingStore{nfs: openTestNFS(t, base)}
	s.deleting = func([]VersionDeletion) ([]error, bool) {
		if s.deletes == 1 {
			close(begun)
		}
		return nil, false
	}
	p, _ := applyTo(t, s, keepTwo)
	err := p.run(t.Context())
	wg.Wait()
	c := p.state.Counts
	if err != nil || c.Failed > 0 || c.Removed+c.Changed+c.Labelled != c.Remove {
		t.Errorf("%v, %+v", err, c)
	}
	t.Logf("%d stored, %d labelled, %d logged; removed %d, changed %d, labelled %d", len(stored), len(labelled), len(logged), c.Removed, c.Changed, c.Labelled)
	after := openTestNFS(t, base)
	for build, etag := range stored {
		if info, err := after.StatArtifact("shop", build); err != nil || info.ETag != etag {
			t.Errorf("the upload of %s was acknowledged: %v, %v", build, info, err)
		}
	}
	for name, build := range labelled {
		if _, err := after.StatArtifact("shop", build); err != nil {
			t.Errorf("label %s names %s: %v", name, build, err)
		}
	}
	versions, err := after.ListVersions("shop")
	noError(t, err)
	for _, v := range versions {
		for _, e := range v.Logs {
			if e.ID == "2" {
				delete(logged, v.BuildID)
			}
		}
	}
	if len(logged) > 0 {
		t.Errorf("log entries were acknowledged and are gone: %v", logged)
	}
}
