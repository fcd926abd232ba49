package main

import (
	"errors"
	"time"

	"github.com/valyala/fasthttp"
)

// upload is a PUT of a build.
type upload struct {
	conn            *conn
	siteID, buildID string
	size            int64 // -1: chunked
	digests         announcedDigests
	cond            Precondition
	createOnly      bool // the client may not replace a build
	repeatable      bool // see isRepeatable
}

// wouldReplace reports whether err is the refusal to replace a build, and not that of a
// condition which the client set.
func (up upload) wouldReplace(err error) bool {
	clients := errors.Is(err, errNoMatch) || errors.Is(err, errModified) || errors.Is(err, errMatch)
	return up.cond.Absent && errors.Is(err, ErrPrecondition) && !clients
}

// parseUpload returns the upload that the header of a request announces.
func (a *api) parseUpload(ctx *fasthttp.RequestCtx) (up upload, err error) {
	up.conn = connOf(ctx)
	if up.siteID, up.buildID, err = artifactIDs(ctx); err != nil {
		return up, err
	}
	if up.cond, err = precondition(ctx); err != nil {
		return up, err
	}
	if err := checkPlainBody(ctx, "build", "curl -T"); err != nil {
		return up, err
	}
	if up.digests, err = a.requestDigests(ctx); err != nil {
		return up, err
	}
	if err := a.requireDigest(up.digests); err != nil {
		return up, err
	}
	clients := up.cond
	// In addition to what the client asks for, which can only narrow it. A client
	// that itself sends If-None-Match: * asks for the same, and gets 412.
	up.cond.Absent = a.cfg.AppendOnly && (up.cond.IfNoneMatch == nil || !up.cond.IfNoneMatch.Any)
	if up.createOnly = up.conn.rec.createOnly; up.createOnly {
		up.cond = onlyCreates(up.cond)
	}
	up.repeatable = up.isRepeatable(clients)
	up.size = int64(ctx.Request.Header.ContentLength())
	switch {
	case len(ctx.Request.Header.Peek(fasthttp.HeaderContentRange)) > 0:
		// RFC 9110, section 14.5: it would be taken for the whole.
		return up, badRequest("Content-Range is not supported: upload the whole build")
	case up.size == 0 || up.size < -1: // none at all is -2
		return up, badRequest("cannot store the artifact: %v", errEmptyBody)
	}
	return up, nil
}

// onlyCreates returns the condition of an upload whose client may only create builds. ETags of
// its own are not compared: the response would say which build is there.
func onlyCreates(clients Precondition) Precondition {
	cond := Precondition{Absent: true}
	if clients.IfMatch != nil {
		cond.IfMatch = &ETagList{Any: true} // never holds together with Absent
	}
	return cond
}

// checkUpload refuses an upload for which there is no place or space, or whose condition
// fails already, before the client sends it. What counts is decided when it is stored. It
// responds if the build was stored by an earlier upload.
func (a *api) checkUpload(up upload) (response, error) {
	place, space, err := a.admitUpload(up)
	if err != nil {
		return a.notAdmitted(up, err)
	}
	place.release() // both are acquired again when the body comes
	space.release()
	if !up.cond.IsZero() {
		info, err := a.statUpload(up)
		err = checkCondition(up.cond, info, err)
		if up.refusedAsExisting(err) {
			return a.checkRepeated(up, info, err)
		}
		if err != nil {
			return response{}, a.uploadError(up, err)
		}
	}
	if err := a.checkLabels(up); err != nil {
		return response{}, a.uploadError(up, err)
	}
	return response{}, nil
}

// checkLabels returns the error of an upload that would replace a build which a label protects.
// It looks at the build only if a label says so, or cannot be read.
func (a *api) checkLabels(up upload) error {
	if _, ok := a.backend.(LabelKeeper); !ok || up.cond.CreateOnly() {
		return nil
	}
	place, err := a.acquireRead(up.conn)
	if err != nil {
		return err
	}
	labels, err := a.listLabels(up.siteID)
	place.release()
	if err == nil {
		err = checkUnlabelled(up.buildID, labels)
	}
	if err == nil {
		return nil
	}
	if _, statErr := a.statUpload(up); errors.Is(statErr, ErrNotFound) { // nothing is replaced
		return nil
	}
	return err
}

// admitUpload acquires the place and the space of an upload. The caller releases them.
func (a *api) admitUpload(up upload) (*grant, *reservation, error) {
	if a.cfg.MaxArtifactSize > 0 && up.size > int64(a.cfg.MaxArtifactSize) {
		return nil, nil, errTooLarge
	}
	place, err := a.acquireUpload(up.conn)
	if err != nil {
		return nil, nil, err
	}
	space, err := a.freeSpace.admit(up.size)
	if err != nil {
		place.release()
		return nil, nil, err
	}
	return place, space, nil
}

