package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDigestsNFS(t *testing.T) {
	base := t.TempDir()
	testDigests(t, func(t *testing.T) Backend { return openTestNFS(t, base) })
}

func TestDigestsRemoteNFS(t *testing.T) {
	base := t.TempDir()
	testDigests(t, func(t *testing.T) Backend { return openRemote(t, base) })
}

// digestTest is a store with digests behind the front door, and a build in it.
type digestTest struct {
	*testServer
	n        *nfs
	artifact string // paths of the files of the build
	digest   string
	now      time.Time // by the clock of the cache
}

const digestedBuild = "/sites/s/artifacts/b"

func startDigests(t *testing.T, n *nfs) *digestTest {
	t.Helper()
	n.useDigests()
	d := &digestTest{n: n, now: time.Now()}
	n.digests.now = func() time.Time { return d.now }
	d.testServer, _ = startBackend(t, n)
	d.artifact, d.digest = n.filePath("s", artifactsDir, "b"), n.filePath("s", digestsDir, "b")
	return d
}

// putHashed uploads a build with its digest.
func (d *digestTest) putHashed(t *testing.T, status int, body string, h ...string) {
	t.Helper()
	d.put(t, status, digestedBuild, body, append(h, "Repr-Digest", reprDigestOf(body))...)
}

func reprDigestOf(body string) string {
	sum := digestOfBytes([]byte(body))
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

// want requires that GET and HEAD send the digest of body, or none if known is false.
func (d *digestTest) want(t *testing.T, what, body string, known bool) {
	t.Helper()
	want := ""
	if known {
		want = reprDigestOf(body)
	}
	for _, method := range []string{"GET", "HEAD", "GET"} { // the second GET may come from memory
		r := d.do(t, 200, request{method, digestedBuild, nil, nil})
		if got := r.header.Get("Repr-Digest"); got != want || method == "GET" && string(r.body) != body {
			t.Errorf("%s: %s has the digest %q, want %q, and %d bytes", what, method, got, want, len(r.body))
		}
	}
}

func (d *digestTest) later() { d.now = d.now.Add(digestUnknown + time.Second) }

// bodies are one that is kept in memory, and one that is not.
var digestBodies = map[string]string{"small": "small", "large": strings.Repeat("x", smallSize+1)}

// A digest that belongs to another artifact is not sent, however the artifact was changed.
func TestStaleDigestIsUnknown(t *testing.T) {
	rewrite := func(t *testing.T, d *digestTest, data string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(d.artifact+"2", []byte(data), 0o644), os.Rename(d.artifact+"2", d.artifact)); err != nil {
			t.Fatal(err)
		}
	}
	setTime := func(t *testing.T, d *digestTest, st *unix.Stat_t) {
		t.Helper()
		if err := unix.UtimesNano(d.artifact, []unix.Timespec{st.Mtim, st.Mtim}); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name   string
		change func(t *testing.T, d *digestTest, body string, st *unix.Stat_t) (then string)
		known  bool
	}{
		{"an older version replaces it", func(t *testing.T, d *digestTest, body string, _ *unix.Stat_t) string {
			asOlderVersion(t, d, func(old *nfs) { mustStore(t, old, "s", "b", []byte(strings.ToUpper(body))) })
			return strings.ToUpper(body)
		}, false},
		{"an older version deletes it and makes it again", func(t *testing.T, d *digestTest, body string, _ *unix.Stat_t) string {
			asOlderVersion(t, d, func(old *nfs) {
				if err := old.DeleteArtifact("s", "b", Precondition{}); err != nil {
					t.Fatal(err)
				}
				mustStore(t, old, "s", "b", []byte(strings.ToUpper(body)))
			})
			return strings.ToUpper(body)
		}, false},
		{"another file of the same time and another size", func(t *testing.T, d *digestTest, body string, st *unix.Stat_t) string {
			rewrite(t, d, body+"x")
			setTime(t, d, st)
			return body + "x"
		}, false},
		{"one nanosecond later", func(t *testing.T, d *digestTest, body string, st *unix.Stat_t) string {
			at := *st
			at.Mtim.Nsec++
			setTime(t, d, &at)
			return body
		}, false},
		{"a copy with its time", func(t *testing.T, d *digestTest, body string, st *unix.Stat_t) string {
			rewrite(t, d, body)
			setTime(t, d, st)
			return body
		}, true},
		{"the digest of another build", func(t *testing.T, d *digestTest, body string, _ *unix.Stat_t) string {
			d.put(t, 201, digestedBuild+"2", strings.ToUpper(body), "Repr-Digest", reprDigestOf(strings.ToUpper(body)))
			if err := os.Rename(d.n.filePath("s", digestsDir, "b2"), d.digest); err != nil {
				t.Fatal(err)
			}
			return body
		}, false},
	} {
		for size, body := range digestBodies {
			t.Run(test.name+", "+size, func(t *testing.T) {
				base := t.TempDir()
				d := startDigests(t, openTestNFS(t, base))
				d.putHashed(t, 201, body)
				d.want(t, "before", body, true)
				var st unix.Stat_t
				if err := unix.Stat(d.artifact, &st); err != nil {
					t.Fatal(err)
				}
				body := test.change(t, d, body, &st)
				if test.name != "the digest of another build" { // it is remembered, and right
					d.want(t, "this process", body, test.known)
				}
				fresh := startDigests(t, openTestNFS(t, base))
				fresh.want(t, "a new process", body, test.known)
				sums, err := fresh.n.ListDigests("s", []*Version{versionOf(t, fresh.n, "s", "b")})
				if err != nil || sums[0].known() != test.known {
					t.Errorf("ListDigests: %q, %v, want known %v", sums, err, test.known)
				}
				// And it does no harm: the next upload has its digest.
				fresh.putHashed(t, 201, body)
				fresh.want(t, "replaced", body, true)
				d.want(t, "replaced, the first process", body, true)
			})
		}
	}
}

