package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sys/unix"
)

const (
	listHelpers    = 32       // threads that help at once with lists, of all sites together
	listParallel   = 16       // and with one
	listCacheBytes = 64 << 20 // of memory, about, for what is remembered of all sites
	listEntryBytes = 16 << 20 // of these, for the entries of logs
)

// listings is what this process remembers of the sites that were listed last.
// It is only ever a short cut: every list asks the store first whether it still
// holds.
type listings struct {
	group   batcher[VersionQuery, []listed] // one list of a site at a time
	helpers chan struct{}

	limits  listLimits
	buffers sync.Pool // of *[]byte, for small logs

	limit      int64 // listCacheBytes
	entryLimit int64 // listEntryBytes

	mu      sync.Mutex
	sites   *simplelru.LRU[string, *siteIndex] // that nobody uses now
	kept    *simplelru.LRU[string, *siteIndex] // those of sites with entries in memory
	used    int                                // sites that somebody uses
	bytes   int64                              // charged for all
	entries int64                              // of these, for entries
	idle    int64                              // of these, for those of kept
}

type listed struct {
	page *VersionPage
	err  error
}

func newListings() *listings {
	l := &listings{helpers: make(chan struct{}, listHelpers),
		limit: listCacheBytes, entryLimit: listEntryBytes, limits: newListLimits()}
	var err error
	if l.kept, err = simplelru.NewLRU(math.MaxInt, func(_ string, ix *siteIndex) { l.idle -= ix.entries }); err != nil {
		panic(err) // the size is a positive constant
	}
	if l.sites, err = simplelru.NewLRU(math.MaxInt, func(siteID string, _ *siteIndex) { l.kept.Remove(siteID) }); err != nil {
		panic(err) // likewise
	}
	return l
}

// budgets implements hasBudgets.
func (n *nfs) budgets() map[string]*budget { return n.lists.limits.budgets() }

// ListVersions implements Backend, with the metadata of all entries.
func (n *nfs) ListVersions(siteID string) ([]*Version, error) {
	page, err := n.ListVersionsPage(siteID, VersionQuery{Metadata: true})
	if err != nil {
		return nil, err
	}
	return page.withLogs(true)
}

// ListVersionsPage implements VersionPager. Lists of one site that are asked for
// while one is made share the next one, so none ever began before it was asked
// for. Where nothing changed, a list costs a look at two directories; where
// something did, reading their names and what changed. Of a page, only the logs
// on it are read, and those of builds without an artifact, whose place in the
// order is in their log. Of a large log a page has what must be known before it is
// sent, and not the entries.
func (n *nfs) ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error) {
	answers, i := n.lists.group.submit(siteID, q, func(queries []VersionQuery) []listed {
		return n.list(siteID, queries)
	})
	return answers[i].page, answers[i].err
}

// list answers queries from one look at the site.
func (n *nfs) list(siteID string, queries []VersionQuery) []listed {
	answers := make([]listed, len(queries))
	ix := n.lists.take(siteID)
	whole := false // what is known of the site can be used again
	defer func() {
		if whole {
			n.lists.keep(siteID, ix)
		} else {
			n.lists.drop(ix)
		}
	}()
	n.disk.metrics.list(len(ix.builds) > 0)
	run := &listRun{listLimits: &n.lists.limits, client: queries[0].Client}
	defer run.close()
	scan, err := n.scanSite(siteID, ix, run)
	if err != nil {
		for i := range answers {
			answers[i].err = fmt.Errorf("cannot list %q: %w", siteID, err)
		}
		return answers // what ix knew is forgotten: it may be half changed
	}
	defer scan.close()
	n.lists.count(ix) // before the entries, which take only the room that is left
	for i, q := range queries {
		answers[i].page, answers[i].err = scan.page(q)
	}
	whole = true
	return answers
}

// take is what is remembered of a site, which from now on is the caller's alone,
// until keep or drop.
func (l *listings) take(siteID string) *siteIndex {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used++
	ix, ok := l.sites.Peek(siteID)
	if !ok {
		return newSiteIndex()
	}
	l.sites.Remove(siteID)
	return ix
}

// charge counts bytes for entries that ix keeps from now on. It reports whether there
// is room for them: the entries of the sites that were listed longest ago, and are not
// used now, make room. What else is remembered comes first.
func (l *listings) charge(ix *siteIndex, bytes int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	full := func() bool { return l.entries+bytes > l.entryLimit || l.bytes+bytes > l.limit*3/4 }
	for full() && l.kept.Len() > 0 {
		_, old, _ := l.kept.RemoveOldest()
		old.forgetLogs() // lists that are being sent still know them
		old.whole = nil  // the next list reads them again
		l.add(old, -old.entries, -old.entries)
	}
	if full() {
		return false
	}
	l.add(ix, bytes, bytes)
	return true
}

// room is how many bytes of entries charge would find room for.
func (l *listings) room() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(0, min(l.entryLimit-(l.entries-l.idle), l.limit*3/4-(l.bytes-l.idle)))
}

// add changes what is counted for ix. The caller holds mu.
func (l *listings) add(ix *siteIndex, bytes, entries int64) {
	l.bytes += bytes
	l.entries += entries
	ix.charged += bytes
	ix.entries += entries
}

// shrink forgets the sites that were listed longest ago until at most the limit is
// charged, or none is left that nobody uses. The caller holds mu.
func (l *listings) shrink() {
	for l.bytes > l.limit && l.sites.Len() > 0 {
		_, old, _ := l.sites.RemoveOldest()
		l.add(old, -old.charged, -old.entries)
		old.forgetLogs()
		if l.sites.Len() == 0 && l.used == 0 {
			l.bytes, l.entries, l.idle = 0, 0, 0 // whatever was counted
		}
	}
}

