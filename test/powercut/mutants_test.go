//go:build integration || torture

package powercut

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pagewright/storage/test/history"
	"pagewright/storage/test/vm"
)

const (
	asItIs      = "as it is"
	renameFirst = "rename before fsync"
	everyShared = "every sync shared"
	noRepeat    = "repeated entry is not synced"

	// Of these the service is asked at each moment.
	digestAsIs      = "digest as it is and later than its build"
	digestByName    = "digest by name only and before its build"
	digestUnchecked = "digest not checked when it is read"

	digestOfTheReplaced = "digest bound to the file that is replaced"
)

// lateSync is the fsync of a file after it got its name.
const lateSync = `
	if f, openErr := openAt(int(dir.Fd()), to, unix.O_RDONLY, to); err == nil && openErr == nil {
		err = unix.Fsync(int(f.Fd()))
		f.Close()
	}`

var (
	noFileSync = vm.Replace("atomic.go", `err := t.disk.fsyncs.sync(t.stat.Dev, t.since, files...)`, `err := error(nil)`)
	noDirSync  = vm.Replace("atomic.go", `err := t.disk.fsyncs.syncDir(t.dir, t.stat.Dev, t.since)`, `err := error(nil)`)
	lateRename = vm.After("disk_dir.go", `err := retryEINTR(func() error { return unix.Renameat(int(dir.Fd()), from, int(dir.Fd()), to) })`, lateSync)
	lateLink   = vm.After("disk_dir.go", `err := retryEINTR(func() error { return unix.Linkat(int(dir.Fd()), from, int(dir.Fd()), to, 0) })`, lateSync)

	// A single writer shares its syncs with itself.
	shareAlways = vm.Replace("disk_fsync.go", `minGroupSize = 24`, `minGroupSize = 1`)
	alsoLarge   = vm.Replace("disk_fsync.go", `|| s.large.Load() > 0 || time.Now().UnixNano() < s.pause.Load()`, ``)
	noSyncfs    = vm.Replace("disk_fsync.go", `err := retryEINTR(func() error { return unix.Syncfs(int(s.root.Fd())) })`, `err := error(nil)`)

	// Digests. Those of the first kind do harm on the disk, the others when they are read: so
	// the service is asked at each moment. It would take luck to cut between two calls, so
	// an fsync stands between them there.
	wrongBinding = vm.Replace("nfs_digest.go", `if err := d.write(&artifact.stat); err != nil {
		return err
	}
	return sealFinished(artifact, d.temp)`, `var st unix.Stat_t
	if statAt(artifact.dir, fileName(artifactsDir, d.buildID), &st) != nil { // of the build that is replaced
		st = artifact.stat
	}
	if err := d.write(&st); err != nil {
		return err
	}
	return sealFinished(artifact, d.temp)`)
	byName = vm.Replace("nfs_digest.go", `if err == nil && b == boundToFile(st) {`, `_ = b
	if err == nil {`)
	digestFirst = vm.Replace("nfs_digest.go", `	d.n.digests.add(&artifact.stat, foundDigest{sum: d.sum})
	return nil`, `	if err := d.temp.replace(fileName(digestsDir, d.buildID)); err != nil {
		return err
	}
	return d.syncDir()`)
	notThen     = vm.Replace("nfs_digest.go", `error { return d.temp.replace(fileName(digestsDir, d.buildID)) }`, `error { return nil }`)
	syncBetween = vm.Replace("nfs_artifact_write.go", `	if c.digest.digest().known() {
		return c.digest.place(lock)`, `	if err := c.temp.syncDir(); err != nil {
		return err
	}
	if c.digest.digest().known() {
		return c.digest.place(lock)`)

	// Both answers are promises of their own, with an fsync of their own.
	noDeleteSync = vm.Replace("nfs.go", `return n.disk.syncDir(dir)`, `return nil`)
	noRepeatSync = vm.Replace("nfs_log.go", `return n.disk.syncDir(dir)`, `return nil`)
)

