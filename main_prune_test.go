package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// agedBuild is a build for storeAged.
type agedBuild struct {
	name   string // site/build
	days   int    // age of the upload, or of the log entry if there is only a log
	status string // of the entries of the log, separated by commas; empty: no log
	logged bool   // there is only a log
}

// storeAged makes a store of builds, without grace for their arrival, which is now.
func storeAged(t *testing.T, builds ...agedBuild) (base string) {
	t.Helper()
	base = t.TempDir()
	n := openTestNFS(t, base)
	n.useDigests()
	for _, b := range builds {
		site, build, _ := strings.Cut(b.name, "/")
		at := time.Now().Add(-time.Duration(b.days) * 24 * time.Hour).UTC()
		if !b.logged {
			mustStore(t, n, site, build, []byte("the bytes of "+b.name))
			info, err := n.StatArtifact(site, build)
			noError(t, err)
			noError(t, n.KeepDigest(site, build, info, Digest{1}))
			setTime(t, buildPath(base, site, artifactsDir, build), at)
		}
		for i, status := range strings.FieldsFunc(b.status, func(r rune) bool { return r == ',' }) {
			noError(t, n.WriteLog(site, LogEntry{ID: fmt.Sprint(i + 1), BuildID: build, Action: "build", Status: status, Timestamp: at}))
		}
	}
	arrived := time.Now()
	eventually(t, "the builds are older than now by the clock of the store, too", func() bool { return time.Since(arrived) > 20*time.Millisecond })
	return base
}

// shop returns n builds of the site shop, b1 being 10 days old, b2 20 days, and so on.
func shop(n int) (builds []agedBuild) {
	for i := range n {
		builds = append(builds, agedBuild{name: fmt.Sprintf("shop/b%d", i+1), days: 10 * (i + 1)})
	}
	return builds
}

// pruned is what "prune --json" printed, and its exit status.
type pruned struct {
	builds  map[string]string // action by site/build
	reasons map[string]string
	sites   map[string]pruneSiteLine
	summary pruneSummary
	status  int
	stderr  string
}

