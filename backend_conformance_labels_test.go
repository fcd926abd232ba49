package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// labelStore is a store under test that keeps labels.
type labelStore interface {
	store
	ArtifactStater
	LabelKeeper
}

// labelRig is how testLabels reaches a store: open opens it as another process would, and plant
// writes the file or object of a label past it.
type labelRig struct {
	gap   bool // a label may be moved to a build right before the commit of its replacement
	open  func(t *testing.T) Backend
	plant func(t *testing.T, site, label string, data []byte)
}

// testLabels is the contract of LabelKeeper, with a subtest for each of its sentences, in their
// order.
func testLabels(t *testing.T, rig labelRig) {
	for _, c := range []struct {
		sentence string
		test     func(t *testing.T, open func() labelStore, plant func(site, label string, data []byte))
	}{
		{"a labelled build is neither replaced nor deleted", testLabelled},
		{"a body that would replace a labelled build is not read", testLabelledEarly},
		{"a build that is missing is stored although a label names it", testLabelledMissing},
		{"a label that cannot be read protects every build", testLabelDamaged},
		{"what is acknowledged of a label is seen by every process", testLabelSeenByAll},
		{"a label is moved or created", testMoveLabel},
		{"a label moves if the condition holds", testMoveLabelIf},
		{"of racing moves on one condition one is made", testMoveLabelRace},
		{"a label is only moved to a build that has an artifact", testMoveLabelNotFound},
		{"a site has a limited number of labels", testTooManyLabels},
		{"of labels created at once no more are kept than may be", testTooManyLabelsAtOnce},
		{"a move to the build that the label names changes nothing", testMoveLabelAgain},
		{"a move to the build that the label names takes its ETag anew", testMoveLabelRepaired},
		{"labels are listed in order", testListLabels},
		{"a label is deleted if the condition holds", testDeleteLabel},
		{"a label moves or its build is deleted, never both", testLabelAgainstDelete},
		{"a label names the build that replaced another, or prevents it", testLabelAgainstReplacement},
		{"a label that moves to and fro always names a build that is there", testLabelsWhileBuildsGo},
	} {
		t.Run(strings.ReplaceAll(c.sentence, " ", "_"), func(t *testing.T) {
			if rig.gap && strings.Contains(c.sentence, "replaced another") {
				t.Skip("TestLabelMoveAgainstReplacement tests what remains true")
			}
			open := func() labelStore {
				t.Helper()
				b, ok := rig.open(t).(labelStore)
				if !ok {
					t.Fatal("the backend lacks a part of the interface")
				}
				return b
			}
			c.test(t, open, func(site, label string, data []byte) { t.Helper(); rig.plant(t, site, label, data) })
		})
	}
}

