//go:build (integration || torture) && linux && amd64

package faults

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pagewright/storage/test/service"
)

// errnos are what each call fails with, and the status that it stands for.
var errnos = []struct {
	errno  unix.Errno
	status int
}{
	{unix.EIO, 500}, {unix.ENOSPC, 507}, {unix.EDQUOT, 507}, {unix.EROFS, 503}, {unix.ESTALE, 503}, {unix.EMFILE, 503},
	{unix.EINTR, 0}, // begun again: no failure
}

const (
	bodySize  = 1<<20 + 300<<10 // large enough to be spliced and preallocated
	smallSize = 50 << 10        // so small that it is copied
)

// bench is a traced service and the operation that is tried on it.
type bench struct {
	t       *testing.T
	service *service.Service
	tracer  *tracer
	base    string
	op      operation
	site    string
	serial  int
	sum     struct{ faults, statuses, kept, whole int }
}

// operation is one write of the API, with what must be true around it.
type operation struct {
	name    string
	fresh   bool // each time on a site that is not there yet
	digest  bool // of the upload, or to be deleted; any other change only removes one that is stale, if possible
	refused bool // it changes nothing, also if a call fails
	size    int  // of the uploads; 0: bodySize
	success int
	prepare func(*bench) // to the state before
	do      func(*bench) int
	// after reports whether the state is the one before, the one after, or fails
	// the test because it is neither.
	after  func(*bench) (changed bool)
	repeat int // the status of the same write once it was made
}

func TestEverySystemCallFails(t *testing.T) {
	bin := service.Build(t)
	for _, op := range slices.Concat(operations, ofLabels) {
		t.Run(op.name, func(t *testing.T) {
			base := service.SharedDir(t)
			s := service.Start(t, service.Options{Bin: bin, Base: base})
			tr, err := trace(s.Pid, base)
			if err != nil {
				t.Fatal(err)
			}
			b := &bench{t: t, service: s, tracer: tr, base: base, op: op, site: "shop"}
			for _, f := range b.faults() {
				b.try(f)
			}
			t.Logf("%d faults: %d answered with their status and the old state kept, %d overcome, %d failed after the change; no temporary file left, the next write worked",
				b.sum.faults, b.sum.kept, b.sum.whole, b.sum.statuses)
		})
	}
}

// record lists the calls of the operation without a fault. A service that has
// just started also looks for old temporary files, so it is done again until it
// is the same twice.
func (b *bench) record() []call {
	before := ""
	for range 30 {
		b.begin()
		b.tracer.watch(nil)
		status := b.op.do(b)
		calls, _, _ := b.tracer.seen()
		if status != b.op.success || !b.op.after(b) {
			b.t.Fatalf("without a fault: status %d", status)
		}
		list := []call{}
		for _, c := range calls {
			if c.name == "splice" && c.n > 1 {
				continue // how many there are is not the same each time
			}
			c.target = strings.Replace(c.target, "./sites/"+b.site, "./sites/SITE", 1)
			list = append(list, c)
		}
		now := fmt.Sprint(list)
		if now == before {
			return list
		}
		before = now
	}
	b.t.Fatal("the calls are never the same twice")
	return nil
}

// faults are all that can happen to the calls of the operation.
func (b *bench) faults() []fault {
	calls := b.record()
	var faults []fault
	names := map[string]bool{}
	for _, c := range calls {
		names[c.name] = true
		for _, e := range errnos {
			// A close that fails has closed, on Linux.
			faults = append(faults, fault{call: c, errno: e.errno, applied: c.name == "close"})
		}
		switch c.name {
		case "write", "pread64", "splice", "copy_file_range":
			faults = append(faults, fault{call: c, short: true})
		case "renameat":
			faults = append(faults, fault{call: c, errno: unix.ENOENT, applied: true}, fault{call: c, errno: unix.EIO, applied: true})
		case "linkat":
			faults = append(faults, fault{call: c, errno: unix.EEXIST, applied: true}, fault{call: c, errno: unix.EIO, applied: true})
		case "mkdirat":
			faults = append(faults, fault{call: c, errno: unix.EEXIST, applied: true}, fault{call: c, errno: unix.EIO, applied: true})
		case "unlinkat":
			faults = append(faults, fault{call: c, errno: unix.ENOENT, applied: true}, fault{call: c, errno: unix.EIO, applied: true})
		}
	}
	b.t.Logf("%d calls, of %d kinds: %v", len(calls), len(names), calls)
	return faults
}

