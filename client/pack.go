package client

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/gzip"
)

// packTime is the time of all files in an archive unless SOURCE_DATE_EPOCH says otherwise. GNU tar
// warns about 1970.
var packTime = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)

// maxEpoch is the first time that a tar header cannot hold.
const maxEpoch = 1 << 33

// archiveTime returns the time of the files in an archive for the value of SOURCE_DATE_EPOCH
// (reproducible-builds.org).
func archiveTime(epoch string) (time.Time, error) {
	if epoch == "" {
		return packTime, nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 0 || seconds >= maxEpoch {
		return time.Time{}, configf("SOURCE_DATE_EPOCH=%q: must be the seconds since 1970, from 0 to %d", epoch, maxEpoch-1)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// packEntry is a file, directory or symbolic link to pack.
type packEntry struct {
	name  string // relative to the directory
	info  fs.FileInfo
	stamp stamp
}

// packing packs a directory.
type packing struct {
	dir     string // as the user named it
	root    *os.Root
	at      time.Time
	entries []packEntry
	size    int64 // of all files
}

// newPacking lists a directory. It refuses what an archive cannot hold, or what would point outside of
// the directory where the archive is unpacked.
func newPacking(ctx context.Context, dir string, at time.Time) (*packing, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, packError(dir, "", err)
	}
	p := &packing{dir: dir, root: root, at: at}
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return packError(dir, name, err)
		}
		return p.add(name)
	})
	if err == nil && len(p.entries) == 1 {
		err = errorf(exitUsage, "%q is empty: there is nothing to push", dir)
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return p, nil
}

// add adds an entry to the list.
func (p *packing) add(name string) error {
	info, err := p.root.Lstat(name)
	if err != nil {
		return packError(p.dir, name, err)
	}
	switch info.Mode().Type() {
	case 0:
		p.size += info.Size()
	case fs.ModeDir:
	case fs.ModeSymlink:
		if err := p.checkLink(name); err != nil {
			return err
		}
	default:
		return errorf(exitFailure, "cannot pack %q: it is neither a file, a directory nor a symbolic link (%v)", path.Join(p.dir, name), info.Mode().Type())
	}
	p.entries = append(p.entries, packEntry{name, info, stampOf(info)})
	return nil
}

// checkLink refuses links to what is outside of the directory, or missing.
func (p *packing) checkLink(name string) error {
	target, err := p.root.Readlink(name)
	if err != nil {
		return packError(p.dir, name, err)
	}
	_, err = p.root.Stat(name)
	name = path.Join(p.dir, name)
	switch _, isErrno := errors.AsType[syscall.Errno](err); {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return errorf(exitFailure, "cannot pack %q: it is a symbolic link to %q, which does not exist", name, target)
	case errors.Is(err, syscall.ELOOP):
		return errorf(exitFailure, "cannot pack %q: it is a symbolic link to %q, which leads back to it", name, target)
	case isErrno:
		return errorf(exitFailure, "cannot pack %q: it is a symbolic link to %q: %w", name, target, cause(err))
	default: // package os has no error for it
		return errorf(exitFailure, "cannot pack %q: its target %q must be relative, and inside of %q", name, target, p.dir)
	}
}

// write writes the archive to w. moved is called with the number of bytes of files that were read. The same
// names, bytes, links and executable bits give the same archive: entries are sorted, have no
// owner, and all have the same time.
func (p *packing) write(ctx context.Context, w io.Writer, moved func(n int)) error {
	zip := gzip.NewWriter(w)
	zip.ModTime = time.Unix(0, 0) // not known (RFC 1952)
	archive := tar.NewWriter(zip)
	for _, e := range p.entries {
		if e.name == "." {
			continue
		}
		if err := p.writeEntry(ctx, archive, e, moved); err != nil {
			return err
		}
	}
	if err := archive.Close(); err != nil {
		return tempError(err)
	}
	if err := zip.Close(); err != nil {
		return tempError(err)
	}
	return p.unchanged()
}

