package client

import (
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
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
		c := &call{IO: IO{Stderr: stderr}, terminal: true}
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

func TestTerminals(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, w := range []io.Writer{io.Discard, null} {
		if isTerminal(w, "") {
			t.Errorf("%v is a terminal", w)
		}
	}
}
