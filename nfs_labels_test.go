package main

import (
	"os"
	"path/filepath"
	"testing"
)

// labelPath returns the path of the file of a label.
func labelPath(base, site, label string) string {
	return filepath.Join(base, sitesDir, site, labelsDir, label+labelSuffix)
}

func plantLabel(t *testing.T, base, site, label string, data []byte) {
	t.Helper()
	path := labelPath(base, site, label)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLabelsInADirectory(t *testing.T) {
	for name, open := range map[string]func(t testing.TB, base string) *nfs{"local": openTestNFS, "remote": openRemote} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			testLabels(t, labelRig{
				open:  func(t *testing.T) Backend { return open(t, base) },
				plant: func(t *testing.T, site, label string, data []byte) { plantLabel(t, base, site, label, data) },
			})
		})
	}
}
