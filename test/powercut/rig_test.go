//go:build integration || torture

// Package powercut proves the promise of the store in a directory: what was
// acknowledged survives a power cut, and what was not is there whole or not at
// all. Here the power is real as far as the kernel of the machine can tell.
package powercut

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pagewright/storage/test/history"
	"pagewright/storage/test/report"
	"pagewright/storage/test/vm"
)

const (
	port = 8080
	base = "/srv/store"

	prunedSites = 2 // which have a client of their own
)

// workers is how many clients write at once, by turns: few, and so many that
// their syncs meet.
var workers = []int{6, 48}

var (
	kit     *vm.Kit
	service string // the program as it is
)

func TestMain(m *testing.M) {
	os.Exit(vm.Run("powercut", m.Run, func(k *vm.Kit, dir string) error {
		kit, service = k, filepath.Join(dir, "service")
		return vm.BuildService(service)
	}, &table))
}

// system is a file system under test.
type system struct {
	name    string
	mkfs    []string
	options string // of the mount
	size    int64  // of the disk
}

// noauto_da_alloc: without it ext4 flushes a file that is renamed over another
// on its own account, which would hide a missing fsync.
var systems = []system{
	{"ext4", []string{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"}, "noauto_da_alloc", 256 << 20},
	{"xfs", []string{"mkfs.xfs", "-q", "-f"}, "", 320 << 20},
}

// newDisk makes an image with an empty file system.
func (s system) newDisk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, s.size); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(s.mkfs[0], append(s.mkfs[1:], path)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", cmd, err, out)
	}
	return path
}

// boot starts a machine with the program and the first drive mounted as the store.
func (s system) boot(t *testing.T, program string, drives ...string) *vm.Machine {
	t.Helper()
	m, err := kit.Start(t.Context(), vm.Config{
		Name:   "machine",
		Ports:  []int{port},
		Files:  map[string]string{vm.ServicePath: program},
		Drives: drives,
		Memory: 1536,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Cut)
	s.load(t, m)
	run(t, m, "guest mount %s /dev/vda %s '%s'", s.name, base, s.options)
	return m
}

// load loads the file system's module.
func (s system) load(t *testing.T, m *vm.Machine) {
	t.Helper()
	if s.name != "ext4" {
		run(t, m, "guest load %s", s.name)
	}
}

func run(t *testing.T, m *vm.Machine, format string, args ...any) string {
	t.Helper()
	out, err := m.Run(t.Context(), fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatalf(format+": %v\n%s", append(args, err, m.Console())...)
	}
	return out
}

func serve(t *testing.T, m *vm.Machine) string {
	t.Helper()
	url, err := m.Serve(t.Context(), port, base, "TEMP_MAX_AGE=1m")
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// prune runs prune once, while the service runs, and calls begun when it judges the first build.
// It may skip what is busy.
func prune(ctx context.Context, m *vm.Machine, d *history.Driver, begun func(), args string) error {
	const file = "/run/retention.json"
	script := fmt.Sprintf("echo '%s' >%s; env PAGEWRIGHT_NFS_BASE_PATH=%s PAGEWRIGHT_RETENTION_FILE=%s %s prune --apply %s 2>&1 || test $? = 7",
		history.Retention, file, base, file, vm.ServicePath, args)
	return d.Prune(func() error {
		out := &notifyingWriter{begun: begun}
		if err := m.Stream(ctx, script, out); err != nil {
			return fmt.Errorf("prune: %w\n%s", err, out.Bytes())
		}
		return nil
	})
}

// notifyingWriter calls begun when something is written to it.
type notifyingWriter struct {
	bytes.Buffer
	begun func()
}

func (w *notifyingWriter) Write(p []byte) (int, error) {
	w.begun()
	return w.Buffer.Write(p)
}

// loadAll is the load of all that writes until ctx ends or the machine loses its power, with one
// prune after the other. It calls begun when the first has begun, and returns how many ended.
func loadAll(ctx context.Context, t *testing.T, m *vm.Machine, d *history.Driver, prefix string, clients int, seed uint64, begun func()) (prunes int) {
	d.FillPruned(ctx, prefix, prunedSites)
	var wg sync.WaitGroup
	wg.Go(func() { d.MixAll(ctx, prefix, clients, 0, seed) })
	wg.Go(func() { d.MixPruned(ctx, prefix, prunedSites, seed) })
	begun = sync.OnceFunc(begun)
	defer begun()
	args := []string{"--site '*-pruned'", ""} // the latter also looks at all others
	for ctx.Err() == nil {
		if err := prune(t.Context(), m, d, begun, args[prunes%len(args)]); err != nil {
			if strings.Contains(err.Error(), "exit status 1") { // else the machine is gone
				t.Error(err)
			}
			break
		}
		prunes++
	}
	wg.Wait()
	return prunes
}

func scan(t *testing.T, m *vm.Machine) *history.Inventory {
	t.Helper()
	var inv history.Inventory
	if err := json.Unmarshal([]byte(run(t, m, "guest scan %s", base)), &inv); err != nil {
		t.Fatal(err)
	}
	return &inv
}

// replay brings a copy of the disk that the log base has to each of points of
// the log and gives the inventories (see guest/replay.go). If asked is a program,
// it is the service that is asked at each point.
func (s system) replay(t *testing.T, base, log, asked string, points []string) []*history.Inventory {
	t.Helper()
	conf := vm.Config{
		Name:   "replay",
		Drives: []string{vm.RawDrive(base, true), vm.RawDrive(log, true)},
		Memory: 2048,
	}
	if asked != "" {
		conf.Files = map[string]string{vm.ServicePath: asked}
	}
	m, err := kit.Start(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Cut()
	s.load(t, m)
	run(t, m, "mount -o remount,size=95%% /tmp")
	script := fmt.Sprintf("guest replay %s '%s' %d /dev/vda /dev/vdb", s.name, s.options, s.size)
	for _, p := range points {
		script += " " + p
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(m.Stream(t.Context(), script, w)) }()
	var found []*history.Inventory
	for dec := json.NewDecoder(r); ; {
		var inv history.Inventory
		if err := dec.Decode(&inv); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("after %d of %d points: %v\n%s", len(found), len(points), err, m.Console())
		}
		found = append(found, &inv)
	}
	if len(found) != len(points) {
		t.Fatalf("%d of %d points were replayed", len(found), len(points))
	}
	return found
}

// settleDown polls until done or a minute has gone.
func settleDown(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within a minute", what)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// table is printed at the end of a run.
var table = report.Table{Head: []string{"what", "on", "cuts or replays", "operations", "acknowledged", "unknown at a cut", "temps left", "violations", "time"}}
