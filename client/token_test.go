package client

import (
	"io"
	"os"
	"path/filepath"
	"strings"
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
		{"PAGEWRIGHT_TOKEN=secret secret"}, {"PAGEWRIGHT_TOKEN=secr\x00et"}, {"PAGEWRIGHT_TOKEN=secrét"}, {"PAGEWRIGHT_TOKEN= "},
		{"PAGEWRIGHT_TOKEN_FILE=" + file + ".none"}, {"PAGEWRIGHT_TOKEN_FILE=" + file},
	} {
		_, err := callWith(environ)
		if err == nil || final(t.Context(), err).(*Error).Status != exitUsage || strings.Contains(err.Error(), "secr") {
			t.Errorf("%q: %v", environ, err)
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
