package client

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// download is the transfer of one build, in as many attempts as it takes.
//
// It begins with a look (HEAD) at the build or label: that says the id, the size, the ETag and
// the digest, also where a GET is redirected to a store that knows none of them. Each attempt
// asks for the bytes that are missing, by the id of the build, on the condition that the ETag is
// still the same. So a label that moves changes nothing. If the build itself has changed, the
// download begins again with another look.
type download struct {
	service *service
	site    string
	label   string // empty: the build was named
	path    string // what is looked at
	out     output
	bar     *progress
	ranges  rangeLimits
	lull    lull // of the parts

	again    bool   // look again, and begin again
	single   bool   // the service does not send parts of the build: ask for all of it
	wrong    string // the digest that the bytes did not have when the download began again
	furthest int64  // how many bytes had arrived at most when the download began again

	// The rest is new when the download begins again.
	mu        sync.Mutex // for build and fromStore, while several fetches run
	build     remoteBuild
	fromStore bool // a store to which the service redirects has sent bytes
	arrived   atomic.Int64
	hash      hash.Hash
	fetch     *fetch // of the whole build
}

// remoteBuild is a build as the service describes it.
type remoteBuild struct {
	path   string // of a GET
	id     string // empty: not known
	etag   string // only if it is a strong one
	size   int64  // -1: not known
	sha256 string // in hexadecimal; empty: not known
	sum    string // the SHA-256 of the bytes that have arrived, at the end
}

// output is where the bytes of a build go.
type output struct {
	io.Writer
	name string
	file *tempFile // nil: what was written stays
}

// againError is why a download has to begin again.
type againError struct {
	error
	status int // the exit status if it cannot
}

func again(format string, args ...any) error {
	return againError{fmt.Errorf(format, args...), exitFailure}
}

// changed is again for a build that is not the one of the last look.
func changed(format string, args ...any) error {
	return againError{fmt.Errorf(format, args...), exitConflict}
}

func errReplaced(b *remoteBuild) error {
	return changed("the build %s was replaced or deleted while it was downloaded", b.id)
}

// transfer downloads the build to d.out.
func (d *download) transfer(ctx context.Context) error {
	if err := d.restart(); err != nil {
		return err
	}
	for tries := d.service.newRetries(); ; {
		err := d.attempt(ctx, tries)
		if err == nil || errors.As(err, new(permanentError)) {
			return err
		}
		var e againError
		d.again = errors.As(err, &e)
		if n := d.arrived.Load(); d.again && d.out.file == nil && n > 0 {
			return errorf(e.status, "cannot begin again, %d bytes were written to %s: %w", n, d.out.name, err)
		}
		err = tries.wait(ctx, err)
		if err != nil && d.again {
			return errorf(e.status, "%w", err)
		}
		if err != nil {
			return err
		}
	}
}

// attempt asks for the bytes that are missing. It returns nil when all have arrived and are right.
func (d *download) attempt(ctx context.Context, tries *retries) error {
	if d.again {
		if err := d.look(ctx); err != nil {
			return permanentError{err} // it was repeated
		}
		if err := d.restart(); err != nil {
			return err
		}
		d.again = false
		d.bar.setTotal(d.build.size)
	}
	if d.ranges.fit(d) {
		if err := d.fetchParts(ctx, tries); err != nil {
			return err
		}
		return d.check(ctx)
	}
	if d.fetch.at == 0 || d.fetch.at != d.build.size { // else all had arrived when the last attempt failed
		if err := d.fetch.once(ctx, tries); err != nil {
			return err
		}
	}
	return d.check(ctx)
}

// restart forgets what has arrived.
func (d *download) restart() error {
	d.furthest = max(d.furthest, d.arrived.Swap(0))
	d.hash, d.fromStore = sha256.New(), false
	d.fetch = d.newFetch(func(p []byte, _ int64) error {
		d.hash.Write(p)
		_, err := d.out.Write(p)
		return err
	})
	d.bar.set(0)
	if d.out.file == nil {
		return nil
	}
	return d.out.file.rewind()
}

