package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// copied is what a run reported.
type copied struct {
	events  []copyEvent // those that are written
	summary copySummary
	err     error
}

// with returns what the events with a result are about, sorted.
func (c copied) with(result string) string {
	var all []string
	for _, e := range c.events {
		if e.Result == result {
			all = append(all, strings.TrimSuffix(fmt.Sprintf("%s %s/%s %s", e.Type, e.Site, e.Build, e.Label), " "))
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// parseCopied reads the output of --json, which has a summary at its end.
func parseCopied(t *testing.T, out string) (c copied) {
	t.Helper()
	for line := range strings.Lines(out) {
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		var into any = &c.summary
		if !strings.HasPrefix(line, `{"type":"summary"`) {
			c.events = append(c.events, copyEvent{})
			into = &c.events[len(c.events)-1]
		}
		if err := d.Decode(into); err != nil || c.summary.Type != "" && into != &c.summary {
			t.Fatalf("%v: %q", err, out)
		}
	}
	return c
}

// copyOnce copies from to to, with a try after each failure.
func copyOnce(t *testing.T, ctx context.Context, from, to copyable, options copyOptions) (c copied) {
	t.Helper()
	var out bytes.Buffer
	report := &copyReport{commandOutput: commandOutput{stdout: &out, stderr: io.Discard}, json: true}
	run := newCopyRun(from, to, options, 0, report)
	run.pauses = []time.Duration{0}
	err := run.run(ctx)
	noError(t, report.summary(run, err))
	c = parseCopied(t, out.String())
	c.err = err
	return c
}

// statusOf is the exit status of a run.
func statusOf(c copied) int {
	if err := (&copyArgs{}).result(c.summary.copyCounts, c.err); err != nil {
		return exitStatus(err)
	}
	return 0
}

// copyStores are the kinds of stores between which tests copy.
var copyStores = map[string]func(t *testing.T) copyable{
	"a directory": func(t *testing.T) copyable { return openCopyNFS(t, t.TempDir()) },
	"a bucket":    func(*testing.T) copyable { return openCopyMem(newMemBucket()) },
}

func openCopyNFS(t *testing.T, base string) *nfs {
	n := openTestNFS(t, base)
	n.useDigests()
	return n
}

func openCopyMem(m *memBucket) *objectStore {
	s := assumeCapable(openMem(m))
	s.useDigests()
	return s
}

// storeWithDigest stores a build with its digest.
func storeWithDigest(t *testing.T, s copyable, site, build string, data []byte) {
	t.Helper()
	body := (&copyRun{}).newBody(t.Context(), bytes.NewReader(data), ArtifactInfo{Size: int64(len(data))})
	_, err := s.StoreArtifactIf(site, build, body, Precondition{})
	noError(t, err)
}

// fillStore puts into a store what there is to copy.
func fillStore(t *testing.T, s copyable) {
	t.Helper()
	at := time.Date(2022, 3, 4, 5, 6, 7, 890, time.UTC)
	log := func(site, build string, entries ...LogEntry) {
		t.Helper()
		for i, e := range entries {
			e.ID, e.BuildID, e.Action, e.Timestamp, e.Copied = fmt.Sprint(build, "-", i), build, "deploy", at.Add(time.Duration(i)*time.Minute), true
			noError(t, s.WriteLog(site, e))
		}
	}
	for i := range 4 {
		build := fmt.Sprint("b", i)
		storeWithDigest(t, s, "shop", build, body(1000*i+1, byte(i)))
		log("shop", build, LogEntry{Status: "ok"}, LogEntry{Status: "<b> \"ü\" \\", Metadata: json.RawMessage(`{ "n" : 1e400, "s":"\ud800" }`)})
	}
	noError(t, s.StoreArtifact("shop", "plain", known(body(5000, 9)))) // without a digest
	log("shop", "log-only", LogEntry{Status: "failed"})
	for _, build := range []string{"b1", "b2", "b3"} {
		_, _, err := s.MoveLabel("shop", LabelMove{Label: "live", BuildID: build, By: "ci"})
		noError(t, err)
	}
	_, _, err := s.MoveLabel("shop", LabelMove{Label: "qa", BuildID: "plain"})
	noError(t, err)
	storeWithDigest(t, s, "blog", "b0", body(10, 7))
}

// storeText describes all that a store has, except times and ETags.
func storeText(t *testing.T, s copyable) string {
	t.Helper()
	var b strings.Builder
	sites, err := s.ListSites("", "", 1000, nil)
	noError(t, err)
	for _, site := range sites {
		page, err := s.ListVersionsPage(site, VersionQuery{Tags: true})
		noError(t, err)
		slices.SortFunc(page.Versions, func(x, y *Version) int { return strings.Compare(x.BuildID, y.BuildID) })
		for _, v := range page.Versions {
			fmt.Fprintf(&b, "%s/%s", site, v.BuildID)
			if v.etag != "" {
				data, err := fetch(s, site, v.BuildID)
				noError(t, err)
				fmt.Fprintf(&b, " %d bytes %x", len(data), sha256.Sum256(data))
			}
			fmt.Fprintln(&b, v.LogsError)
			for _, e := range entriesIn(t, page, v) {
				fmt.Fprintf(&b, "  %s %s %s %s %s\n", e.ID, e.Action, e.Status, e.Timestamp.Format(time.RFC3339Nano), e.Metadata)
			}
		}
		labels, err := s.ListLabels(site)
		noError(t, err)
		for _, l := range labels {
			fmt.Fprintf(&b, "%s: %s is %s, was %s, by %s\n", site, l.Name, l.BuildID, l.Previous, l.By)
		}
	}
	return b.String()
}

// entriesIn returns the entries of the log of a version, as they are stored.
func entriesIn(t *testing.T, page *VersionPage, v *Version) (entries []LogEntry) {
	t.Helper()
	if v.Stored == nil {
		return nil
	}
	log, err := page.OpenLog(v.BuildID)
	noError(t, err)
	defer log.Close()
	noError(t, log.scan(func(e LogEntry) error {
		e.Metadata = bytes.Clone(e.Metadata)
		entries = append(entries, e)
		return nil
	}))
	return entries
}

// sameStores checks that to has all of from, and a digest of each build.
func sameStores(t *testing.T, from, to copyable) {
	t.Helper()
	if want, got := storeText(t, from), storeText(t, to); want != got {
		t.Errorf("the target has\n%s\ninstead of\n%s", got, want)
	}
	sites, err := to.ListSites("", "", 1000, nil)
	noError(t, err)
	for _, site := range sites {
		page, err := to.ListVersionsPage(site, VersionQuery{Tags: true})
		noError(t, err)
		for _, v := range page.Versions {
			if v.etag == "" {
				continue
			}
			data, err := fetch(to, site, v.BuildID)
			noError(t, err)
			if info, err := to.StatArtifact(site, v.BuildID); err != nil || info.SHA256 != sha256.Sum256(data) {
				t.Errorf("%s/%s has the digest %s, %v", site, v.BuildID, info.SHA256, err)
			}
		}
	}
}

// orderOf returns the builds of a site, the newest first.
func orderOf(t *testing.T, s copyable, site string) (builds []string) {
	t.Helper()
	page, err := s.ListVersionsPage(site, VersionQuery{Tags: true})
	noError(t, err)
	for _, v := range page.Versions {
		if v.etag != "" {
			builds = append(builds, v.BuildID)
		}
	}
	return builds
}

// TestCopy: all of a store is copied, in its order, and a second run has nothing to do.
func TestCopy(t *testing.T) {
	for fromKind, openFrom := range copyStores {
		for toKind, openTo := range copyStores {
			t.Run(fromKind+" to "+toKind, func(t *testing.T) {
				from, to := openFrom(t), openTo(t)
				fillStore(t, from)
				before := storeText(t, from)
				c := copyOnce(t, t.Context(), from, to, copyOptions{})
				if statusOf(c) != 0 || c.with(copyCopied) != "build blog/b0, build shop/b0, build shop/b1, build shop/b2, build shop/b3, build shop/plain" ||
					c.with(copyMoved) != "label shop/b3 live, label shop/plain qa" {
					t.Errorf("%v: %+v", c.err, c.events)
				}
				if s := c.summary; s.Sites != 2 || s.Builds != 7 || s.Copied != 6 || s.CopiedBytes != s.Bytes || s.Entries != 9 || s.Logs != 5 || s.Labels != 2 || s.Same != 0 || s.LogOnly != 1 || !s.Complete {
					t.Errorf("the summary is %+v", s)
				}
				sameStores(t, from, to)
				if storeText(t, from) != before {
					t.Error("the source changed")
				}
				if want, got := orderOf(t, from, "shop"), orderOf(t, to, "shop"); !slices.Equal(got, want) {
					t.Errorf("the order is %q, want %q", got, want)
				}
				again := copyOnce(t, t.Context(), from, to, copyOptions{Replace: true})
				if s := again.summary; statusOf(again) != 0 || len(again.events) > 0 || s.Same != 6 || s.Copied+s.Entries+s.Labels != 0 {
					t.Errorf("again: %v, %+v, %+v", again.err, again.events, s)
				}
			})
		}
	}
}

// TestCopyKeepsTimes where the target can.
func TestCopyKeepsTimes(t *testing.T) {
	for kind, open := range copyStores {
		from, to := open(t), openCopyNFS(t, t.TempDir())
		fillStore(t, from)
		copyOnce(t, t.Context(), from, to, copyOptions{})
		for _, build := range orderOf(t, from, "shop") {
			a, err := from.StatArtifact("shop", build)
			noError(t, err)
			b, err := to.StatArtifact("shop", build)
			noError(t, err)
			if d := b.ModTime.Sub(a.ModTime).Abs(); d > time.Nanosecond {
				t.Errorf("from %s: %s has %v instead of %v", kind, build, b.ModTime, a.ModTime)
			}
		}
	}
}

// TestCopyIsKilled at each call of a store, before and after the call had its effect. Another run
// copies the rest.
func TestCopyIsKilled(t *testing.T) {
	for _, side := range []string{"source", "target"} {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, applied %v", side, applied), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { // a move of a label waits for one that was interrupted
					for kill := 1; killCopy(t, kill, side, applied, openCopyMem(newMemBucket())); kill++ {
					}
				})
				for kill := 4; kill < 60; kill += 11 {
					killCopy(t, kill, side, applied, openCopyNFS(t, t.TempDir()))
				}
			})
		}
	}
}

