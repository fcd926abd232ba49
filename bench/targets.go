package main

import (
	"fmt"
	"strings"
)

// target is what a figure of the run must reach.
type target struct {
	what string
	of   func(r *results) (float64, bool)
	max  bool // it must be at most want, else at least
	want float64
	goal bool // wished for, not required
}

// ratioOf is the figure of the service over that of a peer.
func ratioOf(load string, x float64, metric, peer string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) { return r.ratio(load, x, metric, pagewright, peer) }
}

// tlsRatio is ratioOf over TLS, with nginx.
func tlsRatio(load string, x float64, metric string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) { return r.ratio(load, x, metric, pagewrightTLS, nginxTLS) }
}

// digestRatio is the figure of one server over that of another.
func digestRatio(load string, x float64, metric, of, over string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) { return r.ratio(load, x, metric, of, over) }
}

// value is a figure of the service.
func value(load string, x float64, metric string) func(*results) (float64, bool) {
	return valueOf(pagewright, load, x, metric)
}

func valueOf(server, load string, x float64, metric string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) { return r.median(load, x, server, metric) }
}

var targets = []target{
	{what: "large PUT: CPU per GB / plain", of: ratioOf("large PUT", 1, "CPU s/GB", plain), max: true, want: 0.35},
	{what: "large PUT, four at once: CPU per GB / plain", of: ratioOf("large PUT", 4, "CPU s/GB", plain), max: true, want: 0.35},
	{what: "large PUT: CPU per GB / nginx", of: ratioOf("large PUT", 1, "CPU s/GB", nginx), max: true, want: 0.35},
	{what: "large PUT, four at once: CPU per GB / nginx", of: ratioOf("large PUT", 4, "CPU s/GB", nginx), max: true, want: 0.35},
	{what: "large PUT: MB/s / plain", of: ratioOf("large PUT", 1, "MB/s", plain), want: 2},
	{what: "large PUT: MB/s / dd with fsync", of: ratioOf("large PUT", 1, "MB/s", limit), want: 0.9},
	{what: "large GET: CPU per GB / nginx", of: ratioOf("large GET", 1, "CPU s/GB", nginx), max: true, want: 1.1},
	{what: "large GET, four at once: CPU per GB / nginx", of: ratioOf("large GET", 4, "CPU s/GB", nginx), max: true, want: 1.1},
	{what: "large PUT over TLS: CPU per GB / nginx (no fsync)", of: tlsRatio("large PUT over TLS", 1, "CPU s/GB"), max: true, want: 1.1, goal: true},
	{what: "large GET over TLS: CPU per GB / nginx", of: tlsRatio("large GET over TLS", 1, "CPU s/GB"), max: true, want: 1.1},
	{what: "large GET over TLS, four at once: CPU per GB / nginx", of: tlsRatio("large GET over TLS", 4, "CPU s/GB"), max: true, want: 1.1},
	{what: "small GET over TLS: per s / nginx", of: tlsRatio("small GET over TLS", 64, "per s"), want: 1, goal: true},
	{what: "large PUT, digest sent: CPU per GB / plain with SHA-256", of: digestRatio(digestPut, 1, "CPU s/GB", pagewrightSent, plainHash), max: true, want: 0.75},
	{what: "large PUT, DIGEST=always: CPU per GB / plain with SHA-256", of: digestRatio(digestPut, 1, "CPU s/GB", pagewrightAlways, plainHash), max: true, want: 0.75},
	{what: "small GET with a digest: CPU us / without", of: digestRatio(digestGet, 64, "CPU us", pagewrightSent, pagewright), max: true, want: 1.05},
	{what: "small PUT, 1 connection: per s / plain", of: ratioOf("small PUT", 1, "per s", plain), want: 1},
	{what: "small PUT, 64 connections: per s / plain", of: ratioOf("small PUT", 64, "per s", plain), want: 1.5},
	{what: "small PUT, 256 connections: per s / plain", of: ratioOf("small PUT", 256, "per s", plain), want: 1.5},
	{what: "small PUT, 64 connections: per s / nginx (no fsync)", of: ratioOf("small PUT", 64, "per s", nginx), want: 1, goal: true},
	{what: "small PUT, 500 a second: p99 ms / plain", of: ratioOf("PUT at a fixed rate", 500, "p99 ms", plain), max: true, want: 1, goal: true},
	{what: "log append, 64 connections, 1,000 builds: per s / plain", of: ratioOf("log append, builds: 1000", 64, "per s", plain), want: 1.5},
	{what: "log append, one build: per s at 64 connections / at 1", of: oneBuild, want: 5},
	{what: "small GET: per s / nginx", of: ratioOf("small GET", 64, "per s", nginx), want: 1},
	{what: "HEAD: per s / nginx", of: ratioOf("small HEAD", 64, "per s", nginx), want: 1},
	{what: "304: per s / nginx", of: ratioOf("small 304", 64, "per s", nginx), want: 1},
	{what: "small GET: per s / nginx with open_file_cache", of: ratioOf("small GET", 64, "per s", nginxCache), want: 1, goal: true},
	{what: "small GET: CPU us that the access log costs", of: logCost, max: true, want: 3, goal: true},
	{what: "list of 10,000 builds, repeated with ETag: CPU ms", of: value("list, repeated with ETag", 10000, "CPU ms"), max: true, want: 1},
	{what: "list of 10,000 builds, repeated: CPU ms", of: value("list, repeated", 10000, "CPU ms"), max: true, want: 10},
	{what: "list of 10,000 builds after an upload: CPU / first list", of: afterUpload, max: true, want: 0.25},
	{what: "RSS idle, every backend, MB", of: value("start", 0, "RSS MB"), max: true, want: 40},
	{what: "RSS idle, BACKENDS=nfs, MB", of: valueOf(directory, "start", 0, "RSS MB"), max: true, want: 20},
	{what: "start to first answer, ms", of: value("start", 0, "ms"), max: true, want: 50},
	{what: "RSS with 5,000 idle connections, every backend, MB", of: value("idle connections", 5000, "RSS MB"), max: true, want: 100},
	{what: "RSS with 5,000 idle connections, BACKENDS=nfs, MB", of: valueOf(directory, "idle connections", 5000, "RSS MB"), max: true, want: 100},
	{what: "200 uploads of 64 MiB: peak RSS above idle, MiB", of: uploadsRSS, max: true, want: 64},
}

