package main

import (
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sys/unix"
)

// disk is the only way to change the file system: nothing else in this package creates,
// links, renames or removes files. It is safe for concurrent use; the files that it
// returns are not.
type disk struct {
	base        string // symbolic links below it are not followed; if empty, none are
	openat2     bool   // the kernel has openat2(2)
	ownClock    bool   // the file system stamps files with the clock of this host
	readBack    bool   // temporary files are opened for reading too (tempAccess)
	log         *slog.Logger
	durable     *lru.Cache[string, uint64] // inode numbers of directories known to be durable, by path
	warnDirSync sync.Once
	noDirSync   atomic.Bool
	warnClock   sync.Once
	clockDiff   atomic.Pointer[clockDiff]
	hooks
	copyBuffers sync.Pool
	lastStamp   atomic.Pointer[timeStamp]
	fsyncs      fsyncGroup
	metrics     *storeMetrics
}

// hooks let tests act as another host between two steps, or as another file system. Each may
// be nil or zero.
type hooks struct {
	renamed           func()        // after a rename
	linking, removing func()        // before a link, or a removal
	timeStep          time.Duration // of the times that stamp sets
}

func newDisk(log *slog.Logger) *disk {
	d := &disk{log: log, durable: newLRU[string, uint64](knownDirs), metrics: newStoreMetrics(), openat2: canOpenat2()}
	d.fsyncs.shared = func(files int) { d.metrics.commit.Update(float64(files)) }
	d.copyBuffers.New = func() any { return new([copySize]byte) }
	return d
}

// retryEINTR calls f again for as long as a signal interrupts it.
func retryEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// openFd is openat(2). Only the umask limits the mode of a new file, as for directories,
// so that a group can share a store.
func openFd(dirfd int, name string, flags int) (fd int, err error) {
	err = retryEINTR(func() error {
		fd, err = unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, 0o666)
		return err
	})
	return fd, err
}

// openRead opens a file for reading. It does not block on a FIFO, and does not follow a
// symbolic link (ELOOP).
func openRead(dirfd int, name string) (int, error) {
	return readNonblocking(func(flags int) (int, error) { return openFd(dirfd, name, flags) })
}

// readNonblocking calls open with the flags of openRead.
func readNonblocking(open func(flags int) (int, error)) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW
	fd, err := open(flags | unix.O_NONBLOCK)
	if err == unix.EAGAIN { // an NFS server on this host delegated the file, and must recall it first
		fd, err = open(flags)
	}
	return fd, err
}

// openAt is openat(2). The *os.File that it returns does not use the poller.
func openAt(dirfd int, name string, flags int, path string) (*os.File, error) {
	fd, err := openFd(dirfd, name, flags)
	if err != nil {
		return nil, diskError("open", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// inode returns the inode number of an open file, or 0 if fstat fails.
func inode(f *os.File) uint64 {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	return st.Ino
}

// readFile reads all of name in dir and returns its attributes. The data is nil if name
// is not a regular file or is larger than limit bytes. It makes few system calls, for
// callers that read many small files.
func readFile(dir *os.File, name string, limit int64) ([]byte, unix.Stat_t, error) {
	var st unix.Stat_t
	path := dir.Name() + "/" + name
	fd, err := openRead(int(dir.Fd()), name)
	if err != nil {
		return nil, st, diskError("open", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, st, diskError("stat", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > limit {
		return nil, st, nil
	}
	data, err := readAll(fd, path, st.Size)
	return data, st, err
}

// readAll reads the first size bytes of the open file fd.
func readAll(fd int, path string, size int64) ([]byte, error) {
	data := make([]byte, size)
	for n := 0; n < len(data); {
		var got int
		err := retryEINTR(func() (err error) {
			got, err = unix.Pread(fd, data[n:], int64(n))
			return err
		})
		if err != nil {
			return nil, diskError("read", path, err)
		}
		if got == 0 {
			return nil, diskError("read", path, io.ErrUnexpectedEOF)
		}
		n += got
	}
	return data, nil
}

// statAt is stat of name in dir, without following a symbolic link. It does not allocate,
// for callers that stat many files.
func statAt(dir *os.File, name string, st *unix.Stat_t) error {
	for {
		switch err := unix.Fstatat(int(dir.Fd()), name, st, unix.AT_SYMLINK_NOFOLLOW); err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return diskError("stat", dir.Name()+"/"+name, err)
		}
	}
}

// isLocal reports whether only this host uses file systems of that type (statfs(2)), so
// that stat(2) is never stale.
func isLocal(fsType int64) bool {
	switch fsType {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	}
	return false
}
