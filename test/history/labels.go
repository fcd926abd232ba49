package history

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// Move moves a label, of the key site/label, to a build. It returns the status, 0 if there was
// no answer.
func (d *Driver) Move(ctx context.Context, key, build string) int {
	return d.send(ctx, d.History.begin(Op{Kind: Move, Key: key, Build: build, StartMark: d.mark()}))
}

// deleteVersion is one request with two effects, each of which may come without the other if
// there is no answer.
func (d *Driver) deleteVersion(ctx context.Context, key string) int {
	site, build, _ := strings.Cut(key, "/")
	artifact, log := d.History.Begin(Delete, key, 0, d.mark()), d.History.Begin(DeleteLog, key, 0, d.mark())
	req, err := http.NewRequestWithContext(ctx, "DELETE", d.URL+"/sites/"+site+"/versions/"+build, nil)
	if err != nil {
		panic(err) // the url is ours
	}
	return d.exchange(req, artifact, log)
}

// someOfLabels moves a label to the build of a key, deletes it, or downloads by it.
func (d *Driver) someOfLabels(ctx context.Context, rng *rand.Rand, key string) int {
	site, build, _ := strings.Cut(key, "/")
	label := site + "/" + []string{"live", "next"}[rng.IntN(2)]
	switch n := rng.IntN(10); {
	case n < 6:
		return d.Move(ctx, label, build)
	case n < 8:
		return d.Do(ctx, Unlabel, label, 0)
	}
	_, _, err := d.follow(ctx, label)
	if err != nil && !strings.Contains(err.Error(), "404") {
		return 0
	}
	return http.StatusOK
}

func labelPath(key string) string {
	site, label, _ := strings.Cut(key, "/")
	return "/sites/" + site + "/labels/" + label
}

// buildOfLabel is the key of a build of the site of a label.
func buildOfLabel(label, build string) string {
	site, _, _ := strings.Cut(label, "/")
	return site + "/" + build
}

// follow downloads by a label, and returns the key of the build, and the upload that it is.
func (d *Driver) follow(ctx context.Context, label string) (key string, op uint64, err error) {
	resp, err := d.get(ctx, labelPath(label)+"/artifact")
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	op, _, err = Identify(resp.Body)
	path, _ := strings.CutPrefix(resp.Header.Get("Content-Location"), "/sites/")
	return strings.Replace(path, "/artifacts/", "/", 1), op, err
}

// judgeLabels compares the labels that a site lists, and the builds that they lead to, with inv.
func (d *Driver) judgeLabels(ctx context.Context, site string, inv *Inventory, fault func(format string, args ...any)) error {
	resp, err := d.get(ctx, "/sites/"+site+"/labels")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var list struct {
		Labels []struct {
			Label   string `json:"label"`
			BuildID string `json:"build_id"`
		} `json:"labels"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return err
	}
	listed := map[string]string{}
	for _, l := range list.Labels {
		listed[site+"/"+l.Label] = l.BuildID
	}
	for label, build := range inv.Labels {
		if !strings.HasPrefix(label, site+"/") {
			continue
		}
		if listed[label] != build {
			fault("label %s is listed with build %q; it names %q", label, listed[label], build)
		}
		delete(listed, label)
		want := buildOfLabel(label, build)
		if key, op, err := d.follow(ctx, label); err != nil || key != want || op != inv.Builds[want].Op {
			fault("label %s leads to upload %d of %q (%v); it is upload %d of %q", label, op, key, err, inv.Builds[want].Op, want)
		}
	}
	for label, build := range listed {
		fault("label %s is listed with build %q and is not there", label, build)
	}
	return nil
}

// readLabel returns the build that the file of a label names.
func readLabel(path, label string) (build string, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var l struct {
		Label     string    `json:"label"`
		BuildID   string    `json:"build_id"`
		Previous  string    `json:"previous"`
		ChangedAt time.Time `json:"changed_at"`
		By        string    `json:"by"`
		BuildETag string    `json:"build_etag"`
		CRC32C    string    `json:"crc32c"`
	}
	if err := json.Unmarshal(data, &l); err != nil {
		return "", fmt.Errorf("is damaged: %d bytes: %w", len(data), err)
	}
	sum := l.CRC32C
	l.CRC32C = ""
	text, err := json.Marshal(l)
	want := fmt.Sprintf("%08x", crc32.Checksum(text, crc32.MakeTable(crc32.Castagnoli)))
	whole := bytes.Replace(text, []byte(`"crc32c":""`), []byte(`"crc32c":"`+want+`"`), 1)
	if err != nil || l.Label != label || l.BuildID == "" || sum != want || string(data) != string(whole)+"\n" {
		return "", fmt.Errorf("is damaged: %q", data)
	}
	return l.BuildID, nil
}

// uploadOf returns the op of ops that found is the upload of; nil: there is none.
func uploadOf(found Build, ops []*Op) *Op {
	if i := slices.IndexFunc(ops, func(op *Op) bool { return op.ID == found.Op }); i >= 0 {
		return ops[i]
	}
	return nil
}

// judgeLabel: the label names a build to which a move, that may have been done, moved it, and no
// acknowledged op came wholly after.
func judgeLabel(ops []*Op, build string, there bool, mark int64) string {
	if !there {
		if lost := lostBut(Unlabel, ops, mark); lost != nil {
			return fmt.Sprintf("is absent, but op %d was acknowledged", lost.ID)
		}
		return ""
	}
	var by *Op
	for _, op := range ops {
		if op.Kind == Move && op.Build == build && op.possible(mark) {
			if by = overtaken(op, ops, mark); by == nil {
				return ""
			}
		}
	}
	if by == nil {
		return fmt.Sprintf("names build %q, to which nobody moved it", build)
	}
	return fmt.Sprintf("names build %q, but op %d was acknowledged after that", build, by.ID)
}

// judgeLabelled: the build that a label names is there, and none that was sent after the move.
func judgeLabelled(moves []*Op, build string, found map[string]Build, uploads map[string][]*Op, key string) string {
	b, there := found[key]
	upload := uploadOf(b, uploads[key])
	before := func(m *Op) bool {
		return m.Kind == Move && m.Build == build && m.Outcome != Refused && upload != nil && upload.Start < m.End
	}
	switch {
	case !there:
		return "which is absent"
	case upload != nil && !slices.ContainsFunc(moves, before):
		return fmt.Sprintf("whose upload %d was sent after every move to it", upload.ID)
	}
	return ""
}

// JudgeProtected returns the builds that were replaced or deleted while a label named them.
func (h *History) JudgeProtected() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var violations []string
	changes := h.byKey(Put, Delete)
	for label, ops := range h.byKey(Move, Unlabel) {
		for _, m := range ops {
			if m.Kind != Move || m.Outcome != Done {
				continue
			}
			for _, c := range changes[buildOfLabel(label, m.Build)] {
				movedAway := func(o *Op) bool {
					return o.Outcome != Refused && o.Build != m.Build && o.End > m.Start && o.Start < c.End
				}
				if c.Outcome == Done && m.End < c.Start && !slices.ContainsFunc(ops, movedAway) {
					violations = append(violations, fmt.Sprintf("build %s: op %d was acknowledged, though move %d of label %s protected it", c.Key, c.ID, m.ID, label))
				}
			}
		}
	}
	slices.Sort(violations)
	return violations
}
