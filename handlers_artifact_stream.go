package main

import (
	"bytes"
	"cmp"
	"io"
	"time"

	"github.com/valyala/fasthttp"
)

// downloadMemory is how many bytes a download holds that passes through the
// service: the buffers of both connections, and that of the copy between them.
const downloadMemory = 256 << 10

func (d *download) memory() budgetRequest {
	return budgetRequest{client: d.conn.client(), n: downloadMemory, revoke: d.conn.responseRevoker()}
}

// tryHold acquires the memory of the download if there is some now, hold waits for it.
func (a *api) tryHold(d *download) bool {
	d.held = a.downloads.tryAcquire(d.memory())
	return d.held != nil
}

func (a *api) hold(d *download) (err error) {
	d.held, err = a.downloads.acquire(d.memory())
	return err
}

// send makes what body yields, n bytes if n is not negative, the body of r. The memory
// that is held is given back when body is closed.
func (a *api) send(r *response, d *download, body io.ReadCloser, n int64) {
	a.sendStream(r, d, &downloadStream{ReadCloser: body, name: d.buildID, conn: d.conn, held: d.held, left: n}, n)
	d.held = nil
}

// sendStream makes body, n bytes if n is not negative, the body of r. If body fails, the
// response is cut.
func (a *api) sendStream(r *response, d *download, body io.Reader, n int64) {
	r.stream, r.size = body, n
	r.sourceFailed = a.sourceFailed(d.conn, "a download", callFetch, d.siteID, d.buildID)
}

// downloadStream is the body of a download that passes through the service.
type downloadStream struct {
	io.ReadCloser
	name string
	conn *conn
	held *grant
	left int64 // bytes that must still come; negative: not known
	err  error // why no more come
}

// Read yields what was announced, or fails and goes on to fail. Not every source
// does: after an error fasthttp may read again, and would take an io.EOF for the
// end of a chunked body.
func (s *downloadStream) Read(p []byte) (n int, err error) {
	if s.err != nil || s.left == 0 {
		return 0, cmp.Or(s.err, io.EOF)
	}
	if s.left > 0 {
		p = p[:min(int64(len(p)), s.left)]
	}
	n, err = s.ReadCloser.Read(p)
	if err != nil && err != io.EOF && int64(n) == s.left {
		n = 0 // the bytes may be wrong (a checksum), and with them the response would look whole
	}
	if s.left > 0 {
		s.left -= int64(n)
		switch {
		case s.left == 0:
			err = nil // nothing is missing
		case err == io.EOF:
			err = cutError(s.name, s.left)
		}
	}
	if err != nil && err != io.EOF {
		_ = s.conn.sourceFailed(err)
	}
	s.err = err
	return n, err
}

func (s *downloadStream) Close() error {
	defer s.held.release()
	return s.ReadCloser.Close()
}

// maxDateAge is more than the Date of a response can be behind the clock. fasthttp
// renews it each second; to ask it costs as much as a header.
const maxDateAge = time.Minute

// responseDate returns the Date that fasthttp writes into a response now. fasthttp keeps a
// Date for about a second and has no function that returns it, so a header is written for
// it.
func responseDate() time.Time {
	var h fasthttp.ResponseHeader
	var buf [128]byte
	_, rest, _ := bytes.Cut(h.AppendBytes(buf[:0]), []byte("\r\nDate: "))
	text, _, _ := bytes.Cut(rest, []byte("\r\n"))
	date, err := fasthttp.ParseHTTPDate(text)
	if err != nil {
		panic(err) // it is fasthttp's own; the panic handler responds with 500
	}
	return date
}
