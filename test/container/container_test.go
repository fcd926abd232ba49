//go:build integration

package container

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// image is built by whichever test comes first, here or from a compose file.
const (
	image    = "pagewright-storage:dev"
	revision = "0123abc"
	source   = "https://git.example.com/storage"
)

// hardened is how a container of the service is run here: as its own user, on
// a root it cannot write, with no capability at all.
var hardened = []string{"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--memory=512m", "--cpus=1"}

func TestTheImageIsTheBinaryAloneAndCanBeBuiltAgainBitForBit(t *testing.T) {
	build(t)
	size, _ := strconv.Atoi(inspect(t, image, "{{.Size}}"))
	layers := inspect(t, image, "{{json .RootFS.Layers}}")
	if user := inspect(t, image, "{{.Config.User}}"); user != "65532:65532" {
		t.Errorf("the user is %q", user)
	}
	if v := inspect(t, image, `{{index .Config.Labels "org.opencontainers.image.licenses"}}`); v != "MIT" {
		t.Errorf("the label of the licence is %q", v)
	}
	labels := inspect(t, image, `{{index .Config.Labels "org.opencontainers.image.version"}} {{index .Config.Labels "org.opencontainers.image.revision"}} {{index .Config.Labels "org.opencontainers.image.source"}}`)
	if labels != "dev "+revision+" "+source {
		t.Errorf("the labels of version, revision and source are %q", labels)
	}
	files := exported(t)
	t.Logf("image: %d bytes; it holds %v", size, files)
	for name, bytes := range files {
		switch name {
		case "pagewright-storage", "etc/ssl/certs/ca-certificates.crt":
			size -= bytes
		default:
			t.Errorf("%s (%d bytes) does not belong into the image", name, bytes)
		}
	}
	if size > 4096 {
		t.Errorf("the image has %d bytes more than the binary and the certificates", size)
	}
	must(t, "docker", "build", "--no-cache", "-q", "-t", "again", "../..")
	if again := inspect(t, "again", "{{json .RootFS.Layers}}"); again != layers {
		t.Errorf("built twice, two results:\n%s\n%s", layers, again)
	}
	if out, err := output(docker, "run", "--rm", "--entrypoint", "/bin/sh", image); err == nil {
		t.Errorf("there is a shell: %s", out)
	}
}

func TestWithoutAVolumeItDoesNotStart(t *testing.T) {
	build(t)
	out, err := output(docker, append(append([]string{"run", "--rm"}, hardened...), image)...)
	if err == nil || !strings.Contains(out, "PAGEWRIGHT_NFS_BASE_PATH") || !strings.Contains(out, "mount") {
		t.Errorf("it started, or did not say why not: %v", err)
	}
}

func TestNobodyOnAReadOnlyRootServesTheAPI(t *testing.T) {
	build(t)
	c := start(t, "api")
	c.tour(t, "build-1")
	if ps := must(t, docker, "top", "api", "-eo", "pid,uid,args"); !strings.Contains(ps, "65532") {
		t.Errorf("not the user 65532: %s", ps)
	}
	for _, line := range []string{
		"go_memlimit_bytes 483183820\n", // 90 % of the 512 MiB
		// Twice what Go takes for one CPU, which is two if the machine has them.
		fmt.Sprintf("go_gomaxprocs %d\n", 2*min(2, runtime.NumCPU())),
	} {
		if m := c.want(t, 200, "GET", "/metrics", nil); !bytes.Contains(m, []byte(line)) {
			t.Errorf("/metrics has no line %q: Go does not follow the container's limits", line)
		}
	}
	must(t, docker, "restart", "-t", "30", "api")
	c = healthy(t, "api")
	if got := c.want(t, 200, "GET", "/sites/tour/artifacts/build-1", nil); len(got) != 3<<20 {
		t.Errorf("after a restart the build has %d bytes", len(got))
	}
	t.Log("health log:", inspect(t, "api", "{{range .State.Health.Log}}{{.ExitCode}} {{end}}"))
}

