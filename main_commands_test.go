package main

import (
	"strings"
	"testing"
)

func TestHelpNamesEveryVariable(t *testing.T) {
	for _, flag := range []string{"-h", "--help", "help"} {
		out, err := runWith([]string{flag})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range (&Config{}).variables() {
			if !strings.Contains(out, v.name+" ") || v.help == "" || !strings.Contains(out, v.help) {
				t.Errorf("%s: %s is not explained", flag, v.name)
			}
		}
	}
	if out, err := runWith([]string{"version"}); err != nil || strings.TrimSpace(out) != version {
		t.Errorf("version printed %q, %v", out, err)
	}
}

// TestHelpOfEachCommand: -h behind a command prints its usage, whatever the variables are.
func TestHelpOfEachCommand(t *testing.T) {
	whole, err := runWith([]string{"-h"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range allCommands {
		if !strings.Contains(whole, "  "+c.name+" ") || !strings.Contains(whole, c.summary) {
			t.Errorf("-h does not list %s", c.name)
		}
		for _, flag := range []string{"-h", "-help", "--help"} {
			out, err := runWith(append(strings.Fields(c.name), flag), "PORT=http")
			if err != nil || !strings.HasPrefix(out, "pagewright-storage "+c.name+": "+c.summary) || !strings.Contains(out, c.details) || !strings.Contains(out, "78") {
				t.Errorf("%s %s: %v, %q", c.name, flag, err, out)
			}
		}
	}
}

// TestCommandsOfTwoWords: both words are needed, except before -h; flags and other arguments
// may stand in any order.
func TestCommandsOfTwoWords(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string // in the output, or in the error
		bad  bool
	}{
		{[]string{"token", "-h"}, "pagewright-storage token new: ", false},
		{[]string{"access", "--help"}, "pagewright-storage access check: ", false},
		{[]string{"token", "new", "--name", "x", "-h"}, "Usage: pagewright-storage token new --name", false},
		{[]string{"token"}, `unknown command token; do you mean "token new"?`, true},
		{[]string{"token", "old"}, `unknown command token old; do you mean "token new"?`, true},
		{[]string{"label"}, `unknown command label; do you mean "label set", "label rm", "label list" or "label rollback"?`, true},
		{[]string{"label", "-h"}, "\n  label set SITE LABEL BUILD  create", false},
		{[]string{"label", "--help"}, "\n  label rollback SITE LABEL   move", false},
		{[]string{"new", "token"}, "unknown command new", true},
		{[]string{"tok", "-h"}, "unknown command tok", true},
	} {
		out, err := runWith(c.args)
		if c.bad {
			if err == nil || exitStatus(err) != exitUsage {
				t.Errorf("%q: %v", c.args, err)
				continue
			}
			out = err.Error()
		} else if err != nil {
			t.Errorf("%q: %v", c.args, err)
		}
		if !strings.Contains(out, c.want) {
			t.Errorf("%q: %q, want %q", c.args, out, c.want)
		}
	}
}