// statUpload describes the build that the upload would create or replace.
func (a *api) statUpload(up upload) (ArtifactInfo, error) {
	place, err := a.acquireRead(up.conn)
	if err != nil {
		return ArtifactInfo{}, err
	}
	defer place.release()
	start := time.Now()
	info, err := statArtifact(a.backend, up.siteID, up.buildID)
	a.metrics.call(callStat, start, err)
	return info, err
}

// putArtifact stores the body as a build.
func (a *api) putArtifact(ctx *fasthttp.RequestCtx, up upload) (response, error) {
	place, space, err := a.admitUpload(up)
	if err != nil {
		return a.notAdmitted(up, err)
	}
	defer place.release()
	defer space.release()
	body := openBody(up.conn, ctx.RequestBodyStream(), up.size, int64(a.cfg.MaxArtifactSize), true, space)
	defer body.close()
	a.digestsOf(ctx, body, up.digests, a.cfg.Digest == digestAlways)
	start := time.Now()
	up.cond.Outcome = &up.conn.rec.outcome
	info, err := storeBody(a.backend, up, body)
	a.metrics.call(callStore, start, err)
	switch {
	case err == nil:
		return up.stored(fasthttp.StatusCreated, ArtifactInfo{Size: body.read, ETag: info.ETag, SHA256: body.Sum()}), nil
	case up.refusedAsExisting(err):
		return a.refusedUpload(up, body, err, place)
	}
	return response{}, a.uploadError(up, err)
}

// stored returns the response to an upload whose build is stored as info describes it.
func (up upload) stored(status int, info ArtifactInfo) response {
	r := jsonResponse(status, success{Status: "success", SiteID: up.siteID, BuildID: up.buildID, SizeBytes: &info.Size, SHA256: info.SHA256.String()})
	r.etag, r.sha256 = info.ETag, info.SHA256
	return r
}

// storeBody stores the body in a backend.
func storeBody(b Backend, up upload, body *requestBody) (ArtifactInfo, error) {
	if b, ok := b.(ConditionalStorer); ok {
		return b.StoreArtifactIf(up.siteID, up.buildID, body, up.cond)
	}
	if !up.cond.IsZero() {
		return ArtifactInfo{}, ErrUnsupported
	}
	return ArtifactInfo{}, b.StoreArtifact(up.siteID, up.buildID, body)
}

// uploadError returns the response to an upload that failed with err.
func (a *api) uploadError(up upload, err error) error {
	switch {
	case errors.Is(err, errTooLarge):
		return newHTTPError(fasthttp.StatusRequestEntityTooLarge, "the build is larger than the maximum of %d bytes", int64(a.cfg.MaxArtifactSize))
	case up.wouldReplace(err) && up.createOnly:
		return mayNotReplace()
	case up.wouldReplace(err):
		return newHTTPError(fasthttp.StatusConflict, "the build already exists, and this store is append-only")
	case errors.Is(err, ErrNoSpace):
		a.metrics.noSpace.Inc()
	}
	return &operationError{operation: "store the artifact", siteID: up.siteID, buildID: up.buildID, err: err}
}

// deletion is a DELETE of a build.
type deletion struct {
	conn            *conn
	siteID, buildID string
	cond            Precondition
}

func (a *api) parseDeletion(ctx *fasthttp.RequestCtx) (d deletion, err error) {
	d.conn = connOf(ctx)
	if d.siteID, d.buildID, err = artifactIDs(ctx); err != nil {
		return d, err
	}
	if a.cfg.AppendOnly {
		return d, newHTTPError(fasthttp.StatusForbidden, "this store is append-only: builds cannot be deleted")
	}
	d.cond, err = precondition(ctx)
	return d, err
}

// deleteArtifact removes a build. Its log stays.
func (a *api) deleteArtifact(_ *fasthttp.RequestCtx, d deletion) (response, error) {
	place, err := a.acquireWrite(d.conn, d.siteID, d.buildID)
	if err != nil {
		return response{}, err
	}
	defer place.release()
	start := time.Now()
	err = ErrUnsupported
	d.cond.Outcome = &d.conn.rec.outcome
	if b, ok := a.backend.(ConditionalStorer); ok {
		err = b.DeleteArtifact(d.siteID, d.buildID, d.cond)
	}
	a.metrics.call(callDelete, start, err)
	if err != nil {
		return response{}, &operationError{operation: "delete the artifact", siteID: d.siteID, buildID: d.buildID, err: err}
	}
	return response{status: fasthttp.StatusNoContent}, nil
}
