package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxRetentionFile  = 1 << 20 // bytes
	maxRetentionGlobs = 4096    // in sites, of all rules
	maxFailedStatus   = 32      // of a rule
	maxRuleAge        = 100 * 365 * 24 * time.Hour

	defaultGrace            = 24 * time.Hour
	defaultMaxDeletePercent = 50
)

// retention is the content of a retention file.
type retention struct {
	grace            ruleAge
	maxDeletePercent int
	rules            []*retentionRule
	globs            int // of all rules
}

// retentionRule says which builds of its sites are kept. At least one of keepLast and keepWithin
// is set.
type retentionRule struct {
	place string   // in the file, with the first of sites: rules[2] "shop-*"
	sites []string // globs

	keepLast       int     // 0: not set
	keepWithin     ruleAge // zero if not set, as all ages here
	failedStatus   []string
	failedAfter    ruleAge // set if failedStatus is
	logsOnlyAfter  ruleAge
	labelsOptional bool // sites without labels are pruned too
}

// ruleFor returns the rule of a site: the first that has a glob which matches. nil: the site has
// no rule, and all of its builds are kept.
func (r *retention) ruleFor(site string) *retentionRule {
	for _, rule := range r.rules {
		if slices.ContainsFunc(rule.sites, func(glob string) bool { return globMatch(glob, site) }) {
			return rule
		}
	}
	return nil
}

// isFailed reports whether a status is one of a failed build. Case does not matter.
func (r *retentionRule) isFailed(status string) bool {
	return slices.ContainsFunc(r.failedStatus, func(s string) bool { return strings.EqualFold(s, status) })
}

// ruleAge is a duration as the file writes it.
type ruleAge struct {
	time.Duration
	text string // 30d
}

func (a ruleAge) isSet() bool { return a.text != "" }

// The retention file as it is written.
type (
	fileRetention struct {
		Grace            *string             `json:"grace"`
		MaxDeletePercent *int                `json:"max_delete_percent"`
		Rules            []fileRetentionRule `json:"rules"`
	}
	fileRetentionRule struct {
		Sites         []string    `json:"sites"`
		KeepLast      *int        `json:"keep_last"`
		KeepWithin    *string     `json:"keep_within"`
		Failed        *fileFailed `json:"failed"`
		LogsOnlyAfter *string     `json:"logs_only_after"`
		Labels        *string     `json:"labels"`
	}
	fileFailed struct {
		Status []string `json:"status"`
		After  *string  `json:"after"`
	}
)

// parseRetention returns the content of a retention file. It accepts nothing that could be a
// mistake. The error begins with the place, as parseJSONFile's, and with the name of the rule.
func parseRetention(data []byte) (*retention, error) {
	var file fileRetention
	if err := parseJSONFile(data, maxRetentionFile, &file); err != nil {
		return nil, err
	}
	r := &retention{grace: ruleAge{defaultGrace, "24h"}, maxDeletePercent: defaultMaxDeletePercent}
	if err := setAge(&r.grace, "grace", file.Grace, 0); err != nil {
		return nil, err
	}
	if file.MaxDeletePercent != nil {
		r.maxDeletePercent = *file.MaxDeletePercent
	}
	if r.maxDeletePercent < 0 || r.maxDeletePercent > 100 {
		return nil, fmt.Errorf("max_delete_percent: %d is not a number from 0 to 100", r.maxDeletePercent)
	}
	if len(file.Rules) == 0 {
		return nil, errors.New("rules: missing or empty; nothing would ever be removed")
	}
	return r, each("rules", file.Rules, r.addRule)
}

func (r *retention) addRule(place string, in *fileRetentionRule) error {
	rule := &retentionRule{place: place}
	if len(in.Sites) > 0 {
		rule.place = named(place, in.Sites[0])
	}
	r.rules = append(r.rules, rule)
	err := r.addSites(rule, in.Sites)
	if err == nil {
		err = rule.set(in)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", rule.place, err)
	}
	return nil
}

