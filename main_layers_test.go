package main

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// walls tells which files may import what is not for every file. A file that
// needs to go through a wall moves the wall here, on purpose.
var walls = []struct {
	what  string // import path, or the beginning of it with a / at the end
	files string
	why   string
}{
	{"github.com/valyala/", "main server handlers handlers_artifact_write handlers_artifact_read handlers_artifact_redirect handlers_logs handlers_versions_body handlers_response handlers_ready server_request handlers_metrics server_peers", "only the HTTP side knows fasthttp"},
	{"github.com/fasthttp/", "handlers", "only the table of routes knows the router"},
	{"github.com/goccy/", "handlers_response handlers_versions_json", "only the HTTP side writes its answers"},
	{"github.com/go-json-experiment/", "handlers_logs", "only the HTTP side reads what clients send"},
	{"github.com/caarlos0/", "config config_variables", "only the configuration reads variables"},
	{"github.com/dustin/", "config", "only the configuration reads sizes"},
	{"golang.org/x/sys/", "atomic disk nfs_check disk_clock disk_open nfs_list_names nfs_replace atomic_fill nfs_sweep nfs_lock nfs nfs_log nfs_list nfs_list_index nfs_list_scan nfs_mount server_conn server_listener concurrency_splice nfs_small disk_fsync", "system calls stay where they are explained"},
	{"github.com/VictoriaMetrics/", "metrics server_metrics", "one file knows how metrics are kept"},
	{"github.com/KimMachineGun/", "main", "limits of the container are the program's business"},
	{"net", "main server server_admin server_conn server_listener server_evict config object_net server_peers main_profile", "sockets are the HTTP side's"},
	{"os/exec", "", "the service starts no other program"},
	{"net/http", "object_net object_azure object_gcs object_gcs_read main_profile", "fasthttp is the one HTTP server; net/http is the SDKs' client, and the profiler's server"},
	{"github.com/aws/", "object_s3", "each SDK is known by its one file"},
	{"github.com/Azure/", "object_azure object_azure_sign", "each SDK is known by its one file, or two"},
	{"cloud.google.com/", "object_gcs", "each SDK is known by its one file"},
	{"github.com/googleapis/", "object_gcs", "each SDK is known by its one file"},
	{"google.golang.org/", "object_gcs", "each SDK is known by its one file"},
	{"unsafe", "", "nothing here is worth it"},
}

func TestWalls(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		noun := strings.TrimSuffix(file, ".go")
		for _, imp := range f.Imports {
			path, _ := strconv.Unquote(imp.Path.Value)
			if noun == "backend" && strings.Contains(strings.Split(path, "/")[0], ".") {
				t.Errorf("backend.go imports %s: the contract needs the standard library alone", path)
			}
			for _, w := range walls {
				through := path == w.what || strings.HasSuffix(w.what, "/") && strings.HasPrefix(path, w.what)
				if through && !contains(w.files, noun) {
					t.Errorf("%s imports %s: %s", file, path, w.why)
				}
			}
		}
	}
}

// TestOneDoorToTheDisk: nothing but atomic.go and disk.go creates, links,
// renames or removes a file.
func TestOneDoorToTheDisk(t *testing.T) {
	files, _ := filepath.Glob("*.go")
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || file == "atomic.go" || file == "disk.go" {
			continue
		}
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range []string{"os.Create", "os.OpenFile", "os.WriteFile", "os.Mkdir", "os.Rename", "os.Remove", "os.Link",
			"os.Symlink", "os.Truncate", "unix.Rename", "unix.Link", "unix.Unlink", "unix.Mkdir", "O_CREAT", "O_TRUNC"} {
			if strings.Contains(string(src), call) {
				t.Errorf("%s uses %s: only atomic.go and disk.go change the file system", file, call)
			}
		}
	}
}

func contains(list, word string) bool { return strings.Contains(" "+list+" ", " "+word+" ") }
