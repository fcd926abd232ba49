package main

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// listing is a GET or HEAD of the versions of a site.
type listing struct {
	conn        *conn
	head        bool
	siteID      string
	query       VersionQuery
	digests     bool // with the digests that the store keeps
	labels      bool // with the names of the labels
	ifNoneMatch *ETagList
}

func parseListing(ctx *fasthttp.RequestCtx) (l listing, err error) {
	l.conn, l.head = connOf(ctx), ctx.IsHead()
	if l.siteID, err = pathID(ctx, "site_id"); err != nil {
		return l, err
	}
	if l.query, err = parseVersionQuery(ctx); err != nil {
		return l, err
	}
	if l.digests, err = queryBool(ctx, "digest", false); err != nil {
		return l, err
	}
	if l.labels, err = queryBool(ctx, "labels", false); err != nil {
		return l, err
	}
	l.query.Client, l.query.RequestID = l.conn.client(), l.conn.rec.id
	l.ifNoneMatch, err = headerETags(ctx, fasthttp.HeaderIfNoneMatch)
	// A digest can appear, and a label move, while the versions stay the same, so a list with
	// them is always made.
	if !l.digests && !l.labels && l.ifNoneMatch != nil && len(l.ifNoneMatch.Tags) == 1 {
		l.query.Tag = tagOfWhole(l.ifNoneMatch.Tags[0], l.query)
	}
	return l, err
}

// parseVersionQuery reads the arguments of a listing.
func parseVersionQuery(ctx *fasthttp.RequestCtx) (q VersionQuery, err error) {
	if err := checkQuery(ctx, "limit", "cursor", "metadata", "digest", "labels"); err != nil {
		return q, err
	}
	if q.Limit, err = queryLimit(ctx, 0); err != nil {
		return q, err
	}
	if args := ctx.QueryArgs(); args.Has("cursor") {
		q.Cursor = string(args.Peek("cursor"))
		if _, err := parseCursor(q.Cursor); err != nil {
			return q, badCursor()
		}
	}
	q.Metadata, err = queryBool(ctx, "metadata", false)
	return q, err
}

// getVersions lists the builds of a site with their logs.
func (a *api) getVersions(ctx *fasthttp.RequestCtx, l listing) (response, error) {
	r, err := a.list(ctx, l)
	if errors.Is(err, errLogChanged) { // the store knows now that it did
		r, err = a.list(ctx, l)
	}
	if failureOfStore(err) != nil {
		err = &operationError{operation: "list the versions", siteID: l.siteID, err: err}
	}
	return r, err
}

// list returns the response with the builds that l selects.
func (a *api) list(ctx *fasthttp.RequestCtx, l listing) (response, error) {
	page, err := a.page(l)
	if err != nil {
		return response{}, err
	}
	etag := ""
	if page.Tag != "" {
		etag = pageETag(page, l.query)
		if m := l.ifNoneMatch; m != nil && (m.Any || m.matchWeak(etag)) {
			return response{status: fasthttp.StatusNotModified, cacheControl: "no-cache", etag: etag}, nil
		}
	}
	r, err := a.sendList(ctx, l, page)
	r.status, r.contentType, r.cacheControl, r.etag = fasthttp.StatusOK, "application/json", "no-cache", etag
	return r, err
}

// listFormat is raised whenever the same versions are written otherwise into a list, so
// that clients do not keep the list of an older service.
const listFormat = "2"

// pageETag is the entity tag of a page: of what is listed and how it is shown.
func pageETag(page *VersionPage, q VersionQuery) string {
	tag := `"` + listFormat + "-" + page.Tag
	if q.Metadata {
		tag += "-m"
	}
	if page.NextCursor != "" {
		tag += "-n"
	}
	return tag + `"`
}

// tagOfWhole returns the Tag of the last page whose pageETag for q is etag, or an empty
// string if no such page can exist.
func tagOfWhole(etag string, q VersionQuery) string {
	empty := pageETag(&VersionPage{}, q)
	prefix, suffix := empty[:len(listFormat)+2], empty[len(listFormat)+2:]
	tag, found := strings.CutPrefix(strings.TrimPrefix(etag, "W/"), prefix)
	tag, foundEnd := strings.CutSuffix(tag, suffix)
	if !found || !foundEnd || strings.Contains(tag, "-") {
		return ""
	}
	return tag
}

// page returns the page that l selects, in a place among the lists.
func (a *api) page(l listing) (*VersionPage, error) {
	place, err := a.acquireList(l.conn, l.siteID)
	if err != nil {
		return nil, err
	}
	defer place.release()
	var labels []Label
	if l.labels { // before the versions: a build that a label names then is still there, unless the label moves
		if labels, err = a.listLabels(l.siteID); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	page, err := listVersions(a.backend, l.siteID, l.query)
	if err == nil && l.digests {
		page, err = a.addDigests(l.siteID, page)
	}
	a.metrics.call(callList, start, err)
	if err == nil && l.labels {
		page = page.withLabels(labels)
	}
	return page, err
}

// addDigests returns page with the digests that the store keeps, or page itself if the
// service or the store keeps none.
func (a *api) addDigests(siteID string, page *VersionPage) (*VersionPage, error) {
	keeper, ok := a.backend.(DigestKeeper)
	if !ok || a.cfg.Digest == digestOff {
		return page, nil
	}
	digests, err := keeper.ListDigests(siteID, page.Versions)
	if err != nil {
		return nil, err
	}
	return page.withDigests(digests), nil
}

// listVersions asks a backend that cannot page for all versions.
func listVersions(b Backend, siteID string, q VersionQuery) (*VersionPage, error) {
	if b, ok := b.(VersionPager); ok {
		return b.ListVersionsPage(siteID, q)
	}
	all, err := b.ListVersions(siteID)
	if err != nil {
		return nil, err
	}
	page, err := pageVersions(all, q)
	if err != nil {
		return nil, err
	}
	page.Versions = slices.Clone(page.Versions)
	for i, v := range page.Versions {
		page.Versions[i] = v.listable()
	}
	page.seal()
	return page, nil
}
