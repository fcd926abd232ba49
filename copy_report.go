package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"
)

// The types of a copyEvent.
const (
	copySiteType  = "site"
	copyBuildType = "build"
	copyLogType   = "log"
	copyLabelType = "label"
)

// The results of a copyEvent.
const (
	copyCopied   = "copied"   // the build was not in the target
	copyReplaced = "replaced" // the target had other bytes
	copyAppended = "appended" // entries, to the log
	copyMoved    = "moved"    // the label, or made
	copySame     = "same"     // the target has it
	copyGone     = "gone"     // it was deleted in the source meanwhile
	copyConflict = "conflict" // the target has something else, which stays
	copyMissing  = "missing"  // the label stays: the target does not have its build
	copyCorrupt  = "corrupt"  // the source, or the log of the target, is damaged
	copyFailed   = "failed"   // a store failed

	// Of a run that changes nothing.
	planCopy    = "copy"
	planReplace = "replace"
	planCompare = "compare" // both have it, but it must be read to compare the bytes
	planAppend  = "append"
	planMove    = "move"
)

// copyEvent is what became of a build, its log or a label, or a site that cannot be listed.
type copyEvent struct {
	Type    string `json:"type"`
	Site    string `json:"site"`
	Build   string `json:"build,omitempty"`
	Label   string `json:"label,omitempty"`
	Result  string `json:"result"`
	Bytes   int64  `json:"bytes,omitempty"`
	Entries int64  `json:"entries,omitempty"`
	SHA256  string `json:"sha256,omitempty"`
	Detail  string `json:"detail,omitempty"`
}

// String returns the line of an event.
func (e copyEvent) String() string {
	line := fmt.Sprintf("%-8s %s", e.Result, e.Site)
	switch e.Type {
	case copyBuildType:
		line += fmt.Sprintf("/%s  %s", e.Build, formatSize(e.Bytes))
	case copyLogType:
		line += fmt.Sprintf("/%s  log", e.Build)
		if e.Entries > 0 {
			line += ", " + countedEntries(e.Entries)
		}
	case copyLabelType:
		line += fmt.Sprintf("  label %s -> %s", e.Label, e.Build)
	}
	if e.Detail != "" {
		line += ": " + e.Detail
	}
	return line
}

func countedEntries(n int64) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

// copyCounts counts what a run saw and did.
type copyCounts struct {
	Sites       int64 `json:"sites"`    // of the source, that match
	Builds      int64 `json:"builds"`   // of these sites, with those that have only a log
	LogOnly     int64 `json:"log_only"` // builds that have only a log
	Bytes       int64 `json:"bytes"`
	Older       int64 `json:"older"` // builds that --since leaves out
	Extra       int64 `json:"extra"` // builds of these sites that only the target has
	Copied      int64 `json:"copied"`
	CopiedBytes int64 `json:"copied_bytes"` // also of builds that were replaced
	Replaced    int64 `json:"replaced"`
	Same        int64 `json:"same"`
	Gone        int64 `json:"gone"`
	Logs        int64 `json:"logs"` // to which entries were appended
	Entries     int64 `json:"entries"`
	Labels      int64 `json:"labels"`    // that were moved
	Conflicts   int64 `json:"conflicts"` // of builds, logs and labels; so are those below
	Missing     int64 `json:"missing"`
	Corrupt     int64 `json:"corrupt"`
	Failed      int64 `json:"failed"`
	Planned     int64 `json:"planned"` // what a run that changes nothing would do
}

// copyReport writes what a run does, and counts it. It is safe for concurrent use.
type copyReport struct {
	commandOutput
	json bool

	counting sync.Mutex
	counts   copyCounts // guarded by counting
}

// see counts a build of the source, once. differs: an event follows.
func (r *copyReport) see(b *listedBuild, older, differs bool) {
	r.counting.Lock()
	defer r.counting.Unlock()
	r.counts.Builds++
	r.counts.Bytes += b.size
	if b.etag == "" {
		r.counts.LogOnly++
	}
	switch {
	case older:
		r.counts.Older++
	case b.etag != "" && !differs:
		r.counts.Same++
	}
}

// seeSite counts a site, once.
func (r *copyReport) seeSite(from, to *copyListing) {
	r.counting.Lock()
	defer r.counting.Unlock()
	r.counts.Sites++
	for id := range to.byID {
		if from.byID[id] == nil {
			r.counts.Extra++
		}
	}
}

