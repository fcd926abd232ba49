package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// openTestDir opens a new directory for writing into it.
func openTestDir(t *testing.T) (*disk, *os.File) {
	t.Helper()
	d := newDisk(quiet())
	dir, err := d.openDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return d, dir
}

// sealed is a temp in dir that holds content.
func sealed(t *testing.T, d *disk, dir *os.File, content string) *tempFile {
	t.Helper()
	temp, err := d.createTemp(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := temp.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if _, err := temp.seal(); err != nil {
		t.Fatal(err)
	}
	return temp
}

// wantFiles fails unless dir has exactly these names.
func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%q has %q, want %q", dir, got, want)
	}
}

func wantContent(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%q holds %q, %v, want %q", path, got, err, want)
	}
}

// What happens to a sealed temp, and how placing it ends.
func TestPlacing(t *testing.T) {
	replace := (*tempFile).replace
	create := (*tempFile).create
	f := func(name string, before func(t *testing.T, temp *tempFile, target string), place func(*tempFile, string) error, want error, content string) {
		t.Run(name, func(t *testing.T) {
			d, dir := openTestDir(t)
			target := filepath.Join(dir.Name(), "target")
			temp := sealed(t, d, dir, "new")
			before(t, temp, target)
			err := place(temp, "target")
			temp.discard()
			wantError(t, err, want)
			if content == "" {
				wantFiles(t, dir.Name())
				return
			}
			wantFiles(t, dir.Name(), "target")
			wantContent(t, target, content)
		})
	}
	nothing := func(*testing.T, *tempFile, string) {}
	do := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	rival := func(t *testing.T, _ *tempFile, target string) { do(t, os.WriteFile(target, []byte("old"), 0o644)) }
	swept := func(t *testing.T, temp *tempFile, _ string) { do(t, os.Remove(temp.path)) }
	sweptAndRival := func(t *testing.T, temp *tempFile, target string) { swept(t, temp, target); rival(t, temp, target) }

	f("replace makes", nothing, replace, nil, "new")
	f("replace replaces", rival, replace, nil, "new")
	f("replace of a swept temp", swept, replace, fs.ErrNotExist, "")
	f("replace of a swept temp over a rival's file", sweptAndRival, replace, fs.ErrNotExist, "old")
	f("replace whose reply was lost", func(t *testing.T, temp *tempFile, target string) { do(t, os.Rename(temp.path, target)) }, replace, nil, "new")
	f("create makes", nothing, create, nil, "new")
	f("create does not replace", rival, create, fs.ErrExist, "old")
	f("create of a swept temp", swept, create, fs.ErrNotExist, "")
	f("create whose reply was lost", func(t *testing.T, temp *tempFile, target string) { do(t, os.Link(temp.path, target)) }, create, nil, "new")
}

// An inode that was freed by a sweep and taken by a rival is not our file.
func TestInodeOfSweptTempTakenByRival(t *testing.T) {
	d, dir := openTestDir(t)
	temp := sealed(t, d, dir, "new")
	if err := os.Remove(temp.path); err != nil {
		t.Fatal(err)
	}
	rival := sealed(t, d, dir, "old")
	if err := rival.replace("target"); err != nil {
		t.Fatal(err)
	}
	temp.stat.Ino = rival.stat.Ino // as file systems like to give them
	wantError(t, temp.replace("target"), fs.ErrNotExist)
	wantContent(t, filepath.Join(dir.Name(), "target"), "old")
}

func TestDiscardLeavesNothing(t *testing.T) {
	d, dir := openTestDir(t)
	temp, err := d.createTemp(dir)
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir.Name(), temp.name)
	if _, err := temp.ReadFrom(failing([]byte("data"), 2, errSender)); !errors.Is(err, errSender) {
		t.Errorf("the error of the reader became %v", err)
	}
	temp.discard()
	wantFiles(t, dir.Name())
}

// Builds of equal size that replace each other as fast as can be, in a file
// system that gives a freed inode away at once, never have one ETag twice.
func TestETagsDiffer(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	seen := map[string]bool{}
	for range 200 {
		info, err := n.StoreArtifactIf("s", "b", strings.NewReader("same"), Precondition{})
		if err != nil {
			t.Fatal(err)
		}
		if seen[info.ETag] {
			t.Fatalf("%s came twice", info.ETag)
		}
		seen[info.ETag] = true
	}
}

func TestBaseIsNeverMade(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base")
	if _, err := openNFS(base, quiet()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent base was opened: %v", err)
	}
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	n := openTestNFS(t, base)
	if err := os.Remove(base); err != nil {
		t.Fatal(err)
	}
	if err := n.StoreArtifact("s", "b", strings.NewReader("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stored into an absent base: %v", err)
	}
	if _, err := os.Stat(base); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the base was made: %v", err)
	}
}