// There is no variant of these faults, because no cut of these machines can show
// them; go test of the product counts the fsyncs and makes them fail.
//   - The parent of a new directory is not synced, or a directory that another
//     process made anew is taken for durable: ext4 and xfs have one journal, in
//     which an fsync of a file commits all that was made before it.
//     For the same reason the directory of the digests is synced by the fsync of
//     that of the builds.
//   - An error of a sync that another write gets is missed: these disks have none.

var variants = []vm.Variant{
	{Name: asItIs},
	{Name: everyShared, Edits: []vm.Edit{shareAlways, alsoLarge}},
	{Name: "no fsync of the directory", Broken: true, Edits: []vm.Edit{noDirSync}},
	{Name: "no fsync of the file", Broken: true, Edits: []vm.Edit{noFileSync}},
	{Name: renameFirst, Broken: true, Edits: []vm.Edit{noFileSync, lateRename, lateLink}},
	{Name: "DELETE is not synced", Broken: true, Edits: []vm.Edit{noDeleteSync}},
	{Name: noRepeat, Broken: true, Edits: []vm.Edit{noRepeatSync}},
	{Name: digestOfTheReplaced, Broken: true, Edits: []vm.Edit{wrongBinding}},
	{Name: digestAsIs, Edits: []vm.Edit{syncBetween}},
	{Name: digestByName, Broken: true, Edits: []vm.Edit{byName, digestFirst, notThen}},
	{Name: digestUnchecked, Broken: true, Edits: []vm.Edit{byName, syncBetween}},
	{Name: "shared sync without syncfs", Broken: true, Edits: []vm.Edit{shareAlways, alsoLarge, noSyncfs}},
	faultsOfLabels,
}

// sharing is the service on a faster machine: one without KVM never has as many
// syncs at once as it takes, nor are they as quick.
var sharing = vm.Variant{Name: "shares from 4", Edits: []vm.Edit{vm.Replace("disk_fsync.go", `minGroupSize = 24`, `minGroupSize = 4`), alsoLarge}}

// The proof is worth what it catches: a service that leaves out a step fails
// the very procedure that the service as it is passes. One client writes, the
// cut comes right after an acknowledgement, and each acknowledgement before is
// a moment to replay to: other writers' flushes would hide what is missing.
// Then the same client writes while something else has the journal committed
// all the time, so that a rename can become durable before the bytes.
func TestMutantsAreCaught(t *testing.T) {
	for _, v := range variants {
		if slices.Contains(leftOut, v.Name) {
			continue
		}
		t.Run(strings.ReplaceAll(v.Name, " ", "_"), func(t *testing.T) {
			program := v.BuildFor(t)
			caught := false
			// A fault that needs a certain moment may show at none of those of one run.
			for try := 1; try == 1 || v.Broken && !caught && try <= 3; try++ {
				violations := trial(t, v, program)
				caught = len(violations) > 0
				if v.Name == labelFaults {
					missed := notShown(shownByLabels, violations)
					if caught = len(missed) == 0; !caught {
						t.Logf("not shown: %q", missed)
					}
				}
			}
			if !v.Broken && caught {
				t.Error("the promise is broken")
			}
			if v.Broken && !caught {
				t.Error("not caught: the proof proves nothing")
			}
		})
	}
}

// trial records a run of the variant, replays it, and returns the violations.
func trial(t *testing.T, v vm.Variant, program string) []string {
	began := time.Now()
	moments := 40
	if v.Name == renameFirst { // it shows at a few moments only
		moments = 200
	}
	r := systems[0].record(t, program)
	points := r.writeAll(t, v, program, moments)
	written := time.Since(began)
	violations := r.judge(t, points)
	if len(violations) > 0 {
		t.Logf("the first and the last of %d violations:\n%s\n%s", len(violations), violations[0], violations[len(violations)-1])
	}
	t.Logf("%s to write, %s to replay to %d moments", written, time.Since(began)-written, len(points))
	all, done, _, unknown := r.driver.History.Count()
	table.Add("variant: "+v.Name, "ext4", len(points), all, done, unknown, r.temps, len(violations), time.Since(began).Round(time.Second))
	return violations
}