// begin makes the state before the operation.
func (b *bench) begin() {
	b.serial++
	if b.op.fresh { // and the directory of all sites is not there either
		b.site = fmt.Sprintf("shop%d", b.serial)
		err := os.Rename(b.base+"/sites", fmt.Sprintf("%s/before%d", b.base, b.serial))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.t.Fatal(err)
		}
	}
	b.op.prepare(b)
}

// try makes one call of the operation fail, and judges all that follows.
func (b *bench) try(f fault) {
	var calls []call
	var hit, changed bool
	var status int
	for attempt := 0; !hit; attempt++ {
		b.begin()
		f := f
		f.target = strings.Replace(f.target, "./sites/SITE", "./sites/"+b.site, 1)
		b.tracer.watch(&f)
		status = b.op.do(b)
		calls, hit, changed = b.tracer.seen()
		if attempt == 3 {
			b.t.Fatalf("%v: never reached in %v", f, calls)
		}
	}
	b.sum.faults++
	fail := func(format string, args ...any) {
		b.t.Errorf("%v: %s", f, fmt.Sprintf(format, args...))
	}
	wants := b.wants(f)
	if !wants[status] {
		fail("answered %d, want one of %v", status, wants)
	}
	isNew := b.op.after(b)
	switch {
	case status == b.op.success && !isNew:
		fail("acknowledged, and not there")
	case status == b.op.success:
		b.sum.whole++
	case b.op.refused && !changed:
		b.sum.kept++
	case !changed && isNew:
		fail("made visible by nothing")
	case !changed:
		b.sum.kept++
	default:
		b.sum.statuses++
	}
	if f.name == "fsync" && f.errno != unix.EINTR && calls[len(calls)-1].n > 1 {
		for _, c := range calls {
			if c.name == "fsync" && c.target == f.target && c.n > f.n && strings.Contains(c.target, ".tmp-") {
				fail("the fsync was tried again")
			}
		}
	}
	// A temp that could not be removed stays for the sweep, and for that alone.
	unremovable := f.name == "unlinkat" && strings.Contains(f.target, ".tmp-") && !f.applied
	if temps := b.temps(); len(temps) > 0 && !(unremovable && len(temps) == 1) {
		fail("left behind: %v", temps)
	} else if len(temps) > 0 {
		remove(b.t, temps[0])
	}
	// The same write again, without a fault.
	again := b.op.success
	if isNew {
		again = b.op.repeat
	}
	if got := b.op.do(b); got != again || !b.op.after(b) {
		fail("the next write was answered %d, want %d, or did not do its work", got, again)
	}
}

// temps returns the temporary files that were left behind. Those in the base itself are of the
// probe of the store, which runs every few seconds and removes them: temps waits for that.
func (b *bench) temps() (temps []string) {
	ofProbe := func(path string) bool { return filepath.Dir(path) == b.base }
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if temps = service.Temps(b.t, b.base); !slices.ContainsFunc(temps, ofProbe) {
			break
		}
	}
	return temps
}

