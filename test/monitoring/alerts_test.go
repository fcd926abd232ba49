package monitoring

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

// rule is a line of alerts.yaml: an alert, or a recording rule.
type rule struct {
	Alert, Record, Expr, For string
	Labels, Annotations      map[string]string
}

func readRules(t *testing.T) (rules []rule) {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string
			Rules []rule
		}
	}
	if err := yaml.UnmarshalStrict(read(t, rulesFile), &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	if len(rules) == 0 {
		t.Fatal("no rules")
	}
	return rules
}

// TestAlertsAsPromtoolSeesThem: the rules are valid, and each case of alerts_test.yaml fires
// what it should.
func TestAlertsAsPromtoolSeesThem(t *testing.T) {
	for _, args := range [][]string{{"check", "rules", rulesFile}, {"test", "rules", casesFile}} {
		if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v (test/install installs it)\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestAlertsAreComplete: each alert says how long it waits, how urgent it is, what is wrong,
// and leads to a section of docs/alerts.md, which has no others.
func TestAlertsAreComplete(t *testing.T) {
	sections := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^### (\w+)$`).FindAllStringSubmatch(string(read(t, alertsPage)), -1) {
		sections[heading[1]] = true
	}
	base := ""
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		if !sections[r.Alert] {
			t.Errorf("%s has no section in docs/alerts.md", r.Alert)
		}
		delete(sections, r.Alert)
		if r.For == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s lacks for, summary or description", r.Alert)
		}
		if s := r.Labels["severity"]; s != "page" && s != "ticket" {
			t.Errorf("%s has the severity %q", r.Alert, s)
		}
		link, anchor, _ := strings.Cut(r.Annotations["runbook_url"], "#")
		if base == "" {
			base = link
		}
		if anchor != strings.ToLower(r.Alert) || link != base || !strings.HasSuffix(link, "/docs/alerts.md") {
			t.Errorf("%s links to %s#%s", r.Alert, link, anchor)
		}
	}
	for alert := range sections {
		t.Errorf("docs/alerts.md has a section %s, and there is no such alert", alert)
	}
}

// TestAlertsHaveCases: alerts_test.yaml has for each alert a case that fires and one that does
// not. The texts of an alert name only labels that it has when it fires.
func TestAlertsHaveCases(t *testing.T) {
	var file struct {
		Tests []struct {
			Cases []struct {
				Expr    string
				Samples []struct{ Labels string } `json:"exp_samples"`
			} `json:"promql_expr_test"`
		}
	}
	if err := yaml.Unmarshal(read(t, casesFile), &file); err != nil {
		t.Fatal(err)
	}
	silent, labelsOf := map[string]bool{}, map[string]labels.Labels{}
	query := regexp.MustCompile(`^ALERTS\{alertname="(\w+)",alertstate="firing"\}$`)
	for _, group := range file.Tests {
		for _, c := range group.Cases {
			alert := query.FindStringSubmatch(c.Expr)
			if alert == nil {
				t.Fatalf("a case does not ask whether an alert fires: %s", c.Expr)
			}
			if len(c.Samples) == 0 {
				silent[alert[1]] = true
			}
			for _, s := range c.Samples {
				labelsOf[alert[1]] = parseSeries(t, s.Labels)
			}
		}
	}
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		if !silent[r.Alert] {
			t.Errorf("%s has no case in which it does not fire", r.Alert)
		}
		if labelsOf[r.Alert].IsEmpty() {
			t.Errorf("%s has no case in which it fires", r.Alert)
		}
		for _, text := range r.Annotations {
			for _, name := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(text, -1) {
				if !labelsOf[r.Alert].Has(name[1]) {
					t.Errorf("%s names the label %s, which it does not have", r.Alert, name[1])
				}
			}
		}
	}
}

// TestAlertsAskForWhatTheServiceExports: each selector asks for the job, and selects series
// that the service exports from the start.
func TestAlertsAskForWhatTheServiceExports(t *testing.T) {
	exported := exportedSeries(t)
	rules := readRules(t)
	for _, r := range rules {
		if r.Record != "" {
			exported = append(exported, labels.FromStrings("__name__", r.Record, "route", "", "method", ""))
		}
	}
	for _, r := range rules {
		checkQuery(t, r.Alert+r.Record, r.Expr, exported, map[string]string{"job": "pagewright-storage"})
	}
}

// TestAlertsSubtractNoCounters: no rule subtracts the increase of a counter. If the labels of
// the two counters differ, the difference hides failures and can be negative.
func TestAlertsSubtractNoCounters(t *testing.T) {
	for _, r := range readRules(t) {
		expr, err := promQL.ParseExpr(r.Expr)
		if err != nil {
			t.Fatalf("%s%s: %v", r.Alert, r.Record, err)
		}
		parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
			if b, ok := node.(*parser.BinaryExpr); ok && b.Op == parser.SUB && readsCounter(b.RHS) {
				t.Errorf("%s%s subtracts a counter: %s", r.Alert, r.Record, b.RHS)
			}
			return nil
		})
	}
}

func readsCounter(expr parser.Expr) (found bool) {
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		call, ok := node.(*parser.Call)
		found = found || ok && (call.Func.Name == "increase" || call.Func.Name == "rate")
		return nil
	})
	return found
}
