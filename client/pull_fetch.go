package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
)

const copySize = 256 << 10

// fetch gets the bytes of a build from at to end, in as many requests as it takes.
type fetch struct {
	d       *download
	service *follower
	write   func(p []byte, at int64) error
	at      int64
	end     int64 // 0: that of the build
	direct  bool  // ask for no redirect: the store did not answer
	buf     []byte
}

// newFetch returns a fetch of the whole build.
func (d *download) newFetch(write func(p []byte, at int64) error) *fetch {
	return &fetch{d: d, service: d.service.following(), write: write, buf: make([]byte, copySize)}
}

// isPart reports whether it is to get a part of the build.
func (f *fetch) isPart() bool { return f.end > 0 }

// once sends one request for what is missing.
func (f *fetch) once(ctx context.Context, tries *retries) error {
	b := &f.d.build
	r := &request{method: http.MethodGet, path: b.path, header: http.Header{}, query: url.Values{}}
	if b.etag != "" {
		r.header.Set("If-Match", b.etag)
	}
	switch {
	case f.isPart():
		r.header.Set("Range", fmt.Sprintf("bytes=%d-%d", f.at, f.end-1))
	case f.at > 0:
		r.header.Set("Range", fmt.Sprintf("bytes=%d-", f.at))
	}
	if f.direct {
		r.query.Set("redirect", "false")
	}
	before := f.at
	resp, err := f.service.follow(ctx, r)
	if err == nil {
		err = f.receive(resp, tries)
		resp.Body.Close()
	}
	store := f.service.redirected
	switch {
	case err == nil:
	case store != "" && f.at == before && !f.direct && ctx.Err() == nil && !errors.As(err, new(outputError)):
		f.direct = true
		return fmt.Errorf("%s, to which the service redirects, did not send the build: %v", store, err)
	case hasStatus(err, http.StatusPreconditionFailed), hasStatus(err, http.StatusRequestedRangeNotSatisfiable),
		hasStatus(err, http.StatusNotFound) && f.d.label != "":
		return errReplaced(b)
	}
	return err
}

// outputError says that the output cannot be written. No other attempt helps.
type outputError struct{ error }

// Unwrap returns the error itself.
func (e outputError) Unwrap() error { return e.error }

// receive writes the body of a response.
func (f *fetch) receive(resp *http.Response, tries *retries) error {
	d := f.d
	skip, end, err := f.judge(resp)
	if err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, resp.Body, skip); err != nil {
		return err
	}
	want := max(end, d.build.size) // -1: not known
	if f.isPart() {
		want = f.end
	}
	for {
		n, err := resp.Body.Read(f.buf)
		if end >= 0 && f.at+int64(n) > end {
			return again("the response goes on after %d bytes, where it should end", end)
		}
		if n > 0 {
			if err := f.write(f.buf[:n], f.at); err != nil {
				return outputError{fileError(d.out.name, err)}
			}
			f.at += int64(n)
			d.bar.add(n)
			if d.arrived.Add(int64(n)) > d.furthest {
				tries.progress()
			}
		}
		switch {
		case err == nil:
		case err != io.EOF:
			return fmt.Errorf("the connection broke after %d bytes: %w", f.at, err)
		case f.at < want:
			return fmt.Errorf("the response ended after %d of %d bytes", f.at, want)
		case want < 0 && !isFramed(resp) && d.build.sha256 == "":
			return errorf(exitFailure, "cannot tell whether the build is complete: neither its length nor its digest is known")
		case want < 0:
			d.build.size = f.at
			return nil
		default:
			return nil
		}
	}
}

// isFramed reports whether a response whose length is not known has an end that is not just that
// of the connection.
func isFramed(resp *http.Response) bool {
	return slices.Contains(resp.TransferEncoding, "chunked") || resp.ProtoMajor >= 2
}

// judge returns how many bytes of the body are to be skipped, because they have arrived before,
// and where it ends; -1: that is not known. It returns an error if the body is not that of the build.
func (f *fetch) judge(resp *http.Response) (skip, end int64, err error) {
	d := f.d
	d.mu.Lock()
	defer d.mu.Unlock()
	b, total := &d.build, resp.ContentLength
	switch resp.StatusCode {
	case http.StatusOK: // also to a request for a range: that may be ignored
		if f.isPart() {
			return 0, 0, errNoParts
		}
		skip, end = f.at, total
	case http.StatusPartialContent:
		var start int64
		start, end, total, err = parseContentRange(resp.Header.Get("Content-Range"))
		if err != nil || start != f.at || f.isPart() && end > f.end {
			return 0, 0, again("asked for the bytes from %d, got %q", f.at, resp.Header.Get("Content-Range"))
		}
		if n := resp.ContentLength; n >= 0 && n != end-start {
			return 0, 0, again("the response has %d bytes, its Content-Range %d", n, end-start)
		}
	default:
		return 0, 0, errorf(exitFailure, "GET /%s: unexpected status %s", b.path, resp.Status)
	}
	isStore := f.service.redirected != ""
	tag, sum := strongETag(resp.Header), reprDigest(resp.Header)
	if isStore {
		d.fromStore, tag, sum = true, "", "" // a store has other ETags; check decides
	}
	same := tag != "" && tag == b.etag || sum != "" && sum == b.sha256
	switch {
	case b.size >= 0 && total >= 0 && total != b.size:
		return 0, 0, changed("the build has %d bytes, the response %d", b.size, total)
	case tag != "" && b.etag != "" && tag != b.etag, sum != "" && b.sha256 != "" && sum != b.sha256:
		return 0, 0, errReplaced(b)
	case f.isPart() && !same && !isStore:
		return 0, 0, errNoParts
	case (f.at > 0 || b.sha256 == "") && !same && !isStore:
		return 0, 0, again("the response does not say which build its bytes belong to")
	}
	if b.size < 0 && total >= 0 {
		b.size = total
		d.bar.setTotal(total)
	}
	if b.sha256 == "" {
		b.sha256 = sum
	}
	if end < 0 {
		end = b.size
	}
	return skip, end, nil
}

var contentRange = regexp.MustCompile(`^bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)$`)

// parseContentRange returns the first byte, the byte after the last one, and the size of the
// whole; -1: not known.
func parseContentRange(value string) (start, end, total int64, err error) {
	m := contentRange.FindStringSubmatch(value)
	if m == nil {
		return 0, 0, 0, errors.New("no valid Content-Range")
	}
	start, _ = strconv.ParseInt(m[1], 10, 64)
	end, _ = strconv.ParseInt(m[2], 10, 64)
	end++
	if total = -1; m[3] != "*" {
		total, _ = strconv.ParseInt(m[3], 10, 64)
	}
	if start >= end || total >= 0 && end > total {
		return 0, 0, 0, errors.New("no valid Content-Range")
	}
	return start, end, total, nil
}