// logCost is the median over the rounds of what the CPU of a request is more with the access log on.
func logCost(r *results) (float64, bool) {
	var all []float64
	off := r.values(accessLogLoad, 64, pagewright, "CPU us")
	for round, v := range r.values(accessLogLoad, 64, pagewrightLog, "CPU us") {
		if w, ok := off[round]; ok {
			all = append(all, v-w)
		}
	}
	return median(all), len(all) > 0
}

func oneBuild(r *results) (float64, bool) {
	one, ok := r.median("log append, builds: 1", 1, pagewright, "per s")
	many, _ := r.median("log append, builds: 1", 64, pagewright, "per s")
	return many / max(one, 1e-9), ok
}

func afterUpload(r *results) (float64, bool) {
	first, ok := r.median("list, first", 10000, pagewright, "CPU ms")
	after, _ := r.median("list, after an upload", 10000, pagewright, "CPU ms")
	return after / max(first, 1e-9), ok
}

func uploadsRSS(r *results) (float64, bool) {
	for _, x := range r.xs("200 uploads at once") {
		before, _ := r.median("200 uploads at once", x, pagewright, "idle RSS MB")
		peak, ok := r.median("200 uploads at once", x, pagewright, "peak RSS MB")
		return (peak - before) * 1e6 / (1 << 20), ok
	}
	return 0, false
}

func (r *results) writeTargets(b *strings.Builder) {
	b.WriteString("## What it must reach\n\n| | figure | wanted | |\n|---|---:|---:|---|\n")
	for _, t := range targets {
		v, ok := t.of(r)
		if !ok {
			continue
		}
		sign, reached := "at least", v >= t.want
		if t.max {
			sign, reached = "at most", v <= t.want
		}
		word := "reached"
		switch {
		case !reached && t.goal:
			word = "a goal, not reached"
		case !reached:
			word = "**missed**"
		}
		fmt.Fprintf(b, "| %s | %s | %s %s | %s |\n", t.what, number(v), sign, number(t.want), word)
	}
	b.WriteString("\n")
}
