package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// dial connects a blocking socket.
func dial(addr unix.SockaddrInet4) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	for {
		err = unix.Connect(fd, &addr)
		if err != unix.EINTR && err != unix.EAGAIN {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("cannot connect: %w", err)
	}
	return fd, nil
}

// largeResult is one transfer, or several at once.
type largeResult struct {
	bytes   int64
	seconds float64
	cpu     float64 // seconds of the server
	peak    float64 // MB
}

// each runs f n times at once and measures the server meanwhile.
func each(pid, n int, size int64, f func(i int) error) (r largeResult, err error) {
	resetPeak(pid)
	cpu, start := cpuSeconds(pid), time.Now()
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	r.seconds = time.Since(start).Seconds()
	r.cpu = cpuSeconds(pid) - cpu
	r.bytes = size * int64(n)
	r.peak = memory(pid, "VmHWM")
	return r, errors.Join(errs...)
}

// put sends size bytes of the file source by sendfile(2): the client copies nothing. header
// is empty, or more lines of the header.
func put(addr unix.SockaddrInet4, path, source string, size int64, header string) error {
	conn, err := net.DialTCP("tcp4", nil, &net.TCPAddr{IP: addr.Addr[:], Port: addr.Port})
	if err != nil {
		return err
	}
	defer conn.Close()
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n%s\r\n", path, size, header)
	n, err := conn.ReadFrom(&io.LimitedReader{R: f, N: size})
	if err != nil || n != size {
		return fmt.Errorf("cannot send the body: %d of %d: %w", n, size, err)
	}
	buf := make([]byte, 4096)
	got := 0
	for !bytes.Contains(buf[:got], []byte("\r\n\r\n")) {
		n, err := conn.Read(buf[got:])
		if err != nil {
			return fmt.Errorf("no answer: %w", err)
		}
		got += n
	}
	if status, _, err := parseHead(buf[:got]); err != nil || status != 201 && status != 204 {
		return fmt.Errorf("PUT: %.300q: %w", buf[:got], err)
	}
	return nil
}

// get reads the answer and lets the kernel throw the body away unseen, by
// MSG_TRUNC (tcp(7)): the client copies nothing. It wants size bytes.
func get(addr unix.SockaddrInet4, path string, size int64) error {
	fd, err := dial(addr)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n", path)); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	got, head := 0, -1
	for head < 0 {
		n, err := unix.Read(fd, buf[got:4096])
		if err != nil || n == 0 {
			return fmt.Errorf("no answer: %w", err)
		}
		got += n
		head = bytes.Index(buf[:got], []byte("\r\n\r\n"))
	}
	status, length, err := parseHead(buf[:head+2])
	if err != nil || status != 200 || int64(length) != size {
		return fmt.Errorf("GET: %.300q: %w", buf[:head], err)
	}
	for left := length - (got - head - 4); left > 0; {
		n, _, err := unix.Recvfrom(fd, buf[:min(left, len(buf))], unix.MSG_TRUNC|unix.MSG_WAITALL)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("the body ends %d bytes early: %w", left, err)
		}
		left -= n
	}
	return nil
}
