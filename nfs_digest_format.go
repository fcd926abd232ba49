package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The file of a digest (formatDigest):
//
//	# size 4096, mtime 1764266039.123456789, crc32c 0a1b2c3d
//	{SHA-256 in hexadecimal}  ../artifacts/{build}.tar.gz
//
// Where times are coarse, "inode 1234, " precedes the checksum.

const maxDigestFile = 1 << 10 // bytes; larger files are not read. The largest of ours has about 350

// boundTo is what a digest is bound to. inode is 0 unless times are coarse: then two
// artifacts of one size may have the same time. Otherwise the inode does not count, so that
// a copy of the store that keeps times keeps its digests too.
type boundTo struct {
	size  int64
	mtime unix.Timespec
	inode uint64
}

func boundToFile(st *unix.Stat_t) boundTo {
	b := boundTo{size: st.Size, mtime: st.Mtim}
	if isCoarse(st.Mtim) {
		b.inode = st.Ino
	}
	return b
}

// kept describes a digest that is bound to b.
func (b boundTo) kept(sum Digest) KeptDigest {
	k := KeptDigest{SHA256: sum, Size: b.size, ModTime: time.Unix(b.mtime.Unix()).UTC()}
	if b.inode != 0 {
		k.ETag = fileTag(b.inode, uint64(b.size), uint64(b.mtime.Nano()))
	}
	return k
}

// String returns the binding of the file of a digest.
func (b boundTo) String() string {
	s := fmt.Sprintf("size %d, mtime %d.%09d, ", b.size, b.mtime.Sec, b.mtime.Nsec)
	if b.inode != 0 {
		s += fmt.Sprintf("inode %d, ", b.inode)
	}
	return s
}

// parseBinding is the reverse of String. It accepts only what that returns.
func parseBinding(binding string) (b boundTo, ok bool) {
	for field := range strings.SplitSeq(binding, ", ") {
		name, value, _ := strings.Cut(field, " ")
		switch name {
		case "size":
			b.size, _ = strconv.ParseInt(value, 10, 64)
		case "mtime":
			sec, nsec, _ := strings.Cut(value, ".")
			b.mtime.Sec, _ = strconv.ParseInt(sec, 10, 64)
			b.mtime.Nsec, _ = strconv.ParseInt(nsec, 10, 64)
		case "inode":
			b.inode, _ = strconv.ParseUint(value, 10, 64)
		}
	}
	return b, b.String() == binding
}
