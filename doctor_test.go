package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runDoctor runs the doctor to its end, with environ.
func runDoctor(environ ...string) (string, error) {
	var out bytes.Buffer
	err := run(context.Background(), []string{"doctor"}, environ, &out, io.Discard)
	return out.String(), err
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		all = append(all, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestDoctorOfADirectory(t *testing.T) {
	empty, used := t.TempDir(), t.TempDir()
	s := startServer(t, "NFS_BASE_PATH="+used)
	s.put(t, 201, "/sites/a/artifacts/b", "x")
	s.post(t, 201, "/sites/a/logs", `{"build_id":"b","action":"a","status":"s"}`)
	for _, dir := range []string{empty, used} {
		before := names(t, dir)
		out, err := runDoctor("PAGEWRIGHT_NFS_BASE_PATH=" + dir)
		if err != nil {
			t.Errorf("%v:\n%s", err, out)
		}
		for _, what := range []string{"mount", "make a directory", "fsync", "timestamp resolution", "rename", "case", "fsync a directory", "read", "link", "locks", "clocks"} {
			if !strings.Contains(out, what) {
				t.Errorf("nothing is said of %s:\n%s", what, out)
			}
		}
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "ok   ") {
				t.Errorf("on a good file system: %s", line)
			}
		}
		if after := names(t, dir); len(after) != len(before) {
			t.Errorf("left behind: there were %v, and are %v", before, after)
		}
	}
}

func TestDoctorFails(t *testing.T) {
	noSites := t.TempDir()
	if err := os.WriteFile(filepath.Join(noSites, sitesDir), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := runDoctor("PAGEWRIGHT_NFS_BASE_PATH=" + noSites); err == nil || !strings.Contains(out, "FAIL make a directory") {
		t.Errorf("where sites are is no directory: %v\n%s", err, out)
	}
	for _, c := range []struct {
		env  []string
		out  string
		want string
	}{
		{[]string{"PAGEWRIGHT_NFS_BASE_PATH=/proc"}, "FAIL make a directory", "failed"}, // takes no directories
		{[]string{"PAGEWRIGHT_NFS_BASE_PATH=/nowhere/at/all"}, "", "PAGEWRIGHT_NFS_BASE_PATH"},
		{[]string{"PAGEWRIGHT_STORAGE_BACKEND=s3", "PAGEWRIGHT_S3_BUCKET=b", "PAGEWRIGHT_S3_ENDPOINT=ftp://x"}, "", "PAGEWRIGHT_S3_ENDPOINT"},
	} {
		t.Run(strings.Join(c.env, " "), func(t *testing.T) {
			out, err := runDoctor(c.env...)
			if err != nil && strings.HasSuffix(err.Error(), "this binary was built without this backend") {
				t.Skip(err) // there is no configuration of that store to check; make test leaves none out
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(out, c.out) {
				t.Errorf("error %v, want %q; printed, want %q:\n%s", err, c.want, c.out, out)
			}
		})
	}
}

// checkMemory is the report about a store in memory.
func checkMemory(t *testing.T, m *memBucket) (string, error) {
	t.Helper()
	out, err := checkBucket(m)
	if len(m.objects) != 0 {
		t.Errorf("left behind: %v", m.objects)
	}
	return out, err
}

func checkBucket(b bucket) (string, error) {
	found := make(chan checkResult)
	go func() {
		defer close(found)
		newObjectStore(b, "p/", quiet()).runChecks(func(f checkResult) { found <- f })
	}()
	var out bytes.Buffer
	err := report(context.Background(), found, &out)
	return out.String(), err
}

func TestDoctorOfAnObjectStore(t *testing.T) {
	for _, c := range []struct {
		name  string
		set   func(m *memBucket)
		fails bool
		lines []string
	}{
		{"good", func(*memBucket) {}, false, []string{"ok   write an object", "ok   list the object", "ok   compare the clocks", "ok   names are case-sensitive", "ok   abort an upload"}},
		{"ignores conditions of parts", func(m *memBucket) { m.blind = func(o putOptions) bool { return o.parts } }, false,
			[]string{"warn refuse to create if the object exists, in parts", "warn conditional uploads are refused with 501", "ok   refuse to create if the object exists, in a single request"}},
		{"ignores all conditions", func(m *memBucket) { m.blind = func(putOptions) bool { return true } }, true,
			[]string{"FAIL log entries and labels are refused with 501"}},
		{"denies writes", func(m *memBucket) {
			m.fault = func(op, _ string) (bool, error) {
				if op == "put" {
					return false, errors.Join(ErrDenied, errors.New("over\nmany\nlines"))
				}
				return false, nil
			}
		}, true, []string{"FAIL write an object: the store denied access over many lines"}},
		{"loses the reply of every write", func(m *memBucket) {
			m.fault = func(op, _ string) (bool, error) {
				if op == "put" {
					return true, ErrUnavailable
				}
				return false, nil
			}
		}, true, []string{"ok   write an object"}}, // what it did is seen by the mark
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemBucket()
			c.set(m)
			out, err := checkMemory(t, m)
			if (err != nil) != c.fails {
				t.Errorf("error %v, want one: %v", err, c.fails)
			}
			for _, line := range c.lines {
				if !strings.Contains(out, line) {
					t.Errorf("the report lacks %q", line)
				}
			}
			if t.Failed() {
				t.Log(out)
			}
		})
	}
}

