package main

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// What the names in a directory of a site say about its builds.

// readAgain is how often a directory that changes while it is read is read.
const readAgain = 3

// readBuilds reads the names in a directory of the site, which may be nil: the
// builds whose file is there, and those of which the names do not say whether it
// is: an interim name was there without its file, or the file was there at an
// earlier reading. On NFS a replacement takes a name away for a moment, and a
// directory is not read in one step: so it is read again if it is not as it was
// when it was opened.
func (s *siteScan) readBuilds(kind string, dir *os.File, opened fileID) (ids []string, unsure map[string]bool, err error) {
	unsure = make(map[string]bool)
	suffix := suffixOf(kind)
	for try := 1; ; try++ {
		names, err := readNames(dir)
		if err != nil {
			return nil, nil, err
		}
		for _, id := range ids {
			unsure[id] = true
		}
		ids = ids[:0]
		for _, name := range names {
			if of, ok := isInterimName(name); ok {
				if id, ok := buildOfFile(of, suffix); ok {
					unsure[id] = true
				}
			} else if id, ok := buildOfFile(name, suffix); ok {
				ids = append(ids, id)
			}
		}
		for _, id := range ids {
			delete(unsure, id)
		}
		if !s.n.remote || dir == nil || try == readAgain {
			return ids, unsure, nil
		}
		now, err := s.idNow(kind, dir)
		if err != nil || now == opened {
			return ids, unsure, err
		}
		opened = now
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return nil, nil, diskError("seek in directory", dir.Name(), errors.Unwrap(err))
		}
	}
}

// idNow describes the open directory as the NFS server has it now.
func (s *siteScan) idNow(kind string, dir *os.File) (fileID, error) {
	if err := s.n.refresh(s.site, kind); err != nil {
		return fileID{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return fileID{}, diskError("stat", dir.Name(), err)
	}
	return idOf(&st), nil
}

// withUnsure is ids and those of unsure that are not among them.
func withUnsure(ids []string, unsure map[string]bool) []string {
	if len(unsure) == 0 {
		return ids
	}
	for _, id := range ids {
		delete(unsure, id)
	}
	for id := range unsure {
		ids = append(ids, id)
	}
	return ids
}

// readNames reads the names in dir, which may be nil.
func readNames(dir *os.File) ([]string, error) {
	if dir == nil {
		return nil, nil
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, diskError("read directory", dir.Name(), err)
	}
	return names, nil
}
