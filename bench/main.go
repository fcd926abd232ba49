// Command bench measures the storage service beside what people would use
// instead: the running binaries, from outside, on one machine, in one run.
package main

import (
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bench is one run.
type bench struct {
	results
	home      string // of wrk/ and results/
	dir       string // the file system under test
	scratch   string // logs of the servers
	product   string // binaries
	directory string // the build of the service for a directory alone
	before    string // another build of the service; empty: none
	alone     bool   // no peers but that
	plain     string
	rclone    string // empty: without it
	self      string
	source    string   // bytes to upload, in memory
	env       []string // more variables of the product

	rounds         int
	warm, duration time.Duration
	large, medium  int64 // bytes of a large body, and of each of 200
	serial         int
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	b := &bench{}
	flag.StringVar(&b.product, "product", "../bin/pagewright-storage", "binary of the service")
	flag.StringVar(&b.directory, "directory", "bin/pagewright-nfs", "binary of the service built with BACKENDS=nfs")
	flag.StringVar(&b.before, "before", "", "binary of another build of the service, measured in the same run")
	flag.BoolVar(&b.alone, "alone", false, "without the peers")
	flag.StringVar(&b.plain, "plain", "bin/plain", "binary of the plain server")
	flag.StringVar(&b.rclone, "rclone", "", "binary of rclone; empty: without it")
	flag.StringVar(&b.home, "home", ".", "directory of the benchmark")
	out := flag.String("out", "", "directory of the report; default: results/ in the directory of the benchmark")
	parent := flag.String("dir", os.TempDir(), "directory for the file system under test")
	kind := flag.String("fs", "auto", "ext4 or xfs: a file system of its own on a loop device, for which it takes root; dir: the directory as it is; auto: ext4 if that can be had")
	only := flag.String("only", "", "comma-separated loads; default: all")
	env := flag.String("env", "", "comma-separated NAME=value for the service")
	flag.BoolVar(&b.results.Quick, "quick", false, "a short run that shows that all works; its figures mean little")
	render := flag.String("render", "", "only write the report of this results.json")
	discardArgs := flag.Bool("discard", false, "serve a file by sendfile: -discard ADDRESS FILE")
	flag.Parse()
	if *discardArgs {
		return discard(flag.Arg(0), flag.Arg(1))
	}
	if *out == "" {
		*out = filepath.Join(b.home, "results")
	}
	if *render != "" {
		r, err := load(*render)
		if err != nil {
			return err
		}
		return r.report(*out)
	}
	if *env != "" {
		b.env = strings.Split(*env, ",")
	}
	b.rounds, b.warm, b.duration, b.large, b.medium = 5, 300*time.Millisecond, 2*time.Second, 1<<30, 64<<20
	if b.Quick {
		b.rounds, b.warm, b.duration, b.large, b.medium = 1, 100*time.Millisecond, 400*time.Millisecond, 64<<20, 2<<20
	}
	close, err := b.prepare(*parent, *kind)
	if err != nil {
		return err
	}
	defer close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGINT, unix.SIGTERM)
	go func() {
		<-stop // the servers die with this process
		close()
		os.Exit(130)
	}()
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	start := time.Now()
	return b.loads(*only, func() error {
		b.Seconds = time.Since(start).Seconds()
		return errors.Join(b.save(filepath.Join(*out, "results.json")), b.report(*out))
	})
}

