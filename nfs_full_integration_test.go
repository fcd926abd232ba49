//go:build integration

package main

import (
	"fmt"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestIntegrationAFullDiskIsAStateLikeAnyOther fills a real file system under
// load to the reserve, and empties it again: uploads are refused, and then
// taken; all else never stops.
func TestIntegrationAFullDiskIsAStateLikeAnyOther(t *testing.T) {
	const size, reserved = 96 << 20, 32 << 20
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("cannot mount a small file system (this test needs root): %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	s := startServer(t, "NFS_BASE_PATH="+dir, fmt.Sprintf("MIN_FREE_SPACE=%d", reserved))
	const old = "/sites/a/artifacts/old"
	s.put(t, 201, old, randomBytes(1<<20))

	var lowest atomic.Int64
	lowest.Store(size)
	for round := range 3 {
		var stored, refused atomic.Int64
		var mu sync.Mutex
		var names []string
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := 0; refused.Load() < 50; i++ {
					path := fmt.Sprintf("/sites/a/artifacts/r%d-%d-%d", round, w, i)
					var body any = randomBytes(700_000 + w)
					if w%2 == 1 {
						body = unsized(body.([]byte))
					}
					switch r, err := s.try(request{http.MethodPut, path, body, nil}); {
					case err != nil:
						t.Error(err)
						return
					case r.status == 201:
						stored.Add(1)
						mu.Lock()
						names = append(names, path)
						mu.Unlock()
					case r.status == 507 && r.header.Get("Retry-After") != "":
						refused.Add(1)
					default:
						t.Errorf("%s: %d %s", path, r.status, r.body)
						return
					}
					var st syscall.Statfs_t
					if syscall.Statfs(dir, &st) == nil {
						for free := int64(st.Bavail) * st.Bsize; ; {
							if was := lowest.Load(); free >= was || lowest.CompareAndSwap(was, free) {
								break
							}
						}
					}
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		// Full: all but uploads goes on.
		s.put(t, 507, "/sites/a/artifacts/one-more", randomBytes(1<<20))
		s.post(t, 201, "/sites/a/logs", fmt.Sprintf(`{"build_id":"full-%d","action":"deploy","status":"failed"}`, round))
		s.get(t, 200, old)
		s.get(t, 200, "/sites/a/versions")
		s.ready(t)
		temps := 0
		for _, f := range filesBelow(t, dir) {
			if isTempName(f[max(0, len(f)-len(tempPrefix)):]) {
				temps++
			}
		}
		t.Logf("round %d: %d uploads stored, %d refused with 507, lowest free space %d MiB of a reserve of %d MiB",
			round, stored.Load(), refused.Load(), lowest.Load()>>20, reserved>>20)
		if stored.Load() < 20 || temps > 0 {
			t.Errorf("%d stored, %d temporary files left", stored.Load(), temps)
		}
		for _, path := range names { // and empty it again
			s.do(t, 204, request{http.MethodDelete, path, nil, nil})
		}
	}
	// Eight uploads of unknown size can each be one piece past it.
	if free := lowest.Load(); free < reserved-(8<<20) {
		t.Errorf("the reserve of %d bytes went down to %d", reserved, free)
	}
	if _, err := os.Stat(dir + "/sites/a/artifacts/old.tar.gz"); err != nil {
		t.Error(err)
	}
}