// with returns the builds that have the action, sorted.
func (p pruned) with(action string) string {
	var names []string
	for name, a := range p.builds {
		if a == action {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func retentionFileOf(t testing.TB, rules string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "retention.json")
	switchFile(t, path, []byte(`{"grace":"0h","rules":[`+rules+`]}`))
	return path
}

const keepTwo = `{"sites":["*"],"keep_last":2,"labels":"optional"}`

func pruneWith(t *testing.T, ctx context.Context, base, rules string, vars []string, args ...string) (p pruned) {
	t.Helper()
	environ := []string{"PAGEWRIGHT_NFS_BASE_PATH=" + base}
	if rules != "" {
		environ = append(environ, "PAGEWRIGHT_RETENTION_FILE="+retentionFileOf(t, rules))
	}
	for _, v := range vars {
		environ = append(environ, envPrefix+v)
	}
	var out string
	out, p.stderr, p.status = runJSON(ctx, pruneCommand, environ, args)
	p.parse(t, out)
	return p
}

func pruneStore(t *testing.T, base, rules string, args ...string) pruned {
	t.Helper()
	return pruneWith(t, t.Context(), base, rules, nil, args...)
}

// parse reads the output of --json, which has a summary at its end.
func (p *pruned) parse(t *testing.T, out string) {
	t.Helper()
	p.builds, p.reasons, p.sites = map[string]string{}, map[string]string{}, map[string]pruneSiteLine{}
	for line := range strings.Lines(out) {
		var kind struct{ Type string }
		noError(t, json.Unmarshal([]byte(line), &kind))
		into := map[string]any{"build": new(pruneBuildLine), "site": new(pruneSiteLine), "summary": &p.summary}[kind.Type]
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(into); err != nil || p.summary.Type != "" && kind.Type != "summary" {
			t.Fatalf("%v: %q", err, out)
		}
		switch l := into.(type) {
		case *pruneBuildLine:
			p.builds[l.Site+"/"+l.Build], p.reasons[l.Site+"/"+l.Build] = l.Action, l.Reason
		case *pruneSiteLine:
			p.sites[l.Site] = *l
		}
	}
}

// builds returns site/build of all that is in the store, with + for an artifact, ~ for a digest
// and = for a log.
func buildsOf(t *testing.T, base string) string {
	t.Helper()
	have := map[string]string{}
	for _, kind := range []struct{ dir, suffix, mark string }{{artifactsDir, ".tar.gz", "+"}, {digestsDir, ".sha256", "~"}, {logsDir, ".json", "="}} {
		files, err := filepath.Glob(filepath.Join(base, sitesDir, "*", kind.dir, "*"+kind.suffix))
		noError(t, err)
		for _, f := range files {
			name := filepath.Base(filepath.Dir(filepath.Dir(f))) + "/" + strings.TrimSuffix(filepath.Base(f), kind.suffix)
			have[name] += kind.mark
		}
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(have)) {
		all = append(all, name+have[name])
	}
	return strings.Join(all, " ")
}

// TestPruneWithoutApply prints the plan and changes nothing, not even a time.
func TestPruneWithoutApply(t *testing.T) {
	base := storeAged(t, shop(5)...)
	before := treeOf(t, base)
	p := pruneStore(t, base, keepTwo)
	if got := p.with(pruneRemove); got != "shop/b3 shop/b4 shop/b5" || p.with(pruneKeep) != "shop/b1 shop/b2" || p.status != 0 {
		t.Errorf("it would remove %s, exit status %d, %s", got, p.status, p.stderr)
	}
	if s := p.sites["shop"]; s.Builds != 5 || s.Remove != 3 || s.Removed != 0 || s.RemoveBytes == 0 || s.Rule != `rules[0] "*"` {
		t.Errorf("the site is %+v", s)
	}
	if s := p.summary; s.Apply || !s.Complete || s.Sites != 1 || s.Builds != 5 || s.Remove != 3 || s.Removed != 0 || s.RemovedBytes != 0 {
		t.Errorf("the summary is %+v", s)
	}
	if after := treeOf(t, base); after != before {
		t.Errorf("the store changed from\n%s\nto\n%s", before, after)
	}
}

// TestPruneApplies: builds go with their digests and logs, and a second run has nothing to do.
func TestPruneApplies(t *testing.T) {
	base := storeAged(t, append(shop(4),
		agedBuild{name: "shop/f1", days: 1, status: "failed"}, agedBuild{name: "shop/f9", days: 9, status: "failed"}, agedBuild{name: "shop/x50", days: 50, status: "ok"},
		agedBuild{name: "shop/g8", days: 8, status: "failed,ok"}, agedBuild{name: "shop/r9", days: 9, status: "ok,failed"},
		agedBuild{name: "shop/l5", days: 5, status: "ok", logged: true}, agedBuild{name: "shop/l99", days: 99, status: "ok", logged: true},
		agedBuild{name: "blog/only", days: 400}, agedBuild{name: "other/b", days: 400}, agedBuild{name: "other/c", days: 400})...)
	rules := `{"sites":["shop","blog"],"keep_last":1,"keep_within":"15d","failed":{"status":["failed"],"after":"7d"},"logs_only_after":"90d","labels":"optional"}`
	const want = "blog/only+~ other/b+~ other/c+~ shop/b1+~ shop/f1+~= shop/g8+~= shop/l5="
	p := pruneStore(t, base, rules, "--apply")
	if got := buildsOf(t, base); got != want || p.status != 0 {
		t.Errorf("left are %s, want %s; exit status %d, %s", got, want, p.status, p.stderr)
	}
	if got := p.with(pruneRemoved); got != "shop/b2 shop/b3 shop/b4 shop/f9 shop/l99 shop/r9 shop/x50" {
		t.Errorf("removed: %s", got)
	}
	for build, reason := range map[string]string{"shop/f1": "newest", "shop/g8": "newest that did not fail", "shop/b1": "keep_within 15d", "shop/l5": "only a log, not older than 90d",
		"shop/b2": "beyond keep_last 1, older than 15d", "shop/f9": "failed, older than 7d", "shop/l99": "only a log, older than 90d", "blog/only": "newest"} {
		if p.reasons[build] != reason {
			t.Errorf("%s: %q, want %q", build, p.reasons[build], reason)
		}
	}
	if s := p.summary; s.Removed != 7 || s.RemovedBytes == 0 || s.RemovedBytes != s.RemoveBytes || s.Sites != 3 || s.NoRule != 1 || s.Failed+s.Changed+s.Labelled != 0 {
		t.Errorf("the summary is %+v", s)
	}
	state := readPruned(t, base)
	if !state.Complete || state.LastSuccess.IsZero() || state.Counts.Removed != 7 {
		t.Errorf("the state is %+v", state)
	}
	if p := pruneStore(t, base, rules, "--apply"); p.status != 0 || p.summary.Remove != 0 || buildsOf(t, base) != want {
		t.Errorf("again: %+v", p.summary)
	}
}

func readPruned(t *testing.T, base string) pruneState {
	t.Helper()
	s, err := readPruneState(openTestNFS(t, base))
	noError(t, err)
	return s
}

// TestPruneSkips: each reason, what force does about it, and that labels protect.
func TestPruneSkips(t *testing.T) {
	label := func(t *testing.T, base, build string) {
		t.Helper()
		_, _, err := openTestNFS(t, base).MoveLabel("shop", LabelMove{Label: "live", BuildID: build})
		noError(t, err)
	}
	const required = `{"sites":["*"],"keep_last":2}`
	labelFile := func(base string) string { return filepath.Join(base, sitesDir, "shop", labelsDir, "live.json") }
	for _, c := range []struct {
		name    string
		builds  int
		rule    string
		change  func(t *testing.T, base string)
		skip    skipReason
		status  int
		removed int
		forced  int // removed with --force
		left    string
	}{
		{"nothing is wrong", 5, required, func(t *testing.T, base string) { label(t, base, "b4") }, skipNone, 0, 2, 2, "shop/b1+~ shop/b2+~ shop/b4+~"},
		{"no label", 5, required, func(*testing.T, string) {}, skipNoLabel, 0, 0, 0, "shop/b1+~ shop/b2+~ shop/b3+~ shop/b4+~ shop/b5+~"},
		{"no label is needed", 5, keepTwo, func(*testing.T, string) {}, skipNone, 0, 3, 3, "shop/b1+~ shop/b2+~"},
		{"too much", 24, keepTwo, func(*testing.T, string) {}, skipPercent, exitIncomplete, 0, 22, "shop/b1+~ shop/b2+~"},
		{"much, but few", 12, keepTwo, func(*testing.T, string) {}, skipNone, 0, 10, 10, "shop/b1+~ shop/b2+~"},
		{"a label of a build that is gone", 5, required, func(t *testing.T, base string) {
			label(t, base, "b4")
			noError(t, os.Remove(buildPath(base, "shop", artifactsDir, "b4")))
		}, skipMissingBuild, exitIncomplete, 0, 0, "shop/b1+~ shop/b2+~ shop/b3+~ shop/b4~ shop/b5+~"},
		{"a damaged label", 5, keepTwo, func(t *testing.T, base string) {
			label(t, base, "b1")
			noError(t, os.WriteFile(labelFile(base), []byte("{"), 0o644))
		}, skipUnreadableLabel, exitIncomplete, 0, 0, "shop/b1+~ shop/b2+~ shop/b3+~ shop/b4+~ shop/b5+~"},
		{"a damaged log", 5, keepTwo, func(t *testing.T, base string) {
			noError(t, os.MkdirAll(filepath.Join(base, sitesDir, "shop", logsDir), 0o755))
			noError(t, os.WriteFile(buildPath(base, "shop", logsDir, "b4"), []byte("{"), 0o644))
		}, skipUnreadableLog, exitIncomplete, 0, 2, "shop/b1+~ shop/b2+~ shop/b4+~="},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := storeAged(t, shop(c.builds)...)
			c.change(t, base)
			p := pruneStore(t, base, c.rule, "--apply")
			if s := p.sites["shop"]; s.Skipped != c.skip || p.status != c.status || s.Removed != c.removed || (s.Detail == "") != (c.skip == skipNone) {
				t.Errorf("exit status %d, %+v; %s", p.status, s, p.stderr)
			}
			skipped := map[skipReason]int64{}
			if c.skip != skipNone {
				skipped[c.skip] = 1
			}
			if !maps.Equal(p.summary.Skipped, skipped) || p.summary.SkippedSites != int64(len(skipped)) || p.summary.Removed != int64(c.removed) || !p.summary.Complete {
				t.Errorf("the summary is %+v", p.summary)
			}
			if c.skip != skipNone && len(p.builds) > 0 {
				t.Errorf("builds of a site that is skipped: %v", p.builds)
			}
			if state := readPruned(t, base); (len(state.Skipped) == 0) != (c.skip == skipNone) || c.skip != skipNone && (state.Skipped[0].Reason != c.skip || !slices.Equal(state.Skipped[0].Sites, []string{"shop"})) {
				t.Errorf("the state is %+v", state)
			}
			f := pruneStore(t, base, c.rule, "--apply", "--force")
			if s := f.sites["shop"]; c.removed+s.Removed != c.forced || s.Forced != (c.forced > c.removed) {
				t.Errorf("with --force: %+v", s)
			}
			status := c.status
			if c.forced > c.removed {
				status = 0
			}
			if left := buildsOf(t, base); f.status != status || left != c.left {
				t.Errorf("with --force: exit status %d, left are %s; %s", f.status, left, f.stderr)
			}
		})
	}
}

