package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestMain makes the test binary a program of several: a test starts it again,
// with childVariable set, where it needs a process of its own to kill or to
// race with.
func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case "":
		// With the race detector, each child would sleep for a second before it ends.
		if err := os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")); err != nil {
			panic(err)
		}
		os.Exit(m.Run())
	case "serve": // the service itself
		os.Args = os.Args[:1]
		main()
	case "main": // the program with its arguments
		main()
	}
}

const childVariable = "STORAGE_TEST_CHILD"

// runWith runs the program until it ends by itself.
func runWith(args []string, vars ...string) (stdout string, err error) {
	environ := []string{"PATH=/bin"}
	for _, v := range vars {
		environ = append(environ, envPrefix+v)
	}
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // a service that does start ends at once
	err = run(ctx, args, environ, &out, io.Discard)
	return out.String(), err
}

func TestStartRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	_, port, _ := net.SplitHostPort(busy.Addr().String())
	base := "NFS_BASE_PATH=" + dir
	// The others are errors of the configuration.
	usage := []string{"unknown command", "unknown command with an argument", "argument after help", "argument after a command's help", "unknown flag", "leftover argument"}
	canPass := []string{"port taken", "admin address taken", "health at the admin address", "health of nothing", "base absent", "base not a mount"}
	for _, c := range []struct {
		name string
		args []string
		vars []string
		want []string // in the error
	}{
		{"unknown command", []string{"frobnicate"}, nil, []string{"frobnicate"}},
		{"unknown command with an argument", []string{"frobnicate", "now"}, nil, []string{"unknown command frobnicate"}},
		{"argument after help", []string{"--help", "serve"}, nil, []string{"--help takes no arguments", "serve"}},
		{"argument after a command's help", []string{"doctor", "-h", "now"}, nil, []string{"doctor takes no arguments"}},
		{"unknown flag", []string{"--port=1"}, nil, []string{"--port=1"}},
		{"leftover argument", []string{"serve", "now"}, nil, []string{"now"}},
		{"unknown variable", nil, []string{"PROT=1"}, []string{"PAGEWRIGHT_PROT"}},
		{"one of two stores", nil, []string{"STORAGE_BACKEND=azure", "S3_CONCURRENCY=3", "AZURE_CONCURRENCY=some"}, []string{"PAGEWRIGHT_AZURE_CONCURRENCY", "some", "a number"}},
		{"a bucket and no backend", nil, []string{base, "S3_BUCKET=b"}, []string{"PAGEWRIGHT_STORAGE_BACKEND", "s3", "PAGEWRIGHT_S3_BUCKET"}},
		{"port not a number", nil, []string{"PORT=http"}, []string{"PAGEWRIGHT_PORT", "http"}},
		{"port too large", nil, []string{"PORT=70000"}, []string{"PAGEWRIGHT_PORT", "70000"}},
		{"port taken", nil, []string{base, "LISTEN=127.0.0.1", "PORT=" + port}, []string{"PAGEWRIGHT_PORT", port, "in use"}},
		{"address not an address", nil, []string{"LISTEN=localhost"}, []string{"PAGEWRIGHT_LISTEN", "localhost", "IP address", "not a host name"}},
		{"address with a port", nil, []string{"LISTEN=127.0.0.1:80"}, []string{"PAGEWRIGHT_LISTEN", "127.0.0.1:80", "without a port", "PAGEWRIGHT_PORT"}},
		{"proxies without a header", nil, []string{"TRUSTED_PROXIES=10.0.0.0/8"}, []string{"PAGEWRIGHT_CLIENT_ADDRESS_HEADER must be set", "PAGEWRIGHT_TRUSTED_PROXIES"}},
		{"a header without proxies", nil, []string{"CLIENT_ADDRESS_HEADER=Forwarded"}, []string{"PAGEWRIGHT_TRUSTED_PROXIES must be set", "PAGEWRIGHT_CLIENT_ADDRESS_HEADER"}},
		{"another header", nil, []string{"TRUSTED_PROXIES=10.0.0.1", "CLIENT_ADDRESS_HEADER=X-Real-IP"}, []string{"PAGEWRIGHT_CLIENT_ADDRESS_HEADER", "X-Real-IP", "X-Forwarded-For or Forwarded"}},
		{"proxies with a name", nil, []string{"TRUSTED_PROXIES=10.0.0.1,proxy", "CLIENT_ADDRESS_HEADER=Forwarded"}, []string{"PAGEWRIGHT_TRUSTED_PROXIES", "10.0.0.1,proxy", "CIDR"}},
		{"proxies that may be a typo", nil, []string{"TRUSTED_PROXIES=10.0.0.1/8", "CLIENT_ADDRESS_HEADER=Forwarded"}, []string{"PAGEWRIGHT_TRUSTED_PROXIES", "10.0.0.0/8 or 10.0.0.1"}},
		{"a misspelt variable of proxies", nil, []string{"TRUSTED_PROXY=10.0.0.1"}, []string{"PAGEWRIGHT_TRUSTED_PROXY", "PAGEWRIGHT_TRUSTED_PROXIES"}},
		{"profiler at a name", nil, []string{"PPROF_LISTEN=localhost:6060"}, []string{"PAGEWRIGHT_PPROF_LISTEN", "localhost:6060"}},
		{"admin address without a port", nil, []string{"ADMIN_LISTEN=127.0.0.1"}, []string{"PAGEWRIGHT_ADMIN_LISTEN", "127.0.0.1:9090"}},
		{"admin address that is a name", nil, []string{"ADMIN_LISTEN=localhost:9090"}, []string{"PAGEWRIGHT_ADMIN_LISTEN", "localhost"}},
		{"admin address of the API", nil, []string{base, "LISTEN=127.0.0.1", "PORT=9090", "ADMIN_LISTEN=127.0.0.1:9090"}, []string{"PAGEWRIGHT_ADMIN_LISTEN", "the API"}},
		{"admin address among those of the API", nil, []string{base, "PORT=9090", "ADMIN_LISTEN=127.0.0.1:9090"}, []string{"PAGEWRIGHT_ADMIN_LISTEN", "the API"}},
		{"admin address with that of the API", nil, []string{base, "LISTEN=127.0.0.1", "PORT=9090", "ADMIN_LISTEN=0.0.0.0:9090"}, []string{"PAGEWRIGHT_ADMIN_LISTEN", "the API"}},
		{"admin address taken", nil, []string{base, "LISTEN=127.0.0.1", "PORT=0", "ADMIN_LISTEN=127.0.0.1:" + port}, []string{"PAGEWRIGHT_ADMIN_LISTEN", port, "in use"}},
		{"health at the admin address", []string{"healthcheck"}, []string{"PORT=" + port, "ADMIN_LISTEN=127.0.0.1:1"}, []string{"127.0.0.1:1/"}},
		{"unknown backend", nil, []string{"STORAGE_BACKEND=ftp"}, []string{"PAGEWRIGHT_STORAGE_BACKEND", "ftp"}},
		{"base absent", nil, []string{"NFS_BASE_PATH=" + dir + "/no"}, []string{"PAGEWRIGHT_NFS_BASE_PATH", dir + "/no", "no such file"}},
		{"base a file", nil, []string{"NFS_BASE_PATH=" + file}, []string{"PAGEWRIGHT_NFS_BASE_PATH", "not a directory"}},
		{"base not a mount", nil, []string{base, "NFS_REQUIRE_MOUNT=true"}, []string{"PAGEWRIGHT_NFS_REQUIRE_MOUNT", dir}},
		{"flag not a flag", nil, []string{"APPEND_ONLY=maybe"}, []string{"PAGEWRIGHT_APPEND_ONLY", "maybe", "true or false"}},
		{"size not a size", nil, []string{"MAX_ARTIFACT_SIZE=big"}, []string{"PAGEWRIGHT_MAX_ARTIFACT_SIZE", "big"}},
		{"size negative", nil, []string{"MAX_ARTIFACT_SIZE=-1"}, []string{"PAGEWRIGHT_MAX_ARTIFACT_SIZE", "-1"}},
		{"timeout without a unit", nil, []string{"STALL_TIMEOUT=30"}, []string{"PAGEWRIGHT_STALL_TIMEOUT", "30", "unit"}},
		{"timeout too short", nil, []string{"STALL_TIMEOUT=1ms"}, []string{"PAGEWRIGHT_STALL_TIMEOUT", "1ms"}},
		{"redirects of a directory", nil, []string{base, "DOWNLOAD_REDIRECT=true"}, []string{"PAGEWRIGHT_DOWNLOAD_REDIRECT", "directory"}},
		{"caching of builds that are replaced", nil, []string{base, "BUILD_CACHE_CONTROL=max-age=60"}, []string{"PAGEWRIGHT_BUILD_CACHE_CONTROL", "PAGEWRIGHT_APPEND_ONLY=true"}},
		{"caching that is blank", nil, []string{base, "APPEND_ONLY=true", "BUILD_CACHE_CONTROL= \t"}, []string{"PAGEWRIGHT_BUILD_CACHE_CONTROL", `" \t"`, "immutable"}},
		{"caching of two lines", nil, []string{base, "APPEND_ONLY=true", "BUILD_CACHE_CONTROL=public\r\nX-A: b"}, []string{"PAGEWRIGHT_BUILD_CACHE_CONTROL", `"public\r\nX-A: b"`}},
		{"caching with the name of the header", nil, []string{base, "APPEND_ONLY=true", "BUILD_CACHE_CONTROL=Cache-Control: public"}, []string{"PAGEWRIGHT_BUILD_CACHE_CONTROL", "Cache-Control: public"}},
		{"no uploads", nil, []string{"MAX_UPLOADS=0"}, []string{"PAGEWRIGHT_MAX_UPLOADS", "0"}},
		{"log level", nil, []string{"LOG_LEVEL=loud"}, []string{"PAGEWRIGHT_LOG_LEVEL", "loud", "debug, info"}},
		{"log format", nil, []string{"LOG_FORMAT=xml"}, []string{"PAGEWRIGHT_LOG_FORMAT", "xml"}},
		{"health of nothing", []string{"healthcheck"}, []string{"LISTEN=127.0.0.1", "PORT=1"}, []string{"127.0.0.1:1"}},
	} {
		_, err := runWith(c.args, c.vars...)
		if err == nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not name %q", c.name, err, w)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than a line: %q", c.name, err)
		}
		status := exitConfig
		switch {
		case slices.Contains(usage, c.name):
			status = exitUsage
		case slices.Contains(canPass, c.name):
			status = exitFailure
		}
		if got := exitStatus(err); got != status {
			t.Errorf("%s: exit status %d, want %d", c.name, got, status)
		}
	}
	if _, err := os.Stat(dir + "/no"); !os.IsNotExist(err) {
		t.Error("the base was made")
	}
}

