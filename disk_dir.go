package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ensureDir opens the directory names[0]/names[1]/... below base, creates what is
// missing, and returns the directory once all of it is durable. It never creates base: a
// missing base means a missing mount.
func (d *disk) ensureDir(base string, names ...string) (*os.File, error) {
	path := filepath.Join(base, filepath.Join(names...))
	if dir, err := d.openDir(path); err == nil {
		if ino, known := d.durable.Get(path); known && ino == inode(dir) {
			return dir, nil
		}
		dir.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	parent, err := d.openDir(base)
	if err != nil {
		return nil, err
	}
	path = base
	for _, name := range names {
		path = filepath.Join(path, name)
		dir, err := d.makeDir(parent, name, path)
		parent.Close()
		if err != nil {
			return nil, err
		}
		parent = dir
	}
	return parent, nil
}

// makeDir opens the directory name in parent, and creates it if it is missing. It fsyncs
// parent unless the directory is known to be durable: an existing one may have been
// created by another process that has not fsynced it yet.
func (d *disk) makeDir(parent *os.File, name, path string) (*os.File, error) {
	err := retryEINTR(func() error { return unix.Mkdirat(int(parent.Fd()), name, 0o777) })
	if err != nil && err != unix.EEXIST {
		return nil, diskError("make directory", path, err)
	}
	fd, err := openFd(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err == unix.ENOTDIR {
		if link := d.firstIn(path, isLinkMode); link != "" {
			return nil, &linkError{link}
		}
	}
	if err != nil {
		return nil, d.openError(path, err)
	}
	dir := os.NewFile(uintptr(fd), path)
	ino := inode(dir)
	if have, known := d.durable.Get(path); known && have == ino {
		return dir, nil
	}
	if err := d.syncDir(parent); err != nil {
		dir.Close()
		return nil, err
	}
	d.durable.Add(path, ino)
	return dir, nil
}

// openLockFile opens the lock file of the directory names[0]/names[1]/... below base, and
// creates what is missing. Nothing is ever written to the lock file.
func (d *disk) openLockFile(base string, flags int, names ...string) (*os.File, error) {
	return d.openOrCreate(base, flags, lockName, names...)
}

// openOrCreate opens the file name in the directory names[0]/names[1]/... below base, and
// creates what is missing.
func (d *disk) openOrCreate(base string, flags int, name string, names ...string) (*os.File, error) {
	path := filepath.Join(base, filepath.Join(names...), name)
	f, err := d.openFile(path, flags)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	dir, err := d.ensureDir(base, names...)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	f, err = openAt(int(dir.Fd()), name, flags|unix.O_CREAT|unix.O_NOFOLLOW, path)
	if err != nil {
		return nil, err
	}
	if err := d.syncDir(dir); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// syncDir makes all changes in dir durable. Where the file system cannot fsync a directory
// (some FUSE and SMB mounts: EINVAL, ENOTSUP) it succeeds and logs that once: there
// durability depends on the mount.
func (d *disk) syncDir(dir *os.File) error {
	start := time.Now()
	err := d.fsyncs.fsync(dir)
	d.metrics.dirSync.UpdateDuration(start)
	return d.dirSynced(dir, err)
}

// dirSynced returns the error of syncDir, where err is the result of the fsync of dir.
func (d *disk) dirSynced(dir *os.File, err error) error {
	if err == unix.EINVAL || err == unix.ENOTSUP {
		d.warnDirSync.Do(func() {
			d.noDirSync.Store(true)
			d.log.Error("this file system cannot fsync directories; a power failure may lose acknowledged writes",
				"path", dir.Name(), "cause", err)
		})
		return nil
	}
	if err != nil {
		return diskError("fsync directory", dir.Name(), err)
	}
	return nil
}

// unlink removes name in dir. It fails with fs.ErrNotExist if name is missing. The change
// is durable after syncDir.
func (d *disk) unlink(dir *os.File, name string) error {
	if err := d.unlinkAt(dir, name); err != nil {
		return diskError("remove", dir.Name()+"/"+name, err)
	}
	return nil
}

// unlinkAt is unlinkat(2). It returns the bare errno.
func (d *disk) unlinkAt(dir *os.File, name string) error {
	if d.removing != nil {
		d.removing()
	}
	return retryEINTR(func() error { return unix.Unlinkat(int(dir.Fd()), name, 0) })
}

// remove is unlink, but succeeds if name is missing.
func (d *disk) remove(dir *os.File, name string) error {
	if err := d.unlinkAt(dir, name); err != nil && err != unix.ENOENT {
		return diskError("remove", dir.Name()+"/"+name, err)
	}
	return nil
}

// removeDir removes the empty directory name in parent.
func (d *disk) removeDir(parent *os.File, name string) error {
	err := retryEINTR(func() error { return unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR) })
	if err != nil {
		return diskError("remove directory", parent.Name()+"/"+name, err)
	}
	return nil
}

// renameTo renames from to to in dir. The caller has checked that to is free. The change
// is durable after syncDir.
func (d *disk) renameTo(dir *os.File, from, to string) error {
	if err := d.renameAt(dir, from, to); err != nil {
		return diskError("rename", dir.Name()+"/"+from, err)
	}
	return nil
}

// renameAt is renameat(2) within dir. It returns the bare errno.
func (d *disk) renameAt(dir *os.File, from, to string) error {
	start := time.Now()
	err := retryEINTR(func() error { return unix.Renameat(int(dir.Fd()), from, int(dir.Fd()), to) })
	d.metrics.rename.UpdateDuration(start)
	if d.renamed != nil {
		d.renamed()
	}
	return err
}

// linkTo gives the file from a second name in dir. It fails with fs.ErrExist if that name
// exists, and with ErrUnsupported if the file system has no hard links.
func (d *disk) linkTo(dir *os.File, from, to string) error {
	if d.linking != nil {
		d.linking()
	}
	start := time.Now()
	err := retryEINTR(func() error { return unix.Linkat(int(dir.Fd()), from, int(dir.Fd()), to, 0) })
	d.metrics.link.UpdateDuration(start)
	switch err {
	case nil:
		return nil
	case unix.EPERM, unix.EOPNOTSUPP, unix.ENOSYS:
		return fmt.Errorf("%w: cannot link %q: %w", ErrUnsupported, dir.Name()+"/"+from, err)
	}
	return diskError("link", dir.Name()+"/"+from, err)
}

// setSameDirMode sets the mode of dir to its current mode.
func (d *disk) setSameDirMode(dir *os.File) error {
	var st unix.Stat_t
	err := retryEINTR(func() error { return unix.Fstat(int(dir.Fd()), &st) })
	if err == nil {
		err = retryEINTR(func() error { return unix.Fchmod(int(dir.Fd()), st.Mode&0o7777) })
	}
	if err != nil {
		return diskError("set the mode of", dir.Name(), err)
	}
	return nil
}

// setSameMode sets the mode of name, in the directory at path, to its current mode.
func (d *disk) setSameMode(path, name string) error {
	dir, err := d.openDir(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := statAt(dir, name, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &linkError{path + name}
	}
	err = retryEINTR(func() error { return unix.Fchmodat(int(dir.Fd()), name, st.Mode&0o7777, 0) })
	if err != nil {
		return diskError("set the mode of", path+name, err)
	}
	return nil
}
