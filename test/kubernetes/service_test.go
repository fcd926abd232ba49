package kubernetes

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
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
	get := start(t, m, "http")
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

// TestServiceAsDeployedWithAccess: with access control and TLS the probes and the monitor need
// neither a token nor TLS, and a list needs both.
func TestServiceAsDeployedWithAccess(t *testing.T) {
	dir := copyManifests(t)
	for _, block := range []string{"access", "tls", "pod-monitor"} {
		uncomment(t, dir, block)
	}
	m := decode(t, kustomize(t, filepath.Join(dir, "overlays", "nfs"), "build"))
	files := t.TempDir()
	out, err := service(nil, "token", "new", "--name", "web", "--allow", "read", "--sites", "a").Output()
	lines := strings.Split(string(out), "\n")
	if err != nil || len(lines) < 2 {
		t.Fatalf("%v: %q", err, out)
	}
	write(t, filepath.Join(files, "access.json"), `{"tokens":[`+lines[1]+`]}`)
	writeCertificate(t, filepath.Join(files, "tls.crt"), filepath.Join(files, "tls.key"))
	var moved []string
	for _, name := range []string{"PAGEWRIGHT_ACCESS_FILE", "PAGEWRIGHT_TLS_CERT", "PAGEWRIGHT_TLS_KEY"} {
		moved = append(moved, name+"="+filepath.Join(files, filepath.Base(m.env(name))))
	}
	get := start(t, m, m.service.Spec.Ports[0].Name, moved...)
	for _, c := range []struct {
		port, path, token string
		status            int
	}{
		{"admin", m.container().StartupProbe.HTTPGet.Path, "", 200},
		{"admin", m.container().LivenessProbe.HTTPGet.Path, "", 200},
		{"admin", m.container().ReadinessProbe.HTTPGet.Path, "", 200},
		{"admin", m.podMonitor.Spec.PodMetricsEndpoints[0].Path, "", 200},
		{"http", "/sites/a/versions", "", 401},
		{"http", "/sites/a/versions", lines[0], 200},
		{"http", "/sites/b/versions", lines[0], 403},
	} {
		if got := get(c.port, c.path, c.token); got != c.status {
			t.Errorf("%s of port %s gets %d, want %d", c.path, c.port, got, c.status)
		}
	}
}

// start starts the service with the variables of the container and env, and returns a function
// that requests a path of one of its ports, with a token if there is one.
func start(t *testing.T, m *manifests, scheme string, env ...string) func(port, path string, token ...string) int {
	t.Helper()
	cmd := service(m.container().Env)
	cmd.Env = append(append(cmd.Env, "PAGEWRIGHT_NFS_BASE_PATH="+t.TempDir(), "PAGEWRIGHT_NFS_REQUIRE_MOUNT=false",
		"PAGEWRIGHT_LISTEN=127.0.0.1", "PAGEWRIGHT_PORT=0", "PAGEWRIGHT_ADMIN_LISTEN=127.0.0.1:0"), env...)
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
		var line struct{ Msg, Address, Error string }
		switch err := json.Unmarshal(lines.Bytes(), &line); {
		case line.Msg == "cannot start":
			t.Fatal(line.Error)
		case err != nil || line.Address == "":
		case line.Msg == "serving":
			base["http"] = scheme + "://" + line.Address
		case strings.HasPrefix(line.Msg, "serving /health"):
			base["admin"] = "http://" + line.Address
		}
	}
	go func() { _, _ = io.Copy(io.Discard, log) }()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	t.Cleanup(client.CloseIdleConnections)
	return func(port, path string, token ...string) int {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, base[port]+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(token) > 0 && token[0] != "" {
			req.Header.Set("Authorization", "Bearer "+token[0])
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeCertificate writes the certificate of net/http/httptest and its key.
func writeCertificate(t *testing.T, certFile, keyFile string) {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	pair := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})))
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
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
