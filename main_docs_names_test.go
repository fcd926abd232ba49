package main

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"

	"pagewright/storage/client"
)

// What the pages name exists: variables, metrics, statuses, routes, commands, targets of
// the Makefile and files.

// docPages returns the pages for users and contributors, by name. The changelog is not among
// them: it names what was.
func docPages(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("docs/*.md")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	return readPages(t, append(names, "README.md", "SECURITY.md", "CONTRIBUTING.md", "openapi.yaml"))
}

// deployFiles returns the files of deploy, and those for Docker, by name.
func deployFiles(t *testing.T) map[string]string {
	t.Helper()
	var names []string
	for _, pattern := range []string{"deploy/*", "deploy/*/*", "deploy/*/*/*", "deploy/*/*/*/*", "compose*.yaml", "Dockerfile", "Makefile"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range found {
			if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
				names = append(names, name)
			}
		}
	}
	if len(names) < 5 {
		t.Fatal("only these: ", names)
	}
	return readPages(t, names)
}

func readPages(t *testing.T, names []string) map[string]string {
	t.Helper()
	pages := map[string]string{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		pages[name] = string(text)
	}
	return pages
}

// eachMatch calls f for each match of pattern in pages, with the first group of the match,
// or all of it if pattern has no group. There must be some.
func eachMatch(t *testing.T, pages map[string]string, pattern string, f func(page, found string)) {
	t.Helper()
	expr, total := regexp.MustCompile(pattern), 0
	for _, page := range slices.Sorted(maps.Keys(pages)) {
		for _, m := range expr.FindAllStringSubmatch(pages[page], -1) {
			total++
			f(page, m[len(m)-1])
		}
	}
	if total == 0 {
		t.Errorf("nothing matches %s", pattern)
	}
}

// otherVariables are not the service's. Why they are named is on the right.
var otherVariables = map[string]string{
	"PAGEWRIGHT_STORAGE_PORT":  "Kubernetes makes it",
	"PAGEWRIGHT_PUBLISH":       "of the compose files",
	"PAGEWRIGHT_PUBLISH_ADMIN": "of the compose files",
	"PAGEWRIGHT_VOLUME":        "of the compose files",
	"PAGEWRIGHT_ACCESS_DIR":    "of the compose files",
	"PAGEWRIGHT_RETENTION_DIR": "of the compose files",
	"PAGEWRIGHT_NFS_ADDRESS":   "of the compose files",
	"PAGEWRIGHT_NFS_SUBNET":    "of the compose files",
}

func TestVariablesInTheDocs(t *testing.T) {
	known := map[string]bool{}
	for _, v := range (&Config{}).variables() {
		known[v.name] = true
	}
	for _, v := range client.Variables {
		known[v.Name] = true
	}
	for _, group := range ourGroups {
		known[envPrefix+group] = true
	}
	pages := docPages(t)
	maps.Copy(pages, deployFiles(t))
	eachMatch(t, pages, `\bPAGEWRIGHT_[A-Z0-9_]+`, func(page, name string) {
		if !known[name] && otherVariables[name] == "" {
			t.Errorf("%s names %s, which does not exist", page, name)
		}
	})
}

// metricNames returns the names in what /metrics serves, and in the textfile of verify.
func metricNames(t *testing.T) map[string]bool {
	t.Helper()
	// With everything that has metrics of its own.
	access := filepath.Join(t.TempDir(), "access.json")
	switchFile(t, access, []byte(`{"tokens":[{"name":"t","sha256":["`+hashA+`"],"allow":["read"],"sites":["s"],"expires":"2100-01-01T00:00:00Z"}],
		"oidc":[{"name":"i","issuer":"http://127.0.0.1:1","audience":["a"],"rules":[{"claims":{"sub":["x"]},"allow":["read"],"sites":["s"]}]}],
		"anonymous":[{"allow":["read","admin"],"sites":["*"]}]}`))
	s, _, _ := startTLS(t, "ACCESS_FILE="+access, "PRUNE_INTERVAL=1h", "RETENTION_FILE="+retentionFileOf(t, keepTwo))
	s.do(t, 404, request{method: "GET", path: "/sites/shop/artifacts/none"}) // makes the first series of some metrics
	names := verifyMetrics()
	for line := range strings.Lines(string(s.do(t, 200, request{method: "GET", path: "/metrics"}).body)) {
		if name := regexp.MustCompile(`^[a-z][a-z0-9_]*`).FindString(line); name != "" {
			names[name] = true
		}
	}
	return names
}

var histogramSuffix = regexp.MustCompile(`_(bucket|count|sum)$`)

