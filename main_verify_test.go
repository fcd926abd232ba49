package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// verifyOutput is what "verify --json" printed, and its exit status.
type verifyOutput struct {
	findings []verifyFinding
	summary  verifySummary
	status   int
	stderr   string
}

// results returns "result site/build" of each finding, sorted.
func (o verifyOutput) results() []string {
	all := []string{}
	for _, f := range o.findings {
		all = append(all, strings.TrimSuffix(f.Result+" "+f.Site+"/"+f.Build, "/"))
	}
	slices.Sort(all)
	return all
}

// verifyStore runs "verify --json" with more arguments on the store at base.
func verifyStore(t *testing.T, base string, args ...string) verifyOutput {
	t.Helper()
	return verifyWith(t, t.Context(), []string{"NFS_BASE_PATH=" + base}, args...)
}

func verifyWith(t *testing.T, ctx context.Context, vars []string, args ...string) (o verifyOutput) {
	t.Helper()
	environ := []string{}
	for _, v := range vars {
		environ = append(environ, envPrefix+v)
	}
	var out string
	out, o.stderr, o.status = runJSON(ctx, verifyCommand, environ, args)
	o.parse(t, out)
	return o
}

// runJSON runs a command with --json, and returns what it printed, and its exit status.
func runJSON(ctx context.Context, command string, environ, args []string) (stdout, stderr string, status int) {
	var out bytes.Buffer
	log := &lockedBuffer{}
	if err := run(ctx, append([]string{command, "--json"}, args...), environ, &out, log); err != nil {
		status = exitStatus(err)
		fmt.Fprintln(log, err)
	}
	return out.String(), log.String(), status
}

// parse reads the output of --json: findings, and at its end the summary.
func (o *verifyOutput) parse(t *testing.T, out string) {
	t.Helper()
	for line := range strings.Lines(out) {
		var f struct {
			Type string
			verifyFinding
		}
		if err := json.Unmarshal([]byte(line), &f); err != nil || o.summary.Type != "" {
			t.Fatalf("%v: %q", err, out)
		}
		switch f.Type {
		case "finding":
			o.findings = append(o.findings, f.verifyFinding)
		case "summary":
			if err := json.Unmarshal([]byte(line), &o.summary); err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatalf("a line of the type %q", f.Type)
		}
	}
}

// buildPath is the file of a build in a directory of its site.
func buildPath(base, site, dir, build string) string {
	return filepath.Join(base, sitesDir, site, dir, fileName(dir, build))
}

// uploadAll uploads the same bytes, with their digest computed, to each site/build.
func uploadAll(t *testing.T, data []byte, names ...string) (base string) {
	t.Helper()
	s := startServer(t, "DIGEST=always")
	for _, name := range names {
		site, build, _ := strings.Cut(name, "/")
		s.do(t, 201, request{"PUT", "/sites/" + site + "/artifacts/" + build, data, nil})
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	return s.dir
}

// flip inverts a bit of a file. keepTime leaves its time as it was.
func flip(t *testing.T, path string, at int64, keepTime bool) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := []byte{0}
	_, err = f.ReadAt(b, at)
	b[0] ^= 0x10
	_, err2 := f.WriteAt(b, at)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if keepTime {
		setTime(t, path, info.ModTime())
	}
}

