package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

var planNow = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

// planAge returns an age as a case writes it; a minus is the future.
func planAge(t testing.TB, text string) time.Duration {
	t.Helper()
	positive, future := strings.CutPrefix(text, "-")
	age, err := parseAge(positive)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	if future {
		return -age
	}
	return age
}

// parsePlanSite returns the site of a case. A build is its id, its age, and more:
//
//	log            it has no artifact
//	?              its log cannot be read
//	empty          its artifact has no bytes
//	arrived=1h     otherwise it arrived when it was created
//	logged=1h      the age of its latest entry
//	fails, gone    its arrival is not known; it is not there any more
//	12B            its size
//	anything else  its status
//
// A label is live=b1, or live=b1>b2 while it moves from b1 to b2, or live=b1<b0 if it named b0 before.
func parsePlanSite(t testing.TB, labels, builds string) pruneSite {
	t.Helper()
	site := pruneSite{ID: "shop"}
	for _, text := range strings.Fields(labels) {
		name, ids, _ := strings.Cut(text, "=")
		ids, previous, _ := strings.Cut(ids, "<")
		build, next, _ := strings.Cut(ids, ">")
		site.Labels = append(site.Labels, Label{Name: name, BuildID: build, Next: next, Previous: previous, ChangedAt: planNow})
	}
	arrived, fails := map[string]time.Time{}, map[string]error{}
	for _, text := range strings.Fields(builds) {
		fields := strings.Split(text, "/")
		b := pruneBuild{ID: fields[0], CreatedAt: planNow.Add(-planAge(t, fields[1])), HasArtifact: true}
		arrived[b.ID] = b.CreatedAt
		for _, field := range fields[2:] {
			name, value, _ := strings.Cut(field, "=")
			switch {
			case field == "log":
				b.HasArtifact = false
			case field == "?":
				b.UnknownLog = true
			case field == "empty":
				b.Empty = true
			case field == "gone":
				fails[b.ID] = fmt.Errorf("stat: %w", ErrNotFound)
			case field == "fails":
				fails[b.ID] = errors.New("i/o error")
			case name == "arrived":
				arrived[b.ID] = planNow.Add(-planAge(t, value))
			case name == "logged":
				b.LoggedAt = planNow.Add(-planAge(t, value))
			case strings.HasSuffix(field, "B"):
				fmt.Sscan(field, &b.Size)
			default:
				b.Status = field
			}
		}
		site.Builds = append(site.Builds, b)
	}
	site.ArrivedAt = func(id string) (time.Time, error) { return arrived[id], fails[id] }
	return site
}

// planText is a plan as the cases write it: the reason for each build, with a minus in front of
// those that are removed, and what is skipped.
func planText(p *sitePlan, site pruneSite) string {
	var words []string
	for i, v := range p.Verdicts {
		text := p.why(v, site.Builds[i].ID)
		if v.removes() {
			text = "- " + text
		}
		words = append(words, text)
	}
	if p.Skip != skipNone {
		words = append(words, "skip "+string(p.Skip))
	}
	return strings.Join(words, " | ")
}

// planRetention returns a file with one rule. Labels are optional, unless the rule says otherwise.
func planRetention(t testing.TB, file, rule string) *retention {
	t.Helper()
	if !strings.Contains(rule, `"labels"`) {
		rule += `,"labels":"optional"`
	}
	return mustParseRetention(t, fmt.Sprintf(`{%s"rules":[{"sites":["shop"],%s}]}`, file, rule))
}

// many returns n builds, a day apart, the newest of the age of first days. extra goes to each.
func many(n, first int, prefix, extra string) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("%s%03d/%dd%s", prefix, i, first+i, extra))
	}
	return strings.Join(all, " ")
}

const failed7d = `"failed":{"status":["failed","error"],"after":"7d"}`

