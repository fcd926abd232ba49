package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The commands that talk to a service, with a real one.

// client runs a command with the service, and returns its exit status.
func (s *testServer) client(environ []string, args ...string) (stdout, stderr string, status int) {
	var out, errs bytes.Buffer
	err := run(context.Background(), args, append([]string{"PAGEWRIGHT_URL=http://" + s.addr}, environ...), &out, &errs)
	if err != nil {
		status = exitStatus(err)
		errs.WriteString(err.Error())
	}
	return out.String(), errs.String(), status
}

// wantClient is client for a command that must end with a status. It returns its output.
func (s *testServer) wantClient(t *testing.T, status int, args ...string) string {
	t.Helper()
	stdout, stderr, got := s.client(nil, args...)
	if got != status {
		t.Fatalf("%q: exit status %d, want %d: %s", args, got, status, stderr)
	}
	return stdout
}

// TestClientCommands goes through the life of a build.
func TestClientCommands(t *testing.T) {
	s := startServer(t)
	dir := t.TempDir()
	file, back := filepath.Join(dir, "site.tar.gz"), filepath.Join(dir, "back.tar.gz")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	if out := s.wantClient(t, 0, "push", file, "shop", "v1", "--create", "--log", "build=ok", "--label", "live"); !strings.HasPrefix(out, "shop/v1 sha256:a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e 5 bytes") {
		t.Errorf("%q", out)
	}
	s.wantClient(t, 0, "push", file, "shop", "v1", "--create")
	s.wantClient(t, 0, "push", file, "shop", "v1")
	write(strings.Repeat("second", 100_000))
	s.wantClient(t, exitConflict, "push", file, "shop", "v1", "--create")
	s.wantClient(t, exitConflict, "push", file, "shop", "v1") // it has a label
	s.wantClient(t, 0, "push", file, "shop", "v2")
	s.wantClient(t, 0, "label", "set", "shop", "live", "v2")
	s.wantClient(t, 0, "pull", "shop", "@live", "-o", back)
	if got, err := os.ReadFile(back); err != nil || string(got) != strings.Repeat("second", 100_000) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	s.wantClient(t, 0, "label", "rollback", "shop", "live")
	if out := s.wantClient(t, 0, "pull", "shop", "@live", "-o", "-"); out != "first" {
		t.Errorf("%.100q", out)
	}
	s.wantClient(t, 0, "push", file, "shop", "v2")
	write("third")
	s.wantClient(t, 0, "push", file, "shop", "v2") // replaces what it saw
	s.wantClient(t, 0, "log", "shop", "v2", "deploy", "ok", "--metadata", `{"by":"test"}`)
	var list struct {
		Versions []struct {
			BuildID string `json:"build_id"`
			Size    int64  `json:"size_bytes"`
			Logs    []struct{ Action, Status string }
		}
	}
	if err := json.Unmarshal([]byte(s.wantClient(t, 0, "versions", "shop", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	if v := list.Versions; len(v) != 2 || v[0].BuildID != "v2" || v[0].Size != 5 || len(v[0].Logs) != 1 || len(v[1].Logs) != 1 || v[1].Logs[0].Action != "build" {
		t.Errorf("%+v", v)
	}
	s.wantClient(t, 0, "push", filepath.Dir(file), "shop", "dir")
	s.wantClient(t, exitConflict, "rm", "shop", "v1")
	s.wantClient(t, 0, "label", "rm", "shop", "live")
	s.wantClient(t, 0, "rm", "shop", "v1")
	s.wantClient(t, exitAbsent, "pull", "shop", "v1", "-o", back)
	s.wantClient(t, exitAbsent, "pull", "shop", "@live", "-o", back)
	s.wantClient(t, exitUsage, "push", file, "shop")
	s.wantClient(t, exitUsage, "push", file, "shop", "a/b")
	s.wantClient(t, 0, "sites", "--json", "--prefix", "shop")
	if sites := s.wantClient(t, 0, "sites"); !strings.Contains(sites, "shop") {
		t.Errorf("%q", sites)
	}
}

// TestClientAccess: what a credential may not do ends with exitDenied, and its token is in no output.
func TestClientAccess(t *testing.T) {
	create, write, read := newToken(), newToken(), newToken()
	s := startServer(t, "ACCESS_FILE="+writeAccess(t,
		testRule{name: "create", token: create, allow: "create", sites: "*"},
		testRule{name: "write", token: write, allow: "write read label log", sites: "*"},
		testRule{name: "read", token: read, allow: "read", sites: "*"}))
	dir := t.TempDir()
	file, tokenFile := filepath.Join(dir, "site.tar.gz"), filepath.Join(dir, "token")
	for name, text := range map[string]string{file: "bytes", tokenFile: write + "\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		environ string
		args    []string
		want    int
	}{
		{"PAGEWRIGHT_TOKEN=" + create, []string{"push", file, "shop", "v1", "--create"}, 0},
		{"PAGEWRIGHT_TOKEN=" + create, []string{"push", file, "shop", "v1", "--create"}, 0},
		{"PAGEWRIGHT_TOKEN=" + create, []string{"push", file, "shop", "v2"}, exitDenied},
		{"PAGEWRIGHT_TOKEN=" + create, []string{"push", file, "shop", "v3", "--create", "--label", "live"}, exitDenied},
		{"PAGEWRIGHT_TOKEN=" + read, []string{"push", file, "shop", "v4"}, exitDenied},
		{"PAGEWRIGHT_TOKEN=" + read + "x", []string{"pull", "shop", "v1", "-o", "-"}, exitDenied},
		{"PAGEWRIGHT_NOTHING=", []string{"pull", "shop", "v1", "-o", "-"}, exitDenied},
		{"PAGEWRIGHT_TOKEN=" + read, []string{"pull", "shop", "v1", "-o", "-"}, 0},
		{"PAGEWRIGHT_TOKEN_FILE=" + tokenFile, []string{"push", file, "shop", "v5", "--label", "live", "--log", "build=ok"}, 0},
		{"PAGEWRIGHT_TOKEN_FILE=" + tokenFile, []string{"rm", "shop", "v1"}, exitDenied},
	} {
		stdout, stderr, status := s.client([]string{c.environ}, c.args...)
		said := stdout + stderr
		if status != c.want || strings.Contains(said, create) || strings.Contains(said, write) || strings.Contains(said, read) {
			t.Errorf("%q: exit status %d, want %d: %s", c.args, status, c.want, stderr)
		}
	}
}

// TestVariablesOfTheClient: they neither stop the service nor are shown by it, and the
// variables of the service do not concern the client.
func TestVariablesOfTheClient(t *testing.T) {
	out, err := runWith([]string{"config"}, "URL=https://store.example.org", "TOKEN=secret", "TOKEN_FILE=/none", "NFS_BASE_PATH="+t.TempDir())
	if err != nil || strings.Contains(out, "secret") || strings.Contains(out, "PAGEWRIGHT_TOKEN") || strings.Contains(out, "PAGEWRIGHT_URL") || strings.Contains(out, "unknown") {
		t.Errorf("%v:\n%s", err, out)
	}
	s := startServer(t, "URL=x", "TOKEN=y")
	if _, stderr, status := s.client([]string{"PAGEWRIGHT_PORT=http", "PAGEWRIGHT_STORAGE_BACKEND=none", "PAGEWRIGHT_S3_BUKET=x"}, "versions", "shop"); status != 0 {
		t.Errorf("exit status %d: %s", status, stderr)
	}
	if _, err := runWith([]string{"versions", "shop"}); exitStatus(err) != exitUsage || !strings.Contains(err.Error(), "PAGEWRIGHT_URL") {
		t.Error(err)
	}
}
