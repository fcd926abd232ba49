package main

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// What one process keeps of small artifacts is looked at again for every
// request, so it is right when another process changes them.
func TestKeptSmallArtifactsFollowOtherProcesses(t *testing.T) {
	base := t.TempDir()
	ours, theirs := openTestNFS(t, base), openTestNFS(t, base)
	ours.small = newSmallFiles(true)
	f := func(want string) {
		t.Helper()
		for range 3 {
			r, err := ours.FetchArtifact("s", "b")
			if want == "" {
				if !errors.Is(err, ErrNotFound) {
					t.Fatalf("a deleted build: %v", err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || string(got) != want {
				t.Fatalf("%.20q, not %.20q: %v", got, want, err)
			}
			_, inMemory := r.(MemoryReader)
			if small := len(want) <= smallSize; inMemory != small {
				t.Errorf("%d bytes: in memory %v", len(want), inMemory)
			}
			info, err := ours.StatArtifact("s", "b")
			if err != nil || info != r.(ArtifactReader).Info() {
				t.Errorf("stat says %v, the reader %v: %v", info, r.(ArtifactReader).Info(), err)
			}
			r.Close()
		}
	}
	for _, content := range []string{"first", "other", strings.Repeat("x", smallSize), strings.Repeat("y", smallSize+1), "small again", ""} {
		if content == "" {
			if err := theirs.DeleteArtifact("s", "b", Precondition{}); err != nil {
				t.Fatal(err)
			}
		} else if err := theirs.StoreArtifact("s", "b", strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		f(content)
	}
}