// asOlderVersion lets change change the build as a version of the service does that knows no
// digests.
func asOlderVersion(t *testing.T, d *digestTest, change func(old *nfs)) {
	t.Helper()
	kept, err := os.ReadFile(d.digest)
	if err != nil {
		t.Fatal(err)
	}
	change(openTestNFS(t, d.n.base))
	if err := os.WriteFile(d.digest, kept, 0o644); err != nil {
		t.Fatal(err)
	}
}

// A build that the service replaces or deletes without a digest leaves none behind, so that
// verify does not take the next one for changed by something else: also with digests off, and
// if the site had no digests a moment ago.
func TestStaleDigestIsRemoved(t *testing.T) {
	for _, open := range []func(testing.TB, string) *nfs{openTestNFS, openRemote} {
		for _, off := range []bool{false, true} {
			for name, h := range map[string][]string{"PUT": nil, "conditional PUT": {"If-Match", "*"}, "DELETE": nil} {
				t.Run(fmt.Sprintf("%s, off %v, remote %v", name, off, open(t, t.TempDir()).remote), func(t *testing.T) {
					base := t.TempDir()
					d := startDigests(t, open(t, base))
					d.put(t, 201, digestedBuild, "old")
					d.want(t, "at first", "old", false) // remembers that the site has no digests
					startDigests(t, open(t, base)).putHashed(t, 201, "new")
					if off {
						d.n.digests = nil
					}
					if name == "DELETE" {
						d.do(t, 204, deleteOf(digestedBuild))
					} else {
						d.put(t, 201, digestedBuild, "plain", h...)
					}
					if got := contentOf(filepath.Dir(d.digest)); got != "[]" {
						t.Errorf("there is %s", got)
					}
				})
			}
		}
	}
}

// What is kept is found at once, also if the site had no digests a moment ago.
func TestKeptDigestOfAnotherReplica(t *testing.T) {
	base := t.TempDir()
	d := startDigests(t, openTestNFS(t, base))
	d.put(t, 201, digestedBuild, "old")
	d.want(t, "at first", "old", false)
	startDigests(t, openTestNFS(t, base)).putHashed(t, 201, "new")
	if k, err := d.n.KeptDigest("s", "b"); err != nil || k.SHA256 != digestOfBytes([]byte("new")) {
		t.Errorf("%+v, %v", k, err)
	}
}

