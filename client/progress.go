package client

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

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
	case c.columns != nil:
		p.bar = progressbar.NewOptions64(total, // without colours, so NO_COLOR changes nothing
			progressbar.OptionSetWriter(fitted{c.Stderr, c.columns}),
			progressbar.OptionSetDescription(p.what),
			progressbar.OptionShowBytes(true),
			progressbar.OptionShowCount(),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionThrottle(redrawEvery/2),
			progressbar.OptionSetSpinnerChangeInterval(0), // otherwise a goroutine draws for ever if total is -1
			progressbar.OptionSetWidth(c.columns()/6),     // most of a line of 80 columns are numbers
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

// columnsOf returns how many columns w has now if it is a terminal that understands a bar, and nil
// otherwise.
func columnsOf(w io.Writer, term string) func() int {
	file, ok := w.(*os.File)
	if !ok || term == "dumb" || !terminal.IsTerminal(int(file.Fd())) {
		return nil
	}
	return func() int {
		if width, _, err := terminal.GetSize(int(file.Fd())); err == nil && width > 0 {
			return width
		}
		return 80
	}
}

// fitted is a terminal on which no line wraps: a longer one loses its left end, with the description.
type fitted struct {
	io.Writer
	columns func() int
}

func (f fitted) Write(p []byte) (int, error) {
	lines := strings.Split(string(p), "\r")
	for i, line := range lines {
		lines[i] = lastColumns(line, f.columns()-1)
	}
	_, err := io.WriteString(f.Writer, strings.Join(lines, "\r"))
	return len(p), err
}

// lastColumns returns the end of s that takes at most n columns. All characters that can be wide
// count as such.
func lastColumns(s string, n int) string {
	for i := len(s); i > 0; {
		r, size := utf8.DecodeLastRuneInString(s[:i])
		if n--; r >= 0x1100 && !strings.ContainsRune("█…", r) {
			n--
		}
		if n < 0 {
			return s[i:]
		}
		i -= size
	}
	return s
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
