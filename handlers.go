package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/fasthttp/router"
	"github.com/valyala/fasthttp"
)

// routes is the whole HTTP API. Paths are matched as they were sent: no
// redirects of case, slashes or dots.
func (s *service) routes() fasthttp.RequestHandler {
	const (
		artifact = "/sites/{site_id}/artifacts/{build_id}"
		logs     = "/sites/{site_id}/logs"
		versions = "/sites/{site_id}/versions"
	)
	r := s.newRouter()
	s.addHealth(r)
	if s.cfg.AdminListen == "" {
		read(r, "/metrics", routeMetrics, s.getMetrics)
	}
	read(r, "/openapi.yaml", routeOpenAPI, getOpenAPI)
	read(r, artifact, routeArtifact, s.getArtifact)
	read(r, versions, routeVersions, s.getVersions)
	r.PUT(artifact, named(routeArtifact, s.putArtifact))
	r.DELETE(artifact, named(routeArtifact, s.deleteArtifact))
	r.POST(logs, named(routeLogs, s.postLog))
	return r.Handler
}

// adminRoutes is what the admin address answers.
func (s *service) adminRoutes() fasthttp.RequestHandler {
	r := s.newRouter()
	r.NotFound = func(ctx *fasthttp.RequestCtx) { refuse(ctx, fasthttp.StatusNotFound, "no such path") }
	s.addHealth(r)
	read(r, "/metrics", routeMetrics, s.getMetrics)
	return r.Handler
}

func (s *service) addHealth(r *router.Router) {
	read(r, "/health", routeHealth, s.getHealth)
	read(r, "/ready", routeReady, s.getReady)
}

func read(r *router.Router, path, route string, h fasthttp.RequestHandler) {
	r.GET(path, named(route, h))
	r.HEAD(path, named(route, h))
}

func (s *service) newRouter() *router.Router {
	r := router.New()
	r.RedirectTrailingSlash = false
	r.RedirectFixedPath = false
	r.PanicHandler = s.panicked
	r.NotFound = notFoundPath
	r.MethodNotAllowed = func(ctx *fasthttp.RequestCtx) {
		refuse(ctx, fasthttp.StatusMethodNotAllowed, "the method is not allowed here; see Allow")
	}
	r.GlobalOPTIONS = func(ctx *fasthttp.RequestCtx) { ctx.SetStatusCode(fasthttp.StatusNoContent) }
	return r
}

// named notes the route of a request for the metrics.
func named(route string, h fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		ctx.Conn().(*conn).ex.route = route
		h(ctx)
	}
}

// maxDrained is the size in bytes of an unread body that fasthttp reads away by
// itself, and keeps the connection.
const maxDrained = 256 << 10

// handle serves one request by routes.
func (s *service) handle(ctx *fasthttp.RequestCtx, routes fasthttp.RequestHandler) {
	c := ctx.Conn().(*conn)
	s.begin(ctx, c)
	c.bodyRead = false
	framed := s.dispatch(ctx, routes)
	// If the client still sends, the connection may have to be closed on it.
	unread := ctx.Request.IsBodyStream() && !c.bodyRead
	c.linger.Store(unread || !framed)
	if n := ctx.Request.Header.ContentLength(); unread && (n < 0 || n > maxDrained) {
		ctx.SetConnectionClose() // said, or the client sends its next request into a closed connection
	}
	s.answered(ctx, c)
}

// dispatch calls the handler of a request. If the end of the request is not clear, it
// refuses the request and closes the connection.
func (s *service) dispatch(ctx *fasthttp.RequestCtx, routes fasthttp.RequestHandler) (framed bool) {
	switch {
	case !bytes.HasPrefix(ctx.Request.Header.Protocol(), []byte("HTTP/1.")):
		refuse(ctx, fasthttp.StatusHTTPVersionNotSupported, "only HTTP/1.1 and HTTP/1.0 are spoken here")
	case hasOtherCoding(&ctx.Request.Header):
		refuse(ctx, fasthttp.StatusBadRequest, "Transfer-Encoding: only chunked is understood")
	case !ctx.IsGet() && !ctx.IsHead() && !ctx.IsOptions() && crossSite(ctx):
		refuse(ctx, fasthttp.StatusForbidden, "the request comes from a page of another origin")
		return true
	default:
		routes(ctx)
		return true
	}
	ctx.SetConnectionClose()
	return false
}

