package main

import (
	"log/slog"
	"time"

	"github.com/valyala/fasthttp"
)

// redirectTime is how long a client has to begin the download at the store.
const redirectTime = 5 * time.Minute

// redirect sends the client of a GET to the store itself, if that is configured, the
// store can sign URLs, and the conditions let the build be sent. It reports whether it
// has answered. The client sends its Range to the store.
func (s *service) redirect(d *download) bool {
	r, ok := s.backend.(Redirector)
	if !ok || !s.cfg.DownloadRedirect || !d.ctx.IsGet() {
		return false
	}
	info, err := s.describe(d.siteID, d.buildID)
	if err != nil || evaluateRead(d.cond, headerDate(d.ctx, fasthttp.HeaderIfModifiedSince), info) != proceed {
		return false
	}
	url, err := r.ArtifactURL(d.siteID, d.buildID, redirectTime)
	if err != nil {
		s.log.LogAttrs(d.ctx, slog.LevelWarn, "no signed URL can be made: the bytes are sent from here",
			slog.String("site", d.siteID), slog.String("build", d.buildID), slog.String("error", err.Error()))
		return false
	}
	h := &d.ctx.Response.Header
	h.Set(fasthttp.HeaderLocation, url)
	noStore(d.ctx) // the URL expires, and is for this client only
	d.ctx.SetStatusCode(fasthttp.StatusTemporaryRedirect)
	return true
}