func setTime(t *testing.T, path string, at time.Time) {
	t.Helper()
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// TestVerifyNamesWhatIsWrong: each kind of damage, of one of three builds.
func TestVerifyNamesWhatIsWrong(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 50_000)
	last := int64(len(data) - 1)
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, artifact, digest string)
		want   string // the only finding; empty: none
		status int
		counts verifyCounts // of the builds and what else is found
	}{
		{"nothing", func(*testing.T, string, string) {}, "", 0, verifyCounts{OK: 3}},
		{"first byte", func(t *testing.T, a, _ string) { flip(t, a, 0, true) }, "corrupt shop/b", exitCorrupt, verifyCounts{OK: 2, Corrupt: 1}},
		{"middle byte", func(t *testing.T, a, _ string) { flip(t, a, last/2, true) }, "corrupt shop/b", exitCorrupt, verifyCounts{OK: 2, Corrupt: 1}},
		{"last byte", func(t *testing.T, a, _ string) { flip(t, a, last, true) }, "corrupt shop/b", exitCorrupt, verifyCounts{OK: 2, Corrupt: 1}},
		{"bytes and time", func(t *testing.T, a, _ string) {
			flip(t, a, last, false)
			setTime(t, a, time.Now().Add(-time.Hour))
		}, "changed shop/b", exitCorrupt, verifyCounts{OK: 2, Changed: 1}},
		{"bytes and time, just now", func(t *testing.T, a, _ string) { flip(t, a, last, false) }, "changed shop/b", exitCorrupt, verifyCounts{OK: 2, Changed: 1}},
		{"size", func(t *testing.T, a, _ string) { noError(t, os.Truncate(a, last)) }, "changed shop/b", exitCorrupt, verifyCounts{OK: 2, Changed: 1}},
		{"time, as after a restore", func(t *testing.T, a, _ string) { setTime(t, a, time.Now().Add(-time.Hour)) }, "", 0, verifyCounts{OK: 3, Rebound: 1}},
		{"no digest", func(t *testing.T, _, d string) { noError(t, os.Remove(d)) }, "unknown shop/b", 0, verifyCounts{OK: 2, Unknown: 1}},
		{"a digest that cannot be read", func(t *testing.T, _, d string) { noError(t, os.WriteFile(d, []byte("x"), 0o644)) }, "damaged_digest shop/b", exitCorrupt, verifyCounts{OK: 2, DamagedDigests: 1}},
		{"no artifact", func(t *testing.T, a, _ string) { noError(t, os.Remove(a)) }, "", 0, verifyCounts{OK: 2}},
		{"a directory as the artifact", func(t *testing.T, a, _ string) { noError(t, os.Remove(a)); noError(t, os.Mkdir(a, 0o755)) }, "foreign shop", 0, verifyCounts{OK: 2, Foreign: 1}},
		{"a foreign file", func(t *testing.T, a, _ string) { noError(t, os.WriteFile(a+".bak", nil, 0o644)) }, "foreign shop", 0, verifyCounts{OK: 3, Foreign: 1}},
		{"a damaged log", func(t *testing.T, a, _ string) {
			logs := filepath.Join(filepath.Dir(filepath.Dir(a)), logsDir)
			noError(t, os.MkdirAll(logs, 0o755))
			noError(t, os.WriteFile(filepath.Join(logs, "b.json"), []byte("{"), 0o644))
		}, "damaged_log shop/b", exitCorrupt, verifyCounts{OK: 3, DamagedLogs: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := uploadAll(t, data, "shop/a", "shop/b", "shop/c")
			c.damage(t, buildPath(base, "shop", artifactsDir, "b"), buildPath(base, "shop", digestsDir, "b"))
			o := verifyStore(t, base, "-v")
			if got := strings.Join(o.results(), ", "); got != c.want || o.status != c.status {
				t.Errorf("found %q with exit status %d, want %q, %d; %s", got, o.status, c.want, c.status, o.stderr)
			}
			counts := o.summary.verifyCounts
			counts.Sites, counts.Bytes = 0, 0
			if counts != c.counts || !o.summary.Complete {
				t.Errorf("the summary is %+v, want %+v", o.summary, c.counts)
			}
			for _, f := range o.findings {
				if (f.Result == resultCorrupt || f.Result == resultChanged) && (len(f.Expected) != 64 || len(f.Got) != 64 || f.Expected == f.Got) {
					t.Errorf("expected %q, got %q", f.Expected, f.Got)
				}
			}
			if again := verifyStore(t, base, "-v"); again.summary.Rebound != 0 || !slices.Equal(again.results(), o.results()) {
				t.Errorf("the second run: %v, %+v", again.results(), again.summary)
			}
		})
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestVerifyFills: --fill keeps what is missing, so that the next run is ok and the service
// sends the digest. It does not touch what is corrupt, nor a digest that cannot be read.
func TestVerifyFills(t *testing.T) {
	base := uploadAll(t, []byte("some bytes"), "a/1", "a/2", "b/1", "c/1")
	noError(t, os.Remove(buildPath(base, "a", digestsDir, "1")))
	noError(t, os.Remove(buildPath(base, "b", digestsDir, "1")))
	flip(t, buildPath(base, "a", artifactsDir, "2"), 3, true)
	damaged := buildPath(base, "c", digestsDir, "1")
	flip(t, damaged, 70, true)
	flip(t, buildPath(base, "c", artifactsDir, "1"), 3, true)
	before := readWhole(t, damaged)
	for _, want := range []verifyCounts{{Corrupt: 1, Filled: 2, DamagedDigests: 1}, {Corrupt: 1, OK: 2, DamagedDigests: 1}} {
		o := verifyStore(t, base, "--fill")
		counts := o.summary.verifyCounts
		counts.Sites, counts.Bytes = 0, 0
		if counts != want || o.status != exitCorrupt {
			t.Errorf("exit status %d, %+v, want %+v", o.status, counts, want)
		}
	}
	if !bytes.Equal(readWhole(t, damaged), before) {
		t.Error("--fill has replaced a damaged digest")
	}
	s := startServer(t, "NFS_BASE_PATH="+base)
	sum := sha256.Sum256([]byte("some bytes"))
	field := "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
	for build, want := range map[string]string{"a/artifacts/1": field, "b/artifacts/1": field,
		"a/artifacts/2": field, // of a corrupt build: what was uploaded, so that clients notice
		"c/artifacts/1": ""} {  // not known
		if got := s.do(t, 200, request{"GET", "/sites/" + build, nil, nil}).header.Get("Repr-Digest"); got != want {
			t.Errorf("%s: Repr-Digest %q, want %q", build, got, want)
		}
	}
}

// TestVerifyReportsADamagedDigest: also for people, in the state and in the textfile, and without -v.
func TestVerifyReportsADamagedDigest(t *testing.T) {
	base := uploadAll(t, []byte("some bytes"), "a/1", "a/2")
	flip(t, buildPath(base, "a", digestsDir, "1"), 70, true)
	file := filepath.Join(t.TempDir(), "verify.prom")
	var out bytes.Buffer
	err := run(t.Context(), []string{"verify", "--textfile", file}, []string{"PAGEWRIGHT_NFS_BASE_PATH=" + base}, &out, io.Discard)
	if err == nil || exitStatus(err) != exitCorrupt {
		t.Errorf("the error is %v", err)
	}
	for _, want := range []string{"damaged_digest a/1: the digest in ", " 1 ok, 0 corrupt, 0 changed, 0 unknown, 0 skipped\n", "\n1 damaged digest\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the output\n%s", want, &out)
		}
	}
	if text := string(readWhole(t, file)); !strings.Contains(text, `pagewright_verify_builds{result="damaged_digest"} 1`+"\n") {
		t.Errorf("the textfile is\n%s", text)
	}
	if s := readState(t, base); s.Counts.DamagedDigests != 1 || len(s.Findings) != 1 || s.Findings[0].Result != resultDamagedDigest {
		t.Errorf("the state is %+v", s)
	}
	noError(t, os.Remove(buildPath(base, "a", digestsDir, "1"))) // as the documentation says
	if o := verifyStore(t, base, "--fill"); o.status != 0 || o.summary.OK != 1 || o.summary.Filled != 1 {
		t.Errorf("without the file: exit status %d, %+v", o.status, o.summary)
	}
}

