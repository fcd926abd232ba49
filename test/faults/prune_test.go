//go:build (integration || torture) && linux && amd64

package faults

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pagewright/storage/test/service"
)

// Whichever call of a prune fails: what it must keep is there, and what it removed is gone whole,
// the log last. If it says that it did all, it did. The next run does the rest.
func TestEverySystemCallOfPruneFails(t *testing.T) {
	bin, base := service.Build(t), service.SharedDir(t)
	b := &bench{t: t, base: base, site: "shop", op: operation{size: smallSize}}
	b.service = service.Start(t, service.Options{Bin: bin, Base: base})
	rules := filepath.Join(service.SharedDir(t), "retention.json")
	if err := os.WriteFile(rules, []byte(`{"grace":"0h","max_delete_percent":100,"rules":[{"sites":["*"],"keep_last":1}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	b.must(201, "PUT", "/artifacts/labelled", b.version(1))
	b.must(201, "PUT", label, []byte(`{"build_id":"labelled"}`))
	prepare := func() {
		b.serial++
		b.putHashed(1)
		b.must(201, "POST", "/logs", entry(1), "Idempotency-Key", "first")
		b.must(201, "PUT", "/artifacts/newest", b.version(b.serial))
	}
	kept := func() bool {
		labelled, _, _ := b.exchange("GET", "/artifacts/labelled", nil)
		newest, data, _ := b.exchange("GET", "/artifacts/newest", nil)
		return labelled == 200 && newest == 200 && bytes.Equal(data, b.version(b.serial)) && b.names("labelled", "labelled")
	}
	var calls []call
	for range 2 { // the first makes what is missing
		prepare()
		var exit int
		if calls, _, exit = b.prune(bin, rules, nil); exit != 0 || !isGone(b) || !kept() {
			t.Fatalf("without a fault: exit status %d, or it removed something else", exit)
		}
	}
	t.Logf("%d calls: %v", len(calls), calls)
	var faults []fault
	for _, c := range calls {
		changes := slices.Contains([]string{"fcntl", "fsync", "renameat", "unlinkat"}, c.name)
		if interim := strings.HasPrefix(filepath.Base(c.target), "."); !everyCall && (!changes || interim && c.name == "unlinkat") {
			continue
		}
		faults = append(faults, fault{call: c, errno: unix.EIO, applied: c.name == "close"})
		if everyCall && (c.name == "unlinkat" || c.name == "renameat") {
			faults = append(faults, fault{call: c, errno: unix.EIO, applied: true})
		}
	}
	said := map[int]int{}
	for _, f := range faults {
		var exit int
		for hit, attempt := false, 0; !hit; attempt++ {
			prepare()
			if _, hit, exit = b.prune(bin, rules, &f); attempt == 3 {
				t.Fatalf("%v: never reached", f)
			}
		}
		said[exit]++
		if gone := isGone(b); !kept() || exit == 0 && !gone {
			t.Errorf("%v: exit status %d, gone: %v, or it removed something else", f, exit, gone)
		}
		unremovable := f.name == "unlinkat" && strings.Contains(f.target, ".tmp-")
		for _, temp := range b.temps() {
			if !unremovable {
				t.Errorf("%v: left behind: %v", f, temp)
			}
			remove(t, temp)
		}
		if _, _, exit := b.prune(bin, rules, nil); exit != 0 || !isGone(b) || !kept() {
			t.Errorf("%v: the next run: exit status %d, or it did not do its work", f, exit)
		}
	}
	t.Logf("%d faults, by the exit status: %v", len(faults), said)
}

// prune runs "prune --apply" with a fault, and gives its calls on the sites and on what it keeps
// of its runs, whether the fault was reached, and the exit status.
func (b *bench) prune(bin, rules string, f *fault) (calls []call, hit bool, exit int) {
	b.t.Helper()
	// The inner shell waits until it is traced. The outer one tells the exit status: the
	// parent of what is traced would not get it.
	cmd := exec.Command("sh", "-c", `sh -c 'read x; exec "$0" prune --apply' "$0" >/dev/null; echo $?`, bin)
	cmd.Env = append(os.Environ(), "PAGEWRIGHT_NFS_BASE_PATH="+b.base, "PAGEWRIGHT_RETENTION_FILE="+rules)
	var out bytes.Buffer
	cmd.Stdout = &out
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	pid := 0
	for end := time.Now().Add(time.Minute); pid == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", cmd.Process.Pid))
		pid, _ = strconv.Atoi(strings.TrimSpace(string(children)))
	}
	tr, err := trace(pid, b.base)
	if err != nil {
		b.t.Fatal(err)
	}
	tr.watch(f)
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		b.t.Fatal(err)
	}
	<-tr.ends
	all, hit, _ := tr.seen()
	for _, c := range all {
		if strings.HasPrefix(c.target, "./sites/") || strings.HasPrefix(c.target, "./status/") {
			calls = append(calls, c)
		}
	}
	if exit, err = strconv.Atoi(strings.TrimSpace(out.String())); err != nil {
		b.t.Fatal(err)
	}
	return calls, hit, exit
}