// crossSite reports whether a browser sent the request for a page of another origin.
// Browsers send Sec-Fetch-Site over https and to localhost only (W3C Fetch Metadata
// Request Headers), but Origin with each request that changes something (WHATWG
// Fetch, section 3.2). Other clients send neither.
func crossSite(ctx *fasthttp.RequestCtx) bool {
	if site, there := headerValue(ctx, "Sec-Fetch-Site"); there {
		return site != "same-origin" && site != "none"
	}
	origin, there := headerValue(ctx, fasthttp.HeaderOrigin)
	return there && !originIs(origin, string(ctx.Request.Header.Host()))
}

// originIs reports whether origin, as in RFC 6454, section 7, has the host and port
// of a Host header. The scheme is not compared: behind a proxy it is not known.
func originIs(origin, host string) bool {
	scheme, of, _ := strings.Cut(origin, "://")
	port := map[string]string{"http": ":80", "https": ":443"}[scheme]
	return port != "" && strings.EqualFold(strings.TrimSuffix(of, port), strings.TrimSuffix(host, port))
}

// hasOtherCoding tells whether a request has a transfer coding that is not
// chunked (RFC 9112, section 6.3). Such a one does not come this far, but for
// "identity", which fasthttp takes for no coding: only the raw header tells.
func hasOtherCoding(h *fasthttp.RequestHeader) bool {
	if h.ContentLength() == -1 {
		return false
	}
	for line := range bytes.Lines(h.RawHeaders()) {
		name, _, found := bytes.Cut(line, []byte(":"))
		if found && bytes.EqualFold(name, []byte(fasthttp.HeaderTransferEncoding)) {
			return true
		}
	}
	return false
}

// keyExpecting marks a request whose body was not asked for yet.
const keyExpecting = "expecting"

// expect decides whether the body that a client announced with Expect:
// 100-continue is asked for: the handlers run as far as they get without it,
// and what they refuse is refused before the client has sent it.
func (s *service) expect(ctx *fasthttp.RequestCtx, routes fasthttp.RequestHandler) int {
	c := ctx.Conn().(*conn)
	s.begin(ctx, c)
	ctx.SetUserValue(keyExpecting, true)
	s.dispatch(ctx, routes)
	ctx.RemoveUserValue(keyExpecting)
	if status := ctx.Response.StatusCode(); status >= 400 {
		c.linger.Store(true) // the client may have begun to send all the same
		s.answered(ctx, c)
		return status
	}
	ctx.Response.Reset()
	return fasthttp.StatusContinue
}

func expecting(ctx *fasthttp.RequestCtx) bool { return ctx.UserValue(keyExpecting) != nil }

// panicked answers 500 for a handler that panicked and logs where.
func (s *service) panicked(ctx *fasthttp.RequestCtx, cause any) {
	s.log.Error("panic in a handler", "request_id", requestIDOf(ctx), "method", methodOf(ctx),
		"path", string(ctx.RequestURI()), "cause", fmt.Sprint(cause), "stack", string(debug.Stack()))
	ctx.Response.ResetBody()
	refuse(ctx, fasthttp.StatusInternalServerError, "internal error")
}

// malformed answers what could not be read as a request at all.
func (s *service) malformed(ctx *fasthttp.RequestCtx, err error) {
	c := ctx.Conn().(*conn)
	s.begin(ctx, c)
	status, reason := malformedStatus(err)
	refuse(ctx, status, "%s", reason)
	c.linger.Store(true)
	s.answered(ctx, c)
}