// count counts an event.
func (r *copyReport) count(e copyEvent) {
	r.counting.Lock()
	defer r.counting.Unlock()
	c := &r.counts
	switch e.Result {
	case copyCopied:
		c.Copied++
		c.CopiedBytes += e.Bytes
	case copyReplaced:
		c.Replaced++
		c.CopiedBytes += e.Bytes
	case copyAppended:
		c.Logs++
		c.Entries += e.Entries
	case copyMoved:
		c.Labels++
	case copySame:
		if e.Type == copyBuildType {
			c.Same++
		}
	case copyGone:
		c.Gone++
	case copyConflict:
		c.Conflicts++
	case copyMissing:
		c.Missing++
	case copyCorrupt:
		c.Corrupt++
	case copyFailed:
		c.Failed++
	default:
		c.Planned++
	}
}

// add counts an event, and writes it unless nothing was to be done.
func (r *copyReport) add(e copyEvent) error {
	r.count(e)
	switch {
	case e.Result == copySame:
		return nil
	case r.json:
		return r.object(e)
	}
	return r.line(e.String() + "\n")
}

// object writes a line of JSON.
func (r *copyReport) object(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return r.line(string(data) + "\n")
}

func (r *copyReport) line(text string) error {
	if err := r.print(text); err != nil {
		return fmt.Errorf("%w: %w", errCopyOutput, err)
	}
	return nil
}

// copySummary is the last line of the output.
type copySummary struct {
	Type     string    `json:"type"` // "summary"
	DryRun   bool      `json:"dry_run"`
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	Complete bool      `json:"complete"` // the run came to its end
	Error    string    `json:"error,omitempty"`
	copyCounts
}

// summary writes the summary of a run that has ended with err.
func (r *copyReport) summary(c *copyRun, err error) error {
	s := copySummary{"summary", c.options.DryRun, c.start.UTC(), time.Now().UTC(), err == nil, "", r.now()}
	if err != nil {
		s.Error = oneLine(err)
	}
	if r.json {
		return r.object(s)
	}
	return r.line(s.String())
}

// now returns the counts.
func (r *copyReport) now() copyCounts {
	r.counting.Lock()
	defer r.counting.Unlock()
	return r.counts
}

// String returns the summary for people.
func (s copySummary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s in %s, %s", counted(s.Builds, "build"), counted(s.Sites, "site"), formatSize(s.Bytes))
	if s.DryRun {
		fmt.Fprintf(&b, ": %d to do, %d the same, %s\n", s.Planned, s.Same, counted(s.Conflicts, "conflict"))
	} else {
		fmt.Fprintf(&b, ": %d copied, %d replaced, %d the same, %s in %s, %s; %s in %s\n", s.Copied, s.Replaced, s.Same,
			countedEntries(s.Entries), counted(s.Logs, "log"), counted(s.Labels, "label"), formatSize(s.CopiedBytes), s.Finished.Sub(s.Started).Round(time.Second))
	}
	for _, extra := range []struct {
		n    int64
		noun string
		text string
	}{
		{s.LogOnly, "build", " with only a log"},
		{s.Older, "build", " left out by --since"},
		{s.Extra, "build", " of these sites only in the target"},
		{s.Gone, "build or log", " deleted in the source meanwhile"},
		{s.Missing, "label", " not moved: the target does not have the build"},
	} {
		if extra.n > 0 {
			fmt.Fprintf(&b, "%s%s\n", counted(extra.n, extra.noun), extra.text)
		}
	}
	if s.Conflicts+s.Corrupt+s.Failed > 0 && !s.DryRun {
		fmt.Fprintf(&b, "%s, %d corrupt, %d failed\n", counted(s.Conflicts, "conflict"), s.Corrupt, s.Failed)
	}
	switch {
	case s.Complete && s.DryRun:
		fmt.Fprintln(&b, "nothing was changed: this was a dry run")
	case s.Complete:
	case s.Error == errCopyInterrupted.Error():
		fmt.Fprintf(&b, "incomplete: %s; run it again to continue\n", s.Error)
	default: // the last line of standard error says which
		fmt.Fprintln(&b, "incomplete: stopped by an error; correct the cause, then run it again to continue")
	}
	return b.String()
}
