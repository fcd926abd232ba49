package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// envFileOf writes a file of variables.
func envFileOf(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store.env")
	noError(t, os.WriteFile(path, []byte("# a store\n"+strings.Join(lines, "\n")+"\n"), 0o600))
	return path
}

// dirEnv writes the file of a store in a directory.
func dirEnv(t *testing.T, base string, vars ...string) string {
	t.Helper()
	lines := []string{`PAGEWRIGHT_NFS_BASE_PATH="` + base + `"`}
	for _, v := range vars {
		lines = append(lines, envPrefix+v)
	}
	return envFileOf(t, lines...)
}

// copyCommandOf runs the command with --json.
func copyCommandOf(t *testing.T, ctx context.Context, args ...string) (c copied, stderr string, status int) {
	t.Helper()
	out, stderr, status := runJSON(ctx, copyCommand, []string{"PAGEWRIGHT_PORT=not read"}, args)
	return parseCopied(t, out), stderr, status
}

// TestCopyCommand copies a directory, and has nothing to do then.
func TestCopyCommand(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	fillStore(t, openCopyNFS(t, from))
	before, empty := treeOf(t, from), treeOf(t, to)
	args := []string{"--from-env", dirEnv(t, from, "READ_ONLY=true", "PORT=1"), "--to-env", dirEnv(t, to)}
	c, stderr, status := copyCommandOf(t, t.Context(), append(args, "--dry-run")...)
	if status != 0 || c.summary.Planned != 13 || !c.summary.DryRun || treeOf(t, to) != empty {
		t.Errorf("dry run: exit status %d, %+v, %s", status, c.summary, stderr)
	}
	c, stderr, status = copyCommandOf(t, t.Context(), append(args, "--site", "sh*", "--rate", "1GB")...)
	if status != 0 || c.summary.Copied != 5 || c.summary.Sites != 1 {
		t.Errorf("one site: exit status %d, %+v, %s", status, c.summary, stderr)
	}
	c, stderr, status = copyCommandOf(t, t.Context(), args...)
	if status != 0 || c.summary.Copied != 1 || c.summary.Same != 5 || !c.summary.Complete {
		t.Errorf("all: exit status %d, %+v, %s", status, c.summary, stderr)
	}
	sameStores(t, openCopyNFS(t, from), openCopyNFS(t, to))
	if treeOf(t, from) != before {
		t.Error("the source changed")
	}
}

// TestCopyText is the output for people.
func TestCopyText(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	n := openCopyNFS(t, from)
	storeWithDigest(t, n, "shop", "b1", body(2000, 1))
	fillLog := entry("1", "b1", n.disk.now())
	noError(t, n.WriteLog("shop", fillLog))
	_, _, err := n.MoveLabel("shop", LabelMove{Label: "live", BuildID: "b1"})
	noError(t, err)
	args := []string{copyCommand, "--from-env", dirEnv(t, from), "--to-env", dirEnv(t, to)}
	for _, c := range []struct{ option, want string }{
		{"--dry-run", "copy     shop/b1  2.0 KiB\nappend   shop/b1  log, 1 entry\nmove     shop  label live -> b1\n1 build in 1 site, 2.0 KiB: 3 to do, 0 the same, 0 conflicts\nnothing was changed: this was a dry run\n"},
		{"--replace", "copied   shop/b1  2.0 KiB\nappended shop/b1  log, 1 entry\nmoved    shop  label live -> b1\n1 build in 1 site, 2.0 KiB: 1 copied, 0 replaced, 0 the same, 1 entry in 1 log, 1 label; 2.0 KiB in 0s\n"},
		{"--replace", "1 build in 1 site, 2.0 KiB: 0 copied, 0 replaced, 1 the same, 0 entries in 0 logs, 0 labels; 0 B in 0s\n"},
	} {
		var out, log bytes.Buffer
		err := run(t.Context(), append(args, c.option), nil, &out, &log)
		got := regexp.MustCompile(`in [0-9ms]+\n`).ReplaceAllString(out.String(), "in 0s\n")
		if err != nil || got != c.want {
			t.Errorf("%s: %v, %s\n%s", c.option, err, log.String(), got)
		}
	}
	if err := run(t.Context(), append(args, "--dry-run"), nil, fullWriter{}, io.Discard); err == nil || exitStatus(err) != exitFailure {
		t.Errorf("with an output that is full: %v", err)
	}
}

