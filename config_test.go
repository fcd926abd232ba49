package main

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestConfigDefaults(t *testing.T) {
	c, err := parseConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Port != 8080 || c.StorageBackend != "nfs" || c.NFSBasePath != "/nfs" || c.StallTimeout != 30*time.Second ||
		c.TempMaxAge != 24*time.Hour || c.AppendOnly || c.NFSRequireMount || c.MaxArtifactSize != 0 {
		t.Errorf("defaults: %+v", c)
	}
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]byteSize{
		"0": 0, "1048576": 1 << 20, "500MB": 500e6, "500 MB": 500e6, "20GiB": 20 << 30, "1.5GiB": 3 << 29, "5gb": 5e9,
	} {
		var b byteSize
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%q is %d, %v; want %d", text, b, err, want)
		}
	}
	for _, text := range []string{"", "big", "-1", "1XB", "99999999999GiB", "1e400"} {
		if err := new(byteSize).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// TestReadmeTable: the README has a row for every variable, with its default
// and its meaning, and none for a variable that there is not.
func TestReadmeTable(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(readme)) {
		if name, rest, ok := strings.Cut(strings.TrimPrefix(line, "| `"+envPrefix), "`"); ok && strings.HasPrefix(line, "| `"+envPrefix) {
			rows[envPrefix+name] = strings.TrimSpace(rest)
		}
	}
	for _, v := range (&Config{}).variables() {
		def := "`" + v.defaultValue + "`"
		if v.defaultValue == "" {
			def = ""
		}
		want := "| " + strings.TrimSpace(def+" | "+v.help+" |")
		if got := rows[v.name]; got != want {
			t.Errorf("the row of %s is\n%s\nwant\n%s", v.name, got, want)
		}
		delete(rows, v.name)
	}
	for name := range rows {
		t.Errorf("the README has a row for %s, which there is not", name)
	}
}
