//go:build (integration || torture) && linux

// Package trace reads out of strace how the bytes move and in which order a
// build becomes durable.
package trace

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pagewright/storage/test/service"
)

// call is one system call that succeeded.
type call struct {
	name, args string
	result     int64
	fd         string // what its first argument is open on, as strace tells it
	to         string // the same of the third
}

const artifactSize = 1 << 30

// One upload of 1 GiB, its download and one of a part of it, under strace.
func TestBytesMoveInTheKernelAndDurabilityHasItsOrder(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("strace is needed: apt-get install strace")
	}
	base := service.SharedDir(t)
	out := filepath.Join(t.TempDir(), "strace")
	s := service.Start(t, service.Options{Bin: service.Build(t), Base: base, Wrap: []string{"strace", "-f", "-qq", "-yy", "-s", "64", "-o", out, "-e",
		"trace=read,write,readv,writev,recvfrom,sendto,recvmsg,sendmsg,pread64,pwrite64,splice,sendfile,copy_file_range,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat"}})
	sum := func(from, to int64) string {
		h := sha256.New()
		r := content()
		io.CopyN(io.Discard, r, from)
		io.CopyN(h, r, to-from)
		return string(h.Sum(nil))
	}
	req, _ := http.NewRequest("PUT", s.URL("site", "big"), io.LimitReader(content(), artifactSize))
	req.ContentLength = artifactSize
	if status, _ := do(t, req); status != http.StatusCreated {
		t.Fatal("the upload was answered ", status)
	}
	up := callsUntil(t, out, 0, answered(http.StatusCreated))
	mark := len(up)
	req, _ = http.NewRequest("GET", s.URL("site", "big"), nil)
	if status, got := do(t, req); status != http.StatusOK || got != sum(0, artifactSize) {
		t.Fatal("the download was answered ", status, ", or with other bytes")
	}
	down := callsUntil(t, out, mark, sent(artifactSize))
	mark += len(down)
	const from, to = 123_456_789, 987_654_321
	req, _ = http.NewRequest("GET", s.URL("site", "big"), nil)
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	if status, got := do(t, req); status != http.StatusPartialContent || got != sum(from, to) {
		t.Fatal("the range was answered ", status, ", or with other bytes")
	}
	part := callsUntil(t, out, mark, sent(to-from))

	moved := func(name string, cs []call, names string, match func(call) bool) int64 {
		n, bytes := 0, int64(0)
		for _, c := range cs {
			if strings.Contains(" "+names+" ", " "+c.name+" ") && match(c) {
				n++
				bytes += c.result
			}
		}
		t.Logf("%-16s %13d bytes in %d calls", name, bytes, n)
		return bytes
	}
	socket := func(c call) bool { return strings.Contains(c.fd, "TCP") }
	file := func(c call) bool { return strings.Contains(c.fd, base) }
	toFile := func(c call) bool { return strings.Contains(c.to, base) }
	const reads, writes = "read readv recvfrom recvmsg pread64", "write writev sendto sendmsg pwrite64"

	if n := moved("PUT splice", up, "splice", toFile); n < artifactSize-64<<10 {
		t.Errorf("only %d bytes were spliced into the file", n)
	}
	if n := moved("PUT read", up, reads, socket); n > 64<<10 {
		t.Errorf("%d bytes of the upload were read into user space", n)
	}
	moved("PUT write", up, writes, file)
	artifacts, logs := base+"/sites/site/artifacts", base+"/sites/site/logs"
	order(t, "PUT", up, []step{fileSynced(artifacts), renamed("big.tar.gz"), dirSynced(artifacts), answerSent(http.StatusCreated)})
	for _, d := range []struct {
		name string
		cs   []call
		want int64
	}{{"GET", down, artifactSize}, {"GET range", part, to - from}} {
		if n := moved(d.name+" sendfile", d.cs, "sendfile", socket); n != d.want {
			t.Errorf("%s: %d bytes of %d were sent by sendfile", d.name, n, d.want)
		}
		if n := moved(d.name+" read", d.cs, reads, file); n > 0 {
			t.Errorf("%s: %d bytes of the file were read into user space", d.name, n)
		}
	}

	mark += len(part)
	entry := func() *http.Request {
		req, _ := http.NewRequest("POST", "http://"+s.Addr+"/sites/site/logs", strings.NewReader(`{"build_id":"big","action":"deploy","status":"ok"}`))
		req.Header.Set("Idempotency-Key", "one")
		return req
	}
	remove := func() *http.Request {
		req, _ := http.NewRequest("DELETE", s.URL("site", "big"), nil)
		return req
	}
	for _, r := range []struct {
		name   string
		req    *http.Request
		status int
		steps  []step
	}{
		{"POST", entry(), http.StatusCreated, []step{fileSynced(logs), renamed("big.json"), dirSynced(logs)}},
		{"POST again", entry(), http.StatusCreated, []step{dirSynced(logs)}},
		{"DELETE", remove(), http.StatusNoContent, []step{unlinked("big.tar.gz"), dirSynced(artifacts)}},
		{"DELETE again", remove(), http.StatusNoContent, []step{dirSynced(artifacts)}},
	} {
		if status, _ := do(t, r.req); status != r.status {
			t.Fatal(r.name, " was answered ", status)
		}
		cs := callsUntil(t, out, mark, answered(r.status))
		mark += len(cs)
		order(t, r.name, cs, append(r.steps, answerSent(r.status)))
	}

	// What is in a large log goes into the new one without passing through the service.
	const large = 500 << 10
	for i := range 2 {
		req, _ := http.NewRequest("POST", "http://"+s.Addr+"/sites/site/logs",
			strings.NewReader(fmt.Sprintf(`{"build_id":"large","action":"deploy","status":"ok","metadata":{"x":"%0*d"}}`, large*(1-i), 0)))
		if status, _ := do(t, req); status != http.StatusCreated {
			t.Fatal("POST to a large log was answered ", status)
		}
		cs := callsUntil(t, out, mark, answered(http.StatusCreated))
		mark += len(cs)
		order(t, "POST", cs, []step{fileSynced(logs), renamed("large.json"), dirSynced(logs), answerSent(http.StatusCreated)})
		if i == 0 {
			continue
		}
		if n := moved("POST copy", cs, "copy_file_range", toFile); n < large {
			t.Errorf("only %d bytes of the log were copied in the kernel", n)
		}
		if n := moved("POST write", cs, writes, file); n > 4<<10 {
			t.Errorf("%d bytes were written into the log", n)
		}
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}

