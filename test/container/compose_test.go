//go:build integration

package container

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// published is where the compose files publish the service, and publishedAdmin its admin
// address.
const (
	published      = "127.0.0.1:8080"
	publishedAdmin = "127.0.0.1:9090"
)

func TestComposeServesFromTheNFSServersExport(t *testing.T) {
	c := up(t, "compose.yaml")
	bounded(t, "pagewright_nfs-server_1", "pagewright_storage_1")
	c.tour(t, "build-1")
	c.want(t, 404, "GET", "/metrics", nil)
	newClient(publishedAdmin).want(t, 200, "GET", "/metrics", nil)
	// What was stored is seen by a client of NFS 4.
	list := must(t, docker, "exec", "pagewright_nfs-server_1", "nfs-ls", "nfs://127.0.0.1/export/sites/tour/artifacts?version=4")
	if !strings.Contains(list, "build-1.tar.gz") {
		t.Errorf("not in the NFS export: %s", list)
	}
	must(t, "../../deploy/compose", "down")
	c = up(t, "compose.yaml")
	if got := c.want(t, 200, "GET", "/sites/tour/artifacts/build-1", nil); len(got) != 3<<20 {
		t.Errorf("after down and up the build has %d bytes", len(got))
	}
}

func TestTwoReplicasStopAndStartUnderUploadsWithoutAFailure(t *testing.T) {
	c := up(t, "compose.replicas.yaml")
	bounded(t, "pagewright_nfs-server_1", "pagewright_storage-1_1", "pagewright_storage-2_1", "pagewright_load-balancer_1")
	healthyContainer(t, "pagewright_load-balancer_1")
	c.tour(t, "build-1")
	for _, path := range []string{"/health", "/ready", "/metrics"} {
		c.want(t, 404, "GET", path, nil)
	}
	l := startLoad(c, "replicas", 4)
	for _, replica := range []string{"pagewright_storage-1_1", "pagewright_storage-2_1"} {
		before := l.acknowledged()
		must(t, docker, "stop", "-t", "40", replica)
		must(t, docker, "start", replica)
		healthyContainer(t, replica)
		if err := until(30*time.Second, func() error {
			if n := l.acknowledged(); n < before+20 {
				return fmt.Errorf("%d uploads in 30 s", n-before)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	l.end()
	l.check(t)
	if l.broken+len(l.refused) > 0 {
		t.Errorf("clients saw the replicas stop: %d without an answer, refused: %v\n%s", l.broken, l.refused, logs("pagewright_load-balancer_1"))
	}
	for _, replica := range []string{"pagewright_storage-1_1", "pagewright_storage-2_1"} {
		n := strings.Count(must(t, "sh", "-c", docker+" logs "+replica+" 2>&1"), `"method":"PUT"`)
		t.Logf("%s served %d uploads", replica, n)
		if n == 0 {
			t.Errorf("%s served none: there is no balance", replica)
		}
	}
}

// TestComposeWithAccessAndTLS: with compose.access.yaml the API speaks TLS and asks for
// credentials, the health check and the metrics need neither, and a changed file is used without
// a restart.
func TestComposeWithAccessAndTLS(t *testing.T) {
	dir := t.TempDir()
	access := func(sites string) {
		writeAccess(t, filepath.Join(dir, "access.json"), `{"anonymous":[{"allow":["read"],"sites":["`+sites+`"]}]}`)
	}
	access("public")
	writePair(t, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	for _, d := range []string{dir, filepath.Dir(dir)} { // for user 65532
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PAGEWRIGHT_ACCESS_DIR", dir)
	files := []string{"-f", "compose.yaml", "-f", "compose.access.yaml"}
	must(t, "../../deploy/compose", append(files, "up", "-d", "--build")...)
	t.Cleanup(func() { run("../../deploy/compose", append(files, "down", "-v")...) })
	healthyContainer(t, "pagewright_storage_1")
	https := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	get := func(site string) int {
		t.Helper()
		res, err := https.Get("https://" + published + "/sites/" + site + "/versions")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	if a, b := get("public"), get("shop"); a != 200 || b != 401 {
		t.Errorf("a public site %d, another one %d; want 200 and 401", a, b)
	}
	newClient(publishedAdmin).want(t, 200, "GET", "/metrics", nil)
	access("*")
	if err := until(time.Minute, func() error {
		if got := get("shop"); got != 200 {
			return fmt.Errorf("the new file is not in use: %d", got)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// writeAccess replaces a file by a rename.
func writeAccess(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// writePair writes the certificate of net/http/httptest and its key.
func writePair(t *testing.T, certFile, keyFile string) {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	pair := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	writeAccess(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})))
	writeAccess(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
}

// up starts a compose file and waits until the service answers.
func up(t *testing.T, file string) *client {
	t.Helper()
	out := must(t, "../../deploy/compose", "-f", file, "up", "-d", "--build")
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "compose: ") {
			t.Log(strings.TrimSpace(line))
		}
	}
	t.Cleanup(func() { run("../../deploy/compose", "-f", file, "down", "-v") })
	c := newClient(published)
	if file == "compose.replicas.yaml" {
		c.probe = "/balancer"
	}
	if err := c.ready(); err != nil {
		t.Fatal(err, must(t, docker, "ps", "-a"))
	}
	return c
}

func healthyContainer(t *testing.T, name string) {
	t.Helper()
	if err := until(time.Minute, func() error {
		if state := inspect(t, name, "{{.State.Health.Status}}"); state != "healthy" {
			return fmt.Errorf("%s is %s", name, state)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// bounded: each container has a limit of memory and of its log, comes back after a restart
// of the engine, and is published on loopback alone.
func bounded(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		got := inspect(t, name, `{{.HostConfig.RestartPolicy.Name}} {{index .HostConfig.LogConfig.Config "max-size"}} {{index .HostConfig.LogConfig.Config "max-file"}}`)
		if got != "unless-stopped 20m 5" {
			t.Errorf("%s: restart policy and log: %s", name, got)
		}
		if got := inspect(t, name, "{{.HostConfig.Memory}}"); got == "0" {
			t.Errorf("%s has no limit of memory", name)
		}
		for _, ip := range strings.Fields(inspect(t, name, "{{range .HostConfig.PortBindings}}{{range .}}{{.HostIp}} {{end}}{{end}}")) {
			if ip != "127.0.0.1" {
				t.Errorf("%s is published on %s", name, ip)
			}
		}
	}
}
