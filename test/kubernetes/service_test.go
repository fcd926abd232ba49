package kubernetes

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
)

// TestServiceAsDeployed starts the service with the variables of the overlay for NFS, and
// asks what the probes and the monitor ask, on the ports that they name.
func TestServiceAsDeployed(t *testing.T) {
	dir := copyManifests(t)
	uncomment(t, dir, "pod-monitor")
	m := decode(t, kustomize(t, filepath.Join(dir, "overlays", "nfs"), "build"))
	cmd := service(m.container().Env)
	cmd.Env = append(cmd.Env, "PAGEWRIGHT_NFS_BASE_PATH="+t.TempDir(), "PAGEWRIGHT_NFS_REQUIRE_MOUNT=false",
		"PAGEWRIGHT_LISTEN=127.0.0.1", "PAGEWRIGHT_PORT=0", "PAGEWRIGHT_ADMIN_LISTEN=127.0.0.1:0")
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	base := map[string]string{}
	for lines := bufio.NewScanner(log); len(base) < 2 && lines.Scan(); {
		var line struct{ Msg, Address string }
		switch err := json.Unmarshal(lines.Bytes(), &line); {
		case err != nil || line.Address == "":
		case line.Msg == "serving":
			base["http"] = "http://" + line.Address
		case strings.HasPrefix(line.Msg, "serving /health"):
			base["admin"] = "http://" + line.Address
		}
	}
	go func() { _, _ = io.Copy(io.Discard, log) }()
	get := func(port, path string) int {
		t.Helper()
		res, err := http.Get(base[port] + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	for _, p := range []*core.Probe{m.container().StartupProbe, m.container().LivenessProbe, m.container().ReadinessProbe} {
		if status := get(p.HTTPGet.Port.StrVal, p.HTTPGet.Path); status != http.StatusOK {
			t.Errorf("a probe gets %d from %v", status, p.HTTPGet)
		}
	}
	for _, e := range m.podMonitor.Spec.PodMetricsEndpoints {
		if status := get(*e.Port, e.Path); status != http.StatusOK {
			t.Errorf("Prometheus gets %d from %s of port %s", status, e.Path, *e.Port)
		}
	}
	published := m.service.Spec.Ports[0].TargetPort.StrVal
	if status := get(published, "/metrics"); status != http.StatusNotFound {
		t.Errorf("the Service shows /metrics: %d", status)
	}
	if status := get(published, "/sites/a/versions"); status != http.StatusOK {
		t.Errorf("the Service answers %d for a list", status)
	}
}

// service returns a command of the service, with the variables of a container and no other.
func service(env []core.EnvVar, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(bin, "service"), args...)
	cmd.Env = []string{}
	for _, e := range env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	return cmd
}