func TestPruneArguments(t *testing.T) {
	base := storeAged(t, shop(4)...)
	bad, long := retentionFileOf(t, `{"sites":["*"]}`), retentionFileOf(t, `{"sites":["`+strings.Repeat("x", 100_000)+`"],"keep_last":1}`)
	for _, c := range []struct {
		name   string
		base   string
		rules  string
		vars   []string
		args   string
		status int
		want   string // in the error
	}{
		{"an argument", base, keepTwo, nil, "now", exitUsage, `unexpected argument "now"`},
		{"an unknown option", base, keepTwo, nil, "--all", exitUsage, "not defined: -all"},
		{"a site that cannot be", base, keepTwo, nil, "--site a/b", exitUsage, "must contain only"},
		{"a variable", base, keepTwo, []string{"PORT=x"}, "", exitConfig, "PAGEWRIGHT_PORT"},
		{"no file", base, "", nil, "", exitConfig, "PAGEWRIGHT_RETENTION_FILE is not set"},
		{"a bad file", base, "", []string{"RETENTION_FILE=" + bad}, "", exitConfig, `rules[0] "*"`},
		{"a file that is missing", base, "", []string{"RETENTION_FILE=" + bad + "x"}, "", exitConfig, "no such file"},
		{"an append-only store", base, keepTwo, []string{"APPEND_ONLY=true"}, "--apply", exitConfig, "PAGEWRIGHT_APPEND_ONLY"},
		{"the plan of one", base, keepTwo, []string{"APPEND_ONLY=true"}, "", 0, ""},
		{"a read-only service", base, keepTwo, []string{"READ_ONLY=true"}, "--apply", exitConfig, "PAGEWRIGHT_READ_ONLY"},
		{"the plan of one", base, keepTwo, []string{"READ_ONLY=true"}, "", 0, ""},
		{"no such site", base, keepTwo, nil, "--site x* --site none --site sh*", exitAbsent, "no site matches --site x*\nprune: no site matches --site none\n"},
		{"a glob of no site", base, keepTwo, nil, "--site x*", 0, "no site matches --site x*\n"},
		{"a long glob", base, keepTwo, nil, "--site " + strings.Repeat("x", 100_000), exitUsage, "xxx…"},
		{"a long glob in the file", base, "", []string{"RETENTION_FILE=" + long}, "", exitConfig, `xxx…": sites[0]: "xxx`},
		{"no sites at all", t.TempDir(), keepTwo, nil, "--apply", exitAbsent, "no sites"},
		{"no store", base + "/none", keepTwo, nil, "", exitFailure, "no such file"},
	} {
		before := buildsOf(t, base)
		p := pruneWith(t, t.Context(), c.base, c.rules, c.vars, strings.Fields(c.args)...)
		if p.status != c.status || !strings.Contains(p.stderr, c.want) || len(p.stderr) > 1000 {
			t.Errorf("%s: exit status %d, want %d; %s", c.name, p.status, c.status, p.stderr)
		}
		if buildsOf(t, base) != before {
			t.Errorf("%s: it removed builds", c.name)
		}
	}
}

