package kubernetes

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	blockHead = regexp.MustCompile(`^ *# \[([a-z0-9-]+)\]`)
	blockCode = regexp.MustCompile(`^( *)#([^\s#]|  +\S)`)
)

// uncomment removes the # of the lines under each "# [block]" in the tree. Such a line
// begins with # and no blank, or is indented further; a sentence has one blank behind its #.
func uncomment(t *testing.T, dir, block string) {
	t.Helper()
	changed := 0
	for _, path := range yamlFiles(t, dir) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines, inside := strings.Split(string(text), "\n"), false
		for i, line := range lines {
			head := blockHead.FindStringSubmatch(line)
			switch {
			case head != nil:
				inside = head[1] == block
			case !strings.HasPrefix(strings.TrimSpace(line), "#"):
				inside = false
			case inside && strings.Contains(line, "#\t"):
				t.Errorf("%s:%d: a command among the lines of [%s], whose # are removed", path, i+1, block)
			case inside && blockCode.MatchString(line):
				lines[i] = strings.Replace(line, "#", "", 1)
				changed++
			}
		}
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if changed == 0 {
		t.Fatalf("there is no block [%s]", block)
	}
}

// blocksOf returns the names of all optional blocks.
func blocksOf(t *testing.T) []string {
	names := map[string]bool{}
	for _, path := range yamlFiles(t, manifestsDir) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if head := blockHead.FindStringSubmatch(line); head != nil {
				names[head[1]] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func yamlFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	deeper, err := filepath.Glob(filepath.Join(dir, "*", "*", "*.yaml"))
	if err != nil || len(files) == 0 || len(deeper) == 0 {
		t.Fatal(files, deeper, err)
	}
	return append(files, deeper...)
}

func replaceIn(t *testing.T, path, old, new string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil || strings.Count(string(text), old) != 1 {
		t.Fatalf("%s: %v, or %q is not there once", path, err, old)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), old, new, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}
