package main

import (
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fasthttp/router"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/singleflight"
)

// api is the HTTP API over one backend.
type api struct {
	limits
	cfg       *Config
	backend   Backend
	log       *slog.Logger
	metrics   *serviceMetrics
	floods    *floodLog
	stopping  func() bool             // the service shuts down
	ready     *cachedProbe[Readiness] // nil: the backend cannot be probed
	wrote     atomic.Bool             // a probe found that writes work
	space     *cachedProbe[Space]     // nil: the backend has no size
	freeSpace *freeSpace              // nil: none is kept free
	access    *accessControl          // nil: everybody may do everything

	computing      singleflight.Group // of the digests of stored builds
	listBuffered   int64              // bytes of a list that is made whole before it is sent
	siteDeleteTime time.Duration      // how long one request deletes a site
}

func newAPI(cfg *Config, backend Backend, log *slog.Logger, m *serviceMetrics, stopping func() bool) *api {
	a := &api{limits: newLimits(cfg), cfg: cfg, backend: backend, log: log, metrics: m, floods: newFloodLog(log), stopping: stopping, listBuffered: listBuffered, siteDeleteTime: siteDeleteTime}
	if p, ok := backend.(Prober); ok {
		a.ready = &cachedProbe[Readiness]{probe: a.probeOf(p)}
	}
	if p, ok := backend.(SpaceTeller); ok {
		a.space = &cachedProbe[Space]{probe: timed(m, callSpace, p.Space)}
		if cfg.MinFreeSpace > 0 {
			a.freeSpace = &freeSpace{min: int64(cfg.MinFreeSpace), space: a.space}
			a.space.probe = a.freeSpace.watch(a.space.probe)
		}
	}
	a.addGauges()
	return a
}

// route is one line of the table of routes. need is what the client must be allowed to do
// on the site of the path, or if the path has none on all sites; see authorize, which runs
// first. also, if it is set, is needed as well. With ofSome the response shows only the sites on
// which the client has need or admin: some rule must allow it. serve takes the request apart, does what it asks for and returns the response.
// admit returns the error with which the request is refused before its body is read, or the
// response if it needs no body; otherwise the status is 0. It changes nothing that clients
// see, and is all that runs before a 100 (Continue) is sent.
type route struct {
	method, path string
	name         string // for the metrics
	need         action // one of them, or actionOpen
	admit        func(*fasthttp.RequestCtx) (response, error)
	serve        func(*fasthttp.RequestCtx) (response, error)
	also         action
	ofSome       bool
}

// endpoint makes a route of a function that takes the request apart into a value and one
// that serves the value. check, which may be nil, is for what serve refuses, or responds to,
// before it reads the body: see admit.
func endpoint[T any](method, path, name string, need action, parse func(*fasthttp.RequestCtx) (T, error),
	check func(T) (response, error), serve func(*fasthttp.RequestCtx, T) (response, error)) route {
	return route{method: method, path: path, name: name, need: need,
		admit: func(ctx *fasthttp.RequestCtx) (response, error) {
			v, err := parse(ctx)
			if err != nil || check == nil {
				return response{}, err
			}
			return check(v)
		},
		serve: func(ctx *fasthttp.RequestCtx) (response, error) {
			v, err := parse(ctx)
			if err != nil {
				return response{}, err
			}
			return serve(ctx, v)
		}}
}

// filtered returns the route with ofSome.
func (r route) filtered() route {
	r.ofSome = true
	return r
}

// andNeeds returns the route with also.
func (r route) andNeeds(also action) route {
	r.also = also
	return r
}

// page makes the routes of a GET, and a HEAD, that has no arguments.
func page(path, name string, need action, serve func(*fasthttp.RequestCtx) (response, error)) []route {
	admit := func(*fasthttp.RequestCtx) (response, error) { return response{}, nil }
	get := route{method: fasthttp.MethodGet, path: path, name: name, need: need, admit: admit, serve: serve}
	head := get
	head.method = fasthttp.MethodHead
	return []route{get, head}
}

