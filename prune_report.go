package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// pruneOutput is the pruneReport of the command.
type pruneOutput struct {
	stdout io.Writer
	json   bool
	apply  bool
}

// The lines of --json. A line of a build has the type "build", and so on.
type (
	pruneBuildLine struct {
		Type      string    `json:"type"`
		Site      string    `json:"site"`
		Build     string    `json:"build"`
		CreatedAt time.Time `json:"created_at"`
		Age       int64     `json:"age_seconds"`
		Bytes     int64     `json:"bytes"`
		Action    string    `json:"action"`
		Reason    string    `json:"reason"`
		Detail    string    `json:"detail,omitempty"`
	}
	pruneSiteLine struct {
		Type         string     `json:"type"`
		Site         string     `json:"site"`
		Rule         string     `json:"rule,omitempty"`
		Skipped      skipReason `json:"skipped,omitempty"`
		Forced       bool       `json:"forced,omitempty"`
		Detail       string     `json:"detail,omitempty"`
		Builds       int        `json:"builds"`
		Bytes        int64      `json:"bytes"`
		Remove       int        `json:"remove"`
		RemoveBytes  int64      `json:"remove_bytes"`
		Removed      int        `json:"removed"`
		RemovedBytes int64      `json:"removed_bytes"`
	}
	pruneSummary struct {
		Type     string    `json:"type"`
		Apply    bool      `json:"apply"`
		Started  time.Time `json:"started"`
		Finished time.Time `json:"finished"`
		Complete bool      `json:"complete"`
		Error    string    `json:"error,omitempty"`
		pruneCounts
		Skipped map[skipReason]int64 `json:"skipped"` // sites, by reason
	}
)

func (o *pruneOutput) object(v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		_, err = o.stdout.Write(append(data, '\n'))
	}
	return err
}

// build implements pruneReport.
func (o *pruneOutput) build(site string, b buildResult) error {
	if o.json {
		return o.object(pruneBuildLine{"build", site, b.Build, b.CreatedAt, int64(b.Age.Seconds()), b.Bytes, b.Action, b.Reason, b.Detail})
	}
	reason := b.Reason
	if b.Detail != "" {
		reason = fmt.Sprintf("not removed: %s (%s)", b.Detail, reason)
	}
	_, err := fmt.Fprintf(o.stdout, "%-8s %-40s %5s %9s  %s\n", b.Action, site+"/"+b.Build, formatAge(b.Age), formatSize(b.Bytes), reason)
	return err
}

// formatAge returns an age in hours or days, as the retention file writes it.
func formatAge(age time.Duration) string {
	switch {
	case age < time.Hour:
		return "<1h"
	case age < 48*time.Hour:
		return fmt.Sprintf("%dh", age/time.Hour)
	}
	return fmt.Sprintf("%dd", age/(24*time.Hour))
}

// site implements pruneReport.
func (o *pruneOutput) site(s siteResult) error {
	all := tally{s.Kept.Builds + s.Remove.Builds, s.Kept.Bytes + s.Remove.Bytes}
	if o.json {
		return o.object(pruneSiteLine{"site", s.Site, s.Rule, s.Skip, s.Forced, s.Detail, all.Builds, all.Bytes, s.Remove.Builds, s.Remove.Bytes, s.Removed.Builds, s.Removed.Bytes})
	}
	text := ""
	switch {
	case s.Rule == "":
		text = "no rule, everything is kept"
	case s.Skip != skipNone && !s.Forced:
		text = "skipped, nothing is removed: " + s.Detail
	default:
		verb, n := "to remove", s.Remove
		if o.apply {
			verb, n = "removed", s.Removed
		}
		text = fmt.Sprintf("%d of %s %s, %s of %s, by %s", n.Builds, counted(int64(all.Builds), "build"), verb, formatSize(n.Bytes), formatSize(all.Bytes), s.Rule)
		if s.Forced {
			text += "; forced, although " + s.Detail
		}
	}
	_, err := fmt.Fprintf(o.stdout, "%s: %s\n", s.Site, text)
	return err
}

// summary writes the summary of a run that has ended.
func (o *pruneOutput) summary(s *pruneState) error {
	if o.json {
		line := pruneSummary{"summary", o.apply, s.Started, s.Finished, s.Complete, s.Error, s.Counts, map[skipReason]int64{}}
		for _, skipped := range s.Skipped {
			line.Skipped[skipped.Reason] = skipped.Count
		}
		return o.object(line)
	}
	_, err := io.WriteString(o.stdout, s.summary(o.apply))
	return err
}

// summary returns the summary for people.
func (s *pruneState) summary(apply bool) string {
	c := &s.Counts
	var b strings.Builder
	verb, n, bytes := "to remove", c.Remove, c.RemoveBytes
	if apply {
		verb, n, bytes = "removed", c.Removed, c.RemovedBytes
	}
	fmt.Fprintf(&b, "%s, %s, %s: %s %s, %s\n", counted(c.Sites, "site"), counted(c.Builds, "build"), formatSize(c.Bytes), counted(n, "build"), verb, formatSize(bytes))
	for _, extra := range []struct {
		n          int64
		noun, text string
	}{
		{c.NoRule, "site", "without a rule, whose builds are not counted"},
		{c.Changed, "build", "not removed: changed after the plan"},
		{c.Labelled, "build", "not removed: labelled after the plan"},
		{c.Failed, "build", "not removed: the store failed"},
	} {
		if extra.n > 0 {
			fmt.Fprintf(&b, "%s %s\n", counted(extra.n, extra.noun), extra.text)
		}
	}
	for _, k := range s.Skipped {
		fmt.Fprintf(&b, "%s skipped: %s\n", counted(k.Count, "site"), k.Reason)
	}
	if !s.Complete {
		fmt.Fprintf(&b, "incomplete: %s\n", s.Error)
	}
	if !apply {
		b.WriteString("nothing was removed; run with --apply to remove builds\n")
	}
	return b.String()
}
