package main

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"slices"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sys/unix"
)

const knownLogs = 4096 // logs remembered as undamaged: about 1 MB

// WriteLog implements Backend. Entries of a build that arrive while its log is being
// written share the next write. So an entry waits for at most two writes.
func (n *nfs) WriteLog(siteID string, entry LogEntry) error {
	errs, i := n.appends.submit(siteID+"/"+entry.BuildID, entry, func(entries []LogEntry) []error {
		return n.appendLog(siteID, entry.BuildID, entries)
	})
	return errs[i]
}

// AppendLog implements LogAppender.
func (n *nfs) AppendLog(siteID, buildID string, entries []LogEntry) []error {
	return n.appendLog(siteID, buildID, entries)
}

// acquireAppend takes a slot for an entry that has to wait for the write before its own.
// key is the key of WriteLog.
func (n *nfs) acquireAppend(key string) (release func(), rejected []error) {
	siteID, buildID, _ := strings.Cut(key, "/")
	place, err := n.waitPlace("entries", siteID, buildID)
	if err != nil {
		return nil, []error{err}
	}
	return place.release, nil
}

// appendLog appends entries to the log of a build, and returns the error of each.
func (n *nfs) appendLog(siteID, buildID string, entries []LogEntry) []error {
	n.disk.metrics.batch.Update(float64(len(entries)))
	errs := make([]error, len(entries))
	err := n.appendAll(siteID, buildID, entries, errs)
	if errors.Is(err, ErrDamaged) { // the handler logs it, with the id of the request
		err = fmt.Errorf("%w; appends are refused until the log is repaired manually", err)
	}
	if err != nil { // the error of all: a single one in errs may refer to an entry that was not written
		return slices.Repeat([]error{err}, len(entries))
	}
	return errs
}

// appendAll does the work of appendLog. If its result is not nil it is the error of every
// entry; otherwise errs has the error of each. Its use of memory does not grow with the
// log.
func (n *nfs) appendAll(siteID, buildID string, entries []LogEntry, errs []error) error {
	if err := n.checkMounted(); err != nil {
		return err
	}
	lock, err := n.lockBuild(siteID, logsDir, buildID, true)
	if err != nil {
		return err
	}
	defer lock.release()
	// The order matters: lock, then directory, then log. An NFS client may have cached that
	// there is no such file, and opening the directory revalidates that. Otherwise this
	// would overwrite entries of another host.
	dir, err := n.disk.ensureDir(n.base, sitesDir, siteID, logsDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := n.checkMounted(); err != nil { // the directory may be below a mount that disappeared
		return err
	}
	name := buildID + logSuffix
	path := dir.Name() + "/" + name
	old, err := n.openLog(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := n.finishReplacement(dir, name); err != nil {
			return err
		}
		old, err = n.openLog(dir, name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		old, err = &oldLog{}, nil
	}
	if err != nil {
		return err
	}
	defer old.close()
	if diff := n.disk.clockDiffOf(dir); diff != 0 {
		entries = slices.Clone(entries)
		for i := range entries {
			if !entries[i].Copied {
				entries[i].Timestamp = entries[i].Timestamp.Add(diff)
			}
		}
	}
	if err := old.scan(idsToFind(entries), n.verified.seed, func(sum uint64) bool { return n.verified.has(path, sum) }); err != nil {
		return fmt.Errorf("cannot append to %q: %w", path, err)
	}
	tail := old.grow(entries, errs)
	if len(tail) == 0 {
		lock.release()
		// The writer of the existing entry may not have fsynced it yet.
		return n.disk.syncDir(dir)
	}
	temp, err := n.replaceLog(dir, name, lock, old, tail)
	if err != nil {
		return err
	}
	lock.release()
	old.sum.Write(tail)
	n.verified.add(path, old.sum.Sum64())
	return temp.syncDir()
}

// replaceLog replaces the log file name by the head of old followed by tail, unless the
// lock was lost. The change is durable after syncDir of the returned file.
func (n *nfs) replaceLog(dir *os.File, name string, lock *buildLock, old *oldLog, tail []byte) (*tempFile, error) {
	temp, err := n.disk.createTemp(dir)
	if err != nil {
		return nil, err
	}
	defer temp.discard()
	if err := old.copyTo(temp, tail); err != nil {
		return nil, err
	}
	old.close() // an NFS client renames an open file to .nfsXXXX instead of removing it
	if _, err := temp.seal(); err != nil {
		return nil, err
	}
	if err := lock.alive(); err != nil {
		return nil, err
	}
	return temp, n.putInPlace(temp, name, lock)
}

// openLog opens a log file for appending. It returns the errors of openLogAt.
func (n *nfs) openLog(dir *os.File, name string) (*oldLog, error) {
	f, err := openLogAt(dir, name)
	if err != nil {
		return nil, err
	}
	if f.st.Size > logPiece {
		_, _ = unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, 0) // as in openAt: do not use the poller
		return &oldLog{f: os.NewFile(uintptr(f.fd), f.path), size: f.st.Size}, nil
	}
	defer f.Close()
	data, err := readAll(f.fd, f.path, f.st.Size)
	return &oldLog{data: data, size: f.st.Size}, err
}

// copyTo writes the head of the log and tail to temp.
func (l *oldLog) copyTo(temp *tempFile, tail []byte) error {
	if l.f == nil {
		_, err := temp.Write(slices.Concat(l.data[:l.head], tail))
		return err
	}
	if err := temp.copyFile(l.f, l.head); err != nil {
		return err
	}
	_, err := temp.Write(tail)
	return err
}

// verifiedLogs remembers, by path, a hash of each log that this process wrote. Content with
// that hash is undamaged, whatever happened to the file since. It is safe for concurrent
// use.
type verifiedLogs struct {
	seed maphash.Seed
	sums *lru.Cache[string, uint64]
}

func newVerifiedLogs() verifiedLogs {
	return verifiedLogs{maphash.MakeSeed(), newLRU[string, uint64](knownLogs)}
}

// add remembers the hash of the log at path.
func (s verifiedLogs) add(path string, sum uint64) { s.sums.Add(path, sum) }

// has reports whether sum is the remembered hash of path.
func (s verifiedLogs) has(path string, sum uint64) bool {
	known, ok := s.sums.Get(path)
	return ok && known == sum
}