// TestPruneSelectsSites: only those that match --site, whose result is not that of the store.
func TestPruneSelectsSites(t *testing.T) {
	var builds []agedBuild
	for _, site := range []string{"a", "shop-1", "shop-2"} {
		builds = append(builds, agedBuild{name: site + "/x", days: 1}, agedBuild{name: site + "/y", days: 2}, agedBuild{name: site + "/z", days: 3})
	}
	base := storeAged(t, builds...)
	p := pruneStore(t, base, keepTwo, "--apply", "--site", "shop-*", "--site", "none")
	if got := p.with(pruneRemoved); got != "shop-1/z shop-2/z" || p.summary.Sites != 2 {
		t.Errorf("removed %s; %+v", got, p.summary)
	}
	if state := readPruned(t, base); !state.Started.IsZero() {
		t.Errorf("the state is %+v", state)
	}
}

// TestPruneAsRoot: files of root would be in the way of the service.
func TestPruneAsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root could create files that the service cannot replace")
	}
	base := storeAged(t, shop(4)...)
	noError(t, os.Chown(base+"/sites", 65534, 65534))
	before := treeOf(t, base)
	if p := pruneStore(t, base, keepTwo, "--apply"); p.status != exitDenied || !strings.Contains(p.stderr, "user 65534") {
		t.Errorf("exit status %d, %s", p.status, p.stderr)
	}
	if p := pruneStore(t, base, keepTwo); p.status != 0 {
		t.Errorf("without --apply: exit status %d, %s", p.status, p.stderr)
	}
	if after := treeOf(t, base); after != before {
		t.Errorf("the store changed to\n%s", after)
	}
}

