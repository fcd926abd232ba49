//go:build integration

// Package container builds the images of this repository and tries them in a
// Docker engine of its own: in network, mount and process namespaces that the
// test makes, with its own socket and data folder, so that it sees no other
// engine and none sees it, and nothing of it is left. Images cannot be pulled
// everywhere, so those that the Dockerfiles begin with are made here, in that
// engine alone. It needs root and what test/install installs.
package container

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// envDir is set, to the folder of the engine, in the process inside the
// namespaces.
const envDir = "PAGEWRIGHT_TEST_ENGINE"

// docker is Debian's client: another one on the PATH may not build.
const docker = "/usr/bin/docker"

// wrapper is docker without the digests of the registry's images.
const wrapper = `#!/bin/sh
[ "$1" = build ] || exec ` + docker + ` "$@"
shift
exec ` + docker + ` build --build-arg GO_DIGEST= --build-arg DEBIAN_DIGEST= "$@"
`

func TestMain(m *testing.M) {
	code, err := 0, error(nil)
	if dir := os.Getenv(envDir); dir == "" {
		code, err = enterNamespaces()
	} else if err = startEngine(dir); err == nil {
		code = m.Run()
		removeAll()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "container:", err)
		code = 1
	}
	os.Exit(code)
}

// enterNamespaces runs this program again in namespaces of its own, where it is
// process 1: all that it started ends with it. The network outside is reached
// through slirp4netns, in user space, for the packages of the images.
func enterNamespaces() (int, error) {
	dir, err := os.MkdirTemp("", "pagewright-engine-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	inner := exec.Command("/proc/self/exe", os.Args[1:]...)
	inner.Env = append(os.Environ(), envDir+"="+dir)
	inner.Stdout, inner.Stderr = os.Stdout, os.Stderr
	inner.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := inner.Start(); err != nil {
		return 1, fmt.Errorf("cannot make namespaces (this test needs root): %w", err)
	}
	network := exec.Command("slirp4netns", "--configure", "--mtu=1400", "--disable-host-loopback",
		fmt.Sprint(inner.Process.Pid), "tap0")
	network.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := network.Start(); err != nil {
		inner.Process.Kill()
		inner.Wait()
		return 1, err
	}
	err = inner.Wait()
	network.Process.Kill()
	network.Wait()
	if exit, ok := err.(*exec.ExitError); ok {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// startEngine starts the engine and makes the images to begin with.
func startEngine(dir string) error {
	resolv := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 10.0.2.3\n"), 0o644); err != nil {
		return err
	}
	etc, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return err
	}
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
	}{
		{"", "/", "", syscall.MS_REC | syscall.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"tmpfs", "/run", "tmpfs", 0},
		{resolv, etc, "", syscall.MS_BIND},
	} {
		if err := syscall.Mount(m.source, m.target, m.fstype, m.flags, ""); err != nil {
			return fmt.Errorf("cannot mount %s: %w", m.target, err)
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	engine := exec.Command("dockerd", "--host", "unix://"+dir+"/socket", "--data-root", dir+"/data",
		"--exec-root", "/run/docker", "--pidfile", dir+"/pid", "--config-file", dir+"/daemon.json", "--log-level", "warn")
	engine.Stdout, engine.Stderr = log, log
	os.WriteFile(dir+"/daemon.json", []byte("{}\n"), 0o644)
	os.Setenv("DOCKER_HOST", "unix://"+dir+"/socket")
	os.Setenv("DOCKER_BUILDKIT", "1")
	os.Setenv("REVISION", revision) // for the compose files
	os.Setenv("SOURCE", source)
	os.Setenv("PATH", dir+"/bin:"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if err := os.Mkdir(dir+"/bin", 0o755); err != nil {
		return err
	}
	// For docker-compose, which calls the client to build.
	if err := os.WriteFile(dir+"/bin/docker", []byte(wrapper), 0o755); err != nil {
		return err
	}
	if err := run("ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	if err := until(30*time.Second, func() error { return run("ip", "link", "show", "tap0") }); err != nil {
		return err
	}
	if err := engine.Start(); err != nil {
		return err
	}
	if err := until(60*time.Second, func() error { return run(docker, "info") }); err != nil {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("the engine does not start: %w\n%s", err, text)
	}
	return makeBaseImages(dir)
}

// removeAll removes every container and volume, so that no mount or control
// group outlives the engine.
func removeAll() {
	run("sh", "-c", docker+" ps -aq | xargs -r "+docker+" rm -fv; "+docker+" volume prune -f")
}

// makeBaseImages makes debian by debootstrap, and golang out of it, with the
// toolchain of this machine and a module proxy in a folder, so that the build
// needs no network.
func makeBaseImages(dir string) error {
	debian, golang, err := baseImages()
	if err != nil {
		return err
	}
	root, err := debianRoot(dir)
	if err != nil {
		return err
	}
	if err := run("sh", "-c", fmt.Sprintf("tar -C %s -c . | %s import -c 'CMD [\"bash\"]' - %s", root, docker, debian)); err != nil {
		return err
	}
	context := filepath.Join(dir, "golang")
	if err := os.MkdirAll(context, 0o755); err != nil {
		return err
	}
	defer run("rm", "-rf", root, context)
	dockerfile := "FROM " + debian + `
COPY go /usr/local/go
COPY proxy /usr/local/proxy
ENV GOPATH=/go GOTOOLCHAIN=local GOPROXY=file:///usr/local/proxy \
    PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
`
	if err := os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		return err
	}
	script := `set -eu
cp -a "$(go env GOROOT)" $CONTEXT/go
cd ../..
mods=$(go env GOMODCACHE)/cache/download proxy=$(go env GOPROXY)
GOMODCACHE=$CONTEXT/mod GOPROXY="file://$mods,$proxy" GOFLAGS=-modcacherw go mod download
mv $CONTEXT/mod/cache/download $CONTEXT/proxy
rm -rf $CONTEXT/mod`
	if err := run("env", "CONTEXT="+context, "sh", "-c", script); err != nil {
		return err
	}
	return run(docker, "build", "-q", "-t", golang, context)
}

// debianRoot is a folder with a minimal Debian that has the CA certificates,
// and the settings of this machine's apt. The packages it is made of are kept
// from run to run.
func debianRoot(dir string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "pagewright-test", "debootstrap")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	root := filepath.Join(dir, "debian")
	if err := run("debootstrap", "--variant=minbase", "--include=ca-certificates", "--cache-dir="+cache, "bookworm", root); err != nil {
		return "", err
	}
	return root, run("sh", "-c", `cp /etc/apt/apt.conf.d/* "$0"/etc/apt/apt.conf.d/
if [ -e /etc/apt/sources.list.d/debian.sources ]; then
	cp /etc/apt/sources.list.d/debian.sources "$0"/etc/apt/sources.list.d/ && rm "$0"/etc/apt/sources.list
fi`, root)
}

// baseImages are the names that the Dockerfiles begin with. No digest is set here: these
// images are not those of the registry.
func baseImages() (debian, golang string, err error) {
	service, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		return "", "", err
	}
	version := regexp.MustCompile(`(?m)^ARG GO_VERSION=(\S+)`).FindSubmatch(service)
	from := regexp.MustCompile(`(?m)^FROM .*(golang:\S+)\$\{GO_DIGEST\}`).FindSubmatch(service)
	server, err := os.ReadFile("../../deploy/nfs-server/Dockerfile")
	if err != nil {
		return "", "", err
	}
	base := regexp.MustCompile(`(?m)^FROM (debian:\S+)\$\{DEBIAN_DIGEST\}`).FindSubmatch(server)
	if version == nil || from == nil || base == nil {
		return "", "", fmt.Errorf("the Dockerfiles do not begin with golang and debian")
	}
	return string(base[1]), strings.ReplaceAll(string(from[1]), "${GO_VERSION}", string(version[1])), nil
}

// run runs a command, and tells what it printed if it failed.
func run(name string, args ...string) error {
	_, err := output(name, args...)
	return err
}

// output is what a command printed.
func output(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// until repeats f until it succeeds or limit has passed.
func until(limit time.Duration, f func() error) error {
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}
