package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestShortOfDescriptors: idle connections cannot take the descriptors that an
// upload in flight needs at its end. Past those that are left for connections, the
// longest idle one makes room for each new one.
func TestShortOfDescriptors(t *testing.T) {
	s, waitFor := startLimited(t, 64)
	upload := dial(t, s.addr)
	_, _ = upload.Write([]byte("PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nbef"))
	waitForTemp(t, &s.testServer)
	connect(t, s.addr, 80)
	stop := keepConnecting(s.addr) // a connection is refused if none of the others has become idle yet
	waitFor("closing the longest idle connection")
	stop()
	_, _ = upload.Write([]byte("ore"))
	if got := readStatus(upload); got != 201 {
		t.Errorf("the upload in flight was answered %d", got)
	}
	late := dial(t, s.addr)
	_, _ = late.Write([]byte("GET /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\n\r\n"))
	if got := readStatus(late); got != 200 {
		t.Errorf("a new connection was answered %d", got)
	}
}

// TestOutOfDescriptors: if the system gives fewer than it said, idle connections
// make room too, and the listener goes on.
func TestOutOfDescriptors(t *testing.T) {
	s, waitFor := startLimited(t, 1000)
	s.get(t, 200, "/health")
	if err := unix.Prlimit(s.pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 32, Max: 32}, nil); err != nil {
		t.Fatal(err)
	}
	connect(t, s.addr, 40)
	waitFor("too many open files")
	late := dial(t, s.addr)
	_, _ = late.Write([]byte("GET /health HTTP/1.1\r\nHost: h\r\n\r\n"))
	if got := readStatus(late); got != 200 {
		t.Errorf("a new connection was answered %d", got)
	}
}

func connect(t *testing.T, addr string, n int) (all []net.Conn) {
	t.Helper()
	for range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		all = append(all, c)
	}
	return all
}

// keepConnecting opens connections, one after the other, until stop is called.
func keepConnecting(addr string) (stop func()) {
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
			}
			if c, err := net.Dial("tcp", addr); err == nil {
				defer c.Close()
			}
		}
	}()
	return func() { close(ended); <-done }
}

// limited is a service in a process of its own.
type limited struct {
	testServer
	pid int
}

// startLimited starts a service that may have so many descriptors. waitFor waits
// until its log has a line with a text, and returns its address if it has one.
func startLimited(t *testing.T, descriptors int, vars ...string) (s *limited, waitFor func(text string) (address string)) {
	t.Helper()
	base := t.TempDir()
	cmd := exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0"`, descriptors), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=serve", "PAGEWRIGHT_PORT=0", "PAGEWRIGHT_LISTEN=127.0.0.1",
		"PAGEWRIGHT_NFS_BASE_PATH="+base, "PAGEWRIGHT_ACCESS_LOG=false",
		"PAGEWRIGHT_HEADER_TIMEOUT=1h") // or silent connections go by themselves
	for _, v := range vars {
		cmd.Env = append(cmd.Env, envPrefix+v)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(stderr)
	waitFor = func(text string) (address string) {
		t.Helper()
		defer time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() }).Stop() // ends the log
		for lines.Scan() {
			var line struct{ Address string }
			if strings.Contains(lines.Text(), text) && json.Unmarshal(lines.Bytes(), &line) == nil {
				return line.Address
			}
		}
		t.Fatalf("the service ended before it said %q", text)
		return ""
	}
	s = &limited{testServer{dir: base}, cmd.Process.Pid}
	s.addr = waitFor(`"serving"`)
	return s, waitFor
}

// Of the descriptors, requests have those of their files, and each connection
// one more, for what it downloads.
func TestDescriptorsOfConnections(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct{ descriptors, requests, want int }{
		{1000, 50, 350},  // 300 for the files of requests
		{1000, 500, 250}, // at most half for these
		{100_000, 1, maxConnections},
	} {
		limit := unix.Rlimit{Cur: min(uint64(c.descriptors), before.Max), Max: before.Max}
		if limit.Cur < uint64(c.descriptors) {
			continue // no more are to be had here
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		if l := newListener(nil, c.requests, 0, quiet(), nil); l.max != c.want {
			t.Errorf("%d descriptors, %d requests: %d connections, want %d", c.descriptors, c.requests, l.max, c.want)
		}
	}
}
