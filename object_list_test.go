package main

import (
	"testing"
	"time"
)

// A tag never names a log that the list has not seen. What arrives late is young, whatever its
// entries say.
func TestObjectListTags(t *testing.T) {
	m := newMemBucket()
	s := openMem(m)
	old := time.Now().Add(-240 * time.Hour)
	mustLog(t, s, "s", entry("1", "log", old))
	mustStore(t, s, "s", "artifact", []byte("x"))
	m.ahead = time.Hour
	mustStore(t, s, "s", "both", []byte("x"))
	m.ahead = 2 * time.Hour
	mustLog(t, s, "s", entry("1", "both", old))
	object := func(key string) objectInfo { return m.objects[s.sitePrefix("s")+key].objectInfo }
	list := func(tags bool) map[string]*Version {
		t.Helper()
		page, err := s.ListVersionsPage("s", VersionQuery{Tags: tags})
		if err != nil || len(page.Versions) != 3 {
			t.Fatalf("%+v, %v", page, err)
		}
		found := map[string]*Version{}
		for _, v := range page.Versions {
			found[v.BuildID] = v
		}
		return found
	}
	for id, v := range list(true) {
		log, artifact := object("logs/"+id+logSuffix), object("artifacts/"+id+artifactSuffix)
		arrived := artifact.modTime
		if arrived.IsZero() {
			arrived = log.modTime
		}
		if log.key != "" && v.logTag != log.etag || log.key == "" && v.logTag != noLogTag || v.etag != artifact.etag || !v.arrivedAt.Equal(arrived) {
			t.Errorf("%s: %+v", id, v)
		}
	}
	for id, v := range list(false) {
		if v.logTag != "" || !v.arrivedAt.IsZero() {
			t.Errorf("%s: without tags: %+v", id, v)
		}
	}
	listed := object("logs/both.json")
	s = openMem(m) // it has no log in its cache
	m.fault = func(op, key string) (bool, error) {
		if o := m.objects[key]; op == "get" && key == listed.key {
			o.etag = `"appended"`
			m.objects[key] = o
		}
		return false, nil
	}
	if v := list(true)["both"]; v.logTag != listed.etag || object("logs/both.json").etag == listed.etag {
		t.Errorf("of a log that was changed while it was listed: %+v", v)
	}
}

// An old log that was just copied into the store is spared by the grace.
func TestObjectArrivalsInThePlan(t *testing.T) {
	rules, err := parseRetention([]byte(`{"grace":"24h","max_delete_percent":100,"rules":[{"sites":["*"],"keep_last":1,"logs_only_after":"7d","labels":"optional"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	s := openMem(newMemBucket())
	mustLog(t, s, "s", entry("1", "log", time.Now().Add(-240*time.Hour)))
	p := &pruner{store: s, rules: rules}
	for now, want := range map[time.Time]pruneVerdict{
		time.Now(): keepGrace, time.Now().Add(25 * time.Hour): removeLogOnly,
	} {
		p.now = func() time.Time { return now }
		_, plan, err := p.plan(t.Context(), "s")
		if err != nil || len(plan.Verdicts) != 1 || plan.Verdicts[0] != want {
			t.Errorf("at %s: %+v, %v, want %d", now, plan, err, want)
		}
	}
}
