//go:build integration

package main

import (
	"encoding/json"
	"errors"
	"fmt"
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
// service, and every query of the dashboard and of the alerts against it. So labels that an
// operator has to match are those of a real scrape.
func TestIntegrationEveryQueryIsAnsweredFromARealScrape(t *testing.T) {
	// With all that has metrics of its own. What expires does so after the test.
	access := filepath.Join(t.TempDir(), "access.json")
	switchFile(t, access, fmt.Appendf(nil, `{"tokens":[{"name":"ci","sha256":[%q],"allow":["read"],"sites":["*"],"expires":%q}],
		"oidc":[{"name":"i","issuer":"http://127.0.0.1:1","audience":["a"],"rules":[{"claims":{"sub":["x"]},"allow":["read"],"sites":["s"]}]}],
		"anonymous":[{"allow":["read","write","log","delete"],"sites":["*"]}]}`,
		strings.Repeat("a", 64), time.Now().Add(time.Hour).Format(time.RFC3339)))
	admin := freeAddr(t)
	s, _, _ := startTLS(t, "ACCESS_FILE="+access, "ADMIN_LISTEN="+admin, "PRUNE_INTERVAL=1h", "RETENTION_FILE="+retentionFileOf(t, keepTwo))
	prometheus := startPrometheus(t, admin)
	mixedLoad(t, s)
	damaged := filepath.Join(s.dir, "sites/a/logs/damaged.json")
	if err := os.WriteFile(damaged, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	silent := map[string]bool{}
	for _, q := range append(dashboardQueries(t), ruleQueries(t, prometheus)...) {
		if strings.Contains(q, "pagewright_prune_last_success_") { // 0 until the first prune, after five minutes
			q = strings.ReplaceAll(q, " > 0)", ")")
		}
		if !strings.Contains(q, "pagewright_verify_") { // from the textfile of verify, not from the service
			silent[q] = true
		}
	}
	queries := len(silent)
	if queries < 80 {
		t.Fatalf("only %d queries were found", queries)
	}
	// A rate needs two scrapes with something between them.
	deadline := time.Now().Add(3 * time.Minute)
	for len(silent) > 0 && time.Now().Before(deadline) {
		s.put(t, 201, "/sites/a/artifacts/x", "x")
		s.get(t, 200, "/sites/a/versions")
		s.post(t, 500, "/sites/a/logs", `{"build_id":"damaged","action":"deploy","status":"ok"}`)
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
		t.Errorf("no response: %s", q)
	}
	t.Logf("%d queries were answered", queries-len(silent))
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

// askPrometheus runs a query and returns the number of series in the result.
func askPrometheus(prometheus, query string) (int, error) {
	var data struct{ Result []any }
	err := fromPrometheus(prometheus, "query?query="+url.QueryEscape(query), &data)
	return len(data.Result), err
}

// fromPrometheus requests a page of the API and decodes its data.
func fromPrometheus(prometheus, page string, data any) error {
	r, err := http.Get("http://" + prometheus + "/api/v1/" + page)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return errors.New(answer.Error)
	}
	return nil
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
	fill := strings.NewReplacer("$job", ".*", "$instance", ".*", "$__rate_interval", "1m")
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			queries = append(queries, fill.Replace(target.Expr))
		}
	}
	return queries
}

// ruleQueries are the queries of the rules, as prometheus itself reads them. An alert has no
// result as long as all is well. So each comparison is made to return its result instead of
// dropping the series, and what is only there to drop series is left out.
func ruleQueries(t *testing.T, prometheus string) (queries []string) {
	t.Helper()
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Query string }
		}
	}
	if err := fromPrometheus(prometheus, "rules", &data); err != nil {
		t.Fatal(err)
	}
	compare := regexp.MustCompile(` (==|<=|>=|<|>) `)
	unless := regexp.MustCompile(` unless (on \([^)]*\) )?\S+ == [0-9]+`)
	window := regexp.MustCompile(`\[(\d+[hm]):\d+m\]`) // a result needs two steps
	for _, group := range data.Groups {
		for _, rule := range group.Rules {
			q := strings.Join(strings.Fields(rule.Query), " ")
			if strings.HasPrefix(q, "absent(") {
				continue // no result, since there is a target
			}
			q = unless.ReplaceAllString(q, "")
			q = window.ReplaceAllString(q, "[$1:1s]")
			queries = append(queries, compare.ReplaceAllString(q, " $1 bool "))
		}
	}
	return queries
}
