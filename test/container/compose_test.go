//go:build integration

package container

import (
	"fmt"
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
