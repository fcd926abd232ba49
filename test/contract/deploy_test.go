package contract

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTheUnitIsWhatSystemdKnows has systemd verify the unit, with a program and
// a folder that there are. A setting that systemd ignores is an error.
func TestTheUnitIsWhatSystemdKnows(t *testing.T) {
	const name = "pagewright-storage.service"
	data, err := os.ReadFile("../../deploy/systemd/" + name)
	if err != nil {
		t.Fatal(err)
	}
	program := "/usr/local/bin/pagewright-storage"
	if !bytes.Contains(data, []byte("ExecStart="+program+"\n")) {
		t.Fatal("the unit does not start " + program)
	}
	unit := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(unit, bytes.ReplaceAll(data, []byte(program), []byte("/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput()
	if err != nil || strings.Contains(string(out), name) {
		t.Errorf("%v\n%s", err, out)
	}
}
