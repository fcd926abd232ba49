// Package monitoring checks the alerts and the dashboard of deploy/monitoring with promtool,
// with the parser of Prometheus, and against the metrics of the service. It is a module of its own: what
// it needs never enters the service.
package monitoring

import (
	"bufio"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

const (
	rulesFile  = "../../deploy/monitoring/alerts.yaml"
	casesFile  = "../../deploy/monitoring/alerts_test.yaml"
	dashFile   = "../../deploy/monitoring/dashboard.json"
	alertsPage = "../../docs/alerts.md"
)

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// exportedSeries returns the series of a service that has just begun, as a scrape gets them.
func exportedSeries(t *testing.T) (all []labels.Labels) {
	t.Helper()
	url, textfile := serve(t)
	res, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text) + textfile) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			all = append(all, parseSeries(t, line[:i]))
		}
	}
	if len(all) < 100 {
		t.Fatalf("only %d series", len(all))
	}
	return append(all,
		labels.FromStrings("__name__", "up"),                                                  // of Prometheus itself
		labels.FromStrings("__name__", "pagewright_budget_in_use", "budget", "upload_memory")) // on an object store
}

// serve builds the service, starts it on an empty directory, with all that adds metrics, and
// returns the URL of its admin address, and the textfile of the command verify. The service is
// killed when the test ends.
func serve(t *testing.T) (url, textfile string) {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "service")
	build := exec.Command("go", "build", "-buildvcs=false", "-tags", "disable_grpc_modules,no_s3,no_azure,no_gcs", "-o", bin, ".")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// A token that expires, and an issuer that does not respond.
	write(t, filepath.Join(dir, "access.json"), `{"tokens":[{"name":"ci","sha256":["`+strings.Repeat("0a", 32)+`"],"allow":["read"],"sites":["x"],"expires":"2100-01-01T00:00:00Z"}],"oidc":[{"name":"github","issuer":"http://127.0.0.1:1","audience":["pagewright"],
		"rules":[{"claims":{"sub":["x"]},"allow":["read"],"sites":["x"]}]}]}`)
	write(t, filepath.Join(dir, "retention.json"), `{"rules":[{"sites":["*"],"keep_last":10}]}`)
	writeCertificate(t, filepath.Join(dir, "tls.pem"))
	store := filepath.Join(dir, "store")
	artifacts := filepath.Join(store, "sites", "s", "artifacts") // verify refuses a store without sites
	if err := os.MkdirAll(artifacts, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(artifacts, "b.tar.gz"), "build")
	verify := exec.Command(bin, "verify", "--textfile", filepath.Join(dir, "verify.prom"))
	verify.Env = append(os.Environ(), "PAGEWRIGHT_NFS_BASE_PATH="+store)
	if out, err := verify.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	textfile = string(read(t, filepath.Join(dir, "verify.prom")))
	cmd := exec.Command(bin)
	cmd.Env = append(os.Environ(), "PAGEWRIGHT_PORT=0", "PAGEWRIGHT_LISTEN=127.0.0.1", "PAGEWRIGHT_NFS_BASE_PATH="+store,
		"PAGEWRIGHT_ADMIN_LISTEN=127.0.0.1:0", "PAGEWRIGHT_ACCESS_FILE="+dir+"/access.json",
		"PAGEWRIGHT_RETENTION_FILE="+dir+"/retention.json", "PAGEWRIGHT_PRUNE_INTERVAL=1h",
		"PAGEWRIGHT_TLS_CERT="+dir+"/tls.pem", "PAGEWRIGHT_TLS_KEY="+dir+"/tls.pem")
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	address := make(chan string, 1)
	go func() {
		admin := ""
		for lines := bufio.NewScanner(log); lines.Scan(); {
			var line struct{ Msg, Address string }
			switch err := json.Unmarshal(lines.Bytes(), &line); {
			case err != nil || line.Address == "":
			case line.Msg == "serving":
				address <- admin
			case strings.HasPrefix(line.Msg, "serving /health"):
				admin = line.Address
			}
		}
	}()
	select {
	case a := <-address:
		return "http://" + a, textfile
	case <-time.After(time.Minute):
		t.Fatal("the service did not start")
		return "", ""
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeCertificate writes the certificate of net/http/httptest and its key into one file.
func writeCertificate(t *testing.T, file string) {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	pair := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}))+
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
}

var promQL = parser.NewParser(parser.Options{})

func parseSeries(t *testing.T, text string) labels.Labels {
	t.Helper()
	series, err := promQL.ParseMetric(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return series
}

// checkQuery checks that a query is valid PromQL, that each of its selectors has exactly the
// values of target for the labels that come from the scrape, and that it finds series among
// those that are exported.
func checkQuery(t *testing.T, where, query string, exported []labels.Labels, target map[string]string) {
	t.Helper()
	expr, err := promQL.ParseExpr(query)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return
	}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		switch node := node.(type) {
		case *parser.VectorSelector:
			checkSelector(t, where, node, exported, target)
		case *parser.AggregateExpr:
			known := labelNames(node.Expr, exported)
			for _, name := range node.Grouping {
				if !known[name] {
					t.Errorf("%s: no series has the label %s: %s", where, name, node)
				}
			}
		}
		return nil
	})
}

// labelNames returns the labels of the exported series that an expression selects, and those
// that a scrape adds.
func labelNames(expr parser.Expr, exported []labels.Labels) map[string]bool {
	names := map[string]bool{"job": true, "instance": true, "namespace": true}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			for _, series := range exported {
				if series.Get("__name__") == selector.Name {
					series.Range(func(l labels.Label) { names[l.Name] = true })
				}
			}
		}
		return nil
	})
	return names
}

// checkSelector checks one selector of a query. Each alternative of a regular expression
// must match a value that is exported, too: in route=~"artifact|log" the second does not.
func checkSelector(t *testing.T, where string, selector *parser.VectorSelector, exported []labels.Labels, target map[string]string) {
	t.Helper()
	given := map[string]string{}
	own := []*labels.Matcher{}
	for _, m := range selector.LabelMatchers {
		if _, ok := target[m.Name]; ok {
			given[m.Name] = m.Value
		} else {
			own = append(own, m)
		}
	}
	// The exporter of a textfile is another job.
	if !maps.Equal(given, target) && (!strings.HasPrefix(selector.Name, "pagewright_verify_") || len(given) > 0) {
		t.Errorf("%s: %s does not ask for %v", where, selector, target)
	}
	if strings.HasPrefix(selector.Name, "pagewright:") { // recorded: the labels are checked where it is made
		return
	}
	found := false
	for _, series := range exported {
		found = found || slices.IndexFunc(own, func(m *labels.Matcher) bool { return !m.Matches(series.Get(m.Name)) }) < 0
	}
	if !found {
		t.Errorf("%s: the service exports no series for %s", where, selector)
		return
	}
	for _, m := range own {
		for value := range strings.SplitSeq(m.Value, "|") {
			one := labels.MustNewMatcher(labels.MatchRegexp, m.Name, value)
			if !slices.ContainsFunc(exported, func(series labels.Labels) bool {
				return series.Get("__name__") == selector.Name && one.Matches(series.Get(m.Name))
			}) {
				t.Errorf("%s: no series has %s=%q: %s", where, m.Name, value, selector)
			}
		}
	}
}
