package client

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

var pushCommand = Command{
	Name: "push", Summary: "upload a file or a directory as a build", Args: "FILE|DIR SITE BUILD",
	Details: `Uploads FILE, or DIR packed as a tar.gz, and prints the build with its digest. The service stores
the build only if all bytes have arrived, and the command repeats what fails for --retry-for.

With --create the build must be new. Otherwise the command looks at the build first (this needs
the right "read"), and replaces only what it saw. If the build has the same bytes already,
nothing is sent: that is a success too, also with --create. Exits with 6 if somebody else
stored other bytes, or if the build cannot be replaced, such as one with a label.

The order after the upload: the entries of --log are appended, then the labels are moved.

An archive of DIR has the files in the order of their names, without owners, with the time of
SOURCE_DATE_EPOCH (seconds since 1970; default: the start of 1980), and of the modes only
whether the owner may execute. So the same files give the same bytes. Symbolic links are kept if they
are relative and lead to something in DIR; other links, and anything that is no file, are
errors. The archive needs space in TMPDIR until the command ends. Web servers that make an ETag
from the time and size of a file need SOURCE_DATE_EPOCH, or they cannot tell two builds apart.

Examples:
  export PAGEWRIGHT_URL=https://store.example.org PAGEWRIGHT_TOKEN_FILE=/run/secrets/store
  pagewright-storage push site.tar.gz shop v2
  pagewright-storage push public/ shop "$BUILD" --create --log build=ok --label live
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) pagewright-storage push public/ shop "$BUILD" --create
  pagewright-storage push public/ shop "$BUILD" --create --oidc github   # in GitHub Actions`,
	min: 3, max: 3, run: push,
	flags: func(fs *pflag.FlagSet) {
		fs.Bool("create", false, "fail if there is a build of this id with other bytes")
		fs.StringArray("label", nil, "move this `LABEL` to the build after the upload; may be repeated")
		fs.StringArray("log", nil, "append an entry `ACTION=STATUS` to the log after the upload; may be repeated")
	},
}

// pushed is the result of push.
type pushed struct {
	SiteID  string       `json:"site_id"`
	BuildID string       `json:"build_id"`
	Size    int64        `json:"size_bytes"`
	SHA256  string       `json:"sha256"`
	ETag    string       `json:"etag,omitempty"`
	Created bool         `json:"created"` // there was none before; false: there was one, with the same bytes or with others
	Logs    []string     `json:"log_entries,omitempty"`
	Labels  []labelState `json:"labels,omitempty"`
}

func push(ctx context.Context, c *call) error {
	name, site, build := c.args[0], c.args[1], c.args[2]
	if err := errors.Join(checkID("site", site), checkID("build", build)); err != nil {
		return err
	}
	labels, entries, err := c.afterPush(build)
	if err != nil {
		return err
	}
	src, err := c.openSource(ctx, name)
	if err != nil {
		return err
	}
	defer src.file.Close()
	u := &upload{call: c, source: src, site: site, build: build}
	result, err := u.run(ctx)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, err := appendLog(ctx, c.service, site, e, newIdempotencyKey())
		if err != nil {
			return fmt.Errorf("the build is stored, but the entry of the log is not: %w", err)
		}
		result.Logs = append(result.Logs, id)
	}
	for _, label := range labels {
		state, err := setLabel(ctx, c.service, site, label, build)
		if err != nil {
			return fmt.Errorf("the build is stored, but the label %s was not moved: %w", label, err)
		}
		result.Labels = append(result.Labels, state)
	}
	return c.result(result, result.text())
}

// text describes the result in one line.
func (p *pushed) text() string {
	text := fmt.Sprintf("%s/%s sha256:%s %d bytes", p.SiteID, p.BuildID, p.SHA256, p.Size)
	if !p.Created {
		text += ", was there"
	}
	for _, l := range p.Labels {
		text += ", " + l.Label
	}
	return text
}

// afterPush returns what the options --label and --log ask for.
func (c *call) afterPush(build string) (labels []string, entries []logEntry, err error) {
	labels, _ = c.flags.GetStringArray("label")
	for _, label := range labels {
		if err := checkLabel(label); err != nil {
			return nil, nil, err
		}
	}
	logs, _ := c.flags.GetStringArray("log")
	for _, l := range logs {
		action, status, ok := strings.Cut(l, "=")
		e := logEntry{BuildID: build, Action: action, Status: status}
		if !ok {
			return nil, nil, usagef("--log %q: want ACTION=STATUS", l)
		}
		if err := e.check(); err != nil {
			return nil, nil, err
		}
		entries = append(entries, e)
	}
	return labels, entries, nil
}

