package main

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"slices"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sys/unix"
)

const knownLogs = 4096 // logs remembered as sound: about a megabyte

// WriteLog implements Backend. Entries of one build that arrive while its log
// is being written go into it together, by the next write.
func (n *nfs) WriteLog(siteID string, entry LogEntry) error {
	errs, i := n.appends.do(siteID+"/"+entry.BuildID, entry, func(entries []LogEntry) []error {
		return n.appendLog(siteID, entry.BuildID, entries)
	})
	return errs[i]
}

// appendLog appends entries to the log of a build, and tells of each whether it
// is in the log now.
func (n *nfs) appendLog(siteID, buildID string, entries []LogEntry) []error {
	n.disk.metrics.batch.Update(float64(len(entries)))
	errs := make([]error, len(entries))
	err := n.appendAll(siteID, buildID, entries, errs)
	if errors.Is(err, ErrDamaged) {
		n.log.Error("a log takes no entries until it is mended by hand", "error", err)
	}
	if err != nil {
		for i := range errs {
			if errs[i] == nil {
				errs[i] = err
			}
		}
	}
	return errs
}

// appendAll does the work of appendLog. Its result is the error of the entries
// that have none of their own in errs.
func (n *nfs) appendAll(siteID, buildID string, entries []LogEntry, errs []error) error {
	if err := n.here(); err != nil {
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
	if err := n.here(); err != nil { // the directory may be one below a mount that went away
		return err
	}
	name := buildID + logSuffix
	path := dir.Name() + "/" + name
	old, _, err := n.readLog(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := n.settle(dir, name); err != nil {
			return err
		}
		old, _, err = n.readLog(dir, name)
	}
	if unlessGone(err) != nil {
		return err
	}
	if diff := n.disk.clockDiffOf(dir); diff != 0 {
		entries = slices.Clone(entries)
		for i := range entries {
			entries[i].Timestamp = entries[i].Timestamp.Add(diff)
		}
	}
	head, tail, err := growLog(old, entries, errs, n.sound.has(path, old))
	if err != nil {
		return fmt.Errorf("cannot append to %q: %w", path, err)
	}
	if len(tail) == 0 {
		lock.release()
		// Who wrote the entry before may not have come as far as this.
		return n.disk.syncDir(dir)
	}
	temp, err := n.replaceLog(dir, name, lock, head, tail)
	if err != nil {
		return err
	}
	lock.release()
	n.sound.add(path, head, tail)
	return temp.syncDir()
}

// replaceLog puts a log file of head and tail in the place of name, unless the
// lock was lost meanwhile. It is durable after syncDir of what it returns.
func (n *nfs) replaceLog(dir *os.File, name string, lock *buildLock, head, tail []byte) (*tempFile, error) {
	temp, err := n.disk.createTemp(dir)
	if err != nil {
		return nil, err
	}
	defer temp.discard()
	if _, err := temp.Write(head); err != nil {
		return nil, err
	}
	if _, err := temp.Write(tail); err != nil {
		return nil, err
	}
	if _, err := temp.seal(); err != nil {
		return nil, err
	}
	if err := lock.alive(); err != nil {
		return nil, err
	}
	return temp, n.putInPlace(temp, name, lock)
}

// readLog reads a whole log file and describes exactly what it read. An absent
// one is fs.ErrNotExist, one of a size that WriteLog never makes is ErrLogFull.
func (n *nfs) readLog(dir *os.File, name string) ([]byte, unix.Stat_t, error) {
	data, st, err := readFile(dir, name, maxLogRead)
	switch {
	case errors.Is(err, unix.ELOOP):
		_ = statAt(dir, name, &st)
		err = fmt.Errorf("%w: %q is a symbolic link", ErrDamaged, dir.Name()+"/"+name)
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG, st.Size == 0:
		err = fmt.Errorf("%w: %q is empty, or no file", ErrDamaged, dir.Name()+"/"+name)
	case st.Size > maxLogRead:
		err = fmt.Errorf("%w: %q has %d bytes", ErrLogFull, dir.Name()+"/"+name, st.Size)
	}
	return data, st, err
}

// growLog adds entries to the log old, which is empty if there is none yet: the
// new log is head and tail, head being a part of old. An entry that cannot be
// added has its error put into errs; one whose ID is there already is left out.
// It fails with ErrDamaged. sound tells that parseLog is known to take old: then
// it is parsed only if an ID may be in it.
func growLog(old []byte, entries []LogEntry, errs []error, sound bool) (head, tail []byte, err error) {
	var have []LogEntry
	if len(old) > 0 && (!sound || mayHold(old, entries)) {
		if have, err = parseLog(old); err != nil {
			return nil, nil, err
		}
	}
	ids := make(map[string]bool, len(have)+len(entries))
	for i := range have {
		ids[have[i].ID] = true
	}
	for i := range entries {
		id := entries[i].ID
		if ids[id] {
			continue
		}
		if size := len(old) + len(tail); size >= maxLogSize {
			errs[i] = fmt.Errorf("%w: it has %d bytes", ErrLogFull, size)
			continue
		}
		line, err := encodeEntry(entries[i])
		if err != nil {
			errs[i] = err
			continue
		}
		if len(old)+len(tail) == 0 {
			tail = append(tail, "[\n"...)
		} else {
			tail = append(tail, ",\n"...)
		}
		tail = append(tail, line...)
		ids[id] = true
	}
	if len(tail) > 0 {
		tail = append(tail, "\n]\n"...)
	}
	return openLog(old), tail, nil
}

// mayHold tells whether an entry with one of the IDs of entries may be in a log
// that parseLog takes. Where nothing is escaped a JSON string is what stands
// between two quotes, so that no ID is overlooked.
func mayHold(log []byte, entries []LogEntry) bool {
	if bytes.IndexByte(log, '\\') >= 0 {
		return true
	}
	ids := make(map[string]bool, len(entries))
	for i := range entries {
		ids[entries[i].ID] = true
	}
	if ids[""] { // the ID of an entry that has none
		return true
	}
	quote := []byte{'"'}
	for {
		_, rest, more := bytes.Cut(log, quote)
		if !more {
			return false
		}
		text, rest, _ := bytes.Cut(rest, quote)
		if ids[string(text)] {
			return true
		}
		log = rest
	}
}

// soundLogs remembers by their paths the logs that this process wrote, each as a
// hash of what it wrote. What is read and has that hash is sound, whatever
// happened to the file meanwhile. Safe for concurrent use.
type soundLogs struct {
	seed maphash.Seed
	sums *lru.Cache[string, uint64]
}

func newSoundLogs() soundLogs {
	sums, err := lru.New[string, uint64](knownLogs)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	return soundLogs{maphash.MakeSeed(), sums}
}

// add remembers that the log at path is head and tail.
func (s soundLogs) add(path string, head, tail []byte) {
	var h maphash.Hash
	h.SetSeed(s.seed)
	h.Write(head)
	h.Write(tail)
	s.sums.Add(path, h.Sum64())
}

// has tells whether log is what was remembered of path.
func (s soundLogs) has(path string, log []byte) bool {
	sum, ok := s.sums.Get(path)
	return ok && sum == maphash.Bytes(s.seed, log)
}
