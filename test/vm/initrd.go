package vm

import (
	"bufio"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// modules are the parts of the kernel that the machines use: "base" is loaded
// at boot, the others, which take long, by "guest load GROUP".
var modules = map[string][]string{
	"base": {"virtio_pci", "virtio_blk", "virtio_net", "ext4", "loop"},
	"xfs":  {"xfs"},
	"nfs":  {"nfsd", "nfsv3", "nfsv4"},
}

// programs are what the machines run beside busybox and the guest program.
var programs = []string{
	"usr/sbin/rpc.nfsd", "usr/sbin/exportfs", "usr/sbin/rpc.mountd", "usr/sbin/rpc.statd", "usr/sbin/sm-notify",
	"usr/sbin/rpcbind",
}

// etc is the configuration of a machine: what the NFS programs ask for.
var etc = map[string]string{
	"passwd":        "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n_rpc:x:105:65534::/run/rpcbind:/bin/sh\n",
	"group":         "root:x:0:\nnogroup:x:65534:\n",
	"hosts":         "127.0.0.1 localhost\n",
	"hosts.allow":   "",
	"hosts.deny":    "",
	"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\nrpc: files\n",
	"services":      "sunrpc 111/tcp portmapper\nsunrpc 111/udp portmapper\nnfs 2049/tcp\nnfs 2049/udp\n",
	"protocols":     "ip 0 IP\ntcp 6 TCP\nudp 17 UDP\n",
	"rpc":           "portmapper 100000\nnfs 100003\nmountd 100005\nnlockmgr 100021\nstatus 100024\n",
	"netconfig": "udp tpi_clts v inet udp - -\ntcp tpi_cots_ord v inet tcp - -\n" +
		"local tpi_cots_ord - loopback - - -\n",
	"nfs.conf": "[statd]\nport=662\n[lockd]\nport=4001\nudp-port=4001\n",
}

// cpio writes an archive in the "newc" format that the kernel unpacks as its
// RAM disk (Documentation/driver-api/early-userspace/buffer-format.rst).
// Directories come before what is in them; the first error stays.
type cpio struct {
	w    *bufio.Writer
	made map[string]bool
	ino  int
	err  error
}

func newCpio(w io.Writer) *cpio { return &cpio{w: bufio.NewWriter(w), made: map[string]bool{"": true}} }

func (c *cpio) entry(name string, mode int, data []byte) {
	if c.err != nil {
		return
	}
	c.ino++
	fields := []int{c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0}
	header := "070701"
	for _, f := range fields {
		header += fmt.Sprintf("%08x", f)
	}
	pad := func(n int) string { return strings.Repeat("\x00", (4-n%4)%4) }
	header += name + "\x00"
	_, c.err = c.w.WriteString(header + pad(len(header)))
	if c.err == nil {
		c.w.Write(data)
		_, c.err = c.w.WriteString(pad(len(data)))
	}
}

// dir makes a directory and its parents, once.
func (c *cpio) dir(name string) {
	if name = strings.Trim(name, "/"); name == "." {
		return
	}
	if c.made[name] {
		return
	}
	c.dir(filepath.Dir(name))
	c.made[name] = true
	c.entry(name, 0o40755, nil)
}

// file puts data under name, once.
func (c *cpio) file(name string, mode int, data []byte) {
	name = strings.Trim(name, "/")
	if c.made[name] {
		return
	}
	c.dir(filepath.Dir(name))
	c.made[name] = true
	c.entry(name, 0o100000|mode, data)
}

// copyFile puts the file at path under name.
func (c *cpio) copyFile(name, path string) {
	data, err := os.ReadFile(path)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.file(name, 0o755, data)
}

// program puts the program at path under /bin, with every library it needs.
func (c *cpio) program(path string, libDirs []string) {
	c.copyFile("bin/"+filepath.Base(path), path)
	c.libraries(path, libDirs)
}

func (c *cpio) libraries(path string, libDirs []string) {
	if c.err != nil {
		return
	}
	f, err := elf.Open(path)
	if err != nil {
		c.err = err
		return
	}
	defer f.Close()
	libs, err := f.ImportedLibraries()
	if err != nil {
		c.err = err
		return
	}
	for _, lib := range libs {
		name := "lib/x86_64-linux-gnu/" + lib
		if strings.HasPrefix(lib, "ld-linux") {
			name = "lib64/" + lib
		}
		if c.made[name] {
			continue
		}
		i := slices.IndexFunc(libDirs, func(dir string) bool {
			_, err := os.Stat(filepath.Join(dir, lib))
			return err == nil
		})
		if i < 0 {
			c.err = fmt.Errorf("%s needs %s, which is neither in the cache nor on this machine", path, lib)
			return
		}
		c.copyFile(name, filepath.Join(libDirs[i], lib))
		c.libraries(filepath.Join(libDirs[i], lib), libDirs)
	}
}

func (c *cpio) close() error {
	c.entry("TRAILER!!!", 0, nil)
	if c.err == nil {
		c.err = c.w.Flush()
	}
	return c.err
}

// writeRAMDisk writes the RAM disk of every machine: the guest program as init,
// busybox, the NFS programs, and the modules in the order of loading.
func writeRAMDisk(path, cache, version, guest string) error {
	root := filepath.Join(cache, "root")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	c := newCpio(f)
	for _, dir := range []string{"proc", "sys", "dev", "tmp", "run/rpcbind", "mnt", "srv", "log",
		"var/lib/nfs/sm", "var/lib/nfs/sm.bak", "var/lib/nfs/v4recovery", "bin", "usr"} {
		c.dir(dir)
	}
	for name, to := range map[string]string{"var/run": "../run", "sbin": "bin", "usr/bin": "../bin", "usr/sbin": "../bin"} {
		c.entry(name, 0o120777, []byte(to))
	}
	for name, text := range etc {
		c.file("etc/"+name, 0o644, []byte(text))
	}
	for _, name := range []string{"etab", "rmtab", "state"} {
		c.file("var/lib/nfs/"+name, 0o644, nil)
	}
	c.copyFile("init", guest)
	c.copyFile("bin/guest", guest)
	c.program(busybox, nil)
	libDirs := []string{root + "/lib/x86_64-linux-gnu", root + "/usr/lib/x86_64-linux-gnu",
		"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64"}
	for _, p := range programs {
		path := filepath.Join(root, p)
		if _, err := os.Stat(path); err != nil {
			path = filepath.Join(root, strings.TrimPrefix(p, "usr/"))
		}
		c.program(path, libDirs)
	}
	for group, names := range modules {
		order, err := moduleOrder(root, version, names)
		if err != nil {
			return err
		}
		for i, ko := range order {
			c.copyFile(fmt.Sprintf("modules/%s/%03d-%s", group, i, filepath.Base(ko)), ko)
		}
	}
	if err := c.close(); err != nil {
		return err
	}
	return f.Close()
}

// moduleOrder lists the files of the modules and of all that they need, in the
// order of loading.
func moduleOrder(root, version string, names []string) ([]string, error) {
	var order []string
	for _, m := range names {
		out, err := exec.Command("modprobe", "-d", root, "-S", version, "--show-depends", m).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("modprobe --show-depends %s: %w: %s", m, err, out)
		}
		for line := range strings.Lines(string(out)) {
			fields := strings.Fields(line)
			if len(fields) > 1 && fields[0] == "insmod" && !slices.Contains(order, fields[1]) {
				order = append(order, fields[1])
			}
		}
	}
	return order, nil
}
