package service

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What the S3 server of StartS3 is reached with.
const (
	S3Bucket = "builds"
	S3Key    = "testaccess"
	S3Secret = "testsecret123"
)

// StartS3 starts an S3 server, versitygw over a directory, with an empty bucket,
// and returns its URL. It is killed when the test ends. test/tools.sh fetches it.
func StartS3(t testing.TB) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, S3Bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool("versitygw"), "--port", addr, "--health", "/health", "--quiet", "posix", dir)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+S3Key, "ROOT_SECRET_KEY="+S3Secret)
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; test/tools.sh fetches the servers", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	Until(t, "the S3 server", func() bool {
		res, err := http.Get("http://" + addr + "/health")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return "http://" + addr
}

// OnS3 are the options of a service on the store of StartS3.
func OnS3(bin, url string) Options {
	return Options{Bin: bin, Base: "/nonexistent",
		Env: []string{"STORAGE_BACKEND=s3", "S3_ENDPOINT=" + url, "S3_BUCKET=" + S3Bucket, "S3_PATH_STYLE=true"},
		More: []string{"AWS_ACCESS_KEY_ID=" + S3Key, "AWS_SECRET_ACCESS_KEY=" + S3Secret, "AWS_REGION=us-east-1",
			"AWS_EC2_METADATA_DISABLED=true", "HOME=/nonexistent"}}
}

// tool is the path of a server that test/tools.sh fetched.
func tool(name string) string {
	dir := os.Getenv("STORAGE_TOOLS")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return name
		}
		dir = filepath.Join(cache, "pagewright-storage-tools")
	}
	return filepath.Join(dir, name)
}
