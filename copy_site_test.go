package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// want checks what a run did.
func (c copied) want(t *testing.T, what string, status int, results map[string]string) {
	t.Helper()
	if got := statusOf(c); got != status {
		t.Errorf("%s: exit status %d, want %d; %v, %+v", what, got, status, c.err, c.events)
	}
	n := 0
	for result, want := range results {
		if got := c.with(result); got != want {
			t.Errorf("%s: %s: %s, want %s", what, result, got, want)
		}
		for _, e := range c.events {
			if e.Result == result {
				n++
			}
		}
	}
	if n != len(c.events) {
		t.Errorf("%s: there are other events: %+v", what, c.events)
	}
}

// TestCopyConflict: other bytes stay, with their log, and no label is moved to them. --replace
// replaces them, but not if they have a label.
func TestCopyConflict(t *testing.T) {
	for kind, open := range copyStores {
		t.Run(kind, func(t *testing.T) {
			from, to := openCopyMem(newMemBucket()), open(t)
			for build, size := range map[string]int{"size": 9, "bytes": 10, "unknown": 10, "same": 10, "labelled": 10} {
				storeWithDigest(t, from, "s", build, body(10, 1))
				noError(t, from.WriteLog("s", entry("1", build, time.Now())))
				seed := byte(2)
				if build == "same" {
					seed = 1
				}
				if build == "unknown" {
					noError(t, to.StoreArtifact("s", build, known(body(size, seed))))
				} else {
					storeWithDigest(t, to, "s", build, body(size, seed))
				}
			}
			_, _, err := from.MoveLabel("s", LabelMove{Label: "live", BuildID: "bytes"})
			noError(t, err)
			_, _, err = to.MoveLabel("s", LabelMove{Label: "old", BuildID: "labelled"})
			noError(t, err)
			plan := copyOnce(t, t.Context(), from, to, copyOptions{DryRun: true})
			plan.want(t, "dry run", exitConflict, map[string]string{copyConflict: "build s/bytes, build s/labelled, build s/size", planCompare: "build s/unknown",
				planAppend: "log s/same, log s/unknown", planMove: "label s/bytes live"})
			c := copyOnce(t, t.Context(), from, to, copyOptions{})
			c.want(t, "first", exitConflict, map[string]string{copyConflict: "build s/bytes, build s/labelled, build s/size, build s/unknown",
				copyAppended: "log s/same", copyMissing: "label s/bytes live"})
			for build, size := range map[string]int{"size": 9, "bytes": 10, "unknown": 10} {
				wantBytes(t, to, "s", build, body(size, 2))
			}
			r := copyOnce(t, t.Context(), from, to, copyOptions{Replace: true})
			r.want(t, "replace", exitConflict, map[string]string{copyReplaced: "build s/bytes, build s/size, build s/unknown", copyConflict: "build s/labelled",
				copyAppended: "log s/bytes, log s/size, log s/unknown", copyMoved: "label s/bytes live"})
			wantBytes(t, to, "s", "labelled", body(10, 2))
			noError(t, to.DeleteLabel("s", "old", Precondition{}))
			copyOnce(t, t.Context(), from, to, copyOptions{Replace: true}).want(t, "without the label", 0, map[string]string{copyReplaced: "build s/labelled", copyAppended: "log s/labelled"})
			sameStores(t, from, to)
		})
	}
}

// TestCopyKeepsDigestsOfEqualBuilds: a build that had to be read is not read again.
func TestCopyKeepsDigestsOfEqualBuilds(t *testing.T) {
	from, m := openCopyNFS(t, t.TempDir()), newMemBucket()
	to := openCopyMem(m)
	storeWithDigest(t, from, "s", "b", body(1000, 1))
	mustStore(t, to, "s", "b", body(1000, 1))
	c := copyOnce(t, t.Context(), from, to, copyOptions{})
	c.want(t, "first", 0, nil)
	gets := 0
	m.fault = func(op, key string) (bool, error) {
		if op == "get" && strings.HasSuffix(key, artifactSuffix) {
			gets++
		}
		return false, nil
	}
	again := copyOnce(t, t.Context(), from, to, copyOptions{})
	if again.want(t, "again", 0, nil); gets > 0 || again.summary.Same != 1 || c.summary.Same != 1 {
		t.Errorf("it was read %d times again; %+v", gets, again.summary)
	}
}

