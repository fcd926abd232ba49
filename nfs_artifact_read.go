package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// artifactFile is an open artifact: a FileReader and an io.Seeker.
type artifactFile struct {
	f    *os.File
	info ArtifactInfo
}

var _ FileReader = (*artifactFile)(nil)

func (a *artifactFile) Read(p []byte) (int, error)                { return a.f.Read(p) }
func (a *artifactFile) Seek(off int64, whence int) (int64, error) { return a.f.Seek(off, whence) }
func (a *artifactFile) Close() error                              { return a.f.Close() }
func (a *artifactFile) Info() ArtifactInfo                        { return a.info }
func (a *artifactFile) File() *os.File                            { return a.f }

// openArtifact opens the artifact at path. It reads a small one whole and closes it. If
// something other than a regular file is there, the artifact is not found, as in lists.
func (n *nfs) openArtifact(path string) (ArtifactReader, error) {
	if f := n.small.get(path); f != nil {
		return n.withDigest(path, f).open(), nil
	}
	fd, err := n.disk.openPathRead(path)
	if isLink(err, path) {
		return nil, linkInPlace(path)
	}
	if err != nil {
		return nil, n.disk.openError(path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, diskError("stat", path, err)
	}
	if err := n.checkSameMount(&st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, notAFile(path)
	}
	if st.Size > smallSize {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0) // as in openAt: do not use the poller
		info := infoOf(&st)
		if n.digests != nil {
			info.SHA256 = n.digestOf(path, &st).sum
		}
		return &artifactFile{os.NewFile(uintptr(fd), path), info}, nil
	}
	defer unix.Close(fd)
	f, err := n.small.read(fd, path, &st)
	if err != nil {
		return nil, err
	}
	return n.withDigest(path, f).open(), nil
}

// infoOf describes an artifact. The ETag consists of inode number, size and modification
// time, which are the same on every client of a store. It must not contain the ctime, which
// link, unlink and chmod change. tempFile.seal sets the time in nanoseconds, so a reused
// inode number does not lead to a reused ETag.
func infoOf(st *unix.Stat_t) ArtifactInfo {
	return ArtifactInfo{
		Size:    st.Size,
		ModTime: time.Unix(st.Mtim.Unix()).UTC(),
		ETag:    fileTag(st.Ino, uint64(st.Size), uint64(st.Mtim.Nano())),
	}
}

// fileTag returns the ETag "ino-size-mtime", each in hexadecimal.
func fileTag(ino, size, mtime uint64) string {
	b := make([]byte, 0, 56)
	b = strconv.AppendUint(append(b, '"'), ino, 16)
	b = strconv.AppendUint(append(b, '-'), size, 16)
	b = strconv.AppendUint(append(b, '-'), mtime, 16)
	return string(append(b, '"'))
}

// describe returns the attributes of the artifact at path without reading it. They are
// never nil, and zero after an error.
func (n *nfs) describe(path string) (*smallFile, error) {
	if f := n.small.info(path); f != nil {
		return f, nil
	}
	var st unix.Stat_t
	err := n.stat(path, &st)
	if err == nil {
		err = n.checkSameMount(&st)
	}
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = notAFile(path)
	}
	if err != nil {
		return new(smallFile), err
	}
	f := smallFileOf(&st)
	n.small.keep(n.small.stats, path, f)
	return f, nil
}

// linkInPlace returns the error of an artifact that is a symbolic link.
func linkInPlace(path string) error {
	return fmt.Errorf("%w: %q is a symbolic link, which is not followed", ErrOccupied, path)
}

// stat is stat(2) of a path. On NFS it opens the file, because only open(2) revalidates
// the cache of the client.
func (n *nfs) stat(path string, st *unix.Stat_t) error {
	if !n.remote {
		return n.disk.statPath(path, st)
	}
	fd, err := n.disk.openPathRead(path)
	if isLink(err, path) {
		return linkInPlace(path)
	}
	if err != nil {
		return n.disk.openError(path, err)
	}
	return statAndClose(fd, path, st)
}
