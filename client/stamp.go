package client

import (
	"io/fs"
	"syscall"
)

// stamp says which state a file is in. A write that ends before another stamp is taken makes the two
// differ, as far as the clock of the file system is fine enough.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// stampOf returns the stamp of a file of this host.
func stampOf(info fs.FileInfo) stamp {
	st := info.Sys().(*syscall.Stat_t)
	s := stamp{dev: uint64(st.Dev), ino: st.Ino, mtime: st.Mtim, ctime: st.Ctim}
	if !info.IsDir() {
		s.size = st.Size
	}
	return s
}
