package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hashStore stores in a directory, and hashes each body.
type hashStore struct {
	*nfs
	want  announcedDigests
	begin func(*requestBody) // before the body is read; may be nil

	// Of the latest body.
	spliced  bool
	readBack atomic.Int64 // bytes read back
	sum      Digest
}

func (s *hashStore) StoreArtifactIf(siteID, buildID string, reader io.Reader, cond Precondition) (ArtifactInfo, error) {
	b := reader.(*requestBody)
	b.hashed(s.want)
	s.readBack.Store(0)
	readAt := b.hash.readAt
	b.hash.readAt = func(f *os.File, p []byte, off int64) (int, error) {
		n, err := readAt(f, p, off)
		s.readBack.Add(int64(n))
		return n, err
	}
	if s.begin != nil {
		s.begin(b)
	}
	info, err := s.nfs.StoreArtifactIf(siteID, buildID, reader, cond)
	s.spliced, s.sum = b.region != nil, b.Sum()
	return info, err
}

func openHashStore(t testing.TB, dir string) *hashStore {
	n := openTestNFS(t, dir)
	if n.kind != fsLocal { // so are directories of tests in some containers
		n.disk.readBack = true
	}
	return &hashStore{nfs: n}
}

// announce returns the digests of body, as a client sends them.
func announce(body []byte, both bool) announcedDigests {
	sum, long := sha256.Sum256(body), sha512.Sum512(body)
	if both {
		return announcedDigests{&sum, &long}
	}
	return announcedDigests{SHA256: &sum}
}

// putChunked sends body in chunks of the sizes, again and again, and returns the status.
func putChunked(t *testing.T, s *testServer, path string, body []byte, sizes ...int) int {
	c := dial(t, s.addr)
	go func() {
		w := bufio.NewWriterSize(c, 64<<10)
		fmt.Fprintf(w, "PUT %s HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", path)
		for i := 0; len(body) > 0; i++ {
			n := min(sizes[i%len(sizes)], len(body))
			fmt.Fprintf(w, "%x\r\n%s\r\n", n, body[:n])
			body = body[n:]
		}
		_, _ = w.WriteString("0\r\n\r\n")
		_ = w.Flush()
	}()
	return readStatus(c)
}