// TestVerifyWritesNothingWhenReadOnly: neither the digest that it would bind again, nor its state.
func TestVerifyWritesNothingWhenReadOnly(t *testing.T) {
	base := uploadAll(t, []byte("x"), "a/1", "a/2")
	setTime(t, buildPath(base, "a", artifactsDir, "1"), time.Unix(1_700_000_000, 5))
	before := treeOf(t, base)
	vars := []string{"NFS_BASE_PATH=" + base, "READ_ONLY=true", "DIGEST=off"}
	if o := verifyWith(t, t.Context(), vars); o.status != 0 || o.summary.OK != 2 || o.summary.Rebound != 0 || strings.Contains(o.stderr, "cannot keep") {
		t.Errorf("exit status %d, %+v; %s", o.status, o.summary, o.stderr)
	}
	if after := treeOf(t, base); after != before {
		t.Errorf("the store changed from\n%s\nto\n%s", before, after)
	}
	if o := verifyWith(t, t.Context(), vars, "--fill"); o.status != exitUsage {
		t.Errorf("--fill: exit status %d", o.status)
	}
	if o := verifyWith(t, t.Context(), vars[:1]); o.summary.Rebound != 1 {
		t.Errorf("without READ_ONLY: %+v", o.summary)
	}
}

// treeOf lists all below dir: names, modes, times and contents.
func treeOf(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	noError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintf(&b, "%s %s %d", path, info.Mode(), info.ModTime().UnixNano())
		}
		if err == nil && !d.IsDir() {
			fmt.Fprintf(&b, " %q", readWhole(t, path))
		}
		b.WriteByte('\n')
		return err
	}))
	return b.String()
}

// TestVerifySelects: --site and --since.
func TestVerifySelects(t *testing.T) {
	base := uploadAll(t, []byte("x"), "shop-1/new", "shop-1/old", "shop-2/new", "blog/new", "shop/old")
	for _, site := range []string{"shop-1", "shop"} {
		at := time.Now().Add(-50 * time.Hour)
		setTime(t, buildPath(base, site, artifactsDir, "old"), at)
	}
	if o := verifyStore(t, base); o.summary.Rebound != 2 {
		t.Fatal(o.summary)
	}
	for _, c := range []struct {
		args          string
		sites, builds int64
		status        int
	}{
		{"", 4, 5, 0},
		{"--site shop-1", 1, 2, 0},
		{"--site shop-1 --site blog --site shop-1", 2, 3, 0},
		{"--site shop-*", 2, 3, 0},
		{"--site *o*", 4, 5, 0},
		{"--site *g --site shop", 2, 2, 0},
		{"--site none", 0, 0, exitAbsent},
		{"--site none*", 0, 0, exitAbsent},
		{"--site none --site shop", 1, 1, 0},
		{"--since 24h", 4, 3, 0},
		{"--since 2d", 4, 3, 0},
		{"--since 1w", 4, 5, 0},
		{"--since 2d --site shop", 1, 0, 0},
	} {
		o := verifyStore(t, base, strings.Fields(c.args)...)
		if o.summary.Sites != c.sites || o.summary.OK != c.builds || o.summary.Builds != c.builds || o.status != c.status {
			t.Errorf("%s: %d of %d builds in %d sites, exit status %d; %s", c.args, o.summary.OK, o.summary.Builds, o.summary.Sites, o.status, o.stderr)
		}
	}
}