func TestPlan(t *testing.T) {
	for _, c := range []struct{ name, rule, labels, builds, want string }{
		// Faults of others: see the guide of lifecycles.
		{"the only build of a quiet site goes (ods-pipeline#71)", `"keep_within":"30d"`, "", "a/2000d", "newest"},
		{"the only build of a quiet site goes, all its logs old (cloudflare-docs#5372)", `"keep_last":1,` + failed7d, "", "a/2000d/failed/logged=2000d", "newest"},
		{"the production image goes (harbor#8717)", `"keep_last":1`, "live=a", "c/10d b/20d a/400d", "newest | - beyond keep_last 1 | label live"},
		{"the production image goes during a deploy (harbor#22026)", `"keep_last":1`, "live=a>b", "c/10d b/20d a/400d", "newest | label live | label live"},
		{"latest is moved by the cleanup (nexus-public#437)", `"keep_within":"1h",` + failed7d, "", "c/10d/failed b/20d/ok a/30d", "newest | newest that did not fail | - older than 1h"},
		{"the cleanup beats a running push (nora#584)", `"keep_last":1`, "", "b/5d a/40d/arrived=1h", "newest | within grace 24h"},
		{"the cleanup beats a push whose log is first (quay#6318)", `"keep_last":1,"logs_only_after":"1h"`, "", "b/23h/log a/40d", "within grace 24h | newest"},
		{"foreign entries count (nora#926)", `"keep_last":2`, "", "e/1d/log d/2d c/3d/log b/4d a/5d", "only a log, and no logs_only_after | newest | only a log, and no logs_only_after | keep_last 2 | - beyond keep_last 2"},
		{"excluded entries count (nora#931)", `"keep_last":2,` + failed7d, "", "e/2d/failed d/3d/error c/4d b/5d a/6d", "newest | failed, not older than 7d | newest that did not fail | keep_last 2 | - beyond keep_last 2"},
		{"labelled builds use up the quota (nora#932)", `"keep_last":2`, "live=b old=a", "d/2d c/3d b/4d a/5d", "newest | keep_last 2 | label live | label old"},
		{"a keep pattern deletes (artifact-keeper#1905)", `"keep_within":"30d"`, "", "c/2d b/3d a/4d", "newest | keep_within 30d | keep_within 30d"},
		{"N newest or younger than D, not both (delete-package-versions#4)", `"keep_last":2,"keep_within":"10d"`, "", "d/2d c/3d b/9d a/11d", "newest | keep_last 2 | keep_within 10d | - beyond keep_last 2, older than 10d"},
		{"N newest, all of them old (delete-package-versions#6)", `"keep_last":3,"keep_within":"10d"`, "", "d/50d c/60d b/70d a/80d", "newest | keep_last 3 | keep_last 3 | - beyond keep_last 3, older than 10d"},
		{"within counts from the newest build instead of from now (borg#3908)", `"keep_within":"30d"`, "", "b/100d a/101d", "newest | - older than 30d"},
		{"keep_last keeps one of each day (borg#4261)", `"keep_last":3`, "", "d/49h c/50h b/51h a/52h", "newest | keep_last 3 | keep_last 3 | - beyond keep_last 3"},

		// keep_last.
		{"no builds", `"keep_last":1`, "", "", ""},
		{"keep_last 1 is the newest", `"keep_last":1`, "", "b/2d a/3d", "newest | - beyond keep_last 1"},
		{"keep_last of more than there are", `"keep_last":9`, "", "b/2d a/3d", "newest | keep_last 9"},
		{"keep_last of just as many", `"keep_last":2`, "", "b/2d a/3d", "newest | keep_last 2"},
		{"equal times: the smaller id first", `"keep_last":2`, "", "a/9d b/9d c/9d", "newest | keep_last 2 | - beyond keep_last 2"},
		{"without a log: did not fail", `"keep_last":2,` + failed7d, "", "c/9d b/10d a/11d", "newest | keep_last 2 | - beyond keep_last 2"},
		{"the newest failed and counts not", `"keep_last":1,` + failed7d, "", "c/9d/failed b/10d/ok a/11d/ok", "newest | newest that did not fail | - beyond keep_last 1"},

		// keep_within.
		{"exactly as old", `"keep_within":"30d"`, "", "b/1d a/30d", "newest | keep_within 30d"},
		{"a little older", `"keep_within":"720h"`, "", "b/1d a/720h1s", "newest | - older than 720h"},
		{"weeks", `"keep_within":"2w"`, "", "c/1d b/14d a/15d", "newest | keep_within 2w | - older than 2w"},
		{"keep_within counts from the upload, not from the log", `"keep_within":"10d"`, "", "b/1d a/30d/ok/logged=2d", "newest | - older than 10d"},
		{"keep_within counts from the upload, not from the arrival", `"keep_within":"10d"`, "", "b/1d a/30d/arrived=2d", "newest | - older than 10d"},
		{"100 years", `"keep_within":"36500d"`, "", "b/1d a/36499d", "newest | keep_within 36500d"},

		// Failed builds.
		{"failed, exactly as old", `"keep_last":1,` + failed7d, "", "b/1d a/7d/failed", "newest | failed, not older than 7d"},
		{"failed, a little older", `"keep_last":1,"failed":{"status":["failed"],"after":"168h"}`, "", "b/1d a/168h1s/failed", "newest | - failed, older than 168h"},
		{"failed: keep_within does not keep it", `"keep_within":"30d",` + failed7d, "", "c/1d b/8d/failed a/9d", "newest | - failed, older than 7d | keep_within 30d"},
		{"failed: keep_last does not keep it", `"keep_last":10,` + failed7d, "", "c/1d b/8d/error a/9d", "newest | - failed, older than 7d | keep_last 10"},
		{"failed: kept longer than keep_within", `"keep_within":"48h",` + failed7d, "", "c/1d b/3d/failed a/4d/ok", "newest | failed, not older than 7d | - older than 48h"},
		{"failed: case does not matter", `"keep_last":9,` + failed7d, "", "b/1d a/8d/FAILED", "newest | - failed, older than 7d"},
		{"failed: only whole words", `"keep_last":9,` + failed7d, "", "c/1d b/8d/failed-over a/9d/fail", "newest | keep_last 9 | keep_last 9"},
		{"failed: labelled", `"keep_last":1,` + failed7d, "live=a", "b/1d a/8d/failed", "newest | label live"},
		{"failed: in the grace", `"keep_last":1,` + failed7d, "", "b/1d a/8d/failed/arrived=2h", "newest | within grace 24h"},
		{"failed: only lately, so it has its 7 days", `"keep_last":1,` + failed7d, "", "b/1d a/99d/failed/logged=2d", "newest | failed, not older than 7d"},
		{"failed: all builds", `"keep_last":5,` + failed7d, "", "c/8d/failed b/9d/failed a/10d/error", "newest | - failed, older than 7d | - failed, older than 7d"},
		{"no failed in the rule: no build failed", `"keep_last":2`, "", "c/8d/failed b/9d/failed a/10d/ok", "newest | keep_last 2 | - beyond keep_last 2"},
		{"the newest that did not fail has an artifact", `"keep_within":"1h",` + failed7d, "", "c/8d/failed b/9d/ok/log a/10d/ok", "newest | only a log, and no logs_only_after | newest that did not fail"},
		{"the newest and the newest that did not fail are one", `"keep_within":"1h",` + failed7d, "", "b/8d/ok a/9d/ok", "newest | - older than 1h"},
		{"the newest that did not fail is the oldest", `"keep_within":"1h",` + failed7d, "", "c/8d/failed b/9d/failed a/3000d/ok", "newest | - failed, older than 7d | newest that did not fail"},
		{"the newest that did not fail is labelled: enough", `"keep_within":"1h",` + failed7d, "live=b", "c/8d/failed b/9d/ok a/10d/ok", "newest | label live | - older than 1h"},

		// Builds that have only a log.
		{"log only: kept without logs_only_after", `"keep_within":"1h"`, "", "b/1d a/3000d/log", "newest | only a log, and no logs_only_after"},
		{"log only, exactly as old", `"keep_last":1,"logs_only_after":"90d"`, "", "b/1d a/90d/log", "newest | only a log, not older than 90d"},
		{"log only, older", `"keep_last":9,"keep_within":"400d","logs_only_after":"90d"`, "", "b/1d a/91d/log", "newest | - only a log, older than 90d"},
		{"log only, with an entry of late", `"keep_last":9,"logs_only_after":"90d"`, "", "b/1d a/91d/log/logged=89d", "newest | only a log, not older than 90d"},
		{"log only, in the grace", `"keep_last":9,"logs_only_after":"90d"`, "", "b/1d a/91d/log/arrived=1h", "newest | within grace 24h"},
		{"log only, failed: not removed by failed", `"keep_last":1,` + failed7d, "", "b/1d a/50d/log/failed", "newest | only a log, and no logs_only_after"},
		{"log only is not the newest", `"keep_last":1,"logs_only_after":"90d"`, "", "b/91d/log a/99d", "- only a log, older than 90d | newest"},
		{"nothing but logs", `"keep_last":1,"logs_only_after":"90d"`, "", "b/91d/log a/99d/log", "- only a log, older than 90d | - only a log, older than 90d"},
		{"log only, next of a label", `"keep_last":1,"logs_only_after":"90d"`, "live=b>a", "b/1d a/99d/log", "label live | label live"},

		// Grace and clocks.
		{"grace: created", `"keep_last":1`, "", "b/1h a/24h", "newest | within grace 24h"},
		{"grace: over", `"keep_last":1`, "", "b/1h a/24h1s", "newest | - beyond keep_last 1"},
		{"grace: arrived, exactly as old", `"keep_last":1`, "", "b/1h a/90d/arrived=24h", "newest | within grace 24h"},
		{"grace: arrived, over", `"keep_last":1`, "", "b/1h a/90d/arrived=24h1s", "newest | - beyond keep_last 1"},
		{"grace: created is enough, arrival is not asked", `"keep_last":1`, "", "b/1h a/2h/fails", "newest | within grace 24h"},
		{"arrival is not asked for what is kept", `"keep_last":2`, "live=a", "c/2d/fails b/3d/fails a/9d/fails", "newest | keep_last 2 | label live"},
		{"clocks: created in the future", `"keep_within":"1h"`, "", "c/-50d b/-2h a/9d", "newest | keep_within 1h | - older than 1h"},
		{"clocks: created in the future, beyond keep_last", `"keep_last":1`, "", "c/-50d b/-2h a/9d", "newest | within grace 24h | - beyond keep_last 1"},
		{"clocks: arrived in the future", `"keep_last":1`, "", "b/2d a/9d/arrived=-400d", "newest | within grace 24h"},
		{"clocks: logged in the future", `"keep_last":1,` + failed7d, "", "b/2d a/9d/failed/logged=-1h", "newest | failed, not older than 7d"},
		{"gone since the list was read", `"keep_last":1`, "", "b/2d a/9d/gone", "newest | removed meanwhile"},

		// Labels.
		{"several labels", `"keep_last":1`, "live=a preview=a old=b", "c/2d b/8d a/9d", "newest | label old | label live, preview"},
		{"a label on the newest", `"keep_last":1`, "live=b", "b/2d a/9d", "label live | - beyond keep_last 1"},
		{"labels required, none: skipped", `"keep_last":1,"labels":"required"`, "", "b/2d a/9d", "newest | - beyond keep_last 1 | skip no_label"},
		{"labels required, one", `"keep_last":1,"labels":"required"`, "live=b", "b/2d a/9d", "label live | - beyond keep_last 1"},
		{"labels required, one that was never set", `"keep_last":1,"labels":"required"`, "live=>b", "b/2d a/9d", "label live | - beyond keep_last 1 | skip no_label"},
		{"labels optional, one that was never set", `"keep_last":1`, "live=>b", "b/2d a/9d", "label live | - beyond keep_last 1"},
		{"the build of a label is not in the list", `"keep_last":1`, "live=x", "b/2d a/9d", "newest | - beyond keep_last 1 | skip missing_build"},
		{"the build of a label has only a log", `"keep_last":1`, "live=a", "b/2d a/9d/log", "newest | label live | skip missing_build"},
		{"next of a label may be missing", `"keep_last":1`, "live=b>x", "b/2d a/9d", "label live | - beyond keep_last 1"},
		{"no artifact can be seen, but labels can", `"keep_last":1,"logs_only_after":"1d"`, "live=b", "b/2d/log a/9d/log", "label live | - only a log, older than 1d | skip missing_build"},

		{"the build to roll back to, after a long time", `"keep_last":1`, "live=c<a", "c/2d b/8d a/90d", "label live | - beyond keep_last 1 | previous build of a label"},
		{"the build to roll back to failed", `"keep_last":1,` + failed7d, "live=c<a", "c/2d b/8d a/90d/failed", "label live | - beyond keep_last 1 | previous build of a label"},
		{"the build to roll back to counts for keep_last", `"keep_last":2`, "live=c<b", "c/2d b/8d a/90d", "label live | previous build of a label | - beyond keep_last 2"},
		{"the build to roll back to has only a log", `"keep_last":1,"logs_only_after":"1d"`, "live=c<a", "c/2d a/90d/log", "label live | - only a log, older than 1d"},

		// Empty files.
		{"an empty file is not the newest", `"keep_last":1`, "", "c/2d/empty b/3d a/4d", "its file is empty | newest | - beyond keep_last 1"},
		{"an empty file does not count for keep_last", `"keep_last":2`, "", "d/2d c/3d/empty b/4d a/5d", "newest | its file is empty | keep_last 2 | - beyond keep_last 2"},
		{"an empty file that failed", `"keep_last":1,` + failed7d, "", "b/2d a/90d/empty/failed", "newest | its file is empty"},

		// Logs that cannot be read.
		{"unreadable: kept, does not count, skips the site", `"keep_last":2,` + failed7d, "", "d/2d c/3d/? b/4d a/5d", "newest | its log cannot be read | keep_last 2 | - beyond keep_last 2 | skip unreadable_log"},
		{"unreadable: the newest", `"keep_last":1,` + failed7d, "", "c/2d/? b/3d a/4d", "newest | newest that did not fail | - beyond keep_last 1 | skip unreadable_log"},
		{"unreadable: labelled", `"keep_last":1`, "live=a", "c/2d b/3d a/4d/?", "newest | - beyond keep_last 1 | label live | skip unreadable_log"},
		{"unreadable: log only", `"keep_last":1,"logs_only_after":"1h"`, "", "b/2d a/9d/log/?", "newest | its log cannot be read | skip unreadable_log"},
	} {
		site := parsePlanSite(t, c.labels, c.builds)
		p, err := planSite(planRetention(t, "", c.rule), site, planNow)
		if got := planText(&p, site); err != nil || got != c.want {
			t.Errorf("%s\n got  %s, %v\n want %s", c.name, got, err, c.want)
		}
	}
}