// wants are the statuses that are right for a fault.
func (b *bench) wants(f fault) map[int]bool {
	success := map[int]bool{b.op.success: true}
	temp := strings.Contains(f.target, ".tmp-")
	switch {
	case f.short:
		return success
	case f.errno == unix.EINTR && f.name != "close" && f.name != "fstat":
		return success
	case f.applied && (f.errno == unix.ENOENT || f.errno == unix.EEXIST): // a reply that was lost
		return success
	case f.applied && f.errno == unix.EIO && f.name == "linkat": // two links tell
		success[500] = b.op.refused // the name is that of the labelled build
		return success
	case b.op.refused && (f.name == "openat2" && strings.HasSuffix(f.target, "/artifacts") || f.name == "openat" && strings.HasSuffix(f.target, "/build.tar.gz")): // the build is protected, whatever is known of it
		success[statusOf(f)] = true
		return success
	case f.name == "sync_file_range": // a hint
		return success
	case f.name == "copy_file_range" && f.errno == unix.EIO: // there are file systems that cannot and say this: it is copied by reads and writes
		return success
	case f.name == "close" && !temp: // nothing was written through it
		return success
	case f.name == "unlinkat" && temp && b.op.name != "delete": // the build is there
		return success
	case strings.Contains(f.target, "/digests") && !b.op.digest: // nobody uses a stale digest
		return success
	case f.name == "renameat" && strings.HasSuffix(f.target, "/build.sha256"): // the build is there; its digest is not known
		return success
	case b.op.name == "delete a label" && strings.Contains(f.target, "/labels") && (f.name == "pread64" || f.name == "openat2" && f.call != openLabels):
		return success // it need not be read: one that is damaged can be deleted
	case f.name == "openat2" && strings.HasSuffix(f.target, "/labels") && b.op.looksTwice(f.n):
		success[statusOf(f)] = true
		return success
	case f.name == "newfstatat" && (strings.HasSuffix(f.target, "/build.tar.gz") || strings.HasSuffix(f.target, "/live.json")):
		// Whether what is kept of the build, or of the label, is still right: it is read anew.
		// Or whether a delete must wait. The look under the lock counts.
		success[statusOf(f)] = true
		return success
	case f.name == "fstat" && !temp:
		// Of a directory: what is known of it does not count, all is done anew.
		success[500], success[503], success[507] = true, true, true
		return success
	case f.errno == unix.EINTR:
		return map[int]bool{500: true}
	case f.name == "pread64" && strings.HasSuffix(f.target, "/.lock") && f.errno == unix.EIO: // the lock is lost
		return map[int]bool{503: true}
	}
	// The probe of the store opens the base too, and may be what the fault hits.
	return map[int]bool{statusOf(f): true, b.op.success: f.name == "openat2" && f.target == "."}
}

// statusOf is the status that the errno of a fault stands for.
func statusOf(f fault) int {
	for _, e := range errnos {
		if e.errno == f.errno {
			return e.status
		}
	}
	panic("no status of " + f.String())
}

// openLabels is the first look for the labels.
var openLabels = call{"openat2", "./sites/SITE/labels", 1}

// looksTwice reports whether an upload succeeds though it could not open the labels the n-th time:
// the first look, before the body, may miss what the one under the lock sees; and if there is no
// build yet, the labels do not matter.
func (o operation) looksTwice(n int) bool {
	return strings.HasPrefix(o.name, "first of a site") || n == 1 && strings.HasPrefix(o.name, "replace")
}

// version is the body of the n-th upload.
func (b *bench) version(n int) []byte {
	body := make([]byte, cmp.Or(b.op.size, bodySize))
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(body)
	return body
}

func (b *bench) send(method, path string, body []byte, header ...string) int {
	status, _, _ := b.exchange(method, path, body, header...)
	return status
}

func (b *bench) exchange(method, path string, body []byte, header ...string) (int, []byte, http.Header) {
	req, err := http.NewRequest(method, "http://"+b.service.Addr+"/sites/"+b.site+path, bytes.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, path, err)
	}
	return res.StatusCode, data, res.Header
}

// must is send without a fault.
func (b *bench) must(want int, method, path string, body []byte, header ...string) {
	b.t.Helper()
	if got := b.send(method, path, body, header...); got != want {
		b.t.Fatalf("%s %s without a fault: %d, want %d", method, path, got, want)
	}
}

