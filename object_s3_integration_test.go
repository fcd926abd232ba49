//go:build integration && !no_s3

package main

import (
	"context"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

const (
	testKey    = "testaccess"
	testSecret = "testsecret123"
	testBucket = "builds"
)

// startVersity starts versitygw over a directory.
func startVersity(t testing.TB) *realStore {
	server := startProcess(t, "/health",
		[]string{"ROOT_ACCESS_KEY=" + testKey, "ROOT_SECRET_KEY=" + testSecret},
		[]string{versityPath, "--port", "{addr}", "--health", "/health", "--quiet", "posix", t.TempDir()})
	s := s3Store(t, "versitygw", server)
	s.but = []difference{deletesGone, deletesRace}
	return s
}

// startMinIO starts MinIO over a directory. /minio/health/ready would be too early: some 100 ms
// later, MinIO makes each bucket again that it found at its start (HealBucket in concurrentLoad
// of bucket-metadata-sys.go), even if the bucket was deleted meanwhile.
func startMinIO(t testing.TB) *realStore {
	server := startProcess(t, "/minio/health/cluster",
		[]string{"MINIO_ROOT_USER=" + testKey, "MINIO_ROOT_PASSWORD=" + testSecret, "MINIO_UPDATE=off", "MINIO_BROWSER=off", "MINIO_CI_CD=1"},
		[]string{minioPath, "server", t.TempDir(), "--address", "{addr}", "--quiet"})
	s := s3Store(t, "minio", server)
	s.but = []difference{changeWaits, noDeleteIf}
	return s
}

// s3Store returns a store in a new bucket of the server.
func s3Store(t testing.TB, name string, server *storeServer) *realStore {
	t.Helper()
	s := &realStore{name: name, server: server, env: map[string]string{
		"PAGEWRIGHT_STORAGE_BACKEND": "s3",
		"PAGEWRIGHT_S3_ENDPOINT":     server.url(),
		"PAGEWRIGHT_S3_BUCKET":       testBucket,
		"PAGEWRIGHT_S3_PATH_STYLE":   "true",
		"PAGEWRIGHT_S3_PREFIX":       "some/prefix",
		"AWS_ACCESS_KEY_ID":          testKey,
		"AWS_SECRET_ACCESS_KEY":      testSecret,
	}}
	bucket := testBucket
	s.prepare = func(t testing.TB) {
		t.Helper()
		if _, err := s.s3(t).client.CreateBucket(context.Background(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
			t.Fatal(err)
		}
	}
	s.prepare(t)
	s.drop = func(t testing.TB) {
		t.Helper()
		if _, err := s.s3(t).client.DeleteBucket(context.Background(), &s3.DeleteBucketInput{Bucket: &bucket}); err != nil {
			t.Fatal(err)
		}
	}
	s.unfinished = func(t testing.TB) int {
		t.Helper()
		prefix := s.env["PAGEWRIGHT_S3_PREFIX"]
		n := 0
		for _, id := range []string{"new", "old"} { // MinIO lists those of one exact key
			key := prefix + "/sites/s/artifacts/" + id + artifactSuffix
			out, err := s.s3(t).client.ListMultipartUploads(context.Background(), &s3.ListMultipartUploadsInput{Bucket: &bucket, Prefix: &key})
			if err != nil {
				t.Fatal(err)
			}
			n += len(out.Uploads)
		}
		return n
	}
	return s
}

// s3 returns the bucket of the store.
func (s *realStore) s3(t testing.TB) *s3Bucket {
	t.Helper()
	return s.open(t, "").(*objectStore).bucket.(*s3Bucket)
}