// killCopy kills a copy between a bucket and other at a call of the bucket, and copies again. It
// reports whether there were as many calls.
func killCopy(t *testing.T, kill int, side string, applied bool, other copyable) bool {
	t.Helper()
	m := newMemBucket()
	var from, to copyable = openCopyMem(m), other
	if side == "target" {
		from, to = to, from
	}
	fillStore(t, from)
	calls := 0
	m.fault = func(string, string) (bool, error) {
		if calls++; calls >= kill {
			return applied && calls == kill, errors.New("the process is dead")
		}
		return false, nil
	}
	c := copyOnce(t, t.Context(), from, to, copyOptions{})
	m.fault = nil
	if calls < kill { // the counting of all bytes may be slower or faster
		if statusOf(c) != 0 || kill < 20 {
			t.Errorf("%d calls: %v, %+v", calls, c.err, c.events)
		}
		return false
	}
	mem := openCopyMem(m)
	if side == "target" {
		to = mem
	} else {
		from = mem
	}
	if c := copyOnce(t, t.Context(), from, to, copyOptions{}); statusOf(c) != 0 {
		t.Fatalf("killed at call %d, then: %v, %+v", kill, c.err, c.events)
	}
	if want, got := storeText(t, from), storeText(t, to); withoutPrevious(want) != withoutPrevious(got) {
		t.Fatalf("killed at call %d: the target has\n%s\ninstead of\n%s", kill, got, want)
	}
	return true
}

