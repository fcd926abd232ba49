package client

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progressEvery is how often a line is written where there is no terminal.
const progressEvery = 10 * time.Second

// progress shows people how far a transfer is, on standard error: by a bar on a terminal,
// otherwise by a line every progressEvery, with --quiet by nothing. Its methods may be called by
// several goroutines.
type progress struct {
	mu     sync.Mutex
	bar    *progressbar.ProgressBar // nil: there is no terminal
	stderr io.Writer
	what   string
	done   int64
	total  int64 // -1: not known
	stop   chan struct{}
	ended  sync.WaitGroup
}

// newProgress begins to show the progress of what. total is -1 if it is not known.
func (c *call) newProgress(what string, total int64) *progress {
	p := &progress{stderr: c.Stderr, what: printable(what), total: total, stop: make(chan struct{})}
	switch {
	case c.quiet:
		p.stderr = io.Discard
	case c.onTerminal():
		p.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(c.Stderr),
			progressbar.OptionSetDescription(p.what),
			progressbar.OptionShowBytes(true),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionFullWidth(),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionEnableColorCodes(c.env("NO_COLOR") == ""),
		)
	default:
		p.ended.Go(p.lines)
	}
	c.bar = p
	return p
}

// onTerminal reports whether standard error is a terminal that understands a bar.
func (c *call) onTerminal() bool {
	file, ok := c.Stderr.(*os.File)
	return ok && c.env("TERM") != "dumb" && term.IsTerminal(int(file.Fd()))
}

// add says that n more bytes were moved.
func (p *progress) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show(p.done + int64(n))
}

// set says how many bytes were moved so far: fewer than before if an attempt starts again.
func (p *progress) set(done int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show(done)
}

// setTotal says how many bytes there are.
func (p *progress) setTotal(total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total = total
	if p.bar != nil {
		p.bar.ChangeMax64(total)
	}
}

func (p *progress) show(done int64) {
	p.done = done
	if p.bar != nil {
		p.bar.Set64(done)
	}
}

// lines writes a line every progressEvery.
func (p *progress) lines() {
	ticks := time.NewTicker(progressEvery)
	defer ticks.Stop()
	start := time.Now()
	before := int64(0)
	for {
		select {
		case <-p.stop:
			return
		case <-ticks.C:
		}
		p.mu.Lock()
		done, total := p.done, p.total
		p.mu.Unlock()
		fmt.Fprintf(p.stderr, "%s: %s\n", p.what, progressLine(done, total, done-before, time.Since(start)))
		before = done
	}
}

// progressLine says how far a transfer is that moved recent bytes in the last progressEvery.
func progressLine(done, total, recent int64, spent time.Duration) string {
	rate := float64(max(recent, 0)) / progressEvery.Seconds()
	text := humanize.IBytes(uint64(done))
	if total > 0 {
		text += fmt.Sprintf(" of %s (%d%%)", humanize.IBytes(uint64(total)), 100*done/total)
	}
	text += fmt.Sprintf(", %s/s", humanize.IBytes(uint64(rate)))
	if total > done && rate > 0 {
		text += fmt.Sprintf(", %v left", time.Duration(float64(total-done)/rate*1e9).Round(time.Second))
	}
	return text + fmt.Sprintf(", %v so far", spent.Round(time.Second))
}

// hide removes the bar from the terminal until the next change, for a line of text.
func (p *progress) hide() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		p.bar.Clear()
	}
}

// close stops it, and removes the bar. It may be called twice.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.stop:
		return
	default:
	}
	close(p.stop)
	if p.bar != nil {
		p.bar.Clear()
	}
}
