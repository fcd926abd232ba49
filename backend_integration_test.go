//go:build integration

package main

import (
	"bytes"
	"context"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// largeBody is larger than anything that a backend under test sends in one piece.
const largeBody = 11<<20 + 4321

// realStore is a real server of a kind of store, started for a test, and the
// variables by which the service finds it.
type realStore struct {
	name   string
	server *storeServer
	env    map[string]string
	but    []difference

	prepare    func(t testing.TB)     // makes the bucket
	drop       func(t testing.TB)     // deletes the bucket, which is empty, or all of it
	ends       syscall.Signal         // what ends it in the test of a restart; 0: SIGKILL
	cannotSign bool                   // its credentials sign no URLs
	unfinished func(t testing.TB) int // number of uploads under way; nil: it does not tell
}

// realStores has what starts each of them. test/tools.sh fetches them.
var realStores = map[string]func(t testing.TB) *realStore{
	"versitygw": startVersity,
	"minio":     startMinIO,
	"azurite":   startAzurite,
	"fake-gcs":  startFakeGCS,
}

// eachStore runs test on every real store, each freshly started.
func eachStore(t *testing.T, test func(t *testing.T, s *realStore)) {
	for name, start := range realStores {
		t.Run(name, func(t *testing.T) { test(t, start(t)) })
	}
}

// environ is the environment of a service on the store. through, if not empty,
// is the URL of a proxy in front of it.
func (s *realStore) environ(through string) []string {
	env := []string{"HOME=/nonexistent", "AWS_EC2_METADATA_DISABLED=true"}
	for name, value := range s.env {
		if through != "" {
			value = strings.ReplaceAll(value, s.server.url(), through)
		}
		env = append(env, name+"="+value)
	}
	return env
}

// open opens the store as a process of its own would.
func (s *realStore) open(t testing.TB, through string) store {
	t.Helper()
	s.setenv(t)
	cfg, _, err := parseConfig(s.environ(through))
	if err != nil {
		t.Fatal(err)
	}
	b, err := openBackend(context.Background(), cfg, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return b.(store)
}

// setenv sets what the SDKs look up themselves.
func (s *realStore) setenv(t testing.TB) {
	for _, kv := range s.environ("") {
		if name, value, _ := strings.Cut(kv, "="); !strings.HasPrefix(name, envPrefix) {
			t.Setenv(name, value)
		}
	}
}

// frontDoor is the service on the store, as the tests of the HTTP side start it.
func (s *realStore) frontDoor(t testing.TB) *testServer {
	t.Helper()
	s.setenv(t)
	var vars []string
	for name, value := range s.env {
		if short, ours := strings.CutPrefix(name, envPrefix); ours {
			vars = append(vars, short+"="+value)
		}
	}
	server := startServer(t, vars...)
	server.seconds = true // of all object stores, at least in a part of their answers
	server.noDeleteIf = slices.Contains(s.but, noDeleteIf)
	return server
}

// prefixVariable is the name of the variable that sets the prefix of the keys.
func (s *realStore) prefixVariable() string {
	return envPrefix + strings.ToUpper(s.env[envPrefix+"STORAGE_BACKEND"]) + "_PREFIX"
}

// with is s with other variables.
func (s *realStore) with(env map[string]string) *realStore {
	c := *s
	c.env = maps.Clone(s.env)
	maps.Copy(c.env, env)
	return &c
}

// storeServer is a server in a process of its own, that can be stopped and
// started again on its port.
type storeServer struct {
	t      testing.TB
	addr   string // host:port
	health string // path that answers 200 when it is up; empty: there is none, and any answer will do
	argv   []string
	env    []string
	output *logBuffer
	cmd    *exec.Cmd
	done   chan struct{}
}

// startProcess starts a server and waits until it is up. In argv and env, {addr}
// and {port} stand for where it is to listen. It is killed when the test ends.
func startProcess(t testing.TB, health string, env, argv []string) *storeServer {
	t.Helper()
	s := &storeServer{t: t, addr: freeAddr(t), health: health, output: &logBuffer{}}
	_, port, _ := net.SplitHostPort(s.addr)
	place := strings.NewReplacer("{addr}", s.addr, "{port}", port)
	for _, a := range argv {
		s.argv = append(s.argv, place.Replace(a))
	}
	for _, e := range env {
		s.env = append(s.env, place.Replace(e))
	}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("%s said:\n%s", s.argv[0], s.output.tail())
		}
	})
	s.start()
	return s
}

func (s *storeServer) url() string { return "http://" + s.addr }

func (s *storeServer) start() {
	s.t.Helper()
	s.cmd = exec.Command(s.argv[0], s.argv[1:]...)
	s.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.t.TempDir()}, s.env...)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("%v; test/tools.sh fetches the servers", err)
	}
	done := make(chan struct{})
	s.done = done
	cmd := s.cmd
	go func() { _ = cmd.Wait(); close(done) }()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get(s.url() + s.health)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK || s.health == "" {
				return
			}
		}
		select {
		case <-done:
			s.t.Fatalf("%s ended: %s", s.argv[0], s.output.tail())
		default:
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s does not come up: %v", s.argv[0], err)
		}
	}
}

// kill ends the server as a power cut would, for the process.
func (s *storeServer) kill() { s.end(syscall.SIGKILL) }

// end sends a signal to the server and waits for its end.
func (s *storeServer) end(signal syscall.Signal) {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(signal)
		<-s.done
	}
}

// tool is the path of a server that test/tools.sh fetched.
func tool(name string) string {
	dir := os.Getenv("STORAGE_TOOLS")
	if dir == "" {
		cache := os.Getenv("XDG_CACHE_HOME")
		if cache == "" {
			cache = filepath.Join(os.Getenv("HOME"), ".cache")
		}
		dir = filepath.Join(cache, "pagewright-storage-tools")
	}
	return filepath.Join(dir, name)
}

var httpDiscard = log.New(io.Discard, "", 0)

// They are found before a test changes HOME for an SDK.
var (
	versityPath = tool("versitygw")
	minioPath   = tool("minio")
	azuritePath = tool("azurite")
	fakeGCSPath = tool("fake-gcs-server")
)

// logBuffer keeps the end of what a server says.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf.Len() > 1<<20 {
		l.buf.Reset()
	}
	return l.buf.Write(p)
}

func (l *logBuffer) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buf.Bytes()
	return string(b[max(0, len(b)-4000):])
}

// service is the product itself, in a process of its own.
func (s *realStore) service(t testing.TB, through string) *storeServer {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	env := append(s.environ(through), childVariable+"=serve",
		envPrefix+"LISTEN=127.0.0.1", envPrefix+"PORT={port}", envPrefix+"SHUTDOWN_GRACE=5s", envPrefix+"ACCESS_LOG=false")
	return startProcess(t, "/health", env, []string{self})
}