func TestCopyArguments(t *testing.T) {
	base, to := t.TempDir(), t.TempDir()
	storeWithDigest(t, openCopyNFS(t, base), "shop", "b1", body(10, 1))
	from, target := dirEnv(t, base), dirEnv(t, to)
	link := filepath.Join(t.TempDir(), "link")
	noError(t, os.Symlink(base, link))
	for _, c := range []struct {
		name   string
		args   string
		status int
		want   string // in the error
	}{
		{"nothing", "", exitUsage, "--from-env is missing"},
		{"no target", "--from-env " + from, exitUsage, "--to-env is missing"},
		{"an argument", "--from-env a --to-env b c", exitUsage, `unexpected argument "c"`},
		{"an unknown option", "--all", exitUsage, "not defined: -all"},
		{"a site that cannot be", "--site a/b", exitUsage, "must contain only"},
		{"an age", "--since 3", exitUsage, "must be an age"},
		{"a rate", "--rate 3", exitUsage, "must be a number of bytes per second"},
		{"no file", "--from-env " + base + "/none --to-env " + target, exitConfig, `--from-env "` + base + `/none": cannot open: no such file`},
		{"no file of the target", "--from-env " + from + " --to-env none", exitConfig, `--to-env "none": cannot open: no such file`},
		{"a directory in place of a file", "--from-env " + base + " --to-env " + target, exitConfig, `--from-env "` + base + `": cannot read: is a directory`},
		{"a bad line", "--from-env " + envFileOf(t, "secret") + " --to-env " + target, exitConfig, "line 2 has no ="},
		{"a bad variable", "--from-env " + from + " --to-env " + dirEnv(t, to, "PORT=x"), exitConfig, "PAGEWRIGHT_PORT"},
		{"an unknown variable", "--from-env " + from + " --to-env " + dirEnv(t, to, "NFS_BASEPATH=x"), exitConfig, "did you mean PAGEWRIGHT_NFS_BASE_PATH"},
		{"a missing directory", "--from-env " + from + " --to-env " + dirEnv(t, to+"/none"), exitFailure, "--to-env"},
		{"half a configuration", "--from-env " + from + " --to-env " + envFileOf(t, "PAGEWRIGHT_STORAGE_BACKEND=s3"), exitConfig, "--to-env"},
		{"a read-only target", "--from-env " + from + " --to-env " + dirEnv(t, to, "READ_ONLY=true"), exitConfig, "PAGEWRIGHT_READ_ONLY"},
		{"an append-only target", "--replace --from-env " + from + " --to-env " + dirEnv(t, to, "APPEND_ONLY=true"), exitConfig, "PAGEWRIGHT_APPEND_ONLY"},
		{"one store", "--from-env " + from + " --to-env " + dirEnv(t, link), exitConfig, "the same store"},
		{"a target inside the source", "--from-env " + from + " --to-env " + dirEnv(t, link+"/sites/shop"), exitConfig, "inside the directory of --from-env"},
		{"the plan of a target inside the source", "--dry-run --from-env " + from + " --to-env " + dirEnv(t, base+"/sites"), exitConfig, "inside the directory of --from-env"},
		{"no sites at all", "--from-env " + target + " --to-env " + from, exitAbsent, "no sites"},
		{"no such site", "--site none --from-env " + from + " --to-env " + target, exitAbsent, "--site none"},
		{"the plan of a read-only target", "--dry-run --from-env " + from + " --to-env " + dirEnv(t, to, "READ_ONLY=true"), 0, ""},
		{"an append-only target that is only added to", "--from-env " + from + " --to-env " + dirEnv(t, to, "APPEND_ONLY=true", "DIGEST=off"), 0, ""},
	} {
		_, stderr, status := copyCommandOf(t, t.Context(), strings.Fields(c.args)...)
		if status != c.status || !strings.Contains(stderr, c.want) || strings.Contains(stderr, "secret") {
			t.Errorf("%s: exit status %d, want %d; %s", c.name, status, c.status, stderr)
		}
	}
}