// blindRemover ignores the conditions of deletes.
type blindRemover struct{ *memBucket }

func (b blindRemover) remove(ctx context.Context, key, _ string) error {
	return b.memBucket.remove(ctx, key, "")
}

func TestDoctorOfAStoreWithoutConditionalDeletes(t *testing.T) {
	const line = "warn conditional deletes are refused with 501, and prune --apply will refuse"
	if out, err := checkBucket(blindRemover{newMemBucket()}); err != nil || !strings.Contains(out, line) {
		t.Errorf("%v, in\n%s", err, out)
	}
	if out, err := checkBucket(newMemBucket()); err != nil || strings.Contains(out, "prune") {
		t.Errorf("of one with them: %v, in\n%s", err, out)
	}
}

func TestLockWorksTells(t *testing.T) {
	var f [2]*os.File
	for i, name := range []string{"a", "b"} { // two files do not keep each other out, as a mount without locks does
		var err error
		if f[i], err = os.Create(filepath.Join(t.TempDir(), name)); err != nil {
			t.Fatal(err)
		}
		defer f[i].Close()
	}
	if err := lockWorks(f[0], f[1]); err == nil {
		t.Error("locks that exclude nobody were taken for good")
	}
}

// TestDoctorTellsNamesThatAreOne: the look finds a file under a name that nobody
// made, as it does where case is ignored.
func TestDoctorTellsNamesThatAreOne(t *testing.T) {
	c := &diskCheck{n: openTestNFS(t, t.TempDir()), report: func(f checkResult) { t.Error(f) }}
	for _, step := range []func() (string, error){c.makeDir, c.write, c.foldsCase} {
		if _, err := step(); err != nil {
			t.Fatal(err)
		}
	}
	folded := filepath.Join(c.dir.Name(), checkFolded)
	if err := os.Link(filepath.Join(c.dir.Name(), checkName), folded); err != nil {
		t.Fatal(err)
	}
	_, err := c.foldsCase()
	if err == nil || errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), `names are case-insensitive`) {
		t.Errorf("two names of one file: %v, want a failure", err)
	}
	if err := os.Remove(folded); err != nil {
		t.Fatal(err)
	}
	if err := c.clean(); err != nil {
		t.Error(err)
	}
	if got := judgeCaseCheck(unix.EIO); !errors.Is(got, unix.EIO) {
		t.Errorf("a look that failed: %v", got)
	}
}

// foldingBucket finds an object whatever the case of its key.
type foldingBucket struct{ *memBucket }

func (b foldingBucket) stat(ctx context.Context, key string) (objectInfo, error) {
	b.mu.Lock()
	for there := range b.objects {
		if strings.EqualFold(there, key) {
			key = there
		}
	}
	b.mu.Unlock()
	return b.memBucket.stat(ctx, key)
}

func TestDoctorTellsKeysThatAreOne(t *testing.T) {
	out, err := checkBucket(foldingBucket{newMemBucket()})
	if err == nil || !strings.Contains(out, "FAIL "+foldsCaseCheck) {
		t.Errorf("error %v\n%s", err, out)
	}
}

