package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
)

// plantIn writes the objects of labels into a bucket.
func plantIn(t *testing.T, s *objectStore) func(t *testing.T, site, label string, data []byte) {
	return func(_ *testing.T, site, label string, data []byte) {
		if _, err := s.put(t.Context(), s.labelKey(site, label), data, putOptions{contentType: logType}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestObjectLabels(t *testing.T) {
	for _, k := range raceKinds[:2] {
		t.Run(k.name, func(t *testing.T) {
			m := newMemBucket()
			m.hashes = k.hashes
			open := func(*testing.T) Backend { return newObjectStore(m, "a/prefix/", quiet()) }
			testLabels(t, labelRig{gap: true, open: open, plant: plantIn(t, newObjectStore(m, "a/prefix/", quiet()))})
		})
	}
}

// allCalls records all calls of a bucket, with the ids of marks as ID.
func allCalls(m *memBucket) func() []string {
	var mu sync.Mutex
	var calls []string
	m.fault = func(op, key string) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		key = strings.TrimPrefix(key, "sites/s/")
		if i := strings.LastIndexByte(key, '/'); strings.HasPrefix(key, deletingDir) && i < len(key)-1 {
			key = key[:i] + "/ID"
		}
		calls = append(calls, op+" "+key)
		return false, nil
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		defer func() { calls = nil }()
		return calls
	}
}

// What labels cost in calls of the store.
func TestObjectLabelCalls(t *testing.T) {
	m := newMemBucket()
	s := assumeCapable(openMem(m))
	took := allCalls(m)
	f := func(what string, err error, want ...string) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := took(); !slices.Equal(got, want) {
			t.Errorf("%s took\n\t%q, want\n\t%q", what, got, want)
		}
	}
	const build = "artifacts/b.tar.gz"
	store := func(size int, cond Precondition) error {
		_, err := s.StoreArtifactIf("s", "b", known(body(size, 1)), cond)
		return err
	}
	move := func(label string) error {
		_, _, err := s.MoveLabel("s", LabelMove{Label: label, BuildID: "b"})
		return err
	}
	f("a create", store(10, createOnly), "stat "+build, "put "+build)
	f("a replacement", store(10, Precondition{}), "stat "+build, "list labels/", "put "+build)
	f("a replacement on a condition", store(10, Precondition{IfMatch: &ETagList{Any: true}}), "stat "+build, "list labels/", "put "+build)
	f("a large replacement", store(maxUnlooked+1, Precondition{}), "stat "+build, "list labels/", "stat "+build, "list labels/", "put "+build)
	f("a delete", s.DeleteArtifact("s", "b", Precondition{}), "put deleting/b/ID", "list labels/", "remove "+build, "remove deleting/b/ID")
	f("an upload", store(10, Precondition{}), "stat "+build, "put "+build)
	f("a new label", move("live"), "get labels/live.json", "stat "+build, "list labels/", "put labels/live.json",
		"list labels/", "list deleting/b/", "stat "+build, "put labels/live.json")
	f("the same again", move("live"), "get labels/live.json", "stat "+build)
	_, err := s.GetLabel("s", "live")
	f("a look", err, "get labels/live.json")
	f("a delete of the label", s.DeleteLabel("s", "live", Precondition{}), "remove labels/live.json")
}

// A commit whose reply was lost is found out by reading the label.
func TestLostReplyOfAMove(t *testing.T) {
	for _, reply := range []error{ErrUnavailable, errConflict, fmt.Errorf("%w: tried again by the SDK", ErrPrecondition)} {
		m := newMemBucket()
		m.hashes = true
		s := assumeCapable(openMem(m))
		mustStore(t, s, "s", "b", body(10, 1))
		puts := 0
		m.fault = func(op, _ string) (bool, error) {
			if op == "put" {
				puts++
				return true, reply
			}
			return false, nil
		}
		l, created, err := s.MoveLabel("s", LabelMove{Label: "live", BuildID: "b", Cond: createOnly})
		if err != nil || !created || l.BuildID != "b" || puts != 2 {
			t.Errorf("after %v: %+v, %t, %v, %d writes", reply, l, created, err, puts)
		}
	}
}

// With a store that ignores the conditions of puts, labels would protect nothing.
func TestLabelsNeedConditions(t *testing.T) {
	m := newMemBucket()
	m.blind = func(putOptions) bool { return true }
	s := openMem(m)
	mustStore(t, s, "s", "b", body(10, 1))
	_, _, err := s.MoveLabel("s", LabelMove{Label: "live", BuildID: "b"})
	wantError(t, err, ErrUnsupported)
}

// A label that is replaced while it is read is read again.
func TestLabelReplacedWhileItIsRead(t *testing.T) {
	m := newMemBucket()
	b := &cutBodies{memBucket: m}
	s := assumeCapable(newObjectStore(b, "", quiet()))
	mustStore(t, s, "s", "b", body(10, 1))
	mustMove(t, s, "s", "live", "b")
	for cuts, want := range map[int]error{0: nil, labelTries - 1: nil, labelTries: ErrUnavailable} {
		b.cuts = cuts
		if _, err := s.GetLabel("s", "live"); !errors.Is(err, want) {
			t.Errorf("after %d cuts: %v, want %v", cuts, err, want)
		}
	}
}

// cutBodies is a bucket whose next cuts objects end too early.
type cutBodies struct {
	*memBucket
	cuts int
}

func (b *cutBodies) get(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	r, info, err := b.memBucket.get(ctx, key, etag, offset, length)
	if err == nil && b.cuts > 0 {
		b.cuts--
		r = http.NoBody
	}
	return r, info, err
}
