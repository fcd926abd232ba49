package main

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkDeleteVersions removes 1,000 builds with digests and logs in one call, on conditions.
// Besides the time it reports the CPU time of the whole process.
func BenchmarkDeleteVersions(b *testing.B) {
	const builds = 1000
	n := openTestNFS(b, b.TempDir())
	n.useDigests()
	var cpu time.Duration
	for b.Loop() {
		b.StopTimer()
		for i := range builds {
			id := fmt.Sprint("b", i)
			if _, err := n.StoreArtifactIf("s", id, hashedBody(body(4<<10, byte(i))), Precondition{}); err != nil {
				b.Fatal(err)
			}
			if err := n.WriteLog("s", entry("1", id, time.Now())); err != nil {
				b.Fatal(err)
			}
		}
		page, err := n.ListVersionsPage("s", VersionQuery{Tags: true})
		if err != nil {
			b.Fatal(err)
		}
		var plan []VersionDeletion
		for _, v := range page.Versions {
			plan = append(plan, VersionDeletion{BuildID: v.BuildID, Artifact: ifMatch(v.etag), LogTag: v.logTag})
		}
		cpu -= cpuTime(b)
		b.StartTimer()
		for _, err := range n.DeleteVersions("s", plan) {
			if err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		cpu += cpuTime(b)
		b.StartTimer()
	}
	b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N), "cpu-ns/op")
}
