package main

import (
	"errors"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"
)

// upload is a PUT that was found to be worth receiving.
type upload struct {
	siteID, buildID string
	size            int64 // -1: chunked
	cond            Precondition
}

// wouldReplace reports whether err is the refusal of an append-only service, and
// not that of a condition which the client set.
func (up upload) wouldReplace(err error) bool {
	clients := errors.Is(err, errNoMatch) || errors.Is(err, errModified) || errors.Is(err, errMatch)
	return up.cond.Absent && errors.Is(err, ErrPrecondition) && !clients
}

// putArtifact stores the body as a build.
func (s *service) putArtifact(ctx *fasthttp.RequestCtx) {
	up, ok := s.admitUpload(ctx)
	if !ok {
		return
	}
	c := ctx.Conn().(*conn)
	token := c.hold()
	place, err := s.uploads.acquire(budgetRequest{client: c.client(), n: 1, revoke: func() { c.revokeBody(token) }})
	if err != nil {
		s.metrics.tooMany.Inc()
		refuse(ctx, fasthttp.StatusServiceUnavailable, "too many uploads at once")
		return
	}
	defer place.release()
	if expecting(ctx) {
		s.admitCondition(ctx, up)
		return
	}
	room, err := s.reserve.admit(up.size)
	if err != nil {
		s.refuseSpace(ctx, up, err)
		return
	}
	defer room.release()
	body := openBody(c, ctx.RequestBodyStream(), up.size, int64(s.cfg.MaxArtifactSize), true)
	defer body.close()
	body.took, body.placed = room.took, room.placed
	start := time.Now()
	info, err := s.store(up, body)
	s.metrics.call(callStore, start, err)
	switch {
	case err == nil:
	case errors.Is(err, errTooLarge):
		s.refuseTooLarge(ctx)
		return
	case up.wouldReplace(err):
		refuseReplace(ctx)
		return
	default:
		s.refuseSpace(ctx, up, err)
		return
	}
	if info.ETag != "" {
		ctx.Response.Header.Set(fasthttp.HeaderETag, info.ETag)
	}
	answer(ctx, fasthttp.StatusCreated, success{Status: "success", SiteID: up.siteID, BuildID: up.buildID, SizeBytes: &body.read})
}

// store hands the body to the backend.
func (s *service) store(up upload, body *requestBody) (ArtifactInfo, error) {
	if b, ok := s.backend.(ConditionalStorer); ok {
		return b.StoreArtifactIf(up.siteID, up.buildID, body, up.cond)
	}
	if !up.cond.IsZero() {
		return ArtifactInfo{}, ErrUnsupported
	}
	return ArtifactInfo{}, s.backend.StoreArtifact(up.siteID, up.buildID, body)
}

// admitUpload looks at the header of a PUT. What it refuses it answers.
func (s *service) admitUpload(ctx *fasthttp.RequestCtx) (up upload, ok bool) {
	if up.siteID, up.buildID, ok = artifactIDs(ctx); !ok {
		return up, false
	}
	if up.cond, ok = precondition(ctx); !ok {
		return up, false
	}
	if !plainBody(ctx, "file", "curl -T") {
		return up, false
	}
	// In addition to what the client asks for, which can only narrow it. A client
	// that itself sends If-None-Match: * asks for the same, and is answered 412.
	up.cond.Absent = s.cfg.AppendOnly && (up.cond.IfNoneMatch == nil || !up.cond.IfNoneMatch.Any)
	up.size = int64(ctx.Request.Header.ContentLength())
	switch {
	case len(ctx.Request.Header.Peek(fasthttp.HeaderContentRange)) > 0:
		// RFC 9110, section 14.5: it would be taken for the whole.
		refuse(ctx, fasthttp.StatusBadRequest, "Content-Range: a build is uploaded whole")
		return up, false
	case up.size == 0 || up.size < -1: // none at all is -2
		refuse(ctx, fasthttp.StatusBadRequest, "cannot store the artifact: %v", errEmptyBody)
		return up, false
	case s.cfg.MaxArtifactSize > 0 && up.size > int64(s.cfg.MaxArtifactSize):
		s.refuseTooLarge(ctx)
		return up, false
	}
	return up, true
}

// admitCondition refuses an upload whose condition fails already, before the
// client sends it. The decision that counts is made when it is stored.
func (s *service) admitCondition(ctx *fasthttp.RequestCtx, up upload) {
	room, err := s.reserve.admit(up.size)
	if err != nil {
		s.refuseSpace(ctx, up, err)
		return
	}
	room.release() // it is claimed when the body comes
	if up.cond.IsZero() {
		return
	}
	place, ok := s.toRead(ctx)
	if !ok {
		return
	}
	defer place.release()
	start := time.Now()
	info, err := s.describe(up.siteID, up.buildID)
	s.metrics.call(callStat, start, err)
	current := &info
	if errors.Is(err, ErrNotFound) {
		current, err = nil, nil
	}
	if err == nil {
		err = up.cond.Check(current)
	}
	switch {
	case err == nil:
	case up.wouldReplace(err):
		refuseReplace(ctx)
	default:
		s.fail(ctx, "store the artifact", up.siteID, up.buildID, err)
	}
}

// refuseSpace answers an upload that failed, most likely for want of space.
func (s *service) refuseSpace(ctx *fasthttp.RequestCtx, up upload, err error) {
	if errors.Is(err, ErrNoSpace) {
		s.metrics.noSpace.Inc()
	}
	s.fail(ctx, "store the artifact", up.siteID, up.buildID, err)
}

func (s *service) refuseTooLarge(ctx *fasthttp.RequestCtx) {
	refuse(ctx, fasthttp.StatusRequestEntityTooLarge, "the artifact is larger than the maximum of %s bytes",
		strconv.FormatInt(int64(s.cfg.MaxArtifactSize), 10))
}

func refuseReplace(ctx *fasthttp.RequestCtx) {
	refuse(ctx, fasthttp.StatusConflict, "the build exists, and this store is append-only")
}

// deleteArtifact removes a build. Its log stays.
func (s *service) deleteArtifact(ctx *fasthttp.RequestCtx) {
	siteID, buildID, ok := artifactIDs(ctx)
	if !ok {
		return
	}
	if s.cfg.AppendOnly {
		refuse(ctx, fasthttp.StatusForbidden, "this store is append-only: no build is deleted")
		return
	}
	cond, ok := precondition(ctx)
	if !ok || expecting(ctx) {
		return
	}
	place, ok := s.toWrite(ctx, siteID, buildID)
	if !ok {
		return
	}
	defer place.release()
	err := ErrUnsupported
	start := time.Now()
	if b, ok := s.backend.(ConditionalStorer); ok {
		err = b.DeleteArtifact(siteID, buildID, cond)
	}
	s.metrics.call(callDelete, start, err)
	if err != nil {
		s.fail(ctx, "delete the artifact", siteID, buildID, err)
		return
	}
	ctx.SetStatusCode(fasthttp.StatusNoContent)
}