// withoutPrevious removes from the text of a store what labels named before: a label that exists
// is only moved to its build.
func withoutPrevious(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		head, _, _ := strings.Cut(line, ", was ")
		b.WriteString(strings.TrimSpace(head) + "\n")
	}
	return b.String()
}

// TestCopyIsInterrupted at each call of the target, and copies the rest then.
func TestCopyIsInterrupted(t *testing.T) {
	for stop := 1; ; stop++ {
		from, m := openCopyMem(newMemBucket()), newMemBucket()
		fillStore(t, from)
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		m.fault = func(string, string) (bool, error) {
			if calls++; calls == stop {
				cancel()
			}
			return false, nil
		}
		c := copyOnce(t, ctx, from, openCopyMem(m), copyOptions{})
		m.fault = nil
		cancel()
		if calls < stop {
			if stop < 20 || statusOf(c) != 0 {
				t.Errorf("%d calls: %v", calls, c.err)
			}
			return
		}
		if c.err != nil && (!errors.Is(c.err, errCopyInterrupted) || statusOf(c) != exitIncomplete || c.summary.Complete || c.summary.Failed > 0) {
			t.Fatalf("stopped at call %d: %v, %+v, %+v", stop, c.err, c.summary, c.events)
		}
		if c.err != nil && !strings.Contains(c.summary.String(), "incomplete: interrupted; run it again to continue\n") {
			t.Fatalf("stopped at call %d: the summary is %s", stop, c.summary)
		}
		to := openCopyMem(m)
		if c := copyOnce(t, t.Context(), from, to, copyOptions{}); statusOf(c) != 0 {
			t.Fatalf("stopped at call %d, then: %v, %+v", stop, c.err, c.events)
		}
		if want, got := storeText(t, from), storeText(t, to); withoutPrevious(want) != withoutPrevious(got) {
			t.Fatalf("stopped at call %d: the target has\n%s\ninstead of\n%s", stop, got, want)
		}
	}
}

