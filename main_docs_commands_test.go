package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// block is a fenced block of code of a page.
type block struct {
	page string
	line int    // of the fence
	kind string // what stands behind the fence
	text string
}

// isShell reports whether b has commands for a shell.
func (b block) isShell() bool { return b.kind == "sh" || strings.HasPrefix(b.kind, "sh needs=") }

// blocksOf returns the blocks of a page. Each block must be fenced and say what it is: one
// that is only indented would not be checked.
func blocksOf(t *testing.T, page, text string) (blocks []block) {
	t.Helper()
	var open *block
	blank := true
	for i, line := range strings.Split(text, "\n") {
		fence, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && open == nil:
			open = &block{page: page, line: i + 1, kind: fence}
			if !regexp.MustCompile(`^(sh|sh needs=[a-z]+|python|yaml|json|ini|text|nginx|haproxy|promql)$`).MatchString(fence) {
				t.Errorf("%s:%d: a block is %q; CONTRIBUTING.md has what it may be", page, i+1, fence)
			}
		case isFence:
			blocks, open = append(blocks, *open), nil
		case open != nil:
			open.text += line + "\n"
		case blank && strings.HasPrefix(line, "    ") && !regexp.MustCompile(`^ +([-*]|\d+\.) `).MatchString(line):
			t.Errorf("%s:%d: put the code into a fenced block, or it is not checked", page, i+1)
		}
		blank = line == ""
	}
	if open != nil {
		t.Errorf("%s:%d: the block has no end", page, open.line)
	}
	return blocks
}

// docBlocks returns the blocks of all pages, by page.
func docBlocks(t *testing.T) map[string][]block {
	t.Helper()
	all := map[string][]block{}
	for page, text := range docPages(t) {
		if strings.HasSuffix(page, ".md") {
			all[page] = blocksOf(t, page, text)
		}
	}
	return all
}

// scripts returns the multi-line scripts in the YAML of a job of a CI system.
func (b block) scripts() (scripts []string) {
	var script []string
	indent := -1 // of the line that begins a script; -1: outside
	for line := range strings.Lines(b.text) {
		depth := len(line) - len(strings.TrimLeft(line, " "))
		if indent >= 0 && strings.TrimSpace(line) != "" && depth <= indent {
			scripts, script, indent = append(scripts, strings.Join(script, "")), nil, -1
		}
		if indent >= 0 {
			script = append(script, strings.TrimLeft(line, " "))
		} else if regexp.MustCompile(`^ *(- |run: |- run: )\|\n$`).MatchString(line) {
			indent = max(depth, strings.Index(line, "run:"))
		}
	}
	if indent >= 0 {
		scripts = append(scripts, strings.Join(script, ""))
	}
	return scripts
}

// TestBlocksInTheDocs: the commands of the pages are correct shell, and their JSON is
// JSON. Those of blocks that need nothing special are also run, by TestIntegrationDocs.
func TestBlocksInTheDocs(t *testing.T) {
	kinds := map[string]int{}
	for _, blocks := range docBlocks(t) {
		for _, b := range blocks {
			kinds[b.kind]++
			scripts := b.scripts()
			if b.isShell() {
				scripts = append(scripts, b.text)
			}
			for _, script := range scripts {
				cmd := exec.Command("sh", "-n")
				cmd.Stdin = strings.NewReader(script)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%s:%d: %v: %s", b.page, b.line, err, out)
				}
			}
			if b.kind == "json" && !json.Valid([]byte(b.text)) {
				t.Errorf("%s:%d: not JSON", b.page, b.line)
			}
		}
	}
	if kinds["sh"] < 5 || kinds["json"] < 3 || kinds["yaml"] < 2 {
		t.Errorf("too few blocks were found: %v", kinds)
	}
}

// TestFilesAndTargetsInTheDocs: the files, targets of the Makefile and commands of the
// program that the pages name in code exist.
func TestFilesAndTargetsInTheDocs(t *testing.T) {
	code := map[string]string{}
	for page, text := range docPages(t) {
		if !strings.HasSuffix(page, ".md") {
			continue
		}
		for _, b := range blocksOf(t, page, text) {
			code[page] += "\n" + b.text
		}
		for _, span := range regexp.MustCompile("`[^`\n]+`").FindAllString(text, -1) {
			code[page] += "\n" + strings.Trim(span, "`")
		}
	}
	eachMatch(t, code, `(?m)(?:^|[\s"'=:])((?:deploy|docs|bench|test)/[\w./*-]+|compose\S*\.yaml|\.ci/\w+|\w+\.go)\b`, func(page, name string) {
		if strings.Contains(name, "*") || strings.Contains(name, "_NAME") {
			return
		}
		if _, err := os.Stat(name); err != nil && !strings.HasPrefix(name, "object_NAME") {
			t.Errorf("%s: %v", page, err)
		}
	})
	targets := map[string]bool{}
	eachMatch(t, readPages(t, []string{"Makefile"}), `(?m)^([a-z0-9-]+):`, func(_, target string) { targets[target] = true })
	eachMatch(t, code, `(?m)(?:^|[;&(] *)make ([a-z0-9-]+)`, func(page, target string) {
		if !targets[target] {
			t.Errorf("%s: the Makefile has no target %s", page, target)
		}
	})
	eachMatch(t, code, `(?m)\bpagewright-storage +(-?[a-z]+(?: [a-z]+)?)$`, func(page, command string) {
		if _, err := runWith(append(strings.Fields(command), "unexpected")); err == nil || strings.Contains(err.Error(), "unknown command") {
			t.Errorf("%s: pagewright-storage %s: %v", page, command, err)
		}
	})
}

// TestAccessFilesInTheDocs: the access files that the pages show are valid.
func TestAccessFilesInTheDocs(t *testing.T) {
	files := 0
	for page, blocks := range docBlocks(t) {
		for _, b := range blocks {
			if b.kind != "json" || !regexp.MustCompile(`^\{\s*"(tokens|oidc|certificates|anonymous)"`).MatchString(b.text) {
				continue
			}
			files++
			if _, err := parseAccessFile([]byte(b.text)); err != nil {
				t.Errorf("%s:%d: %v", page, b.line, err)
			}
		}
	}
	if files < 3 {
		t.Errorf("only %d access files were found", files)
	}
}

// TestScriptsOfJobs shows that scripts finds those of both kinds of jobs.
func TestScriptsOfJobs(t *testing.T) {
	b := block{kind: "yaml", text: "jobs:\n  steps:\n    - run: |\n        a\n        b\n      if: x\n  script:\n    - x\n    - |\n      c\n"}
	if want := []string{"a\nb\n", "c\n"}; !slices.Equal(b.scripts(), want) {
		t.Errorf("the scripts are %q, want %q", b.scripts(), want)
	}
}
