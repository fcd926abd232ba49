package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// nfs is the store in a directory: on an NFS mount that several replicas share, or on a
// local file system.
//
//	{base}/sites/{site}/artifacts/{build}.tar.gz
//	{base}/sites/{site}/logs/{build}.json
//	{base}/sites/{site}/digests/{build}.sha256
//	{base}/sites/{site}/labels/{label}.json
//	{base}/sites/{site}/.lock
//	{base}/status/{name}.json
//
// Files are only replaced as a whole (atomic.go). So a file that is being read never
// changes, and a cache can rely on names, inode numbers and times. On NFS, an interrupted
// replacement may leave the new file under an interim name (nfs_replace.go).
type nfs struct {
	base     string
	disk     *disk
	log      *slog.Logger
	floods   *floodLog
	remote   bool // base is on NFS: other clients have caches
	readOnly bool // probes and checks must not write

	mountPoint bool                                 // base was a mount point at the start, and must stay one
	kind       fsKind                               // of the file system at the start; it must stay the same
	dev        atomic.Uint64                        // device of base when kind was last checked
	fsid       unix.Fsid                            // of the file system at the start (statfs(2))
	statBase   func(path string) (baseState, error) // replaced by tests

	lockWait time.Duration              // how long to wait for a lock
	waiting  *budget                    // slots of requests that wait for locks
	appends  batcher[LogEntry, []error] // groups waiting entries of a build into one write
	verified verifiedLogs
	lists    *listings
	small    smallFiles
	digests  *digestCache // nil: digests are neither kept nor looked up
}

var (
	_ Backend           = (*nfs)(nil)
	_ ConditionalStorer = (*nfs)(nil)
	_ ArtifactStater    = (*nfs)(nil)
	_ Prober            = (*nfs)(nil)
	_ VersionPager      = (*nfs)(nil)
	_ SpaceTeller       = (*nfs)(nil)
	_ DigestKeeper      = (*nfs)(nil)
	_ SiteLister        = (*nfs)(nil)
	_ ForeignLister     = (*nfs)(nil)
	_ StatusKeeper      = (*nfs)(nil)
	_ LabelKeeper       = (*nfs)(nil)
	_ VersionDeleter    = (*nfs)(nil)
	_ ArrivalTeller     = (*nfs)(nil)
	_ Leaser            = (*nfs)(nil)
	_ LogAppender       = (*nfs)(nil)
)

// openNFS opens the store at base. It never creates base: a missing directory means a
// missing mount.
func openNFS(base string, log *slog.Logger) (*nfs, error) {
	base, err := filepath.Abs(base)
	if err != nil {
		return nil, err
	}
	if real, err := filepath.EvalSymlinks(base); err == nil {
		base = real // base itself may be a symbolic link, but nothing below it
	}
	n := &nfs{base: base, disk: newDisk(log), log: log, floods: newFloodLog(log), lockWait: lockWait, waiting: newBudget(maxWaiters, 0),
		verified: newVerifiedLogs(), lists: newListings(), statBase: statBase}
	n.appends.acquire = n.acquireAppend
	n.disk.base = base
	dir, err := n.disk.openDir(base)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := retryEINTR(func() error { return unix.Fstatfs(int(dir.Fd()), &st) }); err != nil {
		dir.Close()
		return nil, diskError("statfs", base, err)
	}
	n.kind, n.fsid = kindOfFS(int64(st.Type)), st.Fsid
	n.remote, n.disk.ownClock, n.disk.readBack = n.kind == fsNFS, n.kind == fsLocal, n.kind == fsLocal
	if at, err := statBase(base); err == nil {
		n.mountPoint = at.mountPoint
		n.dev.Store(at.dev)
	}
	n.small = newSmallFiles(n.kind == fsLocal)
	n.disk.fsyncs.share(dir, int64(st.Type))
	return n, nil
}

// StoreArtifact implements Backend.
func (n *nfs) StoreArtifact(siteID, buildID string, reader io.Reader) error {
	_, err := n.StoreArtifactIf(siteID, buildID, reader, Precondition{})
	return err
}

// FetchArtifact implements Backend. It returns a FileReader, or a MemoryReader if the
// artifact is small.
func (n *nfs) FetchArtifact(siteID, buildID string) (io.ReadCloser, error) {
	var a ArtifactReader
	err := n.find(siteID, artifactsDir, buildID, func(path string) (err error) {
		a, err = n.openArtifact(path)
		return err
	})
	if err != nil {
		return nil, n.notFound(err)
	}
	return a, nil
}