// answered reports whether an answer of that status was sent.
func answered(status int) func([]call) bool {
	return func(cs []call) bool { return slices.ContainsFunc(cs, answerSent(status).is) }
}

// step is a call that must be among those of a request.
type step struct {
	what, name string
	args       *regexp.Regexp
}

func (s step) is(c call) bool { return c.name == s.name && s.args.MatchString(c.args) }

func fileSynced(dir string) step {
	return step{"fsync of the temporary file", "fsync", regexp.MustCompile(regexp.QuoteMeta(dir) + `/\.tmp-`)}
}

func renamed(name string) step {
	return step{"rename", "renameat", regexp.MustCompile(`"\.tmp-\w+", .*"` + regexp.QuoteMeta(name) + `"`)}
}

func unlinked(name string) step {
	return step{"unlink", "unlinkat", regexp.MustCompile(`"` + regexp.QuoteMeta(name) + `"`)}
}

func dirSynced(dir string) step {
	return step{"fsync of the directory", "fsync", regexp.MustCompile(regexp.QuoteMeta(dir) + `>`)}
}

func answerSent(status int) step {
	return step{"the answer", "write", regexp.MustCompile(fmt.Sprintf(`HTTP/1\.1 %d `, status))}
}

// order fails unless the steps are among the calls of a request, in that order:
// what was changed is made durable, and only then the answer is sent.
func order(t *testing.T, request string, cs []call, steps []step) {
	t.Helper()
	at := -1
	for _, step := range steps {
		found := slices.IndexFunc(cs, step.is)
		switch {
		case found < 0:
			t.Errorf("%s: no %s", request, step.what)
		case found < at:
			t.Errorf("%s: %s came too early", request, step.what)
		default:
			t.Logf("%s: %s: %.150s", request, step.what, cs[found].name+"("+cs[found].args)
		}
		at = max(at, found)
	}
}

func content() io.Reader { return rand.NewChaCha8([32]byte{7}) }

// do returns the status and the SHA-256 of the body.
func do(t *testing.T, req *http.Request) (int, string) {
	t.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	h := sha256.New()
	if _, err := io.Copy(h, res.Body); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(h.Sum(nil))
}

var line = regexp.MustCompile(`^(\d+) +(?:(\w+)\((.*?)\) += (-?\d+)|(\w+)\((.*) <unfinished \.\.\.>|<\.\.\. (\w+) resumed>(.*?)\) += (-?\d+))`)

// sent reports whether so many bytes left by sendfile.
func sent(size int64) func([]call) bool {
	return func(cs []call) bool {
		n := int64(0)
		for _, c := range cs {
			if c.name == "sendfile" {
				n += c.result
			}
		}
		return n >= size
	}
}

// callsUntil is calls once they are enough, or after a while: strace tells of
// the call that sends an answer after the answer has arrived.
func callsUntil(t *testing.T, path string, n int, enough func([]call) bool) []call {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if cs := calls(t, path, n); enough(cs) || time.Now().After(end) {
			return cs
		}
	}
}

// calls reads the calls that ended, from the n-th on.
func calls(t *testing.T, path string, n int) []call {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var cs []call
	begun := map[string]string{} // the arguments of what each thread is in
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := line.FindStringSubmatch(lines.Text())
		switch {
		case m == nil:
		case m[2] != "":
			cs = append(cs, newCall(m[2], m[3], m[4]))
		case m[5] != "":
			begun[m[1]] = m[6]
		default:
			cs = append(cs, newCall(m[7], begun[m[1]]+m[8], m[9]))
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return cs[n:]
}

func newCall(name, args, result string) call {
	n, _ := strconv.ParseInt(result, 10, 64)
	parts := strings.Split(args, ", ")
	c := call{name: name, args: args, result: max(n, 0), fd: parts[0]}
	if len(parts) > 2 {
		c.to = parts[2]
	}
	return c
}
