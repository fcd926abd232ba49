package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The results of a build.
const (
	resultOK      = "ok"      // the bytes have the digest that the store keeps
	resultCorrupt = "corrupt" // they do not, or they cannot be read
	resultChanged = "changed" // the digest is that of another artifact with other bytes
	resultUnknown = "unknown" // no digest is kept
	resultFilled  = "filled"  // no digest was kept; now the one of the bytes is
	resultSkipped = "skipped" // the store did not return it or could not keep its digest, or it was replaced again and again

	resultDamagedDigest = "damaged_digest" // something is kept as its digest, but cannot be read
)

// The results that are not of builds.
const (
	resultDamagedLog = "damaged_log"
	resultForeign    = "foreign"
)

// checkedBuild is the result of a build. Without a Result there is no such artifact.
type checkedBuild struct {
	verifyFinding
	read    int64 // bytes
	rebound bool  // the digest is now bound to the artifact
	failure error // the store failed to return the build
	stopped error // the build was not verified to the end; nothing is known
}

// errReplaced: the build was replaced or deleted while it was read.
var errReplaced = errors.New("replaced while it was read")

// unreadableError is an error of reading a build that could be opened.
type unreadableError struct{ error }

func (e unreadableError) Unwrap() error { return e.error }

// check verifies a build. If it is replaced meanwhile, or the store fails, check tries again.
func (v *verifier) check(ctx context.Context, site string, b *Version, turn *readTurn) (r checkedBuild) {
	defer turn.pass() // also if it is not read
	var err error
	read := int64(0) // in all attempts
	for attempt := 0; ; attempt++ {
		r, err = v.checkOnce(ctx, site, b.BuildID, turn)
		read += r.read
		r.read = read
		switch {
		case ctx.Err() != nil:
			return checkedBuild{stopped: ctx.Err()}
		case err == nil, errors.Is(err, errVerifyStops):
			r.stopped = err
			return r
		case errors.Is(err, errChecksum):
			r.Result, r.Detail = resultCorrupt, "cannot be read: "+oneLine(err)
			return r
		case errors.Is(err, ErrNotFound): // deleted, or there is only a log
			return checkedBuild{read: r.read}
		case attempt == len(v.pauses), errors.As(err, new(notKeptError)):
			return v.giveUp(r.read, attempt+1, err)
		case !errors.Is(err, errReplaced):
			if !v.wait(ctx, v.pauses[attempt]) {
				return checkedBuild{stopped: ctx.Err()}
			}
		}
	}
}

// giveUp judges the error of the last of several attempts. If the build is what cannot be
// read, it is corrupt; if it is the store, the build is skipped.
func (v *verifier) giveUp(read int64, attempts int, err error) checkedBuild {
	r := checkedBuild{read: read, verifyFinding: verifyFinding{Result: resultSkipped, Detail: oneLine(err)}}
	if errors.Is(err, errReplaced) {
		r.Detail = fmt.Sprintf("replaced %d times while it was read", attempts)
		return r
	}
	r.failure = err
	opened := errors.As(err, new(unreadableError))
	if errors.Is(err, ErrBusy) || errors.Is(err, ErrDenied) || !opened && errors.Is(err, ErrUnavailable) {
		return r
	}
	if p, ok := v.store.(Prober); ok {
		if _, down := p.Probe(); down != nil {
			r.failure = down
			return r
		}
	}
	r.Result, r.Detail, r.failure = resultCorrupt, "cannot be read: "+oneLine(err), nil
	return r
}

