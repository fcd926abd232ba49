package client

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// pullTo pulls a build of 300 kB to name, in the directory dir, and returns its bytes.
func pullTo(t *testing.T, name string, status int) []byte {
	t.Helper()
	b := randomBuild(300_000, `"v1"`)
	withFake(t, func(f *fake) {
		f.hosts[serviceHost].handle = handler(b.serve)
		f.run("pull", "shop", "v1", "-o", name).want(t, status)
	})
	return b.data
}

func TestPullToAFileThatExists(t *testing.T) {
	dir := inDir(t)
	for _, mode := range []os.FileMode{0o644, 0o640, 0o666, 0o444, 0o000} {
		if err := errors.Join(os.WriteFile("out", []byte("old"), 0o600), os.Chmod("out", mode)); err != nil {
			t.Fatal(err)
		}
		data := pullTo(t, "out", 0)
		if info, err := os.Stat("out"); err != nil || info.Mode() != mode {
			t.Errorf("mode %v, %v; want %v", info.Mode(), err, mode)
		}
		os.Chmod("out", 0o600)
		wantFiles(t, dir, map[string][]byte{"out": data})
		os.Remove("out")
	}
}

func TestPullGivesTheModeOfANewFile(t *testing.T) {
	inDir(t)
	for umask, want := range map[int]os.FileMode{0o022: 0o644, 0o077: 0o600, 0o000: 0o666} {
		old := syscall.Umask(umask)
		pullTo(t, "out", 0)
		syscall.Umask(old)
		info, err := os.Stat("out")
		if err != nil || info.Mode() != want {
			t.Errorf("umask %o: mode %v, %v; want %v", umask, info.Mode(), err, want)
		}
		os.Remove("out")
	}
}

func TestPullFollowsASymbolicLink(t *testing.T) {
	dir := inDir(t)
	os.Mkdir("real", 0o755)
	os.WriteFile("real/file", []byte("old"), 0o644)
	os.Symlink("real/file", "link")
	data := pullTo(t, "link", 0)
	wantFiles(t, filepath.Join(dir, "real"), map[string][]byte{"file": data})
	if to, err := os.Readlink("link"); err != nil || to != "real/file" {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	os.Symlink("nowhere", "dangling")
	pullTo(t, "dangling", exitFailure)
}

func TestPullToAPipeOrDevice(t *testing.T) {
	dir := inDir(t)
	pullTo(t, os.DevNull, 0)
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode().IsRegular() {
		t.Fatalf("%s is %v, %v", os.DevNull, info.Mode(), err)
	}
	if err := syscall.Mkfifo("fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte)
	go func() {
		data, _ := os.ReadFile(filepath.Join(dir, "fifo"))
		got <- data
	}()
	data := pullTo(t, "fifo", 0)
	if !bytes.Equal(<-got, data) {
		t.Error("other bytes arrived in the pipe")
	}
}

// A pipe that nobody opens, or that nobody reads, does not keep a command that is interrupted.
func TestPullToAPipeInterrupted(t *testing.T) {
	inDir(t)
	if err := syscall.Mkfifo("fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if f, err := openStream(ctx, "fifo"); !errors.Is(err, context.Canceled) {
		t.Fatal(f, err)
	}
	reader, err := os.OpenFile("fifo", os.O_RDWR, 0) // the open that still waits ends
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	ctx, cancel = context.WithCancel(t.Context())
	f, err := openStream(ctx, "fifo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	go func() {
		reader.Read(make([]byte, 1))
		cancel()
	}()
	if _, err := f.Write(make([]byte, 4<<20)); !errors.Is(err, os.ErrDeadlineExceeded) { // more than a pipe holds
		t.Error(err)
	}
}

func TestPullToWhatCannotBeWritten(t *testing.T) {
	dir := inDir(t)
	os.Mkdir("dir", 0o755)
	os.WriteFile("file", nil, 0o644)
	for name, status := range map[string]int{
		"dir":                    exitUsage,
		"dir/":                   exitUsage,
		"absent/out":             exitFailure,
		"file/out":               exitFailure,
		"absent/":                exitFailure,
		strings.Repeat("x", 300): exitFailure,
	} {
		pullTo(t, name, status)
	}
	if _, err := createTemp("absent/out"); err == nil || !strings.Contains(err.Error(), `cannot create a file in "absent": no such file`) {
		t.Error(err)
	}
	wantFiles(t, filepath.Join(dir, "dir"), nil)
	os.Remove("dir")
	wantFiles(t, dir, map[string][]byte{"file": {}})
}

// TestPullToAFullDisk runs itself again with a limit for the size of files.
func TestPullToAFullDisk(t *testing.T) {
	if limit := os.Getenv("TEST_FILE_LIMIT"); limit != "" {
		n, _ := strconv.ParseUint(limit, 10, 64)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			t.Fatal(err)
		}
		t.Chdir(os.Getenv("TEST_DIR"))
		pullTo(t, "out", exitFailure)
		return
	}
	for _, limit := range []string{"1", "100000", "299999"} {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, "out"), []byte("old"), 0o644)
		cmd := exec.Command(os.Args[0], "-test.run=^TestPullToAFullDisk$")
		cmd.Env = append(os.Environ(), "TEST_FILE_LIMIT="+limit, "TEST_DIR="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("with %s bytes: %v\n%s", limit, err, out)
		}
		wantFiles(t, dir, map[string][]byte{"out": []byte("old")})
	}
}

