package main

import (
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// colors has one for each server, the same in every chart.
var colors = map[string]color.Color{
	pagewright: color.RGBA{0x1f, 0x6f, 0xb4, 0xff},
	plain:      color.RGBA{0xe0, 0x80, 0x20, 0xff},
	nginx:      color.RGBA{0x4a, 0x9b, 0x4a, 0xff},
	nginxCache: color.RGBA{0x9f, 0xce, 0x7f, 0xff},
	versitygw:  color.RGBA{0x90, 0x60, 0xb0, 0xff},
	limit:      color.RGBA{0x90, 0x90, 0x90, 0xff},
}

func (r *results) drawChart(t table, path string) error {
	p := plot.New()
	p.Title.Text = t.title
	p.Title.Padding = vg.Points(8)
	p.Y.Label.Text = t.chart
	p.X.Label.Text = t.x
	p.Legend.Top = true
	p.Legend.Padding = vg.Points(2)
	p.BackgroundColor = color.White
	var err error
	if t.lines {
		err = r.drawLines(p, t)
	} else {
		err = r.drawBars(p, t)
	}
	if err != nil {
		return err
	}
	return p.Save(7*vg.Inch, 3.6*vg.Inch, path)
}

// drawBars draws a group of bars for each size, one bar for each server.
func (r *results) drawBars(p *plot.Plot, t table) error {
	xs, servers := r.xs(t.load), r.servers(t.load)
	width := vg.Points(280 / float64(len(xs)*len(servers)+len(xs)))
	width = min(width, vg.Points(40))
	var names []string
	for _, x := range xs {
		names = append(names, number(x))
	}
	top := 0.0
	for i, s := range servers {
		values := make(plotter.Values, len(xs))
		labels := plotter.XYLabels{}
		for j, x := range xs {
			values[j], _ = r.median(t.load, x, s, t.chart)
			top = max(top, values[j])
			labels.XYs = append(labels.XYs, plotter.XY{X: float64(j), Y: values[j]})
			labels.Labels = append(labels.Labels, "")
			if values[j] > 0 {
				labels.Labels[j] = number(values[j])
			}
		}
		bars, err := plotter.NewBarChart(values, width)
		if err != nil {
			return err
		}
		bars.Color, bars.LineStyle.Width = colors[s], 0
		bars.Offset = width * vg.Length(float64(i)-float64(len(servers)-1)/2)
		text, err := plotter.NewLabels(labels)
		if err != nil {
			return err
		}
		text.Offset.X, text.Offset.Y = bars.Offset, vg.Points(2)
		for k := range text.TextStyle {
			text.TextStyle[k].XAlign = draw.XCenter
			text.TextStyle[k].Font.Size = vg.Points(8)
		}
		p.Add(bars, text)
		p.Legend.Add(s, bars)
	}
	p.NominalX(names...)
	p.Y.Min, p.Y.Max = 0, top*1.1
	p.Legend.Left = false
	// Room for the legend beside the bars.
	p.X.Max = float64(len(xs)-1) + 0.5 + 0.55*float64(len(xs))
	p.X.Min = -0.5
	return nil
}

// drawLines draws a line for each server against the size.
func (r *results) drawLines(p *plot.Plot, t table) error {
	for _, s := range r.servers(t.load) {
		var points plotter.XYs
		for _, x := range r.xs(t.load) {
			if v, ok := r.median(t.load, x, s, t.chart); ok && x > 0 && v > 0 {
				points = append(points, plotter.XY{X: x, Y: v})
			}
		}
		if len(points) == 0 {
			continue
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		line.Color, line.Width = colors[s], vg.Points(1.5)
		dots.Color, dots.Shape = colors[s], draw.CircleGlyph{}
		p.Add(line, dots)
		p.Legend.Add(s, line, dots)
	}
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = logTicks{}, logTicks{}
	p.Legend.Left = true
	p.Add(plotter.NewGrid())
	return nil
}

// logTicks are those of plot.LogTicks, told as plain numbers.
type logTicks struct{}

func (logTicks) Ticks(low, high float64) []plot.Tick {
	ticks := plot.LogTicks{Prec: -1}.Ticks(low, high)
	for i := range ticks {
		if ticks[i].Label != "" {
			ticks[i].Label = short(ticks[i].Value)
		}
	}
	return ticks
}

// short writes 16384 as 16k.
func short(v float64) string {
	switch {
	case v >= 1e9:
		return number(v/1e9) + "G"
	case v >= 1e6:
		return number(v/1e6) + "M"
	case v >= 1e3:
		return number(v/1e3) + "k"
	}
	return number(v)
}
