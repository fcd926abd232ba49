package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// pruneBuild is what a plan must know of a build.
type pruneBuild struct {
	ID          string
	Size        int64
	CreatedAt   time.Time
	HasArtifact bool      // otherwise there is only a log
	Empty       bool      // the artifact has no bytes: the service does not store such a file
	UnknownLog  bool      // the log could not be read
	Status      string    // of the latest log entry; empty: no log
	LoggedAt    time.Time // of the latest log entry; zero: no log
	ETag        string    // Version.etag; the plan does not use it
	LogTag      string    // Version.logTag; the plan does not use it
	ArrivedAt   time.Time // Version.arrivedAt
}

// pruneSite is what a plan must know of a site. Labels are read before Builds: then each labelled
// build is in the list, unless something is wrong.
type pruneSite struct {
	ID     string
	Labels []Label
	Builds []pruneBuild // all of the site, in the order of compareVersions
	// ArrivedAt is that of the ArrivalTeller. It is called only for builds that are removed unless
	// they are young, and whose own ArrivedAt is zero.
	ArrivedAt func(buildID string) (time.Time, error)
}

// pruneVerdict says whether a build is kept or removed, and why.
type pruneVerdict uint8

const (
	keepNoRule     pruneVerdict = iota
	keepLabel                   // a label protects it
	keepNewest                  // of those that have an artifact
	keepNewestGood              // of those that have an artifact and did not fail
	keepPrevious                // a label named it before: it is what one rolls back to
	keepEmpty                   // something else than the service wrote it
	keepUnknownLog              // it may have failed or not
	keepFailed                  // failed, but not yet failed.after old
	keepLast
	keepWithin
	keepLogOnly      // the rule has no logs_only_after
	keepLogOnlyYoung // not yet logs_only_after old
	keepGrace
	keepGone     // somebody else removed it since the list was read
	removeFailed // this one and all below remove the build
	removeOld
	removeLogOnly
)

func (v pruneVerdict) removes() bool { return v >= removeFailed }

// skipReason is why nothing of a site is removed. It is the label of a metric.
type skipReason string

const (
	skipNone            skipReason = ""
	skipNoLabel         skipReason = "no_label"           // and the rule requires one
	skipMissingBuild    skipReason = "missing_build"      // a label names a build that is not in the list
	skipUnreadableLog   skipReason = "unreadable_log"     // of any build
	skipPercent         skipReason = "max_delete_percent" // too many builds would be removed
	skipUnreadableLabel skipReason = "unreadable_label"   // there is no plan, as below
	skipIncompleteList  skipReason = "incomplete_list"
)

// isFault reports whether an operator should look into it. A site without labels is a choice.
func (s skipReason) isFault() bool { return s != skipNone && s != skipNoLabel }

// canForce reports whether the plan may be applied all the same: what must not be removed is
// not in it.
func (s skipReason) canForce() bool { return s == skipUnreadableLog || s == skipPercent }

// sitePlan says which builds of a site are removed.
type sitePlan struct {
	Verdicts     []pruneVerdict // in the order of pruneSite.Builds
	Kept, Remove tally
	Skip         skipReason // nothing is removed, although Verdicts say so
	SkipText     string     // Skip in words, with names and figures

	rule   *retentionRule
	grace  ruleAge
	labels []Label
}

// tally counts builds.
type tally struct {
	Builds int
	Bytes  int64
}

