// Package vm starts small virtual machines for the tests that need a kernel of
// their own: a real NFS server and client, and a power that can be cut. They
// are emulated by qemu (no KVM is asked for), boot in seconds from a RAM disk,
// and are reached over loopback ports alone.
package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"pagewright/storage/test/report"
)

// Kit is what machines are made of: a kernel and a RAM disk.
type Kit struct {
	dir    string // of the RAM disks and of the consoles; the caller's to remove
	kernel string
	base   string // the RAM disk that all machines share
}

// NewKit gets what is missing on this machine (setup.sh) and prepares the RAM
// disk in dir. It needs the go tool, and root the first time.
func NewKit(dir string) (*Kit, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	cache = filepath.Join(cache, "pagewright-storage-vm")
	// Debian keeps some tools where the path of a user does not lead.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	script, err := goOutput("list", "-f", "{{.Dir}}/setup.sh", "pagewright/storage/test/vm")
	if err != nil {
		return nil, err
	}
	setup := exec.Command("sh", script, cache)
	setup.Stderr = os.Stderr
	if err := setup.Run(); err != nil {
		return nil, fmt.Errorf("setup.sh: %w", err)
	}
	version, err := os.ReadFile(filepath.Join(cache, "kernel"))
	if err != nil {
		return nil, err
	}
	k := &Kit{dir: dir, base: filepath.Join(dir, "base.cpio")}
	k.kernel = filepath.Join(cache, "root/boot/vmlinuz-"+strings.TrimSpace(string(version)))
	guest := filepath.Join(dir, "guest")
	if err := GoBuild(guest, "pagewright/storage/test/vm/guest"); err != nil {
		return nil, err
	}
	return k, writeRAMDisk(k.base, cache, strings.TrimSpace(string(version)), guest)
}

// Run is the TestMain of a package whose tests need machines: it prepares what
// they are made of, has build build what runs in them in a directory that is
// removed at the end, runs the tests, and prints their table. It returns the
// exit status.
func Run(name string, tests func() int, build func(k *Kit, dir string) error, table *report.Table) int {
	dir, err := os.MkdirTemp("", name)
	if err == nil {
		defer os.RemoveAll(dir)
		var k *Kit
		if k, err = NewKit(dir); err == nil {
			err = build(k, dir)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer table.Print(os.Stdout)
	return tests()
}

// GoBuild builds the static program of a package of this module into path. args
// stand before the package.
func GoBuild(path, pkg string, args ...string) error {
	_, err := goOutput(append(append([]string{"build", "-trimpath", "-o", path}, args...), pkg)...)
	return err
}

// GoTestBuild builds the static test program of a package of this module.
func GoTestBuild(path, pkg string) error {
	_, err := goOutput("test", "-c", "-trimpath", "-tags", leaveOut, "-o", path, pkg)
	return err
}

// leaveOut leaves the object stores out of the product: they have no part here.
const leaveOut = "disable_grpc_modules,no_s3,no_azure,no_gcs"

func goOutput(args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out)), nil
}

// Config describes a machine.
type Config struct {
	Name   string            // its host name, and of its files in the kit's directory
	Memory int               // MiB; 0: 512
	CPUs   int               // 0: 1
	Files  map[string]string // into the RAM disk: path in the machine to path here
	Ports  []int             // of the machine, to be reached from here: Machine.Addr
	Drives []string          // qemu arguments, each a whole -blockdev or -drive with its -device
	Wires  []*Wire           // network cables to other machines, as eth1, eth2 ...
}

// Machine is a running machine. Its methods may be called by many goroutines.
type Machine struct {
	agent   string
	addrs   map[int]string
	cmd     *exec.Cmd
	exited  chan struct{}
	ready   chan struct{}
	client  *http.Client
	mu      sync.Mutex
	console []byte // the end of it
}

const consoleKept = 64 << 10

// Start boots a machine and waits until it can be told what to do.
func (k *Kit) Start(ctx context.Context, c Config) (*Machine, error) {
	ramDisk := filepath.Join(k.dir, c.Name+".cpio")
	if err := k.addFiles(ramDisk, c.Files); err != nil {
		return nil, err
	}
	var err error
	for range 3 { // a port that was free may be taken when qemu comes to it
		var m *Machine
		if m, err = k.start(ctx, c, ramDisk); err == nil {
			return m, nil
		}
		if !strings.Contains(err.Error(), "host forwarding rule") {
			break
		}
	}
	return nil, fmt.Errorf("machine %s: %w", c.Name, err)
}

// addFiles writes the shared RAM disk and then files to path: the kernel
// unpacks archives that follow each other.
func (k *Kit) addFiles(path string, files map[string]string) error {
	base, err := os.ReadFile(k.base)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(base); err != nil {
		return err
	}
	a := newCpio(f)
	for name, from := range files {
		a.copyFile(name, from)
	}
	if err := a.close(); err != nil {
		return err
	}
	return f.Close()
}

