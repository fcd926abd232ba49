package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTestNFS opens the store at base, as another process would.
func openTestNFS(t testing.TB, base string) *nfs {
	t.Helper()
	n, err := openNFS(base, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNFS(t *testing.T) {
	base := t.TempDir()
	testBackend(t, func(t *testing.T) Backend { return openTestNFS(t, base) })
}

// TestWhatIsNoFile: a FIFO, a symbolic link or a directory at the name of an artifact or
// a log is reported as not found or as damaged, and blocks nobody.
func TestWhatIsNoFile(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	mustStore(t, n, "site", "real", []byte("x"))
	site := filepath.Join(n.base, sitesDir, "site")
	for name, make := range map[string]func(path string) error{
		"fifo":    func(path string) error { return unix.Mkfifo(path, 0o644) },
		"link":    func(path string) error { return os.Symlink("real.tar.gz", path) },
		"nowhere": func(path string) error { return os.Symlink("nowhere", path) },
		"dir":     func(path string) error { return os.Mkdir(path, 0o755) },
	} {
		if err := errors.Join(os.MkdirAll(filepath.Join(site, logsDir), 0o755),
			make(filepath.Join(site, artifactsDir, name+artifactSuffix)), make(filepath.Join(site, logsDir, name+logSuffix))); err != nil {
			t.Fatal(err)
		}
		if _, err := n.FetchArtifact("site", name); !errors.Is(err, ErrNotFound) || !errors.Is(err, ErrOccupied) { // which is logged
			t.Errorf("fetch of a %s: %v", name, err)
		}
		if _, err := n.StatArtifact("site", name); !errors.Is(err, ErrNotFound) {
			t.Errorf("stat of a %s: %v", name, err)
		}
		want := ErrOccupied
		if name == "link" || name == "nowhere" {
			want = ErrDamaged
		}
		if err := n.WriteLog("site", entry("1", name, time.Now())); !errors.Is(err, want) {
			t.Errorf("entry to a %s: %v", name, err)
		}
	}
	versions, err := n.ListVersions("site")
	if err != nil || len(versions) != 5 {
		t.Fatalf("%d versions, %v", len(versions), err)
	}
	for _, v := range versions {
		want := map[string]string{"link": ErrDamaged.Error(), "nowhere": ErrDamaged.Error(), "fifo": ErrOccupied.Error(), "dir": ErrOccupied.Error()}
		if v.LogsError != want[v.BuildID] {
			t.Errorf("%s: logs_error %q", v.BuildID, v.LogsError)
		}
	}
}

// TestStoreThatWentAway: if the base or the mount on it is gone, no build is reported
// missing, and nothing is written to the disk below.
func TestStoreThatWentAway(t *testing.T) {
	if n := openTestNFS(t, "/proc"); !n.mountPoint {
		t.Error("/proc is no mount point")
	}
	gone := openTestNFS(t, filepath.Join(t.TempDir(), "."))
	if gone.mountPoint {
		t.Fatal("a new directory is a mount point")
	}
	mustStore(t, gone, "site", "b", []byte("x"))
	if err := os.Rename(gone.base, gone.base+".away"); err != nil {
		t.Fatal(err)
	}
	unmounted := openTestNFS(t, t.TempDir())
	unmounted.mountPoint = true // and now it is not
	for name, n := range map[string]*nfs{"gone": gone, "unmounted": unmounted} {
		_, fetch := n.FetchArtifact("site", "b")
		_, stat := n.StatArtifact("site", "b")
		_, list := n.ListVersions("site")
		_, probe := n.Probe()
		_, space := n.Space()
		for op, err := range map[string]error{
			"fetch": fetch, "stat": stat, "list": list, "probe": probe, "space": space,
			"store":  n.StoreArtifact("site", "b", bytes.NewReader([]byte("y"))),
			"delete": n.DeleteArtifact("site", "b", Precondition{}),
			"log":    n.WriteLog("site", entry("1", "b", time.Now())),
		} {
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s, %s: %v", name, op, err)
			}
		}
		if names, err := os.ReadDir(n.base); len(names) > 0 || err == nil && name == "gone" {
			t.Errorf("%s: something was written: %v", name, names)
		}
	}
}

// mover is a body during which the store goes away.
type mover struct{ n *nfs }

func (m mover) Read([]byte) (int, error) {
	if err := os.Rename(m.n.base, m.n.base+".away"); err != nil {
		return 0, err
	}
	return 0, io.EOF
}

func TestStoreGoesAwayInAnUpload(t *testing.T) {
	n := openTestNFS(t, filepath.Join(t.TempDir(), "."))
	mustStore(t, n, "s", "b", []byte("old"))
	wantError(t, n.StoreArtifact("s", "b", mover{n}), ErrUnavailable)
	if err := os.Rename(n.base+".away", n.base); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, n, "s", "b", []byte("old"))
	wantFiles(t, filepath.Join(n.base, sitesDir, "s", artifactsDir), "b"+artifactSuffix)
}