// A file that is not a digest of ours is no digest, is not followed, and is replaced by the
// next upload.
func TestDamagedDigestIsUnknown(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(path string) error
	}{
		{"empty", func(path string) error { return os.Truncate(path, 0) }},
		{"cut", func(path string) error { return os.Truncate(path, 50) }},
		{"1 GiB", func(path string) error { return os.Truncate(path, 1<<30) }},
		{"of sha256sum", func(path string) error {
			return os.WriteFile(path, fmt.Appendf(nil, "%s  ../artifacts/b.tar.gz\n", digestOfBytes([]byte("b"))), 0o644)
		}},
		{"a symbolic link to it", func(path string) error {
			return errors.Join(os.Rename(path, path+"2"), os.Symlink(path+"2", path))
		}},
		{"a FIFO", func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o644)) }},
		{"a socket", func(path string) error {
			return errors.Join(os.Remove(path), unix.Mknod(path, unix.S_IFSOCK|0o644, 0))
		}},
		{"a directory", func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			base := t.TempDir()
			d := startDigests(t, openTestNFS(t, base))
			d.putHashed(t, 201, "body")
			if err := test.change(d.digest); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			n, err := openNFS(base, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			d = startDigests(t, n)
			d.want(t, "damaged", "body", false)
			if _, err := d.n.KeptDigest("s", "b"); !errors.Is(err, ErrDamaged) {
				t.Errorf("KeptDigest: %v", err)
			}
			sums, err := d.n.ListDigests("s", []*Version{versionOf(t, d.n, "s", "b")})
			if err != nil || sums[0].known() {
				t.Errorf("ListDigests: %q, %v", sums, err)
			}
			if !strings.Contains(log.String(), "cannot read a digest") {
				t.Errorf("it is not in the log: %q", log.String())
			}
			d.putHashed(t, 201, "body two")
			d.want(t, "replaced", "body two", true) // also if it cannot be kept: this process knows it
		})
	}
}

// The directory of the digests may be something else.
func TestSomethingElseInPlaceOfTheDigests(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"file": func(path string) error { return os.WriteFile(path, nil, 0o644) },
		"link": func(path string) error { return os.Symlink(t.TempDir(), path) },
	} {
		t.Run(name, func(t *testing.T) {
			d := startDigests(t, openTestNFS(t, t.TempDir()))
			d.put(t, 201, digestedBuild, "old")
			if err := make(filepath.Dir(d.digest)); err != nil {
				t.Fatal(err)
			}
			d.later()
			d.want(t, "before", "old", false)
			d.putHashed(t, map[string]int{"file": 409, "link": 502}[name], "new")
			d.want(t, "refused", "old", false)
			d.put(t, 201, digestedBuild, "new") // without a digest nothing is needed of it
			d.do(t, 204, deleteOf(digestedBuild))
		})
	}
}

// What is unknown is looked for again after a while, and what this process keeps is known at
// once.
func TestUnknownDigestIsLookedForAgain(t *testing.T) {
	for size, body := range digestBodies {
		t.Run(size, func(t *testing.T) {
			base := t.TempDir()
			d := startDigests(t, openTestNFS(t, base))
			d.put(t, 201, digestedBuild, body)
			d.want(t, "not kept", body, false)
			other := openTestNFS(t, base)
			other.useDigests()
			info, err := other.StatArtifact("s", "b")
			if err != nil {
				t.Fatal(err)
			}
			if err := other.KeepDigest("s", "b", info, digestOfBytes([]byte(body))); err != nil {
				t.Fatal(err)
			}
			d.want(t, "looked for a moment ago", body, false)
			d.now = d.now.Add(digestUnknown - time.Second)
			d.want(t, "looked for some seconds ago", body, false)
			d.now = d.now.Add(2 * time.Second)
			d.want(t, "looked for again", body, true)
			if err := os.Remove(d.digest); err != nil {
				t.Fatal(err)
			}
			d.later()
			d.want(t, "remembered", body, true)
		})
	}
}

