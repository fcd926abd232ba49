package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The file of a digest, for sha256sum(1) in the directory of the digests:
//
//	# size 4096, mtime 1764266039.123456789, crc32c 0a1b2c3d
//	{SHA-256 in hexadecimal}  ../artifacts/{build}.tar.gz
//
// The first line binds the digest to the artifact that it was computed from. Where times are
// coarse, "inode 1234, " precedes the checksum, which covers everything else in the file.

const maxDigestFile = 1 << 10 // bytes; larger files are not read. The largest of ours has about 350

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

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

// formatDigest returns the file of the digest of a build.
func formatDigest(buildID string, b boundTo, sum Digest) []byte {
	binding := fmt.Sprintf("# size %d, mtime %d.%09d, ", b.size, b.mtime.Sec, b.mtime.Nsec)
	if b.inode != 0 {
		binding += fmt.Sprintf("inode %d, ", b.inode)
	}
	line := fmt.Sprintf("\n%s  ../%s/%s\n", sum, artifactsDir, fileName(artifactsDir, buildID))
	check := crc32.Update(crc32.Checksum([]byte(binding), castagnoli), castagnoli, []byte(line))
	return fmt.Appendf(nil, "%scrc32c %08x%s", binding, check, line)
}

// parseDigestFile is the reverse of formatDigest. It accepts only what formatDigest returns.
func parseDigestFile(buildID string, data []byte) (b boundTo, sum Digest, ok bool) {
	first, second, _ := strings.Cut(string(data), "\n")
	for field := range strings.SplitSeq(strings.TrimPrefix(first, "# "), ", ") {
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
	if n := hex.EncodedLen(len(sum)); len(second) > n {
		sum, _ = parseDigest(second[:n])
	}
	return b, sum, sum.known() && bytes.Equal(data, formatDigest(buildID, b, sum))
}
