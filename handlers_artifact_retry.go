package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/valyala/fasthttp"
)

// An upload that may only create its build can be repeated, if it announces a digest: the
// response is 200 if the build has that digest, as if the upload had stored it. This departs
// from RFC 9110 on purpose: section 13.1.2 has 412 for If-None-Match. Only for If-Match,
// section 13.1.1 allows a success if the change that was asked for appears to have been made.

// isRepeatable reports whether an upload that is refused because its build exists is a
// success if that has the same bytes. clients is the condition that the client set.
func (up upload) isRepeatable(clients Precondition) bool {
	lists := clients.IfNoneMatch != nil && !clients.IfNoneMatch.Any
	return up.digests.any() && up.cond.CreateOnly() && !lists && clients.IfUnmodifiedSince.IsZero()
}

// refusedAsExisting reports whether a repeatable upload failed with err because its build
// exists.
func (up upload) refusedAsExisting(err error) bool {
	return up.repeatable && errors.Is(err, ErrPrecondition)
}

// fits reports whether the upload may have the size of the build that info describes.
func (up upload) fits(info ArtifactInfo) bool { return up.size < 0 || up.size == info.Size }

// sum returns the SHA-256 that the client announced, or zero.
func (up upload) sum() (d Digest) {
	if up.digests.SHA256 != nil {
		d = *up.digests.SHA256
	}
	return d
}

// needsBody reports whether the upload cannot be compared with stored before its body. A
// client that announced only a SHA-512 must send it, because digests of builds are SHA-256.
// The size does not count then: this would show it to a client that may only create. A digest
// that is not known is computed only if the size fits, which a chunked upload has at its end:
// otherwise a header alone would make the service read a build of any size.
func (up upload) needsBody(stored ArtifactInfo) bool {
	return !up.sum().known() || up.size < 0 && !stored.SHA256.known()
}

// checkRepeated is repeatedUpload before the body, if it can be.
func (a *api) checkRepeated(up upload, stored ArtifactInfo, refusal error) (response, error) {
	if up.needsBody(stored) {
		return response{}, nil
	}
	return a.repeatedUpload(up, stored, up.sum(), refusal)
}

// notAdmitted responds to an upload for which admitUpload failed with err. One that was stored
// before needs no space. Its digest is compared only if that of the build is known.
func (a *api) notAdmitted(up upload, err error) (response, error) {
	forSize := errors.Is(err, errTooLarge) || errors.Is(err, ErrNoSpace)
	if forSize && up.repeatable && up.sum().known() {
		if stored, statErr := a.statUpload(up); statErr == nil && stored.SHA256.known() {
			return a.repeatedUpload(up, stored, up.sum(), err)
		}
	}
	return response{}, a.uploadError(up, err)
}

// refusedUpload responds to a repeatable upload that the store refused with refusal, because
// the build exists. It releases place, that of the upload, before it waits for a digest to be
// computed.
func (a *api) refusedUpload(up upload, body *requestBody, refusal error, place *grant) (response, error) {
	body.space.release() // bytes that are dropped take none
	body.space = nil
	stored, err := a.statUpload(up)
	if errors.Is(err, ErrNotFound) { // deleted in the meantime
		return response{}, a.uploadError(up, refusal)
	}
	if err != nil {
		return response{}, a.uploadError(up, err)
	}
	sum := up.sum()
	if body.ended || up.needsBody(stored) {
		if _, err := io.Copy(io.Discard, body); err != nil {
			return response{}, a.uploadError(up, err)
		}
		up.size, sum = body.read, body.Sum()
	}
	place.release()
	return a.repeatedUpload(up, stored, sum, refusal)
}

// repeatedUpload responds to an upload of bytes with the digest sum: with success if stored,
// the build that exists, has it too, else with refusal.
func (a *api) repeatedUpload(up upload, stored ArtifactInfo, sum Digest, refusal error) (response, error) {
	if !sum.known() || !up.fits(stored) {
		return response{}, a.uploadError(up, refusal)
	}
	if !stored.SHA256.known() {
		if a.keepsOther(up, sum) {
			return response{}, a.uploadError(up, refusal)
		}
		var err error
		stored.SHA256, err = a.storedDigest(up, stored)
		if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrPrecondition) {
			return response{}, &operationError{operation: "compare with the existing build", siteID: up.siteID, buildID: up.buildID, err: err}
		}
	}
	if stored.SHA256 != sum { // also if it was replaced or deleted in the meantime
		if errors.Is(refusal, errMatch) {
			return response{}, newHTTPError(fasthttp.StatusPreconditionFailed, "cannot store the artifact: the build exists with other bytes")
		}
		return response{}, a.uploadError(up, refusal)
	}
	if b, ok := a.backend.(ArtifactSyncer); ok {
		if err := b.SyncArtifact(up.siteID, up.buildID); err != nil {
			return response{}, a.uploadError(up, err)
		}
	}
	up.conn.rec.outcome = outcomeSame
	return up.stored(fasthttp.StatusOK, stored), nil
}

