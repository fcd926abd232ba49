package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// download is a GET or HEAD of a build.
type download struct {
	conn            *conn
	head            bool
	siteID, buildID string
	cond            Precondition
	modifiedSince   time.Time // If-Modified-Since; zero: none
	rangeValue      string    // Range
	ifRange         string
	ifRangeDate     time.Time // ifRange, if it is a date
	redirect        bool      // the client takes a redirect

	held *grant // for the bytes that pass through the service; nil: not acquired
}

func parseDownload(ctx *fasthttp.RequestCtx) (d download, err error) {
	siteID, buildID, err := artifactIDs(ctx)
	if err != nil {
		return d, err
	}
	return parseDownloadOf(ctx, siteID, buildID)
}

// parseDownloadOf is parseDownload of a path that may not have the id of the build.
func parseDownloadOf(ctx *fasthttp.RequestCtx, siteID, buildID string) (d download, err error) {
	d.conn, d.head, d.siteID, d.buildID = connOf(ctx), ctx.IsHead(), siteID, buildID
	if d.cond, err = precondition(ctx); err != nil {
		return d, err
	}
	d.modifiedSince = headerDate(ctx, fasthttp.HeaderIfModifiedSince)
	if d.rangeValue, _ = headerValue(ctx, fasthttp.HeaderRange); d.rangeValue != "" && !d.head {
		d.ifRange, _ = headerValue(ctx, fasthttp.HeaderIfRange)
		d.ifRangeDate = headerDate(ctx, fasthttp.HeaderIfRange)
	}
	d.redirect, err = queryBool(ctx, "redirect", true)
	return d, err
}

// getArtifact sends a build, or the part of it that is asked for.
func (a *api) getArtifact(_ *fasthttp.RequestCtx, d download) (response, error) {
	place, err := a.acquireRead(d.conn)
	if err != nil {
		return response{}, err
	}
	return a.sendArtifact(d, place)
}

// sendArtifact is getArtifact in a place among the reads, which it releases.
func (a *api) sendArtifact(d download, place *grant) (_ response, err error) {
	defer func() { place.release() }()
	if d.redirect {
		if r, ok := a.redirect(&d); ok {
			return r, nil
		}
	}
	defer func() { d.held.release() }()
	ranger, isRanger := a.backend.(ArtifactRanger)
	if isRanger && !d.head && !a.tryHold(&d) {
		// A request that waits for memory makes way for those that need none.
		place.release()
		if err := a.hold(&d); err != nil {
			return response{}, d.failed(err)
		}
		if place, err = a.acquireRead(d.conn); err != nil {
			return response{}, err
		}
	}
	start := time.Now()
	var r response
	if isRanger {
		r, err = a.fromRanger(&d, ranger)
	} else {
		r, err = a.fromReader(&d)
	}
	a.metrics.call(callFetch, start, failureOfStore(err))
	if err != nil {
		return response{}, d.failed(err)
	}
	return r, nil
}

// failed returns the error of a download.
func (d *download) failed(err error) error {
	return &operationError{operation: "read the artifact", siteID: d.siteID, buildID: d.buildID, err: err}
}

// statArtifact describes a build without reading it.
func statArtifact(b Backend, siteID, buildID string) (ArtifactInfo, error) {
	if b, ok := b.(ArtifactStater); ok {
		return b.StatArtifact(siteID, buildID)
	}
	r, err := b.FetchArtifact(siteID, buildID)
	if err != nil {
		return ArtifactInfo{}, err
	}
	defer r.Close()
	if a, ok := r.(ArtifactReader); ok {
		return a.Info(), nil
	}
	return ArtifactInfo{}, fmt.Errorf("%w: conditional requests", ErrUnsupported)
}

// fromReader responds with what FetchArtifact opens.
func (a *api) fromReader(d *download) (r response, err error) {
	if st, ok := a.backend.(ArtifactStater); ok && (d.head || d.mayBeUnmodified()) {
		if r, done, err := a.fromStat(d, st); done || err != nil {
			return r, err
		}
	}
	body, err := a.backend.FetchArtifact(d.siteID, d.buildID)
	if err != nil {
		return r, err
	}
	defer func() {
		if r.stream == nil { // else it is closed when it was sent
			body.Close()
		}
	}()
	reader, ok := body.(ArtifactReader)
	if !ok {
		if err := a.hold(d); err != nil {
			return r, err
		}
		r = a.describe(d, nil)
		r.status = fasthttp.StatusOK
		a.send(&r, d, body, -1)
		return r, nil
	}
	info := reader.Info()
	seeker, canSeek := reader.(io.Seeker)
	r, part, err := a.evaluate(d, info, canSeek)
	if err != nil || r.status == fasthttp.StatusNotModified {
		return r, err
	}
	if m, ok := reader.(MemoryReader); ok {
		r.body = m.Bytes()[part.offset : part.offset+part.length]
		return r, nil
	}
	if part.offset > 0 {
		if _, err := seeker.Seek(part.offset, io.SeekStart); err != nil {
			return r, err
		}
	}
	f, isFile := reader.(FileReader)
	switch {
	case isFile && !d.head && part.length <= smallSize:
		r.body, err = readAhead(f.File(), part.length)
		return r, err
	case isFile:
		// The bare file: fasthttp passes it to sendfile(2), and stops at the length.
		a.sendStream(&r, d, f.File(), part.length)
	default:
		if err := a.hold(d); err != nil {
			return r, err
		}
		a.send(&r, d, body, part.length)
	}
	return r, nil
}

// readAhead reads n bytes of a file before the header leaves, so that an error has a
// status.
func readAhead(f *os.File, n int64) ([]byte, error) {
	data := make([]byte, n)
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, readError(f.Name(), err)
	}
	return data, nil
}

