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
		if _, err := askPrometheus(prometheus, q); err != nil {
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
			n, err := askPrometheus(prometheus, q)
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
		n, err := askPrometheus(address, `up{job="pagewright-storage"} == 1`)
		return err == nil && n == 1
	})
	return address
}

// ask runs a query and tells how many series it has for an answer.
func askPrometheus(prometheus, query string) (int, error) {
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

// TestIntegrationAlertsOfTheSpaceOfTheStore lets promtool judge the rules: zeros
// of a store that does not know its size or its inodes are no alarm, and zeros of
// a full one are.
func TestIntegrationAlertsOfTheSpaceOfTheStore(t *testing.T) {
	rules, err := filepath.Abs("deploy/monitoring/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name                           string
		free, size, freeInodes, inodes int
		full, fillsUp, inodesLow       bool
	}{
		{name: "plenty of all", free: 1 << 40, size: 1 << 41, freeInodes: 1e6, inodes: 2e6},
		{name: "nothing known", free: 0, size: 0, freeInodes: 0, inodes: 0},
		{name: "inodes not known", free: 1 << 40, size: 1 << 41, freeInodes: 0, inodes: 0},
		{name: "few inodes", free: 1 << 40, size: 1 << 41, freeInodes: 1, inodes: 1e6, inodesLow: true},
		{name: "no inodes", free: 1 << 40, size: 1 << 41, freeInodes: 0, inodes: 1e6, inodesLow: true},
		{name: "little space", free: 1000, size: 1 << 41, freeInodes: 1e6, inodes: 1e6, full: true, fillsUp: true},
		{name: "no space", free: 0, size: 1 << 41, freeInodes: 1e6, inodes: 1e6, full: true, fillsUp: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			input := fmt.Sprintf("rule_files: [%s]\nevaluation_interval: 1m\ntests:\n- interval: 1m\n  input_series:\n", rules)
			for name, value := range map[string]int{"free_bytes": c.free, "size_bytes": c.size,
				"free_inodes": c.freeInodes, "inodes": c.inodes, "reserve_bytes": 32 << 20} {
				input += fmt.Sprintf("  - {series: 'pagewright_store_%s{job=\"x\"}', values: '%dx120'}\n", name, value)
			}
			input += "  promql_expr_test:\n"
			for alert, fires := range map[string]bool{"StoreFull": c.full, "StoreFillsUp": c.fillsUp, "InodesLow": c.inodesLow} {
				input += fmt.Sprintf("  - expr: count(ALERTS{alertname=\"Pagewright%s\",alertstate=\"firing\"})\n    eval_time: 110m\n", alert)
				if fires {
					input += "    exp_samples: [{labels: '{}', value: 1}]\n"
				}
			}
			file := filepath.Join(t.TempDir(), "test.yml")
			if err := os.WriteFile(file, []byte(input), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("promtool", "test", "rules", file).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