// TestCoarseTimes: on a file system that stores whole seconds, builds of equal size that
// replace each other within a second have different ETags, and none is served from memory
// for another.
func TestCoarseTimes(t *testing.T) {
	onlyRoot(t)
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		if mkfs, err = exec.LookPath("/usr/sbin/mkfs.ext4"); err != nil {
			t.Skip("mkfs.ext4 is not installed")
		}
	}
	base, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o644), os.Truncate(image, 16<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-q", "-F", "-I", "128", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, base).CombinedOutput(); err != nil {
		t.Skipf("no loop device can be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = unix.Unmount(base, unix.MNT_DETACH) })
	n := openTestNFS(t, base)
	tags := map[string]string{}
	for i := range 20 {
		content := strconv.Itoa(100 + i)
		info, err := n.StoreArtifactIf("s", "b", strings.NewReader(content), Precondition{})
		if err != nil {
			t.Fatal(err)
		}
		if other := tags[info.ETag]; other != "" {
			t.Errorf("%s and %s have the tag %s", content, other, info.ETag)
		}
		for tag := range tags {
			_, err := n.StoreArtifactIf("s", "b", strings.NewReader("old"), ifMatch(tag))
			wantError(t, err, ErrPrecondition)
		}
		tags[info.ETag] = content
		wantBytes(t, n, "s", "b", []byte(content))
		if now, err := n.StatArtifact("s", "b"); err != nil || now != info {
			t.Errorf("stat says %+v, the upload %+v: %v", now, info, err)
		}
	}
	before, err := n.StoreArtifactIf("s", "deleted", strings.NewReader("same"), Precondition{})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.DeleteArtifact("s", "deleted", Precondition{}); err != nil {
		t.Fatal(err)
	}
	if after, err := n.StoreArtifactIf("s", "deleted", strings.NewReader("size"), Precondition{}); err != nil || after.ETag == before.ETag {
		t.Errorf("a build after a deleted one has its tag %s: %v", after.ETag, err)
	}
	if n.small.files.Len() > 0 {
		t.Errorf("%d files are kept in memory", n.small.files.Len())
	}
	// Times are cut off by up to two seconds: that is no difference of the clocks.
	f, err := os.Create(filepath.Join(base, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(st.Ctim.Unix()).Add(2 * time.Second)
	n.disk.compareClocks(f, at, at)
	if diff := n.disk.clockDiff.Load().value(); diff != 0 {
		t.Errorf("the difference of the clocks is %s", diff)
	}
	if out, err := runDoctor("PAGEWRIGHT_NFS_BASE_PATH=" + base); err != nil || !strings.Contains(out, "warn timestamp resolution") {
		t.Errorf("doctor does not warn: %v\n%s", err, out)
	}
}

// Whatever else has the name of a build, a log or a directory of a site is left alone,
// and the service log names it.
func TestOccupiedPlaces(t *testing.T) {
	const build, log, list = "/sites/s/artifacts/b", "/sites/s/logs", "/sites/s/versions"
	file := func(path string) error { return os.WriteFile(path, []byte("mine"), 0o644) }
	dir := func(path string) error { return os.Mkdir(path, 0o755) }
	for _, c := range []struct {
		name, path                 string
		plant                      func(path string) error
		get, list, create, delete_ int // statuses
		post, put                  int
		listed                     string // in the list; empty: there are no builds
	}{
		{"a directory as a build", "sites/s/artifacts/b.tar.gz", dir, 404, 200, 409, 409, 201, 409, ""},
		{"a file as the artifacts", "sites/s/artifacts", file, 404, 200, 409, 409, 201, 409, ""},
		{"a file as a site", "sites/s", file, 404, 200, 409, 409, 409, 409, ""},
		{"a directory as the lock", "sites/s/.lock", dir, 404, 200, 201, 204, 409, 201, ""},
		{"a file as the logs", "sites/s/logs", file, 404, 200, 201, 204, 409, 201, ""},
		{"a directory as a log", "sites/s/logs/b.json", dir, 404, 200, 201, 204, 409, 201, "unexpected file type in the store"},
		{"a file as the sites", "sites", file, 503, 503, 503, 503, 503, 503, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			s := startServer(t)
			path := filepath.Join(s.dir, c.path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), c.plant(path)); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(path)
			f := func(named bool, status int, r request) {
				t.Helper()
				from := len(s.log.String())
				answer := s.do(t, status, r)
				if r.path == list && status == 200 && (c.listed == "") != (!strings.Contains(string(answer.body), "build_id")) ||
					!strings.Contains(string(answer.body), c.listed) && r.path == list {
					t.Errorf("listed is %s", answer.body)
				}
				if named {
					eventually(t, r.method+" names it in the log", func() bool {
						return strings.Contains(s.log.String()[from:], path+`\"`)
					})
				}
			}
			places := c.create >= 409 // on the way to the build
			f(places, c.get, request{"GET", build, nil, nil})
			f(places, c.get, request{"HEAD", build, nil, nil})
			f(strings.HasPrefix(c.name, "a file"), c.list, request{"GET", list, nil, nil})
			f(places, c.create, request{"PUT", build, "x", header("If-None-Match", "*")})
			f(c.delete_ >= 409, c.delete_, request{"DELETE", build, nil, nil})
			f(c.post >= 409, c.post, request{"POST", log, `{"build_id":"b","action":"a","status":"s"}`, nil})
			f(c.put >= 409, c.put, request{"PUT", build, "x", nil})
			after, err := os.Lstat(path)
			if err != nil || !os.SameFile(before, after) {
				t.Errorf("what was there is gone: %v", err)
			}
			if left, _ := filepath.Glob(s.dir + "/sites/s/*/.*"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