// planSite returns the plan of a site. now is the earlier of the clocks of the process and of the
// store. It fails if the list is not in order, and with any error of ArrivedAt except ErrNotFound.
//
// Kept are: what a label protects or named before, the newest build that has an artifact, the newest
// of those that did not fail, and everything that was created or arrived within grace. Beyond that, builds that
// have only a log are removed after logs_only_after, and failed ones after failed.after, both
// whatever keep_last and keep_within say, and both without an upload or a log entry for so long. Of
// the rest, keep_last and keep_within keep what either of them keeps. A build whose log cannot be
// read, or whose artifact is empty, is kept, and does not count.
func planSite(r *retention, site pruneSite, now time.Time) (sitePlan, error) {
	p := sitePlan{Verdicts: make([]pruneVerdict, len(site.Builds)), rule: r.ruleFor(site.ID), grace: r.grace, labels: site.Labels}
	scan := planScan{sitePlan: &p, now: now, there: map[string]bool{}, previous: map[string]bool{}}
	for _, l := range site.Labels {
		scan.there[l.BuildID], scan.there[l.Next] = false, false
		scan.previous[l.Previous] = true
	}
	for i := range site.Builds {
		b := &site.Builds[i]
		if i > 0 && comparePruned(&site.Builds[i-1], b) >= 0 {
			return sitePlan{}, fmt.Errorf("the list is not in order at build %q", b.ID)
		}
		v := scan.judge(b)
		if v.removes() {
			var err error
			if v, err = scan.spareYoung(v, b, site.ArrivedAt); err != nil {
				return sitePlan{}, fmt.Errorf("the arrival of build %q: %w", b.ID, err)
			}
		}
		p.Verdicts[i] = v
		scan.count(v, b)
	}
	if p.rule != nil {
		p.Skip, p.SkipText = scan.skip(r.maxDeletePercent)
	}
	return p, nil
}

// comparePruned is compareVersions.
func comparePruned(a, b *pruneBuild) int {
	return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), strings.Compare(a.ID, b.ID))
}

// planScan is the state of planSite on its way from the newest build to the oldest.
type planScan struct {
	*sitePlan
	now         time.Time
	there       map[string]bool // the builds that labels name: whether they have an artifact
	previous    map[string]bool // the builds that labels named before
	seen        bool            // a build with an artifact
	good        int             // builds with an artifact that did not fail
	all, remove [2]int          // builds [0] with an artifact, [1] with a log only
	unknown     int             // builds whose log cannot be read
	firstBad    string          // one of unknown
}

// judge returns the verdict on the next build, before grace.
func (s *planScan) judge(b *pruneBuild) pruneVerdict {
	if s.rule == nil {
		return keepNoRule
	}
	isThere := b.HasArtifact && !b.Empty
	isGood := isThere && !b.UnknownLog && !s.rule.isFailed(b.Status)
	isNewest := isThere && !s.seen
	s.seen = s.seen || isThere
	if isGood {
		s.good++
	}
	if b.UnknownLog {
		s.unknown++
		s.firstBad = cmp.Or(s.firstBad, b.ID)
	}
	if _, labelled := s.there[b.ID]; labelled {
		s.there[b.ID] = b.HasArtifact
		return keepLabel
	}
	age := s.now.Sub(b.CreatedAt)
	quiet := min(age, s.now.Sub(b.LoggedAt)) // since the latest upload or log entry
	switch {
	case isNewest:
		return keepNewest
	case isGood && s.good == 1:
		return keepNewestGood
	case s.previous[b.ID] && isThere:
		return keepPrevious
	case b.Empty:
		return keepEmpty
	case b.UnknownLog:
		return keepUnknownLog
	case !b.HasArtifact && !s.rule.logsOnlyAfter.isSet():
		return keepLogOnly
	case !b.HasArtifact:
		return orYoung(quiet, s.rule.logsOnlyAfter, keepLogOnlyYoung, removeLogOnly)
	case !isGood:
		return orYoung(quiet, s.rule.failedAfter, keepFailed, removeFailed)
	case s.good <= s.rule.keepLast:
		return keepLast
	case s.rule.keepWithin.isSet():
		return orYoung(age, s.rule.keepWithin, keepWithin, removeOld)
	}
	return removeOld
}

// orYoung returns kept for an age of at most limit, otherwise removed. Times in the future are young.
func orYoung(age time.Duration, limit ruleAge, kept, removed pruneVerdict) pruneVerdict {
	if age <= limit.Duration {
		return kept
	}
	return removed
}

