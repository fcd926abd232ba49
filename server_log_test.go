package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// slowReader is a reader of the log that takes a write when the test lets it. What a
// write does comes from results; once they are closed all is taken.
type slowReader struct {
	lockedBuffer
	begun   chan struct{} // a write has begun
	results chan result
}

type result struct {
	n   int // bytes that are taken; -1: all
	err error
}

func newSlowReader() *slowReader {
	return &slowReader{begun: make(chan struct{}, 1000), results: make(chan result, 1000)}
}

func (r *slowReader) Write(p []byte) (int, error) {
	r.begun <- struct{}{}
	res, ok := <-r.results
	if !ok || res.n < 0 {
		return r.lockedBuffer.Write(p)
	}
	_, _ = r.lockedBuffer.Write(p[:res.n])
	return res.n, res.err
}

// logTest is a buffer that is as small as a test likes it.
type logTest struct {
	*logQueue
	r *slowReader
}

func newLogTest(t *testing.T, limit, reserve int) logTest {
	r := newSlowReader()
	b := newLogQueue(r)
	newBufferedLog(&Config{LogFormat: "text"}, b)
	b.limit, b.reserve = limit, reserve
	return logTest{b, r}
}

func (l logTest) lines(kind lineKind, lines ...string) {
	for _, line := range lines {
		l.add(kind, []byte(line+"\n"))
	}
}

// end lets all be written and returns it, without the times.
func (l logTest) end(t *testing.T) string {
	t.Helper()
	close(l.r.results)
	l.close(time.Minute)
	out := ""
	for line := range strings.Lines(l.r.String()) {
		if i := strings.Index(line, "level=WARN"); strings.HasPrefix(line, "time=") && i > 0 {
			line = line[i:]
		}
		out += line
	}
	return out
}