// notFoundPath answers 404, or 400 for a path of the API in which an id is
// empty, which the router does not match.
func notFoundPath(ctx *fasthttp.RequestCtx) {
	p := strings.Split(string(ctx.URI().PathOriginal()), "/")
	if len(p) >= 4 && p[0] == "" && p[1] == "sites" {
		artifact := len(p) == 5 && p[3] == "artifacts"
		if p[2] == "" && (artifact || len(p) == 4 && (p[3] == "logs" || p[3] == "versions")) {
			refuse(ctx, fasthttp.StatusBadRequest, "site_id is empty")
			return
		}
		if artifact && p[4] == "" {
			refuse(ctx, fasthttp.StatusBadRequest, "build_id is empty")
			return
		}
	}
	refuse(ctx, fasthttp.StatusNotFound, "no such path")
}

// pathID is an id of the path, decoded and checked: the one place where that is
// done. If it is none, the answer is given and ok is false.
func pathID(ctx *fasthttp.RequestCtx, name string) (id string, ok bool) {
	raw, _ := ctx.UserValue(name).(string)
	id, err := url.PathUnescape(raw)
	if err != nil {
		err = errors.New("is not percent-encoded as it should be")
	} else {
		err = checkID(id)
	}
	if err != nil {
		refuse(ctx, fasthttp.StatusBadRequest, "%s %v", name, err)
		return "", false
	}
	return id, true
}

// artifactIDs are both ids of the path of an artifact.
func artifactIDs(ctx *fasthttp.RequestCtx) (siteID, buildID string, ok bool) {
	if siteID, ok = pathID(ctx, "site_id"); ok {
		buildID, ok = pathID(ctx, "build_id")
	}
	return siteID, buildID, ok
}

// toRead takes a place among the requests that read the store, or answers 503.
func (s *service) toRead(ctx *fasthttp.RequestCtx) (place *grant, ok bool) {
	return s.take(ctx, s.reads, budgetRequest{n: 1})
}

// toWrite takes a place among the requests that change the store, or answers 503.
// They may wait for the lock of their build, so that few of one build, or one site,
// get a place at once.
func (s *service) toWrite(ctx *fasthttp.RequestCtx, siteID, buildID string) (place *grant, ok bool) {
	return s.take(ctx, s.writes, budgetRequest{n: 1, caps: []keyCap{
		{"site " + siteID, maxSiteWrites}, {"build " + siteID + "/" + buildID, maxBuildWrites},
	}})
}

// take takes what a request needs for its client, or answers 503.
func (s *service) take(ctx *fasthttp.RequestCtx, b *budget, a budgetRequest) (*grant, bool) {
	a.client = ctx.Conn().(*conn).client()
	g, err := b.acquire(a)
	if err != nil {
		refuse(ctx, fasthttp.StatusServiceUnavailable, "%v", err)
		return nil, false
	}
	return g, true
}

// headerValue is the value of a header, several lines of it joined by commas
// (RFC 9110, section 5.3).
func headerValue(ctx *fasthttp.RequestCtx, name string) (value string, there bool) {
	lines := ctx.Request.Header.PeekAll(name)
	switch len(lines) {
	case 0:
		return "", false
	case 1:
		return string(lines[0]), true
	}
	parts := make([]string, len(lines))
	for i, l := range lines {
		parts[i] = string(l)
	}
	return strings.Join(parts, ", "), true
}

// headerETags is the list in a header, nil if there is no such header. A malformed
// If-None-Match of a GET or HEAD matches nothing, so that the client gets the whole.
// If-Modified-Since is ignored then as well (RFC 9110, section 13.1.3).
func headerETags(ctx *fasthttp.RequestCtx, name string) (*ETagList, error) {
	value, there := headerValue(ctx, name)
	if !there {
		return nil, nil
	}
	list, err := parseETags(value)
	if err != nil && name == fasthttp.HeaderIfNoneMatch && (ctx.IsGet() || ctx.IsHead()) {
		return &ETagList{}, nil
	}
	return list, err
}

// headerDate is the value of a header as a date, zero if it is none: such a
// header is ignored (RFC 9110, sections 13.1.3 and 13.1.4).
func headerDate(ctx *fasthttp.RequestCtx, name string) time.Time {
	if v := ctx.Request.Header.Peek(name); len(v) > 0 {
		if t, err := fasthttp.ParseHTTPDate(v); err == nil {
			return t
		}
	}
	return time.Time{}
}