// mayBeUnmodified reports whether the client has a copy, and asks if it is still good.
func (d *download) mayBeUnmodified() bool {
	return d.cond.IfNoneMatch != nil || !d.modifiedSince.IsZero()
}

// fromStat responds with what needs none of the bytes: to a HEAD, and with 304 or 412.
func (a *api) fromStat(d *download, b ArtifactStater) (r response, done bool, err error) {
	info, err := b.StatArtifact(d.siteID, d.buildID)
	if err != nil {
		return r, false, err
	}
	if !d.head && evaluateRead(d.cond, d.modifiedSince, info) == proceed {
		return r, false, nil
	}
	r, part, err := a.evaluate(d, info, true)
	r.announce(part)
	return r, true, err
}

// announce makes r, if it is to have a body, the response to a HEAD: it says how long the
// body would be.
func (r *response) announce(part byteRange) {
	if r.status != fasthttp.StatusNotModified {
		r.sizeOnly, r.size = true, part.length
	}
}

// fromRanger responds from a store in which looking is cheap, and opens no more
// than what is sent.
func (a *api) fromRanger(d *download, b ArtifactRanger) (response, error) {
	if r, done, err := a.fromRangerAtOnce(d, b); done || err != nil {
		return r, err
	}
	const tries = 3 // a build that is replaced between the look and the read
	for try := 1; ; try++ {
		info, err := b.StatArtifact(d.siteID, d.buildID)
		if err != nil {
			return response{}, err
		}
		r, part, err := a.evaluate(d, info, true)
		if err != nil || r.status == fasthttp.StatusNotModified {
			return r, err
		}
		if d.head {
			r.announce(part)
			return r, nil
		}
		body, err := b.FetchArtifactRange(d.siteID, d.buildID, info.ETag, part.offset, part.length)
		if err == nil {
			a.send(&r, d, body, part.length)
			return r, nil
		}
		if !errors.Is(err, ErrPrecondition) && !errors.Is(err, errRange) {
			return r, err
		}
		if try == tries {
			return r, fmt.Errorf("%w: the build was replaced during each attempt to read it", ErrUnavailable)
		}
	}
}

// fromRangerAtOnce responds to a GET without a look at the build before: one call of
// the store, not two. It leaves alone what may need none of the bytes, and
// a range that only the size of the build decides.
func (a *api) fromRangerAtOnce(d *download, b ArtifactRanger) (r response, done bool, err error) {
	ahead, ok := rangeAhead(d.rangeValue)
	if !ok || d.head || !d.cond.IsZero() || !d.modifiedSince.IsZero() || d.ifRange != "" {
		return r, false, nil
	}
	body, err := b.FetchArtifactRange(d.siteID, d.buildID, "", ahead.offset, ahead.length)
	if errors.Is(err, errRange) {
		return r, false, nil // the response says the size
	}
	if err != nil {
		return r, false, err
	}
	r, part, err := a.evaluate(d, body.Info(), true)
	if err != nil {
		body.Close() // whatever it returns
		return r, true, err
	}
	a.send(&r, d, body, part.length)
	return r, true, nil
}

// rangeAhead returns the range to ask a store for before the size of the build is known,
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

// evaluate judges the conditions and the range. It returns the response without its
// body, and which part of the artifact the body is.
func (a *api) evaluate(d *download, info ArtifactInfo, ranges bool) (r response, part byteRange, err error) {
	switch evaluateRead(d.cond, d.modifiedSince, info) {
	case failed:
		return r, part, newHTTPError(fasthttp.StatusPreconditionFailed, "cannot read the artifact: %v", ErrPrecondition)
	case notModified:
		r = a.describe(d, &info)
		r.status = fasthttp.StatusNotModified
		return r, part, nil
	}
	r = a.describe(d, &info)
	r.status, r.acceptRanges, r.sha256 = fasthttp.StatusOK, ranges, info.SHA256 // of the whole, also with a 206 (RFC 9530, section 3)
	part = byteRange{0, info.Size}
	if ranges && d.rangeValue != "" && !d.head && (d.ifRange == "" || rangeStillValid(d.ifRange, d.ifRangeDate, info, time.Now())) {
		asked, ok, err := parseRange(d.rangeValue, info.Size)
		if err != nil {
			refusal := newHTTPError(fasthttp.StatusRequestedRangeNotSatisfiable, "%v: the build has %d bytes", err, info.Size)
			refusal.header, refusal.value = fasthttp.HeaderContentRange, fmt.Sprintf("bytes */%d", info.Size)
			return r, part, refusal
		}
		if ok {
			part = asked
			r.status, r.part, r.whole = fasthttp.StatusPartialContent, part, info.Size
		}
	}
	return r, part, nil
}

// describe returns a response with the header fields that describe the artifact; nil:
// nothing is known of it but its name.
//
// Last-Modified is never later than Date (RFC 9110, section 8.8.2.1). It can be
// earlier than the time of the artifact then, by which conditions are judged: they
// fail on the safe side, until Date has passed that time.
func (a *api) describe(d *download, info *ArtifactInfo) response {
	r := response{
		contentType:  "application/gzip",
		siteID:       d.siteID,
		buildID:      d.buildID,
		cacheControl: a.cfg.buildCaching(),
	}
	if info == nil {
		return r
	}
	r.etag, r.lastModified = info.ETag, info.ModTime
	if time.Since(info.ModTime) < maxDateAge {
		if date := responseDate(); date.Before(info.ModTime) {
			r.lastModified = date
		}
	}
	return r
}
