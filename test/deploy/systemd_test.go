//go:build integration

package deploy

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pagewright/storage/test/service"
)

const unit = "pagewright-storage.service"

// TestTheUnit runs the unit in a systemd that is process 1 of a container: Debian's own
// programs on a root of the test's. The store is a tmpfs in place of the NFS mount.
func TestTheUnit(t *testing.T) {
	c := boot(t)
	service.Until(t, "the unit that was enabled serves after the boot", c.serves)
	c.check(t, "the user of the process", "65532 65532", "stat", "-c", "%u %g", "/proc/"+c.property(t, "MainPID"))
	path := "/sites/unit/artifacts/b"
	if r := roundTrip(t, c.addr, "PUT", path, "Content-Length: 3\r\n", []byte("abc")); r.status != 201 {
		t.Fatalf("PUT: %d %s", r.status, r.body)
	}
	c.check(t, "the owner of what is stored", "pagewright", "stat", "-c", "%U", "/srv/pagewright/sites")
	c.limits(t)

	t.Run("what is killed is started again", func(t *testing.T) {
		c.must(t, "systemctl", "kill", "--kill-who=main", "-s", "KILL", unit)
		service.Until(t, "a second start", func() bool { return c.property(t, "NRestarts") == "1" && c.serves() })
		if r := roundTrip(t, c.addr, "GET", path, "", nil); r.status != 200 || string(r.body) != "abc" {
			t.Errorf("GET: %d %q", r.status, r.body)
		}
	})
	t.Run("it stops cleanly", func(t *testing.T) {
		c.must(t, "systemctl", "stop", unit)
		if got := c.property(t, "Result") + " " + c.property(t, "ExecMainStatus"); got != "success 0" {
			t.Error(got)
		}
		c.must(t, "systemctl", "start", unit)
		service.Until(t, "it serves again", c.serves)
	})
	t.Run("it ends with the mount and comes back with it", func(t *testing.T) {
		c.must(t, "umount", "-l", "/srv/pagewright")
		service.Until(t, "its end", func() bool { return c.property(t, "ActiveState") == "inactive" })
		c.must(t, "systemctl", "start", "srv-pagewright.mount")
		service.Until(t, "it serves again", c.serves)
	})
	t.Run("a mount that fails is not done without", func(t *testing.T) {
		c.must(t, "systemctl", "stop", unit, "srv-pagewright.mount")
		c.write(t, "etc/systemd/system/srv-pagewright.mount.d/zz.conf", "[Mount]\nType=nosuchfilesystem\n")
		c.mustNotStart(t)
		c.remove(t, "etc/systemd/system/srv-pagewright.mount.d/zz.conf")
	})
	t.Run("nor is one that is not configured", func(t *testing.T) {
		c.must(t, "systemctl", "disable", "srv-pagewright.mount")
		c.remove(t, "etc/systemd/system/srv-pagewright.mount")
		c.remove(t, "etc/systemd/system/srv-pagewright.mount.d/test.conf")
		c.mustNotStart(t)
		c.install(t, "srv-pagewright.mount", "etc/systemd/system/srv-pagewright.mount")
		c.write(t, "etc/systemd/system/srv-pagewright.mount.d/test.conf", testMount)
		c.must(t, "systemctl", "daemon-reload")
	})
	t.Run("access control and TLS", c.accessAndTLS)
	t.Run("a wrong configuration is not tried again", func(t *testing.T) {
		c.write(t, "etc/pagewright-storage.env", "PAGEWRIGHT_PORT=eighty\n")
		c.must(t, "systemctl", "start", unit) // Type=exec: it has started, and then ends
		service.Until(t, "failure", func() bool { return c.property(t, "ActiveState") == "failed" })
		if got := c.property(t, "ExecMainStatus") + " " + c.property(t, "NRestarts"); got != "78 0" {
			t.Errorf("exit status and restarts: %s, want 78 0", got)
		}
	})
}

