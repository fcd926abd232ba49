package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sitesDir       = "sites"
	artifactsDir   = "artifacts"
	logsDir        = "logs"
	artifactSuffix = ".tar.gz"
	logSuffix      = ".json"
)

// nfs is the store in a directory: an NFS mount that several replicas share, or
// a local one.
//
//	{base}/sites/{site}/artifacts/{build}.tar.gz
//	{base}/sites/{site}/logs/{build}.json
//	{base}/sites/{site}/.lock
//
// Files are only ever replaced whole (atomic.go), so what is read is never in
// change, and a cache may go by names, inodes and times.
type nfs struct {
	base   string
	disk   *disk
	log    *slog.Logger
	remote bool // base is on NFS, where the caches of other clients count

	mountPoint bool // base was one at the start, and must stay one

	lockTurns [lockWaiters]sync.Mutex
	appends   group[LogEntry, []error] // those of one build that wait go into one write
	sound     soundLogs
	lists     *listings
	small     smallFiles
}

var (
	_ Backend           = (*nfs)(nil)
	_ ConditionalStorer = (*nfs)(nil)
	_ ArtifactStater    = (*nfs)(nil)
	_ Prober            = (*nfs)(nil)
	_ VersionPager      = (*nfs)(nil)
	_ SpaceTeller       = (*nfs)(nil)
)

// openNFS opens the store at base, which must be a directory: it is never made,
// because an absent one is a mount that is missing.
func openNFS(base string, log *slog.Logger) (*nfs, error) {
	base, err := filepath.Abs(base)
	if err != nil {
		return nil, err
	}
	n := &nfs{base: base, disk: newDisk(log), log: log, sound: newSoundLogs(), lists: newListings()}
	dir, err := n.disk.openDir(base)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := uninterrupted(func() error { return unix.Fstatfs(int(dir.Fd()), &st) }); err != nil {
		dir.Close()
		return nil, diskError("statfs", base, err)
	}
	n.remote = st.Type == unix.NFS_SUPER_MAGIC
	n.mountPoint, _ = isMountPoint(base)
	n.small = newSmallFiles(isLocal(int64(st.Type)))
	n.disk.syncs.share(dir, int64(st.Type))
	return n, nil
}

// StoreArtifact implements Backend.
func (n *nfs) StoreArtifact(siteID, buildID string, reader io.Reader) error {
	_, err := n.StoreArtifactIf(siteID, buildID, reader, Precondition{})
	return err
}

// FetchArtifact implements Backend. What it returns is a FileReader, or of a
// small artifact a MemoryReader.
func (n *nfs) FetchArtifact(siteID, buildID string) (io.ReadCloser, error) {
	path := n.artifactPath(siteID, buildID)
	a, err := n.openArtifact(path)
	if errors.Is(err, fs.ErrNotExist) && n.remote {
		// The client may remember that the file was missing. Opening the
		// directory revalidates that memory, stat(2) does not.
		dir, derr := n.openBuilds(siteID, artifactsDir)
		if derr != nil {
			return nil, n.notFound(derr)
		}
		defer dir.Close()
		a, err = n.openArtifact(path)
	}
	if err != nil {
		return nil, n.notFound(err)
	}
	return a, nil
}

// StoreArtifactIf implements ConditionalStorer.
func (n *nfs) StoreArtifactIf(siteID, buildID string, reader io.Reader, cond Precondition) (ArtifactInfo, error) {
	if err := n.here(); err != nil {
		return ArtifactInfo{}, err
	}
	if !cond.IsZero() { // refuse early what would be refused at the end
		if err := n.check(siteID, buildID, cond); err != nil {
			return ArtifactInfo{}, err
		}
	}
	dir, err := n.disk.ensureDir(n.base, sitesDir, siteID, artifactsDir)
	if err != nil {
		return ArtifactInfo{}, err
	}
	defer dir.Close()
	temp, err := n.disk.createTemp(dir)
	if err != nil {
		return ArtifactInfo{}, err
	}
	defer temp.discard()
	if _, err := temp.ReadFrom(reader); err != nil {
		return ArtifactInfo{}, err
	}
	st, err := temp.seal()
	if err != nil {
		return ArtifactInfo{}, err
	}
	if err := n.place(temp, siteID, buildID, cond); err != nil {
		return ArtifactInfo{}, err
	}
	return infoOf(&st), temp.syncDir()
}