const artifact = "/artifacts/build"

// sees compares what is there with both states, nil for no build.
func (b *bench) sees(before, after []byte) bool {
	b.t.Helper()
	status, got, header := b.exchange("GET", artifact, nil)
	if d := header.Get("Repr-Digest"); d != "" && d != reprDigest(got) {
		b.t.Errorf("the digest is that of other bytes")
	}
	is := func(want []byte) bool {
		return want == nil && status == http.StatusNotFound || want != nil && status == http.StatusOK && bytes.Equal(got, want)
	}
	switch {
	case is(after):
		return true
	case !is(before):
		b.t.Errorf("the build is neither the old nor the new: status %d, %d bytes", status, len(got))
	}
	return false
}

var operations = []operation{
	{
		name: "replace", success: 201, repeat: 201,
		prepare: func(b *bench) { b.must(201, "PUT", artifact, b.version(b.serial)) },
		do:      func(b *bench) int { return b.send("PUT", artifact, b.version(b.serial+1)) },
		after:   func(b *bench) bool { return b.sees(b.version(b.serial), b.version(b.serial+1)) },
	},
	{
		name: "replace by a small one", size: smallSize, success: 201, repeat: 201,
		prepare: func(b *bench) { b.must(201, "PUT", artifact, b.version(b.serial)) },
		do:      func(b *bench) int { return b.send("PUT", artifact, b.version(b.serial+1)) },
		after:   func(b *bench) bool { return b.sees(b.version(b.serial), b.version(b.serial+1)) },
	},
	{
		name: "first of a site", fresh: true, success: 201, repeat: 201,
		prepare: func(b *bench) {},
		do:      func(b *bench) int { return b.send("PUT", artifact, b.version(b.serial)) },
		after:   func(b *bench) bool { return b.sees(nil, b.version(b.serial)) },
	},
	{
		name: "create-only", success: 201, repeat: 412,
		prepare: func(b *bench) {
			b.must(201, "PUT", "/artifacts/other", []byte("x")) // the site is there
			b.must(204, "DELETE", artifact, nil)
		},
		do:    func(b *bench) int { return b.send("PUT", artifact, b.version(b.serial), "If-None-Match", "*") },
		after: func(b *bench) bool { return b.sees(nil, b.version(b.serial)) },
	},
	{
		name: "replace if it matches", success: 201, repeat: 201,
		prepare: func(b *bench) { b.must(201, "PUT", artifact, b.version(b.serial)) },
		do:      func(b *bench) int { return b.send("PUT", artifact, b.version(b.serial+1), "If-Match", "*") },
		after:   func(b *bench) bool { return b.sees(b.version(b.serial), b.version(b.serial+1)) },
	},
	{
		name: "delete", success: 204, repeat: 204,
		prepare: func(b *bench) { b.must(201, "PUT", artifact, b.version(1)) },
		do:      func(b *bench) int { return b.send("DELETE", artifact, nil) },
		after:   func(b *bench) bool { return b.sees(b.version(1), nil) },
	},
	{
		name: "replace with a digest", digest: true, size: smallSize, success: 201, repeat: 201,
		prepare: func(b *bench) { b.putHashed(b.serial) },
		do:      func(b *bench) int { return b.send("PUT", artifact, b.version(b.serial+1), b.digest(b.serial+1)...) },
		after:   func(b *bench) bool { return b.sees(b.version(b.serial), b.version(b.serial+1)) },
	},
	{
		name: "first of a site, with a digest", fresh: true, digest: true, size: smallSize, success: 201, repeat: 201,
		prepare: func(b *bench) {},
		do:      func(b *bench) int { return b.send("PUT", artifact, b.version(b.serial), b.digest(b.serial)...) },
		after:   func(b *bench) bool { return b.sees(nil, b.version(b.serial)) },
	},
	{
		name: "create-only with a digest", digest: true, size: smallSize, success: 201, repeat: 200,
		prepare: func(b *bench) {
			b.putHashed(b.serial) // the site is there
			b.must(204, "DELETE", artifact, nil)
		},
		do: func(b *bench) int {
			return b.send("PUT", artifact, b.version(b.serial), append(b.digest(b.serial), "If-None-Match", "*")...)
		},
		after: func(b *bench) bool { return b.sees(nil, b.version(b.serial)) },
	},
	{
		name: "replace a digest by none", size: smallSize, success: 201, repeat: 201,
		prepare: func(b *bench) { b.putHashed(b.serial) },
		do:      func(b *bench) int { return b.send("PUT", artifact, b.version(b.serial+1)) },
		after:   func(b *bench) bool { return b.sees(b.version(b.serial), b.version(b.serial+1)) },
	},
	{
		name: "delete with a digest", size: smallSize, success: 204, repeat: 204,
		prepare: func(b *bench) { b.putHashed(1) },
		do:      func(b *bench) int { return b.send("DELETE", artifact, nil) },
		after:   func(b *bench) bool { return b.sees(b.version(1), nil) },
	},
	{
		name: "log entry", success: 201, repeat: 201,
		prepare: func(b *bench) { b.must(201, "POST", "/logs", entry(1), "Idempotency-Key", "first") },
		do:      appendEntry,
		after:   seesEntry,
	},
	{
		name: "entry of a large log", success: 201, repeat: 201, // copied by the kernel
		prepare: func(b *bench) {
			first := fmt.Appendf(nil, `{"build_id":"build","action":"fault","status":"s1","metadata":{"x":"%0*d"}}`, 2*64<<10, 0)
			b.must(201, "POST", "/logs", first, "Idempotency-Key", "first")
		},
		do:    appendEntry,
		after: seesEntry,
	},
	{
		name: "first log entry of a site", fresh: true, success: 201, repeat: 201,
		prepare: func(b *bench) {},
		do:      appendEntry,
		after:   seesEntry,
	},
}