func TestVerifyArguments(t *testing.T) {
	for _, c := range []struct {
		args   string
		status int
		want   string
	}{
		{"now", exitUsage, `unexpected argument "now"`},
		{"--all", exitUsage, "not defined: -all"},
		{"--site -x", exitUsage, "must begin with a letter"},
		{"--site a/b", exitUsage, "must contain only"},
		{"--site", exitUsage, "needs an argument"},
		{"--since 0s", exitUsage, "24h, 30d or 2w"},
		{"--since -1d", exitUsage, "24h, 30d or 2w"},
		{"--since 1y", exitUsage, "24h, 30d or 2w"},
		{"--since 9999999999d", exitUsage, "24h, 30d or 2w"},
		{"--rate fast", exitUsage, "50MiB/s"},
		{"--rate -1", exitUsage, "50MiB/s"},
		{"--rate 50", exitUsage, "with a unit"},
		{"--rate 50/s", exitUsage, "with a unit"},
		{"--textfile x.prom --site a", exitUsage, "--site or --since"},
		{"--textfile x.prom --since 2d", exitUsage, "--site or --since"},
		{"--rate 50MiB/s --rate none", 0, ""},
		{"--rate 1MB --since 1.5h", 0, ""},
		{"--rate 0", 0, ""},
	} {
		_, err := parseVerifyArgs(strings.Fields(c.args))
		if c.status == 0 && err != nil || c.status != 0 && (err == nil || exitStatus(err) != c.status || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.args, err, c.want)
		}
	}
	dir := t.TempDir()
	for name, c := range map[string]struct {
		vars   []string
		status int
	}{
		"a variable": {[]string{"NFS_BASE_PATH=" + dir, "PORT=x"}, exitConfig},
		"no store":   {[]string{"NFS_BASE_PATH=" + dir + "/none"}, exitFailure},
	} {
		if o := verifyWith(t, t.Context(), c.vars); o.status != c.status {
			t.Errorf("%s: exit status %d, want %d", name, o.status, c.status)
		}
	}
}

// TestVerifyResult: what is corrupt wins over what is incomplete.
func TestVerifyResult(t *testing.T) {
	failed := errors.New("failed")
	for _, c := range []struct {
		counts verifyCounts
		err    error
		want   int
	}{
		{verifyCounts{OK: 1, Unknown: 2, Filled: 1, Foreign: 3}, nil, 0},
		{verifyCounts{Corrupt: 1}, nil, exitCorrupt},
		{verifyCounts{Changed: 1}, nil, exitCorrupt},
		{verifyCounts{DamagedDigests: 1}, nil, exitCorrupt},
		{verifyCounts{DamagedLogs: 1}, nil, exitCorrupt},
		{verifyCounts{Skipped: 1}, nil, exitIncomplete},
		{verifyCounts{OK: 1}, failed, exitIncomplete},
		{verifyCounts{Corrupt: 1, Skipped: 1}, failed, exitCorrupt},
		{verifyCounts{Corrupt: 1}, fmt.Errorf("%w: full", errVerifyOutput), exitFailure},
	} {
		got := 0
		if err := verifyResult(&verifyState{Counts: c.counts}, c.err); err != nil {
			got = exitStatus(err)
		}
		if got != c.want {
			t.Errorf("%+v, %v: exit status %d, want %d", c.counts, c.err, got, c.want)
		}
	}
}

