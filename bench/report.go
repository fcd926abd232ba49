package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// load reads what save wrote.
func load(path string) (*results, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &results{}
	return r, json.Unmarshal(data, r)
}

// report writes README.md and the charts into dir.
func (r *results) report(dir string) error {
	var b strings.Builder
	b.WriteString("# Benchmark\n\n")
	if r.Quick {
		b.WriteString("**A quick run, made to see that all works. Its figures mean little.**\n\n")
	}
	for _, k := range slices.Sorted(maps.Keys(r.Machine)) {
		fmt.Fprintf(&b, "- %s: %s\n", k, r.Machine[k])
	}
	fmt.Fprintf(&b, "- duration: %.0f s\n", r.Seconds)
	b.WriteString("\nServer and client share the cores; nothing is pinned; each server has its turn in every round.\n" +
		"The access log of a server is off, unless its name says \"access log\": then it goes to a file.\n" +
		"Figures are medians of the rounds. A ratio is the median of the ratios of the rounds.\n" +
		"CPU is that of the server alone, with its children, unless its name says \"client\". Every sample is in results.json.\n" +
		"Memory is used and freed before each large PUT, or a virtual machine would be part of what is measured (NOTES.md).\n\n")
	r.writeTargets(&b)
	b.WriteString("## Who is compared\n\n| server | durability of a write |\n|---|---|\n")
	for _, s := range []string{pagewright, plain, nginx, nginxCache, limit} {
		fmt.Fprintf(&b, "| %s | %s |\n", s, durability[s])
	}
	r.writeBefore(&b)
	b.WriteString("\nThe limit is `dd` with fsync for a large PUT, a bare sendfile(2) for a large GET, and for a small PUT " +
		"a loop of write, fsync, rename and directory fsync. " +
		"What nginx is told to write is not on the disk when it answers: a comparison with it is one across classes.\n\n")
	for _, t := range tables {
		if err := r.writeTable(&b, dir, t); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "README.md"), []byte(b.String()), 0o644)
}

// writeBefore tells what a change was worth, if another build was measured too.
func (r *results) writeBefore(b *strings.Builder) {
	first := true
	for _, t := range tables {
		for _, x := range r.xs(t.load) {
			for _, m := range t.metrics {
				ratio, ok := r.ratio(t.load, x, m, pagewright, before)
				if !ok {
					continue
				}
				if first {
					b.WriteString("\n## Against the build before\n\n| load | | figure | ratio |\n|---|---:|---|---:|\n")
					first = false
				}
				fmt.Fprintf(b, "| %s | %s | %s | %s |\n", t.load, number(x), m, number(ratio))
			}
		}
	}
}

// table is a section of the report: a load, and what to tell of it.
type table struct {
	title, load, x string
	metrics        []string
	chart          string // the metric of the chart; empty: none
	lines          bool   // against x, both axes logarithmic, else bars
}