// TestPlanGrace: 0h switches the grace off, but the future stays young.
func TestPlanGrace(t *testing.T) {
	for _, c := range []struct{ grace, builds, want string }{
		{"0h", "b/1h a/2h", "newest | - beyond keep_last 1"},
		{"0h", "b/1h a/2h/arrived=-1h", "newest | within grace 0h"},
		{"0h", "b/-2h a/-1h", "newest | within grace 0h"},
		{"3d", "c/1h b/3d a/73h", "newest | within grace 3d | - beyond keep_last 1"},
	} {
		site := parsePlanSite(t, "", c.builds)
		p, err := planSite(planRetention(t, fmt.Sprintf(`"grace":%q,`, c.grace), `"keep_last":1`), site, planNow)
		if got := planText(&p, site); err != nil || got != c.want {
			t.Errorf("grace %s, %s\n got  %s, %v\n want %s", c.grace, c.builds, got, err, c.want)
		}
	}
}

// TestPlanPercent: too many builds of a site at once are a mistake until somebody says otherwise.
func TestPlanPercent(t *testing.T) {
	for _, c := range []struct {
		name, percent, rule, builds string
		removed                     int
		skip                        skipReason
	}{
		{"10 builds are always allowed", "0", `"keep_last":1`, many(11, 2, "b", ""), 10, skipNone},
		{"11 are more than 10", "0", `"keep_last":1`, many(12, 2, "b", ""), 11, skipPercent},
		{"exactly half", "50", `"keep_last":11`, many(22, 2, "b", ""), 11, skipNone},
		{"more than half", "50", `"keep_last":10`, many(21, 2, "b", ""), 11, skipPercent},
		{"99 % and a bit", "99", `"keep_last":1`, many(101, 2, "b", ""), 100, skipPercent},
		{"100 % never", "100", `"keep_last":1`, many(101, 2, "b", ""), 100, skipNone},
		{"logs do not dilute builds", "50", `"keep_last":1`, many(12, 2, "b", "") + " " + many(99, 20, "c", "/log"), 11, skipPercent},
		{"builds do not dilute logs", "50", `"keep_last":99,"logs_only_after":"1h"`, many(99, 2, "b", "") + " " + many(11, 200, "c", "/log"), 11, skipPercent},
		{"each kind for itself", "50", `"keep_last":10,"logs_only_after":"209d"`, many(20, 2, "b", "") + " " + many(20, 200, "c", "/log"), 20, skipNone},
		{"failed builds count", "50", `"keep_last":1,` + failed7d, many(1, 2, "b", "") + " " + many(11, 20, "c", "/failed"), 11, skipPercent},
		{"young builds are not removed", "0", `"keep_last":1`, many(99, 2, "b", "/arrived=1h"), 0, skipNone},
	} {
		site := parsePlanSite(t, "", c.builds)
		p, err := planSite(planRetention(t, fmt.Sprintf(`"max_delete_percent":%s,`, c.percent), c.rule), site, planNow)
		if err != nil || p.Remove.Builds != c.removed || p.Skip != c.skip {
			t.Errorf("%s: %d removed, skip %q, %v; want %d, %q", c.name, p.Remove.Builds, p.Skip, err, c.removed, c.skip)
		}
	}
}

