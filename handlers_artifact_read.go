package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// getArtifact sends a build, or the part of it that is asked for.
func (s *service) getArtifact(ctx *fasthttp.RequestCtx) {
	siteID, buildID, ok := artifactIDs(ctx)
	if !ok {
		return
	}
	cond, ok := precondition(ctx)
	if !ok {
		return
	}
	redirect, ok := queryBool(ctx, "redirect", true)
	if !ok || expecting(ctx) {
		return
	}
	place, ok := s.toRead(ctx)
	if !ok {
		return
	}
	defer func() { place.release() }()
	d := download{ctx: ctx, siteID: siteID, buildID: buildID, cond: cond, s: s}
	if redirect && s.redirect(&d) {
		return
	}
	defer func() { d.held.release() }()
	if _, ranger := s.backend.(ArtifactRanger); ranger && ctx.IsGet() && !d.tryHold() {
		// Who waits for memory makes way for those who need none.
		place.release()
		if err := d.hold(); err != nil {
			s.fail(ctx, "read the artifact", siteID, buildID, err)
			return
		}
		if place, ok = s.toRead(ctx); !ok {
			return
		}
	}
	start := time.Now()
	var err error
	if b, ok := s.backend.(ArtifactRanger); ok {
		err = d.fromRanger(b)
	} else {
		err = d.fromReader(s.backend)
	}
	s.metrics.call(callFetch, start, err)
	if err != nil {
		d.describeNothing()
		s.fail(ctx, "read the artifact", siteID, buildID, err)
	}
}

// describe is what is known of a build without reading it.
func (s *service) describe(siteID, buildID string) (ArtifactInfo, error) {
	if b, ok := s.backend.(ArtifactStater); ok {
		return b.StatArtifact(siteID, buildID)
	}
	r, err := s.backend.FetchArtifact(siteID, buildID)
	if err != nil {
		return ArtifactInfo{}, err
	}
	defer r.Close()
	if a, ok := r.(ArtifactReader); ok {
		return a.Info(), nil
	}
	return ArtifactInfo{}, fmt.Errorf("%w: conditions on an artifact", ErrUnsupported)
}

// download is one GET or HEAD of a build.
type download struct {
	ctx             *fasthttp.RequestCtx
	siteID, buildID string
	cond            Precondition
	s               *service
	held            *grant // for the bytes that pass through the service; nil: not taken
}

// downloadMemory is how many bytes a download holds that passes through the
// service: the buffers of both connections, and that of the copy between them.
const downloadMemory = 256 << 10

func (d *download) ask() budgetRequest {
	c := d.ctx.Conn().(*conn)
	token := c.hold()
	return budgetRequest{client: c.client(), n: downloadMemory, revoke: func() { c.revokeAnswer(token) }}
}

// tryHold takes the memory of the download if there is some now, hold waits for it.
func (d *download) tryHold() bool {
	d.held = d.s.downloads.tryAcquire(d.ask())
	return d.held != nil
}

func (d *download) hold() (err error) {
	d.held, err = d.s.downloads.acquire(d.ask())
	return err
}

// send sends what r yields, n bytes if n is not negative, in the memory that is
// held. Both are given back with the stream, which fasthttp closes.
func (d *download) send(r io.ReadCloser, n int64) {
	d.sendStream(&downloadStream{ReadCloser: r, name: d.buildID, conn: d.ctx.Conn().(*conn), held: d.held, left: n}, n)
	d.held = nil
}