// precondition reads the condition that a request is made on. If it is
// malformed, the answer is given and ok is false.
func precondition(ctx *fasthttp.RequestCtx) (cond Precondition, ok bool) {
	for _, h := range []struct {
		name string
		list **ETagList
	}{
		{fasthttp.HeaderIfMatch, &cond.IfMatch},
		{fasthttp.HeaderIfNoneMatch, &cond.IfNoneMatch},
	} {
		list, err := headerETags(ctx, h.name)
		if err != nil {
			refuse(ctx, fasthttp.StatusBadRequest, "%s: %v", h.name, err)
			return cond, false
		}
		*h.list = list
	}
	cond.IfUnmodifiedSince = headerDate(ctx, fasthttp.HeaderIfUnmodifiedSince)
	return cond, true
}

// queryKnown refuses arguments that are not in names: most likely they are
// misspelt, and without them the answer would be another. It also refuses an
// argument that is there twice.
func queryKnown(ctx *fasthttp.RequestCtx, names ...string) bool {
	for k := range ctx.QueryArgs().All() {
		if !slices.Contains(names, string(k)) {
			refuse(ctx, fasthttp.StatusBadRequest, "unknown query argument %q", k)
			return false
		}
		if !queryOnce(ctx, string(k)) {
			return false
		}
	}
	return true
}

// queryBool reads an argument that is true or false; absent is the value without
// it. What it refuses it answers.
func queryBool(ctx *fasthttp.RequestCtx, name string, absent bool) (value, ok bool) {
	if !ctx.QueryArgs().Has(name) {
		return absent, true
	}
	if !queryOnce(ctx, name) {
		return false, false
	}
	switch string(ctx.QueryArgs().Peek(name)) {
	case "true", "1", "":
		return true, true
	case "false", "0":
		return false, true
	}
	refuse(ctx, fasthttp.StatusBadRequest, "%s must be true or false", name)
	return false, false
}

// queryOnce refuses an argument that is there twice.
func queryOnce(ctx *fasthttp.RequestCtx, name string) bool {
	if len(ctx.QueryArgs().PeekMulti(name)) > 1 {
		refuse(ctx, fasthttp.StatusBadRequest, "%s is given more than once", name)
		return false
	}
	return true
}

// plainBody refuses a body that would not be stored as its sender means it: one with
// a content coding, an HTML form, or a digest that is not checked. noun is what the
// body should be, like the tool that sends it so.
func plainBody(ctx *fasthttp.RequestCtx, noun, like string) bool {
	if codings, _ := headerValue(ctx, fasthttp.HeaderContentEncoding); isCoded(codings) {
		// RFC 9110, sections 15.5.16 and 12.5.3.
		ctx.Response.Header.Set(fasthttp.HeaderAcceptEncoding, "identity")
		refuse(ctx, fasthttp.StatusUnsupportedMediaType, "send the %s without Content-Encoding; it is stored as it is", noun)
		return false
	}
	const form = "multipart/"
	if t := ctx.Request.Header.ContentType(); len(t) >= len(form) && strings.EqualFold(string(t[:len(form)]), form) {
		refuse(ctx, fasthttp.StatusUnsupportedMediaType, "send the %s itself, as %s does", noun, like)
		return false
	}
	for _, name := range [...]string{"Content-MD5", "Digest"} {
		if _, there := headerValue(ctx, name); there {
			refuse(ctx, fasthttp.StatusBadRequest, "%s is not checked; digest headers that are understood: none", name)
			return false
		}
	}
	return true
}

// isCoded reports whether the list of a Content-Encoding holds a coding. Empty
// elements do not count (RFC 9110, section 5.6.1.2).
func isCoded(list string) bool {
	for coding := range strings.SplitSeq(list, ",") {
		if coding = trimOWS(coding); coding != "" && !strings.EqualFold(coding, "identity") {
			return true
		}
	}
	return false
}
