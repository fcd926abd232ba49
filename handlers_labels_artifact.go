package main

import (
	"errors"

	"github.com/valyala/fasthttp"
)

// labelDownload is a GET or HEAD of the build that a label names.
type labelDownload struct {
	download // without a build
	keeper   LabelKeeper
	label    string
}

func (a *api) parseLabelDownload(ctx *fasthttp.RequestCtx) (d labelDownload, err error) {
	siteID, label, err := labelOfPath(ctx)
	if err != nil {
		return d, err
	}
	d.label = label
	if d.download, err = parseDownloadOf(ctx, siteID, ""); err != nil {
		return d, err
	}
	d.keeper, err = a.labelKeeper(siteID)
	return d, err
}

// getLabelArtifact sends the build that a label names. If that is gone when it is read, the label
// may have moved: it is read again, once.
func (a *api) getLabelArtifact(_ *fasthttp.RequestCtx, d labelDownload) (r response, err error) {
	for range 2 {
		var found bool
		if r, found, err = a.sendLabelled(d); !found || !errors.Is(err, ErrNotFound) {
			break
		}
	}
	return r, err
}

// sendLabelled reads the label, and sends the build that it names as getArtifact does. Both take
// one place among the reads. found: the label was read.
func (a *api) sendLabelled(d labelDownload) (r response, found bool, err error) {
	place, err := a.acquireRead(d.conn)
	if err != nil {
		return response{}, false, err
	}
	defer place.release()
	l, err := a.readLabel(d.keeper, d.siteID, d.label)
	if err != nil {
		return response{}, false, err
	}
	d.buildID, d.conn.rec.build = l.BuildID, l.BuildID
	if d.isUnmodified(l) {
		r = response{status: fasthttp.StatusNotModified, etag: l.BuildETag}
	} else if r, err = a.sendArtifact(d.download, place); err != nil {
		return response{}, true, err
	}
	if r.status != fasthttp.StatusTemporaryRedirect { // whose body is not the build
		// Whatever builds may be cached for, the label can move at any time.
		r.describes, r.cacheControl = "/sites/"+d.siteID+"/artifacts/"+d.buildID, "no-cache"
	}
	return r, true, nil
}

// isUnmodified reports whether the label alone shows that the client has a copy of the build, so
// that the build need not be looked at. Other conditions than If-None-Match need the build.
func (d *labelDownload) isUnmodified(l Label) bool {
	m := d.cond.IfNoneMatch
	return m != nil && d.cond.IfMatch == nil && d.cond.IfUnmodifiedSince.IsZero() && m.matchWeak(l.BuildETag)
}
