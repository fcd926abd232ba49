package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
)

var pullCommand = Command{
	Name: "pull", Summary: "download a build", Args: "SITE BUILD|@LABEL",
	Details: `Downloads a build, or the build that a label names. The file appears under its name when all of
it has arrived, has been compared with its digest, and is on the disk; until then an existing
file stays as it is, and after an error or a signal nothing is left. Then prints the build, its
SHA-256 and size, and the file. It prints "not checked" if the service does not know the
digest, because the build was uploaded without one.

A transfer that breaks goes on where it stopped. If the build is replaced meanwhile, or the
label moves and the build that it named is deleted, the download begins again; with -o - that
is possible only before the first byte, and later the command exits with 6. With -o - the
bytes are on standard output before they can be compared: look at the exit status (4). With
-o - or a pipe the result is on standard error, and --json and --if-changed are errors.

If the service redirects to its object store, the token stays with the service. If the store
cannot be reached, the service sends the bytes.

Examples:
  pagewright-storage pull shop 1042-1-3f2c9ab
  pagewright-storage pull shop @live -o site.tar.gz --if-changed
  pagewright-storage pull shop @live -o - | tar -xzf - -C www`,
	min: 2, max: 2, run: pull,
	flags: func(fs *pflag.FlagSet) {
		fs.StringP("output", "o", "", "write to `FILE`, or to standard output if it is - (default BUILD.tar.gz)")
		fs.Bool("if-changed", false, "leave FILE as it is if it has the digest of the build")
	},
}

// pullResult is what the command prints.
type pullResult struct {
	SiteID  string `json:"site_id"`
	BuildID string `json:"build_id"`
	File    string `json:"file"`
	Size    int64  `json:"size_bytes"`
	SHA256  string `json:"sha256"`
	ETag    string `json:"etag,omitempty"`
	Checked bool   `json:"checked"` // the digest is that of the service
	Changed bool   `json:"changed"`
}

func (r pullResult) text() string {
	text := fmt.Sprintf("%s/%s sha256:%s %d bytes %s", r.SiteID, r.BuildID, r.SHA256, r.Size, r.File)
	switch {
	case !r.Changed:
		text += " (unchanged)"
	case !r.Checked:
		text += " (not checked: the service does not know the digest)"
	}
	return printable(text)
}

func pull(ctx context.Context, c *call) error {
	d, output, err := newDownload(c)
	if err != nil {
		return err
	}
	target, stream := "-", output == "-"
	if output != "" && !stream {
		if target, stream, err = resolveTarget(output); err != nil {
			return err
		}
	}
	if stream && (c.json || c.on("if-changed")) {
		return usagef("--json and --if-changed need a file: %s is not one", output)
	}
	if err := d.look(ctx); err != nil {
		return err
	}
	named := output != ""
	if !named {
		target = d.build.fileName(d.label)
	}
	changed := true
	switch {
	case stream:
		err = d.toStream(ctx, c, target)
	case c.on("if-changed") && d.build.isFile(ctx, target):
		changed, d.build.sum = false, d.build.sha256
	default:
		err = d.toFile(ctx, c, target, named)
	}
	if err != nil {
		return err
	}
	b := d.build
	if !named {
		output = b.fileName(d.label)
	}
	result := pullResult{d.site, b.id, output, b.size, b.sum, b.etag, b.sha256 != "", changed}
	if stream { // standard output has the build
		c.note("%s", result.text())
		return nil
	}
	return c.result(result, result.text())
}

// newDownload returns the download that the arguments of c name, and where it is to go; empty:
// that is not said.
func newDownload(c *call) (d *download, output string, err error) {
	d = &download{service: c.service, site: c.args[0], ranges: defaultRanges}
	if err := checkID("site", d.site); err != nil {
		return nil, "", err
	}
	what, isLabel := strings.CutPrefix(c.args[1], "@")
	if isLabel {
		d.label, d.path = what, joinPath(labelPath(d.site, what), "artifact")
		err = checkLabel(what)
	} else {
		d.path = artifactPath(d.site, what)
		err = checkID("build", what)
	}
	output = c.text("output")
	if err == nil && c.given("output") && output == "" {
		err = usagef("-o: the name of the file is empty")
	}
	return d, output, err
}

// toStream writes the build to standard output, or to the device or pipe at path.
func (d *download) toStream(ctx context.Context, c *call, path string) error {
	d.out = output{Writer: c.Stdout, name: "standard output"}
	if path != "-" {
		f, err := openStream(ctx, path)
		if err != nil {
			return err
		}
		defer f.Close()
		d.out = output{Writer: f, name: path}
	}
	return d.run(ctx, c)
}

// toFile replaces the file at path by the build. If the file is not named by the user, its name
// is that of the build that arrives in the end.
func (d *download) toFile(ctx context.Context, c *call, path string, named bool) error {
	f, err := createTemp(path)
	if err != nil {
		return err
	}
	defer f.discard()
	if err := f.reserve(d.build.size); err != nil {
		return err
	}
	d.out = output{Writer: f, name: path, file: f}
	if err := d.run(ctx, c); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !named {
		path = d.build.fileName(d.label)
	}
	return f.commit(path)
}

// run transfers the build, and shows how far it is.
func (d *download) run(ctx context.Context, c *call) error {
	what := d.site + "/" + d.build.id
	d.bar = c.newProgress(what, d.build.size)
	defer d.bar.close()
	return d.transfer(ctx)
}

// fileName is the file of a build that no option names.
func (b *remoteBuild) fileName(label string) string {
	if b.id == "" { // the service is behind a proxy that hides it
		return label + ".tar.gz"
	}
	return b.id + ".tar.gz"
}

// isFile reports whether the file at path has the digest of the build.
func (b *remoteBuild) isFile(ctx context.Context, path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would block
	if err != nil || b.sha256 == "" {
		return false
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || b.size >= 0 && info.Size() != b.size {
		return false
	}
	hash := sha256.New()
	n, err := io.Copy(hash, contextReader{ctx, f})
	b.size = n
	return err == nil && hex.EncodeToString(hash.Sum(nil)) == b.sha256
}

// contextReader is a reader whose reads fail when ctx has ended.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}
