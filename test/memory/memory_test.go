//go:build integration || torture

// Package memory holds the bound on the memory of uploads.
package memory

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"testing"

	"pagewright/storage/test/service"
)

const (
	uploads = 200
	size    = 64 << 20
	bound   = 64 << 20
)

// 200 uploads of 64 MiB at once, every one of them begun before any of them
// ends, cost less than 64 MiB of memory over the idle service.
func TestMemoryDoesNotGrowWithBodies(t *testing.T) {
	bin := service.Build(t)
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	for _, c := range []struct {
		name    string
		as      *syscall.Credential
		chunked bool
		short   bool // also in the short form: each run writes 12.5 GiB
	}{
		{"own user, Content-Length", nil, false, true},
		{"own user, chunked", nil, true, false},
		{"nobody, Content-Length", nobody, false, false},
		{"nobody, chunked", nobody, true, true},
	} {
		if !c.short && !torture {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			if c.as != nil && os.Getuid() != 0 {
				t.Fatal("only root can start the service as somebody else")
			}
			measure(t, service.Options{Bin: bin, Base: service.SharedDir(t), As: c.as}, c.chunked)
		})
	}
}

func measure(t *testing.T, o service.Options, chunked bool) {
	s := service.Start(t, o)
	idle, err := s.Memory("VmRSS")
	if err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(piece)
	var begun, done sync.WaitGroup
	begun.Add(uploads)
	all := make(chan struct{})
	go func() { begun.Wait(); close(all) }()
	errs := make(chan error, uploads)
	for i := range uploads {
		done.Go(func() {
			if err := upload(s.Addr, i, piece, chunked, begun.Done, all); err != nil {
				errs <- fmt.Errorf("upload %d: %w", i, err)
			}
		})
	}
	done.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	peak, err := s.Memory("VmHWM")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("idle %.1f MiB, peak %.1f MiB, above idle %.1f MiB of %d", mib(idle), mib(peak), mib(peak-idle), bound>>20)
	if peak-idle >= bound {
		t.Errorf("the peak is %.1f MiB above idle", mib(peak-idle))
	}
	want := sha256.New()
	for range size / len(piece) {
		want.Write(piece)
	}
	for _, i := range []int{0, uploads / 2, uploads - 1} {
		res, err := http.Get(s.URL("site", fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		got := sha256.New()
		n, err := io.Copy(got, res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != 200 || n != size || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Errorf("build %d: status %d, %d bytes, %v, or other bytes than were sent", i, res.StatusCode, n, err)
		}
	}
}

// upload sends piece over and over, size bytes in all. After the first it waits
// until all the others have come as far.
func upload(addr string, i int, piece []byte, chunked bool, begun func(), all <-chan struct{}) error {
	once := sync.OnceFunc(begun)
	defer once() // also if it fails: nobody waits for it then
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	framing := fmt.Sprintf("Content-Length: %d", size)
	if chunked {
		framing = "Transfer-Encoding: chunked"
	}
	fmt.Fprintf(c, "PUT /sites/site/artifacts/%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n\r\n", i, framing)
	for n := 0; n < size; n += len(piece) {
		if chunked {
			fmt.Fprintf(c, "%x\r\n", len(piece))
		}
		if _, err := c.Write(piece); err != nil {
			return err
		}
		if chunked {
			io.WriteString(c, "\r\n")
		}
		if n == 0 {
			once()
			<-all
		}
	}
	if chunked {
		io.WriteString(c, "0\r\n\r\n")
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 201 ")) {
		return fmt.Errorf("answered %q", answer)
	}
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
