package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"
)

// errOtherBytes: the target has other bytes under the id of the build.
var errOtherBytes = errors.New("the target has other bytes under this id")

// otherBytes returns the detail of a conflict.
func otherBytes(from, to int64) string {
	if from != to {
		return fmt.Sprintf("%v: %d bytes instead of %d", errOtherBytes, to, from)
	}
	return errOtherBytes.Error()
}

// artifact copies the artifact of a build, or finds that the target has it, and reports which.
// Its errors end the run.
func (s *copySite) artifact(ctx context.Context, w *buildWork) error {
	e := copyEvent{Type: copyBuildType, Site: s.id, Build: w.from.id, Bytes: w.from.size}
	var pair string // the artifacts that the result is about
	var err error
	for attempt := 0; ; attempt++ {
		pair, err = s.tryArtifact(ctx, w, attempt == 0, &e)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !s.tryAgain(err) || attempt == len(s.pauses) || !pause(ctx, s.pauses[attempt]) {
			break
		}
	}
	var failure error
	switch {
	case err == nil:
	case errors.Is(err, ErrNotFound): // in the source
		e.Result = copyGone
	case errors.Is(err, errDigest), errors.Is(err, errChecksum):
		e.Result, e.Detail = copyCorrupt, oneLine(err)
	case errors.Is(err, errOtherBytes), errors.Is(err, errLabelled):
		e.Result, e.Detail = copyConflict, oneLine(err)
	default:
		e.Result, e.Detail, failure = copyFailed, oneLine(err), err
	}
	stop := s.countFailure(failure)
	s.mu.Lock()
	if delete(s.bad, w.from.id); err == nil {
		s.same[w.from.id] = pair
	} else {
		s.bad[w.from.id] = w.from.artifact() + " " + w.to.artifact()
	}
	s.mu.Unlock()
	s.passed.Add(w.from.size)
	if err := s.report.add(e); err != nil {
		return err
	}
	return stop
}

// tryAgain reports whether a build may be copied after err.
func (s *copySite) tryAgain(err error) bool {
	for _, lasting := range []error{nil, errDigest, errChecksum, errOtherBytes, errLabelled, ErrTooLarge, ErrOccupied, ErrNotFound} {
		if errors.Is(err, lasting) {
			return false
		}
	}
	return !isLasting(err)
}

// tryArtifact copies the artifact of a build once, and sets the result of e. It returns the tags
// of the artifacts that are the same now. first: the list of the target is right, as far as this
// run knows.
func (s *copySite) tryArtifact(ctx context.Context, w *buildWork, first bool, e *copyEvent) (pair string, err error) {
	r, err := s.from.FetchArtifact(s.id, w.from.id)
	if err != nil {
		return "", err
	}
	defer r.Close()
	artifact, ok := r.(ArtifactReader)
	if !ok {
		return "", fmt.Errorf("%w: the source does not describe its builds", ErrUnsupported)
	}
	from := artifact.Info()
	e.Bytes = from.Size
	cond := Precondition{Absent: true}
	to, err := ArtifactInfo{}, ErrNotFound
	if !first || w.to.artifact() != "" {
		to, err = s.to.StatArtifact(s.id, w.from.id)
	}
	switch {
	case err == nil:
		sum, err := s.sameBytes(ctx, w.from.id, r, from, to)
		switch {
		case err == nil:
			e.Result, e.SHA256 = copySame, sum.String()
			return from.ETag + " " + to.ETag, nil
		case !errors.Is(err, errOtherBytes) || !s.options.Replace:
			return "", err
		}
		if r, from, err = s.fetchAgain(w.from.id, r); err != nil {
			return "", err
		}
		defer r.Close()
		cond = Precondition{IfMatch: &ETagList{Tags: []string{to.ETag}}}
	case !errors.Is(err, ErrNotFound):
		return "", err
	}
	body := s.newBody(ctx, r, from)
	stored, err := s.to.StoreArtifactIf(s.id, w.from.id, body, cond)
	body.done()
	switch {
	case body.err != nil:
		return "", body.err
	case err != nil:
		return "", notSource(err)
	}
	e.Result, e.SHA256, e.Bytes = copyCopied, body.Sum().String(), from.Size
	if cond.IfMatch != nil {
		e.Result = copyReplaced
	}
	return from.ETag + " " + stored.ETag, nil
}

// notSource returns err, of the target, without an ErrNotFound: that would be of the source.
func notSource(err error) error {
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: %v", ErrUnavailable, err)
	}
	return err
}

// fetchAgain opens a build from its first byte, after r, which it closes.
func (s *copySite) fetchAgain(build string, r io.ReadCloser) (io.ReadCloser, ArtifactInfo, error) {
	r.Close()
	r, err := s.from.FetchArtifact(s.id, build)
	if err != nil {
		return nil, ArtifactInfo{}, err
	}
	return r, r.(ArtifactReader).Info(), nil
}

