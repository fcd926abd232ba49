package main

import "strings"

// accessScope are the sites that a client sees in a list of sites: those on which it has read or
// admin. A nil *accessScope is all sites.
type accessScope struct{ rules []accessRule }

// scope returns the sites that a client sees in a list, or nil and false if no rule of it has any.
func (p *accessPolicy) scope(who *actor) (*accessScope, bool) {
	s := &accessScope{}
	add := func(rules []accessRule) {
		for _, r := range rules {
			if r.allow&(actionRead|actionAdmin) != 0 {
				s.rules = append(s.rules, r)
			}
		}
	}
	if who != nil {
		add(who.rules)
	}
	add(p.anonymous)
	return s, len(s.rules) > 0
}

// has reports whether a site is in s.
func (s *accessScope) has(siteID string) bool {
	if s == nil {
		return true
	}
	for i := range s.rules {
		if s.rules[i].covers(siteID) {
			return true
		}
	}
	return false
}

// prefix returns the longest text with which the ids of all sites in s begin.
func (s *accessScope) prefix() (common string) {
	if s == nil {
		return ""
	}
	first := true
	for _, r := range s.rules {
		for _, glob := range r.sites {
			head, _, _ := strings.Cut(glob, "*")
			if first {
				common, first = head, false
			}
			n := 0
			for n < len(common) && n < len(head) && common[n] == head[n] {
				n++
			}
			common = common[:n]
		}
	}
	return common
}