// TestVerifyIsStoppedAndResumed: SIGTERM stops the real program, and --resume reads the rest and
// nothing twice.
func TestVerifyIsStoppedAndResumed(t *testing.T) {
	data := bytes.Repeat([]byte("x"), 100_000)
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("s%d/b%d", i%3, i))
	}
	base := uploadAll(t, data, names...)
	flip(t, buildPath(base, "s0", artifactsDir, "b18"), 1, true) // the first that is read
	cmd := exec.Command(os.Args[0], "verify", "--json", "--rate", "100kB/s")
	cmd.Env = append(os.Environ(), childVariable+"=main", "PAGEWRIGHT_NFS_BASE_PATH="+base)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	noError(t, err)
	noError(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill() }()
	first := make([]byte, 1)
	if _, err := stdout.Read(first); err != nil { // the finding; 1.9 MB at 0.1 MB/s are left
		t.Fatal(err, stderr.String())
	}
	noError(t, cmd.Process.Signal(syscall.SIGTERM))
	rest, _ := io.ReadAll(stdout)
	_ = cmd.Wait()
	var stopped verifyOutput
	stopped.parse(t, string(first)+string(rest))
	if status := cmd.ProcessState.ExitCode(); status != exitCorrupt || stopped.summary.Complete || stopped.summary.Error == "" {
		t.Fatalf("exit status %d, %+v; %s", status, stopped.summary, stderr.String())
	}
	done := stopped.summary.Builds
	if done == 0 || done >= 20 {
		t.Fatalf("stopped after %d builds", done)
	}
	o := verifyStore(t, base, "--resume")
	if !o.summary.Resumed || o.summary.Builds != 20 || o.summary.OK != 19 || o.summary.Corrupt != 1 || len(o.findings) != 0 ||
		o.summary.Bytes != int64(20*len(data)) || !o.summary.Started.Equal(stopped.summary.Started) || o.status != exitCorrupt {
		t.Errorf("resumed: exit status %d, %+v, %v; %s", o.status, o.summary, o.findings, o.stderr)
	}
}

// TestVerifyResumes: an interrupted run goes on where it stopped, with what it had found.
func TestVerifyResumes(t *testing.T) {
	base := uploadAll(t, []byte("some bytes"), "a/1", "a/2", "b/1", "b/2", "b/3", "c/1")
	flip(t, buildPath(base, "a", artifactsDir, "1"), 0, true)
	all := verifyStore(t, base)
	state := readState(t, base)
	if state.Finished.IsZero() || !state.Complete || state.Counts != all.summary.verifyCounts || len(state.Findings) != 1 || state.Findings[0].Result != resultCorrupt {
		t.Fatalf("the state is %+v", state)
	}
	// As if it had been killed within site b, after its newest build.
	list, err := openTestNFS(t, base).ListVersions("b")
	noError(t, err)
	state.Complete, state.Finished = false, time.Time{}
	state.Counts = verifyCounts{Sites: 1, OK: 2, Corrupt: 1, Bytes: 30}
	state.Position = verifyPosition{Site: "b", Cursor: formatCursor(list[0].place())}
	for _, c := range []struct {
		name    string
		change  func(s *verifyState)
		args    []string
		resumed bool
		read    []string // the builds that are read
	}{
		{"as it was", func(*verifyState) {}, []string{"--resume"}, true, []string{"b", "b", "c"}},
		{"behind the last build of a site", func(s *verifyState) { s.Position.Cursor = formatCursor(list[2].place()) }, []string{"--resume"}, true, []string{"c"}},
		{"between sites", func(s *verifyState) { s.Position = verifyPosition{After: "a"} }, []string{"--resume"}, true, []string{"b", "b", "b", "c"}},
		{"a site that is gone", func(s *verifyState) { s.Position = verifyPosition{Site: "az", Cursor: "x"} }, []string{"--resume"}, true, []string{"b", "b", "b", "c"}},
		{"a cursor that is not one", func(s *verifyState) { s.Position.Cursor = "x" }, []string{"--resume"}, true, []string{"b", "b", "b", "c"}},
		{"without --resume", func(*verifyState) {}, nil, false, []string{"a", "a", "b", "b", "b", "c"}},
		{"other options", func(*verifyState) {}, []string{"--resume", "--fill"}, false, []string{"a", "a", "b", "b", "b", "c"}},
		{"a run that came to the end", func(s *verifyState) { s.Complete = true }, []string{"--resume"}, false, []string{"a", "a", "b", "b", "b", "c"}},
		{"no place", func(s *verifyState) { s.Position = verifyPosition{} }, []string{"--resume"}, false, []string{"a", "a", "b", "b", "b", "c"}},
		{"before the first build", func(s *verifyState) {
			s.Position, s.Passed, s.Counts, s.Findings = verifyPosition{}, verifyPassed{}, verifyCounts{Foreign: 1}, nil
		}, []string{"--resume"}, true, []string{"a", "a", "b", "b", "b", "c"}},
		{"a place outside", func(s *verifyState) { s.Position = verifyPosition{Site: "../a"} }, []string{"--resume"}, false, []string{"a", "a", "b", "b", "b", "c"}},
	} {
		changed := state
		c.change(&changed)
		writeState(t, base, changed)
		o := verifyStore(t, base, c.args...)
		want := int64(len(c.read))
		if c.resumed && want < 6 {
			want += 3
		}
		if stopped := strings.Contains(o.stderr, "no stopped run"); stopped == (c.resumed || c.args == nil) {
			t.Errorf("%s: stderr is %s", c.name, o.stderr)
		}
		if c.resumed && !o.summary.Started.Equal(state.Started) || o.summary.Foreign > 0 {
			t.Errorf("%s: %+v", c.name, o.summary)
		}
		if o.summary.Resumed != c.resumed || o.summary.Builds != want || o.summary.Corrupt != 1 || o.status != exitCorrupt || !o.summary.Complete {
			t.Errorf("%s: exit status %d, %+v, want %d builds; %s", c.name, o.status, o.summary, want, o.stderr)
		}
		if o.summary.Sites != 3 && c.name != "a site that is gone" {
			t.Errorf("%s: %d sites", c.name, o.summary.Sites)
		}
		if kept := readState(t, base); !kept.Complete || kept.Counts != o.summary.verifyCounts || len(kept.Findings) != 1 {
			t.Errorf("%s: the state is %+v", c.name, kept)
		}
	}
}