// sameBytes fails with errOtherBytes unless both artifacts have the same bytes, and returns their
// digest. r is open on the first. A side whose digest is not known is read; the target gets the
// digest then.
func (s *copySite) sameBytes(ctx context.Context, build string, r io.Reader, from, to ArtifactInfo) (sum Digest, err error) {
	if from.Size != to.Size {
		return sum, fmt.Errorf("%w: %d bytes instead of %d", errOtherBytes, to.Size, from.Size)
	}
	if sum = from.SHA256; !sum.known() {
		if sum, err = s.readAll(ctx, r, from); err != nil {
			return sum, err
		}
	}
	other := to.SHA256
	if !other.known() {
		t, err := s.to.FetchArtifact(s.id, build)
		if err != nil {
			return sum, notSource(err)
		}
		defer t.Close()
		artifact, ok := t.(ArtifactReader)
		if !ok || artifact.Info().ETag != to.ETag {
			return sum, fmt.Errorf("%w: the target replaced the build meanwhile", ErrUnavailable)
		}
		if other, err = s.readAll(ctx, t, to); err != nil {
			return sum, fmt.Errorf("cannot read the target: %w", notSource(err))
		}
	}
	if sum != other {
		return sum, errOtherBytes
	}
	if !to.SHA256.known() {
		err = s.to.KeepDigest(s.id, build, to, sum)
		if errors.Is(err, ErrPrecondition) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrUnsupported) {
			err = nil // the bytes are the same all the same; verify finds the rest
		}
	}
	return sum, err
}

// readAll reads an artifact and returns its digest.
func (s *copySite) readAll(ctx context.Context, r io.Reader, of ArtifactInfo) (Digest, error) {
	body := s.newBody(ctx, r, of)
	defer body.done()
	_, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{body}, make([]byte, copyBuffer))
	return body.Sum(), err
}

// copyBody is an artifact of the source on its way to the target. It fails unless all bytes arrive
// and have the digest that the source keeps.
type copyBody struct {
	ctx  context.Context
	c    *copyRun
	r    io.Reader
	of   ArtifactInfo
	hash hash.Hash
	n    int64
	sum  Digest
	err  error // of reading; not io.EOF
}

var _ Hashed = (*copyBody)(nil)

func (c *copyRun) newBody(ctx context.Context, r io.Reader, of ArtifactInfo) *copyBody {
	return &copyBody{ctx: ctx, c: c, r: r, of: of, hash: sha256.New()}
}

// done says that the body is not read any more.
func (b *copyBody) done() { b.c.moving.Add(-b.n) }

// Size implements Sized.
func (b *copyBody) Size() int64 { return b.of.Size }

// ModTime implements Dated.
func (b *copyBody) ModTime() time.Time { return b.of.ModTime }

// Hashes implements Hashed.
func (b *copyBody) Hashes() bool { return true }

// Announced implements Hashed.
func (b *copyBody) Announced() Digest { return b.of.SHA256 }

// Sum implements Hashed.
func (b *copyBody) Sum() Digest { return b.sum }

// Read implements io.Reader. It reads no faster than the limiter allows.
func (b *copyBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.err = b.ctx.Err(); b.err != nil {
		return 0, b.err
	}
	n, err := b.r.Read(p[:min(len(p), copyBuffer)])
	b.hash.Write(p[:n])
	b.n += int64(n)
	b.c.read.Add(int64(n))
	b.c.moving.Add(int64(n))
	if b.c.limiter != nil && n > 0 {
		if b.err = b.c.limiter.WaitN(b.ctx, n); b.err != nil {
			return 0, b.err
		}
	}
	switch {
	case err == io.EOF:
		b.err = b.end()
	case err != nil:
		b.err = err
	}
	if b.err != nil {
		return 0, b.err
	}
	return n, err
}

// end checks what was read.
func (b *copyBody) end() error {
	if b.n != b.of.Size {
		return fmt.Errorf("%w: %d bytes instead of %d", errChecksum, b.n, b.of.Size)
	}
	sum := Digest(b.hash.Sum(nil))
	if want := b.of.SHA256; want.known() && want != sum {
		return &copyDigestError{want, sum}
	}
	b.sum = sum
	return nil
}

// copyDigestError is the errDigest of a build whose bytes do not have the digest that is kept.
type copyDigestError struct{ expected, got Digest }

func (e *copyDigestError) Error() string {
	return fmt.Sprintf("the SHA-256 is %s, kept is %s", e.got, e.expected)
}

func (e *copyDigestError) Unwrap() error { return errDigest }
