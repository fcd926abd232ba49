package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBaseIsNeverMade(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base")
	if _, err := openNFS(base, quiet()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent base was opened: %v", err)
	}
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	n := openTestNFS(t, base)
	if err := os.Remove(base); err != nil {
		t.Fatal(err)
	}
	if err := n.StoreArtifact("s", "b", strings.NewReader("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stored into an absent base: %v", err)
	}
	if _, err := os.Stat(base); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the base was made: %v", err)
	}
}
