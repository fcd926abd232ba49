//go:build integration

// Package access has the tests of the real binary with an access file that changes while it
// runs.
package access

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash/crc32"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pagewright/storage/test/service"
)

const (
	bound    = 10 * time.Second // a change is in force after that
	patience = time.Minute
)

// newToken returns a token, made as docs/access.md says, and its SHA-256.
func newToken() (token, sum string) {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	bits := make([]byte, 32)
	_, _ = rand.Read(bits)
	random := base64.RawURLEncoding.EncodeToString(bits)
	check := ""
	for n := crc32.ChecksumIEEE([]byte(random)); len(check) < 6; n /= 62 {
		check = string(digits[n%62]) + check
	}
	token = "pwst_" + random + check
	return token, fmt.Sprintf("%x", sha256.Sum256([]byte(token)))
}

func rules(name, sum string) string {
	return fmt.Sprintf(`{"tokens":[{"name":%q,"sha256":[%q],"allow":["read"],"sites":["*"]}]}`, name, sum)
}

// mount is a directory as Kubernetes mounts a Secret: a link ..data leads to the version in
// use.
type mount struct {
	dir string
	n   int
}

func (m *mount) put(t *testing.T, content string) {
	t.Helper()
	m.n++
	version := fmt.Sprint("..", m.n)
	for _, err := range []error{
		os.Mkdir(filepath.Join(m.dir, version), 0o755),
		os.WriteFile(filepath.Join(m.dir, version, "access.json"), []byte(content), 0o600),
		os.Symlink(version, filepath.Join(m.dir, "..data_tmp")),
		os.Rename(filepath.Join(m.dir, "..data_tmp"), filepath.Join(m.dir, "..data")),
		os.RemoveAll(filepath.Join(m.dir, fmt.Sprint("..", m.n-1))),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestRevokedTokenIsRefused: a token that is taken out of the file is refused within 10 s of
// the change, and a token that was added is accepted; a file that cannot be used changes
// nothing.
func TestRevokedTokenIsRefused(t *testing.T) {
	old, oldSum := newToken()
	next, nextSum := newToken()
	secret := &mount{dir: t.TempDir()}
	secret.put(t, rules("old", oldSum))
	path := filepath.Join(secret.dir, "access.json")
	if err := os.Symlink(filepath.Join("..data", "access.json"), path); err != nil {
		t.Fatal(err)
	}
	s := service.Start(t, service.Options{Bin: service.Build(t), Base: t.TempDir(), Env: []string{"ACCESS_FILE=" + path}})
	status := func(token string) int {
		t.Helper()
		req, err := http.NewRequest("GET", "http://"+s.Addr+"/sites/s/versions", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	within := func(limit time.Duration, what string, ok func() bool) {
		t.Helper()
		start := time.Now()
		for !ok() {
			if time.Since(start) > patience {
				t.Fatalf("never happened: %s", what)
			}
			time.Sleep(20 * time.Millisecond)
		}
		took := time.Since(start)
		t.Logf("%s after %v", what, took.Round(time.Millisecond))
		if took > limit {
			t.Errorf("%s after %v, want at most %v", what, took, limit)
		}
	}
	if a, b := status(old), status(next); a != 200 || b != 401 {
		t.Fatalf("at the start: %d, %d, want 200, 401", a, b)
	}

	secret.put(t, rules("next", nextSum))
	within(bound, "the old token is refused", func() bool { return status(old) == 401 })
	if got := status(next); got != 200 {
		t.Errorf("the new token: %d", got)
	}

	secret.put(t, `{"tokens":`)
	within(bound, "a bad file is logged", func() bool { return strings.Contains(s.Log(), `"level":"ERROR","msg":"access file not loaded`) })
	if a, b := status(old), status(next); a != 401 || b != 200 {
		t.Errorf("with a bad file: %d, %d, want 401, 200", a, b)
	}

	// SIGHUP does not wait for the next check.
	secret.put(t, rules("old", oldSum))
	if err := syscall.Kill(s.Pid, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	within(bound, "after SIGHUP the rules are new", func() bool { return status(old) == 200 && status(next) == 401 })

	for _, secret := range []string{old, next} {
		if strings.Contains(s.Log(), secret) {
			t.Error("the service log has a token")
		}
	}
}
