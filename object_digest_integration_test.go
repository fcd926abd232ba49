//go:build integration

package main

import (
	"errors"
	"slices"
	"sync"
	"testing"
)

func TestRealStoresKeepDigests(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		testDigests(t, func(t *testing.T) Backend { return s.open(t, "") })
	})
}

// digests opens the store as a process of its own would, with digests.
func (s *realStore) digests(t *testing.T, through string) *objectStore {
	t.Helper()
	b := s.open(t, through).(*objectStore)
	b.useDigests()
	return b
}

// Every third reply to a write is lost: what is acknowledged has its digest or, if the lost
// reply was that of the digest, none. It is never that of other bytes.
func TestRealStoresKeepDigestsOverALossyLine(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		through, dropped := lossyProxy(t, s.server.url(), 3)
		var g sync.WaitGroup
		for w := range 3 {
			b := s.digests(t, through)
			g.Go(func() {
				for i := range 6 {
					data := body([]int{3000, largeBody}[i%2], byte(10*w+i))
					info, err := b.StoreArtifactIf("s", "b", hashedBody(data), Precondition{})
					if err != nil && !errors.Is(err, ErrUnavailable) || err == nil && info.SHA256 != digestOfBytes(data) {
						t.Errorf("upload %d of %d: %q, %v", i, w, info.SHA256, err)
					}
				}
			})
		}
		g.Wait()
		b := s.digests(t, "")
		data, err := fetch(b, "s", "b")
		if err != nil {
			t.Fatal(err)
		}
		info, err := b.StatArtifact("s", "b")
		if err != nil || info.SHA256.known() && info.SHA256 != digestOfBytes(data) {
			t.Errorf("the digest is %q, %v", info.SHA256, err)
		}
		t.Logf("%d replies dropped; the digest is known: %v", dropped.Load(), info.SHA256.known())
	})
}

// Each server begins a list of folders where it is asked to, or the service filters it: see
// TestObjectListSites. Ids sort differently from keys.
func TestRealStoresListSites(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		b := s.open(t, "")
		want := []string{"a", "a-", "a-b", "a.b", "a0", "b", "c+d", "c+d-e"}
		for _, id := range want {
			mustStore(t, b, id, "x", []byte("x"))
		}
		for limit := 1; limit <= len(want)+1; limit++ {
			var got []string
			for after := ""; ; after = got[len(got)-1] {
				page, err := b.(SiteLister).ListSites("", after, limit, nil)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, page...)
				if len(page) < limit {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d at a time: %q, want %q", limit, got, want)
			}
		}
		for prefix, want := range map[string][]string{"a-": {"a-", "a-b"}, "c": {"c+d", "c+d-e"}, "c+d-": {"c+d-e"}, "d": nil} {
			for _, after := range []string{"", "a"} {
				got, err := b.(SiteLister).ListSites(prefix, after, 10, nil)
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("of %s, after %q: %q, %v, want %q", prefix, after, got, err, want)
				}
			}
		}
	})
}