func TestLogQueue(t *testing.T) {
	ten := func(s string) string { return s + strings.Repeat(".", 9-len(s)) } // 10 bytes with its newline
	stuck := func(l logTest) {                                                // a line of 10 bytes is being written
		l.lines(otherLine, ten("first"))
		<-l.r.begun
	}
	notice := func(access, other int) string {
		return fmt.Sprintf("level=WARN msg=\"%d lines dropped\" access=%d other=%d", access+other, access, other)
	}
	for _, c := range []struct {
		name           string
		limit, reserve int
		do             func(l logTest)
		want           []string
		dropped        lineCounts
	}{
		{"all kinds in their order", 1000, 1000, func(l logTest) {
			l.lines(accessLine, "a", "b")
			l.lines(otherLine, "c")
			l.lines(accessLine, "d")
		}, []string{"a", "b", "c", "d"}, lineCounts{}},
		{"access lines are dropped first", 160, 300, func(l logTest) {
			stuck(l)
			for range 20 {
				l.lines(accessLine, ten("access"))
			}
			for range 20 {
				l.lines(otherLine, ten("other"))
			}
		}, []string{ten("first"), strings.Repeat(ten("access")+"\n", 14) + ten("access"), strings.Repeat(ten("other")+"\n", 19) + ten("other"), notice(5, 0)}, lineCounts{5, 0}},
		{"a short access line does not pass a long one that was dropped", 160, 300, func(l logTest) {
			stuck(l)
			l.lines(accessLine, strings.Repeat("x", 150), "y")
			l.lines(otherLine, "other")
		}, []string{ten("first"), "other", notice(2, 0)}, lineCounts{2, 0}},
		{"other lines are dropped when the reserve is full", 160, 300, func(l logTest) {
			stuck(l)
			for range 60 {
				l.lines(otherLine, ten("other"))
			}
			l.lines(accessLine, ten("access"))
		}, []string{ten("first"), strings.Repeat(ten("other")+"\n", 44) + ten("other"), notice(1, 15)}, lineCounts{1, 15}},
		{"a line larger than all room", 160, 300, func(l logTest) {
			stuck(l)
			l.lines(otherLine, strings.Repeat("x", 1000))
			l.lines(otherLine, "next")
		}, []string{ten("first"), "next", notice(0, 1)}, lineCounts{0, 1}},
		{"a line larger than all room, alone", 160, 300, func(l logTest) {
			l.lines(otherLine, strings.Repeat("x", 1000))
			l.lines(accessLine, "next")
		}, []string{notice(0, 1), "next"}, lineCounts{0, 1}},
		{"a line larger than a chunk", 1 << 20, 0, func(l logTest) {
			l.lines(otherLine, strings.Repeat("x", 2*logChunkSize), "next")
		}, []string{strings.Repeat("x", 2*logChunkSize), "next"}, lineCounts{}},
		{"a write that fails", 1000, 1000, func(l logTest) {
			stuck(l)
			l.lines(accessLine, "a")
			l.lines(otherLine, "b")
			l.r.results <- result{-1, nil}
			<-l.r.begun
			l.r.results <- result{0, syscall.EPIPE}
			l.awaitLost(lineCounts{1, 1})
			l.lines(otherLine, "c")
		}, []string{ten("first"), notice(1, 1), "c"}, lineCounts{1, 1}},
		{"a failed report is made again", 1000, 1000, func(l logTest) {
			stuck(l)
			l.r.results <- result{0, syscall.ENOSPC}
			l.awaitLost(lineCounts{0, 1})
			l.lines(accessLine, "a")
			<-l.r.begun
			l.r.results <- result{0, syscall.ENOSPC}
			l.awaitLost(lineCounts{1, 1})
			l.lines(otherLine, "b")
		}, []string{notice(1, 1), "b"}, lineCounts{1, 1}},
		{"a write that ends inside a line", 1000, 1000, func(l logTest) {
			stuck(l)
			l.lines(otherLine, "whole", "halved", "after")
			l.r.results <- result{-1, nil}
			<-l.r.begun
			l.r.results <- result{len("whole\nhal"), syscall.EIO}
			l.awaitLost(lineCounts{0, 2})
			l.lines(otherLine, "next")
		}, []string{ten("first"), "whole", "hal", notice(0, 2), "next"}, lineCounts{0, 2}},
		{"a write that ends between two lines", 1000, 1000, func(l logTest) {
			stuck(l)
			l.lines(otherLine, "whole", "lost")
			l.r.results <- result{-1, nil}
			<-l.r.begun
			l.r.results <- result{len("whole\n"), syscall.EIO}
			l.awaitLost(lineCounts{0, 1})
			l.lines(otherLine, "next")
		}, []string{ten("first"), "whole", notice(0, 1), "next"}, lineCounts{0, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLogTest(t, c.limit, c.reserve)
			c.do(l)
			if got, want := l.end(t), strings.Join(c.want, "\n")+"\n"; got != want {
				t.Errorf("written:\n%.2000s\nwant:\n%.2000s", got, want)
			}
			if got := l.lost(); got != c.dropped {
				t.Errorf("%v lines were dropped, want %v", got, c.dropped)
			}
		})
	}
}

// awaitLost waits until the writer has counted n lines. If it does not, the test fails
// at its end.
func (l logTest) awaitLost(n lineCounts) {
	for end := time.Now().Add(10 * time.Second); l.lost() != n && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// Access lines are written together, after a second or when a chunk is full; all
// others are written at once.
func TestWhenLinesAreWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newSlowReader()
		close(r.results)
		b := newLogQueue(r)
		defer b.close(time.Minute)
		lines := 0
		add := func(kind lineKind, n int) {
			for range n {
				b.add(kind, []byte(strings.Repeat("x", 99)+"\n"))
				synctest.Wait()
			}
			lines += n
		}
		written := func(when string, writes, want int) {
			t.Helper()
			if got := strings.Count(r.String(), "\n"); len(r.begun) != writes || got != want {
				t.Errorf("%s: %d lines in %d writes, want %d in %d", when, got, len(r.begun), want, writes)
			}
		}
		add(accessLine, 100)
		time.Sleep(logFlushEvery - time.Millisecond)
		written("before a second has passed", 0, 0)
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		written("after a second", 1, 100)
		add(accessLine, logChunkSize/100)
		written("a chunk that has room", 1, 100)
		add(accessLine, 1)
		written("a full chunk", 2, lines-1)
		add(otherLine, 1)
		written("a line of the other kind", 3, lines)
		add(accessLine, 1)
		written("an access line after it", 3, lines-1)
		time.Sleep(logFlushEvery)
		synctest.Wait()
		written("a second later", 4, lines)
	})
}

