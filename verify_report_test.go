package main

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// TestProgressOnATerminal: each progress line replaces the one before, fits in a line, and is
// erased before anything else is written.
func TestProgressOnATerminal(t *testing.T) {
	var screen bytes.Buffer
	r := &verifyReport{commandOutput: commandOutput{stdout: &screen, stderr: &screen, terminal: true}}
	r.progress("verify", "1%")
	r.progress("verify", strings.Repeat("2", 200))
	if err := r.finding(verifyFinding{Site: "a", Build: "b", Result: resultCorrupt, Detail: "cannot be read"}); err != nil {
		t.Fatal(err)
	}
	r.progress("verify", "3%")
	_, _ = io.WriteString(r, "a line of the log\n")
	_, _ = io.WriteString(r, "another\n")
	want := eraseLine + "1%" + eraseLine + strings.Repeat("2", 79) + eraseLine + "corrupt a/b: cannot be read\n" +
		eraseLine + "3%" + eraseLine + "a line of the log\nanother\n"
	if got := screen.String(); got != want {
		t.Errorf("the terminal got %q, want %q", got, want)
	}
}

func TestProgressInALog(t *testing.T) {
	var out, log bytes.Buffer
	r := &verifyReport{commandOutput: commandOutput{stdout: &out, stderr: &log}}
	r.progress("verify", "1%")
	r.progress("verify", "2%")
	for _, err := range []error{errors.New("full"), errors.New("full"), nil, errors.New("full\nstill")} {
		r.saved(err)
	}
	want := "verify: 1%\nverify: 2%\nverify: cannot keep the state in the store, so --resume will not find it: full\n" +
		"verify: cannot keep the state in the store, so --resume will not find it: full still\n"
	if log.String() != want || out.Len() > 0 {
		t.Errorf("stderr got %q, want %q; stdout got %q", log.String(), want, out.String())
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 10240: "10 KiB", 999 << 10: "999 KiB", 1000 << 10: "1.0 MiB",
		1 << 30: "1.0 GiB", 5 << 40: "5.0 TiB", 3 << 60: "3072 PiB"} {
		if got := formatSize(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