// A command that is interrupted leaves nothing, wherever it is.
func TestPullInterrupted(t *testing.T) {
	b := randomBuild(300_000, `"v1"`)
	for _, at := range []int{-1, 0, 1, 100_000} { // -1: during the HEAD; 0: before the response
		dir := inDir(t)
		os.WriteFile("out", []byte("old"), 0o644)
		withFake(t, func(f *fake) {
			ctx, cancel := context.WithCancel(f.ctx)
			f.ctx = ctx
			f.hosts[serviceHost].handle = func(n int, w http.ResponseWriter, r *http.Request) {
				stop := func() { cancel(); <-r.Context().Done() }
				switch {
				case at < 0 || at == 0 && r.Method == http.MethodGet:
					stop()
					return
				case r.Method == http.MethodGet:
					w = &cutWriter{w, at, stop}
				}
				b.serve(w, r)
			}
			r := f.run("pull", "shop", "v1", "-o", "out").want(t, exitFailure)
			if r.err.Error() != "interrupted" {
				t.Errorf("the error is %v", r.err)
			}
		})
		wantFiles(t, dir, map[string][]byte{"out": []byte("old")})
	}
}

func TestPullInterruptedWhileItWaits(t *testing.T) {
	dir := inDir(t)
	withFake(t, func(f *fake) {
		ctx, cancel := context.WithCancel(f.ctx)
		f.ctx = ctx
		f.hosts[serviceHost].handle = func(n int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(503)
			cancel()
		}
		f.run("pull", "shop", "v1", "-o", "out").want(t, exitFailure)
	})
	wantFiles(t, dir, nil)
}

func TestPullIfChanged(t *testing.T) {
	b := randomBuild(300_000, `"v1"`)
	other := bytes.Clone(b.data)
	other[7] ^= 1
	for _, c := range []struct {
		name     string
		file     []byte
		noDigest bool
		changed  bool
	}{
		{"the same", b.data, false, false},
		{"another", other, false, true},
		{"a shorter one", b.data[:1000], false, true},
		{"no file", nil, false, true},
		{"the same, without a digest", b.data, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := inDir(t)
			if c.file != nil {
				os.WriteFile("v1.tar.gz", c.file, 0o400)
			}
			before, _ := os.Stat("v1.tar.gz")
			withFake(t, func(f *fake) {
				b := b
				b.noDigest = c.noDigest
				f.hosts[serviceHost].handle = handler(b.serve)
				r := f.run("pull", "shop", "v1", "--if-changed", "--json").want(t, 0)
				if got := strings.Contains(r.stdout, `"changed":true`); got != c.changed {
					t.Errorf("stdout is %s", r.stdout)
				}
				if n := len(f.hosts[serviceHost].requests()); (n == 2) != c.changed {
					t.Errorf("%d requests", n)
				}
			})
			wantFiles(t, dir, map[string][]byte{"v1.tar.gz": b.data})
			if after, err := os.Stat("v1.tar.gz"); err != nil || c.file != nil && os.SameFile(before, after) == c.changed {
				t.Errorf("it was replaced, or not: %v", err)
			}
		})
	}
}

func TestPullUsage(t *testing.T) {
	dir := inDir(t)
	withFake(t, func(f *fake) {
		for _, args := range [][]string{
			{}, {"shop"}, {"shop", "v1", "v2"},
			{"..", "v1"}, {"shop", "a/b"}, {"shop", "@"}, {"shop", "@Live"}, {"shop", ""},
			{"shop", "v1", "-o", ""}, {"shop", "v1", "-o", "-", "--json"}, {"shop", "v1", "-o", "-", "--if-changed"},
			{"shop", "v1", "--nonsense"}, {"shop", "v1", "--retry-for", "soon"}, {"shop", "v1", "--retry-for", "-1s"},
		} {
			f.run("pull", args...).want(t, exitUsage)
		}
		if n := len(f.hosts[serviceHost].requests()); n > 0 {
			t.Errorf("%d requests", n)
		}
	})
	wantFiles(t, dir, nil)
}
