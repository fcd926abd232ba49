//go:build integration || torture

package powercut

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pagewright/storage/test/history"
	"pagewright/storage/test/vm"
)

// mutant is the service with one step of the durable write taken out or moved.
// Each edit replaces a text of atomic.go that must be there once.
type mutant struct {
	name  string
	edits [][2]string
}

const (
	fileSync = `if err := uninterrupted(func() error { return unix.Fsync(int(t.f.Fd())) }); err != nil {`
	dirSync  = `err := uninterrupted(func() error { return unix.Fsync(int(dir.Fd())) })`
	rename   = `err := uninterrupted(func() error { return unix.Renameat(dirfd, t.name, dirfd, name) })`
	link     = `err := uninterrupted(func() error { return unix.Linkat(dirfd, t.name, dirfd, name, 0) })`

	lateSync = `
	if f, openErr := openAt(dirfd, name, unix.O_RDONLY, name); err == nil && openErr == nil {
		err = unix.Fsync(int(f.Fd()))
		f.Close()
	}`
)

var mutants = []mutant{
	{"none", nil},
	{"no fsync of the directory", [][2]string{{dirSync, `err := error(nil)`}}},
	{"no fsync of the file", [][2]string{{fileSync, `if err := error(nil); err != nil {`}}},
	{"rename before fsync", [][2]string{
		{fileSync, `if err := error(nil); err != nil {`}, {rename, rename + lateSync}, {link, link + lateSync},
	}},
}

// build makes the program of the mutant in dir; no file of the product changes.
func (mu mutant) build(t *testing.T, dir string) string {
	t.Helper()
	source, err := filepath.Abs("../../atomic.go")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range mu.edits {
		if n := strings.Count(string(text), e[0]); n != 1 {
			t.Fatalf("mutant %q: %d times in atomic.go, want 1: %s\nThe durable write was changed: change the mutants with it.", mu.name, n, e[0])
		}
		text = []byte(strings.Replace(string(text), e[0], e[1], 1))
	}
	mutated, overlay := filepath.Join(dir, "atomic.go"), filepath.Join(dir, "overlay.json")
	table, err := json.Marshal(map[string]any{"Replace": map[string]string{source: mutated}})
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{mutated: text, overlay: table} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "service")
	if err := vm.BuildService(program, "-overlay", overlay); err != nil {
		t.Fatal(err)
	}
	return program
}

// The proof is worth what it catches: a service that leaves out a step fails
// the very procedure that the service as it is passes. One client writes, the
// cut comes right after an acknowledgement, and each acknowledgement before is
// a moment to replay to: other writers' flushes would hide what is missing.
// Then the same client writes while something else has the journal committed
// all the time, so that a rename can become durable before the bytes.
func TestMutantsAreCaught(t *testing.T) {
	for _, mu := range mutants {
		t.Run(strings.ReplaceAll(mu.name, " ", "_"), func(t *testing.T) {
			began := time.Now()
			r := systems[0].record(t, mu.build(t, t.TempDir()))
			acknowledged := r.write(t, "alone", 24, 20_000)
			run(t, r.machine, "guest commit %s/lost+found/x >/dev/null 2>&1 </dev/null & echo $! >/run/commit", base)
			beside := r.write(t, "beside", 24, 600_000)
			run(t, r.machine, "kill -9 $(cat /run/commit)")
			last := r.write(t, "last", 2, 20_000)
			r.machine.Cut()

			written := time.Since(began)

			from, to := beside[0].n, last[0].n
			flushes := slices.DeleteFunc(r.flushes(t), func(p point) bool { return p.n < from || p.n >= to })
			points := slices.Concat(acknowledged, sample(flushes, 40, rand.New(rand.NewPCG(1, 1))), last, []point{r.end(t)})
			violations := r.judge(t, points)
			if len(violations) > 0 {
				t.Logf("the first and the last of %d violations:\n%s\n%s", len(violations), violations[0], violations[len(violations)-1])
			}
			t.Logf("%s to write, %s to replay to %d moments", written, time.Since(began)-written, len(points))
			all, done, _, unknown := r.driver.History.Count()
			table.add("mutant: "+mu.name, "ext4", len(points), all, done, unknown, r.temps, len(violations), time.Since(began).Round(time.Second))
			if mu.edits == nil && len(violations) > 0 {
				t.Error("the service as it is fails its own proof")
			}
			if mu.edits != nil && len(violations) == 0 {
				t.Error("not caught: the proof proves nothing")
			}
		})
	}
}

// write has one client do n requests of every kind, one after the other, and
// gives the moment of each acknowledgement.
func (r *recording) write(t *testing.T, site string, n, size int) []point {
	t.Helper()
	var points []point
	for i := range n {
		kind, build := history.Put, fmt.Sprintf("build-%d", i)
		switch i % 4 {
		case 1:
			build = "replaced"
		case 2:
			kind = history.Create
		case 3:
			kind, build = history.Append, "log"
		}
		if status := r.driver.Do(t.Context(), kind, site+"/"+build, size); status != http.StatusCreated {
			t.Fatalf("request %d: status %d\n%s", i, status, r.machine.ServiceLog(t.Context(), port))
		}
		if p := (point{n: r.driver.Mark()}); !slices.Contains(points, p) {
			points = append(points, p)
		}
	}
	return points
}