// The paths of sites.
const (
	pathSites    = "/sites"
	pathSite     = "/sites/{site_id}"
	pathArtifact = "/sites/{site_id}/artifacts/{build_id}"
	pathLogs     = "/sites/{site_id}/logs"
	pathVersions = "/sites/{site_id}/versions"
	pathVersion  = "/sites/{site_id}/versions/{build_id}"
	pathLabels   = "/sites/{site_id}/labels"
	pathLabel    = "/sites/{site_id}/labels/{label}"
	pathByLabel  = "/sites/{site_id}/labels/{label}/artifact"
)

// routes is the whole HTTP API.
func (a *api) routes() []route {
	all := []route{
		endpoint("GET", pathArtifact, routeArtifact, actionRead, parseDownload, nil, a.getArtifact),
		endpoint("HEAD", pathArtifact, routeArtifact, actionRead, parseDownload, nil, a.getArtifact),
		endpoint("PUT", pathArtifact, routeArtifact, actionCreate, a.parseUpload, a.checkUpload, a.putArtifact),
		endpoint("DELETE", pathArtifact, routeArtifact, actionDelete, a.parseDeletion, nil, a.deleteArtifact),
		endpoint("POST", pathLogs, routeLogs, actionLog, a.parseAppend, nil, a.postLog),
		endpoint("GET", pathVersions, routeVersions, actionRead, parseListing, nil, a.getVersions),
		endpoint("HEAD", pathVersions, routeVersions, actionRead, parseListing, nil, a.getVersions),
		endpoint("PUT", pathLabel, routeLabel, actionLabel, a.parseMove, nil, a.putLabel),
		endpoint("DELETE", pathLabel, routeLabel, actionLabel, a.parseLabelRequest, nil, a.deleteLabel),
		endpoint("GET", pathLabel, routeLabel, actionRead, a.parseLabelRequest, nil, a.getLabel),
		endpoint("HEAD", pathLabel, routeLabel, actionRead, a.parseLabelRequest, nil, a.getLabel),
		endpoint("GET", pathLabels, routeLabels, actionRead, parseLabelListing, nil, a.getLabels),
		endpoint("HEAD", pathLabels, routeLabels, actionRead, parseLabelListing, nil, a.getLabels),
		endpoint("GET", pathByLabel, routeByLabel, actionRead, a.parseLabelDownload, nil, a.getLabelArtifact),
		endpoint("HEAD", pathByLabel, routeByLabel, actionRead, a.parseLabelDownload, nil, a.getLabelArtifact),
		endpoint("DELETE", pathVersion, routeVersion, actionDelete, a.parseDeletion, nil, a.deleteVersion),
		endpoint("GET", pathSites, routeSites, actionRead, parseSiteListing, nil, a.getSites).filtered(),
		endpoint("HEAD", pathSites, routeSites, actionRead, parseSiteListing, nil, a.getSites).filtered(),
		endpoint("GET", pathSite, routeSite, actionRead, parseSiteRequest, nil, a.getSite),
		endpoint("HEAD", pathSite, routeSite, actionRead, parseSiteRequest, nil, a.getSite),
		endpoint("DELETE", pathSite, routeSite, actionDelete, a.parseSiteDeletion, nil, a.deleteSite).andNeeds(actionAdmin),
	}
	if a.cfg.ReadOnly {
		a.refuseChanges(all)
	}
	all = append(all, page("/openapi.yaml", routeOpenAPI, actionOpen, getOpenAPI)...)
	all = append(all, a.healthRoutes()...)
	if a.cfg.AdminListen == "" {
		all = append(all, page("/metrics", routeMetrics, actionAdmin, a.getMetrics)...)
	}
	return all
}

// adminRoutes are those of the admin address, which are open.
func (a *api) adminRoutes() []route {
	return append(a.healthRoutes(), page("/metrics", routeMetrics, actionOpen, a.getMetrics)...)
}

func (a *api) healthRoutes() []route {
	return append(page("/health", routeHealth, actionOpen, getHealth), page("/ready", routeReady, actionOpen, a.getReady)...)
}

// handler returns what a server calls to serve routes. It panics if a route has no need. A
// request that browsers send for a page of another origin changes nothing.
func (a *api) handler(routes []route, notFound func(*fasthttp.RequestCtx) error) handler {
	serve, admit := a.newRouter(notFound), a.newRouter(notFound)
	for _, r := range routes {
		if !r.need.isOne() {
			panic(r.method + " " + r.path + ": the route does not say which action it needs")
		}
		serve.Handle(r.method, r.path, func(ctx *fasthttp.RequestCtx) {
			a.respond(ctx, &r, r.serve)
		})
		admit.Handle(r.method, r.path, func(ctx *fasthttp.RequestCtx) {
			a.respond(ctx, &r, r.admit)
		})
	}
	return handler{serve.Handler, admit.Handler, a.respondError}
}