// keep remembers ix, and forgets the sites that were listed longest ago until
// all fit. Of a site that does not fit alone, the logs are forgotten.
func (l *listings) keep(siteID string, ix *siteIndex) {
	if l.count(ix) > l.limit {
		ix.forgetLogs()
		ix.counted = false
	}
	if l.count(ix) > l.limit || len(ix.builds) == 0 {
		l.drop(ix)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used--
	l.sites.Add(siteID, ix)
	if ix.entries > 0 {
		l.kept.Add(siteID, ix)
		l.idle += ix.entries
	}
	l.shrink()
}

// count charges what ix takes now, whether or not there is room, and returns it.
func (l *listings) count(ix *siteIndex) int64 {
	if ix.counted {
		return ix.charged
	}
	memory, entries := ix.memory()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(ix, memory-ix.charged, entries-ix.entries)
	ix.counted = true
	return memory
}

// drop forgets ix.
func (l *listings) drop(ix *siteIndex) {
	ix.forgetLogs()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used--
	l.add(ix, -ix.charged, -ix.entries)
}

// buffer returns size bytes to read a small log into, until put is called.
func (l *listings) buffer(size int64) (data []byte, put func()) {
	b, ok := l.buffers.Get().(*[]byte)
	if !ok {
		b = new([]byte)
		*b = make([]byte, scanBuffer)
	}
	return (*b)[:size], func() { l.buffers.Put(b) }
}

// parallel calls work with each of 0 to count-1, some at once, and returns one
// of the errors after all is done. It does not begin new work after an error.
func (l *listings) parallel(count int, work func(i int) error) error {
	var (
		wg     sync.WaitGroup
		next   atomic.Int64
		failed atomic.Pointer[error]
	)
	loop := func() {
		for failed.Load() == nil {
			i := int(next.Add(1)) - 1
			if i >= count {
				return
			}
			if err := work(i); err != nil {
				failed.CompareAndSwap(nil, &err)
			}
		}
	}
	for range min(count, listParallel) - 1 {
		select {
		case l.helpers <- struct{}{}:
			wg.Go(func() {
				defer func() { <-l.helpers }()
				loop()
			})
		default: // all are busy: there is still this goroutine
		}
	}
	loop()
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// openBuilds opens the artifacts or the logs of a site. On NFS the client may
// remember that one of the directories on the way was missing; opening the one
// above, from the top, makes it ask again.
func (n *nfs) openBuilds(siteID, dir string) (*os.File, error) {
	path := n.sitePath(siteID, dir)
	f, err := n.disk.openDir(path)
	if !errors.Is(err, fs.ErrNotExist) || !n.remote {
		return f, err
	}
	above := n.base
	for _, name := range []string{"", sitesDir, siteID} {
		above = filepath.Join(above, name)
		d, err := n.disk.openDir(above)
		if err != nil {
			return nil, err
		}
		d.Close()
	}
	return n.disk.openDir(path)
}

// logFile is a log that is open for reading. It is no os.File, which is dear to make
// for each of many small files.
type logFile struct {
	fd   int
	path string
	st   unix.Stat_t
	read int64
}

// openLogAt opens the log name in dir. Its state is told also where it fails, as far
// as it is known. An absent log is fs.ErrNotExist, one of a size that WriteLog never
// makes is ErrLogFull.
func openLogAt(dir *os.File, name string) (*logFile, error) {
	path := dir.Name() + "/" + name
	fd, err := openRead(int(dir.Fd()), name)
	if errors.Is(err, unix.ELOOP) {
		f := &logFile{path: path}
		_ = statAt(dir, name, &f.st)
		return f, fmt.Errorf("%w: %q is a symbolic link", ErrDamaged, path)
	}
	if err != nil {
		return &logFile{path: path}, diskError("open", path, err)
	}
	return newLogFile(fd, path)
}

// newLogFile takes over fd, which it closes where it fails.
func newLogFile(fd int, path string) (*logFile, error) {
	f := &logFile{fd: fd, path: path}
	err := unix.Fstat(fd, &f.st)
	switch {
	case err != nil:
		err = diskError("stat", path, err)
	case f.st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = notAFile(path)
	case f.st.Size == 0:
		err = fmt.Errorf("%w: %q is empty", ErrDamaged, path)
	case f.st.Size > maxLogRead:
		err = fmt.Errorf("%w: %q has %d bytes", ErrLogFull, path, f.st.Size)
	default:
		return f, nil
	}
	unix.Close(fd)
	return f, err
}

func (f *logFile) opened() *openedLog { return &openedLog{f, f.st.Size} }

// Read reads as far as the file went when it was opened.
func (f *logFile) Read(p []byte) (n int, err error) {
	p = p[:min(int64(len(p)), f.st.Size-f.read)]
	if len(p) == 0 {
		return 0, io.EOF
	}
	err = retryEINTR(func() (err error) {
		n, err = unix.Pread(f.fd, p, f.read)
		return err
	})
	if err != nil {
		return 0, diskError("read", f.path, err)
	}
	if n == 0 {
		return 0, diskError("read", f.path, io.ErrUnexpectedEOF)
	}
	f.read += int64(n)
	return n, nil
}

func (f *logFile) Close() error { return unix.Close(f.fd) }

// logOpener opens logs of a site while a list is sent, each when its turn comes.
func (n *nfs) logOpener(siteID string) func(buildID string) (*openedLog, error) {
	return func(buildID string) (log *openedLog, err error) {
		err = n.find(siteID, logsDir, buildID, func(path string) error {
			fd, err := n.disk.openPathRead(path)
			if err != nil {
				return n.disk.openError(path, err)
			}
			f, err := newLogFile(fd, path)
			log = f.opened()
			return err
		})
		return log, err
	}
}
