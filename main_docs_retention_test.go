package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestRetentionInTheDocs: the retention files that the pages show, and the one for Kubernetes, are valid. The page has each
// reason that a plan gives, and each reason to skip a site.
func TestRetentionInTheDocs(t *testing.T) {
	const page = "docs/labels-and-retention.md"
	var rules *retention
	for name, blocks := range docBlocks(t) {
		for _, b := range blocks {
			if b.kind != "json" || !regexp.MustCompile(`^\{\s*"(grace|max_delete_percent|rules)"`).MatchString(b.text) {
				continue
			}
			parsed, err := parseRetention([]byte(b.text))
			if err != nil {
				t.Errorf("%s:%d: %v", name, b.line, err)
			} else if name == page && rules == nil {
				rules = parsed
			}
		}
	}
	if _, err := readRetention("deploy/kubernetes/components/retention/retention.json"); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(page)
	if err != nil || rules == nil {
		t.Fatal("no retention file is shown: ", err)
	}
	plan := sitePlan{rule: rules.ruleFor("shop-de"), grace: rules.grace, labels: []Label{{Name: "live", BuildID: "v1"}}}
	for v := range removeLogOnly + 1 {
		if row := "\n| `" + plan.why(v, "v1") + "` | "; !strings.Contains(string(text), row) {
			t.Errorf("%s has no row for the reason %q", page, plan.why(v, "v1"))
		}
	}
	for _, reason := range skipReasons {
		if row := "\n| `" + string(reason) + "` | "; !strings.Contains(string(text), row) {
			t.Errorf("%s has no row for %s", page, reason)
		}
	}
}
