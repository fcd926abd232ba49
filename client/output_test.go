package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		"shop/v1 größer 世界 \\ \"": "shop/v1 größer 世界 \\ \"",
		"a\x1b[2J\tb\n":           `a\x1b[2J\tb\n`,
		"\x00\x7f\u009b":          `\x00\x7f\u009b`,
		"a\u202eb\ufeff":          `a\u202eb\ufeff`,
		"\xff\ufffd":              `\xff` + "\ufffd",
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	var out strings.Builder
	list := table{}
	list.row("NAME", "SIZE", "BY")
	list.row("größe", formatSize(0), "")
	list.row("a\tb", formatSize(5<<30), "x\ny")
	if err := list.print(&out); err != nil {
		t.Fatal(err)
	}
	const want = "NAME   SIZE     BY\ngröße  0 B      -\na\\tb   5.0 GiB  x\\ny\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestFormatTime(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 999, time.FixedZone("", 3600))
	if got := formatTime(at); got != "2026-01-02T02:04:05Z" {
		t.Error(got)
	}
	if got := formatTime(time.Time{}); got != "" {
		t.Error(got)
	}
}

// TestClosedOutput runs itself again with a pipe that nobody reads as standard output, and error.
func TestClosedOutput(t *testing.T) {
	if args := os.Getenv("TEST_ARGS"); args != "" {
		words := strings.Split(args, " ")
		err := Run(context.Background(), words[0], words[1:], IO{Environ: os.Environ(), Stdout: os.Stdout, Stderr: os.Stderr})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitFailure)
		}
		os.Exit(0)
	}
	b := randomBuild(300_000, `"v1"`)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sites" {
			io.WriteString(w, `{"sites":[{"site_id":"shop"}]}`)
			return
		}
		b.serve(w, r)
	}))
	defer server.Close()
	for _, args := range []string{"sites", "sites --json", "pull shop v1 -o -", "pull shop v1 -o out"} {
		reader, writer, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		reader.Close()
		cmd := exec.Command(os.Args[0], "-test.run=^TestClosedOutput$")
		cmd.Dir, cmd.Stdout, cmd.Stderr = t.TempDir(), writer, writer
		cmd.Env = append(os.Environ(), "TEST_ARGS="+args, "PAGEWRIGHT_URL="+server.URL)
		err = cmd.Run()
		writer.Close()
		if cmd.ProcessState.ExitCode() != exitFailure {
			t.Errorf("%s: %v", args, err)
		}
	}
}