// TestTheUnitsPassSystemdsChecks: no setting is unknown, and the exposure is at most 1.5 of 10.
func TestTheUnitsPassSystemdsChecks(t *testing.T) {
	dir := t.TempDir()
	var units []string
	for _, name := range []string{unit, "pagewright-storage-verify.service", "srv-pagewright.mount", "pagewright-storage-verify.timer"} {
		data, err := os.ReadFile("../../deploy/systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		units = append(units, filepath.Join(dir, name))
		// A program that there is: verify looks.
		data = bytes.ReplaceAll(data, []byte("ExecStart=/usr/local/bin/pagewright-storage"), []byte("ExecStart=/bin/true"))
		if err := os.WriteFile(units[len(units)-1], data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, service := range units[:2] {
		if err := os.Mkdir(service+".d", 0o755); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile("../../deploy/systemd/nfs.conf"); err != nil || os.WriteFile(service+".d/nfs.conf", data, 0o644) != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, units...)...).CombinedOutput(); err != nil || strings.Contains(string(out), dir) {
		t.Errorf("%v\n%s", err, out)
	}
	for _, service := range units[:2] {
		if out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=15", service).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// TestTheUnitsOfWebServersPassSystemdsChecks: no setting of site-pull's units is unknown.
func TestTheUnitsOfWebServersPassSystemdsChecks(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"site-pull@.service", "site-pull@.timer"} {
		data, err := os.ReadFile("../../deploy/web-server/" + name)
		if err != nil {
			t.Fatal(err)
		}
		data = bytes.ReplaceAll(data, []byte("/usr/local/bin/site-pull"), []byte("/bin/true"))
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	units := []string{filepath.Join(dir, "site-pull@shop.service"), filepath.Join(dir, "site-pull@shop.timer")}
	if out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, units...)...).CombinedOutput(); err != nil || strings.Contains(string(out), dir) {
		t.Errorf("%v\n%s", err, out)
	}
}

// testMount replaces the NFS server.
const testMount = "[Mount]\nWhat=tmpfs\nType=tmpfs\nOptions=\nOptions=mode=0750,uid=65532,gid=65532\n"

// machine is a container with a systemd.
type machine struct {
	root string
	addr string
	pid  int // of its process 1
}

// boot boots a container in which everything is installed as the head of the unit says. It
// has the network of the host, without the right to change it.
func boot(t *testing.T) *machine {
	t.Helper()
	c := &machine{root: t.TempDir(), addr: freeAddress(t)}
	for _, dir := range []string{"usr", "etc", "var", "proc", "sys", "dev", "run", "tmp", "srv", "root"} {
		if err := os.Mkdir(filepath.Join(c.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+dir, filepath.Join(c.root, dir)); err != nil {
			t.Fatal(err)
		}
	}
	c.write(t, "etc/os-release", "ID=debian\n")
	c.write(t, "etc/machine-id", strings.Repeat("1", 32)+"\n")
	for _, name := range []string{"getty.target", "systemd-logind.service", "systemd-networkd.service", "systemd-resolved.service"} {
		if os.MkdirAll(c.root+"/etc/systemd/system", 0o755) != nil || os.Symlink("/dev/null", c.root+"/etc/systemd/system/"+name) != nil {
			t.Fatal("cannot mask " + name)
		}
	}
	c.install(t, "sysusers.conf", "etc/sysusers.d/pagewright-storage.conf")
	c.install(t, unit, "etc/systemd/system/"+unit)
	c.install(t, "srv-pagewright.mount", "etc/systemd/system/srv-pagewright.mount")
	c.install(t, "nfs.conf", "etc/systemd/system/"+unit+".d/nfs.conf")
	c.write(t, "etc/systemd/system/srv-pagewright.mount.d/test.conf", testMount)
	_, port, _ := net.SplitHostPort(c.addr)
	env, err := os.ReadFile("../../deploy/systemd/pagewright-storage.env")
	if err != nil {
		t.Fatal(err)
	}
	c.write(t, "etc/pagewright-storage.env", string(env)+"PAGEWRIGHT_PORT="+port+"\nPAGEWRIGHT_ADMIN_LISTEN="+freeAddress(t)+"\n")
	if out, err := exec.Command("systemctl", "--root="+c.root, "enable", unit).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	bin := t.TempDir()
	if out, err := exec.Command("cp", service.Build(t), bin+"/pagewright-storage").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--directory="+c.root,
		"--machine=pagewright-test-"+strconv.Itoa(os.Getpid()), "--bind-ro=/usr", "--bind-ro="+bin+":/usr/local/bin", "--console=pipe", "--boot")
	var console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &console, &console
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := c.run("journalctl", "--no-pager", "-n", "60")
			t.Logf("the journal:\n%s", out)
		}
		if c.pid != 0 {
			syscall.Kill(c.pid, syscall.Signal(34+4)) // SIGRTMIN+4, systemd(1): power off
		} else {
			cmd.Process.Kill()
		}
		cmd.Wait()
		if t.Failed() {
			t.Logf("the console:\n%s", console.Bytes())
		}
	})
	service.Until(t, "systemd in the container", func() bool {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		for _, child := range strings.Fields(string(data)) {
			comm, _ := os.ReadFile("/proc/" + child + "/comm")
			if strings.TrimSpace(string(comm)) == "systemd" {
				c.pid, _ = strconv.Atoi(child)
			}
		}
		if c.pid == 0 {
			return false
		}
		_, err := c.run("systemctl", "show", "-p", "Version")
		return err == nil
	})
	return c
}

