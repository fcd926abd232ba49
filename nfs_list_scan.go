package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// siteScan brings a siteIndex up to date and answers from it.
type siteScan struct {
	n    *nfs
	run  *listRun
	site string
	ix   *siteIndex
	now  time.Time // before anything was looked at
	seen time.Time // after the times of the directories were seen
	then int64     // the store's clock read at least this, in nanoseconds, before anything was read
	logs *os.File  // the directory of logs; nil: there is none
}

// scanSite looks at the directories of a site and reads what changed in them.
func (n *nfs) scanSite(siteID string, ix *siteIndex, run *listRun) (*siteScan, error) {
	s := &siteScan{n: n, run: run, site: siteID, ix: ix, now: time.Now()}
	if !n.remote {
		s.then = n.disk.storeTime()
	}
	// Opened first, both: on NFS that is what brings their times up to date.
	artifacts, artifactsID, err := n.openWatched(siteID, artifactsDir)
	if err != nil {
		return nil, err
	}
	defer artifacts.Close()
	logs, logsID, err := n.openWatched(siteID, logsDir)
	if err != nil {
		return nil, err
	}
	s.logs = logs
	if err := n.checkMounted(); err != nil { // what is absent, or is here, may be so below a mount that went away
		s.close()
		return nil, err
	}
	s.then, s.seen = max(s.then, artifactsID.ctime, logsID.ctime), time.Now()

	ix.unloadStale()
	if s.mustRead(&ix.artifacts, artifactsID) {
		err = s.readArtifacts(artifacts)
	}
	if err == nil && s.mustRead(&ix.logs, logsID) {
		err = s.readLogNames()
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *siteScan) close() { s.logs.Close() }

// openWatched opens a directory of a site and describes it. An absent one is
// nil (which can be closed) and the zero fileID, and so is something else in its place.
func (n *nfs) openWatched(siteID, name string) (*os.File, fileID, error) {
	dir, err := n.openBuilds(siteID, name)
	if errors.Is(err, ErrOccupied) && !errors.Is(err, ErrUnavailable) {
		n.log.Warn("cannot list what is no directory", "site", siteID, "error", err)
		return nil, fileID{}, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fileID{}, nil
	}
	if err != nil {
		return nil, fileID{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		dir.Close()
		return nil, fileID{}, diskError("stat", dir.Name(), err)
	}
	return dir, idOf(&st), nil
}

// mustRead tells whether d, which is now id, may have changed since it was
// read, and takes note that it is read now.
func (s *siteScan) mustRead(d *watchedDir, id fileID) bool {
	if d.id == id && d.settled {
		return false
	}
	if d.id != id || d.since.IsZero() {
		d.id, d.since = id, s.seen
	}
	d.settled = s.now.Sub(d.since) >= settleTime || id.settledAt(s.then)
	return true
}

// readArtifacts reads the directory of artifacts; nil: there is none.
func (s *siteScan) readArtifacts(dir *os.File) error {
	ids, unsure, err := s.readBuilds(artifactsDir, dir, s.ix.artifacts.id)
	if err != nil {
		return err
	}
	ix := s.ix
	if err := s.run.sized(len(ids) - len(ix.builds)); err != nil {
		return err
	}
	if s.n.remote && dir != nil {
		for id, b := range ix.builds {
			if b.hasArtifact {
				unsure[id] = true // unless it is listed
			}
		}
	}
	ids = withUnsure(ids, unsure)
	found := make([]unix.Stat_t, len(ids)) // the zero mode: there is no such file now
	err = s.n.lists.parallel(len(ids), func(i int) (err error) {
		if !unsure[ids[i]] {
			err = statAt(dir, ids[i]+artifactSuffix, &found[i])
		}
		if unsure[ids[i]] || s.n.remote && errors.Is(err, fs.ErrNotExist) {
			err = s.n.find(s.site, artifactsDir, ids[i], func(path string) error { return s.n.stat(path, &found[i]) })
		}
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrOccupied) { // a link, or a socket, which is not listed
			return nil
		}
		return ignoreNotExist(err)
	})
	if err != nil {
		return err
	}
	ix.round++
	for i, id := range ids {
		if found[i].Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		b := ix.get(id)
		b.artifactRound = ix.round
		if b.setArtifact(&found[i]) {
			ix.changed(b, false)
		}
	}
	for _, b := range ix.builds {
		if b.hasArtifact && b.artifactRound != ix.round {
			b.hasArtifact, b.size, b.mtime = false, 0, 0
			b.describe()
			ix.drop(b)
		}
	}
	return nil
}

// readLogNames reads the directory of logs, and looks at those known before.
func (s *siteScan) readLogNames() error {
	ids, unsure, err := s.readBuilds(logsDir, s.logs, s.ix.logs.id)
	if err != nil {
		return err
	}
	ix := s.ix
	if err := s.run.sized(len(ids) - len(ix.builds)); err != nil {
		return err
	}
	if s.n.remote && s.logs != nil {
		for id, b := range ix.builds {
			if b.hasLog {
				unsure[id] = true // unless it is listed
			}
		}
	}
	ix.round++
	var known []*siteBuild
	for _, id := range withUnsure(ids, unsure) { // reading the log settles what is unsure
		b := ix.get(id)
		b.logRound = ix.round
		if !b.hasLog {
			b.hasLog = true
			b.describe()
			ix.changed(b, true)
		} else if b.loaded {
			known = append(known, b)
		}
	}
	found := make([]unix.Stat_t, len(known))
	stale := make([]bool, len(known))
	err = s.n.lists.parallel(len(known), func(i int) error {
		if stale[i] = !known[i].settled || unsure[known[i].id]; stale[i] {
			return nil
		}
		err := statAt(s.logs, known[i].id+logSuffix, &found[i])
		stale[i] = err != nil || idOf(&found[i]) != known[i].logID
		return ignoreNotExist(err)
	})
	if err != nil {
		return err
	}
	for i, b := range known {
		if stale[i] {
			b.unload()
			ix.changed(b, true)
		}
	}
	for _, b := range ix.builds {
		if b.hasLog && b.logRound != ix.round {
			b.removeLog()
			ix.drop(b)
		}
	}
	return nil
}

// sort puts the builds into their order, for which the logs of those that have
// no artifact are read.
func (s *siteScan) sort() error {
	ix := s.ix
	if ix.order != nil {
		return nil
	}
	var unplaced []*siteBuild
	for _, b := range ix.builds {
		if !b.hasArtifact && !b.loaded {
			unplaced = append(unplaced, b)
		}
	}
	if err := s.load(unplaced); err != nil {
		return err
	}
	order := make([]*Version, 0, len(ix.builds))
	for _, b := range ix.builds {
		order = append(order, b.version)
	}
	slices.SortFunc(order, compareVersions)
	ix.order = order
	return nil
}

// page is the page that q selects.
func (s *siteScan) page(q VersionQuery) (*VersionPage, error) {
	ix := s.ix
	whole := q.Limit == 0 && q.Cursor == ""
	if whole && ix.whole != nil {
		return ix.whole, nil
	}
	if err := s.sort(); err != nil {
		return nil, err
	}
	found, err := pageVersions(ix.order, q)
	if err != nil {
		return nil, err
	}
	builds := make([]*siteBuild, len(found.Versions))
	var missing []*siteBuild
	room := int64(-1) // not known
	for i, v := range found.Versions {
		b := ix.builds[v.BuildID]
		builds[i] = b
		switch {
		case b.hasLog && !b.loaded:
			missing = append(missing, b)
		case b.log.wanting():
			// There was no room for its entries. If there is now they are read again.
			if room < 0 {
				room = s.n.lists.room()
			}
			if b.log.cost <= room {
				room -= b.log.cost
				missing = append(missing, b)
			}
		}
	}
	if err := s.load(missing); err != nil {
		return nil, err
	}
	page := &VersionPage{Versions: make([]*Version, 0, len(builds)), NextCursor: found.NextCursor, OpenLog: s.n.logOpener(s.site)}
	stale := ix.stale // a page that is being sent must not keep ix in memory
	page.ForgetLog = func(v *Version) {
		v.Stored.stale.Store(true)
		stale.Store(true)
	}
	sums := make([][16]byte, 0, len(builds)+1)
	for _, b := range builds {
		if b.hasArtifact || b.hasLog { // else it went while this was made
			page.Versions = append(page.Versions, b.version)
			sums = append(sums, b.sum)
		}
		whole = whole && (!b.hasLog || b.loaded) && !b.log.wanting()
	}
	page.seal(sums)
	if whole && ix.order != nil {
		ix.whole, ix.order = page, page.Versions
	}
	return page, nil
}

// load reads the logs of builds. If a log cannot be read its version says so;
// only a store that cannot be reached is an error.
func (s *siteScan) load(builds []*siteBuild) error {
	if len(builds) == 0 {
		return nil
	}
	sums := make([][16]byte, len(builds))
	for i, b := range builds {
		sums[i] = b.sum
	}
	s.ix.counted = false
	err := s.n.lists.parallel(len(builds), func(i int) error { return s.loadOne(builds[i]) })
	for i, b := range builds {
		switch {
		case !b.hasLog:
			s.ix.drop(b)
		case sums[i] != ([16]byte{}) && sums[i] != b.sum: // it was known as something else
			s.ix.changed(b, true)
		}
	}
	return err
}

// loadOne reads the log of b, of which it changes nothing that another one
// shares.
func (s *siteScan) loadOne(b *siteBuild) error {
	start := time.Now()
	name := b.id + logSuffix
	scan, st, err := s.scanLog(b, name)
	if errors.Is(err, fs.ErrNotExist) {
		err = s.n.find(s.site, logsDir, b.id, func(path string) (err error) {
			scan, st, err = s.scanLog(b, path[strings.LastIndexByte(path, '/')+1:])
			return err
		})
	}
	if errors.Is(err, fs.ErrNotExist) {
		b.removeLog()
		return nil
	}
	if errors.Is(err, ErrUnavailable) || errors.Is(err, ErrBusy) {
		return err
	}
	id := idOf(&st)
	told := id == b.logID
	if !told {
		b.logID, b.logSince = id, time.Now()
	}
	b.settled = start.Sub(b.logSince) >= settleTime || id.settledAt(s.then)
	switch {
	case err == nil:
		b.setLog(scan.done(func(cost int64) bool { return s.n.lists.charge(s.ix, cost) }), "")
		return nil
	case errors.Is(err, ErrDamaged), errors.Is(err, ErrOccupied), errors.Is(err, ErrLogFull):
		if !told {
			s.n.log.Error("a log cannot be listed", "file", s.logs.Name()+"/"+name, "error", err)
		}
		why := ErrDamaged
		if errors.Is(err, ErrLogFull) {
			why = ErrLogFull
		}
		b.setLog(nil, why.Error())
		return nil
	}
	s.n.log.Error("a log cannot be read", "file", s.logs.Name()+"/"+name, "error", err)
	b.setLog(nil, unreadableLog)
	b.loaded = false // so that the next list tries again
	return nil
}

// unreadableLog is why the entries of a log are not listed that is there, and cannot
// be read.
const unreadableLog = "the log cannot be read"

// scanLog reads the file name of the log of b and describes exactly what it read.
func (s *siteScan) scanLog(b *siteBuild, name string) (*logScan, unix.Stat_t, error) {
	file, err := openLogAt(s.logs, name)
	if err != nil {
		return nil, file.st, err
	}
	defer file.Close()
	scan := newLogScan(b.id)
	if file.st.Size <= scanBuffer { // many are this small, and this is the faster way
		data, put := s.n.lists.buffer(file.st.Size)
		defer put()
		if _, err := io.ReadFull(file, data); err != nil {
			return nil, file.st, err
		}
		entries, err := parseLog(data)
		scan.entries = entries[:0] // add puts them where they are
		for i := range entries {
			scan.add(&entries[i])
		}
		return scan, file.st, err
	}
	memory, err := s.run.scan(file.st.Size)
	if err != nil {
		return nil, file.st, err
	}
	defer memory.release()
	return scan, file.st, file.opened().scan(func(e LogEntry) error {
		scan.add(&e)
		return nil
	})
}