// TestHealthcheckOfARunningService: with the variables of the service, whatever kind of
// address it has. The admin address is asked if there is one: the API is at another port
// than PORT says here.
func TestHealthcheckOfARunningService(t *testing.T) {
	for _, listen := range []string{"", "0.0.0.0", "::", "127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1"} {
		if l, err := net.Listen("tcp", net.JoinHostPort(listen, "0")); err != nil {
			t.Logf("not tested: this machine has no %s: %v", listen, err)
			continue
		} else {
			l.Close()
		}
		s := startServer(t, "LISTEN="+listen)
		_, port, _ := net.SplitHostPort(s.addr)
		if _, err := runWith([]string{"healthcheck"}, "LISTEN="+listen, "PORT="+port); err != nil {
			t.Errorf("LISTEN=%s: %v", listen, err)
		}
		if listen == "" {
			continue
		}
		_, port, _ = net.SplitHostPort(freeAddr(t))
		admin := "ADMIN_LISTEN=" + net.JoinHostPort(listen, port)
		startServer(t, "LISTEN=127.0.0.1", admin)
		if _, err := runWith([]string{"healthcheck"}, "LISTEN=127.0.0.1", "PORT=1", admin); err != nil {
			t.Errorf("%s: %v", admin, err)
		}
	}
}

