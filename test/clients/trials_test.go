//go:build integration || torture

package clients

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// drip sends one byte at a time until the service has had enough, and returns
// what it answered. The pace is far below what the service demands.
func drip(c net.Conn) (string, error) {
	go func() {
		for {
			if _, err := c.Write([]byte("a")); err != nil {
				return
			}
			time.Sleep(stall / 10)
		}
	}()
	answer, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "", fmt.Errorf("not dropped: %w", err)
	}
	return string(answer), nil // a reset is an end too
}

// slowHeader never comes to the end of its header.
func slowHeader(c net.Conn, i int) error {
	if i%2 == 0 {
		io.WriteString(c, "GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	}
	_, err := drip(c)
	return err
}

// slowBody sends its body at some bytes a second.
func slowBody(c net.Conn, i int) error {
	switch i % 3 {
	case 0:
		fmt.Fprintf(c, "PUT /sites/%s/artifacts/slow%d HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n", siteOfBad, i)
	case 1:
		fmt.Fprintf(c, "PUT /sites/%s/artifacts/slow%d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n", siteOfBad, i)
	case 2:
		fmt.Fprintf(c, "POST /sites/%s/logs HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", siteOfBad)
	}
	answer, err := drip(c)
	if err == nil && answer != "" && !strings.HasPrefix(answer, "HTTP/1.1 408 ") {
		return fmt.Errorf("answered %.100q", answer)
	}
	return err
}

// halfOpen shuts its half of the connection, or says nothing any more, at the
// worst places.
func halfOpen(c net.Conn, i int) error {
	half := func() { c.(*net.TCPConn).CloseWrite() }
	expect := func(prefixes ...string) error {
		answer, err := io.ReadAll(c)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("case %d was not dropped, %d bytes", i%5, len(answer))
		}
		for _, p := range prefixes { // an empty one: no answer at all
			if p == "" && len(answer) == 0 || p != "" && strings.HasPrefix(string(answer), p) {
				return nil
			}
		}
		return fmt.Errorf("answered %.100q, %v", answer, err)
	}
	switch i % 5 {
	case 0: // in mid-body
		fmt.Fprintf(c, "PUT /sites/%s/artifacts/half HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n%s", siteOfBad, resetBody[:rand.IntN(900_000)])
		half()
		return expect("HTTP/1.1 400 ")
	case 1: // after the whole request, whose answer it still reads
		io.WriteString(c, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
		half()
		return expect("HTTP/1.1 200 ")
	case 2: // silent in mid-body
		fmt.Fprintf(c, "PUT /sites/%s/artifacts/silent HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n%s", siteOfBad, resetBody[:rand.IntN(900_000)])
		return expect("HTTP/1.1 408 ")
	case 3: // silent in the header
		io.WriteString(c, "GET /health HT")
		return expect("HTTP/1.1 408 ", "")
	default: // does not read what it asked for
		fmt.Fprintf(c, "GET /sites/%s/artifacts/big HTTP/1.1\r\nHost: x\r\n\r\n", siteOfAll)
		time.Sleep(8 * stall) // as a client that hangs: it is dropped once its buffers take no more
		n, err := io.Copy(io.Discard, c)
		if n >= bigSize || errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("was not dropped: %d bytes, %v", n, err)
		}
		return nil
	}
}

const resetBuilds = 50

var resetBody = bytes.Repeat([]byte("0123456789abcdef"), 1<<20/16)

// reset ends in a reset at a random offset of an upload or of a download.
func reset(c net.Conn, i int) error {
	c.(*net.TCPConn).SetLinger(0)
	var request []byte
	name := fmt.Sprintf("/sites/%s/artifacts/r%d", siteOfBad, i%resetBuilds)
	switch i % 3 {
	case 0:
		request = fmt.Appendf(nil, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", name, len(resetBody), resetBody)
	case 1:
		request = fmt.Appendf(nil, "PUT %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", name, len(resetBody), resetBody)
	case 2:
		fmt.Fprintf(c, "GET /sites/%s/artifacts/big HTTP/1.1\r\nHost: x\r\n\r\n", siteOfAll)
		io.CopyN(io.Discard, c, rand.Int64N(bigSize))
		return nil
	}
	// Often within the header or right at the end.
	n := rand.IntN(len(request) + 1)
	switch i % 7 {
	case 0:
		n = rand.IntN(200)
	case 1:
		n = len(request) - rand.IntN(20)
	}
	c.Write(request[:n])
	return nil
}

// idle is open and does nothing, before any request or after one.
func idle(c net.Conn, i int) error {
	if i%2 == 1 {
		r := bufio.NewReader(c)
		for range 2 { // and still works after a while
			io.WriteString(c, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != 200 {
				return fmt.Errorf("status %d, %v", res.StatusCode, err)
			}
			time.Sleep(stall) // within the header timeout, which is about requests
		}
		return nil
	}
	time.Sleep(2 * stall)
	return nil
}

// garbage sends good requests and then what is none.
func garbage(c net.Conn, i int) error {
	const good = 30
	junk := [][]byte{
		[]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello in TLS\r\n\r\n"),
		[]byte("GET\r\n\r\n"),
		[]byte("PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nContent-Length: 20\r\n\r\n0123456789"),
		append([]byte("GET / HTTP/1.1\r\nX: "), bytes.Repeat([]byte("x"), 64<<10)...),
		[]byte("PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\nnot a chunk\r\n"),
		nil, // random bytes
	}[i%6]
	if junk == nil {
		junk = make([]byte, 4<<10)
		for j := range junk {
			junk[j] = byte(rand.Uint32())
		}
		junk = append(junk, "\r\n\r\n"...)
	}
	go func() {
		c.Write(bytes.Repeat([]byte("GET /health HTTP/1.1\r\nHost: x\r\n\r\n"), good))
		c.Write(junk)
		c.Write(bytes.Repeat([]byte("GET /health HTTP/1.1\r\nHost: x\r\n\r\n"), good)) // never answered
	}()
	r := bufio.NewReader(c)
	for n := range good {
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return fmt.Errorf("answer %d: %w", n, err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != 200 {
			return fmt.Errorf("answer %d: status %d, %v", n, res.StatusCode, err)
		}
	}
	// One refusal at most, and the end.
	rest, err := io.ReadAll(r)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("not dropped after garbage")
	}
	if n := strings.Count(string(rest), "HTTP/1.1 "); n > 1 || n == 1 && !strings.HasPrefix(string(rest), "HTTP/1.1 4") {
		return fmt.Errorf("after garbage: %.200q", rest)
	}
	return nil
}