// StoreArtifactIf implements ConditionalStorer.
func (n *nfs) StoreArtifactIf(siteID, buildID string, reader io.Reader, cond Precondition) (ArtifactInfo, error) {
	if err := n.checkMounted(); err != nil {
		return ArtifactInfo{}, err
	}
	if !cond.IsZero() { // fail early if the condition does not hold now
		if err := n.check(siteID, buildID, cond); err != nil {
			return ArtifactInfo{}, err
		}
	}
	if !cond.CreateOnly() && looksFirst(reader) {
		if err := n.checkReplaceable(siteID, buildID); err != nil {
			return ArtifactInfo{}, err
		}
	}
	dir, err := n.disk.ensureDir(n.base, sitesDir, siteID, artifactsDir)
	if err != nil {
		return ArtifactInfo{}, err
	}
	defer dir.Close()
	digest, err := n.prepareDigest(siteID, buildID, reader)
	if err != nil {
		return ArtifactInfo{}, err
	}
	defer digest.close()
	temp, err := n.disk.createTemp(dir)
	if err != nil {
		return ArtifactInfo{}, err
	}
	defer temp.discard()
	if _, err := temp.ReadFrom(reader); err != nil {
		return ArtifactInfo{}, err
	}
	if temp.at = dateOf(reader, n.disk.now()); !temp.at.IsZero() && !cond.CreateOnly() {
		// It may be the time of the build that is replaced: no two get the same ETag.
		temp.at = temp.at.Add(rand.N(time.Millisecond))
	}
	if err := digest.seal(temp, sumOf(reader)); err != nil {
		return ArtifactInfo{}, err
	}
	if err := n.place(temp, digest, siteID, buildID, cond); err != nil {
		return ArtifactInfo{}, err
	}
	if err := digest.syncDir(); err != nil { // first: its sync often includes that of the artifact
		return ArtifactInfo{}, err
	}
	info := infoOf(&temp.stat)
	info.SHA256 = digest.digest()
	return info, temp.syncDir()
}

// DeleteArtifact implements ConditionalStorer.
func (n *nfs) DeleteArtifact(siteID, buildID string, cond Precondition) error {
	if err := n.checkMounted(); err != nil {
		return err
	}
	dir, err := n.openBuilds(siteID, artifactsDir)
	if errors.Is(err, fs.ErrNotExist) {
		if gone := n.checkMounted(); gone != nil {
			return gone
		}
		cond.Outcome.set(outcomeAbsent)
		return cond.Check(nil)
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := n.checkMounted(); err != nil { // the directory may be below a mount that disappeared
		return err
	}
	c := change{dir: dir, siteID: siteID, buildID: buildID, cond: cond}
	if err := n.deleteWhenOld(c, n.deleteBuild); err != nil {
		return err
	}
	// Also if the build was missing: another process may have removed it without an fsync
	// so far, and the reply says that it is durably gone.
	return n.disk.syncDir(dir)
}

// SyncArtifact implements ArtifactSyncer. Whoever stored the build may not have synced its
// directories and theirs so far, or may have failed to. It makes no directory of digests.
func (n *nfs) SyncArtifact(siteID, _ string) error {
	kinds := []string{artifactsDir}
	switch dir, err := n.openFresh(siteID, digestsDir); {
	case err == nil:
		dir.Close()
		kinds = append(kinds, digestsDir)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	for _, kind := range kinds {
		dir, err := n.disk.ensureDir(n.base, sitesDir, siteID, kind)
		if err != nil {
			return err
		}
		err = n.disk.syncDir(dir)
		dir.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// StatArtifact implements ArtifactStater.
func (n *nfs) StatArtifact(siteID, buildID string) (info ArtifactInfo, err error) {
	err = n.find(siteID, artifactsDir, buildID, func(path string) error {
		f, err := n.describe(path)
		if err == nil {
			info = n.withDigest(path, f).info
		}
		return err
	})
	return info, n.notFound(err)
}

func (n *nfs) metrics() *storeMetrics { return n.disk.metrics }

// sitePath returns the path of a directory of a site.
func (n *nfs) sitePath(siteID, dir string) string {
	return n.base + "/" + sitesDir + "/" + siteID + "/" + dir
}

// filePath returns the path of the file of a build in dir. It allocates once, since every
// download calls it.
func (n *nfs) filePath(siteID, dir, buildID string) string {
	return n.base + "/" + sitesDir + "/" + siteID + "/" + dir + "/" + buildID + suffixOf(dir)
}

// notFound returns ErrNotFound if err says that a file is missing, or that something else
// has its name. If the store itself is gone it returns ErrUnavailable.
func (n *nfs) notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrOccupied) && !errors.Is(err, ErrUnavailable) {
		if gone := n.checkMounted(); gone != nil {
			return gone
		}
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// openRoot opens the directory that contains the directories of the sites, or the base if
// there is none yet.
func (n *nfs) openRoot() (*os.File, error) {
	dir, err := n.disk.openDir(n.base + "/" + sitesDir)
	if !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	return n.disk.openDir(n.base)
}
