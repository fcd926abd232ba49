package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// layers are the prefixes of file names, and for each the layers whose names its
// files may use. A file may always use its own layer. ARCHITECTURE.md explains them.
var layers = map[string]string{
	"main":        "config doctor verify prune copy access handlers server metrics nfs atomic disk object concurrency backend",
	"config":      "backend",
	"doctor":      "config backend",
	"verify":      "concurrency backend",
	"copy":        "concurrency backend",
	"prune":       "metrics concurrency backend",
	"handlers":    "access server config metrics concurrency backend",
	"access":      "concurrency backend",
	"server":      "config metrics concurrency backend",
	"nfs":         "atomic disk metrics concurrency backend",
	"atomic":      "disk metrics concurrency backend",
	"disk":        "atomic metrics concurrency backend",
	"object":      "config metrics concurrency backend",
	"concurrency": "backend",
	"metrics":     "backend",
	"backend":     "",
}

// imports says which files may import what is not for every file: a layer, or one file.
var imports = []struct {
	path  string // an import path, or the beginning of one with a / at the end
	files string
	why   string
}{
	{"github.com/valyala/", "main server handlers", "only the HTTP side knows fasthttp"},
	{"github.com/fasthttp/", "handlers.go", "only the table of routes knows the router"},
	{"github.com/goccy/", "handlers", "only the handlers write JSON responses"},
	{"github.com/go-json-experiment/", "handlers concurrency_file_json.go", "only the handlers parse what clients send, and one file what operators write"},
	{"github.com/golang-jwt/", "access_jwt.go", "JWTs are known to one file"},
	{"github.com/caarlos0/", "config", "only the configuration reads variables"},
	{"github.com/dustin/", "config", "only the configuration parses sizes"},
	{"github.com/dunglas/httpsfv", "handlers_digest.go", "only one file parses structured fields"},
	{"golang.org/x/time/", "verify copy", "only commands are throttled"},
	{"golang.org/x/sys/", "atomic disk nfs server concurrency_splice.go", "only these layers make system calls"},
	{"github.com/VictoriaMetrics/", "metrics server_metrics.go", "only one layer knows how metrics are kept"},
	{"github.com/KimMachineGun/", "main", "the memory limit of the container is set at the start"},
	{"net", "main server config object_net.go access_keys_http.go", "only the HTTP side opens sockets"},
	{"os/exec", "", "the service starts no other program"},
	{"net/http", "object main_profile.go access_keys_http.go", "the service is fasthttp; net/http is for the SDKs, the profiler and the keys of issuers"},
	{"github.com/aws/", "object_s3.go object_s3_checksum.go", "each SDK is known to one file, or two"},
	{"github.com/Azure/", "object_azure.go object_azure_sign.go", "each SDK is known to one file, or two"},
	{"cloud.google.com/", "object_gcs.go", "each SDK is known to one file"},
	{"github.com/googleapis/", "object_gcs.go", "each SDK is known to one file"},
	{"google.golang.org/", "object_gcs.go", "each SDK is known to one file"},
	{"pagewright/storage/client", "main config", "only the commands, and the list of variables that are not the service's, know the client"},
	{"github.com/spf13/", "", "only the client parses options with it"},
	{"github.com/schollz/", "", "only the client shows progress"},
	{"github.com/klauspost/", "", "only the client packs archives"},
	{"unsafe", "", "nothing here needs it"},
}

// sourceFile is a file of the package that is not a test.
type sourceFile struct {
	name string
	ast  *ast.File
	uses map[string][]string // names of other files that it uses, by file
}

func layerOf(file string) string {
	word, _, _ := strings.Cut(strings.TrimSuffix(file, ".go"), "_")
	return word
}

// sourceFiles parses the package and resolves which file uses which name of which
// file: functions, types, variables and constants of the package, and the fields and
// methods of its types as far as their types do not come from imports.
func sourceFiles(t *testing.T) []*sourceFile {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasSuffix(name, "_test.go") })
	sources := map[string]string{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sources[name] = string(text)
	}
	return resolve(t, sources)
}