// While all writes fail, as after the reader has gone, access lines cause no more of
// them than before.
func TestWritesThatFailAreNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newSlowReader()
		b := newLogQueue(r)
		newBufferedLog(&Config{LogFormat: "text"}, b)
		defer b.close(time.Minute)
		defer close(r.results)
		for range 100 {
			r.results <- result{0, syscall.EPIPE}
		}
		for second := range 3 {
			for range 10 {
				b.add(accessLine, []byte("line\n"))
				synctest.Wait()
			}
			time.Sleep(logFlushEvery)
			synctest.Wait()
			if got, want := len(r.begun), second+1; got != want {
				t.Errorf("%d writes in %d seconds", got, want)
			}
		}
	})
}

func TestClosedLogDropsLines(t *testing.T) {
	l := newLogTest(t, 1000, 1000)
	l.lines(otherLine, "in time")
	if got := l.end(t); got != "in time\n" {
		t.Errorf("written: %q", got)
	}
	l.lines(otherLine, "late")
	l.lines(accessLine, "late")
	if got := l.lost(); got != (lineCounts{1, 1}) {
		t.Errorf("dropped: %v", got)
	}
}

// DEBUG lines, of which clients can cause any number, are dropped with access lines.
func TestKindsOfLines(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		r := newSlowReader()
		b := newLogQueue(r)
		log := newBufferedLog(&Config{LogFormat: format, LogLevel: -4}, b)
		b.add(otherLine, []byte("first\n"))
		<-r.begun
		b.mu.Lock()
		b.limit = 0
		b.mu.Unlock()
		log.Debug("debug")
		log.With("a", 1).WithGroup("g").Debug("debug")
		log.Info("info")
		log.Warn("warn")
		log.With("a", 1).WithGroup("g").Error("error")
		close(r.results)
		b.close(time.Minute)
		if got := b.lost(); got != (lineCounts{2, 0}) {
			t.Errorf("%s: dropped: %v", format, got)
		}
		for _, want := range []string{"info", "warn", "error"} {
			if !strings.Contains(r.String(), want) {
				t.Errorf("%s: no %s in\n%s", format, want, r)
			}
		}
	}
}

// Durations are milliseconds in both formats.
func TestDurationsInTheLog(t *testing.T) {
	for took, want := range map[time.Duration]string{
		0: "0", 1500 * time.Microsecond: "1.5", 25 * time.Second: "25000", 42*time.Hour + time.Microsecond: "151200000.001",
	} {
		for format, member := range map[string]string{"json": `"grace_ms":` + want + "}", "text": "grace_ms=" + want + "\n"} {
			out := &lockedBuffer{}
			newLog(&Config{LogFormat: format}, out).Info("shutting down", "grace_ms", millis(took))
			if !strings.Contains(out.String(), member) {
				t.Errorf("%v: no %s in %s", took, member, out)
			}
		}
	}
}

// program is the service in a process of its own, whose log the test reads.
type program struct {
	testServer
	cmd   *exec.Cmd
	pipe  *os.File      // what the service writes to
	log   *os.File      // its other end
	lines *bufio.Reader // of log
	ended chan error
}

// launch starts the program with a pipe for its stderr.
func launch(t *testing.T, attr *syscall.SysProcAttr, vars ...string) *program {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{cmd: exec.Command(os.Args[0]), pipe: w, log: r, lines: bufio.NewReader(r), ended: make(chan error, 1)}
	p.dir = t.TempDir()
	p.cmd.Env = append(os.Environ(), childVariable+"=serve", "PAGEWRIGHT_PORT=0", "PAGEWRIGHT_LISTEN=127.0.0.1", "PAGEWRIGHT_NFS_BASE_PATH="+p.dir)
	for _, v := range vars {
		p.cmd.Env = append(p.cmd.Env, envPrefix+v)
	}
	p.cmd.Stderr, p.cmd.SysProcAttr = w, attr
	t.Cleanup(func() { r.Close(); w.Close() })
	return p
}

func (p *program) start(t *testing.T) {
	t.Helper()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.pipe.Close()
	go func() { p.ended <- p.cmd.Wait() }()
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
}

