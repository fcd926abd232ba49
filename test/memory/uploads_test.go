//go:build integration || torture

package memory

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pagewright/storage/test/service"
)

// Space is reserved as a body comes, not as it is announced: uploads that
// announce nearly all that is free, and send a byte, leave the others theirs.
func TestUploadsThatAnnounceAllSpace(t *testing.T) {
	bin := service.Build(t)
	for _, c := range []struct {
		name     string
		mount    func(t *testing.T, dir string)
		announce int
	}{
		{"tmpfs", mountTmpfs, 1},
		{"ext4", mountExt4, 1},
		{"ext4, eight of them", mountExt4, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := service.SharedDir(t)
			c.mount(t, base)
			s := service.Start(t, service.Options{Bin: bin, Base: base})
			nearlyAll := freeSpace(t, base) - 48<<20 // the reserve, and what eight windows take
			for i := range c.announce {
				head := fmt.Sprintf("PUT /sites/hostile/artifacts/%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", i, nearlyAll)
				h, err := hold(s.Addr, head, []byte("xy"), 1)
				if err != nil {
					t.Fatal(err)
				}
				defer h.conn.Close()
				service.Until(t, "the upload to begin", func() bool {
					select {
					case <-h.ended:
						t.Fatalf("upload %d, of which a byte was sent: status %d, %v", i, h.status, h.err)
					default:
					}
					return len(service.Temps(t, base)) > i
				})
			}
			// A quarter of all: more than what is left beside what was announced.
			data := bytes.Repeat([]byte("0123456789abcdef"), 4<<20)
			for i := range 2 {
				if err := put(http.DefaultClient, s.URL("good", "b"), data); err != nil {
					t.Errorf("upload %d of %d MiB, with %d MiB free: %v", i, len(data)>>20, freeSpace(t, base)>>20, err)
				}
			}
		})
	}
}

const diskSize = 256 << 20

func mountTmpfs(t *testing.T, dir string) {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=777", diskSize)); err != nil {
		t.Fatal("cannot mount a tmpfs, which takes root: ", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

func mountExt4(t *testing.T, dir string) {
	image := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(image)
	if err == nil {
		err = f.Truncate(diskSize)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-m", "0", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
}

func freeSpace(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// A body in chunks of one byte is stored as any other. What it costs is logged.
func TestChunksOfOneByte(t *testing.T) {
	const size = 1 << 20 // 6 MiB on the wire
	s := service.Start(t, service.Options{Bin: service.Build(t), Base: service.SharedDir(t)})
	for _, c := range []struct {
		name  string
		chunk int
	}{{"chunks of 1 byte", 1}, {"one chunk", size}} {
		var wire, data bytes.Buffer
		wire.WriteString("PUT /sites/s/artifacts/b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
		for i := 0; i < size; i += c.chunk {
			piece := bytes.Repeat([]byte{byte('a' + i%26)}, c.chunk)
			fmt.Fprintf(&wire, "%x\r\n%s\r\n", len(piece), piece)
			data.Write(piece)
		}
		wire.WriteString("0\r\n\r\n")
		before, err := s.CPU()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(wire.Bytes()); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 201 ")) {
			t.Fatalf("%s: answered %q, %v", c.name, answer, err)
		}
		after, err := s.CPU()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("FIGURE %s: %s, %.1f MiB on the wire: %v of CPU", t.Name(), c.name, mib(int64(wire.Len())), after-before)
		res, err := http.Get(s.URL("s", "b"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || !bytes.Equal(got, data.Bytes()) {
			t.Errorf("%s: %d bytes came back, %v, or other bytes than were sent", c.name, len(got), err)
		}
	}
}

// Whatever the clients do, a shutdown lasts the delay, the grace and 5 s at most.
func TestShutdownIsBounded(t *testing.T) {
	bin := service.Build(t)
	var all sync.WaitGroup // each case has a service of its own, and spends its time waiting
	defer all.Wait()
	for _, c := range []shutdownCase{
		{"idle, the refused body unread", "PUT /sites/s/artifacts/-bad%d HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + string(small[:20000]), true},
		{"refused, the body still to come", "PUT /sites/s/artifacts/-bad%d HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\nx", true},
		{"refused, a large body still to come", "PUT /sites/s/artifacts/-bad%d HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\nx", true},
		{"an upload that stalls", "PUT /sites/s/artifacts/b%d HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\nx", false},
		{"an entry that stalls", "POST /sites/s%d/logs HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n{", false},
		{"a header that stalls", "GET /sites/s%d", false},
		{"a download that is not read", "GET /sites/s/artifacts/large?%d HTTP/1.1\r\nHost: x\r\n\r\n", false},
	} {
		s := service.Start(t, service.Options{Bin: bin, Base: service.SharedDir(t),
			Env: []string{fmt.Sprintf("SHUTDOWN_DELAY=%v", delay), fmt.Sprintf("SHUTDOWN_GRACE=%v", grace)}})
		all.Go(func() {
			took, err := c.shutdown(s)
			t.Logf("FIGURE %s: %s: %v, bound %v", t.Name(), c.name, took.Round(10*time.Millisecond), shutdownBound)
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			if took > shutdownBound {
				t.Errorf("%s: the shutdown took %v, more than %v", c.name, took, shutdownBound)
			}
		})
	}
}

const (
	delay         = time.Second
	grace         = 5 * time.Second
	shutdownBound = delay + grace + 5*time.Second
)

// shutdownCase is what 15 connections have done when the service is told to end.
type shutdownCase struct {
	name    string
	send    string // %d is a number
	refused bool   // with 400
}

// shutdown returns how long it took.
func (c shutdownCase) shutdown(s *service.Service) (time.Duration, error) {
	client := service.Client(1)
	if err := put(client, s.URL("s", "large"), bytes.Repeat(small, 512)); err != nil {
		return 0, err
	}
	client.CloseIdleConnections()
	for i := range 15 {
		conn, err := net.Dial("tcp", s.Addr)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		fmt.Fprintf(conn, c.send, i)
		status := make([]byte, len("HTTP/1.1 400"))
		if !c.refused {
			continue
		}
		if _, err := io.ReadFull(conn, status); err != nil || string(status) != "HTTP/1.1 400" {
			return 0, fmt.Errorf("answered %q, %v", status, err)
		}
	}
	time.Sleep(time.Second / 2) // for what has no answer to be received
	begin := time.Now()
	err := s.Stop()
	return time.Since(begin), err
}
