package main

import (
	"bytes"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sys/unix"
)

const (
	smallKept = 1024 // small artifacts in the cache: at most 15 MiB
	statsKept = 4096 // artifacts whose attributes are cached: a few hundred bytes each

	labelsKept = 1024 // labels in the cache: at most 4 MiB, usually a tenth of that
)

// smallArtifact is an artifact in memory: a MemoryReader and an io.Seeker.
type smallArtifact struct {
	bytes.Reader
	kept *smallFile
}

func (a *smallArtifact) Close() error       { return nil }
func (a *smallArtifact) Info() ArtifactInfo { return a.kept.info }
func (a *smallArtifact) Bytes() []byte      { return a.kept.data }

var _ MemoryReader = (*smallArtifact)(nil)

// smallFile is a cached file: its attributes and possibly its content. While the attributes
// are unchanged the content is too, because a file is never written to after it got its
// name. The file was opened without following symbolic links, so an unchanged file need not
// be checked for them again.
type smallFile struct {
	dev, ino   uint64
	mtim, ctim unix.Timespec
	data       []byte // immutable; nil: not read
	info       ArtifactInfo
	noDigest   time.Time // if info has no digest: until when it is not looked for again
	label      *Label    // immutable; of the file of a label only
}

func smallFileOf(st *unix.Stat_t) *smallFile {
	return &smallFile{dev: st.Dev, ino: st.Ino, mtim: st.Mtim, ctim: st.Ctim, info: infoOf(st)}
}

func (f *smallFile) is(st *unix.Stat_t) bool {
	return f.dev == st.Dev && f.ino == st.Ino && f.info.Size == st.Size && f.mtim == st.Mtim && f.ctim == st.Ctim
}

func (f *smallFile) open() *smallArtifact {
	return &smallArtifact{*bytes.NewReader(f.data), f}
}

func (f *smallFile) stat() *unix.Stat_t {
	return &unix.Stat_t{Dev: f.dev, Ino: f.ino, Size: f.info.Size, Mtim: f.mtim}
}

// withDigest returns f, the file at path, with its digest. It also updates the cache.
func (n *nfs) withDigest(path string, f *smallFile) *smallFile {
	if n.digests == nil || f.info.SHA256.known() || n.digests.now().Before(f.noDigest) {
		return f
	}
	found, g := n.digestOf(path, f.stat()), *f
	g.info.SHA256, g.noDigest = found.sum, found.until
	files := n.small.files
	if f.data == nil {
		files = n.small.stats
	}
	n.small.keep(files, path, &g)
	return &g
}

// smallFiles caches small artifacts and labels by path. Each use first checks that the file is
// unchanged. On a local file system that takes one stat(2). On NFS it would take an
// open(2), so nothing is cached. It is safe for concurrent use.
type smallFiles struct {
	files  *lru.Cache[string, *smallFile] // nil: nothing is cached
	stats  *lru.Cache[string, *smallFile] // files of any size, without content
	labels *lru.Cache[string, *smallFile]
}

func newSmallFiles(local bool) smallFiles {
	if !local {
		return smallFiles{}
	}
	return smallFiles{newLRU[string, *smallFile](smallKept), newLRU[string, *smallFile](statsKept), newLRU[string, *smallFile](labelsKept)}
}

// get returns the cached content of path, or nil if there is none or the file changed.
func (s smallFiles) get(path string) *smallFile { return unchanged(s.files, path) }

// info is get, but also returns files without content.
func (s smallFiles) info(path string) *smallFile {
	if f := unchanged(s.files, path); f != nil {
		return f
	}
	return unchanged(s.stats, path)
}

// unchanged returns the entry of path in files, or nil if there is none or the file
// changed. files may be nil.
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

// read reads the open file fd whole, and caches it.
func (s smallFiles) read(fd int, path string, st *unix.Stat_t) (*smallFile, error) {
	f := smallFileOf(st)
	var err error
	if f.data, err = readAll(fd, path, st.Size); err != nil {
		return nil, err
	}
	s.keep(s.files, path, f)
	return f, nil
}

// forget removes path from the cache.
func (s smallFiles) forget(path string) {
	if s.files != nil {
		s.files.Remove(path)
		s.stats.Remove(path)
	}
}

// keep caches f, unless its times may be so coarse that another file could have the same
// ones.
func (smallFiles) keep(files *lru.Cache[string, *smallFile], path string, f *smallFile) {
	if files != nil && !isCoarse(f.mtim) {
		files.Add(path, f)
	}
}