// place puts the sealed temp in the place of the build if cond holds. That
// nothing is there is link(2)'s own decision, for which nobody need look.
func (n *nfs) place(temp *tempFile, siteID, buildID string, cond Precondition) error {
	// The store may have gone while the body came.
	if err := n.here(); err != nil {
		return err
	}
	name := buildID + artifactSuffix
	if !cond.CreateOnly() {
		return n.changeIf(siteID, buildID, cond, func() error { return temp.replace(name) })
	}
	err := n.changeIf(siteID, buildID, Precondition{}, func() error { return temp.create(name) })
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: the build exists", ErrPrecondition)
	}
	return err
}

// changeIf changes an artifact if cond holds. It takes the lock of the build:
// exclusively to look and then change, shared where there is nothing to look
// at, so that a change never falls between the look and the change of another.
func (n *nfs) changeIf(siteID, buildID string, cond Precondition, change func() error) error {
	look := !cond.IsZero()
	lock, err := n.lockBuild(siteID, artifactsDir, buildID, look)
	if errors.Is(err, ErrUnsupported) && !look {
		return change() // nobody can look here, so there is nobody to mind
	}
	if err != nil {
		return err
	}
	defer lock.release()
	if look {
		if err := n.check(siteID, buildID, cond); err != nil {
			return err
		}
		if err := lock.alive(); err != nil {
			return err
		}
	}
	return change()
}

