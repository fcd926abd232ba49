package main

import (
	"strings"
	"testing"
)

// TestJudge: each violation is found, and nothing else. A case has the beginning of the first
// violation, or nothing.
func TestJudge(t *testing.T) {
	for _, c := range []struct{ history, want string }{
		{"upload b x 1-2; see b x 3-4", ""},
		{"upload b x 1-2; see b - 3-4", "acknowledged build gone"},
		{"upload b x 1-2?; see b - 3-4", ""},
		{"upload b x 1-5; see b - 3-4", ""},
		{"upload b x 1-2; delete b 3-4; see b - 5-6", ""},
		{"upload b x 1-2; delete b 3-4?; see b - 5-6", ""},
		{"upload b x 1-2; delete b 3-4!; see b - 5-6", "acknowledged build gone"},
		{"upload b x 1-2; delete c 3-4; see b - 5-6", "acknowledged build gone"},
		{"delete b 1-2; upload b x 3-4; see b - 5-6", "acknowledged build gone"},
		{"delete b 1-4; upload b x 2-3; see b - 5-6", ""},
		{"delsite 1-2; upload b x 3-4; see b - 5-6", "acknowledged build gone"},
		{"delsite 1-4?; upload b x 2-3; see b - 5-6", ""},
		{"upload b x 1-2; see b - 3-5; delete b 4-6", ""},
		{"upload b x 1-2; log b e 3-4; see b - 5-6", "acknowledged build gone"},

		{"upload b x 1-2; delete b 3-4; see b x 5-6", "deleted build still there"},
		{"upload b x 1-2; remove b 3-4; see b x 5-6", "deleted build still there"},
		{"upload b x 1-2; delsite 3-4; see b x 5-6", "deleted build still there"},
		{"upload b x 1-2; upload c y 3-4; prune b 5-6; see b x 7-8", "deleted build still there"},
		{"upload b x 1-2; delete b 3-4?; see b x 5-6", ""},
		{"upload b x 1-2; delete b 3-6; see b x 4-5", ""},
		{"upload b x 1-3; delete b 2-4; see b x 5-6", ""},
		{"upload b x 1-2; delete b 3-4; upload b y 5-6; see b y 7-8", ""},
		{"upload b x 1-2; see b y 3-4", "bytes that nobody sent"},
		{"upload b x 1-2; see c x 3-4", "bytes that nobody sent"},

		{"upload b x 1-2; move l b 3-4; delete b 5-6; see b - 7-8", "labelled build changed"},
		{"upload b x 1-2; move l b 3-4; remove b 5-6", "labelled build changed"},
		{"upload b x 1-2; move l b 3-4; upload b y 5-6", "labelled build changed"},
		{"upload b x 1-2; move l b 3-4; upload c y 5-6; prune b 7-8", "labelled build changed"},
		{"upload b x 1-2; move l b 3-4; delsite 5-6", "site deleted in spite of its label"},
		{"upload b x 1-2; move l b 3-4; delsite labels 5-6; see b - 7-8; fetch l - 9-10", ""},
		{"upload b x 1-2; move l b 3-4; delete b 5-6!; fetch l b x 7-8", ""},
		{"upload b x 1-2; move l b 3-4; delete b 5-6?; see b - 7-8", "labelled build gone"},
		{"upload b x 1-2; move l b 3-5; delete b 4-6; see b - 7-8", "labelled build gone"},
		{"upload b x 1-2; move l b 3-5?; delete b 4-6; see b - 7-8", ""},
		{"upload b x 1-2; move l b 3-5!; delete b 4-6; see b - 7-8", ""},
		{"upload b x 1-2; move l b 3-5; delete b 4-6; fetch l - 7-8", "label gone, or its build"},
		{"upload b x 1-2; move l b 3-4; unlabel l 5-6; delete b 7-8; fetch l - 9-10", ""},
		{"upload b x 1-2; move l b 3-4; unlabel l 5-6!; delete b 7-8", "labelled build changed"},
		{"upload b x 1-2; move l b 3-4; unlabel k 5-6; delete b 7-8", "labelled build changed"},
		{"upload b x 1-2; move l b 3-4; unlabel l 5-6?; delete b 7-8", ""},
		{"upload b x 1-2; move l b 3-4; move l c 5-6; delete b 7-8; see b - 9-10", ""},
		{"upload b x 1-2; move l b 3-4; move l c 5-6; move l b 7-8; delete b 9-10", "labelled build changed"},
		{"upload b x 1-2; move l c 3-6; move l b 4-5; delete b 7-8", ""},
		{"upload b x 1-2; move l b 3-6; move l b 4-5; delete b 7-8", "labelled build changed"},

		{"move l b 1-2; fetch l - 3-4", "label gone, or its build"},
		{"move l b 1-2; label l - 3-4", "label gone, or its build"},
		{"move l b 1-2; label l c 3-4", "move lost"},
		{"move l b 1-2; move l c 3-5; label l c 4-6", ""},
		{"move l b 1-2; move l c 3-4; label l b 5-6", "move lost"},
		{"move l b 1-2; move l c 3-4?; label l b 5-6", ""},
		{"upload b x 1-2; move l b 3-4; delete b 5-6?; fetch l c x 7-8", "move lost"},
		{"upload b x 1-2; delete b 3-4; fetch l b x 5-6", "deleted build still there"},
		{"upload b x 1-2; upload b y 3-5; move l b 4-6; stale l 7-8", "build replaced after it was labelled"},
		{"upload b x 1-2; upload b y 3-5; move l b 4-6; unlabel l 7-9; stale l 8-10", ""},

		{"log b e 1-2; logs b e 3-4", ""},
		{"log b e 1-2; logs b 3-4", "acknowledged entry lost"},
		{"log b e 1-2?; logs b 3-4", ""},
		{"log b e 1-2; logs c 3-4", ""},
		{"log b e 1-2; delete b 3-4; logs b 5-6", "acknowledged entry lost"},
		{"log b e 1-2; remove b 3-4; logs b 5-6", ""},
		{"log b e 1-2; delsite 3-4; logs b 5-6", ""},
		{"remove b 1-2; log b e 3-4; logs b 5-6", "acknowledged entry lost"},
		{"prune b 1-2; log b e 3-4; logs b 5-6", "acknowledged entry lost"},
		{"log b e 1-2; remove b 3-4; logs b e 5-6", "deleted entry still there"},
		{"log b e 1-2; remove b 3-4?; logs b e 5-6", ""},

		{"upload b x 1-2; upload c y 3-4; prune b 5-6; see b - 7-8; see c y 9-10", ""},
		{"upload b x 1-2; upload c y 3-4; prune c 5-6", "newest build c pruned"},
		{"upload b x 1-2; upload c y 3-6; prune b 5-7", ""},
		{"upload b x 1-2; prune 3-4?; see b - 5-6", "acknowledged build gone"},
		{"upload b x 1-2; upload c y 3-4; prune 5-6?; see b - 7-8", ""},
		{"upload b x 1-2; upload c y 3-4; prune young b 5-6", "young build pruned"},
		{"upload b x 1-2; upload c y 3-4; prune young 5-6?; see b - 7-8", "acknowledged build gone"},
		{"upload b x 1-2; upload c y 3-4; move l b 5-6; prune 7-8?; see b - 9-10", "labelled build gone"},
		{"upload b x 1-2; upload c y 3-4; move l b 5-8; prune b 7-9; see b - 10-11", "labelled build gone"},
		{"prune 1-2; upload b x 3-4; see b - 5-6", "acknowledged build gone"},
	} {
		h := parseHistory(c.history)
		got := strings.Join(h.judge(), "\n")
		if (got == "") != (c.want == "") || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s\nis judged %q, want %q", c.history, got, c.want)
		}
	}
}