// TestCopyIsEnded: a signal at any moment leaves whole builds, and another run copies the rest.
func TestCopyIsEnded(t *testing.T) {
	for _, end := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGKILL} {
		if signal.Ignored(end) { // by nohup: then the copy goes on
			continue
		}
		from, to := t.TempDir(), t.TempDir()
		n := openCopyNFS(t, from)
		for i := range 100 {
			storeWithDigest(t, n, "shop", fmt.Sprint("b", i), body(2000, byte(i)))
		}
		args := []string{"--from-env", dirEnv(t, from), "--to-env", dirEnv(t, to)}
		cmd := exec.Command(os.Args[0], append([]string{copyCommand, "--json"}, args...)...)
		cmd.Env = append(os.Environ(), childVariable+"=main")
		stdout, err := cmd.StdoutPipe()
		noError(t, err)
		_, err = unix.FcntlInt(stdout.(*os.File).Fd(), unix.F_SETPIPE_SZ, 4<<10) // it waits after some lines
		noError(t, err)
		noError(t, cmd.Start())
		first := make([]byte, 4<<10)
		_, err = io.ReadFull(stdout, first)
		noError(t, err)
		noError(t, cmd.Process.Signal(end))
		rest, _ := io.ReadAll(stdout)
		_ = cmd.Wait()
		if status := cmd.ProcessState.ExitCode(); end != syscall.SIGKILL && (status != exitIncomplete || !strings.Contains(string(rest), `"complete":false,"error":"interrupted"`)) {
			t.Errorf("%v: exit status %d; %s", end, status, rest)
		}
		c, stderr, status := copyCommandOf(t, t.Context(), args...)
		if status != 0 || c.summary.Same == 0 || c.summary.Copied == 0 {
			t.Errorf("%v: exit status %d, %+v; %s", end, status, c.summary, stderr)
		}
		sameStores(t, n, openCopyNFS(t, to))
	}
}

// TestCopyWithoutReader: nobody reads the output.
func TestCopyWithoutReader(t *testing.T) {
	from := t.TempDir()
	storeWithDigest(t, openCopyNFS(t, from), "shop", "b1", body(2000, 1))
	r, w, err := os.Pipe()
	noError(t, err)
	r.Close()
	cmd := exec.Command(os.Args[0], copyCommand, "--from-env", dirEnv(t, from), "--to-env", dirEnv(t, t.TempDir()))
	var stderr bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), childVariable+"=main"), w, &stderr
	_ = cmd.Run()
	w.Close()
	if status := cmd.ProcessState.ExitCode(); status != exitFailure || !strings.Contains(stderr.String(), "cannot write the output") {
		t.Errorf("exit status %d; %s", status, stderr.String())
	}
}

// TestCopySweeps: what a run that was killed left long ago is removed from the target.
func TestCopySweeps(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	storeWithDigest(t, openCopyNFS(t, from), "shop", "b1", body(2000, 1))
	old := leave(t, 3*time.Hour, to, sitesDir, "other", artifactsDir, aTempName())
	young := leave(t, time.Hour, to, sitesDir, "shop", artifactsDir, aTempName())
	args := []string{"--from-env", dirEnv(t, from), "--to-env", dirEnv(t, to, "TEMP_MAX_AGE=2h")}
	for _, dryRun := range []bool{true, false} {
		with := args
		if dryRun {
			with = append(args, "--dry-run")
		}
		_, stderr, status := copyCommandOf(t, t.Context(), with...)
		_, oldErr := os.Stat(old)
		_, youngErr := os.Stat(young)
		if status != 0 || os.IsNotExist(oldErr) == dryRun || youngErr != nil || strings.Contains(stderr, "removed 1 file") == dryRun {
			t.Errorf("dry run %v: exit status %d, %v, %v; %s", dryRun, status, oldErr, youngErr, stderr)
		}
	}
}
