package main

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDigestFileIsReadAsItWasWritten(t *testing.T) {
	sum := digestOfBytes([]byte("x"))
	for _, b := range []boundTo{
		{1, unix.Timespec{Sec: 1764266039, Nsec: 123456789}, 0},
		{math.MaxInt64, unix.Timespec{Sec: 1764266039, Nsec: 1}, 0},
		{1, unix.Timespec{Sec: 1764266039}, math.MaxUint64},
		{1, unix.Timespec{Sec: -1, Nsec: 999999999}, 0},
	} {
		for _, id := range []string{"b", "A0._+~=@-", strings.Repeat("x", maxIDLen)} {
			data := formatDigest(id, b.String(), sum)
			if len(data) > maxDigestFile {
				t.Errorf("%d bytes are not read", len(data))
			}
			binding, gotSum, ok := parseDigestFile(id, data)
			if got, gotOK := parseBinding(binding); !ok || !gotOK || got != b || gotSum != sum {
				t.Errorf("%+v, %s, %v, %v from %q", got, gotSum, ok, gotOK, data)
			}
			if _, _, ok := parseDigestFile(id+"2", data); ok {
				t.Errorf("%q is taken for that of another build", data)
			}
		}
	}
}

// Other versions of the service read the file, so its form stays.
func TestFormOfTheDigestFile(t *testing.T) {
	b := boundTo{4096, unix.Timespec{Sec: 1764266039, Nsec: 123456789}, 5}
	const want = "# size 4096, mtime 1764266039.123456789, inode 5, crc32c a05f4a6a\n" +
		"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881  ../artifacts/b.tar.gz\n"
	if got := formatDigest("b", b.String(), digestOfBytes([]byte("x"))); string(got) != want {
		t.Errorf("it is %q, not %q", got, want)
	}
}

// No damage of a bit is taken for another digest, or another binding.
func TestDigestFileWithAFlippedBitIsDamaged(t *testing.T) {
	b := boundTo{4096, unix.Timespec{Sec: 1764266039, Nsec: 123456789}, 5}
	data := formatDigest("build", b.String(), digestOfBytes([]byte("x")))
	for i := range 8 * len(data) {
		bad := append([]byte(nil), data...)
		bad[i/8] ^= 1 << (i % 8)
		if _, _, ok := parseDigestFile("build", bad); ok {
			t.Fatalf("bit %d: %q is accepted", i, bad)
		}
	}
	for _, bad := range []string{"", "\n", "# \n", string(data[:len(data)-1]), string(data) + "\n", string(data) + string(data), strings.Repeat("# size 1, ", 1000)} {
		if _, _, ok := parseDigestFile("build", []byte(bad)); ok {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// A binding is accepted only as the service writes it, even if the checksum is right.
func TestBindingOfAnotherForm(t *testing.T) {
	for _, bad := range []string{
		"", "size 1, ", "size 1, mtime 2.3, ", "size 01, mtime 2.000000003, ", "size +1, mtime 2.000000003, ", "size x, mtime 2.000000003, ",
		"mtime 2.000000003, size 1, ", "size 1, mtime 2.000000003", "size 1, mtime 2.000000003, inode 0, ", "size 1, mtime 2.000000003, size 1, ",
		`size 1, mark "", etag "x", `, "size 1, mtime 2.000000003, crc32c 00000000, ",
	} {
		data := formatDigest("b", bad, digestOfBytes([]byte("x")))
		if binding, _, ok := parseDigestFile("b", data); !ok || binding != bad {
			t.Errorf("the binding of %q is %q, %v", data, binding, ok)
		}
		if _, ok := parseBinding(bad); ok {
			t.Errorf("%q is accepted", bad)
		}
	}
	if b, ok := parseBinding("size 1, mtime 2.000000003, "); !ok || b != (boundTo{1, unix.Timespec{Sec: 2, Nsec: 3}, 0}) {
		t.Errorf("%+v, %v", b, ok)
	}
}

// GNU sha256sum checks the files, and finds the damaged artifact.
func TestDigestFilesAreForSha256sum(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	n.useDigests()
	for _, id := range []string{"b", "A0._+~=@-", strings.Repeat("x", maxIDLen)} {
		if _, err := n.StoreArtifactIf("s", id, hashedBody([]byte(id)), Precondition{}); err != nil {
			t.Fatal(err)
		}
	}
	check := func() (string, error) {
		c := exec.Command("sh", "-c", "sha256sum --check --strict *.sha256 && find . -name '*.sha256' -exec cat {} + | sha256sum --check --strict")
		c.Dir = filepath.Join(base, sitesDir, "s", digestsDir)
		out, err := c.CombinedOutput()
		return string(out), err
	}
	if out, err := check(); err != nil || strings.Count(out, ": OK\n") != 6 || strings.Count(out, "\n") != 6 {
		t.Errorf("%v: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(base, sitesDir, "s", artifactsDir, "b"+artifactSuffix), []byte("c"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := check(); err == nil || !strings.Contains(out, "../artifacts/b.tar.gz: FAILED\n") {
		t.Errorf("a damaged artifact: %v: %s", err, out)
	}
}
