package history

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Inventory is what a look at the files of a store found, without the service.
type Inventory struct {
	Builds map[string]Build    // by key, as Op.Key
	Logs   map[string][]uint64 // the appends in each log, in its order
	Labels map[string]string   // the build that each names, by site/label
	Temps  int                 // temporary files, and replacements beside the file that they were to replace
	Placed int                 // builds and logs that stand under the name of their replacement, see newPrefix
	Silly  int                 // files that an NFS client keeps until it closes them
	Faults []string            // what cannot be in any store
	Front  []string            // what JudgeFront said of it, if the service was asked

	waiting [][]string          // the paths of the replacements found
	digests map[string][]string // the submatches of digestFile, by key
}

// prefixes begin the names of the new file, of the old one, and of the one to be
// removed, while a file is replaced on a remote store. As long as the name of the
// file is missing, the first of them that is there is that file.
var prefixes = []string{".new-", ".old-", ".out-"}

// Build is an artifact that was found.
type Build struct {
	Op      uint64 // the upload it is, whole; 0: see Fault
	Size    int64
	ModTime time.Time
	Fault   string
	Digest  string // none, right, stale or wrong

	sum string // the SHA-256 of its bytes
}

// What can be said of the digest of a build.
const (
	none  = "none"
	right = "right"
	stale = "stale" // it is bound to another artifact
	wrong = "wrong" // it is bound to this one, and that of other bytes
)

// digestFile is what a file of a digest has to be.
var digestFile = regexp.MustCompile(`^# size (\d+), mtime (\d+)\.(\d{9}), crc32c [0-9a-f]{8}\n([0-9a-f]{64})  \.\./artifacts/(\S+)\.tar\.gz\n$`)

// Scan takes the inventory of the store at base.
func Scan(base string) (*Inventory, error) {
	inv := &Inventory{Builds: map[string]Build{}, Logs: map[string][]uint64{}, Labels: map[string]string{}, digests: map[string][]string{}}
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(base, path)
		if err != nil {
			return err
		}
		if rel == "lost+found" {
			return fs.SkipDir
		}
		if d.IsDir() {
			return nil
		}
		inv.file(path, strings.Split(rel, "/"))
		return nil
	})
	for _, parts := range inv.waiting {
		inv.replacement(base, parts)
	}
	for key, b := range inv.Builds {
		b.Digest = b.judgeDigest(inv.digests[key])
		inv.Builds[key] = b
	}
	return inv, err
}

// judgeDigest judges the digest in a file, whose submatches are d: right, wrong, stale or none.
func (b Build) judgeDigest(d []string) string {
	switch {
	case d == nil:
		return none
	case d[1] != fmt.Sprint(b.Size), d[2] != fmt.Sprint(b.ModTime.Unix()), d[3] != fmt.Sprintf("%09d", b.ModTime.Nanosecond()):
		return stale
	case d[4] != b.sum:
		return wrong
	}
	return right
}

// replacement notes a file whose name begins with one of prefixes: as the file that
// it stands for, if that one is missing.
func (inv *Inventory) replacement(base string, parts []string) {
	path := filepath.Join(base, filepath.Join(parts...))
	last := len(parts) - 1
	parts = slices.Clone(parts)
	name := parts[last][len(prefixes[0]):]
	first := []string{name}
	for _, p := range prefixes {
		if p+name == parts[last] {
			break
		}
		first = append(first, p+name)
	}
	parts[last] = name
	for _, before := range first {
		_, err := os.Lstat(filepath.Join(filepath.Dir(path), before))
		if err == nil {
			inv.Temps++
			return
		}
		if !os.IsNotExist(err) {
			inv.Faults = append(inv.Faults, err.Error())
			return
		}
	}
	inv.Placed++
	inv.file(path, parts)
}

func (inv *Inventory) file(path string, parts []string) {
	name := parts[len(parts)-1]
	switch {
	case strings.HasPrefix(name, ".tmp-"):
		inv.Temps++
	case strings.HasPrefix(name, ".nfs"):
		inv.Silly++
	case slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }):
		inv.waiting = append(inv.waiting, parts)
	case strings.HasPrefix(name, "."): // the files of the locks
	case len(parts) == 4 && parts[0] == "sites" && parts[2] == "artifacts" && strings.HasSuffix(name, ".tar.gz"):
		inv.Builds[parts[1]+"/"+strings.TrimSuffix(name, ".tar.gz")] = readBuild(path)
	case len(parts) == 4 && parts[0] == "sites" && parts[2] == "logs" && strings.HasSuffix(name, ".json"):
		ops, err := readLog(path, strings.TrimSuffix(name, ".json"))
		if err != nil {
			inv.Faults = append(inv.Faults, fmt.Sprintf("log %s: %v", strings.Join(parts, "/"), err))
			return
		}
		inv.Logs[parts[1]+"/"+strings.TrimSuffix(name, ".json")] = ops
	case len(parts) == 4 && parts[0] == "sites" && parts[2] == "digests" && strings.HasSuffix(name, ".sha256"):
		build := strings.TrimSuffix(name, ".sha256")
		data, err := os.ReadFile(path)
		d := digestFile.FindStringSubmatch(string(data))
		if err != nil || d == nil || d[5] != build {
			inv.Faults = append(inv.Faults, fmt.Sprintf("digest %s: %q, %v", strings.Join(parts, "/"), data, err))
			return
		}
		inv.digests[parts[1]+"/"+build] = d
	case len(parts) == 4 && parts[0] == "sites" && parts[2] == "labels" && strings.HasSuffix(name, ".json"):
		label := strings.TrimSuffix(name, ".json")
		build, err := readLabel(path, label)
		if err != nil {
			inv.Faults = append(inv.Faults, fmt.Sprintf("label %s/%s: %v", parts[1], label, err))
			return
		}
		inv.Labels[parts[1]+"/"+label] = build
	case len(parts) == 2 && parts[0] == "status": // of maintenance
	default:
		inv.Faults = append(inv.Faults, fmt.Sprintf("a file of no kind: %q", strings.Join(parts, "/")))
	}
}

func readBuild(path string) Build {
	f, err := os.Open(path)
	if err != nil {
		return Build{Fault: err.Error()}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Build{Fault: err.Error()}
	}
	b := Build{Size: st.Size(), ModTime: st.ModTime()}
	h := sha256.New()
	if b.Op, _, err = Identify(io.TeeReader(f, h)); err != nil {
		b.Op, b.Fault = 0, err.Error()
	}
	b.sum = fmt.Sprintf("%x", h.Sum(nil))
	return b
}

// readLog gives the appends in a log, each of which must be an entry as
// Driver.Append sends it.
func readLog(path, buildID string) ([]uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var entries []struct {
		ID        string    `json:"id"`
		BuildID   string    `json:"build_id"`
		Action    string    `json:"action"`
		Status    string    `json:"status"`
		Timestamp time.Time `json:"timestamp"`
		Metadata  struct {
			Op uint64 `json:"op"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(data, &entries); err != nil {
		return nil, fmt.Errorf("%d bytes: %w", len(data), err)
	}
	var ops []uint64
	for i, e := range entries {
		if e.ID == "" || e.BuildID != buildID || e.Action != logAction || e.Status != logStatus || e.Timestamp.IsZero() || e.Metadata.Op == 0 {
			return nil, fmt.Errorf("entry %d is not as it was sent: %+v", i, e)
		}
		ops = append(ops, e.Metadata.Op)
	}
	if len(ops) == 0 {
		return nil, fmt.Errorf("%d bytes without an entry", len(data))
	}
	return ops, nil
}
