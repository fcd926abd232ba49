package main

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"time"
)

// Digest is the SHA-256 of the bytes of an artifact. The zero value means that it is not
// known.
type Digest [sha256.Size]byte

func (d Digest) known() bool { return d != Digest{} }

// String returns the digest in hexadecimal, as sha256sum(1) prints it, or an empty string
// if it is not known.
func (d Digest) String() string {
	if !d.known() {
		return ""
	}
	return hex.EncodeToString(d[:])
}

// parseDigest is the reverse of String, of a known digest. Both cases are allowed.
func parseDigest(s string) (d Digest, ok bool) {
	if len(s) != 2*len(d) {
		return Digest{}, false
	}
	_, err := hex.Decode(d[:], []byte(s))
	return d, err == nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// formatDigest returns the file or object of the digest of a build, for sha256sum(1) in the
// directory of the digests:
//
//	# {binding}crc32c 0a1b2c3d
//	{SHA-256 in hexadecimal}  ../artifacts/{build}.tar.gz
//
// The binding is that of the store: it says which artifact the digest was computed from. It
// ends with ", ". The checksum covers everything else.
func formatDigest(buildID, binding string, sum Digest) []byte {
	first := "# " + binding
	line := fmt.Sprintf("\n%s  ../%s/%s\n", sum, artifactsDir, fileName(artifactsDir, buildID))
	return fmt.Appendf(nil, "%scrc32c %08x%s", first, crc32.Checksum([]byte(first+line), castagnoli), line)
}

// parseDigestFile is the reverse of formatDigest. It accepts only what that returns.
func parseDigestFile(buildID string, data []byte) (binding string, sum Digest, ok bool) {
	first, line, _ := strings.Cut(string(data), "\n")
	first = strings.TrimPrefix(first, "# ")
	if i := strings.LastIndex(first, "crc32c "); i >= 0 {
		binding = first[:i]
	}
	if n := hex.EncodedLen(len(sum)); len(line) > n {
		sum, _ = parseDigest(line[:n])
	}
	return binding, sum, sum.known() && string(data) == string(formatDigest(buildID, binding, sum))
}

// announcedDigests are the digests that a client sent before its body (RFC 9530). nil: none
// of that algorithm.
type announcedDigests struct {
	SHA256 *[sha256.Size]byte
	SHA512 *[sha512.Size]byte
}

func (a announcedDigests) any() bool { return a.SHA256 != nil || a.SHA512 != nil }

// A reader that is passed to StoreArtifact may be Hashed, in addition to the optional
// interfaces in backend_body.go.
type Hashed interface {
	// Hashes reports whether Sum will return a digest.
	Hashes() bool
	// Announced returns the digest that the client sent before the body, or zero. If the
	// bytes differ, the reader fails with a digestError instead of io.EOF.
	Announced() Digest
	// Sum returns the digest of all bytes, once the reader has returned io.EOF. It returns
	// zero before that, and if the reader does not hash.
	Sum() Digest
}

// sumOf returns the Sum of a reader that has ended, or zero if it is not Hashed.
func sumOf(r io.Reader) Digest {
	if h, ok := r.(Hashed); ok {
		return h.Sum()
	}
	return Digest{}
}

// digestError is the error of a body whose bytes do not have the digest that its client
// announced.
type digestError struct {
	algorithm     string // as in RFC 9530: sha-256 or sha-512
	expected, got []byte
}

func (e *digestError) Error() string {
	return fmt.Sprintf("the %s of the body is %x, but the client announced %x", e.algorithm, e.got, e.expected)
}

func (e *digestError) Unwrap() error     { return errDigest }
func (e *digestError) forClient() string { return e.Error() }

// errChecksum is wrapped by the error of reading an artifact whose bytes do not have the
// checksum that the store itself keeps of them.
var errChecksum = errors.New("the bytes do not have the store's own checksum")

// DigestKeeper is a store that keeps digests of its artifacts. ArtifactInfo.SHA256 is set
// wherever such a store describes an artifact whose digest it keeps. A kept digest is bound
// to the artifact that it was computed from: of any other artifact, the digest is not known.
type DigestKeeper interface {
	// KeepDigest durably keeps sum as the digest of the artifact that of describes. It fails
	// with ErrPrecondition if that is no longer the artifact of the build, and with
	// ErrNotFound if there is none. It does not replace the digest of other bytes that is kept
	// under the build's id (errOtherDigest), or a damaged one (ErrDamaged), unless the store
	// knows that the service itself replaced the artifact since.
	KeepDigest(siteID, buildID string, of ArtifactInfo, sum Digest) error
	// KeptDigest returns what is kept under the build's id, even if it is bound to an
	// artifact that was replaced. It fails with ErrNotFound if nothing is kept, and with
	// ErrDamaged if what is kept cannot be read.
	KeptDigest(siteID, buildID string) (KeptDigest, error)
	// ListDigests returns the digests of versions of the site, in their order: zero where
	// it is not known, or the version has no artifact.
	ListDigests(siteID string, versions []*Version) ([]Digest, error)
}

// errNoDigests: the store keeps no digests, because they are off.
var errNoDigests = fmt.Errorf("%w: digests are off", ErrUnsupported)

// errOtherDigest: the store keeps the digest of other bytes, so the artifact was changed by
// something else than the service.
var errOtherDigest = fmt.Errorf("%w: the store keeps the digest of other bytes", ErrPrecondition)

// KeptDigest is a digest and what it is bound to. A store sets only what it compares.
type KeptDigest struct {
	SHA256  Digest
	Size    int64
	ModTime time.Time
	ETag    string
	// Superseded: the service has replaced the artifact since, without a digest. So the digest
	// says nothing about the artifact that is there. Set if the store can tell.
	Superseded bool
}

// isOf reports whether k is bound to the artifact that i describes. What is bound to the size
// only is not.
func (k KeptDigest) isOf(i ArtifactInfo) bool {
	return (k.ETag != "" || !k.ModTime.IsZero()) && k.Size == i.Size &&
		(k.ETag == "" || k.ETag == i.ETag) && (k.ModTime.IsZero() || k.ModTime.Equal(i.ModTime))
}

// SiteLister is a store that can list its sites.
type SiteLister interface {
	// ListSites returns up to limit ids that begin with prefix, of sites that have a build, a
	// log or a label, in the order of their bytes, beginning after the id after; empty: from
	// the first. Fewer than limit means that there are no more. If want is not nil, sites whose
	// ids it does not accept are left out, without a look into them.
	ListSites(prefix, after string, limit int, want func(siteID string) bool) ([]string, error)
}

// ForeignLister is a store that can list what the service did not write.
type ForeignLister interface {
	// ForeignFiles calls report with the name of each file or object of the site that the
	// service would not write, and what it is. It stops at the first error of report. Without
	// a site these are those beside the sites, if the store can tell.
	ForeignFiles(siteID string, report func(name, what string) error) error
}

// StatusKeeper is a store that keeps the results of maintenance, such as verify.
type StatusKeeper interface {
	// WriteStatus durably replaces what is kept under name, a word of the service.
	WriteStatus(name string, data []byte) error
	// ReadStatus returns what is kept under name. It fails with ErrNotFound if that is nothing,
	// and with ErrDamaged if it cannot be what WriteStatus kept.
	ReadStatus(name string) ([]byte, error)
}