func (k *Kit) start(ctx context.Context, c Config, ramDisk string) (*Machine, error) {
	ports := append([]int{agentPort}, c.Ports...)
	hostPorts, err := freePorts("tcp", len(ports))
	if err != nil {
		return nil, err
	}
	m := &Machine{
		addrs:  map[int]string{},
		exited: make(chan struct{}),
		ready:  make(chan struct{}),
		client: &http.Client{Transport: &http.Transport{DisableCompression: true}},
	}
	user := "user,id=n0,restrict=on"
	for i, p := range ports {
		m.addrs[p] = fmt.Sprintf("127.0.0.1:%d", hostPorts[i])
		user += fmt.Sprintf(",hostfwd=tcp:%s-:%d", m.addrs[p], p)
	}
	m.agent = "http://" + m.addrs[agentPort]
	// no_timer_check: where this host is busy, the emulated timer can come too late
	// for the kernel's check of it, which panics then.
	boot := "console=ttyS0 panic=-1 quiet no_timer_check random.trust_cpu=on mitigations=off nokaslr pw.name=" + c.Name
	// Without ERMS the kernel copies by words, which the emulation does many times
	// faster than by bytes.
	args := []string{"-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm", "-nodefaults", "-no-user-config", "-display", "none",
		"-no-reboot", "-serial", "stdio", "-kernel", k.kernel, "-initrd", ramDisk,
		"-m", fmt.Sprint(max(c.Memory, 512)), "-smp", fmt.Sprint(max(c.CPUs, 1)),
		"-netdev", user, "-device", "virtio-net-pci,netdev=n0"}
	for i, w := range c.Wires {
		args = append(args, "-netdev", fmt.Sprintf("dgram,id=w%d,local.type=inet,local.host=127.0.0.1,local.port=%d,"+
			"remote.type=inet,remote.host=127.0.0.1,remote.port=%d", i, w.Local, w.Remote),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=w%d,mac=52:54:01:00:%02x:%02x", i, w.Local>>8, w.Local&0xff))
		boot += fmt.Sprintf(" pw.eth%d=%s", i+1, w.IP)
	}
	for _, d := range c.Drives {
		args = append(args, strings.Fields(d)...)
	}
	m.cmd = exec.Command("qemu-system-x86_64", append(args, "-append", boot)...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	m.cmd.Stdout, m.cmd.Stderr = in, in
	err = m.cmd.Start()
	in.Close()
	if err != nil {
		out.Close()
		return nil, err
	}
	go m.watch(out)
	timeout := time.NewTimer(2 * time.Minute)
	defer timeout.Stop()
	select {
	case <-m.ready:
		return m, nil
	case <-m.exited:
		err = errors.New("ended while booting")
	case <-timeout.C:
		err = errors.New("did not boot")
	case <-ctx.Done():
		err = ctx.Err()
	}
	m.Cut()
	return nil, fmt.Errorf("%w:\n%s", err, m.Console())
}

// watch keeps the end of the console until the machine ends.
func (m *Machine) watch(console *os.File) {
	defer close(m.exited)
	defer m.cmd.Wait()
	defer console.Close()
	r := bufio.NewReader(console)
	for ready := false; ; {
		line, err := r.ReadBytes('\n')
		m.mu.Lock()
		m.console = append(m.console, line...)
		if over := len(m.console) - consoleKept; over > 0 {
			m.console = m.console[over:]
		}
		m.mu.Unlock()
		if !ready && bytes.Contains(line, []byte(readyLine)) {
			ready = true
			close(m.ready)
		}
		if err != nil {
			return
		}
	}
}

// Console is the end of what the machine printed.
func (m *Machine) Console() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.console)
}

// Addr is where a port of the machine is reached from here.
func (m *Machine) Addr(port int) string { return m.addrs[port] }

// Cut takes the power away and returns when the machine is gone.
func (m *Machine) Cut() {
	m.cmd.Process.Kill()
	<-m.exited
}

// Pause stops the machine until Resume, as a host does that swaps or is moved.
func (m *Machine) Pause() error { return m.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume lets a paused machine go on.
func (m *Machine) Resume() error { return m.cmd.Process.Signal(syscall.SIGCONT) }

// Run runs a shell script in the machine and gives what it printed. Its error
// tells the exit status.
func (m *Machine) Run(ctx context.Context, script string) (string, error) {
	var out bytes.Buffer
	err := m.Stream(ctx, script, &out)
	return out.String(), err
}

// Stream is Run with the output going to w as it comes.
func (m *Machine) Stream(ctx context.Context, script string, w io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, "POST", m.agent+"/run", strings.NewReader(script))
	if err != nil {
		return err
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	tail := &tailWriter{w: w}
	if _, err := io.Copy(tail, resp.Body); err != nil {
		return fmt.Errorf("the machine went away: %w", err)
	}
	if status := resp.Trailer.Get(statusTrailer); status != "0" {
		return fmt.Errorf("exit status %s: %s", status, tail.tail)
	}
	return nil
}

// tailWriter remembers the end of what went through it, for an error message.
type tailWriter struct {
	w    io.Writer
	tail []byte
}

func (t *tailWriter) Write(p []byte) (int, error) {
	t.tail = append(t.tail, p...)
	if over := len(t.tail) - 2000; over > 0 {
		t.tail = t.tail[over:]
	}
	return t.w.Write(p)
}

// The words between a machine and the guest program.
const (
	agentPort     = 9000
	readyLine     = "guest: ready"
	statusTrailer = "Exit-Status"
)