// TestCopyStops when a store fails, or denies access.
func TestCopyStops(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		events int // that failed
		want   string
	}{
		{ErrDenied, exitDenied, 1, "denied"},
		{ErrNoSpace, exitIncomplete, 1, "no space"},
		{ErrReadOnly, exitIncomplete, 1, "read-only"},
		{errors.New("broken"), exitIncomplete, copyMaxFailed, "times in a row: "},
	} {
		from, m := openCopyNFS(t, t.TempDir()), newMemBucket()
		fillStore(t, from)
		m.fault = func(op, _ string) (bool, error) {
			if op == "put" {
				return false, c.err
			}
			return false, nil
		}
		got := copyOnce(t, t.Context(), from, openCopyMem(m), copyOptions{})
		if statusOf(got) != c.status || !errors.Is(got.err, errCopyStops) || !strings.Contains(got.err.Error(), c.want) || got.summary.Failed < int64(c.events) || got.summary.Failed >= int64(c.events+copyParallel) || got.summary.Complete {
			t.Errorf("%v: exit status %d, %v, %+v", c.err, statusOf(got), got.err, got.events)
		}
		// The reason is in the line of the build, and on standard error.
		text, failure := got.summary.String(), (&copyArgs{}).result(got.summary.copyCounts, got.err)
		if strings.Contains(text, c.want) || !strings.Contains(text, "incomplete: stopped by an error; correct the cause") || !strings.Contains(failure.Error(), "copy: stopped") || !strings.Contains(failure.Error(), c.want) {
			t.Errorf("%v: the summary is %s; the error is %v", c.err, text, failure)
		}
	}
}
