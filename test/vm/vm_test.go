//go:build integration || torture

package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A machine boots, does what it is told, and what it wrote and synced before
// its power was cut is there after the next boot, while what it did not sync
// is not.
func TestMachineBootsRunsAndLosesItsPower(t *testing.T) {
	kit, err := NewKit(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(disk, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	boot := func() *Machine {
		m, err := kit.Start(t.Context(), Config{Name: "m", Drives: []string{RawDrive(disk, false)}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Cut)
		return m
	}
	m := boot()
	if out, err := m.Run(t.Context(), "guest mount ext4 /dev/vda /mnt '' && echo kept >/mnt/a && sync && echo lost >/mnt/b && exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Fatalf("got %q, %v, want exit status 3", out, err)
	}
	m.Cut()
	m = boot()
	out, err := m.Run(t.Context(), "guest mount ext4 /dev/vda /mnt '' && cat /mnt/a && ls /mnt")
	if err != nil || out != "kept\na\nlost+found\n" {
		t.Fatalf("got %q, %v", out, err)
	}
}