// look asks for what the service knows of the build.
func (d *download) look(ctx context.Context) error {
	reply, err := d.service.do(ctx, &request{method: http.MethodHead, path: d.path})
	if hasStatus(err, http.StatusNotFound) {
		return d.absent(ctx, err)
	}
	if err != nil {
		return err
	}
	d.build = describe(d.path, d.site, reply.header)
	return reply.isBuild()
}

// absent returns the error for a 404 to a HEAD, which has no text: that of a GET says whether it is
// the service that says so.
func (d *download) absent(ctx context.Context, err error) error {
	r := &request{method: http.MethodGet, path: d.path, header: http.Header{"Range": {"bytes=0-0"}}, query: url.Values{"redirect": {"false"}}}
	if _, said := d.service.once(ctx, r); hasStatus(said, http.StatusNotFound) {
		if e, _ := errors.AsType[*statusError](said); e.elsewhere {
			return said
		}
	}
	if d.label != "" {
		return fmt.Errorf("%w: the site %s has no label %s, or its build is gone", err, d.site, d.label)
	}
	return fmt.Errorf("%w: the site %s has no build %s", err, d.site, strings.TrimPrefix(d.path, artifactPath(d.site, "")))
}

// describe returns the build of a response to a HEAD for path.
func describe(path, site string, h http.Header) remoteBuild {
	b := remoteBuild{path: path, etag: strongETag(h), sha256: reprDigest(h), size: -1}
	if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil {
		b.size = n
	}
	if id := strings.TrimPrefix(path, artifactPath(site, "")); id != path {
		b.id = id
	} else if id := contentLocation(site, h.Get("Content-Location")); id != "" {
		b.id, b.path = id, artifactPath(site, id)
	}
	return b
}

// contentLocation returns the id of the build that a Content-Location names. The path before it
// may be another one than that of the request, behind a proxy.
func contentLocation(site, location string) string {
	u, err := url.Parse(location)
	if err != nil {
		return ""
	}
	_, id, _ := strings.Cut(u.Path, "/"+artifactPath(site, ""))
	if checkID("build", id) != nil { // it becomes the name of a file
		return ""
	}
	return id
}

// strongETag returns the strong ETag of a response, or "". Builds with the same weak ETag may differ.
func strongETag(h http.Header) string {
	if tag := h.Get("Etag"); len(tag) >= 2 && strings.HasPrefix(tag, `"`) && strings.HasSuffix(tag, `"`) {
		return tag
	}
	return ""
}

var sha256Digest = regexp.MustCompile(`(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):\s*(?:,|$)`)

// reprDigest returns the SHA-256 that a response announces, in hexadecimal.
func reprDigest(h http.Header) string {
	m := sha256Digest.FindStringSubmatch(strings.Join(h.Values("Repr-Digest"), ","))
	if m == nil {
		return ""
	}
	sum, err := base64.StdEncoding.DecodeString(m[1])
	if err != nil {
		return ""
	}
	return hex.EncodeToString(sum)
}

// check compares all that has arrived with what the service knows of the build.
func (d *download) check(ctx context.Context) error {
	b := &d.build
	b.sum = hex.EncodeToString(d.hash.Sum(nil))
	if b.sha256 == b.sum {
		return nil
	}
	if d.fromStore && b.etag != "" {
		if err := d.confirm(ctx); err != nil {
			return err
		}
	}
	if b.sha256 == "" {
		return nil
	}
	wrong := again("/%s: the SHA-256 of what arrived is %s, that of the build is %s", b.path, b.sum, b.sha256)
	if d.out.file == nil || d.wrong == b.sha256 {
		return errorf(exitCorrupt, "%v", wrong)
	}
	// The bytes may have been damaged on the way. If not, they are the same again.
	d.wrong = b.sha256
	return againError{wrong, exitCorrupt}
}

// confirm looks whether the build is still that of the last look: then the bytes that a store has
// sent meanwhile belong to it.
func (d *download) confirm(ctx context.Context) error {
	reply, err := d.service.do(ctx, &request{method: http.MethodHead, path: d.build.path})
	if err != nil && !hasStatus(err, http.StatusNotFound) {
		return permanentError{err}
	}
	if err != nil || strongETag(reply.header) != d.build.etag {
		return errReplaced(&d.build)
	}
	return nil
}