func TestStopUnderUploadsLosesNothing(t *testing.T) {
	build(t)
	c := start(t, "stop", "-e", "PAGEWRIGHT_SHUTDOWN_GRACE=20s")
	l := startLoad(c, "load", 8)
	if err := until(time.Minute, func() error {
		if n := l.acknowledged(); n < 50 {
			return fmt.Errorf("%d uploads in a minute", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	held := holdUpload(t, c, "held")
	stopped := make(chan error, 1)
	go func() { stopped <- run(docker, "stop", "-t", "40", "stop") }()
	// Nothing new is taken once the listener has closed; what was held in the
	// middle of its body is then sent to its end, and must be acknowledged.
	if err := until(20*time.Second, func() error {
		conn, err := net.Dial("tcp", strings.TrimPrefix(c.base, "http://"))
		if err != nil {
			return nil
		}
		defer conn.Close()
		if _, _, err := c.do("GET", "/health", nil); err != nil {
			return nil
		}
		return fmt.Errorf("still served after SIGTERM")
	}); err != nil {
		t.Fatal(err)
	}
	if status := held.finish(t); status != 201 {
		t.Errorf("the upload in flight was answered %d", status)
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	l.end()
	if code := inspect(t, "stop", "{{.State.ExitCode}} {{.State.OOMKilled}}"); code != "0 false" {
		t.Errorf("exit code and OOM kill: %s\n%s", code, logs("stop"))
	}
	must(t, docker, "start", "stop")
	l.c = healthy(t, "stop")
	l.sent["held"], l.accepted["held"] = held.sum, held.sum
	l.check(t)
	if n := temps(t, "stop"); n != 0 {
		t.Errorf("%d temporary files are left", n)
	}
}

// build builds the image, once.
func build(t *testing.T) {
	t.Helper()
	if run(docker, "image", "inspect", image) == nil {
		return
	}
	begin := time.Now()
	must(t, "docker", "build", "-q", "-t", image, "--build-arg", "REVISION="+revision, "--build-arg", "SOURCE="+source, "../..")
	t.Logf("docker build: %.0fs", time.Since(begin).Seconds())
}

// start runs a container of the service on a volume of its name, and waits until
// it is healthy.
func start(t *testing.T, name string, args ...string) *client {
	t.Helper()
	args = append(append([]string{"run", "-d", "--name", name, "-v", name + ":/nfs", "-p", "127.0.0.1::8080"}, hardened...), args...)
	must(t, docker, append(args, image)...)
	t.Cleanup(func() { run(docker, "rm", "-fv", name) })
	return healthy(t, name)
}

// healthy waits for the engine's own judgement, which is the image's HEALTHCHECK.
func healthy(t *testing.T, name string) *client {
	t.Helper()
	err := until(60*time.Second, func() error {
		state, err := output(docker, "inspect", "-f", "{{.State.Health.Status}}", name)
		if err == nil && state != "healthy" {
			err = fmt.Errorf("%s is %s\n%s", name, state, logs(name))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return newClient(strings.SplitN(must(t, docker, "port", name, "8080"), "\n", 2)[0])
}

// exported are the files of the image with their sizes.
func exported(t *testing.T) map[string]int {
	t.Helper()
	must(t, docker, "create", "--name", "exported", image)
	defer run(docker, "rm", "exported")
	list := must(t, "sh", "-c", docker+" export exported | tar -tv")
	files := map[string]int{}
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		size, _ := strconv.Atoi(f[2])
		// The engine itself puts empty files and folders in for what it mounts.
		if line[0] == '-' && size > 0 {
			files[f[5]] = size
		}
	}
	return files
}

// heldUpload is an upload that stays in the middle of its body until it is told.
type heldUpload struct {
	conn net.Conn
	rest []byte
	sum  [32]byte
}

func holdUpload(t *testing.T, c *client, build string) *heldUpload {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	body := randomBody(4 << 20)
	fmt.Fprintf(conn, "PUT /sites/load/artifacts/%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", build, len(body))
	// That the service has it is only known once it asks for the body.
	const goOn = "HTTP/1.1 100 Continue\r\n\r\n"
	got := make([]byte, len(goOn))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != goOn {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := conn.Write(body[:1<<20]); err != nil {
		t.Fatal(err)
	}
	return &heldUpload{conn, body[1<<20:], sha256.Sum256(body)}
}

// finish sends the rest and returns the status of the answer.
func (h *heldUpload) finish(t *testing.T) int {
	t.Helper()
	defer h.conn.Close()
	if _, err := io.Copy(h.conn, bytes.NewReader(h.rest)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(h.conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	status, _ := strconv.Atoi(strings.Fields(line)[1])
	return status
}

// temps counts the temporary files in the volume, whose place the engine tells.
func temps(t *testing.T, volume string) int {
	t.Helper()
	var v []struct{ Mountpoint string }
	if err := json.Unmarshal([]byte(must(t, docker, "volume", "inspect", volume)), &v); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(v[0].Mountpoint + "/sites"); err != nil {
		t.Fatal(err)
	}
	return len(strings.Fields(must(t, "find", v[0].Mountpoint, "-name", ".tmp-*")))
}

func inspect(t *testing.T, name, format string) string {
	t.Helper()
	return must(t, docker, "inspect", "-f", format, name)
}

func logs(name string) string {
	out, _ := output(docker, "logs", "--tail", "30", name)
	return out
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := output(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
