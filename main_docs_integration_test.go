//go:build integration

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestIntegrationDocs runs the commands of each page, in their order, against a service of
// their own, in a directory with what CONTRIBUTING.md promises. It needs curl and jq.
func TestIntegrationDocs(t *testing.T) {
	ran := 0
	for page, blocks := range docBlocks(t) {
		var mine []block
		for _, b := range blocks {
			if b.runs() || len(b.scripts()) > 0 {
				mine = append(mine, b)
			}
		}
		if ran += len(mine); len(mine) == 0 {
			continue
		}
		t.Run(filepath.Base(page), func(t *testing.T) { runBlocks(t, mine) })
	}
	if ran < 10 {
		t.Errorf("only %d blocks were run", ran)
	}
}

func runBlocks(t *testing.T, blocks []block) {
	s, dir := startServer(t), t.TempDir()
	for name, text := range map[string]string{
		"site.tar.gz":       strings.Repeat("any bytes will do\n", 1000),
		"public/index.html": "<!doctype html>\n",
		// The program is this one: see TestMain.
		"bin/pagewright-storage": fmt.Sprintf("#!/bin/sh\n%s=command exec %s \"$@\"\n", childVariable, executable(t)),
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	jobs := 0
	for _, b := range blocks {
		scripts, env := []string{b.text}, []string{"STORE=http://" + s.addr}
		if !b.runs() { // a job of a CI system, that succeeds
			jobs++
			scripts = b.scripts()
			env = append(env, "STORE_TOKEN=secret", "SITE=job", fmt.Sprintf("BUILD=%d-1-3f2c9ab", jobs), "RESULT=success", "CI_JOB_STATUS=success")
		}
		for _, script := range scripts {
			cmd := exec.Command("sh", "-eu", "-c", strings.ReplaceAll(script, "http://localhost:8080", "http://"+s.addr))
			cmd.Dir, cmd.Env = dir, append(env, "PATH="+dir+"/bin:"+os.Getenv("PATH"), "HOME="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s:%d: %v\n%s\n%s", b.page, b.line, err, script, out)
			}
		}
	}
	if page := blocks[0].page; page == "README.md" {
		sent, err := os.ReadFile(filepath.Join(dir, "site.tar.gz"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "back.tar.gz")); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%s: the build came back with %d bytes of %d: %v", page, len(got), len(sent), err)
		}
	}
	list := string(s.do(t, 200, request{method: "GET", path: "/sites/job/versions"}).body)
	for i := range jobs {
		id := fmt.Sprintf(`"build_id":"%d-1-3f2c9ab"`, i+1)
		_, rest, found := strings.Cut(list, id)
		if !found || strings.Contains(rest, `"size_bytes":0`) || !strings.Contains(rest, `"action":"build","status":"ok"`) {
			t.Errorf("job %d left no build with a log: %s", i+1, list)
		}
	}
}

func executable(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
