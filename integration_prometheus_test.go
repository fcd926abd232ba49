//go:build integration

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestIntegrationEveryQueryIsAnsweredFromARealScrape runs Debian's prometheus against the
// service, and every query of the dashboard and of the alerts against it.
func TestIntegrationEveryQueryIsAnsweredFromARealScrape(t *testing.T) {
	s := startServer(t)
	prometheus := startPrometheus(t, s.addr)
	mixedLoad(t, s)
	damaged := filepath.Join(s.dir, "sites/a/logs/damaged.json")
	if err := os.WriteFile(damaged, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.post(t, 500, "/sites/a/logs", `{"build_id":"damaged","action":"deploy","status":"ok"}`)
	queries := dashboardQueries(t)
	// An alert's query has no answer as long as all is well: what it is about
	// has one, on the left of each comparison.
	for _, q := range alertQueries(t) {
		for _, part := range regexp.MustCompile(`\band\b`).Split(q, -1) {
			queries = append(queries, regexp.MustCompile(` [<>=]+ [^)]*$`).ReplaceAllString(part, ""))
		}
		if _, err := ask(prometheus, q); err != nil {
			t.Errorf("%s: %v", q, err)
		}
	}
	// A rate needs two scrapes with something between them.
	if len(queries) < 40 {
		t.Fatalf("only %d queries were found", len(queries))
	}
	silent := map[string]bool{}
	for _, q := range queries {
		silent[q] = true
	}
	deadline := time.Now().Add(60 * time.Second)
	for len(silent) > 0 && time.Now().Before(deadline) {
		s.put(t, 201, "/sites/a/artifacts/x", "x")
		s.get(t, 200, "/sites/a/versions")
		for q := range silent {
			n, err := ask(prometheus, q)
			if err != nil {
				t.Fatalf("%s: %v", q, err)
			}
			if n > 0 {
				delete(silent, q)
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	for q := range silent {
		t.Errorf("no answer: %s", q)
	}
	t.Logf("%d queries were answered", len(queries)-len(silent))
}

func startPrometheus(t *testing.T, target string) string {
	t.Helper()
	path, err := exec.LookPath("prometheus")
	if err != nil {
		t.Fatal("prometheus is not installed: apt-get install --no-install-recommends prometheus")
	}
	dir := t.TempDir()
	rules, err := filepath.Abs("deploy/monitoring/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf(`global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%s]
scrape_configs: [{job_name: pagewright-storage, static_configs: [{targets: [%q]}]}]
`, rules, target)
	if err := os.WriteFile(dir+"/prometheus.yml", []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	address := freeAddr(t)
	cmd := exec.Command(path, "--config.file="+dir+"/prometheus.yml", "--storage.tsdb.path="+dir+"/data", "--web.listen-address="+address)
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); log.Close() })
	eventually(t, "prometheus scrapes", func() bool {
		n, err := ask(address, `up{job="pagewright-storage"} == 1`)
		return err == nil && n == 1
	})
	return address
}

// ask runs a query and tells how many series it has for an answer.
func ask(prometheus, query string) (int, error) {
	r, err := http.Get("http://" + prometheus + "/api/v1/query?query=" + url.QueryEscape(query))
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct{ Result []any }
	}
	data, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(data, &answer)
	}
	if err == nil && answer.Status != "success" {
		err = fmt.Errorf("%s", answer.Error)
	}
	return len(answer.Data.Result), err
}

func dashboardQueries(t *testing.T) (queries []string) {
	t.Helper()
	var dashboard struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	data, err := os.ReadFile("deploy/monitoring/dashboard.json")
	if err == nil {
		err = json.Unmarshal(data, &dashboard)
	}
	if err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("$job", ".*", "$__rate_interval", "1m")
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			queries = append(queries, fill.Replace(target.Expr))
		}
	}
	return queries
}

// alertQueries are the queries of the rules, as prometheus itself reads them.
func alertQueries(t *testing.T) (queries []string) {
	t.Helper()
	data, err := os.ReadFile("deploy/monitoring/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^        expr: (?:\|\n((?:          .*\n)+)|(.*)\n)`).FindAllStringSubmatch(string(data), -1) {
		queries = append(queries, strings.Join(strings.Fields(m[1]+m[2]), " "))
	}
	if n := strings.Count(string(data), "- alert:"); n != len(queries) {
		t.Fatalf("%d alerts, %d queries", n, len(queries))
	}
	return queries
}