// A body is stored if it has the announced digests, and else is refused and leaves nothing
// behind, whichever byte differs, however large it is and whichever way it comes.
func TestBodyIsHashed(t *testing.T) {
	const path = "/sites/a/artifacts/b"
	ca, files := newTestCA(t, "of the server"), newTLSDir(t)
	files.write(ca.issue("server"))
	mixed := []int{1, 3 << 20, 5, 5, 100_000, 9_000, 1 << 20}
	type way struct {
		name          string
		https, noRead bool
		put           func(t *testing.T, s *testServer, body []byte) any
		splices       bool // what is large enough
		most          int  // size
	}
	plainPut := func(t *testing.T, s *testServer, body []byte) any {
		return statusOr(s.try(request{"PUT", path, body, nil}))
	}
	for _, w := range []way{
		{name: "with a length", put: plainPut, splices: true, most: math.MaxInt},
		{name: "chunked", splices: true, most: math.MaxInt, put: func(_ *testing.T, s *testServer, body []byte) any {
			return statusOr(s.try(request{"PUT", path, unsized(body), nil}))
		}},
		{name: "chunked, of mixed sizes", splices: true, most: 8 << 20, put: func(t *testing.T, s *testServer, body []byte) any {
			return putChunked(t, s, path, body, mixed...)
		}},
		{name: "chunked, of 100 bytes", splices: true, most: copySize + 1, put: func(t *testing.T, s *testServer, body []byte) any {
			return putChunked(t, s, path, body, 100)
		}},
		{name: "TLS", https: true, put: plainPut, most: 8 << 20},
		{name: "into a file that is not open for reading", noRead: true, put: plainPut, most: 8 << 20},
	} {
		t.Run(w.name, func(t *testing.T) {
			store := openHashStore(t, t.TempDir())
			store.nfs.disk.readBack = !w.noRead
			var tune []func(*listener)
			if w.https {
				tune = append(tune, overTLS(files.open()))
			}
			s := startHeld(t, store, func(held) {}, tune...)
			if w.https {
				s.https = httpsClient(t, ca.trust())
			}
			for i, size := range []int{1, smallSize, copySize - 1, copySize, copySize + 1, hashBatch, hashBatch + copySize + 1,
				moveSize - 1, moveSize, moveSize + 1, 8 << 20, 64<<20 + 7} {
				if size > w.most {
					continue
				}
				body := randomBytes(size)
				sum := sha256.Sum256(body)
				store.want = announce(body, i%2 == 0)
				if got := w.put(t, s, body); got != 201 {
					t.Fatalf("%d bytes: %d, not 201", size, got)
				}
				stored, err := os.ReadFile(filepath.Join(store.base, "sites/a/artifacts/b.tar.gz"))
				if err != nil || !bytes.Equal(stored, body) || store.sum != Digest(sum) {
					t.Errorf("%d bytes: %d are stored, others or with another sum: %v", size, len(stored), err)
				}
				spliced := w.splices && (size > copySize || strings.HasPrefix(w.name, "chunked"))
				if store.spliced != spliced || spliced && store.readBack.Load() != int64(size) || !spliced && store.readBack.Load() > 0 {
					t.Errorf("%d bytes: spliced %v, read back %d, want spliced %v", size, store.spliced, store.readBack.Load(), spliced)
				}
				for _, at := range []int{0, size / 2, size - 1} {
					body[at]++
					if got := w.put(t, s, body); got != 400 {
						t.Errorf("%d bytes, byte %d differs: %d, not 400", size, at, got)
					}
					body[at]--
				}
				if store.want.SHA512 != nil { // sha-512 alone
					store.want.SHA256 = nil
					body[size-1]++
					if got := w.put(t, s, body); got != 400 {
						t.Errorf("%d bytes, sha-512: %d, not 400", size, got)
					}
				}
				if files := filesBelow(t, store.base); len(files) != 1 {
					t.Errorf("%d bytes: there are %q", size, files)
				}
				if now, err := os.ReadFile(filepath.Join(store.base, "sites/a/artifacts/b.tar.gz")); err != nil || !bytes.Equal(now, stored) {
					t.Errorf("%d bytes: the build changed: %v", size, err)
				}
			}
		})
	}
}

// lag returns how far the hash is behind, and whether the body waits for it.
func (h *bodyHash) lag() (behind int64, waiting, running, stopped bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.moved - h.hashed, h.waiting, h.running, h.stopped
}

// await returns what comes out of c in time.
func await[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(time.Minute):
		t.Fatal("nothing came")
	}
	return v
}

// The splice is at most hashWindow bytes ahead of the hash, on one processor too.
func TestHashWindow(t *testing.T) {
	for _, procs := range []int{1, runtime.GOMAXPROCS(0)} {
		for _, chunked := range []bool{false, true} {
			func() {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
				store := openHashStore(t, t.TempDir())
				body := randomBytes(3*hashWindow + 5)
				store.want = announce(body, false)
				var h *bodyHash
				begun, released := make(chan struct{}), make(chan struct{})
				release := sync.OnceFunc(func() { close(released) })
				defer release()
				var most atomic.Int64
				store.begin = func(b *requestBody) {
					h = b.hash
					readAt := h.readAt
					h.readAt = func(f *os.File, p []byte, off int64) (int, error) {
						<-released
						behind, _, _, _ := h.lag()
						most.Store(max(most.Load(), behind))
						return readAt(f, p, off)
					}
					close(begun)
				}
				s, _ := startBackend(t, store)
				status := make(chan any, 1)
				go func() {
					r := request{"PUT", "/sites/a/artifacts/b", body, nil}
					if chunked {
						r.body = unsized(body)
					}
					status <- statusOr(s.try(r))
				}()
				await(t, begun)
				eventually(t, "the body waits for the hash", func() bool { _, waiting, _, _ := h.lag(); return waiting })
				release()
				if got := <-status; got != 201 {
					t.Errorf("%d processors, chunked %v: %d, not 201", procs, chunked, got)
				}
				if got := most.Load(); got > hashWindow || got < hashWindow/2 {
					t.Errorf("%d processors, chunked %v: the hash was %d bytes behind, want at most %d", procs, chunked, got, hashWindow)
				}
			}()
		}
	}
}