// resolve is sourceFiles of sources given as text, by file name.
func resolve(t *testing.T, sources map[string]string) (files []*sourceFile) {
	t.Helper()
	fset := token.NewFileSet()
	var trees []*ast.File
	for _, name := range slices.Sorted(maps.Keys(sources)) {
		tree, err := parser.ParseFile(fset, name, sources[name], parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		trees = append(trees, tree)
		files = append(files, &sourceFile{name: name, ast: tree, uses: map[string][]string{}})
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	// Nothing is imported, so what depends on imports is an error, which does not matter.
	conf := types.Config{Error: func(error) {}, FakeImportC: true}
	pkg, _ := conf.Check("main", fset, trees, info)
	byName := map[string]*sourceFile{}
	for _, f := range files {
		byName[f.name] = f
	}
	for ident, object := range info.Uses {
		if object.Pkg() != pkg || !object.Pos().IsValid() {
			continue
		}
		user, owner := fset.File(ident.Pos()).Name(), fset.File(object.Pos()).Name()
		if f := byName[user]; user != owner && !slices.Contains(f.uses[owner], object.Name()) {
			f.uses[owner] = append(f.uses[owner], object.Name())
		}
	}
	return files
}

// forbiddenArrows returns a line for each file that uses names of a file of a layer
// that it may not use.
func forbiddenArrows(files []*sourceFile) (arrows []string) {
	for _, f := range files {
		layer := layerOf(f.name)
		for owner, names := range f.uses {
			if to := layerOf(owner); to != layer && !hasWord(layers[layer], to) {
				slices.Sort(names)
				arrows = append(arrows, fmt.Sprintf("%s may not use %s: %s", f.name, owner, strings.Join(names, ", ")))
			}
		}
	}
	slices.Sort(arrows)
	return arrows
}

// TestLayers fails for each file without a layer, and for each forbidden arrow.
func TestLayers(t *testing.T) {
	files := sourceFiles(t)
	for _, f := range files {
		if _, known := layers[layerOf(f.name)]; !known {
			t.Errorf("%s: its name does not begin with a layer of main_layers_test.go", f.name)
		}
	}
	for _, arrow := range forbiddenArrows(files) {
		t.Error(arrow)
	}
}

// TestForbiddenArrowsAreFound shows that forbiddenArrows sees each kind of name.
func TestForbiddenArrowsAreFound(t *testing.T) {
	const owner = `package main
		import "io"
		const size = 1
		var seen io.Reader
		type store struct{ base string }
		func open() *store { return nil }
		func (*store) close() {}`
	for _, c := range []struct{ what, use, want string }{
		{"nothing", `var x = 1`, ``},
		{"a constant", `var x = size`, `size`},
		{"a variable of an imported type", `var x = seen`, `seen`},
		{"a type", `var x *store`, `store`},
		{"a receiver", `func (s *store) read() {}`, `store`},
		{"a function", `var x = open`, `open`},
		{"a method", `func x() { open().close() }`, `close, open`},
		{"a field", `func x() string { return open().base }`, `base, open`},
		{"a function in a call of an import", `import "fmt"; func x() { fmt.Println(open()) }`, `open`},
		{"a local of the same name", `func x(open int) int { return open }`, ``},
	} {
		files := resolve(t, map[string]string{"nfs_store.go": owner, "server_use.go": "package main\n" + c.use})
		want := []string(nil)
		if c.want != "" {
			want = []string{"server_use.go may not use nfs_store.go: " + c.want}
		}
		if got := forbiddenArrows(files); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", c.what, got, want)
		}
	}
}

// TestImports fails for each file that imports what it may not.
func TestImports(t *testing.T) {
	for _, f := range sourceFiles(t) {
		for _, imp := range f.ast.Imports {
			path, _ := strconv.Unquote(imp.Path.Value)
			if layerOf(f.name) == "backend" && strings.Contains(strings.Split(path, "/")[0], ".") {
				t.Errorf("%s imports %s: the contract needs the standard library alone", f.name, path)
			}
			for _, rule := range imports {
				if matches := path == rule.path || strings.HasSuffix(rule.path, "/") && strings.HasPrefix(path, rule.path); !matches {
					continue
				}
				if !hasWord(rule.files, layerOf(f.name)) && !hasWord(rule.files, f.name) {
					t.Errorf("%s imports %s: %s", f.name, path, rule.why)
				}
			}
		}
	}
}

// TestOneDoorToTheDisk: only the layers atomic and disk create, link, rename or remove
// a file.
func TestOneDoorToTheDisk(t *testing.T) {
	for _, f := range sourceFiles(t) {
		if layer := layerOf(f.name); layer == "atomic" || layer == "disk" {
			continue
		}
		src, err := os.ReadFile(f.name)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range []string{"os.Create", "os.OpenFile", "os.WriteFile", "os.Mkdir", "os.Rename", "os.Remove", "os.Link",
			"os.Symlink", "os.Truncate", "unix.Rename", "unix.Link", "unix.Unlink", "unix.Mkdir", "O_CREAT", "O_TRUNC"} {
			if strings.Contains(string(src), call) {
				t.Errorf("%s uses %s: only atomic*.go and disk*.go change the file system", f.name, call)
			}
		}
	}
}

// TestFilesAreOnTheMap: ARCHITECTURE.md names each source file, and no other.
func TestFilesAreOnTheMap(t *testing.T) {
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	onMap := map[string]bool{}
	for _, word := range strings.FieldsFunc(string(text), func(r rune) bool { return !isFileRune(r) }) {
		if strings.HasSuffix(word, ".go") && !strings.HasSuffix(word, "_test.go") {
			onMap[word] = true
		}
	}
	files, _ := filepath.Glob("client/*.go")
	for _, f := range sourceFiles(t) {
		files = append(files, f.name)
	}
	for _, name := range files {
		if !onMap[name] && !strings.HasSuffix(name, "_test.go") {
			t.Errorf("%s is not in ARCHITECTURE.md", name)
		}
		delete(onMap, name)
	}
	for name := range onMap {
		t.Errorf("ARCHITECTURE.md names %s, which does not exist", name)
	}
}

func isFileRune(r rune) bool {
	return r == '_' || r == '.' || r == '/' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9'
}

// TestTestsAreNamedAfterTheirSource: a test file is called SOURCE_test.go, or
// SOURCE_WHAT_test.go where WHAT says which part or kind of test it is.
func TestTestsAreNamedAfterTheirSource(t *testing.T) {
	sources := map[string]bool{}
	for _, f := range sourceFiles(t) {
		sources[strings.TrimSuffix(f.name, ".go")] = true
	}
	tests, _ := filepath.Glob("*_test.go")
	for _, test := range tests {
		stem := strings.TrimSuffix(test, "_test.go")
		for !sources[stem] {
			i := strings.LastIndexByte(stem, '_')
			if i < 0 {
				t.Errorf("%s: no source file has a name that it begins with", test)
				break
			}
			stem = stem[:i]
		}
	}
}

// TestImageIsBuiltFromAllSources: .dockerignore lets through every file that the binary is built
// from. The last pattern that matches a file decides.
func TestImageIsBuiltFromAllSources(t *testing.T) {
	patterns, err := os.ReadFile(".dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	sent := func(file string) (yes bool) {
		for line := range strings.Lines(string(patterns)) {
			pattern, exception := strings.CutPrefix(strings.TrimSpace(line), "!")
			if ok, err := filepath.Match(pattern, file); err != nil {
				t.Fatal(err)
			} else if ok || pattern == "*" {
				yes = exception
			}
		}
		return yes
	}
	list := exec.Command("go", "list", "-deps", "-f", `{{with .Module}}{{if .Main}}{{range $.GoFiles}}{{$.Dir}}/{{.}}
{{end}}{{range $.EmbedFiles}}{{$.Dir}}/{{.}}
{{end}}{{end}}{{end}}`, ".")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	files := append(strings.Fields(string(out)), filepath.Join(here, "go.mod"), filepath.Join(here, "go.sum"))
	if len(files) < 100 {
		t.Fatalf("%d files", len(files))
	}
	for _, file := range files {
		if file, err := filepath.Rel(here, file); err != nil || !sent(file) {
			t.Errorf(".dockerignore keeps %s from the engine (%v)", file, err)
		}
	}
}

// TestArchitectureIsShort: the map is at most 125 lines.
func TestArchitectureIsShort(t *testing.T) {
	text, err := os.ReadFile("ARCHITECTURE.md")
	if lines := strings.Count(string(text), "\n"); err != nil || lines > 125 {
		t.Errorf("ARCHITECTURE.md has %d lines, want at most 125: %v", lines, err)
	}
}

func hasWord(list, word string) bool { return slices.Contains(strings.Fields(list), word) }