// A digest that was computed and cannot be kept is remembered: repeated uploads do not make the
// service read the build each time. A second reading would find other bytes here.
func TestDigestThatCannotBeKeptIsComputedOnce(t *testing.T) {
	for name, prevent := range map[string]func(t *testing.T, d *digestTest){
		"a directory in its place": func(t *testing.T, d *digestTest) {
			if err := os.MkdirAll(d.digest, 0o755); err != nil {
				t.Fatal(err)
			}
		},
		"a locked build": func(t *testing.T, d *digestTest) {
			d.n.lockWait = time.Millisecond
			mustLock(t, openTestNFS(t, d.n.base))
		},
	} {
		for size, body := range digestBodies {
			t.Run(name+", "+size, func(t *testing.T) {
				d := startDigests(t, openTestNFS(t, t.TempDir()))
				d.put(t, 201, digestedBuild, body)
				prevent(t, d)
				d.putHashed(t, 200, body, "If-None-Match", "*")
				if !strings.Contains(d.log.String(), "cannot keep a digest") {
					t.Fatalf("it was kept: %s", d.log)
				}
				flip(t, d.artifact, 0, true)
				d.putHashed(t, 200, body, "If-None-Match", "*")
				if got := d.get(t, 200, digestedBuild).header.Get("Repr-Digest"); got != reprDigestOf(body) {
					t.Errorf("GET has the digest %q", got)
				}
			})
		}
	}
}

// A conditional change does not read the digest of what it changes.
func TestConditionsReadNoDigest(t *testing.T) {
	for _, open := range []func(testing.TB, string) *nfs{openTestNFS, openRemote} {
		base := t.TempDir()
		startDigests(t, open(t, base)).putHashed(t, 201, "old")
		n := open(t, base)
		n.useDigests()
		ifMatch := Precondition{IfMatch: &ETagList{Any: true}}
		if _, err := n.StoreArtifactIf("s", "b", strings.NewReader("new"), ifMatch); err != nil {
			t.Fatal(err)
		}
		if err := n.DeleteArtifact("s", "b", ifMatch); err != nil {
			t.Fatal(err)
		}
		if got := n.digests.found.Len(); got != 0 {
			t.Errorf("remote %v: %d digests were looked up", n.remote, got)
		}
	}
}

// A list reads each digest once, until the build changes or gets another digest.
func TestListedDigestsAreRemembered(t *testing.T) {
	base := t.TempDir()
	startDigests(t, openTestNFS(t, base)).putHashed(t, 201, "old")
	d := startDigests(t, openTestNFS(t, base))
	listed := func(what, body string) {
		t.Helper()
		var list struct {
			Versions []struct {
				SHA256 string `json:"sha256"`
			} `json:"versions"`
		}
		r := d.get(t, 200, "/sites/s/versions?digest=true")
		want := ""
		if body != "" {
			want = digestOfBytes([]byte(body)).String()
		}
		if err := json.Unmarshal(r.body, &list); err != nil || len(list.Versions) != 1 || list.Versions[0].SHA256 != want {
			t.Errorf("%s: %v, %s, want %q", what, err, r.body, want)
		}
	}
	remove := func() {
		t.Helper()
		if err := os.Remove(d.digest); err != nil {
			t.Fatal(err)
		}
	}
	listed("at first", "old")
	remove()
	listed("remembered", "old")
	d.put(t, 201, digestedBuild, "OLD") // of the same size
	listed("replaced without a digest", "")
	d.putHashed(t, 201, "new")
	listed("replaced", "new")
	remove()
	listed("replaced, remembered", "new")
	info, err := d.n.StatArtifact("s", "b")
	if err == nil {
		err = d.n.KeepDigest("s", "b", info, digestOfBytes([]byte("kept")))
	}
	if err != nil {
		t.Fatal(err)
	}
	listed("kept anew", "kept")
}

