package main

import (
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// How handlers take a request apart. Each error is the response to the request.

// pathID returns an id of the path, decoded and checked.
func pathID(ctx *fasthttp.RequestCtx, name string) (string, error) {
	return pathName(ctx, name, checkID)
}

// pathName returns a name of the path, decoded and checked: the one place where that is
// done.
func pathName(ctx *fasthttp.RequestCtx, name string, check func(string) error) (string, error) {
	raw, _ := ctx.UserValue(name).(string)
	id, err := url.PathUnescape(raw)
	if err != nil {
		err = errors.New("has invalid percent-encoding")
	} else {
		err = check(id)
	}
	if err != nil {
		return "", badRequest("%s %v", name, err)
	}
	return id, nil
}

// artifactIDs returns both ids of the path of an artifact.
func artifactIDs(ctx *fasthttp.RequestCtx) (siteID, buildID string, err error) {
	if siteID, err = pathID(ctx, "site_id"); err != nil {
		return "", "", err
	}
	buildID, err = pathID(ctx, "build_id")
	return siteID, buildID, err
}

// labelOfPath returns the site and the label of the path of a label.
func labelOfPath(ctx *fasthttp.RequestCtx) (siteID, label string, err error) {
	if siteID, err = pathID(ctx, "site_id"); err != nil {
		return "", "", err
	}
	label, err = pathName(ctx, "label", checkLabel)
	return siteID, label, err
}

// headerValue returns the value of a header, several lines of it joined by commas
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

// headerETags returns the list in a header, nil if there is no such header. A malformed
// If-None-Match of a GET or HEAD matches nothing, so that the client gets the whole.
// If-Modified-Since is ignored then as well (RFC 9110, section 13.1.3).
func headerETags(ctx *fasthttp.RequestCtx, name string) (*ETagList, error) {
	value, there := headerValue(ctx, name)
	if !there {
		return nil, nil
	}
	list, err := parseETags(value)
	if err == nil {
		return list, nil
	}
	if name == fasthttp.HeaderIfNoneMatch && (ctx.IsGet() || ctx.IsHead()) {
		return &ETagList{}, nil
	}
	return nil, badRequest("%s: %v", name, err)
}

// headerDate returns the value of a header as a date, or zero if it is not a date. Such a
// header is ignored (RFC 9110, sections 13.1.3 and 13.1.4).
func headerDate(ctx *fasthttp.RequestCtx, name string) time.Time {
	if v := ctx.Request.Header.Peek(name); len(v) > 0 {
		if t, err := fasthttp.ParseHTTPDate(v); err == nil {
			return t
		}
	}
	return time.Time{}
}

// precondition returns the condition that a request is made on.
func precondition(ctx *fasthttp.RequestCtx) (cond Precondition, err error) {
	if cond.IfMatch, err = headerETags(ctx, fasthttp.HeaderIfMatch); err != nil {
		return cond, err
	}
	if cond.IfNoneMatch, err = headerETags(ctx, fasthttp.HeaderIfNoneMatch); err != nil {
		return cond, err
	}
	cond.IfUnmodifiedSince = headerDate(ctx, fasthttp.HeaderIfUnmodifiedSince)
	return cond, nil
}

// checkQuery refuses arguments that are not in names: most likely they are
// misspelt, and without them the response would be another. It also refuses an
// argument that is given twice.
func checkQuery(ctx *fasthttp.RequestCtx, names ...string) error {
	for k := range ctx.QueryArgs().All() {
		if !slices.Contains(names, string(k)) {
			return badRequest("unknown query parameter %q", k)
		}
		if err := checkOnce(ctx, string(k)); err != nil {
			return err
		}
	}
	return nil
}

// queryBool returns an argument that is true or false, and absent if it is not given.
func queryBool(ctx *fasthttp.RequestCtx, name string, absent bool) (bool, error) {
	if !ctx.QueryArgs().Has(name) {
		return absent, nil
	}
	if err := checkOnce(ctx, name); err != nil {
		return false, err
	}
	switch string(ctx.QueryArgs().Peek(name)) {
	case "true", "1", "":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, badRequest("%s must be true or false", name)
}

const maxPageLimit = 10_000 // builds or sites on a page at most

// queryLimit returns the argument limit, and absent if it is not given.
func queryLimit(ctx *fasthttp.RequestCtx, absent int) (int, error) {
	if !ctx.QueryArgs().Has("limit") {
		return absent, nil
	}
	n, err := strconv.Atoi(string(ctx.QueryArgs().Peek("limit")))
	if err != nil || n < 1 || n > maxPageLimit {
		return 0, badRequest("limit must be a number from 1 to %d", maxPageLimit)
	}
	return n, nil
}

// badCursor is the error of an argument cursor that the service did not make.
func badCursor() error {
	return badRequest("cursor must be a next_cursor value returned by this service")
}

// checkOnce refuses an argument that is given twice.
func checkOnce(ctx *fasthttp.RequestCtx, name string) error {
	if len(ctx.QueryArgs().PeekMulti(name)) > 1 {
		return badRequest("%s is specified more than once", name)
	}
	return nil
}

// checkPlainBody refuses a body that would not be stored as its sender means it: one with a
// content coding, an HTML form, or a digest in a field that RFC 9530 made obsolete. noun is
// what the body should be, tool what sends it so.
func checkPlainBody(ctx *fasthttp.RequestCtx, noun, tool string) error {
	if codings, _ := headerValue(ctx, fasthttp.HeaderContentEncoding); isCoded(codings) {
		// RFC 9110, sections 15.5.16 and 12.5.3.
		err := newHTTPError(fasthttp.StatusUnsupportedMediaType, "send the %s without Content-Encoding; the body is stored unchanged", noun)
		err.header, err.value = fasthttp.HeaderAcceptEncoding, "identity"
		return err
	}
	const form = "multipart/"
	if t := ctx.Request.Header.ContentType(); len(t) >= len(form) && strings.EqualFold(string(t[:len(form)]), form) {
		return newHTTPError(fasthttp.StatusUnsupportedMediaType, "send the raw %s, as %s does, not multipart", noun, tool)
	}
	for _, name := range [...]string{"Content-MD5", "Digest"} {
		if _, there := headerValue(ctx, name); there {
			return badRequest("%s is not supported: send Repr-Digest (RFC 9530)", name)
		}
	}
	return nil
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
