package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sys/unix"
)

// The digests of artifacts, in files of their own:
//
//	{base}/sites/{site}/digests/{build}.sha256
//
// The two files of a build cannot change in one step. So the file of the digest says which
// artifact it belongs to (nfs_digest_format.go), and a reader compares that with the artifact
// that it has open. A digest of another artifact is as good as none. That also holds if a
// replica of an older version, or an administrator, replaces the artifact.
//
// Not extended attributes: NFSv3, NFSv4.1 and EFS have none, and copies lose them.

const (
	digestsKept   = 32768            // digests in the cache: at most about 10 MB
	digestUnknown = 10 * time.Second // for how long an unknown digest is not looked for again
)

// digestCache remembers digests by the identity of the artifact, and sites without digests.
// It is safe for concurrent use.
type digestCache struct {
	found *lru.Cache[artifactID, foundDigest]
	none  *lru.Cache[string, time.Time] // sites that had no directory of digests, and until when that holds
	now   func() time.Time
}

// artifactID identifies an artifact whose times are not coarse: by device and inode, or in a
// list, which has neither, by site and build.
type artifactID struct {
	siteID, buildID string
	dev, ino        uint64
	size, mtime     int64
}

// foundDigest is a digest, or, until a time, that it is not known.
type foundDigest struct {
	sum   Digest
	until time.Time
}

// holds reports whether the digest need not be looked for again.
func (f foundDigest) holds(now time.Time) bool { return f.sum.known() || now.Before(f.until) }

func newDigestCache() *digestCache {
	return &digestCache{newLRU[artifactID, foundDigest](digestsKept), newLRU[string, time.Time](digestsKept / 32), time.Now}
}

func artifactIDOf(st *unix.Stat_t) artifactID {
	return artifactID{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim.Nano()}
}

func listedID(siteID, buildID string, b boundTo) artifactID {
	return artifactID{siteID: siteID, buildID: buildID, size: b.size, mtime: b.mtime.Nano()}
}

// add remembers what was found about an artifact, unless its times are so coarse that another
// one could have the same ones.
func (c *digestCache) add(st *unix.Stat_t, f foundDigest) {
	if !isCoarse(st.Mtim) {
		c.found.Add(artifactIDOf(st), f)
	}
}

// useDigests makes the store keep digests and look them up. It is called before the first
// request.
func (n *nfs) useDigests() { n.digests = newDigestCache() }

// digestOf returns the digest of the artifact at filePath that st describes. If it is not
// kept or cannot be read, it is not known.
func (n *nfs) digestOf(filePath string, st *unix.Stat_t) foundDigest {
	c := n.digests
	now := c.now()
	if f, ok := c.found.Get(artifactIDOf(st)); ok && f.holds(now) {
		return f
	}
	f := foundDigest{until: now.Add(digestUnknown)}
	siteID, buildID := n.artifactAt(filePath)
	b, sum, err := n.readDigest(siteID, buildID)
	if err == nil && b == boundToFile(st) {
		f.sum = sum
	}
	n.logUnread(siteID, buildID, err)
	c.add(st, f)
	return f
}

// logUnread logs err, from reading a digest, unless there is no digest.
func (n *nfs) logUnread(siteID, buildID string, err error) {
	if ignoreNotExist(err) != nil {
		n.floods.add("digest", slog.LevelWarn, "cannot read a digest", "site", siteID, "build", buildID, "error", err)
	}
}

// artifactAt returns the build whose artifact is at filePath, which find passed to open.
func (n *nfs) artifactAt(filePath string) (siteID, buildID string) {
	dir, name := path.Split(strings.TrimPrefix(filePath, n.base+"/"+sitesDir+"/"))
	if of, ok := isInterimName(name); ok {
		name = of
	}
	return strings.TrimSuffix(dir, "/"+artifactsDir+"/"), strings.TrimSuffix(name, artifactSuffix)
}

// readDigest returns what is kept of a build. It fails with fs.ErrNotExist if that is
// nothing, and with ErrDamaged.
func (n *nfs) readDigest(siteID, buildID string) (boundTo, Digest, error) {
	dir, err := n.openDigests(siteID)
	if err != nil {
		return boundTo{}, Digest{}, err
	}
	defer dir.Close()
	return readDigestAt(dir, buildID)
}

// openDigests opens the directory of the digests of a site, or fails with fs.ErrNotExist.
// That it is missing is remembered, because stores without digests must not pay for them.
func (n *nfs) openDigests(siteID string) (*os.File, error) {
	if until, ok := n.digests.none.Get(siteID); ok && n.digests.now().Before(until) {
		return nil, fs.ErrNotExist
	}
	dir, err := n.openBuilds(siteID, digestsDir)
	if errors.Is(err, fs.ErrNotExist) {
		n.digests.none.Add(siteID, n.digests.now().Add(digestUnknown))
	}
	return dir, err
}

// readDigestAt reads the file of a digest in dir. It does not follow a symbolic link.
func readDigestAt(dir *os.File, buildID string) (b boundTo, sum Digest, err error) {
	name := fileName(digestsDir, buildID)
	data, _, err := readFile(dir, name, maxDigestFile)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, ErrOccupied) || errors.Is(err, io.ErrUnexpectedEOF) {
		data, err = nil, nil // a link, a socket, or a file that was cut meanwhile
	}
	if err != nil {
		return b, sum, err
	}
	binding, sum, ok := parseDigestFile(buildID, data)
	if ok {
		b, ok = parseBinding(binding)
	}
	if !ok {
		return b, Digest{}, &damagedDigest{dir.Name() + "/" + name}
	}
	return b, sum, nil
}