// TestDoctorMakesOnlyNamesItKnows: a sweep may remove what a doctor that was
// killed left behind, by these names.
func TestDoctorMakesOnlyNamesItKnows(t *testing.T) {
	c := &diskCheck{n: openTestNFS(t, t.TempDir()), report: func(checkResult) {}}
	for _, step := range []func() (string, error){c.makeDir, c.write, c.rename, c.foldsCase, c.syncDir, c.read, c.link, c.lock, c.clock} {
		if _, err := step(); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(c.dir.Name())
	if err != nil {
		t.Fatal(err)
	}
	var made []string
	for _, e := range entries {
		made = append(made, e.Name())
	}
	slices.Sort(made)
	if want := slices.Sorted(slices.Values(checkNames)); !slices.Equal(made, want) {
		t.Errorf("it made %v, and knows %v", made, want)
	}
	if err := c.clean(); err != nil {
		t.Error(err)
	}
}

// TestDoctorOfTheClocks: of a directory and of an object store other things go
// wrong.
func TestDoctorOfTheClocks(t *testing.T) {
	for _, skew := range []time.Duration{0, maxSkew, -maxSkew} {
		if note, err := judgeClockCheck(skew, "harm"); err != nil || note != skew.Abs().String()+" apart" {
			t.Errorf("%s: %q, %v", skew, note, err)
		}
	}
	for _, skew := range []time.Duration{maxSkew + time.Second, -maxSkew - time.Second} {
		if _, err := judgeClockCheck(skew, "harm"); err == nil || !strings.Contains(err.Error(), "the clocks differ by "+skew.Abs().String()+": harm") {
			t.Errorf("%s: %v", skew, err)
		}
	}
	if _, err := directoryClock(time.Hour); !isWeak(err) || strings.Contains(err.Error(), "signed") {
		t.Errorf("a directory whose clock is behind: %v", err)
	}
	if _, err := directoryClock(0); err != nil {
		t.Error(err)
	}
	out, err := checkBucket(lateBucket{newMemBucket()})
	if err == nil || !strings.Contains(out, "FAIL compare the clocks: the clocks differ by 1h0m0s: signed requests may be refused") {
		t.Errorf("an object store whose clock is behind: %v\n%s", err, out)
	}
}

// lateBucket has a clock that is an hour behind.
type lateBucket struct{ *memBucket }

func (b lateBucket) stat(ctx context.Context, key string) (objectInfo, error) {
	info, err := b.memBucket.stat(ctx, key)
	info.modTime = info.modTime.Add(-time.Hour)
	return info, err
}

// The original of this API keeps each entry of a log in a file of its own. Doctor says
// what these are, and looks at no more than a bounded number of files.
func TestDoctorKnowsEntriesOfTheOriginal(t *testing.T) {
	s := startServer(t)
	post := func(build string) {
		t.Helper()
		s.post(t, 201, "/sites/s/logs", `{"build_id":"`+build+`","action":"a","status":"s"}`)
	}
	logs := filepath.Join(s.dir, "sites", "s", "logs")
	plant := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(logs, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	line := func() string {
		t.Helper()
		out, err := runDoctor("PAGEWRIGHT_NFS_BASE_PATH=" + s.dir)
		if err != nil {
			t.Errorf("%v:\n%s", err, out)
		}
		_, line, _ := strings.Cut(out, " no logs in the original API's format: ")
		line, _, _ = strings.Cut(line, "\n")
		return line
	}
	post("b")
	post("c")
	plant("d.json", `[{"build_id":`)         // damaged
	plant("e.json", `{"build_id":"e","acti`) // likewise
	plant("f.json", `{}`)                    // likewise
	plant("notes.txt", `{"build_id":"e"}`)   // nobody's
	if got := line(); got != "5 files in 1 sites checked" {
		t.Errorf("of logs: %s", got)
	}
	const entry = `{"build_id":"b","action":"deploy","status":"ok","timestamp":"2025-01-02T03:04:05Z","metadata":{"n":1}}`
	plant("b-1735787045.json", entry)
	plant("b-1735787046.json", " \n"+entry+"\n")
	if got := line(); !strings.HasPrefix(got, "2 log files (7 files in 1 sites checked) are in the original API's format, one entry per file") ||
		!strings.Contains(got, logs+"/b-173578704") || !strings.Contains(got, "docs/operations.md") {
		t.Errorf("of logs: %s", got)
	}
	for i := range maxCheckedPerSite {
		plant(fmt.Sprintf("b-%d.json", i), entry)
	}
	if got := line(); !strings.Contains(got, fmt.Sprintf("(%d files in 1 sites checked; there are more)", maxCheckedPerSite)) {
		t.Errorf("of logs: %s", got)
	}
}

// Doctor warns of logs of builds that are not regular files, and of a store in memory.
func TestDoctorWarns(t *testing.T) {
	s := startServer(t)
	s.post(t, 201, "/sites/s/logs", `{"build_id":"b","action":"a","status":"s"}`)
	logs := filepath.Join(s.dir, "sites", "s", "logs")
	if err := errors.Join(os.Symlink("b.json", logs+"/link.json"), os.Mkdir(logs+"/dir.json", 0o755), unix.Mkfifo(logs+"/fifo.json", 0o644)); err != nil {
		t.Fatal(err)
	}
	out, err := runDoctor("PAGEWRIGHT_NFS_BASE_PATH=" + s.dir)
	if err != nil || !strings.Contains(out, "warn logs are files: 3 logs (4 files in 1 sites checked)") || strings.Contains(out, "FAIL") {
		t.Errorf("%v:\n%s", err, out)
	}
	if os.Getuid() != 0 {
		return // only root can mount a file system
	}
	memory := t.TempDir()
	mustMount(t, "none", memory, "tmpfs", "")
	out, err = runDoctor("PAGEWRIGHT_NFS_BASE_PATH=" + memory)
	if err != nil || !strings.Contains(out, "warn file system: tmpfs: not durable") {
		t.Errorf("%v:\n%s", err, out)
	}
}
