package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// An outage is logged once when it begins and once when it is over, however often the store
// is probed meanwhile. A store that comes and goes does not flood the log.
func TestOutageLines(t *testing.T) {
	gone := fmt.Errorf("%w: the cause", ErrUnavailable)
	hung := func(waited time.Duration) error { return &errNoResponse{waited: waited} }
	type step struct {
		at  int // seconds
		err error
	}
	f := func(name string, want string, steps ...step) {
		t.Helper()
		var out lockedBuffer
		o := outage{log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == "cause" {
				return slog.Attr{}
			}
			return a
		}})), begins: "lost", end: "back", lasted: "lost_ms"}
		for _, s := range steps {
			o.observe(time.Unix(int64(1000+s.at), 0), s.err)
		}
		got := strings.NewReplacer("msg=", "", " kind=unavailable", "").Replace(strings.TrimSpace(out.String()))
		if got = strings.ReplaceAll(got, "\n", ", "); got != want {
			t.Errorf("%s: logged %q, want %q", name, got, want)
		}
	}
	f("well", "", step{0, nil}, step{5, nil})
	f("lost", "lost", step{0, nil}, step{5, gone}, step{10, gone}, step{15, gone})
	f("lost from the start", "lost", step{0, gone}, step{5, gone})
	f("back", "lost, back lost_ms=10000", step{5, gone}, step{10, gone}, step{15, nil}, step{20, nil})
	f("slow", "", step{0, hung(2 * time.Second)}, step{5, hung(7 * time.Second)}, step{10, nil})
	f("hung", "lost, back lost_ms=17000", step{5, hung(7 * time.Second)}, step{10, hung(12 * time.Second)}, step{15, nil})
	f("the cause comes late", "lost, lost, back lost_ms=22000", step{10, hung(12 * time.Second)}, step{15, gone}, step{16, hung(time.Minute)}, step{17, gone}, step{20, nil})
	f("a short failure again within a minute", "lost, back lost_ms=5000", step{0, gone}, step{5, nil}, step{10, gone}, step{15, nil})
	f("a long failure again within a minute", "lost, back lost_ms=5000, lost, back lost_ms=60000",
		step{0, gone}, step{5, nil}, step{10, gone}, step{59, gone}, step{60, gone}, step{70, nil})
	var flapping []step
	for at := 0; at < 300; at += 10 {
		flapping = append(flapping, step{at, gone}, step{at + 5, nil})
	}
	f("flapping for five minutes", strings.TrimSuffix(strings.Repeat("lost, back lost_ms=5000, ", 5), ", "), flapping...)
}

// While the store hangs, it is probed once, and the watch goes on.
func TestWatchStartsOneProbeOfAStoreThatHangs(t *testing.T) {
	release, probes, reports := make(chan struct{}), atomic.Int64{}, atomic.Int64{}
	p := &cachedProbe[int]{wait: time.Millisecond, probe: func() (int, error) {
		probes.Add(1)
		<-release
		return 7, nil
	}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seven, ended := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		p.watch(ctx, time.Millisecond, func(value int, err error) {
			reports.Add(1)
			if err == nil && value == 7 {
				select {
				case seven <- struct{}{}:
				default:
				}
			} else if !errors.Is(err, ErrUnavailable) {
				t.Errorf("reported %d, %v", value, err)
			}
		})
	}()
	eventually(t, "50 reports", func() bool { return reports.Load() > 50 })
	if n := probes.Load(); n != 1 {
		t.Errorf("%d probes of a store that hangs", n)
	}
	close(release)
	<-seven
	cancel()
	<-ended
}

// The watch uses a recent result of another caller.
func TestWatchSharesProbes(t *testing.T) {
	probes, reports := atomic.Int64{}, atomic.Int64{}
	p := &cachedProbe[int]{probe: func() (int, error) { return int(probes.Add(1)), nil }}
	if _, err := p.get(0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go p.watch(ctx, time.Hour, func(value int, err error) {
		if value != 1 || err != nil {
			t.Errorf("reported %d, %v", value, err)
		}
		reports.Add(1)
	})
	eventually(t, "a report", func() bool { return reports.Load() == 1 })
	if n := probes.Load(); n != 1 {
		t.Errorf("%d probes", n)
	}
}
