package main

import (
	"testing"
	"time"
)

// A log that was read too soon after its change is read again, and one that is stable
// is not.
func TestLogIsReadAgainUnlessStable(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	putLog(t, base, "b", testTime, entry("1", "b", testTime))
	dir, _, err := (&siteScan{n: n, site: "s"}).openWatched(logsDir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	// load reads the log after the directory was read, and returns what is known of it then.
	load := func(before dirFile[logValue], storeTime int64) logValue {
		t.Helper()
		s := &siteScan{n: n, ix: newSiteIndex(), storeTime: storeTime, logs: dir, run: &listRun{listLimits: &n.lists.limits}}
		s.ix.logs.files["b"], s.ix.logs.round = &before, before.checked+1
		if err := s.load([]place{{build: "b"}}, true); err != nil || before.value.log == nil || before.value.log.count != 1 || before.checked != s.ix.logs.round {
			t.Fatalf("known is %+v, %v", before, err)
		}
		return before.value
	}
	first := load(dirFile[logValue]{}, 0)
	if first.stable {
		t.Error("a log is stable at once")
	}
	changed := max(first.id.mtime, first.id.ctime)
	for since, want := range map[time.Duration]bool{0: false, mtimeGranularity - 1: false, mtimeGranularity: true} {
		v := load(dirFile[logValue]{}, changed+int64(since))
		if v.stable != want {
			t.Errorf("read %v after its change, by the store's clock: stable %v", since, v.stable)
		}
		if again := load(dirFile[logValue]{value: v}, 0); (again.log == v.log) != want {
			t.Errorf("read %v after its change, it was read again: %v", since, again.log != v.log)
		}
	}
	n.lists.start = n.lists.start.Add(-mtimeGranularity) // that much later
	if !load(dirFile[logValue]{value: first}, 0).stable {
		t.Error("a log that has long been the same is not stable")
	}
}