func TestDiskError(t *testing.T) {
	f := func(cause, want error) {
		t.Helper()
		err := diskError("write", "/p", &fs.PathError{Op: "write", Path: "/q", Err: cause})
		if !errors.Is(err, cause) || want != nil && !errors.Is(err, want) || !strings.Contains(err.Error(), `cannot write "/p": `) {
			t.Errorf("%v became %v", cause, err)
		}
		for _, other := range []error{ErrNoSpace, ErrReadOnly, ErrUnavailable, ErrDenied} {
			if other != want && errors.Is(err, other) {
				t.Errorf("%v became %v", cause, err)
			}
		}
	}
	f(unix.ENOSPC, ErrNoSpace)
	f(unix.EDQUOT, ErrNoSpace)
	f(unix.EFBIG, ErrNoSpace)
	f(unix.EROFS, ErrReadOnly)
	f(unix.ESTALE, ErrUnavailable)
	f(unix.ETIMEDOUT, ErrUnavailable)
	f(unix.ENOTCONN, ErrUnavailable)
	f(unix.EPIPE, ErrUnavailable)
	f(unix.ECONNABORTED, ErrUnavailable)
	f(unix.ECONNRESET, ErrUnavailable)
	f(unix.ECONNREFUSED, ErrUnavailable)
	f(unix.EHOSTDOWN, ErrUnavailable)
	f(unix.EHOSTUNREACH, ErrUnavailable)
	f(unix.ENETUNREACH, ErrUnavailable)
	f(unix.ENETDOWN, ErrUnavailable)
	f(unix.ENOLINK, ErrUnavailable)
	f(unix.EREMOTEIO, ErrUnavailable)
	f(unix.EMFILE, ErrUnavailable)
	f(unix.EACCES, ErrDenied)
	f(unix.EPERM, ErrDenied)
	f(unix.EIO, nil)
	f(io.ErrUnexpectedEOF, nil)
}

// A reader that lies about its size stores nothing; see also the conformance.
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

// An error of the file is not lost, whatever the reader says.
func TestCopierTellsOfTheFile(t *testing.T) {
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

// A later time that a sealed file gets is durable like the first one.
func TestStampAfterIsDurable(t *testing.T) {
	d, dir := openTestDir(t)
	temp := sealed(t, d, dir, "new")
	old, syncs, failure := temp.stat.Mtim, 0, error(nil)
	d.fsyncs.fsyncHook = func(*os.File) error { syncs++; return failure }
	for _, want := range []int{1, 1} { // the second time it is later already
		if err := temp.stampAfter(old); err != nil || syncs != want || temp.stat.Mtim.Nano() <= old.Nano() {
			t.Errorf("%d fsyncs, want %d; the time is %d, was %d: %v", syncs, want, temp.stat.Mtim.Nano(), old.Nano(), err)
		}
	}
	failure = unix.EIO
	wantError(t, temp.stampAfter(temp.stat.Mtim), unix.EIO)
	temp.discard()
}

// startUnder starts the service in a process of its own, with that umask, as that user
// and group. The umask is one of a process, so it cannot be set in this one.
func startUnder(t *testing.T, umask, program, base string, uid, gid int) *testServer {
	t.Helper()
	cmd := exec.Command("sh", "-c", `umask "$1" && exec "$0"`, program, umask)
	cmd.Env = append(os.Environ(), childVariable+"=serve", "PAGEWRIGHT_PORT=0", "PAGEWRIGHT_LISTEN=127.0.0.1",
		"PAGEWRIGHT_NFS_BASE_PATH="+base)
	cmd.Dir = base
	if uid != os.Getuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	s := &testServer{dir: base, log: &lockedBuffer{}}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		var line struct{ Address string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Address != "" {
			s.addr = line.Address
			go io.Copy(io.Discard, stderr)
			return s
		}
		s.log.Write(append(lines.Bytes(), '\n'))
	}
	t.Fatalf("the service did not start:\n%s", s.log)
	return nil
}

// makeAll makes a file of each kind that the service makes.
func makeAll(t *testing.T, s *testServer) {
	t.Helper()
	s.put(t, 201, "/sites/s/artifacts/b", "x")
	s.put(t, 201, "/sites/s/artifacts/b", "y", "If-Match", "*")
	s.post(t, 201, "/sites/s/logs", `{"build_id":"b","action":"a","status":"s"}`)
}

// Files and directories get the modes that the umask leaves.
func TestModesFollowTheUmask(t *testing.T) {
	for _, c := range []struct {
		umask     string
		file, dir fs.FileMode
	}{{"000", 0o666, 0o777}, {"002", 0o664, 0o775}, {"022", 0o644, 0o755}, {"027", 0o640, 0o750}, {"077", 0o600, 0o700}} {
		base := t.TempDir()
		makeAll(t, startUnder(t, c.umask, os.Args[0], base, os.Getuid(), os.Getgid()))
		files := 0
		for _, path := range names(t, filepath.Join(base, sitesDir)) {
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			want := c.file
			if st.IsDir() {
				want = c.dir
			} else {
				files++
			}
			if st.Mode().Perm() != want {
				t.Errorf("umask %s: %s has the mode %o, want %o", c.umask, path, st.Mode().Perm(), want)
			}
		}
		if files != 3 { // a build, a log and a lock file
			t.Errorf("umask %s: %d files", c.umask, files)
		}
	}
}

// Two users of one group share a store in a setgid directory.
func TestGroupShare(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a process as another user")
	}
	const group = 65530
	// Not t.TempDir: no other user may enter that.
	dir, err := os.MkdirTemp("", "share")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program, base := dir+"/program", dir+"/store"
	binary, err := os.ReadFile(os.Args[0])
	err = errors.Join(err, os.WriteFile(program, binary, 0o755), os.Mkdir(base, 0o755), os.Chmod(dir, 0o755),
		os.Chown(base, 0, group), os.Chmod(base, 0o775|fs.ModeSetgid))
	if err != nil {
		t.Fatal(err)
	}
	makeAll(t, startUnder(t, "002", program, base, 65531, group))
	other := startUnder(t, "002", program, base, 65532, group)
	makeAll(t, other)
	other.do(t, 204, deleteOf("/sites/s/artifacts/b"))
	for _, path := range names(t, filepath.Join(base, sitesDir)) {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if gid := st.Sys().(*syscall.Stat_t).Gid; gid != group || st.IsDir() && st.Mode()&fs.ModeSetgid == 0 {
			t.Errorf("%s has the group %d and the mode %v", path, gid, st.Mode())
		}
	}
}