// TestPlanSkipText: what an operator reads, and what may be forced.
func TestPlanSkipText(t *testing.T) {
	const last1 = `"keep_last":1`
	for _, c := range []struct {
		rule, labels, builds, text string
		fault, force               bool
	}{
		{last1, "", "a/2d", "", false, false},
		{last1 + `,"labels":"required"`, "", "a/2d", `no label: label the build that is live, or set "labels": "optional" in rules[0] "shop"`, false, false},
		{last1 + `,"labels":"required"`, "", "a/2d/?", `no label: label the build that is live, or set "labels": "optional" in rules[0] "shop"`, false, false},
		{last1, "live=x", "a/2d/?", "label live names build x, which is not there", true, false},
		{last1, "", "c/2d b/3d/? a/4d/?", "the logs of 2 builds cannot be read, the first is that of b", true, true},
		{last1, "", many(21, 2, "b", ""), "20 of 21 builds would be removed, which is more than max_delete_percent 50; prune --force removes them all the same", true, true},
		{last1 + `,"logs_only_after":"1d"`, "", "a/1d " + many(21, 2, "b", "/log"), "21 of 21 builds that have only a log would be removed, which is more than max_delete_percent 50; prune --force removes them all the same", true, true},
	} {
		p, err := planSite(planRetention(t, "", c.rule), parsePlanSite(t, c.labels, c.builds), planNow)
		if err != nil || p.SkipText != c.text || p.Skip.isFault() != c.fault || p.Skip.canForce() != c.force {
			t.Errorf("%s, %s, %s\n got  %q, fault %v, force %v, %v\n want %q, fault %v, force %v",
				c.rule, c.labels, c.builds, p.SkipText, p.Skip.isFault(), p.Skip.canForce(), err, c.text, c.fault, c.force)
		}
	}
	for _, s := range []skipReason{skipUnreadableLabel, skipIncompleteList} {
		if !s.isFault() || s.canForce() {
			t.Errorf("%s: fault %v, force %v", s, s.isFault(), s.canForce())
		}
	}
}

