package main

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const loadedAtOnce = 4096 // logs of a page that are looked at in one go

// keptWhole is the number of versions up to which the list of all is kept. A larger one
// is made again from what is known, which costs less than sending it.
const keptWhole = 20_000

// siteScan brings a siteIndex up to date and answers from it.
type siteScan struct {
	n         *nfs
	run       *listRun
	site      string
	ix        *siteIndex
	start     time.Duration // before anything was looked at
	seen      time.Duration // after the times of the directories were seen
	storeTime int64         // the store's clock read at least this, in nanoseconds, before anything was read
	logs      *os.File      // the directory of logs; nil if it does not exist
	skipped   error         // about a path that is not a directory; nil: no such path
}

// scanSite looks at the directories of a site and reads what changed in them.
func (n *nfs) scanSite(siteID string, ix *siteIndex, run *listRun) (*siteScan, error) {
	s := &siteScan{n: n, run: run, site: siteID, ix: ix, start: n.lists.clock()}
	if !n.remote {
		s.storeTime = n.disk.storeTime()
	}
	// Opened first, both: on NFS that is what brings their times up to date.
	artifacts, artifactsID, err := s.openWatched(artifactsDir)
	if err != nil {
		return nil, err
	}
	defer artifacts.Close()
	logs, logsID, err := s.openWatched(logsDir)
	if err != nil {
		return nil, err
	}
	s.logs = logs
	if err := n.checkMounted(); err != nil { // what is absent, or is there, may be so below a mount that went away
		s.close()
		return nil, err
	}
	s.storeTime, s.seen = max(s.storeTime, artifactsID.ctime, logsID.ctime), n.lists.clock()

	if ix.stale.Swap(false) {
		ix.changed()
	}
	err = s.updateArtifacts(artifacts, artifactsID)
	if err == nil && !ix.logs.unchanged(logsID) {
		err = s.readLogNames(logsID)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *siteScan) close() { s.logs.Close() }

// readArtifacts reads the directory of artifacts, which may be nil, and looks at all
// of them: their times give the order.
func (s *siteScan) readArtifacts(dir *os.File, id fileID) error {
	ix := s.ix
	r, err := ix.artifacts.read(s, dir, id)
	if err != nil {
		return err
	}
	found := make([]builtAt, len(r.builds))
	absent := make([]bool, len(r.builds))
	err = s.n.lists.parallel(len(r.builds), func(i int) error {
		st, err := s.statArtifact(dir, r.builds[i], r.unsure[r.builds[i]])
		absent[i] = st.Mode&unix.S_IFMT != unix.S_IFREG
		found[i] = builtAt{st.Size, st.Mtim.Nano()}
		return err
	})
	if err != nil {
		return err
	}
	for _, build := range r.came {
		ix.move(build)
	}
	for i, f := range r.files {
		switch build := r.builds[i]; {
		case absent[i]:
			r.gone = append(r.gone, build)
		case f.value != found[i]:
			f.value = found[i]
			ix.move(build)
		}
	}
	for _, build := range r.gone {
		delete(ix.artifacts.files, build)
		ix.move(build)
	}
	return nil
}

// statArtifact describes the artifact of a build, with the zero mode if there is
// none, or something else in its place. Where that is unsure it is looked for as for a
// download.
func (s *siteScan) statArtifact(dir *os.File, build string, unsure bool) (st unix.Stat_t, err error) {
	if !unsure {
		err = statAt(dir, build+artifactSuffix, &st)
	}
	if unsure || s.n.remote && errors.Is(err, fs.ErrNotExist) {
		err = s.n.find(s.site, artifactsDir, build, func(path string) error { return s.n.stat(path, &st) })
	}
	switch {
	case err == nil:
		return st, nil
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrOccupied): // a link, or a socket, which is not listed
		return unix.Stat_t{}, nil
	}
	return unix.Stat_t{}, ignoreNotExist(err)
}

// readLogNames reads the names in the directory of logs. Those that were read before
// are checked when they are needed.
func (s *siteScan) readLogNames(id fileID) error {
	ix := s.ix
	r, err := ix.logs.read(s, s.logs, id)
	if err != nil {
		return err
	}
	for build := range r.unsure {
		ix.logs.files[build].value.stable = false // only reading it shows whether it is there
	}
	for _, build := range r.gone {
		s.dropLog(build)
	}
	for _, build := range r.came {
		if ix.artifacts.files[build] == nil {
			ix.move(build)
		}
	}
	ix.changed()
	return nil
}

