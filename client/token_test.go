package client

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func callWith(environ []string, args ...string) (*call, error) {
	return newCall(Command{Name: "x"}, args, IO{Environ: append([]string{"PAGEWRIGHT_URL=http://localhost"}, environ...), Stderr: io.Discard})
}

func TestTokens(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n")
	c, err := callWith([]string{"PAGEWRIGHT_TOKEN_FILE=" + file})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"first", "second"} {
		write(want + "\n")
		if got, err := c.service.token(t.Context()); err != nil || got != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	write("")
	if _, err := c.service.token(t.Context()); err == nil || isTemporary(err) {
		t.Error(err)
	}
	if c, err := callWith([]string{"PAGEWRIGHT_TOKEN= t "}); err != nil {
		t.Error(err)
	} else if got, _ := c.service.token(t.Context()); got != "t" {
		t.Errorf("%q", got)
	}
	if c, err := callWith(nil); err != nil || c.service.token != nil {
		t.Error(err)
	}
	for _, environ := range [][]string{
		{"PAGEWRIGHT_TOKEN=secret", "PAGEWRIGHT_TOKEN_FILE=" + file},
		{"PAGEWRIGHT_TOKEN=secret secret"}, {"PAGEWRIGHT_TOKEN=secr\x00et"}, {"PAGEWRIGHT_TOKEN=secrét"}, {"PAGEWRIGHT_TOKEN= "}, {"PAGEWRIGHT_TOKEN=secret\nsecret\n"},
		{"PAGEWRIGHT_TOKEN_FILE=" + file + ".none"}, {"PAGEWRIGHT_TOKEN_FILE=" + file},
	} {
		_, err := callWith(environ)
		if err == nil || final(t.Context(), err).(*Error).Status != exitConfig || strings.Contains(err.Error(), "secr") {
			t.Errorf("%q: %v", environ, err)
		}
	}
}

// TestTokenFiles: a token file is a regular file of at most maxToken bytes, or a link to one.
func TestTokenFiles(t *testing.T) {
	dir := inDir(t)
	for name, text := range map[string]string{"token": "t\n", "full": "t" + strings.Repeat("\n", maxToken-1), "large": "t" + strings.Repeat("\n", maxToken), "two": "t\nu\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("token", "link"), syscall.Mkfifo("pipe", 0o600)); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"token": "", "link": "", "full": "",
		"large": "larger than 64 KiB", "pipe": "not a regular file", "/dev/zero": "not a regular file", dir: "not a regular file", "none": "no such file", "two": "more than one line",
	} {
		_, err := callWith([]string{"PAGEWRIGHT_TOKEN_FILE=" + file})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
}

// TestWarningAboutPlainHTTP: once, and only if a token would leave this host unencrypted.
func TestWarningAboutPlainHTTP(t *testing.T) {
	for _, c := range []struct {
		url, token string
		want       int
	}{
		{"http://store.test", "t", 1}, {"http://store.test", "", 0}, {"https://store.test", "t", 0},
		{"http://localhost:8080", "t", 0}, {"http://127.0.0.2", "t", 0}, {"http://[::1]:80", "t", 0}, {"http://192.0.2.1", "t", 1},
	} {
		var stderr strings.Builder
		if _, err := newCall(Command{}, []string{"--url", c.url, "-q"}, IO{Environ: []string{"PAGEWRIGHT_TOKEN=" + c.token}, Stderr: &stderr}); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(stderr.String(), "without encryption"); n != c.want {
			t.Errorf("%s: %q", c.url, stderr.String())
		}
	}
}
