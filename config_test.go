package main

import (
	"flag"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestConfigDefaults(t *testing.T) {
	c, err := parseConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	got := *c
	// Those of the object stores are left out of some builds; the README has them.
	got.S3, got.Azure, got.GCS = s3Config{}, azureConfig{}, gcsConfig{}
	want := Config{
		Listen: "", Port: 8080, StorageBackend: "nfs",
		NFSBasePath: "/nfs", NFSRequireMount: false, TempMaxAge: 24 * time.Hour,
		AppendOnly:   false,
		MinFreeSpace: 32 << 20, DownloadRedirect: false,
		MaxArtifactSize: 0, MaxUploads: 512, UploadMemory: 256 << 20, MaxConnsPerIP: 0,
		StallTimeout: 30 * time.Second, MinUploadRate: 1 << 10, HeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ShutdownDelay: 0, ShutdownGrace: 25 * time.Second,
		LogLevel: slog.LevelInfo, LogFormat: "json", AccessLog: true, AccessLogSample: 1,
		PprofListen: "",
	}
	gotValue, wantValue := reflect.ValueOf(got), reflect.ValueOf(want)
	for i := range gotValue.NumField() {
		name := gotValue.Type().Field(i).Name
		if g, w := gotValue.Field(i).Interface(), wantValue.Field(i).Interface(); !reflect.DeepEqual(g, w) {
			t.Errorf("%s is %v by default, not %v", name, g, w)
		}
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
	for _, text := range []string{"", "big", "-1", "1XB", "99999999999GiB", "1e400", "5EiB", "10EiB"} {
		if err := new(byteSize).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

var update = flag.Bool("update", false, "write the table of variables into README.md")

// TestReadmeTable: the README's table is that of the struct. go test -run
// TestReadmeTable -update writes it.
func TestReadmeTable(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- variables -->\n", "<!-- end of variables -->\n"
	before, rest, ok := strings.Cut(string(readme), begin)
	table, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("README.md lacks %q or %q", begin, end)
	}
	want := "| variable | default | meaning |\n|---|---|---|\n"
	for _, v := range (&Config{}).variables() {
		def := v.defaultValue
		if def != "" {
			def = "`" + def + "`"
		}
		want += "| `" + v.name + "` | " + def + " | " + v.help + " |\n"
	}
	if table == want {
		return
	}
	if !*update {
		t.Fatal("the table of variables is not that of Config: go test -run TestReadmeTable -update . writes it")
	}
	if err := os.WriteFile("README.md", []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
