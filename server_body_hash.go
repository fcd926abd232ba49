package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
)

// bodyHash computes the digests of a body while it is read. A nil bodyHash computes none.
type bodyHash struct {
	want   announcedDigests
	sha256 hash.Hash
	sha512 hash.Hash // nil: the client did not announce one
	sum    Digest    // set by end
}

var _ Hashed = (*requestBody)(nil)

func newBodyHash(want announcedDigests) *bodyHash {
	h := &bodyHash{want: want, sha256: sha256.New()}
	if want.SHA512 != nil {
		h.sha512 = sha512.New()
	}
	return h
}

// write adds the next bytes of the body.
func (h *bodyHash) write(p []byte) {
	if h == nil {
		return
	}
	h.sha256.Write(p)
	if h.sha512 != nil {
		h.sha512.Write(p)
	}
}

// end is called when the body has ended. It fails with a digestError if its bytes do not have
// the digests that the client announced.
func (h *bodyHash) end() error {
	if h == nil {
		return nil
	}
	sum := Digest(h.sha256.Sum(nil))
	if want := h.want.SHA256; want != nil && sum != *want {
		return &digestError{"sha-256", want[:], sum[:]}
	}
	if want := h.want.SHA512; want != nil {
		if got := h.sha512.Sum(nil); !bytes.Equal(got, want[:]) {
			return &digestError{"sha-512", want[:], got}
		}
	}
	h.sum = sum
	return nil
}

// Hashes implements Hashed.
func (b *requestBody) Hashes() bool { return b.hash != nil }

// Announced implements Hashed.
func (b *requestBody) Announced() (d Digest) {
	if b.hash != nil && b.hash.want.SHA256 != nil {
		d = *b.hash.want.SHA256
	}
	return d
}

// Sum implements Hashed.
func (b *requestBody) Sum() (d Digest) {
	if b.hash != nil {
		d = b.hash.sum
	}
	return d
}