// checkOnce verifies a build. It fails with errReplaced if the result would be that of an
// artifact that was replaced, and with an error of the store.
func (v *verifier) checkOnce(ctx context.Context, site, build string, turn *readTurn) (r checkedBuild, err error) {
	if _, cheap := v.store.(ArtifactRanger); cheap && !v.options.Fill {
		// Do not open what is not read: an object store charges for it.
		info, err := v.store.StatArtifact(site, build)
		if err != nil {
			return r, err
		}
		if _, unread, err := v.kept(site, build, info); err != nil || unread.Result != "" {
			return checkedBuild{verifyFinding: unread}, err
		}
	}
	reader, err := v.store.FetchArtifact(site, build)
	if err != nil {
		return r, err
	}
	defer reader.Close()
	artifact, ok := reader.(ArtifactReader)
	if !ok {
		return r, fmt.Errorf("%w: the store does not describe its builds", ErrUnsupported)
	}
	info := artifact.Info()
	kept, unread, err := v.kept(site, build, info)
	if err != nil || unread.Result != "" {
		return checkedBuild{verifyFinding: unread}, err
	}
	sum, n, err := v.read(ctx, reader, info.Size, turn)
	r.read = n
	if err != nil {
		if err := v.unchanged(site, build, info); err != nil {
			return r, err
		}
		return r, unreadableError{err}
	}
	if n != info.Size {
		r.Result, r.Detail = resultCorrupt, fmt.Sprintf("has %d bytes instead of %d", n, info.Size)
		return r, v.unchanged(site, build, info)
	}
	err = v.judge(ctx, &r, site, build, info, kept, sum)
	return r, err
}

// kept returns the digest that the store keeps of the build: the one of this artifact, or else
// the one that is bound to another. If the build need not be read, unread is its result. A digest
// that cannot be read is not replaced, also not by --fill: the build may be damaged too, and then
// its digest would be that of the damaged bytes.
func (v *verifier) kept(site, build string, info ArtifactInfo) (kept KeptDigest, unread verifyFinding, err error) {
	if info.SHA256.known() {
		return KeptDigest{SHA256: info.SHA256}, unread, nil
	}
	kept, err = v.store.KeptDigest(site, build)
	switch {
	case errors.Is(err, ErrDamaged):
		return KeptDigest{}, verifyFinding{Result: resultDamagedDigest, Detail: damagedText(err)}, nil
	case err != nil && !errors.Is(err, ErrNotFound):
		return KeptDigest{}, unread, err
	case err == nil && !kept.Superseded:
		return kept, unread, nil
	}
	if !v.options.Fill {
		unread.Result = resultUnknown
	}
	return KeptDigest{}, unread, nil
}

// damagedText returns the text of an ErrDamaged of something that is not a log.
func damagedText(err error) string {
	return strings.ReplaceAll(oneLine(err), ErrDamaged.Error()+": ", "")
}

// judge sets the result of an artifact that has the digest sum. It fails with errReplaced if
// the artifact is no longer the build, or got another digest meanwhile.
func (v *verifier) judge(ctx context.Context, r *checkedBuild, site, build string, info ArtifactInfo, kept KeptDigest, sum Digest) error {
	// A lookup that failed, or an older one that is remembered, may hide the digest in info.
	bound := info.SHA256.known() || kept.isOf(info)
	switch {
	case bound && sum == kept.SHA256:
		r.Result = resultOK
		return nil
	case bound:
		r.Result, r.Expected, r.Got = resultCorrupt, kept.SHA256.String(), sum.String()
		return v.unchanged(site, build, info)
	case !kept.SHA256.known():
		r.Result = resultFilled
		return v.keep(ctx, site, build, info, sum)
	case sum == kept.SHA256: // the same bytes with another time, as after a restore
		r.Result = resultOK
		if v.readOnly {
			return nil
		}
		r.rebound = true
		return v.keep(ctx, site, build, info, sum)
	}
	r.Result, r.Expected, r.Got = resultChanged, kept.SHA256.String(), sum.String()
	return v.confirmChange(ctx, site, build, info, kept)
}

// notKeptError is an error of the store when a digest was to be kept of a build that was read.
type notKeptError struct{ error }

func (e notKeptError) Error() string { return "cannot keep the digest: " + e.error.Error() }
func (e notKeptError) Unwrap() error { return e.error }

