package main

import (
	"bytes"
	"fmt"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sys/unix"
)

const (
	// smallSize is the size in bytes up to which an artifact is read whole: with
	// its header it leaves in one write (writeBuffer).
	smallSize = 15 << 10
	smallKept = 1024 // small artifacts kept in memory: 15 MiB at the most
)

// smallArtifact is an artifact that was read whole: a MemoryReader and an io.Seeker.
type smallArtifact struct {
	*bytes.Reader
	kept *smallFile
}

func (a smallArtifact) Close() error       { return nil }
func (a smallArtifact) Info() ArtifactInfo { return a.kept.info }
func (a smallArtifact) Bytes() []byte      { return a.kept.data }

var _ MemoryReader = smallArtifact{}

// smallFile is the content of a file and what the file was. A file that is
// still the same has the same content, because none is ever written to
// after it got its name.
type smallFile struct {
	dev, ino   uint64
	mtim, ctim unix.Timespec
	data       []byte // never changed
	info       ArtifactInfo
}

func (f *smallFile) is(st *unix.Stat_t) bool {
	return f.dev == st.Dev && f.ino == st.Ino && f.info.Size == st.Size && f.mtim == st.Mtim && f.ctim == st.Ctim
}

func (f *smallFile) open() smallArtifact { return smallArtifact{bytes.NewReader(f.data), f} }

// smallFiles keeps small artifacts by their paths, each to be used only after a
// look at what is there now. On a local file system that look is one stat(2); on
// NFS it would have to be an open(2), and nothing is kept. Safe for concurrent use.
type smallFiles struct {
	files *lru.Cache[string, *smallFile] // nil: nothing is kept
}

func newSmallFiles(local bool) smallFiles {
	if !local {
		return smallFiles{}
	}
	files, err := lru.New[string, *smallFile](smallKept)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	return smallFiles{files}
}

// get is what is kept of path, if that is what path still is.
func (s smallFiles) get(path string) *smallFile {
	if s.files == nil {
		return nil
	}
	f, ok := s.files.Get(path)
	if !ok {
		return nil
	}
	var st unix.Stat_t
	if unix.Fstatat(unix.AT_FDCWD, path, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || !f.is(&st) {
		s.files.Remove(path)
		return nil
	}
	return f
}

// read reads all of the open file fd, and keeps it.
func (s smallFiles) read(fd int, path string, st *unix.Stat_t) (*smallFile, error) {
	f := &smallFile{dev: st.Dev, ino: st.Ino, mtim: st.Mtim, ctim: st.Ctim, info: infoOf(st)}
	var err error
	if f.data, err = readAll(fd, path, st.Size); err != nil {
		return nil, err
	}
	if s.files != nil {
		s.files.Add(path, f)
	}
	return f, nil
}

// StatArtifact implements ArtifactStater.
func (n *nfs) StatArtifact(siteID, buildID string) (ArtifactInfo, error) {
	if n.remote { // only an open brings the client up to date
		r, err := n.FetchArtifact(siteID, buildID)
		if err != nil {
			return ArtifactInfo{}, err
		}
		defer r.Close()
		return r.(ArtifactReader).Info(), nil
	}
	path := n.artifactPath(siteID, buildID)
	var st unix.Stat_t
	err := uninterrupted(func() error { return unix.Fstatat(unix.AT_FDCWD, path, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil {
		return ArtifactInfo{}, n.notFound(diskError("stat", path, err))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return ArtifactInfo{}, fmt.Errorf("%w: %q is not a file", ErrNotFound, path)
	}
	return infoOf(&st), nil
}