func mustMove(t *testing.T, b LabelKeeper, site, label, build string) Label {
	t.Helper()
	l, _, err := b.MoveLabel(site, LabelMove{Label: label, BuildID: build})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// wantLabel fails unless the label names build, or is not there if build is empty.
func wantLabel(t *testing.T, b LabelKeeper, site, label, build string) Label {
	t.Helper()
	l, err := b.GetLabel(site, label)
	if build == "" {
		wantError(t, err, ErrNotFound)
	} else if err != nil || l.BuildID != build {
		t.Fatalf("the label names %q, %v; want %q", l.BuildID, err, build)
	}
	return l
}

// wantLabelled fails unless err is the error of a build with these labels.
func wantLabelled(t *testing.T, what string, err error, labels ...string) {
	t.Helper()
	var e *labelledError
	if !errors.As(err, &e) || !slices.Equal(e.labels, labels) {
		t.Errorf("%s: %v, want the error of the labels %q", what, err, labels)
	}
}

// changesOf are the changes from which a label protects the build b of a site, which has the
// ETag etag.
func changesOf(b labelStore, site, etag string) map[string]func() error {
	put := func(cond Precondition) func() error {
		return func() error {
			_, err := b.StoreArtifactIf(site, "b", known(body(200, 9)), cond)
			return err
		}
	}
	remove := func(cond Precondition) func() error {
		return func() error {
			err := b.DeleteArtifact(site, "b", cond)
			if errors.Is(err, ErrUnsupported) && !cond.IsZero() { // noDeleteIf
				err = b.DeleteArtifact(site, "b", Precondition{})
			}
			return err
		}
	}
	changes := map[string]func() error{
		"StoreArtifact":              func() error { return b.StoreArtifact(site, "b", unknown(body(300, 9))) },
		"StoreArtifactIf":            put(Precondition{}),
		"StoreArtifactIf a tag":      put(ifMatch(etag)),
		"StoreArtifactIf any":        put(exists),
		"StoreArtifactIf no tag":     put(Precondition{IfNoneMatch: &ETagList{Tags: []string{`"x"`}}}),
		"StoreArtifactIf unmodified": put(Precondition{IfUnmodifiedSince: time.Now().Add(time.Hour)}),
		"DeleteArtifact":             remove(Precondition{}),
		"DeleteArtifact if a tag":    remove(ifMatch(etag)),
	}
	if d, ok := b.(VersionDeleter); ok {
		changes["DeleteVersions"] = func() error { return d.DeleteVersions(site, []VersionDeletion{{BuildID: "b"}})[0] }
		changes["DeleteVersions of several"] = func() error {
			errs := d.DeleteVersions(site, []VersionDeletion{{BuildID: "gone"}, {BuildID: "b"}})
			if errs[0] != nil {
				return fmt.Errorf("of a build without labels: %w", errs[0])
			}
			return errs[1]
		}
	}
	return changes
}

func testLabelled(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	one, two, site := open(), open(), newSite()
	data := body(100, 1)
	mustStore(t, one, site, "other", data)
	info := mustStoreIf(t, one, site, "b", data, createOnly)
	mustLog(t, one, site, entry("1", "b", testTime))
	mustMove(t, one, site, "preview", "b")
	mustMove(t, one, site, "live", "b")
	refused := func(labels ...string) {
		t.Helper()
		for what, change := range changesOf(two, site, info.ETag) {
			wantLabelled(t, what, change(), labels...)
			wantBytes(t, one, site, "b", data)
		}
	}
	refused("live", "preview")
	for _, cond := range []Precondition{createOnly, {Absent: true}, ifMatch(`"x"`)} {
		_, err := two.StoreArtifactIf(site, "b", known(data), cond)
		wantError(t, err, ErrPrecondition) // as without labels: a create may be repeated
	}
	mustMove(t, one, site, "live", "other")
	refused("preview")
	if v := versionOf(t, one, site, "b"); len(v.Logs) != 1 {
		t.Errorf("the log of a labelled build has %d entries", len(v.Logs))
	}
	mustLog(t, two, site, entry("2", "b", testTime)) // a log is not protected
	if err := one.DeleteLabel(site, "preview", Precondition{}); err != nil {
		t.Fatal(err)
	}
	for what := range changesOf(two, site, info.ETag) { // and then each of them goes on
		info = mustStoreIf(t, one, site, "b", data, Precondition{})
		if err := changesOf(two, site, info.ETag)[what](); err != nil {
			t.Errorf("%s without a label: %v", what, err)
		}
	}
	wantLabelled(t, "of the other build", two.DeleteArtifact(site, "other", Precondition{}), "live")
}

// unread is a body that must not be read.
type unread struct {
	t    *testing.T
	size int64
}

func (u unread) Size() int64 { return u.size }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body is read")
	return 0, io.ErrUnexpectedEOF
}

func testLabelledEarly(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	b, site := open(), newSite()
	info := mustStoreIf(t, b, site, "b", body(100, 1), createOnly)
	mustMove(t, b, site, "live", "b")
	for _, cond := range []Precondition{{}, ifMatch(info.ETag), exists} {
		_, err := b.StoreArtifactIf(site, "b", unread{t, maxUnlooked + 1}, cond)
		wantLabelled(t, fmt.Sprint(cond), err, "live")
	}
}

func testLabelledMissing(t *testing.T, open func() labelStore, plant func(site, label string, data []byte)) {
	b, site := open(), newSite()
	mustStore(t, b, site, "other", body(10, 1))
	plant(site, "live", formatLabel(Label{Name: "live", BuildID: "b", ChangedAt: testTime, BuildETag: `"x"`}))
	wantLabel(t, b, site, "live", "b")
	data := body(100, 2)
	mustStore(t, b, site, "b", data)
	wantLabelled(t, "a replacement", b.StoreArtifact(site, "b", known(body(10, 3))), "live")
	wantBytes(t, b, site, "b", data)
	if l := mustMove(t, b, site, "live", "other"); l.Previous != "b" {
		t.Errorf("the label moved: %+v", l)
	}
}