// TestPruneText is the output for people.
func TestPruneText(t *testing.T) {
	base := storeAged(t, append(shop(3), agedBuild{name: "blog/b", days: 1}, agedBuild{name: "none/b", days: 1})...)
	environ := []string{"PAGEWRIGHT_NFS_BASE_PATH=" + base, "PAGEWRIGHT_RETENTION_FILE=" + retentionFileOf(t, `{"sites":["shop"],"keep_last":2,"labels":"optional"},{"sites":["blog"],"keep_last":2}`)}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, `blog: skipped, nothing is removed: no label: label the build that is live, or set "labels": "optional" in rules[1] "blog"
none: no rule, everything is kept
keep     shop/b1                                    10d      20 B  newest
keep     shop/b2                                    20d      20 B  keep_last 2
remove   shop/b3                                    30d      20 B  beyond keep_last 2
shop: 1 of 3 builds to remove, 20 B of 60 B, by rules[0] "shop"
3 sites, 4 builds, 79 B: 1 build to remove, 20 B
1 site without a rule, whose builds are not counted
1 site skipped: no_label
nothing was removed; run with --apply to remove builds
`},
		{[]string{"--apply", "--site", "shop"}, `keep     shop/b1                                    10d      20 B  newest
keep     shop/b2                                    20d      20 B  keep_last 2
removed  shop/b3                                    30d      20 B  beyond keep_last 2
shop: 1 of 3 builds removed, 20 B of 60 B, by rules[0] "shop"
1 site, 3 builds, 60 B: 1 build removed, 20 B
`},
	} {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"prune"}, c.args...), environ, &out, io.Discard)
		if err != nil || out.String() != c.want {
			t.Errorf("%v: %v\n%s", c.args, err, out.String())
		}
	}
	if err := run(t.Context(), []string{"prune"}, environ, fullWriter{}, io.Discard); err == nil || exitStatus(err) != exitFailure {
		t.Errorf("with an output that is full: %v", err)
	}
}

