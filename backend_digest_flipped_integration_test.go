//go:build integration

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

const keepTime, newTime = true, false // of flipBit

// flipBit flips a bit of a file, and restores its time afterwards if keep is set: so a disk
// that rots does not change it.
func flipBit(t *testing.T, file string, at int64, keep bool) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	_, readErr := f.ReadAt(b, at)
	b[0] ^= 1
	_, writeErr := f.WriteAt(b, at)
	if err := errors.Join(readErr, writeErr); err != nil {
		t.Fatal(err)
	}
	if keep {
		if err := os.Chtimes(file, time.Time{}, info.ModTime()); err != nil {
			t.Fatal(err)
		}
	}
}

// flipStored flips a bit in the middle of data where the store keeps it.
func (s *digestRig) flipStored(t *testing.T, data []byte, keep bool) {
	t.Helper()
	middle := len(data) / 2
	part := data[max(0, middle-1000):min(len(data), middle+1000)]
	found := 0
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ignoreNotExist(err) // a store removes what its checks left
		}
		b, err := os.ReadFile(path)
		if i := bytes.Index(b, part); i >= 0 {
			found++
			flipBit(t, path, int64(i+len(part)/2), keep)
		}
		return ignoreNotExist(err)
	})
	if err != nil || found != 1 {
		t.Fatalf("%d files have the bytes, %v", found, err)
	}
}

// replaceObject replaces an object behind the service's back, and keeps its metadata, as a tool
// may do that copies buckets.
func (s *digestRig) replaceObject(t *testing.T, site, build string, data []byte) {
	t.Helper()
	o := s.open(t, "").(*objectStore)
	ctx, key := context.Background(), o.artifactKey(site, build)
	var err error
	switch b := o.bucket.(type) {
	case *s3Bucket:
		var head *s3.HeadObjectOutput
		bucket := testBucket
		if head, err = b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: &key}); err == nil {
			_, err = b.client.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(data),
				ContentType: head.ContentType, Metadata: head.Metadata})
		}
	case *azureBucket:
		blob := b.client.NewBlockBlobClient(key)
		properties, err2 := blob.GetProperties(ctx, nil)
		if err = err2; err == nil {
			_, err = blob.UploadBuffer(ctx, data, &blockblob.UploadBufferOptions{Metadata: properties.Metadata})
		}
	case *gcsBucket:
		object := b.bucket.Object(key)
		attrs, err2 := object.Attrs(ctx)
		if err = err2; err == nil {
			w := object.NewWriter(ctx)
			w.ContentType, w.Metadata = attrs.ContentType, attrs.Metadata
			_, err = w.Write(data)
			err = errors.Join(err, w.Close())
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// verify runs the command on the store.
func (s *digestRig) verify(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"verify"}, args...)...)
	cmd.Env = append(s.environ(""), childVariable+"=main", "PATH="+os.Getenv("PATH"))
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	start := time.Now()
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	t.Logf("verify %q took %v", args, time.Since(start))
	return out.String(), log.String(), cmd.ProcessState.ExitCode()
}

