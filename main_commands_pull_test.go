package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cuttingProxy forwards connections to a service, and cuts each one when so many bytes of
// responses have passed. It returns its address.
func cuttingProxy(t *testing.T, service string, after int64) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			here, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer here.Close()
				there, err := net.Dial("tcp", service)
				if err != nil {
					return
				}
				defer there.Close()
				go io.Copy(there, here)
				io.CopyN(here, there, after)
			}()
		}
	}()
	return l.Addr().String()
}

// pullTo runs pull with -o FILE, and returns its exit status and output.
func pullTo(t *testing.T, addr, file string, args ...string) (stdout string, status int) {
	t.Helper()
	var out bytes.Buffer
	log := &lockedBuffer{}
	err := run(t.Context(), append([]string{"pull", "-o", file}, args...), []string{"PAGEWRIGHT_URL=http://" + addr}, &out, log)
	if err != nil {
		status = exitStatus(err)
		t.Logf("pull %q: %v", args, err)
	}
	return out.String(), status
}

// A pull over connections that break goes on where it stopped, with a real service: small builds by
// one request at a time, large ones by several.
func TestPullOverBrokenConnections(t *testing.T) {
	s := startServer(t)
	for _, c := range []struct {
		build string
		size  int
		after int64
	}{
		{"small", 3 << 20, 1 << 20},
		{"large", 64<<20 + 1, 20 << 20},
	} {
		data := bytes.Repeat(body(1_000_003, 1), c.size/1_000_003+1)[:c.size]
		s.do(t, 201, request{"PUT", "/sites/shop/artifacts/" + c.build, data, header("Repr-Digest", reprDigestOf(string(data)))})
		addr := cuttingProxy(t, s.addr, c.after)
		file := filepath.Join(t.TempDir(), "out")
		out, status := pullTo(t, addr, file, "shop", c.build)
		got, err := os.ReadFile(file)
		if status != 0 || err != nil || !bytes.Equal(got, data) || strings.Contains(out, "not checked") {
			t.Errorf("%s: exit status %d, %d bytes or other ones, %v: %s", c.build, status, len(got), err, out)
		}
		if c.build == "large" { // the repetitions take time
			continue
		}
		if out, status := pullTo(t, addr, "-", "shop", c.build); status != 0 || out != string(data) {
			t.Errorf("%s to standard output: exit status %d, %d bytes or other ones", c.build, status, len(out))
		}
	}
}

// A build that is damaged in the store is not taken, and one without a digest is said to be unchecked.
func TestPullOfADamagedBuild(t *testing.T) {
	s := startServer(t)
	data := body(100_000, 1)
	s.do(t, 201, request{"PUT", "/sites/shop/artifacts/good", data, header("Repr-Digest", reprDigestOf(string(data)))})
	s.do(t, 201, request{"PUT", "/sites/shop/artifacts/unknown", data, nil})
	dir := t.TempDir()
	file := filepath.Join(dir, "out")
	if out, status := pullTo(t, s.addr, file, "shop", "unknown"); status != 0 || !strings.Contains(out, "not checked") {
		t.Errorf("exit status %d: %s", status, out)
	}
	if out, status := pullTo(t, s.addr, file, "shop", "good", "--if-changed", "--json"); status != 0 || !strings.Contains(out, `"changed":false`) {
		t.Errorf("exit status %d: %s", status, out)
	}
	flip(t, buildPath(s.dir, "shop", artifactsDir, "good"), 50_000, true)
	other := filepath.Join(dir, "other")
	if _, status := pullTo(t, s.addr, other, "shop", "good"); status != exitCorrupt {
		t.Errorf("exit status %d", status)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v is left, %v", entries, err)
	}
}