// TestPruneIsStopped: SIGTERM and SIGKILL at any moment lose nothing that is kept, and another run
// removes the rest.
func TestPruneIsStopped(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		builds := shop(1 + 2*pruneBatch)
		for i := range builds {
			builds[i].status = "ok"
		}
		base := storeAged(t, builds...)
		rules := `{"sites":["*"],"keep_last":1,"labels":"optional"}`
		file := filepath.Join(t.TempDir(), "retention.json")
		switchFile(t, file, []byte(`{"grace":"0h","max_delete_percent":100,"rules":[`+rules+`]}`))
		cmd := exec.Command(os.Args[0], "prune", "--apply", "--json")
		cmd.Env = append(os.Environ(), childVariable+"=main", "PAGEWRIGHT_NFS_BASE_PATH="+base, "PAGEWRIGHT_RETENTION_FILE="+file)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		noError(t, err)
		_, err = unix.FcntlInt(stdout.(*os.File).Fd(), unix.F_SETPIPE_SZ, 4<<10) // it waits after some lines
		noError(t, err)
		noError(t, cmd.Start())
		first := make([]byte, 4<<10)
		_, err = io.ReadFull(stdout, first)
		noError(t, err)
		noError(t, cmd.Process.Signal(signal))
		rest, _ := io.ReadAll(stdout)
		_ = cmd.Wait()
		all := string(first) + string(rest)
		left := strings.Count(buildsOf(t, base), "+~")
		if removed := strings.Count(all, `"removed"`); removed == 0 || left < 2 || !strings.Contains(buildsOf(t, base), "shop/b1+~=") {
			t.Fatalf("%v: %d builds removed, %d left; %s", signal, removed, left, stderr.String())
		}
		if status := cmd.ProcessState.ExitCode(); signal == syscall.SIGTERM && (status != exitIncomplete || !strings.Contains(all, `"complete":false,"error":"interrupted"`)) {
			t.Errorf("exit status %d; %s", status, rest)
		}
		p := pruneStore(t, base, `{"sites":["*"],"keep_last":1,"logs_only_after":"1d","labels":"optional"}`, "--apply", "--force")
		if got := buildsOf(t, base); got != "shop/b1+~=" || p.status != 0 {
			t.Errorf("%v: left are %s; exit status %d, %s", signal, got, p.status, p.stderr)
		}
	}
}

// TestPruneTwiceAtOnce does no harm.
func TestPruneTwiceAtOnce(t *testing.T) {
	base := storeAged(t, shop(200)...)
	results := make(chan pruned)
	for range 2 {
		go func() { results <- pruneStore(t, base, keepTwo, "--apply", "--force") }()
	}
	var removed, changed int64
	for range 2 {
		p := <-results
		if p.status != 0 || p.summary.Failed > 0 {
			t.Errorf("exit status %d, %+v; %s", p.status, p.summary, p.stderr)
		}
		removed += p.summary.Removed
		changed += p.summary.Changed
	}
	if got := buildsOf(t, base); got != "shop/b1+~ shop/b2+~" || removed < 198 {
		t.Errorf("%d builds removed and %d changed, left are %s", removed, changed, got)
	}
}
