package main

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// slowSite is a directory whose lists of the site "slow" wait for release.
type slowSite struct {
	*nfs
	release chan struct{}
}

func (b slowSite) ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error) {
	if siteID == "slow" {
		<-b.release
	}
	return b.nfs.ListVersionsPage(siteID, q)
}

// Lists that wait, however many, hold back neither other requests nor lists of other
// sites, and each is answered.
func TestListsThatWaitHoldNoOthersBack(t *testing.T) {
	b := slowSite{openTestNFS(t, t.TempDir()), make(chan struct{})}
	s, svc := startBackend(t, b)
	release := sync.OnceFunc(func() { close(b.release) })
	t.Cleanup(release) // or the service cannot stop
	s.put(t, 201, "/sites/other/artifacts/b", "x")
	svc.reads.wait, svc.listing.wait = time.Millisecond, time.Hour
	const lists = maxReads + 10
	done := make(chan any, lists)
	for i := range lists {
		go func() {
			done <- statusOr(s.try(request{"GET", fmt.Sprint("/sites/slow/versions?limit=", i+1), nil, nil}))
		}()
	}
	eventually(t, "all ask", func() bool {
		svc.listing.mu.Lock()
		defer svc.listing.mu.Unlock()
		return svc.listing.used == maxSiteLists && len(svc.listing.queue) == lists-maxSiteLists
	})
	s.get(t, 200, "/sites/other/artifacts/b")
	s.do(t, 200, request{"HEAD", "/sites/other/artifacts/b", nil, nil})
	s.get(t, 200, "/sites/other/versions")
	release()
	for range lists {
		if got := <-done; got != 200 {
			t.Fatalf("a list that waited ended with %v", got)
		}
	}
	nothingIsHeld(t, svc)
}

// A list that gets no place in time is answered 503.
func TestListWithoutAPlace(t *testing.T) {
	b := slowSite{openTestNFS(t, t.TempDir()), make(chan struct{})}
	s, svc := startBackend(t, b)
	release := sync.OnceFunc(func() { close(b.release) })
	t.Cleanup(release) // or the service cannot stop
	done := make(chan any, maxSiteLists)
	for range maxSiteLists {
		go func() { done <- statusOr(s.try(request{"GET", "/sites/slow/versions", nil, nil})) }()
	}
	eventually(t, "all are made", func() bool { return svc.listing.inUse() == maxSiteLists })
	svc.listing.wait = time.Millisecond
	if r := s.get(t, 503, "/sites/slow/versions"); r.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	release()
	for range maxSiteLists {
		if got := <-done; got != 200 {
			t.Fatalf("a list that waited ended with %v", got)
		}
	}
}

// limitsOf are the limits of the lists of a store.
func limitsOf(b Backend) *listLimits {
	if n, ok := b.(*nfs); ok {
		return &n.lists.limits
	}
	return &b.(*objectStore).limits
}

// A list that waits for memory to read logs does so once, for its client, and for a
// bounded time. Then it is 503, and no log is taken for unreadable.
func TestListWaitsForMemoryToReadLogs(t *testing.T) {
	for _, b := range []Backend{openTestNFS(t, t.TempDir()), openMem(newMemBucket())} {
		t.Run(fmt.Sprintf("%T", b), func(t *testing.T) {
			s, svc := startBackend(t, b)
			for i := range 20 {
				plantEntries(t, b, "s", fmt.Sprint("b", i), []LogEntry{withMetadata(entry("1", "b", testTime), 2*scanBuffer)})
			}
			scans := limitsOf(b).scans
			all, err := scans.acquire(budgetRequest{n: scans.limit})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(all.release)
			waiting := func() (clients []string) {
				scans.mu.Lock()
				defer scans.mu.Unlock()
				for _, w := range scans.queue {
					clients = append(clients, w.grant.client)
				}
				return clients
			}
			done := make(chan any, 1)
			list := func() {
				go func() { done <- statusOr(s.try(request{"GET", "/sites/s/versions", nil, nil})) }()
				eventually(t, "it waits", func() bool { return len(waiting()) > 0 })
			}
			scans.wait = 200 * time.Millisecond
			list()
			if got := <-done; got != 503 {
				t.Errorf("the list ends with %v", got)
			}
			scans.wait = time.Hour
			list()
			for range 20 { // its other logs would wait too by now
				if got := strings.Join(waiting(), " "); got != "127.0.0.1" {
					t.Fatalf("there wait %q", got)
				}
				time.Sleep(5 * time.Millisecond)
			}
			all.release()
			if got := <-done; got != 200 {
				t.Errorf("the list ends with %v", got)
			}
			var v versionsBody
			s.get(t, 200, "/sites/s/versions").into(t, &v)
			for _, b := range v.Versions {
				if b.Logs_Error != "" {
					t.Errorf("%s: %s", b.Build_ID, b.Logs_Error)
				}
			}
			nothingIsHeld(t, svc)
		})
	}
}

// Lists of large sites wait for each other, in so far as what they need is not in
// memory already. Others do not wait.
func TestListsOfLargeSitesWait(t *testing.T) {
	for _, b := range []store{openTestNFS(t, t.TempDir()), openMem(newMemBucket())} {
		t.Run(fmt.Sprintf("%T", b), func(t *testing.T) {
			s, svc := startBackend(t, b)
			if n, ok := b.(*nfs); ok {
				manyBuilds(t, n.base, largeSite+1)
			} else {
				for i := range largeSite + 1 {
					plantEntries(t, b, "s", fmt.Sprint("b", i), []LogEntry{entry("1", "b", testTime)})
				}
			}
			mustStore(t, b, "small", "b", body(1, 1))
			large := limitsOf(b).large
			large.wait = 10 * time.Millisecond
			all, err := large.acquire(budgetRequest{n: large.limit})
			if err != nil {
				t.Fatal(err)
			}
			s.get(t, 503, "/sites/s/versions?limit=1")
			s.get(t, 200, "/sites/small/versions")
			all.release()
			s.get(t, 200, "/sites/s/versions?limit=1")
			nothingIsHeld(t, svc)
			if _, remembers := b.(*nfs); !remembers {
				return
			}
			if all, err = large.acquire(budgetRequest{n: large.limit}); err != nil {
				t.Fatal(err)
			}
			s.get(t, 200, "/sites/s/versions?limit=1")
			all.release()
		})
	}
}