// writeAll has the clients write what can show the fault of the variant, cuts the power, and
// gives the moments to replay to.
func (r *recording) writeAll(t *testing.T, v vm.Variant, program string, moments int) []point {
	t.Helper()
	if slices.Contains([]string{digestAsIs, digestByName, digestUnchecked}, v.Name) {
		r.asked = program
		from := r.write(t, "replaced", 8, 2, 20_000)[0].n
		r.machine.Cut()
		return append(slices.DeleteFunc(r.flushes(t), func(p point) bool { return p.n < from }), r.end(t))
	}
	var labels []point
	if v.Name == asItIs || v.Name == labelFaults {
		labels = r.writeLabels(t)
	}
	if v.Name == labelFaults {
		r.machine.Cut()
		return labels
	}
	acknowledged := r.write(t, "alone", 28, 7, 20_000)
	run(t, r.machine, "guest commit %s/lost+found/x >/dev/null 2>&1 </dev/null & echo $! >/run/commit", base)
	beside := r.write(t, "beside", 48, 4, 600_000)
	run(t, r.machine, "kill -9 $(cat /run/commit)")
	last := r.write(t, "last", 2, 4, 20_000)
	r.machine.Cut()

	from, to := beside[0].n, last[0].n
	flushes := slices.DeleteFunc(r.flushes(t), func(p point) bool { return p.n < from || p.n >= to })
	return slices.Concat(labels, acknowledged, sample(flushes, moments, rand.New(rand.NewPCG(1, 1))), last, []point{r.end(t)})
}

// write has one client do n requests of the first so many kinds, one after the
// other, and gives the moment of each acknowledgement. The first 4 kinds are the
// writes of a file.
func (r *recording) write(t *testing.T, site string, n, kinds, size int) []point {
	t.Helper()
	var points []point
	for i := range n {
		kind, key, want := history.Put, fmt.Sprintf("%s/build-%d", site, i), http.StatusCreated
		switch i % kinds {
		case 1:
			key = site + "/replaced"
		case 2:
			kind = history.Create
		case 3:
			kind, key = history.Append, site+"/log"
		case 4:
			kind, key, want = history.Delete, fmt.Sprintf("%s/build-%d", site, i-4), http.StatusNoContent
		case 5:
			key = fmt.Sprintf("%s-%d/build", site, i) // the first of its site
		case 6:
			r.repeat(t, fmt.Sprintf("%s/repeated-%d", site, i))
			points = r.acknowledged(points)
			continue
		}
		if status := r.driver.Do(t.Context(), kind, key, size); status != want {
			t.Fatalf("request %d: status %d\n%s", i, status, r.machine.ServiceLog(t.Context(), port))
		}
		points = r.acknowledged(points)
	}
	return points
}

// acknowledged adds this moment to points.
func (r *recording) acknowledged(points []point) []point {
	if p := (point{n: r.driver.Mark()}); !slices.Contains(points, p) {
		points = append(points, p)
	}
	return points
}

// repeat sends a log entry that is in the log already, but not yet durable: the
// service that put it there ended before it synced the directory.
func (r *recording) repeat(t *testing.T, key string) {
	t.Helper()
	op := r.driver.History.Begin(history.Append, key, 0, r.driver.Mark())
	site, build, _ := strings.Cut(key, "/")
	dir := base + "/sites/" + site + "/logs"
	entry := fmt.Sprintf(`[{"id":"op-%d","build_id":%q,"action":"deploy","status":"success","timestamp":"2026-01-02T03:04:05Z","metadata":{"op":%d}}]`,
		op.ID, build, op.ID)
	run(t, r.machine, "cd %s && echo '%s' >.tmp-repeat && sync .tmp-repeat && mv .tmp-repeat %s.json", dir, entry, build)
	if err := r.driver.RetryAppends(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, r.machine.ServiceLog(t.Context(), port))
	}
}
