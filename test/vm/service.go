package vm

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// ServicePath is where a machine has the service, by Config.Files.
const ServicePath = "/bin/pagewright-storage"

// BuildService builds the product's static program into path. args go to go
// build.
func BuildService(path string, args ...string) error {
	return GoBuild(path, "pagewright/storage", append([]string{"-tags", leaveOut}, args...)...)
}

// Serve starts the service in the machine on one of its Ports, over the store
// at base, and waits until it answers. It gives the URL for clients here. env
// holds more settings, NAME=VALUE without the prefix of the names.
func (m *Machine) Serve(ctx context.Context, port int, base string, env ...string) (string, error) {
	vars := fmt.Sprintf("PAGEWRIGHT_PORT=%d PAGEWRIGHT_NFS_BASE_PATH=%s PAGEWRIGHT_ACCESS_LOG=false", port, base)
	for _, e := range env {
		vars += " PAGEWRIGHT_" + e
	}
	script := fmt.Sprintf("env %s setsid %s >>/log/service-%d 2>&1 </dev/null & echo $! >/run/service-%d", vars, ServicePath, port, port)
	if _, err := m.Run(ctx, script); err != nil {
		return "", err
	}
	url := "http://" + m.Addr(port)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, "GET", url+"/health", nil)
		if err != nil {
			return "", err
		}
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return url, nil
			}
			err = fmt.Errorf("/health: %s", resp.Status)
		}
		select {
		case <-ctx.Done():
			log, _ := m.Run(context.WithoutCancel(ctx), fmt.Sprintf("cat /log/service-%d", port))
			return "", fmt.Errorf("the service on port %d does not answer: %w\n%s", port, err, log)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Kill ends the service on a port as a crash would.
func (m *Machine) Kill(ctx context.Context, port int) error {
	_, err := m.Run(ctx, fmt.Sprintf("kill -9 $(cat /run/service-%d)", port))
	return err
}

// ServiceLog is what the service on a port logged.
func (m *Machine) ServiceLog(ctx context.Context, port int) string {
	out, err := m.Run(ctx, fmt.Sprintf("cat /log/service-%d", port))
	if err != nil {
		return strings.TrimSpace(out + err.Error())
	}
	return out
}