// run runs a command in the container.
func (c *machine) run(args ...string) (string, error) {
	args = append([]string{"-t", strconv.Itoa(c.pid), "-m", "-u", "-i", "-p", "--"}, args...)
	out, err := exec.Command("nsenter", args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(args[6:], " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func (c *machine) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.run(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *machine) check(t *testing.T, what, want string, args ...string) {
	t.Helper()
	if got := c.must(t, args...); got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func (c *machine) property(t *testing.T, name string) string {
	t.Helper()
	return c.must(t, "systemctl", "show", "--value", "-p", name, unit)
}

// serves reports whether the service is ready and writable.
func (c *machine) serves() bool {
	conn, err := net.Dial("tcp", c.addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /ready HTTP/1.0\r\nHost: h\r\n\r\n")
	var b bytes.Buffer
	b.ReadFrom(conn)
	return strings.HasPrefix(b.String(), "HTTP/1.1 200") && strings.Contains(b.String(), `"writes":true`)
}

// accessAndTLS: with access.conf and tls.conf the service reads its files as its own user, and
// uses a changed access file after `systemctl reload`. With the lines #credential it gets files
// that only root can read.
func (c *machine) accessAndTLS(t *testing.T) {
	const dropIns = "etc/systemd/system/" + unit + ".d/"
	access := func(sites string) string {
		return `{"anonymous":[{"allow":["read"],"sites":["` + sites + `"]}]}`
	}
	c.install(t, "access.conf", dropIns+"access.conf")
	c.install(t, "tls.conf", dropIns+"tls.conf")
	c.write(t, "etc/pagewright/access.json", access("public"))
	pair := filepath.Join(t.TempDir(), "pair.pem")
	writeCertificate(t, pair)
	text, err := os.ReadFile(pair)
	if err != nil {
		t.Fatal(err)
	}
	c.write(t, "etc/pagewright/tls/tls.crt", string(text))
	c.write(t, "etc/pagewright/tls/tls.key", string(text))
	files := []string{"/etc/pagewright/access.json", "/etc/pagewright/tls/tls.crt", "/etc/pagewright/tls/tls.key"}
	c.must(t, append([]string{"chown", "root:pagewright"}, files...)...)
	c.must(t, append([]string{"chmod", "640"}, files...)...)
	c.must(t, "systemctl", "daemon-reload")
	c.must(t, "systemctl", "restart", unit)
	service.Until(t, "a list over TLS", func() bool { return c.overTLS("/sites/public/versions") == 200 })
	if got := c.overTLS("/sites/unit/versions"); got != 401 {
		t.Errorf("a site that is not public: %d, want 401", got)
	}
	c.write(t, "etc/pagewright/access.json.new", access("*"))
	c.must(t, "chown", "root:pagewright", "/etc/pagewright/access.json.new")
	c.must(t, "mv", "/etc/pagewright/access.json.new", files[0])
	c.must(t, "systemctl", "reload", unit)
	service.Until(t, "the new rules", func() bool { return c.overTLS("/sites/unit/versions") == 200 })

	c.write(t, "etc/pagewright/access.json", access("unit"))
	c.must(t, append([]string{"chown", "root:root"}, files...)...)
	c.must(t, append([]string{"chmod", "600"}, files...)...)
	for _, name := range []string{"access.conf", "tls.conf"} {
		text, err := os.ReadFile("../../deploy/systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte("#credential "), nil)
		text = bytes.ReplaceAll(text, []byte("/etc/letsencrypt/live/storage.example.com/fullchain.pem"), []byte(files[1]))
		text = bytes.ReplaceAll(text, []byte("/etc/letsencrypt/live/storage.example.com/privkey.pem"), []byte(files[2]))
		c.write(t, dropIns+name, string(text))
	}
	c.must(t, "systemctl", "daemon-reload")
	c.must(t, "systemctl", "restart", unit)
	service.Until(t, "a list with the files from systemd", func() bool { return c.overTLS("/sites/unit/versions") == 200 })
	if got := c.overTLS("/sites/public/versions"); got != 401 {
		t.Errorf("a site that is no longer public: %d, want 401", got)
	}
	c.remove(t, dropIns+"access.conf")
	c.remove(t, dropIns+"tls.conf")
	c.must(t, "systemctl", "daemon-reload")
	c.must(t, "systemctl", "stop", unit)
}

// overTLS returns the status of a GET over TLS, or 0.
func (c *machine) overTLS(path string) int {
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	res, err := client.Get("https://" + c.addr + path)
	if err != nil {
		return 0
	}
	res.Body.Close()
	return res.StatusCode
}

// limits: what the unit sets holds for the process.
func (c *machine) limits(t *testing.T) {
	t.Helper()
	open := func(pid string) int { // the hard limit
		limits := c.must(t, "cat", "/proc/"+pid+"/limits")
		_, rest, _ := strings.Cut(limits, "Max open files")
		n, err := strconv.Atoi(strings.Fields(rest)[1])
		if err != nil {
			t.Fatal(limits)
		}
		return n
	}
	// Where root may not raise a limit, that of process 1 is the most there can be.
	if got, want := open(c.property(t, "MainPID")), min(65536, open("1")); got != want {
		t.Errorf("%d open files, want %d", got, want)
	}
	if got := c.property(t, "TasksMax"); got != "12000" {
		t.Errorf("TasksMax is %s", got)
	}
}

// mustNotStart: the unit does not start, does not try again, and nothing is stored on the
// root disk.
func (c *machine) mustNotStart(t *testing.T) {
	t.Helper()
	c.must(t, "systemctl", "daemon-reload")
	if out, err := c.run("systemctl", "start", unit); err == nil {
		t.Errorf("it started: %s", out)
	}
	if got := c.property(t, "ActiveState"); got != "inactive" {
		t.Errorf("it is %s", got)
	}
	if names, err := os.ReadDir(c.root + "/srv/pagewright"); err != nil || len(names) > 0 {
		t.Errorf("below the mount: %v, %v", names, err)
	}
}

func (c *machine) install(t *testing.T, name, to string) {
	t.Helper()
	data, err := os.ReadFile("../../deploy/systemd/" + name)
	if err != nil {
		t.Fatal(err)
	}
	c.write(t, to, string(data))
}

func (c *machine) write(t *testing.T, name, text string) {
	t.Helper()
	name = filepath.Join(c.root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (c *machine) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(c.root, name)); err != nil {
		t.Fatal(err)
	}
}
