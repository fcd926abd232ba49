//go:build integration || torture

package memory

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pagewright/storage/test/service"
)

const (
	settleTime = time.Second      // memory that has not changed for so long has settled
	settleMax  = 20 * time.Second // and that is not waited for any longer
	busyTries  = 60               // how often a request that is answered 503 is sent again
)

// meter measures the memory of a service above what it had when it was idle.
type meter struct {
	t    *testing.T
	s    *service.Service
	idle int64
}

// newMeter begins to measure a service that is idle.
func newMeter(t *testing.T, s *service.Service) *meter {
	t.Helper()
	m := &meter{t: t, s: s}
	if err := s.ResetPeak(); err != nil {
		t.Fatal(err)
	}
	m.idle = m.read("VmRSS")
	return m
}

func (m *meter) read(field string) int64 {
	m.t.Helper()
	n, err := m.s.Memory(field)
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// settle waits until the memory changes no more, and returns what is above idle.
func (m *meter) settle() int64 {
	last, since := m.read("VmRSS"), time.Now()
	for end := time.Now().Add(settleMax); time.Now().Before(end) && time.Since(since) < settleTime; time.Sleep(20 * time.Millisecond) {
		if now := m.read("VmRSS"); now > last+1<<20 || now < last-1<<20 {
			last, since = now, time.Now()
		}
	}
	return m.read("VmRSS") - m.idle
}

// check compares the peak with the bound, and logs both.
func (m *meter) check(bound int64, format string, args ...any) {
	m.t.Helper()
	above := m.read("VmHWM") - m.idle
	m.t.Logf("FIGURE %s: idle %.0f MiB, peak %.0f MiB above, bound %d; %s", m.t.Name(), mib(m.idle), mib(above), bound>>20, fmt.Sprintf(format, args...))
	if above > bound {
		m.t.Errorf("the peak is %.0f MiB above idle, more than %d", mib(above), bound>>20)
	}
}

// shape is how the bytes of a log are made up.
type shape struct {
	name     string
	metadata int // bytes of the metadata of an entry
}

var shapes = []shape{{"large metadata", 1<<20 - 300}, {"tiny entries", 0}}

// makeLog is a log of about size bytes as it stands in a store, and how many
// entries it has.
func makeLog(build string, sh shape, size int) (data []byte, entries int) {
	var b bytes.Buffer
	b.WriteString("[\n")
	for b.Len() < size {
		if entries > 0 {
			b.WriteString(",\n")
		}
		fmt.Fprintf(&b, `{"id":"%d","build_id":%q,"action":"a","status":"s","timestamp":"2026-01-02T03:04:05Z"`, entries, build)
		if sh.metadata > 0 {
			fmt.Fprintf(&b, `,"metadata":{"x":"%s"}`, strings.Repeat("m", sh.metadata))
		}
		b.WriteString("}")
		entries++
	}
	b.WriteString("\n]\n")
	return b.Bytes(), entries
}

// putLog stores a log beside the service.
type putLog func(site, build string, data []byte) error

// intoDirectory is the putLog of a store in a directory.
func intoDirectory(base string) putLog {
	return func(site, build string, data []byte) error {
		dir := filepath.Join(base, "sites", site, "logs")
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, build+".json"), data, 0o666)
	}
}

// fill stores logs of size bytes for builds of each site, and returns how many
// entries each log has.
func fill(t *testing.T, put putLog, sh shape, size, sites, builds int) (entries int) {
	t.Helper()
	for b := range builds {
		data, n := makeLog(buildName(b), sh, size)
		entries = n
		for s := range sites {
			if err := put(siteName(s), buildName(b), data); err != nil {
				t.Fatal(err)
			}
		}
	}
	return entries
}

func siteName(i int) string  { return fmt.Sprintf("site%d", i) }
func buildName(i int) string { return fmt.Sprintf("b%03d", i) }

// errBusy is an answer 503.
var errBusy = errors.New("503")

// refused is the error of an answer: errBusy of a 503 that has Retry-After.
func refused(res *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(res.Body, 300))
	if res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") != "" {
		return fmt.Errorf("%w: %s", errBusy, text)
	}
	return fmt.Errorf("status %d, Retry-After %q: %s", res.StatusCode, res.Header.Get("Retry-After"), text)
}

// retried calls f until it does not fail with errBusy. It returns how often it did.
func retried(f func() error) (busy int, err error) {
	for busy = range busyTries {
		if err = f(); !errors.Is(err, errBusy) {
			return busy, err
		}
		time.Sleep(time.Second / 2)
	}
	return busyTries, fmt.Errorf("answered 503 %d times: %w", busyTries, err)
}