// TestCopyCorrupt: bytes without their digest are not copied, nor is a damaged log.
func TestCopyCorrupt(t *testing.T) {
	base := t.TempDir()
	from, to := openCopyNFS(t, base), openCopyMem(newMemBucket())
	fillStore(t, from)
	path := buildPath(base, "shop", artifactsDir, "b2")
	info, err := os.Stat(path)
	noError(t, err)
	data, err := os.ReadFile(path)
	noError(t, err)
	data[100] ^= 1
	noError(t, os.WriteFile(path, data, 0o644))
	noError(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
	log := buildPath(base, "shop", logsDir, "b1")
	data, err = os.ReadFile(log)
	noError(t, err)
	noError(t, os.WriteFile(log, data[:len(data)-3], 0o644))
	c := copyOnce(t, t.Context(), openCopyNFS(t, base), to, copyOptions{})
	c.want(t, "a damaged source", exitCorrupt, map[string]string{copyCorrupt: "build shop/b2, log shop/b1",
		copyCopied: "build blog/b0, build shop/b0, build shop/b1, build shop/b3, build shop/plain", copyAppended: "log shop/b0, log shop/b3, log shop/log-only",
		copyMoved: "label shop/b3 live, label shop/plain qa"})
	if v := versionOf(t, to, "shop", "b1"); len(v.Logs) > 0 {
		t.Errorf("half a log was copied: %+v", v.Logs)
	}
	if v := versionOf(t, to, "shop", "b2"); v != nil {
		t.Errorf("of the corrupt build there is %+v", v)
	}
}

// TestCopyOfAChangingSource: what the source gets meanwhile is copied; what is replaced there is
// reported, or replaced.
func TestCopyOfAChangingSource(t *testing.T) {
	for _, replace := range []bool{false, true} {
		m := newMemBucket()
		from, to := openCopyMem(m), openCopyMem(newMemBucket()) // to a bucket, b0 is copied before b2
		fillStore(t, from)
		other := openCopyMem(m)
		changed := false
		m.fault = func(op, key string) (bool, error) {
			if op != "get" || !strings.HasSuffix(key, "b2.tar.gz") || changed {
				return false, nil
			}
			changed = true // the hook is called under the lock of the bucket
			m.mu.Unlock()
			defer m.mu.Lock()
			storeWithDigest(t, other, "shop", "b0", body(500, 77)) // was copied
			noError(t, other.DeleteArtifact("shop", "b1", Precondition{}))
			storeWithDigest(t, other, "shop", "b2", body(600, 78)) // is being copied
			storeWithDigest(t, other, "shop", "b4", body(700, 79))
			noError(t, other.WriteLog("shop", entry("late", "b2", time.Now())))
			_, _, err := other.MoveLabel("shop", LabelMove{Label: "qa", BuildID: "b4"})
			noError(t, err)
			return false, nil
		}
		c := copyOnce(t, t.Context(), from, to, copyOptions{Replace: replace})
		m.fault = nil
		if !changed {
			t.Fatal("nothing changed")
		}
		wantBytes(t, to, "shop", "b4", body(700, 79))
		wantBytes(t, to, "shop", "b2", body(600, 78))
		if l, err := to.GetLabel("shop", "qa"); err != nil || l.BuildID != "b4" {
			t.Errorf("the label is %+v, %v", l, err)
		}
		if logs := versionOf(t, to, "shop", "b2").Logs; len(logs) != 3 {
			t.Errorf("the log is %+v", logs)
		}
		if !replace {
			if statusOf(c) != exitConflict || c.with(copyConflict) != "build shop/b0" {
				t.Errorf("%v, %+v", c.err, c.events)
			}
			continue
		}
		wantBytes(t, to, "shop", "b0", body(500, 77))
		if statusOf(c) != 0 || c.with(copyReplaced) != "build shop/b0" {
			t.Errorf("%v, %+v", c.err, c.events)
		}
	}
}

// TestCopySince leaves out older builds, except those that a label names, and continues the logs
// of those that the target has.
func TestCopySince(t *testing.T) {
	m := newMemBucket()
	from := openCopyMem(m)
	for i, build := range []string{"old", "labelled", "known", "new"} {
		storeWithDigest(t, from, "s", build, body(10, byte(i)))
		noError(t, from.WriteLog("s", entry("1", build, time.Now())))
		if build != "new" {
			key := from.artifactKey("s", build)
			o := m.objects[key]
			o.modTime = o.modTime.Add(-48 * time.Hour)
			m.objects[key] = o
		}
	}
	_, _, err := from.MoveLabel("s", LabelMove{Label: "live", BuildID: "labelled"})
	noError(t, err)
	to := openCopyNFS(t, t.TempDir())
	storeWithDigest(t, to, "s", "known", body(10, 2))
	c := copyOnce(t, t.Context(), from, to, copyOptions{Since: 24 * time.Hour})
	c.want(t, "since", 0, map[string]string{copyCopied: "build s/labelled, build s/new", copyAppended: "log s/known, log s/labelled, log s/new", copyMoved: "label s/labelled live"})
	if c.summary.Older != 2 {
		t.Errorf("%+v", c.summary)
	}
}

// TestCopyIsThrottled: the rate is that of all reads, and a run that waits for it can be stopped.
func TestCopyIsThrottled(t *testing.T) {
	from, to := openCopyNFS(t, t.TempDir()), openCopyMem(newMemBucket())
	mustStore(t, from, "s", "b", body(3*copyBuffer, 1))
	var out bytes.Buffer
	report := &copyReport{commandOutput: commandOutput{stdout: &out, stderr: &out}, json: true}
	ctx, cancel := context.WithCancel(t.Context())
	c := newCopyRun(from, to, copyOptions{}, 1, report)
	done := make(chan error, 1)
	go func() { done <- c.run(ctx) }()
	eventually(t, "it waits", func() bool { return c.read.Load() > copyBuffer })
	cancel()
	if err := <-done; !errors.Is(err, errCopyInterrupted) || c.read.Load() >= 3*copyBuffer {
		t.Errorf("%v; it read %d bytes", err, c.read.Load())
	}
	if _, err := to.StatArtifact("s", "b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of the half there is %v", err)
	}
}