var tables = []table{
	{title: "Large PUT (1 GiB)", load: "large PUT", x: "at once", metrics: []string{"MB/s", "CPU s/GB", "peak RSS MB"}, chart: "MB/s"},
	{title: "Large PUT, CPU", load: "large PUT", x: "at once", chart: "CPU s/GB"},
	{title: "Large GET (1 GiB, warm)", load: "large GET", x: "at once", metrics: []string{"MB/s", "CPU s/GB", "peak RSS MB"}, chart: "CPU s/GB"},
	{title: "Large PUT (1 GiB) over TLS 1.3", load: "large PUT over TLS", x: "at once", metrics: []string{"MB/s", "CPU s/GB", "peak RSS MB"}, chart: "CPU s/GB"},
	{title: "Large PUT (1 GiB) with digests", load: digestPut, x: "at once", metrics: []string{"MB/s", "CPU s/GB", "peak RSS MB"}, chart: "CPU s/GB"},
	{title: "Small PUT (4 KiB) with digests", load: digestSmallPut, x: "connections", metrics: []string{"per s", "CPU us", "p50 ms", "p99 ms"}, chart: "per s"},
	{title: "Small GET (4 KiB) with digests", load: digestGet, x: "connections", metrics: []string{"per s", "CPU us", "p50 ms", "p99 ms"}, chart: "CPU us"},
	{title: "Large GET (1 GiB, warm) over TLS 1.3", load: "large GET over TLS", x: "at once", metrics: []string{"MB/s", "CPU s/GB", "peak RSS MB"}, chart: "CPU s/GB"},
	{title: "Small GET (4 KiB) over TLS 1.3, by wrk", load: "small GET over TLS", x: "connections", metrics: []string{"per s", "CPU us"}, chart: "per s"},
	{title: "Small PUT (16 KiB)", load: "small PUT", x: "connections", metrics: []string{"per s", "CPU us", "p50 ms", "p99 ms", "p99.9 ms"}, chart: "per s", lines: true},
	{title: "Log append, one build", load: "log append, builds: 1", x: "connections", metrics: []string{"per s", "CPU us", "p50 ms", "p99 ms"}, chart: "per s"},
	{title: "Log append, 1,000 builds", load: "log append, builds: 1000", x: "connections", metrics: []string{"per s", "CPU us", "p50 ms", "p99 ms"}, chart: "per s"},
	{title: "Small GET (4 KiB)", load: "small GET", x: "connections", metrics: []string{"per s", "CPU us", "p50 ms", "p99 ms", "p99.9 ms"}, chart: "per s"},
	{title: "Small GET, by wrk", load: "small GET by wrk", x: "connections", metrics: []string{"per s", "CPU us"}},
	{title: "Small GET (4 KiB), access log on and off", load: accessLogLoad, x: "connections", metrics: []string{"per s", "CPU us", "p50 ms", "p99 ms"}},
	{title: "HEAD", load: "small HEAD", x: "connections", metrics: []string{"per s", "CPU us", "p50 ms", "p99 ms"}, chart: "per s"},
	{title: "GET answered 304", load: "small 304", x: "connections", metrics: []string{"per s", "CPU us", "p50 ms", "p99 ms"}, chart: "per s"},
	{title: "GET at a fixed rate", load: "GET at a fixed rate", x: "requests due per s", metrics: []string{"per s", "CPU us", "p50 ms", "p99 ms", "p99.9 ms"}, chart: "p99 ms"},
	{title: "PUT (16 KiB) at a fixed rate", load: "PUT at a fixed rate", x: "requests due per s", metrics: []string{"per s", "CPU us", "p50 ms", "p99 ms", "p99.9 ms"}, chart: "p99 ms"},
	{title: "Versions: first list after a start", load: "list, first", x: "builds", metrics: []string{"ms", "CPU ms", "answer MB"}, chart: "CPU ms", lines: true},
	{title: "Versions: repeated", load: "list, repeated", x: "builds", metrics: []string{"ms", "CPU ms"}},
	{title: "Versions: repeated with the ETag", load: "list, repeated with ETag", x: "builds", metrics: []string{"ms", "CPU ms"}},
	{title: "Versions: right after an upload, one a second", load: "list, after an upload", x: "builds", metrics: []string{"ms", "CPU ms"}},
	{title: "Upload of a file by a program", load: uploadLoad, x: "bytes", metrics: transferMetrics},
	{title: "Download of a file by a program", load: downloadLoad, x: "bytes", metrics: transferMetrics},
	{title: "/health", load: "/health", x: "connections", metrics: []string{"per s", "CPU us", "p99 ms"}},
	{title: "Start", load: "start", metrics: []string{"ms", "RSS MB"}},
	{title: "Binary", load: "binary", metrics: []string{"MB"}},
	{title: "Idle connections", load: "idle connections", x: "connections", metrics: []string{"RSS MB"}, chart: "RSS MB"},
	{title: "200 uploads at once", load: "200 uploads at once", x: "bytes each", metrics: []string{"idle RSS MB", "peak RSS MB", "MB/s", "CPU s/GB"}, chart: "peak RSS MB"},
	{title: "PUT: CPU by body size", load: "PUT by size", x: "bytes", metrics: []string{"CPU us"}, chart: "CPU us", lines: true},
	{title: "GET: CPU by body size", load: "GET by size", x: "bytes", metrics: []string{"CPU us"}, chart: "CPU us", lines: true},
	{title: "GET: CPU by connections", load: "GET by connections", x: "connections", metrics: []string{"per s", "CPU us"}, chart: "CPU us", lines: true},
}

func (r *results) writeTable(b *strings.Builder, dir string, t table) error {
	xs, servers := r.xs(t.load), r.servers(t.load)
	if len(xs) == 0 {
		return nil
	}
	if len(t.metrics) > 0 {
		fmt.Fprintf(b, "## %s\n\n| %s | server |", t.title, t.x)
		for _, m := range t.metrics {
			fmt.Fprintf(b, " %s |", m)
		}
		b.WriteString("\n|---:|---|" + strings.Repeat("---:|", len(t.metrics)) + "\n")
		for _, x := range xs {
			for _, s := range servers {
				r.writeRow(b, t, x, s)
			}
		}
		b.WriteString("\n")
	}
	if t.chart == "" {
		return nil
	}
	name := fileName(t.load + " " + t.chart + ".svg")
	fmt.Fprintf(b, "![%s, %s](%s)\n\n", t.title, t.chart, name)
	return r.drawChart(t, filepath.Join(dir, name))
}

func (r *results) writeRow(b *strings.Builder, t table, x float64, server string) {
	cells, any := "", false
	for _, m := range t.metrics {
		v, ok := r.median(t.load, x, server, m)
		any = any || ok
		if cells += " |"; ok {
			cells = strings.TrimSuffix(cells, "|") + number(v) + " |"
		}
	}
	if any {
		fmt.Fprintf(b, "| %s | %s |%s\n", number(x), server, cells)
	}
}

func fileName(s string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.':
			return r
		}
		return '-'
	}, s), "-")
}

// number has three significant digits, and all of a whole number.
func number(v float64) string {
	switch a := math.Abs(v); {
	case v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3g", v)
}
