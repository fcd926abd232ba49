package main

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// small drives keep-alive requests with small bodies: one thread, non-blocking
// sockets and epoll(7), so that the client takes as little as possible of the
// cores it shares with the server.
type small struct {
	addr     unix.SockaddrInet4
	conns    int
	request  func(buf []byte, n int) []byte // appends the n-th request to buf
	status   int                            // that every answer must have
	bodyless bool                           // answers announce a length and have no body (HEAD)

	// rate is the number of requests a second that are due, whether the server
	// keeps up or not; 0: each connection asks again as soon as it is answered.
	// With a rate the latency counts from the instant the request was due, so
	// that a server that stalls does not choose what is measured
	// ("coordinated omission").
	rate     float64
	warm     time.Duration
	duration time.Duration
	count    int // not 0: so many requests in all, however long they take
}

// smallResult is what happened within duration, after warm.
type smallResult struct {
	requests  int
	seconds   float64
	cpu       float64   // seconds of the server
	latencies []float64 // milliseconds, sorted, every one
}

// percentile is exact: p of 100 of the requests took at most so long.
func (r smallResult) percentile(p float64) float64 {
	if len(r.latencies) == 0 {
		return 0
	}
	return r.latencies[min(len(r.latencies)-1, int(p/100*float64(len(r.latencies))))]
}

type smallConn struct {
	fd      int
	out     []byte // left to be sent
	buf     []byte // the request
	in      []byte // of the answer
	left    int    // bytes of the answer's body still to come; -1: in its header
	due     time.Time
	busy    bool
	polling uint32
}

// run does it against the server whose first process is pid.
func (s *small) run(pid int) (r smallResult, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return r, err
	}
	defer unix.Close(poll)
	conns := make([]*smallConn, s.conns)
	byFD := map[int32]*smallConn{}
	for i := range conns {
		fd, err := dial(s.addr)
		if err != nil {
			return r, err
		}
		defer unix.Close(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return r, err
		}
		c := &smallConn{fd: fd, in: make([]byte, 0, 64<<10), polling: unix.EPOLLIN}
		if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return r, err
		}
		conns[i], byFD[int32(fd)] = c, c
	}

	start := time.Now()
	measureFrom, end := start.Add(s.warm), start.Add(s.warm+s.duration)
	measuring, cpu := false, 0.0
	idle := slices.Clone(conns)
	sent := 0
	events := make([]unix.EpollEvent, 512)
	for now := start; s.goesOn(now, end, sent); now = time.Now() {
		if !measuring && !now.Before(measureFrom) {
			measuring, cpu, measureFrom = true, cpuSeconds(pid), now
		}
		wait := 100
		for len(idle) > 0 && (s.count == 0 || sent < s.count) {
			due := now
			if s.rate > 0 {
				due = start.Add(time.Duration(float64(sent) / s.rate * float64(time.Second)))
				if due.After(now) {
					wait = int(due.Sub(now) / time.Millisecond)
					break
				}
			}
			c := idle[len(idle)-1]
			idle = idle[:len(idle)-1]
			c.buf = s.request(c.buf[:0], sent)
			c.out, c.due, c.left, c.busy = c.buf, due, -1, true
			sent++
			if err := c.send(poll); err != nil {
				return r, err
			}
		}
		n, err := unix.EpollWait(poll, events, wait)
		if err != nil && err != unix.EINTR {
			return r, err
		}
		for i := range max(n, 0) {
			c := byFD[events[i].Fd]
			if events[i].Events&unix.EPOLLOUT != 0 {
				if err := c.send(poll); err != nil {
					return r, err
				}
			}
			if events[i].Events&^unix.EPOLLOUT == 0 {
				continue
			}
			done, err := c.receive(s.status, s.bodyless)
			if err != nil {
				return r, err
			}
			if done {
				idle = append(idle, c)
				if measuring {
					r.latencies = append(r.latencies, float64(time.Since(c.due))/1e6)
				}
			}
		}
	}
	r.cpu = cpuSeconds(pid) - cpu
	r.seconds = time.Since(measureFrom).Seconds()
	r.requests = len(r.latencies)
	// What is due and not answered is late too, if not yet how late.
	if s.rate > 0 {
		for _, c := range conns {
			if c.busy {
				r.latencies = append(r.latencies, float64(time.Since(c.due))/1e6)
			}
		}
	}
	slices.Sort(r.latencies)
	return r, drain(conns, s)
}