// digest is the header with the digest of the n-th upload.
func (b *bench) digest(n int) []string { return []string{"Repr-Digest", reprDigest(b.version(n))} }

func (b *bench) putHashed(n int) { b.must(201, "PUT", artifact, b.version(n), b.digest(n)...) }

func reprDigest(body []byte) string {
	sum := sha256.Sum256(body)
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

func entry(n int) []byte {
	return fmt.Appendf(nil, `{"build_id":"build","action":"fault","status":"s%d"}`, n)
}

func appendEntry(b *bench) int {
	return b.send("POST", "/logs", entry(b.serial+1), "Idempotency-Key", fmt.Sprint("key", b.serial+1))
}

// seesEntry reports whether the latest entry is there. All before it must be, and
// each once.
func seesEntry(b *bench) bool {
	b.t.Helper()
	status, data, _ := b.exchange("GET", "/versions", nil)
	var answer struct {
		Versions []struct {
			LogsError string `json:"logs_error"`
			Logs      []struct{ Status string }
		}
	}
	if err := json.Unmarshal(data, &answer); status != 200 || err != nil {
		b.t.Fatalf("list: %d, %v", status, err)
	}
	want := []string{}
	if !b.op.fresh {
		for n := 1; n <= b.serial; n++ {
			want = append(want, fmt.Sprint("s", n))
		}
	}
	got := []string{}
	for _, v := range answer.Versions {
		if v.LogsError != "" {
			b.t.Errorf("the log is damaged: %s", v.LogsError)
		}
		for _, e := range v.Logs {
			got = append(got, e.Status)
		}
	}
	latest := fmt.Sprint("s", b.serial+1)
	isNew := len(got) > 0 && got[len(got)-1] == latest
	if isNew {
		want = append(want, latest)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		b.t.Errorf("the log has %q, want %q", got, want)
	}
	return isNew
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := unix.Unlink(path); err != nil {
		t.Fatal(err)
	}
}