// TestPlanOfSiteWithoutRule: all is kept, whatever else.
func TestPlanOfSiteWithoutRule(t *testing.T) {
	site := parsePlanSite(t, "live=x", "c/2d/? b/3d/log a/400d/fails")
	p, err := planSite(mustParseRetention(t, `{"rules":[{"sites":["shop-*"],"keep_last":1}]}`), site, planNow)
	if want := "no rule matches | no rule matches | no rule matches"; planText(&p, site) != want || err != nil {
		t.Errorf("%s, %v; want %s", planText(&p, site), err, want)
	}
}

// TestPlanTally: a dry run says how many bytes it would free (kkRepo#3861).
func TestPlanTally(t *testing.T) {
	p, err := planSite(planRetention(t, "", `"keep_last":1,"logs_only_after":"1h"`), parsePlanSite(t, "live=a", "e/1h/log d/2d/100B c/3d/20B b/4d/log a/5d/3B"), planNow)
	if kept, remove := (tally{3, 103}), (tally{2, 20}); err != nil || p.Kept != kept || p.Remove != remove {
		t.Errorf("kept %v, remove %v, %v; want %v, %v", p.Kept, p.Remove, err, kept, remove)
	}
}

// TestPlanErrors: without a complete list in order, and without arrivals, there is no plan.
func TestPlanErrors(t *testing.T) {
	for _, c := range []struct{ builds, err string }{
		{"c/2d b/3d/fails", `the arrival of build "b": i/o error`},
		{"a/3d b/2d", `the list is not in order at build "b"`},
		{"b/2d a/2d", `the list is not in order at build "a"`},
		{"a/2d a/2d", `the list is not in order at build "a"`},
	} {
		p, err := planSite(planRetention(t, "", `"keep_last":1`), parsePlanSite(t, "", c.builds), planNow)
		if err == nil || err.Error() != c.err || p.Verdicts != nil {
			t.Errorf("%s: %v, %v; want %s", c.builds, p, err, c.err)
		}
	}
}