func TestMetricsInTheDocs(t *testing.T) {
	served := metricNames(t)
	known := func(name string) bool {
		if prefix := strings.HasSuffix(name, "_"); prefix { // as in pagewright_budget_*
			return slices.ContainsFunc(slices.Collect(maps.Keys(served)), func(s string) bool { return strings.HasPrefix(s, name) })
		}
		return served[name] || served[name+"_bucket"]
	}
	pages := docPages(t)
	for name, text := range deployFiles(t) {
		if strings.HasPrefix(name, "deploy/monitoring/") && !strings.Contains(name, "test") {
			pages[name] = text
		}
	}
	eachMatch(t, pages, `\bpagewright_[a-z0-9_]+`, func(page, name string) {
		if !known(name) {
			t.Errorf("%s names the metric %s, which /metrics does not serve", page, name)
		}
	})
	const table = "docs/operations.md"
	for name := range served {
		if base := histogramSuffix.ReplaceAllString(name, ""); strings.HasPrefix(name, "pagewright_") && !regexp.MustCompile(`\b`+base+`\b`).MatchString(pages[table]) {
			t.Errorf("%s does not name the metric %s", table, base)
		}
	}
}

// statusNames are the statuses that the source may name.
var statusNames = map[string]int{
	"OK":                           fasthttp.StatusOK,
	"Continue":                     fasthttp.StatusContinue,
	"Created":                      fasthttp.StatusCreated,
	"NoContent":                    fasthttp.StatusNoContent,
	"Unauthorized":                 fasthttp.StatusUnauthorized,
	"PartialContent":               fasthttp.StatusPartialContent,
	"NotModified":                  fasthttp.StatusNotModified,
	"TemporaryRedirect":            fasthttp.StatusTemporaryRedirect,
	"BadRequest":                   fasthttp.StatusBadRequest,
	"Forbidden":                    fasthttp.StatusForbidden,
	"NotFound":                     fasthttp.StatusNotFound,
	"MethodNotAllowed":             fasthttp.StatusMethodNotAllowed,
	"RequestTimeout":               fasthttp.StatusRequestTimeout,
	"Conflict":                     fasthttp.StatusConflict,
	"PreconditionFailed":           fasthttp.StatusPreconditionFailed,
	"RequestEntityTooLarge":        fasthttp.StatusRequestEntityTooLarge,
	"UnsupportedMediaType":         fasthttp.StatusUnsupportedMediaType,
	"RequestedRangeNotSatisfiable": fasthttp.StatusRequestedRangeNotSatisfiable,
	"TooManyRequests":              fasthttp.StatusTooManyRequests,
	"RequestHeaderFieldsTooLarge":  fasthttp.StatusRequestHeaderFieldsTooLarge,
	"InternalServerError":          fasthttp.StatusInternalServerError,
	"ServiceUnavailable":           fasthttp.StatusServiceUnavailable,
	"HTTPVersionNotSupported":      fasthttp.StatusHTTPVersionNotSupported,
	"InsufficientStorage":          fasthttp.StatusInsufficientStorage,
}

// sentStatuses returns the statuses that the source names, and those of the table of errors.
func sentStatuses(t *testing.T) map[int]bool {
	t.Helper()
	sent := map[int]bool{}
	for _, c := range errorClasses {
		sent[c.status] = true
	}
	sources := map[string]string{}
	for _, f := range sourceFiles(t) {
		maps.Copy(sources, readPages(t, []string{f.name}))
	}
	eachMatch(t, sources, `\bfasthttp\.Status([A-Z][a-z]\w*|OK|HTTP\w*)`, func(page, name string) {
		switch status, ok := statusNames[name]; {
		case name == "Message":
		case !ok:
			t.Errorf("%s sends Status%s: add it to statusNames", page, name)
		case status != fasthttp.StatusContinue:
			sent[status] = true
		}
	})
	return sent
}

