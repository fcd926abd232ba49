//go:build integration || torture

package powercut

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"pagewright/storage/test/history"
	"pagewright/storage/test/vm"
	"pagewright/storage/test/writelog"
)

// A killed machine leaves behind all that it had written, flushed or not. So
// the writes and flushes of a run are recorded, and the disk is brought to what
// a real one would hold after a power cut at many of its flushes: nothing that
// was not flushed, or a random part of that.
func TestReplaysOfFlushPoints(t *testing.T) {
	for i, s := range slices.Concat(systems, systems) {
		clients := workers[i/len(systems)]
		t.Run(fmt.Sprintf("%s_%d_clients", s.name, clients), func(t *testing.T) {
			began, seed := time.Now(), rand.Uint64()
			t.Logf("seed %d", seed)
			program := service
			if clients == workers[1] {
				program = sharing.BuildFor(t)
			}
			r := s.record(t, program)
			ctx, cancel := context.WithTimeout(t.Context(), replayedSeconds*time.Second)
			defer cancel()
			loadAll(ctx, t, r.machine, r.driver, "replay", clients, seed, func() {})
			if shared := r.sharedSyncs(t); clients == workers[1] && shared == 0 {
				t.Error("no syncs were shared: that is not proved then")
			}
			r.machine.Cut()
			points := sample(r.flushes(t), replaysPerSystem/len(workers), rand.New(rand.NewPCG(seed, 1)))
			violations := append(r.judge(t, points), r.driver.History.JudgeProtected()...)
			for _, v := range violations {
				t.Error(v)
			}
			all, done, _, unknown := r.driver.History.Count()
			table.Add(fmt.Sprintf("replays, %d clients", clients), s.name, len(points), all, done, unknown, r.temps, len(violations), time.Since(began).Round(time.Second))
			if done == 0 || len(points) < replaysPerSystem/len(workers) {
				t.Errorf("%d acknowledged, %d points: too little to tell", done, len(points))
			}
		})
	}
}

// sharedSyncs is how many times the service has synced several files at once.
func (r *recording) sharedSyncs(t *testing.T) int {
	t.Helper()
	resp, err := http.Get(r.driver.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^pagewright_group_commit_files_count (\d+)$`).FindSubmatch(text)
	if found == nil {
		t.Fatal("/metrics does not tell")
	}
	n, _ := strconv.Atoi(string(found[1]))
	return n
}

// recording is a run of which every write and flush is recorded.
type recording struct {
	system
	base, log string // the disk before it, the record
	asked     string // the program that is asked at each point; empty: none
	file      *os.File
	machine   *vm.Machine
	driver    *history.Driver
	temps     int // seen at the points
}

// record boots a machine with the program and records its disk from the start.
func (s system) record(t *testing.T, program string) *recording {
	t.Helper()
	r := &recording{system: s, base: filepath.Join(t.TempDir(), "base")}
	disk := s.newDisk(t)
	dump(t, r.base, disk)
	var err error
	if r.file, err = os.Create(filepath.Join(t.TempDir(), "writes")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.file.Close() })
	r.log = r.file.Name()
	r.machine = s.boot(t, program, vm.LoggedDrive(disk, r.log))
	r.driver = history.NewDriver(serve(t, r.machine), &history.History{}, 30*time.Second)
	r.driver.Mark = func() int64 {
		n, err := writelog.Flushed(r.file)
		if err != nil {
			panic(err)
		}
		return n
	}
	return r
}

// dump writes what is on a disk to a log of its own.
func dump(t *testing.T, log, disk string) {
	t.Helper()
	in, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(writelog.Dump(out, in), out.Close()); err != nil {
		t.Fatal(err)
	}
}

// point is a moment of a recording: its first n entries, and with a seed also a
// random half of those up to the next flush.
type point struct {
	n    int64
	seed uint64
}

// flushes lists the moments right after a flush, in order.
func (r *recording) flushes(t *testing.T) []point {
	t.Helper()
	entries, err := writelog.Read(r.file)
	if err != nil {
		t.Fatal(err)
	}
	var points []point
	for i, e := range entries {
		if e.Flush {
			points = append(points, point{n: int64(i) + 1})
		}
	}
	return points
}

// end is the moment of the cut, with all that was written, flushed or not: what
// the killed machine really left.
func (r *recording) end(t *testing.T) point {
	t.Helper()
	entries, err := writelog.Read(r.file)
	if err != nil {
		t.Fatal(err)
	}
	return point{n: int64(len(entries))}
}

// sample takes some of the points, in order; to every second one it adds a part
// of what was not flushed.
func sample(points []point, n int, rng *rand.Rand) []point {
	points = slices.Clone(points)
	rng.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
	points = points[:min(n, len(points))]
	slices.SortFunc(points, func(a, b point) int { return cmp.Compare(a.n, b.n) })
	for i := range points {
		if i%2 == 1 {
			points[i].seed = rng.Uint64() | 1
		}
	}
	return points
}

// judge replays the recording to each of points, which ascend, and returns
// the violations found.
func (r *recording) judge(t *testing.T, points []point) []string {
	t.Helper()
	words := make([]string, len(points))
	for i, p := range points {
		words[i] = fmt.Sprint(p.n)
		if p.seed != 0 {
			words[i] = fmt.Sprintf("%d:%d", p.n, p.seed)
		}
	}
	var violations []string
	for i, inv := range r.replay(t, r.base, r.log, r.asked, words) {
		r.temps += inv.Temps
		for _, v := range r.driver.History.Judge(inv, points[i].n) {
			violations = append(violations, fmt.Sprintf("point %s: %s", words[i], v))
		}
	}
	return violations
}
