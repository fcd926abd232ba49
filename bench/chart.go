package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"strings"
)

// Charts are plain SVG: horizontal bars with their values, or lines on
// logarithmic axes.

// colors has one for each server, the same in every chart.
var colors = map[string]string{
	pagewright: "#1f6fb4", directory: "#7ab0e0", plain: "#e08020", nginx: "#4a9b4a", nginxCache: "#9fce7f", limit: "#909090", before: "#a9c7e8",
}

const chartWidth = 760.0

// svg is a picture in the making.
type svg struct {
	strings.Builder
}

func (s *svg) text(x, y float64, anchor, style, text string) {
	fmt.Fprintf(s, `<text x="%.1f" y="%.1f" text-anchor="%s" %s>%s</text>`+"\n", x, y, anchor, style, html.EscapeString(text))
}

func (s *svg) line(x1, y1, x2, y2 float64, color string) {
	fmt.Fprintf(s, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`+"\n", x1, y1, x2, y2, color)
}

// save writes it with its title, height high.
func (s *svg) save(path, title string, height float64) error {
	head := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#222">
<rect width="100%%" height="100%%" fill="#fff"/>
<text x="14" y="26" font-size="16" font-weight="bold">%s</text>
`, chartWidth, height, chartWidth, height, html.EscapeString(title))
	return os.WriteFile(path, []byte(head+s.String()+"</svg>\n"), 0o644)
}

func (r *results) drawChart(t table, path string) error {
	title := t.title + ": " + units[t.chart]
	if t.lines {
		return r.drawLines(t, path, title)
	}
	return r.drawBars(t, path, title)
}

// units says what the name of a metric means.
var units = map[string]string{
	"MB/s": "MB per second (more is better)", "CPU s/GB": "server CPU seconds per GB (less is better)",
	"per s": "requests per second (more is better)", "CPU us": "server CPU per request, microseconds (less is better)",
	"CPU ms": "server CPU, milliseconds (less is better)", "RSS MB": "resident memory, MB (less is better)",
	"peak RSS MB": "peak resident memory, MB (less is better)", "p99 ms": "99th percentile, milliseconds (less is better)",
}

// drawBars draws a group of bars for each size, one bar for each server.
func (r *results) drawBars(t table, path, title string) error {
	const left, right, bar = 190.0, 80.0, 20.0
	s := &svg{}
	top := 0.0
	for _, x := range r.xs(t.load) {
		for _, server := range r.servers(t.load) {
			v, _ := r.median(t.load, x, server, t.chart)
			top = max(top, v)
		}
	}
	y := 46.0
	for _, x := range r.xs(t.load) {
		if t.x != "" {
			s.text(14, y+12, "start", `font-weight="bold" fill="#666"`, t.x+": "+short(x))
			y += 20
		}
		for _, server := range r.servers(t.load) {
			v, ok := r.median(t.load, x, server, t.chart)
			if !ok {
				continue
			}
			width := v / max(top, 1e-9) * (chartWidth - left - right)
			s.text(left-8, y+14, "end", "", server)
			fmt.Fprintf(s, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", left, y, width, bar-3, colors[server])
			s.text(left+width+6, y+14, "start", "", number(v))
			y += bar
		}
		y += 12
	}
	return s.save(path, title, y+4)
}

// axis maps the logarithms of values onto a stretch of the picture.
type axis struct{ low, high, from, to float64 }

func (a *axis) add(v float64) { a.low, a.high = min(a.low, v), max(a.high, v) }

func (a *axis) at(v float64) float64 {
	span := math.Log(a.high / a.low)
	if span == 0 {
		return (a.from + a.to) / 2
	}
	return a.from + math.Log(v/a.low)/span*(a.to-a.from)
}

// drawLines draws a line for each server against the size.
func (r *results) drawLines(t table, path, title string) error {
	const left, right, top, bottom = 70.0, 170.0, 50.0, 360.0
	x := axis{math.Inf(1), 0, left, chartWidth - right}
	y := axis{math.Inf(1), 0, bottom, top}
	servers, xs := r.servers(t.load), r.xs(t.load)
	for _, v := range xs {
		x.add(v)
		for _, server := range servers {
			if m, ok := r.median(t.load, v, server, t.chart); ok && m > 0 {
				y.add(m)
			}
		}
	}
	y.low, y.high = niceBelow(y.low), niceAbove(y.high)
	s := &svg{}
	for v := y.low; v <= y.high*1.001; v = niceAbove(v * 1.001) {
		s.line(left, y.at(v), chartWidth-right, y.at(v), "#ddd")
		s.text(left-8, y.at(v)+4, "end", `fill="#666"`, short(v))
	}
	for _, v := range xs {
		s.line(x.at(v), top, x.at(v), bottom, "#eee")
		s.text(x.at(v), bottom+18, "middle", `fill="#666"`, short(v))
	}
	s.text((left+chartWidth-right)/2, bottom+38, "middle", `fill="#666"`, t.x)
	for i, server := range servers {
		var points []string
		for _, v := range xs {
			if m, ok := r.median(t.load, v, server, t.chart); ok && m > 0 {
				points = append(points, fmt.Sprintf("%.1f,%.1f", x.at(v), y.at(m)))
				fmt.Fprintf(s, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", x.at(v), y.at(m), colors[server])
			}
		}
		fmt.Fprintf(s, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), colors[server])
		ly := top + 10 + 22*float64(i)
		fmt.Fprintf(s, `<rect x="%.1f" y="%.1f" width="16" height="10" fill="%s"/>`+"\n", chartWidth-right+14, ly-9, colors[server])
		s.text(chartWidth-right+36, ly, "start", "", server)
	}
	return s.save(path, title, bottom+50)
}

// niceBelow and niceAbove are the nearest of 1, 2, 5, 10, 20 and so on.
func niceBelow(v float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{5, 2} {
		if m*p <= v*1.0001 {
			return m * p
		}
	}
	return p
}

func niceAbove(v float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if m*p >= v*0.9999 {
			return m * p
		}
	}
	return 10 * p
}

// short writes 16384 as 16Ki and 10000 as 10k.
func short(v float64) string {
	for _, u := range []struct {
		size float64
		name string
	}{{1 << 30, "Gi"}, {1 << 20, "Mi"}, {1 << 10, "Ki"}, {1e6, "M"}, {1e3, "k"}} {
		if v >= u.size && v/u.size == math.Trunc(v/u.size) {
			return number(v/u.size) + u.name
		}
	}
	return number(v)
}
