package main

import (
	"fmt"
	"strings"
)

// globMatch reports whether a glob matches all of s. A * stands for any run of bytes, also
// none; each other byte stands for itself.
func globMatch(pattern, s string) bool {
	_, ok := globCapture(pattern, s)
	return ok
}

// globCapture is globMatch, and returns what the first * stands for: the shortest run for which
// the rest of the glob matches.
//
// It never backtracks: each text between two * is taken where it occurs first, which leaves the most
// for the rest of the glob.
func globCapture(pattern, s string) (first string, ok bool) {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return "", s == pattern
	}
	s, ok = strings.CutPrefix(s, head)
	if !ok {
		return "", false
	}
	for i := 0; ; i++ {
		text, more, star := strings.Cut(rest, "*")
		skipped, left := s, ""
		if star {
			skipped, left, ok = strings.Cut(s, text)
		} else {
			skipped, ok = strings.CutSuffix(s, text)
		}
		if !ok {
			return "", false
		}
		if i == 0 {
			first = skipped
		}
		if !star {
			return first, true
		}
		rest, s = more, left
	}
}

// checkSiteGlob returns an error unless a glob can match the id of a site.
func checkSiteGlob(glob string) error {
	if err := checkID(strings.ReplaceAll(glob, "*", "x")); err != nil {
		return fmt.Errorf("%w; a glob is an id in which * is any run of characters", err)
	}
	return nil
}
