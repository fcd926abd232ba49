package main

import (
	"time"

	"github.com/valyala/fasthttp"
)

// redirectTime is how long a client has to begin the download at the store.
const redirectTime = 5 * time.Minute

// redirect returns a response that sends the client of a GET to the store itself, if that is
// configured, the store can sign URLs, and the conditions let the build be sent. The client
// sends its Range to the store.
func (a *api) redirect(d *download) (response, bool) {
	b, ok := a.backend.(Redirector)
	if !ok || !a.cfg.DownloadRedirect || d.head {
		return response{}, false
	}
	info, err := statArtifact(a.backend, d.siteID, d.buildID)
	if err != nil || evaluateRead(d.cond, d.modifiedSince, info) != proceed {
		return response{}, false
	}
	url, err := b.ArtifactURL(d.siteID, d.buildID, redirectTime)
	if err != nil {
		a.log.Warn("cannot sign a download URL; serving the build directly",
			"site", d.siteID, "build", d.buildID, "error", err.Error())
		return response{}, false
	}
	return response{
		status:       fasthttp.StatusTemporaryRedirect,
		location:     url,
		cacheControl: noStore, // the URL expires, and is for this client only
	}, true
}