// startProgram starts the service and reads its log up to the line "serving".
func startProgram(t *testing.T, attr *syscall.SysProcAttr, vars ...string) *program {
	t.Helper()
	p := launch(t, attr, vars...)
	p.start(t)
	_, rest, _ := strings.Cut(p.waitFor(t, `"serving"`), `"address":"`)
	p.addr, _, _ = strings.Cut(rest, `"`)
	return p
}

// waitFor reads the log until a line has a text, and returns that line.
func (p *program) waitFor(t *testing.T, text string) string {
	t.Helper()
	_ = p.log.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		line, err := p.lines.ReadString('\n')
		if strings.Contains(line, text) {
			return line
		}
		if err != nil {
			t.Fatalf("the log did not say %s: %v", text, err)
		}
	}
}

func (p *program) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// exits waits until the process has ended, and checks its exit status.
func (p *program) exits(t *testing.T, status int) {
	t.Helper()
	select {
	case err := <-p.ended:
		if got := p.cmd.ProcessState; got.ExitCode() != status {
			t.Errorf("ended with %v (%v), want exit status %d", got, err, status)
		}
	case <-time.After(time.Minute):
		t.Fatal("the process did not end")
	}
}

// beginUpload begins an upload. finish sends the rest and returns the answer.
func (p *program) beginUpload(t *testing.T) (finish func() any) {
	t.Helper()
	r, w := io.Pipe()
	answered := make(chan any, 1)
	go func() { answered <- statusOr(p.try(request{"PUT", "/sites/a/artifacts/upload", r, nil})) }()
	_, _ = w.Write([]byte("be"))
	waitForTemp(t, &p.testServer)
	return func() any {
		_, _ = w.Write([]byte("gun"))
		w.Close()
		return <-answered
	}
}

// fill makes the service log more than its buffer and the pipe hold.
func (p *program) fill(t *testing.T) {
	t.Helper()
	const long = 1000
	path := "/nothing?" + strings.Repeat("x", long)
	for range 2 * (logBuffered + logReserve) / long {
		p.get(t, 404, path)
	}
}

// damage makes the service log a line at level ERROR.
func (p *program) damage(t *testing.T, site string) {
	t.Helper()
	dir := p.dir + "/sites/" + site + "/logs"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/b.json", []byte("damaged"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.post(t, 500, "/sites/"+site+"/logs", `{"build_id":"b","action":"a","status":"s"}`)
}

func TestReaderOfTheLogGoesAway(t *testing.T) {
	t.Parallel()
	p := startProgram(t, nil)
	finish := p.beginUpload(t)
	p.log.Close()
	p.damage(t, "s")
	p.get(t, 200, "/health")
	var got map[string]float64
	eventually(t, "lines of both kinds are counted", func() bool {
		got = scrape(t, &p.testServer)
		return got[`pagewright_log_lines_dropped_total{kind="access"}`] > 0 && got[`pagewright_log_lines_dropped_total{kind="other"}`] > 0
	})
	p.damage(t, "s")
	if got := finish(); got != 201 {
		t.Errorf("the upload in flight: %v", got)
	}
	p.signal(t, syscall.SIGTERM)
	p.exits(t, 0)
}

func TestHangUpDoesNotEndTheService(t *testing.T) {
	t.Parallel()
	p := startProgram(t, nil, "ACCESS_LOG=false")
	finish := p.beginUpload(t)
	for range 3 {
		p.signal(t, syscall.SIGHUP)
		if line := p.waitFor(t, "SIGHUP"); !strings.Contains(line, `"INFO"`) {
			t.Errorf("logged %s", line)
		}
	}
	if got := finish(); got != 201 {
		t.Errorf("the upload in flight: %v", got)
	}
	p.signal(t, syscall.SIGTERM)
	if line := p.waitFor(t, "shutting down"); !strings.Contains(line, `"delay_ms":0,"grace_ms":25000}`) {
		t.Errorf("logged %s", line)
	}
	p.exits(t, 0)
}

