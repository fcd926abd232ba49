package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"time"
)

const (
	maxLabelLen  = 32 // bytes of a name
	maxLabels    = 16 // of a site
	maxLabelFile = 4 << 10
)

// Label is a name of a build of a site, such as live. The names of the members are those of its
// file or object.
type Label struct {
	Name    string `json:"label"`
	BuildID string `json:"build_id"`
	// Next is the build that a move, which may have been interrupted, is about to set. It is
	// protected like BuildID, and otherwise has no effect. Empty in a directory.
	Next      string    `json:"next,omitempty"`
	Previous  string    `json:"previous"`   // the build that it named before; empty: none
	ChangedAt time.Time `json:"changed_at"` // when it was last moved; each move has a later time
	By        string    `json:"by"`         // the name of the actor; empty: anonymous
	// BuildETag is the ETag that BuildID had when the label was moved, or set to it again. A
	// labelled build cannot be replaced, so that is its ETag still.
	BuildETag string `json:"build_etag"`
	// WriteID is a random id of the write that stored the label: no two writes store the same
	// bytes. Set in object stores alone, where an ETag may be a hash of the bytes.
	WriteID string `json:"write_id,omitempty"`
}

// ETag returns the strong ETag of the label. It covers what clients see.
func (l Label) ETag() string {
	h := sha256.New()
	for _, s := range []string{l.Name, l.BuildID, l.Previous, l.ChangedAt.UTC().Format(time.RFC3339Nano), l.By} {
		fmt.Fprintf(h, "%d:%s,", len(s), s)
	}
	return `"` + hex.EncodeToString(h.Sum(nil)[:16]) + `"`
}

// protects reports whether the label stops buildID from being deleted or replaced.
func (l Label) protects(buildID string) bool { return l.BuildID == buildID || l.Next == buildID }

// info returns what a Precondition on the label compares.
func (l Label) info() *ArtifactInfo { return &ArtifactInfo{ETag: l.ETag(), ModTime: l.ChangedAt} }

// moved returns the label after it was moved to buildID, which had the ETag etag, by the actor by.
// The zero Label is one that did not exist.
func (l Label) moved(name, buildID, etag, by string, now time.Time) Label {
	if !now.After(l.ChangedAt) {
		now = l.ChangedAt.Add(1)
	}
	return Label{Name: name, BuildID: buildID, Previous: l.BuildID, ChangedAt: now.UTC(), By: by, BuildETag: etag}
}

// LabelMove is a request to move a label, or to create it.
type LabelMove struct {
	Label, BuildID string
	By             string // the name of the actor; empty: anonymous
	Cond           Precondition
}

// LabelKeeper is a store that keeps labels. A build that a label protects cannot be deleted or
// replaced: StoreArtifactIf, DeleteArtifact and DeleteVersions then fail with a labelledError. If
// a label of the site cannot be read, they fail with its error. What is acknowledged is durable,
// as of every write.
type LabelKeeper interface {
	// MoveLabel moves the label if Cond holds, or creates it. It fails with ErrNotFound if the
	// build has no artifact, with errTooManyLabels, and with errBeingDeleted. If the label names
	// the build already and Cond holds, nothing that clients see changes: it gets a new BuildETag
	// if the file of the build was changed by something else than the service. created: the
	// label did not exist.
	MoveLabel(siteID string, move LabelMove) (l Label, created bool, err error)
	// GetLabel returns the label. It fails with ErrNotFound, and with ErrDamaged.
	GetLabel(siteID, label string) (Label, error)
	// ListLabels returns the labels of the site, at most maxLabels, in the order of their names.
	// It fails with ErrDamaged if one of them cannot be read.
	ListLabels(siteID string) ([]Label, error)
	// DeleteLabel removes the label if cond holds. If it does not exist, it succeeds, unless cond
	// requires that it exists. It removes a damaged label if cond is zero.
	DeleteLabel(siteID, label string, cond Precondition) error
}