// keepsOther reports whether the store keeps another digest than sum under the id of the build,
// although not of the artifact that is there now. Then something else than the service changed
// the artifact: its digest is not computed, so that verify still finds the change.
func (a *api) keepsOther(up upload, sum Digest) bool {
	keeper, ok := a.backend.(DigestKeeper)
	if !ok {
		return false
	}
	kept, err := keeper.KeptDigest(up.siteID, up.buildID)
	return err == nil && !kept.Superseded && kept.SHA256 != sum
}

// storedDigest returns the digest of a stored build, of which none is kept. Requests for one
// build share one computation, and those for one site take turns (acquireDigest). It may take
// longer than a request waits: then the request is refused, and finds the digest when it is
// repeated.
func (a *api) storedDigest(up upload, stored ArtifactInfo) (Digest, error) {
	patience := time.NewTimer(a.digests.wait)
	defer patience.Stop()
	client := up.conn.client()
	computed := a.computing.DoChan(up.siteID+"/"+up.buildID+" "+stored.ETag, func() (any, error) {
		return a.computeDigest(client, up.siteID, up.buildID, stored)
	})
	select {
	case r := <-computed:
		sum, _ := r.Val.(Digest)
		return sum, r.Err
	case <-patience.C:
		up.conn.rec.hungUp = up.conn.hasHungUp()
		return Digest{}, overloaded(refusedBudget, "the digest of the existing build is still being computed: try again")
	}
}

// computeDigest computes the digest of the build that stored describes from its bytes, and
// keeps it. It ends at the shutdown, but not if the clients that wait for it leave: they will
// ask again.
func (a *api) computeDigest(client, siteID, buildID string, stored ArtifactInfo) (sum Digest, err error) {
	defer func() {
		// No handler recovers panics of this goroutine: one would end the process.
		if cause := recover(); cause != nil {
			err = fmt.Errorf("computing a digest panicked: %v\n%s", cause, debug.Stack())
		}
	}()
	place, err := a.acquireDigest(client, siteID, stored.Size)
	if err != nil {
		return Digest{}, err
	}
	defer place.release()
	start := time.Now()
	body, err := openStored(a.backend, siteID, buildID, stored.ETag)
	if err != nil {
		return Digest{}, err
	}
	defer body.Close()
	hash := sha256.New()
	n, err := io.CopyBuffer(hash, &untilShutdown{body, a.stopping}, make([]byte, digestBuffer))
	if err != nil {
		return Digest{}, err
	}
	info := body.Info()
	if n != info.Size {
		return Digest{}, fmt.Errorf("%d bytes were read of a build of %d", n, info.Size)
	}
	sum = Digest(hash.Sum(nil))
	if keeper, ok := a.backend.(DigestKeeper); ok {
		err = keeper.KeepDigest(siteID, buildID, info, sum)
	}
	if err == nil {
		a.log.Info("digest computed", "site", siteID, "build", buildID, "bytes", n, "duration_ms", millis(time.Since(start)))
	} else if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrPrecondition) {
		a.floods.add("digest", slog.LevelWarn, "cannot keep a digest", "site", siteID, "build", buildID, "error", err.Error())
	}
	return sum, nil // the clients are right, whether or not it is kept
}

// digestBuffer is the size in bytes of the reads of a build whose digest is computed.
const digestBuffer = 256 << 10

// openStored opens the build that has the ETag. It fails with ErrPrecondition if the build
// was replaced.
func openStored(b Backend, siteID, buildID, etag string) (ArtifactReader, error) {
	if b, ok := b.(ArtifactRanger); ok {
		return b.FetchArtifactRange(siteID, buildID, etag, 0, -1)
	}
	r, err := b.FetchArtifact(siteID, buildID)
	if err != nil {
		return nil, err
	}
	body, ok := r.(ArtifactReader)
	if !ok {
		err = fmt.Errorf("%w: descriptions of builds", ErrUnsupported)
	} else if body.Info().ETag != etag {
		err = errNoMatch
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return body, nil
}

// untilShutdown is a reader that fails when the service shuts down.
type untilShutdown struct {
	r        io.Reader
	stopping func() bool
}

func (u *untilShutdown) Read(p []byte) (int, error) {
	if u.stopping() {
		return 0, errShutDown
	}
	return u.r.Read(p)
}
