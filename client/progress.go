package client

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	terminal "golang.org/x/term"
)

// progressEvery is how often a line is written where there is no terminal.
const progressEvery = 10 * time.Second

// redrawEvery is how often a bar changes.
const redrawEvery = 200 * time.Millisecond

// showAfter is when a bar appears: before, it knows no rate.
const showAfter = time.Second

// waitingAfter is how long nothing moves until the bar says so.
const waitingAfter = 2 * time.Second

// progress shows people how far a transfer is, on standard error: by a bar on a terminal,
// otherwise by a line every progressEvery in which bytes have moved, with --quiet by nothing. Its methods may be called by
// several goroutines.
type progress struct {
	mu     sync.Mutex
	bar    *progressbar.ProgressBar // nil: there is no terminal
	stderr io.Writer
	what   string
	done   int64
	total  int64         // -1: not known
	start  time.Time     // of the bar
	shown  int64         // bytes that the bar shows
	still  time.Duration // since they changed
	closed bool
	stop   chan struct{}
	ended  sync.WaitGroup
}

// newProgress begins to show the progress of what. total is -1 if it is not known.
func (c *call) newProgress(what string, total int64) *progress {
	p := &progress{stderr: c.Stderr, what: printable(what), total: total, stop: make(chan struct{})}
	c.bar = p
	switch {
	case c.quiet:
	case c.terminal:
		p.bar = progressbar.NewOptions64(total, // without colours, so NO_COLOR changes nothing
			progressbar.OptionSetWriter(c.Stderr),
			progressbar.OptionSetDescription(p.what),
			progressbar.OptionShowBytes(true),
			progressbar.OptionShowCount(),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionThrottle(redrawEvery/2),
			progressbar.OptionFullWidth(),
		)
		p.bar.StartWithoutRender() // otherwise its clock starts with the first frame, which shows an absurd rate
		p.start = time.Now()
		p.ended.Go(func() { p.every(redrawEvery, p.redraw) })
	default:
		start, before := time.Now(), int64(0)
		p.ended.Go(func() {
			p.every(progressEvery, func() {
				if p.done == before { // there are notes about what fails
					return
				}
				fmt.Fprintf(p.stderr, "%s: %s\n", p.what, progressLine(p.done, p.total, p.done-before, time.Since(start)))
				before = p.done
			})
		})
	}
	return p
}

// isTerminal reports whether w is a terminal that understands a bar.
func isTerminal(w io.Writer, term string) bool {
	file, ok := w.(*os.File)
	return ok && term != "dumb" && terminal.IsTerminal(int(file.Fd()))
}

// add says that n more bytes were moved.
func (p *progress) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += int64(n)
}

// set says how many bytes were moved so far: fewer than before if an attempt starts again.
func (p *progress) set(done int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil && done < p.done {
		p.bar.Reset() // a bar that was full would stay so
	}
	p.done = done
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

// every calls show again and again, with mu locked, until close is called.
func (p *progress) every(interval time.Duration, show func()) {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-ticks.C:
		}
		p.mu.Lock()
		if !p.closed {
			show()
		}
		p.mu.Unlock()
	}
}

// redraw draws the bar. Without movement the library would show a rate of 0, and that no time is left.
func (p *progress) redraw() {
	if time.Since(p.start) < showAfter {
		return
	}
	if p.done != p.shown {
		if p.still >= waitingAfter {
			p.bar.Describe(p.what)
		}
		p.still, p.shown = 0, p.done
		p.bar.Set64(p.done)
		return
	}
	if p.still += redrawEvery; p.still == waitingAfter {
		p.bar.Describe(p.what + " (waiting)")
	} else {
		p.bar.RenderBlank() // the time
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
	if !p.closed {
		p.closed = true
		close(p.stop)
		if p.bar != nil {
			p.bar.Clear()
		}
	}
	p.mu.Unlock()
	p.ended.Wait()
}
