package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

var (
	labelTime = time.Date(2026, 11, 27, 10, 20, 30, 123456789, time.UTC)
	testLabel = Label{Name: "live", BuildID: "b42", Previous: "b41", ChangedAt: labelTime, By: "ci", Next: "b43", BuildETag: `"1-2-3"`}
)

func TestCheckLabel(t *testing.T) {
	f := func(ok bool, name string) {
		t.Helper()
		if err := checkLabel(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
		if ok && checkID(name) != nil {
			t.Errorf("%q is no id", name) // which the names of files must be
		}
	}
	for _, name := range []string{"a", "0", "live", "live-2", "a-", "2026-11-27", strings.Repeat("z", 32)} {
		f(true, name)
	}
	for _, name := range []string{"", "-", "-a", "A", "liVe", "a_b", "a.b", "a b", "a/b", "..", "ä", "a\x00", "a\n", strings.Repeat("z", 33)} {
		f(false, name)
	}
}

// The ETag of a label changes with all that clients see, and with nothing else.
func TestLabelETag(t *testing.T) {
	tag := testLabel.ETag()
	if len(tag) != 34 || tag[0] != '"' || tag[33] != '"' {
		t.Errorf("the ETag is %s", tag)
	}
	local := testLabel
	local.ChangedAt = labelTime.In(time.FixedZone("", 3600))
	seen := map[string]string{}
	for what, c := range map[string]struct {
		change func(l *Label)
		other  bool
	}{
		"nothing":                {func(*Label) {}, false},
		"the time zone":          {func(l *Label) { *l = local }, false},
		"Next":                   {func(l *Label) { l.Next = "x" }, false},
		"BuildETag":              {func(l *Label) { l.BuildETag = "x" }, false},
		"Name":                   {func(l *Label) { l.Name = "x" }, true},
		"BuildID":                {func(l *Label) { l.BuildID = "x" }, true},
		"Previous":               {func(l *Label) { l.Previous = "" }, true},
		"ChangedAt":              {func(l *Label) { l.ChangedAt = labelTime.Add(1) }, true},
		"By":                     {func(l *Label) { l.By = "" }, true},
		"a byte to the next one": {func(l *Label) { l.Name, l.BuildID = "liveb", "42" }, true},
	} {
		l := testLabel
		c.change(&l)
		got := l.ETag()
		if (got != tag) != c.other {
			t.Errorf("%s: %s, before %s", what, got, tag)
		}
		if was := seen[got]; c.other && was != "" {
			t.Errorf("%s and %s have the same ETag", what, was)
		}
		seen[got] = what
		if i := l.info(); i.ETag != got || !i.ModTime.Equal(l.ChangedAt) {
			t.Errorf("%s: conditions see %+v", what, i)
		}
	}
}

func TestLabelMoved(t *testing.T) {
	f := func(old Label, now time.Time, want Label) {
		t.Helper()
		if got := old.moved("live", "new", `"n"`, "me", now); got != want {
			t.Errorf("%+v at %s became %+v, want %+v", old, now, got, want)
		}
	}
	moved := func(previous string, at time.Time) Label {
		return Label{Name: "live", BuildID: "new", Previous: previous, ChangedAt: at, By: "me", BuildETag: `"n"`}
	}
	f(Label{}, labelTime, moved("", labelTime))
	f(testLabel, labelTime.Add(time.Hour), moved("b42", labelTime.Add(time.Hour)))
	f(testLabel, labelTime, moved("b42", labelTime.Add(1))) // the clock stands still
	f(testLabel, labelTime.Add(-time.Hour), moved("b42", labelTime.Add(1)))
	f(Label{}, labelTime.In(time.FixedZone("", 3600)), moved("", labelTime))
}

func TestCheckUnlabelled(t *testing.T) {
	labels := []Label{{Name: "live", BuildID: "b"}, {Name: "next", BuildID: "x", Next: "b"}, {Name: "begun", Next: "c"}, {Name: "a", BuildID: "b"}}
	f := func(build, want string) {
		t.Helper()
		err := checkUnlabelled(build, labels)
		if want == "" && err != nil || want != "" && (err == nil || reasonOf(err) != want || !errors.Is(err, errLabelled)) {
			t.Errorf("%s: %v, want %q", build, err, want)
		}
	}
	f("b", `build "b" has the labels a, live, next: move or delete the labels first`)
	f("x", `build "x" has the label next: move or delete the label first`)
	f("c", `build "c" has the label begun: move or delete the label first`)
	f("d", "")
}

// What formatLabel writes is one line of JSON with these members, and parseLabel reads it back.
func TestLabelFile(t *testing.T) {
	const want = `{"label":"live","build_id":"b42","next":"b43","previous":"b41","changed_at":"2026-11-27T10:20:30.123456789Z","by":"ci","build_etag":"\"1-2-3\"","crc32c":"`
	if got := string(formatLabel(testLabel)); !strings.HasPrefix(got, want) || len(got) != len(want)+8+3 || !strings.HasSuffix(got, "\"}\n") {
		t.Errorf("it is %s", got)
	}
	long := strings.Repeat("x", maxIDLen)
	for what, l := range map[string]Label{
		"all members":        testLabel,
		"the fewest":         {Name: "a", BuildID: "b", ChangedAt: labelTime},
		"begun":              {Name: "a", Next: "b", ChangedAt: labelTime},
		"an actor":           {Name: "a", BuildID: "b", ChangedAt: labelTime, By: "<Zoë & \"co\"> \u2028\t\\"},
		"the longest":        {Name: strings.Repeat("z", maxLabelLen), BuildID: long, Previous: long, Next: long, ChangedAt: labelTime, By: strings.Repeat("y", 256), BuildETag: `"` + strings.Repeat("e", 256) + `"`},
		"without a fraction": {Name: "a", BuildID: "b", ChangedAt: labelTime.Truncate(time.Second)},
	} {
		data := formatLabel(l)
		got, err := parseLabel(l.Name, data)
		if err != nil || !reflect.DeepEqual(got, l) {
			t.Errorf("%s: %+v, %v; want %+v", what, got, err, l)
		}
		if len(data) > maxLabelFile || bytes.Count(data, []byte("\n")) != 1 || !json.Valid(data) {
			t.Errorf("%s: %s", what, data)
		}
		if again := formatLabel(got); !bytes.Equal(again, data) {
			t.Errorf("%s: %s became %s", what, data, again)
		}
	}
}

// parseLabel accepts nothing else than what formatLabel writes for a label of that name.
func TestDamagedLabel(t *testing.T) {
	data := formatLabel(testLabel)
	f := func(what, name string, data []byte) {
		t.Helper()
		l, err := parseLabel(name, data)
		if !errors.Is(err, errLabelDamaged) || !errors.Is(err, ErrDamaged) || l != (Label{}) {
			t.Errorf("%s: %+v, %v", what, l, err)
		}
	}
	for i := range data {
		f(fmt.Sprint("cut after byte ", i), "live", data[:i])
		for bit := range 8 {
			flipped := bytes.Clone(data)
			flipped[i] ^= 1 << bit
			f(fmt.Sprintf("bit %d of byte %d", bit, i), "live", flipped)
		}
	}
	f("of another label", "preview", data)
	f("nothing", "live", nil)
	f("twice", "live", bytes.Repeat(data, 2))
	f("with a blank at the end", "live", append(bytes.Clone(data), ' '))
	f("without its end of line", "live", bytes.TrimSpace(data))
	f("with another member", "live", bytes.Replace(data, []byte(`{`), []byte(`{"x":1,`), 1))
	for what, change := range map[string]func(l *Label){ // whose checksums are right
		"no build":       func(l *Label) { l.BuildID, l.Next = "", "" },
		"no time":        func(l *Label) { l.ChangedAt = time.Time{} },
		"a bad build":    func(l *Label) { l.BuildID = "../x" },
		"a bad next":     func(l *Label) { l.Next = "a/b" },
		"a bad previous": func(l *Label) { l.Previous = ".x" },
		"too large":      func(l *Label) { l.By = strings.Repeat("x", maxLabelFile) },
	} {
		l := testLabel
		change(&l)
		f(what, "live", formatLabel(l))
	}
}

func FuzzParseLabel(f *testing.F) {
	f.Add("live", formatLabel(testLabel))
	f.Add("a", formatLabel(Label{Name: "a", Next: "b", ChangedAt: labelTime}))
	f.Add("a", []byte(`{"label":"a","build_id":"b","previous":"","changed_at":"2026-11-27T10:20:30Z","by":"","build_etag":"","crc32c":"00000000"}`+"\n"))
	f.Add("live", []byte("{}"))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		l, err := parseLabel(name, data)
		if err != nil {
			if !errors.Is(err, errLabelDamaged) {
				t.Errorf("%v", err)
			}
			return
		}
		if l.Name != name || !bytes.Equal(formatLabel(l), data) || l.BuildID == "" && l.Next == "" {
			t.Errorf("%q was read as %+v", data, l)
		}
	})
}
