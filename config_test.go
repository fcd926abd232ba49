package main

import (
	"flag"
	"log/slog"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestConfigDefaults(t *testing.T) {
	c, _, err := parseConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	got := *c
	// Those of the object stores are left out of some builds; docs/configuration.md has them.
	got.S3, got.Azure, got.GCS = s3Config{}, azureConfig{}, gcsConfig{}
	want := Config{
		Listen: "", Port: 8080, StorageBackend: "nfs",
		NFSBasePath: "/nfs", NFSRequireMount: false, TempMaxAge: 24 * time.Hour,
		AppendOnly: false, BuildCacheControl: "", Digest: "client", RequireDigest: false,
		MinFreeSpace: 32 << 20, DownloadRedirect: false,
		MaxArtifactSize: 0, MaxUploads: 512, UploadMemory: 256 << 20, MaxConnsPerIP: 0,
		TLS: tlsConfig{Min: "1.2"}, StallTimeout: 30 * time.Second, MinUploadRate: 1 << 10, HeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
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

func TestIsCacheControl(t *testing.T) {
	for _, s := range []string{"no-cache", "public, max-age=31536000, immutable", " public\t,max-age=60 ", `private="set-cookie, x", no-transform`} {
		if !isCacheControl(s) {
			t.Errorf("%q was not taken", s)
		}
	}
	for _, s := range []string{"", " ", ",", "public,", "max-age 60", "max-age=", "public\n", "public\x00", "püblic", `private="x`, `private="\`, "Cache-Control: public"} {
		if isCacheControl(s) {
			t.Errorf("%q was taken", s)
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

var update = flag.Bool("update", false, "write the tables of variables into docs/configuration.md")

// TestVariableTables: each variable is in one table of docs/configuration.md, which has what
// -h prints. A comment before each table names its variables, without the prefix. go test
// -run TestVariableTables -update writes the tables.
func TestVariableTables(t *testing.T) {
	const page = "docs/configuration.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, v := range (&Config{}).variables() {
		def := v.defaultValue
		if def != "" {
			def = "`" + def + "`"
		}
		rows[strings.TrimPrefix(v.name, envPrefix)] = "| `" + v.name + "` | " + def + " | " + v.help + " |\n"
	}
	table := regexp.MustCompile(`(?s)(<!-- variables: ([A-Z0-9_ ]+) -->\n)(.*?)(<!-- end of variables -->\n)`)
	want := table.ReplaceAllStringFunc(string(text), func(old string) string {
		m := table.FindStringSubmatch(old)
		lines := "| variable | default | meaning |\n|---|---|---|\n"
		for _, name := range strings.Fields(m[2]) {
			if rows[name] == "" {
				t.Errorf("%s: %s%s does not exist, or is in two tables", page, envPrefix, name)
			}
			lines += rows[name]
			delete(rows, name)
		}
		return m[1] + lines + m[4]
	})
	for name := range rows {
		t.Errorf("%s: %s%s is in no table: add %s to a comment <!-- variables: ... -->", page, envPrefix, name, name)
	}
	if want == string(text) {
		return
	}
	if !*update {
		t.Fatal("the tables of variables are not those of Config: go test -run TestVariableTables -update . writes them")
	}
	if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// An unknown variable stops the start if it is probably meant for the service. That of
// another program is a warning, and what Kubernetes makes for a Service is nothing.
func TestUnknownVariables(t *testing.T) {
	f := func(name, value, foreign, nearest string) {
		t.Helper()
		c, others, err := parseConfig([]string{envPrefix + name + "=" + value, "OTHER_PROT=1"})
		if nearest != "" {
			want := envPrefix + name + " (did you mean " + envPrefix + nearest + "?)"
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), value) {
				t.Errorf("%s: %v, want %q and no value", name, err, want)
			}
			return
		}
		if err != nil || strings.Join(others, " ") != foreign {
			t.Errorf("%s=%s: foreign are %q, want %q; %v", name, value, others, foreign, err)
		} else if c.Port != 8080 {
			t.Errorf("%s=%s: the port is %d", name, value, c.Port)
		}
	}
	ours := func(name, nearest string) { t.Helper(); f(name, "secret", "", nearest) }
	others := func(name string) { t.Helper(); f(name, "secret", envPrefix+name, "") }
	link := func(name, value string) { t.Helper(); f(name, value, "", "") }

	// Misspelt: a letter less, more or other, two letters swapped, and two of these.
	ours("PRT", "PORT")
	ours("PORTS", "PORT")
	ours("POST", "PORT")
	ours("PROT", "PORT")
	ours("LISTNE", "LISTEN")
	ours("LISENT", "LISTEN")
	ours("STORAGE_BAKCNED", "STORAGE_BACKEND")
	ours("NFS_BASEPATH", "NFS_BASE_PATH")
	ours("LOGLEVLE", "LOG_LEVEL")
	ours("APPENDONLY", "APPEND_ONLY")
	ours("Port", "PORT")
	// In a group of ours.
	ours("NFS_MOUNT_TIMEOUT", "NFS_REQUIRE_MOUNT")
	ours("MAX_CONNECTIONS_PER_ADDRESS", "MAX_CONNS_PER_IP")
	ours("ADMIN_PASSWORD", "ADMIN_LISTEN")
	ours("MIN_SPACE", "MIN_FREE_SPACE")
	ours("ACCESS_LOG_FORMAT", "ACCESS_LOG_SAMPLE")
	for _, group := range ourGroups {
		_, _, err := parseConfig([]string{envPrefix + group + "SOMETHING_ELSE_ENTIRELY=1"})
		known := slices.ContainsFunc((&Config{}).variables(), func(v variable) bool { return strings.HasPrefix(v.name, envPrefix+group) })
		if err == nil || strings.Contains(err.Error(), "did you mean "+envPrefix+group) != known || strings.Contains(err.Error(), "did you mean") != known {
			t.Errorf("%s: %v", group, err)
		}
	}
	if _, _, err := parseConfig([]string{envPrefix + "=1"}); err == nil || err.Error() != "unknown variable PAGEWRIGHT_; run with -h to list all variables" {
		t.Errorf("without a name: %v", err)
	}

	others("MANAGER_URL")
	others("MANAGER_S3_BUCKET")
	others("STORAGE_URL")
	others("STORAGE_PORT") // not with the value of a link
	others("HOST")         // two letters of four are others
	others("ENV")
	others("LOG_DIRECTORY")

	// Of Services called pagewright, pagewright-storage, pagewright-nfs and pagewright-max-x.
	for _, service := range []string{"", "STORAGE_", "NFS_", "MAX_X_"} {
		link(service+"SERVICE_HOST", "10.0.0.1")
		link(service+"SERVICE_HOST", "fd00::1")
		link(service+"SERVICE_PORT", "80")
		link(service+"SERVICE_PORT_HTTP_API", "80")
		link(service+"PORT", "tcp://10.0.0.1:80")
		link(service+"PORT", "udp://[fd00::1]:80")
		for _, protocol := range []string{"TCP", "UDP", "SCTP"} {
			port := service + "PORT_80_" + protocol
			link(port, strings.ToLower(protocol)+"://10.0.0.1:80")
			link(port+"_PROTO", strings.ToLower(protocol))
			link(port+"_PORT", "80")
			link(port+"_ADDR", "10.0.0.1")
		}
	}
	// Of the form, with another value.
	ours("NFS_PORT", "NFS_BASE_PATH")
	ours("MAX_X_SERVICE_HOST", "MAX_ARTIFACT_SIZE")
	others("STORAGE_SERVICE_HOST")
	others("STORAGE_PORT_80_TCP")
}

// Names of foreign variables are in the service log and in the report of doctor, their
// values are not.
func TestForeignVariablesAreNamed(t *testing.T) {
	vars := []string{"MANAGER_URL=http://user:secret@host", "WEB_PORT=tcp://10.0.0.1:80", "EDITOR_KEY=secret"}
	const want = "PAGEWRIGHT_EDITOR_KEY, PAGEWRIGHT_MANAGER_URL"
	s := startServer(t, vars...)
	warned := 0
	for line := range strings.Lines(s.log.String()) {
		if strings.Contains(line, `"level":"WARN"`) && strings.Contains(line, want) {
			warned++
		}
	}
	if warned != 1 || strings.Contains(s.log.String(), "secret") || strings.Contains(s.log.String(), "WEB_PORT") {
		t.Errorf("%d lines name them:\n%s", warned, s.log)
	}
	environ := []string{envPrefix + "NFS_BASE_PATH=" + t.TempDir()}
	for _, v := range vars {
		environ = append(environ, envPrefix+v)
	}
	out, err := runDoctor(environ...)
	if err != nil || !strings.Contains(out, "warn variables: ") || !strings.Contains(out, want) || strings.Contains(out, "secret") || strings.Contains(out, "WEB_PORT") {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	_, port, _ := strings.Cut(s.addr, ":")
	eventually(t, "the service is healthy", func() bool {
		out, err = runWith([]string{"healthcheck"}, append(vars, "PORT="+port)...)
		return err == nil
	})
	if out != "" {
		t.Errorf("healthcheck says %q", out)
	}
}

// A namespace with many Services has thousands of variables, and healthcheck reads them
// each time.
func TestVariablesOfOthersCostNothing(t *testing.T) {
	if n := testing.AllocsPerRun(10, func() { isServiceLink("APP_SERVICE_HOST", "10.0.0.1") }); n > 0 {
		t.Errorf("%v allocations for a variable without the prefix", n)
	}
}
