package main

import (
	"io"
	"time"

	"github.com/goccy/go-json"
	"github.com/valyala/fasthttp"
)

// response is what a handler returns. An empty field is not sent.
type response struct {
	status       int
	contentType  string
	cacheControl string
	etag         string
	sha256       Digest // Repr-Digest
	location     string
	describes    string // Content-Location: the path of the build that is sent
	siteID       string // with buildID: Content-Disposition
	buildID      string
	lastModified time.Time
	acceptRanges bool
	part         byteRange // Content-Range, if status is 206
	whole        int64     // the size of which part is a part

	body     []byte    // sent as it is, or
	buffer   []byte    // the body in a buffer of takeBuffer, or
	stream   io.Reader // the body, of size bytes if size is not negative; closed when it was sent, or
	size     int64
	sizeOnly bool // Content-Length is size, and there is no body: the response to a HEAD

	release      func()      // gives back what the response holds, after it was sent; nil: nothing
	sourceFailed func(error) // called if stream fails: then the response can only be cut
}

// noStore is the Cache-Control of a response that no cache may keep.
const noStore = "no-store"

// success is the JSON of the response to a write.
type success struct {
	Status    string `json:"status"` // "success"
	SiteID    string `json:"site_id"`
	BuildID   string `json:"build_id"`
	SizeBytes *int64 `json:"size_bytes,omitempty"`
	SHA256    string `json:"sha256,omitempty"`
	EntryID   string `json:"entry_id,omitempty"`
}

// jsonResponse returns a response with v as its body.
func jsonResponse(status int, v any) response {
	body, err := json.MarshalWithOption(v, json.DisableHTMLEscape())
	if err != nil {
		panic(err) // our own types, all of which can be marshalled; the panic handler responds with 500
	}
	return response{status: status, contentType: "application/json", body: append(body, '\n')}
}

// takeBuffer takes the buffer of a response that was sent before: one of a megabyte is
// expensive to make.
func takeBuffer(ctx *fasthttp.RequestCtx) []byte { return ctx.Response.SwapBody(nil)[:0] }

// write makes r the response to a request.
func (r *response) write(ctx *fasthttp.RequestCtx) {
	ctx.SetStatusCode(r.status)
	h := &ctx.Response.Header
	if r.contentType != "" {
		h.SetContentType(r.contentType)
	}
	for _, f := range [...]struct{ name, value string }{
		{fasthttp.HeaderCacheControl, r.cacheControl},
		{"Etag", r.etag}, // so in fasthttp's canonical form
		{fasthttp.HeaderLocation, r.location},
		{fasthttp.HeaderContentLocation, r.describes},
	} {
		if f.value != "" {
			setHeader(h, f.name, f.value)
		}
	}
	if r.buildID != "" {
		value := append(make([]byte, 0, len(`attachment; filename="-"`)+2*maxIDLen+len(artifactSuffix)), `attachment; filename="`...)
		value = append(append(append(value, r.siteID...), '-'), r.buildID...)
		value = append(append(value, artifactSuffix...), '"')
		h.SetCanonical([]byte(fasthttp.HeaderContentDisposition), value)
	}
	if !r.lastModified.IsZero() {
		h.SetLastModified(r.lastModified)
	}
	if r.sha256.known() {
		var value [64]byte
		h.SetCanonical(reprDigest, appendDigest(value[:0], r.sha256))
	}
	if r.acceptRanges {
		setHeader(h, fasthttp.HeaderAcceptRanges, "bytes")
	}
	if r.status == fasthttp.StatusPartialContent {
		h.SetContentRange(int(r.part.offset), int(r.part.offset+r.part.length-1), int(r.whole))
	}
	rec := &connOf(ctx).rec
	rec.release, rec.sourceFailed = r.release, r.sourceFailed
	switch {
	case r.sizeOnly:
		ctx.Response.SkipBody = true
		h.SetContentLength(int(r.size))
	case r.stream != nil:
		ctx.SetBodyStream(r.stream, int(r.size))
	case r.buffer != nil:
		ctx.Response.SwapBody(r.buffer)
	case r.body != nil:
		ctx.Response.SetBodyRaw(r.body)
	}
}