// TestReaderOfTheLogStalls: requests go on, ERROR lines are kept, and when the log is
// read again it says what is missing.
func TestReaderOfTheLogStalls(t *testing.T) {
	t.Parallel()
	p := startProgram(t, nil)
	finish := p.beginUpload(t)
	p.fill(t)
	for i := range 20 { // more than a gap that is too small for an access line
		p.damage(t, fmt.Sprint("while-it-stalls-", i))
	}
	p.fill(t)
	got := scrape(t, &p.testServer)
	dropped := got[`pagewright_log_lines_dropped_total{kind="access"}`]
	if dropped < 100 {
		t.Errorf("%v access lines were dropped", dropped)
	}
	if n, there := got[`pagewright_log_lines_dropped_total{kind="other"}`]; n != 0 || !there {
		t.Errorf("%v other lines were dropped (counted: %v)", n, there)
	}
	if got := finish(); got != 201 {
		t.Errorf("the upload in flight: %v", got)
	}
	for i := range 20 {
		if line := p.waitFor(t, `"request failed"`); !strings.Contains(line, fmt.Sprintf(`"while-it-stalls-%d"`, i)) {
			t.Errorf("an ERROR line is %s", line)
		}
	}
	told := 0
	for told < int(dropped) {
		line := p.waitFor(t, "lines dropped")
		_, rest, _ := strings.Cut(line, `"access":`)
		number, _, _ := strings.Cut(rest, ",")
		n, err := strconv.Atoi(number)
		if err != nil || !strings.Contains(line, `"WARN"`) {
			t.Fatalf("logged %s", line)
		}
		told += n
	}
	go func() { _, _ = io.Copy(io.Discard, p.lines) }()
	p.signal(t, syscall.SIGTERM)
	p.exits(t, 0)
}

func TestShutdownWhileTheReaderOfTheLogStalls(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		stuck bool // a request outlives the grace
	}{{"idle", false}, {"with a request", true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := startProgram(t, nil, "SHUTDOWN_GRACE=1s")
			if c.stuck {
				p.beginUpload(t)
			}
			p.fill(t)
			p.signal(t, syscall.SIGTERM)
			p.exits(t, 0)
		})
	}
}

// A start that fails ends, and with its exit status, whatever the reader of stderr does.
func TestFailedStart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		begin func(t *testing.T, p *program)
	}{
		{"nobody reads", func(t *testing.T, p *program) {
			fd := int(p.pipe.Fd())
			if err := syscall.SetNonblock(fd, true); err != nil {
				t.Fatal(err)
			}
			err := error(nil)
			for err == nil {
				_, err = syscall.Write(fd, make([]byte, 4096))
			}
			if !errors.Is(err, syscall.EAGAIN) {
				t.Fatal(err)
			}
			if err := syscall.SetNonblock(fd, false); err != nil {
				t.Fatal(err)
			}
		}},
		{"the reader is gone", func(t *testing.T, p *program) { p.log.Close() }},
	} {
		for vars, status := range map[string]int{"PORT=none": 78, "NFS_BASE_PATH=/does/not/exist": 1} {
			t.Run(c.name+" "+vars, func(t *testing.T) {
				t.Parallel()
				p := launch(t, nil, vars)
				c.begin(t, p)
				p.start(t)
				p.exits(t, status)
			})
		}
	}
}

// TestSecondSignal: it does not wait for the delay or for the grace, as process 1 of
// a container either.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		first, second syscall.Signal
		attr          *syscall.SysProcAttr
		vars          []string
	}{
		{"during the grace", syscall.SIGTERM, syscall.SIGTERM, nil, []string{"SHUTDOWN_GRACE=1h"}},
		{"during the delay", syscall.SIGINT, syscall.SIGINT, nil, []string{"SHUTDOWN_DELAY=1h"}},
		{"another one", syscall.SIGTERM, syscall.SIGINT, nil, []string{"SHUTDOWN_GRACE=1h"}},
		{"process 1", syscall.SIGTERM, syscall.SIGTERM, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}, []string{"SHUTDOWN_GRACE=1h"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.attr != nil && os.Getuid() != 0 {
				t.Skip("a process namespace needs root")
			}
			p := startProgram(t, c.attr, append(c.vars, "ACCESS_LOG=false")...)
			p.beginUpload(t)
			p.signal(t, c.first)
			p.waitFor(t, "shutting down")
			p.signal(t, c.second)
			p.exits(t, 128+int(c.second))
		})
	}
}
