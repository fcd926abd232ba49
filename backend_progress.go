package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// commandOutput is where a command writes its result, and what is for people. It is safe for
// concurrent use.
type commandOutput struct {
	stdout, stderr io.Writer
	terminal       bool // stderr is a terminal: the progress line is rewritten

	mu    sync.Mutex
	shown bool // a progress line is on the terminal
}

// eraseLine moves to the start of the line and erases it (ECMA-48: CR, EL).
const eraseLine = "\r\x1b[K"

// clear removes the progress line, before something else is written.
func (o *commandOutput) clear() {
	if o.shown {
		fmt.Fprint(o.stderr, eraseLine)
		o.shown = false
	}
}

// Write writes to stderr, such as lines of the service log.
func (o *commandOutput) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clear()
	return o.stderr.Write(p)
}

// print writes lines to stdout.
func (o *commandOutput) print(text string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clear()
	_, err := io.WriteString(o.stdout, text)
	return err
}

// progress writes a progress line of a command. On a terminal it replaces the one before.
func (o *commandOutput) progress(command, text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.terminal {
		fmt.Fprintf(o.stderr, "%s: %s\n", command, text)
		return
	}
	const width = 79 // a line that wraps could not be erased
	fmt.Fprint(o.stderr, eraseLine, text[:min(width, len(text))])
	o.shown = true
}

const (
	progressOnTerminal = time.Second
	progressInLog      = 10 * time.Second
	rateOver           = 10 * time.Second // the rate is that of the last 10 s
)

// progressSample is what was done at a time.
type progressSample struct {
	at     time.Time
	read   int64 // bytes
	passed int64 // bytes, also of builds that are not read
}

// watchProgress calls show regularly until ctx ends: with the first sample, the one that the
// rate is computed from, and the latest.
func (o *commandOutput) watchProgress(ctx context.Context, sample func(now time.Time) progressSample, show func(first, recent, now progressSample)) {
	every := progressInLog
	if o.terminal {
		every = progressOnTerminal
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	first := sample(time.Now())
	recent := []progressSample{first}
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			recent = append(recent, sample(now))
			for len(recent) > 2 && now.Sub(recent[1].at) >= rateOver {
				recent = recent[1:]
			}
			show(first, recent[0], recent[len(recent)-1])
		}
	}
}

// progressText returns the share, the rate and the time left at now. total is in bytes;
// -1: not known yet, then done stands for the share.
func progressText(done string, total int64, first, recent, now progressSample) string {
	rate := float64(now.read-recent.read) / now.at.Sub(recent.at).Seconds()
	left := "counting"
	if total >= 0 {
		share := 1.0
		if total > 0 {
			share = min(1, float64(now.passed)/float64(total))
		}
		done = fmt.Sprintf("%.0f%% of %s", 100*share, formatSize(total))
		left = "time left unknown"
		if moved := now.passed - first.passed; moved > 0 {
			seconds := float64(max(0, total-now.passed)) * now.at.Sub(first.at).Seconds() / float64(moved)
			left = formatLeft(seconds) + " left"
		}
	}
	return fmt.Sprintf("%s, %s/s, %s", done, formatSize(int64(rate)), left)
}

// formatLeft returns a time in seconds in two units at most.
func formatLeft(seconds float64) string {
	const limit = 100 * 24 * 3600
	if seconds > limit {
		return "over 100 days"
	}
	d := time.Duration(seconds * float64(time.Second)).Round(time.Second)
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return d.String()
}