// A build that something else than the service changed keeps the digest of its upload: a repeated
// upload does not replace it by that of the changed bytes, which would hide the change from verify.
func TestRepeatedUploadKeepsTheDigestOfAChangedBuild(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	d := startDigests(t, n)
	d.putHashed(t, 201, "uploaded")
	noError(t, os.WriteFile(d.artifact, []byte("UPloaded"), 0o644))
	for _, body := range []string{"uploaded", "UPloaded", "another "} {
		d.put(t, 412, digestedBuild, body, "Repr-Digest", reprDigestOf(body), "If-None-Match", "*")
	}
	if kept, err := d.n.KeptDigest("s", "b"); err != nil || kept.SHA256 != Digest(sha256.Sum256([]byte("uploaded"))) {
		t.Errorf("the store keeps %s, %v", kept.SHA256, err)
	}
	d.want(t, "changed", "UPloaded", false)
	info, err := n.StatArtifact("s", "b")
	noError(t, err)
	if err := n.KeepDigest("s", "b", info, sha256.Sum256([]byte("UPloaded"))); !errors.Is(err, errOtherDigest) {
		t.Errorf("KeepDigest: %v", err)
	}
}

// With coarse times, replacements in quick succession put the time of a build ahead of the clock.
// It is not deleted before the clock has passed that time: the next build could get its ETag, and
// its digest.
func TestDeleteOfABuildAheadOfTheClock(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	n.disk.timeStep = time.Second
	d := startDigests(t, n)
	for i := range 12 {
		d.putHashed(t, 201, fmt.Sprint("body ", i%10))
	}
	r := d.do(t, 503, request{"DELETE", digestedBuild, nil, nil})
	if r.header.Get("Retry-After") == "" {
		t.Errorf("refused with %v", r.header)
	}
	d.want(t, "not deleted", "body 1", true)
}

// On a file system with coarse times, the inode number counts too.
func TestDigestsWithCoarseTimes(t *testing.T) {
	base := t.TempDir()
	open := func() *nfs {
		n := openTestNFS(t, base)
		n.disk.timeStep = time.Second
		return n
	}
	d := startDigests(t, open())
	for i := range 6 { // within a second: a later one gets a later time
		body := fmt.Sprint("body ", i)
		if i%3 == 0 {
			d.put(t, 201, digestedBuild, body)
		} else {
			d.putHashed(t, 201, body)
		}
		d.want(t, body, body, i%3 > 0)
		startDigests(t, open()).want(t, body+", a new process", body, i%3 > 0)
		sums, err := d.n.ListDigests("s", []*Version{versionOf(t, d.n, "s", "b")})
		if err != nil || sums[0].known() != (i%3 > 0) {
			t.Errorf("%s: ListDigests: %q, %v", body, sums, err)
		}
	}
	k, err := d.n.KeptDigest("s", "b")
	if info, statErr := d.n.StatArtifact("s", "b"); statErr != nil || err != nil || k.ETag != info.ETag {
		t.Errorf("%+v, %v; %+v, %v", k, err, info, statErr)
	}
	d.put(t, 412, digestedBuild, "body 6", "Repr-Digest", reprDigestOf("body 6"), "If-None-Match", "*")
	d.put(t, 201, digestedBuild+"2", "two", "Repr-Digest", reprDigestOf("two"), "If-None-Match", "*")
	if got := d.get(t, 200, digestedBuild+"2").header.Get("Repr-Digest"); got != reprDigestOf("two") {
		t.Errorf("a new build has the digest %q", got)
	}
	// A copy has another inode number.
	var st unix.Stat_t
	if err := errors.Join(unix.Stat(d.artifact, &st), os.WriteFile(d.artifact+"2", []byte("BODY 5"), 0o644),
		unix.UtimesNano(d.artifact+"2", []unix.Timespec{st.Mtim, st.Mtim}), os.Rename(d.artifact+"2", d.artifact)); err != nil {
		t.Fatal(err)
	}
	d.want(t, "a copy", "BODY 5", false)
}