// source is the file that is uploaded.
type source struct {
	name  string
	file  *os.File
	stamp stamp // before the first byte was read
	size  int64
	sum   [sha256.Size]byte
}

// openSource opens the file, or packs the directory, and computes its digest.
func (c *call) openSource(ctx context.Context, name string) (*source, error) {
	if name == "-" {
		return nil, usagef("push needs a file or a directory: a pipe cannot be sent again after a failure")
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, errorf(exitFailure, "cannot read %q: %w", name, cause(err))
	}
	s := &source{name: name}
	switch {
	case info.IsDir():
		s.file, err = c.createArchive(ctx, name)
	case info.Mode().IsRegular():
		if s.file, err = os.Open(name); err != nil {
			err = errorf(exitFailure, "cannot read %q: %w", name, cause(err))
		}
	default:
		return nil, usagef("push needs a file or a directory, which can be sent again after a failure; %q is not: it is %s", name, kindOf(info.Mode()))
	}
	if err == nil {
		if err = s.hash(ctx, c); err == nil {
			return s, nil
		}
		s.file.Close()
	}
	return nil, err
}

// kindOf names what a file is that is neither regular nor a directory.
func kindOf(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeNamedPipe != 0:
		return "a pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	}
	return "a device"
}

// hash reads the whole file.
func (s *source) hash(ctx context.Context, c *call) error {
	info, err := s.file.Stat()
	if err != nil {
		return errorf(exitFailure, "cannot read %q: %w", s.name, cause(err))
	}
	s.stamp, s.size = stampOf(info), info.Size()
	if s.size == 0 {
		if n, _ := s.file.Read(make([]byte, 1)); n > 0 {
			return errorf(exitUsage, "%q has bytes but no size, like all files of /proc: push a copy of it", s.name)
		}
		return errorf(exitUsage, "%q is empty: a build has at least one byte", s.name)
	}
	bar := c.newProgress("sha256 "+s.name, s.size)
	defer bar.close()
	h := sha256.New()
	n, err := io.CopyBuffer(h, &movedReader{ctx, io.NewSectionReader(s.file, 0, s.size), bar.add}, make([]byte, 1<<20))
	if err != nil {
		return errorf(exitFailure, "cannot read %q: %w", s.name, cause(err))
	}
	h.Sum(s.sum[:0])
	if n != s.size {
		return s.changed()
	}
	return s.unchanged()
}

// unchanged returns an error if the file has changed since it was opened.
func (s *source) unchanged() error {
	if info, err := s.file.Stat(); err != nil || stampOf(info) != s.stamp {
		return s.changed()
	}
	return nil
}

func (s *source) changed() error {
	return errorf(exitFailure, "%q changed while it was pushed", s.name)
}

// digestField returns the value of Repr-Digest (RFC 9530).
func (s *source) digestField() string {
	return "sha-256=:" + base64.StdEncoding.EncodeToString(s.sum[:]) + ":"
}

// maxRefused is how many attempts may end with the service saying that it received other bytes:
// a proxy or a line may have damaged them.
const maxRefused = 3

// upload is the upload of one build.
type upload struct {
	*call
	*source
	site, build string

	condition http.Header // of every attempt
	sentAll   bool        // all bytes of some attempt were sent: it may have stored the build
	refused   int
}

// run uploads the build, or finds out that it is there.
func (u *upload) run(ctx context.Context) (*pushed, error) {
	if u.on("create") {
		u.condition = http.Header{"If-None-Match": {"*"}}
	} else if there, err := u.look(ctx); err != nil || there != nil {
		return there, err
	}
	bar := u.newProgress("push "+u.site+"/"+u.build, u.size)
	defer bar.close()
	for tries := u.service.newRetries(); ; {
		if err := u.unchanged(); err != nil {
			return nil, err
		}
		result, err := u.attempt(ctx, bar)
		if changed := u.unchanged(); changed != nil {
			if err == nil {
				return nil, fmt.Errorf("%w; the build has the bytes from before the change", changed)
			}
			return nil, changed
		}
		switch {
		case err == nil:
			return result, nil
		case hasStatus(err, http.StatusPreconditionFailed), hasStatus(err, http.StatusConflict):
			return u.resolve(ctx, err)
		}
		if err := tries.wait(ctx, err); err != nil {
			return nil, err
		}
	}
}

// look looks at the build and makes its state the condition of the upload. If the build has our bytes
// already, it is the result.
func (u *upload) look(ctx context.Context) (*pushed, error) {
	reply, err := u.head(ctx)
	switch {
	case hasStatus(err, http.StatusNotFound):
		u.condition = http.Header{"If-None-Match": {"*"}}
		return nil, nil
	case hasStatus(err, http.StatusForbidden):
		return nil, fmt.Errorf("cannot look whether the build exists: %w; use --create if the token may only create builds", err)
	case err != nil:
		return nil, err
	case reply.header.Get("Repr-Digest") == u.digestField():
		return u.result(reply.header, false), nil
	}
	if err := reply.isBuild(); err != nil {
		return nil, err
	}
	tag := reply.header.Get("Etag")
	if tag == "" {
		return nil, errorf(exitFailure, "the service sent no ETag for the build, so it cannot be replaced safely")
	}
	u.condition = http.Header{"If-Match": {tag}}
	return nil, nil
}