// loads runs them one after the other, and has write write the report after
// each: a run that is cut keeps what it has. One that fails does not keep the
// others from being run and told of.
func (b *bench) loads(only string, write func() error) error {
	var failed []error
	all := []struct {
		name string
		run  func() error
	}{
		{"large-put", b.largePut}, {"large-get", b.largeGet}, {"tls-put", b.tlsPut}, {"tls-get", b.tlsGet}, {"small-put", b.smallPut}, {"logs", b.logs},
		{"small-get", b.smallGet}, {"access-log", b.accessLog}, {"fixed-rate", b.fixedRate}, {"versions", b.versions}, {"footprint", b.footprint},
		{"growth", b.growth}, {"digest-put", b.digestPut}, {"digest-small", b.digestSmall}, {"transfers", b.transfers},
	}
	names := strings.Split(only, ",")
	for _, l := range all {
		if only != "" && !slices.Contains(names, l.name) {
			continue
		}
		start := time.Now()
		if err := l.run(); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", l.name, err))
		}
		if err := write(); err != nil {
			return errors.Join(append(failed, err)...)
		}
		fmt.Fprintf(os.Stderr, "%-12s %4.0f s\n", l.name, time.Since(start).Seconds())
	}
	return errors.Join(failed...)
}

// prepare makes what the run needs; close takes it away again.
func (b *bench) prepare(parent, kind string) (close func(), err error) {
	var undo undoing
	close = func() { undo.all() }
	defer func() {
		if err != nil {
			close()
		}
	}()
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		files.Cur = files.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &files)
	}
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if b.scratch, err = os.MkdirTemp(parent, "bench-"); err != nil {
		return nil, err
	}
	undo = append(undo, func() { os.RemoveAll(b.scratch) })
	if b.source, err = b.makeSource(); err != nil {
		return nil, err
	}
	undo = append(undo, func() { os.Remove(b.source) })
	kindUsed, close2, err := b.makeDir(kind)
	if err != nil {
		return nil, err
	}
	undo = append(undo, close2)
	b.Machine = machine(b.product, kindUsed)
	return close, nil
}

// makeDir makes the directory under test.
func (b *bench) makeDir(kind string) (used string, close func(), err error) {
	wanted := kind
	if kind == "auto" {
		wanted = "ext4"
	}
	if wanted != "dir" {
		dir, close, err := newFileSystem(wanted, b.scratch)
		if err == nil {
			b.dir = dir
			return wanted + ", on a loop device with direct I/O", close, nil
		}
		if kind != "auto" {
			return "", nil, err
		}
		fmt.Fprintln(os.Stderr, "no file system of its own:", err)
	}
	b.dir = filepath.Join(b.scratch, "dir")
	return "the one of " + filepath.Dir(b.scratch), func() {}, os.Mkdir(b.dir, 0o777)
}

// makeSource fills a file in memory with random bytes, which nothing on the way
// can compress.
func (b *bench) makeSource() (string, error) {
	f, err := os.CreateTemp("/dev/shm", "bench-source-")
	if err != nil {
		return "", err
	}
	_, err = io.CopyN(f, rand.Reader, b.large)
	return f.Name(), errors.Join(err, f.Close())
}

// machine tells where and with what the run was made.
func machine(product, fs string) map[string]string {
	say := func(name string, args ...string) string {
		out, _ := exec.Command(name, args...).CombinedOutput()
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return first
	}
	cpu := ""
	info, _ := os.ReadFile("/proc/cpuinfo")
	for l := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == "model name" {
			cpu = strings.TrimSpace(value)
		}
	}
	var mem unix.Sysinfo_t
	_ = unix.Sysinfo(&mem)
	commit := say("git", "rev-parse", "--short", "HEAD")
	if say("git", "status", "--porcelain", "--untracked-files=no") != "" {
		commit += " and changes"
	}
	kernel, _, _ := strings.Cut(say("uname", "-sr"), "-") // without what the builder calls it
	return map[string]string{
		"time": time.Now().UTC().Format("2006-01-02 15:04 UTC"), "commit": commit, "version": say(product, "version"),
		"cpu": fmt.Sprintf("%d x %s", runtime.NumCPU(), cpu), "memory": fmt.Sprintf("%d GiB", mem.Totalram>>30),
		"kernel": kernel, "go": runtime.Version(), "file system": fs,
		"nginx": strings.TrimPrefix(say("nginx", "-v"), "nginx version: "), "wrk": say("wrk", "-v"),
	}
}
