package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// startUnder starts the service in a process of its own with that umask, user and group.
// The umask belongs to the process, so the test cannot set its own.
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

// makeAll creates a file of each kind that the service creates.
func makeAll(t *testing.T, s *testServer) {
	t.Helper()
	s.put(t, 201, "/sites/s/artifacts/b", "x")
	s.put(t, 201, "/sites/s/artifacts/b", "y", "If-Match", "*")
	s.post(t, 201, "/sites/s/logs", `{"build_id":"b","action":"a","status":"s"}`)
}

// Only the umask limits the modes of files and directories.
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
