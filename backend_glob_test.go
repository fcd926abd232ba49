package main

import (
	"strings"
	"testing"
)

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		ok         bool
		first      string
	}{
		{"", "", true, ""},
		{"", "a", false, ""},
		{"shop", "shop", true, ""},
		{"shop", "shop2", false, ""},
		{"shop", "Shop", false, ""},
		{"*", "", true, ""},
		{"*", "shop", true, "shop"},
		{"*", "acme/shop", true, "acme/shop"},
		{"shop-*", "shop-de", true, "de"},
		{"shop-*", "shop-", true, ""},
		{"shop-*", "shop", false, ""},
		{"shop-*", "my-shop-de", false, ""},
		{"*-shop", "de-shop", true, "de"},
		{"*-shop", "de-shop2", false, ""},
		{"a*a", "a", false, ""},
		{"a*a", "aa", true, ""},
		{"ab*ba", "aba", false, ""},
		{"a*b*c", "a1b2c", true, "1"},
		{"a*b*c", "a1c2b", false, ""},
		{"*b*", "abab", true, "a"},
		{"a*b*b", "a1b2b3b", true, "1"},
		{"acme/*-*", "acme/x-y-z", true, "x"},
		{"**", "shop", true, ""},
		{"*a*a*a*", "aa", false, ""},
		{"?[a]", "?[a]", true, ""},
		{"?[a]", "xa", false, ""},
		{"{1}", "{1}", true, ""},
		{`\*`, `\x`, true, "x"},
		{"s*p", "s\n\x00p", true, "\n\x00"},
		{"ü*", "über", true, "ber"},
	} {
		first, ok := globCapture(c.pattern, c.s)
		if ok != c.ok || first != c.first {
			t.Errorf("globCapture(%q, %q) = %q, %v, want %q, %v", c.pattern, c.s, first, ok, c.first, c.ok)
		}
		if globMatch(c.pattern, c.s) != c.ok {
			t.Errorf("globMatch(%q, %q) = %v", c.pattern, c.s, !c.ok)
		}
	}
}

// TestGlobIsLinear would not end within any test's time limit with a matcher that goes back.
func TestGlobIsLinear(t *testing.T) {
	pattern, s := strings.Repeat("*a", 200)+"*b", strings.Repeat("a", 100_000)
	if globMatch(pattern, s) {
		t.Error("a text without b matches")
	}
	if !globMatch(pattern, s+"b") {
		t.Error("a text with b does not match")
	}
}

// matchSlowly is the definition of a glob, and tries the shortest run of the first * first.
func matchSlowly(pattern, s string) (first string, ok bool) {
	head, rest, star := strings.Cut(pattern, "*")
	s, ok = strings.CutPrefix(s, head)
	if !ok || !star {
		return "", ok && s == ""
	}
	for i := range len(s) + 1 {
		// What follows the * is a glob too.
		if _, ok := matchSlowly(rest, s[i:]); ok {
			return s[:i], true
		}
	}
	return "", false
}

func FuzzGlob(f *testing.F) {
	for _, c := range [][2]string{{"a*b*c", "a1b2c"}, {"*", ""}, {"acme/*-*", "acme/x-y-z"}, {"*a*a*", "aaa"}, {"ab*ba", "aba"}} {
		f.Add(c[0], c[1])
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if strings.Count(pattern, "*") > 5 || len(s) > 60 {
			return // too slow
		}
		first, ok := globCapture(pattern, s)
		if wantFirst, want := matchSlowly(pattern, s); ok != want || first != wantFirst {
			t.Errorf("globCapture(%q, %q) = %q, %v, want %q, %v", pattern, s, first, ok, wantFirst, want)
		}
	})
}
