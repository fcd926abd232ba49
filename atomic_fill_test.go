package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A failed allocation ends an upload before its body is read.
func TestErrorOfTheAllocation(t *testing.T) {
	d, dir := openTestDir(t)
	fd, err := unix.MemfdCreate("artifact", unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "artifact")
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW); err != nil {
		t.Fatal(err)
	}
	temp := &tempFile{disk: d, dir: dir, f: f, name: tempPrefix + "x", path: "artifact"}
	_, err = temp.ReadFrom(sized{errReader{errSender}, 2 << 20})
	wantError(t, err, unix.EPERM)
	wantError(t, err, ErrDenied)
	if !strings.Contains(fmt.Sprint(err), "cannot allocate") {
		t.Errorf("the error is %v", err)
	}
}

// smallDisk mounts a file system of size bytes, with pages of 4 KiB.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size))
	if err == unix.EPERM || err == unix.EACCES {
		t.Skip("a small file system can only be mounted by root")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// leaveBlocks fills the file system of dir until that many blocks are left.
func leaveBlocks(t *testing.T, dir string, blocks int64) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if n := int64(st.Bavail) - blocks; n > 0 {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, n*st.Bsize); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || int64(st.Bavail) != blocks {
		t.Fatalf("%d blocks are left, not %d: %v", st.Bavail, blocks, err)
	}
}

// A body that does not fit is answered 507, whichever way it is written: copied if it is
// small, otherwise spliced, or in pieces from the buffers of the connection. The old
// build stays.
func TestBodyThatDoesNotFit(t *testing.T) {
	const page = 4096
	dir := smallDisk(t, 2<<20)
	s := startServer(t, "NFS_BASE_PATH="+dir, "MIN_FREE_SPACE=0")
	const path = "/sites/a/artifacts/b"
	old := randomBytes(3000)
	s.put(t, 201, path, old)
	isOld := func(name string) {
		t.Helper()
		if r := s.get(t, 200, path); !bytes.Equal(r.body, old) {
			t.Errorf("%s: the build now has %d bytes", name, len(r.body))
			s.put(t, 201, path, old)
		}
		if files := filesBelow(t, filepath.Join(dir, sitesDir)); len(files) != 1 {
			t.Errorf("%s: there are %q", name, files)
		}
	}
	for _, size := range []int{1, 5000, 50_000, 100_000, copySize, copySize + 1, 200_000, 700_000} {
		body := randomBytes(size)
		need := int64(size+page-1) / page
		for _, left := range []int64{0, 1, need / 2, need - 1} {
			if left >= need {
				continue
			}
			for _, chunked := range []bool{false, true} {
				for _, create := range []bool{false, true} {
					name := fmt.Sprintf("%d bytes, chunked %v, create-only %v, %d of %d pages left", size, chunked, create, left, need)
					leaveBlocks(t, dir, left)
					req := request{http.MethodPut, path, body, nil}
					if chunked {
						req.body = unsized(body)
					}
					if create {
						req.path, req.header = path+"2", header("If-None-Match", "*")
					}
					r, err := s.try(req)
					if err != nil || r.status != 507 {
						t.Errorf("%s: %v, not 507", name, statusOr(r, err))
					}
					if create {
						s.get(t, 404, path+"2")
					}
					isOld(name)
				}
			}
		}
		leaveBlocks(t, dir, need)
		s.put(t, 201, path+"2", body) // and with one page more it fits
		if r := s.get(t, 200, path+"2"); !bytes.Equal(r.body, body) {
			t.Errorf("%d bytes are read as %d", size, len(r.body))
		}
		s.do(t, 204, request{http.MethodDelete, path + "2", nil, nil})
	}

	// The last piece does not fit, and comes out of the buffer of the connection.
	for _, pages := range []int{10, 40, 100} {
		leaveBlocks(t, dir, int64(pages))
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		name := fmt.Sprintf("%d pages and 100 bytes", pages)
		fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n64\r\n%s\r\n0\r\n\r\n",
			path, pages*page, randomBytes(pages*page), randomBytes(100))
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != 507 {
			t.Errorf("%s: %d, not 507", name, r.StatusCode)
		}
		isOld(name)
	}
}

// metered is a body of zeros. Before each piece it checks how much is allocated for it.
type metered struct {
	size, sent int64
	look       func(sent int64)
	placed     int64
}

func (m *metered) Size() int64              { return m.size }
func (m *metered) Placed(n int64)           { m.placed += n }
func (m *metered) Read([]byte) (int, error) { panic("it is moved") }

func (m *metered) MoveTo(f *os.File, most int64) (int64, error) {
	m.look(m.sent)
	n := min(most, m.size-m.sent)
	if _, err := f.Write(make([]byte, n)); err != nil {
		return 0, err
	}
	if m.sent += n; m.sent == m.size {
		return n, io.EOF
	}
	return n, nil
}

// The allocation grows with the bytes written, and is reported.
func TestAllocationFollowsTheBody(t *testing.T) {
	d, dir := openTestDir(t)
	temp, err := d.createTemp(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer temp.discard()
	m := &metered{size: 40<<20 + 5}
	m.look = func(sent int64) {
		var st unix.Stat_t
		if err := unix.Fstat(int(temp.f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		want := sent + windowOf(sent, m.size)
		if m.placed > want || m.placed < sent+windowOf(sent, m.size)/2 {
			t.Errorf("after %d bytes %d are reported as placed, want at most %d, and half the window", sent, m.placed, want)
		}
		if got := st.Blocks * 512; got > m.placed+64<<10 { // and blocks of the file's own
			t.Errorf("after %d bytes %d are allocated, and %d reported", sent, got, m.placed)
		}
	}
	if _, err := temp.ReadFrom(m); err != nil {
		t.Fatal(err)
	}
	if m.placed != m.size {
		t.Errorf("%d bytes of %d were reported as placed", m.placed, m.size)
	}
}

// A reader that yields another number of bytes than its size stores nothing. The
// conformance tests check this too.
func TestReadFromSizes(t *testing.T) {
	f := func(size, declared int64, want error) {
		t.Helper()
		d, dir := openTestDir(t)
		temp, err := d.createTemp(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer temp.discard()
		n, err := temp.ReadFrom(sized{strings.NewReader(strings.Repeat("x", int(size))), declared})
		if n != size {
			t.Errorf("read %d of %d", n, size)
		}
		wantError(t, err, want)
	}
	f(0, 0, nil)
	f(10, 10, nil)
	f(10, -1, nil)
	f(2<<20, 2<<20, nil)
	f(9, 10, io.ErrUnexpectedEOF)
	f(11, 10, io.ErrUnexpectedEOF)
	f(2<<20, 2<<20+1, io.ErrUnexpectedEOF)
	huge := fmt.Sprint(int64(1) << 60)
	_, dir := openTestDir(t)
	temp, err := newDisk(quiet()).createTemp(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer temp.discard()
	_, err = temp.ReadFrom(sized{errReader{errSender}, 1 << 60})
	if !errors.Is(err, ErrNoSpace) {
		t.Errorf("a body of %s bytes was begun to be read: %v", huge, err)
	}
}

// An error of the file is returned, whatever the reader returns.
func TestCopierReturnsErrorsOfTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path) // takes no writes
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := copier{strings.NewReader("abc"), make([]byte, 8)}.MoveTo(f, 8)
	if n != 0 || !errors.Is(err, unix.EBADF) {
		t.Errorf("moved %d bytes, %v", n, err)
	}
}
