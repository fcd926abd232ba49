//go:build integration

package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestIntegrationTheReserveHasRoomForLogs: with a store that uploads have filled
// to the default reserve of 32 MiB, full logs still take entries, as many at once
// as fit beside their old files.
func TestIntegrationTheReserveHasRoomForLogs(t *testing.T) {
	const size = 160 << 20
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("cannot mount a small file system (this test needs root): %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	s := startServer(t, "NFS_BASE_PATH="+dir)
	entry := func(build, metadata string) string {
		return fmt.Sprintf(`{"build_id":%q,"action":"deploy","status":"ok","metadata":{"x":%q}}`, build, metadata)
	}
	long := strings.Repeat("x", 900_000)
	var wg sync.WaitGroup
	for b := range 4 {
		wg.Go(func() {
			for range 18 {
				s.post(t, 201, "/sites/a/logs", entry(fmt.Sprint("log", b), long))
			}
			s.post(t, 201, "/sites/a/logs", entry(fmt.Sprint("log", b), long[:470_000]))
		})
	}
	wg.Wait()
	i, piece := 0, 4<<20
	for piece >= 4096 {
		switch got := statusOr(s.try(request{"PUT", fmt.Sprint("/sites/a/artifacts/b", i), make([]byte, piece), nil})); got {
		case 201:
			i++
		case 507:
			piece /= 2
		default:
			t.Fatal(got)
		}
	}
	for _, at := range []int{1, 2, 3, 4} {
		var mu sync.Mutex
		got := map[any]int{}
		for range 20 {
			var wg sync.WaitGroup
			for b := range at {
				wg.Go(func() {
					r := statusOr(s.try(request{"POST", "/sites/a/logs", entry(fmt.Sprint("log", b), ""), nil}))
					mu.Lock()
					got[r]++
					mu.Unlock()
				})
			}
			wg.Wait()
		}
		var st syscall.Statfs_t
		_ = syscall.Statfs(dir, &st)
		t.Logf("%d at once: %v; %d bytes free", at, got, int64(st.Bavail)*st.Bsize)
		if at <= 2 && got[201] != 20*at || got[201]+got[507] != 20*at || got[201] < 20 {
			t.Errorf("%d appends at once to logs of nearly 16 MiB, 20 times: %v", at, got)
		}
	}
	for b := range 4 {
		if st, err := os.Stat(fmt.Sprintf("%s/sites/a/logs/log%d%s", dir, b, logSuffix)); err != nil || st.Size() < 159<<20/10 || st.Size() >= maxLogSize {
			t.Errorf("log %d is not the one that was meant: %v, %v", b, st.Size(), err)
		}
	}
}
