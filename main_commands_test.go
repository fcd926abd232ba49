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
	for _, c := range commands {
		if !strings.Contains(whole, "  "+c.name+" ") || !strings.Contains(whole, c.summary) {
			t.Errorf("-h does not list %s", c.name)
		}
		for _, flag := range []string{"-h", "-help", "--help"} {
			out, err := runWith([]string{c.name, flag}, "PORT=http")
			if err != nil || !strings.HasPrefix(out, "pagewright-storage "+c.name+": "+c.summary) || !strings.Contains(out, c.details) || !strings.Contains(out, "78") {
				t.Errorf("%s %s: %v, %q", c.name, flag, err, out)
			}
		}
	}
}