// lineWith returns the line of the output that names a build.
func lineWith(output, build string) string {
	for line := range strings.Lines(output) {
		if strings.Contains(line, build) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// Bits of builds are flipped where the store keeps them, and builds are replaced behind the
// service's back: verify names each of them and no other. A download of one never has a
// digest that fits bytes which were not uploaded.
func TestRealStoresFlippedBits(t *testing.T) {
	eachDigestStore(t, func(t *testing.T, s *digestRig) {
		service := s.replica(t)
		wrong := map[string]string{} // what verify may say of a build
		sums := map[string]Digest{}
		for _, n := range []int{15 << 10, largeBody} {
			for _, kind := range []string{"sound", "rotten", "replaced", "unknown"} {
				id, data := fmt.Sprintf("%s%d", kind, n), randomBytes(n)
				sum := Digest(sha256.Sum256(data))
				kv := []string{"Repr-Digest", sha256Member(sum)}
				if kind == "unknown" {
					kv = nil
				}
				wanted(t, 201, service, "PUT", "/sites/flipped/artifacts/"+id, sized{bytes.NewReader(data), int64(n)}, kv...)
				sums[id] = sum
				switch {
				case kind == "rotten":
					s.flipStored(t, data, keepTime)
					wrong[id] = "corrupt"
				case kind == "replaced" && s.kind == "nfs":
					s.flipStored(t, data, newTime)
					wrong[id] = "changed"
				case kind == "replaced":
					data[n/2] ^= 1
					s.replaceObject(t, "flipped", id, data)
					wrong[id] = "changed corrupt"
				}
			}
		}
		wanted(t, 201, service, "PUT", "/sites/sound/artifacts/b", newBody(100, 1, -1), "Repr-Digest", sha256Member(sumOfBody(100, 1)))
		before, _ := describeUnknown(t, s)
		for _, args := range [][]string{{}, {"--json", "--site", "flip*", "--fill"}} {
			out, stderr, status := s.verify(t, args...)
			if status != 4 {
				t.Errorf("verify %q exits with %d, want 4:\n%s\n%s", args, status, out, stderr)
			}
			for id := range sums {
				line := lineWith(out, id)
				named := false
				for word := range strings.FieldsSeq(wrong[id]) {
					named = named || strings.Contains(line, word)
				}
				if named != (wrong[id] != "") || wrong[id] == "" && line != "" && !strings.Contains(line, "filled") {
					t.Errorf("verify %q says of %s: %q, want %q", args, id, line, wrong[id])
				}
			}
		}
		if out, stderr, status := s.verify(t, "--site", "sound"); status != 0 {
			t.Errorf("verify of another site exits with %d, want 0:\n%s\n%s", status, out, stderr)
		}
		// The missing digests are kept now, and the builds are what they were.
		after, digests := describeUnknown(t, s)
		if !maps.Equal(before, after) || len(before) == 0 {
			t.Errorf("the builds without a digest were %v, and are %v", before, after)
		}
		for id := range before {
			if digests[id] != sums[id].String() {
				t.Errorf("the list has the digest %q of %s, want %s", digests[id], id, sums[id])
			}
		}
		fresh := s.replica(t) // the other one may have small builds in memory
		for id, kinds := range wrong {
			start := time.Now()
			r, err := send(fresh, "GET", "/sites/flipped/artifacts/"+id, nil)
			if err != nil || r.status != 200 {
				t.Logf("a download of %s (%s) fails after %v: %v", id, kinds, time.Since(start), err)
				if err == nil && r.status < 500 {
					t.Errorf("a download of %s (%s): status %d", id, kinds, r.status)
				}
				continue
			}
			digest := r.header.Get("Repr-Digest")
			t.Logf("a download of %s (%s): status %d, %d bytes, Repr-Digest %q", id, kinds, r.status, r.n, digest)
			if r.sum == sums[id] {
				t.Errorf("%s: the bytes that were uploaded came back", id)
			}
			if digest != "" && digest != sha256Member(sums[id]) {
				t.Errorf("%s: Repr-Digest is %s, want that of the upload or none", id, digest)
			}
			if kinds == "corrupt" && digest == "" {
				t.Errorf("%s: a corrupt build was sent without the digest that shows it", id)
			}
		}
	})
}

// describeUnknown returns ETag and time of the builds that were uploaded without a digest, as a
// service that was just started has them, and the digests in its list.
func describeUnknown(t *testing.T, s *digestRig) (builds, digests map[string]string) {
	t.Helper()
	service := s.replica(t)
	digests = digestsOf(t, wanted(t, 200, service, "GET", "/sites/flipped/versions?digest=true", nil).body)
	builds = map[string]string{}
	for id, sum := range digests {
		if strings.HasPrefix(id, "unknown") {
			r := wanted(t, 200, service, "HEAD", "/sites/flipped/artifacts/"+id, nil)
			builds[id] = r.header.Get("ETag") + " " + r.header.Get("Last-Modified")
			if known := r.header.Get("Repr-Digest") != ""; known != (sum != "") {
				t.Errorf("%s: a digest is in HEAD: %v, and the list has %q", id, known, sum)
			}
		}
	}
	return builds, digests
}
