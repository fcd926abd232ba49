package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// printed returns what config prints with vars, by line.
func printed(t *testing.T, environ ...string) []string {
	t.Helper()
	cfg, foreign, err := parseConfig(environ)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := cfg.print(&out, environ, foreign); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
}

// TestConfigPrintsEverySetting in the order of -h, and says which are not set. What it
// prints without these has the same effect as what was set.
func TestConfigPrintsEverySetting(t *testing.T) {
	environ := []string{"PAGEWRIGHT_LISTEN=::1", "PAGEWRIGHT_PORT=tcp://10.0.0.1:80", "PAGEWRIGHT_LOG_LEVEL=", "PAGEWRIGHT_APPEND_ONLY=true",
		"PAGEWRIGHT_BUILD_CACHE_CONTROL=public, max-age=60", "PAGEWRIGHT_MANAGER_URL=http://user:secret@host", "OTHER=1"}
	lines := printed(t, environ...)
	var names, set []string
	for _, line := range lines {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, _, _ := strings.Cut(line, "=")
		names = append(names, name)
		if !strings.HasSuffix(line, "  # default") {
			set = append(set, line)
		}
	}
	var want []string
	for _, v := range (&Config{}).variables() {
		want = append(want, v.name)
	}
	if !slices.Equal(names, want) {
		t.Errorf("variables are %v, want %v", names, want)
	}
	if want := []string{environ[0], environ[3], environ[4]}; !slices.Equal(set, want) {
		t.Errorf("set are %q, want %q", set, want)
	}
	for _, want := range []string{"PAGEWRIGHT_PORT=8080  # default", "PAGEWRIGHT_LOG_LEVEL=info  # default", "# " + foreignVariables([]string{"PAGEWRIGHT_MANAGER_URL"})} {
		if !slices.Contains(lines, want) {
			t.Errorf("there is no line %q in %q", want, lines)
		}
	}
	if out := strings.Join(lines, "\n"); strings.Contains(out, "secret") || !strings.Contains(lines[0], version) {
		t.Error(out)
	}
}

// TestConfigRedacts: config hides what may be a secret, and says which variables of the SDK are set.
func TestConfigRedacts(t *testing.T) {
	for _, c := range []struct {
		environ []string
		want    string
	}{
		{[]string{"PAGEWRIGHT_STORAGE_BACKEND=s3", "PAGEWRIGHT_S3_ENDPOINT=https://user:secret@host:9000/path?key=secret", "AWS_SECRET_ACCESS_KEY=secret", "AWS_REGION=secret", "AWS_PROFILE="},
			"PAGEWRIGHT_S3_ENDPOINT=https://REDACTED@host:9000/path?REDACTED\n# variables of the s3 SDK that are set: AWS_REGION, AWS_SECRET_ACCESS_KEY"},
		{[]string{"PAGEWRIGHT_STORAGE_BACKEND=azure", "PAGEWRIGHT_AZURE_ACCOUNT_URL=https://a.example?sig=secret", "AZURE_STORAGE_CONNECTION_STRING=secret"},
			"PAGEWRIGHT_AZURE_ACCOUNT_URL=https://a.example?REDACTED\n# variables of the azure SDK that are set: AZURE_STORAGE_CONNECTION_STRING"},
		{[]string{"PAGEWRIGHT_STORAGE_BACKEND=gcs", "PAGEWRIGHT_GCS_PREFIX=a\x1b[2J"},
			"PAGEWRIGHT_GCS_PREFIX=\"a\\x1b[2J\"\n# variables of the gcs SDK that are set: none"},
	} {
		lines := printed(t, c.environ...)
		out := strings.Join(lines, "\n")
		for want := range strings.SplitSeq(c.want, "\n") {
			if !slices.Contains(lines, want) {
				t.Errorf("there is no line %q:\n%s", want, out)
			}
		}
		if strings.Contains(out, "secret") {
			t.Errorf("a secret:\n%s", out)
		}
	}
}