// TestVerifyWithAStateThatCannotBeUsed: --resume begins from the start, with one warning.
func TestVerifyWithAStateThatCannotBeUsed(t *testing.T) {
	base := uploadAll(t, []byte("some bytes"), "a/1", "a/2")
	path := filepath.Join(base, "status", "verify.json")
	others := maps.Clone(otherThanFiles)
	others["half of it"] = func(path string) error { return os.WriteFile(path, []byte(`{"position":`), 0o644) }
	others["too much"] = func(path string) error { return os.WriteFile(path, make([]byte, verifyMaxState+1), 0o644) }
	for what, replace := range others {
		noError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		noError(t, os.RemoveAll(path))
		noError(t, replace(path))
		o := verifyStore(t, base, "--resume")
		if o.status != 0 || o.summary.Resumed || o.summary.OK != 2 || strings.Count(o.stderr, "cannot use the state") != 1 {
			t.Errorf("%s: exit status %d, %+v; %s", what, o.status, o.summary, o.stderr)
		}
		if what == "a directory" { // which a file cannot replace
			continue
		}
		if s := readState(t, base); !s.Complete {
			t.Errorf("%s: the state is %+v", what, s)
		}
	}
}

// TestVerifyOfAnotherStore: a base without sites is not taken for a store in which all is well.
func TestVerifyOfAnotherStore(t *testing.T) {
	base, file := t.TempDir(), filepath.Join(t.TempDir(), "verify.prom")
	if o := verifyStore(t, base, "--textfile", file); o.status != exitAbsent || !strings.Contains(o.stderr, "no sites") {
		t.Errorf("exit status %d, %s", o.status, o.stderr)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("it wrote a textfile")
	}
	wantFiles(t, base)
}

// TestVerifyAsRoot: files of root would be in the way of the service.
func TestVerifyAsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root could create files that the service cannot replace")
	}
	base := uploadAll(t, []byte("some bytes"), "a/1")
	noError(t, os.Chown(base+"/sites", 65534, 65534))
	if o := verifyStore(t, base, "--fill"); o.status != exitDenied || !strings.Contains(o.stderr, "user 65534") {
		t.Errorf("exit status %d, %s", o.status, o.stderr)
	}
	if _, err := os.Stat(base + "/status"); err == nil {
		t.Error("it wrote a state")
	}
	if o := verifyWith(t, t.Context(), []string{"NFS_BASE_PATH=" + base, "READ_ONLY=true"}); o.status != 0 {
		t.Errorf("read-only: exit status %d, %s", o.status, o.stderr)
	}
}

// TestVerifyOfAPart does not replace the result of the whole store.
func TestVerifyOfAPart(t *testing.T) {
	base := uploadAll(t, []byte("some bytes"), "a/1", "b/1")
	verifyStore(t, base)
	whole := readState(t, base)
	for _, args := range []string{"--site a", "--site none", "--since 1h"} {
		verifyStore(t, base, strings.Fields(args)...)
		if got := readState(t, base); !got.Started.Equal(whole.Started) || got.Counts != whole.Counts {
			t.Errorf("%s: the state is now %+v", args, got)
		}
	}
}

func readState(t *testing.T, base string) (s verifyState) {
	t.Helper()
	data, err := openTestNFS(t, base).ReadStatus(verifyStatus)
	noError(t, err)
	noError(t, json.Unmarshal(data, &s))
	return s
}

func writeState(t *testing.T, base string, s verifyState) {
	t.Helper()
	data, err := json.Marshal(s)
	noError(t, err)
	noError(t, openTestNFS(t, base).WriteStatus(verifyStatus, data))
}

