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
		"bin/pagewright-storage": fmt.Sprintf("#!/bin/sh\n%s=main exec %s \"$@\"\n", childVariable, executable(t)),
	} {
		writeFile(t, filepath.Join(dir, name), text)
	}
	// Two entries of the original of this API, for what operations.md does with them.
	writeFile(t, s.dir+"/sites/shop/logs/v0-1.json", `{"build_id":"v0","action":"build","status":"ok","timestamp":"2026-01-02T03:04:05Z"}`)
	writeFile(t, s.dir+"/sites/shop/logs/v0-2.json", `{"build_id":"v0","action":"deploy","status":"ok","timestamp":"2026-01-02T03:05:05Z"}`)
	jobs := 0
	for _, b := range blocks {
		scripts, env := []string{b.text}, []string{"STORE=http://" + s.addr, "BASE=" + s.dir, "BACKUP=" + dir + "/backup", fmt.Sprint("GROUP=", os.Getgid())}
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
	switch page := blocks[0].page; page {
	case "docs/operations.md":
		list := string(s.do(t, 200, request{method: "GET", path: "/sites/shop/versions"}).body)
		if !strings.Contains(list, `"action":"build"`) || strings.Count(list, `"build_id":"v0`) != 1 {
			t.Errorf("%s: the old log entries became %s", page, list)
		}
		if _, err := os.Stat(dir + "/backup/sites/shop/logs/v0.json"); err != nil {
			t.Errorf("%s: %v", page, err)
		}
	case "README.md":
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

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
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

// TestIntegrationDocsGitHubJob has actionlint check the workflow.
func TestIntegrationDocsGitHubJob(t *testing.T) {
	const linter = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
	workflows := 0
	for _, b := range docBlocks(t)["docs/http-api.md"] {
		if strings.HasPrefix(b.text, "# .github/workflows/") {
			workflows++
			file := filepath.Join(t.TempDir(), "site.yml")
			writeFile(t, file, b.text)
			if out, err := exec.Command("go", "run", linter, file).CombinedOutput(); err != nil {
				t.Errorf("%s:%d: %v\n%s", b.page, b.line, err, out)
			}
		}
	}
	if workflows == 0 {
		t.Error("there is no workflow")
	}
}