// Something else than the service has replaced the file of the build.
func testMoveLabelRepaired(t *testing.T, open func() labelStore, plant func(site, label string, data []byte)) {
	one, two, site := open(), open(), newSite()
	info := mustStoreIf(t, one, site, "b", body(100, 1), createOnly)
	before := mustMove(t, one, site, "live", "b")
	stale := before
	stale.BuildETag = `"of-other-bytes"`
	plant(site, "live", formatLabel(stale))
	moved := mustMove(t, two, site, "live", "b")
	after := wantLabel(t, one, site, "live", "b")
	if moved.BuildETag != info.ETag || after.BuildETag != info.ETag || after.ETag() != before.ETag() || after.ChangedAt != before.ChangedAt {
		t.Errorf("%+v, want the ETag %s, and otherwise as before: %+v", after, info.ETag, before)
	}
}

func testLabelDamaged(t *testing.T, open func() labelStore, plant func(site, label string, data []byte)) {
	one, two, site := open(), open(), newSite()
	data := body(100, 1)
	info := mustStoreIf(t, one, site, "b", data, createOnly)
	mustMove(t, one, site, "live", "b")
	mustMove(t, one, site, "other", "b")
	whole := formatLabel(mustGet(t, one, site, "other"))
	for what, damage := range map[string][]byte{
		"nothing":        {},
		"half":           whole[:len(whole)/2],
		"another byte":   bytes.Replace(whole, []byte(`"build_id":"b"`), []byte(`"build_id":"c"`), 1),
		"of another one": formatLabel(Label{Name: "third", BuildID: "b", ChangedAt: testTime}),
		"too much":       bytes.Repeat([]byte(" "), maxLabelFile+1),
	} {
		plant(site, "other", damage)
		_, err := two.GetLabel(site, "other")
		wantError(t, err, errLabelDamaged)
		_, err = two.ListLabels(site)
		wantError(t, err, ErrDamaged)
		_, _, err = two.MoveLabel(site, LabelMove{Label: "other", BuildID: "b"})
		wantError(t, err, errLabelDamaged)
		wantError(t, two.DeleteLabel(site, "other", exists), errLabelDamaged)
		wantLabel(t, two, site, "live", "b")
		for change, do := range changesOf(two, site, info.ETag) {
			if change == "DeleteVersions of several" {
				continue
			}
			if err := do(); !errors.Is(err, errLabelDamaged) {
				t.Errorf("%s, %s: %v", what, change, err)
			}
			wantBytes(t, one, site, "b", data)
		}
		mustStoreIf(t, two, site, fmt.Sprint("new", len(damage)), data, createOnly) // it replaces nothing
		if err := two.DeleteLabel(site, "other", Precondition{}); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		wantLabel(t, one, site, "other", "")
		wantLabelled(t, what+", deleted", one.DeleteArtifact(site, "b", Precondition{}), "live")
	}
}

