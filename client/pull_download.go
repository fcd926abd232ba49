package client

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// download is the transfer of one build, in as many attempts as it takes.
//
// It begins with a look (HEAD) at the build or label: that says the id, the size, the ETag and
// the digest, also where a GET is redirected to a store that knows none of them. Each attempt
// asks for the bytes that are missing, by the id of the build, on the condition that the ETag is
// still the same. So a label that moves changes nothing. If the build itself has changed, the
// download begins again with another look.
type download struct {
	service *follower
	site    string
	label   string // empty: the build was named
	path    string // what is looked at
	out     output
	bar     *progress

	build    remoteBuild
	at       int64 // so many bytes have arrived
	hash     hash.Hash
	furthest int64  // the largest at: only beyond it is progress
	direct   bool   // ask for no redirect: the store did not answer
	stale    bool   // the build has changed: look again
	wrong    string // the digest that the bytes of an earlier attempt did not have
}

// remoteBuild is a build as the service describes it.
type remoteBuild struct {
	path   string // of a GET
	id     string // empty: not known
	etag   string // only if it is a strong one
	size   int64  // -1: not known
	sha256 string // in hexadecimal; empty: not known
	sum    string // the SHA-256 of the bytes that have arrived, at the end
}

// output is where the bytes of a build go.
type output struct {
	io.Writer
	name string
	file *tempFile // nil: what was written stays
}

// changedError says that the build is no longer the one that the download began with.
type changedError struct{ error }

// corruptError says that the bytes do not have their digest.
type corruptError struct{ error }

const copySize = 256 << 10

// transfer downloads the build to d.out.
func (d *download) transfer(ctx context.Context) error {
	if err := d.restart(); err != nil {
		return err
	}
	for tries := d.service.newRetries(); ; {
		err := d.attempt(ctx, tries)
		if err == nil {
			return nil
		}
		if d.stale && d.out.file == nil && d.at > 0 {
			return statusOf(permanentError{fmt.Errorf("cannot begin again, %d bytes were written to %s: %w", d.at, d.out.name, err)})
		}
		if err := tries.wait(ctx, err); err != nil {
			return statusOf(err)
		}
	}
}

// statusOf gives the errors of a download that remain their exit status.
func statusOf(err error) error {
	switch {
	case errors.As(err, new(changedError)):
		return errorf(exitConflict, "%w", err)
	case errors.As(err, new(corruptError)):
		return errorf(exitCorrupt, "%w", err)
	}
	return err
}

// restart forgets what has arrived.
func (d *download) restart() error {
	d.at, d.hash = 0, sha256.New()
	d.bar.set(0)
	if d.out.file == nil {
		return nil
	}
	return d.out.file.rewind()
}

// again returns an error after which the download begins again.
func (d *download) again(format string, args ...any) error {
	d.stale = true
	return fmt.Errorf(format, args...)
}

// changed is again for a build that is not the one of the last look.
func (d *download) changed(format string, args ...any) error {
	return changedError{d.again(format, args...)}
}

// look asks for what the service knows of the build.
func (d *download) look(ctx context.Context) error {
	reply, err := d.service.do(ctx, &request{method: http.MethodHead, path: d.path})
	if err != nil {
		return err
	}
	d.build = describe(d.path, d.site, reply.header)
	d.stale = false
	return nil
}

// describe returns the build of a response to a HEAD for path.
func describe(path, site string, h http.Header) remoteBuild {
	b := remoteBuild{path: path, etag: strongETag(h), sha256: reprDigest(h), size: -1}
	if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil {
		b.size = n
	}
	if id := strings.TrimPrefix(path, artifactPath(site, "")); id != path {
		b.id = id
	} else if id := contentLocation(site, h.Get("Content-Location")); id != "" {
		b.id, b.path = id, artifactPath(site, id)
	}
	return b
}

// contentLocation returns the id of the build that a Content-Location names. The path before it
// may be another one than that of the request, behind a proxy.
func contentLocation(site, location string) string {
	u, err := url.Parse(location)
	if err != nil {
		return ""
	}
	_, id, _ := strings.Cut(u.Path, "/"+artifactPath(site, ""))
	if checkID("build", id) != nil { // it becomes the name of a file
		return ""
	}
	return id
}

