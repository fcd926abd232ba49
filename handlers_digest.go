package main

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/dunglas/httpsfv"
	"github.com/valyala/fasthttp"
)

// The digests of a request and of a response (RFC 9530).

const (
	headerReprDigest    = "Repr-Digest"
	headerContentDigest = "Content-Digest"
)

// digestFields are the header fields with the digest of a body. Here both are of the same
// bytes: a body is a whole build or log entry, without a content coding (checkPlainBody).
var digestFields = [...]string{headerReprDigest, headerContentDigest}

// digestAlgorithms are the algorithms that are checked, and the size of their digests. All
// others are ignored: RFC 9530, section 5, calls them insecure.
var digestAlgorithms = [...]struct {
	name string
	size int
}{
	{"sha-256", sha256.Size},
	{"sha-512", sha512.Size},
}

// requestDigests returns the digests of the body that a request announces. It refuses a
// request whose digest would not be checked.
func (a *api) requestDigests(ctx *fasthttp.RequestCtx) (announced announcedDigests, err error) {
	if a.cfg.Digest == digestOff {
		return announced, nil
	}
	if err := checkTrailer(ctx); err != nil {
		return announced, badRequest("%v", err)
	}
	for _, field := range digestFields {
		var lines []string
		for _, line := range ctx.Request.Header.PeekAll(field) {
			if text := trimOWS(string(line)); text != "" {
				lines = append(lines, text)
			}
		}
		if lines == nil {
			continue
		}
		found, err := parseDigests(lines)
		if err != nil {
			return announced, badRequest("%s: %v", field, err)
		}
		if announced, err = joinDigests(announced, found); err != nil {
			return announced, badRequest("%v", err)
		}
	}
	return announced, nil
}

// trailerDigest is the errDigest of a request that has a digest field in its trailer.
type trailerDigest string

func (field trailerDigest) Error() string {
	return string(field) + " in a trailer is not checked: send it as a header"
}

func (trailerDigest) Unwrap() error           { return errDigest }
func (field trailerDigest) forClient() string { return field.Error() }

// checkTrailer refuses a trailer with a digest. Before the body these are the fields that the
// header announces, after a chunked body also those that came.
func checkTrailer(ctx *fasthttp.RequestCtx) error {
	for name := range ctx.Request.Header.Trailers() {
		for _, field := range digestFields {
			if strings.EqualFold(string(name), field) {
				return trailerDigest(field)
			}
		}
	}
	return nil
}

// digestsOf makes body compute its digests if they are wanted, and fail if they differ from
// those that the client announced, or if its trailer has more.
func (a *api) digestsOf(ctx *fasthttp.RequestCtx, body *requestBody, announced announcedDigests, always bool) {
	if a.cfg.Digest == digestOff {
		return
	}
	if body.size < 0 { // only chunked bodies have a trailer
		body.checkTrailer = func() error { return checkTrailer(ctx) }
	}
	if announced.any() || always {
		body.hashed(announced)
	}
}

// requireDigest returns the error of an upload without a digest that is checked, if one is
// required. Its header says which is wanted (RFC 9530, section 4).
func (a *api) requireDigest(announced announcedDigests) error {
	if !a.cfg.RequireDigest || announced.any() {
		return nil
	}
	e := badRequest("a digest is required: send the header %s: sha-256=:BASE64: (RFC 9530)", headerReprDigest)
	e.header, e.value = "Want-Repr-Digest", "sha-256=10"
	return e
}

// parseDigests parses the lines of a Repr-Digest or Content-Digest: a dictionary of byte
// sequences (RFC 9530, section 2; RFC 9651). Of a member that is there twice the last counts
// (RFC 9651, section 4.2.2).
func parseDigests(lines []string) (announced announcedDigests, err error) {
	members, err := httpsfv.UnmarshalDictionary(lines)
	if err != nil {
		return announced, fmt.Errorf("%s%w; the form is sha-256=:BASE64: (RFC 9530)", algorithmAtFault(lines), err)
	}
	for _, algorithm := range digestAlgorithms {
		misspelt := strings.ReplaceAll(algorithm.name, "-", "")
		if _, there := members.Get(misspelt); there {
			return announced, fmt.Errorf("there is no algorithm %s: write %s (RFC 9530)", misspelt, algorithm.name)
		}
		member, there := members.Get(algorithm.name)
		if !there {
			continue
		}
		item, _ := member.(httpsfv.Item)
		value, ok := item.Value.([]byte)
		switch {
		case !ok:
			return announced, fmt.Errorf("%s is not a byte sequence; the form is %[1]s=:BASE64: (RFC 9530)", algorithm.name)
		case len(value) != algorithm.size:
			return announced, fmt.Errorf("%s is the base64 of %d bytes, not of %d%s", algorithm.name, len(value), algorithm.size, hintAtHex(len(value), algorithm.size))
		case algorithm.size == sha256.Size:
			announced.SHA256 = (*[sha256.Size]byte)(value)
		default:
			announced.SHA512 = (*[sha512.Size]byte)(value)
		}
	}
	return announced, nil
}

// hintAtHex returns what to do if got is the number of bytes that result from the hexadecimal form
// of a digest of size bytes, taken for base64, or encoded in base64, perhaps with a line break.
func hintAtHex(got, size int) string {
	if got == size*2*3/4 || got == size*2 || got == size*2+1 {
		return "; if it is hexadecimal, encode the bytes of the digest instead"
	}
	return ""
}

// algorithmAtFault returns the name, with a colon, of the first member that cannot be parsed,
// if it is an algorithm that is checked. Otherwise it returns an empty string.
func algorithmAtFault(lines []string) string {
	for member := range strings.SplitSeq(strings.Join(lines, ","), ",") {
		name, _, _ := strings.Cut(trimOWS(member), "=")
		for _, algorithm := range digestAlgorithms {
			if !strings.EqualFold(name, algorithm.name) {
				continue
			}
			if _, err := httpsfv.UnmarshalDictionary([]string{member}); err != nil {
				return name + ": "
			}
		}
	}
	return ""
}

// joinDigests returns the digests of both fields. They must not contradict each other.
func joinDigests(a, b announcedDigests) (announcedDigests, error) {
	const contradict = "Repr-Digest and Content-Digest have different values for "
	switch {
	case a.SHA256 != nil && b.SHA256 != nil && *a.SHA256 != *b.SHA256:
		return a, errors.New(contradict + "sha-256")
	case a.SHA512 != nil && b.SHA512 != nil && *a.SHA512 != *b.SHA512:
		return a, errors.New(contradict + "sha-512")
	}
	if b.SHA256 != nil {
		a.SHA256 = b.SHA256
	}
	if b.SHA512 != nil {
		a.SHA512 = b.SHA512
	}
	return a, nil
}

// reprDigest is the name of the header in the responses.
var reprDigest = []byte(headerReprDigest)

// appendDigest appends d as the value of a Repr-Digest.
func appendDigest(b []byte, d Digest) []byte {
	b = append(b, "sha-256=:"...)
	b = base64.StdEncoding.AppendEncode(b, d[:])
	return append(b, ':')
}