func mustGet(t *testing.T, b LabelKeeper, site, label string) Label {
	t.Helper()
	l, err := b.GetLabel(site, label)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func testLabelSeenByAll(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	one, two, site := open(), open(), newSite()
	for _, id := range []string{"b", "c"} {
		mustStore(t, one, site, id, body(10, 1))
	}
	wantLabel(t, two, site, "live", "") // and must not be remembered
	for i, want := range []string{"b", "c", "b", "", "c"} {
		if want == "" {
			if err := one.DeleteLabel(site, "live", Precondition{}); err != nil {
				t.Fatal(err)
			}
		} else if l := mustMove(t, one, site, "live", want); mustGet(t, two, site, "live") != l {
			t.Errorf("move %d: %+v is seen as %+v", i, l, mustGet(t, two, site, "live"))
		}
		wantLabel(t, two, site, "live", want)
		labels, err := two.ListLabels(site)
		if err != nil || (len(labels) == 1) != (want != "") || want != "" && labels[0].BuildID != want {
			t.Errorf("move %d: listed are %+v, %v", i, labels, err)
		}
	}
}

func testMoveLabel(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	b, site := open(), newSite()
	tags := map[string]string{}
	for _, id := range []string{"b", "c"} {
		tags[id] = mustStoreIf(t, b, site, id, body(10, 1), createOnly).ETag
	}
	var last Label
	seen := map[string]bool{}
	for i, id := range []string{"b", "c", "b", "c"} {
		by := fmt.Sprint("actor ", i)
		l, created, err := b.MoveLabel(site, LabelMove{Label: "live", BuildID: id, By: by})
		if err != nil {
			t.Fatal(err)
		}
		if created != (i == 0) {
			t.Errorf("move %d: created is %v", i, created)
		}
		want := Label{Name: "live", BuildID: id, Previous: last.BuildID, ChangedAt: l.ChangedAt, By: by, BuildETag: tags[id], WriteID: l.WriteID}
		if l != want || mustGet(t, b, site, "live") != want {
			t.Errorf("move %d: the label is %+v, and kept as %+v; want %+v", i, l, mustGet(t, b, site, "live"), want)
		}
		if !l.ChangedAt.After(last.ChangedAt) || time.Since(l.ChangedAt).Abs() > time.Hour {
			t.Errorf("move %d: at %s, after %s", i, l.ChangedAt, last.ChangedAt)
		}
		if seen[l.ETag()] {
			t.Errorf("move %d: the ETag %s is that of an earlier one", i, l.ETag())
		}
		seen[l.ETag()], last = true, l
	}
}

func testMoveLabelIf(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	b, site := open(), newSite()
	for _, id := range []string{"b", "c"} {
		mustStore(t, b, site, id, body(10, 1))
	}
	hour := time.Hour
	for _, c := range []struct {
		what          string
		cond          func(now Label) Precondition
		absent, there bool // whether it holds for a label that is not there, and for one that is
	}{
		{"none", func(Label) Precondition { return Precondition{} }, true, true},
		{"its tag", func(l Label) Precondition { return ifMatch(`"x"`, l.ETag()) }, false, true},
		{"another tag", func(Label) Precondition { return ifMatch(`"x"`) }, false, false},
		{"any tag", func(Label) Precondition { return exists }, false, true},
		{"no tag", func(Label) Precondition { return createOnly }, true, false},
		{"not its tag", func(l Label) Precondition {
			return Precondition{IfNoneMatch: &ETagList{Tags: []string{"W/" + l.ETag()}}}
		}, true, false},
		{"not another tag", func(Label) Precondition { return Precondition{IfNoneMatch: &ETagList{Tags: []string{`"x"`}}} }, true, true},
		{"unmodified before it moved", func(l Label) Precondition { return Precondition{IfUnmodifiedSince: l.ChangedAt.Add(-hour)} }, true, false},
		{"unmodified after it moved", func(l Label) Precondition { return Precondition{IfUnmodifiedSince: l.ChangedAt.Add(hour)} }, true, true},
	} {
		for _, there := range []bool{false, true} {
			for _, to := range []string{"b", "c"} { // the build that it names, and another one
				if err := b.DeleteLabel(site, "live", Precondition{}); err != nil {
					t.Fatal(err)
				}
				now, holds, before := Label{ChangedAt: testTime}, c.absent, ""
				if there {
					now, holds, before = mustMove(t, b, site, "live", "b"), c.there, "b"
				}
				_, _, err := b.MoveLabel(site, LabelMove{Label: "live", BuildID: to, Cond: c.cond(now)})
				if holds && err != nil || !holds && !errors.Is(err, ErrPrecondition) {
					t.Errorf("%s, there %v: %v", c.what, there, err)
				}
				if !holds {
					to = before
				}
				wantLabel(t, b, site, "live", to)
			}
		}
	}
}

func testMoveLabelRace(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	stores, site := []labelStore{open(), open()}, newSite()
	const movers = 8
	for i := range movers {
		mustStore(t, stores[0], site, fmt.Sprint("b", i), body(10, 1))
	}
	cond := createOnly
	for round := range 10 {
		var won atomic.Int64
		winner := make(chan Label, movers)
		var g sync.WaitGroup
		for i := range movers {
			g.Go(func() {
				// All of them to other builds than the round before.
				l, _, err := stores[i%2].MoveLabel(site, LabelMove{Label: "live", BuildID: fmt.Sprint("b", i), By: fmt.Sprint(round), Cond: cond})
				switch {
				case err == nil && l.By == fmt.Sprint(round):
					won.Add(1)
					winner <- l
				case err != nil && !errors.Is(err, ErrPrecondition):
					t.Errorf("mover %d: %v", i, err)
				}
			})
		}
		g.Wait()
		if won.Load() != 1 {
			t.Fatalf("round %d: %d of %d movers won", round, won.Load(), movers)
		}
		l := <-winner
		if now := mustGet(t, stores[round%2], site, "live"); now != l {
			t.Fatalf("the label is %+v, and the winner made it %+v", now, l)
		}
		cond = ifMatch(l.ETag())
	}
}

func testMoveLabelNotFound(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	b, site, empty := open(), newSite(), newSite()
	mustStore(t, b, site, "b", body(10, 1))
	mustStore(t, b, site, "gone", body(10, 1))
	if err := b.DeleteArtifact(site, "gone", Precondition{}); err != nil {
		t.Fatal(err)
	}
	mustLog(t, b, site, entry("1", "log-only", testTime))
	was := mustMove(t, b, site, "live", "b")
	for _, id := range []string{"unknown", "gone", "log-only"} {
		for _, label := range []string{"live", "new"} {
			_, _, err := b.MoveLabel(site, LabelMove{Label: label, BuildID: id})
			wantError(t, err, ErrNotFound)
			_, _, err = b.MoveLabel(empty, LabelMove{Label: label, BuildID: id})
			wantError(t, err, ErrNotFound)
		}
	}
	if now := wantLabel(t, b, site, "live", "b"); now != was {
		t.Errorf("the label was changed: %+v, before %+v", now, was)
	}
	for s, want := range map[string]int{site: 1, empty: 0} {
		if labels, err := b.ListLabels(s); err != nil || len(labels) != want {
			t.Errorf("listed are %+v, %v", labels, err)
		}
	}
	wantLabelled(t, "afterwards", b.DeleteArtifact(site, "b", Precondition{}), "live")
}

func testTooManyLabels(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	b, site := open(), newSite()
	mustStore(t, b, site, "b", body(10, 1))
	mustStore(t, b, site, "c", body(10, 1))
	for i := range maxLabels {
		mustMove(t, b, site, fmt.Sprint("l", i), "b")
	}
	refused := func() {
		t.Helper()
		_, _, err := b.MoveLabel(site, LabelMove{Label: "more", BuildID: "b"})
		wantError(t, err, errTooManyLabels)
		wantLabel(t, b, site, "more", "")
	}
	refused()
	mustMove(t, b, site, "l3", "c")
	refused()
	if err := b.DeleteLabel(site, "l4", Precondition{}); err != nil {
		t.Fatal(err)
	}
	mustMove(t, b, site, "more", "b")
	if labels, err := b.ListLabels(site); err != nil || len(labels) != maxLabels {
		t.Errorf("%d labels, %v", len(labels), err)
	}
}

func testTooManyLabelsAtOnce(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	stores, site := []labelStore{open(), open()}, newSite()
	mustStore(t, stores[0], site, "b", body(10, 1))
	for i := range maxLabels - 2 {
		mustMove(t, stores[0], site, fmt.Sprint("l", i), "b")
	}
	var created atomic.Int64
	var g sync.WaitGroup
	for i := range 8 {
		g.Go(func() {
			_, _, err := stores[i%2].MoveLabel(site, LabelMove{Label: fmt.Sprint("m", i), BuildID: "b"})
			if err == nil {
				created.Add(1)
			} else if !errors.Is(err, errTooManyLabels) {
				t.Error(err)
			}
		})
	}
	g.Wait()
	labels, err := stores[1].ListLabels(site)
	if err != nil || len(labels) > maxLabels || int64(len(labels)) != maxLabels-2+created.Load() {
		t.Errorf("%d labels, %d of them created at once, %v", len(labels), created.Load(), err)
	}
}

func testMoveLabelAgain(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	one, two, site := open(), open(), newSite()
	mustStore(t, one, site, "a", body(10, 1))
	mustStore(t, one, site, "b", body(10, 1))
	mustMove(t, one, site, "live", "a")
	was := mustMove(t, one, site, "live", "b")
	for _, cond := range []Precondition{{}, ifMatch(was.ETag()), exists} {
		l, created, err := two.MoveLabel(site, LabelMove{Label: "live", BuildID: "b", By: "another", Cond: cond})
		if err != nil || created || l != was || mustGet(t, one, site, "live") != was {
			t.Errorf("it is %+v, created %v, %v; want %+v", l, created, err, was)
		}
	}
}

func testListLabels(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	b, site := open(), newSite()
	if labels, err := b.ListLabels(site); err != nil || len(labels) != 0 {
		t.Errorf("an unknown site has the labels %+v, %v", labels, err)
	}
	mustStore(t, b, site, "b", body(10, 1))
	names := []string{"a", "0", "live", "live-2", "a-", strings.Repeat("z", maxLabelLen), "a0"}
	want := map[string]Label{}
	for _, name := range names {
		want[name] = mustMove(t, b, site, name, "b")
	}
	labels, err := b.ListLabels(site)
	if err != nil || len(labels) != len(names) {
		t.Fatalf("listed are %+v, %v", labels, err)
	}
	slices.Sort(names)
	for i, l := range labels {
		if l != want[names[i]] {
			t.Errorf("label %d is %+v, want %+v", i, l, want[names[i]])
		}
	}
}

func testDeleteLabel(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	one, two, site := open(), open(), newSite()
	absent := func() {
		t.Helper()
		if err := one.DeleteLabel(site, "live", Precondition{}); err != nil {
			t.Errorf("a label that is not there: %v", err)
		}
		wantError(t, one.DeleteLabel(site, "live", exists), ErrPrecondition)
		wantError(t, one.DeleteLabel(site, "live", ifMatch(`"x"`)), ErrPrecondition)
	}
	absent() // the whole site
	mustStore(t, one, site, "b", body(10, 1))
	absent()
	mustMove(t, one, site, "other", "b")
	absent()
	old := mustMove(t, one, site, "live", "b")
	mustStore(t, one, site, "c", body(10, 1))
	now := mustMove(t, one, site, "live", "c")
	for _, cond := range []Precondition{ifMatch(old.ETag()), createOnly, {IfUnmodifiedSince: now.ChangedAt.Add(-time.Hour)}} {
		wantError(t, two.DeleteLabel(site, "live", cond), ErrPrecondition)
		wantLabel(t, one, site, "live", "c")
	}
	err := two.DeleteLabel(site, "live", ifMatch(now.ETag()))
	if errors.Is(err, ErrUnsupported) { // noDeleteIf
		err = two.DeleteLabel(site, "live", Precondition{})
	}
	if err != nil {
		t.Fatal(err)
	}
	wantLabel(t, one, site, "live", "")
	absent()
	if err := one.DeleteArtifact(site, "c", Precondition{}); err != nil {
		t.Errorf("its build: %v", err)
	}
	wantLabel(t, one, site, "other", "b")
	if l := mustMove(t, two, site, "live", "b"); l.Previous != "" || l.ETag() == old.ETag() {
		t.Errorf("a label that was deleted remembers: %+v", l)
	}
}

// atOnce runs the functions at once and returns their errors.
func atOnce(fs ...func() error) []error {
	errs := make([]error, len(fs))
	var g sync.WaitGroup
	start := make(chan struct{})
	for i, f := range fs {
		g.Go(func() { <-start; errs[i] = f() })
	}
	close(start)
	g.Wait()
	return errs
}

// wantSound fails unless the label, if it is there, names a build that is there, and has the ETag
// that it had when the label was moved.
func wantSound(t *testing.T, b labelStore, site, label string) {
	t.Helper()
	l, err := b.GetLabel(site, label)
	if errors.Is(err, ErrNotFound) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if info, err := b.StatArtifact(site, l.BuildID); err != nil || info.ETag != l.BuildETag {
		t.Fatalf("the label %+v names a build with the ETag %q, %v", l, info.ETag, err)
	}
}

// mayFail reports whether err is one with which a change may give way to another one.
func mayFail(err error) bool {
	return err == nil || errors.Is(err, errLabelled) || errors.Is(err, ErrNotFound) || errors.Is(err, errBeingDeleted) || errors.Is(err, ErrPrecondition)
}

func testLabelAgainstDelete(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	one, two, site := open(), open(), newSite()
	counts := map[string]int{}
	for range raceRounds {
		mustStore(t, one, site, "b", body(10, 1))
		errs := atOnce(func() error {
			_, _, err := one.MoveLabel(site, LabelMove{Label: "live", BuildID: "b"})
			return err
		}, func() error { return two.DeleteArtifact(site, "b", Precondition{}) })
		for _, err := range errs {
			if !mayFail(err) {
				t.Error(err)
			}
		}
		moved, deleted := errs[0] == nil, errs[1] == nil
		if moved && deleted {
			t.Fatal("the label was moved to a build that was deleted")
		}
		counts[fmt.Sprintf("moved %v, deleted %v", moved, deleted)]++
		wantSound(t, two, site, "live")
		if moved {
			wantLabel(t, two, site, "live", "b")
		}
		if err := two.DeleteLabel(site, "live", Precondition{}); err != nil {
			t.Fatal(err)
		}
	}
	t.Log(counts)
}

// atEnd is an empty reader that calls f when it is read first.
type atEnd struct{ f func() }

func (r *atEnd) Read([]byte) (int, error) {
	if r.f != nil {
		r.f()
		r.f = nil
	}
	return 0, io.EOF
}

func testLabelAgainstReplacement(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	one, two, site := open(), open(), newSite()
	counts := map[string]int{}
	for i := range raceRounds {
		old := mustStoreIf(t, one, site, "b", body(10, 1), Precondition{})
		cond := []Precondition{{}, ifMatch(old.ETag)}[i%2]
		var l Label
		sent := make(chan struct{}) // the whole body: now the replacement is committed
		errs := atOnce(func() (err error) {
			<-sent
			l, _, err = one.MoveLabel(site, LabelMove{Label: "live", BuildID: "b"})
			return err
		}, func() error {
			data := known(body(20, byte(i)))
			_, err := two.StoreArtifactIf(site, "b", sized{io.MultiReader(data, &atEnd{func() { close(sent) }}), 20}, cond)
			return err
		})
		if errs[0] != nil || !mayFail(errs[1]) {
			t.Error(errs)
		}
		counts[fmt.Sprintf("replaced %v, the label is of the new one %v", errs[1] == nil, l.BuildETag != old.ETag)]++
		wantSound(t, two, site, "live")
		if (errs[1] == nil) != (l.BuildETag != old.ETag) {
			t.Fatalf("replaced: %v, and the label is %+v, the old build %+v", errs[1], l, old)
		}
		if err := two.DeleteLabel(site, "live", Precondition{}); err != nil {
			t.Fatal(err)
		}
	}
	t.Log(counts)
}

// testLabelsWhileBuildsGo: two processes move a label between builds, delete it, and delete and
// create the builds. At each moment the label names a build that is there.
func testLabelsWhileBuildsGo(t *testing.T, open func() labelStore, _ func(site, label string, data []byte)) {
	stores, site := []labelStore{open(), open()}, newSite()
	ids := []string{"b", "c", "d"}
	var done atomic.Int64
	var g sync.WaitGroup
	worker := func(what string, do func(i int) error) {
		g.Go(func() {
			for i := range raceRounds {
				if err := do(i); !mayFail(err) {
					t.Errorf("%s: %v", what, err)
				} else if err == nil {
					done.Add(1)
				}
			}
		})
	}
	for w, b := range stores {
		worker("store", func(i int) error {
			_, err := b.StoreArtifactIf(site, ids[(i+w)%3], known(body(10+i, byte(w))), createOnly)
			if errors.Is(err, ErrUnavailable) { // refused because of a build that is gone by now
				return ErrPrecondition
			}
			return err
		})
		worker("delete", func(i int) error { return b.DeleteArtifact(site, ids[(i/2+w)%3], Precondition{}) })
		worker("move", func(i int) error {
			l, _, err := b.MoveLabel(site, LabelMove{Label: "live", BuildID: ids[(i/3+w)%3]})
			if err != nil {
				return err
			}
			// The build can only have gone after the label moved on.
			info, gone := b.StatArtifact(site, l.BuildID)
			if now, err := b.GetLabel(site, "live"); err == nil && now == l && (gone != nil || info.ETag != l.BuildETag) {
				t.Errorf("the label is %+v, but the build has the ETag %q, %v", l, info.ETag, gone)
			}
			return nil
		})
	}
	worker("delete of the label", func(i int) error {
		if i%4 != 0 {
			return nil
		}
		return stores[0].DeleteLabel(site, "live", Precondition{})
	})
	g.Wait()
	wantSound(t, stores[0], site, "live")
	t.Logf("%d changes were made", done.Load())
}