// TestCopyLogs: what is done about logs that differ.
func TestCopyLogs(t *testing.T) {
	at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name, from, to string // ids of entries; a + makes another entry of one, a - another time
		want           string
		result         string
	}{
		{"new", "a b c", "", "a b c", copyAppended},
		{"grown", "a b c", "a b", "a b c", copyAppended},
		{"shorter", "a", "a b", "a b", ""},
		{"others between", "a b c d", "x a y b", "x a y b c d", copyAppended},
		{"others after", "a b", "a x", "a x b", copyAppended},
		{"equal", "a b", "a b", "a b", ""},
		{"another entry", "a b c", "a b+", "a b+", copyConflict},
		{"another time", "a b c", "a- b", "a- b", copyConflict},
		{"another order", "a b", "b a", "b a", ""},
		{"another order, others between", "a b c", "c x a y b", "c x a y b", ""},
		{"a gap", "a b c", "a c", "a c b", copyAppended},
		{"another order, and gaps", "a b c d", "d x a", "d x a b c", copyAppended},
		{"another entry, in another order", "a b c", "c+ a", "c+ a", copyConflict},
		{"twice", "a a", "", "a", copyAppended},
		{"twice, and there", "a a b", "b a", "b a", ""},
		{"two with an id", "a b a+", "", "", copyConflict},
		{"no ids", "_ _+", "", "", copyConflict},
	} {
		for kind, open := range copyStores {
			base := t.TempDir()
			from, to := openCopyNFS(t, base), open(t)
			make := func(ids string) (entries []LogEntry) {
				for _, word := range strings.Fields(ids) {
					e := entry(strings.Trim(word, "+-_"), "b", at)
					e.Copied = true
					if strings.HasSuffix(word, "+") {
						e.Status = "other"
					}
					if strings.HasSuffix(word, "-") {
						e.Timestamp = at.Add(1)
					}
					entries = append(entries, e)
				}
				return entries
			}
			data, err := json.Marshal(make(c.from))
			noError(t, err)
			noError(t, os.MkdirAll(filepath.Join(base, sitesDir, "s", logsDir), 0o755))
			noError(t, os.WriteFile(buildPath(base, "s", logsDir, "b"), data, 0o644))
			if c.to != "" {
				for _, err := range to.AppendLog("s", "b", make(c.to)) {
					noError(t, err)
				}
			}
			plan := copyOnce(t, t.Context(), from, to, copyOptions{DryRun: true})
			got := copyOnce(t, t.Context(), from, to, copyOptions{})
			again := copyOnce(t, t.Context(), from, to, copyOptions{Replace: true})
			var ids []string
			v := versionOf(t, to, "s", "b")
			if v == nil {
				v = &Version{}
			}
			for _, e := range v.Logs {
				id := e.ID
				if id == "" {
					id = "_"
				}
				if e.Status == "other" {
					id += "+"
				}
				if !e.Timestamp.Equal(at) {
					id += "-"
				}
				ids = append(ids, id)
			}
			results := ""
			if n := len(got.events); n > 0 {
				results = got.events[n-1].Result
			}
			if strings.Join(ids, " ") != c.want || results != c.result || (statusOf(got) != 0) != (c.result == copyConflict) {
				t.Errorf("%s to %s: %q, want %q; %v, %+v", c.name, kind, ids, c.want, got.err, got.events)
			}
			if c.result == copyConflict != (statusOf(again) == exitConflict) || again.with(copyConflict) != got.with(copyConflict) || len(again.events) > 1 {
				t.Errorf("%s to %s, again: %v, %+v", c.name, kind, again.err, again.events)
			}
			if c.to == "" { // the entries of the source are not read
				continue
			}
			planned := int64(0)
			for _, e := range plan.events {
				planned += e.Entries
			}
			if planned != got.summary.Entries || plan.with(copyConflict) != got.with(copyConflict) || statusOf(plan) != statusOf(got) || (plan.summary.Planned > 0) != (planned > 0) {
				t.Errorf("%s to %s, the dry run: %v, %+v; then %+v", c.name, kind, plan.err, plan.events, got.events)
			}
		}
	}
}