// keep keeps a digest. If the build is locked or the store is busy, keep tries again, and then
// fails with a notKeptError. If the store cannot do it, the run ends: it would fail again for
// each build.
func (v *verifier) keep(ctx context.Context, site, build string, info ArtifactInfo, sum Digest) (err error) {
	for attempt := 0; ; attempt++ {
		err = v.store.KeepDigest(site, build, info, sum)
		passing := errors.Is(err, ErrUnavailable) || errors.Is(err, ErrBusy)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrPrecondition), errors.Is(err, ErrNotFound):
			return errReplaced
		case !passing:
			return fmt.Errorf("%w: cannot keep the digest of build %s of site %s: %w", errVerifyStops, build, site, err)
		case attempt == len(v.pauses), !v.wait(ctx, v.pauses[attempt]):
			return notKeptError{err}
		}
	}
}

// unchanged fails with errReplaced unless info still describes the build.
func (v *verifier) unchanged(site, build string, info ArtifactInfo) error {
	now, err := v.store.StatArtifact(site, build)
	switch {
	case errors.Is(err, ErrNotFound):
		return errReplaced
	case err == nil && now.ETag != info.ETag,
		err == nil && now.SHA256 != info.SHA256 && now.SHA256.known() && info.SHA256.known():
		return errReplaced
	}
	return err
}

// young is the age of an artifact up to which an upload may not have kept its digest yet. The
// clocks of the store and of this host may differ.
const young = 10 * time.Minute

// confirmChange fails with errReplaced if an upload explains why the digest is not the one of
// the artifact: an upload stores first the artifact, then the digest.
func (v *verifier) confirmChange(ctx context.Context, site, build string, info ArtifactInfo, kept KeptDigest) error {
	if time.Since(info.ModTime) < young && len(v.pauses) > 0 {
		<-v.readers // others read meanwhile: after a restore, many builds may wait
		goesOn := v.wait(ctx, v.pauses[0])
		v.readers <- struct{}{}
		if !goesOn {
			return ctx.Err()
		}
	}
	now, err := v.store.KeptDigest(site, build)
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrDamaged), err == nil && !sameKept(now, kept):
		return errReplaced
	case err != nil:
		return err
	}
	return v.unchanged(site, build, info)
}

func sameKept(a, b KeptDigest) bool {
	return a.SHA256 == b.SHA256 && a.Size == b.Size && a.ETag == b.ETag && a.ModTime.Equal(b.ModTime)
}

// oneByOne reports whether builds of a size are read one at a time.
func (v *verifier) oneByOne(size int64) bool { return v.limiter != nil && size > verifyBuffer }

var verifyBuffers = sync.Pool{New: func() any { b := make([]byte, verifyBuffer); return &b }}

// read returns the digest of all bytes of r, and how many there are: probably size. It reads no
// faster than the limiter allows, and then large builds one at a time and in their turn: if
// several shared the rate, a run that is stopped would lose more work.
func (v *verifier) read(ctx context.Context, r io.Reader, size int64, turn *readTurn) (sum Digest, n int64, err error) {
	if err := turn.wait(ctx); err != nil {
		return sum, 0, err
	}
	defer turn.pass() // after large is free: a build that is read again goes before the next turn
	if v.oneByOne(size) {
		select {
		case v.large <- struct{}{}:
			defer func() { <-v.large }()
		case <-ctx.Done():
			return sum, 0, ctx.Err()
		}
	}
	buf := verifyBuffers.Get().(*[]byte)
	defer verifyBuffers.Put(buf)
	hash := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return sum, n, err
		}
		got, err := r.Read(*buf)
		hash.Write((*buf)[:got])
		n += int64(got)
		v.reading.Add(int64(got))
		if v.limiter != nil && got > 0 {
			if err := v.limiter.WaitN(ctx, got); err != nil {
				return sum, n, err
			}
		}
		switch {
		case err == io.EOF:
			return Digest(hash.Sum(nil)), n, nil
		case errors.As(err, new(syscall.Errno)): // of a file
			return sum, n, diskError("read", fmt.Sprintf("byte %d", n), err)
		case err != nil:
			return sum, n, err
		}
	}
}
