package main

import (
	"strings"
	"testing"
)

func TestMountOptions(t *testing.T) {
	f := func(options, want string, noLocks bool) {
		t.Helper()
		var got []string
		fails := false
		for _, w := range nfsOptionWarnings(options) {
			got = append(got, w.option)
			fails = fails || w.noLocks
			if w.why == "" || w.Error() != w.option+": "+w.why {
				t.Errorf("%q: %v", options, w)
			}
		}
		if strings.Join(got, " ") != want || fails != noLocks {
			t.Errorf("%q: warns of %q, no locks %v; want %q, %v", options, got, fails, want, noLocks)
		}
	}
	f("rw,vers=4.2,hard,proto=tcp,local_lock=none", "", false)
	f("rw,vers=4.2,soft", "soft", false)
	f("rw,nocto", "nocto", false)
	f("rw,softerr,local_lock=flock", "softerr", false)
	f("rw,vers=3,nolock,local_lock=all", "nolock local_lock=all", true)
	f("rw,local_lock=posix", "local_lock=posix", true)
}