// child runs the program in a process of its own, with the variables of this process and
// vars.
func child(t *testing.T, vars []string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), childVariable+"=main", "PAGEWRIGHT_LISTEN=127.0.0.1", "PAGEWRIGHT_PORT=0", "PAGEWRIGHT_NFS_BASE_PATH="+t.TempDir())
	for _, v := range vars {
		cmd.Env = append(cmd.Env, envPrefix+v)
	}
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), log.String(), cmd.ProcessState.ExitCode()
}

// TestFailedStartIsLogged: the service log says why the program ended, in the format that is
// configured even if another variable is wrong. A command says it in plain text.
func TestFailedStartIsLogged(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	taken := busy.Addr().String()
	_, port, _ := net.SplitHostPort(taken)
	for _, c := range []struct {
		args   []string
		vars   []string
		status int
		format string // of the log; empty: plain text
		want   string
	}{
		{nil, []string{"STALL_TIMEOUT=30"}, 78, "json", `PAGEWRIGHT_STALL_TIMEOUT=\"30\"`},
		{[]string{"serve"}, []string{"STALL_TIMEOUT=30"}, 78, "json", "PAGEWRIGHT_STALL_TIMEOUT"},
		{nil, []string{"STALL_TIMEOUT=30", "LOG_FORMAT=text"}, 78, "text", "PAGEWRIGHT_STALL_TIMEOUT"},
		{nil, []string{"LOG_FORMAT=xml"}, 78, "json", "PAGEWRIGHT_LOG_FORMAT"},
		{nil, []string{"PORT=" + port}, 1, "json", "in use"},
		{nil, []string{"PORT=" + port, "LOG_FORMAT=text"}, 1, "text", "in use"},
		{nil, []string{"PORT=" + port, "LOG_LEVEL=error+4"}, 1, "json", "in use"},
		{nil, []string{"ADMIN_LISTEN=" + taken}, 1, "json", "in use"},
		{nil, []string{"PPROF_LISTEN=" + taken}, 1, "json", "in use"},
		{nil, []string{"NFS_BASE_PATH=/nowhere"}, 1, "json", "no such file"},
		{nil, []string{"NFS_BASE_PATH=" + os.Args[0]}, 78, "json", "not a directory"},
		{[]string{"serve", "now"}, nil, 2, "json", "takes no arguments"},
		{[]string{"frobnicate"}, nil, 2, "", "unknown command"},
		{[]string{"doctor"}, []string{"LOG_LEVEL=loud"}, 78, "", "PAGEWRIGHT_LOG_LEVEL"},
		{[]string{"config"}, []string{"LOG_LEVEL=loud"}, 78, "", "PAGEWRIGHT_LOG_LEVEL"},
		{[]string{"doctor"}, []string{"NFS_BASE_PATH=/nowhere"}, 1, "", "no such file"},
		{[]string{"doctor"}, []string{"TLS_CERT=/dev/null", "TLS_KEY=/dev/null"}, 78, "", "cannot use the files of TLS"},
		{[]string{"config"}, []string{"TLS_CERT=/dev/null", "TLS_KEY=/dev/null"}, 78, "", "cannot use the files of TLS"},
		{[]string{"healthcheck"}, []string{"PORT=1"}, 1, "", "refused"},
		{[]string{"config", "-h"}, []string{"LOG_LEVEL=loud"}, 0, "", ""},
		{[]string{"version"}, []string{"LOG_LEVEL=loud"}, 0, "", ""},
	} {
		_, stderr, status := child(t, c.vars, c.args...)
		name := fmt.Sprintf("%v with %v", c.args, c.vars)
		if status != c.status || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != min(1, c.status) {
			t.Errorf("%s: exit status %d, want %d; %q, want a line with %q", name, status, c.status, stderr, c.want)
		}
		var line struct {
			Level, Msg, Error string
			ExitStatus        int `json:"exit_status"`
		}
		switch isJSON := json.Unmarshal([]byte(stderr), &line) == nil; {
		case c.format == "json" && (!isJSON || line.Level != "ERROR" || line.Msg != "cannot start" || line.Error == "" || line.ExitStatus != c.status),
			c.format == "text" && (!strings.HasPrefix(stderr, "time=") || !strings.Contains(stderr, ` level=ERROR msg="cannot start" error="`)),
			c.format == "" && c.status != 0 && !strings.HasPrefix(stderr, "pagewright-storage: "):
			t.Errorf("%s: not an error in the format %q: %s", name, c.format, stderr)
		}
	}
}

