package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// startPaced serves b with a minute that is short.
func startPaced(t *testing.T, b Backend, minute time.Duration, rate int64) *testServer {
	t.Helper()
	return startHeld(t, b, func(held) {}, func(l *listener) { l.ratePeriod, l.minRate = minute, rate })
}

// trickle sends a byte now and then until it is stopped, or the connection ends.
func trickle(c net.Conn, every time.Duration, text string) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(every):
				if _, err := io.WriteString(c, text); err != nil {
					return
				}
			}
		}
	}()
	return func() { close(done); <-ended }
}

// A client that sends too little over a minute is told so, though it never
// stalls: wherever in a body it is, and whatever way the body is read.
func TestSlowBodyIsEnded(t *testing.T) {
	const put, post = "PUT /sites/a/artifacts/b", "POST /sites/a/logs"
	for _, c := range []struct{ name, begin, header, sent, piece string }{
		{"copied", put, "Content-Length: 100000", "x", "x"},
		{"spliced", put, "Content-Length: 9000000", "x", "x"},
		{"spliced, and silent", put, "Content-Length: 9000000", "x", ""},
		{"spliced, after a fast beginning", put, "Content-Length: 9000000", strings.Repeat("x", 3_000_000), "x"},
		{"chunked", put, "Transfer-Encoding: chunked", "1\r\nx\r\n", "1\r\nx\r\n"},
		{"a large chunk", put, "Transfer-Encoding: chunked", "900000\r\nx", "x"},
		{"before a chunk", put, "Transfer-Encoding: chunked", "1\r\nx\r\n1;", "y"},
		{"a log entry", post, "Content-Length: 10000", "x", "x"},
		{"a log entry, chunked", post, "Transfer-Encoding: chunked", "1\r\nx\r\n", "1\r\nx\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := openTestNFS(t, t.TempDir())
			s := startPaced(t, n, time.Second, 1500) // the stall timeout is 60 s
			client := dial(t, s.addr)
			_, _ = io.WriteString(client, c.begin+" HTTP/1.1\r\nHost: h\r\n"+c.header+"\r\n\r\n"+c.sent)
			defer trickle(client, 20*time.Millisecond, c.piece)()
			_ = client.SetReadDeadline(time.Now().Add(40 * time.Second))
			resp, err := http.ReadResponse(bufio.NewReader(client), nil)
			if err != nil {
				t.Fatal(err)
			}
			text, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != 408 || !strings.Contains(string(text), "less than 1500 bytes a second") {
				t.Errorf("answered %d %q", resp.StatusCode, text)
			}
			if files := filesBelow(t, n.base); len(files) > 0 {
				t.Errorf("left behind: %v", files)
			}
		})
	}
}

// hangingFile is a store that moves a body into a pipe that takes nothing for a
// while, again and again.
type hangingFile struct {
	Backend
	hang time.Duration
}

func (b hangingFile) StoreArtifactIf(_, _ string, reader io.Reader, _ Precondition) (ArtifactInfo, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return ArtifactInfo{}, err
	}
	defer w.Close()
	go func() {
		defer r.Close()
		for buf := make([]byte, 400_000); ; {
			time.Sleep(b.hang) // the pace is what is tested
			if _, err := io.ReadFull(r, buf); err != nil {
				return
			}
		}
	}()
	for {
		if _, err := reader.(FileMover).MoveTo(w, moveSize); err == io.EOF {
			return ArtifactInfo{}, nil
		} else if err != nil {
			return ArtifactInfo{}, err
		}
	}
}

func (hangingFile) DeleteArtifact(string, string, Precondition) error { return ErrUnsupported }

// A store that takes longer than a minute for each piece is not the client's
// fault, though the rate is far below the minimum.
func TestSlowStoreIsNotTheClientsFault(t *testing.T) {
	const minute = 300 * time.Millisecond
	for _, size := range []int{100_000, 1_500_000} { // copied, and spliced
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d bytes, chunked %v", size, chunked), func(t *testing.T) {
				t.Parallel()
				s := startPaced(t, hangingFile{hang: 4 * minute}, minute, 100<<20)
				var body any = randomBytes(size)
				if chunked {
					body = unsized(body.([]byte))
				}
				s.put(t, 201, "/sites/a/artifacts/b", body)
			})
		}
	}
}

// A client may be slow for less than a minute, slow but fast enough, late with
// its first bytes, and as slow as it likes where there is no minimum.
func TestSlowBodyThatIsFastEnough(t *testing.T) {
	for _, c := range []struct {
		name   string
		minute time.Duration
		rate   int64
		late   time.Duration
		piece  int // sent every 20 ms
		size   int
	}{
		{"within the minute", 30 * time.Second, 1 << 20, 0, 100, 5_000},
		{"fast enough", 500 * time.Millisecond, 1000, 0, 3_000, 300_000},
		{"late", time.Second, 1000, 2 * time.Second, 3_000, 30_000},
		{"no minimum", 100 * time.Millisecond, 0, 0, 10, 1_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := startPaced(t, openTestNFS(t, t.TempDir()), c.minute, c.rate)
			body := randomBytes(c.size)
			client := dial(t, s.addr)
			fmt.Fprintf(client, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", c.size)
			time.Sleep(c.late) // the pace is what is tested
			for rest := body; len(rest) > 0; time.Sleep(20 * time.Millisecond) {
				n := min(c.piece, len(rest))
				if _, err := client.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if got := readStatus(client); got != 201 {
				t.Fatalf("answered %d, want 201", got)
			}
			if r := s.get(t, 200, "/sites/a/artifacts/b"); !bytes.Equal(r.body, body) {
				t.Error("other bytes came back")
			}
		})
	}
}

// The end of a connection is seen in the middle of a body, at whatever moment it
// comes: a poller that has told of it does not tell again.
func TestEndInABodyIsSeen(t *testing.T) {
	s := startPaced(t, openTestNFS(t, t.TempDir()), time.Minute, 1500) // the stall timeout is 60 s
	part := strings.Repeat("x", 900_000)
	var all sync.WaitGroup
	for i := range 400 {
		client := dial(t, s.addr)
		all.Go(func() {
			_, _ = fmt.Fprintf(client, "PUT /sites/a/artifacts/b%d HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n%s", i%10, part[:i*i*5])
			_ = client.CloseWrite()
			_ = client.SetReadDeadline(time.Now().Add(40 * time.Second))
			if got := readStatus(client); got != 400 {
				t.Errorf("the end after %d bytes: answered %d", i*i*5, got)
			}
		})
	}
	all.Wait()
}
