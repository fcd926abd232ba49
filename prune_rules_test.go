package main

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func mustParseRetention(t testing.TB, text string) *retention {
	t.Helper()
	r, err := parseRetention([]byte(text))
	if err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return r
}

// TestRetentionFile reads the file of the documentation.
func TestRetentionFile(t *testing.T) {
	got := mustParseRetention(t, `{
		"grace": "48h", "max_delete_percent": 20, "rules": [
			{"sites": ["shop-*", "docs"], "keep_last": 10, "keep_within": "30d", "failed": {"status": ["failed", "error"], "after": "7d"},
			 "logs_only_after": "90d", "labels": "optional"},
			{"sites": ["*"], "keep_within": "2w", "labels": "required"}]}`)
	want := &retention{grace: ruleAge{48 * time.Hour, "48h"}, maxDeletePercent: 20, globs: 3, rules: []*retentionRule{
		{place: `rules[0] "shop-*"`, sites: []string{"shop-*", "docs"}, keepLast: 10, keepWithin: ruleAge{30 * 24 * time.Hour, "30d"},
			failedStatus: []string{"failed", "error"}, failedAfter: ruleAge{7 * 24 * time.Hour, "7d"}, logsOnlyAfter: ruleAge{90 * 24 * time.Hour, "90d"}, labelsOptional: true},
		{place: `rules[1] "*"`, sites: []string{"*"}, keepWithin: ruleAge{14 * 24 * time.Hour, "2w"}},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	got = mustParseRetention(t, `{"rules":[{"sites":["a"],"keep_last":1}]}`)
	if got.grace != (ruleAge{24 * time.Hour, "24h"}) || got.maxDeletePercent != 50 {
		t.Errorf("defaults: %v, %d", got.grace, got.maxDeletePercent)
	}
}

// TestRetentionRuleFor: the first rule that matches counts.
func TestRetentionRuleFor(t *testing.T) {
	r := mustParseRetention(t, `{"rules":[{"sites":["shop-de","blog*"],"keep_last":1},{"sites":["shop-*"],"keep_last":2},{"sites":["*-test"],"keep_last":3}]}`)
	for site, want := range map[string]int{"shop-de": 1, "blog": 1, "blog-test": 1, "shop-at": 2, "shop-test": 2, "a-test": 3, "shop": 0, "Shop-de": 0, "my-shop-de": 0} {
		rule, got := r.ruleFor(site), 0
		if rule != nil {
			got = rule.keepLast
		}
		if got != want {
			t.Errorf("%s: rule %d, want %d", site, got, want)
		}
	}
}

// TestRetentionFileErrors: the whole text of each error, because an operator has nothing else.
func TestRetentionFileErrors(t *testing.T) {
	const rule = `{"sites":["shop-*"],"keep_last":10`
	in := func(rest string) string { return `{"rules":[` + rule + rest + `}]}` } // a rule with more members
	at := func(text string) string { return `rules[0] "shop-*": ` + text }       // an error in it
	notAge := ` is not an age: write a whole number and h, d or w, such as 24h, 30d or 2w`
	globs := make([]string, maxRetentionGlobs+1)
	for i := range globs {
		globs[i] = fmt.Sprintf(`"s%d"`, i)
	}
	for _, c := range []struct{ file, err string }{
		// The file.
		{``, `the file is empty`},
		{" \n", `the file is empty`},
		{`[]`, `line 1, column 1: not a JSON object, which begins with {`},
		{"\uFEFF{}", `line 1, column 1: the file begins with a byte order mark; save it as UTF-8 without one`},
		{`{}`, `rules: missing or empty; nothing would ever be removed`},
		{`{"rules":[]}`, `rules: missing or empty; nothing would ever be removed`},
		{`{"rules":{}}`, `rules: must be a list of objects, not an object`},
		{`{"rules":[1]}`, `rules[0]: must be an object, not a number`},
		{`{"rules":[null]}`, `rules[0]: null is not allowed; leave it out`},
		{`{"rules":[` + rule + `},]}`, `line 1, column 46: rules: a comma before ] or }`},
		{`{"rules":[` + rule + `}]`, `line 1, column 47: the file ends too early`},
		{`{"rules":[` + rule + `}]} {}`, `line 1, column 49: trailing data after the end of the JSON text`},
		{`{"rules":[],"rules":[]}`, `line 1, column 13: rules: duplicate member`},
		{`{"Rules":[]}`, `Rules: unknown member; allowed here: grace, max_delete_percent, rules`},
		{`{"rules":[` + rule + `}],"keep_last":1}`, `keep_last: unknown member; allowed here: grace, max_delete_percent, rules`},
		{strings.Repeat(" ", maxRetentionFile+1), `the file is 1048577 bytes long; the maximum is 1048576`},
		// grace and max_delete_percent.
		{`{"grace":24,"rules":[]}`, `grace: must be a string, not a number`},
		{`{"grace":"","rules":[]}`, `grace: ""` + notAge},
		{`{"grace":"24","rules":[]}`, `grace: "24"` + notAge},
		{`{"grace":"h","rules":[]}`, `grace: "h"` + notAge},
		{`{"grace":"30m","rules":[]}`, `grace: "30m"` + notAge},
		{`{"max_delete_percent":-1,"rules":[]}`, `max_delete_percent: -1 is not a number from 0 to 100`},
		{`{"max_delete_percent":101,"rules":[]}`, `max_delete_percent: 101 is not a number from 0 to 100`},
		{`{"max_delete_percent":0.5,"rules":[]}`, `max_delete_percent: must be a whole number, not 0.5`},
		{`{"max_delete_percent":"50%","rules":[]}`, `max_delete_percent: must be a whole number, not a string`},
		// sites.
		{`{"rules":[{"keep_last":1}]}`, `rules[0]: sites: missing or empty; "*" is all sites`},
		{`{"rules":[{"sites":[],"keep_last":1}]}`, `rules[0]: sites: missing or empty; "*" is all sites`},
		{`{"rules":[{"sites":"shop","keep_last":1}]}`, `rules[0].sites: must be a list of strings, not a string`},
		{`{"rules":[{"sites":["a",""],"keep_last":1}]}`, `rules[0] "a": sites[1]: empty`},
		{`{"rules":[{"sites":["a**"],"keep_last":1}]}`, `rules[0] "a**": sites[0]: "a**" contains **, which means the same as *; write *`},
		{`{"rules":[{"sites":["a","shop-?"],"keep_last":1}]}`, `rules[0] "a": sites[1]: "shop-?" cannot match any site: it must contain only A-Z a-z 0-9 . _ + ~ = @ -; a glob is an id in which * is any run of characters`},
		{`{"rules":[{"sites":[".*"],"keep_last":1}]}`, `rules[0] ".*": sites[0]: ".*" cannot match any site: it must begin with a letter or digit; a glob is an id in which * is any run of characters`},
		{`{"rules":[{"sites":["a","a"],"keep_last":1}]}`, `rules[0] "a": sites[1]: "a" has no effect: a glob before it matches all of its sites`},
		{`{"rules":[{"sites":["a*","ab*c"],"keep_last":1}]}`, `rules[0] "a*": sites[1]: "ab*c" has no effect: a glob before it matches all of its sites`},
		{`{"rules":[{"sites":["*"],"keep_last":1},` + rule + `}]}`, `rules[1] "shop-*": sites[0]: "shop-*" has no effect: rules[0] "*" comes first and matches all of its sites; move that rule behind this one`},
		{`{"rules":[{"sites":["b"],"keep_last":1},{"sites":["a","b"],"keep_last":1}]}`, `rules[1] "a": sites[1]: "b" has no effect: rules[0] "b" comes first and matches all of its sites; move that rule behind this one`},
		{`{"rules":[{"sites":[` + strings.Join(globs, ",") + `],"keep_last":1}]}`, `rules[0] "s0": sites[4096]: the rules have more than 4096 globs`},
		// What is kept.
		{`{"rules":[{"sites":["shop-*"]}]}`, at(`keep_last or keep_within is missing: one of them is required`)},
		{`{"rules":[{"sites":["shop-*"],"logs_only_after":"90d","failed":{"status":["failed"],"after":"7d"}}]}`, at(`keep_last or keep_within is missing: one of them is required`)},
		{`{"rules":[{"sites":["shop-*"],"keep_last":0}]}`, at(`keep_last: 0 is less than 1`)},
		{`{"rules":[{"sites":["shop-*"],"keep_last":-3}]}`, at(`keep_last: -3 is less than 1`)},
		{`{"rules":[{"sites":["shop-*"],"keep_last":0,"keep_within":"30d"}]}`, at(`keep_last: 0 is less than 1`)},
		{`{"rules":[{"sites":["shop-*"],"keep_last":"10"}]}`, `rules[0].keep_last: must be a whole number, not a string`},
		{`{"rules":[{"sites":["shop-*"],"keep_last":1.5}]}`, `rules[0].keep_last: must be a whole number, not 1.5`},
		{`{"rules":[{"sites":["shop-*"],"keep_last":99999999999999999999}]}`, `rules[0].keep_last: must be a whole number, not 99999999999999999999`},
		{`{"rules":[{"sites":["shop-*"],"keep-last":1}]}`, `rules[0]["keep-last"]: unknown member; allowed here: sites, keep_last, keep_within, failed, logs_only_after, labels`},
		{in(`,"keep_last":3`), `line 1, column 46: rules[0].keep_last: duplicate member`},
		{in(`,"keep_within":30`), `rules[0].keep_within: must be a string, not a number`},
		{in(`,"keep_within":"-5d"`), at(`keep_within: "-5d"` + notAge)},
		{in(`,"keep_within":"+5d"`), at(`keep_within: "+5d"` + notAge)},
		{in(`,"keep_within":"1.5d"`), at(`keep_within: "1.5d"` + notAge)},
		{in(`,"keep_within":"6m"`), at(`keep_within: "6m"` + notAge)},
		{in(`,"keep_within":"30D"`), at(`keep_within: "30D"` + notAge)},
		{in(`,"keep_within":"30 d"`), at(`keep_within: "30 d"` + notAge)},
		{in(`,"keep_within":"1w2d"`), at(`keep_within: "1w2d"` + notAge)},
		{in(`,"keep_within":"1dd"`), at(`keep_within: "1dd"` + notAge)},
		{in(`,"keep_within":"0d"`), at(`keep_within: "0d" must be at least 1h`)},
		{in(`,"keep_within":"36501d"`), at(`keep_within: "36501d" is longer than 100 years`)},
		{in(`,"keep_within":"18446744073709551617h"`), at(`keep_within: "18446744073709551617h" is longer than 100 years`)},
		{in(`,"keep_within":"5124095576030431h"`), at(`keep_within: "5124095576030431h" is longer than 100 years`)}, // * time.Hour overflows to a small number
		// failed, logs_only_after, labels.
		{in(`,"failed":["failed"]`), `rules[0].failed: must be an object, not a list`},
		{in(`,"failed":{}`), at(`failed.status: missing or empty; it lists the statuses of failed builds`)},
		{in(`,"failed":{"after":"7d"}`), at(`failed.status: missing or empty; it lists the statuses of failed builds`)},
		{in(`,"failed":{"status":[],"after":"7d"}`), at(`failed.status: missing or empty; it lists the statuses of failed builds`)},
		{in(`,"failed":{"status":["failed",""],"after":"7d"}`), at(`failed.status[1]: empty`)},
		{in(`,"failed":{"status":["failed","Failed"],"after":"7d"}`), at(`failed.status[1]: "Failed" is listed twice; upper and lower case are the same`)},
		{in(`,"failed":{"status":[` + strings.Join(globs[:maxFailedStatus+1], ",") + `],"after":"7d"}`), at(`failed.status: 33 statuses; the maximum is 32`)},
		{in(`,"failed":{"status":["failed"]}`), at(`failed.after: missing; it is the age at which failed builds are removed`)},
		{in(`,"failed":{"status":["failed"],"after":"0h"}`), at(`failed.after: "0h" must be at least 1h`)},
		{in(`,"failed":{"status":["failed"],"after":"x"}`), at(`failed.after: "x"` + notAge)},
		{in(`,"failed":{"status":["failed"],"after":"7d","keep":1}`), `rules[0].failed.keep: unknown member; allowed here: status, after`},
		{in(`,"logs_only_after":"0w"`), at(`logs_only_after: "0w" must be at least 1h`)},
		{in(`,"logs_only_after":"d"`), at(`logs_only_after: "d"` + notAge)},
		{in(`,"labels":"Optional"`), at(`labels: "Optional" is neither "required" nor "optional"`)},
		{in(`,"labels":true`), `rules[0].labels: must be a string, not true`},
	} {
		if _, err := parseRetention([]byte(c.file)); err == nil || err.Error() != c.err {
			t.Errorf("%.200s\n got  %v\n want %s", c.file, err, c.err)
		}
	}
}

// TestRetentionFileAccepts has the limits of what TestRetentionFileErrors refuses.
func TestRetentionFileAccepts(t *testing.T) {
	globs := make([]string, maxRetentionGlobs)
	for i := range globs {
		globs[i] = fmt.Sprintf(`"s%d"`, i)
	}
	for _, file := range []string{
		`{"grace":"0h","rules":[{"sites":["a"],"keep_last":1}]}`,
		`{"max_delete_percent":0,"rules":[{"sites":["a"],"keep_last":1}]}`,
		`{"max_delete_percent":100,"rules":[{"sites":["a"],"keep_last":1}]}`,
		`{"rules":[{"sites":["a"],"keep_within":"36500d"}]}`,
		`{"rules":[{"sites":["a"],"keep_within":"1h"}]}`,
		`{"rules":[{"sites":["a"],"keep_last":9007199254740993}]}`,
		`{"rules":[{"sites":["ab","a*"],"keep_last":1},{"sites":["*"],"keep_last":1}]}`, // the narrow ones first
		`{"rules":[{"sites":["a*b"],"keep_last":1},{"sites":["a*"],"keep_last":1}]}`,
		`{"rules":[{"sites":[` + strings.Join(globs, ",") + `],"keep_last":1}]}`,
		`{"rules":[{"sites":["a"],"keep_last":1,"failed":{"status":[` + strings.Join(globs[:maxFailedStatus], ",") + `],"after":"1h"}}]}`,
	} {
		if _, err := parseRetention([]byte(file)); err != nil {
			t.Errorf("%.200s: %v", file, err)
		}
	}
}

// FuzzRetentionFile: what is accepted is a policy that protects something.
func FuzzRetentionFile(f *testing.F) {
	f.Add([]byte(`{"grace":"24h","max_delete_percent":50,"rules":[{"sites":["shop-*"],"keep_last":10,"keep_within":"30d","failed":{"status":["failed","error"],"after":"7d"},"logs_only_after":"90d"}]}`))
	f.Add([]byte(`{"rules":[{"sites":["a","b*"],"keep_last":1},{"sites":["*"],"keep_within":"2w","labels":"optional"}]}`))
	f.Add([]byte(`{"rules":[{"sites":["a"],"keep_last":0}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRetention(data)
		if err != nil {
			if text := err.Error(); text == "" || strings.ContainsAny(text, "\x00\n\r\x1b") {
				t.Errorf("the error %q", text)
			}
			return
		}
		if r.grace.Duration < 0 || r.maxDeletePercent < 0 || r.maxDeletePercent > 100 || len(r.rules) == 0 {
			t.Errorf("%+v", r)
		}
		for _, rule := range r.rules {
			ages := []ruleAge{rule.keepWithin, rule.failedAfter, rule.logsOnlyAfter}
			for _, a := range ages {
				if a.isSet() != (a.Duration > 0) || a.Duration > maxRuleAge {
					t.Errorf("the age %+v", a)
				}
			}
			if rule.keepLast < 0 || rule.keepLast == 0 && !rule.keepWithin.isSet() || (len(rule.failedStatus) > 0) != rule.failedAfter.isSet() {
				t.Errorf("%+v", rule)
			}
			for _, glob := range rule.sites {
				if site := strings.ReplaceAll(glob, "*", ""); checkID(site) == nil && r.ruleFor(site) == nil {
					t.Errorf("no rule for %q", site)
				}
			}
		}
	})
}