// TestStatusesInTheDocs: the table of docs/http-api.md has each status that the service
// sends, and no other. The other pages and openapi.yaml name no status that it lacks.
func TestStatusesInTheDocs(t *testing.T) {
	const page = "docs/http-api.md"
	pages, sent, inTable := docPages(t), sentStatuses(t), map[int]bool{}
	_, table, _ := strings.Cut(pages[page], "\n## Statuses\n")
	table, _, _ = strings.Cut(table, "\n# ")
	eachMatch(t, map[string]string{page: table}, `(?m)^\| ([1-5]\d\d[\d, ]*) \|`, func(_, list string) {
		for one := range strings.SplitSeq(list, ", ") {
			status, _ := strconv.Atoi(one)
			if inTable[status] = true; !sent[status] {
				t.Errorf("%s: the service never sends %s", page, one)
			}
		}
	})
	for status := range sent {
		if !inTable[status] {
			t.Errorf("%s: the table lacks %d", page, status)
		}
	}
	// A number from 300 to 599 is a status if no unit or noun follows it.
	eachMatch(t, pages, `[\s("|]([3-5]\d\d)(?:[,.;:)"]|\s(?:\W|a|and|or|in|if|is|as|with|when|until|there|from|on|at|for|the|once|also|means|that)\b)`, func(page, found string) {
		const closedByClient = "499" // in the service log and the metrics, never sent
		if status, _ := strconv.Atoi(found); !inTable[status] && found != closedByClient {
			t.Errorf("%s names the status %s, which the table of docs/http-api.md lacks", page, found)
		}
	})
}

// TestRoutesInTheDocs: the routes that the pages name exist, and openapi.yaml has them all, with
// the action that each needs.
func TestRoutesInTheDocs(t *testing.T) {
	known := map[string]bool{}
	for _, r := range newAPITest(t).routes() {
		known[r.method+" "+r.path] = true
	}
	pages := docPages(t)
	described, access := map[string]bool{}, map[string]string{}
	path, route := "", ""
	for line := range strings.Lines(pages["openapi.yaml"]) {
		if m := regexp.MustCompile(`^  (/\S*):$`).FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			path = m[1]
		} else if m := regexp.MustCompile(`^    (get|head|put|post|delete):$`).FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil && path != "" {
			route = strings.ToUpper(m[1]) + " " + path
			described[route] = true
		} else if m := regexp.MustCompile(`^      (x-action: (?:\w+)|security: \[\])`).FindStringSubmatch(line); m != nil && path != "" {
			access[route] = m[1]
		}
	}
	for _, r := range newAPITest(t).routes() {
		want := "x-action: " + r.need.String()
		if r.need == actionOpen {
			want = "security: []"
		}
		if got := access[r.method+" "+r.path]; got != want {
			t.Errorf("openapi.yaml has %q for %s %s, want %q", got, r.method, r.path, want)
		}
	}
	for route := range known {
		if !described[route] {
			t.Errorf("openapi.yaml lacks %s", route)
		}
	}
	for route := range described {
		if !known[route] {
			t.Errorf("openapi.yaml has %s, which does not exist", route)
		}
	}
	delete(pages, "openapi.yaml")
	eachMatch(t, pages, "`((?:GET|HEAD|PUT|POST|DELETE) /[^\\s`?]*)", func(page, route string) {
		if !known[route] {
			t.Errorf("%s names %s, which does not exist", page, route)
		}
	})
	paths := map[string]bool{}
	for route := range known {
		_, path, _ := strings.Cut(route, " ")
		paths[path] = true
	}
	eachMatch(t, pages, "`(/(?:health|ready|metrics|openapi|sites)[^\\s`?]*)`", func(page, path string) {
		if !paths[path] && path != "/sites/" && path != "/sites" {
			t.Errorf("%s names the path %s, which does not exist", page, path)
		}
	})
}

// newAPITest returns an API over a directory, with all its routes.
func newAPITest(t *testing.T) *api {
	t.Helper()
	cfg, _, err := parseConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	return newService(cfg, openTestNFS(t, t.TempDir()), newLog(cfg, &lockedBuffer{})).api
}

// TestDependenciesInTheReadme: the README justifies each direct dependency.
func TestDependenciesInTheReadme(t *testing.T) {
	readme := docPages(t)["README.md"]
	_, table, _ := strings.Cut(readme, "\n## Dependencies\n")
	eachMatch(t, readPages(t, []string{"go.mod"}), `(?m)^\t([^\s/]+\.[^\s]+) v\S+$`, func(_, module string) {
		for _, row := range regexp.MustCompile(`(?m)^\| ([^|]+) \|`).FindAllStringSubmatch(table, -1) {
			for _, name := range strings.Split(row[1], ", ") {
				if strings.HasPrefix(strings.TrimPrefix(module, "github.com/")+"/", strings.TrimSpace(name)+"/") {
					return
				}
			}
		}
		t.Errorf("README.md does not say why %s is needed", module)
	})
}

// TestReadmeIsShort: at most 1,200 words, as wc -w counts them.
func TestReadmeIsShort(t *testing.T) {
	if n := len(strings.Fields(docPages(t)["README.md"])); n > 1200 {
		t.Errorf("README.md has %d words, want at most 1,200", n)
	}
}