// sendStream sends body, n bytes if n is not negative. If it fails, the answer is cut.
func (d *download) sendStream(body io.Reader, n int64) {
	d.s.failLater(d.ctx.Conn().(*conn), "a download", callFetch, d.siteID, d.buildID)
	d.ctx.SetBodyStream(body, int(n))
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
		n = 0 // the bytes may be wrong (a checksum), and with them the answer would look whole
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

// fromReader answers out of what FetchArtifact opens.
func (d *download) fromReader(b Backend) error {
	if st, ok := b.(ArtifactStater); ok && (d.ctx.IsHead() || d.mayBeUnmodified()) {
		if done, err := d.fromStat(st); done || err != nil {
			return err
		}
	}
	r, err := b.FetchArtifact(d.siteID, d.buildID)
	if err != nil {
		return err
	}
	sent := false // then it is fasthttp that closes r
	defer func() {
		if !sent {
			r.Close()
		}
	}()
	a, ok := r.(ArtifactReader)
	if !ok {
		if err := d.hold(); err != nil {
			return err
		}
		d.describeTo(nil)
		d.send(r, -1)
		sent = true
		return nil
	}
	info := a.Info()
	part, send := d.evaluate(info, seeker(a) != nil)
	if !send {
		return nil
	}
	if m, ok := a.(MemoryReader); ok {
		d.ctx.Response.SetBodyRaw(m.Bytes()[part.offset : part.offset+part.length])
		return nil
	}
	if part.offset > 0 {
		if _, err := seeker(a).Seek(part.offset, io.SeekStart); err != nil {
			return err
		}
	}
	f, ok := a.(FileReader)
	switch {
	case ok && d.ctx.IsGet() && part.length <= smallSize:
		return d.sendRead(f.File(), part.length)
	case ok:
		// The bare file: fasthttp hands it to sendfile(2), and stops at the length.
		d.sendStream(f.File(), part.length)
	default:
		if err := d.hold(); err != nil {
			return err
		}
		d.send(r, part.length)
	}
	sent = true
	return nil
}

// sendRead reads n bytes of a file before the header leaves, so that an error has a
// status, and sends them.
func (d *download) sendRead(f *os.File, n int64) error {
	data := make([]byte, n)
	if _, err := io.ReadFull(f, data); err != nil {
		return readError(f.Name(), err)
	}
	d.ctx.Response.SetBodyRaw(data)
	return nil
}

// mayBeUnmodified tells that the client has a copy, and asks whether it is still good.
func (d *download) mayBeUnmodified() bool {
	return d.cond.IfNoneMatch != nil || len(d.ctx.Request.Header.Peek(fasthttp.HeaderIfModifiedSince)) > 0
}

// fromStat answers what can be answered without the bytes: HEAD, and 304.
func (d *download) fromStat(b ArtifactStater) (done bool, err error) {
	info, err := b.StatArtifact(d.siteID, d.buildID)
	if err != nil {
		return false, err
	}
	modifiedSince := headerDate(d.ctx, fasthttp.HeaderIfModifiedSince)
	if !d.ctx.IsHead() && evaluateRead(d.cond, modifiedSince, info) == proceed {
		return false, nil
	}
	if part, send := d.evaluate(info, true); send {
		d.announce(part)
	}
	return true, nil
}

// announce is the answer to a HEAD: how long the body would be.
func (d *download) announce(part byteRange) {
	d.ctx.Response.SkipBody = true
	d.ctx.Response.Header.SetContentLength(int(part.length))
}

// fromRanger answers from a store in which looking is cheap, and opens no more
// than what is sent.
func (d *download) fromRanger(b ArtifactRanger) error {
	if done, err := d.fromRangerAtOnce(b); done || err != nil {
		return err
	}
	const tries = 3 // a build that is replaced between the look and the read
	for try := 1; ; try++ {
		info, err := b.StatArtifact(d.siteID, d.buildID)
		if err != nil {
			return err
		}
		part, send := d.evaluate(info, true)
		if !send {
			return nil
		}
		if d.ctx.IsHead() {
			d.announce(part)
			return nil
		}
		r, err := b.FetchArtifactRange(d.siteID, d.buildID, info.ETag, part.offset, part.length)
		if err == nil {
			d.send(r, part.length)
			return nil
		}
		if !errors.Is(err, ErrPrecondition) && !errors.Is(err, errRange) {
			return err
		}
		d.describeNothing() // of the build that is gone
		if try == tries {
			return fmt.Errorf("%w: the build is replaced all the time", ErrUnavailable)
		}
	}
}

// fromRangerAtOnce answers a GET without a look at the build before: one call of
// the store, not two. It leaves alone what may be answered without the bytes, and
// a range that only the size of the build can tell.
func (d *download) fromRangerAtOnce(b ArtifactRanger) (done bool, err error) {
	value, _ := headerValue(d.ctx, fasthttp.HeaderRange)
	ahead, ok := rangeAhead(value)
	h := &d.ctx.Request.Header
	if !ok || !d.ctx.IsGet() || !d.cond.IsZero() || len(h.Peek(fasthttp.HeaderIfModifiedSince)) > 0 || len(h.Peek(fasthttp.HeaderIfRange)) > 0 {
		return false, nil
	}
	r, err := b.FetchArtifactRange(d.siteID, d.buildID, "", ahead.offset, ahead.length)
	if errors.Is(err, errRange) {
		return false, nil // the answer tells the size
	}
	if err != nil {
		return false, err
	}
	if part, send := d.evaluate(r.Info(), true); send {
		d.send(r, part.length)
	} else {
		r.Close() // it is answered, whatever Close says
	}
	return true, nil
}

// rangeAhead is the range to ask a store for before the size of the build is known,
// with a negative length for all to the end. ok is false where the size decides.
func rangeAhead(value string) (r byteRange, ok bool) {
	if value == "" {
		return byteRange{0, -1}, true
	}
	r, ok, err := parseRange(value, math.MaxInt64)
	_, set, _ := strings.Cut(value, "=")
	if lastBytes := strings.HasPrefix(trimOWS(set), "-"); !ok || err != nil || lastBytes {
		return byteRange{}, false
	}
	if r.length == math.MaxInt64-r.offset {
		r.length = -1
	}
	return r, true
}

// evaluate judges the conditions and the range, and writes all of the answer
// but the body. It tells which part of the artifact is to be sent, if any.
func (d *download) evaluate(info ArtifactInfo, ranges bool) (part byteRange, send bool) {
	ctx := d.ctx
	switch evaluateRead(d.cond, headerDate(ctx, fasthttp.HeaderIfModifiedSince), info) {
	case failed:
		refuse(ctx, fasthttp.StatusPreconditionFailed, "cannot read the artifact: %v", ErrPrecondition)
		return part, false
	case notModified:
		d.describeTo(&info)
		ctx.SetStatusCode(fasthttp.StatusNotModified)
		return part, false
	}
	part = byteRange{0, info.Size}
	status := fasthttp.StatusOK
	if value, _ := headerValue(ctx, fasthttp.HeaderRange); ranges && value != "" && ctx.IsGet() && d.rangeApplies(info) {
		r, ok, err := parseRange(value, info.Size)
		if err != nil {
			ctx.Response.Header.Set(fasthttp.HeaderContentRange, "bytes */"+strconv.FormatInt(info.Size, 10))
			refuse(ctx, fasthttp.StatusRequestedRangeNotSatisfiable, "%v: the artifact has %d bytes", err, info.Size)
			return part, false
		}
		if ok {
			part, status = r, fasthttp.StatusPartialContent
			ctx.Response.Header.SetContentRange(int(r.offset), int(r.offset+r.length-1), int(info.Size))
		}
	}
	d.describeTo(&info)
	if ranges {
		ctx.Response.Header.Set(fasthttp.HeaderAcceptRanges, "bytes")
	}
	ctx.SetStatusCode(status)
	return part, true
}

// rangeApplies judges If-Range.
func (d *download) rangeApplies(info ArtifactInfo) bool {
	value, _ := headerValue(d.ctx, fasthttp.HeaderIfRange)
	return value == "" || rangeStillValid(value, headerDate(d.ctx, fasthttp.HeaderIfRange), info, time.Now())
}

// describeTo writes the header fields that describe the artifact; nil: nothing
// is known of it but its name.
//
// Last-Modified is never later than Date (RFC 9110, section 8.8.2.1). It can be
// earlier than the time of the artifact then, by which conditions are judged: they
// fail on the safe side, until Date has passed that time.
func (d *download) describeTo(info *ArtifactInfo) {
	h := &d.ctx.Response.Header
	h.SetContentType("application/gzip")
	h.Set(fasthttp.HeaderContentDisposition, `attachment; filename="`+d.siteID+"-"+d.buildID+artifactSuffix+`"`)
	h.Set(fasthttp.HeaderCacheControl, d.s.cfg.buildCaching())
	if info == nil {
		return
	}
	h.Set(fasthttp.HeaderETag, info.ETag)
	modified := info.ModTime
	if time.Since(modified) < maxDateAge {
		if date := answerDate(); date.Before(modified) {
			modified = date
		}
	}
	h.SetLastModified(modified)
}

// describeNothing takes back what describeTo and evaluate wrote: what follows is an
// error, and not a part of the artifact.
func (d *download) describeNothing() {
	for _, name := range []string{fasthttp.HeaderETag, fasthttp.HeaderLastModified, fasthttp.HeaderAcceptRanges,
		fasthttp.HeaderContentRange, fasthttp.HeaderContentDisposition} {
		d.ctx.Response.Header.Del(name)
	}
}

// maxDateAge is more than the Date of an answer can be behind the clock. fasthttp
// renews it each second; to ask it costs as much as a header.
const maxDateAge = time.Minute

func seeker(r ArtifactReader) io.Seeker {
	s, _ := r.(io.Seeker)
	return s
}