// A file that cannot be read back is a fault of the store, and not the client's: the
// response does not say that the digest differs.
func TestFileCannotBeReadBack(t *testing.T) {
	for _, c := range []struct {
		name string
		from int64
		n    int
		err  error
		want int
	}{
		{"EIO at once", 0, 0, unix.EIO, 500},
		{"EIO in the middle", 4 << 20, 0, unix.EIO, 500},
		{"EIO at the end", 8<<20 - 1, 0, unix.EIO, 500},
		{"ESTALE", 0, 0, unix.ESTALE, 503},
		{"shorter", 0, 100, io.EOF, 500},
	} {
		for _, chunked := range []bool{false, true} {
			store := openHashStore(t, t.TempDir())
			body := randomBytes(8 << 20)
			store.want = announce(body, false)
			store.begin = func(b *requestBody) {
				readAt := b.hash.readAt
				b.hash.readAt = func(f *os.File, p []byte, off int64) (int, error) {
					if off+int64(len(p)) > c.from {
						return c.n, c.err
					}
					return readAt(f, p, off)
				}
			}
			s, _ := startBackend(t, store)
			r := request{"PUT", "/sites/a/artifacts/b", body, nil}
			if chunked {
				r.body = unsized(body)
			}
			if got := s.do(t, c.want, r); bytes.Contains(got.body, []byte("digest")) || bytes.Contains(got.body, []byte("sha-256")) {
				t.Errorf("%s, chunked %v: %s", c.name, chunked, got.body)
			}
			if files := filesBelow(t, store.base); len(files) > 0 {
				t.Errorf("%s, chunked %v: left behind: %q", c.name, chunked, files)
			}
		}
	}
}

// mixedStore reads a body in different ways: into memory, and into files behind what they
// hold.
type mixedStore struct {
	Backend
	t     *testing.T
	dir   string
	want  announcedDigests
	got   []byte
	sum   Digest
	moved int
}

func (s *mixedStore) StoreArtifactIf(_, _ string, reader io.Reader, _ Precondition) (ArtifactInfo, error) {
	b := reader.(*requestBody)
	b.hashed(s.want)
	for i := 0; ; i++ {
		n, err := s.read(b, i)
		if err == io.EOF {
			s.sum = b.Sum()
			return ArtifactInfo{}, nil
		}
		if err != nil {
			return ArtifactInfo{}, err
		}
		s.moved += n
	}
}

// read reads the next bytes: in each third call into memory, else into two files in turn.
func (s *mixedStore) read(b *requestBody, i int) (int, error) {
	if i%3 == 0 {
		p := make([]byte, 300_000)
		n, err := b.Read(p)
		s.got = append(s.got, p[:n]...)
		return n, err
	}
	f, err := os.CreateTemp(s.dir, "")
	if err != nil {
		return 0, err
	}
	s.t.Cleanup(func() { f.Close() })                        // later: its end may not be hashed yet
	if _, err := f.Write(make([]byte, 1000*i)); err != nil { // and it stays at this offset
		return 0, err
	}
	total, err := 0, error(nil)
	for range i % 4 {
		var n int64
		n, err = b.MoveTo(f, int64(700_000*i))
		if total += int(n); err != nil {
			break
		}
	}
	data, rerr := os.ReadFile(f.Name())
	if rerr != nil {
		return 0, rerr
	}
	s.got = append(s.got, data[1000*i:]...)
	return total, err
}

func (s *mixedStore) DeleteArtifact(string, string, Precondition) error { return ErrUnsupported }

