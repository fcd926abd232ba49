package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Precondition is a condition on the current artifact under which a change is made. It is
// evaluated in the order of RFC 9110, section 13.2.2, and then Absent. The zero value
// always holds.
type Precondition struct {
	IfMatch           *ETagList
	IfUnmodifiedSince time.Time // ignored if IfMatch is set; zero: not set
	IfNoneMatch       *ETagList
	Absent            bool     // set by the service, not the client: there must be no artifact
	Outcome           *Outcome // no condition: gets what the change did, where the store knows; may be nil
}

// ETagList is the value of If-Match or If-None-Match: any entity tag ("*"), or a list of
// tags. Each has its quotes, and W/ if it is weak.
type ETagList struct {
	Any  bool
	Tags []string
}

// Check returns ErrPrecondition unless p holds for the current artifact. nil means that
// there is none.
func (p Precondition) Check(current *ArtifactInfo) error {
	switch {
	case p.IfMatch != nil:
		if current == nil || !p.IfMatch.Any && !slices.Contains(p.IfMatch.Tags, current.ETag) {
			return errNoMatch
		}
	case !p.IfUnmodifiedSince.IsZero():
		if current != nil && current.ModTime.Truncate(time.Second).After(p.IfUnmodifiedSince) {
			return errModified
		}
	}
	if l := p.IfNoneMatch; l != nil && current != nil && (l.Any || l.matchWeak(current.ETag)) {
		return errMatch
	}
	if p.Absent && current != nil {
		return errExists
	}
	return nil
}

// checkCondition is cond.Check of the artifact that a stat described as info and err. It
// returns err unless that is nil or ErrNotFound.
func checkCondition(cond Precondition, info ArtifactInfo, err error) error {
	switch {
	case err == nil:
		return cond.Check(&info)
	case errors.Is(err, ErrNotFound):
		return cond.Check(nil)
	}
	return err
}

// IsZero reports whether p always holds.
func (p Precondition) IsZero() bool {
	return p.IfMatch == nil && p.IfNoneMatch == nil && p.IfUnmodifiedSince.IsZero() && !p.Absent
}

// CreateOnly reports whether p holds if and only if there is no artifact. Then a call that
// replaces nothing decides, and the current artifact need not be read.
func (p Precondition) CreateOnly() bool {
	return p.IfMatch == nil && (p.Absent || p.IfNoneMatch != nil && p.IfNoneMatch.Any)
}

// matchWeak is the weak comparison of RFC 9110, section 8.8.3.2.
func (l *ETagList) matchWeak(etag string) bool {
	return slices.ContainsFunc(l.Tags, func(t string) bool {
		return t == etag || len(t) > 2 && t[:2] == "W/" && t[2:] == etag
	})
}

// Which part of a Precondition did not hold. All are ErrPrecondition.
var (
	errNoMatch  = fmt.Errorf("%w: If-Match", ErrPrecondition)
	errModified = fmt.Errorf("%w: If-Unmodified-Since", ErrPrecondition)
	errMatch    = fmt.Errorf("%w: If-None-Match", ErrPrecondition)
	errExists   = fmt.Errorf("%w: the build already exists", ErrPrecondition)
)