// DeleteArtifact implements ConditionalStorer.
func (n *nfs) DeleteArtifact(siteID, buildID string, cond Precondition) error {
	if err := n.here(); err != nil {
		return err
	}
	dir, err := n.openBuilds(siteID, artifactsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return cond.Check(nil)
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	err = n.changeIf(siteID, buildID, cond, func() error { return n.disk.remove(dir, buildID+artifactSuffix) })
	if err != nil {
		return err
	}
	// Also if it was gone already: another process may have removed it and not
	// have synced that yet, and this answer is a promise of its own.
	return n.disk.syncDir(dir)
}

// check is cond.Check of the build as it is now.
func (n *nfs) check(siteID, buildID string, cond Precondition) error {
	info, err := n.StatArtifact(siteID, buildID)
	if errors.Is(err, ErrNotFound) {
		return cond.Check(nil)
	}
	if err != nil {
		return err
	}
	return cond.Check(&info)
}

// Space implements SpaceTeller.
func (n *nfs) Space() (Space, error) {
	if err := n.here(); err != nil {
		return Space{}, err
	}
	var st unix.Statfs_t
	if err := uninterrupted(func() error { return unix.Statfs(n.base, &st) }); err != nil {
		return Space{}, diskError("statfs", n.base, err)
	}
	block := uint64(st.Bsize)
	return Space{st.Bavail * block, st.Blocks * block, st.Ffree, st.Files}, nil
}

func (n *nfs) measures() *storeMetrics { return n.disk.metrics }

func (n *nfs) artifactPath(siteID, buildID string) string {
	return n.base + "/" + sitesDir + "/" + siteID + "/" + artifactsDir + "/" + buildID + artifactSuffix
}

// notFound turns an absent file or directory into ErrNotFound, if the store is here.
func (n *nfs) notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if gone := n.here(); gone != nil {
			return gone
		}
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

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

// openArtifact opens and describes one file. A small one is read, and closed again.
// What is no file is not found: it is not listed either.
func (n *nfs) openArtifact(path string) (ArtifactReader, error) {
	if f := n.small.get(path); f != nil {
		return f.open(), nil
	}
	fd, err := openRead(unix.AT_FDCWD, path)
	if err == unix.ELOOP {
		return nil, fmt.Errorf("%w: %q is a symbolic link", ErrNotFound, path)
	}
	if err != nil {
		return nil, diskError("open", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, diskError("stat", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, fmt.Errorf("%w: %q is not a file", ErrNotFound, path)
	}
	if st.Size > smallSize {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0) // as openAt: the poller is not asked
		return &artifactFile{os.NewFile(uintptr(fd), path), infoOf(&st)}, nil
	}
	defer unix.Close(fd)
	f, err := n.small.read(fd, path, &st)
	if err != nil {
		return nil, err
	}
	return f.open(), nil
}

// infoOf describes an artifact by its inode, size and modification time, which
// are the same on every client of one store. Never by ctime: link, unlink and
// chmod change it. The time is our own, in nanoseconds (tempFile.seal), so an
// inode number that is used again does not bring an old tag back.
func infoOf(st *unix.Stat_t) ArtifactInfo {
	return ArtifactInfo{
		Size:    st.Size,
		ModTime: time.Unix(st.Mtim.Unix()).UTC(),
		ETag:    fileTag(st.Ino, uint64(st.Size), uint64(st.Mtim.Nano())),
	}
}

// fileTag is each number in hexadecimal, joined by "-", in quotes.
func fileTag(ino, size, mtime uint64) string {
	b := make([]byte, 0, 56)
	b = strconv.AppendUint(append(b, '"'), ino, 16)
	b = strconv.AppendUint(append(b, '-'), size, 16)
	b = strconv.AppendUint(append(b, '-'), mtime, 16)
	return string(append(b, '"'))
}

// openRoot opens the directory in which those of sites are made, or the base as
// long as there is none.
func (n *nfs) openRoot() (*os.File, error) {
	dir, err := n.disk.openDir(n.base + "/" + sitesDir)
	if !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	base, berr := n.disk.openDir(n.base)
	if berr != nil {
		return nil, berr
	}
	var st unix.Stat_t
	if statAt(base, sitesDir, &st) == nil { // a symbolic link to what is not there
		base.Close()
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return base, nil
}

// Probe implements Prober: it reads the directory of the sites and asks whether
// it could write there, then writes and syncs a file: in the base if it can, for
// the caches of other NFS clients of a directory end when it changes.
func (n *nfs) Probe() (Readiness, error) {
	if err := n.here(); err != nil {
		return Readiness{}, err
	}
	dir, err := n.openRoot()
	if err != nil {
		return Readiness{}, err
	}
	defer dir.Close()
	if _, err := dir.Readdirnames(1); err != nil && err != io.EOF {
		return Readiness{}, diskError("read directory", dir.Name(), errors.Unwrap(err))
	}
	if err := n.probeWrites(dir); err != nil {
		if errors.Is(err, ErrUnavailable) || errors.Is(err, unix.EIO) {
			return Readiness{}, err
		}
		n.log.Warn("the store takes no writes", "error", err)
		return Readiness{WriteError: reasonOf(err)}, nil
	}
	return Readiness{}, nil
}

func (n *nfs) probeWrites(root *os.File) error {
	err := uninterrupted(func() error {
		return unix.Faccessat(int(root.Fd()), ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS)
	})
	if err != nil {
		return diskError("write to", root.Name(), err)
	}
	base, err := n.disk.openDir(n.base)
	if err == nil {
		err = n.probeWrite(base)
		base.Close()
	}
	if errors.Is(err, ErrDenied) {
		return n.probeWrite(root)
	}
	return err
}

func (n *nfs) probeWrite(dir *os.File) error {
	temp, err := n.disk.createTemp(dir)
	if err != nil {
		return err
	}
	defer temp.discard()
	if _, err := temp.Write([]byte("probe\n")); err != nil {
		return err
	}
	_, err = temp.seal()
	return err
}