// getList reads the list of a site with the metadata, and checks that it is
// whole: JSON to its end, with all builds and all entries of each.
func getList(addr, site string, builds, entries int, sh shape, through func(io.Reader) io.Reader) error {
	client := service.Client(1)
	client.Transport.(*http.Transport).DialContext = smallBuffer.DialContext
	defer client.CloseIdleConnections()
	res, err := client.Get("http://" + addr + "/sites/" + site + "/versions?metadata=true")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return refused(res)
	}
	list, err := io.ReadAll(through(res.Body))
	if err != nil {
		return err
	}
	return checkList(list, builds, entries, sh)
}

// smallBuffer makes connections that take little in advance of their reader.
var smallBuffer = net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 64<<10) })
}}

// checkList checks that a list is JSON to its end, and has the builds and the
// entries that it is to have. It does not decode it, which takes long.
func checkList(list []byte, builds, entries int, sh shape) error {
	if !json.Valid(list) {
		return fmt.Errorf("the list of %d bytes is no JSON", len(list))
	}
	if bytes.Contains(list, []byte(`"logs_error"`)) || !bytes.Contains(list, fmt.Appendf(nil, `"count":%d`, builds)) {
		return fmt.Errorf("a log cannot be read, or count is not %d", builds)
	}
	seen := map[string]bool{}
	for i, version := range bytes.Split(list, []byte(`{"build_id":"`)) {
		if i == 0 {
			continue // what is before the first
		}
		build, _, _ := bytes.Cut(version, []byte(`"`))
		seen[string(build)] = true
		if n := bytes.Count(version, []byte(`"action":"a"`)); n != entries {
			return fmt.Errorf("%s has %d entries, not %d", build, n, entries)
		}
		if len(version) < entries*sh.metadata {
			return fmt.Errorf("%s has %d bytes, and the metadata alone has %d", build, len(version), entries*sh.metadata)
		}
	}
	if len(seen) != builds {
		return fmt.Errorf("%d builds are listed, not %d", len(seen), builds)
	}
	return nil
}

// slowReader holds the rest back at first, and then reads at a bounded rate.
type slowReader struct {
	r     io.Reader
	pause time.Duration // before the second read
	reads int
}

func (s *slowReader) Read(p []byte) (int, error) {
	if s.reads++; s.reads == 2 {
		time.Sleep(s.pause)
	}
	if s.reads%32 == 0 {
		time.Sleep(8 * time.Millisecond) // 128 MiB a second at most
	}
	return s.r.Read(p[:min(len(p), 32<<10)])
}

// held is a request whose last bytes are held back.
type held struct {
	conn   net.Conn
	rest   []byte
	sent   atomic.Bool // all but the rest
	ended  chan struct{}
	status int
	err    error
}

// hold sends a request but for the last bytes of its body, which finish sends.
// It waits for nothing.
func hold(addr, head string, body []byte, last int) (*held, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	h := &held{conn: c, rest: body[len(body)-last:], ended: make(chan struct{})}
	go func() {
		if _, err := io.WriteString(c, head); err == nil {
			if _, err = c.Write(body[:len(body)-last]); err == nil {
				h.sent.Store(true)
			}
		}
	}()
	go func() {
		defer close(h.ended)
		defer c.Close()
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			h.err = fmt.Errorf("no answer: %w", err)
			return
		}
		if h.status = res.StatusCode; h.status != http.StatusCreated {
			h.err = refused(res)
		}
	}()
	return h, nil
}

// finish sends the rest, once what is before it was sent, and waits for the answer.
func (h *held) finish() {
	for !h.sent.Load() {
		select {
		case <-h.ended: // answered before it was all sent
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	h.conn.Write(h.rest) // an error shows in the answer
	<-h.ended
}

// finishAll finishes all at once, and counts the answers by status. An answer is
// 201, or 503 with Retry-After.
func finishAll(t *testing.T, all []*held) (stored, busy int) {
	t.Helper()
	var g sync.WaitGroup
	for _, h := range all {
		g.Go(h.finish)
	}
	g.Wait()
	for i, h := range all {
		switch {
		case h.status == http.StatusCreated && h.err == nil:
			stored++
		case errors.Is(h.err, errBusy):
			busy++
		default:
			t.Errorf("request %d: status %d, %v", i, h.status, h.err)
		}
	}
	return stored, busy
}
