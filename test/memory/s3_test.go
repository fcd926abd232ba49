//go:build (integration || torture) && !no_s3

package memory

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"pagewright/storage/test/service"
)

const (
	partSize = 8 << 20 // of the default configuration
	// The budget of part buffers, by default, which are used again, and what the SDK
	// and the connections add.
	uploadsBound = (256 + 64) << 20
	// Three times the budget of logs under change: the collector lets garbage grow to
	// as much as is in use, and the rest is the SDK's.
	objectAppendsBound = 3 * 64 << 20
)

// objects is a store in a new bucket of an S3 server.
func objects(t *testing.T, bin string) store {
	t.Helper()
	url := service.StartS3(t)
	client := s3.New(s3.Options{BaseEndpoint: aws.String(url), UsePathStyle: true, Region: "us-east-1",
		Credentials: credentials.NewStaticCredentialsProvider(service.S3Key, service.S3Secret, "")})
	return store{
		put: func(site, build string, data []byte) error {
			_, err := client.PutObject(context.Background(), &s3.PutObjectInput{Bucket: aws.String(service.S3Bucket),
				Key: aws.String("sites/" + site + "/logs/" + build + ".json"), Body: bytes.NewReader(data)})
			return err
		},
		start: func(t *testing.T) *service.Service { return service.Start(t, service.OnS3(bin, url)) },
	}
}

func TestMemoryOfListsOnS3(t *testing.T) {
	bin := service.Build(t)
	measureLists(t, func(t *testing.T) store { return objects(t, bin) })
}

func TestMemoryOfUnfinishedEntriesOnS3(t *testing.T) {
	measurePosts(t, objects(t, service.Build(t)), objectAppendsBound)
}

func TestMemoryOfAppendsOnS3(t *testing.T) {
	bin := service.Build(t)
	measureAppends(t, objectAppendsBound, func(t *testing.T) store { return objects(t, bin) })
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
