package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// keeps is the definition of what is kept, from the documentation: slow, and without an order.
func keeps(r *retention, site pruneSite, b pruneBuild, now time.Time) bool {
	rule := r.rules[0]
	isFailed := func(b pruneBuild) bool {
		return slices.Contains(rule.failedStatus, strings.ToLower(b.Status))
	}
	isThere := func(b pruneBuild) bool { return b.HasArtifact && !b.Empty }
	isGood := func(b pruneBuild) bool { return isThere(b) && !b.UnknownLog && !isFailed(b) }
	newer, newerGood := 0, 0
	for _, o := range site.Builds {
		if o.CreatedAt.After(b.CreatedAt) || o.CreatedAt.Equal(b.CreatedAt) && o.ID < b.ID {
			newer += map[bool]int{true: 1}[isThere(o)]
			newerGood += map[bool]int{true: 1}[isGood(o)]
		}
	}
	within := func(at time.Time, a ruleAge) bool { return a.isSet() && !at.Before(now.Add(-a.Duration)) }
	arrived, err := site.ArrivedAt(b.ID)
	return slices.ContainsFunc(site.Labels, func(l Label) bool {
		return l.BuildID == b.ID || l.Next == b.ID || l.Previous == b.ID && isThere(b)
	}) || b.Empty ||
		isThere(b) && newer == 0 || isGood(b) && newerGood == 0 || b.UnknownLog ||
		within(b.CreatedAt, r.grace) || err != nil || within(arrived, r.grace) ||
		!b.HasArtifact && (!rule.logsOnlyAfter.isSet() || within(b.CreatedAt, rule.logsOnlyAfter) || within(b.LoggedAt, rule.logsOnlyAfter)) ||
		b.HasArtifact && isFailed(b) && (within(b.CreatedAt, rule.failedAfter) || within(b.LoggedAt, rule.failedAfter)) ||
		isGood(b) && (newerGood < rule.keepLast || within(b.CreatedAt, rule.keepWithin))
}

// planCase is a random file, as values, with a random site.
type planCase struct {
	grace, percent, keepLast, keepWithin, failedAfter, logsOnlyAfter int // hours; all but grace and percent: 0 is not set
	site                                                             pruneSite
	arrived                                                          map[string]time.Time
}

// file returns the retention file of the case.
func (c planCase) file() string {
	rule := `"sites":["*"],"labels":"optional"`
	for format, n := range map[string]int{
		`,"keep_last":%d`: c.keepLast, `,"keep_within":"%dh"`: c.keepWithin,
		`,"failed":{"status":["failed","error"],"after":"%dh"}`: c.failedAfter, `,"logs_only_after":"%dh"`: c.logsOnlyAfter,
	} {
		if n > 0 {
			rule += fmt.Sprintf(format, n)
		}
	}
	return fmt.Sprintf(`{"grace":"%dh","max_delete_percent":%d,"rules":[{%s}]}`, c.grace, c.percent, rule)
}

func randomPlanCase(random *rand.Rand) planCase {
	hours := func(most int) int { return max(0, random.IntN(most+most/3)-most/3) } // often 0
	c := planCase{grace: hours(30), percent: random.IntN(101), keepLast: hours(8), keepWithin: hours(60),
		failedAfter: hours(60), logsOnlyAfter: hours(90), arrived: map[string]time.Time{}}
	if c.keepLast == 0 && c.keepWithin == 0 {
		c.keepLast = 1
	}
	// Whole hours, so that many times are equal, and many ages are exactly those of the rule.
	at := func(most int) time.Time { return planNow.Add(time.Duration(6-random.IntN(most+6)) * time.Hour) }
	span := 1 + random.IntN(120)
	for i := range random.IntN(40) {
		b := pruneBuild{ID: fmt.Sprintf("b%02d", i), CreatedAt: at(span), HasArtifact: random.IntN(4) > 0, Size: random.Int64N(1000)}
		b.Empty = b.HasArtifact && random.IntN(15) == 0
		if !b.HasArtifact || random.IntN(3) > 0 { // it has a log
			b.LoggedAt, b.UnknownLog = at(span), random.IntN(20) == 0
			b.Status = []string{"ok", "failed", "Error", ""}[random.IntN(4)]
		}
		c.arrived[b.ID] = b.CreatedAt
		if random.IntN(4) == 0 {
			c.arrived[b.ID] = at(span)
		}
		c.site.Builds = append(c.site.Builds, b)
	}
	slices.SortFunc(c.site.Builds, func(a, b pruneBuild) int { return comparePruned(&a, &b) })
	for i := range random.IntN(4) {
		build := func() string { return fmt.Sprintf("b%02d", random.IntN(50)) } // some are not there
		l := Label{Name: fmt.Sprint("l", i), BuildID: build()}
		if random.IntN(4) == 0 {
			l.Next = build()
		}
		if random.IntN(3) == 0 {
			l.Previous = build()
		}
		c.site.Labels = append(c.site.Labels, l)
	}
	c.site.ArrivedAt = func(id string) (time.Time, error) { return c.arrived[id], nil }
	return c
}

// removedBy returns the builds that the plan of the case removes.
func (c planCase) removedBy(t *testing.T, now time.Time) map[string]bool {
	t.Helper()
	p, err := planSite(mustParseRetention(t, c.file()), c.site, now)
	if err != nil {
		t.Fatal(err)
	}
	removed, sum := map[string]bool{}, tally{}
	for i, v := range p.Verdicts {
		if b := c.site.Builds[i]; v.removes() {
			removed[b.ID] = true
			sum = tally{sum.Builds + 1, sum.Bytes + b.Size}
		}
		if text := p.why(v, c.site.Builds[i].ID); text == "" || strings.HasSuffix(text, " ") {
			t.Errorf("the verdict %d has no reason: %q", v, text)
		}
	}
	if p.Remove != sum || p.Kept.Builds+p.Remove.Builds != len(c.site.Builds) {
		t.Errorf("tally %v and %v, want %v of %d", p.Remove, p.Kept, sum, len(c.site.Builds))
	}
	return removed
}

