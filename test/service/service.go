// Package service runs the real binary as a process of its own, for the tests
// that kill it, trace it or measure it.
package service

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long anything that must happen is waited for.
const patience = 60 * time.Second

// binary, if set, is the path of a binary to test in place of this tree's: to
// compare two of them.
const binary = "STORAGE_BINARY"

// Build builds the binary from this tree and returns its path.
func Build(t testing.TB) string {
	t.Helper()
	if bin := os.Getenv(binary); bin != "" {
		return bin
	}
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatal("cannot find the module: ", err)
	}
	// Not t.TempDir: a service that runs as nobody must be able to reach it.
	dir := SharedDir(t)
	bin := filepath.Join(dir, "pagewright-storage")
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "disable_grpc_modules", "-o", bin, ".")
	cmd.Dir = strings.TrimSpace(string(out))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build: %v\n%s", err, out)
	}
	return bin
}

// SharedDir is a temporary directory that every user can reach and write to.
func SharedDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "storage-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Options say how a service is started.
type Options struct {
	Bin  string
	Base string              // the directory of the store
	Env  []string            // further variables, as NAME=value without the prefix
	More []string            // further variables with names of their own, as AWS_REGION=x
	As   *syscall.Credential // nil: as the test
	Wrap []string            // a program in front of it, that execs or starts it
}

// Service is a running process. Its methods may be called by many goroutines.
type Service struct {
	Addr string
	Pid  int // of the service itself, not of what wraps it

	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended

	mu  sync.Mutex
	log bytes.Buffer
}

// Start starts the service and waits until it serves. It is killed when the
// test ends, unless it has ended before.
func Start(t testing.TB, o Options) *Service {
	t.Helper()
	s, err := Launch(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("the last that %d logged:\n%s", s.Pid, tail(s.Log(), 4<<10))
		}
	})
	return s
}

// Launch is Start for whoever ends the service himself.
func Launch(o Options) (*Service, error) {
	args := append(append([]string{}, o.Wrap...), o.Bin)
	s := &Service{cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{})}
	s.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "PAGEWRIGHT_LISTEN=127.0.0.1", "PAGEWRIGHT_PORT=0",
		"PAGEWRIGHT_NFS_BASE_PATH=" + o.Base, "PAGEWRIGHT_ACCESS_LOG=false"}
	for _, v := range o.Env {
		s.cmd.Env = append(s.cmd.Env, "PAGEWRIGHT_"+v)
	}
	s.cmd.Env = append(s.cmd.Env, o.More...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: o.As}
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	s.Pid = s.cmd.Process.Pid
	addr := make(chan string, 1)
	go s.watch(stderr, addr)
	select {
	case s.Addr = <-addr:
	case <-s.done:
		return nil, fmt.Errorf("the service ended: %s", s.Log())
	case <-time.After(patience):
		s.Kill()
		return nil, fmt.Errorf("the service does not serve: %s", s.Log())
	}
	if len(o.Wrap) > 0 {
		s.Pid = firstChild(s.Pid)
	}
	return s, nil
}

// watch keeps the log and tells the address that is in it.
func (s *Service) watch(stderr io.Reader, addr chan<- string) {
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		s.mu.Lock()
		s.log.Write(append(lines.Bytes(), '\n'))
		s.mu.Unlock()
		var line struct{ Msg, Address string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
			addr <- line.Address
		}
	}
	s.cmd.Wait()
	close(s.done)
}

// firstChild is the process that a wrapper started, or the wrapper if it
// became the service.
func firstChild(pid int) int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if f := strings.Fields(string(data)); len(f) > 0 {
		pid, _ = strconv.Atoi(f[0])
	}
	return pid
}

// Kill is kill -9. It returns when the process is gone.
func (s *Service) Kill() {
	if !s.Ended() {
		syscall.Kill(s.Pid, syscall.SIGKILL)
	}
	<-s.done
}

// Stop asks the service to end and waits for it. It returns what it exited with.
func (s *Service) Stop() error {
	if s.Ended() {
		return fmt.Errorf("it had ended before: %v", s.cmd.ProcessState)
	}
	syscall.Kill(s.Pid, syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(patience):
		s.Kill()
		return fmt.Errorf("it did not end on SIGTERM")
	}
	if !s.cmd.ProcessState.Success() {
		return fmt.Errorf("it ended with %v", s.cmd.ProcessState)
	}
	return nil
}

// Signal sends SIGTERM and does not wait.
func (s *Service) Signal() error { return syscall.Kill(s.Pid, syscall.SIGTERM) }

// Ended reports whether the process is gone.
func (s *Service) Ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// Log is what it has logged so far.
func (s *Service) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// URL is the URL of an artifact.
func (s *Service) URL(site, build string) string {
	return "http://" + s.Addr + "/sites/" + site + "/artifacts/" + build
}

// Memory is a field of /proc/PID/status in bytes, as VmRSS and VmHWM.
func (s *Service) Memory(field string) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no %s of process %d", field, s.Pid)
}

// ResetPeak makes VmHWM begin again from what is resident now (proc(5), clear_refs).
func (s *Service) ResetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.Pid), []byte("5"), 0)
}

// CPU is the processor time that the service has used.
func (s *Service) CPU() (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Pid))
	if err != nil {
		return 0, err
	}
	// proc(5): the name, in parentheses, may hold spaces; utime and stime are
	// fields 14 and 15, in hundredths of a second.
	f := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	total := 0
	for _, v := range f[11:13] {
		n, err := strconv.Atoi(string(v))
		if err != nil {
			return 0, err
		}
		total += n
	}
	return time.Duration(total) * 10 * time.Millisecond, nil
}

// Descriptors counts the open descriptors: pipes apart, of which the runtime
// keeps a pool for splice until its collector comes around.
func (s *Service) Descriptors() (others, pipes int, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", s.Pid)
	names, err := os.ReadDir(dir)
	for _, n := range names {
		target, err := os.Readlink(dir + "/" + n.Name())
		switch {
		case err != nil: // closed meanwhile
		case strings.HasPrefix(target, "pipe:"):
			pipes++
		default:
			others++
		}
	}
	return others, pipes, err
}

// Client is an HTTP client with connections of its own.
func Client(conns int) *http.Client {
	return &http.Client{Timeout: 5 * time.Minute, Transport: &http.Transport{MaxIdleConns: conns, MaxIdleConnsPerHost: conns}}
}

// Until polls a condition, and fails the test if it does not become true.
func Until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("in vain waited for: ", what)
		}
	}
}

// Temps lists the temporary files in a store.
func Temps(t testing.TB, base string) []string {
	t.Helper()
	var temps []string
	err := filepath.WalkDir(base, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".tmp-") {
			temps = append(temps, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return temps
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }
