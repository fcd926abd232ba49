package main

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkListVersions lists 10,000 builds, each with a log: the first time,
// unchanged, and after a change of one. Besides the time it reports the CPU time of
// the whole process.
func BenchmarkListVersions(b *testing.B) {
	const builds = 10_000
	base := b.TempDir()
	manyBuilds(b, base, builds)
	list := func(b *testing.B, n *nfs) {
		if versions, err := n.ListVersions("s"); err != nil || len(versions) != builds {
			b.Fatalf("%d versions, %v", len(versions), err)
		}
	}
	bench := func(name string, prepare func(b *testing.B, n *nfs, i int) *nfs) {
		b.Run(name, func(b *testing.B) {
			n := openTestNFS(b, base)
			list(b, n)
			waitStable(b, n)
			list(b, n) // with metadata, as it will be
			var cpu time.Duration
			i := 0
			for b.Loop() {
				if prepare != nil {
					b.StopTimer()
					n = prepare(b, n, i)
					i++
					b.StartTimer()
				}
				start := cpuTime(b)
				list(b, n)
				cpu += cpuTime(b) - start
			}
			b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
	bench("first", func(b *testing.B, _ *nfs, _ int) *nfs { return openTestNFS(b, base) })
	bench("unchanged", nil)
	bench("after_an_entry", func(b *testing.B, n *nfs, i int) *nfs {
		if err := n.WriteLog("s", entry(fmt.Sprint(i, time.Now()), "build-1", time.Now())); err != nil {
			b.Fatal(err)
		}
		return n
	})
	bench("after_an_upload", func(b *testing.B, n *nfs, i int) *nfs {
		if err := n.StoreArtifact("s", "build-1", known([]byte("x"))); err != nil {
			b.Fatal(err)
		}
		return n
	})
}

// BenchmarkAppend adds an entry to a log of each size.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{0, 64 << 10, 1 << 20, 15 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			old := bigLog(b, max(size, 70<<10))
			if size == 0 {
				old = nil
			}
			for b.Loop() {
				if _, tail, err := growLog(old, []LogEntry{entry("new", "b", testTime)}, make([]error, 1), false); err != nil || len(tail) == 0 {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(len(old)))
		})
	}
}
