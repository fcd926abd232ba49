package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// What a server costs is read from /proc (proc(5)), from outside of it and the
// same way for every server.

// tree is pid and the processes below it.
func tree(pid int) []int {
	pids := []int{pid}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		data, _ := os.ReadFile(f)
		for _, child := range strings.Fields(string(data)) {
			if n, err := strconv.Atoi(child); err == nil {
				pids = append(pids, tree(n)...)
			}
		}
	}
	return pids
}

// cpuSeconds is the CPU time used so far by the threads of pid and of its
// children, in seconds: the first field of schedstat, in nanoseconds, which is
// finer than the 10 ms ticks of stat. A thread that ended takes its time away
// with it; none of the servers here ends threads under load.
func cpuSeconds(pid int) float64 {
	total := int64(0)
	for _, p := range tree(pid) {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p))
		for _, f := range files {
			data, _ := os.ReadFile(f)
			if fields := strings.Fields(string(data)); len(fields) > 0 {
				n, _ := strconv.ParseInt(fields[0], 10, 64)
				total += n
			}
		}
	}
	return float64(total) / 1e9
}

// memory is the sum over pid and its children of a line of /proc/PID/status,
// VmRSS or VmHWM, in MB. Pages that processes share count for each.
func memory(pid int, line string) float64 {
	kb := 0
	for _, p := range tree(pid) {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
		for l := range strings.Lines(string(data)) {
			if rest, ok := strings.CutPrefix(l, line+":"); ok {
				n, _ := strconv.Atoi(strings.Fields(rest)[0])
				kb += n
			}
		}
	}
	return float64(kb) * 1024 / 1e6
}

// resetPeak sets VmHWM back to VmRSS.
func resetPeak(pid int) {
	for _, p := range tree(pid) {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p), []byte("5"), 0)
	}
}
