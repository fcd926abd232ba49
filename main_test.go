package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain makes the test binary a program of several: a test starts it again,
// with childVariable set, where it needs a process of its own to kill or to
// race with.
func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case "":
		os.Exit(m.Run())
	case "serve": // the service itself
		os.Args = os.Args[:1]
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
	for _, c := range []struct {
		name string
		args []string
		vars []string
		want []string // in the error
	}{
		{"unknown command", []string{"frobnicate"}, nil, []string{"frobnicate"}},
		{"unknown command with an argument", []string{"frobnicate", "now"}, nil, []string{"unknown command frobnicate"}},
		{"argument after help", []string{"--help", "serve"}, nil, []string{"--help takes no arguments", "serve"}},
		{"unknown flag", []string{"--port=1"}, nil, []string{"--port=1"}},
		{"leftover argument", []string{"serve", "now"}, nil, []string{"now"}},
		{"unknown variable", nil, []string{"PROT=1"}, []string{"PAGEWRIGHT_PROT"}},
		{"one of two stores", nil, []string{"STORAGE_BACKEND=azure", "S3_CONCURRENCY=3", "AZURE_CONCURRENCY=some"}, []string{"PAGEWRIGHT_AZURE_CONCURRENCY", "some", "a number"}},
		{"a bucket and no backend", nil, []string{base, "S3_BUCKET=b"}, []string{"PAGEWRIGHT_STORAGE_BACKEND", "s3", "PAGEWRIGHT_S3_BUCKET"}},
		{"port not a number", nil, []string{"PORT=http"}, []string{"PAGEWRIGHT_PORT", "http"}},
		{"port too large", nil, []string{"PORT=70000"}, []string{"PAGEWRIGHT_PORT", "70000"}},
		{"port taken", nil, []string{base, "LISTEN=127.0.0.1", "PORT=" + port}, []string{"PAGEWRIGHT_PORT", port, "in use"}},
		{"address not an address", nil, []string{"LISTEN=localhost"}, []string{"PAGEWRIGHT_LISTEN", "localhost"}},
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
	}
	if _, err := os.Stat(dir + "/no"); !os.IsNotExist(err) {
		t.Error("the base was made")
	}
}

func TestHelpNamesEveryVariable(t *testing.T) {
	for _, flag := range []string{"-h", "--help", "help"} {
		out, err := runWith([]string{flag})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range (&Config{}).variables() {
			if !strings.Contains(out, v.name+" ") || v.help == "" || !strings.Contains(out, v.help) {
				t.Errorf("%s: %s is not explained", flag, v.name)
			}
		}
	}
	if out, err := runWith([]string{"version"}); err != nil || strings.TrimSpace(out) != version {
		t.Errorf("version printed %q, %v", out, err)
	}
}

func TestHealthcheckOfARunningService(t *testing.T) {
	s := startServer(t)
	_, port, _ := net.SplitHostPort(s.addr)
	eventually(t, "the service is healthy", func() bool {
		_, err := runWith([]string{"healthcheck"}, "PORT="+port)
		return err == nil
	})
}