// TestPlanRandom: whatever the rules, the plan is what its definition says; it contains neither
// the newest nor the labelled nor the young; once it is applied nothing is left to do; and who
// keeps more, or looks earlier, removes nothing that stays otherwise.
func TestPlanRandom(t *testing.T) {
	const seeds = 10_000
	removed := 0
	for seed := range uint64(seeds) {
		random := rand.New(rand.NewPCG(seed, 19))
		c := randomPlanCase(random)
		r, plan := mustParseRetention(t, c.file()), c.removedBy(t, planNow)
		removed += len(plan)
		fail := func(format string, args ...any) {
			t.Errorf("seed %d, %s, labels %v: %s", seed, c.file(), c.site.Labels, fmt.Sprintf(format, args...))
		}

		seen, seenGood := false, false
		for _, b := range c.site.Builds {
			if plan[b.ID] == keeps(r, c.site, b, planNow) {
				fail("%+v: removed %v", b, plan[b.ID])
			}
			isThere := b.HasArtifact && !b.Empty
			isGood := isThere && !b.UnknownLog && !(c.failedAfter > 0 && (b.Status == "failed" || b.Status == "Error"))
			switch {
			case !plan[b.ID]:
			case isThere && !seen:
				fail("the newest is removed: %+v", b)
			case isGood && !seenGood:
				fail("the newest that did not fail is removed: %+v", b)
			case checkUnlabelled(b.ID, c.site.Labels) != nil:
				fail("a labelled one is removed: %+v", b)
			case planNow.Sub(b.CreatedAt) <= r.grace.Duration, planNow.Sub(c.arrived[b.ID]) <= r.grace.Duration:
				fail("a young one is removed: %+v", b)
			}
			seen, seenGood = seen || isThere, seenGood || isGood
		}

		again := c
		again.site.Builds = slices.DeleteFunc(slices.Clone(c.site.Builds), func(b pruneBuild) bool { return plan[b.ID] })
		if more := again.removedBy(t, planNow); len(more) > 0 {
			fail("applied and planned again: %v", slices.Sorted(maps.Keys(more)))
		}

		change := []func(c *planCase, by int){
			func(c *planCase, by int) { c.keepLast += by },
			func(c *planCase, by int) { c.keepWithin += by },
			func(c *planCase, by int) { c.grace += by },
			func(c *planCase, by int) { c.failedAfter += by * min(1, c.failedAfter) },
			func(c *planCase, by int) { c.logsOnlyAfter += by * min(1, c.logsOnlyAfter) },
			func(c *planCase, by int) {
				c.site.Labels = append(slices.Clone(c.site.Labels), Label{Name: "more", BuildID: fmt.Sprintf("b%02d", by)})
			},
			func(c *planCase, by int) {
				c.site.ArrivedAt = func(string) (time.Time, error) { return time.Time{}, ErrNotFound }
			},
		}
		more, by := c, 1+random.IntN(30)
		which := random.IntN(len(change))
		change[which](&more, by)
		for id := range more.removedBy(t, planNow) {
			if !plan[id] {
				fail("change %d by %d removes %s", which, by, id)
			}
		}
		for id := range c.removedBy(t, planNow.Add(-time.Duration(by)*time.Hour)) {
			if !plan[id] {
				fail("%d hours earlier %s is removed", by, id)
			}
		}
	}
	if removed < seeds {
		t.Errorf("only %d builds were removed in %d cases", removed, seeds)
	}
}

// planSiteOf returns a site with a label on its oldest build.
func planSiteOf(builds int) pruneSite {
	site := pruneSite{ID: "shop"}
	for i := range builds {
		site.Builds = append(site.Builds, pruneBuild{ID: fmt.Sprintf("b%06d", i), CreatedAt: planNow.Add(-time.Duration(i) * time.Hour), HasArtifact: true, Status: "ok"})
	}
	site.Labels = []Label{{Name: "live", BuildID: site.Builds[builds-1].ID}}
	return site
}

// TestPlanIsLean: a plan allocates no more for 100,000 builds than for 1,000 but the bytes of the
// verdicts, and asks only for the arrivals of what would go.
func TestPlanIsLean(t *testing.T) {
	r := planRetention(t, "", `"keep_last":10,"keep_within":"500h",`+failed7d)
	calls := 0
	allocations := func(builds int) float64 {
		site := planSiteOf(builds)
		site.ArrivedAt = func(string) (time.Time, error) { calls++; return planNow, nil }
		return testing.AllocsPerRun(1, func() {
			calls = 0
			if p, err := planSite(r, site, planNow); err != nil || p.Kept.Builds != builds {
				t.Fatal(p.Kept, err)
			}
		})
	}
	few := allocations(1000)
	if many := allocations(100_000); many > few {
		t.Errorf("%v allocations for 100,000 builds, %v for 1,000", many, few)
	}
	if want := 100_000 - 501 - 1; calls != want { // those within 500 h, and the labelled
		t.Errorf("%d arrivals were asked for, want %d", calls, want)
	}
}

func BenchmarkPlan(b *testing.B) {
	r := planRetention(b, "", `"keep_last":10,"keep_within":"500h",`+failed7d)
	site := planSiteOf(100_000)
	site.ArrivedAt = func(string) (time.Time, error) { return time.Time{}, nil }
	b.ReportAllocs()
	for b.Loop() {
		if _, err := planSite(r, site, planNow); err != nil {
			b.Fatal(err)
		}
	}
}