// TestVerifyTwiceAtOnce is harmless.
func TestVerifyTwiceAtOnce(t *testing.T) {
	base := uploadAll(t, []byte("some bytes"), "a/1", "a/2", "b/1")
	noError(t, os.Remove(buildPath(base, "a", digestsDir, "1")))
	results := make(chan verifyOutput)
	for range 2 {
		go func() { results <- verifyStore(t, base, "--fill") }()
	}
	for range 2 {
		if o := <-results; o.status != 0 || o.summary.OK+o.summary.Filled != 3 {
			t.Errorf("exit status %d, %+v; %s", o.status, o.summary, o.stderr)
		}
	}
	if o := verifyStore(t, base); o.summary.OK != 3 {
		t.Errorf("afterwards: %+v", o.summary)
	}
}

// TestVerifyText is the output for people, in the order of the sites and the age of the builds.
func TestVerifyText(t *testing.T) {
	base := uploadAll(t, []byte("some bytes"), "a/1", "a/2", "b/1")
	sum := strings.Fields(string(readWhole(t, buildPath(base, "a", digestsDir, "1"))))
	flip(t, buildPath(base, "a", artifactsDir, "1"), 0, true)
	noError(t, os.Remove(buildPath(base, "a", digestsDir, "2")))
	noError(t, os.WriteFile(buildPath(base, "b", artifactsDir, "1")+"\n", nil, 0o644))
	noError(t, os.WriteFile(filepath.Join(base, sitesDir, "notes"), nil, 0o644))
	if o := verifyStore(t, base, "--site", "*"); o.summary.Foreign != 1 {
		t.Errorf("with --site: %+v", o.summary)
	}
	var out bytes.Buffer
	environ := []string{"PAGEWRIGHT_NFS_BASE_PATH=" + base}
	err := run(t.Context(), []string{"verify", "-v"}, environ, &out, io.Discard)
	if err == nil || err.Error() != "" || exitStatus(err) != exitCorrupt { // the summary says all: no line on stderr
		t.Errorf("the error is %v", err)
	}
	kept := ""
	for _, word := range sum {
		if len(word) == 64 {
			kept = word
		}
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	for i, want := range []string{`foreign: "sites/notes" (file)`, "unknown a/2", "corrupt a/1: the SHA-256 is ", `foreign b: "sites/b/artifacts/1.tar.gz\n" (file)`, "3 builds in 2 sites, 20 B read in ", "2 foreign files"} {
		if i >= len(lines) || !strings.HasPrefix(lines[i], want) {
			t.Fatalf("line %d is not %q:\n%s", i, want, out.String())
		}
	}
	if len(lines) != 6 || !strings.HasSuffix(lines[2], "kept is "+kept) || !strings.HasSuffix(lines[4], ": 1 ok, 1 corrupt, 0 changed, 1 unknown, 0 skipped") {
		t.Errorf("the output is\n%s", out.String())
	}
	if err := run(t.Context(), []string{"verify", "--site", "a"}, environ, fullWriter{}, io.Discard); err == nil || exitStatus(err) != exitFailure || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("with an output that is full: %v", err)
	}
}

func readWhole(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	noError(t, err)
	return data
}

type fullWriter struct{}

func (fullWriter) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestVerifyTextfile: the file has all metrics, everybody may read it, and an incomplete run
// leaves the time of the latest complete one.
func TestVerifyTextfile(t *testing.T) {
	base := uploadAll(t, []byte("some bytes"), "a/1", "b/1")
	file := filepath.Join(t.TempDir(), "verify.prom")
	old := syscall.Umask(0o077)
	o := verifyStore(t, base, "--textfile", file)
	syscall.Umask(old)
	complete := readWhole(t, file)
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o644 || o.status != 0 || !strings.Contains(string(complete), "pagewright_verify_builds{result=\"ok\"} 2\n") {
		t.Fatalf("%v, %v, exit status %d:\n%s", err, info.Mode(), o.status, complete)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	flip(t, buildPath(base, "a", artifactsDir, "1"), 0, true)
	if o := verifyWith(t, ended, []string{"NFS_BASE_PATH=" + base}, "--textfile", file); o.status != exitIncomplete || o.summary.Complete {
		t.Fatalf("exit status %d, %+v", o.status, o.summary)
	}
	stopped := readWhole(t, file)
	if a, b := metricOf(complete, metricLastComplete), metricOf(stopped, metricLastComplete); a == 0 || a != b || metricOf(stopped, metricLastRun) < a {
		t.Errorf("complete at %f, then %f:\n%s", a, b, stopped)
	}
	if names, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
	for _, want := range []int{exitCorrupt, exitFailure} { // damage wins
		if o := verifyStore(t, base, "--textfile", filepath.Join(base, "none", "x.prom")); o.status != want || !strings.Contains(o.stderr, "--textfile: ") || o.summary.Type == "" {
			t.Errorf("a directory that is not there: exit status %d, want %d; %s", o.status, want, o.stderr)
		}
		flip(t, buildPath(base, "a", artifactsDir, "1"), 0, true) // as it was
	}
}

// TestVerifyTextfileWithoutOutput: the file is written even if the output cannot be.
func TestVerifyTextfileWithoutOutput(t *testing.T) {
	base := uploadAll(t, []byte("some bytes"), "a/1", "b/1")
	file := filepath.Join(t.TempDir(), "verify.prom")
	args, environ := []string{"verify", "--textfile", file}, []string{"PAGEWRIGHT_NFS_BASE_PATH=" + base}
	for _, want := range []string{"ok", "corrupt"} {
		err := run(t.Context(), args, environ, fullWriter{}, io.Discard)
		if err == nil || exitStatus(err) != exitFailure || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", want, err)
		}
		text := string(readWhole(t, file))
		if !strings.Contains(text, `{result="`+want+`"} `) || strings.Contains(text, `{result="`+want+`"} 0`) {
			t.Errorf("%s: the file is\n%s", want, text)
		}
		flip(t, buildPath(base, "a", artifactsDir, "1"), 0, true)
	}
}