// strongETag returns the ETag of a response; a weak one, which may be that of other bytes, is none.
func strongETag(h http.Header) string {
	if tag := h.Get("Etag"); len(tag) >= 2 && strings.HasPrefix(tag, `"`) && strings.HasSuffix(tag, `"`) {
		return tag
	}
	return ""
}

var sha256Digest = regexp.MustCompile(`(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):\s*(?:,|$)`)

// reprDigest returns the SHA-256 that a response announces, in hexadecimal.
func reprDigest(h http.Header) string {
	m := sha256Digest.FindStringSubmatch(strings.Join(h.Values("Repr-Digest"), ","))
	if m == nil {
		return ""
	}
	sum, err := base64.StdEncoding.DecodeString(m[1])
	if err != nil {
		return ""
	}
	return hex.EncodeToString(sum)
}

// attempt asks for the bytes that are missing. It returns nil when all have arrived and are right.
func (d *download) attempt(ctx context.Context, tries *retries) error {
	if d.stale {
		if err := d.look(ctx); err != nil {
			return permanentError{err} // it was repeated
		}
		if err := d.restart(); err != nil {
			return err
		}
		d.bar.setTotal(d.build.size)
	}
	if d.build.etag == "" && d.build.sha256 == "" && d.at > 0 { // nothing shows that the rest belongs to it
		if d.out.file == nil {
			return errorf(exitFailure, "the transfer to %s broke after %d bytes, and cannot continue: the response has no strong ETag", d.out.name, d.at)
		}
		if err := d.restart(); err != nil {
			return err
		}
	}
	if d.at != d.build.size { // else all have arrived before
		if err := d.fetch(ctx, tries); err != nil {
			return err
		}
	}
	return d.check(ctx)
}

// fetch is the GET of an attempt.
func (d *download) fetch(ctx context.Context, tries *retries) error {
	r := &request{method: http.MethodGet, path: d.build.path, header: http.Header{}, query: url.Values{}}
	if d.build.etag != "" {
		r.header.Set("If-Match", d.build.etag)
	}
	if d.at > 0 {
		r.header.Set("Range", fmt.Sprintf("bytes=%d-", d.at))
	}
	if d.direct {
		r.query.Set("redirect", "false")
	}
	before := d.at
	resp, err := d.service.follow(ctx, r)
	if err == nil {
		err = d.receive(resp, tries)
		resp.Body.Close()
	}
	if host := d.service.redirected; host != "" && err != nil && d.at == before && !d.direct && ctx.Err() == nil && !isOutputError(err) {
		d.direct = true
		return fmt.Errorf("%s, to which the service redirects, did not send the build: %v", host, err)
	}
	switch {
	case hasStatus(err, http.StatusPreconditionFailed), hasStatus(err, http.StatusRequestedRangeNotSatisfiable),
		hasStatus(err, http.StatusNotFound) && d.label != "":
		return d.changed("the build %s was replaced or deleted while it was downloaded", d.build.id)
	}
	return err
}