// damagedDigest is the ErrDamaged of a file at path that is no digest.
type damagedDigest struct{ path string }

func (e *damagedDigest) Error() string {
	return fmt.Sprintf("the digest in %q is damaged, or the service did not write it", e.path)
}

func (e *damagedDigest) Unwrap() error { return ErrDamaged }

// newDigest is the digest of an upload. A nil newDigest does nothing.
type newDigest struct {
	n               *nfs
	dir             *os.File
	siteID, buildID string
	sum             Digest    // set by seal
	temp            *tempFile // nil: not written
}

// prepareDigest returns the newDigest of an upload from reader, or nil if its digest is not
// kept. The caller closes it.
func (n *nfs) prepareDigest(siteID, buildID string, reader io.Reader) (*newDigest, error) {
	if h, ok := reader.(Hashed); n.digests == nil || !ok || !h.Hashes() {
		return nil, nil
	}
	return n.openNewDigest(siteID, buildID)
}

func (n *nfs) openNewDigest(siteID, buildID string) (*newDigest, error) {
	dir, err := n.disk.ensureDir(n.base, sitesDir, siteID, digestsDir)
	if err != nil {
		return nil, err
	}
	n.digests.none.Remove(siteID)
	return &newDigest{n: n, dir: dir, siteID: siteID, buildID: buildID}, nil
}

func (d *newDigest) close() {
	if d == nil {
		return
	}
	if d.temp != nil {
		d.temp.discard()
	}
	d.dir.Close()
}

// digest returns the digest once it is known.
func (d *newDigest) digest() (sum Digest) {
	if d != nil {
		sum = d.sum
	}
	return sum
}

// seal seals artifact and, with the same sync, its digest. It only seals the artifact if its
// time may still change: then bind writes the digest.
func (d *newDigest) seal(artifact *tempFile, sum Digest) error {
	if err := artifact.finish(); err != nil {
		return err
	}
	if d == nil || !sum.known() {
		return sealFinished(artifact)
	}
	d.sum = sum
	if artifact.coarse {
		return sealFinished(artifact)
	}
	if err := d.write(&artifact.stat); err != nil {
		return err
	}
	return sealFinished(artifact, d.temp)
}

// write writes the file of the digest under a temporary name, bound to the artifact that st
// describes.
func (d *newDigest) write(st *unix.Stat_t) (err error) {
	if d.temp, err = d.n.disk.createTemp(d.dir); err != nil {
		return err
	}
	if _, err := d.temp.Write(formatDigest(d.buildID, boundToFile(st).String(), d.sum)); err != nil {
		return err
	}
	return d.temp.finish()
}

// writeSealed is write, and seals the file.
func (d *newDigest) writeSealed(st *unix.Stat_t) error {
	if err := d.write(st); err != nil {
		return err
	}
	return sealFinished(d.temp)
}

// bind is called when the attributes of the artifact are final, right before it becomes
// visible. From then on this process knows the digest.
func (d *newDigest) bind(artifact *tempFile) error {
	if !d.digest().known() {
		return nil
	}
	if d.temp == nil {
		if err := d.writeSealed(&artifact.stat); err != nil {
			return err
		}
	}
	d.n.digests.add(&artifact.stat, foundDigest{sum: d.sum})
	return nil
}

// place makes the digest of an upload visible, whose artifact just became visible. So a failure
// is only logged: then the digest is unknown. lock is as in alive.
func (d *newDigest) place(lock *buildLock) error {
	if err := d.alive(lock); err != nil {
		return err
	}
	if err := d.commit(); err != nil {
		d.n.floods.add("digest", slog.LevelWarn, "the build was stored, but its digest could not be kept", "site", d.siteID, "build", d.buildID, "error", err)
		d.n.dropDigest(d.siteID, d.buildID)
	}
	return nil
}

// alive fails if the lock of the build was lost. lock is nil if the mount has no locks.
func (d *newDigest) alive(lock *buildLock) error {
	if !d.n.remote || lock == nil {
		return nil
	}
	return lock.alive()
}

// commit makes the digest visible.
func (d *newDigest) commit() error { return d.temp.replace(fileName(digestsDir, d.buildID)) }

// syncDir makes what commit did durable.
func (d *newDigest) syncDir() error {
	if d == nil || d.temp == nil || !d.temp.committed {
		return nil
	}
	return d.temp.syncDir()
}

// openFresh opens the directory of the digests or of the labels of a site, or fails with
// fs.ErrNotExist. It does not miss one which another replica just made.
func (n *nfs) openFresh(siteID, kind string) (*os.File, error) {
	path := n.sitePath(siteID, kind)
	dir, err := n.disk.openDir(path)
	if !n.remote || !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	site, err := n.disk.openDir(n.sitePath(siteID, "")) // revalidates the cache of the NFS client
	if err != nil {
		return nil, err
	}
	site.Close()
	return n.disk.openDir(path)
}

// dropDigest removes the digest of an artifact that was replaced or removed, also if this
// process keeps none. Nobody would use it, so it may stay: that is only logged. But then verify
// takes the artifact for changed by something else than the service.
func (n *nfs) dropDigest(siteID, buildID string) {
	if err := n.removeDigest(siteID, buildID); err != nil {
		n.floods.add("digest", slog.LevelWarn, "cannot remove a stale digest, which nobody uses", "site", siteID, "build", buildID, "error", err)
	}
}

// removeDigest removes the digest of a build. It succeeds if there is none.
func (n *nfs) removeDigest(siteID, buildID string) error {
	dir, err := n.openFresh(siteID, digestsDir)
	if err != nil {
		return ignoreNotExist(err)
	}
	defer dir.Close()
	return n.disk.remove(dir, fileName(digestsDir, buildID))
}
