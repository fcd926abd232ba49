package main

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestShortOfDescriptors: idle connections cannot take the descriptors that an
// upload in flight needs at its end. Those for which none is left wait, and are
// served when others have gone.
func TestShortOfDescriptors(t *testing.T) {
	cmd := exec.Command("sh", "-c", `ulimit -n 64 && exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=serve", "PAGEWRIGHT_PORT=0", "PAGEWRIGHT_LISTEN=127.0.0.1",
		"PAGEWRIGHT_NFS_BASE_PATH="+t.TempDir(), "PAGEWRIGHT_ACCESS_LOG=false")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	lines := bufio.NewScanner(stderr)
	waitFor := func(msg string) (address string) {
		for lines.Scan() {
			var line struct{ Msg, Address string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && strings.Contains(line.Msg, msg) {
				return line.Address
			}
		}
		t.Fatalf("the service ended before it said %q", msg)
		return ""
	}
	s := &testServer{addr: waitFor("serving")}

	upload := dial(t, s.addr)
	_, _ = upload.Write([]byte("PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nbef"))
	var idle []net.Conn
	for range 80 {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	waitFor("cannot accept connections")
	_, _ = upload.Write([]byte("ore"))
	if got := readStatus(upload); got != 201 {
		t.Errorf("the upload in flight was answered %d", got)
	}
	late := dial(t, s.addr)
	_, _ = late.Write([]byte("GET /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n\r\n"))
	for _, c := range idle {
		c.Close()
	}
	if got := readStatus(late); got != 200 {
		t.Errorf("the connection that waited was answered %d", got)
	}
}