// receive writes the body of a response to the output.
func (d *download) receive(resp *http.Response, tries *retries) error {
	skip, end, err := d.judge(resp)
	if err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, resp.Body, skip); err != nil {
		return err
	}
	buf := make([]byte, copySize)
	for {
		n, err := resp.Body.Read(buf)
		if end >= 0 && d.at+int64(n) > end {
			return d.again("the response is longer than the %d bytes of the build", end)
		}
		if n > 0 {
			if err := d.write(buf[:n]); err != nil {
				return err
			}
			if d.at > d.furthest {
				d.furthest = d.at
				tries.progress()
			}
		}
		switch {
		case err == io.EOF && d.at < max(end, d.build.size):
			return fmt.Errorf("the response ended after %d of %d bytes: %w", d.at, max(end, d.build.size), io.ErrUnexpectedEOF)
		case err == io.EOF && d.build.size < 0:
			if !isFramed(resp) && d.build.sha256 == "" {
				return errorf(exitFailure, "cannot tell whether the build is complete: neither its length nor its digest is known")
			}
			d.build.size = d.at
			return nil
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("the connection broke after %d bytes: %w", d.at, err)
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
func (d *download) judge(resp *http.Response) (skip, end int64, err error) {
	total := resp.ContentLength
	switch resp.StatusCode {
	case http.StatusOK: // also to a request for a range: that may be ignored
		skip, end = d.at, total
	case http.StatusPartialContent:
		var start int64
		start, end, total, err = parseContentRange(resp.Header.Get("Content-Range"))
		if err != nil || start != d.at {
			return 0, 0, d.again("asked for the bytes from %d, got %q", d.at, resp.Header.Get("Content-Range"))
		}
		if n := resp.ContentLength; n >= 0 && n != end-start {
			return 0, 0, d.again("the response has %d bytes, its Content-Range %d", n, end-start)
		}
	default:
		return 0, 0, errorf(exitFailure, "GET /%s: unexpected status %s", d.build.path, resp.Status)
	}
	tag, sum := strongETag(resp.Header), reprDigest(resp.Header)
	if d.service.redirected != "" {
		tag, sum = "", "" // a store has other ETags; check decides
	}
	same := tag != "" && tag == d.build.etag || sum != "" && sum == d.build.sha256
	switch {
	case d.build.size >= 0 && total >= 0 && total != d.build.size:
		return 0, 0, d.changed("the build has %d bytes, the response %d", d.build.size, total)
	case tag != "" && d.build.etag != "" && tag != d.build.etag, sum != "" && d.build.sha256 != "" && sum != d.build.sha256:
		return 0, 0, d.changed("the build was replaced while it was downloaded")
	case d.at > 0 && !same && d.service.redirected == "":
		return 0, 0, d.again("the response does not say which build its bytes belong to")
	}
	if d.build.size < 0 && total >= 0 {
		d.build.size = total
		d.bar.setTotal(total)
	}
	if d.build.sha256 == "" {
		d.build.sha256 = sum
	}
	if end < 0 {
		end = d.build.size
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

// outputError says that the output cannot be written. No other attempt helps.
type outputError struct{ error }

// Unwrap returns the error itself.
func (e outputError) Unwrap() error { return e.error }

func isOutputError(err error) bool { return errors.As(err, new(outputError)) }

func (d *download) write(p []byte) error {
	d.hash.Write(p)
	n, err := d.out.Write(p)
	d.at += int64(n)
	if err != nil {
		return outputError{fileError(d.out.name, err)}
	}
	d.bar.set(d.at)
	return nil
}

// check compares all that has arrived with what the service knows of the build.
func (d *download) check(ctx context.Context) error {
	b := &d.build
	b.sum = hex.EncodeToString(d.hash.Sum(nil))
	switch {
	case b.sha256 == "" && b.etag != "" && d.service.redirected != "":
		return d.confirm(ctx)
	case b.sha256 == "" || b.sum == b.sha256:
		return nil
	}
	if b.etag != "" && d.service.redirected != "" {
		if err := d.confirm(ctx); err != nil {
			return err
		}
	}
	err := corruptError{fmt.Errorf("/%s: the SHA-256 of what arrived is %s, that of the build is %s", b.path, b.sum, b.sha256)}
	if d.out.file == nil || d.wrong == b.sha256 {
		return errorf(exitCorrupt, "%w", err)
	}
	// The bytes may have been damaged on the way, or be those of another build, which the store had
	// before or after. If not, they are the same again.
	d.wrong, d.stale = b.sha256, true
	return err
}

// confirm looks whether the build is still that of the last look: then the bytes that a store has
// sent meanwhile belong to it.
func (d *download) confirm(ctx context.Context) error {
	reply, err := d.service.do(ctx, &request{method: http.MethodHead, path: d.build.path})
	if err != nil && !hasStatus(err, http.StatusNotFound) {
		return permanentError{err}
	}
	if err != nil || strongETag(reply.header) != d.build.etag {
		return d.changed("the build %s was replaced while it was downloaded", d.build.id)
	}
	return nil
}
