package vm

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Variant is the service with some texts of its sources replaced, each of which
// must be there once.
type Variant struct {
	Name   string
	Broken bool // and so a proof must catch it
	Edits  []Edit
}

// Edit replaces the text Old in a file of the product by New.
type Edit struct{ File, Old, New string }

// Replace replaces old by new.
func Replace(file, old, new string) Edit { return Edit{file, old, new} }

// After adds more after a text.
func After(file, text, more string) Edit { return Edit{file, text, text + more} }

// Build builds the program of the variant in dir; no file of the product
// changes. It returns the path of the program.
func (v Variant) Build(dir string) (string, error) {
	root, err := goOutput("list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for _, e := range v.Edits {
		source := filepath.Join(root, e.File)
		text, err := os.ReadFile(cmp.Or(replace[source], source))
		if err != nil {
			return "", err
		}
		if n := strings.Count(string(text), e.Old); n != 1 {
			return "", fmt.Errorf("%q: %d times in %s, want 1: %s\nThe durable write was changed: change the variants with it", v.Name, n, e.File, e.Old)
		}
		replace[source] = filepath.Join(dir, e.File)
		if err := os.WriteFile(replace[source], []byte(strings.Replace(string(text), e.Old, e.New, 1)), 0o644); err != nil {
			return "", err
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path, program := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "service")
	if err := os.WriteFile(path, overlay, 0o644); err != nil {
		return "", err
	}
	return program, BuildService(program, "-overlay", path)
}

// BuildFor is Build in a temporary directory of the test. It ends the test if the build fails.
func (v Variant) BuildFor(t *testing.T) string {
	t.Helper()
	program, err := v.Build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return program
}