func (p *packing) writeEntry(ctx context.Context, archive *tar.Writer, e packEntry, moved func(n int)) error {
	header := &tar.Header{Name: e.name, Mode: 0o644, ModTime: p.at, Typeflag: tar.TypeReg}
	switch mode := e.info.Mode(); {
	case mode.IsDir():
		header.Typeflag, header.Name, header.Mode = tar.TypeDir, e.name+"/", 0o755
	case mode.Type() == fs.ModeSymlink:
		target, err := p.root.Readlink(e.name)
		if err != nil {
			return packError(p.dir, e.name, err)
		}
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, target, 0o777
	default:
		header.Size = e.info.Size()
		if mode&0o100 != 0 {
			header.Mode = 0o755
		}
	}
	if err := archive.WriteHeader(header); err != nil {
		return tempError(err)
	}
	if header.Typeflag != tar.TypeReg {
		return nil
	}
	file, err := p.root.Open(e.name)
	if err != nil {
		return packError(p.dir, e.name, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return packError(p.dir, e.name, err)
	}
	if stampOf(info) != e.stamp {
		return p.changed(e)
	}
	n, err := io.Copy(archive, &movedReader{ctx, io.LimitReader(file, e.info.Size()), moved})
	switch _, reading := errors.AsType[*readError](err); {
	case reading:
		return packError(p.dir, e.name, cause(err))
	case err != nil:
		return tempError(err)
	case n < e.info.Size():
		return p.changed(e)
	}
	return nil
}

// unchanged returns an error if a file or directory has changed since newPacking.
func (p *packing) unchanged() error {
	for _, e := range p.entries {
		info, err := p.root.Lstat(e.name)
		if err != nil || stampOf(info) != e.stamp {
			return p.changed(e)
		}
	}
	return nil
}

func (p *packing) changed(e packEntry) error {
	return errorf(exitFailure, "%q changed while it was packed; nothing was sent", path.Join(p.dir, e.name))
}

func (p *packing) close() { p.root.Close() }

// movedReader reports what is read, marks errors as those of reading, and stops when ctx ends.
type movedReader struct {
	ctx   context.Context
	r     io.Reader
	moved func(n int)
}

func (r *movedReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, &readError{err}
	}
	n, err := r.r.Read(p)
	if n > 0 && r.moved != nil {
		r.moved(n)
	}
	if err != nil && err != io.EOF {
		err = &readError{err}
	}
	return n, err
}

type readError struct{ error }

// Unwrap returns the cause.
func (e *readError) Unwrap() error { return e.error }

// packError returns the error for what cannot be read in a directory.
func packError(dir, name string, err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return errorf(exitFailure, "cannot read %q: %w", path.Join(dir, name), cause(err))
}

// tempError returns the error for the temporary archive.
func tempError(err error) error {
	return errorf(exitFailure, "cannot write the temporary archive in %s (TMPDIR): %w", os.TempDir(), cause(err))
}

// cause returns err without the operation and the name that package os adds.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*readError](err); ok {
		return e.error
	}
	return err
}

// createArchive packs a directory into a temporary file that has no name, so that no crash leaves it.
func (c *call) createArchive(ctx context.Context, dir string) (*os.File, error) {
	at, err := archiveTime(c.env("SOURCE_DATE_EPOCH"))
	if err != nil {
		return nil, err
	}
	p, err := newPacking(ctx, dir, at)
	if err != nil {
		return nil, err
	}
	defer p.close()
	file, err := os.CreateTemp("", "pagewright-*.tar.gz")
	if err != nil {
		return nil, tempError(err)
	}
	if err := os.Remove(file.Name()); err != nil {
		file.Close()
		return nil, tempError(err)
	}
	bar := c.newProgress("pack "+strings.TrimRight(dir, "/"), p.size)
	defer bar.close()
	if err := p.write(ctx, file, bar.add); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}