func (s *small) goesOn(now, end time.Time, sent int) bool {
	if s.count > 0 {
		return sent < s.count // what is under way then is waited for by drain
	}
	return now.Before(end)
}

// drain waits for the answers under way, so that the next run finds the server idle.
func drain(conns []*smallConn, s *small) error {
	for _, c := range conns {
		if !c.busy {
			continue
		}
		if err := unix.SetNonblock(c.fd, false); err != nil {
			return err
		}
		for len(c.out) > 0 {
			n, err := unix.Write(c.fd, c.out)
			if err != nil {
				return err
			}
			c.out = c.out[n:]
		}
		for done := false; !done; {
			var err error
			if done, err = c.receive(s.status, s.bodyless); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *smallConn) send(poll int) error {
	for len(c.out) > 0 {
		n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(c.fd), uintptr(unsafe.Pointer(&c.out[0])), uintptr(len(c.out)))
		if e == unix.EAGAIN {
			break
		}
		if e != 0 {
			return fmt.Errorf("cannot send a request: %w", e)
		}
		c.out = c.out[n:]
	}
	want := uint32(unix.EPOLLIN)
	if len(c.out) > 0 {
		want |= unix.EPOLLOUT
	}
	if want == c.polling {
		return nil
	}
	c.polling = want
	return unix.EpollCtl(poll, unix.EPOLL_CTL_MOD, c.fd, &unix.EpollEvent{Events: want, Fd: int32(c.fd)})
}

// receive reads what is there, and reports whether the answer is whole.
func (c *smallConn) receive(status int, bodyless bool) (bool, error) {
	free := c.in[len(c.in):cap(c.in)]
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&free[0])), uintptr(len(free)))
	switch {
	case e == unix.EAGAIN:
		return false, nil
	case e != 0:
		return false, fmt.Errorf("cannot read an answer: %w", e)
	case n == 0:
		return false, errors.New("the server closed the connection")
	}
	if c.left < 0 {
		c.in = c.in[:len(c.in)+int(n)]
		head := bytes.Index(c.in, []byte("\r\n\r\n"))
		if head < 0 {
			return false, nil
		}
		got, length, err := parseHead(c.in[:head+2])
		if err != nil {
			return false, err
		}
		if got != status {
			return false, fmt.Errorf("the answer is %d, not %d: %.300q", got, status, c.in)
		}
		if bodyless || got == 304 || got == 204 {
			length = 0
		}
		c.left = length - (len(c.in) - head - 4)
	} else {
		c.left -= int(n)
	}
	c.in = c.in[:0]
	if c.left < 0 {
		return false, errors.New("the server sent more than it announced")
	}
	c.busy = c.left > 0
	return c.left == 0, nil
}

// parseHead finds the status and the length in the head of an answer.
func parseHead(head []byte) (status, length int, err error) {
	if len(head) < 12 {
		return 0, 0, fmt.Errorf("not an answer: %.100q", head)
	}
	if status, err = strconv.Atoi(string(head[9:12])); err != nil {
		return 0, 0, fmt.Errorf("not an answer: %.100q", head)
	}
	length = -1
	for line := range bytes.Lines(head) {
		name, value, ok := bytes.Cut(line, []byte(":"))
		if ok && len(name) == 14 && bytes.EqualFold(name, []byte("Content-Length")) {
			length, err = strconv.Atoi(string(bytes.TrimSpace(value)))
		}
	}
	if length < 0 && status != 304 && status != 204 {
		err = fmt.Errorf("an answer without a length: %.300q", head)
	}
	return status, length, err
}
