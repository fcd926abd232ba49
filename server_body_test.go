package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"
	"time"
)

// toldStore stores in a directory and counts the calls that report bytes, which
// is once a write.
type toldStore struct {
	*nfs
	copied bool // bodies are copied, not spliced
	told   []int64
}

func (s *toldStore) StoreArtifactIf(siteID, buildID string, reader io.Reader, cond Precondition) (ArtifactInfo, error) {
	b := reader.(*requestBody)
	if s.copied && b.region != nil {
		b.conn.l.spliceSlots.release(b.region)
		b.region = nil
	}
	return s.nfs.StoreArtifactIf(siteID, buildID, toldBody{b, s}, cond)
}

type toldBody struct {
	*requestBody
	s *toldStore
}

func (b toldBody) MoveTo(f *os.File, max int64) (int64, error) {
	n, err := b.requestBody.MoveTo(f, max)
	b.s.told = append(b.s.told, n)
	return n, err
}

// Small chunks are written together, large ones come as they are, and what was
// sent is what is stored.
func TestSmallChunksAreGathered(t *testing.T) {
	small := func(n, size int) (sizes []int) {
		for range n {
			sizes = append(sizes, size)
		}
		return sizes
	}
	for _, c := range []struct {
		name   string
		chunks []int
		most   int // writes, where each piece that is spliced is one
	}{
		{"of a byte", small(300_000, 1), 4},
		{"of 100 bytes", small(10_000, 100), 10},
		{"of 9,000 bytes", small(200, 9_000), 400},
		{"a large one", []int{3 << 20}, 400},
		{"small and large ones", append(append(small(1000, 3), 1<<20), small(1000, 5)...), 200},
		{"one byte", []int{1}, 1},
	} {
		for _, copied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, copied %v", c.name, copied), func(t *testing.T) {
				store := &toldStore{nfs: openTestNFS(t, t.TempDir()), copied: copied}
				s, _ := startBackend(t, store)
				var raw, body bytes.Buffer
				raw.WriteString("PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
				for _, size := range c.chunks {
					piece := randomBytes(size)
					fmt.Fprintf(&raw, "%x\r\n%s\r\n", size, piece)
					body.Write(piece)
				}
				raw.WriteString("0\r\n\r\n")
				if got := exchangeRaw(t, s.addr, raw.String()); got != "201" {
					t.Fatalf("answered %q", got)
				}
				if r := s.get(t, 200, "/sites/a/artifacts/b"); !bytes.Equal(r.body, body.Bytes()) {
					t.Errorf("%d bytes came back, others than the %d that were sent", len(r.body), body.Len())
				}
				told := int64(0)
				for _, n := range store.told {
					told += n
				}
				if len(store.told) > c.most+1 || told != int64(body.Len()) { // one more for the end
					t.Errorf("%d writes of %d bytes together, want at most %d of %d", len(store.told), told, c.most, body.Len())
				}
			})
		}
	}
}

// A body past the limit is refused when the first byte too many has come,
// not when the buffer is full.
func TestTooLargeIsNotWaitedFor(t *testing.T) {
	for _, copied := range []bool{false, true} {
		s, _ := startBackend(t, &toldStore{nfs: openTestNFS(t, t.TempDir()), copied: copied}, "MAX_ARTIFACT_SIZE=10")
		client := dial(t, s.addr)
		_, _ = io.WriteString(client, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n12345678901\r\n")
		_ = client.SetReadDeadline(time.Now().Add(15 * time.Second)) // half of the stall timeout, with which it would end
		if got := readStatus(client); got != 413 {
			t.Errorf("copied %v: answered %d, want 413", copied, got)
		}
	}
}