func TestRedactURL(t *testing.T) {
	for url, want := range map[string]string{
		"":                               "",
		"http://host:9000/a":             "http://host:9000/a",
		"https://user:secret@host":       "https://REDACTED@host",
		"https://user:sec/r@e?t#@host/a": "https://REDACTED@host/a",
		"user:secret@host":               "REDACTED@host",
		"https://host?sig=secret":        "https://host?REDACTED",
		"https://host/a?b=c#secret":      "https://host/a?REDACTED",
		"https://host/#secret":           "https://host/#REDACTED",
		"https://host?a=secret@b":        "https://REDACTED@b",
	} {
		if got := redactURL(url); got != want {
			t.Errorf("%q is %q, want %q", url, got, want)
		}
	}
}

// TestConfigChecksTheStore: config checks the settings of the store as the start does, after
// it has printed the settings.
func TestConfigChecksTheStore(t *testing.T) {
	for _, c := range []struct {
		vars []string
		want string
	}{
		{nil, ""},
		{[]string{"STORAGE_BACKEND=s3"}, "PAGEWRIGHT_S3_BUCKET"},
		{[]string{"STORAGE_BACKEND=s3", "S3_BUCKET=b", "S3_ENDPOINT=https://"}, "PAGEWRIGHT_S3_ENDPOINT"},
		{[]string{"STORAGE_BACKEND=s3", "S3_BUCKET=b", "S3_ENDPOINT=user:secret@host"}, `PAGEWRIGHT_S3_ENDPOINT="REDACTED@host"`},
		{[]string{"STORAGE_BACKEND=s3", "S3_BUCKET=b", "UPLOAD_MEMORY=1MiB"}, "PAGEWRIGHT_UPLOAD_MEMORY"},
		{[]string{"STORAGE_BACKEND=azure", "AZURE_CONTAINER=c", "AZURE_ACCOUNT_URL=https://a", "UPLOAD_MEMORY=1MiB"}, "PAGEWRIGHT_UPLOAD_MEMORY"},
		{[]string{"STORAGE_BACKEND=azure"}, "PAGEWRIGHT_AZURE_CONTAINER"},
		{[]string{"STORAGE_BACKEND=gcs"}, "PAGEWRIGHT_GCS_BUCKET"},
		{[]string{"STORAGE_BACKEND=gcs", "GCS_BUCKET=b"}, ""},
	} {
		out, err := runWith([]string{"config"}, c.vars...)
		if !strings.Contains(out, "PAGEWRIGHT_STORAGE_BACKEND=") {
			t.Errorf("%v: the settings are not printed: %q", c.vars, out)
		}
		switch {
		case (err == nil) != (c.want == ""), err != nil && !strings.Contains(err.Error(), c.want), err != nil && exitStatus(err) != exitConfig:
			t.Errorf("%v: %v, want %q", c.vars, err, c.want)
		}
	}
}

// TestStoreAttrs: the start line names the store, without secrets.
func TestStoreAttrs(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{StorageBackend: "nfs", NFSBasePath: "/srv/a"}, "backend nfs path /srv/a max_artifact_size 0 max_uploads 0 max_conns_per_ip 0 min_free_space 0"},
		{Config{StorageBackend: "s3", UploadMemory: 5, S3: s3Config{Bucket: "b", Endpoint: "http://u:secret@h", Region: "r", Prefix: "p"}},
			"backend s3 bucket b endpoint http://REDACTED@h region r prefix p max_artifact_size 0 max_uploads 0 max_conns_per_ip 0 upload_memory 5"},
		{Config{StorageBackend: "azure", Azure: azureConfig{Container: "c", AccountURL: "https://a?sig=secret"}},
			"backend azure container c endpoint https://a?REDACTED max_artifact_size 0 max_uploads 0 max_conns_per_ip 0 upload_memory 0"},
		{Config{StorageBackend: "gcs", GCS: gcsConfig{Bucket: "b", Prefix: "p"}},
			"backend gcs bucket b prefix p max_artifact_size 0 max_uploads 0 max_conns_per_ip 0 upload_memory 0"},
	} {
		got := strings.Trim(fmt.Sprint(append(c.cfg.storeAttrs(), c.cfg.limitAttrs()...)), "[]")
		if got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