// TestCopyLongLog: a log is appended in parts.
func TestCopyLongLog(t *testing.T) {
	from, to := openCopyMem(newMemBucket()), openCopyMem(newMemBucket())
	var entries []LogEntry
	for i := range 2*copyLogEntries + 1 {
		e := entry(fmt.Sprint(i), "b", time.Now())
		e.Copied = true
		entries = append(entries, e)
	}
	for _, err := range from.AppendLog("s", "b", entries) {
		noError(t, err)
	}
	c := copyOnce(t, t.Context(), from, to, copyOptions{})
	if c.want(t, "long", 0, map[string]string{copyAppended: "log s/b"}); c.summary.Entries != int64(len(entries)) {
		t.Errorf("%+v", c.summary)
	}
	sameStores(t, from, to)
}

// TestCopyOfADeletedBuild: it was deleted in the source after it was listed.
func TestCopyOfADeletedBuild(t *testing.T) {
	m := newMemBucket()
	from, other := openCopyMem(m), openCopyMem(m)
	storeWithDigest(t, from, "s", "b", body(500, 1))
	deleted := false
	m.fault = func(op, key string) (bool, error) {
		if op == "get" && strings.HasSuffix(key, "b.tar.gz") && !deleted {
			deleted = true // the hook is called under the lock of the bucket
			m.mu.Unlock()
			defer m.mu.Lock()
			noError(t, other.DeleteArtifact("s", "b", Precondition{}))
		}
		return false, nil
	}
	c := copyOnce(t, t.Context(), from, openCopyMem(newMemBucket()), copyOptions{})
	c.want(t, "deleted", 0, map[string]string{copyGone: "build s/b"})
	if len(c.events) == 1 && c.events[0].Bytes != 500 {
		t.Errorf("%+v", c.events)
	}
}
