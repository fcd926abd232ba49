package main

import (
	"encoding/base64"
	"iter"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

const sitesOnPage = 1000 // sites on a page, unless the client asks for another number

// scopeKey is the key of the user value that has the *accessScope of a request: see authorize.
type scopeKey struct{}

// siteListing is a GET or HEAD of the sites.
type siteListing struct {
	conn          *conn
	prefix, after string
	limit         int
	scope         *accessScope // the sites that the client may see
}

func parseSiteListing(ctx *fasthttp.RequestCtx) (l siteListing, err error) {
	l.conn = connOf(ctx)
	l.scope, _ = ctx.UserValue(scopeKey{}).(*accessScope)
	if err := checkQuery(ctx, "prefix", "limit", "cursor"); err != nil {
		return l, err
	}
	args := ctx.QueryArgs()
	l.prefix = string(args.Peek("prefix"))
	if err := checkID(l.prefix); l.prefix != "" && err != nil {
		return l, badRequest("prefix must be the beginning of a site_id: it %v", err)
	}
	if l.limit, err = queryLimit(ctx, sitesOnPage); err != nil {
		return l, err
	}
	if args.Has("cursor") {
		if l.after, err = parseSiteCursor(string(args.Peek("cursor"))); err != nil {
			return l, err
		}
	}
	return l, nil
}

// siteCursorPrefix stands before the id in a cursor, so that a cursor of versions is not one of
// sites.
const siteCursorPrefix = "site/"

// formatSiteCursor returns the cursor of the page behind the site, which the client may see.
func formatSiteCursor(siteID string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(siteCursorPrefix + siteID))
}

func parseSiteCursor(s string) (siteID string, err error) {
	text, err := base64.RawURLEncoding.Strict().DecodeString(s)
	siteID, ok := strings.CutPrefix(string(text), siteCursorPrefix)
	if err != nil || !ok || checkID(siteID) != nil || formatSiteCursor(siteID) != s {
		return "", badCursor()
	}
	return siteID, nil
}

// narrowed returns the prefix of all sites that l asks for and may see. ok is false if there are
// no such sites.
func (l *siteListing) narrowed() (prefix string, ok bool) {
	prefix = l.scope.prefix()
	if strings.HasPrefix(l.prefix, prefix) {
		return l.prefix, true
	}
	return prefix, strings.HasPrefix(prefix, l.prefix)
}

// siteList is the JSON of the response.
type siteList struct {
	Sites      []siteItem `json:"sites"`
	NextCursor string     `json:"next_cursor,omitempty"`
}

type siteItem struct {
	SiteID string `json:"site_id"`
}

// getSites lists the sites that the client may see. Sites that it may not see cost no more than
// their names, and no cursor names one.
func (a *api) getSites(_ *fasthttp.RequestCtx, l siteListing) (response, error) {
	ids, err := a.listSites(l)
	if err != nil {
		return response{}, err
	}
	list := siteList{Sites: make([]siteItem, 0, len(ids))}
	if len(ids) > l.limit {
		ids = ids[:l.limit]
		list.NextCursor = formatSiteCursor(ids[l.limit-1])
	}
	for _, id := range ids {
		list.Sites = append(list.Sites, siteItem{id})
	}
	r := jsonResponse(fasthttp.StatusOK, list)
	r.cacheControl = "no-cache"
	if size := int64(len(r.body)); size > listFree {
		memory, err := acquire(a.lists, l.conn, budgetRequest{n: size, revoke: l.conn.responseRevoker()})
		if err != nil {
			return response{}, err
		}
		r.release = memory.release
	}
	return r, nil
}

// listSites returns the ids of a page, and one more if there is a next page.
func (a *api) listSites(l siteListing) ([]string, error) {
	store, ok := a.backend.(SiteLister)
	if !ok {
		return nil, &operationError{operation: "list the sites", err: ErrUnsupported}
	}
	prefix, some := l.narrowed()
	if !some {
		return nil, nil
	}
	place, err := a.acquireList(l.conn, "")
	if err != nil {
		return nil, err
	}
	defer place.release()
	start := time.Now()
	ids, err := store.ListSites(prefix, l.after, l.limit+1, l.scope.has)
	a.metrics.call(callSites, start, err)
	if err != nil {
		return nil, &operationError{operation: "list the sites", err: err}
	}
	return ids, nil
}

// siteSummary is the JSON of a site.
type siteSummary struct {
	SiteID string      `json:"site_id"`
	Builds int         `json:"builds"`
	Bytes  int64       `json:"bytes"`
	Newest string      `json:"newest"` // empty: the site has no build
	Labels []siteLabel `json:"labels"`
}

type siteLabel struct {
	Label   string `json:"label"`
	BuildID string `json:"build_id"`
}

// siteRequest is a GET or HEAD of a site.
type siteRequest struct {
	conn   *conn
	siteID string
}

func parseSiteRequest(ctx *fasthttp.RequestCtx) (s siteRequest, err error) {
	s.conn = connOf(ctx)
	s.siteID, err = pathID(ctx, "site_id")
	return s, err
}

// getSite describes a site.
func (a *api) getSite(_ *fasthttp.RequestCtx, s siteRequest) (response, error) {
	place, err := a.acquireList(s.conn, s.siteID)
	if err != nil {
		return response{}, err
	}
	defer place.release()
	sum, err := a.summarize(s)
	if err != nil {
		return response{}, &operationError{operation: "describe the site", siteID: s.siteID, err: err}
	}
	r := jsonResponse(fasthttp.StatusOK, sum)
	r.cacheControl = "no-cache"
	return r, nil
}

// summarize adds the builds of a site up, page by page. It fails with ErrNotFound if the site has
// no build, no log and no label.
func (a *api) summarize(s siteRequest) (*siteSummary, error) {
	sum := &siteSummary{SiteID: s.siteID, Labels: []siteLabel{}}
	found := false
	for page, err := range a.pages(s) {
		if err != nil {
			return nil, err
		}
		found = found || len(page.Versions) > 0
		for _, v := range page.Versions {
			if v.SizeBytes == 0 { // it has only a log
				continue
			}
			if sum.Builds++; sum.Builds == 1 {
				sum.Newest = v.BuildID
			}
			sum.Bytes += v.SizeBytes
		}
	}
	labels, err := a.labelsOf(s.siteID)
	if err != nil {
		return nil, err
	}
	for _, l := range labels {
		if l.BuildID != "" { // else it is being created
			sum.Labels = append(sum.Labels, siteLabel{l.Name, l.BuildID})
		}
	}
	if !found && len(sum.Labels) == 0 {
		return nil, ErrNotFound
	}
	return sum, nil
}

// pages returns the versions of a site, page by page. A page that cannot be made is the last.
func (a *api) pages(s siteRequest) iter.Seq2[*VersionPage, error] {
	return func(yield func(*VersionPage, error) bool) {
		q := VersionQuery{Limit: maxPageLimit, Client: s.conn.client(), RequestID: s.conn.rec.id}
		for {
			start := time.Now()
			page, err := listVersions(a.backend, s.siteID, q)
			a.metrics.call(callList, start, err)
			if !yield(page, err) || err != nil || page.NextCursor == "" {
				return
			}
			q.Cursor = page.NextCursor
		}
	}
}

// labelsOf returns the labels of a site; none if the store has no labels.
func (a *api) labelsOf(siteID string) ([]Label, error) {
	if _, ok := a.backend.(LabelKeeper); !ok {
		return nil, nil
	}
	return a.listLabels(siteID)
}
