// Guest is what runs inside the machines of package vm: their init and agent,
// and the few programs that the tests run there.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

func main() {
	var err error
	switch {
	case os.Getpid() == 1:
		err = boot()
	case len(os.Args) == 6 && os.Args[1] == "mount":
		err = mount(os.Args[2], os.Args[3], os.Args[4], os.Args[5])
	case len(os.Args) == 3 && os.Args[1] == "load":
		err = loadModules(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "scan":
		err = scan(os.Args[2])
	case len(os.Args) > 7 && os.Args[1] == "replay":
		err = replay(os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6], os.Args[7:])
	case len(os.Args) == 3 && os.Args[1] == "commit":
		err = commit(os.Args[2])
	case len(os.Args) > 2 && os.Args[1] == "watch":
		err = watch(os.Args[2:])
	case len(os.Args) > 3 && os.Args[1] == "gap":
		err = gap(os.Args[2], os.Args[3:])
	case len(os.Args) == 4 && os.Args[1] == "hold":
		err = hold(os.Args[2], os.Args[3])
	case len(os.Args) == 4 && os.Args[1] == "links":
		err = setLinks(os.Args[2], os.Args[3] == "up")
	default:
		err = fmt.Errorf("usage: guest mount TYPE SOURCE TARGET OPTIONS | load GROUP | scan BASE |" +
			" replay TYPE OPTIONS SIZE BASE LOG POINT... | commit FILE |" +
			" watch FILE... | gap LINKS FILE... | hold FILE BYTE | links LINKS up|down")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

// boot makes the machine ready and then does what it is told over HTTP. It is
// process 1: the machine ends when it returns.
func boot() error {
	os.Setenv("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
	for _, m := range [][3]string{
		{"proc", "proc", "/proc"}, {"sysfs", "sys", "/sys"}, {"devtmpfs", "dev", "/dev"}, {"tmpfs", "tmp", "/tmp"},
	} {
		if err := syscall.Mount(m[1], m[2], m[0], 0, ""); err != nil {
			return fmt.Errorf("cannot mount %s: %w", m[2], err)
		}
	}
	if err := loadModules("base"); err != nil {
		return err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	script := `busybox --install -s /bin && ln -sf /proc/mounts /etc/mtab && ip link set lo up &&
		ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up`
	for _, word := range strings.Fields(string(cmdline)) {
		name, value, _ := strings.Cut(word, "=")
		if name == "pw.name" {
			// NFS knows its clients by their names: two machines must not have one.
			if err := syscall.Sethostname([]byte(value)); err != nil {
				return err
			}
		}
		if dev, ok := strings.CutPrefix(name, "pw.eth"); ok {
			script += fmt.Sprintf(" && ip addr add %s dev eth%s && ip link set eth%s up", value, dev, dev)
		}
	}
	if out, err := exec.Command("/bin/busybox", "sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	http.HandleFunc("POST /run", run)
	l, err := net.Listen("tcp", ":9000")
	if err != nil {
		return err
	}
	fmt.Println("guest: ready")
	return http.Serve(l, nil)
}

// run runs the body as a shell script; what it prints is the answer, its exit
// status the trailer. What a script leaves running must let go of its output.
func run(w http.ResponseWriter, r *http.Request) {
	script, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Trailer", "Exit-Status")
	w.WriteHeader(http.StatusOK)
	out := flusher{w, http.NewResponseController(w)}
	out.c.Flush()
	cmd := exec.CommandContext(r.Context(), "sh", "-c", string(script))
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(out, err)
	}
	status := -1
	if cmd.ProcessState != nil {
		status = cmd.ProcessState.ExitCode()
	}
	w.Header().Set("Exit-Status", fmt.Sprint(status))
}

type flusher struct {
	w io.Writer
	c *http.ResponseController
}

func (f flusher) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	f.c.Flush()
	return n, err
}

// commit makes the file system of a file commit its journal over and over, as
// other users of it would. It never returns unless it fails.
func commit(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for i := int64(0); ; i++ {
		if _, err := f.WriteAt([]byte{byte(i)}, i%4096); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
}

// mount is mount(2): busybox's own command asks a mount daemon and knows
// little of NFSv4.
func mount(kind, source, target, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return syscall.Mount(source, target, kind, 0, options)
}