// TestVerifyStoppedWhileTheStoreHangs: the exit status and the textfile still say what was found.
func TestVerifyStoppedWhileTheStoreHangs(t *testing.T) {
	for _, c := range []struct {
		damaged bool
		status  int
		metric  string
	}{{false, exitIncomplete, `{result="ok"} 1`}, {true, exitCorrupt, `{result="corrupt"} 1`}} {
		base := uploadAll(t, []byte("some bytes"), "a/1", "a/2")
		if c.damaged {
			flip(t, buildPath(base, "a", artifactsDir, "2"), 0, true)
		}
		s := openFaulty(t, base)
		hangs, resume := make(chan struct{}), make(chan struct{})
		s.onFetch = func(build string) error {
			if build == "1" {
				close(hangs)
				<-resume
			}
			return nil
		}
		var out, log lockedBuffer
		a := verifyArgs{textfile: filepath.Join(t.TempDir(), "verify.prom")}
		v := newVerifier(s, a.options, 0, &verifyReport{commandOutput: commandOutput{stdout: &out, stderr: &log}})
		v.stopWait = time.Millisecond
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- a.run(ctx, v) }()
		<-hangs
		eventually(t, "the first build", func() bool {
			v.mu.Lock()
			defer v.mu.Unlock()
			return v.state.Passed.Builds == 1
		})
		stop()
		err := <-ended
		if err == nil || exitStatus(err) != c.status || !strings.Contains(err.Error(), "the store does not respond") {
			t.Errorf("damaged %t: %v", c.damaged, err)
		}
		text, err := os.ReadFile(a.textfile)
		if err != nil || !strings.Contains(string(text), c.metric) || metricOf(text, metricLastRun) == 0 || metricOf(text, metricLastComplete) != 0 {
			t.Errorf("damaged %t: %v; the textfile is\n%s", c.damaged, err, text)
		}
		close(resume)
		eventually(t, "the end of the run", func() bool {
			data, _ := s.ReadStatus(verifyStatus)
			return bytes.Contains(data, []byte(`"finished"`))
		})
	}
}

// verifyMetrics returns the names of the metrics of a textfile.
func verifyMetrics() map[string]bool {
	names := map[string]bool{}
	now := time.Unix(1_700_000_000, 0)
	for line := range strings.Lines(string(verifyTextfile(&verifyState{Started: now, Finished: now, Complete: true}, nil))) {
		if name, _, _ := strings.Cut(line, " "); name != "#" {
			name, _, _ = strings.Cut(name, "{")
			names[name] = true
		}
	}
	return names
}

// TestVerifyFindsTheTerminal: progress is only rewritten where that works.
func TestVerifyFindsTheTerminal(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	noError(t, err)
	defer file.Close()
	r, w, err := os.Pipe()
	noError(t, err)
	defer r.Close()
	defer w.Close()
	for _, c := range []struct {
		name    string
		w       io.Writer
		environ []string
		want    bool
	}{
		{"a buffer", io.Discard, nil, false},
		{"a file", file, nil, false},
		{"a pipe", w, nil, false},
	} {
		if got := isTerminal(c.w, c.environ); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	noError(t, err)
	defer pty.Close()
	if !isTerminal(pty, []string{"TERM=xterm"}) || isTerminal(pty, []string{"TERM=dumb"}) {
		t.Error("a terminal")
	}
}
