package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// How lists read logs.

// load reads those logs of the builds at places that were not read, or may have changed
// since. If a
// log cannot be read its version says so; only a store that cannot be reached is an
// error. With entries it also reads again those for whose entries there was no room, if
// there is now.
func (s *siteScan) load(places []place, entries bool) error {
	var loads []logLoad
	room := int64(-1) // not known
	for _, p := range places {
		f := s.ix.logs.files[p.build]
		if f == nil {
			continue
		}
		l := logLoad{file: f, build: p.build, read: s.mustRead(f)}
		if !l.read && entries && f.value.log.wanting() {
			if room < 0 {
				room = s.n.lists.room()
			}
			if l.read = f.value.log.cost <= room; l.read {
				room -= f.value.log.cost
			}
		}
		if l.read || f.checked != s.ix.logs.round {
			loads = append(loads, l)
		}
	}
	if len(loads) == 0 {
		return nil
	}
	s.ix.setWhole(nil)
	err := s.n.lists.parallel(len(loads), func(i int) error { return s.loadOne(&loads[i]) })
	for _, l := range loads {
		if l.reset {
			s.ix.seal = nil
		}
		if l.gone {
			s.dropLog(l.build)
		} else if l.moved && s.ix.artifacts.files[l.build] == nil {
			s.ix.move(l.build)
		}
	}
	return err
}

// mustRead reports whether the log must be read, whether or not the file has changed.
func (s *siteScan) mustRead(f *dirFile[logValue]) bool {
	v := &f.value
	if !v.state.known() || v.log != nil && v.log.stale.Load() {
		return true
	}
	return f.checked != s.ix.logs.round && !v.stable
}

// logLoad is a log that load looks at.
type logLoad struct {
	file  *dirFile[logValue]
	build string
	read  bool // else it is read only if the file has changed
	gone  bool // result: it is not there any more
	moved bool // result: a build that has nothing else has another place now
	reset bool // result: the log was read
}

// loadOne brings what is known of one log up to date.
func (s *siteScan) loadOne(l *logLoad) error {
	v := &l.file.value
	name := l.build + logSuffix
	if !l.read {
		var st unix.Stat_t
		err := statAt(s.logs, name, &st)
		if err == nil && idOf(&st) == v.id {
			l.file.checked = s.ix.logs.round
			return nil
		}
		if ignoreNotExist(err) != nil {
			return err
		}
	}
	start := s.n.lists.clock()
	scan, st, err := s.scanLog(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = s.n.find(s.site, logsDir, l.build, func(path string) (err error) {
			scan, st, err = s.scanLog(path[strings.LastIndexByte(path, '/')+1:])
			return err
		})
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.gone = true
		return nil
	case errors.Is(err, ErrUnavailable), errors.Is(err, ErrBusy):
		return err
	}
	l.reset = true
	id, before := idOf(&st), v.createdAt()
	logged := id == v.id
	v.see(id, s.n.lists.clock(), start, s.storeTime)
	l.file.checked = s.ix.logs.round
	switch {
	case err == nil:
		s.setLog(l.file, scan.done(func(cost int64) bool { return s.n.lists.reserve(s.ix, cost) }), logRead)
	case errors.Is(err, ErrDamaged), errors.Is(err, ErrOccupied), errors.Is(err, ErrLogFull):
		if !logged {
			s.logProblem("cannot list a log: damaged, too large or not a file", name, err)
		}
		state := logDamaged
		switch {
		case errors.Is(err, ErrLogFull):
			state = logTooLarge
		case errors.Is(err, ErrOccupied):
			state = logOccupied
		}
		s.setLog(l.file, nil, state)
	default:
		s.logProblem("cannot read a log", name, err)
		s.setLog(l.file, nil, logUnreadable)
	}
	l.moved = !before.Equal(v.createdAt())
	return nil
}

// logProblem logs and counts a log whose entries are not listed.
func (s *siteScan) logProblem(text, name string, err error) {
	s.n.disk.metrics.logProblems.Inc()
	s.n.log.Error(text, "file", s.logs.Name()+"/"+name, "request_id", s.run.id, "error", err)
}

// setLog notes what a log holds. The entries of what was known before are forgotten.
func (s *siteScan) setLog(f *dirFile[logValue], log *storedLog, state logState) {
	if memory := f.value.log.memory(); memory > 0 {
		s.n.lists.release(s.ix, memory)
	}
	f.value.log.forget()
	f.value.log, f.value.state = log, state
}

// scanLog reads the file name in the directory of logs, and describes exactly what it
// read.
func (s *siteScan) scanLog(name string) (*logScan, unix.Stat_t, error) {
	file, err := openLogAt(s.logs, name)
	if err != nil {
		return nil, file.st, err
	}
	defer file.Close()
	scan := newLogScan()
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

// logFile is a log that is open for reading. An os.File would be expensive to make
// for each of many small files.
type logFile struct {
	fd   int
	path string
	st   unix.Stat_t
	read int64
}

// openLogAt opens the log name in dir. Even if it fails, it returns the state of the file as
// far as that is known. The error is fs.ErrNotExist if there is no log, and ErrLogFull if the
// log is larger than WriteLog makes it.
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
		err = fmt.Errorf("%w: %q is too large to read: %d bytes", ErrLogFull, path, f.st.Size)
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
