//go:build integration

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// runs reports whether the commands of b are run, not only checked.
func (b block) runs() bool { return b.kind == "sh" || b.kind == "python" }

// command returns the command that runs script, which is from b.
func (b block) command(script string) *exec.Cmd {
	if b.kind == "python" {
		return exec.Command("python3", "-c", script)
	}
	return exec.Command("sh", "-eu", "-c", script)
}

// TestIntegrationDocs runs the commands of each page, in their order, against a service of
// their own, in a directory with what CONTRIBUTING.md promises. It needs curl, jq, openssl and
// Python.
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
	dir := t.TempDir()
	s := startServer(t)
	inUse := ""
	if blocks[0].page == accessPage {
		inUse = filepath.Join(dir, "in-use.json")
		writeFile(t, inUse, `{"anonymous":[{"allow":["read","write","log","delete"],"sites":["*"]}]}`)
		s = startServer(t, "ACCESS_FILE="+inUse)
	}
	for name, text := range map[string]string{
		"site.tar.gz":       strings.Repeat("any bytes will do\n", 1000),
		"public/index.html": "<!doctype html>\n",
		"bin/site-pull":     string(mustMake(os.ReadFile("deploy/web-server/site-pull"))),
		// The program is this one: see TestMain.
		"bin/pagewright-storage": fmt.Sprintf("#!/bin/sh\n%s=main exec %s \"$@\"\n", childVariable, executable(t)),
	} {
		writeFile(t, filepath.Join(dir, name), text)
	}
	if blocks[0].page == operationsPage { // two entries of the original of this API, which the page migrates
		writeFile(t, s.dir+"/sites/shop/logs/v0-1.json", `{"build_id":"v0","action":"build","status":"ok","timestamp":"2026-01-02T03:04:05Z"}`)
		writeFile(t, s.dir+"/sites/shop/logs/v0-2.json", `{"build_id":"v0","action":"deploy","status":"ok","timestamp":"2026-01-02T03:05:05Z"}`)
	}
	jobs, jobToken, listToken, entries := 0, "secret", "", make([]string, 2)
	if inUse != "" {
		jobToken, entries[0] = newTestToken(t, "--name", "job", "--allow", "create,log", "--sites", "job")
		listToken, entries[1] = newTestToken(t, "--name", "list", "--allow", "read", "--sites", "job")
	}
	issuer := startTokenIssuer(t, jobToken)
	for _, b := range blocks {
		if inUse != "" {
			useAccessFile(t, s, dir, inUse, entries)
		}
		scripts, env := []string{b.text}, []string{"STORE=http://" + s.addr, "PAGEWRIGHT_URL=http://" + s.addr, "BASE=" + s.dir, "BACKUP=" + dir + "/backup", fmt.Sprint("GROUP=", os.Getgid())}
		if !b.runs() { // a job of a CI system, that succeeds
			jobs++
			scripts = append(b.scripts(), b.scripts()...) // repeated, as after a lost response
			env = append(env, "STORE_TOKEN="+jobToken, "PAGEWRIGHT_TOKEN="+jobToken, "SITE=job",
				"ACTIONS_ID_TOKEN_REQUEST_URL="+issuer+"/?version=1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=runner", fmt.Sprintf("BUILD=%d-1-3f2c9ab", jobs), "RESULT=success", "CI_JOB_STATUS=success")
		}
		for _, script := range scripts {
			cmd := b.command(strings.ReplaceAll(script, "http://localhost:8080", "http://"+s.addr))
			cmd.Dir, cmd.Env = dir, append(env, "PATH="+dir+"/bin:"+os.Getenv("PATH"), "HOME="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s:%d: %v\n%s\n%s", b.page, b.line, err, script, out)
			}
		}
	}
	switch page := blocks[0].page; page {
	case operationsPage:
		list := string(s.do(t, 200, request{method: "GET", path: "/sites/shop/versions"}).body)
		if !strings.Contains(list, `"action":"build"`) || strings.Count(list, `"build_id":"v0`) != 1 {
			t.Errorf("%s: the old log entries became %s", page, list)
		}
		if _, err := os.Stat(dir + "/backup/sites/shop/logs/v0.json"); err != nil {
			t.Errorf("%s: %v", page, err)
		}
	case labelsPage:
		if live := string(s.do(t, 200, request{method: "GET", path: "/sites/job/labels/live"}).body); jobs != 1 || !strings.Contains(live, `"build_id":"1-1-3f2c9ab","previous":""`) {
			t.Errorf("%s: after %d jobs the label is %s", page, jobs, live)
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
	if inUse != "" {
		checkRotated(t, dir)
	}
	var credential http.Header
	if inUse != "" {
		credential = http.Header{"Authorization": {"Bearer " + listToken}}
	}
	list := string(s.do(t, 200, request{method: "GET", path: "/sites/job/versions", header: credential}).body)
	for i := range jobs {
		id := fmt.Sprintf(`"build_id":"%d-1-3f2c9ab"`, i+1)
		_, rest, found := strings.Cut(list, id)
		logged := strings.Contains(rest, `"action":"build","status":"ok"`) || blocks[0].page == integrityPage || blocks[0].page == labelsPage
		if !found || strings.Contains(rest, `"size_bytes":0`) || !logged {
			t.Errorf("job %d left no build with a log: %s", i+1, list)
		}
	}
}

const (
	// accessPage has commands that change the access file of the service.
	accessPage = "docs/access.md"
	// clientPage has a job that uploads, records and labels by one command.
	clientPage = "docs/client.md"
	// integrityPage has a job that only uploads.
	integrityPage = "docs/integrity.md"
	// labelsPage has a job that uploads a build and labels it.
	labelsPage = "docs/labels-and-retention.md"
	// operationsPage moves logs of the original of this API.
	operationsPage = "docs/operations.md"
)

// TestIntegrationDocsDownloads: the recipes of downloads fail, say why, and keep the file of the
// client if the download is not the build, also in a script that goes on after an error.
func TestIntegrationDocsDownloads(t *testing.T) {
	const uploaded, damaged = "the bytes that were sent", "the bytes that are there"
	s := startServer(t)
	for _, build := range []string{"right", "wrong"} {
		s.do(t, 201, request{"PUT", "/sites/shop/artifacts/" + build, uploaded, header("Repr-Digest", sha256Field([]byte(uploaded)))})
	}
	s.do(t, 201, request{"PUT", "/sites/shop/artifacts/unknown", uploaded, nil})
	file := s.dir + "/sites/shop/artifacts/wrong.tar.gz"
	info := mustMake(os.Stat(file))
	writeFile(t, file, damaged)
	if err := os.Chtimes(file, time.Time{}, info.ModTime()); err != nil {
		t.Fatal(err)
	}
	recipes := 0
	for page, cases := range map[string]map[string]string{ // for each build, what is printed: "" if the download succeeds
		integrityPage:      {"right": "", "wrong": "wrong or not known", "unknown": "wrong or not known", "absent": "404"},
		"docs/http-api.md": {"right": "", "absent": "download: 404"},
	} {
		for _, b := range docBlocks(t)[page] {
			if !strings.HasPrefix(b.text, "download()") {
				continue
			}
			recipe, _, _ := strings.Cut(b.text, "\n}\n")
			for build, want := range cases {
				dir := t.TempDir()
				writeFile(t, dir+"/site.tar.gz", "the old file")
				cmd := exec.Command("sh", "-uc", recipe+"\n}\ndownload \"$@\"", "sh", "http://"+s.addr+"/sites/shop/artifacts/"+build, "site.tar.gz")
				cmd.Dir = dir
				out, err := cmd.CombinedOutput()
				now := string(mustMake(os.ReadFile(dir + "/site.tar.gz")))
				switch {
				case want == "" && (err != nil || now != uploaded):
					t.Errorf("%s:%d: %s: %v, %q: %s", page, b.line, build, err, now, out)
				case want != "" && (err == nil || now != "the old file" || !strings.Contains(string(out), want)):
					t.Errorf("%s:%d: %s: %v, %q: %s", page, b.line, build, err, now, out)
				}
			}
			recipes++
		}
	}
	if recipes != 2 {
		t.Errorf("%d recipes were found, want 2", recipes)
	}
}

// checkRotated: the entry whose token the page replaces ends as the one of the new token.
func checkRotated(t *testing.T, dir string) {
	t.Helper()
	type entry struct {
		Name    string
		SHA256  []string
		Expires string
	}
	var file struct{ Tokens []entry }
	var next entry
	_, line, _ := strings.Cut(string(mustMake(os.ReadFile(filepath.Join(dir, "next.txt")))), "\n")
	if err := errors.Join(json.Unmarshal([]byte(line), &next), json.Unmarshal(mustMake(os.ReadFile(filepath.Join(dir, "access.json"))), &file)); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(file.Tokens, func(e entry) bool { return reflect.DeepEqual(e, next) }) {
		t.Errorf("the entries are %v; none is that of the new token, %v", file.Tokens, next)
	}
}

// startTokenIssuer runs what gives the jobs of GitHub their JWTs, and returns its URL. Here it
// gives them a token of the service.
func startTokenIssuer(t *testing.T, token string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer runner" || r.URL.Query().Get("audience") != "pagewright" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"value":%q}`, token)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// useAccessFile makes the service use the access file that the commands of the page have
// written, with the entries of tokens that the test needs. The file has the mode that the page asks for, which
// the commands that change it must keep: otherwise the service could not read the new one.
func useAccessFile(t *testing.T, s *testServer, dir, inUse string, entries []string) {
	t.Helper()
	file := filepath.Join(dir, "access.json")
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	loaded := strings.Count(s.log.String(), "access file loaded")
	if info := mustMake(os.Stat(file)); loaded > 1 && info.Mode() != 0o640 { // the first is that of the start
		t.Errorf("a command left the access file with the mode %o", info.Mode())
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	var members map[string]json.RawMessage
	var tokens []json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(members["tokens"], &tokens); err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		tokens = append(tokens, json.RawMessage(entry))
	}
	members["tokens"] = mustMake(json.Marshal(tokens))
	before, err := os.ReadFile(inUse)
	if err != nil {
		t.Fatal(err)
	}
	after := mustMake(json.Marshal(members))
	if bytes.Equal(before, after) {
		return
	}
	writeFile(t, inUse+".new", string(after))
	if err := os.Rename(inUse+".new", inUse); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the access file is loaded", func() bool { return strings.Count(s.log.String(), "access file loaded") > loaded })
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

// TestIntegrationDocsGitHubJob has actionlint check the workflows.
func TestIntegrationDocsGitHubJob(t *testing.T) {
	const linter = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
	workflows := 0
	blocks := docBlocks(t)
	for _, b := range slices.Concat(blocks[accessPage], blocks[clientPage], blocks[integrityPage], blocks[labelsPage]) {
		if strings.HasPrefix(b.text, "# .github/workflows/") {
			workflows++
			file := filepath.Join(t.TempDir(), "site.yml")
			writeFile(t, file, b.text)
			if out, err := exec.Command("go", "run", linter, file).CombinedOutput(); err != nil {
				t.Errorf("%s:%d: %v\n%s", b.page, b.line, err, out)
			}
		}
	}
	if workflows < 4 {
		t.Errorf("%d workflows were found, want 4", workflows)
	}
}
