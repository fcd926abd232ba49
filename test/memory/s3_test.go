//go:build (integration || torture) && !no_s3

package memory

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"pagewright/storage/test/service"
)

const (
	accessKey = "testaccess"
	secretKey = "testsecret123"
	bucket    = "builds"

	partSize = 8 << 20 // of the default configuration
	// The default of UPLOAD_MEMORY, and what the SDK and the connections add.
	uploadsBound = (256 + 64) << 20
)

// objects is a store in a new bucket of an S3 server. test/tools.sh fetches it.
func objects(t *testing.T, bin string) store {
	t.Helper()
	url := startVersity(t)
	client := s3.New(s3.Options{BaseEndpoint: aws.String(url), UsePathStyle: true, Region: "us-east-1",
		Credentials: credentials.NewStaticCredentialsProvider(accessKey, secretKey, "")})
	if _, err := client.CreateBucket(context.Background(), &s3.CreateBucketInput{Bucket: aws.String(bucket)}); err != nil {
		t.Fatal(err)
	}
	o := service.Options{Bin: bin, Base: "/nonexistent", Env: []string{"STORAGE_BACKEND=s3", "S3_ENDPOINT=" + url, "S3_BUCKET=" + bucket, "S3_PATH_STYLE=true"},
		More: []string{"AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + secretKey, "AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true", "HOME=/nonexistent"}}
	return store{
		put: func(site, build string, data []byte) error {
			_, err := client.PutObject(context.Background(), &s3.PutObjectInput{Bucket: aws.String(bucket),
				Key: aws.String("sites/" + site + "/logs/" + build + ".json"), Body: bytes.NewReader(data)})
			return err
		},
		start: func(t *testing.T) *service.Service { return service.Start(t, o) },
	}
}

// startVersity starts versitygw over a directory, and returns its URL.
func startVersity(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	cmd := exec.Command(tool("versitygw"), "--port", addr, "--health", "/health", "--quiet", "posix", t.TempDir())
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+accessKey, "ROOT_SECRET_KEY="+secretKey)
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; test/tools.sh fetches the servers", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	service.Until(t, "the S3 server", func() bool {
		res, err := http.Get("http://" + addr + "/health")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return "http://" + addr
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

func TestMemoryOfListsOnS3(t *testing.T) {
	bin := service.Build(t)
	measureLists(t, func(t *testing.T) store { return objects(t, bin) })
}

func TestMemoryOfUnfinishedEntriesOnS3(t *testing.T) {
	measurePosts(t, objects(t, service.Build(t)))
}

func TestMemoryOfAppendsOnS3(t *testing.T) {
	bin := service.Build(t)
	measureAppends(t, func(t *testing.T) store { return objects(t, bin) })
}

// All uploads share one budget of part buffers: those that never send the end of
// a part hold no more than it.
func TestMemoryOfUnfinishedPartsOnS3(t *testing.T) {
	m := newMeter(t, objects(t, service.Build(t)).start(t))
	data := bytes.Repeat(small, (partSize+1<<20)/len(small))
	var all []*held
	for i := range unfinishedParts {
		head := fmt.Sprintf("PUT /sites/site/artifacts/%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", i, len(data))
		h, err := hold(m.s.Addr, head, data, len(data)-partSize+unsent)
		if err != nil {
			t.Fatal(err)
		}
		defer h.conn.Close()
		all = append(all, h)
	}
	waiting := m.settle()
	stored, busy := finishAll(t, all)
	m.check(uploadsBound, "%.0f MiB while %d waited, then %d times 201, %d times 503", mib(waiting), unfinishedParts, stored, busy)
	if stored == 0 {
		t.Error("none of them was stored")
	}
	for i, h := range all {
		if h.status != http.StatusCreated {
			continue
		}
		res, err := http.Get(m.s.URL("site", fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("build %d: %d bytes, %v, or other bytes than were sent", i, len(got), err)
		}
	}
}

// An upload that declares 5 TB has parts of 525 MB, or is refused: no more of it
// is held than the budget has.
func TestMemoryOfDeclared5TBOnS3(t *testing.T) {
	m := newMeter(t, objects(t, service.Build(t)).start(t))
	const declared, sent = 5 << 40, 600 << 20
	conn, err := net.Dial("tcp", m.s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second)) // it may not be read on
	fmt.Fprintf(conn, "PUT /sites/site/artifacts/b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", int64(declared))
	piece, n := bytes.Repeat(small, 16), 0
	for n < sent && err == nil {
		var k int
		k, err = conn.Write(piece)
		n += k
	}
	m.settle()
	answer := make([]byte, 300)
	conn.SetReadDeadline(time.Now().Add(time.Second))
	k, _ := conn.Read(answer)
	m.check(uploadsBound, "%d MiB were taken (%v), and the answer is %.100q", n>>20, err, answer[:k])
}
