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

const knownLogs = 4096 // logs remembered as sound: about a megabyte

// WriteLog implements Backend. Entries of one build that arrive while its log
// is being written go into it together, by the next write: so an entry waits for
// two writes at most.
func (n *nfs) WriteLog(siteID string, entry LogEntry) error {
	errs, i := n.appends.submit(siteID+"/"+entry.BuildID, entry, func(entries []LogEntry) []error {
		return n.appendLog(siteID, entry.BuildID, entries)
	})
	return errs[i]
}

// enterAppends takes a place for an entry that has to wait for the write before
// its own. key is that of WriteLog.
func (n *nfs) enterAppends(key string) (leave func(), refused []error) {
	siteID, buildID, _ := strings.Cut(key, "/")
	place, err := n.waitPlace("entries", siteID, buildID)
	if err != nil {
		return nil, []error{err}
	}
	return place.release, nil
}

// appendLog appends entries to the log of a build, and tells of each whether it
// is in the log now.
func (n *nfs) appendLog(siteID, buildID string, entries []LogEntry) []error {
	n.disk.metrics.batch.Update(float64(len(entries)))
	errs := make([]error, len(entries))
	err := n.appendAll(siteID, buildID, entries, errs)
	if errors.Is(err, ErrDamaged) {
		n.log.Error("the log is corrupt; appends are refused until it is repaired manually", "error", err)
	}
	if err != nil { // of all, since errs of some may be due to others that were not written
		return slices.Repeat([]error{err}, len(entries))
	}
	return errs
}

// appendAll does the work of appendLog. Its result is the error of all entries; if it
// is nil, errs has those of single ones. The memory that it takes does not grow with
// the log.
func (n *nfs) appendAll(siteID, buildID string, entries []LogEntry, errs []error) error {
	if err := n.checkMounted(); err != nil {
		return err
	}
	lock, err := n.lockBuild(siteID, logsDir, buildID, true)
	if err != nil {
		return err
	}
	defer lock.release()
	// Only after the lock, the directory, and only then the log: an NFS client
	// may remember that there was no such file, and opening the directory makes
	// it ask again. Else this would write over the entries of another host.
	dir, err := n.disk.ensureDir(n.base, sitesDir, siteID, logsDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := n.checkMounted(); err != nil { // the directory may be one below a mount that went away
		return err
	}
	name := buildID + logSuffix
	path := dir.Name() + "/" + name
	old, err := n.openLog(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := n.finishReplacement(dir, name); err != nil {
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
			entries[i].Timestamp = entries[i].Timestamp.Add(diff)
		}
	}
	if err := old.scan(idsToFind(entries), n.verified.seed, func(sum uint64) bool { return n.verified.has(path, sum) }); err != nil {
		return fmt.Errorf("cannot append to %q: %w", path, err)
	}
	tail := old.grow(entries, errs)
	if len(tail) == 0 {
		lock.release()
		// Who wrote the entry before may not have come as far as this.
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

// replaceLog puts a log file of the head of old and tail in the place of name,
// unless the lock was lost meanwhile. It is durable after syncDir of what it returns.
func (n *nfs) replaceLog(dir *os.File, name string, lock *buildLock, old *oldLog, tail []byte) (*tempFile, error) {
	temp, err := n.disk.createTemp(dir)
	if err != nil {
		return nil, err
	}
	defer temp.discard()
	if err := old.copyTo(temp, tail); err != nil {
		return nil, err
	}
	old.close() // an NFS client would rename it to .nfsXXXX when it is removed
	if _, err := temp.seal(); err != nil {
		return nil, err
	}
	if err := lock.alive(); err != nil {
		return nil, err
	}
	return temp, n.putInPlace(temp, name, lock)
}

// openLog opens a log file to add to it. Its errors are those of openLogAt.
func (n *nfs) openLog(dir *os.File, name string) (*oldLog, error) {
	f, err := openLogAt(dir, name)
	if err != nil {
		return nil, err
	}
	if f.st.Size > logPiece {
		_, _ = unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, 0) // as openAt: the poller is not asked
		return &oldLog{f: os.NewFile(uintptr(f.fd), f.path), size: f.st.Size}, nil
	}
	defer f.Close()
	data, err := readAll(f.fd, f.path, f.st.Size)
	return &oldLog{data: data, size: f.st.Size}, err
}

// copyTo writes into temp what stays of the log, and tail.
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

// verifiedLogs remembers by their paths the logs that this process wrote, each as a
// hash of what it wrote. What is read and has that hash is sound, whatever
// happened to the file meanwhile. Safe for concurrent use.
type verifiedLogs struct {
	seed maphash.Seed
	sums *lru.Cache[string, uint64]
}

func newVerifiedLogs() verifiedLogs {
	return verifiedLogs{maphash.MakeSeed(), newLRU[string, uint64](knownLogs)}
}

// add remembers the hash of the log at path.
func (s verifiedLogs) add(path string, sum uint64) { s.sums.Add(path, sum) }

// has reports whether sum is what was remembered of path.
func (s verifiedLogs) has(path string, sum uint64) bool {
	known, ok := s.sums.Get(path)
	return ok && known == sum
}