// Without digests nothing is kept, sent or looked for.
func TestNoDigestsUnlessUsed(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	info, err := n.StoreArtifactIf("s", "b", hashedBody([]byte("x")), Precondition{})
	if err != nil || info.SHA256.known() {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := os.Lstat(n.sitePath("s", digestsDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a directory: %v", err)
	}
	wantError(t, n.KeepDigest("s", "b", info, digestOfBytes([]byte("x"))), ErrUnsupported)
	_, err = n.KeptDigest("s", "b")
	wantError(t, err, ErrUnsupported)
	if sums, err := n.ListDigests("s", make([]*Version, 3)); err != nil || !slices.Equal(sums, make([]Digest, 3)) {
		t.Errorf("%q, %v", sums, err)
	}
}

// A store that is read-only sends the digests that are there, and writes nothing.
func TestDigestsOfAReadOnlyStore(t *testing.T) {
	base := t.TempDir()
	startDigests(t, openTestNFS(t, base)).putHashed(t, 201, "body")
	n := openTestNFS(t, base)
	n.readOnly = true
	d := startDigests(t, n)
	d.want(t, "read-only", "body", true)
	info, err := n.StatArtifact("s", "b")
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, n.KeepDigest("s", "b", info, digestOfBytes([]byte("x"))), ErrReadOnly)
	wantError(t, n.WriteStatus("verify", []byte("{}")), ErrReadOnly)
	_, err = n.ReadStatus("verify")
	wantError(t, err, ErrNotFound)
}

// A lock that was lost before the digest got its name ends the change: the build is stored,
// and its digest is unknown.
func TestLostLockBetweenBuildAndDigest(t *testing.T) {
	base := t.TempDir()
	d := startDigests(t, openRemote(t, base))
	d.putHashed(t, 201, "old")
	renames := 0
	d.n.disk.renamed = func() {
		if renames++; renames == 3 { // of the steps of the replacement
			loseHeldLock(t, d.n, "s")
		}
	}
	d.putHashed(t, 503, "new")
	d.n.disk.renamed = nil
	startDigests(t, openTestNFS(t, base)).want(t, "then", "new", false)
}

// If only the digest of a build cannot get its name, the upload succeeds: the build is
// visible by then. The digest of the build before is not left behind.
func TestDigestThatCannotBeKept(t *testing.T) {
	for name, fail := range map[string]func(d *digestTest) error{
		"a directory in its place": func(d *digestTest) error {
			return errors.Join(os.Remove(d.digest), os.Mkdir(d.digest, 0o755))
		},
		"its temporary file is gone": func(d *digestTest) error {
			temps, err := filepath.Glob(filepath.Dir(d.digest) + "/" + tempPrefix + "*")
			if err == nil && len(temps) != 1 {
				err = fmt.Errorf("there are %q", temps)
			}
			return errors.Join(err, os.Remove(temps[0]))
		},
	} {
		for cond, h := range map[string][]string{"replace": nil, "create": {"If-None-Match", "*"}} {
			t.Run(name+", "+cond, func(t *testing.T) {
				base := t.TempDir()
				var log lockedBuffer
				n, err := openNFS(base, slog.New(slog.NewTextHandler(&log, nil)))
				if err != nil {
					t.Fatal(err)
				}
				d := startDigests(t, n)
				d.putHashed(t, 201, "old")
				if cond == "create" { // an older version left the digest
					if err := os.Remove(d.artifact); err != nil {
						t.Fatal(err)
					}
				}
				failed := false
				fails := func() {
					if _, err := os.Lstat(d.artifact); err == nil && !failed {
						failed = true
						if err := fail(d); err != nil {
							t.Error(err)
						}
					}
				}
				d.n.disk.renamed, d.n.disk.removing = fails, fails // after the artifact got its name
				r := d.put(t, 201, digestedBuild, "new", append(h, "Repr-Digest", reprDigestOf("new"))...)
				d.n.disk.renamed, d.n.disk.removing = nil, nil
				if !failed || r.header.Get("Repr-Digest") != reprDigestOf("new") {
					t.Errorf("failed: %v; the response has %q", failed, r.header)
				}
				if !strings.Contains(log.String(), "its digest could not be kept") {
					t.Errorf("it is not in the log: %q", log.String())
				}
				d.want(t, "this process", "new", true)
				startDigests(t, openTestNFS(t, base)).want(t, "a new process", "new", false)
				if got := contentOf(filepath.Dir(d.digest)); name != "a directory in its place" && got != "[]" {
					t.Errorf("the stale digest is there: %s", got)
				}
				if got := contentOf(filepath.Dir(d.artifact)); got != "[b=3]" {
					t.Errorf("there is %s", got)
				}
			})
		}
	}
}

// loseHeldLock makes the lock of the site that this process holds look lost: the descriptor
// then refers to a FIFO.
func loseHeldLock(t *testing.T, n *nfs, site string) {
	t.Helper()
	path := n.sitePath(site, lockName)
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if at, _ := os.Readlink("/proc/self/fd/" + e.Name()); at != path {
			continue
		}
		var fd int
		_, _ = fmt.Sscan(e.Name(), &fd)
		f, err := unix.Open(fifo, unix.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Dup2(f, fd); err != nil {
			t.Fatal(err)
		}
		unix.Close(f)
	}
}

// The build and its digest share their sync; both have their names before their directories
// are synced, the build first.
func TestFsyncsOfADigest(t *testing.T) {
	base := t.TempDir()
	w := watchFsyncs(t, base)
	d := startDigests(t, w.n)
	d.put(t, 201, digestedBuild, "x")
	w.take()
	seen := func(what string, want ...string) {
		t.Helper()
		if got := w.take(); !slices.Equal(got, want) {
			t.Errorf("%s:\ngot  %s\nwant %s", what, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
		}
	}
	d.putHashed(t, 201, "xx")
	seen("the first digest",
		"sites/s [.lock artifacts digests]",
		"sites/s/artifacts/.tmp [.tmp b=1]",
		"sites/s/digests/.tmp [.tmp]",
		"sites/s/digests [b.sha256]",
		"sites/s/artifacts [b=2]")
	d.putHashed(t, 201, "xxx")
	seen("a replacement",
		"sites/s/artifacts/.tmp [.tmp b=2]",
		"sites/s/digests/.tmp [.tmp b.sha256]",
		"sites/s/digests [b.sha256]",
		"sites/s/artifacts [b=3]")
	var names []string
	w.n.disk.renamed = func() {
		data, _ := os.ReadFile(d.digest)
		names = append(names, contentOf(filepath.Dir(d.artifact)), fmt.Sprint(strings.Contains(string(data), "size 4,")))
	}
	d.putHashed(t, 201, "xxxx")
	w.n.disk.renamed = nil
	if want := []string{"[b=4]", "false", "[b=4]", "true"}; !slices.Equal(names, want) {
		t.Errorf("after each rename: %q, want %q", names, want)
	}
	w.take()
	d.put(t, 201, digestedBuild, "x")
	seen("a replacement without a digest",
		"sites/s/artifacts/.tmp [.tmp b=4]",
		"sites/s/artifacts [b=1]")
	if got := contentOf(filepath.Dir(d.digest)); got != "[]" {
		t.Errorf("the stale digest is there: %s", got)
	}
	d.putHashed(t, 201, "x")
	w.take()
	d.do(t, 204, deleteOf(digestedBuild))
	seen("DELETE", "sites/s/artifacts []")
	if got := contentOf(filepath.Dir(d.digest)); got != "[]" {
		t.Errorf("the digest of a deleted build is there: %s", got)
	}
}

// An upload whose digest cannot be made durable is not acknowledged, and leaves no files.
func TestFailedFsyncOfADigestIsNotAcknowledged(t *testing.T) {
	for _, test := range []struct {
		name   string
		fails  string
		with   error
		status int
		then   string
		known  bool // the digest of what is there then
	}{
		{"file", "sites/s/digests/.tmp", unix.EIO, 500, "old", true},
		{"file, disk full", "sites/s/digests/.tmp", unix.ENOSPC, 507, "old", true},
		{"build, disk full", "sites/s/artifacts/.tmp", unix.ENOSPC, 507, "old", true},
		{"directory", "sites/s/digests", unix.EIO, 500, "new", true},
		{"directory of the builds", "sites/s/artifacts", unix.EIO, 500, "new", true},
		{"a new process, site", "sites/s", unix.EIO, 500, "old", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			base := t.TempDir()
			startDigests(t, openTestNFS(t, base)).putHashed(t, 201, "old")
			w := watchFsyncs(t, base)
			d := startDigests(t, w.n)
			failed := false
			w.before = func(path string) error {
				if path != test.fails || failed {
					return nil
				}
				failed = true
				return test.with
			}
			d.putHashed(t, test.status, "new")
			if !failed {
				t.Fatalf("no fsync of %q: %q", test.fails, w.take())
			}
			d.want(t, "then", test.then, test.known)
			startDigests(t, openTestNFS(t, base)).want(t, "then, a new process", test.then, test.known)
			if got := contentOf(filepath.Dir(d.artifact)) + contentOf(filepath.Dir(d.digest)); got != "[b=3][b.sha256]" {
				t.Errorf("there is %s", got)
			}
			d.putHashed(t, 201, "again")
			d.want(t, "again", "again", true)
		})
	}
}

// A body that does not have its digest leaves nothing behind.
func TestMismatchLeavesNoFiles(t *testing.T) {
	d := startDigests(t, openTestNFS(t, t.TempDir()))
	d.putHashed(t, 201, "old")
	for _, body := range digestBodies {
		d.put(t, 400, digestedBuild, body, "Repr-Digest", reprDigestOf("other"))
	}
	d.want(t, "then", "old", true)
	if got := contentOf(filepath.Dir(d.artifact)) + contentOf(filepath.Dir(d.digest)); got != "[b=3][b.sha256]" {
		t.Errorf("there is %s", got)
	}
}

// On NFS, the digest of a build that is under an interim name is found too.
func TestDigestOfAnInterruptedReplacement(t *testing.T) {
	base := t.TempDir()
	d := startDigests(t, openRemote(t, base))
	d.putHashed(t, 201, "body")
	dir, name := filepath.Split(d.artifact)
	if err := os.Rename(d.artifact, dir+interimName(name)); err != nil {
		t.Fatal(err)
	}
	d.want(t, "interim", "body", true)
	r, err := d.n.FetchArtifact("s", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if data, err := io.ReadAll(r); err != nil || string(data) != "body" {
		t.Errorf("%q, %v", data, err)
	}
	startDigests(t, openRemote(t, base)).want(t, "interim, a new process", "body", true)
}

// A repeated upload makes all of the directory of digests durable, which another process may
// have made, and does not make one.
func TestRepeatedUploadSyncsTheDigests(t *testing.T) {
	base := t.TempDir()
	startDigests(t, openTestNFS(t, base)).putHashed(t, 201, "body")
	w := watchFsyncs(t, base)
	d := startDigests(t, w.n)
	repeat := func(what string, want ...string) {
		t.Helper()
		d.putHashed(t, 200, "body", "If-None-Match", "*")
		if got := w.take(); !slices.Equal(got, want) {
			t.Errorf("%s:\ngot  %s\nwant %s", what, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
		}
	}
	artifacts, digests := "sites/s/artifacts [b=4]", "sites/s/digests [b.sha256]"
	site := "sites/s [.lock artifacts digests]"
	repeat("a new process", ". [sites]", "sites [s]", site, artifacts, site, digests)
	repeat("again", artifacts, digests)
	if err := os.RemoveAll(filepath.Dir(d.digest)); err != nil {
		t.Fatal(err)
	}
	repeat("the digest is only remembered", artifacts)
	if _, err := os.Lstat(filepath.Dir(d.digest)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a directory: %v", err)
	}
}
