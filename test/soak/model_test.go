//go:build integration || torture

package soak

import "testing"

// The judge itself is tried: it lets pass what is promised and nothing else.
func TestModel(t *testing.T) {
	m := newModel()
	sees := func(want bool, size int64) {
		t.Helper()
		l := m.watch("a")
		m.done(l)
		if err := l.saw("a", size); (err == nil) != want {
			t.Errorf("seeing %d: %v", size, err)
		}
	}
	sees(true, absent)
	sees(false, 1)
	w := m.begin("a", 1)
	sees(true, absent)
	sees(true, 1)
	sees(false, 2)
	m.end("a", w, true)
	sees(false, absent)
	sees(true, 1)
	lost := m.begin("a", 2)
	m.end("a", lost, false)
	sees(true, 1)
	sees(true, 2)
	early := m.watch("a")
	d := m.begin("a", absent)
	m.end("a", d, true)
	m.done(early)
	if early.saw("a", 1) != nil || early.saw("a", absent) != nil {
		t.Error("a long look must allow for what it overlaps")
	}
	sees(true, absent)
	sees(false, 1)
	sees(false, 2)
	w = m.begin("a", 3)
	m.refused("a", w)
	sees(false, 3)

	log := func(want bool, ids ...string) {
		t.Helper()
		l := m.watch("a")
		m.done(l)
		if err := m.sawEntries(l, "a", ids); (err == nil) != want {
			t.Errorf("seeing %q: %v", ids, err)
		}
	}
	log(true)
	log(false, "x")
	m.beginEntry("a", "x")
	log(true)
	log(true, "x")
	log(false) // what was seen stays
	m.beginEntry("a", "y")
	m.ackEntry("a", "y")
	log(false, "x")
	log(false, "x", "y", "y")
	log(true, "y", "x")
}
