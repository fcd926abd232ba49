package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"
)

// verifyFinding is the result of a build, of a log, or of what the service did not write. A
// site that cannot be listed is a finding without a build, and one of all sites has no site.
type verifyFinding struct {
	Site     string `json:"site"`
	Build    string `json:"build,omitempty"`
	File     string `json:"file,omitempty"` // of a foreign file
	Result   string `json:"result"`
	Detail   string `json:"detail,omitempty"`
	Expected string `json:"expected,omitempty"` // SHA-256 in hexadecimal
	Got      string `json:"got,omitempty"`
}

// notable reports whether a finding is reported without -v.
func (f verifyFinding) notable() bool {
	return f.Result != resultOK && f.Result != resultFilled && f.Result != resultUnknown
}

// String returns the line of a finding. Ids have no spaces, and names of foreign files are
// quoted.
func (f verifyFinding) String() string {
	line := f.Result
	if f.Site != "" {
		line += " " + f.Site
	}
	if f.Build != "" {
		line += "/" + f.Build
	}
	switch {
	case f.Result == resultForeign:
		return fmt.Sprintf("%s: %q (%s)", line, f.File, f.Detail)
	case f.Got != "":
		return fmt.Sprintf("%s: the SHA-256 is %s, kept is %s", line, f.Got, f.Expected)
	case f.Detail != "":
		return line + ": " + f.Detail
	}
	return line
}

// verifyReport writes the result to stdout, and to stderr what is for people. It is safe for
// concurrent use.
type verifyReport struct {
	commandOutput
	json    bool
	verbose bool // report also what is not notable, except builds that are ok

	saving   sync.Mutex
	notSaved string // the error that was reported last; guarded by saving
}

// finding writes a finding, if it is to be reported.
func (r *verifyReport) finding(f verifyFinding) error {
	if f.Result == resultOK || !r.verbose && !f.notable() {
		return nil
	}
	if r.json {
		return r.object(struct {
			Type string `json:"type"`
			verifyFinding
		}{"finding", f})
	}
	return r.line(f.String() + "\n")
}

// object writes a line of JSON.
func (r *verifyReport) object(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return r.line(string(data) + "\n")
}

// line writes lines to stdout.
func (r *verifyReport) line(text string) error {
	if err := r.print(text); err != nil {
		return fmt.Errorf("%w: %w", errVerifyOutput, err)
	}
	return nil
}

// saved reports that the state could not be kept in the store, once for each new error.
func (r *verifyReport) saved(err error) {
	text := ""
	if err != nil {
		text = oneLine(err)
	}
	r.saving.Lock()
	repeated := text == r.notSaved
	r.notSaved = text
	r.saving.Unlock()
	if text != "" && !repeated {
		fmt.Fprintf(r, "verify: cannot keep the state in the store, so --resume will not find it: %s\n", text)
	}
}

// noState warns that the state of the latest run cannot be used.
func (r *verifyReport) noState(err error) {
	fmt.Fprintf(r, "verify: cannot use the state of the latest run: %s\n", damagedText(err))
}

// resuming reports what --resume found.
func (r *verifyReport) resuming(resumed bool) {
	text := "there is no stopped run with these options; starting from the beginning"
	if resumed {
		text = "continuing the run that was stopped"
	}
	fmt.Fprintf(r, "verify: %s\n", text)
}

// verifySummary is the last line of the output.
type verifySummary struct {
	Type     string        `json:"type"` // "summary"
	Started  time.Time     `json:"started"`
	Finished time.Time     `json:"finished"`
	Complete bool          `json:"complete"`
	Resumed  bool          `json:"resumed"`
	Error    string        `json:"error,omitempty"`
	Options  verifyOptions `json:"options"`
	Builds   int64         `json:"builds"` // of all results
	verifyCounts
}

// summary writes the summary of a run that has ended.
func (r *verifyReport) summary(s verifyState, resumed bool) error {
	if r.json {
		return r.object(verifySummary{"summary", s.Started, s.Finished, s.Complete, resumed, s.Error, s.Options, s.Counts.builds(), s.Counts})
	}
	return r.line(s.summary())
}

// summary returns the summary for people.
func (s *verifyState) summary() string {
	c := &s.Counts
	var b strings.Builder
	fmt.Fprintf(&b, "%s in %s, %s read in %s: %d ok, %d corrupt, %d changed, %d unknown, %d skipped\n", counted(c.builds(), "build"), counted(c.Sites, "site"),
		formatSize(c.Bytes), s.Finished.Sub(s.Started).Round(time.Second), c.OK, c.Corrupt, c.Changed, c.Unknown, c.Skipped)
	for _, extra := range []struct {
		n    int64
		noun string
		text string
	}{
		{c.Filled, "missing digest", " kept now"},
		{c.Rebound, "digest", " bound to the same bytes with another time"},
		{c.DamagedDigests, "damaged digest", ""},
		{c.DamagedLogs, "damaged log", ""},
		{c.Foreign, "foreign file", ""},
	} {
		if extra.n > 0 {
			fmt.Fprintf(&b, "%s%s\n", counted(extra.n, extra.noun), extra.text)
		}
	}
	if !s.Complete {
		fmt.Fprintf(&b, "incomplete: %s; run it again with --resume to continue\n", s.Error)
	}
	return b.String()
}