// A body is hashed in its order, if it is read in different ways, and from the offset of
// the file at which it was written.
func TestHashOfMixedReads(t *testing.T) {
	for _, chunked := range []bool{false, true} {
		body := randomBytes(12<<20 + 3)
		store := &mixedStore{t: t, dir: t.TempDir(), want: announce(body, true)}
		s, _ := startBackend(t, store)
		if chunked {
			if got := putChunked(t, s, "/sites/a/artifacts/b", body, 10, 2<<20, 4<<20); got != 201 {
				t.Errorf("chunked: %d, not 201", got)
			}
		} else {
			s.put(t, 201, "/sites/a/artifacts/b", body)
		}
		if !bytes.Equal(store.got, body) || store.sum != sha256.Sum256(body) {
			t.Errorf("chunked %v: %d bytes of %d, or another sum", chunked, len(store.got), len(body))
		}
	}
}

// When an upload has ended, however it ends, no goroutine reads its file any more. While its
// client sends nothing, none does either.
func TestHashEndsWithTheBody(t *testing.T) {
	const path, size = "/sites/a/artifacts/b", 20 << 20
	for _, c := range []struct {
		name  string
		stall string
		disk  int // size in bytes of the file system; 0: that of the tests
		end   func(client io.Closer, b *requestBody)
	}{
		{"cut", "60s", 0, func(client io.Closer, _ *requestBody) { client.Close() }},
		{"stalled", "1s", 0, func(io.Closer, *requestBody) {}},
		{"revoked", "60s", 0, func(_ io.Closer, b *requestBody) { b.Revoke() }},
		{"the disk is full", "60s", 6 << 20, func(io.Closer, *requestBody) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if c.disk > 0 {
				dir = smallDisk(t, c.disk)
			}
			store := openHashStore(t, dir)
			entered, released, finished := make(chan struct{}), make(chan struct{}), make(chan struct{})
			release := sync.OnceFunc(func() { close(released) })
			defer release()
			bodies := make(chan *requestBody, 1)
			store.begin = func(b *requestBody) {
				readAt, first := b.hash.readAt, true
				b.hash.readAt = func(f *os.File, p []byte, off int64) (int, error) {
					if first {
						first = false
						close(entered)
						<-released
					}
					return readAt(f, p, off)
				}
				was := b.conn.l.finished
				b.conn.l.finished = func(x *requestRecord) { was(x); close(finished) }
				bodies <- b
			}
			s, _ := startBackend(t, store, "MIN_FREE_SPACE=0", "STALL_TIMEOUT="+c.stall)
			client := dial(t, s.addr)
			head := fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", path, size)
			if c.disk > 0 { // so that the file system is not asked whether all of it fits
				head = fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n", path, size)
			}
			go func() {
				_, _ = client.Write(append([]byte(head), randomBytes(2<<20)...))
				<-entered // or the disk could be full before the goroutine begins
				_, _ = client.Write(randomBytes(6 << 20))
			}()
			b := await(t, bodies)
			await(t, entered)
			c.end(client, b)
			eventually(t, "the body is closed", func() bool { _, _, _, stopped := b.hash.lag(); return stopped })
			// The bounded wait may let a fault pass, but never fails a sound build.
			select {
			case <-finished:
				t.Error("the upload ended before its hash")
			case <-time.After(200 * time.Millisecond):
			}
			release()
			await(t, finished)
			if _, _, running, _ := b.hash.lag(); running {
				t.Error("a goroutine reads the file")
			}
			if files := filesBelow(t, store.base); len(files) > 0 {
				t.Errorf("left behind: %q", files)
			}
		})
	}
	t.Run("while the client is silent", func(t *testing.T) {
		store := openHashStore(t, t.TempDir())
		bodies := make(chan *requestBody, 1)
		store.begin = func(b *requestBody) { bodies <- b }
		s, _ := startBackend(t, store)
		client := dial(t, s.addr)
		body := randomBytes(size)
		store.want = announce(body, false)
		fmt.Fprintf(client, "PUT %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", path, size)
		_, _ = client.Write(body[:8<<20])
		b := await(t, bodies)
		eventually(t, "what came is hashed, and no goroutine is left", func() bool {
			b.hash.mu.Lock()
			defer b.hash.mu.Unlock()
			return b.hash.moved > 7<<20 && b.hash.moved-b.hash.hashed < hashBatch && !b.hash.running
		})
		_, _ = client.Write(body[8<<20:])
		if got := readStatus(client); got != 201 {
			t.Errorf("%d, not 201", got)
		}
	})
}
