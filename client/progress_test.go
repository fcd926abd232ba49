package client

import (
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

func TestProgressLine(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		done, total, recent int64
		want                string
	}{
		{0, 100 * mib, 0, "0 B of 100 MiB (0%), 0 B/s, 10s so far"},
		{50 * mib, 100 * mib, 50 * mib, "50 MiB of 100 MiB (50%), 5.0 MiB/s, 10s left, 10s so far"},
		{100 * mib, 100 * mib, 50 * mib, "100 MiB of 100 MiB (100%), 5.0 MiB/s, 10s so far"},
		{10 * mib, -1, 10 * mib, "10 MiB, 1.0 MiB/s, 10s so far"},
		{10 * mib, 100 * mib, -50 * mib, "10 MiB of 100 MiB (10%), 0 B/s, 10s so far"}, // an attempt began again
	} {
		if got := progressLine(c.done, c.total, c.recent, 10*time.Second); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// TestProgressWithoutATerminal: a line every ten seconds, and with --quiet nothing.
func TestProgressWithoutATerminal(t *testing.T) {
	for _, quiet := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			stderr := &lockedBuffer{}
			c := &call{IO: IO{Stderr: stderr}, quiet: quiet}
			p := c.newProgress("push shop/\x1b[2Jv1", 100<<20)
			time.Sleep(redrawEvery / 2)
			time.Sleep(2 * progressEvery) // nothing can connect
			for range 25 {
				p.add(1 << 20)
				time.Sleep(time.Second)
			}
			c.note("a note")
			p.close()
			p.close()
			time.Sleep(time.Minute)
			want := `push shop/\x1b[2Jv1: 10 MiB of 100 MiB (10%), 1.0 MiB/s, 1m30s left, 30s so far` + "\n" +
				`push shop/\x1b[2Jv1: 20 MiB of 100 MiB (20%), 1.0 MiB/s, 1m20s left, 40s so far` + "\n" +
				"pagewright-storage: a note\n"
			if quiet {
				want = ""
			}
			if got := stderr.String(); got != want {
				t.Errorf("got:\n%swant:\n%s", got, want)
			}
		})
	}
}

// TestProgressOnATerminal shows a bar, which makes room for a line of text, begins again with an
// attempt, and is gone at the end.
func TestProgressOnATerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stderr := &lockedBuffer{}
		c := &call{IO: IO{Stderr: stderr}, columns: func() int { return 80 }}
		shown := func() string { // since the last call
			t.Helper()
			synctest.Wait()
			stderr.mu.Lock()
			defer stderr.mu.Unlock()
			defer stderr.b.Reset()
			lines := strings.FieldsFunc(stderr.b.String(), func(r rune) bool { return r == '\r' })
			if len(lines) == 0 {
				return ""
			}
			return lines[len(lines)-1]
		}
		p := c.newProgress("push shop/v1", 100<<20)
		time.Sleep(redrawEvery / 2)
		p.add(1 << 20)
		time.Sleep(showAfter - redrawEvery)
		if got := shown(); got != "" {
			t.Errorf("%q", got)
		}
		time.Sleep(redrawEvery)
		if got := shown(); !strings.Contains(got, "(1.0/100 MiB, 1.0 MiB/s) [1s:") {
			t.Errorf("%q", got)
		}
		for range 49 {
			p.add(1 << 20)
			time.Sleep(time.Second)
		}
		if got := shown(); !strings.HasPrefix(got, "push shop/v1  50% |█") || !strings.HasSuffix(got, "(50/100 MiB, 1.0 MiB/s) [50s:50s]") {
			t.Errorf("%q", got)
		}
		time.Sleep(10 * time.Second)
		if got := shown(); !strings.HasPrefix(got, "push shop/v1 (waiting)  50% |█") {
			t.Errorf("%q", got)
		}
		c.note("a note")
		if got := shown(); got != "pagewright-storage: a note\n" {
			t.Errorf("%q", got)
		}
		p.set(100 << 20)
		time.Sleep(time.Second)
		if got := shown(); !strings.HasPrefix(got, "push shop/v1 100% |█") {
			t.Errorf("%q", got)
		}
		p.set(0)
		p.add(25 << 20)
		time.Sleep(time.Second)
		if got := shown(); !strings.HasPrefix(got, "push shop/v1  25% |█") {
			t.Errorf("%q", got)
		}
		p.close()
		p.close()
		if got := shown(); strings.TrimSpace(got) != "" {
			t.Errorf("%q", got)
		}
		if strings.ContainsRune(stderr.String(), 0x1b) {
			t.Error("colours")
		}
	})
}

// TestProgressFitsTheTerminal: no frame is wider than the terminal, also if it becomes narrower, or
// than the space for a note; what is cut is the description.
func TestProgressFitsTheTerminal(t *testing.T) {
	for _, what := range []string{"push shop/1042-1-0d8a5c6852533f4441e2ba0d3f8d373b253a3c54", "sha256 " + strings.Repeat("日本", 40)} {
		for _, total := range []int64{900 << 30, -1} {
			synctest.Test(t, func(t *testing.T) {
				var columns atomic.Int32
				columns.Store(100)
				stderr := &lockedBuffer{}
				c := &call{IO: IO{Stderr: stderr}, columns: func() int { return int(columns.Load()) }}
				p := c.newProgress(what, total)
				time.Sleep(redrawEvery / 2)
				for _, width := range []int{100, 80, 60, 30, 1} {
					synctest.Wait()
					stderr.mu.Lock()
					stderr.b.Reset()
					columns.Store(int32(width))
					stderr.mu.Unlock()
					for range 25 {
						p.add(999 << 20)
						time.Sleep(time.Second)
					}
					time.Sleep(3 * time.Second) // waiting
					c.note("note")
					synctest.Wait()
					frames := strings.Split(strings.ReplaceAll(stderr.String(), "pagewright-storage: note\n", ""), "\r")
					for _, frame := range frames {
						wide := strings.Count(frame, "日") + strings.Count(frame, "本")
						if n := utf8.RuneCountInString(frame) + wide; n >= width && n > 0 {
							t.Fatalf("%d columns on a terminal of %d: %q", n, width, frame)
						}
					}
					if text := stderr.String(); width >= 80 && (!strings.Contains(text, "MiB/s) [") || total > 0 && !strings.Contains(text, "% |")) {
						t.Errorf("%d columns: %q", width, frames[:5])
					}
				}
				p.close()
			})
		}
	}
}

func TestTerminals(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, w := range []io.Writer{io.Discard, null} {
		if columnsOf(w, "") != nil {
			t.Errorf("%v is a terminal", w)
		}
	}
}