// TestExitStatusOfListening: nothing but another configuration helps with a port that needs
// a capability.
func TestExitStatusOfListening(t *testing.T) {
	for errno, want := range map[syscall.Errno]int{syscall.EACCES: 78, syscall.EADDRINUSE: 1, syscall.EADDRNOTAVAIL: 1} {
		err := listenError(fmt.Errorf("PAGEWRIGHT_PORT=80: %w", &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", errno)}))
		if got := exitStatus(err); got != want {
			t.Errorf("%v: exit status %d, want %d", errno, got, want)
		}
	}
}

// TestFailureAfterTheStart is not called a failed start.
func TestFailureAfterTheStart(t *testing.T) {
	var out bytes.Buffer
	reportFailure(&out, nil, nil, servingError{errHangs})
	if !strings.Contains(out.String(), `"msg":"stopped with an error","error":"`+errHangs.Error()+`","exit_status":1`) {
		t.Error(out.String())
	}
}

// TestStartLine: the log says at the start what serves which store, within which limits.
func TestStartLine(t *testing.T) {
	s := startServer(t, "MAX_UPLOADS=7", "MAX_CONNS_PER_IP=9", "MIN_FREE_SPACE=1MiB", "MAX_ARTIFACT_SIZE=5GB", "APPEND_ONLY=true")
	start := ""
	for line := range strings.Lines(s.log.String()) {
		if strings.Contains(line, `"msg":"serving"`) {
			start = line
		}
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(start), &got); err != nil {
		t.Fatal(err, start)
	}
	for name, want := range map[string]any{"address": s.addr, "version": version, "go": runtime.Version(), "backend": "nfs", "path": s.dir,
		"append_only": true, "tls": false, "max_uploads": 7.0, "max_conns_per_ip": 9.0, "min_free_space": 1048576.0, "max_artifact_size": 5e9} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	if n, _ := got["connections"].(float64); n < 1 {
		t.Errorf("the limit of connections is missing: %s", start)
	}
}