// addSites checks the globs of the last rule, and that each of them has an effect.
func (r *retention) addSites(rule *retentionRule, globs []string) error {
	if err := checkGlobs("sites", globs, `"*" is all sites`); err != nil {
		return err
	}
	return each("sites", globs, func(place string, glob *string) error {
		if err := checkSiteGlob(*glob); err != nil {
			return fmt.Errorf("%s: %s cannot match any site: it %w", place, shown(*glob), err)
		}
		// A glob that matches the text of another one matches all sites of that one.
		if other := r.ruleFor(*glob); other == rule {
			return fmt.Errorf("%s: %s has no effect: a glob before it matches all of its sites", place, shown(*glob))
		} else if other != nil {
			return fmt.Errorf("%s: %s has no effect: %s comes first and matches all of its sites; move that rule behind this one", place, shown(*glob), other.place)
		}
		if r.globs++; r.globs > maxRetentionGlobs {
			return fmt.Errorf("%s: the rules have more than %d globs", place, maxRetentionGlobs)
		}
		rule.sites = append(rule.sites, *glob)
		return nil
	})
}

// set checks and sets all but the sites.
func (rule *retentionRule) set(in *fileRetentionRule) error {
	if in.KeepLast == nil && in.KeepWithin == nil {
		return errors.New("keep_last or keep_within is missing: one of them is required")
	}
	if in.KeepLast != nil {
		if rule.keepLast = *in.KeepLast; rule.keepLast < 1 {
			return fmt.Errorf("keep_last: %d is less than 1", rule.keepLast)
		}
	}
	if err := setAge(&rule.keepWithin, "keep_within", in.KeepWithin, 1); err != nil {
		return err
	}
	if in.Failed != nil {
		if err := rule.setFailed(in.Failed); err != nil {
			return err
		}
	}
	if err := setAge(&rule.logsOnlyAfter, "logs_only_after", in.LogsOnlyAfter, 1); err != nil {
		return err
	}
	if in.Labels != nil {
		if *in.Labels != "required" && *in.Labels != "optional" {
			return fmt.Errorf("labels: %s is neither \"required\" nor \"optional\"", shown(*in.Labels))
		}
		rule.labelsOptional = *in.Labels == "optional"
	}
	return nil
}

func (rule *retentionRule) setFailed(in *fileFailed) error {
	if err := checkStrings("failed.status", in.Status, "it lists the statuses of failed builds"); err != nil {
		return err
	}
	if len(in.Status) > maxFailedStatus {
		return fmt.Errorf("failed.status: %d statuses; the maximum is %d", len(in.Status), maxFailedStatus)
	}
	err := each("failed.status", in.Status, func(place string, status *string) error {
		if rule.isFailed(*status) {
			return fmt.Errorf("%s: %s is listed twice; upper and lower case are the same", place, shown(*status))
		}
		rule.failedStatus = append(rule.failedStatus, *status)
		return nil
	})
	if err != nil {
		return err
	}
	if in.After == nil {
		return errors.New("failed.after: missing; it is the age at which failed builds are removed")
	}
	return setAge(&rule.failedAfter, "failed.after", in.After, 1)
}

// ageUnits are the units of ages. There is no m, which could mean minutes or months.
var ageUnits = map[string]time.Duration{"h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour}

// setAge sets an age to that of the file, unless the file has none.
func setAge(a *ruleAge, place string, text *string, atLeast uint64) error {
	if text == nil {
		return nil
	}
	number := strings.TrimRight(*text, "hdw")
	unit := ageUnits[(*text)[len(number):]]
	n, err := strconv.ParseUint(number, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrSyntax) || unit == 0:
		return fmt.Errorf("%s: %s is not an age: write a whole number and h, d or w, such as 24h, 30d or 2w", place, shown(*text))
	case n > uint64(maxRuleAge/unit): // ParseUint returns the largest if it is out of range
		return fmt.Errorf("%s: %s is longer than 100 years", place, shown(*text))
	case n < atLeast:
		return fmt.Errorf("%s: %s must be at least 1h", place, shown(*text))
	}
	*a = ruleAge{time.Duration(n) * unit, *text}
	return nil
}
