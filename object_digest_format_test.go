package main

import (
	"errors"
	"testing"
)

// A binding is accepted only as the service writes it, even if the checksum is right.
func TestBindingOfAnotherObject(t *testing.T) {
	for _, bad := range []string{
		"", `size 1, mark "m", `, `size +1, mark "m", etag "e", `, `size 01, mark "m", etag "e", `, `size 1, mark "m", etag "e"`,
		`size 1, mark "m", etag "e", etag "e", `, "size 1, mark `m`, etag `e`, ", "size 1, mtime 2.000000003, ",
	} {
		data := formatDigest("b", bad, digestOfBytes([]byte("x")))
		if f, err := decodeDigestObject("b", data); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q is read as %+v, %v", data, f, err)
		}
	}
	o := objectInfo{size: 1, uploadID: "m", etag: "e"}
	if f, err := decodeDigestObject("b", formatDigest("b", `size 1, mark "m", etag "e", `, digestOfBytes([]byte("x")))); err != nil || !f.isOf(o) {
		t.Errorf("%+v, %v", f, err)
	}
}