func (u *upload) head(ctx context.Context) (*reply, error) {
	return u.service.do(ctx, &request{method: http.MethodHead, path: artifactPath(u.site, u.build)})
}

func (u *upload) result(header http.Header, created bool) *pushed {
	return &pushed{SiteID: u.site, BuildID: u.build, Size: u.size, SHA256: hex.EncodeToString(u.sum[:]),
		ETag: header.Get("Etag"), Created: created}
}

// attempt sends the build once. Its errors are those of try, but a refusal that another attempt
// may not get is a temporary error.
func (u *upload) attempt(ctx context.Context, bar *progress) (*pushed, error) {
	sent := int64(0)
	bar.set(0)
	r := &request{
		method: http.MethodPut, path: artifactPath(u.site, u.build), header: u.condition.Clone(), expect: true, size: u.size,
		body: func() io.Reader { return io.NewSectionReader(u.file, 0, u.size) },
		sent: func(n int) { sent += int64(n); bar.add(n) },
	}
	r.header.Set("Repr-Digest", u.digestField())
	r.header.Set("Content-Type", "application/gzip")
	reply, err := u.service.once(ctx, r)
	sentBefore := u.sentAll
	u.sentAll = u.sentAll || sent == u.size
	if err != nil {
		if sent > 0 && hasStatus(err, http.StatusBadRequest) { // also a body that a proxy has cut short
			if u.refused++; u.refused < maxRefused {
				err = temporaryError{err}
			}
		}
		return nil, err
	}
	var said struct {
		BuildID string `json:"build_id"`
		SHA256  string `json:"sha256"`
	}
	if err := reply.decode(&said); err != nil {
		return nil, err
	}
	switch ours := hex.EncodeToString(u.sum[:]); {
	case said.BuildID != u.build:
		return nil, reply.foreign("which names the build")
	case said.SHA256 == "":
		u.note("the service does not check digests (PAGEWRIGHT_DIGEST=off)")
	case said.SHA256 != ours:
		return nil, errorf(exitCorrupt, "the service says that the build has the digest %s, not %s", printable(said.SHA256), ours)
	}
	return u.result(reply.header, reply.status == http.StatusCreated || sentBefore), nil
}

// resolve finds out what refused means, a response whose condition did not hold: our own attempt
// before it may have stored the build, and its response was lost.
func (u *upload) resolve(ctx context.Context, refused error) (*pushed, error) {
	reply, err := u.head(ctx)
	if err != nil {
		u.note("cannot look at the build: %v", err)
		return nil, refused
	}
	if hasStatus(refused, http.StatusPreconditionFailed) {
		bytes := "other bytes"
		if reply.header.Get("Repr-Digest") == "" {
			bytes = "bytes whose digest is not known"
		}
		refused = errorf(exitConflict, "the build %s/%s exists with %s", u.site, u.build, bytes)
		if !u.on("create") {
			refused = fmt.Errorf("%w: somebody else has stored it meanwhile", refused)
		}
	}
	switch digest := reply.header.Get("Repr-Digest"); {
	case digest == u.digestField():
		return u.result(reply.header, u.sentAll), nil
	case digest != "" || !u.sentAll || reply.header.Get("Content-Length") != fmt.Sprint(u.size):
		return nil, refused
	}
	sum, err := u.download(ctx, reply.header.Get("Etag"))
	switch {
	case err != nil:
		u.note("cannot compare the build: %v", err)
		return nil, refused
	case sum != u.sum:
		return nil, refused
	}
	return u.result(reply.header, true), nil
}

// download returns the SHA-256 of the build that the service has, if it has this ETag.
func (u *upload) download(ctx context.Context, tag string) (sum [sha256.Size]byte, err error) {
	r := &request{method: http.MethodGet, path: artifactPath(u.site, u.build), header: http.Header{"If-Match": {tag}}}
	for tries := u.service.newRetries(); ; {
		resp, err := u.service.try(ctx, r)
		if err == nil {
			h := sha256.New()
			_, err = io.Copy(h, resp.Body)
			resp.Body.Close()
			if err == nil {
				h.Sum(sum[:0])
				return sum, nil
			}
		}
		if err := tries.wait(ctx, err); err != nil {
			return sum, err
		}
	}
}