// dropLog forgets a log that is not there any more.
func (s *siteScan) dropLog(build string) {
	f := s.ix.logs.files[build]
	if f == nil {
		return
	}
	s.setLog(f, nil, logUnread)
	delete(s.ix.logs.files, build)
	delete(s.ix.logOnly, build)
	s.ix.move(build)
}

// sort puts the builds into their order, for which the logs of those that have
// no artifact are read.
func (s *siteScan) sort() error {
	ix := s.ix
	if ix.sorted {
		return nil
	}
	all := ix.places == nil
	if all {
		clear(ix.logOnly) // of an attempt that failed
		for build := range ix.logs.files {
			if ix.artifacts.files[build] == nil {
				ix.logOnly[build] = true
			}
		}
	}
	for build := range ix.moved {
		delete(ix.logOnly, build)
		if ix.artifacts.files[build] == nil && ix.logs.files[build] != nil {
			ix.logOnly[build] = true
		}
	}
	logOnly := make([]place, 0, len(ix.logOnly))
	for build := range ix.logOnly {
		logOnly = append(logOnly, place{build: build})
	}
	if err := s.load(logOnly, false); err != nil {
		return err
	}
	var fresh []place
	add := func(build string) {
		if p, ok := ix.placeOf(build); ok {
			fresh = append(fresh, p)
		}
	}
	if all {
		fresh = make([]place, 0, len(ix.artifacts.files)+len(ix.logOnly))
		for build := range ix.artifacts.files {
			add(build)
		}
		for build := range ix.logOnly {
			add(build)
		}
	}
	for build := range ix.moved {
		add(build)
	}
	ix.places = movePlaces(ix.places, ix.moved, fresh)
	ix.sorted = true
	clear(ix.moved)
	return nil
}

// answer returns the page that q selects, with what it asks for.
func (s *siteScan) answer(q VersionQuery) (*VersionPage, error) {
	page, err := s.page(q)
	if err != nil || !q.Tags {
		return page, err
	}
	return s.withTags(page)
}

// page returns the page that q selects, without the tags of versions.
func (s *siteScan) page(q VersionQuery) (*VersionPage, error) {
	ix := s.ix
	whole := q.Limit == 0 && q.Cursor == ""
	if whole {
		if page := ix.wholePage(); page != nil {
			return page, nil
		}
		if ix.seal != nil && ix.seal.Tag == q.Tag {
			return &VersionPage{pageSeal: *ix.seal}, nil
		}
	}
	if err := s.sort(); err != nil {
		return nil, err
	}
	places, next, err := cutPage(ix.places, func(p place) place { return p }, q)
	if err != nil {
		return nil, err
	}
	page := s.newPage(len(places), next)
	versions := make([]Version, len(places))
	known := whole
	for some := range slices.Chunk(places, loadedAtOnce) {
		if err := s.load(some, true); err != nil {
			return nil, err
		}
		for _, p := range some {
			v := &versions[0]
			read, kept, ok := ix.describe(p.build, v)
			if ok { // else it went while this was made
				page.Versions, versions = append(page.Versions, v), versions[1:]
			}
			known, whole = known && read, whole && kept
		}
	}
	known, whole = known && ix.sorted, whole && ix.sorted
	if known && ix.seal != nil {
		page.pageSeal = *ix.seal
	} else {
		page.seal()
	}
	if known {
		seal := page.pageSeal // a pointer into page would keep all of it
		ix.seal = &seal
	}
	if whole {
		ix.setWhole(page)
	}
	return page, nil
}

// newPage returns a page without versions, for count of them.
func (s *siteScan) newPage(count int, next string) *VersionPage {
	stale := s.ix.stale // a page that is being sent must not keep ix in memory
	return &VersionPage{
		Versions:   make([]*Version, 0, count),
		NextCursor: next,
		OpenLog:    s.n.logOpener(s.site),
		ForgetLog: func(v *Version) {
			v.Stored.stale.Store(true)
			stale.Store(true)
		},
	}
}

// describe makes the version of a build, if it is there. read reports whether its log need
// not be read again while nothing changes, and kept whether its entries need not either.
func (ix *siteIndex) describe(build string, v *Version) (read, kept, ok bool) {
	artifact, log := ix.artifacts.files[build], ix.logs.files[build]
	if artifact == nil && log == nil {
		return false, false, false
	}
	v.BuildID, read, kept = build, true, true
	if log != nil {
		v.CreatedAt, v.LogsError, v.Stored = log.value.createdAt(), log.value.state.problem(), log.value.log
		read = log.value.state.known()
		kept = read && !log.value.log.wanting()
	}
	if artifact != nil {
		v.SizeBytes, v.CreatedAt = artifact.value.size, time.Unix(0, artifact.value.mtime).UTC()
	}
	return read, kept, true
}