// respond writes the response of a half of r, or 100 if that needs the body first.
func (a *api) respond(ctx *fasthttp.RequestCtx, r *route, half func(*fasthttp.RequestCtx) (response, error)) {
	var resp response
	err := a.permit(ctx, r)
	if err == nil {
		resp, err = half(ctx)
	}
	switch {
	case err != nil:
		a.respondError(ctx, err)
	case resp.status == 0:
		ctx.SetStatusCode(fasthttp.StatusContinue)
	default:
		resp.write(ctx)
		a.audit(ctx, nil)
	}
}

// permit returns the error with which a request to r is refused before r sees it.
func (a *api) permit(ctx *fasthttp.RequestCtx, r *route) error {
	rec := &connOf(ctx).rec
	rec.route = r.name
	if a.access != nil && r.need != actionOpen {
		rec.action = auditedAs(r.need)
	}
	if err := checkOrigin(ctx); err != nil {
		return err
	}
	return a.authorize(ctx, r)
}

// changes reports whether requests to r change the store.
func (r *route) changes() bool {
	return r.method != fasthttp.MethodGet && r.method != fasthttp.MethodHead
}

// newRouter returns a router without routes. Paths are matched as they were sent: no
// redirects of case, slashes or dots.
func (a *api) newRouter(notFound func(*fasthttp.RequestCtx) error) *router.Router {
	r := router.New()
	r.RedirectTrailingSlash = false
	r.RedirectFixedPath = false
	r.PanicHandler = a.panicked
	refuse := func(ctx *fasthttp.RequestCtx, err error) {
		if cross := checkOrigin(ctx); cross != nil {
			err = cross
		}
		a.respondError(ctx, err)
	}
	r.NotFound = func(ctx *fasthttp.RequestCtx) { refuse(ctx, notFound(ctx)) }
	r.MethodNotAllowed = func(ctx *fasthttp.RequestCtx) {
		refuse(ctx, newHTTPError(fasthttp.StatusMethodNotAllowed, "method not allowed; see the Allow header"))
	}
	r.GlobalOPTIONS = func(ctx *fasthttp.RequestCtx) { ctx.SetStatusCode(fasthttp.StatusNoContent) }
	return r
}

// noSuchPath is the error of a path that no route matches.
func noSuchPath(*fasthttp.RequestCtx) error {
	return newHTTPError(fasthttp.StatusNotFound, "no such path")
}

// noSuchAPIPath returns noSuchPath, or what is wrong with a path of the API in which an
// id is empty: the router does not match it.
func noSuchAPIPath(ctx *fasthttp.RequestCtx) error {
	path := string(ctx.URI().PathOriginal())
	for _, of := range [...]string{pathArtifact, pathLogs, pathVersions, pathVersion, pathSite, pathLabels, pathLabel, pathByLabel} {
		if name := emptyParameter(of, path); name != "" {
			return badRequest("%s is empty", name)
		}
	}
	return noSuchPath(ctx)
}

// emptyParameter returns the name of the first parameter of a path of a route that is empty in
// path. It returns "" if there is none, or if path would not match if it were not empty.
func emptyParameter(of, path string) (name string) {
	want, got := strings.Split(of, "/"), strings.Split(path, "/")
	if len(got) != len(want) {
		return ""
	}
	for i, part := range want {
		parameter := strings.HasPrefix(part, "{")
		if parameter && got[i] == "" && name == "" {
			name = strings.Trim(part, "{}")
		}
		if !parameter && got[i] != part {
			return ""
		}
	}
	return name
}

// checkOrigin refuses a request that a browser sends for a page of another origin, unless
// its method changes nothing.
func checkOrigin(ctx *fasthttp.RequestCtx) error {
	if ctx.IsGet() || ctx.IsHead() || ctx.IsOptions() || !crossSite(ctx) {
		return nil
	}
	return newHTTPError(fasthttp.StatusForbidden, "cross-origin requests must not change anything")
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
