package main

import (
	"bytes"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sys/unix"
)

const (
	smallKept = 1024 // small artifacts kept in memory: 15 MiB at the most
	// lookedKept is how many artifacts are kept that were looked at: a few hundred
	// bytes each.
	lookedKept = 4096
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
// after it got its name. It was opened without following a symbolic link, and
// that need not be done again while it is the same.
type smallFile struct {
	dev, ino   uint64
	mtim, ctim unix.Timespec
	data       []byte // never changed; nil: not read
	info       ArtifactInfo
}

func smallFileOf(st *unix.Stat_t) *smallFile {
	return &smallFile{dev: st.Dev, ino: st.Ino, mtim: st.Mtim, ctim: st.Ctim, info: infoOf(st)}
}

func (f *smallFile) is(st *unix.Stat_t) bool {
	return f.dev == st.Dev && f.ino == st.Ino && f.info.Size == st.Size && f.mtim == st.Mtim && f.ctim == st.Ctim
}

func (f *smallFile) open() smallArtifact { return smallArtifact{bytes.NewReader(f.data), f} }

// smallFiles keeps small artifacts by their paths, each to be used only after a
// look at what is there now. On a local file system that look is one stat(2); on
// NFS it would have to be an open(2), and nothing is kept. Safe for concurrent use.
type smallFiles struct {
	files  *lru.Cache[string, *smallFile] // nil: nothing is kept
	looked *lru.Cache[string, *smallFile] // of any size, without their bytes
}

func newSmallFiles(local bool) smallFiles {
	if !local {
		return smallFiles{}
	}
	return smallFiles{newLRU[string, *smallFile](smallKept), newLRU[string, *smallFile](lookedKept)}
}

// get is what is kept of path, if that is what path still is.
func (s smallFiles) get(path string) *smallFile { return unchanged(s.files, path) }

// info is get of what was only looked at, too.
func (s smallFiles) info(path string) *smallFile {
	if f := unchanged(s.files, path); f != nil {
		return f
	}
	return unchanged(s.looked, path)
}

// unchanged is what files, which may be nil, has of path, if that is what path
// still is.
func unchanged(files *lru.Cache[string, *smallFile], path string) *smallFile {
	if files == nil {
		return nil
	}
	f, ok := files.Get(path)
	if !ok {
		return nil
	}
	var st unix.Stat_t
	if unix.Fstatat(unix.AT_FDCWD, path, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || !f.is(&st) {
		files.Remove(path)
		return nil
	}
	return f
}

// read reads all of the open file fd, and keeps it.
func (s smallFiles) read(fd int, path string, st *unix.Stat_t) (*smallFile, error) {
	f := smallFileOf(st)
	var err error
	if f.data, err = readAll(fd, path, st.Size); err != nil {
		return nil, err
	}
	s.keep(s.files, path, f)
	return f, nil
}

// keep remembers f, unless the file system may keep times so coarse that
// another file could have the same ones.
func (smallFiles) keep(files *lru.Cache[string, *smallFile], path string, f *smallFile) {
	if files != nil && !isCoarse(f.mtim) {
		files.Add(path, f)
	}
}