// checkLabel returns an error unless name can be that of a label.
func checkLabel(name string) error {
	if name == "" || len(name) > maxLabelLen {
		return fmt.Errorf("must have 1 to %d characters", maxLabelLen)
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-' && i > 0:
		default:
			return errors.New("must contain only a-z 0-9 -, and begin with a letter or digit")
		}
	}
	return nil
}

// The errors of labels.
var (
	errLabelled      = errors.New("the build has labels")
	errTooManyLabels = fmt.Errorf("the site has %d labels, the maximum", maxLabels)
	errBeingDeleted  = errors.New("the build is being deleted")
)

// labelledError is an errLabelled that names the labels. Clients see it.
type labelledError struct {
	buildID string
	labels  []string
}

func (e *labelledError) Error() string {
	word := "label"
	if len(e.labels) > 1 {
		word = "labels"
	}
	return fmt.Sprintf("build %q has the %s %s: move or delete the %s first", e.buildID, word, strings.Join(e.labels, ", "), word)
}

func (e *labelledError) Unwrap() error     { return errLabelled }
func (e *labelledError) forClient() string { return e.Error() }

// checkUnlabelled fails with a labelledError if one of labels protects the build.
func checkUnlabelled(buildID string, labels []Label) error {
	var names []string
	for _, l := range labels {
		if l.protects(buildID) {
			names = append(names, l.Name)
		}
	}
	if names == nil {
		return nil
	}
	slices.Sort(names)
	return &labelledError{buildID, names}
}

// labelFile is the file or object of a label. CRC32C is that of the file in which it is empty.
type labelFile struct {
	Label
	CRC32C string `json:"crc32c"`
}

// formatLabel returns the file or object of a label: one line of JSON.
func formatLabel(l Label) []byte {
	l.ChangedAt = l.ChangedAt.UTC()
	f := labelFile{Label: l}
	f.CRC32C = fmt.Sprintf("%08x", crc32.Checksum(f.encode(), castagnoli))
	return append(f.encode(), '\n')
}

func (f labelFile) encode() []byte {
	data, err := json.Marshal(f)
	if err != nil {
		panic(err) // strings and a time of this century
	}
	return data
}

// parseLabel is the reverse of formatLabel. It accepts only what that returns for a label of
// that name; otherwise it fails with ErrDamaged.
func parseLabel(name string, data []byte) (Label, error) {
	var f labelFile
	if len(data) <= maxLabelFile && json.Unmarshal(data, &f) == nil {
		if l := f.Label; l.Name == name && l.isValid() && string(formatLabel(l)) == string(data) {
			return l, nil
		}
	}
	return Label{}, &damagedLabel{name, "it is not as the service wrote it"}
}

func (l Label) isValid() bool {
	for _, id := range []string{l.BuildID, l.Next, l.Previous} {
		if id != "" && checkID(id) != nil {
			return false
		}
	}
	return (l.BuildID != "" || l.Next != "") && !l.ChangedAt.IsZero()
}

// maxUnlooked is the largest upload of which the labels are read only right before it is committed,
// and not before its body too: the default size of a part.
const maxUnlooked = 8 << 20

// looksFirst reports whether the labels are read before body too, to refuse it early.
func looksFirst(body io.Reader) bool {
	size := sizeOf(body)
	return size < 0 || size > maxUnlooked
}

// damagedLabel is an errLabelDamaged that names the label. Clients see it.
type damagedLabel struct{ label, why string }

func (e *damagedLabel) Error() string {
	return fmt.Sprintf("the label %q is damaged: %s: delete it and set it again", e.label, e.why)
}

func (e *damagedLabel) Unwrap() error     { return errLabelDamaged }
func (e *damagedLabel) forClient() string { return e.Error() }

// errLabelDamaged is the ErrDamaged of labels.
var errLabelDamaged error = labelDamagedError{}

type labelDamagedError struct{}

func (labelDamagedError) Error() string { return "a label is damaged" }
func (labelDamagedError) Unwrap() error { return ErrDamaged }
