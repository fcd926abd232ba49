package main

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// checker is a Backend that can test whether its store does what the service relies on.
type checker interface {
	// runChecks tests the store and passes each result to report as soon as it is
	// known. It leaves nothing behind in the store. It blocks for as long as the store
	// does.
	runChecks(report func(checkResult))
}

// checkTimeout bounds one check of a store.
const checkTimeout = 60 * time.Second

// checkResult is the result of one check.
type checkResult struct {
	what    string
	err     error  // nil: the check passed
	note    string // worth knowing although the check passed
	warning bool   // the service works in spite of err, and promises less
}

// writesSkipped is the result of a service that is read-only.
var writesSkipped = checkResult{what: "checks that write", warning: true,
	err: errors.New("skipped, because PAGEWRIGHT_READ_ONLY is true: unset it and run doctor again before the service accepts changes")}

// String returns the line of a report.
func (f checkResult) String() string {
	switch {
	case f.err == nil && f.note == "":
		return "ok   " + f.what
	case f.err == nil:
		return "ok   " + f.what + ": " + f.note
	case f.warning:
		return "warn " + f.what + ": " + oneLine(f.err)
	}
	return "FAIL " + f.what + ": " + oneLine(f.err)
}

// oneLine returns the text of err on one line. Some SDKs write many.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

const foldsCaseCheck = "names are case-sensitive"

// judgeCaseCheck judges the error of looking for a name that was not created and
// differs only in case from one that was.
func judgeCaseCheck(err error) error {
	if err == nil {
		return errors.New(`names are case-insensitive: a site or build named "Release" would replace one named "release"`)
	}
	return ignoreNotExist(err)
}

// maxSkew is the largest difference between the clocks of this host and of the store
// that passes. Past it signed requests may fail (S3 refuses them from 15 minutes on),
// and versions may be in the wrong order.
const maxSkew = 2 * time.Minute

// judgeClockCheck judges the difference between the clock of this host and that of
// the store. harm says what a large one causes.
func judgeClockCheck(skew time.Duration, harm string) (note string, err error) {
	skew = skew.Round(time.Second)
	if skew.Abs() > maxSkew {
		return "", fmt.Errorf("the clocks differ by %s: %s", skew.Abs(), harm)
	}
	return skew.Abs().String() + " apart", nil
}