// spareYoung returns v, the verdict of a build that is removed, unless the build is in the grace.
func (s *planScan) spareYoung(v pruneVerdict, b *pruneBuild, arrivedAt func(string) (time.Time, error)) (pruneVerdict, error) {
	if s.now.Sub(b.CreatedAt) <= s.grace.Duration {
		return keepGrace, nil
	}
	at, err := b.ArrivedAt, error(nil)
	if at.IsZero() {
		at, err = arrivedAt(b.ID)
	}
	if errors.Is(err, ErrNotFound) {
		return keepGone, nil
	}
	return orYoung(s.now.Sub(at), s.grace, keepGrace, v), err
}

func (s *planScan) count(v pruneVerdict, b *pruneBuild) {
	kind, t := 1, &s.Kept
	if b.HasArtifact {
		kind = 0
	}
	s.all[kind]++
	if v.removes() {
		s.remove[kind]++
		t = &s.Remove
	}
	t.Builds++
	t.Bytes += b.Size
}

// maxUnguarded is how many builds of a site are removed whatever max_delete_percent is.
const maxUnguarded = 10

// skip returns why nothing of the site is removed.
func (s *planScan) skip(maxPercent int) (skipReason, string) {
	if s.rule.needsLabel(s.labels) {
		return skipNoLabel, fmt.Sprintf(`no label: label the build that is live, or set "labels": "optional" in %s`, s.rule.place)
	}
	for _, l := range s.labels {
		if l.BuildID != "" && !s.there[l.BuildID] {
			return skipMissingBuild, fmt.Sprintf("label %s names build %s, which is not there", l.Name, l.BuildID)
		}
	}
	if s.unknown > 0 {
		return skipUnreadableLog, fmt.Sprintf("the logs of %d builds cannot be read, the first is that of %s", s.unknown, s.firstBad)
	}
	for kind, what := range []string{"builds", "builds that have only a log"} {
		if n, all := s.remove[kind], s.all[kind]; n > maxUnguarded && n*100 > all*maxPercent {
			return skipPercent, fmt.Sprintf("%d of %d %s would be removed, which is more than max_delete_percent %d; prune --force removes them all the same", n, all, what, maxPercent)
		}
	}
	return skipNone, ""
}

// needsLabel reports whether nothing of a site with these labels is removed because the rule
// requires a label. One that was never set completely names no build yet.
func (rule *retentionRule) needsLabel(labels []Label) bool {
	return !rule.labelsOptional && !slices.ContainsFunc(labels, func(l Label) bool { return l.BuildID != "" })
}

// why returns the reason of a verdict in words.
func (p *sitePlan) why(v pruneVerdict, buildID string) string {
	switch v {
	case keepNoRule:
		return "no rule matches"
	case keepLabel:
		var names []string
		for _, l := range p.labels {
			if l.protects(buildID) {
				names = append(names, l.Name)
			}
		}
		return "label " + strings.Join(names, ", ")
	case keepNewest:
		return "newest"
	case keepNewestGood:
		return "newest that did not fail"
	case keepPrevious:
		return "previous build of a label"
	case keepEmpty:
		return "its file is empty"
	case keepUnknownLog:
		return "its log cannot be read"
	case keepFailed:
		return "failed, not older than " + p.rule.failedAfter.text
	case keepLast:
		return fmt.Sprintf("keep_last %d", p.rule.keepLast)
	case keepWithin:
		return "keep_within " + p.rule.keepWithin.text
	case keepLogOnly:
		return "only a log, and no logs_only_after"
	case keepLogOnlyYoung:
		return "only a log, not older than " + p.rule.logsOnlyAfter.text
	case keepGrace:
		return "within grace " + p.grace.text
	case keepGone:
		return "removed meanwhile"
	case removeFailed:
		return "failed, older than " + p.rule.failedAfter.text
	case removeLogOnly:
		return "only a log, older than " + p.rule.logsOnlyAfter.text
	}
	var beyond []string
	if p.rule.keepLast > 0 {
		beyond = append(beyond, fmt.Sprintf("beyond keep_last %d", p.rule.keepLast))
	}
	if p.rule.keepWithin.isSet() {
		beyond = append(beyond, "older than "+p.rule.keepWithin.text)
	}
	return strings.Join(beyond, ", ")
}
